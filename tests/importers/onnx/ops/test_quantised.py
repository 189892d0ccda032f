"""Quantised files as onnxruntime writes and optimises them, against onnxruntime: whole, in a batch and as a stream."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import fastrnn
from fastrnn import UnsupportedError

RNG = np.random.default_rng(8)
LEVELS = onnxruntime.GraphOptimizationLevel
SIZES = ((1, 4), (2, 9), (3, 16), (5, 2), (1, 1))
INT8, UINT8, INT16, UINT16 = QuantType.QInt8, QuantType.QUInt8, QuantType.QInt16, QuantType.QUInt16

BODIES = {  # name -> (body, shapes of weights, features of y)
    "lstm": (
        (
            "t = Transpose <perm = [1, 0, 2]> (x) h, hn, cn = LSTM <hidden_size = 6> (t, W, R, B) "
            "one = Constant <value_ints = [1]> () s = Squeeze(h, one) u = Transpose <perm = [1, 0, 2]> (s) "
            "m = MatMul(u, V) y = Add(m, v)"
        ),
        {"W": (1, 24, 5), "R": (1, 24, 6), "B": (1, 48), "V": (6, 4), "v": (4,)},
        4,
    ),
    "gru": (
        (
            "a = MatMul(x, A) r = Relu(a) t = Transpose <perm = [1, 0, 2]> (r) "
            "h, hn = GRU <hidden_size = 6> (t, W, R, B) "
            "one = Constant <value_ints = [1]> () s = Squeeze(h, one) u = Transpose <perm = [1, 0, 2]> (s) "
            "m = MatMul(u, V) k = Sigmoid(m) y = Mul(k, m)"
        ),
        {"A": (5, 5), "W": (1, 18, 5), "R": (1, 18, 6), "B": (1, 36), "V": (6, 4)},
        4,
    ),
    "conv": (
        (
            "t = Transpose <perm = [0, 2, 1]> (x) c = Conv <pads = [2, 0], kernel_shape = [3]> (t, K, k) r = Relu(c) "
            "e = Conv <pads = [1, 0], kernel_shape = [2], group = 2> (r, L, l) z = LeakyRelu <alpha = 0.2> (e) "
            "s = Add(z, r) j = Concat <axis = 1> (s, z) y = Transpose <perm = [0, 2, 1]> (j)"
        ),
        {"K": (6, 5, 3), "k": (6,), "L": (6, 3, 2), "l": (6,)},
        12,
    ),
}


def base(name: str) -> onnx.ModelProto:
    body, shapes, features = BODIES[name]
    made = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[b,t,5] x) => (float[b,t,{features}] y) {{ {body} }}'
    )
    rng = np.random.default_rng(3)
    made.graph.initializer.extend(
        numpy_helper.from_array(rng.normal(0, 0.5, shape).astype(np.float32), k) for k, shape in shapes.items()
    )
    onnx.checker.check_model(made)
    return made


class Examples(CalibrationDataReader):
    def __init__(self):
        self.left = iter([{"x": np.random.default_rng(k).normal(size=(2, 10, 5)).astype(np.float32)} for k in range(6)])

    def get_next(self):
        return next(self.left, None)


def session(data: bytes, level=LEVELS.ORT_DISABLE_ALL, path=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.graph_optimization_level = 4, level
    if path is not None:
        options.optimized_model_filepath = str(path)
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def differences(data: bytes, loaded=None):
    """(largest difference, share of values apart by more than rounding) from onnxruntime, at several sizes."""
    theirs, loaded, worst, apart = session(data), loaded or fastrnn.from_onnx(data), 0.0, []
    for batch, steps in SIZES:
        x = RNG.normal(size=(batch, steps, 5)).astype(np.float32)
        want, got = theirs.run(None, {"x": x})[0], loaded.run(x=x)[0]
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        worst = max(worst, float(np.abs(got - want).max()))
        apart.append(np.abs(got - want) > 1e-5)
    return worst, np.concatenate([a.reshape(-1) for a in apart]).mean()


def streams(loaded):
    """Chunks give the bits of the whole run, at every batch."""
    x = RNG.normal(size=(3, 11, 5)).astype(np.float32)
    whole = loaded.run(x=x)[0]
    stream, alone = loaded.stream(batch_size=3), loaded.stream()
    np.testing.assert_array_equal(
        np.concatenate([stream.push(x[:, a:b]) for a, b in ((0, 1), (1, 7), (7, 11))], 1), whole
    )
    for t in range(11):
        np.testing.assert_array_equal(alone.step(x[1, t]), whole[1, t])


STATIC = [
    *[(QuantFormat.QDQ, a, w, c) for a, w in ((UINT8, INT8), (UINT8, UINT8), (INT8, INT8)) for c in (False, True)],
    *[
        (QuantFormat.QOperator, a, w, c)
        for a, w in ((UINT8, INT8), (UINT8, UINT8), (INT8, INT8))
        for c in (False, True)
    ],
    (QuantFormat.QDQ, UINT16, INT8, False),
    (QuantFormat.QDQ, INT16, INT8, True),
]


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize(("form", "activations", "weights", "per_channel"), STATIC)
def test_static_quantisation(tmp_path, name, form, activations, weights, per_channel):
    """The numbers are onnxruntime's to the last bit or two; a value may fall on the other side of a half step."""
    path = tmp_path / "q.onnx"
    quantize_static(
        base(name), path, Examples(), quant_format=form, activation_type=activations, weight_type=weights,
        per_channel=per_channel,
    )  # fmt: skip
    loaded = fastrnn.load(path)
    worst, share = differences(path.read_bytes(), loaded)
    assert worst < 0.06  # a step
    assert share < 0.01
    streams(loaded)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("weights", [INT8, UINT8])
