"""Thousands of lone streams cost their states: what a stream has besides is small and counted here."""

import copy
import gc
import sys
import weakref

import numpy as np
import pytest
from pool_models import MODELS, PACED
from test_model_stream import some, stack

from fastrnn.bench import costs
from fastrnn.model import Model

pytestmark = pytest.mark.any_isa


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_a_stream_costs_a_tenth_more_than_its_state(tmp_path):
    """As `fastrnn bench` measures it: resident bytes of 5,000 streams of an LSTM of 256."""
    import os

    found = costs.measure(tmp_path, os.environ)
    assert found["stream_ratio"] <= 1.1, found


@pytest.mark.parametrize("name", sorted(MODELS | PACED))
def test_a_stream_holds_no_dict_and_shares_all_but_its_state(name):
    model = (MODELS | PACED)[name]
    one, other = model.stream(), model.stream()
    assert not hasattr(one, "__dict__")
    assert one._parts is other._parts is one.copy()._parts
    assert sys.getsizeof(one) <= 112


def test_the_slab_is_a_view_that_outlives_the_stream():
    stream = Model(stack("lstm")).stream(3)
    stream.step(some(3, 5))
    slab, want = stream.slab, stream.slab.copy()
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert gone() is not None, "the memory is the stream's"
    assert np.array_equal(slab, want)
    del slab
    assert gone() is None


def test_a_model_and_its_streams_go_with_their_last_reference():
    gc.disable()
    try:
        model = Model(stack("lstm"))
        stream = model.stream()
        gone = weakref.ref(model)
        del model
        assert np.isfinite(copy.copy(stream).step(some(5))).all()
        del stream
        assert gone() is None, "a cycle keeps the weights until the next collection"
    finally:
        gc.enable()


def test_parts_of_many_batch_sizes_are_not_kept_for_ever():
    model = Model(stack("lstm"))
    streams = [model.stream(n) for n in range(1, 60)]
    assert len(model._core._parts) <= 16
    assert all(s.step(some(n, 5)).shape == (n, 3) for n, s in enumerate(streams, 1))
