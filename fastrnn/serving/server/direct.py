"""Binary messages of a WebSocket, passed from uvicorn's protocol to the sequence and back within one call each.

A queue, a task and two futures for each message, as ASGI and a coroutine need, take four times as long as a step of a
small model. The handshake, texts, errors and closing go the long way, through `websocket.Session`, and so does
everything if single messages are logged or paced.

The frames of the short way are read and written here if they are plain: binary, not compressed, not in fragments, and
received at once. The library's parser, a generator in Python for each part of a frame, reads all others; for every
message it would take as long as the step of Silero VAD.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import apply_mask  # compiled, if the library is
from websockets.protocol import OPEN
from websockets.streams import StreamReader

from .faults import Fault
from .sequence import Answer, Call, Work
from .sequences import Sequences

KEY = "fastrnn.websocket"  # in the scope: the protocol of the connection
BINARY, TEXT = 0x82, 0x81  # the first byte of a whole message, without extensions (RFC 6455, section 5.2)
MASKED = 0x80  # in the second byte, beside the length
LENGTH_16, LENGTH_64 = 126, 127  # or what follows the second byte: so many bits with the length
BETWEEN_FRAMES = StreamReader.at_eof.__code__  # where the library's parser waits then


class Protocol(WebSocketsSansIOProtocol):
    """Gives binary messages to `sink`, if that is set."""

    sink: Callable[[bytes], None] | None = None
    writes: Callable[[], None] | None = None  # called when the socket takes more
    lost: Callable[[], None] | None = None  # called when the connection has gone

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if "scope" in self.__dict__:
            self.scope[KEY] = self  # type: ignore[typeddict-unknown-key]

    def data_received(self, data: bytes) -> None:
        if self.sink is not None and data[0] == BINARY and self._between():
            data = self._plain(data)
        if data:
            super().data_received(data)

    def _between(self) -> bool:
        """Whether the library's parser waits for the first byte of a message."""
        conn = self.conn
        waits = conn.parser.gi_yieldfrom
        return getattr(waits, "gi_code", None) is BETWEEN_FRAMES and conn.current_size is None

    def _plain(self, data: bytes) -> bytes:
        """Take the plain messages at the beginning; the rest."""
        most = self.config.ws_max_size
        at, size = 0, len(data)
        while self.sink is not None and size - at > 6 and data[at] == BINARY:
            length, mask = data[at + 1] - MASKED, at + 2
            if length == LENGTH_16:
                length, mask = data[at + 2] << 8 | data[at + 3], at + 4
            begin = mask + 4
            if not 0 <= length <= most or data[at + 1] == MASKED + LENGTH_64 or begin + length > size:
                break
            at = begin + length
            self.sink(apply_mask(data[begin:at], data[mask:begin]))
        return data[at:] if at else data

    def send_plain(self, first: int, data: bytes) -> None:
        """Send a whole message. first: BINARY or TEXT."""
        conn = self.conn
        if conn.writes or conn.extensions or conn.state is not OPEN:
            (conn.send_binary if first == BINARY else conn.send_text)(data)
            self.transport.write(b"".join(conn.data_to_send()))
            return
        size = len(data)
        if size < LENGTH_16:
            head = bytes((first, size))
        elif size < 1 << 16:
            head = struct.pack("!BBH", first, LENGTH_16, size)
        else:
            head = struct.pack("!BBQ", first, LENGTH_64, size)
        self.transport.write(head + data)

    def send_receive_event_to_app(self) -> None:
        if self.sink is None or self.close_sent or self.curr_msg_data_type == "text":
            super().send_receive_event_to_app()
            return
        data = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
        self.frames = []
        self.sink(data)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.writes is not None:
            self.writes()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.lost is not None:
            self.lost()


