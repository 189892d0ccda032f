"""Growing caches of all layers in one input and one output."""

import numpy as np
import pytest
from growing_caches import WIDTH, called, decoder, stacked

import fastrnn
from fastrnn.graph.stacks import unstacked

STEPS = 12
XS = np.random.default_rng(0).standard_normal((3, STEPS, WIDTH)).astype(np.float32)
CASES = {
    "one step": {},
    "one row": {"calls": "row", "mask": "tril"},
    "many steps": {"calls": "many", "mask": "less", "position": "past"},
    "many steps, a mask of tokens": {"calls": "many", "mask": "input"},
    "many steps, flat": {"calls": "many", "mask": "add", "layout": "btf"},
    "many steps, the operator": {"calls": "many", "mask": "less", "form": "op"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_stream_answers_as_the_calls_of_the_file(case):
    apart = decoder(layers=3, **CASES[case])
    file = stacked(apart)
    model = fastrnn.load(file.SerializeToString())
    assert model.graph.states == {"past": "new"}
    steps = XS[..., None, :] if model.inputs[0].dims[1] == 1 else XS
    got = model.stream(3, context=STEPS).push(np.ascontiguousarray(steps))
    np.testing.assert_allclose(got.reshape(XS.shape), called(file, XS, [1] * STEPS), rtol=1e-4, atol=2e-5)
    same = fastrnn.load(apart.SerializeToString())
    assert np.array_equal(same.stream(3, context=STEPS).push(np.ascontiguousarray(steps)), got)
    assert same.fingerprint == model.fingerprint  # what streams keep is the same: snapshots fit
    pool = model.pool(2, context=STEPS)
    slots = [pool.open(), pool.open()]
    pool.push(slots[:1], [np.ascontiguousarray(steps[0, :5])])
    rest = pool.push(slots, [np.ascontiguousarray(steps[0, 5:]), np.ascontiguousarray(steps[1])])
    assert np.array_equal(rest[0], got[0, 5:])
    assert np.array_equal(rest[1], got[1])


@pytest.mark.parametrize("order", [[(0, 1), (0, 0), (1, 0), (1, 1)], [(1, 0), (1, 1), (0, 0), (0, 1)], [(0, 0)] * 4])
def test_caches_that_come_back_in_another_place_are_no_stack(order):
    model = fastrnn.load(stacked(decoder(layers=2), order).SerializeToString())
    assert not model.graph.states
    with pytest.raises(fastrnn.StreamError):
        model.stream()
    with pytest.raises(fastrnn.StateError, match="can't continue from"):
        fastrnn.load(stacked(decoder(layers=2), order).SerializeToString(), states={"past": "new"})


def test_the_caller_may_name_the_stack_and_saves_it(tmp_path):
    blob = stacked(decoder(layers=2)).SerializeToString()
    model = fastrnn.load(blob, states={"past": "new"})
    model.save(tmp_path / "stacked.fastrnn")
    again = fastrnn.load(tmp_path / "stacked.fastrnn")
    x = np.ascontiguousarray(XS[0, :, None])
    assert np.array_equal(again.stream(context=STEPS).push(x), model.stream(context=STEPS).push(x))
    y, past = model.run(XS[:, :1], np.zeros((2, 2, 3, 2, 0, 4), np.float32))
    assert past.shape == (2, 2, 3, 2, 1, 4)
    assert np.array_equal(model(XS[:, :1]), y)


def test_only_stacks_are_taken_apart():
    graph = fastrnn.load(decoder(layers=2).SerializeToString()).graph
    assert unstacked(graph) is graph
