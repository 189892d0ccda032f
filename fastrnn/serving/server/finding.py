"""Sequences that are not here: looked for in the store, and gone on with."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from ...errors import FastRNNError
from ..store import Fenced, Held, Record, StoreError
from .admission import draining, room_for
from .faults import Fault, invalid
from .lane import Lane
from .sequence import Call, Sequence, shown

if TYPE_CHECKING:
    from .keeper import Keeper
    from .sequences import Sequences

LOOK_SECONDS = 5.0  # that the store may take to answer
AT_ONCE = 64  # sequences that are looked for
ASK_SECONDS = 0.01  # until the first look at whether a server has given what it was asked for
AGAIN_SECONDS = 0.5  # after which it is asked again
TRIES = 5  # of a sequence that several servers want
RETRY_SECONDS = 1.0


class Finding:
    """Looks for the sequences of requests in the store.

    Parameters
    ----------
    keeper : Keeper
    sequences : which get what is found
    """

    def __init__(self, keeper: Keeper, sequences: Sequences):
        self.keeper, self.sequences = keeper, sequences
        self._looks: dict[int | str, tuple[asyncio.Task, list[int]]] = {}  # id -> its look, and how many wait for it
        self._at_once = asyncio.Semaphore(AT_ONCE)

    def needed(self, call: Call) -> bool:
        """Whether a request must wait for a look."""
        live, looks = self.sequences.live, self._looks
        return any(
            id in looks or (id not in live and not start) for id, start in zip(call.ids, call.starts, strict=True)
        )

    def running(self, id: int | str) -> asyncio.Task | None:
        """The look for a sequence, while it takes its time."""
        task, _ = self._looks.get(id, (None, None))
        return None if task is None or task.done() else task

    async def look(self, call: Call) -> None:
        """Look for those of its sequences that it goes on with and that are not live here. Requests of one sequence go
        on in their order. Fault: a sequence is in the store, and can't go on here."""
        if self.sequences.draining:
            raise draining(next((i for i, start in zip(call.ids, call.starts, strict=True) if not start), call.ids[0]))
        mine = []
        for id, start in zip(call.ids, call.starts, strict=True):
            if id not in self._looks:
                if start or id in self.sequences.live:
                    continue
                if len(self._looks) > self.sequences.options.max_sequences:
                    text = f"sequence {shown(id)}: too many sequences are looked for in the store; send it again later"
                    raise Fault("UNAVAILABLE", "store", text, retry_after=RETRY_SECONDS)
                task = asyncio.get_running_loop().create_task(self._look(id, call.client))
                self._looks[id] = task, [0]
            mine.append(id)
        looks = [self._looks[id] for id in mine]
        for _, waiting in looks:
            waiting[0] += 1
        try:
            await asyncio.wait([task for task, _ in looks])
        finally:
            for id, (task, waiting) in zip(mine, looks, strict=True):
                waiting[0] -= 1
                if not waiting[0]:
                    del self._looks[id]
                    if not task.done():
                        task.add_done_callback(_seen)  # its callers have gone; what it finds stays
        for task, _ in looks:
            task.result()

    async def _look(self, id: int | str, client: str) -> None:
        async with self._at_once:
            for _ in range(TRIES):
                try:
                    held = await asyncio.wait_for(self.keeper.vault.read(self.keeper.key(id)), LOOK_SECONDS)
                    if held is None or await self._found(id, held, client):
                        return
                except (StoreError, asyncio.TimeoutError) as error:
                    why = str(error) or f"no answer in {LOOK_SECONDS:g} s"
                    text = f"sequence {shown(id)} may be in the store, which can't be read now: {why}; send it again"
                    raise Fault("UNAVAILABLE", "store", text, retry_after=RETRY_SECONDS) from None
            text = f"sequence {shown(id)} was moved to another server, while it was looked for here"
            raise Fault("NOT_FOUND", "unknown_sequence", text)

    async def _found(self, id: int | str, held: Held, client: str) -> bool:
        """Go on with a record, or remember why not. False: another server was faster, so it must be read again."""
        ended = self.sequences.ended
        reason, epoch = ended.known(id)
        if epoch >= held.epoch:
            return True  # its end is known here
        record = self._read(id, held)
        if record.state == "ended":
            ended.add(id, record.reason, record.text, held.epoch, self._over(id, record, client))
            return True
        elsewhere = record.state == "live" and await self.keeper.vault.neighbours.alive(held.holder)
        if reason == "moved" and elsewhere:
            return True  # another server has it
        if elsewhere and held.holder != self.keeper.vault.holder:
            await self._ask(id, held)
            return False
        limit = self.sequences.options.idle_timeout
        if time.time() - record.time > limit:
            ended.add(id, "idle", f"expired after {limit:g} s idle, after {record.steps} steps", held.epoch)
            return True
        return await self._go_on(id, record, held.epoch, client)

    async def _ask(self, id: int | str, held: Held) -> None:
        """Ask the server that has a sequence for it. It is dead if it does not give it in time."""
        vault, loop = self.keeper.vault, asyncio.get_running_loop()
        neighbours = vault.neighbours
        end, pause, again = loop.time() + neighbours.patience, ASK_SECONDS, 0.0
        while loop.time() < end and await neighbours.alive(held.holder):
            if loop.time() > again:  # it may have been about to get the sequence itself, and had nothing to give
                again = loop.time() + AGAIN_SECONDS
                await neighbours.ask(held.holder, self.sequences.name, id)
            await asyncio.sleep(pause)
            pause = min(2 * pause, neighbours.poll)
            now = await vault.read(self.keeper.key(id))
            if now is None or now.epoch != held.epoch or self._read(id, now).state != "live":
                return
        neighbours.silent(held.holder)

    def _read(self, id: int | str, held: Held) -> Record:
        try:
            record = Record.from_bytes(held.data)
            if record.model != self.sequences.name or type(record.id) is not type(id) or record.id != id:
                raise StoreError(f"it is of sequence {record.id!r:.60} of the model {record.model!r:.60}")
            return record
        except StoreError as error:
            text = f"the record of sequence {shown(id)} in the store can't be used: {error}; start the sequence again"
            raise Fault("FAILED_PRECONDITION", "store", text) from None

    async def _go_on(self, id: int | str, record: Record, epoch: int, client: str) -> bool:
        sequences, vault = self.sequences, self.keeper.vault
        lane = self._lane(record)
        room_for(sequences, [id], client)
        sequence = Sequence(id, lane, client)
        sequence.steps, sequence.last = record.steps, record.last
        slot = await self._slot(id, lane, record)
        try:
            taken = Record(**{**vars(record), "state": "live", "reason": "", "text": ""})
            data = taken.to_bytes()
            sequence.epoch = await asyncio.wait_for(vault.claim(self.keeper.key(id), epoch, data), LOOK_SECONDS)
        except BaseException as error:
            await lane.call(lane.pool.close, slot)
            if isinstance(error, Fenced):
                return False
            raise
        sequence.slot = slot
        vault.restored += 1
        self.keeper.taken.pop(id, None)
        sequences.install(sequence, unsure=record.state != "moved")
        return True

    def _over(self, id: int | str, record: Record, client: str) -> Sequence | None:
        """A sequence that its client ended on another server, to answer its last request again; None: it can't."""
        try:
            sequence = Sequence(id, self._lane(record), client)
        except Fault:
            return None
        sequence.steps, sequence.last, sequence.over = record.steps, record.last, True
        return sequence

    def _lane(self, record: Record) -> Lane:
        """The version that a record is of. Fault: it is not here."""
        lanes, name = self.sequences.lanes, self.sequences.name
        text = f"sequence {shown(record.id)} is of version {record.version} of '{name}', and this server has "
        lane = lanes.get(record.version)
        if lane is None:
            text += f"version {', '.join(map(str, sorted(lanes)))}"
        elif not set(lane.names) & set(record.names):
            text += f"another model as version {record.version}: fingerprint {lane.names[0]:.12}, not "
            text += f"{', '.join(record.names):.60}"
        else:
            return lane
        raise invalid(f"{text}: start the sequence again, or ask a server that serves its version", "version")

    async def _slot(self, id: int | str, lane: Lane, record: Record) -> int:
        """A slot with the state of a record."""
        try:
            if not record.snapshot:
                if record.steps:
                    raise StoreError(f"it has {record.steps} steps and no state")
                return (await lane.call(lane.opened, 1))[0]
            slot = await lane.call(lane.restored, record.snapshot)
            steps = lane.batcher.steps_done(slot)
            if steps != record.steps:
                await lane.call(lane.pool.close, slot)
                raise StoreError(f"it has {record.steps} steps, and its state {steps}")
            return slot
        except FastRNNError as error:
            text = f"the record of sequence {shown(id)} in the store can't be used: {error}; start the sequence again"
            raise Fault("FAILED_PRECONDITION", "store", text) from None


def _seen(task: asyncio.Task) -> None:
    """Take note of an error that nobody waits for."""
    if not task.cancelled():
        task.exception()
