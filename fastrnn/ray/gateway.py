"""The sequences of a model that a StreamCluster owns, as `Hosted` of the server takes them.

A gateway has no states, so any number of them may serve one cluster. It keeps the requests of each sequence in their
order, and puts the steps of all requests of a tick into as few calls of the cluster as there are kinds of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..errors import FastRNNError, StateError, StreamError
from ..serving.server.admission import draining, late, live_already, queue_full, repeated
from ..serving.server.ended import Ended, must_start
from ..serving.server.faults import Fault, failure
from ..serving.server.lane import Steps
from ..serving.server.options import Options
from ..serving.server.sequence import Answer, Call, Sequence, shown
from ..serving.server.turns import checked_inputs, named, wrong_index
from .caller import Caller
from .cluster import StreamCluster
from .each import ATTEMPTS, Gone, step_each
from .watch import Watch
from .words import CLOSED, EXPIRED, GATEWAY, UNKNOWN_END, StepsLost

logger = logging.getLogger("fastrnn")


class ClusterSteps(Steps):
    """What the steps of a cluster's model take, and how many there were.

    Parameters
    ----------
    cluster : StreamCluster
    version : int
    """

    def __init__(self, cluster: StreamCluster, version: int):
        super().__init__(cluster.model, version)
        self.cluster = cluster
        cluster._kind = GATEWAY
        self.ticks = self.steps = 0
        self.seconds = self.waited = 0.0
        self.requests = 0

    async def call(self, function: Callable, *args: Any) -> Any:
        """The heartbeat of the server: there is no engine thread, so it is the loop's own."""
        return function(*args)

    def stats(self) -> dict[str, Any]:
        """As of a batcher."""
        return {
            "ticks": self.ticks,
            "steps": self.steps,
            "tick_seconds": {"count": self.ticks, "sum": self.seconds},
            "queue_wait_seconds": {"count": self.requests, "sum": self.waited},
        }


class Turn:
    """A request, from its arrival to the end of what it asks for.

    arrays, steps : its inputs, checked: of one step ([n, F...], steps is 0) or of a chunk ([steps, F...])
    befores : requests that come before it in one of its sequences; afters : those that come after it
    begun : a tick has it. over : those after it may go on
    """

    __slots__ = ("afters", "arrays", "arrived", "befores", "begun", "call", "future", "over", "steps")

    def __init__(self, call: Call, arrays: list[np.ndarray], steps: int):
        self.call, self.arrays, self.steps = call, arrays, steps
        self.befores: set[Turn] = set()
        self.afters: list[Turn] = []
        self.begun, self.over, self.arrived = False, False, time.monotonic()
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def started(self) -> list:
        """The ids that it starts."""
        return [id for id, start in zip(self.call.ids, self.call.starts, strict=True) if start]

    def settle(self, result: Answer | Fault) -> None:
        """Answer it; only the first time."""
        if self.future.done():
            return
        if isinstance(result, Answer):
            self.future.set_result(result)
        else:
            self.future.set_exception(result)
            self.future.exception()  # its caller may have gone