@pytest.mark.parametrize("how", ["plain", "per_channel", "reduce_range", "both sides"])
def test_dynamic_quantisation(tmp_path, name, weights, how):
    """Values that are quantised by the range of each call stay unrounded: near onnxruntime's, and they stream."""
    path = tmp_path / "q.onnx"
    options = {how: True} if how in ("per_channel", "reduce_range") else {}
    extra = {"MatMulConstBOnly": how != "both sides"}
    quantize_dynamic(base(name), path, weight_type=weights, extra_options=extra, **options)
    loaded = fastrnn.load(path)
    assert differences(path.read_bytes(), loaded)[0] < 0.1
    assert any("not rounded" in note for note in loaded.graph.notes)
    streams(loaded)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("kind", ["float", "dynamic", "QDQ", "QOperator"])
@pytest.mark.parametrize("level", [LEVELS.ORT_ENABLE_EXTENDED, LEVELS.ORT_ENABLE_ALL], ids=["extended", "all"])
def test_what_the_optimiser_writes(tmp_path, name, kind, level):
    """Fused and quantised operators of onnxruntime's own domain, as in an optimized_model_filepath."""
    path, out = tmp_path / "q.onnx", tmp_path / "optimised.onnx"
    if kind == "float":
        onnx.save(base(name), path)
    elif kind == "dynamic":
        quantize_dynamic(base(name), path, weight_type=INT8)
    else:
        form = QuantFormat[kind]
        quantize_static(base(name), path, Examples(), quant_format=form, activation_type=UINT8, weight_type=INT8)
    session(path.read_bytes(), level, out)
    worst, share = differences(out.read_bytes())
    assert worst < (1e-5 if kind == "float" else 0.1)
    assert share < 0.05 or kind == "dynamic"


# ---- node by node ----------------------------------------------------------------------------------------------------


def made(signature: str, body: str, opset: int = 21, **constants) -> bytes:
    proto = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]> g {signature} {{ {body} }}'
    )
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    return proto.SerializeToString()


def agree(data: bytes, *feeds: dict, atol: float = 1e-6):
    theirs, ours = session(data), fastrnn.from_onnx(data)
    for feed in feeds:
        for got, want in zip(ours.run(**feed), theirs.run(None, feed), strict=True):
            assert (got.shape, got.dtype) == (want.shape, want.dtype)
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=atol)
    return ours


def rows(*sizes):
    return [{"x": RNG.normal(0, 2, size=(b, 6)).astype(np.float32)} for b in sizes]


def floats(*shape):
    return RNG.uniform(0.01, 0.1, size=shape).astype(np.float32)


def test_integers_that_are_scaled_by_the_range_of_the_whole_tensor():
    """As older versions of onnxruntime wrote a bias: rounded down in units of the scale, and added to the integers."""
    data = made(
        "(float[b,6] x) => (float[b,4] y)",
        """
        q, s, z = DynamicQuantizeLinear(x) k = Mul(s, ws) d = Div(bias, k) f = Floor(d) i = Cast <to = 6> (f)
        p = MatMulInteger(q, w, z, wz) t = Add(p, i) g = Cast <to = 1> (t) y = Mul(g, k)
        """,
        w=RNG.integers(0, 256, (6, 4)).astype(np.uint8), wz=np.uint8(120), ws=np.float32(0.01), bias=floats(4),
    )  # fmt: skip
    ours = agree(data, *rows(1, 3, 5), {"x": np.zeros((2, 6), np.float32)}, {"x": np.full((2, 6), 3, np.float32)})
    assert not ours.graph.notes or not any("not rounded" in n for n in ours.graph.notes)
    x = rows(2)[0]["x"]
    assert not np.array_equal(ours.run(x=x)[0][:1], ours.run(x=x[:1])[0])  # a row depends on its neighbours
    with pytest.raises(fastrnn.FastRNNError):
        ours.stream(batch_size=2)


