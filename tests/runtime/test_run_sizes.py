"""Sizes that are only known when a model runs: pads that turn negative, batches of nothing, and what a program checks
before its ops run."""

import dataclasses
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from graph_builder import GraphBuilder
from onnx import TensorProto, helper, numpy_helper

import fastrnn
from fastrnn.compile import bounds, lowering
from fastrnn.compile.tensors import Buffer
from fastrnn.errors import FastRNNError, ShapeError
from fastrnn.graph import dims as D
from fastrnn.graph import reference
from fastrnn.graph.cells import CellSpec
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.model import Model
from fastrnn.ops import OP_FIELDS
from fastrnn.runtime._executor import Program

pytestmark = pytest.mark.any_isa
RNG = np.random.default_rng(12)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def model_of(nodes, constants, features=2, lengths=False):
    """An ONNX model x [batch, time, features] -> y, and lengths [batch] int64 if asked for."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "time", features])]
    if lengths:
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]))
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    graph = helper.make_graph(nodes, "sized", inputs, [onnx.ValueInfoProto(name="y")], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return proto.SerializeToString()


def node(op, inputs, output, **attrs):
    return helper.make_node(op, inputs, [output], f"the_{output}", **attrs)


LENGTH = [node("Shape", ["x"], "shape"), node("Gather", ["shape", "one"], "length", axis=0)]
ONE = {"one": np.array([1])}


def padded(begin, end, mode="constant"):
    """`Pad` of the time axis: begin and end are ints, or "k-T" and "T-k" as exporters write them."""
    nodes, constants = list(LENGTH), dict(ONE) | {"zero": np.array([0]), "value": np.float32(7.5)}
    for name, amount in (("begin", begin), ("end", end)):
        constants[f"{name}_k"] = np.array([amount if isinstance(amount, int) else int(amount.strip("T-"))])
        if isinstance(amount, int):
            nodes.append(node("Identity", [f"{name}_k"], name))
        else:
            sides = [f"{name}_k", "length"] if amount.endswith("T") else ["length", f"{name}_k"]
            nodes.append(node("Sub", sides, name))
    nodes.append(node("Concat", ["zero", "begin", "zero", "zero", "end", "zero"], "pads", axis=0))
    nodes.append(node("Pad", ["x", "pads", *(["value"] if mode == "constant" else [])], "y", mode=mode))
    return model_of(nodes, constants)


@pytest.mark.parametrize(
    ("begin", "end", "mode"),
    [
        (0, "10-T", "constant"),
        ("10-T", 0, "constant"),
        ("6-T", "9-T", "constant"),
        ("T-6", "4-T", "constant"),
        (3, "8-T", "constant"),
        (-2, "8-T", "constant"),
        ("T-5", -1, "constant"),
        (0, "8-T", "edge"),
        ("5-T", 0, "reflect"),
    ],
)
def test_a_computed_pad_cuts_where_it_is_negative(begin, end, mode):
    """A write behind a buffer, on the heap: glibc aborted sooner or later."""
    file = padded(begin, end, mode)
    model, session = fastrnn.load(file), onnxruntime.InferenceSession(file)
    right, refused = [], []
    for time in (*range(18), 40, 70):
        x = normal(2, time, 2)
        try:
            (y,) = model.run(x)
        except ShapeError as error:
            assert "the_y" in str(error), error
            assert f"time is {time}" in str(error)
            refused.append(time)
            continue
        np.testing.assert_array_equal(y, reference.run(model.graph, {"x": x})[0].astype(np.float32))
        np.testing.assert_array_equal(y, session.run(None, {"x": x})[0])
        right.append(time)
    assert len(right) >= 5, refused


def test_a_pad_that_cuts_more_than_there_is_names_its_node():
    model = fastrnn.load(padded("6-T", "9-T"))
    assert model.run(normal(1, 15, 2))[0].shape == (1, 0, 2)
    with pytest.raises(ShapeError, match=r"node the_y.*time is 16: give other sizes"):
        model.run(normal(1, 16, 2))


MEAN = [node("ReduceMean", ["real", "zero"], "mean", keepdims=1), node("Add", ["x", "mean"], "y")]
RUNNING = {
    "a sum of step numbers": (
        [*LENGTH, node("Squeeze", ["length", "zero"], "count"), node("Range", ["start", "count", "step"], "steps"),
         node("Cast", ["steps"], "real", to=TensorProto.FLOAT), *MEAN],
        {"zero": np.array([0]), "start": np.int64(0), "step": np.int64(1)}, False,
    ),
    "a division by the length": (
        [*LENGTH, node("Cast", ["length"], "real", to=TensorProto.FLOAT), node("Div", ["x", "real"], "y")], {}, False,
    ),
    "a step at lengths - 1": (
        [node("Sub", ["lengths", "one"], "at"), node("Unsqueeze", ["at", "last"], "index"),
         node("Shape", ["x"], "shape"), node("Gather", ["shape", "zero"], "rows", axis=0),
         node("Concat", ["rows", "one", "features"], "wide", axis=0),
         node("Unsqueeze", ["index", "two"], "deep"), node("Expand", ["deep", "wide"], "everywhere"),
         node("GatherElements", ["x", "everywhere"], "y", axis=1)],
        {"zero": np.array([0]), "last": np.array([1]), "two": np.array([2]), "features": np.array([2])}, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", RUNNING)
@pytest.mark.parametrize("sizes", [(0, 5), (0, 1), (1, 5), (3, 70)])
def test_what_depends_on_no_row_runs_at_any_batch(what, sizes):
    nodes, constants, lengths = RUNNING[what]
    file = model_of(nodes, ONE | constants, lengths=lengths)
    model, session = fastrnn.load(file), onnxruntime.InferenceSession(file)
    feeds = {"x": normal(*sizes, 2)}
    if lengths:
        feeds["lengths"] = RNG.integers(1, sizes[1] + 1, sizes[0])
    (y,) = model.run(**feeds)
    np.testing.assert_allclose(y, session.run(None, feeds)[0], rtol=1e-6, atol=1e-6)


WIDE_SUM = """
import sys
import numpy as np
sys.path[:] = {paths!r}
from graph_builder import GraphBuilder
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.model import Model
from fastrnn.compile.tensors import Buffer
b = GraphBuilder("wide")
b.input("x", "float32", BATCH, TIME, 1)
b.constant("c", np.arange(9000, dtype=np.float32).reshape(1, 9000))
b.add("expand", "c", name="rows", dims=(TIME, 9000))
b.add("reduce", "rows", name="sum", fn="sum", axes=(0,), keepdims=False)
b.add("reduce", "x", name="none", fn="sum", axes=(1,), keepdims=False)
model = Model(b.done("sum", "none"))
for _ in range(20):
    y, none = model.run(np.zeros((0, 3, 1), np.float32))
    assert none.shape == (0, 1), none.shape
    assert np.array_equal(y, 3 * np.arange(9000)), y
