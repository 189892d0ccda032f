"""Names of nodes, which exporters make long: a common prefix is shown only once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def common_path(names: Sequence[str]) -> str:
    """The leading parts, up to a slash, that all of several names share."""
    if len(names) < 2:
        return ""
    shared = itertools.takewhile(
        lambda parts: len(set(parts)) == 1, zip(*(n.split("/")[:-1] for n in names), strict=False)
    )
    return "".join(f"{parts[0]}/" for parts in shared)


def shortened(name: str, most: int) -> str:
    """A name; a long one without its middle."""
    return name if len(name) <= most else name[: most // 2 - 1] + "…" + name[-(most // 2) :]
