"""Hostile clients of gRPC and WebSockets, and slow ones: another client's sequence goes on all the while."""

import base64
import contextlib
import os
import socket
import struct
import zlib

import numpy as np
import pytest
from running import Running, ask, until

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
grpc = pytest.importorskip("grpc", reason="no grpc: pip install 'fastrnn[serve]'")
from attacked import Victim, head, send, status  # noqa: E402

from fastrnn.serving import Limits  # noqa: E402
from fastrnn.serving.server import connections  # noqa: E402
from fastrnn.serving.server.faults import Fault  # noqa: E402
from fastrnn.serving.server.messages import message  # noqa: E402
from fastrnn.serving.server.wire import Malformed, check_large, parser  # noqa: E402

pytestmark = pytest.mark.any_isa
STREAM = "/v2/models/m/stream"


@pytest.fixture
def unharmed(served):
    """After an attack the other client goes on, and its server answers."""
    yield served
    assert ask(served, "GET", "/v2/health/live")[0] == 200
    served.victim.goes_on()


def request(**fields):
    made = message("ModelInferRequest")(model_name="m", **fields)
    made.inputs.add(name="x", datatype="FP32", shape=(1, 5))
    made.raw_input_contents.append(bytes(20))
    return made


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number, data):
    """A field of bytes."""
    return varint(number << 3 | 2) + varint(len(data)) + data


class TestGrpc:
    @pytest.fixture
    def call(self, unharmed):
        """(code, details) of bytes sent to a method."""
        options = [("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 1 << 20)]
        with grpc.insecure_channel(f"127.0.0.1:{unharmed.grpc}", options=options) as channel:

            def called(data, method="ModelInfer", **more):
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(data, timeout=60, **more)
                return caught.value.code().name, caught.value.details()

            yield called

    @pytest.mark.parametrize(
        "data",
        [
            b"\xff",
            b"\x0a\xff",
            b"\x0a\x7f",
            b"\x08",
            np.random.default_rng(17).bytes(100),
            b"\x0a\x01\xff",
            field(5, b"\x0a\xff"),
            b"\x1b" * 99,
        ],
    )
    def test_garbage(self, call, data):
        code, text = call(data)
        assert code == "INVALID_ARGUMENT"
        assert "the message is not a ModelInferRequest" in text
        assert call(data, "ModelMetadata")[0] in ("INVALID_ARGUMENT", "NOT_FOUND")

    def test_garbage_on_a_stream(self, unharmed):
        with grpc.insecure_channel(f"127.0.0.1:{unharmed.grpc}") as channel:
            call = channel.stream_stream(
                "/inference.GRPCInferenceService/ModelStreamInfer",
                response_deserializer=message("ModelStreamInferResponse").FromString,
            )
            given = [b"\xff", request(id="r").SerializeToString()]
            texts = [answer.error_message for answer in call(iter(given), timeout=60)]
        assert texts[0].startswith("INVALID_ARGUMENT: the message is not a ModelInferRequest")
        assert "[batch, time, 5] expected" in texts[1]  # the stream goes on

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            (field(5, b"") * (20 << 20), "may have 4096 fields"),  # each takes 50 times as much in memory
            (field(6, b"") * 100_000, "may have 4096 fields"),
            (field(4, b"") * 100_000, "may have 4096 fields"),
            (field(7, b"") * 100_000, "may have 4096 fields"),
            (
                field(5, field(5, field(3, bytes(5 << 20)))),
                "bytes besides raw_input_contents",
            ),  # int64_contents: 8 times
            (b"\x0b" * 70_000, "of kind 3"),
            (b"\xff" * 70_000, "middle of a number"),
            (field(1, b"m") + b"\x2a" + varint(1 << 60) + bytes(70_000), "besides raw_input_contents"),
        ],
    )
    def test_messages_that_would_grow(self, call, data, says):
        code, text = call(data)
        assert code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
        assert says in text

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"shape": (-1, -5)}, "shape must be"),
            ({"shape": (1 << 39,) * 8}, "more than 2**40"),
            ({"shape": (1,) * 5000}, "shape must be"),
            ({"datatype": "FP31"}, "datatype must be"),
            ({"datatype": "BYTES"}, "dtype float32 expected"),
            ({"datatype": "FP64"}, "takes 40 bytes, got 20"),
            ({"name": "y" * 10_000}, "lacks the input 'x'"),
            ({"name": "\0\x1b[31m"}, "lacks the input 'x'"),
        ],
    )
    def test_tensors(self, call, change, says):
        made = request()
        if "shape" in change:
            del made.inputs[0].shape[:]
            made.inputs[0].shape.extend(change["shape"])
        else:
            for name, value in change.items():
                setattr(made.inputs[0], name, value)
        made.parameters["sequence_id"].int64_param = 1
        made.parameters["sequence_start"].bool_param = True
        code, text = call(made.SerializeToString())
        assert code == "INVALID_ARGUMENT"
        assert says in text
        assert len(text) < 1000

    def test_bombs(self, call):
        for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            code, text = call(bytes(80 << 20), compression=algorithm)
            assert code == "RESOURCE_EXHAUSTED"
            assert "larger than max" in text

    def test_metadata(self, call):
        code, _ = call(request().SerializeToString(), metadata=[("x", "y" * 200_000)])
        assert code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL")

    def test_methods(self, call):
        for method in ("RepositoryModelLoad", "../ModelInfer", "x" * 1000):
            assert call(b"", method)[0] == "UNIMPLEMENTED"

    def test_bounds_do_not_touch_what_is_small_or_raw(self):
        made = request()
        made.raw_input_contents[0] = bytes(30 << 20)
        data = made.SerializeToString()
        assert parser("ModelInferRequest")(data) == made
        check_large(data)
        wrong = parser("ModelInferRequest")(b"\xff")
        assert isinstance(wrong, Malformed)
        with pytest.raises(Fault, match="middle of a number"):
            check_large(b"\x08")


