"""The side of an actor: shards of streams, their steps exactly once, checkpoints, epochs and leases.

Nothing here knows Ray, reads a clock or waits: the engine, the store and the clock are given. What reads or writes the
store is a generator, which stops before each access; `finish` runs one to its end. So a simulation can interleave
accesses, delay them and make them fail.

A shard belongs to one host at a time. A host takes it by claiming the next epoch of the shard in the store, restoring
its newest checkpoint, and writing that again under its own epoch: a checkpoint of an older epoch is never newest again.
It answers while its lease runs. Each look at the store that finds no newer epoch renews the lease from the moment at
which the look began.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from .answers import PLACE, Answered, Answers, pieces
from .idle import Idling
from .keeping import Keeping, finish
from .shards import Engine, Shard, Store
from .words import (
    ADOPT,
    CLOSED,
    CUT_OFF,
    EXISTS,
    EXPIRED,
    FOUND,
    MOVED,
    OPEN,
    OWED,
    RECOVER,
    STALE,
    TAKEN,
    UNKNOWN,
    WAITING,
)

MOST_CLOSED = 10_000  # ids of closed streams that a shard remembers
UNMADE = -1  # instead of a code: the stream is to be made

__all__ = ["Host", "finish"]


class Host(Keeping, Idling):
    """The shards of one actor.

    Parameters
    ----------
    shards : how many there are in all
    engine, store : as above
    clock : seconds, from any start
    lease : seconds for which it answers after the last look at the store
    lock : held while something changes, never while the store is used. Callers of methods that are not generators
        hold it themselves, if several threads use the host.
    """

    def __init__(
        self,
        shards: int,
        engine: Engine,
        store: Store,
        clock: Callable[[], float],
        lease: float,
        lock: AbstractContextManager | None = None,
    ):
        self.engine, self.store, self.clock, self.lease = engine, store, clock, lease
        self.lock = lock or nullcontext()
        self.owned: dict[int, Shard] = {}
        self.answers = Answers()
        self._epoch = np.zeros(shards, np.int64)  # 0: not here
        self._until = np.full(shards, -np.inf)  # the end of the lease
        self._number = np.zeros(shards, np.int64)
        self._durable = np.full(shards, -1, np.int64)  # the older checkpoint kept
        self._slot = np.zeros(1, np.int64)  # place -> slot, 0: none
        self._next = np.zeros(1, np.int64)  # place -> the step index that it takes next
        self._writer = np.zeros(1, np.int64)  # place -> the caller that steps it
        self._gen = np.zeros(1, np.int64)  # place -> the stream's generation
        self._since = np.zeros(1, np.int64)  # place -> the step index at which its caller began
        self._unsure = np.zeros(1)  # place -> until when only its caller may have the stream: its shard was restored
        self._doubt = np.zeros(1, np.int64)  # place -> the epoch in which answered steps may be gone; 0: none can
        self._used = np.zeros(1)  # place -> when it took its last step
        self._asked: dict[int, float] = {}  # gateway -> when it asked for idle streams
        self._handed: dict[int, dict[int, int]] = {}  # slot -> caller that had it -> the index at which that ended
        self.counts = {"steps": 0, "fenced": 0, "checkpoints": 0, "checkpoint_failures": 0, "damaged": 0, "again": 0}

    # -- steps --
    def step(self, caller: int, number: int, acked: int, head: np.ndarray, rows: np.ndarray, arrays: list) -> tuple:
        """Take the steps of a call, all of its rows or none.

        Parameters
        ----------
        number : of the call; acked : its caller has the answers of all calls up to this one
        head : int64 [2, k]: the shards of the rows, and the epochs in which the caller found them
        rows : int64 [5, n] or [6, n]: slots, step indexes, the indexes at which the caller began with the streams,
            their generations, the newest epochs in which its own callers said their indexes, and the numbers of steps
            of a push. A call from before another caller had a stream has another beginning, and a slot that is another
            stream's by now has another generation.
        arrays : of the inputs, [n, ...] or [steps, ...]

        Returns
        -------
        ("done", outputs, marks), marks int64 [2, k]: the number of the checkpoint that will hold these steps, and of
        the older checkpoint kept, of each shard; or ("refused", {shard: reason}); or ("rows", positions, indexes):
        these rows expect other indexes (-1: they belong to another caller, or are closed, or in doubt); or
        ("failed", text).
        """
        self.answers.ack(caller, acked)
        shards = head[0]
        if not ((self._epoch[shards] == head[1]) & (self._until[shards] > self.clock())).all():
            return "refused", self._refusals(head)
        slots, first = rows[0], rows[1]
        places = np.minimum(slots & PLACE, len(self._slot) - 1)
        wrong = (self._slot[places] != slots) | (self._writer[places] != caller)
        wrong |= (self._since[places] != rows[2]) | (self._gen[places] != rows[3])
        if wrong.any():
            bad = np.flatnonzero(wrong)
            return "rows", bad, np.full(len(bad), -1, np.int64)
        lengths = rows[5] if len(rows) == 6 else None
        behind = self._next[places] != first
        if behind.any():
            return self._again(caller, number, head, rows, arrays, np.flatnonzero(behind))
        if (doubt := self._doubt[places]).any():
            if (unsaid := np.flatnonzero(doubt > rows[4])).size:
                return "rows", unsaid, np.full(len(unsaid), -1, np.int64)
        try:
            outputs = self.engine.step(slots, arrays, lengths)
        except Exception as error:  # of the model: no state has changed
            return "failed", f"{type(error).__name__}: {error}"
        if doubt.any():
            self._doubt[places] = 0
        self._took(caller, number, shards, rows, places, outputs)
        return "done", outputs, np.stack([self._number[shards], self._durable[shards]])

    def _took(self, caller, number, shards, rows, places, outputs) -> None:
        n = rows.shape[1]
        lengths = rows[5] if len(rows) == 6 else np.ones(n, np.int64)
        self._next[places] += lengths
        self._used[places] = self.clock()
        self.counts["steps"] += int(lengths.sum())
        offsets = np.zeros(n + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        self.answers.add(Answered(caller, number, rows[0], rows[1], offsets, outputs), places)
        for shard in shards.tolist():
            self.owned[shard].dirty = True

    def _again(self, caller, number, head, rows, arrays, behind) -> tuple:
        """A call of which some rows were answered before."""
        n = rows.shape[1]
        lengths = rows[5] if len(rows) == 6 else np.ones(n, np.int64)
        found = {}
        for i in behind.tolist():
            whose = None if rows[4, i] else caller  # who says the index may ask for what another caller was answered
            found[i] = self.answers.find(int(rows[0, i]), int(rows[1, i]), int(lengths[i]), whose)
        unknown = np.array([i for i, answer in found.items() if answer is None], np.int64)
        if len(unknown):
            return "rows", unknown, self._next[rows[0, unknown] & PLACE]
        self.counts["again"] += len(behind)
        offsets = np.zeros(n + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        fresh = np.setdiff1d(np.arange(n), behind)
        _, index = pieces(offsets, fresh)
        reply = None
        if len(fresh):
            reply = self.step(caller, number, -1, head, rows[:, fresh], [a[index] for a in arrays])
            if reply[0] == "rows":
                return "rows", fresh[reply[1]], reply[2]
            if reply[0] != "done":
                return reply
        example = reply[1] if reply else next(iter(found.values()))
        outputs = [np.empty((offsets[-1], *a.shape[1:]), a.dtype) for a in example or []]
        for k, out in enumerate(outputs):
            if reply:
                out[index] = reply[1][k]
            for i, answer in found.items():
                if answer is not None:
                    out[offsets[i] : offsets[i + 1]] = answer[k]
        return "done", outputs, np.stack([self._number[head[0]], self._durable[head[0]]])

    def _refusals(self, head: np.ndarray) -> dict[int, str]:
        now, found = self.clock(), {}
        for shard, epoch in head.T.tolist():
            if self._epoch[shard] == 0:
                found[shard] = MOVED
            elif self._epoch[shard] != epoch:
                found[shard] = STALE
            elif self._until[shard] <= now:
                found[shard] = CUT_OFF
        return found

    # -- streams --
    def attach(self, caller: int, mode: int, shards: np.ndarray, ids: list, gens: np.ndarray, of: np.ndarray) -> tuple:
        """Find or make streams, which this caller steps from now on.

        Parameters
        ----------
        mode : OPEN, ADOPT or RECOVER
        shards : int64 [k], those of the ids. gens : int64 [n], the generations that the caller knows, or 0.
        of : int64 [n], the shard of each id

        Returns
        -------
        ("done", epochs [k], marks as of `step`, rows int64 [7, n], shards to flush before the first step); or
        ("refused", {shard: reason}). The rows are: code, slot, next step index, generation, the index at which this
        caller began with the stream, that at which another one took it from it before (-1: none did), and the epoch in
        which answered steps of it may have gone, if nobody has said an index since, or 0. Of an OPEN, either all
        streams are made or none.
        """
        if not ((self._epoch[shards] > 0) & (self._until[shards] > self.clock())).all():
            return "refused", self._refusals(np.stack([shards, self._epoch[shards]]))
        rows, new = np.zeros((7, len(ids)), np.int64), []
        for i, (id, gen, shard) in enumerate(zip(ids, gens.tolist(), of.tolist(), strict=True)):
            code, slot, have = self._find(self.owned[shard], caller, mode, id, gen)
            if code == UNMADE:
                new.append(i)
                continue
            if code == FOUND and mode != OPEN:
                code = self._take_over(self.owned[shard], caller, slot, mode)
            place, ended = slot & PLACE, self._handed.get(slot, {}).get(caller, -1)
            about = self._next[place], have, self._since[place], ended, self._doubt[place]
            rows[:, i] = (code, slot, *about) if slot else (code, 0, 0, have, 0, 0, 0)
        if mode == OPEN and (rows[0] == EXISTS).any():
            new = []
        self._make(caller, [ids[i] for i in new], gens[new], of[new], rows, new)
        now = self.clock()  # of a shard that was restored, an OPEN may be one of before that comes once more
        back = [i for i in new if mode == RECOVER or self.owned[int(of[i])].unsure > now]
        self._unsure[rows[1, back] & PLACE] = now + self.lease  # their caller may have steps to send again
        wanted = self._reopened(ids, of) if mode == OPEN else shards.tolist()
        owed = [s for s in wanted if self.owned[s].owed]
        marks = np.stack([self._number[shards], self._durable[shards]])
        return "done", self._epoch[shards].copy(), marks, rows, owed

    def _reopened(self, ids: list, of: np.ndarray) -> list[int]:
        """The shards of streams whose ids were those of others that checkpoints still have: one that came back would be
        taken for the new one."""
        found = {shard for id, shard in zip(ids, of.tolist(), strict=True) if id in self.owned[shard].closed}
        for own in (self.owned[shard] for shard in found):
            if own.lacks(own.ended):
                own.dirty, own.owes = True, max(own.owes, own.ended)
        return sorted(found)

    def _take_over(self, own: Shard, caller: int, slot: int, mode: int) -> int:
        """This caller steps a stream from now on: FOUND; or WAITING, and it may ask again."""
        place = slot & PLACE
        before = int(self._writer[place])
        if before == caller:
            return FOUND
        if before and self._unsure[place] > self.clock():
            return WAITING
        if before:
            self._hand(own, slot, before)
        if mode == ADOPT:
            self._since[place] = self._next[place]
        own.dirty, own.owes = True, own.number  # both checkpoints that are kept will know
        self._writer[place], self._unsure[place] = caller, 0
        return FOUND

    def _hand(self, own: Shard, slot: int, before: int) -> None:
        """A caller has a stream no longer. If it took no step since it got it back, it may not know yet where it had
        lost it before: that stays noted."""
        place, ends = slot & PLACE, self._handed.setdefault(slot, {})
        if before not in ends or self._next[place] > self._since[place]:
            ends[before] = int(self._next[place])
        if self._unsure[place] > 0:  # it never sent again what the restored shard lacks
            self._doubt[place] = own.epoch

    def owing(self, head: np.ndarray) -> dict[int, str]:
        """Why the checkpoints of these shards are not those that an `attach` asked to flush. A process of the same name
        that lost a shard owes nothing: so the epochs in which the caller found them are compared. head : of `step`"""
        found = {}
        for shard, epoch in head.T.tolist():
            own = self.owned.get(shard)
            if own is None or own.epoch != epoch:
                found[shard] = MOVED if own is None else STALE
            elif own.owed:
                found[shard] = OWED
        return found

    def beat(self, caller: int, head: np.ndarray, lost: np.ndarray) -> tuple:
        """The caller has sent again what these shards lacked: ("done", marks as of `step`) or ("refused", ..).

        lost : int64, slots of its streams of which answered steps are gone, and no call has said the index since
        """
        shards = head[0]
        if not ((self._epoch[shards] == head[1]) & (self._until[shards] > self.clock())).all():
            return "refused", self._refusals(head)
        for shard in shards.tolist() if self._unsure.any() or len(lost) else ():
            slots = np.fromiter(self.owned[shard].streams.values(), np.int64)
            mine = slots[self._writer[slots & PLACE] == caller]
            self._unsure[mine & PLACE] = 0
            if len(lost):
                self._doubt[mine[np.isin(mine, lost)] & PLACE] = self._epoch[shard]
        return "done", np.stack([self._number[shards], self._durable[shards]])

    def let_go(self) -> None:
        """No caller has any stream: the next one that asks takes it at once."""
        for own in self.owned.values():
            own.dirty = True
            for slot in own.streams.values():
                if before := int(self._writer[slot & PLACE]):
                    self._hand(own, slot, before)
        self._writer[:], self._unsure[:] = 0, 0

    def _find(self, own: Shard, caller: int, mode: int, id: Any, gen: int) -> tuple[int, int, int]:
        """(code, slot, generation) of a stream; UNMADE if it is to be made."""
        slot, have = own.streams.get(id, 0), own.gens.get(id, 0)
        if mode == OPEN:
            if slot and have != gen:
                return EXISTS, slot, have
            return (FOUND, slot, have) if slot else (UNMADE, 0, 0)
        if mode == ADOPT:
            if not slot and id not in own.closed:
                return (WAITING if own.unsure > self.clock() else UNKNOWN), 0, 0
            gone = EXPIRED if id in own.expired else CLOSED
            return (FOUND, slot, have) if slot else (gone, 0, own.closed[id])
        if own.closed.get(id, 0) >= gen or have > gen:
            return CLOSED, 0, have
        if slot and have == gen:
            return (FOUND if self._writer[slot & PLACE] in (0, caller) else TAKEN), slot, have
        if slot:  # an older stream of this id, closed after the checkpoint
            self._drop(own, id)
        return UNMADE, 0, 0

    def _make(self, caller: int, ids: list, gens, of, rows: np.ndarray, where: list[int]) -> None:
        if not ids:
            return
        slots = self.engine.open(len(ids))
        zeros = np.zeros(len(ids), np.int64)
        self._place(slots, zeros, np.full(len(ids), caller), zeros, gens, 0)
        for id, gen, shard, slot in zip(ids, gens.tolist(), of.tolist(), slots.tolist(), strict=True):
            own = self.owned[shard]
            own.streams[id], own.gens[id], own.dirty = slot, gen, True
        rows[:, where] = 0
        rows[0, where], rows[1, where], rows[3, where], rows[5, where] = FOUND, slots, gens, -1

    def _place(self, slots: np.ndarray, steps, writers, since, gens, doubt) -> None:
        """Note what the places of new slots hold."""
        places = slots & PLACE
        top = int(places.max(initial=-1)) + 1
        if top > len(self._slot):
            more = max(top, 2 * len(self._slot), 1024) - len(self._slot)
            for name in ("_slot", "_next", "_writer", "_since", "_gen", "_doubt"):
                setattr(self, name, np.concatenate([getattr(self, name), np.zeros(more, np.int64)]))
            self._unsure, self._used = (np.concatenate([a, np.zeros(more)]) for a in (self._unsure, self._used))
        self._slot[places], self._next[places], self._writer[places], self._since[places] = slots, steps, writers, since
        self._used[places] = self.clock()
        self._unsure[places], self._gen[places], self._doubt[places] = 0, gens, doubt

    def close(self, shards: np.ndarray, ids: list, gens: np.ndarray, of: np.ndarray) -> tuple:
        """End streams, those that are there. ("done", marks of `step`, epochs) or ("refused", {shard: reason})."""
        if not ((self._epoch[shards] > 0) & (self._until[shards] > self.clock())).all():
            return "refused", self._refusals(np.stack([shards, self._epoch[shards]]))
        for id, gen, shard in zip(ids, gens.tolist(), of.tolist(), strict=True):
            own = self.owned[shard]
            if own.gens.get(id, -1) <= gen:
                if id in own.streams:
                    self._drop(own, id)
                    own.ended = own.number
                self._bury(own, id, gen)
        return "done", np.stack([self._number[shards], self._durable[shards], self._epoch[shards]])

    @staticmethod
    def _bury(own: Shard, id: Any, gen: int) -> None:
        """Remember that a stream has ended."""
        own.closed[id] = max(gen, own.closed.get(id, 0))
        own.closed.move_to_end(id)
        own.expired.discard(id)
        own.dirty = True
        if len(own.closed) > MOST_CLOSED:
            own.expired.discard(own.closed.popitem(last=False)[0])

    def _drop(self, own: Shard, id: Any) -> None:
        self._end(np.array([own.streams.pop(id)], np.int64))
        del own.gens[id]

    def _end(self, slots: np.ndarray) -> None:
        self.answers.forget(slots & PLACE)
        self._slot[slots & PLACE] = 0
        for slot in slots.tolist() if self._handed else ():
            self._handed.pop(slot, None)
        self.engine.close(slots)

    def steps_done(self, head: np.ndarray, ids: list, of: np.ndarray) -> tuple:
        """("done", int64 [n]) or ("refused", ..). -1: an id is not here; -2: its caller may still bring it, or
        steps of it, back.

        head : as of `step`; epoch 0: any
        """
        shards, known = head[0], self._epoch[head[0]]
        ok = (known > 0) & ((known == head[1]) | (head[1] == 0)) & (self._until[shards] > self.clock())
        if not ok.all():
            return "refused", self._refusals(np.stack([shards, np.where(head[1] == 0, known, head[1])]))
        now, done = self.clock(), np.zeros(len(ids), np.int64)
        for i, (id, shard) in enumerate(zip(ids, of.tolist(), strict=True)):
            own = self.owned[shard]
            slot = own.streams.get(id, 0)
            if slot:
                done[i] = -2 if self._unsure[slot & PLACE] > now else self._next[slot & PLACE]
            else:
                done[i] = -2 if own.unsure > now and id not in own.closed else -1
        return "done", done
