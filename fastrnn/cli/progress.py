"""A bar with the time left while something long runs: on a terminal, and nothing in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(quiet: bool = False) -> Iterator[Callable[[float, str], None]]:
    """Yields what takes (share done 0..1, what is being done). quiet: draws nothing on a terminal either."""
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
    # Drawn twice a second: drawing takes time from a core that is being measured.
    with bars.Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2) as drawn:
        task = drawn.add_task("starting", total=1.0)
        yield lambda share, text: drawn.update(task, completed=share, description=text)