class Raw:
    """A WebSocket by its frames."""

    def __init__(self, port, extensions=""):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        more = {"Sec-WebSocket-Extensions": extensions} if extensions else {}
        self.socket.sendall(
            head(
                STREAM, "GET", Connection="Upgrade", Upgrade="websocket", **more,
                **{"Sec-WebSocket-Key": key, "Sec-WebSocket-Version": "13"},
            )
        )  # fmt: skip
        self.answer = self.socket.recv(4096)

    def frame(self, opcode, data=b"", fin=True, mask=True, length=None):
        """Send a frame. length: the one it tells."""
        size = len(data) if length is None else length
        first = opcode | (128 if fin else 0)
        bit = 128 if mask else 0
        if size < 126:
            start = struct.pack("!BB", first, bit | size)
        elif size < 1 << 16:
            start = struct.pack("!BBH", first, bit | 126, size)
        else:
            start = struct.pack("!BBQ", first, bit | 127, size)
        self.socket.sendall(start + (bytes(4) if mask else b"") + data)

    def code(self):
        """The close code that comes; 1006 if the connection ends without one."""
        got, at = b"", -1
        with contextlib.suppress(OSError):
            while not 0 <= at <= len(got) - 4 and (data := self.socket.recv(1 << 16)):
                got += data
                at = got.rfind(b"\x88")
        self.socket.close()
        return struct.unpack("!H", got[at + 2 : at + 4])[0] if 0 <= at <= len(got) - 4 else 1006


