"""Every integer type: random programs give what onnxruntime gives, bit by bit, as runs and as streams."""

import platform

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import fastrnn
from fastrnn.graph import INTEGERS, reference

ort = pytest.importorskip("onnxruntime", reason="operators are compared with onnxruntime, which is not installed")

TYPES = sorted(INTEGERS)
SIGNED = [t for t in TYPES if not t.startswith("u")]
UNSIGNED = [t for t in TYPES if t.startswith("u")]
BYTES = ["int8", "uint8"]
WORDS = ["int32", "int64"]
COMPARED = [t for t in TYPES if "16" not in t]
# Operator of two values of one type -> the types for which onnxruntime has it.
TWO = dict.fromkeys(("Add", "Sub", "Mul", "BitwiseAnd", "BitwiseOr", "BitwiseXor"), TYPES)
TWO |= dict.fromkeys(("Min", "Max"), COMPARED)
ONE = {"Abs": TYPES, "Sign": TYPES, "BitwiseNot": TYPES, "Neg": SIGNED, "Relu": ["int8", "int32"]}
COMPARISONS = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
WIDTH = 4


def number_of(dtype: str) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class Program:
    """A program of nodes over an input x [batch, time, WIDTH]; its values by type."""

    def __init__(self, dtype: str, draw):
        self.draw, self.dtype = draw, dtype
        self.nodes, self.constants = [], []
        self.values = {"x": dtype}

    def part(self, op: str, *inputs: str, **attrs) -> str:
        """A node whose result only the next node reads."""
        self.nodes.append(helper.make_node(op, inputs, [f"v{len(self.nodes)}"], **attrs))
        return self.nodes[-1].output[0]

    def add(self, op: str, inputs: list[str], dtype: str, **attrs) -> str:
        """A node whose result is [batch, time, WIDTH] of this type."""
        name = self.part(op, *inputs, **attrs)
        self.values[name] = dtype
        return name

    def constant(self, array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def pick(self, *types: str) -> str:
        """A value of one of these types: the latest ones most often."""
        known = [name for name, dtype in self.values.items() if dtype in types]
        if not known:
            return self.add("Cast", [next(reversed(self.values))], types[0], to=number_of(types[0]))
        return known[max(self.draw(st.integers(0, len(known) - 1)), self.draw(st.integers(0, len(known) - 1)))]

    def numbers(self, dtype: str, *, size: int = WIDTH, zero: bool = True) -> np.ndarray:
        """A constant: ends of the type, small numbers, anything."""
        ends = np.iinfo(dtype)
        small = [v for v in (0, 1, 2, 3, 7, -1, -3) if ends.min <= v]
        one = st.one_of(st.sampled_from([ends.min, ends.max, *small]), st.integers(ends.min, ends.max))
        if not zero:  # onnxruntime crashes on x / 0, and on the smallest int32 and int64 / -1
            one = one.filter(lambda v: v != 0 and (v != -1 or ends.bits < 32))
        return np.array(self.draw(st.lists(one, min_size=size, max_size=size)), dtype)

    def step(self) -> None:
        """One more node."""
        kinds = "two two one divide compare choose cast shift fold place sum clip table".split()
        kind = self.draw(st.sampled_from(kinds))
        dtype = self.values[self.pick(*TYPES)]
        getattr(self, f"_{kind}")(dtype)

    def _two(self, dtype):
        op = self.draw(st.sampled_from([op for op, types in TWO.items() if dtype in types]))
        other = self.constant(self.numbers(dtype)) if self.draw(st.booleans()) else self.pick(dtype)
        self.add(op, [self.pick(dtype), other], dtype)

    def _one(self, dtype):
        op = self.draw(st.sampled_from([op for op, types in ONE.items() if dtype in types]))
        self.add(op, [self.pick(dtype)], dtype)

    def _divide(self, dtype):
        op = self.draw(st.sampled_from([("Div", {}), ("Mod", {}), ("Mod", {"fmod": 1})]))
        by = self.constant(self.numbers(dtype, zero=False))
        self.add(op[0], [self.pick(dtype), by], dtype, **op[1])

    def _compare(self, dtype):
        op = self.draw(st.sampled_from(COMPARISONS))
        self.add(op, [self.pick(dtype), self.pick(dtype)], "bool")
        if self.draw(st.booleans()):
            self.add(self.draw(st.sampled_from(["And", "Or", "Xor"])), [self.pick("bool"), self.pick("bool")], "bool")
        if self.draw(st.booleans()):
            self.add("Not", [self.pick("bool")], "bool")

    def _choose(self, dtype):
        if dtype in ("uint8", "int8", "int32", "int64"):
            self.add("Where", [self.pick("bool"), self.pick(dtype), self.pick(dtype)], dtype)

    def _cast(self, dtype):
        to = self.draw(st.sampled_from([*TYPES, "bool"]))
        self.add("Cast", [self.pick(dtype)], to, to=number_of(to))

    def _shift(self, dtype):
        if dtype in UNSIGNED:
            by = self.constant(np.array(self.draw(st.integers(0, np.iinfo(dtype).bits - 1)), dtype))
            self.add("BitShift", [self.pick(dtype), by], dtype, direction=self.draw(st.sampled_from(["LEFT", "RIGHT"])))

    def _fold(self, dtype):
        """The largest of the last axis, or where it is, at all of its places."""
        if dtype in BYTES + WORDS:
            op = self.draw(st.sampled_from(["ReduceMax", "ReduceMin"]))
            self._spread(self.part(op, self.pick(dtype), self.constant([2])), dtype)
            op = self.draw(st.sampled_from(["ArgMax", "ArgMin"]))
            last = self.draw(st.integers(0, 1))
            self._spread(self.part(op, self.pick(dtype), axis=2, select_last_index=last), "int64")

    def _spread(self, name, dtype):
        self.add("Expand", [name, self.constant([1, 1, WIDTH])], dtype)

    def _sum(self, dtype):
        if dtype in WORDS:
            attrs = {"exclusive": self.draw(st.integers(0, 1)), "reverse": self.draw(st.integers(0, 1))}
            self.add("CumSum", [self.pick(dtype), self.constant(np.array(2))], dtype, **attrs)
        if dtype == "int32":  # onnxruntime sums through float64, which does not wrap around
            small = self.part("Div", self.pick(dtype), self.constant(np.array(8, dtype)))
            total = self.part("ReduceSum", small, self.constant([2]), keepdims=0)
            self._spread(self.part("Unsqueeze", total, self.constant([2])), dtype)

    def _clip(self, dtype):
        if dtype in COMPARED:
            low, high = (self.constant(self.numbers(dtype, size=1)[0]) for _ in range(2))
            low = self.draw(st.sampled_from([low, ""]))
            self.add("Max" if low else "Abs", [self.pick(dtype), low] if low else [self.pick(dtype)], dtype)
            self.add("Min", [self.pick(dtype), high], dtype)

    def _place(self, dtype):
        """Moves along the last axis."""
        first = self.part("Slice", self.pick(dtype), *map(self.constant, ([1], [3], [2])))
        last = self.part("Slice", self.pick(dtype), *map(self.constant, ([-1], [0], [2], [-2])))
        self.add("Concat", [first, self.part("Slice", last, *map(self.constant, ([0], [2], [2])))], dtype, axis=2)
        places = self.constant(np.array(self.draw(st.permutations(range(-2, 2)))))
        self.add("Gather", [self.pick(dtype), places], dtype, axis=2)

    def _table(self, dtype):
        """A live index into a table of this type."""
        index = self.add("Cast", [self.pick(dtype)], "int64", to=number_of("int64"))
        index = self.add("Mod", [index, self.constant(np.array(5))], "int64")
        self.add("Gather", [self.constant(self.numbers(dtype, size=5)), index], dtype, axis=0)

    def model(self, outputs: list[str]) -> bytes:
        dims = ["batch", "time", WIDTH]
        x = helper.make_tensor_value_info("x", number_of(self.dtype), dims)
        ys = [helper.make_tensor_value_info(n, number_of(self.values[n]), None) for n in outputs]
        graph = helper.make_graph(self.nodes, "g", [x], ys, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


@st.composite
def programs(draw):
    """(file, input, number of outputs) of a random program over a random type."""
    program = Program(draw(st.sampled_from(TYPES)), draw)
    for _ in range(draw(st.integers(3, 8))):
        program.step()
    outputs = [name for name in program.values if name != "x"][-4:]
    shape = draw(st.sampled_from([(1, 1), (2, 5), (3, 2)]))
    x = program.numbers(program.dtype, size=shape[0] * shape[1] * WIDTH).reshape(*shape, WIDTH)
    return program.model(outputs), x, len(outputs)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_types_of_inputs_and_outputs(dtype):
    """A session reports them as onnxruntime's does, and takes and returns them. A stream takes what is only cast."""
    nodes = [
        helper.make_node("Add", ["x", "one"], ["z"]),
        helper.make_node("Cast", ["x"], ["f"], to=1),
        helper.make_node("MatMul", ["f", "W"], ["y"]),
    ]
    rng = np.random.default_rng(2)
    W = rng.integers(-4, 5, (WIDTH, 3)).astype(np.float32)
    constants = [numpy_helper.from_array(np.array(1, dtype), "one"), numpy_helper.from_array(W, "W")]
    dims = ["batch", "time", WIDTH]
    ends = [helper.make_tensor_value_info(n, number_of(dtype), dims) for n in ("x", "z")]
    y = helper.make_tensor_value_info("y", 1, ["batch", "time", 3])
    graph = helper.make_graph(nodes, "g", ends[:1], [y, ends[1]], constants)
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    ours, theirs = fastrnn.InferenceSession(data), ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    for a, b in zip(
        [*ours.get_inputs(), *ours.get_outputs()], [*theirs.get_inputs(), *theirs.get_outputs()], strict=True
    ):
        assert (a.name, a.type, a.shape) == (b.name, b.type, b.shape)
    ends = np.iinfo(dtype)
    x = rng.integers(max(ends.min, -99), min(ends.max, 999), (2, 6, WIDTH), endpoint=True).astype(dtype)
    want = theirs.run(None, {"x": x})
    for got, right in zip(ours.run(None, {"x": x}), want, strict=True):
        assert got.dtype == right.dtype
        np.testing.assert_array_equal(got, right)
    np.testing.assert_array_equal(ours.run(None, {"x": x.tolist()})[1], want[1])
    with pytest.raises(fastrnn.FastRNNError, match=f"{dtype} expected"):
        ours.run(None, {"x": x.astype(np.float32)})
    with pytest.raises(fastrnn.FastRNNError, match=f"outside {dtype}"):
        ours.run(None, {"x": [[[0, 0, 0, ends.max + 1]]]})
    model = fastrnn.load(data, threads=1)
    assert [info.dtype for info in (*model.inputs, *model.outputs)] == [dtype, "float32", dtype]
    stream, pool = model.stream(), model.pool(2)
    slots = np.array([pool.open(), pool.open()])
    for t in range(6):
        for k, right in enumerate(want):
            np.testing.assert_array_equal(pool.step(slots, x[:, t])[k], right[:, t])
        np.testing.assert_array_equal(stream.step(x[0, t])[1], want[1][0, t])


@settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
@given(programs())
def test_random_programs(made):
    data, x, count = made
    assume(count > 0)
    want = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    model = fastrnn.load(data, threads=1)
    meant = reference.run(model.graph, {"x": x})
    steps, pushed = model.stream(batch_size=len(x)), model.stream(batch_size=len(x))
    ran = model.run(x=x)
    chunks = [pushed.push(x[:, :1]), pushed.push(x[:, 1:])]
    single = [steps.step(x[:, t]) for t in range(x.shape[1])]
    for k, right in enumerate(want):
        one = (lambda y: y) if count == 1 else (lambda y, k=k: y[k])
        assert ran[k].dtype == right.dtype
        np.testing.assert_array_equal(ran[k], right)
        np.testing.assert_array_equal(meant[k], right)
        np.testing.assert_array_equal(np.concatenate([one(c) for c in chunks], 1), right)
        np.testing.assert_array_equal(np.stack([one(s) for s in single], 1), right)


def one_node(op: str, *inputs: np.ndarray, made: str, **attrs) -> bytes:
    names = [f"x{k}" for k in range(len(inputs))]
    ends = [
        helper.make_tensor_value_info(n, number_of(x.dtype.name), ["n"]) for n, x in zip(names, inputs, strict=True)
    ]
    y = helper.make_tensor_value_info("y", number_of(made), ["n"])
    graph = helper.make_graph([helper.make_node(op, names, ["y"], **attrs)], "g", ends, [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("op", "attrs"), [("Div", {}), ("Mod", {}), ("Mod", {"fmod": 1})], ids=str)
def test_division_at_the_ends(op, attrs, dtype):
    """Every pair of ends, small numbers and zero. onnxruntime crashes on zero, and on the smallest number / -1."""
    ends = np.iinfo(dtype)
    points = np.array(
        sorted({ends.min, ends.min // 2, *range(-3 if ends.min else 0, 4), ends.max // 2, ends.max}), dtype
    )
    a, b = (part.reshape(-1).copy() for part in np.meshgrid(points, points))
    data = one_node(op, a, b, made=dtype, **attrs)
    model = fastrnn.load(data, threads=1)
    (got,) = model.run(x0=a, x1=b)
    np.testing.assert_array_equal(got, reference.run(model.graph, {"x0": a, "x1": b})[0])
    assert (got[b == 0] == 0).all()
    fine = b != 0
    if ends.min and ends.bits >= 32:
        fine &= ~((a == ends.min) & (b == -1))
    want = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x0": a[fine], "x1": b[fine]})[0]
    np.testing.assert_array_equal(got[fine], want)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="onnxruntime's casts are the processor's")
@pytest.mark.parametrize("dtype", TYPES)
def test_casts_of_floats_at_the_ends(dtype):
    ends = np.iinfo(dtype)
    rng = np.random.default_rng(3)
    points = [
        0.5,
        -0.5,
        -1,
        ends.max,
        ends.min,
        ends.max + 1.0,
        ends.min - 1.0,
        1e10,
        -1e10,
        1e30,
        np.inf,
        -np.inf,
        np.nan,
    ]
    x = np.concatenate([points, [2.0**k for k in range(7, 66)], [-(2.0**k) for k in range(7, 66)]])
    x = np.concatenate([x, rng.normal(size=200) * 10.0 ** rng.integers(0, 21, 200)]).astype(np.float32)
    data = one_node("Cast", x, made=dtype, to=number_of(dtype))
    model, theirs = fastrnn.load(data, threads=1), ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    (got,), (want,) = model.run(x0=x), theirs.run(None, {"x0": x})
    np.testing.assert_array_equal(reference.run(model.graph, {"x0": x})[0], got)
    # Beyond uint32, onnxruntime's answer depends on the element's place in a vector.
    same = (x >= -(2.0**31)) & (x < 2.0**32) if dtype == "uint32" else np.ones(len(x), np.bool_)
    np.testing.assert_array_equal(got[same], want[same])


@pytest.mark.parametrize("dtype", TYPES)
def test_casts_to_floats_round_once(dtype):
    ends = np.iinfo(dtype)
    rng = np.random.default_rng(3)
    x = rng.integers(ends.min, ends.max, 500, dtype=dtype, endpoint=True)
    if ends.bits == 64:  # rounded to float64 first, these would lie halfway between two float32
        x = np.concatenate([x, [(1 << 62) + (1 << 38) + 1, (1 << 61) + (1 << 37) - 1]]).astype(dtype)
    x = np.concatenate([x, np.array([ends.min, ends.max], dtype)])
    data = one_node("Cast", x, made="float32", to=1)
    want = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x0": x})[0]
    np.testing.assert_array_equal(fastrnn.load(data, threads=1).run(x0=x)[0], want)
