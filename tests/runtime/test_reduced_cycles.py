"""Products of equations and of cycles in reduced precision: small errors, and the same bits however they are run."""

import itertools

import numpy as np
import pytest
import rounded_model as rounded
from equation_cases import CELLS, make_case

import fastrnn
from fastrnn.machine import _isa
from fastrnn.passes import precision_of

PRECISIONS = ("bfloat16", "int8", "int8-a16")
# Largest errors of 12 steps of the cells, whose weights are random and lively.
LIMITS = {"bfloat16": 0.03, "int8": 0.15, "int8-a16": 0.06}


def real(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def in_all(text, options, arrays, precision):
    """(the float32 model, the one with that precision in every layer)."""
    exact = fastrnn.from_equations(text, **options, **arrays)
    wanted = dict.fromkeys(precision_of(exact.graph), precision)
    return exact, fastrnn.from_equations(text, precision=wanted, **options, **arrays)


def same_however_it_is_run(model, x, y):
    """Steps, chunks, pools and single rows give the bits of y = model(x)."""
    rows, steps = x.shape[:2]
    stream, pool = model.stream(rows), model.pool(rows + 2)
    assert np.stack([stream.step(x[:, t]) for t in range(steps)], axis=1).tobytes() == y.tobytes()
    chunks = model.stream(rows)
    parts = [chunks.push(np.ascontiguousarray(x[:, a:b])) for a, b in itertools.pairwise((0, 1, 3, 8, steps))]
    assert np.concatenate(parts, axis=1).tobytes() == y.tobytes()
    slots = [pool.open() for _ in range(rows)]
    assert np.stack([pool.step(slots, x[:, t]) for t in range(steps)], axis=1).tobytes() == y.tobytes()
    for row in range(rows):
        assert model(x[row : row + 1]).tobytes() == y[row : row + 1].tobytes()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CELLS)
def test_equations(name, precision):
    case = make_case(name, 24, 32)
    exact, model = in_all(case.text, case.options, case.arrays, precision)
    assert model.precision == precision
    assert all(n.attrs["precision"] == precision for n in model.graph.nodes if n.op in ("linear", "cell", "conv"))
    x = real(1, 3, 12, 32 if name == "convolutional" else 24)
    y = model(x)
    assert 0 < np.abs(y - exact(x)).max() < LIMITS[precision]
    same_however_it_is_run(model, x, y)


@pytest.mark.skipif(_isa.isa_info()["active"] == "baseline", reason="baseline rounds a multiply-add twice")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_product_inside_a_cycle_has_the_bits_of_the_model(precision):
    arrays = {"W": real(1, 40, 70) / 8, "R": real(2, 40, 40) / 8, "b": real(3, 40)}
    _, model = in_all("h = R @ (W @ x + prev(h)) + b", {}, arrays, precision)
    x, h = real(4, 2, 6, 70), np.zeros((2, 40), np.float32)
    y = model(x)
    (W, W_scale, _), (R, R_scale, bias) = (weights_of(model, K) for K in (70, 40))
    for t in range(6):
        fed = rounded.product(x[:, t], W, W_scale, None, precision) + h
        h = rounded.product(fed, R, R_scale, bias, precision)
        np.testing.assert_array_equal(y[:, t], h)


def weights_of(model, K):
    """(W, scale, bias) of the linear layer with K inputs."""
    constants = model.graph.constants
    node = next(n for n in model.graph.nodes if n.op == "linear" and constants[n.inputs[1]].shape[0] == K)
    given = [*node.inputs, None, None]
    return [constants.get(given[at] or "") for at in (1, 3, 2)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_row_stays_alone_inside_a_cycle(bad, precision):
    case = make_case("forget_and_output", 24, 32)
    _, model = in_all(case.text, case.options, case.arrays, precision)
    x = real(1, 3, 6, 24)
    good = model(x)
    x[1, 2, 7] = bad
    y = model(x)
    assert np.isnan(y[1, 2:]).all()
    assert y[1, :2].tobytes() == good[1, :2].tobytes()
    assert y[[0, 2]].tobytes() == good[[0, 2]].tobytes()


def test_each_product_has_its_own_precision():
    case = make_case("forget_and_output", 24, 32)
    exact = fastrnn.from_equations(case.text, **case.arrays)
    names = list(precision_of(exact.graph))
    wanted = dict(zip(names, itertools.cycle(["int8", "float32", "bfloat16"]), strict=False))
    model = fastrnn.from_equations(case.text, precision=wanted, **case.arrays)
    assert model.precision == wanted
    x = real(1, 2, 9, 24)
    same_however_it_is_run(model, x, model(x))
