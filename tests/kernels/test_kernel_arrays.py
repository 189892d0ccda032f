"""linear, elementwise programs, reductions, softmax and layer_norm on every instruction set."""

import function_cases as cases
import numpy as np
import pytest

from fastrnn.errors import FastRNNError, ShapeError
from fastrnn.machine import _isa
from fastrnn.machine import _kernel_calls as calls

ISAS = [isa for isa in _isa.isa_info()["available"] if _isa.kernels_of(isa) == isa]  # with float32 kernels of their own
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 47, 48, 49, 63, 64, 65, 72, 128, 130, 200]
LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 48, 49, 127, 128, 129, 255, 256, 257, 300]


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---- linear ----


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("K", [0, 1, 3, 16, 65])
def test_linear(K, isa):
    for N in SIZES:
        W, bias = normal([K, N], K, N), normal([K, N, 1], N) if N % 2 else None
        x = normal([K, N, 2], 1 + N % 13, K)
        y = calls.linear(_isa.pack_linear(W, bias, isa=isa), x)
        exact = x.astype(np.float64) @ W.astype(np.float64) + (0 if bias is None else bias)
        np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5, err_msg=f"K={K} N={N}")


@pytest.mark.parametrize("isa", ISAS)
def test_linear_takes_any_strides_of_W(isa):
    W, x = normal(0, 9, 70), normal(1, 3, 9)
    expected = calls.linear(_isa.pack_linear(W, isa=isa), x)
    for view in (
        np.asfortranarray(W),
        np.repeat(W, 2, axis=1)[:, ::2],
        W[::-1].copy()[::-1],
        np.tile(W, (1, 2))[:, :70],
    ):
        assert calls.linear(_isa.pack_linear(view, isa=isa), x).tobytes() == expected.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", cases.UNARY)
