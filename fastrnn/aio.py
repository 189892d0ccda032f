"""Batcher: asyncio callers step a pool; those that wait at the same time share one call, on a worker thread.

pool = model.pool(capacity=1024)
async with Batcher(pool, max_delay=0.002) as batcher:
    slot = pool.open()
    y = await batcher.step(slot, x)
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import FastRNNError, ShapeError, StreamError
from .runtime.arguments import step_arrays, whole_number
from .serving.pool import StreamPool

MOST_STEPS = 1 << 31  # that may wait; more is a typing error


@dataclass(eq=False)
class _Request:
    """One caller's step: its input arrays, checked, and the future that it awaits."""

    slot: int
    arrays: list[np.ndarray]
    future: asyncio.Future


class Batcher:
    """Gathers the steps of asyncio tasks into calls of a pool: ticks.

    A tick takes the first waiting step of each stream, in the order of the calls. It runs on one worker thread; the
    event loop goes on meanwhile. The steps of one stream run in the order of their calls.

    Parameters
    ----------
    pool : StreamPool; others may use it too, from any thread
    max_delay : seconds that a step may wait for others to join it; 0: a tick runs as soon as the worker is free, with
        the steps that wait then
    max_queue : steps that may wait for a tick; callers beyond that wait for room first, in the order of their calls
    max_rows : steps of one tick; None: as many as wait

    Raises
    ------
    ShapeError : max_delay, max_queue or max_rows is not such a number.

    Notes
    -----
    A batcher belongs to one event loop, that of its first step. A caller that is cancelled before its tick begins
    leaves its stream's state untouched; after that its step is taken and the answer dropped. `close`, or the end of
    `async with`, refuses new steps and waits for the others. If the task that runs the ticks is cancelled, as by a
    service that cancels all tasks at its end, waiting callers get a StreamError.
    """

    def __init__(
        self, pool: StreamPool, max_delay: float = 0.002, max_queue: int = 10_000, max_rows: int | None = None
    ):
        if not isinstance(max_delay, int | float | np.number) or not 0 <= max_delay < float("inf"):
            raise ShapeError(f"max_delay must be seconds >= 0, got {max_delay!r}")
        self.pool = pool
        self.max_delay = float(max_delay)
        self.max_queue = whole_number(max_queue, "max_queue", MOST_STEPS)
        self.max_rows = None if max_rows is None else whole_number(max_rows, "max_rows", MOST_STEPS)
        self.ticks = self.steps = 0  # taken so far
        self._waiting: deque[_Request] = deque()  # for a tick; at most max_queue
        self._outside: deque[_Request] = deque()  # for room
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticker: asyncio.Task | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fastrnn-batcher")

    # -- for callers --
    async def step(self, slot: int, x) -> Any:
        """Advance the stream in `slot` by one step, together with others that wait.

        Parameters
        ----------
        slot : int that `pool.open` returned
        x : array [features...]; a model with several inputs takes a tuple or a dict by name

        Returns
        -------
        array [features...], its own memory; a tuple for several outputs; what a lone stream's step returns, if outputs
        don't come one per step.

        Raises
        ------
        StateError, ShapeError : at once, for this caller alone, if the slot is closed or x is wrong; also if the slot
        is closed before its tick, or x holds an index outside a table.
        StreamError : the batcher is closed, or belongs to another event loop; the model has an input without a batch
        axis.
        """
        self._enter()
        request = self._checked(slot, x)
        self._outside.append(request)
        self._let_in()
        self._news.set()
        try:
            return await request.future
        except asyncio.CancelledError:
            request.future.cancel()
            raise

    async def close(self) -> None:
        """Refuse new steps, wait for the others, end the worker. It may be called again, as after a close that was
        itself cancelled: the steps are still taken.

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

    async def __aenter__(self) -> Batcher:
        self._enter()
        return self

    async def __aexit__(self, *_) -> None:
        await self.close()

    def __len__(self) -> int:
        """How many steps wait."""
        return len(self._waiting)

    def __repr__(self):
        return f"<Batcher of {self.pool!r}, {len(self)} steps waiting, {self.steps} taken in {self.ticks} ticks>"

    # -- checks: what is wrong is its caller's alone --
    def _enter(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise StreamError("this batcher belongs to another event loop: open one for each loop")
        if self._closed:
            raise StreamError("this batcher is closed")
        if self._loop is None:
            self._loop, self._news = loop, asyncio.Event()
            self._ticker = loop.create_task(self._run(), name="fastrnn-batcher")

    def _checked(self, slot: int, x) -> _Request:
        pool = self.pool
        pool._place(slot)  # StateError if it is not open
        pool._size_like(x)
        parts = pool._parts
        shared = [a.name for a in parts.inputs if not a.batched]
        if shared:
            raise StreamError(f"the input {', '.join(shared)} has no batch axis: streams of one call would share it")
        arrays = [np.array(v) for v in step_arrays(parts, x, None)]  # copies: the caller may go on to fill its buffer
        return _Request(int(slot), arrays, asyncio.get_running_loop().create_future())

    # -- the ticks --
    async def _run(self) -> None:
        """One tick after another, until closed and drained. If that ends early, no caller is left waiting."""
        try:
            while self._waiting or not self._closed:
                if not self._waiting:
                    self._news.clear()
                    await self._news.wait()
                    continue
                await self._gather()
                tick = self._next()
                if tick:
                    await self._take(tick)
        finally:
            self._closed = True
            for request in (*self._waiting, *self._outside):
                if not request.future.done():
                    request.future.set_exception(StreamError("the batcher was stopped"))
            self._waiting.clear()
            self._outside.clear()

    def _let_in(self) -> None:
        """Move steps that wait for room into the queue, as far as there is some."""
        while self._outside and len(self._waiting) < self.max_queue:
            request = self._outside.popleft()
            if not request.future.cancelled():
                self._waiting.append(request)

    async def _gather(self) -> None:
        """Wait for others, until max_delay is over, or as many wait as a tick takes or the queue holds."""
        assert self._loop is not None
        end = time.monotonic() + self.max_delay
        enough = min(self.max_queue, len(self.pool) or 1, self.max_rows or self.max_queue)
        while len(self._waiting) < enough and not self._closed:
            left = end - time.monotonic()
            if left <= 0:
                break
            self._news.clear()
            timer = self._loop.call_later(left, self._news.set)
            await self._news.wait()
            timer.cancel()

    def _next(self) -> list[_Request]:
        """The first waiting step of each stream, without those that were cancelled; the others go on waiting."""
        tick: list[_Request] = []
        later: deque[_Request] = deque()
        slots: set[int] = set()
        for request in self._waiting:
            if request.future.cancelled():
                continue
            if request.slot in slots or (self.max_rows is not None and len(tick) == self.max_rows):
                later.append(request)
            else:
                tick.append(request)
            slots.add(request.slot)
        self._waiting = later
        self._let_in()
        return tick

    async def _take(self, tick: list[_Request]) -> None:
        """Run a tick on the worker; deliver to each caller its own answer, or its own error."""
        assert self._loop is not None
        try:
            answers = await self._loop.run_in_executor(self._worker, self._call, tick)
        except BaseException as error:  # of the worker or the loop itself: no caller may wait for ever
            answers = [error if isinstance(error, Exception) else StreamError("the batcher was stopped")] * len(tick)
            if not isinstance(error, Exception):
                self._deliver(tick, answers)
                raise
        self._deliver(tick, answers)

    def _deliver(self, tick: list[_Request], answers: list) -> None:
        self.ticks += 1
        for request, answer in zip(tick, answers, strict=True):
            if request.future.done():  # cancelled while its tick ran
                continue
            if isinstance(answer, Exception):
                request.future.set_exception(answer)
            else:
                self.steps += 1
                request.future.set_result(answer)

    def _call(self, tick: list[_Request]) -> list:
        """On the worker: the answer of each request, or the error that is its own."""
        try:
            return self._step(tick)
        except FastRNNError as error:
            if len(tick) == 1:
                return [error]
        # A slot was closed meanwhile, or an index is wrong; no state has changed. Halves find out whose it is in a few
        # calls; one by one, every caller would lose the batch.
        half = len(tick) // 2
        return self._call(tick[:half]) + self._call(tick[half:])

    def _step(self, tick: list[_Request]) -> list:
        stacked = [np.stack([r.arrays[i] for r in tick]) for i in range(len(tick[0].arrays))]
        y = self.pool.step([r.slot for r in tick], stacked[0] if len(stacked) == 1 else tuple(stacked))
        if isinstance(y, list):  # of a PacedPool: each row has its own array already
            return y
        outputs = list(zip(self.pool._parts.outputs, y if isinstance(y, tuple) else (y,), strict=True))
        rows = [[(o[i] if a.batched else o).copy() for a, o in outputs] for i in range(len(tick))]
        return [row[0] if len(row) == 1 else tuple(row) for row in rows]
