"""The short way of WebSockets where something goes wrong: each message has its answer, or the connection ends by an
error that is told; none is skipped, and no client waits for ever."""

import contextlib
import threading

import numpy as np
import pytest
from conftest import Running
from running import until
from test_websocket import opened, refusal, steps, unanswered

from fastrnn.errors import StreamError

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
pytest.importorskip("websockets", reason="no websockets: pip install 'fastrnn[serve]'")

from websockets.exceptions import ConnectionClosed

pytestmark = pytest.mark.any_isa


@pytest.fixture
def server(model):
    with Running({"m": model}) as server:
        yield server


@contextlib.contextmanager
def begun(server, frames, query="", sent=1):
    """A connection to the sequence "s", which has taken its first messages, of a step each."""
    with opened(server, "sequence_id=s" + query) as c:
        for t in range(sent):
            c.send(frames[t].tobytes())
            c.recv(timeout=20)
        yield c


@contextlib.contextmanager
def held(server):
    """No tick begins meanwhile."""
    free, holds = threading.Event(), threading.Event()
    server.sequences.lanes[1].batcher._worker.submit(lambda: (holds.set(), free.wait(60)))
    try:
        assert holds.wait(20)
        yield
    finally:
        free.set()


def direct_of(server):
    """That of the only connection."""
    (session,) = server.server.engine.connections
    return session.direct


def failing_once(function):
    """The function, whose first call runs out of memory."""
    failed = []

    def call(given):
        if not failed:
            failed.append(1)
            raise MemoryError
        return function(given)

    return call


def test_a_server_that_ends_answers_the_messages_that_wait_for_a_step(server, frames, alone):
    with begun(server, frames) as c:
        with held(server):
            for t in range(1, 20):
                c.send(frames[t].tobytes())
            until(lambda: unanswered(server) == [19])
            server.loop.call_soon_threadsafe(server._end.set)
            until(lambda: server.sequences.closing)
        for t in range(1, 20):
            assert np.array_equal(steps(c.recv(timeout=20))[1][0], alone[t])
        with pytest.raises(ConnectionClosed) as caught:
            c.recv(timeout=20)
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1001, "this server ends")


@pytest.mark.parametrize("behind", [1, 3], ids=["a step", "a chunk"])
def test_an_eviction_does_not_take_the_answer_of_the_step_that_runs(server, frames, alone, behind):
    with begun(server, frames) as c:
        with held(server):
            c.send(frames[1].tobytes())
            c.send(frames[2 : 2 + behind].tobytes())
            until(lambda: unanswered(server) == [2])
            evicted = server.start(server.sequences.evict("s"))
            until(lambda: "s" not in server.sequences.live)
        evicted.result(20)
        first, y = steps(c.recv(timeout=20))
        assert first == 1
        assert np.array_equal(y[0], alone[1])
        text, code = refusal(c)
    assert "was evicted" in text
    assert code == 1008


@pytest.mark.parametrize("size", [1, 3], ids=["a step", "a chunk"])
def test_an_answer_that_can_not_be_written_ends_the_connection(server, frames, size):
    """Those behind it would be taken for it."""
    with begun(server, frames) as c:
        direct = direct_of(server)
        direct.encode = failing_once(direct.encode)
        with held(server):
            for t in range(4):
                c.send(frames[t : t + size].tobytes())
            until(lambda: unanswered(server) == [4])
        text, code = refusal(c)
    assert "its answer could not be written" in text
    assert code == 1011


def test_a_message_that_can_not_be_taken_ends_the_connection(server, frames, alone):
    """Those behind it would go on from a state that lacks it."""
    with begun(server, frames) as c:
        direct = direct_of(server)
        direct.call = failing_once(direct.call)
        with held(server):
            for at, size in ((1, 1), (2, 1), (3, 2), (5, 2)):
                c.send(frames[at : at + size].tobytes())
            until(lambda: unanswered(server) == [4])
        for t in (1, 2):
            first, y = steps(c.recv(timeout=20))
            assert first == t
            assert np.array_equal(y[0], alone[t])
        text, code = refusal(c)
    assert "the message failed: not enough memory" in text
    assert code == 1013
    assert server.sequences.live["s"].steps == 3


@pytest.mark.parametrize("size", [1, 3], ids=["a step", "a chunk"])
def test_a_batcher_that_was_stopped_is_told(server, frames, monkeypatch, size):
    """The request fails before anybody knows that it runs."""

    def stopped(request):
        raise StreamError("the batcher was stopped")

    with begun(server, frames) as c, monkeypatch.context() as patch:
        patch.setattr(server.sequences.lanes[1].batcher, "_submit", stopped)
        c.send(frames[1 : 1 + size].tobytes())
        text, code = refusal(c)
    assert "the batcher was stopped" in text
    assert code == 1013


def test_a_generation_does_not_overtake_the_one_before_it(server, frames):
    """The id is started again by another client while a long chunk of this one runs."""
    long = np.concatenate([frames] * 5)
    with begun(server, frames, "&output=binary") as c, opened(server, "sequence_id=s") as other:
        with held(server):
            c.send(long.tobytes())
            until(lambda: sorted(unanswered(server)) == [0, 1])
            before = server.sequences.live["s"]
            other.send(frames[:2].tobytes())
            until(lambda: server.sequences.live["s"] is not before)
            c.send(frames[2:4].tobytes())
            until(lambda: sorted(unanswered(server)) == [1, 2])
        assert len(c.recv(timeout=20)) // 32 == len(long)
        text, code = refusal(c)
        assert "another client started one with its id" in text
        assert code == 1008


def test_messages_that_wait_are_as_many_as_the_queue_has(model, frames):
    """The others stay in the socket."""
    with Running({"m": model}, queue_size=2) as server, begun(server, frames, "&output=binary") as c:
        protocol = direct_of(server).protocol
        with held(server):
            for _ in range(3):
                c.send(frames[1].tobytes())
            until(lambda: protocol.read_paused)
            assert unanswered(server) == [3]
            for _ in range(30):
                c.send(frames[1].tobytes())
        for _ in range(33):
            assert len(c.recv(timeout=20)) == 32
        until(lambda: not protocol.read_paused)
