"""Windows, pad, argmax, cumsum, gather and integers in the engine: against the reference, at odd sizes, by the bit."""

import numpy as np
import pytest
from graph_builder import GraphBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrnn.compile import lowering
from fastrnn.errors import ShapeError, UnsupportedError
from fastrnn.graph import DTYPES, reference
from fastrnn.graph import dims as D
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.machine import _isa
from fastrnn.machine import _kernel_calls as calls
from fastrnn.model import Model
from fastrnn.runtime._executor import Program
from fastrnn.streaming import conditions

ISAS = [isa for isa in _isa.isa_info()["available"] if _isa.kernels_of(isa) == isa]  # with float32 kernels of their own


def real(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(graph, *arrays, isa=None):
    """The engine's answers on one instruction set, from memory that holds no zeros before."""
    values = [graph.values[n] for n in graph.inputs]
    env = {"batch": 1, "time": 1} | reference.bind_sizes(graph, dict(zip(graph.inputs, arrays, strict=True)))
    feeds = [np.ascontiguousarray(a, DTYPES[v.dtype]) for a, v in zip(arrays, values, strict=True)]
    outs = []
    for name in graph.outputs:
        value = graph.values[name]
        outs.append(np.full([D.evaluate(d, env) for d in value.dims], 77, DTYPES[value.dtype]))
    plan = lowering.lower(graph, "run", lowering.Weights(isa))
    Program(plan).run(feeds, outs, env["batch"], env["time"])
    return outs, plan


def check(graph, *arrays, isa=None, tolerance=2e-5):
    """Engine and reference agree; each row alone has the bits that it has among its neighbours."""
    outs, plan = run(graph, *arrays, isa=isa)
    exact = reference.run(graph, dict(zip(graph.inputs, arrays, strict=True)))
    for ours, theirs in zip(outs, exact, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    if graph.values[graph.outputs[0]].dims[0] == BATCH:
        for r in range(arrays[0].shape[0]):
            alone, _ = run(graph, *(a[r : r + 1] for a in arrays), isa=isa)
            for one, all_ in zip(alone, outs, strict=True):
                assert one.tobytes() == all_[r : r + 1].tobytes()
    return outs, plan


def conv_graph(case, activation=None, channels_last=False, op="conv", time_axis=-1):
    """x [batch, C, L..] (or [batch, L.., C]) -> one convolution, its axis `time_axis` TIME, perhaps an activation."""
    C, M, kernel, strides, dilations, pads, groups, L = case
    L = list(L)
    L[time_axis] = TIME
    b = GraphBuilder(op)
    if channels_last:
        x = b.input("x", "float32", BATCH, *L, C)
        x = b.add("transpose", x, perm=(0, len(L) + 1, *range(1, len(L) + 1)))
    else:
        x = b.input("x", "float32", BATCH, C, *L)
    shape = (M, C // groups, *kernel) if op == "conv" else (C, M // groups, *kernel)
    W, bias = b.constant("W", real(1, *shape)), b.constant("bias", real(2, M))
    more = {"output_padding": tuple(s - 1 for s in strides)} if op == "conv_transpose" else {}
    y = b.add(op, x, W, bias, strides=strides, dilations=dilations, pads=pads, groups=groups, **more)
    if activation:
        y = b.add("unary", y, fn=activation, alpha=0.1, beta=0.0)
    return b.done(y)


CASES = {
    "1-d": (5, 7, (3,), (1,), (1,), (0, 0), 1, (9,)),
    "causal": (5, 7, (3,), (1,), (2,), (4, 0), 1, (9,)),
    "same": (16, 16, (5,), (1,), (1,), (2, 2), 1, (40,)),
    "pointwise": (33, 20, (1,), (1,), (1,), (0, 0), 1, (25,)),
    "filterbank": (1, 130, (64,), (32,), (1,), (0, 0), 1, (300,)),
    "strided": (6, 4, (4,), (3,), (2,), (1, 5), 1, (31,)),
    "groups": (6, 9, (3,), (2,), (1,), (1, 1), 3, (17,)),
    "depthwise": (21, 21, (3,), (1,), (2,), (4, 0), 21, (37,)),
    "multiplier": (5, 10, (3,), (1,), (1,), (1, 1), 5, (12,)),
    "2-d": (3, 8, (2, 3), (1, 2), (1, 1), (1, 1, 0, 1), 1, (4, 15)),
    "2-d dilated": (4, 6, (3, 3), (1, 1), (2, 1), (4, 1, 0, 1), 2, (5, 11)),
    "2-d depthwise": (16, 16, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 16, (4, 33)),
    "2-d row": (16, 12, (1, 5), (1, 2), (1, 1), (0, 2, 0, 2), 1, (3, 65)),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_conv(name, channels_last, isa):
    case = CASES[name]
    graph = conv_graph(case, channels_last=channels_last)
    shape = (*case[7], case[0]) if channels_last else (case[0], *case[7])
    check(graph, real(3, 3, *shape), isa=isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
def test_conv_transpose(name, isa):
    case = CASES[name]
    for time_axis in range(-len(case[7]), 0):
        check(conv_graph(case, op="conv_transpose", time_axis=time_axis), real(3, 2, case[0], *case[7]), isa=isa)


@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
@pytest.mark.parametrize("name", CASES)
def test_an_activation_is_applied_with_the_product(name, op):
    case = CASES[name]
    x = real(3, 2, case[0], *case[7])
    (y,), plan = check(conv_graph(case, "leaky_relu", op=op), x)
    (plain,), _ = run(conv_graph(case, op=op), x)
    assert "elementwise" not in [o.kind for o in plan.ops]
    expected = calls.map_function("leaky_relu", plain, 0.1)
    assert y.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["causal", "same", "depthwise", "2-d dilated"])
def test_lengths_of_a_convolution(name):
    case = CASES[name]
    graph = conv_graph(case)
    for length in (0, 1, 2, 3, 5, 96, 97, 300):
        check(graph, real(length, 2, case[0], *case[7][:-1], length))


def test_a_position_has_the_same_bits_wherever_it_lies():
    """Shifted input, shifted output: blocks of positions and tiles of rows don't show."""
    for name in ("1-d", "filterbank", "strided", "groups", "depthwise"):
        case = CASES[name]
        graph = conv_graph((*case[:5], (0, 0), *case[6:]))
        x = real(5, 1, case[0], 2500)
        (whole,), _ = run(graph, x)
        for shift in (1, 7, 50):
            (part,), _ = run(graph, x[:, :, shift * case[3][0] :])
            assert part.tobytes() == whole[:, :, shift:].tobytes()


def test_a_length_too_short_for_the_window_is_refused():
    model = Model(conv_graph(CASES["filterbank"]))
    assert model.run(real(1, 1, 1, 64))[0].shape == (1, 130, 1)
    with pytest.raises(ShapeError):
        model.run(real(1, 1, 1, 20))


def test_a_row_of_nan_stays_alone():
    for name in ("same", "depthwise", "2-d"):
        case = CASES[name]
        x = real(1, 3, case[0], *case[7])
        graph = conv_graph(case)
        (clean,), _ = run(graph, x)
        x[1] = np.nan
        (y,), _ = run(graph, x)
        assert y[[0, 2]].tobytes() == clean[[0, 2]].tobytes()
        assert np.isnan(y[1]).all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_patches_that_are_one_run_are_not_copied(channels_last):
    """A channels-last input of a 1-d convolution is read where it lies."""
    graph = conv_graph(CASES["1-d"], channels_last=channels_last)
    kinds = [op.kind for op in lowering.lower(graph, "run", lowering.Weights()).ops]
    assert kinds == (["conv", "copy"] if channels_last else ["copy", "conv", "copy"])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_convolutions_of_any_form(data):
    def ints(low, high, n=1):
        return tuple(data.draw(st.lists(st.integers(low, high), min_size=n, max_size=n)))

    rank, groups = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 1, 2, 3, 17]))
    C, M = (n * groups for n in ints(1, 3, 2))
    op = data.draw(st.sampled_from(["conv", "conv_transpose"]))
    pads = ints(0, 2, 2 * rank)
    case = (C, M, ints(1, 4, rank), ints(1, 3, rank), ints(1, 3, rank), pads, groups, ints(6, 20, rank))
    try:
        graph = conv_graph(case, op=op)
    except ShapeError:
        return
    x = real(7, 2, C, *case[7])
    if D.evaluate(graph.values[graph.outputs[0]].dims[-1], {"batch": 2, "time": case[7][-1]}) >= 0:
        check(graph, x)


POOLS = [
    ((3,), (2,), (1, 0), (1,), (13,)),
    ((2,), (2,), (0, 0), (1,), (9,)),
    ((3,), (1,), (2, 1), (2,), (9,)),
    ((2, 3), (2, 2), (1, 1, 0, 1), (1, 1), (5, 12)),
    ((1, 2), (1, 3), (0, 0, 0, 0), (1, 2), (3, 17)),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("fn", ["max", "mean", "mean with pads"])
@pytest.mark.parametrize("pool", POOLS)
def test_pool(pool, fn, ceil, isa):
    kernel, strides, pads, dilations, L = pool
    b = GraphBuilder("pool")
    x = b.input("x", "float32", BATCH, 19, *L[:-1], TIME)
    y = b.add(
        "pool", x, fn=fn.split()[0], kernel=kernel, strides=strides, pads=pads, dilations=dilations,
        count_include_pad=fn.endswith("pads"), ceil=ceil,
    )  # fmt: skip
    graph = b.done(y)
    check(graph, real(1, 3, 19, *L), isa=isa)
    x = real(1, 2, 19, *L)
    x[0, 3] = np.nan
    assert np.isnan(run(graph, x)[0][0][0, 3]).all()


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
@pytest.mark.parametrize("pads", [(0, 0, 2, 0, 0, 3), (0, 1, 0, 0, 2, 1), (0, 2, -1, 0, -1, 3), (0, 0, -2, 0, 0, -1)])
def test_pad(pads, mode):
    b = GraphBuilder("pad")
    x = b.input("x", "float32", BATCH, 4, TIME)
    graph = b.done(b.add("pad", x, pads=pads, mode=mode, value=1.5))
    for length in (5, 6, 40):
        check(graph, real(length, 2, 4, length), tolerance=0)


@pytest.mark.parametrize("mode", ["edge", "reflect"])
def test_a_pad_that_has_nothing_to_show_is_refused(mode):
    b = GraphBuilder("pad")
    x = b.input("x", "float32", BATCH, TIME)
    model = Model(b.done(b.add("pad", x, pads=(0, 2, 0, 0), mode=mode, value=0.0)))
    least = 1 if mode == "edge" else 3
    assert model.run(real(1, 1, least))[0].shape == (1, least + 2)
    with pytest.raises(ShapeError, match="too short"):
        model.run(real(1, 1, least - 1))


def test_pad_of_integers_and_bools():
    b = GraphBuilder("pad")
    x, m = b.input("x", "int64", BATCH, 3), b.input("m", "bool", BATCH, 3)
    y = b.add("pad", x, pads=(0, 1, 0, 2), mode="constant", value=7)
    z = b.add("pad", m, pads=(0, 1, 0, 2), mode="constant", value=1)
    check(b.done(y, z), np.array([[1, 2, 1 << 60]]), np.array([[True, False, True]]), tolerance=0)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_argmax(axis, largest, last):
    for keepdims in (False, True):
        b = GraphBuilder("argmax")
        x = b.input("x", "float32", BATCH, TIME, 6)
        graph = b.done(b.add("argmax", x, axis=axis, keepdims=keepdims, last=last, largest=largest))
        x = np.round(real(axis, 3, 5, 6) * 2)  # many are equal
        outs, _ = run(graph, x)
        assert np.array_equal(outs[0], reference.run(graph, {"x": x})[0])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_cumsum(dtype, exclusive, reverse):
    for axis in (1, 2):
        b = GraphBuilder("cumsum")
        x = b.input("x", dtype, BATCH, TIME, 6)
        graph = b.done(b.add("cumsum", x, axis=axis, exclusive=exclusive, reverse=reverse))
        for length in (0, 1, 9):
            x = (real(axis, 3, length, 6) * 100).astype(dtype)
            check(graph, x, tolerance=1e-5 if dtype == "float32" else 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_gather_along_any_axis(dtype, axis):
    b = GraphBuilder("gather")
    x, at = b.input("x", dtype, 4, 5, 6), b.input("at", "int64", BATCH, 2)
    graph = b.done(b.add("gather", x, at, axis=axis))
    table, picks = (real(1, 4, 5, 6) * 50).astype(dtype), np.array([[0, 3], [-1, 2], [-4, 1]])
    outs, _ = run(graph, table, picks)
    assert np.array_equal(outs[0], np.take(table, picks, axis))
    with pytest.raises(ShapeError, match="outside"):
        run(graph, table, picks + 9)


@pytest.mark.parametrize(
    ("picks", "view"),
    [
        ([[0, 1, 2], [1, 2, 3], [2, 3, 4]], True),  # an unfold
        ([4, 2, 0], True),
        ([-1, -1], True),
        ([-5, -4], True),
        ([[3]], True),
        (2, True),
        ([0, 1, 3], False),
        ([[0, 1], [1, 3]], False),
    ],
)
def test_constant_indices_in_even_steps_cost_nothing(picks, view):
    b = GraphBuilder("gather")
    x = b.input("x", "float32", BATCH, 5, 6)
    y = b.add("gather", x, b.constant("picks", np.array(picks)), axis=1)
    graph = b.done(b.add("unary", y, fn="tanh", alpha=0.0, beta=0.0))
    table = real(1, 2, 5, 6)
    outs, plan = run(graph, table)
    assert np.array_equal(outs[0], calls.map_function("tanh", np.take(table, picks, 1)))
    assert ("gather" not in [op.kind for op in plan.ops]) == view


def test_constant_indices_outside_are_an_error_when_met():
    b = GraphBuilder("gather")
    x = b.input("x", "float32", BATCH, 5)
    graph = b.done(b.add("gather", x, b.constant("picks", np.array([3, 4, 5])), axis=1))
    with pytest.raises(ShapeError, match="index 5 is outside"):
        run(graph, real(1, 2, 5))


def test_what_windows_read_is_written_channels_last():
    """unfold -> reshape -> conv -> prelu, joined to a cache -> depthwise conv: one copy each for what is moved."""
    b = GraphBuilder("frames")
    x, cache = b.input("x", "float32", BATCH, 4, 12), b.input("cache", "float32", BATCH, 6, 2, 10)
    frames = b.add("gather", x, b.constant("at", np.arange(3)[:, None] + np.arange(10)), axis=2)
    flat = b.add("reshape", b.add("transpose", frames, perm=(0, 2, 1, 3)), dims=(BATCH, 12, 1, 10))
    one = {"strides": (1, 1), "dilations": (1, 1)}
    y = b.add("conv", flat, b.constant("W", real(1, 6, 12, 1, 1)), **one, pads=(0, 0, 0, 0), groups=1)
    y = b.add("binary", y, b.constant("slope", np.float32([[[0.2]]])), fn="prelu")
    joined = b.add("concat", cache, y, axis=2)
    z = b.add("conv", joined, b.constant("V", real(2, 6, 1, 3, 3)), **one, pads=(0, 1, 0, 1), groups=6)
    graph = b.done(b.add("transpose", z, perm=(0, 2, 3, 1)))
    _, plan = check(graph, real(3, 2, 4, 12), real(4, 2, 6, 2, 10))
    assert [op.kind for op in plan.ops] == ["copy", "conv_rows", "copy", "depthwise_rows"]


INTEGERS = "add sub mul div mod pow min max equal greater greater_equal less less_equal".split()


@pytest.mark.parametrize("dtype", ["int64", "int32"])
@pytest.mark.parametrize("fn", INTEGERS)
def test_integers_are_exact(fn, dtype):
    b = GraphBuilder("integers")
    p, q = b.input("p", dtype, BATCH, TIME, 4), b.input("q", dtype, 4)
    graph = b.done(b.add("binary", p, q, fn=fn))
    big = 1 << (60 if dtype == "int64" else 29)
    p = np.array([[[7, -7, 0, big + 1], [-1, 5, 3, -big - 1]]])
    q = np.array([3, 2, 5, 1]) if fn == "pow" else np.array([-2, 3, 5, 1])
    outs, _ = run(graph, p, q)
    assert np.array_equal(outs[0], reference.run(graph, {"p": p, "q": q})[0])


def test_integers_wrap_and_divide_by_zero_without_a_trap():
    b = GraphBuilder("integers")
    p, q = b.input("p", "int64", 3), b.input("q", "int64", 3)
    graph = b.done(*(b.add("binary", p, q, fn=fn) for fn in ("div", "mod", "add")))
    least = np.iinfo(np.int64).min
    (quotient, rest, total), _ = run(graph, np.array([least, 5, least]), np.array([-1, 0, -1]))
    assert quotient.tolist() == [least, 0, least]
    assert rest.tolist() == [0, 0, 0]
    assert total.tolist() == [(1 << 63) - 1, 5, (1 << 63) - 1]


def test_index_arithmetic_on_live_values():
    b = GraphBuilder("index")
    i, x = b.input("i", "int64", BATCH), b.input("x", "float32", 9, 3)
    five = b.constant("five", np.array(5, np.int64))
    wrapped = b.add("where", b.add("binary", i, five, fn="less"), i, b.add("binary", i, five, fn="sub"))
    negative = b.add("unary", wrapped, fn="neg", alpha=0.0, beta=0.0)
    graph = b.done(b.add("gather", x, negative, axis=0), wrapped)
    check_at = np.array([0, 4, 5, 8])
    (y, w), _ = run(graph, check_at, real(1, 9, 3))
    assert w.tolist() == [0, 4, 0, 3]
    assert np.array_equal(y, real(1, 9, 3)[-w])


def test_an_integer_function_without_a_kernel_is_named():
    b = GraphBuilder("integers")
    x = b.input("x", "int64", 3)
    with pytest.raises(UnsupportedError, match="softplus of live integers"):
        run(b.done(b.add("unary", x, fn="softplus", alpha=0.0, beta=0.0)), np.arange(3))


def test_what_mirrors_or_picks_steps_of_all_is_refused_by_a_stream_by_name():
    assert conditions.problems(conv_graph(CASES["causal"])) == []
    b = GraphBuilder("others")
    x = b.input("x", "float32", BATCH, TIME, 6)
    padded = b.add("pad", x, pads=(0, 1, 0, 0, 0, 0), mode="edge", value=0.0)
    total = b.add("cumsum", x, axis=1, exclusive=False, reverse=False)
    best = b.add("argmax", x, axis=1, keepdims=False, last=False, largest=True)
    found = " ".join(conditions.problems(b.done(padded, total, best)))
    assert all(word in found for word in ("pads a sequence with a mirror", "cumsum runs", "argmax runs"))
