"""How a host takes shards, keeps them by its lease, writes their checkpoints and gives them up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from .answers import PLACE, Answered, Answers
from .checkpoints import Checkpoint, DamagedCheckpoint, decode, encode
from .shards import Engine, Job, Shard, Store
from .words import Fenced

Steps = Generator[None, None, Any]


class Keeping:
    """The half of `Host` that uses the store."""

    engine: Engine
    store: Store
    clock: Callable[[], float]
    lease: float
    lock: AbstractContextManager
    owned: dict[int, Shard]
    answers: Answers
    counts: dict[str, int]
    _epoch: np.ndarray
    _until: np.ndarray
    _number: np.ndarray
    _durable: np.ndarray
    _next: np.ndarray
    _writer: np.ndarray
    _since: np.ndarray
    _unsure: np.ndarray
    _doubt: np.ndarray
    _handed: dict[int, dict[int, int]]
    if TYPE_CHECKING:

        def _place(self, slots: np.ndarray, steps: Any, writers: Any, since: Any, gens: Any, doubt: Any) -> None: ...
        def _end(self, slots: np.ndarray) -> None: ...

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
            found = content
            break
        number = 0 if found is None else found.number + 1
        if epoch > 1:  # twice: what the former owner writes late is never read, even if one of these is torn
            none = [np.zeros(0, np.int64)] * 5
            again = found or Checkpoint(shard, epoch, number, [], *none, [], {}, b"")
            for _ in range(2):
                again.number, again.epoch = number, epoch
                yield
                self.store.write(shard, name_of(epoch, number), encode(again))
                kept.append((number, name_of(epoch, number)))
                number += 1
            yield
            if self.store.epoch(shard) != epoch:
                return False
            for name in names:
                yield
                self.store.delete(shard, name)
        with self.lock:
            self._install(shard, epoch, number, kept, found, began)
        return True

    def _install(self, shard, epoch, number, kept, found: Checkpoint | None, began: float) -> None:
        if shard in self.owned:
            self.release(shard)
        own = Shard(shard, epoch, number, kept, {}, {}, OrderedDict(), set())
        own.unsure = self.clock() + self.lease if epoch > 1 else -np.inf
        if found is not None and found.ids:
            slots = self.engine.restore(found.states)
            self._place(slots, found.steps, found.writers, found.since, found.gens, found.doubt)
            self._unsure[slots & PLACE] = self.clock() + self.lease
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
        return self.capture_all([shard]).get(shard)

    def capture_all(self, shards: list[int]) -> dict[int, Job]:
        """`capture` of several shards: those that are to be written."""
        wanted = [self.owned[s] for s in shards if s in self.owned]
        wanted = [own for own in wanted if not own.writing and (own.dirty or own.owed)]
        groups = [np.fromiter(own.streams.values(), np.int64, len(own.streams)) for own in wanted]
        full = [k for k, slots in enumerate(groups) if len(slots)]
        captured = dict(zip(full, self.engine.capture([groups[k] for k in full]), strict=True)) if full else {}
        answers = self.answers.open_of([groups[k] for k in full])
        answered = dict(zip(full, answers, strict=True))
        jobs = {}
        for k, (own, slots) in enumerate(zip(wanted, groups, strict=True)):
            gens = np.fromiter(own.gens.values(), np.int64, len(slots))
            has = [(i, s) for i, s in enumerate(slots.tolist()) if s in self._handed] if self._handed else ()
            places = slots & PLACE
            arrays = gens, self._next[places], self._writer[places], self._since[places], self._doubt[places]
            handed = {i: dict(self._handed[s]) for i, s in has}
            content = Checkpoint(
                own.shard, own.epoch, own.number, list(own.streams), *arrays, answered.get(k, []), handed, b""
            )
            jobs[own.shard] = Job(own, own.number, content, captured.get(k))
            own.number += 1
            self._number[own.shard] = own.number
            own.dirty, own.writing = False, True
        return jobs

    def write(self, job: Job) -> Steps:
        """Write a checkpoint. Fenced: another host has the shard; OSError: the store fails. The shard stays dirty."""
        own, began = job.shard, self.clock()
        try:
            job.content.states = self.engine.encode(job.captured) if job.captured is not None else b""
            name = name_of(own.epoch, job.number)
            blob = encode(job.content)
            yield
            self.store.write(own.shard, name, blob)  # what a fenced host writes is never read
            yield
            yield from self._check(own, began)
        except BaseException as error:
            own.dirty, own.writing = True, False
            if isinstance(error, OSError):
                self.counts["checkpoint_failures"] += 1
            if isinstance(error, Fenced):
                with suppress(OSError):
                    self.store.delete(own.shard, name)
            raise
        with self.lock:
            own.writing = False
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

    def hand_over(self, shard: int) -> Steps:
        """Write a last checkpoint of a shard and forget it; it answers nothing meanwhile. Whether it could: not while
        another checkpoint is written. Fenced, OSError as of `write`; after an OSError it answers again."""
        with self.lock:
            own = self.owned.get(shard)
            if own is None:
                return True
            if own.writing:
                return False
            own.dirty = True
            job = self.capture(shard)
            self._epoch[shard] = 0
        assert job is not None
        try:
            yield from self.write(job)
        except OSError:
            with self.lock:
                self._epoch[shard] = own.epoch
            raise
        with self.lock:
            self.release(shard)
        return True

    def _check(self, own: Shard, began: float) -> Steps:
        newest = self.store.epoch(own.shard, own.epoch)
        yield
        if newest < own.epoch:
            raise OSError(f"shard {own.shard}: the store has lost the epoch {own.epoch}: it is not the store of before")
        if newest != own.epoch:
            with self.lock:
                if self.owned.get(own.shard) is own:
                    self.counts["fenced"] += 1
                    self.release(own.shard)
            raise Fenced(f"shard {own.shard}: epoch {newest} was claimed, this host has {own.epoch}")
        self.renew(own.shard, own.epoch, began)


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
