"""The sequences of a model in a store: claimed at their START, written when they have changed, given up, marked ended.

A state is taken between two requests of its sequence, so that it has the steps and the last answer that its client
has. Writing goes on beside the steps: at most one write of a sequence is in flight, and at most `MOST_A_SECOND` begin.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from ...runtime._meter import Histogram
from ...runtime._meter import seconds as seconds_histogram
from ..store import Fenced, Record, StoreError, key_of
from .faults import Fault
from .sequence import HELD, Sequence, shown
from .vault import Vault

if TYPE_CHECKING:
    from .sequences import Sequences

logger = logging.getLogger("fastrnn")

MOST_A_SECOND = 1000  # states of a model that are written; each takes about 0.2 ms of the process
BATCH = 32
IN_FLIGHT = 64  # writes at once
START_SECONDS = 2.0  # that a START waits for the store
LEAVE_SECONDS = 10.0  # that writing all states may take when the server ends
OVER = ("client", "idle", "evicted")  # ends after which nobody goes on
GIVEN_UP = {
    "moved": "was moved to the store, after {} steps",
    "shutdown": "was handed to the store when this server ended, after {} steps",
}
SETTLE_SECONDS = 5.0  # in which a server does not ask for a sequence again that it lost to another one
REGAIN_SECONDS = 0.1  # between two tries to take a sequence back
RETRY_SECONDS = 1.0  # after which a client may try again


class Keeper:
    """Keeps the sequences of one model.

    Parameters
    ----------
    vault : Vault
    sequences : those that it keeps
    seconds : between two writes of a sequence that steps

    Attributes
    ----------
    snapshot_seconds, snapshot_bytes : Histograms of the writes of states
    snapshot_failures : writes of states that failed; what another server has fenced is none
    """

    def __init__(self, vault: Vault, sequences: Sequences, seconds: float):
        self.vault, self.sequences, self.seconds = vault, sequences, seconds
        self.snapshot_seconds, self.snapshot_bytes = seconds_histogram(), Histogram(1.0, 6, 24)
        self.snapshot_failures = 0
        self.dirty: dict[Sequence, None] = {}  # changed since they were written; the longest first
        self.taken: dict[int | str, float] = {}  # although it was live here -> time.monotonic()
        self._wanted: dict[Sequence, asyncio.Future] = {}  # running, and to be HELD then
        self._tasks: set[asyncio.Task] = set()
        self._flying = asyncio.Semaphore(IN_FLIGHT)
        self._loop_task: asyncio.Task | None = None
        self._closing = False

    def start(self) -> None:
        """Begin to write, on this event loop."""
        self._loop_task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop writing. What is in flight has a moment to arrive."""
        self._closing = True
        if self._loop_task is not None:
            self._loop_task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=START_SECONDS)
        for task in self._tasks:
            task.cancel()

    # -- what happens to a sequence --
    async def begin(self, sequences: list[Sequence]) -> None:
        """Sequences start: nobody shall go on with older ones of their ids. It waits for the store, if that works."""
        for sequence in sequences:
            self.taken.pop(sequence.id, None)
        tasks = [self._spawn(self._begin(sequence)) for sequence in sequences]
        if self.vault.failing_since is None:
            await asyncio.wait(tasks, timeout=START_SECONDS)

    def stepped(self, rows: list[Sequence]) -> None:
        """A request of these has run, and no other one has begun. Who wants to hold one has it now."""
        self.dirty.update(dict.fromkeys(rows))
        if self._wanted:
            for sequence in rows:
                future = self._wanted.pop(sequence, None)
                if future is not None and not future.done():
                    sequence.running = HELD
                    future.set_result(None)

    def left(self, sequence: Sequence, reason: str, text: str) -> None:
        """It is no longer live here. If it is over, its state is not needed any more."""
        self.dirty.pop(sequence, None)
        if reason in OVER:
            self._spawn(self._mark(sequence, reason, text))

    async def move(self, id: int | str) -> tuple[int, int]:
        """Give a sequence to the next server that is asked; (steps, epoch). Fault: it is not live here, or the store
        fails."""
        sequence = self.sequences.live.get(id)
        if sequence is None:
            raise self.sequences.ended.fault(id)
        await self.give_up(sequence, "moved")
        return sequence.steps, sequence.epoch

    async def give(self, id: int | str) -> None:
        """Give a sequence to another server that was asked for it, if it is live here."""
        sequence = self.sequences.live.get(id)
        if sequence is not None:
            with suppress(Fault):  # it goes on here, or has ended
                await self.give_up(sequence, "moved", wanted=True)

    async def give_up(self, sequence: Sequence, reason: str, wanted: bool = False) -> None:
        """Write a sequence for the next server that is asked, and end it here. wanted : another server was asked
        already. Fault: it could not be written, and goes on here once the store works; or it has ended meanwhile."""
        told = asyncio.get_running_loop().create_future()
        self._spawn(self._give_up(sequence, reason, wanted, told))
        await told

    async def _give_up(self, sequence: Sequence, reason: str, wanted: bool, told: asyncio.Future) -> None:
        ended = self.sequences.ended
        async with sequence.lock:
            try:
                await self._hold(sequence)
                if self._gone(sequence):
                    _tell(told, ended.fault(sequence.id))
                    return
                record = await self._taken(sequence, "moved")
                await self._put(sequence, record.to_bytes())
                if self._gone(sequence):  # ended while it was written, and its end will be written too
                    _tell(told, ended.fault(sequence.id))
                    return
                self.sequences.lost(sequence, reason, GIVEN_UP[reason].format(sequence.steps))
                if wanted:  # the next request here asks for it again: a sequence follows its requests
                    ended.forget(sequence.id)
                _tell(told, None)
            except Fenced as fenced:
                self._fenced(sequence, fenced.epoch)
                _tell(told, ended.fault(sequence.id))
            except StoreError as error:
                text = f"sequence {shown(sequence.id)} could not be written, and goes on here once the store works"
                _tell(told, Fault("UNAVAILABLE", "store", f"{text}: {error}", retry_after=RETRY_SECONDS))
                goes_on = reason != "shutdown" and await self._regain(sequence, record)
                if not goes_on and not self._gone(sequence):
                    text = "could not be written to the store when this server ended"
                    self.sequences.lost(sequence, "shutdown", text)
            finally:
                text = f"sequence {shown(sequence.id)} could not be given up, and the server's log says why"
                _tell(told, Fault("INTERNAL", "failed", text))
                self._release(sequence)

    async def _regain(self, sequence: Sequence, record: Record) -> bool:
        """Take back what may be in the store as given up: nobody knows of a write that failed. Until then the sequence
        takes no step, because another server may go on from that record. A new epoch fences a write that comes late.
        False: this server ends."""
        data, key = replace(record, state="live").to_bytes(), self.key(sequence.id)
        while not self._closing:
            try:
                sequence.epoch = await self.vault.claim(key, sequence.epoch, data)
                return True
            except Fenced:
                with suppress(StoreError):
                    held = await self.vault.read(key)
                    if held is not None and held.holder != self.vault.holder:
                        self._fenced(sequence, held.epoch)
                        return True
                    sequence.epoch = 0 if held is None else held.epoch
            except StoreError:
                await asyncio.sleep(REGAIN_SECONDS)
        return False

    async def give_up_all(self) -> None:
        """The server ends: the next one goes on with its sequences."""
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one(sequence: Sequence) -> None:
            async with slots:
                await self.give_up(sequence, "shutdown")

        tasks = [asyncio.ensure_future(one(s)) for s in list(self.sequences.live.values())]
        if not tasks:
            return
        done, late = await asyncio.wait(tasks, timeout=LEAVE_SECONDS)
        for task in late:
            task.cancel()
        failed = [error for error in (t.exception() for t in done) if error is not None]
        if failed or late:
            why = failed[0] if failed else f"the store took more than {LEAVE_SECONDS:g} s"
            logger.error("%d of %d sequences are not in the store as they were last: %s", len(failed) + len(late),
                         len(tasks), why)  # fmt: skip

    # -- writing --
    async def _run(self) -> None:
        """One round after another over the sequences that have changed."""
        loop = asyncio.get_running_loop()
        while True:
            began, due = loop.time(), list(self.dirty)
            self._forget(time.monotonic() - SETTLE_SECONDS)
            for at in range(0, len(due), BATCH):
                for sequence in islice(due, at, at + BATCH):
                    await self._flying.acquire()
                    self._spawn(self._save(sequence)).add_done_callback(lambda _: self._flying.release())
                if len(due) > BATCH:
                    await asyncio.sleep(BATCH / MOST_A_SECOND)
            await asyncio.sleep(max(0.001, began + self.seconds - loop.time()))

    def _forget(self, before: float) -> None:
        """Drop what was taken before that time."""
        for id in [id for id, moment in self.taken.items() if moment <= before]:
            del self.taken[id]
            self.sequences.ended.forget(id)  # from now on this server asks for it again

    async def _save(self, sequence: Sequence) -> None:
        """Write a sequence as it is now."""
        if sequence.lock.locked():
            return  # the write before has not arrived: the next round comes again
        async with sequence.lock:
            try:
                await self._hold(sequence)
                self.dirty.pop(sequence, None)
                record = None if self._gone(sequence) else await self._taken(sequence, "live")
            finally:
                self._release(sequence)
            if record is None:
                return
            try:
                loop = asyncio.get_running_loop()
                await self._put(sequence, await loop.run_in_executor(self.vault.thread, record.to_bytes))
            except Fenced as fenced:
                self._fenced(sequence, fenced.epoch)
            except StoreError:
                if not self._gone(sequence):
                    self.dirty.setdefault(sequence)

    async def _begin(self, sequence: Sequence) -> None:
        async with sequence.lock:
            try:
                if not sequence.epoch:
                    record = self._record(sequence, "live", b"", steps=0)
                    sequence.epoch = await self.vault.claim(self.key(sequence.id), None, record.to_bytes())
            except StoreError:
                if not self._gone(sequence):
                    self.dirty.setdefault(sequence)  # until it is written

    async def _mark(self, sequence: Sequence, reason: str, text: str) -> None:
        async with sequence.lock:
            try:
                record = self._record(sequence, "live", b"").ended(reason, text)
                await self._put(sequence, record.to_bytes(), counts=False)
            except Fenced:
                pass  # another server has begun it anew
            except StoreError:
                self.vault.unmarked += 1  # a line for each would let clients fill the log

    async def _put(self, sequence: Sequence, data: bytes, *, counts: bool = True) -> None:
        """Write a record. counts: it holds a state."""
        key, began = self.key(sequence.id), time.monotonic()
        try:
            if sequence.epoch:
                await self.vault.write(key, sequence.epoch, data)
            else:
                sequence.epoch = await self.vault.claim(key, None, data)
        except StoreError as error:
            self.snapshot_failures += counts and not isinstance(error, Fenced)
            raise
        if counts:
            self.snapshot_seconds.add(time.monotonic() - began)
            self.snapshot_bytes.add(len(data))

    async def _taken(self, sequence: Sequence, state: str) -> Record:
        """The record of a sequence that is HELD."""
        pool, loop = sequence.lane.pool, asyncio.get_running_loop()
        snapshot = await loop.run_in_executor(self.vault.thread, pool.snapshot, sequence.slot)
        return self._record(sequence, state, snapshot)

    def _record(self, sequence: Sequence, state: str, snapshot: bytes, steps: int | None = None) -> Record:
        since = self.sequences.rests_since(sequence)
        rested = 0.0 if since is None else asyncio.get_running_loop().time() - since
        return Record(
            model=self.sequences.name,
            id=sequence.id,
            version=sequence.lane.version,
            names=sequence.lane.names,
            steps=sequence.steps if steps is None else steps,
            snapshot=snapshot,
            state=state,
            time=time.time() - rested,
            last=sequence.last,
        )

    def key(self, id: int | str) -> str:
        """Of a sequence in the store."""
        return key_of(self.sequences.name, id)

    def _gone(self, sequence: Sequence) -> bool:
        return self.sequences.live.get(sequence.id) is not sequence or sequence.slot is None

    def _fenced(self, sequence: Sequence, epoch: int) -> None:
        """Another server has the sequence."""
        if self.sequences.live.get(sequence.id) is sequence:
            self.taken[sequence.id] = time.monotonic()
            logger.warning("sequence %s was moved: another server has it at epoch %d", shown(sequence.id), epoch)
            self.sequences.lost(sequence, "moved", f"was moved to another server, after {sequence.steps} steps")

    async def _hold(self, sequence: Sequence) -> None:
        """Wait until no request of a sequence runs, and let none begin. The caller has its lock, and releases it."""
        if sequence.running is None:
            sequence.running = HELD
            return
        future = self._wanted[sequence] = asyncio.get_running_loop().create_future()
        try:
            await future
        finally:
            self._wanted.pop(sequence, None)

    def _release(self, sequence: Sequence) -> None:
        if sequence.running is HELD:
            self.sequences.release(sequence)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("keeping a sequence failed", exc_info=task.exception())


def _tell(told: asyncio.Future, fault: Fault | None) -> None:
    """Answer who waits, once."""
    if told.done():
        return
    if fault is None:
        told.set_result(None)
    else:
        told.set_exception(fault)
        told.exception()  # nobody may wait for it any more
