"""One sequence over a WebSocket: frames in, answers out. For browsers and telephony gateways.

A binary message holds a whole number of steps, float32 or int16, little-endian. Its answer is JSON, or the elements of
all outputs, float32, in the model's order.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from . import bodies, tensors
from .engine import Engine
from .faults import Fault, invalid
from .hosted import Reply, Request
from .http import client_of

INPUTS = {"float32": ("<f4", 1.0), "int16": ("<i2", 1 / 32768)}  # dtype on the wire, factor
OUTPUTS = ("json", "binary")
WRONG_DATA, TRY_LATER, GOING_AWAY, FAILED = 1007, 1013, 1001, 1011
MOST_OPEN = 64  # answers of a connection that are not written yet
OF_CODE = {"INVALID_ARGUMENT": WRONG_DATA, "UNAVAILABLE": TRY_LATER, "RESOURCE_EXHAUSTED": TRY_LATER}


def route(engine: Engine, origins: frozenset[str]) -> WebSocketRoute:
    """The endpoint. origins: pages of other hosts that may connect."""

    async def endpoint(socket: WebSocket) -> None:
        if not _may(socket, origins):
            await _denied(socket, 403, f"pages of {socket.headers.get('origin')!r:.200} may not connect here")
            return
        try:
            session = Session(engine, socket)
        except Fault as fault:
            engine.refused(fault, socket.path_params["model"])
            await _denied(socket, fault.status, str(fault))
            return
        await socket.accept()
        await session.run()

    return WebSocketRoute("/v2/models/{model}/stream", endpoint)


class Session:
    """A connection that was accepted.

    Raises
    ------
    Fault : the model or an option of the query is unknown.
    """

    def __init__(self, engine: Engine, socket: WebSocket):
        self.engine, self.socket = engine, socket
        self.hosted = engine.hosted(socket.path_params["model"])
        asked = socket.query_params
        self.kind = _choice(asked, "input", tuple(INPUTS))
        self.binary = _choice(asked, "output", OUTPUTS) == "binary"
        version = asked.get("version", "")
        lane = self.hosted.sequences.lanes.get(self.hosted.version(version))
        if lane is None or len(lane.inputs) != 1 or lane.inputs[0].dtype != "float32":
            raise invalid(f"'{self.hosted.name}' must run step by step on one float32 input to be streamed here")
        self.version, self.input = version, lane.inputs[0]
        name = asked.get("sequence_id", "")
        self.named = bool(name)
        self.id = name or f"websocket-{uuid.uuid4()}"
        self.start = not self.named or asked.get("sequence_start", "1") in ("1", "true")
        self.answers: asyncio.Queue = asyncio.Queue(MOST_OPEN)

    async def run(self) -> None:
        """Read messages until the end; answers go back in their order meanwhile."""
        writer = asyncio.ensure_future(self._write())
        try:
            await self._read()
            await self.answers.put(None)
            await writer
        except WebSocketDisconnect:
            pass
        finally:
            writer.cancel()
            while not self.answers.empty():
                left = self.answers.get_nowait()
                if isinstance(left, asyncio.Future):
                    left.cancel()
            await self._leave()

    async def _read(self) -> None:
        """Admit each message as the sequence has room. Ends at a message that is wrong."""
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            try:
                request = self._request(message.get("bytes"))
            except Fault as fault:
                await self.answers.put(fault)
                return
            await self.engine.room(request)
            task = asyncio.ensure_future(self.engine.infer(request))
            await asyncio.sleep(0)  # it takes its place in the queue
            await self.answers.put(task)

    def _request(self, data: bytes | None) -> Request:
        """The steps of a message."""
        if data is None:
            raise invalid("a message must be binary: steps of " + self._form())
        dtype, factor = INPUTS[self.kind]
        one = int(np.prod(self._features(), dtype=np.int64)) * np.dtype(dtype).itemsize
        if not data or len(data) % one:
            raise invalid(f"a message must be a whole number of steps of {one} bytes, {self._form()}, got {len(data)}")
        x = np.frombuffer(data, dtype).reshape(1, -1, *self._features()).astype(np.float32)
        parameters: dict[str, Any] = {"sequence_id": self.id, "sequence_start": self.start}
        self.start = False
        if factor != 1.0:
            x *= np.float32(factor)
        return Request(self.hosted.name, self.version, "", parameters, {self.input.name: x}, (), client_of(self.socket))

    def _form(self) -> str:
        return f"{self.kind} {list(self._features())}"

    def _features(self) -> tuple[int, ...]:
        features = self.input.features
        if not all(isinstance(n, int) for n in features):
            raise invalid(f"'{self.hosted.name}' leaves the size of a step open, so messages can't be cut into steps")
        return features

    async def _write(self) -> None:
        while (answer := await self.answers.get()) is not None:
            try:
                reply = await answer if isinstance(answer, asyncio.Future) else answer
                if isinstance(reply, Fault):
                    raise reply
            except Fault as fault:
                self.engine.refused(fault, self.hosted.name)
                await self.socket.send_text(json.dumps({"error": str(fault)}))
                await self.socket.close(OF_CODE.get(fault.code, FAILED))
                return
            if self.binary:
                await self.socket.send_bytes(b"".join(tensors.to_bytes(v) for v in reply.outputs.values()))
            else:
                await self.socket.send_text(_text(reply))

    async def _leave(self) -> None:
        """A sequence without a name ends with its connection."""
        if not self.named and self.id in self.hosted.sequences.live:
            await self.hosted.sequences.finish(self.id)


def _text(reply: Reply) -> str:
    """A reply as JSON."""
    outputs = {name: bodies.numbers(v[0] if v.ndim > 1 else v) for name, v in reply.outputs.items()}
    first, done = reply.parameters["step_index"], reply.parameters["steps_done"]
    return json.dumps({"step_index": first, "steps_done": done, "outputs": outputs}, separators=(",", ":"))


def _choice(asked: Any, name: str, known: tuple[str, ...]) -> str:
    value = asked.get(name, known[0])
    if value not in known:
        raise invalid(f"{name} must be {' or '.join(known)}, got {value!r:.40}")
    return value


def _may(socket: WebSocket, origins: frozenset[str]) -> bool:
    """Whether the page that connects is of this server, or of an allowed one. Programs send no Origin."""
    origin = socket.headers.get("origin")
    return origin is None or origin in origins or urlsplit(origin).netloc == socket.headers.get("host")


async def _denied(socket: WebSocket, status: int, text: str) -> None:
    """Answer the handshake with a status of HTTP."""
    await socket.send_denial_response(JSONResponse({"error": text}, status))
