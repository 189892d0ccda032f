"""The slots of a pool: capacity, what it says of itself, states of the wrong form."""

import numpy as np
import pytest
from pool_models import MODELS, opened
from test_model_stream import some

import fastrnn
from fastrnn.model import Model


class TestSlots:
    def test_capacity(self):
        model = MODELS["lstm"]
        for bad in (0, -1, 2.5, None, "8", True, 1 << 40):
            with pytest.raises(fastrnn.ShapeError, match="capacity"):
                model.pool(capacity=bad)
        pool, slots = opened(model, 3)
        with pytest.raises(fastrnn.StateError, match="all 3 slots"):
            pool.open()
        y = pool.step(slots, some(3, 4))
        with pytest.raises(fastrnn.StateError, match="never shrinks"):
            pool.grow(2)
        pool.grow(100)
        more = [pool.open() for _ in range(97)]
        assert len({*slots.tolist(), *more}) == len(pool) == 100
        s = model.stream(3)
        assert np.array_equal(s.step(some(3, 4)), y)
        assert np.array_equal(s.step(some(3, 4)), pool.step(slots, some(3, 4)))

    def test_the_future_is_refused_with_the_nodes_name(self):
        from test_plan import tagger

        with pytest.raises(fastrnn.StreamError, match="cellTrue"):
            Model(tagger()).pool()

    def test_what_it_says_of_itself(self):
        pool, slots = opened(MODELS["lstm"], 2, 5)
        assert repr(pool) == "<StreamPool of lstm stack, 2 of 5 slots open>"
        assert len(pool) == 2
        assert pool.slots.tolist() == slots.tolist()
        assert pool.slab.shape == (5, 36)
        assert pool.memory_bytes == 5 * (36 * 4 + 5 * 8)

    def test_no_pickles_and_no_copies(self):
        import copy
        import pickle

        pool, _ = opened(MODELS["lstm"], 2)
        for act in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="snapshots"):
                act(pool)

    def test_a_state_of_another_shape(self):
        pool, slots = opened(MODELS["lstm"], 2)
        state = pool.state(slots[0])
        name = next(iter(state))
        for wrong, error in (
            ({}, fastrnn.StateError),
            (state | {"more": np.zeros(3)}, fastrnn.StateError),
            (state | {name: np.zeros(4, np.float32)}, fastrnn.ShapeError),
            ([1], fastrnn.StateError),
        ):
            with pytest.raises(error, match="state"):
                pool.set_state(slots[0], wrong)


def test_initializing_again_changes_nothing():
    """A smaller pool over the same slots was a segmentation fault."""
    model = MODELS["lstm"]
    pool, slots = opened(model, 500)
    lone = model.stream()
    first = pool.step(slots, some(500, 4)), lone.step(some(4))
    with pytest.raises(fastrnn.StateError, match="initialized before: make another one"):
        pool.__init__(model, model._core, 5)
    with pytest.raises(fastrnn.StreamError, match="initialized before: make another one"):
        lone.__init__(model, model._core, lone._parts)
    again = model.pool(500)
    copies = [again.open() for _ in range(500)]
    assert np.array_equal(again.step(copies, some(500, 4)), first[0])
    assert np.array_equal(pool.step(slots, some(500, 4)), again.step(copies, some(500, 4)))
    assert lone.steps_done == 1
