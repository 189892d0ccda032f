"""The answers that a host keeps, to give them again when a call comes a second time."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np

MOST_KEPT = 48  # calls whose arrays are kept as they are; of older ones only the rows that may still be asked for


class Answered:
    """What one call answered.

    caller, number : of the call. slots, first : int64 [n]. offsets : int64 [n + 1], the steps of row i are
    offsets[i] to offsets[i + 1] of the outputs. outputs : arrays [steps, ...]. live : rows that are the last of their
    stream.
    """

    __slots__ = ("caller", "first", "live", "number", "offsets", "outputs", "slots")

    def __init__(self, caller: int, number: int, slots, first, offsets, outputs: list[np.ndarray]):
        self.caller, self.number, self.live = caller, number, len(slots)
        self.slots, self.first, self.offsets, self.outputs = slots, first, offsets, outputs

    def only(self, keep: np.ndarray) -> Answered:
        """A copy with some of the rows. keep : int64 positions."""
        offsets, index = pieces(self.offsets, keep)
        part = Answered(self.caller, self.number, self.slots[keep], self.first[keep], offsets, [])
        part.outputs = [a[index] for a in self.outputs]
        return part

    def find(self, slot: int, first: int) -> int | None:
        """The position of a row."""
        found = np.flatnonzero((self.slots == slot) & (self.first == first))
        return int(found[0]) if len(found) else None


class Answers:
    """The answers of a host, newest last.

    Those of the last call of each stream are kept, and those that their callers have not acknowledged.
    """

    def __init__(self) -> None:
        self._kept: dict[int, Answered] = {}  # serial -> answer
        self._serial = 0
        self._most = MOST_KEPT
        self._of = np.full(0, -1, np.int64)  # place -> serial of the stream's last answer
        self._acked: dict[int, int] = {}  # caller -> all its calls up to this number have their answers

    def add(self, answer: Answered, places: np.ndarray) -> None:
        """The newest answer, and the places of its rows."""
        top = int(places.max(initial=-1)) + 1
        if top > len(self._of):
            self._of = np.concatenate([self._of, np.full(top + len(self._of) - len(self._of) % 1024, -1, np.int64)])
        self._let_go(places)
        self._serial += 1
        self._kept[self._serial] = answer
        self._of[places] = self._serial
        if len(self._kept) > self._most:
            self._trim()
            self._most = max(MOST_KEPT, 2 * len(self._kept))

    def forget(self, places: np.ndarray) -> None:
        """These streams have ended."""
        places = places[places < len(self._of)]
        self._let_go(places)
        self._of[places] = -1

    def ack(self, caller: int, number: int) -> None:
        """A caller has the answers of all its calls up to this one."""
        if number > self._acked.get(caller, -1):
            self._acked[caller] = number

    def find(self, slot: int, first: int, length: int, caller: int | None = None) -> list[np.ndarray] | None:
        """The outputs [steps, ...] of a row that was answered before: to this caller, or to any if None."""
        for answer in reversed(self._kept.values()):
            if caller is not None and answer.caller != caller:
                continue
            i = answer.find(slot, first)
            if i is not None and answer.offsets[i + 1] - answer.offsets[i] == length:
                return [a[answer.offsets[i] : answer.offsets[i + 1]] for a in answer.outputs]
        return None

    def open_of(self, groups: list[np.ndarray]) -> list[list[Answered]]:
        """What checkpoints keep of these groups of streams: the answers that their callers may not have, with the
        positions of their streams in the group as slots."""
        found: list[list[Answered]] = [[] for _ in groups]
        if not groups:
            return found
        slots = np.concatenate(groups)
        order = np.argsort(slots)
        ordered = slots[order]
        starts = np.cumsum([0, *(len(g) for g in groups)])
        for answer in self._kept.values():
            if answer.number <= self._acked.get(answer.caller, -1):
                continue
            at = np.minimum(np.searchsorted(ordered, answer.slots), len(slots) - 1)
            rows = np.flatnonzero(ordered[at] == answer.slots)
            position = order[at[rows]]
            group = np.searchsorted(starts, position, "right") - 1
            by_group = np.argsort(group, kind="stable")
            ends = np.searchsorted(group[by_group], np.arange(len(groups) + 1))
            for k in np.unique(group).tolist():
                mine = by_group[ends[k] : ends[k + 1]]
                part = answer.only(rows[mine])
                part.slots = position[mine] - starts[k]
                found[k].append(part)
        return found

    def _let_go(self, places: np.ndarray) -> None:
        """One live row less of what these places answered last."""
        before = self._of[places]
        if len(before) and (before == before[0]).all():
            counts: Any = [(int(before[0]), len(before))]
        else:
            counts = zip(*(a.tolist() for a in np.unique(before, return_counts=True)), strict=True)
        for serial, n in counts:
            answer = self._kept.get(serial)
            if answer is None:
                continue
            answer.live -= n
            if answer.live <= 0 and answer.number <= self._acked.get(answer.caller, -1):
                del self._kept[serial]

    def _trim(self) -> None:
        """Keep of old calls only what may be asked for again."""
        for serial in list(islice(self._kept, len(self._kept) - MOST_KEPT)):
            answer = self._kept[serial]
            if answer.live <= 0:
                del self._kept[serial]  # of a caller that never came back
            elif answer.live <= len(answer.slots) // 2:
                keep = np.flatnonzero(self._is_last(answer, serial))
                part = answer.only(keep)
                part.live = answer.live
                self._kept[serial] = part

    def _is_last(self, answer: Answered, serial: int) -> np.ndarray:
        places = answer.slots & PLACE
        ok = places < len(self._of)
        ok[ok] = self._of[places[ok]] == serial
        return ok


PLACE = (1 << 24) - 1  # of a slot, the bits that are its place


def pieces(offsets: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, index) of some rows of a ragged array: index picks their steps."""
    lengths = (offsets[1:] - offsets[:-1])[keep]
    new = np.zeros(len(keep) + 1, np.int64)
    np.cumsum(lengths, out=new[1:])
    index = np.arange(new[-1]) + np.repeat(offsets[:-1][keep] - new[:-1], lengths)
    return new, index
