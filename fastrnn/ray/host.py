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

from collections import OrderedDict
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from .answers import PLACE, Answered, Answers, pieces
from .checkpoints import Checkpoint, DamagedCheckpoint, decode, encode
from .shards import Engine, Job, Shard, Store
from .words import ADOPT, CLOSED, CUT_OFF, EXISTS, FOUND, MOVED, OPEN, STALE, TAKEN, Fenced

MOST_CLOSED = 10_000  # ids of closed streams that a shard remembers
Steps = Generator[None, None, Any]


class Host:
    """The shards of one actor.

    Parameters
    ----------
    shards : how many there are in all
    engine, store : as above
    clock : seconds, from any start
    lease : seconds for which it answers after the last look at the store
    """

    def __init__(self, shards: int, engine: Engine, store: Store, clock: Callable[[], float], lease: float):
        self.engine, self.store, self.clock, self.lease = engine, store, clock, lease
        self.owned: dict[int, Shard] = {}
        self.answers = Answers()
        self._epoch = np.zeros(shards, np.int64)  # 0: not here
        self._until = np.full(shards, -np.inf)  # the end of the lease
        self._number = np.zeros(shards, np.int64)
        self._durable = np.full(shards, -1, np.int64)  # the older checkpoint kept
        self._slot = np.zeros(0, np.int64)  # place -> slot, 0: none
        self._next = np.zeros(0, np.int64)  # place -> the step index that it takes next
        self._writer = np.zeros(0, np.int64)  # place -> the caller that steps it
        self._since = np.zeros(0, np.int64)  # place -> the step index at which its caller began
        self._handed: dict[int, dict[int, int]] = {}  # slot -> caller that had it -> the index at which that ended
        self.counts = {"steps": 0, "fenced": 0, "checkpoints": 0, "checkpoint_failures": 0, "damaged": 0, "again": 0}

    # -- steps --
    def step(self, caller: int, number: int, acked: int, head: np.ndarray, rows: np.ndarray, arrays: list) -> tuple:
        """Take the steps of a call, all of its rows or none.

        Parameters
        ----------
        number : of the call; acked : its caller has the answers of all calls up to this one
        head : int64 [2, k]: the shards of the rows, and the epochs in which the caller found them
        rows : int64 [2, n] or [3, n]: slots, step indexes, and the numbers of steps of a push
        arrays : of the inputs, [n, ...] or [steps, ...]

        Returns
        -------
        ("done", outputs, marks), marks int64 [2, k]: the number of the checkpoint that will hold these steps, and of
        the older checkpoint kept, of each shard; or ("refused", {shard: reason}); or ("rows", positions, indexes):
        these rows expect other indexes (-1: they belong to another caller, or are closed); or ("failed", text).
        """
        self.answers.ack(caller, acked)
        shards = head[0]
        if not ((self._epoch[shards] == head[1]) & (self._until[shards] > self.clock())).all():
            return "refused", self._refusals(head)
        slots, first = rows[0], rows[1]
        places = slots & PLACE
        wrong = (self._slot[places] != slots) | (self._writer[places] != caller)
        if wrong.any():
            bad = np.flatnonzero(wrong)
            return "rows", bad, np.full(len(bad), -1, np.int64)
        lengths = rows[2] if len(rows) == 3 else None
        behind = self._next[places] != first
        if behind.any():
            return self._again(caller, number, head, rows, arrays, np.flatnonzero(behind))
        try:
            outputs = self.engine.step(slots, arrays, lengths)
        except Exception as error:  # of the model: no state has changed
            return "failed", f"{type(error).__name__}: {error}"
        self._took(caller, number, shards, rows, places, outputs)
        return "done", outputs, np.stack([self._number[shards], self._durable[shards]])

    def _took(self, caller, number, shards, rows, places, outputs) -> None:
        n = rows.shape[1]
        lengths = rows[2] if len(rows) == 3 else np.ones(n, np.int64)
        self._next[places] += lengths
        self.counts["steps"] += int(lengths.sum())
        offsets = np.zeros(n + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        self.answers.add(Answered(caller, number, rows[0], rows[1], offsets, outputs), places)
        for shard in shards.tolist():
            self.owned[shard].dirty = True

    def _again(self, caller, number, head, rows, arrays, behind) -> tuple:
        """A call of which some rows were answered before."""
        n = rows.shape[1]
        lengths = rows[2] if len(rows) == 3 else np.ones(n, np.int64)
        found = {i: self.answers.find(int(rows[0, i]), int(rows[1, i]), int(lengths[i])) for i in behind.tolist()}
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
        ("done", epochs [k], durable [k], rows int64 [6, n], shards to be flushed before the first step); or ("refused",
        {shard: reason}). The rows are: code, slot, next step index, generation, the index at which this caller began
        with the stream, and that at which another one took it from it before (-1: none did). Of an OPEN, either all
        streams are made or none.
        """
        if not ((self._epoch[shards] > 0) & (self._until[shards] > self.clock())).all():
            return "refused", self._refusals(np.stack([shards, self._epoch[shards]]))
        rows, new = np.zeros((6, len(ids)), np.int64), []
        for i, (id, gen, shard) in enumerate(zip(ids, gens.tolist(), of.tolist(), strict=True)):
            code, slot, have = self._find(self.owned[shard], caller, mode, id, gen)
            if code == UNMADE:
                new.append(i)
                continue
            if mode == ADOPT and code == FOUND:
                self._take_over(self.owned[shard], caller, slot)
            place, ended = slot & PLACE, self._handed.get(slot, {}).get(caller, -1)
            rows[:, i] = (code, slot, self._next[place], have, self._since[place], ended) if slot else (code, *[0] * 5)
        if mode == OPEN and (rows[0] == EXISTS).any():
            new = []
        self._make(caller, [ids[i] for i in new], gens[new], of[new], rows, new)
        owed = [s for s in shards.tolist() if self.owned[s].owed] if mode != OPEN else []
        return "done", self._epoch[shards].copy(), self._durable[shards].copy(), rows, owed

    def _take_over(self, own: Shard, caller: int, slot: int) -> None:
        """This caller steps a stream from now on."""
        place = slot & PLACE
        before = int(self._writer[place])
        if before not in (0, caller):
            self._handed.setdefault(slot, {})[before] = int(self._next[place])
            own.dirty, own.owed = True, 2  # both checkpoints that are kept will know
        if before != caller:
            self._since[place] = self._next[place]
        self._writer[place] = caller

    def _find(self, own: Shard, caller: int, mode: int, id: Any, gen: int) -> tuple[int, int, int]:
        """(code, slot, generation) of a stream; UNMADE if it is to be made."""
        slot, have = own.streams.get(id, 0), own.gens.get(id, 0)
        if mode == OPEN:
            if slot and have != gen:
                return EXISTS, slot, have
            return (FOUND, slot, have) if slot else (UNMADE, 0, 0)
        if mode == ADOPT:
            return (FOUND, slot, have) if slot else (CLOSED if id in own.closed else UNKNOWN_ID, 0, 0)
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
        self._place(slots, zeros, np.full(len(ids), caller), zeros)
        for id, gen, shard, slot in zip(ids, gens.tolist(), of.tolist(), slots.tolist(), strict=True):
            own = self.owned[shard]
            own.streams[id], own.gens[id], own.dirty = slot, gen, True
        rows[:, where] = 0
        rows[0, where], rows[1, where], rows[3, where], rows[5, where] = FOUND, slots, gens, -1

    def _place(self, slots: np.ndarray, steps, writers, since) -> None:
        """Note what the places of new slots hold."""
        places = slots & PLACE
        top = int(places.max(initial=-1)) + 1
        if top > len(self._slot):
            more = max(top, 2 * len(self._slot), 1024) - len(self._slot)
            for name in ("_slot", "_next", "_writer", "_since"):
                setattr(self, name, np.concatenate([getattr(self, name), np.zeros(more, np.int64)]))
        self._slot[places], self._next[places], self._writer[places], self._since[places] = slots, steps, writers, since

    def close(self, shards: np.ndarray, ids: list, gens: np.ndarray, of: np.ndarray) -> tuple:
        """End streams, those that are there. ("done", marks as of `step`) or ("refused", {shard: reason})."""
        if not ((self._epoch[shards] > 0) & (self._until[shards] > self.clock())).all():
            return "refused", self._refusals(np.stack([shards, self._epoch[shards]]))
        for id, gen, shard in zip(ids, gens.tolist(), of.tolist(), strict=True):
            own = self.owned[shard]
            if own.gens.get(id, -1) <= gen:
                if id in own.streams:
                    self._drop(own, id)
                own.closed[id] = max(gen, own.closed.get(id, 0))
                own.closed.move_to_end(id)
                own.dirty = True
                if len(own.closed) > MOST_CLOSED:
                    own.closed.popitem(last=False)
        return "done", np.stack([self._number[shards], self._durable[shards]])

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
        """("done", int64 [n], -1 for ids that are not here) or ("refused", ..). head : as of `step`; epoch 0: any"""
        shards, known = head[0], self._epoch[head[0]]
        ok = (known > 0) & ((known == head[1]) | (head[1] == 0)) & (self._until[shards] > self.clock())
        if not ok.all():
            return "refused", self._refusals(np.stack([shards, np.where(head[1] == 0, known, head[1])]))
        slots = [self.owned[s].streams.get(id, 0) for id, s in zip(ids, of.tolist(), strict=True)]
        return "done", np.array([self._next[s & PLACE] if s else -1 for s in slots], np.int64)

    # -- taking and giving up --
    def acquire(self, shard: int) -> Steps:
        """Take a shard: True, or False if another host took it meanwhile. OSError: the store fails."""
        began = self.clock()
        epoch = self.store.claim(shard)
        yield
        names = self.store.names(shard)
        found: Checkpoint | None = None
        kept: list[tuple[int, str]] = []
        for name in reversed(names[-4:]):
            yield
            try:
                content = decode(self.store.read(shard, name), shard)
            except FileNotFoundError:
                continue
            except DamagedCheckpoint:
                self.counts["damaged"] += 1
                continue
            found, kept = content, [(content.number, name)]
            break
        number = 0
        if found is not None:
            number = found.number + 1
            found.number, found.epoch = number, epoch
            yield
            self.store.write(shard, name_of(epoch, number), encode(found))
            kept.append((number, name_of(epoch, number)))
            number += 1
            yield
            if self.store.epoch(shard) != epoch:
                return False
        self._install(shard, epoch, number, kept, found, began)
        return True

    def _install(self, shard, epoch, number, kept, found: Checkpoint | None, began: float) -> None:
        if shard in self.owned:
            self.release(shard)
        own = Shard(shard, epoch, number, kept, {}, {}, OrderedDict())
        if found is not None and found.ids:
            slots = self.engine.restore(found.states)
            self._place(slots, found.steps, found.writers, found.since)
            self._handed |= {int(slots[i]): ends for i, ends in found.handed.items()}
            own.streams = dict(zip(found.ids, slots.tolist(), strict=True))
            own.gens = dict(zip(found.ids, found.gens.tolist(), strict=True))
            for a in found.answers:
                again = Answered(a.caller, a.number, slots[a.slots], a.first, a.offsets, a.outputs)
                self.answers.add(again, again.slots & PLACE)
        self.owned[shard] = own
        self._epoch[shard], self._number[shard] = epoch, number
        self._durable[shard] = kept[0][0] if kept else -1
        self._until[shard] = began + self.lease

    def release(self, shard: int) -> None:
        """Forget a shard and its streams; what is in the store stays."""
        own = self.owned.pop(shard, None)
        self._epoch[shard], self._until[shard] = 0, -np.inf
        if own is not None and own.streams:
            self._end(np.fromiter(own.streams.values(), np.int64))

    def renew(self, shard: int, epoch: int, began: float) -> None:
        """A look that began then found no newer epoch."""
        if self._epoch[shard] == epoch:
            self._until[shard] = max(self._until[shard], began + self.lease)

    # -- checkpoints --
    def capture(self, shard: int) -> Job | None:
        """The states of a shard as they are now, to be written; None if nothing changed, or one is being written."""
        own = self.owned.get(shard)
        if own is None or own.writing or not (own.dirty or own.owed):
            return None
        slots = np.fromiter(own.streams.values(), np.int64, len(own.streams))
        index = {s: i for i, s in enumerate(slots.tolist())}
        answers = self.answers.open_of(slots)
        for answer in answers:
            answer.slots = np.array([index[s] for s in answer.slots.tolist()], np.int64)
        gens = np.fromiter(own.gens.values(), np.int64, len(slots))
        handed = {i: dict(self._handed[s]) for s, i in index.items() if s in self._handed} if self._handed else {}
        places = slots & PLACE
        arrays = gens, self._next[places], self._writer[places], self._since[places]
        content = Checkpoint(shard, own.epoch, own.number, list(own.streams), *arrays, answers, handed, b"")
        captured = self.engine.capture(slots) if len(slots) else None
        job = Job(own, own.number, content, captured, own.owed > 0)
        own.number += 1
        self._number[shard] = own.number
        own.dirty, own.writing = False, True
        return job

    def write(self, job: Job) -> Steps:
        """Write a checkpoint. Fenced: another host has the shard; OSError: the store fails. The shard stays dirty."""
        own, began = job.shard, self.clock()
        try:
            job.content.states = self.engine.encode(job.captured) if job.captured is not None else b""
            name = name_of(own.epoch, job.number)
            blob = encode(job.content)
            yield
            yield from self._check(own, began)
            yield
            self.store.write(own.shard, name, blob)
            yield
            yield from self._check(own, began)
        except BaseException as error:
            own.dirty, own.writing = True, False
            if isinstance(error, OSError):
                self.counts["checkpoint_failures"] += 1
            raise
        own.writing, own.owed = False, max(0, own.owed - job.pays)
        own.kept.append((job.number, name))
        gone, own.kept = own.kept[:-2], own.kept[-2:]
        self.counts["checkpoints"] += 1
        if self._epoch[own.shard] == own.epoch and len(own.kept) == 2:
            self._durable[own.shard] = own.kept[0][0]
        for _, old in gone:
            yield
            self.store.delete(own.shard, old)

    def look(self, shard: int) -> Steps:
        """See whether a newer epoch is there; without, the lease is renewed. Fenced, OSError as of `write`."""
        own = self.owned.get(shard)
        if own is not None:
            yield from self._check(own, self.clock())

    def _check(self, own: Shard, began: float) -> Steps:
        newest = self.store.epoch(own.shard)
        yield
        if newest != own.epoch:
            if self.owned.get(own.shard) is own:
                self.counts["fenced"] += 1
                self.release(own.shard)
            raise Fenced(f"shard {own.shard}: epoch {newest} was claimed, this host has {own.epoch}")
        self.renew(own.shard, own.epoch, began)


UNMADE, UNKNOWN_ID = -1, 2


def name_of(epoch: int, number: int) -> str:
    """The file name of a checkpoint: names sort by epoch, then number."""
    return f"{epoch:010d}-{number:012d}.ckpt"


def finish(steps: Steps) -> Any:
    """Run a generator to its end: its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
