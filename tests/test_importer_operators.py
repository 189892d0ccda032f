"""Operators that the importer says in terms of others: what comes out is what their definitions give."""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastrnn import reference
from fastrnn.errors import ModelFormatError, UnsupportedError
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


def test_a_box_is_scattered_and_other_indices_are_refused():
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
    with pytest.raises(UnsupportedError, match="not a box in order"):
        answer(box[::-1].copy())


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


def test_arithmetic_on_quantised_integers_is_refused():
    with pytest.raises(UnsupportedError, match="node between: Neg: computes on quantised integers"):
        import_onnx(quantised([helper.make_node("Neg", ["q"], ["t"], "between")]))


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