def test_linear_applies_the_function_that_map_applies(name, isa):
    case = cases.UNARY[name]
    packed = _isa.pack_linear(normal(0, 6, 37), normal(1, 37), isa=isa)
    x = normal(2, 4, 6)
    expected = calls.map_function(name, calls.linear(packed, x), case.alpha, case.beta, isa=isa)
    np.testing.assert_array_equal(calls.linear(packed, x, name, case.alpha, case.beta), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_linear_same_bits_by_row_split_and_alignment(isa):
    for N in SIZES[1:]:
        packed = _isa.pack_linear(normal(N, 20, N), normal(1, N), isa=isa)
        x = normal(2, 13, 20)
        whole = calls.linear(packed, x, "tanh")
        for count in range(1, 13):
            assert calls.linear(packed, x[13 - count :], "tanh").tobytes() == whole[13 - count :].tobytes()
        for cut in range(packed.blocks + 1):
            assert calls.linear(packed, x, "tanh", splits=(cut,)).tobytes() == whole.tobytes()
            assert calls.linear(packed, x[:1], "tanh", splits=(cut,)).tobytes() == whole[:1].tobytes()
        room = np.full((13, 20 + 3), np.nan, np.float32)
        out = np.full((13, N + 5), np.nan, np.float32)
        room[:, 1:21] = x
        calls.linear(packed, room[:, 1:21], "tanh", y=out[:, 3 : 3 + N])
        assert out[:, 3 : 3 + N].tobytes() == whole.tobytes()
        out[:, 3 : 3 + N] = np.nan
        assert np.all(np.isnan(out))


def test_the_same_bits_on_all_sets_that_fuse():
    fused = [isa for isa in ISAS if isa != "baseline"]
    if len(fused) < 2:
        pytest.skip(f"only {fused} can be compared")
    W, bias, x = normal(0, 33, 77), normal(1, 77), normal(2, 9, 33)
    results = [calls.linear(_isa.pack_linear(W, bias, isa=isa), x, "sigmoid").tobytes() for isa in fused]
    assert len(set(results)) == 1


# ---- elementwise programs ----


@pytest.mark.parametrize("isa", ISAS)
def test_elementwise_broadcasts_as_numpy(isa):
    program = [("add", (0, 1), 0, 0), ("sub", (3, 2), 0, 0), ("affine", (4,), 2.0, 0.5), ("mul", (5, 0), 0, 0)]
    shapes = [
        ((3, 4, 5), (4, 5), (5,)), ((3, 1, 5), (1, 4, 1), (3, 4, 1)), ((7,), (1,), (7,)), ((1,), (1,), (1,)),
        ((2, 3, 1, 4, 1, 2), (1, 3, 2, 1, 5, 2), (2, 1, 2, 4, 5, 1)), ((300,), (300,), (1,)),
        ((129, 2), (1, 2), (129, 1)), ((0, 3), (1, 3), (1, 1)), ((2, 257), (2, 1), (257,)),
    ]  # fmt: skip
    for case in shapes:
        a, b, c = (normal(i, *shape) for i, shape in enumerate(case))
        y = calls.elementwise(program, [a, b, c], isa=isa)
        np.testing.assert_allclose(y, ((a + b - c) * 2 + 0.5) * a, rtol=1e-5, atol=1e-5, err_msg=str(case))


@pytest.mark.parametrize("isa", ISAS)
def test_elementwise_walks_any_strides(isa):
    x = normal(0, 6, 130, 4)
    other = normal(1, 130, 6, 4)
    out = np.zeros((4, 260, 6), np.float32)[:, ::2].transpose(2, 1, 0)
    views = [x, other.transpose(1, 0, 2)]
    calls.elementwise([("sub", (0, 1), 0, 0)], views, out=out, isa=isa)
    np.testing.assert_array_equal(out, x - other.transpose(1, 0, 2))
    back = x[::-1, ::-1]
    np.testing.assert_array_equal(calls.elementwise([("neg", (0,), 0, 0)], [back], isa=isa), -back)


@pytest.mark.parametrize("isa", ISAS)
def test_elementwise_of_short_rows(isa):
    """Rows of a state, each with a factor of its own and a row that all share: several are in a register at a time."""
    program = [("mul", (0, 1), 0, 0), ("mul", (2, 3), 0, 0), ("add", (4, 5), 0, 0), ("exp", (6,), 0, 0)]
    for rows in (1, 2, 15, 16, 17, 300):
        for n in (1, 2, 3, 4, 15, 16, 17, 63, 64, 127, 128, 129):
            state, factor = normal(n, 3, rows, n), normal(n + 1, 3, 1, 1)
            k, v = normal(n + 2, 3, rows, 1), normal(n + 3, 3, 1, n)
            kept = np.full(state.size + 64, 7.5, np.float32)
            out = kept[32:-32].reshape(state.shape)
            calls.elementwise(program, [state, factor, k, v], out=out, isa=isa)
            exact = np.exp(state * factor.astype(np.float64) + k * v.astype(np.float64))
            np.testing.assert_allclose(out, exact, rtol=1e-5, err_msg=f"{rows} rows of {n}")
            assert np.all(kept[:32] == 7.5)
            assert np.all(kept[-32:] == 7.5)
            alone = calls.elementwise(program, [state[2, -1], factor[2, 0], k[2, -1], v[2, 0]], isa=isa)
            assert alone.tobytes() == out[2, -1].tobytes(), f"{rows} rows of {n}"
            apart = np.full((3, 2 * rows, 2 * n), 7.5, np.float32)
            calls.elementwise(program, [state, factor, k, v], out=apart[:, ::2, ::2], isa=isa)
            assert apart[:, ::2, ::2].tobytes() == out.tobytes()
            assert np.all(apart[:, 1::2] == 7.5)
            calls.elementwise(program, [state, factor, k, v], out=state, isa=isa)
            assert state.tobytes() == out.tobytes(), f"{rows} rows of {n}, in place"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(3, 16, 300), (2, 33, 17), (1, 5, 129), (2, 2, 2)])
def test_elementwise_of_planes_and_channels(shape, isa):
    """One operand has its channels apart, another its positions, and so may the result."""
    planes, channels, both = normal(0, *shape), normal(1, shape[0], shape[2], shape[1]), normal(2, 1, shape[1], 1)
    program = [("sub", (0, 1), 0, 0), ("mul", (2, 3), 0, 0)]
    want = (planes - channels.transpose(0, 2, 1)) * both
    for order in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        out = np.empty([shape[a] for a in order], np.float32).transpose(np.argsort(order))
        calls.elementwise(program, [planes, channels.transpose(0, 2, 1), both], out=out, isa=isa)
        np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("isa", ISAS)