def test_scales_and_zero_points_in_every_shape():
    for axis, shape in ((0, (4,)), (1, (6,)), (-1, (6,)), (1, ()), (1, (1,))):
        data = made(
            "(float[4,6] x) => (float[4,6] y)",
            f"q = QuantizeLinear <axis = {axis}> (x, s, z) y = DequantizeLinear <axis = {axis}> (q, s, z)",
            s=floats(*shape), z=RNG.integers(-100, 100, shape).astype(np.int8),
        )  # fmt: skip
        agree(data, *rows(4))


@pytest.mark.parametrize("zeros", [False, True])
def test_scales_in_blocks(zeros):
    z = {"z": RNG.integers(0, 20, (4, 3)).astype(np.uint8)} if zeros else {}
    data = made(
        "(float[4,6] x) => (float[4,6] y)",
        f"q = QuantizeLinear <axis = 1, block_size = 2> (x, s{', z' * zeros}) "
        f"y = DequantizeLinear <axis = 1, block_size = 2> (q, s{', z' * zeros})",
        s=floats(4, 3), **z,
    )  # fmt: skip
    x = rows(4)[0]["x"]
    wide, zero = (np.repeat(a, 2, 1).astype(np.float32) for a in (numpy_of(data, "s"), z.get("z", np.zeros((4, 3)))))
    want = (np.clip(np.rint(x / wide) + zero, 0, 255) - zero) * wide
    np.testing.assert_allclose(fastrnn.from_onnx(data).run(x=x)[0], want, rtol=1e-6)


def numpy_of(data: bytes, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in onnx.load_from_string(data).graph.initializer if t.name == name)


def test_scales_that_are_computed():
    """The scale of each call is an input, as for values from another quantised model."""
    data = made(
        "(float[b,6] x, float s) => (float[b,6] y)",
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Tanh(d)",
        z=np.uint8(128),
    )
    agree(data, *({**feed, "s": np.array(s, np.float32)} for feed, s in zip(rows(1, 3), (0.05, 0.2), strict=True)))


def test_integer_products_with_a_zero_point_a_row():
    data = made(
        "(float[3,6] x) => (float[3,4] y)",
        "q = QuantizeLinear(x, s, z) i = MatMulInteger(q, w, rz, wz) y = Cast <to = 1> (i)",
        s=np.float32(0.05), z=np.uint8(128), w=RNG.integers(-128, 128, (6, 4)).astype(np.int8),
        rz=np.uint8([128, 120, 3]), wz=RNG.integers(-9, 9, 4).astype(np.int8),
    )  # fmt: skip
    x, w = rows(3)[0]["x"], numpy_of(data, "w").astype(np.int64)
    q = np.clip(np.rint(x / np.float32(0.05)) + 128, 0, 255).astype(np.int64)
    want = (q - np.array([[128], [120], [3]])) @ (w - numpy_of(data, "wz"))
    np.testing.assert_array_equal(fastrnn.from_onnx(data).run(x=x)[0], want)


def test_integer_results_are_integers():
    """An int32 sum of a product that nothing scales back is an output of its own type."""
    data = made(
        "(float[b,6] x) => (int32[b,4] y)",
        "q = QuantizeLinear(x, s, z) y = MatMulInteger(q, w, z, wz)",
        s=np.float32(0.05), z=np.uint8(128), w=RNG.integers(-128, 128, (6, 4)).astype(np.int8), wz=np.int8(3),
    )  # fmt: skip
    agree(data, *rows(1, 4))


@pytest.mark.parametrize(
    "body",
    [
        "q = QuantizeLinear(x, s, z) r = com.microsoft.QLinearLeakyRelu <alpha = 0.3> (q, s, z, ys, yz)",
        "q = QuantizeLinear(x, s, z) r = com.microsoft.QLinearSoftmax <axis = -1, opset = 13> (q, s, z, ss, sz)",
        "q = QuantizeLinear(x, s, z) r = com.microsoft.QLinearConcat <axis = 1> (ys, yz, q, s, z, q, s, z)",
        "q = QuantizeLinear(x, s, z) r = com.microsoft.QGemm <transB = 1> (q, s, z, w, ws, wz, bias, ys, yz)",
    ],
    ids=lambda body: body.split("com.microsoft.")[1].split()[0],
)
def test_operators_on_quantised_values(body):
    softmax = "QLinearSoftmax" in body
    constants = {
        "s": np.float32(0.03), "z": np.uint8(120), "ys": np.float32(0.05), "yz": np.uint8(100),
        "ss": np.float32(1 / 256), "sz": np.uint8(0), "w": RNG.integers(0, 256, (4, 6)).astype(np.uint8),
        "ws": floats(4), "wz": RNG.integers(99, 140, 4).astype(np.uint8), "bias": np.int32([100, -500, 0, 2000]),
    }  # fmt: skip
    last = "y = DequantizeLinear(r, ss, sz)" if softmax else "y = DequantizeLinear(r, ys, yz)"
    used = {k: v for k, v in constants.items() if k in set((body + last).replace("(", " ").replace(")", " ")
            .replace(",", " ").split())}  # fmt: skip
    data = made("(float[b,6] x) => (float[b,n] y)", f"{body} {last}", opset=17, **used)
    theirs, ours = session(data), fastrnn.from_onnx(data)
    for feed in rows(1, 3, 40):
        got, want = ours.run(**feed)[0], theirs.run(None, feed)[0]
        step = constants["ss" if softmax else "ys"]
        assert np.abs(got - want).max() < 1.01 * step
        assert (np.abs(got - want) < step / 2).mean() > (0.9 if softmax else 0.97)


