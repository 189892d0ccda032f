"""Operators that the importer says in terms of others: what comes out is what their definitions give."""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastrnn.errors import ModelFormatError
from fastrnn.graph import reference
from fastrnn.importers.onnx import import_onnx

RNG = np.random.default_rng(41)


def one(op, inputs, constants=(), domain="", opset=21, outputs=1, **attrs):
    """The reference's answers of one node; `inputs` are fed, `constants` are initializers behind them."""
    names = [f"x{k}" for k in range(len(inputs))]
    held = ["" if c is None else f"c{k}" for k, c in enumerate(constants)]
    ys = [f"y{k}" for k in range(outputs)]
    node = helper.make_node(op, names + held, ys, "the_node", domain=domain, **attrs)
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape) for n, x in zip(names, inputs, strict=True)]
    tensors = [numpy_helper.from_array(c, n) for n, c in zip(held, constants, strict=True) if n]
    graph = helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name=y) for y in ys if y], tensors)
    sets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    found = import_onnx(helper.make_model(graph, opset_imports=sets))
    return reference.run(found, dict(zip(names, inputs, strict=True)))


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("bhij,bhjd->bhid", [(2, 3, 4, 6), (2, 3, 6, 5)]),
        ("bnc,kc->bnk", [(2, 3, 4), (5, 4)]),
        ("btd,bsd->bst", [(2, 3, 4), (2, 5, 4)]),
        ("bi,bj->bij", [(2, 3), (2, 4)]),
        ("bij->bji", [(2, 3, 4)]),
        ("bij->b", [(2, 3, 4)]),
        ("bi,cj->bc", [(2, 3), (4, 5)]),
        ("i,i->", [(4,), (4,)]),
    ],
)
def test_einsum(equation, shapes):
    values = [normal(*s) for s in shapes]
    np.testing.assert_allclose(
        one("Einsum", values, equation=equation)[0], np.einsum(equation, *values, dtype=np.float64), atol=1e-6
    )


def test_norms_of_others():
    x, skip, scale, shift, bias = normal(2, 3, 4), normal(2, 3, 4), normal(4), normal(4), normal(4)
    total = np.float64(x) + skip + bias
    even = (total - total.mean(-1, keepdims=True)) / np.sqrt(total.var(-1, keepdims=True) + 1e-3)
    y = one("SkipLayerNormalization", [x, skip], [scale, shift, bias], "com.microsoft", epsilon=1e-3, outputs=1)[0]
    np.testing.assert_allclose(y, even * scale + shift, atol=1e-6)
    rms = np.float64(x) / np.sqrt((np.float64(x) ** 2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(one("RMSNormalization", [x], [scale], opset=23)[0], rms * scale, atol=1e-6)


def test_fused_products_of_others():
    a, b = normal(2, 4, 3), normal(2, 5, 4)
    y = one("FusedMatMul", [a, b], (), "com.microsoft", transA=1, transB=1, alpha=0.5)[0]
    np.testing.assert_allclose(y, 0.5 * np.matmul(a.transpose(0, 2, 1), b.transpose(0, 2, 1)), atol=1e-6)
    x, bias = normal(2, 4), normal(4)
    v = np.float64(x) + bias
    gelu = v * (1 + np.vectorize(math.erf)(v / math.sqrt(2))) / 2
    np.testing.assert_allclose(one("BiasGelu", [x], [bias], "com.microsoft")[0], gelu, atol=1e-6)


def test_a_box_is_scattered_and_other_indices_too():
    x, updates = normal(3, 4, 5), normal(2, 2, 5)
    box = np.array([[[1, 1], [1, 2]], [[2, 1], [2, 2]]])
    expected = x.copy()
    expected[1:3, 1:3] = updates
    names = ["x", "i", "u"]
    node = helper.make_node("ScatterND", names, ["y"], "the_node")
    infos = [helper.make_tensor_value_info(n, 1, v.shape) for n, v in (("x", x), ("u", updates))]

    def answer(indices):
        graph = helper.make_graph(
            [node], "g", infos, [onnx.ValueInfoProto(name="y")], [numpy_helper.from_array(indices, "i")]
        )
        found = import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)]))
        return reference.run(found, {"x": x, "u": updates})[0]

    np.testing.assert_array_equal(answer(box), expected)
    np.testing.assert_array_equal(answer(box - np.array([3, 4])), expected)
    other = x.copy()
    other[1:3, 1:3] = updates[::-1]
    np.testing.assert_array_equal(answer(box[::-1].copy()), other)


