"""Binary messages of a WebSocket, passed from uvicorn's protocol to the sequence and back within one call each.

A queue, a task and two futures for each message, as ASGI and a coroutine need, take four times as long as a step of a
small model. The handshake, texts, errors and closing go the long way, through `websocket.Session`, and so does
everything if single messages are logged or paced.

The frames of the short way are read and written in `_plain` if they are plain: binary, not compressed, not in
fragments, and received at once. The library's parser, a generator in Python for each part of a frame, reads all others;
for every message it would take as long as the step of Silero VAD. Messages of one step go on from there without Python,
too.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import OPEN
from websockets.streams import StreamReader

from ._plain import BINARY, TEXT, PlainSteps, frame, read_plain
from .faults import Fault, failure
from .sequence import Answer, Call, Sequence, Work
from .sequences import Sequences

logger = logging.getLogger("fastrnn")

KEY = "fastrnn.websocket"  # in the scope: the protocol of the connection
BETWEEN_FRAMES = StreamReader.at_eof.__code__  # where the library's parser waits then


class Protocol(WebSocketsSansIOProtocol):
    """Gives binary messages to `sink`, if that is set."""

    sink: Callable[[bytes], None] | None = None
    plain: PlainSteps | None = None  # gets the messages that it takes instead of `sink`
    writes: Callable[[], None] | None = None  # called when the socket takes more
    lost: Callable[[], None] | None = None  # called when the connection has gone
    _between = False  # known to be: the library's parser waits for the first byte of a message

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if "scope" in self.__dict__:
            self.scope[KEY] = self  # type: ignore[typeddict-unknown-key]

    def data_received(self, data: bytes) -> None:
        if self.sink is not None and data[0] == BINARY and self.conn.state is OPEN:  # else the library drops it
            if not self._between:
                self._between = self._is_between()
            if self._between:
                data = read_plain(self, data)
        if data:
            self._between = False
            super().data_received(data)

    def _is_between(self) -> bool:
        """Whether the library's parser waits for the first byte of a message."""
        parser = self.conn.parser
        while (inner := getattr(parser, "gi_yieldfrom", None)) is not None:  # after the handshake it is one deeper
            parser = inner
        return parser.gi_code is BETWEEN_FRAMES and self.conn.current_size is None

    def quick(self) -> bool:
        """Whether a message may be written without the library."""
        conn = self.conn
        return not (conn.writes or conn.extensions) and conn.state is OPEN

    def send_plain(self, first: int, data: bytes) -> None:
        """Send a whole message. first: BINARY or TEXT."""
        if self.quick():
            self.transport.write(frame(first, data))
            return
        conn = self.conn
        (conn.send_binary if first == BINARY else conn.send_text)(data)
        self.transport.write(b"".join(conn.data_to_send()))

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
    plain : for messages of one step, if the model has such

    Attributes
    ----------
    running : admitted, without an answer; a sequence answers in order
    later : messages that came when there was no room; and plain steps that came while another message ran. About as
        many as the queue of a sequence has
    fault : that of a message; those before it are still to be answered
    drained : a future that waits until all are answered
    sequence : that of the first message; a later one of its id is not this connection's
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
        plain: PlainSteps | None = None,
    ):
        self.protocol, self.sequences, self.id, self.most = protocol, sequences, id, most
        self.call, self.encode, self.failed, self.plain = call, encode, failed, plain
        self._first = TEXT if text else BINARY
        self.running: deque[Work | PlainSteps] = deque()
        self.later: deque[bytes] = deque()
        self.fault: Fault | None = None
        self.drained: asyncio.Future | None = None
        self.sequence: Sequence | None = None
        self._most_later = min(most, sequences.options.queue_size)
        self._ended, self._right = False, True
        self._waiter: asyncio.Task | None = None
        protocol.sink, protocol.writes, protocol.lost = self._message, self._go_on, self.close
        if plain is not None:
            plain.direct, protocol.plain = self, plain

    async def drain(self, *, later: bool = True) -> bool:
        """Take no more messages; returns when those that came are answered. later: even those that wait for room.

        Returns
        -------
        Whether all were answered: none was wrong or failed, and the client has not gone.
        """
        self.protocol.sink = None
        if not later:
            room = self.sequences.options.queue_size if self.running else 0
            while len(self.later) > room:
                self.later.pop()
        self._go_on()
        if self.running or self.later:
            self.drained = asyncio.get_running_loop().create_future()
            await self.drained
        self._stop()
        return self._right

    def close(self) -> None:
        """The connection has gone: its requests are withdrawn."""
        self._stop()
        self.protocol.lost = None
        self._right &= not (self.running or self.later)
        self.later.clear()
        if self._waiter is not None:
            self._waiter.cancel()
        left, self.running = self.running, deque()
        self._tell_drained()
        for work in left:  # the end of one may refuse those behind it
            self.sequences.withdraw(work)

    def _stop(self) -> None:
        self._ended = True
        self.protocol.sink = self.protocol.plain = self.protocol.writes = None

    def _message(self, data: bytes) -> None:
        """A message has come, and is no plain step that can begin."""
        room = self._room()
        if room and not self.later and not (self.running and self._may_be_plain(data)):
            self._admit(data)
            return
        self.later.append(data)
        if not room or len(self.later) >= self._most_later:
            self._pause()
        self._wait_for_room()

    def _may_be_plain(self, data: bytes) -> bool:
        """Whether a message has the size of a plain step. It waits here as the bytes that it is."""
        return self.plain is not None and len(data) == self.plain.size

    def _room(self) -> bool:
        """Whether one more message may be admitted: its answer can be kept, its sequence has room, and it is not
        answered before those that run, which may be of an older generation of the id."""
        if len(self.running) >= self.most or not (self.sequences.has_room(self.id) and self.protocol.writable.is_set()):
            return False
        return not self.running or self.sequences.live.get(self.id) in (None, *self.running[-1].rows)

    def _wait_for_room(self) -> None:
        """If no answer to come and no room in the socket will call `_go_on`, wait for that of the sequence."""
        if self.later and not self.running and self._waiter is None and self.protocol.writable.is_set():
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

    def queue(self) -> None:
        """The messages that wait here wait in the queue of the sequence from now on, as far as it has room: a server
        that ends answers those."""
        while self.later and not self._ended and self._room():
            self._admit(self.later.popleft())

    def _go_on(self) -> None:
        """Admit what waits, as there is room, and read on."""
        while self.later and not self._ended and self._room():
            if self._may_be_plain(self.later[0]):
                if self.running:
                    break
                if self.plain.post(self.later[0]):
                    self.later.popleft()
                    break
            self._admit(self.later.popleft())
        if self._ended:
            return
        self._wait_for_room()
        if not self.later and self.protocol.read_paused and not self.protocol.transport.is_closing():
            self.protocol.read_paused = False
            self.protocol.transport.resume_reading()

    def _admit(self, data: bytes) -> None:
        if self.fault is not None:
            return
        try:
            work = self.sequences.post(self.call(data), self.answer)
        except Exception as error:  # such as a Fault or MemoryError: what follows must not go on without this message
            self.fault = failure(error, "message")
            if self.fault.code == "INTERNAL":
                logger.exception("a message could not be taken")
            if not self.running:
                self._fail()
            return
        if self.plain is not None:
            self.plain.started = True
        if self.sequence is None and work.rows:
            self.sequence = work.rows[0]
        if not work.settled:
            self.running.append(work)

    def answer(self, answer: Answer | Fault) -> None:
        """The oldest message is answered. A Fault may be that of a later one, whose sequence has ended while an older
        one runs, or that of the message which is being admitted."""
        if isinstance(answer, Fault):
            self._refuse(answer, next((i for i, w in enumerate(self.running) if w.settled), len(self.running)))
        elif self.running:  # else it is closed
            self.running.popleft()
            if self.sends():
                try:
                    self.send(answer)
                except Exception:
                    self.unsent()
        self.answered()

    def _refuse(self, fault: Fault, at: int) -> None:
        """End the connection by the Fault of a message when those before it are answered. at: its place in `running`"""
        works = list(self.running)
        self.fault, self.running = fault, deque(works[:at])
        for work in works[at + 1 :]:  # they would go on from a state that lacks this message
            self.sequences.withdraw(work)

    def unsent(self) -> None:
        """An answer could not be written, and those after it would be taken for it: the connection ends."""
        logger.exception("an answer could not be written")
        works, self.running = self.running, deque()
        self.fault = Fault("INTERNAL", "failed", "the step was taken, and its answer could not be written")
        for work in works:
            self.sequences.withdraw(work)

    def answered(self) -> None:
        """Go on after an answer."""
        if self.fault is not None and not self.running:
            self._fail()
        if self.later and not self._ended:
            self._go_on()
        self._tell_drained()

    def _tell_drained(self) -> None:
        """Go on with `drain` if nothing is left."""
        if self.drained is not None and not (self.running or self.later or self.drained.done()):
            self.drained.set_result(None)

    def sends(self) -> bool:
        """Whether the client can still be answered."""
        protocol = self.protocol
        return not (protocol.close_sent or protocol.disconnected or protocol.transport.is_closing())

    def send(self, answer: Answer) -> None:
        """Send the answer to a message."""
        self.protocol.send_plain(self._first, self.encode(answer))

    def _fail(self) -> None:
        fault, self.fault = self.fault, None
        if not self._ended:
            self._stop()
            self._right = False
            self.later.clear()
            self.failed(fault)
            self._tell_drained()
