"""Small ONNX models with many sizes computed at run time, for tools/fuzz_sizes.py.

`make(seed)` returns the bytes of one model: x [batch, time, F], and lengths [batch] if a block needs them, pass through
two to five random blocks. Both axes are open, and every block returns [batch, some length, features]. Blocks write
sizes as exporters do: `Shape`, `Gather` on it, arithmetic, and a `Pad`, `Slice`, `Reshape` or `Split` that takes the
result.
"""

from __future__ import annotations

import random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
NEGATIVE = -(2**31) + 1


class Writer:
    """Nodes and initializers of one model."""

    def __init__(self, seed: int):
        self.rng, self.numbers = random.Random(seed), np.random.default_rng(seed)
        self.nodes: list = []
        self.initializers: list = []
        self.extra_inputs: dict[str, tuple] = {}
        self.features = self.rng.choice((1, 2, 3, 5, 8, 17))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attrs):
        """Add a node; returns the name of its output, or a list of `outputs` names."""
        names = [f"{kind.lower()}_{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=f"node_{names[0]}", **attrs))
        return names[0] if outputs == 1 else names

    def constant(self, values, dtype=np.int64) -> str:
        name = f"const_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weights(self, *shape: int) -> str:
        return self.constant(self.numbers.standard_normal(shape) / 2, np.float32)

    def size(self, x: str, axis: int) -> str:
        """The size of an axis of x as int64 [1]."""
        return self.op("Gather", self.op("Shape", x), self.constant([axis]), axis=0)

    def some_length(self, x: str) -> str:
        """A number that depends on the length of x, int64 [1]; it may be negative."""
        size, k = self.size(x, 1), self.constant([self.rng.randint(1, 12)])
        kind = self.rng.randrange(5)
        if kind == 0:
            return self.op("Sub", size, k)
        if kind == 1:
            return self.op("Sub", k, size)
        if kind == 2:
            return self.op("Div", size, self.constant([self.rng.randint(2, 4)]))
        if kind == 3:
            return self.op("Mul", size, self.constant([self.rng.randint(1, 2)]))
        return k

    def lengths(self) -> str:
        self.extra_inputs["lengths"] = (TensorProto.INT64, ["batch"])
        return "lengths"

    def shape(self, *sizes) -> str:
        """A shape from ints and int64 [1] names."""
        return self.op("Concat", *(s if isinstance(s, str) else self.constant([s]) for s in sizes), axis=0)


def pad(w: Writer, x: str) -> str:
    zero = w.constant([0])
    ends = [w.some_length(x) if w.rng.random() < 0.5 else w.constant([w.rng.randint(-3, 5)]) for _ in range(2)]
    pads = w.op("Concat", zero, ends[0], zero, zero, ends[1], zero, axis=0)
    mode = w.rng.choice(("constant", "constant", "constant", "reflect", "edge"))
    value = [w.constant(1.5, np.float32)] if mode == "constant" and w.rng.random() < 0.5 else []
    return w.op("Pad", x, pads, *value, mode=mode)


def cut(w: Writer, x: str) -> str:
    step = w.rng.choice((1, 1, 1, 2, 3, -1, -2))
    far = w.constant([2**31 - 1 if step > 0 else NEGATIVE])
    near = w.constant([0 if step > 0 else -1])
    start = w.some_length(x) if w.rng.random() < 0.5 else near
    stop = w.some_length(x) if w.rng.random() < 0.5 else far
    return w.op("Slice", x, start, stop, w.constant([1]), w.constant([step]))


def split(w: Writer, x: str) -> str:
    half = w.op("Div", w.size(x, 1), w.constant([2]))
    parts = w.op("Split", x, w.op("Concat", half, w.op("Sub", w.size(x, 1), half), axis=0), outputs=2, axis=1)
    return w.op("Concat", *(parts if w.rng.random() < 0.5 else parts[::-1]), axis=1)


def concat(w: Writer, x: str) -> str:
    kind = w.rng.randrange(3)
    if kind == 0:
        other = w.op("ConstantOfShape", w.shape(w.size(x, 0), w.rng.randint(0, 3), w.features),
                     value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5]))  # fmt: skip
    elif kind == 1:
        other = cut(w, x)
    else:
        other = x
    return w.op("Concat", *w.rng.sample([x, other], 2), axis=1)


def rows(w: Writer, x: str) -> str:
    """Sizes of the batch axis: some rows are removed, added or reversed."""
    size, k = w.size(x, 0), w.constant([w.rng.randint(1, 4)])
    kind = w.rng.randrange(4)
    if kind == 0:
        zero = w.constant([0])
        pads = w.op("Concat", w.op("Sub", k, size), zero, zero, zero, zero, zero, axis=0)
        return w.op("Pad", x, pads, mode="constant")
    if kind == 1:
        half = w.op("Div", size, w.constant([2]))
        return w.op("Slice", x, half, w.constant([2**31 - 1]), w.constant([0]), w.constant([1]))
    if kind == 2:
        return w.op("Slice", x, w.constant([-1]), w.constant([NEGATIVE]), w.constant([0]), w.constant([-1]))
    return w.op("Sub", x, w.op("ReduceMean", x, w.constant([0]), keepdims=1))