def quantised(middle):
    """x quantised, through `middle`, and back."""
    scale, zero = np.float32(0.05), np.uint8(120)
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantise"), *middle]
    nodes.append(helper.make_node("DequantizeLinear", [middle[-1].output[0] if middle else "q", "s", "z"], ["y"]))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, ["n"])], [helper.make_tensor_value_info("y", 1, ["n"])],
        [numpy_helper.from_array(np.array(scale), "s"), numpy_helper.from_array(np.array(zero), "z")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])


def test_live_quantisation_is_rounding_and_saturation():
    x = np.array([-20, -6, -0.026, -0.024, 0, 0.075, 0.125, 6, 6.75, 6.8, 20], np.float32)
    y = reference.run(import_onnx(quantised([])), {"x": x})[0]
    steps = np.clip(np.rint(x.astype(np.float64) / np.float32(0.05)) + 120, 0, 255) - 120
    np.testing.assert_allclose(y, steps * np.float32(0.05), atol=1e-12)


def test_a_triangle_and_a_running_sum_of_a_fed_value():
    x = normal(2, 3, 4)
    np.testing.assert_array_equal(one("Trilu", [x], [np.array(1)], upper=0)[0], np.tril(x, 1))
    np.testing.assert_allclose(
        one("CumSum", [x], [np.array(1)], reverse=1)[0], x[:, ::-1].cumsum(1)[:, ::-1], atol=1e-6
    )
    assert one("ArgMin", [x], axis=2, keepdims=0)[0].tolist() == x.argmin(2).tolist()


def test_a_quantised_lstm_computes_with_the_numbers_its_weights_stand_for():
    x, wide = normal(5, 2, 3), []
    constants = []
    for rows in (3, 4):
        array = RNG.integers(0, 256, (1, rows, 16)).astype(np.uint8)
        scale, zero = np.array([0.01], np.float32), np.array([131], np.uint8)
        constants.append((array, scale, zero))
        wide.append(((array.astype(np.float32) - 131) * scale).transpose(0, 2, 1))
    (W, W_scale, W_zero), (R, R_scale, R_zero) = constants
    bias = normal(1, 32)
    tail = [None, None, None, None, W_scale, W_zero, R_scale, R_zero]
    y = one("DynamicQuantizeLSTM", [x], [W, R, bias, *tail], "com.microsoft", hidden_size=4)[0]
    np.testing.assert_allclose(y, one("LSTM", [x], [*wide, bias], hidden_size=4)[0], atol=1e-7)
    with pytest.raises(ModelFormatError, match="must be 8-bit"):
        one("DynamicQuantizeLSTM", [x], [wide[0], R, bias, *tail], "com.microsoft", hidden_size=4)