@pytest.mark.parametrize("scales", [(), (4,)])
def test_products_that_give_floats(scales):
    """MatMulIntegerToFloat and DynamicQuantizeMatMul; the latter leaves x unrounded."""
    weights = {"w": RNG.integers(0, 256, (6, 4)).astype(np.uint8), "ws": floats(*scales)}
    weights |= {"wz": RNG.integers(99, 140, scales).astype(np.uint8), "v": floats(4)}
    data = made(
        "(float[b,6] x) => (float[b,4] y)",
        "q = QuantizeLinear(x, s, z) y = com.microsoft.MatMulIntegerToFloat(q, w, s, ws, z, wz, v)",
        s=np.float32(0.05), z=np.uint8(128), **weights,
    )  # fmt: skip
    agree(data, *rows(1, 3), atol=1e-5)
    data = made(
        "(float[b,6] x) => (float[b,4] y)", "y = com.microsoft.DynamicQuantizeMatMul(x, w, ws, wz, v)", **weights
    )
    theirs, ours = session(data), fastrnn.from_onnx(data)
    for feed in rows(1, 3):
        wide = (weights["w"].astype(np.float64) - weights["wz"]) * weights["ws"]
        np.testing.assert_allclose(ours.run(**feed)[0], feed["x"] @ wide + weights["v"], rtol=1e-5, atol=1e-4)
        assert np.abs(ours.run(**feed)[0] - theirs.run(None, feed)[0]).max() < 1.5


def test_fused_operators():
    data = made(
        "(float[b,6] x) => (float[b,6] y, float[b,6] z)",
        """
        a = com.microsoft.FastGelu(x, v) c = com.microsoft.QuickGelu <alpha = 1.5> (a)
        d = com.microsoft.FusedGemm <transB = 1, activation = "LeakyRelu", activation_alpha = 0.3> (c, w, v)
        e = com.microsoft.FusedGemm <activation = "Tanh", alpha = 0.5> (d, w, v)
        f = SimplifiedLayerNormalization <epsilon = 0.001, axis = -1> (e, v)
        y = com.microsoft.SkipLayerNormalization <epsilon = 0.001> (f, a, v, v)
        z = Identity(f)
        """,
        v=floats(6), w=RNG.normal(size=(6, 6)).astype(np.float32),
    )  # fmt: skip
    agree(data, *rows(1, 3, 7), atol=1e-5)


def test_embeddings_that_are_normalised():
    table = {k: RNG.normal(size=(n, 6)).astype(np.float32) for k, n in (("words", 9), ("places", 20), ("kinds", 2))}
    data = made(
        "(int32[b,t] x, int32[b,t] k) => (float[b,t,6] y)",
        "y, mask = com.microsoft.EmbedLayerNormalization <epsilon = 0.001> (x, k, words, places, kinds, v, v)",
        v=floats(6), **table,
    )  # fmt: skip
    agree(
        data,
        *({"x": RNG.integers(0, 9, (b, t), np.int32), "k": RNG.integers(0, 2, (b, t), np.int32)}
          for b, t in ((1, 1), (2, 7), (3, 20))),
        atol=1e-5,
    )  # fmt: skip


def test_what_is_not_computed_is_named():
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=onnx.TensorProto.FLOAT8E4M3FN)
    back = helper.make_node("DequantizeLinear", ["q", "s"], ["y"])
    infos = [helper.make_tensor_value_info(n, 1, ["b", 6]) for n in ("x", "y")]
    graph = helper.make_graph([node, back], "g", infos[:1], infos[1:], [numpy_helper.from_array(floats(), "s")])
    with pytest.raises(UnsupportedError, match="output_dtype=float8e4m3fn"):
        fastrnn.from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
