"""One sequence over a WebSocket: frames in, answers out. For browsers and telephony gateways.

A binary message holds a whole number of steps, float32 or int16, little-endian. Its answer is JSON, or the elements of
all outputs, float32, in the model's order. The text message END ends the sequence: its answer has what the model held
back, and the connection is closed.
"""

from __future__ import annotations

import asyncio
import json
import math
import uuid
from functools import cached_property
from typing import Any

import numpy as np
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from . import bodies, tensors
from ._plain import PlainSteps
from .direct import KEY, Direct
from .engine import Engine
from .faults import Fault, invalid
from .guard import SUBPROTOCOL
from .hosted import Reply, Request
from .http import client_of
from .sequence import Answer, Call, Sequence, checked_id, shown

INPUTS = {"float32": ("<f4", 1.0), "int16": ("<i2", 1 / 32768)}  # dtype on the wire, factor
OUTPUTS = ("json", "binary")
END = {"sequence_end": True}  # the JSON of the text that ends a sequence
DONE, WRONG_DATA, TRY_LATER, GOING_AWAY, REFUSED, FAILED = 1000, 1007, 1013, 1001, 1008, 1011
MOST_OPEN = 64  # answers of a connection that are not written yet
CLOSE_SECONDS = 2.0  # in which the connections are closed at the end of the server
OF_CODE = {
    "INVALID_ARGUMENT": WRONG_DATA,
    "UNAVAILABLE": TRY_LATER,
    "RESOURCE_EXHAUSTED": TRY_LATER,
    "NOT_FOUND": REFUSED,
    "ALREADY_EXISTS": REFUSED,
}


