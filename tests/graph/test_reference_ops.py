"""The reference's other ops against torch and onnx's own evaluator in float64; its sizes, errors and streams."""

import itertools

import numpy as np
import pytest
from graph_builder import GraphBuilder
from rnn_cases import CASES, graph_of, make_inputs

from fastrnn.errors import ShapeError, StreamError
from fastrnn.graph import BINARY, OPS, UNARY, Graph, Node, Value, reference, validate
from fastrnn.graph.cells import CellSpec
from fastrnn.graph.dims import BATCH, TIME, floordiv, symbol
from fastrnn.graph.ops import elementwise
from fastrnn.graph.ops.elementwise import BITWISE
from fastrnn.graph.vocabulary import ROWS

RNG = np.random.default_rng(11)
# Both signs, halves (which round to even), both ends of exp, and the special values.
POINTS = np.array([0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1e-9, -1e-9, 0.3, -0.7, 1.0, -1.0, 3.0, -3.0, 6.0, -6.0, 25.0])
POINTS = np.concatenate(
    [POINTS, -POINTS[-1:], [700.0, -700.0, 1e300, -1e300, np.inf, -np.inf, np.nan], np.linspace(-4, 4, 33)]
)


def torch_unary():
    """fn -> (torch's function of a float64 tensor, alpha, beta)"""
    import torch
    from torch.nn import functional as F

    plain = {
        name: (getattr(torch, name), 0.0, 0.0)
        for name in (
            "neg abs exp log sqrt sign floor ceil round erf sin cos tan asin acos atan sinh cosh asinh acosh atanh "
            "tanh sigmoid relu"
        ).split()
    }
    return plain | {
        "recip": (torch.reciprocal, 0.0, 0.0),
        "affine": (lambda x: 0.3 * x + 0.7, 0.3, 0.7),
        "leaky_relu": (lambda x: F.leaky_relu(x, 0.03), 0.03, 0.0),
        "thresholded_relu": (lambda x: F.threshold(x, 0.2, 0.0), 0.2, 0.0),
        "scaled_tanh": (lambda x: 1.7 * torch.tanh(0.6 * x), 1.7, 0.6),
        "hard_sigmoid": (lambda x: F.hardsigmoid(x), 1 / 6, 0.5),
        "elu": (lambda x: F.elu(x, 1.3), 1.3, 0.0),
        "selu": (F.selu, 1.6732632423543772, 1.0507009873554805),
        "softsign": (lambda x: x / (1 + x.abs()), 0.0, 0.0),
        # torch turns linear at its threshold: beyond 40 the rest is below an ulp.
        "softplus": (lambda x: F.softplus(x, threshold=40), 0.0, 0.0),
        "gelu": (F.gelu, 0.0, 0.0),
        "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), 0.0, 0.0),
        "silu": (F.silu, 0.0, 0.0),
        "hard_swish": (F.hardswish, 0.0, 0.0),
        "mish": (lambda x: x * torch.tanh(F.softplus(x, threshold=40)), 0.0, 0.0),
        "clip": (lambda x: F.hardtanh(x, -0.4, 2.1), -0.4, 2.1),
    }


@pytest.mark.parametrize("fn", sorted(UNARY - {"not"} - BITWISE))
def test_unary_functions_are_those_of_torch(fn):
    import torch

    theirs, alpha, beta = torch_unary()[fn]
    points = POINTS
    if fn in ("gelu_tanh", "hard_swish", "silu", "mish", "gelu", "softsign"):
        points = POINTS[~np.isinf(POINTS)]  # x * 0 at infinity is a matter of taste
    if fn == "gelu_tanh":
        points = points[~(np.abs(points) > 1e100)]  # x**3 overflows
    if fn == "sign":
        points = points[~np.isnan(points)]  # torch says 0, NumPy and we NaN
    answer = reference.unary(fn, points, alpha, beta)
    tolerance = 1e-15 if fn in ("gelu", "gelu_tanh") else 1e-300  # torch cancels in 1 + erf, and the tanh form too
    np.testing.assert_allclose(answer, theirs(torch.from_numpy(points)).numpy(), rtol=4e-15, atol=tolerance)
    assert answer.dtype == np.float64


def test_odd_functions_are_odd_and_bounded_ones_bounded():
    x = np.linspace(0, 50, 2001)
    for fn in ("tanh", "softsign", "scaled_tanh", "erf", "sin"):
        np.testing.assert_array_equal(reference.unary(fn, -x, 1.2, 0.8), -reference.unary(fn, x, 1.2, 0.8))
    s = reference.unary("sigmoid", np.concatenate([-x, x]))
    assert s.min() > 0
    assert s.max() <= 1
    np.testing.assert_allclose(reference.unary("sigmoid", -x) + reference.unary("sigmoid", x), 1, rtol=0, atol=5e-16)


