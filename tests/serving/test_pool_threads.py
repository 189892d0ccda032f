"""Several threads: calls of one pool take turns, a lone stream is one thread's at a time, and no state is torn."""

import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pool_models import MODELS, PACED, data, open_size, opened, same, step_of
from test_model_stream import some, stack

import fastrnn
from fastrnn.model import Model


def side_by_side(work, count, interval):
    """work(0) to work(count - 1), a thread each, which take turns every `interval` seconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval)
    try:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(before)


def by_two_threads(calls, seconds=0.5):
    """Call both functions over and over, each in a thread of its own, as entangled as the interpreter allows; returns
    how often each went through. A StreamError is what the one that comes second gets."""
    done, problems, stop = [0, 0], [], time.monotonic() + seconds

    def work(i):
        while time.monotonic() < stop and not problems:
            try:
                calls[i]()
                done[i] += 1
            except fastrnn.StreamError:
                pass
            except Exception as error:
                problems.append(repr(error))

    side_by_side(work, 2, 1e-6)
    assert problems == []
    return done


@pytest.mark.any_isa
class TestThreads:
    def test_one_pool_by_several_threads_takes_turns(self):
        """Each thread has slots of its own and compares every answer: a torn state would show."""
        model = Model(stack("lstm", I=4, H=64))
        pool = model.pool(capacity=64)
        problems, stop = [], time.monotonic() + 2.0

        def work(seed):
            try:
                rng = np.random.default_rng(seed)
                while time.monotonic() < stop and not problems:
                    slots = [pool.open() for _ in range(1 + rng.integers(15))]
                    lone = model.stream(len(slots))
                    for _ in range(3):
                        x = rng.standard_normal((len(slots), 4)).astype(np.float32)
                        if not np.array_equal(pool.step(slots, x), lone.step(x)):
                            problems.append("another answer")
                    chunk = rng.standard_normal((len(slots), 5, 4)).astype(np.float32)
                    if not np.array_equal(np.stack(pool.push(slots, chunk)), lone.push(chunk)):
                        problems.append("another answer of push")
                    for s in slots:
                        pool.close(s)
            except Exception as error:
                problems.append(repr(error))

        side_by_side(work, 4, 1e-5)
        assert problems == []
        assert len(pool) == 0

    def test_a_state_is_that_of_one_moment(self):
        """States and `steps_done` of a pool whose streams look ahead belong together, whoever steps meanwhile."""
        model = PACED["looks ahead"]
        pool, x, wrong = model.pool(1), data(model, 1, 1), []
        slot, lone, known = pool.open(), model.stream(), []
        for _ in range(40):
            known.append(lone.state)
            lone.push(x)

        def look():
            state = pool.state(slot)
            want = known[int(state["steps_done"])]
            if not all(same(state[k], want[k]) for k in want):
                wrong.append(state)
            pool.set_state(slot, known[int(state["steps_done"]) % 7])

        by_two_threads([lambda: pool.push([slot], [x]) if pool.steps_done(slot) < 39 else pool.reset(slot), look])
        assert not wrong

    def test_ctrl_c_while_waiting_leaves_the_pool_to_others(self):
        """The main thread waits for a pool; the signal comes with the lock: whoever is interrupted lets it go."""
        pool, slots = opened(PACED["looks ahead"], 4)
        stop, x = threading.Event(), some(4, 3)

        def work():
            while not stop.is_set():
                pool.step(slots, x)

        def interrupt(signum, frame):
            if Path(fastrnn.__file__).parent in Path(frame.f_code.co_filename).parents:  # not this test itself
                raise KeyboardInterrupt

        worker = threading.Thread(target=work)
        old, interval = signal.signal(signal.SIGALRM, interrupt), sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        worker.start()
        caught, end = 0, time.monotonic() + 2
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-3, 1.3e-3)
            while time.monotonic() < end:
                try:
                    pool.state(slots[0])
                except KeyboardInterrupt:
                    caught += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
            sys.setswitchinterval(interval)
            stop.set()
            worker.join(20)
        assert not worker.is_alive()
        assert caught > 50
        assert pool.steps_done(slots[0]) > 0

    def test_a_call_within_a_call_is_refused(self):
        pool, slots = opened(MODELS["lstm"], 2)

        class Sly:
            def __array__(self, dtype=None, copy=None):
                pool.reset(slots[0])

        with pytest.raises(fastrnn.FastRNNError, match="within"):
            pool.step(slots, Sly())
        assert pool.step(slots, some(2, 4)).shape == (2, 3)


@pytest.mark.any_isa
class TestALoneStream:
    @pytest.mark.parametrize("name", sorted(MODELS | PACED))
    def test_two_threads_tear_no_state(self, name):
        """Every call that went through has taken its step, and no other one has."""
        model = (MODELS | PACED)[name]
        stream, chunk = model.stream(), data(model, 1, 1)
        x = step_of(chunk, 0)
        taken = sum(by_two_threads([lambda: stream.push(chunk), lambda: stream.step(x)]))
        lone = model.stream()
        for _ in range(taken):
            lone.step(x)
        assert stream.steps_done == taken > 0
        assert all(same(v, lone.state[k]) for k, v in stream.state.items())

    def test_a_state_is_that_of_one_moment(self):
        """States and `steps_done` of a model that looks ahead belong together, whoever steps meanwhile."""
        model = PACED["looks ahead"]
        stream, x, wrong = model.stream(), data(model, 1, 1), []
        first, known = model.stream(), []
        for _ in range(40):
            known.append(first.state)
            first.push(x)

        def step():
            stream.push(x) if stream.steps_done < 39 else stream.reset()

        def look():
            state = stream.state
            want = known[int(state["steps_done"])]
            if not all(same(state[k], want[k]) for k in want):
                wrong.append(state)

        by_two_threads([step, look])
        assert not wrong

    def test_a_first_step_that_fixes_a_size_is_one_threads_alone(self):
        model = Model(open_size())
        for _ in range(10):
            stream, x = model.stream(), some(7)
            taken = by_two_threads([lambda: stream.step(x), lambda: stream.step(x)], 0.02)  # noqa: B023
            assert stream.steps_done == sum(taken)

    def test_it_is_refused_in_its_own_call(self):
        stream = PACED["looks ahead"].stream()
        with stream._held():
            for call in (lambda: stream.step(some(3)), lambda: stream.push(some(2, 3)), stream.flush, stream.reset,
                         stream.copy, stream.snapshot, lambda: stream.state):  # fmt: skip
                with pytest.raises(fastrnn.StreamError, match="in use by another thread"):
                    call()
        assert stream.step(some(3)) is None