def route(engine: Engine) -> WebSocketRoute:
    """The endpoint."""

    async def endpoint(socket: WebSocket) -> None:
        try:
            session = Session(engine, socket)
        except Fault as fault:
            engine.refused(fault, socket.path_params["model"])
            await _denied(socket, fault.status, str(fault))
            return
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope.get("subprotocols", ()) else None)
        engine.connections.add(session)
        try:
            await session.run()
        finally:
            engine.connections.discard(session)

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
        if lane is None:
            raise self.hosted.no_sequences(version)
        if len(lane.inputs) != 1 or lane.inputs[0].dtype != "float32":
            raise invalid(f"'{self.hosted.name}' must run step by step on one float32 input to be streamed here")
        self.version, self.input, self.lane = version, lane.inputs[0], lane
        self.client = client_of(socket)
        name = asked.get("sequence_id", "")
        self.named = bool(name)
        self.id = name or f"websocket-{uuid.uuid4()}"
        while not self.named and not engine.mine(self.id):  # a sequence without a name is this worker's
            self.id = f"websocket-{uuid.uuid4()}"
        checked_id(self.id)
        self.start = _choice(asked, "sequence_start", ("1", "true", "0", "false")) in ("1", "true")
        if not (self.start or self.named):
            raise invalid("sequence_start=0 goes on with a sequence: name it by sequence_id")
        self.answers: asyncio.Queue = asyncio.Queue()
        self.room = asyncio.Semaphore(min(MOST_OPEN, engine.options.queue_size))
        self.reader: asyncio.Task | None = None
        self.direct: Direct | None = None
        self.sequence: Sequence | None = None  # that of the first message, if it took the long way

    async def run(self) -> None:
        """Read messages until the end; answers go back in their order meanwhile."""
        self._go_direct()
        self.reader = asyncio.ensure_future(self._read())
        writer = asyncio.ensure_future(self._write())
        try:
            await asyncio.wait({self.reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if self.reader.done() and (self.reader.cancelled() or self.reader.result()):
                await self._drain(later=False)
                self.answers.put_nowait(None)
                await asyncio.wait({writer})  # what was read is answered
        finally:
            if self.direct is not None:
                self.direct.close()
            for task in (self.reader, writer):
                task.cancel()
            await asyncio.gather(self.reader, writer, return_exceptions=True)
            self._drop()
            if not self.named:  # a sequence without a name ends with its connection
                await self.hosted.sequences.finish(self.id)

    def _drop(self) -> None:
        """Withdraw the messages that have no answer yet."""
        while not self.answers.empty():
            left = self.answers.get_nowait()
            if isinstance(left, asyncio.Future):
                left.cancel()

    def queue(self) -> None:
        """The server will take no more messages, and finishes what waits in its queues."""
        if self.direct is not None:
            self.direct.queue()

    def leave(self) -> None:
        """The server ends: answer what was read, and close."""
        if self.reader is not None:
            self.reader.cancel()

    async def _read(self) -> bool:
        """Admit each message as the sequence has room. Ends at a message that is wrong, True, or with the connection,
        False."""
        while True:
            await self.room.acquire()
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                return False
            text = message.get("text")
            if text is not None and _ends(text):
                await self._end()
                return True
            try:
                request = self._request(message.get("bytes"))
            except Fault as fault:
                await self._drain()
                self.answers.put_nowait(fault)
                return True
            await self.engine.clients.pace(request.client)
            await self.engine.room(request)
            self.answers.put_nowait(asyncio.ensure_future(self.engine.infer(request)))
            await asyncio.sleep(0)  # it takes its place in the queue

    async def _end(self) -> None:
        """End the sequence, if a message has started it and all that came are answered."""
        if not await self._drain():
            return  # the error of one goes back; or the client has gone
        if not self.start:
            parameters = {"sequence_id": self.id, "sequence_end": True}
            x = np.empty((1, 0, *self._features()), np.float32)
            request = Request(self.hosted.name, self.version, "", parameters, {self.input.name: x}, (), self.client)
            await self.engine.room(request)
            self.answers.put_nowait(asyncio.ensure_future(self.engine.infer(request)))
        self.answers.put_nowait(DONE)

    def _go_direct(self) -> None:
        """Let binary messages take the short way, if there is one."""
        protocol = self.socket.scope.get(KEY)
        if protocol is None or not self.engine.unwatched or not protocol.queue.empty():
            return
        if not self.engine.mine(self.id):
            return
        if not self.start and self.hosted.sequences.may_be_elsewhere(self.id):
            return
        encode = _bytes if self.binary else self._text
        hosted, failed = self.hosted.sequences, self.answers.put_nowait
        self.direct = Direct(
            protocol,
            hosted,
            self.id,
            self._call,
            encode,
            failed,
            text=not self.binary,
            most=MOST_OPEN,
            plain=self._plain(),
        )

    def _plain(self) -> PlainSteps | None:
        """For messages of one step, if each step has its answer."""
        if self.lane.plain is None:
            return None
        call = Call((self.id,), (False,), (False,), {}, client=self.client)
        int16 = self.kind == "int16"
        plain = PlainSteps(self.hosted.sequences, self.lane, call, int16=int16, binary=self.binary)
        plain.started = not self.start
        return plain

    async def _drain(self, *, later: bool = True) -> bool:
        """Answer what took the short way, as `Direct.drain`."""
        return self.direct is None or await self.direct.drain(later=later)

    def _request(self, data: bytes | None) -> Request:
        """The steps of a message."""
        if data is None:
            raise invalid(f"a message must be binary: steps of {self._form()}, or the text {json.dumps(END)}")
        parameters: dict[str, Any] = {"sequence_id": self.id, "sequence_start": self.start}
        self._check_same(self.sequence)
        x = self._steps(data)[None]
        self.start = False
        return Request(self.hosted.name, self.version, "", parameters, {self.input.name: x}, (), self.client)

    def _check_same(self, before: Sequence | None) -> None:
        """Fault: another client has started the sequence anew, so its steps are not those of this connection."""
        now = self.hosted.sequences.live.get(self.id)
        if before is not None and now is not None and now is not before:
            text = f"sequence {shown(self.id)} of this connection has ended: another client started one with its id"
            raise Fault("NOT_FOUND", "unknown_sequence", text)

    def _call(self, data: bytes) -> Call:
        """The same, on the short way."""
        assert self.direct is not None
        self._check_same(self.direct.sequence)
        x, checked = self._steps(data), None
        if len(x) == 1 and self.lane.even:
            checked = self.lane, [x[0]], 0
        inputs = {self.input.name: x[None] if checked is None else x}  # [1, features] is one step as well
        start, self.start = self.start, False
        version = self.hosted.version(self.version) if self.version else None
        return Call((self.id,), (start,), (False,), inputs, version=version, client=self.client, checked=checked)

    def _text(self, answer: Answer) -> bytes:
        """An answer as JSON: that to a single step has no axis of time yet."""
        arguments = self.hosted.sequences.lanes[answer.version].outputs
        outputs = {
            a.name: v[None] if a.timed and v.ndim == 1 + len(a.features) else v
            for a, v in ((a, answer.outputs[a.name]) for a in arguments if a.name in answer.outputs)
        }
        return _json(outputs, answer.first[0], answer.done[0]).encode()

    def _steps(self, data: bytes) -> np.ndarray:
        """The steps of a message, float32 [steps, features...]."""
        dtype, one, shape, factor = self._layout
        if not data or len(data) % one:
            raise invalid(f"a message must be a whole number of steps of {one} bytes, {self._form()}, got {len(data)}")
        x = np.frombuffer(data, dtype).reshape(shape)
        return x if factor == 1.0 else x.astype(np.float32) * np.float32(factor)

    @cached_property
    def _layout(self) -> tuple[np.dtype, int, tuple[int, ...], float]:
        """(dtype on the wire, bytes of a step, shape of a message, factor)."""
        name, factor = INPUTS[self.kind]
        dtype, features = np.dtype(name), self._features()
        return dtype, math.prod(features) * dtype.itemsize, (-1, *features), factor

    def _form(self) -> str:
        return f"{self.kind} {list(self._features())}"

    def _features(self) -> tuple[int, ...]:
        features = self.input.features
        if not all(isinstance(n, int) for n in features):
            raise invalid(f"'{self.hosted.name}' leaves the size of a step open, so messages can't be cut into steps")
        return features

    async def _write(self) -> None:
        """Send the answers until one is an error, the client has gone, or the server ends."""
        try:
            while (answer := await self.answers.get()) not in (None, DONE):
                reply = await answer if isinstance(answer, asyncio.Future) else answer
                if isinstance(reply, Fault):
                    raise reply
                if self.sequence is None:
                    self.sequence = self.hosted.sequences.live.get(self.id)
                if self.binary:
                    await self.socket.send_bytes(_bytes(reply))
                else:
                    first, done = reply.parameters["step_index"], reply.parameters["steps_done"]
                    await self.socket.send_text(_json(reply.outputs, first, done))
                self.room.release()
            if answer is None:
                await self.socket.close(GOING_AWAY, "this server ends")
            else:
                await self.socket.close(DONE)
        except Fault as fault:
            self._drop()
            self.engine.refused(fault, self.hosted.name)
            await self.socket.send_text(json.dumps({"error": str(fault)}))
            await self.socket.close(OF_CODE.get(fault.code, FAILED))
        except WebSocketDisconnect:
            pass


async def close_all(engine: Engine) -> None:
    """Close the connections at the end of the server, when what they have read is answered."""
    for session in engine.connections:
        session.leave()
    end = asyncio.get_running_loop().time() + CLOSE_SECONDS
    while engine.connections and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.01)


def _bytes(reply: Reply | Answer) -> bytes:
    """The elements of all outputs."""
    return b"".join([tensors.to_bytes(v) for v in reply.outputs.values()])


def _json(outputs: dict[str, np.ndarray], first: int, done: int) -> str:
    lists = {name: bodies.numbers(v[0] if v.ndim > 1 else v) for name, v in outputs.items()}
    return json.dumps({"step_index": first, "steps_done": done, "outputs": lists}, separators=(",", ":"))


def _ends(text: str) -> bool:
    """Whether a text message is END."""
    try:
        return len(text) < 100 and json.loads(text) == END
    except ValueError:
        return False


def _choice(asked: Any, name: str, known: tuple[str, ...]) -> str:
    value = asked.get(name, known[0])
    if value not in known:
        raise invalid(f"{name} must be {' or '.join(known)}, got {value!r:.40}")
    return value


async def _denied(socket: WebSocket, status: int, text: str) -> None:
    """Answer the handshake with a status of HTTP."""
    await socket.send_denial_response(JSONResponse({"error": text}, status))
