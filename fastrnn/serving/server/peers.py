"""The workers of one server: which of them has a sequence, and how the others reach it.

Each worker is a whole server, and all listen on the same ports. A sequence belongs to the worker that the hash of its
id names. A worker that gets a request for another one's sequence sends it there through a Unix socket, and the answer
back to the client: one hop, with the tensors as they are. docs/decisions/0034 has the reasons.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import struct
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import hops
from .faults import Fault
from .hosted import Reply, Request

if TYPE_CHECKING:
    from .engine import Engine

logger = logging.getLogger("fastrnn")
FRAME = struct.Struct("<IBQ")  # bytes that follow, kind, number of the request
REQUEST, CHECK, CALL, CANCEL, ANSWER, RESULT, FAULT = range(1, 8)
RETRY_SECONDS = 0.05  # between two tries to reach a worker
MEET_SECONDS = 20.0  # in which workers that are started together reach each other
AGAIN_SECONDS = 1.0  # after which a client may try again
CALL_SECONDS = 10.0  # in which another worker says what it counts


class Link(asyncio.Protocol):
    """A connection to another worker. got : called with (link, kind, number, payload); lost : with the link."""

    def __init__(self, got: Callable[[Link, int, int, bytes], None], lost: Callable[[Link], None]):
        self.got, self.lost = got, lost
        self.transport: Any = None
        self._data = b""
        self.open: dict[int, Any] = {}  # number -> what waits for its answer, or what withdraws it
        self.long: set[asyncio.Task] = set()  # requests in tasks of their own

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.lost(self)

    def send(self, kind: int, number: int, payload: bytes) -> None:
        """A frame."""
        self.transport.write(FRAME.pack(len(payload), kind, number) + payload)

    def data_received(self, data: bytes) -> None:
        data, at = self._data + data if self._data else data, 0
        while len(data) - at >= FRAME.size:
            size, kind, number = FRAME.unpack_from(data, at)
            end = at + FRAME.size + size
            if end > len(data):
                break
            self.got(self, kind, number, data[at + FRAME.size : end])
            at = end
        self._data = data[at:]


class Peers:
    """The workers, as one of them sees them.

    Parameters
    ----------
    folder : of their sockets, which this user alone may enter
    index, count : of this one, and of all
    """

    def __init__(self, folder: str | os.PathLike[str], index: int, count: int):
        self.folder, self.index, self.count = Path(folder), index, count
        self.waiting: Counter[tuple[str, int | str]] = Counter()  # (model, id) -> requests that are elsewhere
        self._links: dict[int, Link] = {}
        self._number = 0
        self._engine: Engine | None = None
        self._server: asyncio.AbstractServer | None = None
        self._keepers: list[asyncio.Task] = []
        self._calls: dict[str, Callable[..., Any]] = {}

    # -- life --
    async def start(self, engine: Engine, **calls: Callable[..., Any]) -> None:
        """Answer the others, and connect to them. calls: what they may ask, by name."""
        self._engine, self._calls = engine, calls
        path = self._path(self.index)
        path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Link(self._asked, self._left), path)
        others = [k for k in range(self.count) if k != self.index]
        self._keepers = [loop.create_task(self._keep(k)) for k in others]

    async def close(self) -> None:
        """Leave them."""
        for task in self._keepers:
            task.cancel()
        if self._server is not None:
            self._server.close()
        for link in list(self._links.values()):
            link.transport.abort()

    async def met(self) -> None:
        """Returns when all are reached, or have had their time to come."""
        end = asyncio.get_running_loop().time() + MEET_SECONDS
        while not self.ready() and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(RETRY_SECONDS)

    def ready(self) -> bool:
        """Whether all are reached."""
        return len(self._links) == self.count - 1

    def _path(self, k: int) -> Path:
        return self.folder / f"{k}.sock"

    async def _keep(self, k: int) -> None:
        """Connect to a worker, again whenever it is a new process."""
        loop = asyncio.get_running_loop()
        while True:
            ended = loop.create_future()
            try:
                _, link = await loop.create_unix_connection(
                    lambda ended=ended: Link(self._answered, lambda link: ended.done() or ended.set_result(None)),
                    str(self._path(k)),
                )
            except OSError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._links[k] = link
            await ended
            del self._links[k]
            text = (
                f"worker {k} ended before it answered. Whether the steps were taken shows if you send step_index again"
            )
            for told in list(link.open.values()):
                told(FAULT, hops.pack_fault(Fault("UNAVAILABLE", "worker", text, retry_after=AGAIN_SECONDS)))

    # -- who has what --
    def owner(self, id: int | str) -> int:
        """The worker of a sequence."""
        if isinstance(id, int):
            return (id * 0x9E3779B97F4A7C15 >> 32 & 0xFFFFFFFF) % self.count
        return zlib.crc32(id.encode("utf-8", "surrogatepass")) % self.count

    def mine(self, id: int | str) -> bool:
        """Whether it is this one."""
        return self.owner(id) == self.index

    # -- asking --
    def post(self, k: int, request: Request, tell: Callable[[Reply | Fault], None]) -> Callable[[], None]:
        """Have another worker run a request; as `Hosted.post`."""
        id = request.parameters.get("sequence_id", "")
        key = request.model, id if isinstance(id, (int, str)) else ""  # that of a wrong request can be any JSON

        def told(kind: int, payload: bytes) -> None:
            self._count(key, -1)
            tell(hops.unpack_reply(payload) if kind == ANSWER else hops.unpack_fault(payload))

        link, number = self._send(k, REQUEST, hops.pack_request(request), told)
        self._count(key, 1)

        def withdraw() -> None:
            if link.open.pop(number, None) is not None:
                self._count(key, -1)
                if not link.transport.is_closing():
                    link.send(CANCEL, number, b"")

        return withdraw

    async def infer(self, k: int, request: Request) -> Reply:
        """The reply of another worker. Fault: it is refused, or failed."""
        future = asyncio.get_running_loop().create_future()

        def tell(result: Reply | Fault) -> None:
            if not future.done():
                future.set_exception(result) if isinstance(result, Fault) else future.set_result(result)

        withdraw = self.post(k, request, tell)
        try:
            return await future
        except asyncio.CancelledError:
            withdraw()
            raise

    async def check(self, k: int, request: Request) -> int:
        """The version on which another worker would run a request. Fault: it would refuse it."""
        return json.loads(await self._result(k, CHECK, hops.pack_request(request)))

    async def call(self, k: int, name: str, *args: Any) -> Any:
        """What another worker answers to one of its calls. Fault: it refuses, or is not there."""
        asked = self._result(k, CALL, json.dumps([name, args]).encode())
        try:
            return json.loads(await asyncio.wait_for(asked, CALL_SECONDS))
        except asyncio.TimeoutError:
            text = f"worker {k} did not answer within {CALL_SECONDS:g} s: try again"
            raise Fault("UNAVAILABLE", "worker", text, retry_after=AGAIN_SECONDS) from None

    async def others(self, name: str, *args: Any) -> list[Any]:
        """What all others answer. Fault: one is not there."""
        return list(await asyncio.gather(*(self.call(k, name, *args) for k in range(self.count) if k != self.index)))

    def _send(self, k: int, kind: int, payload: bytes, told: Callable[[int, bytes], None]) -> tuple[Link, int]:
        link = self._links.get(k)
        if link is None or link.transport.is_closing():
            text = f"worker {k}, which has this sequence, is being started: try again after {AGAIN_SECONDS:g} s"
            raise Fault("UNAVAILABLE", "worker", text, retry_after=AGAIN_SECONDS)
        self._number += 1
        link.open[self._number] = told
        link.send(kind, self._number, payload)
        return link, self._number

    async def _result(self, k: int, kind: int, payload: bytes) -> bytes:
        future = asyncio.get_running_loop().create_future()

        def told(kind: int, payload: bytes) -> None:
            if not future.done():
                future.set_result((kind, payload))

        self._send(k, kind, payload, told)
        kind, payload = await future
        if kind == FAULT:
            raise hops.unpack_fault(payload)
        return payload

    def _answered(self, link: Link, kind: int, number: int, payload: bytes) -> None:
        told = link.open.pop(number, None)
        if told is not None:
            told(kind, payload)

    def _count(self, key: tuple[str, Any], more: int) -> None:
        self.waiting[key] += more
        if not self.waiting[key]:
            del self.waiting[key]

    # -- answering --
    def _asked(self, link: Link, kind: int, number: int, payload: bytes) -> None:
        if kind == CANCEL:
            withdraw = link.open.pop(number, None)
            if withdraw is not None:
                withdraw()
            return
        try:
            if kind == CALL:
                name, args = json.loads(payload)
                self._later(link, number, self._called(link, number, self._calls[name](*args)))
            elif kind == CHECK:
                request = hops.unpack_request(payload)
                self._later(link, number, self._called(link, number, self._check(request)))
            else:
                self._run(link, number, hops.unpack_request(payload))
        except Fault as fault:
            link.send(FAULT, number, hops.pack_fault(fault))

    def _run(self, link: Link, number: int, request: Request) -> None:
        assert self._engine is not None
        hosted = self._engine.hosted(request.model)
        answered = False

        def tell(result: Reply | Fault) -> None:
            nonlocal answered
            answered = True
            link.open.pop(number, None)
            if not link.transport.is_closing():
                failed = isinstance(result, Fault)
                payload = hops.pack_fault(result) if isinstance(result, Fault) else hops.pack_reply(result)
                link.send(FAULT if failed else ANSWER, number, payload)

        if not link.long:  # else it could overtake a request of its sequence
            withdraw = hosted.post(request, tell)
            if withdraw is not None:
                # A step that was taken before, or another index than the next one, is answered at once.
                if not answered:
                    link.open[number] = withdraw
                return

        async def infer() -> None:
            try:
                tell(await hosted.infer(request))
            except Fault as fault:
                tell(fault)

        self._later(link, number, infer())

    def _later(self, link: Link, number: int, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        link.long.add(task)
        link.open[number] = task.cancel
        task.add_done_callback(lambda task: self._ended(link, number, task))

    def _ended(self, link: Link, number: int, task: asyncio.Task) -> None:
        link.long.discard(task)
        link.open.pop(number, None)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a request of another worker failed", exc_info=task.exception())
            if not link.transport.is_closing():
                fault = Fault("INTERNAL", "failed", f"the request failed: {task.exception()}")
                link.send(FAULT, number, hops.pack_fault(fault))

    async def _called(self, link: Link, number: int, result: Any) -> None:
        try:
            result = await result if isinstance(result, Awaitable) else result
        except Fault as fault:
            link.send(FAULT, number, hops.pack_fault(fault))
            return
        link.send(RESULT, number, json.dumps(result).encode())

    async def _check(self, request: Request) -> int:
        assert self._engine is not None
        return await self._engine.hosted(request.model).check(request)

    def _left(self, link: Link) -> None:
        """The worker that asked has ended: its requests are withdrawn."""
        for withdraw in list(link.open.values()):
            withdraw()
