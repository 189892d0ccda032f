"""Ctrl-C ends a long call soon, and leaves states as they were before the call."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from test_model_stream import some, stack
from test_stream_windows import Stack

from fastrnn.model import Model

pytestmark = pytest.mark.any_isa
SECONDS = 0.1  # within which a call must end; tried again, since a machine may be busy for longer than that


def interrupted(call, after=0.15):
    """Seconds from a signal to the KeyboardInterrupt of a call that is under way; None where it ended before."""
    sent, ended = [], False

    def send():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(after, send)
    try:
        timer.start()
        call()
        ended = True
        time.sleep(5)  # the signal comes here
    except KeyboardInterrupt:
        return None if ended else time.monotonic() - sent[0]
    return None


def soon(call):
    """Whether the signal ended the call within the limit, once in five times."""
    times = []
    for _ in range(5):
        times.append(interrupted(call))
        assert times[-1] is not None, "the call is too short to be interrupted, or nobody looked"
        if times[-1] < SECONDS:
            return True
    pytest.fail(f"the call went on for {times} s")


MODELS = {
    "lstm": Model(stack("lstm", I=64, H=128)),
}


class TestCtrlC:
    def test_a_long_run(self):
        x = some(1, 1, 64).repeat(60_000, 1)
        assert soon(lambda: MODELS["lstm"](x))
        assert MODELS["lstm"](x[:, :3]).shape == (1, 3, 3)

    def test_a_long_run_by_two_threads(self):
        model = Model(stack("lstm", I=64, H=128), threads=2)
        x = some(64, 1, 64).repeat(6000, 1)
        assert soon(lambda: model(x))

    def test_a_convolution(self):
        model = Model(Stack(32).conv(64, 9, pads=(4, 4)).conv(64, 9, pads=(4, 4)).done())
        x = some(1, 32, 1).repeat(4000, 2).repeat(60, 0)
        assert soon(lambda: model(x))

    @pytest.mark.parametrize("batch", [None, 9])
    def test_a_stream_is_as_before(self, batch):
        s = MODELS["lstm"].stream(batch_size=batch)
        lead = () if batch is None else (batch,)
        s.push(some(*lead, 5, 64))
        before, x = s.slab.copy(), some(*lead, 1, 64).repeat(60_000 if batch is None else 30_000, -2)
        assert soon(lambda: s.push(x))
        assert np.array_equal(s.slab, before)
        assert s.steps_done == 5
        assert np.isfinite(s.push(x[..., :4, :])).all()

    def test_one_large_step_of_a_batch(self):
        s, x = MODELS["lstm"].stream(batch_size=20_000), some(20_000, 64)
        assert soon(lambda: [s.step(x) for _ in range(50)])
        again = MODELS["lstm"].stream(batch_size=20_000)
        for _ in range(s.steps_done):
            again.step(x)
        assert np.array_equal(s.slab, again.slab)

    @pytest.mark.parametrize("ragged", [False, True])
    def test_a_pool_is_as_before(self, ragged):
        model = MODELS["lstm"]
        pool = model.pool(capacity=300)
        slots = [pool.open() for _ in range(300)]
        first = some(300, 2, 64)
        pool.push(slots, first)
        before = pool.slab.copy()
        chunk = some(1, 64).repeat(900, 0)
        assert soon(lambda: pool.push(slots, [chunk[: 900 - (2 * i if ragged else 0)] for i in range(300)]))
        assert np.array_equal(pool.slab, before)
        assert {pool.steps_done(s) for s in slots} == {2}
        assert pool.step(slots, first[:, 0]).shape == (300, 3)

    def test_a_handler_that_does_not_raise_changes_nothing(self):
        x, seen = some(1, 1, 64).repeat(20_000, 1), []
        want = MODELS["lstm"](x)
        tiny = np.float32(1e-38)
        old = signal.signal(signal.SIGALRM, lambda *_: seen.append(np.float32(tiny / 4) != 0))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            y = MODELS["lstm"](x)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        assert np.array_equal(y, want)
        assert len(seen) >= 2
        assert all(seen), "a handler ran with denormals flushed"

    def test_another_thread_computes_on(self):
        """A signal is the main thread's: a call of another one is not ended by it."""
        x, got = some(1, 1, 64).repeat(20_000, 1), []
        worker = threading.Thread(target=lambda: got.append(MODELS["lstm"](x)))
        worker.start()
        assert interrupted(lambda: time.sleep(5), 0.01) is not None
        worker.join()
        assert np.array_equal(got[0], MODELS["lstm"](x))
