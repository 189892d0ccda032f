"""The streams that a caller steps: one row each, in arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from .words import shards_of


class Table:
    """Rows of streams.

    rows : id -> row. ids : row -> id. shard, slot, gen, next, since, said : int64 by row; next is the index of the next
    new step, since that at which this caller began with the stream, said the newest epoch in which its own callers said
    an index, so that they know what the state holds.
    live : bool by row. version : changes with the rows, so that what was computed from them can be kept meanwhile.
    """

    def __init__(self, shards: int):
        self.shards = shards
        self.rows: dict[Any, int] = {}
        self.ids: list = []
        self.version = 0
        self.shard, self.slot, self.gen, self.next, self.since, self.said = (np.zeros(0, np.int64) for _ in range(6))
        self.live = np.zeros(0, np.bool_)
        self._free: list[int] = []
        self._closed: list[tuple[int, int]] = []  # rows that the log, or an older pin, may still name; the newest pin
        self._pins: dict[int, None] = {}  # oldest first
        self._pin = 0

    def add(self, ids: list, columns: np.ndarray) -> np.ndarray:
        """New rows. columns : int64 [5, n]: shard, slot, next, gen, since."""
        rows = np.array([self._free.pop() if self._free else self._new() for _ in ids], np.int64)
        for id, row in zip(ids, rows.tolist(), strict=True):
            self.rows[id] = row
            self.ids[row] = id
        self.shard[rows], self.slot[rows], self.next[rows], self.gen[rows], self.since[rows] = columns
        self.live[rows], self.said[rows] = True, 0
        self.version += 1
        return rows

    def _new(self) -> int:
        self.ids.append(None)
        if len(self.ids) > len(self.live):
            more = max(1024, len(self.live))
            for name in ("shard", "slot", "gen", "next", "since", "said"):
                setattr(self, name, np.concatenate([getattr(self, name), np.zeros(more, np.int64)]))
            self.live = np.concatenate([self.live, np.zeros(more, np.bool_)])
        return len(self.ids) - 1

    def remove(self, row: int) -> None:
        """A stream was closed, or belongs to no caller any more."""
        if self.live[row]:
            del self.rows[self.ids[row]]
            self.live[row] = False
            self._closed.append((row, self._pin))
            self.version += 1

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """No row that is closed from now on is used again meanwhile: who waits may still name it."""
        self._pin = pin = self._pin + 1
        self._pins[pin] = None
        try:
            yield
        finally:
            del self._pins[pin]

    def reuse(self, kept: np.ndarray) -> None:
        """Closed rows may be used again if no step of them is kept, and nobody who began before waits. kept : by row"""
        oldest = next(iter(self._pins), self._pin + 1)
        still = [(r, pin) for r, pin in self._closed if pin >= oldest or (r < len(kept) and kept[r])]
        gone = {r for r, _ in still}
        self._free += [r for r, _ in self._closed if r not in gone]
        self._closed = still

    def of(self, shards: np.ndarray) -> np.ndarray:
        """The live rows of shards. shards : bool by shard"""
        return np.flatnonzero(shards[self.shard] & self.live)

    def place(self, ids: list) -> np.ndarray:
        """The shard of each id."""
        return shards_of(ids, self.shards)