print("whole")
"""


def test_a_sum_of_no_rows_keeps_to_its_memory():
    """Its state lay in a slab without rows: 72 KB read and written behind an array of 4 bytes."""
    code = WIDE_SUM.format(paths=sys.path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr[-2000:]


def test_a_slice_that_begins_behind_its_axis_is_refused():
    """x[:, T:4:-2] read step T, which is not there."""
    b = GraphBuilder("behind")
    b.input("x", "float32", BATCH, TIME, 2)
    b.add("slice", "x", name="y", axis=1, start=TIME, stop=4, step=-2)
    with pytest.raises(FastRNNError, match=r"node_y.*needs an axis that long"):
        Model(b.done("y"))


def test_the_cell_state_of_a_cell_without_one_is_refused():
    """Its place was that of the pointer before all buffers."""
    with pytest.raises(FastRNNError, match="the last c of a gru, which has none"):
        Model(zeroing(("y", "h", "c")))


def test_a_size_below_zero_names_the_node_that_makes_it():
    b = GraphBuilder("short")
    b.input("x", "float32", BATCH, TIME, 2)
    b.add("slice", "x", name="inner", axis=1, start=3, stop=TIME - 2, step=1)
    b.add("unary", "inner", name="y", fn="neg", alpha=0.0, beta=0.0)
    model = Model(b.done("y"))
    assert model.run(normal(2, 5, 2))[0].shape == (2, 0, 2)
    for time in (0, 1, 4):
        with pytest.raises(ShapeError, match=rf"node_inner.*time is {time}: give other sizes"):
            model.run(normal(2, time, 2))
        with pytest.raises(ShapeError, match="node_inner"):
            model.run(normal(2, 6, 2), lengths=[6, time])
        with pytest.raises(ShapeError, match="time"):
            model.run(normal(2, time, 2), lengths=[time, time])


def test_a_copy_of_no_elements_takes_any_shape():
    """An AttributeError: dims of which one is 0 don't fall together."""
    b = GraphBuilder("none")
    b.input("x", "float32", BATCH, TIME, 8)
    b.add("slice", "x", name="cut", axis=1, start=2, stop=2, step=2)
    b.add("reshape", "cut", name="pairs", dims=(BATCH, 0, 16))
    b.add("reduce", "pairs", name="y", fn="sum", axes=(1,), keepdims=False)
    pairs, y = Model(b.done("pairs", "y")).run(normal(3, 4, 8))
    assert pairs.shape == (3, 0, 16)
    np.testing.assert_array_equal(y, np.zeros((3, 16)))


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_a_window_of_a_few_steps_moves_on(dtype):
    """Copies whose last axis is short take the longer one first: each element is still where it belongs."""
    b = GraphBuilder("window")
    b.input("old", dtype, BATCH, 40, 4)
    b.input("new", dtype, BATCH, 40, 1)
    b.add("slice", "old", name="kept", axis=2, start=1, stop=4, step=1)
    b.add("concat", "kept", "new", name="window", axis=2)
    b.add("reduce", "window", name="sum", fn="sum", axes=(2,), keepdims=False)
    model = Model(b.done("window", "sum"))
    old, new = (RNG.integers(-99, 99, (3, 40, n)).astype(dtype) for n in (4, 1))
    window, total = model.run(old=old, new=new)
    expected = np.concatenate([old[:, :, 1:], new], 2)
    np.testing.assert_array_equal(window, expected)
    np.testing.assert_array_equal(total, expected.sum(2))


