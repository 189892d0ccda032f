"""The live sequences of one model: which requests they take, in which order, and when they end.

Everything here runs on the event loop; only the lanes' threads touch states. A request that is admitted waits in the
queue of each of its sequences and runs when it is the first of all of them, so one step of a sequence is in flight at a
time, and what a request asks for is checked when its turn comes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from functools import partial
from typing import Any

from ...errors import FastRNNError
from .admission import BUSY_SECONDS, draining, found, lane_of, late, repeated, room_for, would_run
from .ended import Ended
from .evictions import pass_on, tell_of
from .faults import Fault, failure
from .finding import Finding
from .keeper import Keeper
from .lane import Lane
from .options import Options
from .resting import Resting
from .sequence import Answer, Call, LiveSequences, Sequence, Tell, Work, pass_answer, shown
from .turns import answer_again, answer_of, begin, checked_inputs, going_on, idle
from .vault import Vault

logger = logging.getLogger("fastrnn")


class Sequences:
    """The sequences of a model in all its versions.

    Parameters
    ----------
    name : of the model
    lanes : version -> lane; new sequences start on the highest one
    options : Options

    Attributes
    ----------
    live : id -> Sequence
    counts : starts, steps and rejections so far; ends : by reason
    draining : no sequence may start; closing : no request is taken, until what waits has run
    unsure : those that go on from a state which may be older than their client's last answer
    """

    def __init__(self, name: str, lanes: dict[int, Lane], options: Options):
        self.name, self.lanes, self.options = name, lanes, options
        self.live = LiveSequences()
        self.ended = Ended(name)
        self.starts, self.steps = 0, 0
        self.ends: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.draining = self.closing = False
        self.leaving: dict[Sequence, asyncio.Future] = {}  # no longer live; they end when nothing waits for them
        self.resting = Resting(options.idle_timeout, self._idle)
        self._tasks: set[asyncio.Task] = set()
        self.unsure: set[Sequence] = set()
        self.keeper: Keeper | None = None  # both only with a store
        self.finding: Finding | None = None

    # -- for protocols --
    async def run(self, call: Call) -> Answer:
        """Take the steps of a request.

        Raises
        ------
        Fault : it is refused, and no sequence has changed; or the model failed. CancelledError : the caller has gone;
        what a tick had not taken by then leaves its sequence as it was.
        """
        if self.finding is not None and self.must_look(call):
            try:
                await self.finding.look(call)
            except Fault as fault:
                self.rejected[fault.reason] += 1
                raise
        future = asyncio.get_running_loop().create_future()
        work = self.post(call, partial(pass_answer, future))
        timer = None
        if call.timeout is not None:
            timer = asyncio.get_running_loop().call_later(call.timeout, self._expire, work)
        try:
            return await future
        except asyncio.CancelledError:
            self.withdraw(work)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def post(self, call: Call, tell: Tell) -> Work:
        """`run` without a task, if not `must_look`: `tell` is called with the Answer or the Fault, once; or never,
        after `withdraw`.

        Raises
        ------
        Fault : the request is refused at once; tell is not called then.
        """
        try:
            return self._admitted(call, tell)
        except Fault as fault:
            self.rejected[fault.reason] += 1
            raise

    async def check(self, call: Call) -> int:
        """The version on which a request would run now. Fault: it would be refused."""
        if self.finding is not None and self.finding.needed(call):
            await self.finding.look(call)
        return would_run(self, call)

    async def room(self, id: int | str) -> None:
        """Wait until one more request of a sequence may wait. Protocols whose connections carry many requests stop
        reading meanwhile."""
        while not self.has_room(id):
            look = None if self.finding is None else self.finding.running(id)
            await asyncio.wait([look or self.live[id].waiting[0].watcher()])

    def has_room(self, id: int | str) -> bool:
        """Whether one more request of a sequence may wait."""
        if self.finding is not None and self.finding.running(id) is not None:
            return False  # nobody knows yet
        sequence = self.live.get(id)
        return sequence is None or len(sequence.waiting) < self.options.queue_size

    async def evict(self, id: int | str, reason: str = "evicted") -> None:
        """End a sequence that the client has not ended. Fault NOT_FOUND: it is not live."""
        sequence = self.live.get(id)
        if sequence is None:
            raise self.ended.fault(id)
        await tell_of(
            self.options.on_evict,
            sequence,
            reason,
            self._lose(sequence, reason, f"was {reason}, after {sequence.steps} steps"),
        )

    async def finish(self, id: int | str) -> None:
        """End a sequence whose client has gone for good."""
        sequence = self.live.get(id)
        if sequence is not None:
            self._lose(sequence, "client", f"ended with its connection, after {sequence.steps} steps")

    # -- for the store --
    def must_look(self, call: Call) -> bool:
        """Whether a request must wait for the store: `run` does, `post` does not."""
        return self.finding is not None and self.finding.needed(call)

    def may_be_elsewhere(self, id: int | str) -> bool:
        """Whether a sequence is not live here, and may be in the store."""
        return self.finding is not None and id not in self.live

    def keep(self, vault: Vault) -> None:
        """From now on sequences outlive this server in a store."""
        self.keeper = Keeper(vault, self, self.options.checkpoint_seconds)
        self.finding = Finding(self.keeper, self)
        self.keeper.start()

    def install(self, sequence: Sequence, unsure: bool) -> None:
        """A sequence from the store goes on here."""
        self.live[sequence.id] = sequence
        self.ended.forget(sequence.id)
        if unsure:
            self.unsure.add(sequence)
        self._rest(sequence)

    def lost(self, sequence: Sequence, reason: str, text: str) -> None:
        """Another server has a sequence, or will."""
        self._lose(sequence, reason, text)

    def release(self, sequence: Sequence) -> None:
        """The requests of a sequence that was HELD go on."""
        sequence.running = None
        if sequence.waiting or sequence in self.leaving or self.rests_since(sequence) is None:
            self.advance(sequence)

    def rests_since(self, sequence: Sequence) -> float | None:
        """When the idle clock of a sequence started, in the loop's time; None: it is not at rest."""
        return self.resting.since(sequence)

    # -- life --
    async def drain(self) -> None:
        """Finish what waits, and refuse what comes meanwhile: clients that go on stepping would keep the server. No
        sequence starts from now on. They stay live."""
        self.draining = self.closing = True
        try:
            while not all(s.at_rest for s in (*self.live.values(), *self.leaving)):
                await asyncio.sleep(0.002)
        finally:
            self.closing = False

    async def close(self) -> None:
        """End the lanes. Nothing may wait."""
        self.resting.close()
        for task in list(self._tasks):
            await asyncio.wait([task])
        if self.keeper is not None:
            await self.keeper.close()
        for lane in self.lanes.values():
            await lane.close()

    # -- admission: refuses without an effect, or queues --
    def _admitted(self, call: Call, tell: Tell) -> Work:
        if self.closing:
            raise draining(call.ids[0])
        if True not in call.starts and not self.unsure:
            rows = [*map(self.live.get, call.ids)]
            lane = going_on(rows)
            if lane is not None and call.version in (None, lane.version):
                work = Work(call, rows, *checked_inputs(lane, call), tell)
                if idle(rows):
                    return self._begun(work)
                if all(len(sequence.waiting) < self.options.queue_size for sequence in rows):
                    return self._behind(work)
        again = repeated(self, call)
        if again is not None:
            work = Work(call, [], [], 0, tell)
            work.settle(again)
            return work
        befores = [found(self, call, i) for i in range(len(call.ids))]
        room_for(self, [id for id, before in zip(call.ids, befores, strict=True) if before is None], call.client)
        lane = lane_of(self, call, [s for s in befores if s is not None])
        arrays, steps = checked_inputs(lane, call)
        rows = [
            self._started(id, lane, call.client) if sequence is None else sequence
            for id, sequence in zip(call.ids, befores, strict=True)
        ]
        new = [sequence for sequence, before in zip(rows, befores, strict=True) if before is None]
        if new:
            self._spawn(self._open(new))
        return self._behind(Work(call, rows, arrays, steps, tell))

    def _behind(self, work: Work) -> Work:
        """Let a request wait for its turn behind others of its sequences."""
        for sequence, ends in zip(work.rows, work.call.ends, strict=True):
            self.resting.discard(sequence, None)
            sequence.waiting.append(work)
            sequence.ending |= ends
        self.advance(work.rows[0])
        return work

    def _begun(self, work: Work) -> Work:
        """Run a request of sequences that all are at rest, as `_admitted` and `advance` do."""
        for sequence, ends in zip(work.rows, work.call.ends, strict=True):
            self.resting.discard(sequence, None)
            sequence.ending = ends
        try:
            again = self._again(work)
            if again is None:
                begin(work, self.done)
            else:
                self._settle(work, again)
        except FastRNNError as error:
            self._settle(work, failure(error, "step"))
        return work

    def _started(self, id: int | str, lane: Lane, client: str) -> Sequence:
        """A new generation of an id; the one before it ends after what waits for it."""
        before = self.live.get(id)
        if before is not None:
            self._leave(before, "restarted", f"was started again, after {before.steps} steps")
        self.ended.forget(id)
        sequence = self.live[id] = Sequence(id, lane, client)
        return sequence

    async def _open(self, sequences: list[Sequence]) -> None:
        """Open the sequences that one request starts."""
        lane = sequences[0].lane
        try:
            slots = await lane.call(lane.opened, len(sequences))
        except Exception as error:  # such as MemoryError: nobody may wait for a sequence that never opens
            for sequence in sequences:
                self._not_opened(sequence, error)
            return
        if self.keeper is not None:
            await self.keeper.begin(sequences)
        self.starts += len(sequences)
        for sequence, slot in zip(sequences, slots, strict=True):
            sequence.slot = slot
        for sequence in sequences:
            self.advance(sequence)

    def _not_opened(self, sequence: Sequence, error: Exception) -> None:
        text = f"sequence {shown(sequence.id)} can't start: {error or type(error).__name__}"
        if isinstance(error, (FastRNNError, MemoryError)):
            text += f"; try again after {BUSY_SECONDS:g} s"
            fault = Fault("UNAVAILABLE", "no_slot", text, retry_after=BUSY_SECONDS)
        else:
            logger.error("sequence %s can't start", shown(sequence.id), exc_info=error)
            fault = Fault("INTERNAL", "failed", text)
        if self.live.get(sequence.id) is sequence:
            del self.live[sequence.id]
        left = self.leaving.pop(sequence, None)
        if left is not None:
            left.set_result(None)
        self._fail(sequence, fault)

    # -- turns --
    def advance(self, sequence: Sequence) -> None:
        """Begin the first request of a sequence whose turn it is."""
        while sequence.running is None and sequence.slot is not None and sequence.waiting:
            work = sequence.waiting[0]
            if any(s.running is not None or s.slot is None or s.waiting[0] is not work for s in work.rows):
                return  # another of its sequences comes to it later
            for row in work.rows:
                row.waiting.popleft()
            again = None
            try:
                again = self._again(work)
                if again is None:
                    begin(work, self.done)
            except FastRNNError as error:
                self._settle(work, failure(error, "step"))
                continue
            if again is not None:
                self._settle(work, again)
        if sequence.at_rest:
            self._rest(sequence)

    def _again(self, work: Work) -> Answer | None:
        """`answer_again`; a client whose index is right knows where its sequence is."""
        again = answer_again(work)
        if self.unsure and work.call.indexes is not None:
            self.unsure.difference_update(work.rows)
        return again

    def done(self, work: Work, result: Any, error: BaseException | None) -> None:
        """The engine has answered a request; or dropped it because its caller had gone: a CancelledError."""
        for sequence in work.rows:
            sequence.running = None
        if self.keeper is not None:
            self.keeper.stepped(work.rows)
        if isinstance(error, asyncio.CancelledError):
            self._settle(work, None)
            return
        if error is not None:
            for sequence in work.rows:
                sequence.steps = sequence.lane.batcher.steps_done(sequence.slot)
            self._settle(work, failure(error, "step"))
            return
        try:
            answer = answer_of(work, result)
        except Exception:  # a client must not wait for ever
            logger.exception("the answer of a step could not be written")
            self._settle(work, Fault("INTERNAL", "failed", "the step was taken, and its answer could not be written"))
            return
        self.steps += work.count * len(work.rows)
        self._settle(work, answer)

    def _settle(self, work: Work, result: Answer | Fault | None) -> None:
        """Answer a request, end the sequences that it ends, and go on with the others. None: it was withdrawn."""
        if isinstance(result, Fault) and not work.settled:
            self.rejected[result.reason] += 1
        work.settle(result)
        if not isinstance(result, Answer) and True in work.call.starts:
            self._not_started(work)
        if not self.leaving and True not in work.call.ends and idle(work.rows) and going_on(work.rows) is not None:
            self.resting.add_all(work.rows)  # nothing else waits for any of them
            return
        for sequence, ends in zip(work.rows, work.call.ends, strict=True):
            if ends and isinstance(result, Answer) and self.live.get(sequence.id) is sequence:
                self._leave(sequence, "client", f"was ended by its client, after {sequence.steps} steps")
                if not sequence.waiting:
                    continue
            elif ends:  # unless it waits once more, because its client sent it again
                sequence.ending = any(w.call.ends[w.call.ids.index(sequence.id)] for w in sequence.waiting)
            self.advance(sequence)

    def _not_started(self, work: Work) -> None:
        """The first request of sequences did not run: what follows must not go on from a state that lacks it."""
        for sequence, starts in zip(work.rows, work.call.starts, strict=True):
            if starts and not sequence.steps and self.live.get(sequence.id) is sequence:
                self._lose(sequence, "client", "was not started: its first request was cancelled, or failed")

    def withdraw(self, work: Work) -> None:
        """The caller has gone, or its time is over. What a tick has taken goes on."""
        if work.then is not None or not work.rows:  # the engine has it, or had; or it was answered again at once
            if work.rows and not work.taken:
                work.cancel()
            return
        for sequence in work.rows:
            if work in sequence.waiting:
                sequence.waiting.remove(work)
        self._settle(work, None)

    def _expire(self, work: Work) -> None:
        if work.settled or work.taken:
            return
        self.rejected["timeout"] += 1
        work.settle(late(work.call.timeout))
        self.withdraw(work)

    # -- ends --
    def _leave(self, sequence: Sequence, reason: str, text: str) -> asyncio.Future:
        """End a sequence, when what waits for it has run. The future gets its snapshot, if on_evict wants it."""
        assert self.live[sequence.id] is sequence
        del self.live[sequence.id]
        self.ended.add(sequence.id, reason, text, sequence.epoch, sequence)
        self.ends[reason] += 1
        self.unsure.discard(sequence)
        if self.keeper is not None:
            self.keeper.left(sequence, reason, text)
        self.resting.discard(sequence, None)
        sequence.ending = True
        self.leaving[sequence] = asyncio.get_running_loop().create_future()
        return self._left(sequence)

    def _left(self, sequence: Sequence) -> asyncio.Future:
        """Close the slot of a sequence that is no longer live, if it is at rest."""
        future = self.leaving[sequence]
        if sequence.at_rest:
            del self.leaving[sequence]
            snapshot = self.options.on_evict is not None
            sequence.lane.end(sequence.slot, snapshot=snapshot).add_done_callback(partial(pass_on, future))
            sequence.slot = None
        return future

    def _fail(self, sequence: Sequence, fault: Fault) -> None:
        """Refuse what waits for a sequence."""
        while sequence.waiting:
            work = sequence.waiting[0]
            for row in work.rows:
                row.waiting.remove(work)
            self._settle(work, fault)

    def _lose(self, sequence: Sequence, reason: str, text: str) -> asyncio.Future:
        """End a sequence that its client has not ended, and refuse what waits for it."""
        left = self._leave(sequence, reason, text)
        self._fail(sequence, self.ended.fault(sequence.id))
        return left

    def _rest(self, sequence: Sequence) -> None:
        """The clock of a sequence starts; one that is no longer live ends."""
        if sequence in self.leaving:
            self._left(sequence)
        else:
            self.resting.add(sequence)

    def _idle(self, sequence: Sequence) -> None:
        """The time of a sequence is over."""
        text = f"expired after {self.options.idle_timeout:g} s idle, after {sequence.steps} steps"
        self._spawn(tell_of(self.options.on_evict, sequence, "idle", self._lose(sequence, "idle", text)))

    def _spawn(self, coroutine) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)