def dynamic(head: str, **constants):
    """A file as quantize_dynamic writes it: x quantised by its own range, an integer product, and the scales back."""
    made = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[b,t,3] x) => (float[b,t,n] y)
        {{ q, s, z = DynamicQuantizeLinear(x) {head} f = Cast <to = 1> (i) k = Mul(s, ws) y = Mul(f, k) }}"""
    )
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    return made


@pytest.mark.parametrize("zero", [np.uint8(131), np.array([3, 120, 255, 0], np.uint8)], ids=["one", "a column"])
def test_dynamic_quantisation_computes_with_the_numbers_its_weights_stand_for(zero):
    w, scale = RNG.integers(0, 256, (3, 4)).astype(np.uint8), np.float32(0.02)
    graph = import_onnx(dynamic("i = MatMulInteger(q, w, z, wz)", w=w, wz=zero, ws=scale))
    x = normal(2, 5, 3)
    want = x @ ((w.astype(np.float64) - zero) * scale)
    np.testing.assert_allclose(reference.run(graph, {"x": x})[0], want, rtol=1e-6, atol=1e-6)
    assert any("are not rounded so" in note and "differ from onnxruntime's" in note for note in graph.notes)


def test_an_integer_convolution_of_dynamically_quantised_values():
    w, zero, scale = RNG.integers(-128, 128, (4, 3, 3)).astype(np.int8), np.int8(5), np.float32(0.02)
    head = "t = Transpose <perm = [0, 2, 1]> (q) c = ConvInteger <pads = [1, 1]> (t, w, z, wz)"
    head += " i = Transpose <perm = [0, 2, 1]> (c)"
    x = normal(2, 5, 3)
    got = reference.run(import_onnx(dynamic(head, w=w, wz=zero, ws=scale)), {"x": x})[0]
    numbers = ((w.astype(np.float32) - zero) * scale).astype(np.float32)
    want = one("Conv", [x.transpose(0, 2, 1)], [numbers], pads=[1, 1])[0]
    np.testing.assert_allclose(got, want.transpose(0, 2, 1), rtol=1e-5, atol=1e-5)


def test_a_quantised_table_is_looked_up_moved_and_dequantised():
    table, scale, zero = RNG.integers(0, 256, (30, 4)).astype(np.uint8), np.float32(0.1), np.uint8(9)
    made = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (int64[b,t] x) => (float[t,b,4] y)
        { q = Gather(w, x) m = Transpose <perm = [1, 0, 2]> (q) y = DequantizeLinear(m, s, z) }"""
    )
    made.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(a), n) for n, a in (("w", table), ("s", scale), ("z", zero))
    )
    ids = RNG.integers(0, 30, (2, 5))
    want = ((table.astype(np.float64) - 9) * scale)[ids].transpose(1, 0, 2)
    np.testing.assert_allclose(reference.run(import_onnx(made), {"x": ids})[0], want, rtol=1e-6)


QLINEAR = {
    "QLinearMatMul": ("y0 = QLinearMatMul(q, s, z, w, ws, wz, ys, yz)", (3, 4)),
    "QLinearConv": (
        "t = Transpose <perm = [0, 2, 1]> (q) y0 = QLinearConv(t, s, z, w, ws, wz, ys, yz, bias)",
        (4, 3, 2),
    ),
    "QLinearAdd": ("y0 = com.microsoft.QLinearAdd(q, s, z, w, ws, wz, ys, yz)", (3,)),
    "QLinearMul": ("y0 = com.microsoft.QLinearMul(q, s, z, w, ws, wz, ys, yz)", (3,)),
    "QLinearSigmoid": ("y0 = com.microsoft.QLinearSigmoid(q, s, z, ys, yz)", ()),
}


@pytest.mark.parametrize("name", QLINEAR)
def test_integer_operators_with_fixed_scales_are_those_of_onnxruntime(name):
    ort = pytest.importorskip("onnxruntime")
    body, shape = QLINEAR[name]
    made = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[b,t,3] x) => (float[k,l,m] y)
        {{ q = QuantizeLinear(x, s, z) {body} y = DequantizeLinear(y0, ys, yz) }}"""
    )
    constants = {"s": np.float32(0.03), "z": np.uint8(120), "ys": np.float32(0.05), "yz": np.uint8(100)}
    constants |= {"w": RNG.integers(0, 256, shape).astype(np.uint8), "ws": np.float32(0.01), "wz": np.uint8(128)}
    constants |= {"bias": np.int32([100, -500, 0, 2000])}
    used = {i for node in made.graph.node for i in node.input}
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items() if n in used)
    x = normal(2, 5, 3)
    want = ort.InferenceSession(made.SerializeToString()).run(None, {"x": x})[0]
    got = reference.run(import_onnx(made), {"x": x})[0]
    assert np.abs(got - want).max() < 0.051  # a step, where a half is rounded otherwise
    assert (np.abs(got - want) < 1e-6).mean() > 0.95


@pytest.mark.parametrize("name", "Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh".split())
def test_functions_of_angles(name):
    x = np.float32([1.0, 1.5, 3.0]) if name == "Acosh" else np.float32([-0.9, 0.0, 0.5])
    numpy_name = {"A": "arc" + name[1:].lower()}.get(name[0], name.lower())
    np.testing.assert_allclose(one(name, [x])[0], getattr(np, numpy_name)(x.astype(np.float64)), rtol=1e-6)
