"""Messages of one step, which compiled code passes from the frame to the engine: with all that can come between."""

import gc
import random
import threading

import numpy as np
import pytest
from conftest import Running
from running import until
from test_websocket import Raw, opened, refusal, steps

from fastrnn.errors import StreamError

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
pytest.importorskip("websockets", reason="no websockets: pip install 'fastrnn[serve]'")

from fastrnn.serving.server import direct
from fastrnn.serving.server._plain import PlainSteps

pytestmark = pytest.mark.any_isa


@pytest.fixture
def ways(monkeypatch):
    """How many messages went through Direct._admit, and how many reads were taken in place."""
    seen = {"admitted": 0, "read": 0}
    admit, read = direct.Direct._admit, direct.read_plain

    def admitted(self, data):
        seen["admitted"] += 1
        return admit(self, data)

    def read_in_place(protocol, data):
        seen["read"] += 1
        return read(protocol, data)

    monkeypatch.setattr(direct.Direct, "_admit", admitted)
    monkeypatch.setattr(direct, "read_plain", read_in_place)
    return seen


def test_a_client_that_waits_for_each_answer_is_served_in_place(running, frames, alone, ways):
    """Behind a real handshake too: the parser of the library is another one there."""
    with opened(running) as c:
        for t in range(20):
            c.send(frames[t].tobytes())
            first, y = steps(c.recv(timeout=20))
            assert first == t
            assert np.array_equal(y[0], alone[t])
    assert ways == {"admitted": 1, "read": 20}


@pytest.mark.parametrize("seed", range(6))
def test_any_mix_of_messages_has_the_bits_of_a_lone_stream(running, model, seed):
    rng = random.Random(seed)
    form, output = rng.choice(["float32", "int16"]), rng.choice(["json", "binary"])
    pcm = np.random.default_rng(seed).integers(-32768, 32768, (300, 5)).astype("<i2")
    x = pcm.astype(np.float32) / np.float32(32768)
    wanted, sent = model.stream().push(x), pcm if form == "int16" else x
    with opened(running, f"input={form}&output={output}") as c:
        at, unanswered = 0, []

        def receive():
            begin, end = unanswered.pop(0)
            answer = c.recv(timeout=20)
            if output == "json":
                first, y = steps(answer)
                assert first == begin
            else:
                y = np.frombuffer(answer, "<f4").reshape(-1, 8)
            assert np.array_equal(y, wanted[begin:end])

        while at < 250:
            size = rng.choice([1, 1, 1, 1, 3, 40])
            data = sent[at : at + size].tobytes()
            c.send([data[:7], data[7:]] if rng.random() < 0.1 else data)
            unanswered.append((at, at + size))
            at += size
            while unanswered and rng.random() < 0.6:
                receive()
        while unanswered:
            receive()
        c.send('{"sequence_end": true}')
        c.recv(timeout=20)
    until(lambda: not any(str(id).startswith("websocket-") for id in running.sequences.live))


def test_two_connections_of_one_sequence(running, frames):
    """Their steps follow each other without a gap, whichever comes first."""
    with opened(running, "sequence_id=both") as a:
        a.send(frames[0].tobytes())
        a.recv(timeout=20)
        with opened(running, "sequence_id=both&sequence_start=0") as b:
            for _ in range(100):
                a.send(frames[0].tobytes())
                b.send(frames[1].tobytes())
            firsts = sorted(steps(c.recv(timeout=20))[0] for c in (a, b) for _ in range(100))
    assert firsts == list(range(1, 201))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("log", ["off", "text"])
def test_a_sequence_that_another_client_starts_anew(model, frames, alone, size, log):
    """A connection has one sequence: what is left of its messages must not step the one that came after."""
    with Running({"m": model}, access_log=log) as server, opened(server, "sequence_id=again") as a:
        for t in range(3):
            a.send(frames[t].tobytes())
            a.recv(timeout=20)
        with opened(server, "sequence_id=again") as b:
            b.send(frames[0].tobytes())
            assert steps(b.recv(timeout=20))[0] == 0
            a.send(frames[5 : 5 + size].tobytes())
            text, code = refusal(a)
            assert "sequence again of this connection has ended: another client" in text
            assert code == 1008
            b.send(frames[1].tobytes())
            first, y = steps(b.recv(timeout=20))
    assert first == 1
    assert np.array_equal(y[0], alone[1])


