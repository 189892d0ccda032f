"""Closes the streams of a batcher that have not been stepped for a time."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import StateError, StreamError
from ._queues import Close, Request

MOST_EVICTED = 10_000  # slots that are remembered, so that their callers get a better error

logger = logging.getLogger("fastrnn")


class IdleStreams:
    """The clocks of the streams. Its methods run on the event loop.

    Parameters
    ----------
    seconds : without a step, after which a stream is closed
    on_evict : called with (slot, snapshot) after that; it may return an awaitable
    close : slot -> the request whose future gets the stream's snapshot when it is closed; None if it is in use
    """

    def __init__(
        self,
        seconds: float,
        on_evict: Callable[[int, bytes], Any] | None,
        close: Callable[[int], Request | None],
    ):
        self.seconds, self.on_evict, self.close = seconds, on_evict, close
        self.evicted = 0  # streams closed so far
        self._used: dict[int, float] = {}  # slot -> when its last step was answered
        self._closing: dict[int, Request] = {}
        self._recent: dict[int, None] = {}  # slots closed lately
        self._calls: set[asyncio.Task] = set()
        self._stopping: set[Any] = set()  # those that wait for the others here
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to look."""
        self._loop = loop
        self._look()

    async def stop(self) -> None:
        """End it; streams stay open. Returns when every snapshot was given to on_evict, and each call of it has ended.
        A call that stops the batcher itself does not wait for itself."""
        if self._timer is not None:
            self._timer.cancel()
        me = asyncio.current_task()
        if me in self._calls:
            self._stopping.add(me)
        while True:
            calls = self._calls - self._stopping if me in self._stopping else self._calls
            left = [*calls, *(request.future for request in self._closing.values())]
            if not left:
                return
            await asyncio.wait(left)

    def touch(self, slot: int) -> None:
        """The clock of a stream starts again."""
        self._used[slot] = self._loop.time()

    def wanted(self, request: Request) -> None:
        """A request comes: its stream stays open."""
        self._used.setdefault(request.slot, self._loop.time())
        closing = self._closing.pop(request.slot, None)
        if closing is not None and not closing.taken:
            closing.future.cancel()

    def answered(self, done: Iterable[Request]) -> None:
        """A tick has ended."""
        now = self._loop.time()
        for request in done:
            if isinstance(request, Close):
                self._used.pop(request.slot, None)
            else:
                self._used[request.slot] = now

    def explain(self, slot) -> None:
        """Raise StateError if the slot was closed for this reason."""
        if isinstance(slot, int) and slot in self._recent:
            raise StateError(
                f"slot {slot} was closed after {self.seconds:g} s without a step: open a new slot, or restore the "
                "snapshot that on_evict was given"
            )

    def _look(self) -> None:
        """Begin to close the streams whose time is over, and look again later."""
        limit = self._loop.time() - self.seconds
        for slot in [s for s, used in self._used.items() if used <= limit]:
            request = self.close(slot)
            if request is not None:
                request.future.add_done_callback(lambda future, slot=slot: self._closed(slot, future))
                self._closing[slot] = request
        self._timer = self._loop.call_later(max(self.seconds / 4, 0.001), self._look)

    def _closed(self, slot: int, future: asyncio.Future) -> None:
        """A stream was closed; or not, because a step came or the caller closed it in the pool."""
        request = self._closing.pop(slot, None)
        if future.cancelled():
            return
        self._used.pop(slot, None)
        error = future.exception()
        if error is not None:
            if request is not None and request.taken and isinstance(error, StreamError):
                logger.error(
                    "slot %d was being closed after %g s without a step: its snapshot is lost: %s",
                    slot,
                    self.seconds,
                    error,
                )
            return
        self.evicted += 1
        self._recent[slot] = None
        if len(self._recent) > MOST_EVICTED:
            del self._recent[next(iter(self._recent))]
        logger.info("slot %d closed after %g s without a step", slot, self.seconds)
        if self.on_evict is not None:
            task = self._loop.create_task(_call(self.on_evict, slot, future.result()))
            self._calls.add(task)  # the loop itself keeps only a weak reference
            task.add_done_callback(lambda task: self._called(slot, task))

    def _called(self, slot: int, task: asyncio.Task) -> None:
        """A call of on_evict has ended."""
        self._calls.discard(task)
        self._stopping.discard(task)
        if task.cancelled():
            logger.error("on_evict was cancelled for slot %d: its snapshot is lost", slot)


async def _call(on_evict: Callable[[int, bytes], Any], slot: int, snapshot: bytes) -> None:
    """Call on_evict, and wait for what it returns."""
    try:
        result = on_evict(slot, snapshot)
        if inspect.isawaitable(result):
            await result
    except Exception:
        logger.exception("on_evict failed for slot %d: its snapshot is lost", slot)
