"""Operators against onnxruntime, in the forms in which exporters write them, at several batches and lengths.

A case is the text of a graph (onnx.parser) whose inputs have the axes "batch" and "time" and whose outputs are y, z...
The engine and the reference must both give what onnxruntime gives, at each of SIZES.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

import fastrnn
from fastrnn import reference

ort = pytest.importorskip("onnxruntime", reason="operators are compared with onnxruntime, which is not installed")

SIZES = [{"batch": 2, "time": 7}, {"batch": 3, "time": 4}, {"batch": 1, "time": 1}]
X = "float[batch, time, 6] x"
# Declared last in a graph's text: what it returns is inferred.
CASES: dict[str, tuple[str, str, str]] = {}  # name -> inputs, outputs, nodes


def case(name: str, nodes: str, inputs: str = X, outputs: str = "y") -> None:
    CASES[name] = (inputs, outputs, nodes)


SIZE = (
    "s = Shape(x) one = Constant<value = int64 {1}>() zero = Constant<value = int64 {0}>() t = Gather<axis = 0>(s, one)"
)
case("a product over all steps", "w = Transpose<perm = [0, 2, 1]>(x) y = MatMul(w, x)")
case("a product of all steps with all steps", "w = Transpose<perm = [0, 2, 1]>(x) y = MatMul(x, w)")
case(
    "softmax of scores",
    "w = Transpose<perm = [0, 2, 1]>(x) s = MatMul(x, w) a = Softmax<axis = -1>(s) y = MatMul(a, x)",
)
case(
    "instance norm over time",
    """w = Transpose<perm = [0, 2, 1]>(x) g = Constant<value = float[6] {1, 2, 3, 4, 5, 6}>()
    b = Constant<value = float[6] {-1, 0, 1, 2, 3, 4}>() y = InstanceNormalization(w, g, b)""",
)
case("range over time", f"{SIZE} r = Range(zero, t, one) y = Cast<to = 1>(r)")
case(
    "range of floats in steps",
    f"""{SIZE} f = Cast<to = 1>(t) a = Constant<value = float {{0.0}}>() d = Constant<value = float {{2.0}}>()
    y = Range(a, f, d)""",
)
case("range backwards", f"{SIZE} m = Constant<value = int64 {{-1}}>() e = Sub(t, one) y = Range(e, m, m)")
case(
    "range from a size",
    f"{SIZE} two = Constant<value = int64 {{2}}>() u = Mul(t, two) y = Range(t, u, one)",
)
case(
    "positions added",
    f"""{SIZE} r = Range(zero, t, one) f = Cast<to = 1>(r) a = Constant<value = int64[1] {{1}}>()
    u = Unsqueeze(f, a) y = Add(x, u)""",
)
case(
    "mean over time by hand",
    f"""{SIZE} a = Constant<value = int64[1] {{1}}>() m = ReduceSum<keepdims = 0>(x, a)
    f = Cast<to = 1>(t) y = Div(m, f)""",
)
case(
    "a size minus one", f"{SIZE} f = Cast<to = 1>(t) h = Constant<value = float {{0.5}}>() g = Sub(f, h) y = Mul(x, g)"
)
case("a size compared with the input", f"""{SIZE} k = Cast<to = 7>(x) c = Less(k, t) y = Cast<to = 1>(c)""")
for upper, k in ((1, 1), (0, 0), (0, -1), (1, -2)):
    case(
        f"triangle upper={upper} k={k}",
        f"""w = Transpose<perm = [0, 2, 1]>(x) p = MatMul(x, w) k = Constant<value = int64 {{{k}}}>()
        y = Trilu<upper = {upper}>(p, k)""",
    )
case(
    "a causal mask of ones",
    f"""{SIZE} a = Constant<value = int64[1] {{0}}>() u = Unsqueeze(t, a) d = Concat<axis = 0>(u, u)
    o = ConstantOfShape<value = float[1] {{1.0}}>(d) m = Trilu<upper = 0>(o) c = Cast<to = 9>(m)
    w = Transpose<perm = [0, 2, 1]>(x) p = MatMul(x, w) i = Constant<value = float {{-3.0}}>() y = Where(c, p, i)""",
)
case(
    "a bool triangle",
    """w = Transpose<perm = [0, 2, 1]>(x) p = MatMul(x, w) n = Constant<value = float {0.0}>()
    c = Greater(p, n) m = Trilu<upper = 0>(c) y = Cast<to = 1>(m)""",
)


def model_of(name: str, opset: int = 18) -> onnx.ModelProto:
    """The model of a case; the dims of its outputs are inferred."""
    inputs, outputs, nodes = CASES[name]
    infos = ", ".join(f"float {o}" for o in outputs.split())
    text = f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]> g ({inputs}) => ({infos}) {{ {nodes} }}'
    model = onnx.parser.parse_model(text)
    for info in model.graph.output:
        info.type.tensor_type.ClearField("elem_type")
        info.ClearField("type")
    model = onnx.shape_inference.infer_shapes(model)
    for info in model.graph.output:
        assert info.type.tensor_type.elem_type, f"{name}: the dtype of {info.name} is not inferred"
    return model


def feeds_of(model: onnx.ModelProto, sizes: dict) -> dict[str, np.ndarray]:
    random, feeds = np.random.default_rng(3), {}
    for info in model.graph.input:
        kind = info.type.tensor_type
        shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in kind.shape.dim]
        if kind.elem_type == onnx.TensorProto.FLOAT:
            feeds[info.name] = random.normal(size=shape).astype(np.float32)
        else:
            feeds[info.name] = random.integers(0, sizes["time"], shape)
    return feeds


@pytest.mark.parametrize("name", CASES)
def test_as_onnxruntime(name):
    model = model_of(name)
    data = model.SerializeToString()
    session, loaded = ort.InferenceSession(data, providers=["CPUExecutionProvider"]), fastrnn.load(data)
    for sizes in SIZES:
        feeds = feeds_of(model, sizes)
        expected, got = session.run(None, feeds), loaded.run(**feeds)
        meant = reference.run(loaded.graph, feeds)
        for y, e, m in zip(got, expected, meant, strict=True):
            assert y.shape == e.shape
            assert y.dtype == e.dtype
            np.testing.assert_allclose(y, e, rtol=2e-5, atol=2e-5, err_msg=f"{sizes}")
            np.testing.assert_allclose(m, e, rtol=2e-5, atol=2e-5, err_msg=f"reference, {sizes}")