def test_elementwise_in_place(isa):
    for n in LENGTHS:
        x, y = normal(n, n), normal(n + 1, n)
        expected = np.tanh((x + y).astype(np.float64))
        calls.elementwise([("add", (0, 1), 0, 0), ("tanh", (2,), 0, 0)], [x, y], out=x, isa=isa)
        np.testing.assert_allclose(x, expected, rtol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_elementwise_writes_nothing_else(isa):
    for n in LENGTHS:
        y = np.full(n + 40, 7.5, np.float32)
        calls.elementwise([("abs", (0,), 0, 0), ("sqrt", (1,), 0, 0)], [normal(n, n)], out=y[20 : 20 + n], isa=isa)
        assert np.all(y[:20] == 7.5)
        assert np.all(y[20 + n :] == 7.5)


def test_elementwise_longest_program():
    program = [("add", (i, 0), 0, 0) for i in range(8)] + [("add", (7 + i, 0), 0, 0) for i in range(8, 32)]
    inputs = [np.full(200, float(i + 1), np.float32) for i in range(8)]
    for isa in ISAS:
        y = calls.elementwise(program, inputs, isa=isa)
        np.testing.assert_array_equal(y, np.full(200, 8.0 + 1 + 24))
    with pytest.raises(FastRNNError, match="33 instructions"):
        calls.elementwise([*program, program[-1]], inputs)
    with pytest.raises(FastRNNError, match=r"instruction 0 \(add\) reads a register that is not written yet"):
        calls.elementwise([("add", (0, 1), 0, 0)], [inputs[0]])


# ---- reductions and norms ----


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fn", ["add", "min", "max"])
def test_reduce(fn, isa):
    meaning = {"add": np.sum, "min": np.min, "max": np.max}[fn]
    for n in LENGTHS:
        x = normal(n, 5, n)
        y = calls.reduce(fn, x, scale=0.5, isa=isa)
        np.testing.assert_allclose(y, 0.5 * meaning(x.astype(np.float64), axis=1), rtol=1e-5, atol=1e-5)
        across = calls.reduce(fn, np.ascontiguousarray(x.T), axis=0, scale=0.5, isa=isa)
        assert across.tobytes() == y.tobytes(), f"n={n}: the order depends on the stride"
        x[2, n // 2] = np.nan
        assert np.isnan(calls.reduce(fn, x, isa=isa)).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fn", ["add", "min", "max"])
def test_reduce_has_the_bits_of_each_row(fn, isa):
    """Whatever the row's neighbours and its strides, with infinities, NaN and zeros of both signs."""
    for rows in (2, 3, 8, 17, 33):
        for n in (0, 1, 2, 4, 7, 8, 9, 16, 17, 40):
            x = normal(n, rows, n)
            if n:
                x[0, n // 2], x[1, n - 1] = np.nan, -np.inf
                x[-1] = np.where(np.arange(n) % 2, 0.0, -0.0)
            alone = np.concatenate([calls.reduce(fn, x[r : r + 1], isa=isa) for r in range(rows)])
            together = calls.reduce(fn, x, isa=isa)
            assert together.tobytes() == alone.tobytes(), f"{rows} rows of {n}"
            across = calls.reduce(fn, np.ascontiguousarray(x.T), axis=0, isa=isa)
            assert across.tobytes() == alone.tobytes(), f"{rows} columns of {n}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("log", [False, True])
def test_softmax(log, isa):
    for n in LENGTHS:
        x = normal(n, 4, n) * 5
        x[1] += 300
        x[2, 0] = -np.inf if n > 1 else 0
        e = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
        exact = e / e.sum(axis=1, keepdims=True)
        y = calls.softmax(x, log=log, isa=isa)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(y, np.log(exact) if log else exact, rtol=2e-6, atol=2e-6 if log else 1e-30)
        one = calls.softmax(x[3:], log=log, isa=isa)
        assert one.tobytes() == y[3:].tobytes()
    assert np.all(np.isnan(calls.softmax(np.full((1, 5), -np.inf, np.float32), log=log, isa=isa)))


@pytest.mark.parametrize("isa", ISAS)
def test_layer_norm(isa):
    for n in LENGTHS:
        x, scale, bias = normal(n, 3, n) * 3 + 10, normal(n + 1, n), normal(n + 2, n)
        wide = x.astype(np.float64)
        exact = (wide - wide.mean(axis=1, keepdims=True)) / np.sqrt(wide.var(axis=1, keepdims=True) + 1e-3)
        np.testing.assert_allclose(calls.layer_norm(x, epsilon=1e-3, isa=isa), exact, rtol=1e-4, atol=2e-5)
        y = calls.layer_norm(x, scale, bias, epsilon=1e-3, isa=isa)
        np.testing.assert_allclose(y, exact * scale + bias, rtol=1e-4, atol=5e-5)
        assert calls.layer_norm(x[1:2], scale, bias, epsilon=1e-3, isa=isa).tobytes() == y[1:2].tobytes()


def test_arguments_are_checked():
    packed = _isa.pack_linear(normal(0, 4, 3))
    with pytest.raises(ShapeError, match=r"x: expected shape \[rows, 4\], got \[2, 5\]"):
        calls.linear(packed, normal(0, 2, 5))
    with pytest.raises(FastRNNError, match="unknown unary function 'add'"):
        calls.linear(packed, normal(0, 2, 4), "add")
    with pytest.raises(FastRNNError, match="unknown function 'sech'"):
        calls.elementwise([("sech", (0,), 0, 0)], [normal(0, 3)])
    with pytest.raises(ShapeError, match=r"bias: expected shape \[3\], got \[4\]"):
        _isa.pack_linear(normal(0, 4, 3), normal(0, 4))
    with pytest.raises(FastRNNError, match="unknown reduction 'mean'"):
        calls.reduce("mean", normal(0, 2, 2))