def test_lengths_where_a_shorter_row_has_a_longer_output_are_refused():
    """An IndexError, or a row cut off."""
    b = GraphBuilder("shorter")
    b.input("x", "float32", BATCH, TIME, 2)
    b.add("pad", "x", name="y", pads=(0, 9 - 2 * TIME, 0, 0, 0, 0), mode="constant", value=0.0)
    model = Model(b.done("y"))
    x = normal(2, 4, 2)
    np.testing.assert_array_equal(model.run(x, lengths=[4, 4])[0], model.run(x)[0])
    with pytest.raises(ShapeError, match=r"output y.*of length 3 is \[1, 6, 2\], which does not fit into \[2, 5, 2\]"):
        model.run(x, lengths=[3, 4])


# ---- the check of every binding --------------------------------------------------------------------------------------


def graph_of_every_kind():
    """One graph, or several, whose plans hold every kind of op."""
    b = GraphBuilder("kinds")
    b.input("x", "float32", BATCH, TIME, 4)
    b.input("i", "int64", BATCH, TIME)
    b.constant("table", normal(9, 4))
    b.add("gather", "table", "i", name="looked", axis=0)
    b.add("binary", "i", "i", name="i2", fn="add")
    b.add("reduce", "i", name="total", fn="sum", axes=(1,), keepdims=False)  # step after step
    b.add("reshape", "i", name="i3", dims=(BATCH, TIME, 1))
    b.add("reduce", "i3", name="folded", fn="max", axes=(2,), keepdims=False)
    b.add("binary", "x", "looked", name="sum", fn="add")
    b.constant("W", normal(4, 4))
    b.add("linear", "sum", "W", name="lin", activation="tanh", alpha=0.0, beta=0.0)
    b.add("transpose", "lin", name="across", perm=(0, 2, 1))
    b.constant("K", normal(4, 4, 2))
    b.add("conv", "across", "K", name="conv", strides=(1,), dilations=(1,), pads=(1, 0), groups=1)
    b.constant("D", normal(4, 1, 3))
    b.add("conv", "conv", "D", name="deep", strides=(1,), dilations=(1,), pads=(1, 1), groups=4)
    b.add("pool", "deep", name="pool", fn="max", kernel=(2,), strides=(1,), pads=(1, 0), dilations=(1,), ceil=False,
          count_include_pad=False)  # fmt: skip
    b.add("transpose", "pool", name="timed", perm=(2, 0, 1))
    cell = ("timed", b.constant("CW", normal(20, 4)), b.constant("CR", normal(20, 5)))
    spec = CellSpec("lstm", 4, 5)
    b.add("cell", *cell, outputs=("y", "h", "c"), spec=spec)
    b.add("softmax", "y", name="soft", axis=2, log=False)
    b.add("layer_norm", "soft", name="norm", axis=2, epsilon=1e-5)
    b.add("cumsum", "norm", name="cum", axis=2, exclusive=False, reverse=False)
    b.add("reduce", "cum", name="mean", fn="mean", axes=(0,), keepdims=False)
    b.add("reduce", "cum", name="most", fn="max", axes=(2,), keepdims=False)
    b.add("argmax", "cum", name="where", axis=2, keepdims=False, last=False, largest=True)
    b.add("transpose", "norm", name="rows", perm=(1, 0, 2))
    b.add("matmul", "rows", b.add("transpose", "rows", name="turned", perm=(0, 2, 1)), name="product")
    b.add("reshape", "rows", name="heads", dims=(BATCH, 1, TIME, 5))
    b.add("attention", "heads", "heads", "heads", name="seen", scale=0.5, softcap=0.0, causal=True, window=4, offset=0,
          safe=False)  # fmt: skip
    b.add("state", "timed", name="before")
    b.add("steps", name="numbers", dims=(BATCH, TIME), start=0)
    whole = ("product",)
    ends = ("mean", "most", "where", "seen", "before", "numbers", "h", "i2", "total", "folded")
    return b.done(*ends), b.done(*ends, *whole)


