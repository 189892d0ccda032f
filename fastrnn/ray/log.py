"""The replay buffer of a caller: the inputs of steps until a checkpoint, and the one before it, hold their effect."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np

from .words import NEVER


class Entry:
    """One call: the steps of some streams of one actor.

    number : of the call; it is the same each time it is sent
    rows, first : int64 [n], rows of the caller's table and their step indexes
    lengths : int64 [n], the steps of a push; None: one each
    arrays : inputs, [n, ...] or [steps, ...]
    shards : int64 [k], unique; labels : int64 [k], the checkpoint that holds these steps
    done, alive : bool [n]: answered; still to be replayed after a loss
    lost : row -> the range of its steps that are gone
    failed : position -> why its steps were not taken
    flying : bool [n], an attempt is under way. attempt : answers to earlier ones are ignored
    explicit : the step indexes are its callers'. wanted : somebody waits for the outputs
    ambiguous : an attempt may have been executed although its answer never came
    """

    __slots__ = (
        "alive", "ambiguous", "arrays", "attempt", "done", "explicit", "failed", "first", "flying",
        "future", "labels", "left", "lengths", "lost", "nbytes", "number", "offsets", "outputs", "rows", "shards",
        "wanted",
    )  # fmt: skip

    def __init__(self, number: int, rows, first, lengths, arrays: list[np.ndarray], shards, future: asyncio.Future):
        n = len(rows)
        self.number, self.rows, self.first, self.lengths, self.arrays = number, rows, first, lengths, arrays
        self.shards, self.labels = shards, np.full(len(shards), NEVER, np.int64)
        self.done, self.flying, self.alive = np.zeros(n, np.bool_), np.zeros(n, np.bool_), np.ones(n, np.bool_)
        self.left, self.lost, self.failed = n, {}, {}  # type: int, dict[int, range], dict[int, Exception]
        self.outputs: list[np.ndarray] | None = None
        self.attempt, self.ambiguous = 0, False
        self.future, self.explicit, self.wanted = future, False, True
        self.offsets: np.ndarray | None = None
        if lengths is not None:
            self.offsets = np.zeros(n + 1, np.int64)
            np.cumsum(lengths, out=self.offsets[1:])
        self.nbytes = sum(a.nbytes for a in arrays) + 64 * n

    def steps(self) -> np.ndarray:
        """int64 [n], the steps of each row."""
        return np.ones(len(self.rows), np.int64) if self.lengths is None else self.lengths

    def index(self, sel: np.ndarray) -> np.ndarray:
        """Where the steps of some rows are in the arrays. sel : int64 positions"""
        if self.offsets is None:
            return sel
        lengths = self.lengths[sel]
        ends = np.cumsum(lengths)
        return np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.offsets[:-1][sel] - ends + lengths, lengths)

    def answered(self, sel: np.ndarray | None, outputs: list[np.ndarray]) -> None:
        """The outputs of rows (None: of all) have come."""
        if not self.left:
            return  # of a replay: its outputs were given away
        if sel is None:
            self.outputs, self.left = outputs, 0
            self.done[:] = True
            return
        fresh = ~self.done[sel]
        if not fresh.any():
            return
        total = len(self.rows) if self.offsets is None else int(self.offsets[-1])
        if self.outputs is None:
            self.outputs = [np.zeros((total, *a.shape[1:]), a.dtype) for a in outputs]
            for a in self.outputs:
                if a.dtype.kind == "f":
                    a.fill(np.nan)
        index = self.index(sel)
        for mine, came in zip(self.outputs, outputs, strict=True):
            mine[index] = came
        self.done[sel] = True
        self.left -= int(fresh.sum())

    def forsake(self) -> None:
        """Nobody waits for the outputs any more; the steps are taken all the same."""
        self.wanted = False
        if not self.left:
            self.outputs = None

    def end(self, positions: np.ndarray) -> None:
        """Rows that get no outputs, and are never replayed."""
        fresh = positions[~self.done[positions]]
        self.done[fresh] = True
        self.left -= len(fresh)
        self.alive[positions] = False


class Log:
    """The entries of a caller, oldest first.

    Parameters
    ----------
    most_steps : of one stream that are kept. most_bytes : of all
    """

    def __init__(self, most_steps: int, most_bytes: int):
        self.most_steps, self.most_bytes = most_steps, most_bytes
        self.entries: dict[int, Entry] = {}
        self.open: dict[int, Entry] = {}  # those that have no answer yet
        self.nbytes = 0
        self.dropped = 0  # steps that the bounds removed
        self.kept = np.zeros(0, np.int64)  # row -> its steps here

    def add(self, entry: Entry) -> None:
        """A new call, which has no answer yet."""
        top = int(entry.rows.max(initial=-1)) + 1
        if top > len(self.kept):
            self.kept = np.concatenate([self.kept, np.zeros(max(top, 1024), np.int64)])
        self.kept[entry.rows] += entry.steps()
        self.entries[entry.number] = self.open[entry.number] = entry
        self.nbytes += entry.nbytes
        if self.nbytes > self.most_bytes or (self.kept[entry.rows] > self.most_steps).any():
            self._shrink()

    def settle(self, entry: Entry) -> None:
        """It has all answers: its future gets them. The entry stays, for replays."""
        if self.open.pop(entry.number, None) is None:
            return
        if not entry.wanted:
            entry.outputs = None
        if not entry.future.done():
            entry.future.set_result(None)

    def covered(self, durable: np.ndarray, shard: np.ndarray) -> None:
        """Remove what the store holds. durable : by shard, the older checkpoint kept. shard : by row"""
        wanted = np.zeros(len(durable), np.bool_)
        for entry in list(self.entries.values()):
            if entry.left:
                continue
            late = entry.shards[entry.labels > durable[entry.shards]]
            wanted[late] = True
            if not len(late) or not wanted[shard[entry.rows[entry.alive]]].any():
                self.remove(entry)
            wanted[late] = False

    def remove(self, entry: Entry) -> None:
        """Take a whole entry out."""
        if self.entries.pop(entry.number, None) is None:
            return
        self.nbytes -= entry.nbytes
        self.kept[entry.rows[entry.alive]] -= entry.steps()[entry.alive]

    def drop(self, entry: Entry, positions: np.ndarray) -> None:
        """Rows of an entry that are never replayed."""
        gone = positions[entry.alive[positions]]
        self.kept[entry.rows[gone]] -= entry.steps()[gone]
        entry.end(gone)

    def _shrink(self) -> None:
        """Forget the oldest answered steps until the bounds hold again."""
        for entry in list(self.entries.values()):
            if entry.left:
                continue
            over = entry.alive & (self.kept[entry.rows] > self.most_steps)
            if self.nbytes > self.most_bytes:
                over = entry.alive.copy()
            elif not over.any():
                continue
            self.dropped += int(entry.steps()[over].sum())
            self.drop(entry, np.flatnonzero(over))
            if not entry.alive.any():
                self.remove(entry)

    def needs(self, rows: int) -> np.ndarray:
        """By row: the index of the first step without an answer; NEVER without one."""
        need = np.full(rows, NEVER, np.int64)
        for entry in self.open.values():
            np.minimum.at(need, entry.rows[~entry.done], entry.first[~entry.done])
        return need

    def after(self, expected: np.ndarray) -> np.ndarray:
        """By row: how many steps are kept from an index on. Entries are removed in any order, so one may be missing
        between others. expected : by row"""
        have = np.zeros(len(expected), np.int64)
        for entry in self.entries.values():
            hit = entry.alive & (entry.first >= expected[entry.rows])
            np.add.at(have, entry.rows[hit], entry.steps()[hit])
        return have

    def taken(self, row: int, after: int) -> int:
        """The end of the last step of a row that was answered. after : the index of its next new step"""
        ends = [min([after, *self._ends(row, False)])]
        return max(ends + self._ends(row, True))

    def _ends(self, row: int, done: bool) -> list[int]:
        """The ends of a row's answered steps, or the beginnings of the others."""
        found = []
        for entry in self.entries.values():
            at = np.flatnonzero((entry.rows == row) & entry.alive & (entry.done == done))
            if len(at):
                found.append(int(entry.first[at[0]] + (entry.steps()[at[0]] if done else 0)))
        return found

    def forget(self, among: np.ndarray) -> None:
        """These shards were taken up again: no checkpoint from before is known to hold a step. among : bool by shard"""
        for entry in self.entries.values():
            own = among[entry.shards]
            if own.any():
                entry.labels = np.where(own, NEVER, entry.labels)

    def pieces(self, among: np.ndarray, expected: np.ndarray) -> Iterator[tuple[Entry, np.ndarray]]:
        """(entry, positions) of what is sent again, in order. among : bool by row; expected : step index by row"""
        for entry in list(self.entries.values()):
            own = among[entry.rows] & entry.alive
            own &= (entry.first >= expected[entry.rows]) | ~entry.done
            if own.any():
                yield entry, np.flatnonzero(own)


async def answered(entries: list[Entry]) -> None:
    """Wait for the answers. If the waiting task is cancelled, the steps are still taken. A later `close` of their
    streams waits for them."""
    try:
        if len(entries) == 1:
            await asyncio.shield(entries[0].future)
        else:
            await asyncio.gather(*(asyncio.shield(e.future) for e in entries))
    except asyncio.CancelledError:
        for entry in entries:
            entry.forsake()
        raise