class TestWebSockets:
    @pytest.fixture
    def raw(self, unharmed):
        made = Raw(unharmed.http)
        assert status(made.answer) == 101
        yield made
        made.socket.close()

    @pytest.mark.parametrize(
        ("sent", "code"),
        [
            ([(3, b"")], 1002),  # a reserved opcode
            ([(0x42, b"")], 1002),  # compressed, which was not agreed
            ([(0, b"x")], 1002),  # nothing goes on
            ([(2, b"x", False), (2, b"x")], 1002),
            ([(9, bytes(126))], 1002),  # a long control frame
            ([(9, b"", False)], 1002),
            ([(8, b"x")], 1002),
            ([(8, b"\xff\xff")], 1002),
            ([(2, b"", True, True, 1 << 40)], 1009),
            ([(2, b"", True, True, 1 << 63)], 1009),
            ([(2, bytes(20), True, False)], 1002),  # without a mask
            ([(1, b"\xff\xfe")], 1007),
            ([(1, b"{}")], 1007),
            ([(2, b"")], 1007),
            ([(2, bytes(19))], 1007),
        ],
    )
    def test_wrong_frames(self, raw, sent, code):
        for given in sent:
            raw.frame(*given)
        assert raw.code() in (code, 1006)

    def test_fragments(self, raw):
        raw.frame(2, bytes(4), fin=False)
        for _ in range(3):
            raw.frame(0, bytes(4), fin=False)
        raw.frame(0, bytes(4))
        assert b'"steps_done":1' in raw.socket.recv(4096)
        with contextlib.suppress(OSError):
            raw.frame(2, b"", fin=False)
            raw.socket.sendall(b"\x00\x80\0\0\0\0" * 200_000)
        assert raw.code() == 1006

    def test_messages_that_are_not_whole(self, model, frames):
        """16 of the largest may be here; small ones come all the same; nothing of them stays."""
        with Running({"m": model}, limits=Limits(message_bytes=1 << 20)) as server:
            every, raws = server.server._http.connections, [Raw(server.http) for _ in range(24)]
            for raw in raws:
                with contextlib.suppress(OSError):
                    raw.frame(2, bytes(1_000_000), length=1 << 20)
            until(lambda: len(every.open) <= 16)
            until(lambda: every.held >= 16_000_000)  # all of those that stay has come
            assert len(every.open) == 16
            assert every.held <= (16 << 20) + 100_000
            small = Raw(server.http)
            small.frame(2, frames[0].tobytes()[:7], length=20)
            small.socket.sendall(frames[0].tobytes()[7:])
            assert b'"steps_done":1' in small.socket.recv(4096)
            protocols = list(every.open)
            for raw in [*raws, small]:
                raw.socket.close()
            until(lambda: not every.open)
            until(lambda: not every.held)
            assert not any(p.conn.reader.buffer for p in protocols)

    def test_pings_whose_answers_are_not_read(self, raw):
        with contextlib.suppress(OSError):
            raw.socket.sendall((b"\x89\xfd" + bytes(4) + bytes(125)) * 200_000)
        assert raw.code() == 1006

    def test_some_pings(self, raw):
        for _ in range(5):
            raw.frame(9, b"hello")
        got = b""
        while got.count(b"\x8a\x05hello") < 5:
            got += raw.socket.recv(4096)

    def test_compression_is_not_agreed_on(self, unharmed):
        made = Raw(unharmed.http, "permessage-deflate")
        assert status(made.answer) == 101
        assert b"permessage-deflate" not in made.answer.lower()
        packed = zlib.compressobj(9, wbits=-15)
        made.frame(0x42, packed.compress(bytes(100 << 20)) + packed.flush(zlib.Z_SYNC_FLUSH))
        assert made.code() in (1002, 1006)

    def test_denied_handshakes_are_quiet(self, unharmed):
        key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13", "Upgrade": "websocket"}
        for path, origin, expected in (
            (STREAM + "?input=x", {}, 400),
            ("/v2/models/none/stream", {}, 404),
            (STREAM, {"Origin": "https://evil.example"}, 403),
        ):
            answer = send(unharmed.http, head(path, "GET", **{**key, **origin, "Connection": "Upgrade"}))
            assert status(answer) == expected
        assert "handshake" not in "".join(unharmed.log)


class TestSlow:
    """With bounds of tenths of a second instead of tens of seconds."""

    @pytest.fixture
    def server(self, model, frames, alone, monkeypatch):
        for name in ("HEADER_SECONDS", "REQUEST_SECONDS", "STUCK_SECONDS", "CLOSE_SECONDS"):
            monkeypatch.setattr(connections, name, 0.4)
        monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
        with Running({"m": model}) as server:
            victim = Victim(server.grpc, frames, alone)
            victim.start()
            victim.goes_on()
            yield server
            assert ask(server, "GET", "/v2/health/live")[0] == 200
            victim.goes_on()
            victim.ended = True
            victim.join(60)
            victim.channel.close()

    @pytest.mark.parametrize(
        ("begin", "expected"),
        [
            (b"", 408),
            (b"GET /v2 HTTP/1.1\r\nHost: a\r\n", 408),
            (b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\nGET /", 200),
            (head(Content_Length="100", Connection="keep-alive") + b"{", None),
        ],
    )
    def test_requests(self, server, begin, expected):
        """They are ended though something comes all the time."""
        got = b""
        with socket.create_connection(("127.0.0.1", server.http), timeout=0.05) as connection:
            connection.sendall(begin)
            for _ in range(600):
                try:
                    data = connection.recv(4096)
                    got += data
                    if not data:
                        break
                except TimeoutError:
                    with contextlib.suppress(OSError):
                        connection.sendall(b"x" if begin else b"")
                except ConnectionError:
                    break
            else:
                pytest.fail("the connection was not ended")
        assert not got if expected is None else status(got) == expected
        if expected == 200:
            assert b"408" in got

    def test_a_client_that_reads_nothing(self, server, frames):
        """Its connection is dropped, and its sequence ends with it."""
        raw = Raw(server.http)
        chunk = np.repeat(frames, 50, axis=0).tobytes()
        with contextlib.suppress(OSError):
            raw.socket.settimeout(30)
            for _ in range(200):
                raw.frame(2, chunk)
        until(lambda: list(server.sequences.live) == ["victim"])
        raw.socket.close()

    @pytest.mark.parametrize(("data", "fin", "length"), [(bytes(10), True, 20), (bytes(20), False, None)])
    def test_a_message_that_does_not_end(self, server, data, fin, length):
        raw = Raw(server.http)
        raw.frame(2, data, fin=fin, length=length)
        assert raw.code() == 1006

    def test_idle_connections(self, server):
        held = [socket.create_connection(("127.0.0.1", server.http), timeout=30) for _ in range(200)]
        until(lambda: not server.server._http.server_state.connections)
        for connection in held:
            connection.close()