def running(w: Writer, x: str) -> str:
    if w.rng.random() < 0.5:
        flags = {"exclusive": w.rng.randrange(2), "reverse": w.rng.randrange(2)}
        return w.op("CumSum", x, w.constant(1), **flags)
    kind = w.rng.choice(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"))
    return w.op("Add", x, w.op(kind, x, w.constant([1]), keepdims=1))


def positions(w: Writer, x: str) -> str:
    """x combined with a value that depends only on the length, not on any row."""
    size = w.op("Squeeze", w.size(x, 1), w.constant([0]))
    if w.rng.random() < 0.4:
        return w.op("Div", x, w.op("Cast", size, to=TensorProto.FLOAT))
    steps = w.op("Range", w.constant(0), size, w.constant(1))
    real = w.op("Cast", steps, to=TensorProto.FLOAT)
    if w.rng.random() < 0.5:
        real = w.op(w.rng.choice(("ReduceMean", "ReduceSum", "ReduceMax")), real, w.constant([0]), keepdims=1)
        return w.op("Add", x, real)
    return w.op("Add", x, w.op("Unsqueeze", real, w.constant([1])))


def last(w: Writer, x: str) -> str:
    """One step of x, as a sequence of one, added to all steps."""
    kind = w.rng.randrange(4)
    if kind == 0:
        step = w.op("Gather", x, w.constant([w.rng.choice((0, -1, 3, -4))]), axis=1)
    elif kind == 1:
        step = w.op("Gather", x, w.op("Sub", w.size(x, 1), w.constant([w.rng.randint(1, 3)])), axis=1)
    elif kind == 2:
        at = w.op("Sub", w.lengths(), w.constant([1]))
        index = w.op("Expand", w.op("Unsqueeze", at, w.constant([1, 2])), w.shape(w.size(x, 0), 1, w.features))
        step = w.op("GatherElements", x, index, axis=1)
    else:
        at = w.op("ArgMax", x, axis=1, keepdims=1)
        step = w.op("GatherElements", x, at, axis=1)
    return w.op("Add", x, step)


def masked(w: Writer, x: str) -> str:
    size = w.op("Squeeze", w.size(x, 1), w.constant([0]))
    steps = w.op("Unsqueeze", w.op("Range", w.constant(0), size, w.constant(1)), w.constant([0]))
    there = w.op("Less", steps, w.op("Unsqueeze", w.lengths(), w.constant([1])))
    return w.op("Where", w.op("Unsqueeze", there, w.constant([2])), x, w.constant(0.25, np.float32))


def reshape(w: Writer, x: str) -> str:
    batch, size, features = w.size(x, 0), w.size(x, 1), w.features
    kind = w.rng.randrange(4)
    if kind == 0:
        flat = w.op("Reshape", x, w.shape(-1, features), allowzero=w.rng.randrange(2))
        return w.op("Reshape", flat, w.shape(batch, size, features))
    if kind == 1:
        flat = w.op("Reshape", x, w.shape(batch, w.op("Mul", size, w.constant([features]))))
        return w.op("Reshape", flat, w.shape(batch, -1, features))
    if kind == 2:
        half = w.op("Div", size, w.constant([2]))
        even = w.op("Slice", x, w.constant([0]), w.op("Mul", half, w.constant([2])), w.constant([1]))
        pairs = w.op("Reshape", even, w.shape(batch, half, 2 * features))
        w.features = 2 * features
        return pairs
    across = w.op("Transpose", x, perm=[0, 2, 1])
    return w.op("Transpose", w.op("Reshape", across, w.shape(batch, features, size)), perm=[0, 2, 1])


def window(w: Writer, x: str) -> str:
    across, k = w.op("Transpose", x, perm=[0, 2, 1]), w.rng.randint(1, 5)
    stride, dilation = w.rng.randint(1, 3), w.rng.randint(1, 2)
    reach = dilation * (k - 1) + 1
    pads = [w.rng.randint(0, min(reach - 1, 3)) for _ in range(2)]
    kind = w.rng.choice(("Conv", "Depthwise", "ConvTranspose", "MaxPool", "AveragePool"))
    attrs = {"strides": [stride], "dilations": [dilation], "pads": pads, "kernel_shape": [k]}
    if kind in ("MaxPool", "AveragePool"):
        if kind == "AveragePool":
            del attrs["dilations"]
            attrs["pads"] = [min(p, k - 1) for p in pads]
            attrs["count_include_pad"] = w.rng.randrange(2)
        made = w.op(kind, across, ceil_mode=w.rng.randrange(2), **attrs)
    elif kind == "Depthwise":
        made = w.op("Conv", across, w.weights(w.features, 1, k), group=w.features, **attrs)
    else:
        outs = w.rng.choice((1, 4, w.features))
        shape = (outs, w.features, k) if kind == "Conv" else (w.features, outs, k)
        made = w.op(kind, across, w.weights(*shape), w.weights(outs), **attrs)
        w.features = outs
    return w.op("Transpose", made, perm=[0, 2, 1])


def recurrent(w: Writer, x: str) -> str:
    kind, gates = w.rng.choice((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
    H, direction = w.rng.choice((1, 4, 9)), w.rng.choice(("forward", "forward", "reverse", "bidirectional"))
    D = 2 if direction == "bidirectional" else 1
    lengths = ""
    if w.rng.random() < 0.3:
        lengths = w.op("Cast", w.lengths(), to=TensorProto.INT32)
    inputs = [w.op("Transpose", x, perm=[1, 0, 2]), w.weights(D, gates * H, w.features), w.weights(D, gates * H, H)]
    attrs = {"hidden_size": H, "direction": direction}
    y, final = w.op(kind, *inputs, w.weights(D, 2 * gates * H), lengths, outputs=2, **attrs)
    seen = w.op("Transpose", y, perm=[2, 0, 1, 3])
    seen = w.op("Reshape", seen, w.shape(0, 0, D * H))
    w.features = D * H
    if D == 1 and w.rng.random() < 0.4:
        return w.op("Add", seen, w.op("Transpose", final, perm=[1, 0, 2]))
    return seen


def dense(w: Writer, x: str) -> str:
    kind = w.rng.randrange(5)
    if kind == 0:
        outs = w.rng.choice((1, 4, 7))
        made = w.op("MatMul", x, w.weights(w.features, outs))
        w.features = outs
        return w.op("Tanh", made)
    if kind == 1:
        scores = w.op("MatMul", x, w.op("Transpose", x, perm=[0, 2, 1]))
        return w.op("MatMul", w.op("Softmax", scores, axis=w.rng.choice((-1, 1))), x)
    if kind == 2:
        return w.op("Softmax", x, axis=w.rng.choice((1, 2)))
    if kind == 3:
        return w.op("LayerNormalization", x, w.weights(w.features), axis=-1)
    return w.op("Tile", x, w.shape(1, w.rng.randint(1, 3), 1))


def looped(w: Writer, x: str) -> str:
    """A Scan over time with its own decaying state."""
    F = w.features
    body = helper.make_graph(
        [helper.make_node("Mul", ["h", "decay"], ["kept"]), helper.make_node("Add", ["kept", "step"], ["sum"]),
         helper.make_node("Tanh", ["sum"], ["next"]), helper.make_node("Identity", ["next"], ["seen"])],
        "body",
        [helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", F]),
         helper.make_tensor_value_info("step", TensorProto.FLOAT, ["batch", F])],
        [helper.make_tensor_value_info("next", TensorProto.FLOAT, ["batch", F]),
         helper.make_tensor_value_info("seen", TensorProto.FLOAT, ["batch", F])],
        [numpy_helper.from_array(np.full(F, 0.5, np.float32), "decay")],
    )  # fmt: skip
    start = w.op("ConstantOfShape", w.shape(w.size(x, 0), F))
    steps = w.op("Transpose", x, perm=[1, 0, 2])
    final, seen = w.op("Scan", start, steps, outputs=2, body=body, num_scan_inputs=1)
    seen = w.op("Transpose", seen, perm=[1, 0, 2])
    return w.op("Add", seen, w.op("Unsqueeze", final, w.constant([1]))) if w.rng.random() < 0.3 else seen


BLOCKS = (pad, pad, cut, cut, split, concat, rows, running, running, positions, positions, last, last, masked, reshape,
          reshape, window, window, recurrent, recurrent, dense, dense, looped)  # fmt: skip


def make(seed: int) -> bytes:
    """The model of this seed."""
    w = Writer(seed)
    first, x = w.features, "x"
    for block in w.rng.choices(BLOCKS, k=w.rng.randint(1, 4)):
        x = block(w, x)
    outputs = [x]
    if w.rng.random() < 0.3:
        kind = w.rng.choice(("ReduceMean", "ReduceMax", "ReduceSum"))
        outputs.append(w.op(kind, x, w.constant([1]), keepdims=0))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "time", first])]
    inputs += [helper.make_tensor_value_info(n, *form) for n, form in w.extra_inputs.items()]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    graph = helper.make_graph(w.nodes, f"made_{seed}", inputs, ends, w.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model).SerializeToString()
