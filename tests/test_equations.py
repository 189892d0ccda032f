"""from_equations: cells that no framework has, against a NumPy loop; whole, streamed, by chunk, in a batch."""

import numpy as np
import pytest
from equation_cases import CELLS, loop, make_case

import fastrnn
from fastrnn import reference

RNG = np.random.default_rng(11)


def model_of(case, **options):
    return fastrnn.from_equations(case.text, **case.options, **options, **case.arrays)


def last_name(text):
    return [line.split("=")[0].strip() for line in text.replace("\n", ";").split(";")][-1]


@pytest.mark.parametrize("name", sorted(CELLS))
def test_a_cell_is_what_a_numpy_loop_makes_of_it(name):
    case = make_case(name)
    model, out = model_of(case), last_name(case.text)
    size = model.inputs[0].dims[-1]
    for batch, steps in ((1, 1), (3, 9), (2, 70)):
        x = RNG.normal(size=(batch, steps, size)).astype(np.float32)
        y = model(x)
        expected = np.stack([loop(case, row, (out,))[out] for row in x])
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
        (whole,) = reference.run(model.graph, {"x": x})
        np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(CELLS))
def test_streams_have_the_bits_of_the_whole_run(name):
    case = make_case(name, seed=1)
    model = model_of(case)
    x = RNG.normal(size=(3, 67, model.inputs[0].dims[-1])).astype(np.float32)
    y = model(x)
    for b in range(3):
        assert np.array_equal(model(x[b : b + 1])[0], y[b])
    stream = model.stream(batch_size=3)
    assert np.array_equal(np.stack([stream.step(x[:, t]) for t in range(67)], 1), y)
    stream.reset()
    chunks = np.split(x, [0, 1, 6, 40], axis=1)
    assert np.array_equal(np.concatenate([stream.push(c) for c in chunks], 1), y)
    one = model.stream()
    halves = [one.push(x[1, :20])]
    other = one.copy()
    assert np.array_equal(np.concatenate([*halves, other.push(x[1, 20:])]), y[1])


def test_no_steps():
    case = make_case("lstm_two_steps_back")
    assert model_of(case)(np.zeros((2, 0, 5), np.float32)).shape == (2, 0, 8)
