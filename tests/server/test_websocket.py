"""WebSocket with a real client: forms of frames, the life of a sequence, refusals and their codes, back pressure."""

import asyncio
import contextlib
import json
import socket
import struct
import threading

import numpy as np
import pytest
from conftest import Running
from running import ask, until

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
websockets = pytest.importorskip("websockets", reason="no websockets: pip install 'fastrnn[serve]'")
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from fastrnn.serving.server.direct import Direct  # noqa: E402

pytestmark = pytest.mark.any_isa


def opened(server, query="", model="m", **options):
    """A connection."""
    return connect(f"ws://127.0.0.1:{server.http}/v2/models/{model}/stream?{query}", **options)


class Raw:
    """A client that does as it likes with its socket."""

    def __init__(self, server, query=""):
        self.socket = socket.create_connection(("127.0.0.1", server.http))
        self.socket.sendall(
            f"GET /v2/models/m/stream?{query} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert self.socket.recv(4096).startswith(b"HTTP/1.1 101 ")

    def send(self, data):
        """A binary message, masked by zeros."""
        self.socket.sendall(bytes([0x82, 0xFE]) + struct.pack(">H", len(data)) + bytes(4) + data)

    def reset(self):
        """Close by RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def unanswered(server):
    """The messages of each connection that were read and have no answer."""
    return [len(c.direct.running) + len(c.direct.later) for c in server.server.engine.connections if c.direct]


def steps(text):
    """(step_index, outputs "y") of a JSON reply."""
    reply = json.loads(text)
    y = np.array(reply["outputs"]["y"], np.float32)
    assert reply["steps_done"] == reply["step_index"] + len(y)
    return reply["step_index"], y


def refusal(connection):
    """(the error, the code of the close) that a connection gets."""
    text = json.loads(connection.recv(timeout=20))["error"]
    with pytest.raises(ConnectionClosed) as caught:
        connection.recv(timeout=20)
    return text, caught.value.rcvd.code


class TestFrames:
    @pytest.mark.parametrize("size", [1, 7, 100])
    def test_float32_and_json(self, running, frames, alone, size):
        with opened(running) as c:
            for at in range(0, 300, size):
                c.send(frames[at : at + size].tobytes())
                first, y = steps(c.recv(timeout=20))
                assert first == at
                assert np.array_equal(y, alone[at : at + size])

    def test_int16_and_binary(self, running, model):
        pcm = np.random.default_rng(1).integers(-32768, 32768, (40, 5)).astype("<i2")
        wanted = model.stream().push(pcm.astype(np.float32) / np.float32(32768))
        with opened(running, "input=int16&output=binary") as c:
            for at in range(0, 40, 8):
                c.send(pcm[at : at + 8].tobytes())
                y = np.frombuffer(c.recv(timeout=20), "<f4").reshape(-1, 8)
                assert np.array_equal(y, wanted[at : at + 8])

    def test_messages_that_are_sent_at_once_are_answered_in_order(self, running, frames, alone):
        with opened(running) as c:
            for t in range(300):
                c.send(frames[t].tobytes())
            for t in range(300):
                first, y = steps(c.recv(timeout=20))
                assert first == t
                assert np.array_equal(y[0], alone[t])

    def test_a_message_in_fragments(self, running, frames, alone):
        with opened(running) as c:
            whole = frames[:9].tobytes()
            c.send([whole[:7], whole[7:50], whole[50:]])
            assert np.array_equal(steps(c.recv(timeout=20))[1], alone[:9])

    def test_nan_is_null(self, running):
        with opened(running) as c:
            c.send(np.full(5, np.nan, np.float32).tobytes())
            assert json.loads(c.recv(timeout=20))["outputs"]["y"] == [[None] * 8]

    def test_connections_share_nothing(self, running, frames, alone):
        with contextlib.ExitStack() as stack:
            many = [stack.enter_context(opened(running)) for _ in range(20)]
            for t in range(10):
                for c in many:
                    c.send(frames[t].tobytes())
                for c in many:
                    assert np.array_equal(steps(c.recv(timeout=20))[1][0], alone[t])
        until(lambda: not any(str(id).startswith("websocket-") for id in running.sequences.live), "a sequence is left")


class TestSequences:
    def test_a_named_one_outlives_its_connection(self, running, frames, alone):
        for part in range(3):
            with opened(running, f"sequence_id=call&sequence_start={int(part == 0)}") as c:
                c.send(frames[10 * part : 10 * part + 10].tobytes())
                first, y = steps(c.recv(timeout=20))
                assert first == 10 * part
                assert np.array_equal(y, alone[first : first + 10])
        assert "call" in running.sequences.live

    def test_a_name_is_a_text_of_any_characters(self, running, frames, alone):
        with opened(running, "sequence_id=5%20%C3%A4%2F&sequence_start=1") as c:
            c.send(frames[0].tobytes())
            assert np.array_equal(steps(c.recv(timeout=20))[1][0], alone[0])
        assert "5 ä/" in running.sequences.live
        assert 5 not in running.sequences.live

    def test_going_on_with_one_that_is_not_there(self, running, frames):
        with opened(running, "sequence_id=never&sequence_start=0") as c:
            c.send(frames[0].tobytes())
            text, code = refusal(c)
        assert "sequence never to model 'm' must specify the START flag" in text
        assert "this server started at" in text
        assert code == 1007

    def test_one_that_was_evicted(self, running, frames):
        with opened(running, "sequence_id=gone") as c:
            c.send(frames[0].tobytes())
            c.recv(timeout=20)
            running.do(running.sequences.evict("gone"))
            c.send(frames[1].tobytes())
            text, code = refusal(c)
        assert "was evicted, after 1 steps" in text
        assert code == 1008

    def test_a_client_that_vanishes(self, running, frames):
        """A reset of the connection ends its sequence if it has no name, even with the answers unread."""
        before = set(running.sequences.live)
        c = Raw(running)
        for _ in range(50):
            c.send(frames.tobytes())
        until(lambda: set(running.sequences.live) - before, "no sequence began")
        c.reset()
        until(lambda: set(running.sequences.live) <= before, "the sequence is left")
        until(lambda: not running.server.engine.connections, "the connection is left")

    def test_a_client_that_goes_after_a_refusal(self, running, frames):
        """What it sent behind the message that was refused must not keep the connection."""
        c = Raw(running, "sequence_id=unknown&sequence_start=0")
        for _ in range(200):
            c.send(frames[:3].tobytes())
        c.reset()
        until(lambda: not running.server.engine.connections, "the connection is left")


class TestRefusals:
    @pytest.mark.parametrize(
        ("query", "message", "text"),
        [
            ("", b"123", "a whole number of steps of 20 bytes, float32 [5], got 3"),
            ("", b"", "a whole number of steps of 20 bytes, float32 [5], got 0"),
            ("input=int16", bytes(20) + b"12", "a whole number of steps of 10 bytes, int16 [5], got 22"),
            ("", "text", "a message must be binary: steps of float32 [5]"),
        ],
    )
    def test_a_wrong_message(self, running, query, message, text):
        with opened(running, query) as c:
            c.send(message)
            error, code = refusal(c)
        assert text in error
        assert code == 1007

    def test_messages_before_the_wrong_one_are_answered(self, running, frames, alone):
        with opened(running) as c:
            for t in range(5):
                c.send(frames[t].tobytes())
            c.send(b"?")
            c.send(frames[5].tobytes())
            for t in range(5):
                assert np.array_equal(steps(c.recv(timeout=20))[1][0], alone[t])
            assert refusal(c)[1] == 1007

    @pytest.mark.parametrize(
        ("name", "query", "status", "text"),
        [
            ("none", "", 404, "there is no model 'none'"),
            ("m", "version=7", 404, "'m' has no version '7': it has 1"),
            ("m", "input=int8", 400, "input must be float32 or int16, got 'int8'"),
            ("m", "output=xml", 400, "output must be json or binary, got 'xml'"),
            ("m", "sequence_start=yes&sequence_id=a", 400, "sequence_start must be 1 or true or 0 or false, got 'yes'"),
            ("m", "sequence_start=0", 400, "sequence_start=0 goes on with a sequence: name it by sequence_id"),
            ("m", "sequence_id=" + "a" * 1025, 400, "sequence_id is longer than 1024 bytes"),
            ("two", "", 400, "'two' must run step by step on one float32 input to be streamed here"),
        ],
    )
    def test_a_handshake(self, running, name, query, status, text):
        with pytest.raises(InvalidStatus) as caught:
            opened(running, query, name)
        response = caught.value.response
        assert response.status_code == status
        assert text in json.loads(response.body)["error"]

    @pytest.mark.parametrize("origin", ["https://example.com", "null", "http://127.0.0.1:1"])
    def test_a_page_of_another_host(self, running, origin):
        with pytest.raises(InvalidStatus) as caught:
            opened(running, origin=origin)
        assert caught.value.response.status_code == 403

    def test_a_page_of_this_server(self, running, frames):
        with opened(running, origin=f"http://127.0.0.1:{running.http}") as c:
            c.send(frames[0].tobytes())
            assert c.recv(timeout=20)

    def test_a_server_that_is_full(self, serve, model, frames):
        with serve({"m": model}, max_sequences=1) as server, opened(server) as one, opened(server) as two:
            one.send(frames[0].tobytes())
            one.recv(timeout=20)
            two.send(frames[0].tobytes())
            text, code = refusal(two)
            assert "1 live sequences of at most 1; try again after 1 s" in text
            assert code == 1013
            one.send(frames[1].tobytes())
            assert one.recv(timeout=20)

    def test_a_step_that_fails_is_the_last(self, serve, model, frames, alone, monkeypatch):
        """What the client had sent behind it must not go on with a state that lacks the step."""
        with serve({"m": model}) as server:
            with opened(server, "sequence_id=a") as c:
                c.send(frames[0].tobytes())
                c.recv(timeout=20)
                lane, free, fails = server.sequences.live["a"].lane, threading.Event(), [RuntimeError("broken")]
                step = lane.pool.step

                def failing(*args):
                    if fails:
                        raise fails.pop()
                    return step(*args)

                monkeypatch.setattr(lane.pool, "step", failing)
                busy = server.start(lane.call(free.wait, 30))
                server.do(asyncio.sleep(0))  # it has begun
                for t in range(1, 20):
                    c.send(frames[t].tobytes())
                until(lambda: unanswered(server) == [19], "not all was read")
                free.set()
                busy.result(30)
                text, code = refusal(c)
            assert ("the step failed: broken" in text, code) == (True, 1011)
            until(lambda: server.sequences.live["a"].at_rest, "the sequence never came to rest")
            assert server.sequences.live["a"].steps == 1
            with opened(server, "sequence_id=a&sequence_start=0") as c:
                c.send(frames[1].tobytes())
                assert np.array_equal(steps(c.recv(timeout=20))[1][0], alone[1])


class TestPressure:
    def test_a_client_that_does_not_read_is_not_read_from(self, running, frames, alone):
        """The server holds a bounded number of its messages; the rest stays in its socket, and nothing is lost."""
        before, c, sent = set(running.sequences.live), Raw(running, "output=binary"), 0
        c.socket.settimeout(3.0)
        with contextlib.suppress(TimeoutError):
            while sent < 20_000:
                c.send(frames.tobytes())
                sent += 1
        assert sent < 20_000
        (id,) = set(running.sequences.live) - before
        assert running.sequences.live[id].steps < sent * len(frames)
        assert len(running.sequences.live[id].waiting) <= 33
        with opened(running) as other:  # others are served meanwhile
            other.send(frames[0].tobytes())
            assert np.array_equal(steps(other.recv(timeout=20))[1][0], alone[0])
        c.reset()
        until(lambda: id not in running.sequences.live, "the sequence is left")
        until(lambda: not running.server.engine.connections, "the connection is left")

    def test_connections_of_one_sequence_take_turns(self, serve, model, frames):
        """Its queue is full of the others' messages again and again, and each goes on."""
        with serve({"m": model}, queue_size=1) as server, contextlib.ExitStack() as stack:
            with opened(server, "sequence_id=shared") as first:
                first.send(frames[0].tobytes())
                first.recv(timeout=20)
            query = "sequence_id=shared&sequence_start=0&output=binary"
            many = [stack.enter_context(opened(server, query)) for _ in range(4)]
            got = [0] * len(many)

            def listen(i):
                for _ in range(400):
                    many[i].recv(timeout=30)
                    got[i] += 1

            threads = [threading.Thread(target=listen, args=(i,)) for i in range(len(many))]
            for thread in threads:
                thread.start()
            for _ in range(400):
                for c in many:
                    c.send(frames[1].tobytes())
            for thread in threads:
                thread.join(60)
            assert got == [400] * 4
            assert server.sequences.live["shared"].steps == 1601


class TestEnd:
    def test_a_server_that_stops_answers_what_it_read_and_says_so(self, serve, model, frames, alone):
        with serve({"m": model}) as server, opened(server, "sequence_id=a") as c, opened(server) as idle:
            for t in range(20):
                c.send(frames[t].tobytes())
            assert steps(c.recv(timeout=20))[0] == 0
            until(lambda: server.sequences.live["a"].steps == 20, "not all was read")
            server.loop.call_soon_threadsafe(server._end.set)
            for t in range(1, 20):
                assert np.array_equal(steps(c.recv(timeout=20))[1][0], alone[t])
            for connection in (c, idle):
                with pytest.raises(ConnectionClosed) as caught:
                    connection.recv(timeout=20)
                assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1001, "this server ends")


