"""Batcher: asyncio callers step a pool; those that wait at the same time share one call, on a worker thread.

async with Batcher(model.pool(capacity=1024), max_delay=0.002) as batcher:
    slot = await batcher.open()
    y = await batcher.step(slot, x)
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

from ..errors import ShapeError, StateError, StreamError
from ..runtime.arguments import chunk_arrays, duration, step_arrays, whole_number
from ..typing import Inputs, StepOutputs
from ._queues import Close, FairQueues, Many, Push, Request, Step, deliver
from .idle import IdleStreams
from .opening import opened
from .pool import StreamPool
from .rounds import TickCounts, run_rounds, unfinished

__all__ = ["Batcher", "QueueFullError"]

MOST_STEPS = 1 << 31  # that may wait; more is a typing error
EXTRA_SECONDS = 0.001  # after which a tick begins no further round


class QueueFullError(StreamError, asyncio.QueueFull):
    """A step was not taken because too many wait, and the batcher was made with `on_full="raise"`."""


class Batcher:
    """Gathers the steps of asyncio tasks into calls of a pool: ticks.

    A tick takes one waiting step of each stream, and further ones of the same streams for about a millisecond. It runs
    on one worker thread; the event loop goes on meanwhile. Streams take turns, so a stream with a long backlog does not
    delay the others. The calls of one stream run in order.

    Parameters
    ----------
    pool : StreamPool; others may use it too, from any thread
    max_delay : seconds that a step may wait for others to join it; 0: a tick runs as soon as the worker is free, with
        the steps that wait then
    max_queue : steps that may wait for a tick, of all streams
    max_rows : steps of one tick; None: as many as wait
    max_stream_queue : steps of one stream that may wait for a tick
    on_full : what happens to a step beyond these numbers. "wait": its caller waits for room, in the order of the calls.
        "raise": it is refused with a QueueFullError.
    idle_timeout : seconds without a step after which a stream is closed; None: never. The clock of a stream starts when
        it is opened here and again whenever a step is answered. It does not run while a step waits.
    on_evict : called with (slot, snapshot) on the event loop after such a stream was closed; snapshot is what
        `StreamPool.restore` takes. It may be a coroutine function; `close` waits for its calls. If one fails or is
        cancelled, the log says so: that snapshot is lost.

    Attributes
    ----------
    ticks, steps : how many were taken so far; a chunk counts its steps

    Raises
    ------
    ShapeError : one of the numbers is not such a number, or on_full is neither word. StreamError : the pool binds
        inputs.

    Notes
    -----
    A batcher belongs to one event loop, that of its first call. A caller that is cancelled before its tick begins
    leaves its stream's state untouched; after that its step is taken and the answer dropped. `close`, or the end of
    `async with`, refuses new steps and waits for the others. If the task that runs the ticks is cancelled, as by a
    service that cancels all tasks at its end, waiting callers get a StreamError.
    """

    def __init__(
        self,
        pool: StreamPool,
        max_delay: float = 0.002,
        max_queue: int = 10_000,
        max_rows: int | None = None,
        *,
        max_stream_queue: int = 32,
        on_full: Literal["wait", "raise"] = "wait",
        idle_timeout: float | None = None,
        on_evict: Callable[[int, bytes], Any] | None = None,
    ):
        if on_full not in ("wait", "raise"):
            raise ShapeError(f"on_full must be 'wait' or 'raise', got {on_full!r}")
        if pool.bound:
            names = ", ".join(pool.bound)
            raise StreamError(f"a Batcher takes a pool without bind=: pass {names} at each step instead")
        self.pool = pool
        self.max_delay = duration(max_delay, "max_delay")
        self.max_queue = whole_number(max_queue, "max_queue", MOST_STEPS)
        self.max_rows = None if max_rows is None else whole_number(max_rows, "max_rows", MOST_STEPS)
        self.max_stream_queue = whole_number(max_stream_queue, "max_stream_queue", MOST_STEPS)
        self.on_full = on_full
        self.idle_timeout = None if idle_timeout is None else duration(idle_timeout, "idle_timeout")
        self.on_evict = on_evict
        self.ticks = self.steps = 0
        self._counts = TickCounts()
        self._queues = FairQueues(self.max_queue, self.max_stream_queue)
        self._running: list[list[Request]] = []  # the tick that the worker has
        self._many = False  # requests of several streams have come
        self._enough = 1.0  # requests that the ticker waits for
        self._since = 0.0  # when the oldest waiting request came
        self._at_once = False  # a request waits that is a batch of its own: it gains nothing by waiting for others
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticker: asyncio.Task | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fastrnn-batcher")
        # Of a model with one plain input and output: dtype and shape of a step, and the check of a slot.
        self._plain: tuple | None = None
        self._idle: IdleStreams | None = None
        if self.idle_timeout is not None:
            self._idle = IdleStreams(self.idle_timeout, on_evict, self._close_idle)

    # -- for callers --
    async def step(self, slot: int, x: Inputs, timeout: float | None = None) -> StepOutputs:
        """Advance the stream in `slot` by one step, together with others that wait.

        Parameters
        ----------
        slot : int that `open` returned, here or of the pool
        x : array [features...]; a model with several inputs takes a tuple or a dict by name
        timeout : seconds that the step may wait until a tick takes it; None: any time

        Returns
        -------
        array [features...], its own memory; a tuple for several outputs; what a lone stream's step returns, if outputs
        don't come one per step.

        Raises
        ------
        TimeoutError : no tick took the step in time. The stream's state is unchanged: the step can be sent again.
        QueueFullError : too many steps wait, and the batcher was made with on_full="raise".
        StateError, ShapeError : at once, for this caller alone, if the slot is closed or x is wrong; also if the slot
        is closed before its tick, or x holds an index outside a table.
        StreamError : the batcher is closed, or belongs to another event loop; the model has an input without a batch
        axis.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop or self._closed:
            self._enter(loop)
        seconds = None if timeout is None else duration(timeout, "timeout")
        plain = self._plain
        if plain is not None and type(x) is np.ndarray and x.dtype is plain[0] and x.shape == plain[1]:
            plain[2](slot)  # StateError if it is not open
            request = Step(slot, loop.create_future(), (x.copy(),))
        else:
            request = Step(slot, loop.create_future(), self._step_arrays(slot, x))
        self._put(request)
        return await (request.future if seconds is None else self._within(request, seconds))

    async def push(self, slot: int, chunk: Inputs, timeout: float | None = None) -> StepOutputs:
        """Advance the stream in `slot` by a chunk of steps, as `StreamPool.push` does for one stream.

        A tick takes some of its steps, so that a long chunk leaves other streams their turns.

        Parameters
        ----------
        slot : as in `step`
        chunk : array [T, features...]; a model with several inputs takes a tuple or a dict by name
        timeout : seconds that the chunk may wait until a tick takes its first steps

        Returns
        -------
        array [T, features...], or what `StreamPool.push` returns for one stream

        Raises
        ------
        As `step`. If a later part of a chunk fails, or the caller is cancelled, `steps_done` tells how many of its
        steps were taken.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop or self._closed:
            self._enter(loop)
        seconds = None if timeout is None else duration(timeout, "timeout")
        self._check_open(slot)
        self._size_like(chunk)
        arrays, steps = chunk_arrays(self.pool._parts, chunk, None)
        request = Push(slot, loop.create_future(), [np.array(v) for v in arrays], steps)
        self._put(request)
        return await (request.future if seconds is None else self._within(request, seconds))

    async def open(self) -> int:
        """A slot for a new stream, as `StreamPool.open`; other tasks run while a tick has the pool.

        Raises
        ------
        StateError : all slots are open. StreamError : the batcher is closed, or belongs to another event loop.
        """
        self._enter(asyncio.get_running_loop())
        slot = await opened(self.pool, self._worker)
        if self._idle is not None:
            self._idle.touch(slot)
        return slot

    async def close_slot(self, slot: int) -> None:
        """End a stream after the steps of it that wait; other tasks run meanwhile.

        Raises
        ------
        StateError : the slot is not open. StreamError : the batcher is closed, or belongs to another event loop.
        """
        loop = asyncio.get_running_loop()
        self._enter(loop)
        self._check_open(slot)
        request = Close(slot, loop.create_future())
        self._put(request, always=True)
        await request.future

    def steps_done(self, slot: int) -> int:
        """Steps that a stream has taken. It never waits for a tick. StateError: the slot is not open."""
        return self.pool._steps(self._check_open(slot))

    def stats(self) -> dict[str, Any]:
        """What the batcher has done so far, JSON-able.

        Returns
        -------
        dict: `ticks`, `steps`, `waiting` (now), `evicted`, `timeouts`, `refused`, and the histograms `tick_seconds`,
        `batch_size` and `queue_wait_seconds` (of the first step of a tick), each as in `StreamPool.stats`.
        """
        return {
            "ticks": self.ticks,
            "steps": self.steps,
            "waiting": len(self),
            "evicted": 0 if self._idle is None else self._idle.evicted,
            **self._counts.as_dict(),
        }

    async def close(self) -> None:
        """Refuse new steps, wait for the others and for calls of on_evict, end the worker. It may be called again, as
        after a close that was itself cancelled: the steps are still taken. The pool and its streams stay open.

        Raises
        ------
        StreamError : another event loop than that of the steps.
        """
        self._closed = True
        ticker = self._ticker
        if ticker is not None and not ticker.done() and self._loop is not None and not self._loop.is_closed():
            if self._loop is not asyncio.get_running_loop():
                raise StreamError("this batcher belongs to another event loop: close it there")
            self._news.set()
            await asyncio.wait([ticker])  # not `await ticker`, which a cancelled close would cancel too
        self._worker.shutdown(wait=True)
        if self._idle is not None and self._loop is asyncio.get_running_loop():
            await self._idle.stop()

    async def __aenter__(self) -> Batcher:
        self._enter(asyncio.get_running_loop())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __len__(self) -> int:
        """How many steps wait for a tick; those that wait for room are not counted."""
        return len(self._queues)

    def __repr__(self) -> str:
        return f"<Batcher of {self.pool!r}, {len(self)} steps waiting, {self.steps} taken in {self.ticks} ticks>"

    # -- checks: what is wrong is its caller's alone --
    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None and self._loop is not loop:
            raise StreamError("this batcher belongs to another event loop: open one for each loop")
        if self._closed:
            raise StreamError("this batcher is closed")
        if self._loop is None:
            self._loop, self._news = loop, asyncio.Event()
            self._ticker = loop.create_task(self._run(), name="fastrnn-batcher")
            if self._idle is not None:
                self._idle.start(loop)

    def _check_open(self, slot: int) -> int:
        """The place of an open slot."""
        try:
            return self.pool._place(slot)
        except StateError:
            if self._idle is not None:
                self._idle.explain(slot)
            raise

    def _size_like(self, x) -> None:
        pool = self.pool
        pool._size_like(x)
        parts = pool._parts
        shared = [a.name for a in parts.inputs if not a.batched]
        if shared:
            raise StreamError(f"the input {', '.join(shared)} has no batch axis: streams of one call would share it")
        floats = all(a.dtype == "float32" for a in (*parts.inputs, *parts.outputs))
        if parts.simple and floats and not parts.timetable:
            self._plain = (
                np.dtype(np.float32),
                parts.inputs[0].step_shape(None),
                pool._place if self._idle is None else self._check_open,
            )

    def _step_arrays(self, slot: int, x) -> list[np.ndarray]:
        """The inputs of a step, copied: the caller may go on to fill its buffers."""
        self._check_open(slot)
        self._size_like(x)
        return [np.array(v) for v in step_arrays(self.pool._parts, x, None)]

    # -- the queue --
    def _submit(self, request: Request) -> None:
        """Add a request whose maker has checked it, and bounds how many it adds. On the event loop; a StreamError if
        the batcher is closed."""
        if self._loop is None or self._closed:
            self._enter(asyncio.get_running_loop())
        self._many |= type(request) is Many
        self._put(request, always=True)

    def _put(self, request: Request, always: bool = False) -> None:
        """Add a request and wake the ticker if it has enough. always: no number bounds it."""
        queues = self._queues
        if self.on_full == "raise" and not always and not queues.has_room(request.slot):
            self._counts.refused += 1
            most = f"{self.max_stream_queue} steps of a stream, or {self.max_queue} in all"
            raise QueueFullError(
                f"the queue of slot {request.slot} is full: at most {most}, may wait. Send it again later, or raise "
                "max_stream_queue or max_queue"
            )
        if self._idle is not None:
            self._idle.wanted(request)
        if not queues.size:
            self._since = time.monotonic()
        queues.put(request)
        self._at_once |= type(request) is Many
        if queues.size >= self._enough or queues.pressed or self._at_once:
            self._enough = math.inf
            self._news.set()

    async def _within(self, request: Request, seconds: float) -> Any:
        """The answer to a request that a tick must take within this time."""
        assert self._loop is not None
        timer = self._loop.call_later(seconds, self._expire, request)
        try:
            return await request.future
        finally:
            timer.cancel()

    def _expire(self, request: Request) -> None:
        request.expired = True
        begun = request.taken or (isinstance(request, Push) and request.at)  # some steps were taken, so it goes on
        if not begun and not request.future.done():
            self._counts.timeouts += 1
            text = "its state is unchanged, so it can be sent again"
            request.future.set_exception(
                TimeoutError(f"slot {request.slot}: no tick took the step in time, {len(self)} steps wait; {text}")
            )

    def _close_idle(self, slot: int) -> Request | None:
        """Ask for the end of a stream that is not in use; the answer is its snapshot. None: it is in use."""
        running = any(request.slot == slot for some in self._running for request in some)
        if running or slot in self._queues or self._closed:
            return None
        assert self._loop is not None
        request = Close(slot, self._loop.create_future(), snapshot=True)
        self._put(request, always=True)
        return request

    # -- the ticks --
    async def _run(self) -> None:
        """One tick after another, until closed and drained. If that ends early, no caller is left waiting."""
        try:
            while self._queues.size or self._queues.pressed or not self._closed:
                if not self._queues.size and not self._queues.pressed:
                    await self._wait_for(1, None)
                    continue
                await self._gather()
                rounds = self._next()
                if rounds:
                    await self._take(rounds)
        finally:
            self._closed = True
            for request in self._queues.clear():
                if not request.future.done():
                    request.future.set_exception(StreamError("the batcher was stopped"))

    async def _wait_for(self, enough: float, seconds: float | None) -> None:
        """Until that many requests wait, a queue is full, the batcher is closed, or the time is over."""
        assert self._loop is not None
        self._news.clear()
        self._enough = enough
        timer = None if seconds is None else self._loop.call_later(seconds, self._news.set)
        await self._news.wait()
        if timer is not None:
            timer.cancel()
        self._enough = math.inf

    async def _gather(self) -> None:
        """Wait for others until the oldest has waited for max_delay, or as many wait as a tick takes."""
        queues = self._queues
        enough = min(self.max_queue, len(self.pool) or 1, self.max_rows or self.max_queue)
        left = self._since + self.max_delay - time.monotonic()
        if left > 0 and queues.size < enough and not (queues.pressed or self._at_once or self._closed):
            await self._wait_for(enough, left)

    def _next(self) -> list[list[Request]]:
        """The rounds of the next tick."""
        rounds = self._queues.take(self.max_rows)
        self._at_once = False
        if self._since and rounds:
            self._counts.waits.add(time.monotonic() - self._since)
        self._since = 0.0  # those that are left have waited
        return rounds

    async def _take(self, rounds: list[list[Request]]) -> None:
        """Run a tick on the worker; deliver to each caller its own answer, or its own error."""
        assert self._loop is not None
        self._running = rounds
        began = time.monotonic()  # loop.time() of uvloop has whole milliseconds
        try:
            done, answers = await self._loop.run_in_executor(self._worker, run_rounds, self.pool, rounds, EXTRA_SECONDS)
        except BaseException as error:  # of the worker or the loop itself: no caller may wait for ever
            done = [request for some in rounds for request in some]
            own = error if isinstance(error, Exception) else StreamError("the batcher was stopped")
            self._deliver(done, [own] * len(done))
            if not isinstance(error, Exception):
                raise
            return
        finally:
            self._running = []
        rows = len(done) + (sum(r.steps - 1 for r in done if type(r) is Many) if self._many else 0)
        self._counts.tick(time.monotonic() - began, rows)
        left = unfinished(rounds, done, answers)
        self._queues.put_back(left)
        for request in (r for r in left if r.expired):
            self._expire(request)
        self._deliver(done, answers)

    def _deliver(self, done: list[Request], answers: list) -> None:
        self.ticks += 1
        self.steps += deliver(done, answers)
        if self._idle is not None:
            self._idle.answered(done)