def test_a_sequence_that_was_evicted(running, frames):
    with opened(running, "sequence_id=gone") as c:
        for t in range(3):
            c.send(frames[t].tobytes())
            c.recv(timeout=20)
        running.do(running.sequences.evict("gone"))
        c.send(frames[3].tobytes())
        text, code = refusal(c)
    assert "sequence gone" in text
    assert "after 3 steps" in text
    assert code == 1008


def test_an_error_of_the_engine(model, frames, alone, monkeypatch):
    with Running({"m": model}) as server, opened(server, "sequence_id=s") as c:
        for t in range(2):
            c.send(frames[t].tobytes())
            c.recv(timeout=20)
        pool = server.sequences.lanes[1].pool
        before, failed = type(pool).step, []

        def fails(self, *args):
            if self is pool and not failed:
                failed.append(1)
                raise StreamError("the model has failed")
            return before(self, *args)

        monkeypatch.setattr(type(pool), "step", fails)
        for t in range(2, 6):
            c.send(frames[t].tobytes())
        text, code = refusal(c)
        assert "the model has failed" in text
        assert code == 1013
        with opened(server, "sequence_id=s&sequence_start=0") as c:  # no step was taken after the one that failed
            c.send(frames[2].tobytes())
            first, y = steps(c.recv(timeout=20))
    assert first == 2
    assert np.array_equal(y[0], alone[2])


@pytest.mark.parametrize("unanswered", [1, 5])
def test_a_client_that_goes_while_its_step_waits(model, frames, alone, caplog, unanswered):
    with Running({"m": model}, max_delay=0.0) as server:
        sequences, connections = server.sequences, server.server.engine.connections
        c = Raw(server, "sequence_id=s&output=binary")
        c.send(frames[0].tobytes())
        until(lambda: "s" in sequences.live and sequences.live["s"].steps == 1)
        held, begun = threading.Event(), threading.Event()
        sequences.lanes[1].batcher._worker.submit(lambda: (begun.set(), held.wait(60)))
        try:
            assert begun.wait(20)
            sequence = sequences.live["s"]
            for t in range(unanswered):
                c.send(frames[1 + t].tobytes())
            until(lambda: isinstance(sequence.running, PlainSteps))
            c.reset()
            until(lambda: not connections)
        finally:
            held.set()
        until(lambda: sequence.running is None)
        done = sequence.steps  # the tick may have had the step
        assert done in (1, 2)
        with opened(server, "sequence_id=s&sequence_start=0") as c:
            c.send(frames[done].tobytes())
            first, y = steps(c.recv(timeout=20))
    assert first == done
    assert np.array_equal(y[0], alone[done])
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == []


def test_the_end_comes_after_what_was_sent(running, frames, alone):
    with opened(running, "sequence_id=ends&output=binary") as c:
        for t in range(40):
            c.send(frames[t].tobytes())
        c.send('{"sequence_end": true}')
        found = [np.frombuffer(c.recv(timeout=20), "<f4") for _ in range(40)]
        assert c.recv(timeout=20) == b""
    assert np.array_equal(found, alone[:40])
    until(lambda: "ends" not in running.sequences.live)


def test_a_move_waits_for_the_step_that_runs(model, frames, alone, tmp_path):
    """Of steps that are sent meanwhile, those before the move are answered, and the others refused."""
    with Running({"m": model}, store=str(tmp_path)) as server, opened(server, "sequence_id=s") as c:
        c.send(frames[0].tobytes())
        c.recv(timeout=20)
        for t in range(1, 200):
            c.send(frames[t].tobytes())
        moved = server.start(server.server.engine.move("m", "s"))
        answers = 1
        while not (text := c.recv(timeout=20)).startswith('{"error"'):
            first, y = steps(text)
            assert first == answers
            assert np.array_equal(y[0], alone[first])
            answers += 1
        assert moved.result(30)["steps_done"] == answers
        assert "moved" in text


def test_messages_leave_no_cycles(running, frames):
    with opened(running, "output=binary") as c:
        for t in range(3):
            c.send(frames[t].tobytes())
            c.recv(timeout=20)
        gc.collect()
        gc.disable()
        try:
            for t in range(300):
                c.send(frames[t].tobytes())
                c.recv(timeout=20)
            left = gc.collect()
        finally:
            gc.enable()
    assert left < 300