BINARY_TORCH = {
    "sub": "sub",
    "add": "add",
    "mul": "mul",
    "div": "div",
    "pow": "pow",
    "min": "minimum",
    "max": "maximum",
}
BINARY_TORCH |= {
    "mod": "remainder",
    "fmod": "fmod",
    "equal": "eq",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
}
BINARY_TORCH |= {"less_equal": "le", "and": "logical_and", "or": "logical_or", "xor": "logical_xor"}


@pytest.mark.parametrize("fn", sorted(BINARY - BITWISE))
def test_binary_functions_are_those_of_torch(fn):
    import torch

    values = np.array([-3.0, -1.5, -0.0, 0.0, 0.5, 1.0, 2.0, np.inf, np.nan])
    if fn in ("mod", "fmod"):
        values = values[np.isfinite(values) & (values != 0)]
    if fn in ("and", "or", "xor"):
        values = np.array([True, False])
    a, b = values[:, None], values[None, :]
    if fn == "prelu":
        # a slope of -inf or NaN times 0 is the only place of doubt
        theirs = torch.where(torch.from_numpy(a) >= 0, torch.from_numpy(a), torch.from_numpy(b) * torch.from_numpy(a))
    else:
        theirs = getattr(torch, BINARY_TORCH[fn])(torch.from_numpy(a), torch.from_numpy(b))
    answer = reference.binary(fn, a, b)
    np.testing.assert_allclose(answer, theirs.numpy(), rtol=1e-15, atol=0)
    assert answer.dtype == theirs.numpy().dtype


def test_integers_divide_towards_zero_and_mod_follows_the_divisor():
    a, b = np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])
    assert reference.binary("div", a, b).tolist() == [3, -3, -3, 3]
    assert reference.binary("mod", a, b).tolist() == [1, 1, -1, -1]


# ---- ops of a graph, each against onnx's evaluator -------------------------------------------------------------------


