"""One rule for numbers, whatever holds them and wherever they go in: arrays by dtype, Python's numbers by value."""

import array
import asyncio
from collections import deque
from enum import IntEnum
from fractions import Fraction

import numpy as np
import pytest
import torch
from graph_builder import GraphBuilder
from onnx import TensorProto, helper

import fastrnn
from fastrnn import onnx_backend
from fastrnn.aio import Batcher
from fastrnn.errors import ShapeError
from fastrnn.graph.casts import as_dtype
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.model import Model

DTYPES = {"float32": np.float32, "int64": np.int64, "int32": np.int32, "bool": np.bool_}
BIG = float(np.finfo(np.float32).max)


class Kind(IntEnum):
    ONE, TWO = 1, 2


def identity(dtype: str) -> Model:
    """x [batch, time, 2] as it is, by way of a state that holds the step before."""
    b = GraphBuilder("identity")
    x = b.input("x", dtype, BATCH, TIME, 2)
    return Model(b.done(b.add("transpose", x, name="y", perm=(0, 1, 2))))


def recurrent() -> Model:
    return fastrnn.from_arrays("rnn_relu", W=np.eye(2), R=np.zeros((2, 2)))


def looking_ahead() -> Model:
    """A model whose stream is paced: y is x, held back for two steps."""
    b = GraphBuilder("ahead")
    x = b.add("transpose", b.input("x", "float32", BATCH, TIME, 2), perm=(0, 2, 1))
    taps = np.zeros((2, 2, 5), np.float32)
    taps[:, :, 2] = np.eye(2)
    attrs = {"strides": (1,), "dilations": (1,), "pads": (2, 2), "groups": 1}
    return Model(b.done(b.add("conv", x, b.constant("taps", taps), name="y", **attrs)))


