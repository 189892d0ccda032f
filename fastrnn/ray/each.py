"""Steps of many streams that succeed or fail one by one: what a gateway of other people's requests needs.

`Caller.step` is one call of one program: if a stream of it is not open, no step is taken. Here requests of strangers
share a call, and an error of one is not that of another.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from ..errors import StateError
from ..records import dataclass
from .caller import Caller
from .calls import spans
from .log import answered
from .words import StepsLost

ATTEMPTS = 3  # for streams that others close and open again meanwhile


class Gone(StateError):
    """A stream is not open. code : UNKNOWN, CLOSED or EXPIRED"""

    def __init__(self, id: int | str, code: int):
        super().__init__(f"stream {id!r:.80} is not open: open it first")
        self.code = code


@dataclass(eq=False)
class Each:
    """What became of each row of a call.

    outputs : [n, ...], or [steps, ...] with the steps of one row after those of another; undefined where an error is
    first : int64 [n], the step index of each row's first step
    errors : position -> why no step of this row was taken
    """

    outputs: list[np.ndarray]
    first: np.ndarray
    errors: dict[int, Exception]


class _Call:
    """Rows that share a call, and those of them that are still to be taken."""

    def __init__(self, caller: Caller, ids: list, arrays: list[np.ndarray], lengths, index, outputs: list[tuple]):
        self.caller, self.ids, self.arrays, self.lengths, self.index = caller, ids, arrays, lengths, index
        total = len(ids) if lengths is None else int(lengths.sum())
        made = [np.zeros((total, *features), dtype) for _, dtype, features in outputs]
        self.each = Each(made, np.zeros(len(ids), np.int64), {})

    def where(self, positions: np.ndarray) -> np.ndarray:
        """Where the steps of some rows are in the arrays."""
        return positions if self.lengths is None else spans(self.lengths, positions)

    async def attempt(self, left: np.ndarray) -> np.ndarray:
        """Take the steps of these positions; those that are to be tried again."""
        table, errors = self.caller.table, self.each.errors
        gone = await self.caller.find([self.ids[i] for i in left.tolist()])
        errors.update({i: Gone(self.ids[i], gone[self.ids[i]][0]) for i in left.tolist() if self.ids[i] in gone})
        left = np.array([i for i in left.tolist() if self.ids[i] not in gone], np.int64)
        # Nothing waits from here on until the steps are on their way.
        rows = np.array([table.rows.get(self.ids[i], -1) for i in left.tolist()], np.int64)
        again = left[rows < 0].tolist()
        if self.index is None:
            lost = {i: row for i, row in zip(left.tolist(), rows.tolist(), strict=True) if row in self.caller._losses}
            errors.update({i: StepsLost({self.ids[i]: self.caller._losses[row]}) for i, row in lost.items()})
        keep = np.array([i not in errors for i in left.tolist()], np.bool_) & (rows >= 0)
        left, rows = left[keep], rows[keep]
        behind = left[:0] if self.index is None else left[self.index[left] != table.next[rows]]
        self.caller._said(rows[~np.isin(left, behind)])
        good = left[~np.isin(left, behind)]
        work: list[Any] = [self._repeat(i) for i in behind.tolist()]
        if len(good):
            work.append(self._enter(good, rows[~np.isin(left, behind)]))
        for found in await asyncio.gather(*work):
            again += found
        return np.array(again, np.int64)

    async def _repeat(self, i: int) -> list[int]:
        """A step that is not the next one: its answer is kept, or it is refused."""
        own = np.array([i])
        where = self.where(own)
        lengths = None if self.lengths is None else self.lengths[own]
        self.each.first[i] = self.index[i]
        try:
            found = await self.caller.step([self.ids[i]], [a[where] for a in self.arrays], lengths, self.index[own])
        except Exception as error:
            return self._failed(i, error)
        for out, a in zip(self.each.outputs, found, strict=True):
            out[where] = a
        return []

    def _enter(self, good: np.ndarray, rows: np.ndarray) -> Any:
        """Send the next steps of these rows; what waits for them."""
        caller, where = self.caller, self.where(good)
        arrays = [a[where] for a in self.arrays]
        lengths = None if self.lengths is None else self.lengths[good]
        groups = caller.groups_of(rows)
        entries = [caller.enter(group, arrays, lengths, self.index is not None) for group in groups]
        return self._entered(good, groups, entries)

    async def _entered(self, good: np.ndarray, groups: list, entries: list) -> list[int]:
        await answered(entries)
        again: list[int] = []
        for group, entry in zip(groups, entries, strict=True):
            own = good if group.index is None else good[group.index]
            self.each.first[own] = entry.first
            for row, span in entry.lost.items():
                i = int(own[np.flatnonzero(entry.rows == row)[0]])
                self.each.errors[i] = StepsLost({self.ids[i]: span})
            for k, error in entry.failed.items():
                again += self._failed(int(own[k]), error)
            if entry.outputs is not None:
                for out, a in zip(self.each.outputs, entry.outputs, strict=True):
                    out[self.where(own)] = a
        return again

    def _failed(self, i: int, error: Exception) -> list[int]:
        """Note an error; a stream that another caller closed may be open again."""
        if isinstance(error, StateError) or self.ids[i] not in self.caller.table.rows:
            return [i]
        self.each.errors[i] = error
        return []


async def step_each(
    caller: Caller,
    ids: list,
    arrays: list[np.ndarray],
    lengths: np.ndarray | None,
    index: np.ndarray | None,
    outputs: list[tuple],
) -> Each:
    """`Caller.step` of streams that fail one by one. No other call for them may be under way here.

    Parameters
    ----------
    ids, arrays, lengths, index : as of `Caller.step`
    outputs : (name, dtype, features) of each output
    """
    call, left = _Call(caller, ids, arrays, lengths, index, outputs), np.arange(len(ids))
    with caller.table.pinned():
        for _ in range(ATTEMPTS):
            left = await call.attempt(left)
            if not len(left):
                break
    for i in left.tolist():
        call.each.errors[i] = StateError(f"stream {ids[i]!r:.80} was closed, again and again, by another caller")
    return call.each