class Gateway:
    """What `Sequences` is to a server of its own: it runs the requests of sequences.

    Parameters
    ----------
    name : of the model
    lane : ClusterSteps
    options : Options, of which a cluster knows idle_timeout, max_sequences, max_delay, queue_size and strict_sequences
    """

    keeper = finding = None  # sequences are in the cluster's store, not in the server's

    def __init__(self, name: str, lane: ClusterSteps, options: Options):
        self.name, self.lane, self.options = name, lane, options
        self.cluster = lane.cluster
        self.lanes = {lane.version: lane}
        self.live: dict[int | str, Any] = {}  # none is live here
        self.draining = False
        self.ended, self.watch = Ended(name), Watch(name, options)
        self._last: dict[int | str, Turn] = {}  # id -> its newest request
        self._open: Counter[int | str] = Counter()  # id -> requests that are not over
        self._due: list[Turn] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task] = set()
        self._over_one = asyncio.Event()

    # -- for protocols --
    async def run(self, call: Call) -> Answer:
        """Take the steps of a request. Fault: it is refused, or failed. A caller that is cancelled before a tick has
        its request leaves its sequences as they were."""
        turn = self._admitted(call)
        timer = None
        if call.timeout is not None:
            timer = asyncio.get_running_loop().call_later(call.timeout, self._expire, turn)
        try:
            return await turn.future  # cancelled: `_begin` leaves it out
        finally:
            if timer is not None:
                timer.cancel()

    def must_look(self, call: Call) -> bool:
        """Every request asks the cluster."""
        return True

    def has_room(self, id: int | str) -> bool:
        """Whether one more request of a sequence may wait here."""
        return self._open[id] <= self.options.queue_size

    async def room(self, id: int | str) -> None:
        """Wait until one more request of a sequence may wait."""
        while not self.has_room(id):
            self._over_one.clear()
            await self._over_one.wait()

    async def drain(self) -> None:
        """Start no sequence, and finish what waits."""
        self.draining = True
        while self._open:
            self._over_one.clear()
            await self._over_one.wait()

    async def close(self) -> None:
        """Wait for what runs. The streams stay."""
        self.watch.end()
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    # -- turns --
    def _admitted(self, call: Call) -> Turn:
        for i, id in enumerate(call.ids):
            if call.starts[i] and self.draining:
                raise draining(id)
            if call.starts[i] and call.indexes is not None and call.indexes[i] != 0:
                raise wrong_index(id, 0, call.indexes[i])
            if not self.has_room(id):
                raise queue_full(id, self.options.queue_size)
        arrays, steps = checked_inputs(self.lane, call)
        turn = Turn(call, arrays if call.many or steps else [a[None] for a in arrays], steps)
        for id in call.ids:
            before = self._last.get(id)
            if before is not None and before not in turn.befores:
                turn.befores.add(before)
                before.afters.append(turn)
            self._last[id] = turn
            self._open[id] += 1
        if not turn.befores:
            self._ready(turn)
        return turn

    def _ready(self, turn: Turn) -> None:
        """The next tick takes it."""
        self._due.append(turn)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.options.max_delay, self._begin)

    def _begin(self) -> None:
        self._timer, due, self._due = None, self._due, []
        turns = [turn for turn in due if not turn.future.done()]
        for turn in due:
            if turn.future.done():  # its caller has gone, or its time is over
                self._over(turn)
        if turns:
            task = asyncio.get_running_loop().create_task(self._tick(turns))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _over(self, turn: Turn) -> None:
        """Those that wait for it go on."""
        turn.over = True
        for id in turn.call.ids:
            self._open[id] -= 1
            if not self._open[id]:
                del self._open[id]
            if self._last.get(id) is turn:
                del self._last[id]
        for after in turn.afters:
            after.befores.discard(turn)
            if not after.befores:
                self._ready(after)
        self._over_one.set()

    def _end(self, turn: Turn, result: Answer | Fault) -> None:
        """Answer a request, and go on; only the first time."""
        turn.settle(result)
        if not turn.over:
            self._over(turn)

    def _expire(self, turn: Turn) -> None:
        if not turn.begun:
            turn.settle(late(turn.call.timeout or 0.0))

    # -- a tick --
    async def _tick(self, turns: list[Turn]) -> None:
        began = time.monotonic()
        for turn in turns:
            turn.begun = True
            self.lane.waited += began - turn.arrived
        self.lane.ticks, self.lane.requests = self.lane.ticks + 1, self.lane.requests + len(turns)
        try:
            caller = await self.cluster._ready()
            await self.watch.begin(caller)
            turns_on = await self._found(caller, turns)
            turns_on = await self._with_room(caller, turns_on)
            turns_on = await self._opened(caller, turns_on)
            kinds: dict[tuple[bool, bool], list[Turn]] = {}
            for turn in turns_on:
                kinds.setdefault((turn.steps > 0, turn.call.indexes is not None), []).append(turn)
            await asyncio.gather(*(self._stepped(caller, own) for own in kinds.values()))
        except Exception as error:
            if not isinstance(error, FastRNNError | OSError):
                logger.exception("a tick failed")
            for turn in turns:
                self._end(turn, _failed(error))
        finally:
            self.lane.seconds += time.monotonic() - began
            for turn in turns:
                self._end(turn, Fault("INTERNAL", "failed", "the step has no answer, and the log says why"))

    async def _found(self, caller: Caller, turns: list[Turn]) -> list[Turn]:
        """The requests of which nothing is known to be wrong; the others are refused, and change nothing."""
        wanted = [id for turn in turns for id, start in zip(turn.call.ids, turn.call.starts, strict=True) if not start]
        # If one row of a request is refused, none may run: so what another gateway did meanwhile is to be known before.
        many = [id for turn in turns if turn.call.many for id in turn.call.ids if id in caller.table.rows]
        if many:
            await caller.sync(many)
        gone = await caller.find(wanted) if wanted else {}
        good = []
        for turn in turns:
            result = self._repeated(turn.call, gone) or self._refusal(caller, turn.call, gone)
            if result is None:
                good.append(turn)
            else:
                self._end(turn, result)
        return good

    def _repeated(self, call: Call, gone: dict) -> Answer | None:
        """The answer to a request that ended its sequences here, and is sent again. Another gateway may have started
        and ended a sequence since, which its generation shows."""
        for id in call.ids:
            sequence = self.ended.sequence(id)
            if sequence is None or gone.get(id) != (CLOSED, sequence.epoch):
                return None
        return repeated(self, call)  # type: ignore[arg-type]

    async def _with_room(self, caller: Caller, turns: list[Turn]) -> list[Turn]:
        """The requests that start no sequence beyond the most."""
        if self.watch.full([id for turn in turns for id in turn.started()]) is None:
            return turns
        good: list[Turn] = []
        new: list = []
        for turn in turns:
            gone = await caller.find(turn.started()) if turn.started() else {}
            fault = self.watch.full([*gone, *new]) if gone else None
            if fault is None:
                new += gone
                good.append(turn)
            else:
                self._end(turn, fault)
        return good

    def _refusal(self, caller: Caller, call: Call, gone: dict) -> Fault | None:
        for i, id in enumerate(call.ids):
            if call.starts[i]:
                continue
            if id in gone:
                return self._unknown(id, gone[id][0])
            if call.many and call.indexes is not None and id in caller.table.rows:
                expected = int(caller.table.next[caller.table.rows[id]])
                if call.indexes[i] not in (expected, expected - 1):
                    return wrong_index(id, expected, call.indexes[i])
        return None

    async def _opened(self, caller: Caller, turns: list[Turn]) -> list[Turn]:
        """Open the sequences that requests start: the requests that go on."""
        ids = [id for turn in turns for id in turn.started()]
        if not ids:
            return turns
        try:
            await caller.open(ids)
            self._began(ids)
            return turns
        except StateError:  # one is open: no stream was opened
            done = await asyncio.gather(*(self._restarted(caller, turn) for turn in turns))
        return [turn for turn, fault in zip(turns, done, strict=True) if fault is None]

    async def _restarted(self, caller: Caller, turn: Turn) -> Fault | None:
        """Open the sequences that one request starts, after the end of those that are live."""
        ids = turn.started()
        for _ in range(ATTEMPTS if ids else 0):
            gone = await caller.find(ids)
            live = [id for id in ids if id not in gone]
            if live and self.options.strict_sequences:
                self._end(turn, fault := live_already(live[0]))
                return fault
            await self._closed(caller, live)
            try:
                await caller.open(ids)
                self._began(ids)
                return None
            except StateError:
                continue  # another gateway was faster, or what this one knew was old
        if not ids:
            return None
        text = f"sequence {shown(ids[0])} is being started elsewhere, again and again: use one id for one sequence"
        self._end(turn, fault := Fault("UNAVAILABLE", "no_slot", text, retry_after=1.0))
        return fault

    def _began(self, ids: list) -> None:
        self.watch.count(len(ids))
        for id in ids:
            self.ended.forget(id)

    async def _closed(self, caller: Caller, ids: Iterable) -> None:
        """End sequences, those that are live."""
        ids = list(ids)
        gone = await caller.find(ids) if ids else {}
        ids = [id for id in ids if id not in gone]
        if ids:
            await caller.close(ids)
            self.watch.count(-len(ids))

    async def _stepped(self, caller: Caller, turns: list[Turn]) -> None:
        """The steps of requests of one kind, in one call; their answers."""
        ids = [id for turn in turns for id in turn.call.ids]
        arrays = [np.concatenate(parts) for parts in zip(*(turn.arrays for turn in turns), strict=True)]
        lengths = np.array([turn.steps for turn in turns], np.int64) if turns[0].steps else None
        index = None
        if turns[0].call.indexes is not None:
            index = np.array([i for turn in turns for i in turn.call.indexes or ()], np.int64)
        each = await step_each(caller, ids, arrays, lengths, index, self.cluster.outputs)
        ends = np.arange(1, len(ids) + 1) if lengths is None else np.cumsum(lengths)
        at, ended = 0, []
        answers: list[tuple[Turn, Answer | Fault]] = []
        for turn in turns:
            rows = range(at, at + len(turn.call.ids))
            at = rows.stop
            wrong = next((i for i in rows if i in each.errors), None)
            if wrong is not None:
                answers.append((turn, self._fault(caller, turn, wrong - rows.start, each.errors[wrong])))
                ended += turn.started()
                continue
            first = tuple(each.first[rows.start : rows.stop].tolist())
            outputs = [a[(ends[rows.start - 1] if rows.start else 0) : ends[rows.stop - 1]] for a in each.outputs]
            if not turn.call.many and not turn.steps:
                outputs = [a[0] for a in outputs]
            done = tuple(k + (turn.steps or 1) for k in first)
            self.lane.steps += (turn.steps or 1) * len(rows)
            ended += [id for id, end in zip(turn.call.ids, turn.call.ends, strict=True) if end]
            self._keep_ends(caller, turn, first, outputs)
            answers.append((turn, Answer(named(self.lane, turn.call.many, outputs), first, done, self.lane.version)))
        if ended:  # before the answers: then no gateway has them any more
            await self._closed(caller, ended)
        for turn, answer in answers:
            self._end(turn, answer)

    def _keep_ends(self, caller: Caller, turn: Turn, first: tuple, outputs: list[np.ndarray]) -> None:
        """Keep the answer to a request with step indexes that ends sequences: it may be sent again."""
        for i, id in enumerate(turn.call.ids):
            row = caller.table.rows.get(id)
            if turn.call.ends[i] and turn.call.indexes is not None and row is not None:
                sequence = Sequence(id, self.lane, turn.call.client)  # type: ignore[arg-type]
                sequence.epoch = int(caller.table.gen[row])
                sequence.last = first[i], turn.steps, [np.array(a[i] if turn.call.many else a) for a in outputs]
                self.ended.add(id, "client", "was ended by its client", sequence=sequence)

    # -- refusals --
    def _unknown(self, id: int | str, code: int) -> Fault:
        why = f"the cluster '{self.cluster.name}' has no such sequence: it was never started, or has ended"
        if code == CLOSED:
            why = f"sequence {shown(id)} was ended by its client"
        if code == EXPIRED:
            why = f"sequence {shown(id)} expired after {self.options.idle_timeout:g} s idle"
            return Fault("NOT_FOUND", "unknown_sequence", f"{must_start(id, self.name)}; {why}")
        return Fault("INVALID_ARGUMENT", "unknown_sequence", f"{must_start(id, self.name)}; {why}")

    def _fault(self, caller: Caller, turn: Turn, k: int, error: Exception) -> Fault:
        """What a request is told of the k-th of its sequences."""
        id, row = turn.call.ids[k], caller.table.rows.get(turn.call.ids[k])
        if isinstance(error, Gone):
            return self._unknown(id, error.code)
        if isinstance(error, StepsLost):
            return _lost(id, error.missing[id])
        expected = None if row is None else int(caller.table.next[row])
        if turn.call.indexes is not None and expected not in (None, turn.call.indexes[k]):
            return wrong_index(id, expected, turn.call.indexes[k])
        if isinstance(error, StateError):
            return Fault("INVALID_ARGUMENT", "unknown_sequence", f"{must_start(id, self.name)}; {error}")
        return _failed(error, f"step of sequence {shown(id)}")


def _lost(id: int | str, missing: range) -> Fault:
    steps, verb = f"steps {missing.start} to {missing.stop - 1}", "are"
    if len(missing) == 1:
        steps, verb = f"step {missing.start}", "is"
    elif missing.stop == UNKNOWN_END:
        steps, verb = f"steps from {missing.start} on", "may be"
    text = (
        f"sequence {shown(id)} expects step_index {missing.start}: {steps} {verb} lost, because what had the state and "
        f"what had the inputs ended at the same time; send them again from step_index {missing.start}, or start the "
        "sequence again"
    )
    return Fault("FAILED_PRECONDITION", "steps_lost", text)


def _failed(error: Exception, what: str = "step") -> Fault:
    """What a client is told of an error in the cluster."""
    if isinstance(error, OSError | StreamError):
        return Fault("UNAVAILABLE", "cluster", f"the {what} failed: {error}; try again after 1 s", retry_after=1.0)
    return failure(error, what)
