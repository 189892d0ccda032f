"""What an importer has read of a layer, a node or a file. What it has not read is refused: nothing is ignored."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable

from ...errors import FastRNNError


class Finding(FastRNNError):
    """One thing of a source that is not supported. An importer gathers all of them into one UnsupportedError."""


class ReadLedger:
    """Which of some names were read. names: all that the source has, in its order."""

    def __init__(self, names: Collection[Hashable]):
        self.names = names
        self.seen: set = set()

    def read(self, *names: Hashable) -> None:
        """Note that names are read, whether the source has them or not."""
        self.seen.update(names)

    def left(self, besides: Iterable[Hashable] = ()) -> list:
        """The names that were not read, in the order of the source. besides: names that do not count."""
        done = self.seen.union(besides)
        return [name for name in self.names if name not in done]
