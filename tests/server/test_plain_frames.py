"""The frames that the server reads and writes without the library: the same messages, however the bytes are cut, and
the same refusals."""

import gc
import os
import struct
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
pytest.importorskip("websockets", reason="no websockets: pip install 'fastrnn[serve]'")
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, OPEN, SERVER, Protocol

from fastrnn.serving.server import direct

pytestmark = pytest.mark.any_isa
MOST = 70_000
SIZES = st.sampled_from([0, 1, 4, 125, 126, 127, 2304, 65535, 65536, MOST])


class Connection(direct.Protocol):
    """The server's side after the handshake, with lists for the application and the socket."""

    def __init__(self, plain=True):
        self.conn = Protocol(SERVER, state=OPEN, max_size=MOST)
        self.config = SimpleNamespace(ws_max_size=MOST)
        self.received, self.sent, self.texts, self.by_library = [], [], [], 0
        self.sink = lambda data: self.received.append(bytes(data))
        self.frames, self.close_sent, self.read_paused = [], False, False
        self.transport = SimpleNamespace(write=self.sent.append, is_closing=lambda: False)
        if not plain:
            self._is_between = lambda: False

    def handle_events(self):
        self.by_library += 1
        super().handle_events()

    def handle_text(self, event):
        self.texts.append(bytes(event.data))

    def handle_ping(self):
        self.transport.write(b"".join(self.conn.data_to_send()))

    def handle_cont(self, event):
        self.frames.append(event.data)
        if event.fin:
            self.send_receive_event_to_app()

    def handle_parser_exception(self):
        self.refused = self.conn.close_sent.code if self.conn.close_sent else type(self.conn.parser_exc).__name__


def wire(*frames):
    """Masked bytes, as a client sends them."""
    return b"".join(frame.serialize(mask=True) for frame in frames)


def message(kind, size, pieces=2):
    """(frames, what the application gets) of one message."""
    data = os.urandom(size)
    if kind == "plain":
        return [Frame(Opcode.BINARY, data)], [data]
    if kind == "ping":
        return [Frame(Opcode.PING, data[:125])], []
    if kind == "text":
        return [Frame(Opcode.TEXT, data.hex().encode()[:1000])], []
    cuts = [data[i * size // pieces : (i + 1) * size // pieces] for i in range(pieces)]
    first = [Frame(Opcode.BINARY, cuts[0], fin=False), Frame(Opcode.PING, b"between")]
    return first + [Frame(Opcode.CONT, c, fin=i == pieces - 1) for i, c in enumerate(cuts[1:], 1)], [data]


@given(st.data())
def test_messages_arrive_whole_and_in_order_however_the_bytes_are_cut(data):
    kinds = st.tuples(st.sampled_from(["plain", "plain", "plain", "ping", "text", "fragments"]), SIZES)
    frames, expected = [], []
    for kind, size in data.draw(st.lists(kinds, min_size=1, max_size=6)):
        some, told = message(kind, size)
        frames += some
        expected += told
    stream = wire(*frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    ours, library = Connection(), Connection(plain=False)
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if end > begin:
            ours.data_received(stream[begin:end])
            library.data_received(stream[begin:end])
    assert ours.received == library.received == expected
    assert ours.texts == library.texts
    assert library.by_library == len({*cuts, len(stream)} - {0})  # else the test would compare a way with itself
    assert b"".join(ours.sent) == b"".join(library.sent)  # the answers to pings


def test_whole_messages_do_not_go_through_the_library():
    """Else the other tests would show nothing."""
    connection = Connection()
    connection.data_received(wire(*(Frame(Opcode.BINARY, os.urandom(n)) for n in (0, 100, 2304, 60_000))))
    assert len(connection.received) == 4
    assert not connection.by_library


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(wire(Frame(Opcode.BINARY, bytes(MOST + 1))), id="too large"),
        pytest.param(struct.pack("!BBQ", 0x82, 0xFF, 1 << 40) + bytes(40), id="too large, length of 64 bits"),
        pytest.param(Frame(Opcode.BINARY, b"abcd1234").serialize(mask=False), id="not masked"),
        pytest.param(bytes([0xC2, 0x84]) + bytes(8), id="compressed, and that was not agreed"),
        pytest.param(wire(Frame(Opcode.CONT, b"abcd1234")), id="continues nothing"),
        pytest.param(wire(Frame(Opcode.BINARY, b"a", fin=False), Frame(Opcode.BINARY, b"b")), id="begins in another"),
    ],
)
def test_what_is_wrong_is_refused_as_the_library_refuses_it(bad):
    good = wire(Frame(Opcode.BINARY, b"good"))
    ours, library = Connection(), Connection(plain=False)
    for connection in (ours, library):
        connection.data_received(good)
        connection.data_received(bad)
    assert ours.received == library.received == [b"good"]
    assert ours.refused == library.refused
    assert ours.refused in (1002, 1009)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 100_000])
@pytest.mark.parametrize("first", [direct.BINARY, direct.TEXT])
def test_what_is_sent_is_what_the_library_sends(first, size):
    data = os.urandom(size) if first == direct.BINARY else b"x" * size
    connection = Connection()
    connection.send_plain(first, data)
    frame = Frame(Opcode.BINARY if first == direct.BINARY else Opcode.TEXT, data)
    assert b"".join(connection.sent) == frame.serialize(mask=False)
    client = Protocol(CLIENT, state=OPEN, max_size=None)
    client.receive_data(b"".join(connection.sent))
    (received,) = client.events_received()
    assert bytes(received.data) == data


def test_the_answer_to_a_ping_that_is_not_written_yet_comes_first():
    connection = Connection()
    connection.conn.receive_data(wire(Frame(Opcode.PING, b"p")))
    connection.send_plain(direct.BINARY, b"answer")
    pong = Frame(Opcode.PONG, b"p").serialize(mask=False)
    assert b"".join(connection.sent) == pong + Frame(Opcode.BINARY, b"answer").serialize(mask=False)


@pytest.mark.parametrize("cut", [False, True])
def test_what_comes_behind_a_close_is_dropped(cut):
    """In another read too, as TLS may pass on: the library's parser waits for the next frame to drop it."""
    ours, library = Connection(), Connection(plain=False)
    good, rest = wire(Frame(Opcode.BINARY, b"good")), wire(Frame(Opcode.BINARY, b"late"))
    for connection in (ours, library):
        connection.handle_close = lambda event: None
        connection.data_received(good + wire(Frame(Opcode.CLOSE, struct.pack("!H", 1000))) + rest * (not cut))
        connection.data_received(rest)
    assert ours.received == library.received == [b"good"]


def test_a_connection_that_ends_meanwhile_takes_no_more():
    """What is behind a message that ended the short way is the library's."""
    connection = Connection()

    def once(data):
        connection.received.append(bytes(data))
        connection.sink = None

    connection.sink = once
    taken = []
    connection.send_receive_event_to_app = lambda: taken.append(bytes(connection.frames[0]))
    connection.data_received(wire(Frame(Opcode.BINARY, b"one"), Frame(Opcode.BINARY, b"two")))
    assert connection.received == [b"one"]
    assert taken == [b"two"]


def test_frames_leave_nothing_to_the_garbage_collector():
    connection = Connection()
    stream = wire(Frame(Opcode.BINARY, bytes(2304)))
    gc.collect()
    gc.disable()
    try:
        for _ in range(200):
            connection.data_received(stream)
            connection.send_plain(direct.BINARY, b"abcd")
        assert gc.collect() < 20
    finally:
        gc.enable()
