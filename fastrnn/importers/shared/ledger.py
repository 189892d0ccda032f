"""Records what an importer has read of a layer, node or file. Anything unread is refused, never ignored."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable

from ...errors import FastRNNError


class Finding(FastRNNError):
    """One unsupported part of a source. An importer collects all of them into one UnsupportedError."""


class ReadLedger:
    """Tracks which names were read. names: all names of the source, in its order."""

    def __init__(self, names: Collection[Hashable]):
        self.names = names
        self.seen: set = set()

    def read(self, *names: Hashable) -> None:
        """Mark names as read, whether or not the source has them."""
        self.seen.update(names)

    def left(self, besides: Iterable[Hashable] = ()) -> list:
        """The names that were not read, in the order of the source. besides: names to ignore."""
        done = self.seen.union(besides)
        return [name for name in self.names if name not in done]
