"""A stream of requests whose answers go back in the order of the requests, while all of them run as they come.

Requests for sequences take the short way: one call into the queue, and one call back when the tick is over. A task and
the futures of a coroutine would cost more than the step of a small model. Everything else is a task of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from .engine import Engine
from .faults import Fault
from .hosted import Reply, Request


class Pending:
    """A request and, later, its result.

    cancel : called if the stream ends first
    many : it is one of many sequences
    """

    __slots__ = ("cancel", "item", "many", "result", "stream")

    def __init__(self, item: Any, stream: Stream):
        self.item, self.stream, self.many = item, stream, False
        self.result: Reply | Fault | None = None
        self.cancel: Callable[[], Any] | None = None

    def tell(self, result: Reply | Fault) -> None:
        """The request is answered. No cycle of objects is left to Python's garbage collector: what `cancel` holds has
        this method, and the tracebacks of a Fault have this."""
        self.result, self.cancel = result, None
        if isinstance(result, Fault):
            result.__traceback__ = result.__cause__ = result.__context__ = None
        self.stream.answered(self)


class Stream:
    """One stream.

    Parameters
    ----------
    engine : Engine
    read : message -> Request. Fault: it is wrong
    most : requests that may be without an answer; no more is read meanwhile
    """

    def __init__(self, engine: Engine, read: Callable[[Any], Request], most: int):
        self.engine, self.read, self.most = engine, read, most
        self._open: deque[Pending] = deque()
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._running = self._many = 0  # requests that are not answered, and those of many sequences among them
        self._ended = False
        self._long: set[asyncio.Task] = set()  # requests that took the long way

    async def answers(self, items: AsyncIterator[Any]) -> AsyncGenerator[tuple[Any, Reply | Fault], None]:
        """(message, result) of each message, in their order."""
        reader = asyncio.ensure_future(self._read(items))
        try:
            while not (self._ended and not self._open):
                self._news.clear()
                while self._open and self._open[0].result is not None:
                    pending = self._open.popleft()
                    self._room.set()
                    yield pending.item, pending.result
                if not self._ended or self._open:
                    await self._news.wait()
            await reader  # its error, if it has one
        finally:
            reader.cancel()
            for pending in self._open:
                if pending.cancel is not None:
                    pending.cancel()

    def answered(self, pending: Pending) -> None:
        """A request has its result."""
        self._running -= 1
        self._many -= pending.many
        self._news.set()
        self._room.set()

    async def _room_for(self, pending: Pending, request: Request) -> None:
        """Wait until the sequences of a request may have one more."""
        pending.many = "SEQUENCE_IDS" in request.inputs
        self._many += pending.many
        if not self.engine.has_room(request):
            await self.engine.room(request)
        # To look at thousands of queues for each message would cost more than its steps. No queue has more requests of
        # this stream than are without an answer.
        while self._many and self._running > self.engine.options.queue_size:
            self._room.clear()
            await self._room.wait()

    async def _read(self, items: AsyncIterator[Any]) -> None:
        try:
            async for item in items:
                pending = Pending(item, self)
                self._running += 1
                try:
                    request = self.read(item)
                    if self.engine.clients.paced:
                        await self.engine.clients.pace(request.client)
                    await self._room_for(pending, request)
                    self._begin(pending, request)
                    if self._long:
                        await asyncio.sleep(0)  # a task takes its place in the queue
                    while len(self._long) >= self.engine.options.queue_size:  # they may all be of one sequence
                        await asyncio.wait(self._long, return_when=asyncio.FIRST_COMPLETED)
                except Fault as fault:
                    pending.tell(fault)
                self._open.append(pending)
                self._news.set()
                while len(self._open) >= self.most:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._ended = True
            self._news.set()

    def _begin(self, pending: Pending, request: Request) -> None:
        if self.engine.unwatched and not self._long:  # else it could overtake a request of its sequence
            withdraw = self.engine.post(request, pending.tell)
            if withdraw is not None:
                if pending.result is None:
                    pending.cancel = withdraw
                return
        task = asyncio.ensure_future(self._infer(pending, request))
        self._long.add(task)
        task.add_done_callback(self._long.discard)
        pending.cancel = task.cancel

    async def _infer(self, pending: Pending, request: Request) -> None:
        try:
            pending.tell(await self.engine.infer(request))
        except Fault as fault:
            pending.tell(fault)
        except Exception as error:
            pending.tell(Fault("INTERNAL", "failed", f"the request failed: {error}"))
            raise
