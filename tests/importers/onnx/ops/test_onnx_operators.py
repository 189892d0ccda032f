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
from fastrnn.graph import reference

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
for negative, positive in ((0, 0), (0, 1), (1, 0), (1, 1)):
    case(
        f"infinities {negative}{positive}",
        f"""z0 = Sub(x, x) z1 = Div(x, z0) big = Constant<value = float {{1.0}}>() c = Greater(x, big)
        u = Where(c, z1, x) l = Constant<value = float {{-1.0}}>() d = Less(x, l) v = Where(d, z1, u)
        i = IsInf<detect_negative = {negative}, detect_positive = {positive}>(v) y = Cast<to = 1>(i)""",
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


# --- sums, norms and functions ---
for reduction in "L1 L2 SumSquare LogSumExp Sum Mean Max Min Prod".split():
    case(f"Reduce{reduction} of features", f"a = Constant<value = int64[1] {{-1}}>() y = Reduce{reduction}(x, a)")
for reduction in "L1 L2 SumSquare LogSumExp Max".split():
    case(
        f"Reduce{reduction} over time",
        f"a = Constant<value = int64[1] {{1}}>() y = Reduce{reduction}<keepdims = 0>(x, a)",
    )
case("ReduceLogSum", "a = Constant<value = int64[1] {-1}>() p = Exp(x) y = ReduceLogSum(p, a)")
case("ReduceMean of all", "y = ReduceMean<keepdims = 0>(x)")
case("LpNormalization 1", "y = LpNormalization<p = 1, axis = -1>(x)")
case("LpNormalization 2 over time", "y = LpNormalization<p = 2, axis = 1>(x)")
case("MeanVarianceNormalization", "y = MeanVarianceNormalization<axes = [1, 2]>(x)")
case("Celu", "y = Celu<alpha = 1.7>(x)")
case("Shrink", "y = Shrink<bias = 0.2, lambd = 0.6>(x)")
case("Hardmax", "y = Hardmax<axis = -1>(x)")
case("Hardmax over time", "y = Hardmax<axis = 1>(x)")

# --- picking and ordering ---
BT = f"{X}, int64[batch, time] i"
case(
    "GatherElements along time",
    "a = Constant<value = int64[1] {2}>() u = Unsqueeze(i, a) y = GatherElements<axis = 1>(x, u)",
    "float[batch, time, 1] x, int64[batch, time] i",
)
case(
    "GatherElements of the last step",
    """a = Constant<value = int64[2] {1, 2}>() u = Unsqueeze(i, a)
    o = Constant<value = int64[3] {1, 1, 6}>() e = Expand(u, o) y = GatherElements<axis = 1>(x, e)""",
    f"{X}, int64[batch] i",
)
case(
    "GatherElements of features, from the end",
    """n = Constant<value = int64 {-1}>() j = Mul(i, n) k = Add(j, n)
    y = GatherElements<axis = 2>(x, k)""",
    "float[batch, time, 90] x, int64[batch, time, 3] i",
)
case(
    "GatherND a row each",
    f"""{SIZE} b = Gather<axis = 0>(s, zero) r = Range(zero, b, one)
    a = Constant<value = int64[1] {{1}}>() p = Unsqueeze(r, a) q = Unsqueeze(i, a) k = Concat<axis = 1>(p, q)
    y = GatherND(x, k)""",
    f"{X}, int64[batch] i",
)
case(
    "GatherND in batches",
    "a = Constant<value = int64[1] {1}>() q = Unsqueeze(i, a) y = GatherND<batch_dims = 1>(x, q)",
    f"{X}, int64[batch] i",
)
case(
    "OneHot",
    """d = Constant<value = int64 {9}>() v = Constant<value = float[2] {-1, 2}>()
    y = OneHot<axis = -1>(i, d, v)""",
    "int64[batch, time] i",
)
case(
    "OneHot before time",
    """d = Constant<value = int64 {9}>() v = Constant<value = float[2] {0, 1}>()
    n = Constant<value = int64 {3}>() j = Sub(i, n) y = OneHot<axis = 1>(j, d, v)""",
    "int64[batch, time] i",
)
case("TopK", "k = Constant<value = int64[1] {3}>() y, j = TopK<axis = -1>(x, k) z = Cast<to = 1>(j)", outputs="y z")
case(
    "TopK smallest",
    "k = Constant<value = int64[1] {2}>() y, j = TopK<axis = 2, largest = 0>(x, k) z = Cast<to = 1>(j)",
    outputs="y z",
)
case(
    "TopK of all along time",
    """s = Shape(x) a = Constant<value = int64[1] {1}>() k = Gather<axis = 0>(s, a)
    y, j = TopK<axis = 1>(x, k) z = Cast<to = 1>(j)""",
    outputs="y z",
)
case(
    "TopK of integers",
    """k = Shape(i) y, j = TopK<axis = 0>(i, k) u = Cast<to = 1>(y) z = Cast<to = 1>(j)""",
    "int64[batch] i",
    outputs="u z",
)
case(
    "a permutation turned round",
    f"""{SIZE} a = Constant<value = int64[1] {{0}}>() b = Gather<axis = 0>(s, zero)
    k = Unsqueeze(b, a) c = Constant<value = int64[2] {{1, 2}}>() m = ReduceSum<keepdims = 0>(x, c)
    v, p = TopK<axis = 0>(m, k) r = Range(zero, b, one) e = ScatterElements<axis = 0>(r, p, r)
    f = Gather<axis = 0>(x, p)    y = Gather<axis = 0>(f, e)""",
)

# --- longer and shorter axes ---
for mode, transform, nearest in (("nearest", "asymmetric", "floor"), ("nearest", "half_pixel", "round_prefer_floor"),
                                 ("linear", "half_pixel", "round_prefer_floor")):  # fmt: skip
    case(
        f"Resize {mode} {transform}",
        f"""w = Transpose<perm = [0, 2, 1]>(x) e = Constant<value = float[3] {{1, 1, 3}}>()
        y = Resize<mode = "{mode}", coordinate_transformation_mode = "{transform}",
        nearest_mode = "{nearest}">(w, , e)""",
    )
case(
    "Resize to twice the size",
    """w = Transpose<perm = [0, 2, 1]>(x) s = Shape(w)
    k = Constant<value = int64[3] {1, 1, 2}>() t = Mul(s, k)
    y = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(w, , , t)""",
)
case("DepthToSpace", "y = DepthToSpace<blocksize = 2>(x)", "float[batch, 8, 3, time] x")
case("DepthToSpace CRD", """y = DepthToSpace<blocksize = 2, mode = "CRD">(x)""", "float[batch, 8, 3, time] x")
case("SpaceToDepth", "y = SpaceToDepth<blocksize = 2>(x)", "float[batch, 3, 4, 6] x")

# --- Einsum ---
TWO = f"{X}, float[batch, time, 6] u"
case(
    "Einsum with an ellipsis",
    """w = Constant<value = float[2, 6] {1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6}>()
    y = Einsum<equation = "...i,ji->...j">(x, w)""",
)
case("Einsum of all scores", """y = Einsum<equation = "bqd,bkd->bqk">(x, u)""", TWO)
case("Einsum of three", """y = Einsum<equation = "btd,bsd,bsf->btf">(x, u, x)""", TWO)
case("Einsum without an arrow", """y = Einsum<equation = "btd,bsd">(x, u)""", TWO)
case("Einsum with a diagonal", """a = Einsum<equation = "btd,bsd->bts">(x, x) y = Einsum<equation = "btt->bt">(a)""")
case("Einsum that sums", """y = Einsum<equation = "btd->bd">(x)""")
case("Einsum of outer products", """y = Einsum<equation = "bti,btj->btij">(x, u)""", TWO)


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