class Direct:
    """The messages of one connection.

    Parameters
    ----------
    protocol : that of the scope
    sequences : Sequences
    id : of the sequence
    call : the Call of a message. Fault: it is wrong
    encode : the bytes of an Answer; text : whether they are a text
    failed : called once with the Fault that ends the connection, when what came before it is answered
    most : messages that may be without an answer
    """

    def __init__(
        self,
        protocol: Any,
        sequences: Sequences,
        id: str,
        call: Callable[[bytes], Call],
        encode: Callable[[Answer], bytes],
        failed: Callable[[Fault], None],
        *,
        text: bool,
        most: int,
    ):
        self.protocol, self.sequences, self.id, self.most = protocol, sequences, id, most
        self.call, self.encode, self.failed = call, encode, failed
        self._first = TEXT if text else BINARY
        self._open: deque[Work] = deque()  # admitted, without an answer; a sequence answers in order
        self._later: deque[bytes] = deque()  # messages that came when there was no room
        self._fault: Fault | None = None
        self._ended, self._right = False, True
        self._drained: asyncio.Future | None = None
        self._waiter: asyncio.Task | None = None
        protocol.sink, protocol.writes, protocol.lost = self._message, self._go_on, self.close

    async def drain(self, *, later: bool = True) -> bool:
        """Take no more messages; returns when those that came are answered. later: even those that wait for room.

        Returns
        -------
        Whether all were answered: none was wrong or failed, and the client has not gone.
        """
        self.protocol.sink = None
        if not later:
            self._later.clear()
        self._go_on()
        if self._open or self._later:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
        self._stop()
        return self._right

    def close(self) -> None:
        """The connection has gone: its requests are withdrawn."""
        self._stop()
        self.protocol.lost = None
        self._right &= not (self._open or self._later)
        self._later.clear()
        if self._waiter is not None:
            self._waiter.cancel()
        left, self._open = self._open, deque()
        self._tell_drained()
        for work in left:  # the end of one may refuse those behind it
            self.sequences.withdraw(work)

    def _stop(self) -> None:
        self._ended = True
        self.protocol.sink = self.protocol.writes = None

    def _message(self, data: bytes) -> None:
        """A message has come."""
        if self._later or not self._room():
            self._later.append(data)
            self._pause()
            self._wait_for_room()
        else:
            self._admit(data)

    def _room(self) -> bool:
        """Whether one more message may be admitted: its answer can be kept and its sequence has room."""
        return len(self._open) < self.most and self.sequences.has_room(self.id) and self.protocol.writable.is_set()

    def _wait_for_room(self) -> None:
        """If no answer to come and no room in the socket will call `_go_on`, wait for that of the sequence."""
        if self._later and not self._open and self._waiter is None and self.protocol.writable.is_set():
            self._waiter = asyncio.ensure_future(self._wait())

    async def _wait(self) -> None:
        """Go on when there is room: the sequence's queue is full of messages of other connections."""
        await self.sequences.room(self.id)
        self._waiter = None
        self._go_on()

    def _pause(self) -> None:
        if not self.protocol.read_paused:
            self.protocol.read_paused = True
            self.protocol.transport.pause_reading()

    def _go_on(self) -> None:
        """Admit what waits, as there is room, and read on."""
        while self._later and not self._ended and self._room():
            self._admit(self._later.popleft())
        if self._ended:
            return
        self._wait_for_room()
        if not self._later and self.protocol.read_paused and not self.protocol.transport.is_closing():
            self.protocol.read_paused = False
            self.protocol.transport.resume_reading()

    def _admit(self, data: bytes) -> None:
        if self._fault is not None:
            return
        try:
            work = self.sequences.post(self.call(data), self._answer)
        except Fault as fault:
            self._fault = fault
            if not self._open:
                self._fail()
            return
        self._open.append(work)

    def _answer(self, answer: Answer | Fault) -> None:
        """The oldest message is answered."""
        if not self._open:  # closed
            return
        self._open.popleft()
        if isinstance(answer, Fault):
            self._fault = answer
            left, self._open = self._open, deque()
            for work in left:  # they would go on from a state that lacks this message
                self.sequences.withdraw(work)
        elif self._sends():
            self.protocol.send_plain(self._first, self.encode(answer))
        if self._fault is not None and not self._open:
            self._fail()
        if self._later and not self._ended:
            self._go_on()
        self._tell_drained()

    def _tell_drained(self) -> None:
        """Go on with `drain` if nothing is left."""
        if self._drained is not None and not (self._open or self._later or self._drained.done()):
            self._drained.set_result(None)

    def _sends(self) -> bool:
        protocol = self.protocol
        return not (protocol.close_sent or protocol.disconnected or protocol.transport.is_closing())

    def _fail(self) -> None:
        fault, self._fault = self._fault, None
        if not self._ended:
            self._stop()
            self._right = False
            self._later.clear()
            self.failed(fault)
            self._tell_drained()
