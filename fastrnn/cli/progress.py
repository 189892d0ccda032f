"""A progress bar with the remaining time, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(quiet: bool = False) -> Iterator[Callable[[float, str], None]]:
    """Yields a function of (share done 0..1, description). quiet: draw nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda share, text: None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.BarColumn(30),
        bars.TaskProgressColumn(),
        bars.TimeRemainingColumn(),
        bars.TextColumn("left, {task.description}"),
    )
    # Twice per second: drawing takes time from the core that is measured.
    with bars.Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2) as drawn:
        task = drawn.add_task("starting", total=1.0)
        yield lambda share, text: drawn.update(task, completed=share, description=text)