def proto(dtype: str):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(DTYPES[dtype]))
    ends = [helper.make_tensor_value_info(n, kind, ["B", "T", 2]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def nested(value, axes: int):
    """value [2] with axes of one before it, in the kind of container that it has."""
    for _ in range(axes):
        value = value[None] if hasattr(value, "dtype") and hasattr(value, "shape") else [value]
    return value


async def _batched(model, value):
    pool = model.pool(2)
    async with Batcher(pool, 0) as batcher:
        return await batcher.step(pool.open(), value)


def _pool(model, call):
    pool = model.pool(2)
    return call(pool, [pool.open()])


def _out(model, value):
    out = np.zeros(2, np.float32)
    return model.stream().step(value, out=out)


# name -> (model of a dtype, value [2]) -> what comes out, [.., 2]. All of them are the value itself.
ENTRIES = {
    "run": lambda m, v: m.run(nested(v, 2))[0],
    "run by name": lambda m, v: m.run(x=nested(v, 2))[0],
    "call": lambda m, v: m(nested(v, 2)),
    "lengths": lambda m, v: m.run(nested(v, 2), lengths=[1])[0],
    "step": lambda m, v: m.stream().step(v),
    "step of a batch": lambda m, v: m.stream(batch_size=1).step(nested(v, 1)),
    "push": lambda m, v: m.stream().push(nested(v, 1)),
    "push of a batch": lambda m, v: m.stream(batch_size=1).push(nested(v, 2)),
    "pool.step": lambda m, v: _pool(m, lambda p, s: p.step(s, nested(v, 1))),
    "pool.push": lambda m, v: _pool(m, lambda p, s: p.push(s, [nested(v, 1)])[0]),
    "Batcher": lambda m, v: asyncio.run(_batched(m, v)),
}
FLOAT_ENTRIES = ENTRIES | {
    "step with out": _out,
    "paced step": lambda m, v: _paced_step(v),
    "paced push": lambda m, v: _paced_push(v),
    "paced pool": lambda m, v: _pool(AHEAD, lambda p, s: (p.push(s, [nested(v, 1)]), p.flush(s[0]))[1]).T,
    "state of a stream": lambda m, v: _state(v),
    "state of a pool": lambda m, v: _pool_state(v),
}
AHEAD = looking_ahead()
RNN = recurrent()


def _paced_step(value):
    s = AHEAD.stream()
    assert s.step(value) is None
    return s.flush().T


def _paced_push(value):
    s = AHEAD.stream()
    assert s.push(nested(value, 1)).size == 0
    return s.flush().T


def _state(value):
    s = RNN.stream()
    (name,) = s.state
    s.state = {name: value}
    return s.state[name]


def _pool_state(value):
    pool = RNN.pool(1)
    slot = pool.open()
    (name,) = pool.state(slot)
    pool.set_state(slot, {name: value})
    return pool.state(slot)[name]


# dtype of the input -> what is taken: (value, what it is). Floats round to the nearest float32.
TAKEN = {
    "float32": [
        [0.1, 2.0], [-0.0, 3], [True, 1.5], [float("inf"), float("nan")], [1 << 24, -(1 << 24)], (1 << 40, 2.0**100),
        (3 << 100, -1), [BIG, -3.4028235e38], [1e-46, 1e-40], range(2), deque([1.5, 2]), [Kind.TWO, 0],
        [np.float32(0.1), 2.5], [np.float16(0.5), np.int16(3)], [np.array(2.5, np.float32), 1], [torch.tensor(0.5), 1],
        np.array([0.1, 2]).astype("f2"), np.int16([1, -2]), np.uint8([1, 2]), np.bool_([1, 0]),
        np.array([1.5, 2], ">f4"), np.float32([1, 0, 2])[::2], np.ma.array(np.float32([1, 2]), mask=False),
        torch.tensor([0.1, 2.0]), torch.tensor([0.1, 2.0]).half(), torch.tensor([1, 2], dtype=torch.int16),
        array.array("f", [0.5, 2]),
    ],
    "int64": [
        [1, -(1 << 63)], [True, (1 << 63) - 1], (Kind.ONE, 2), range(2), [np.int32(3), 4], [np.int64(1 << 60), 1],
        np.int32([1, -2]), np.uint32([1, (1 << 32) - 1]), np.bool_([1, 0]), np.array([1, 2], ">i8"),
        torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.int32), array.array("q", [1, 2]),
    ],
    "int32": [[1, -(1 << 31)], [True, (1 << 31) - 1], np.int16([1, -2]), torch.tensor([1, 2], dtype=torch.int32)],
    "bool": [[True, False], np.bool_([1, 0]), torch.tensor([True, False]), [np.True_, False]],
}  # fmt: skip

# dtype of the input -> what is refused: (value, words of the error).
PASS = "float32 expected, got {}: pass x.{}, if that loses nothing you need"
REFUSED = {
    "float32": [
        ([1e300, 0.0], r"1e\+300 is beyond float32"), ([0.0, -1e39], r"-1e\+39 is beyond float32"),
        ([1e300, float("inf")], "beyond float32"), ((3.5e38, 0), "beyond float32"),
        ([(1 << 24) + 1, 0], "the int 16777217 is not a number of float32"), ([(1 << 53) + 1, 0.5], "9007199254740993"),
        ([0.5, (1 << 24) + 1], "16777217"), ([10**30, 0], "10{30} is not"), ([1 << 128, 0], "is not a number of"),
        ([10**5000, 0], "an int of 16610 bits"), ([-(1 << 63), (1 << 63) + 1], "9223372036854775809"),
        (np.array([0.1, 2]), r"float32 expected, got float64: pass x.astype\('float32'\)"),
        (np.array([1, 2]), "float32 expected, got int64"), (np.int32([1, 2]), "float32 expected, got int32"),
        (np.uint64([1, 2]), "got uint64"), (np.longdouble([1, 2]), "got (float128|longdouble|float64)"),
        (torch.tensor([0.1, 2], dtype=torch.float64), r"got float64: pass x.to\(torch.float32\)"),
        (torch.tensor([1, 2]), "float32 expected, got int64"), (torch.tensor([1, 2], dtype=torch.int32), "got int32"),
        (torch.tensor([1.0, 2], requires_grad=True), "float32 expected; a Tensor that NumPy can't read"),
        (torch.tensor([1.0, 2], dtype=torch.bfloat16), "float32 expected; a Tensor that NumPy can't read"),
        (array.array("d", [0.5, 2]), "got float64"), ([np.float64(0.1), 1], "float32 expected, got float64"),
        ([np.int64(1), 1], "float32 expected, got int64"), ([torch.tensor(1), 1], "float32 expected, got int64"),
        ([np.array([1e300]), np.array([0.0])], "got float64"),
        ([None, 1], "got object: pass numbers"), (["1", "2"], "got <U1"), ([1j, 0], "got complex128"),
        (np.array([1, 2], object), "got object"), (np.array([1, 2], "U1"), "got <U1"), ([Fraction(1, 2), 1], "object"),
        (np.zeros(2, [("a", "f4")]), "expected, got"), ([[1.0], [1.0, 2.0]], "can't be read as an array"),
        (np.ma.array(np.float32([1, 2]), mask=[0, 1]), "a masked array"), ({1.0, 2.0}, "got object"), ("ab", "got <U2"),
    ],
    "int64": [
        ([1.0, 2], "int64 expected, got 1.0: pass an int"), ([1, 0.5], "got 0.5"), ([float("nan"), 1], "got nan"),
        ([1 << 63, 0], "9223372036854775808 is outside int64"), ([-(1 << 63) - 1, 0], "outside int64"),
        (np.uint64([1, 2]), "got uint64"), (np.float32([1, 2]), "int64 expected, got float32"),
        (np.array([1.0, 2]), "got float64"), (torch.tensor([1.0, 2]), r"got float32: pass x.to\(torch.int64\)"),
        ([np.float32(1), 2], "got float32"), (["1", "2"], "got <U1"),
    ],
    "int32": [
        ([1 << 31, 0], "2147483648 is outside int32"), (np.array([1, 2]), "int32 expected, got int64"),
        (torch.tensor([1, 2]), "int32 expected, got int64"), ([np.int64(1), 2], "got int64"), ([1.0, 2], "pass an int"),
    ],
    "bool": [
        ([1, 0], "bool expected, got 1: pass True or False"), ([True, 0.0], "got 0.0"),
        (np.uint8([1, 0]), r"got uint8: pass x.astype\('bool'\)"), (torch.tensor([1, 0]), "got int64"),
    ],
}  # fmt: skip


def plain(value, dtype: str) -> np.ndarray:
    """The numbers of a value that is taken, by the longest way."""
    if hasattr(value, "dtype"):
        return np.asarray(value).astype(DTYPES[dtype])
    return np.array([DTYPES[dtype](float(v) if dtype == "float32" else int(v)) for v in value])


def entries(table):
    return [
        pytest.param(dtype, entry, values, id=f"{dtype}-{entry}")
        for dtype, values in table.items()
        for entry in (FLOAT_ENTRIES if dtype == "float32" else ENTRIES)
    ]


@pytest.mark.parametrize(("dtype", "entry", "values"), entries(TAKEN))
def test_what_fits_is_taken_as_it_is(dtype, entry, values):
    model = identity(dtype)
    for value in values:
        with np.errstate(all="ignore"):
            want = plain(value, dtype)
        got = FLOAT_ENTRIES[entry](model, value)
        if entry.startswith("paced") and not (np.isfinite(want).all() and (abs(want) > 1e-38).any()):
            continue  # a convolution multiplies inf by zeros, and flushes denormals
        np.testing.assert_array_equal(np.reshape(got, 2), want, err_msg=repr(value))
        assert got.dtype == want.dtype


@pytest.mark.parametrize(("dtype", "entry", "values"), entries(REFUSED))
def test_what_would_change_is_refused(dtype, entry, values):
    model = identity(dtype)
    for value, words in values:
        with pytest.raises(ShapeError, match=words):
            FLOAT_ENTRIES[entry](model, value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_ones_follow_the_same_rule(dtype):
    model, other = identity(dtype), "float32" if dtype != "float32" else "float64"
    for empty in ([], [[]], np.zeros((0, 2), dtype)):
        assert as_dtype(empty, dtype, "x").dtype == DTYPES[dtype]
    assert model.stream().push(np.zeros((0, 2), dtype)).shape == (0, 2)
    for call in (model.stream().push, model.run, lambda x: model.pool(1).push([], []) or model.stream().push(x)):
        with pytest.raises(ShapeError, match=f"{dtype} expected, got {other}"):
            call(np.zeros((0, 2), other))


def test_lists_in_lists_without_end():
    endless = []
    endless.append(endless)
    with pytest.raises(ShapeError, match="more than 64 deep"):
        identity("float32").run(endless)


def test_tensors_that_speak_dlpack_alone():
    class Box:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    step = identity("float32").stream().step
    np.testing.assert_array_equal(step(Box(np.float32([1, 2]))), [1, 2])
    with pytest.raises(ShapeError, match="float32 expected, got float64"):
        step(Box(np.array([1.0, 2])))


def test_an_error_leaves_the_states_alone():
    s, pool = RNN.stream(), RNN.pool(1)
    slot = pool.open()
    s.step([1.0, 2.0])
    (name,) = s.state
    for bad in ([1e300, 0.0], np.zeros(2), torch.zeros(2, dtype=torch.float64)):
        for call in (lambda x: s.step(x), lambda x: s.push([x]), lambda x: pool.step([slot], [x])):
            with pytest.raises(ShapeError):
                call(bad)
    np.testing.assert_array_equal(s.state[name], [1, 2])
    assert s.steps_done == 1
    assert pool.steps_done(slot) == 0


class TestSession:
    """InferenceSession: lists are cast as onnxruntime casts them, or refused; arrays go by the model's rule."""

    @pytest.mark.parametrize(
        ("dtype", "value"),
        [
            ("float32", [0.1, 2]), ("float32", [np.float64(0.1), np.int64(3)]), ("float32", [float("nan"), True]),
            ("float32", [np.array([0.1, 2.0])]), ("int64", [1.0, 2]), ("int64", [np.float64(3), np.int32(4)]),
            ("int32", [np.int64(1), 2]), ("bool", [1, 0]), ("bool", [True, 0.0]), ("bool", [np.int64(1), 0]),
        ],
    )  # fmt: skip
    def test_lists_as_onnxruntime(self, dtype, value):
        import onnxruntime

        blob, feeds = proto(dtype).SerializeToString(), {"x": np.reshape(value, (1, 1, 2)).tolist()}
        ours = fastrnn.InferenceSession(blob)
        (theirs,) = onnxruntime.InferenceSession(blob, providers=["CPUExecutionProvider"]).run(None, feeds)
        for given in (feeds["x"], [[value]] if len(value) == 2 else [value]):
            (got,) = ours.run(None, {"x": given})
            np.testing.assert_array_equal(got, theirs)
            assert got.dtype == theirs.dtype

    @pytest.mark.parametrize(
        ("dtype", "value", "words"),
        [
            ("float32", [1e300, 0], "beyond float32"), ("float32", [np.float64(-1e39), 0], "beyond float32"),
            ("float32", [(1 << 24) + 1, 0], "16777217"), ("float32", [np.int64((1 << 53) + 1), 0], "9007199254740993"),
            ("int64", [1.5, 0], "got 1.5"), ("int64", [float("nan"), 0], "got nan"), ("int64", [1e300, 0], "outside"),
            ("int64", [np.float32(0.5), 0], "got 0.5"), ("int32", [1 << 31, 0], "outside int32"),
            ("bool", [2, 0], "bool expected, got 2"), ("bool", [0.5, 0], "got 0.5"), ("float32", ["1", "2"], "<U1"),
            ("float32", np.zeros((1, 1, 2)), "float32 expected, got float64"),
            ("float32", torch.zeros((1, 1, 2), dtype=torch.int64), "float32 expected, got int64"),
            ("int64", np.zeros((1, 1, 2), np.float32), "int64 expected, got float32"),
        ],
    )  # fmt: skip
    def test_what_a_cast_would_change(self, dtype, value, words):
        ours = fastrnn.InferenceSession(proto(dtype).SerializeToString())
        with pytest.raises(ShapeError, match=f"input x: .*{words}"):
            ours.run(None, {"x": value if hasattr(value, "dtype") else [[value]]})

    def test_a_float16_file_takes_the_arrays_that_onnxruntime_takes(self):
        model = proto("float32")
        for end in (*model.graph.input, *model.graph.output):
            end.type.tensor_type.elem_type = TensorProto.FLOAT16
        x = np.float16([[[0.1, 2]]])
        np.testing.assert_array_equal(fastrnn.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0], x)


def test_the_onnx_backend():
    ready = onnx_backend.prepare(proto("float32"))
    np.testing.assert_array_equal(ready.run([[[[0.5, 2]]]])[0], [[[0.5, 2]]])
    for bad in ([[[1e300, 0]]], np.zeros((1, 1, 2)), torch.zeros((1, 1, 2), dtype=torch.int64)):
        with pytest.raises(ShapeError, match="float32"):
            ready.run([bad])


@pytest.mark.parametrize(
    ("value", "taken"),
    [(0.1, True), (3, True), (1 << 40, True), (1e300, False), ((1 << 24) + 1, False), (np.int64((1 << 53) + 1), False)],
)
def test_bound_inputs(value, taken):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", "T", 2]) for n in "xy"]
    scale = helper.make_tensor_value_info("scale", TensorProto.FLOAT, [])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "scale"], ["y"])], "g", [ends[0], scale], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    if taken:
        assert fastrnn.from_onnx(model, bind={"scale": value})([[[1.0, 0]]])[0, 0, 0] == np.float32(value)
    else:
        with pytest.raises(ShapeError, match="bind: 'scale' must be float32"):
            fastrnn.from_onnx(model, bind={"scale": value})


# -- weights --