def onnx_answer(op, inputs, opset=18, **attributes):
    """What onnx's ReferenceEvaluator gives for one node on these arrays."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    names = [f"i{k}" for k in range(len(inputs))]
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, inputs, strict=True)
    ]
    node = helper.make_node(op, names, ["y"], **attributes)
    out = helper.make_empty_tensor_value_info("y")
    model = helper.make_model(
        helper.make_graph([node], "g", infos, [out]), opset_imports=[helper.make_opsetid("", opset)]
    )
    return ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))[0]


def one_node(op, inputs, dtypes=None, constants=(), **attrs):
    """Evaluate one op through a graph whose inputs are the arrays; those numbered in `constants` are constants."""
    b, names, feeds = GraphBuilder(op), [], {}
    for k, array in enumerate(inputs):
        if array is None:
            names.append(None)
        elif k in constants:
            names.append(b.constant(f"c{k}", array))
        else:
            names.append(b.input(f"i{k}", str(array.dtype), *array.shape))
            feeds[f"i{k}"] = array
    b.add(op, *names, name="y", **attrs)
    return reference.run(b.done("y"), feeds)[0]


X = RNG.normal(size=(3, 4, 5))
IDS = np.array([[0, 3], [-1, 2]])


@pytest.mark.parametrize(
    "case", ["matmul", "matmul_vector", "transpose", "concat", "gather", "where", "expand", "reshape"]
)
def test_data_movement_and_products(case):
    ours, theirs = {
        "matmul": lambda: (
            one_node("matmul", [X, X.swapaxes(1, 2).copy()]),
            onnx_answer("MatMul", [X, X.swapaxes(1, 2)]),
        ),
        "matmul_vector": lambda: (one_node("matmul", [X, X[0, 0]]), onnx_answer("MatMul", [X, X[0, 0]])),
        "transpose": lambda: (
            one_node("transpose", [X], perm=(2, 0, 1)),
            onnx_answer("Transpose", [X], perm=[2, 0, 1]),
        ),
        "concat": lambda: (one_node("concat", [X, X[:, :2]], axis=1), onnx_answer("Concat", [X, X[:, :2]], axis=1)),
        "gather": lambda: (one_node("gather", [X, IDS], axis=1), onnx_answer("Gather", [X, IDS], axis=1)),
        "where": lambda: (one_node("where", [X > 0, X, X[:1]]), onnx_answer("Where", [X > 0, X, X[:1]])),
        "expand": lambda: (
            one_node("expand", [X[:, :1]], dims=(3, 4, 5)),
            onnx_answer("Expand", [X[:, :1], np.array([3, 4, 5])]),
        ),
        "reshape": lambda: (one_node("reshape", [X], dims=(12, 5)), onnx_answer("Reshape", [X, np.array([12, 5])])),
    }[case]()
    np.testing.assert_allclose(ours, theirs, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("ends", [(0, 4, 1), (1, 3, 1), (0, 4, 3), (3, -1, -1), (3, 0, -2), (2, 2, 1)])
def test_slices_are_those_of_onnx(ends):
    start, stop, step = ends
    ends = [np.array([v]) for v in (start, -5 if stop == -1 else stop, 1, step)]  # ONNX counts -1 from the end
    np.testing.assert_array_equal(
        one_node("slice", [X], axis=1, start=start, stop=stop, step=step), onnx_answer("Slice", [X, *ends])
    )


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("fn", ["sum", "mean", "max", "min"])
def test_reductions_are_those_of_onnx(fn, axes, keepdims):
    theirs = onnx_answer(f"Reduce{fn.title()}", [X, np.array(axes)], keepdims=int(keepdims))
    np.testing.assert_allclose(one_node("reduce", [X], fn=fn, axes=axes, keepdims=keepdims), theirs, rtol=1e-14)


def test_reductions_of_bools():
    """max is any, min is all; of nothing, False and True."""
    x = np.array([[True, False], [True, True], [False, False]])
    for array, any_, all_ in ((x, [1, 1, 0], [0, 1, 0]), (x[:, :0], [0, 0, 0], [1, 1, 1])):
        assert one_node("reduce", [array], fn="max", axes=(1,), keepdims=False).tolist() == any_
        assert one_node("reduce", [array], fn="min", axes=(1,), keepdims=False).tolist() == all_


def test_reductions_of_nothing():
    nothing = np.zeros((2, 0))
    got = {fn: one_node("reduce", [nothing], fn=fn, axes=(1,), keepdims=False) for fn in ("sum", "mean", "max", "min")}
    assert got["sum"].tolist() == [0, 0]
    assert np.isnan(got["mean"]).all()
    assert got["max"].tolist() == [-np.inf, -np.inf]
    assert got["min"].tolist() == [np.inf, np.inf]
    assert one_node("reduce", [np.array([[-7, 4]])], fn="mean", axes=(1,), keepdims=False).tolist() == [-1]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax_is_that_of_torch_and_does_not_overflow(axis):
    import torch

    x = X * 300
    tensor = torch.from_numpy(x)
    for log, theirs in ((False, torch.softmax(tensor, axis)), (True, torch.log_softmax(tensor, axis))):
        ours = one_node("softmax", [x], axis=axis, log=log)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("form", ["plain", "scale", "both"])
def test_layer_norm_is_that_of_torch(axis, form):
    import torch

    shape = X.shape[axis:]
    scale = None if form == "plain" else RNG.normal(size=shape)
    bias = RNG.normal(size=shape) if form == "both" else None
    inputs = [X] + [a for a in (scale, bias) if a is not None]
    tensors = [None if a is None else torch.from_numpy(a) for a in (X, scale, bias)]
    theirs = torch.nn.functional.layer_norm(tensors[0], shape, tensors[1], tensors[2], eps=1e-3)
    np.testing.assert_allclose(one_node("layer_norm", inputs, axis=axis, epsilon=1e-3), theirs.numpy(), atol=1e-13)


@pytest.mark.parametrize("activation", [None, "leaky_relu"])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_that_of_torch(bias, activation):
    import torch

    W, add = RNG.normal(size=(5, 6)), RNG.normal(size=6) if bias else None
    theirs = torch.from_numpy(X) @ torch.from_numpy(W) + (torch.from_numpy(add) if bias else 0)
    theirs = torch.nn.functional.leaky_relu(theirs, 0.3) if activation else theirs
    ours = one_node("linear", [X, W, add], constants=(1, 2), activation=activation, alpha=0.3, beta=0.0)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-13, atol=1e-14)


def test_casts():
    x = np.array([-1.7, -0.2, 0.0, 2.9])
    assert one_node("cast", [x], to="int64").tolist() == [-1, 0, 0, 2]
    assert one_node("cast", [x], to="bool").tolist() == [True, True, False, True]
    assert one_node("cast", [x], to="int32").dtype == np.int32
    assert one_node("cast", [np.array([True, False])], to="float32").dtype == np.float64


def test_every_op_and_function_has_a_meaning():
    assert {name for name, row in ROWS.items() if row.meaning is not None} == OPS - {"state"}
    assert set(elementwise._UNARY) == UNARY
    assert set(elementwise._BINARY) == BINARY


# ---- sizes -----------------------------------------------------------------------------------------------------------


def two_inputs(*dims_of_b):
    b = GraphBuilder("pair")
    x = b.input("a", "float32", TIME, BATCH, 2)
    b.input("b", "float32", *dims_of_b)
    b.add("unary", x, name="y", fn="neg", alpha=0.0, beta=0.0)
    return b.done("y")


def test_symbols_are_solved_from_any_input():
    graph = two_inputs(2 * TIME + 1, BATCH - 3, TIME * BATCH)
    feeds = {"a": np.ones((4, 5, 2)), "b": np.ones((9, 2, 20))}
    assert reference.bind_sizes(graph, feeds) == {"time": 4, "batch": 5}
    other = two_inputs(3 * symbol("frames") + 2)
    assert reference.bind_sizes(other, {"a": np.ones((1, 1, 2)), "b": np.ones(8)})["frames"] == 2


@pytest.mark.parametrize(
    ("dims", "shape_a", "shape_b", "text"),
    [
        ((TIME, 3), (4, 1, 2), (5, 3), r"input b, axis 0: got 5, expected time = 4"),
        ((TIME, 3), (4, 1, 2), (4, 2), r"input b, axis 1: got 2, expected 3"),
        ((TIME, 3), (4, 1, 7), (4, 3), r"input a, axis 2: got 7, expected 2"),
        ((TIME, 3), (4, 1), (4, 3), r"input a: got 2 axes \[4, 1\], expected a: float32\[time, batch, 2\]"),
        ((2 * symbol("n") + 1,), (4, 1, 2), (4,), r"a size of 4 is not 2\*n\+1 for any n"),
        ((symbol("n") + 5,), (4, 1, 2), (4,), r"a size of 4 is not n\+5 for any n"),
        ((floordiv(symbol("n"), 2),), (4, 1, 2), (4,), r"input b, axis 0: can't tell \(n\)//2 from the size 4"),
    ],
)
def test_sizes_that_contradict_say_where(dims, shape_a, shape_b, text):
    with pytest.raises(ShapeError, match=text):
        reference.run(two_inputs(*dims), {"a": np.ones(shape_a), "b": np.ones(shape_b)})


def test_given_sizes_fill_in_and_are_checked():
    graph = two_inputs(floordiv(symbol("n"), 2))
    feeds = {"a": np.ones((4, 1, 2)), "b": np.ones(4)}
    assert reference.bind_sizes(graph, feeds, {"n": 9})["n"] == 9
    with pytest.raises(ShapeError, match=r"axis 0: got 4, expected \(n\)//2 = 5"):
        reference.run(graph, feeds, sizes={"n": 10})
    with pytest.raises(ShapeError, match="axis 0: got 4, expected time = 3"):
        reference.run(graph, feeds, sizes={"n": 9, "time": 3})


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({"a": np.ones((1, 1, 2))}, "pair: the input 'b' is missing; inputs are a, b"),
        ({"a": np.ones((1, 1, 2)), "b": np.ones(1), "z": 0}, "no input is named 'z'; inputs are a, b"),
        ({"a": np.ones((1, 1, 2), bool), "b": np.ones(1)}, "input a: got bool, expected float32"),
    ],
)
def test_wrong_feeds_say_which(feeds, text):
    with pytest.raises(ShapeError, match=text):
        reference.run(two_inputs(TIME), feeds)


def test_an_integer_input_refuses_fractions():
    b = GraphBuilder("ids")
    ids = b.input("ids", "int64", BATCH)
    b.add("gather", b.constant("table", np.ones((3, 2), np.float32)), ids, name="y", axis=0)
    graph = b.done("y")
    assert reference.run(graph, {"ids": np.array([0, -3], np.int32)})[0].shape == (2, 2)
    with pytest.raises(ShapeError, match="input ids: got float64, expected int64"):
        reference.run(graph, {"ids": np.array([0.5])})
    with pytest.raises(ShapeError, match=r"node node_y \(gather\): index 3 is outside \[-3, 3\), the size of axis 0"):
        reference.run(graph, {"ids": np.array([0, 3])})


def test_a_slice_that_leaves_its_axis_says_so():
    b = GraphBuilder("last")
    x = b.input("x", "float32", TIME, 2)
    b.add("slice", x, name="y", axis=0, start=TIME - 2, stop=TIME, step=1)
    graph = b.done("y")
    assert reference.run(graph, {"x": np.arange(6.0).reshape(3, 2)})[0].tolist() == [[2, 3], [4, 5]]
    with pytest.raises(ShapeError, match=r"node node_y \(slice\): slice \[-1:1:1\] of axis 0 leaves its size 1"):
        reference.run(graph, {"x": np.ones((1, 2))})


# ---- streams ---------------------------------------------------------------------------------------------------------

STREAMED = [case for case in CASES if case.streamable and case.T <= 7 and case.H <= 40]


@pytest.mark.parametrize("case", STREAMED, ids=[case.id for case in STREAMED])
def test_a_stream_gives_the_whole_run(case):
    """Steps and chunks give the sequence of the whole run, and at each step the states of a run that ends there."""
    graph, inputs = graph_of(case), make_inputs(case)
    axis = 1 if case.layout else 0
    whole = dict(zip(case.outputs, reference.run(graph, inputs), strict=True))
    fixed = {name: a for name, a in inputs.items() if name != "X"}
    by_step, by_chunk = reference.StreamReference(graph), reference.StreamReference(graph)
    steps = []
    for t in range(case.T):
        x = np.take(inputs["X"], t, axis)
        steps.append(dict(zip(case.outputs, by_step.step({"X": x, **(fixed if t == 0 else {})}), strict=True)))
    ends = sorted({0, case.T // 3, case.T})
    pushed = []
    for start, stop in [(0, 0), *itertools.pairwise(ends)]:
        x = np.take(inputs["X"], np.arange(start, stop), axis)
        pushed.append(dict(zip(case.outputs, by_chunk.push({"X": x, **(fixed if start == 0 else {})}), strict=True)))
    for name in case.outputs:
        if name == "Y":
            np.testing.assert_array_equal(np.stack([s[name] for s in steps], axis), whole[name])
            np.testing.assert_array_equal(np.concatenate([p[name] for p in pushed], axis), whole[name])
        else:
            np.testing.assert_array_equal(steps[-1][name], whole[name])
            np.testing.assert_array_equal(pushed[-1][name], whole[name])


def test_there_are_streams_of_each_kind():
    assert {(case.kind, case.layout) for case in STREAMED} == set(itertools.product(("rnn", "lstm", "gru"), (0, 1)))


@pytest.mark.parametrize("initial", [None, "start"])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_state_node_is_its_input_one_step_ago(initial, steps):
    values = {n: Value(n, "float32", (TIME, 2)) for n in ("x", "prev", "y")} | {
        "start": Value("start", "float32", (2,))
    }
    nodes = (
        Node("state", "memory", ("y", initial), ("prev",)),
        Node("binary", "sum", ("x", "prev"), ("y",), {"fn": "add"}),
    )
    start = np.array([10.0, 20.0], np.float32)
    graph = validate(Graph("sum", ("x",), ("y",), nodes, values, {"start": start}))
    x = RNG.integers(0, 9, (steps, 2)).astype(float)
    totals = np.cumsum(x, 0) + (start if initial else 0)
    np.testing.assert_array_equal(reference.run(graph, {"x": x})[0], totals)
    stream = reference.StreamReference(graph)
    for row, total in zip(x, totals, strict=True):
        np.testing.assert_array_equal(stream.step({"x": row})[0], total)


def step_function():
    """A file of one step that threads its state by hand: h -> hn; x [batch, 3], h [batch, 4]."""
    b = GraphBuilder("one_step")
    x, h = b.input("x", "float32", BATCH, 3), b.input("h", "float32", BATCH, 4)
    W, R = (b.constant(n, RNG.normal(size=(4, k)).astype(np.float32)) for n, k in (("W", 3), ("R", 4)))
    row = b.add("reshape", x, dims=(1, BATCH, 3))
    b.add("cell", row, W, R, None, None, None, h, outputs=("y", "hn"), spec=CellSpec("rnn", 3, 4))
    return b.done("y", "hn", states={"h": "hn"})


def test_threaded_states_are_carried():
    graph = step_function()
    x, h0 = RNG.normal(size=(6, 2, 3)), RNG.normal(size=(2, 4))
    weights = graph.constants["W"], graph.constants["R"]
    for initial in (None, {"h": h0}):
        stream = reference.StreamReference(graph, initial=initial)
        steps = np.stack([stream.step({"x": step})[0][0] for step in x])
        whole = reference.cell(CellSpec("rnn", 3, 4), x, *weights, h0=h0 if initial else None)[0]
        np.testing.assert_allclose(steps, whole, rtol=0, atol=1e-15)


def test_a_reverse_layer_does_not_stream():
    case = next(case for case in CASES if case.direction == "bidirectional")
    with pytest.raises(StreamError, match=f"node node_cell_1: a reverse {case.kind} needs the whole sequence"):
        reference.StreamReference(graph_of(case))
