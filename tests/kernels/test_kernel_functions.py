"""Elementwise functions on every instruction set: accuracy, range, oddness, order, special values."""

import json

import function_cases as cases
import numpy as np
import pytest

from fastrnn.machine import _isa
from fastrnn.machine import _kernel_calls as calls

ISAS = [isa for isa in _isa.isa_info()["available"] if _isa.kernels_of(isa) == isa]  # with float32 kernels of their own
LANES = 16  # the widest there is
TABLE = json.loads(cases.TABLE.read_text())
SWEEP = cases.sweep()


def apply(name, x, isa):
    case = cases.UNARY[name]
    return calls.map_function(name, x, case.alpha, case.beta, isa=isa)


def test_every_function_is_listed():
    assert _isa.functions() == (*cases.UNARY, *cases.BINARY, "where")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", cases.UNARY)
def test_unary_over_all_exponents(name, isa):
    case, x = cases.UNARY[name], SWEEP
    y = apply(name, x, isa)
    errors = cases.ulp_errors(name, x, y)
    worst = errors.argmax()
    assert errors[worst] <= TABLE[isa][name], f"{name}({x[worst]!r}) = {y[worst]!r}: {errors[worst]:.2f} ULP"
    real = ~np.isnan(y)
    assert np.all((y[real] >= case.low) & (y[real] <= case.high))
    if case.odd:
        assert np.array_equal(y[x != 0][::-1], -y[x != 0])  # the sweep is symmetric
    if case.rising:
        y = y[np.isfinite(y)]
        drop = np.maximum.accumulate(y) - y
        unit = np.spacing(np.clip(np.abs(y), np.float32(cases.TINY), np.float32(3e38)))
        assert np.all(drop <= 2 * TABLE[isa][name] * unit + 128 * cases.TINY)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", cases.UNARY)
def test_unary_keeps_nan_and_meets_the_limits(name, isa):
    case = cases.UNARY[name]
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40], np.float32)
    y = apply(name, x, isa)
    with np.errstate(all="ignore"):
        expected = case.f(np.where(np.abs(x) < cases.TINY, np.copysign(0, x), x).astype(np.float64))
    if name == "not":
        assert y[0] == 0
    else:
        assert np.isnan(y[0]), f"{name}(nan) is {y[0]}"
    if name in ("gelu_tanh", "mish"):  # their textbook forms are 0 * inf at -inf, as x * sigmoid(x) is
        expected[2] = np.nan
    np.testing.assert_allclose(y[1:], expected[1:].astype(np.float32), rtol=1e-6, atol=cases.TINY)
    if name == "sign":
        assert y[1:].tolist() == [1, -1, 0, 0, 0, 0]


@pytest.mark.parametrize("isa", ISAS)
def test_tanh_and_sigmoid_are_exact_where_it_shows(isa):
    zero = np.array([0.0, -0.0], np.float32)
    assert apply("tanh", zero, isa).tobytes() == zero.tobytes()
    assert apply("sigmoid", zero, isa).tolist() == [0.5, 0.5]
    far = np.array([20, 88, 90, 3e38, np.inf], np.float32)
    assert apply("tanh", far, isa).tolist() == [1.0] * 5
    assert apply("sigmoid", far, isa).tolist() == [1.0] * 5
    assert apply("sigmoid", -far[1:], isa).tolist() == [0.0] * 4
    assert apply("tanh", -far, isa).tolist() == [-1.0] * 5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", cases.UNARY)
def test_unary_gives_the_same_bits_at_any_length_and_offset(name, isa):
    rng = np.random.default_rng(3)
    x = (rng.normal(size=3 * LANES + 1) * 3).astype(np.float32)
    whole = apply(name, x, isa)
    for n in range(3 * LANES + 2):
        assert apply(name, x[:n].copy(), isa).tobytes() == whole[:n].tobytes(), n
    buffer = np.zeros(x.size + 32, np.float32)
    for offset in range(17):
        buffer[offset : offset + x.size] = x
        assert apply(name, buffer[offset : offset + x.size], isa).tobytes() == whole.tobytes(), offset


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", cases.UNARY)
def test_unary_writes_nothing_else(name, isa):
    case = cases.UNARY[name]
    for n in range(2 * LANES + 2):
        y = np.full(n + 40, 7.5, np.float32)
        calls.map_function(name, np.ones(n, np.float32), case.alpha, case.beta, isa=isa, y=y[20 : 20 + n])
        assert np.all(y[:20] == 7.5), n
        assert np.all(y[20 + n :] == 7.5), n


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", cases.BINARY)
def test_binary(name, isa):
    rng = np.random.default_rng(4)
    values = np.array([0, 1, -1, 0.5, 2, -2, 3, 0.1, -0.1, 7.25, 1e10, -1e10, np.inf, -np.inf, np.nan], np.float32)
    a = np.concatenate([np.repeat(values, values.size), rng.normal(size=500).astype(np.float32) * 4])
    b = np.concatenate([np.tile(values, values.size), rng.normal(size=500).astype(np.float32) * 4])
    y = calls.elementwise([(name, (0, 1), 0.0, 0.0)], [a, b], isa=isa)
    with np.errstate(all="ignore"):
        arguments = (a.astype(np.float64), b.astype(np.float64))
        expected = cases.BINARY[name](*arguments).astype(np.float64).astype(np.float32)
    np.testing.assert_allclose(y, expected, rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_where(isa):
    condition = np.array([1, 0, 2, -1, 0, 0], np.float32)
    a, b = np.arange(6, dtype=np.float32), np.array([9, np.nan, 9, 9, np.inf, 8], np.float32)
    y = calls.elementwise([("where", (0, 1, 2), 0.0, 0.0)], [condition, a, b], isa=isa)
    np.testing.assert_array_equal(y, np.where(condition != 0, a, b))


def test_the_same_bits_on_all_sets_that_fuse():
    fused = [isa for isa in ISAS if isa != "baseline"]
    if len(fused) < 2:
        pytest.skip(f"only {fused} can be compared")
    for name in cases.UNARY:
        first, *others = (apply(name, SWEEP, isa) for isa in fused)
        assert all(np.array_equal(first, other, equal_nan=True) for other in others), name