def zeroing(outputs=("y", "h")):
    """A cell over features of a stream: its states are this call's own, and begin at zero."""
    b = GraphBuilder("zeroing")
    b.input("x", "float32", BATCH, TIME, 3)
    b.add("reshape", "x", name="rows", dims=(BATCH * TIME, 3, 1))
    b.add("transpose", "rows", name="timed", perm=(1, 0, 2))
    arrays = (b.constant("W", normal(12, 1)), b.constant("R", normal(12, 4)))
    b.add("cell", "timed", *arrays, outputs=outputs, spec=CellSpec("gru", 1, 4))
    return b.done(*outputs)


def maps():
    """Convolutions over maps, each of another kind."""
    b = GraphBuilder("maps")
    b.input("x", "float32", BATCH, 16, 12, 12)
    attrs = {"strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1)}
    b.constant("W", normal(16, 16, 3, 3))
    b.add("conv", "x", "W", name="tiled", groups=1, **attrs)
    b.constant("V", normal(4, 16, 3, 2))
    b.add("conv", "x", "V", name="in_rows", groups=1, **attrs)
    b.constant("D", normal(16, 1, 3, 3))
    b.add("conv", "x", "D", name="apart", groups=16, **attrs | {"strides": (2, 2)})
    return b.done("tiled", "in_rows", "apart")


@pytest.fixture(scope="module")
def plans():
    """Plans that hold every kind of op."""
    streamed, whole = graph_of_every_kind()
    text = "h = tanh(W @ x + prev(h) * prev(h)); y = 2 * h"
    loop = fastrnn.from_equations(text, W=normal(3, 4), outputs=("y",)).graph
    text = "S = 0.9 * prev(S) + outer(K @ x, V @ x); y = (Q @ x) @ S"
    matrix = fastrnn.from_equations(text, K=normal(3, 4), V=normal(5, 4), Q=normal(3, 4), outputs=("y",)).graph
    weights = lowering.Weights()
    return [
        lowering.lower(whole, "run", weights),
        lowering.lower(streamed, "stream", weights),
        lowering.lower(zeroing(), "run", weights),
        lowering.lower(maps(), "run", weights),
        lowering.lower(loop, "run", weights),
        lowering.lower(loop, "stream", weights),
        lowering.lower(matrix, "run", weights),
        lowering.lower(matrix, "stream", weights),
    ]


def run_plan(plan, batch=2, time=3):
    """Run a plan on arrays of the sizes that it says."""
    made = []
    number = plan.timetable.counts(plan.timetable.start, time).number if plan.paced else time
    sizes = {"batch": batch, "time": time, "span": time}
    sizes |= plan.timetable.sizes(number) if plan.paced else {}
    for tensor in (*plan.inputs, *plan.outputs):
        shape = [D.evaluate(d, sizes) for d in tensor.dims]
        made.append(np.zeros(shape, tensor.dtype))
    n = len(plan.inputs)
    Program(plan).run(made[:n], made[n:], batch, number)
    return made[n:]


def test_every_kind_of_op_says_what_it_touches(plans):
    assert set(bounds.touches) == set(OP_FIELDS)
    assert {op.kind for plan in plans for op in plan.every_op} == set(OP_FIELDS)
    for plan in plans:
        for sizes in ((2, 3), (1, 1), (5, 12)):
            run_plan(plan, *sizes)


def tampered(plan, op, **changed):
    """The plan with other fields in one op."""
    new = dataclasses.replace(op, fields=op.fields | changed)

    def swap(ops):
        return [new if o is op else o for o in ops]

    return dataclasses.replace(plan, ops=swap(plan.ops), bodies=[swap(body) for body in plan.bodies])


def test_an_op_that_would_leave_its_memory_is_refused_before_it_runs(plans):
    refused = set()
    for plan in plans:
        for op in plan.every_op:
            for access in bounds.accesses(plan, op):
                field = f"{access.what}_offset"
                for far in () if access.buffer is None or field not in op.fields else (1, -1):
                    moved = op.fields[field] + far * access.buffer.size
                    with pytest.raises(ShapeError, match=f"node {re.escape(op.node)}: at batch 2 .* give others"):
                        run_plan(tampered(plan, op, **{field: moved}))
                    refused.add(op.kind)
    assert refused >= set(OP_FIELDS) - {"loop", "advance", "tail", "zero"}  # without such a field


def test_states_are_inside_their_row(plans):
    refused = set()
    for plan in plans:
        for op in plan.every_op:
            for field in ("state", "h_state", "c_state", "k_state", "v_state", "position"):
                place = op.fields.get(field, -1)
                if isinstance(place, Buffer) or place < 0:
                    continue
                for moved in (plan.state_size - 1, -5):
                    if (field, moved) != ("position", -5):  # no position
                        with pytest.raises(FastRNNError, match=f"{field} of .* slab rows"):
                            run_plan(tampered(plan, op, **{field: moved}))
                        refused.add(op.kind)
    assert refused == {
        "cell",
        "running",
        "running_integers",
        "tail",
        "state_load",
        "state_store",
        "attention",
        "steps",
        "scan",
        "advance",
    }


COUNTS = ("steps", "rows", "count", "n", "m", "k", "n0", "n1", "n2", "size0", "out_w", "in_w", "batch", "keys", "size")


def test_counts_are_never_below_zero(plans):
    refused = set()
    for plan in plans:
        for op in plan.every_op:
            for field in (f for f in COUNTS if f in op.fields):
                if op.kind in ("elementwise", "copy", "integers") and op.fields["rank"] == 0:
                    continue
                with pytest.raises((ShapeError, FastRNNError), match=re.escape(op.node)):
                    run_plan(tampered(plan, op, **{field: -1 - TIME}))
                refused.add(op.kind)
    assert refused == set(OP_FIELDS)