@pytest.fixture(scope="module")
def watched(model):
    """A server whose messages take the long way."""
    with Running({"m": model}, access_log="text") as server:
        assert not server.server.engine.unwatched
        yield server


class TestTheLongWay:
    """Without the short way of `direct`, as with an access log or another uvicorn, connections say the same."""

    @pytest.mark.parametrize("output", ["json", "binary"])
    def test_both_ways_say_the_same(self, running, watched, frames, output):
        sizes = [1, 1, 5, 1, 70, 2]
        found = []
        for server in (running, watched):
            with opened(server, f"output={output}") as c:
                at = 0
                for size in sizes:
                    c.send(frames[at : at + size].tobytes())
                    at += size
                found.append([c.recv(timeout=20) for _ in sizes])
        assert found[0] == found[1]

    def test_an_error_comes_after_what_was_sent_before_it(self, running, watched, frames, alone):
        for server in (running, watched):
            for wrong in (b"12345", "a text"):
                with opened(server) as c:
                    for t in range(20):
                        c.send(frames[t].tobytes())
                    c.send(wrong)
                    for t in range(20):
                        assert np.array_equal(steps(c.recv(timeout=20))[1][0], alone[t])
                    text, code = refusal(c)
                    assert "a message must be" in text
                    assert code == 1007

    def test_messages_take_the_short_way(self, running, frames, monkeypatch):
        """The queue of ASGI carries no binary message."""
        seen = []
        before = Direct._admit
        monkeypatch.setattr(Direct, "_admit", lambda self, data: seen.append(len(data)) or before(self, data))
        with opened(running) as c:
            c.send(frames[0].tobytes())
            c.recv(timeout=20)
        assert seen == [20]

    def test_a_full_queue_stops_reading_and_goes_on(self, running, frames, alone):
        """Of two connections that share a sequence, one fills its queue: the other waits, and is not refused."""
        with opened(running, "sequence_id=shared") as a:
            a.send(frames[0].tobytes())
            a.recv(timeout=20)
            with opened(running, "sequence_id=shared&sequence_start=0") as b:
                for _ in range(60):
                    a.send(frames[:130].tobytes())
                for _ in range(60):
                    b.send(frames[:1].tobytes())
                done = [steps(c.recv(timeout=30)) for c in (a, b) for _ in range(60)]
        firsts = {first: len(y) for first, y in done}
        at = 1
        while at < 1 + 60 * 131:  # their steps follow each other without a gap
            at += firsts.pop(at)
        assert not firsts

    @pytest.mark.parametrize("query", ["", "sequence_id=named"])
    def test_a_client_that_goes_before_its_sequence_is_open_leaves_no_error(self, model, frames, caplog, query):
        """With START, all requests behind it are refused while the connection is being left."""
        with Running({"m": model}) as server:
            sequences, connections = server.sequences, server.server.engine.connections
            held = threading.Event()
            sequences.lanes[1].batcher._worker.submit(held.wait, 60)  # the slot can't be opened meanwhile
            try:
                c = Raw(server, query)
                for t in range(12):
                    c.send(frames[t].tobytes())
                until(lambda: unanswered(server) == [12], "nothing waits")
                c.reset()
                until(lambda: not connections, "the connection is not left")
            finally:
                held.set()
            until(lambda: not sequences.live, "a sequence is left")
        assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == []


def test_a_request_that_is_not_upgraded(model):
    """A proxy that passes on no Upgrade makes such ones."""
    with Running({"m": model}) as server:
        status, answer, _ = ask(server, "GET", "/v2/models/m/stream")
    assert status == 404
    assert "a WebSocket is here; a proxy in front must pass on the headers Upgrade and Connection" in answer["error"]
