"""One pool in several threads: calls take turns, and no state is torn."""

import sys
import threading
import time

import numpy as np
import pytest
from test_model_stream import some, stack
from test_pool import MODELS, opened

import fastrnn
from fastrnn.model import Model


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

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
        finally:
            sys.setswitchinterval(interval)
        assert problems == []
        assert len(pool) == 0

    def test_a_call_within_a_call_is_refused(self):
        pool, slots = opened(MODELS["lstm"], 2)

        class Sly:
            def __array__(self, dtype=None, copy=None):
                pool.reset(slots[0])

        with pytest.raises(fastrnn.FastRNNError, match="within"):
            pool.step(slots, Sly())
        assert pool.step(slots, some(2, 4)).shape == (2, 3)
