"""Layers of quantised files hold the file's own integers: the weights that it means, near the float model's answers."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import fastrnn
from fastrnn.graph.precision import integers_of, meant, note_steps

I, H, O = 64, 96, 200  # noqa: E741
LSTM = (
    "t = Transpose <perm = [1, 0, 2]> (x) h, hn, cn = LSTM <hidden_size = 96> (t, W, R, B) "
    "one = Constant <value_ints = [1]> () s = Squeeze(h, one) u = Transpose <perm = [1, 0, 2]> (s) "
    "m = MatMul(u, V) a = Add(m, v) y = Relu(a)"
)
TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}


def weights(lopsided: float = 0.0) -> dict:
    """lopsided: how far weights are from being as often positive as negative."""
    rng = np.random.default_rng(4)
    shapes = {"W": (1, 4 * H, I), "R": (1, 4 * H, H), "B": (1, 8 * H), "V": (H, O), "v": (O,)}
    return {k: (rng.normal(lopsided, 1, s) / np.sqrt(H)).astype(np.float32) for k, s in shapes.items()}


def float_model(body: str = LSTM, **arrays) -> onnx.ModelProto:
    made = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[b,t,{I}] x) => (float[b,t,{O}] y) {{ {body} }}'
    )
    arrays = arrays or weights()
    made.graph.initializer.extend(numpy_helper.from_array(a, k) for k, a in arrays.items() if k in body)
    return made


def quantised(tmp_path, kind: str, model=None, **options) -> str:
    path = str(tmp_path / "q.onnx")
    quantize_dynamic(model or float_model(), path, weight_type=TYPES[kind], **options)
    return path


def values(rows: int = 5, steps: int = 30) -> np.ndarray:
    return np.random.default_rng(6).normal(size=(rows, steps, I)).astype(np.float32)


def run_there(model, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    data = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, options).run(None, {"x": x})[0]


def stored(path: str) -> dict:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def held(model) -> dict:
    """The integers and scales of the cell and of the linear layer."""
    constants, found = model.graph.constants, {}
    for node in model.graph.nodes:
        if node.op == "cell":
            found |= dict(zip(("W", "R", "W_scale", "R_scale"), (node.inputs[i] for i in (1, 2, 10, 11)), strict=True))
        if node.op == "linear":
            found |= {"V": node.inputs[1], "V_scale": node.inputs[3]}
    return {k: constants[v] for k, v in found.items()}


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_layers_hold_the_integers_of_the_file(tmp_path, per_channel):
    path = quantised(tmp_path, "int8", per_channel=per_channel)
    model, file = fastrnn.load(path), stored(path)
    assert model.precision == "int8"
    ours = held(model)
    np.testing.assert_array_equal(ours["W"], file["W_quantized"][0].T)
    np.testing.assert_array_equal(ours["R"], file["R_quantized"][0].T)
    np.testing.assert_array_equal(ours["V"], file["V_quantized"])
    for name in "WRV":
        scale = file[f"{name}_scale"].reshape(-1)
        np.testing.assert_array_equal(ours[f"{name}_scale"], np.broadcast_to(scale, ours[f"{name}_scale"].shape))
    assert sum("of the file's own integers" in note for note in model.notes) == 2


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", TYPES)
def test_answers_are_nearer_to_the_float_model_than_those_of_onnxruntime(tmp_path, kind, per_channel):
    path, x = quantised(tmp_path, kind, per_channel=per_channel), values()
    exact, theirs, model = run_there(float_model(), x), run_there(path, x), fastrnn.load(path)
    ours = model.run(x=x)[0]
    rms = lambda y: np.sqrt(((y - exact) ** 2).mean())  # noqa: E731
    assert 0 < rms(ours) < rms(theirs)
    stream = model.stream(batch_size=5)
    assert np.stack([stream.step(x[:, t]) for t in range(30)], axis=1).tobytes() == ours.tobytes()
    assert model.run(x=x[2:3])[0].tobytes() == ours[2:3].tobytes()


@pytest.mark.parametrize("function", ["Relu", "Sigmoid", "Tanh"])
def test_values_that_are_never_negative_keep_15_bits(tmp_path, function):
    """onnxruntime rounds them to 0..255; with a sign, 8 bits would have half of the steps."""
    rng = np.random.default_rng(5)
    shapes = {"W0": (I, 256), "W1": (256, 256), "W2": (256, O)}
    arrays = {name: rng.normal(size=s).astype(np.float32) / 10 for name, s in shapes.items()}
    body = f"a = MatMul(x, W0) b = {function}(a) c = MatMul(b, W1) d = {function}(c) y = MatMul(d, W2)"
    float_one = float_model(body, **arrays)
    path, x = quantised(tmp_path, "int8", float_one, per_channel=True), values()
    model = fastrnn.load(path)
    if function == "Tanh":
        assert model.precision == "int8"
    else:
        assert list(model.precision.values()) == ["int8", "int8-a16", "int8-a16"]
    exact, theirs, ours = run_there(float_one, x), run_there(path, x), model.run(x=x)[0]
    rms = lambda y: np.sqrt(((y - exact) ** 2).mean())  # noqa: E731
    assert 0 < rms(ours) < rms(theirs)


def test_a_caller_chooses_another_precision(tmp_path):
    path, x = quantised(tmp_path, "int8"), values()
    wide, fine = (fastrnn.load(path, precision=p) for p in ("float32", "int8-a16"))
    file = stored(path)
    arrays = weights()
    for name in "WRV":
        arrays[name] = (file[f"{name}_quantized"].astype(np.float32) * file[f"{name}_scale"].reshape(-1)).astype("f4")
    arrays |= {name: arrays[name].transpose(0, 2, 1) for name in "WR"}
    want = run_there(float_model(**arrays), x)
    assert wide.precision == "float32"
    np.testing.assert_allclose(wide.run(x=x)[0], want, atol=1e-5)
    assert fine.precision == "int8-a16"
    np.testing.assert_allclose(fine.run(x=x)[0], want, atol=2e-3)
    for name in ("W", "R", "V", "V_scale"):
        np.testing.assert_array_equal(held(fine)[name], held(fastrnn.load(path))[name])
    cell, linear = (layer.name for layer in wide.layers)
    some = fastrnn.load(path, precision={cell: "float32"})
    assert some.precision == {cell: "float32", linear: "int8"}


def test_files_keep_the_integers(tmp_path):
    path, x = quantised(tmp_path, "int8"), values()
    model = fastrnn.load(path)
    model.save(tmp_path / "m.fastrnn")
    loaded = fastrnn.load(tmp_path / "m.fastrnn")
    assert loaded.fingerprint == model.fingerprint != fastrnn.load(path, precision="float32").fingerprint
    assert loaded.run(x=x)[0].tobytes() == model.run(x=x)[0].tobytes()
    fine = fastrnn.load(tmp_path / "m.fastrnn", precision="int8-a16")
    assert fine.run(x=x)[0].tobytes() == fastrnn.load(path, precision="int8-a16").run(x=x)[0].tobytes()


def test_float32_continues_the_sessions_of_earlier_releases(tmp_path):
    """The widened model has the name that it had before layers could hold integers: that of its imported graph."""
    path = quantised(tmp_path, "int8")
    wide = fastrnn.load(path, precision="float32")
    names = wide._core.identity.models
    assert len(names) == 2
    small = fastrnn.load(path)
    assert not set(names) & set(small._core.identity.models)


def test_small_layers_stay_float32(tmp_path):
    body = "y = MatMul(x, V)"
    path = quantised(tmp_path, "int8", float_model(body, V=weights()["V"][:I, :40]))
    model = fastrnn.load(path)
    assert model.precision == "float32"
    assert any("2560 weights gain nothing by it" in note for note in model.notes)


def test_weights_far_from_their_zero_point_stay_float32(tmp_path):
    """Of 255 steps, the range of a column can be all on one side."""
    arrays, x = weights(lopsided=2), values()
    path = quantised(tmp_path, "uint8", float_model(**arrays))
    model = fastrnn.load(path)
    assert list(model.precision.values()) == ["int8", "float32"]  # onnxruntime has no zero point for an LSTM
    assert sum("less their zero point go beyond -128 to 127" in note for note in model.notes) == 1
    assert np.abs(model.run(x=x)[0] - run_there(float_model(**arrays), x)).max() < 0.05 * 2 * H


class Examples(CalibrationDataReader):
    def __init__(self):
        self.left = iter([{"x": values(2)}, {"x": values(3)}])

    def get_next(self):
        return next(self.left, None)


@pytest.mark.parametrize("form", QuantFormat)
def test_values_that_the_file_rounds_are_rounded_so(tmp_path, form):
    """At the file's scale, once: rounding them again by row would change answers."""
    path, x = str(tmp_path / "q.onnx"), values()
    quantize_static(float_model(), path, Examples(), quant_format=form, weight_type=QuantType.QInt8)
    model = fastrnn.load(path)
    assert model.precision == "float32"
    if form is QuantFormat.QDQ:
        assert any("the file rounds its input at a scale of its own" in note for note in model.notes)
    got, want = model.run(x=x)[0], run_there(path, x)
    assert (np.abs(got - want) > 1e-5).mean() < 0.01


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_behind_a_dequantize_linear_keep_values_of_15_bits(axis):
    rng = np.random.default_rng(3)
    q, scale = rng.integers(-127, 128, (200, I)).astype(np.int8), rng.uniform(1e-3, 2e-3, 200).astype(np.float32)
    name, wide = ("w", q) if axis == 0 else ("v", np.ascontiguousarray(q.T))
    made = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[b,{I}] x) => (float[b,200] y) '
        f"{{ d = DequantizeLinear <axis = {axis}> ({name}, s) y = Gemm <transB = {1 - axis}> (x, d) }}"
    )
    made.graph.initializer.extend(numpy_helper.from_array(a, k) for k, a in ((name, wide), ("s", scale)))
    layer = fastrnn.from_onnx(made, precision="float32").layers[0].name
    model = fastrnn.from_onnx(made, precision={layer: "int8"})
    np.testing.assert_array_equal(held_by(model)[0], q.T)
    np.testing.assert_array_equal(held_by(model)[1], scale)
    assert fastrnn.from_onnx(made).precision == "float32"  # too small to gain
    x = values(1)[0]
    want = x @ (q.T * scale)
    np.testing.assert_allclose(fastrnn.from_onnx(made, precision={layer: "int8-a16"}).run(x=x)[0], want, atol=1e-3)


def held_by(model):
    (node,) = (n for n in model.graph.nodes if n.op == "linear")
    return model.graph.constants[node.inputs[1]], model.graph.constants[node.inputs[3]]


# ---- integers from float32 ------------------------------------------------------------------------------------------


def test_integers_are_found_again_exactly():
    rng = np.random.default_rng(0)
    q = rng.integers(-127, 128, (50, 30)).astype(np.float32)
    q[:, 3] = 0
    step = rng.uniform(1e-5, 1e-2, 30).astype(np.float32)
    step[7] = 1e-41  # denormal
    W, found = q * step, {}
    note_steps(found, W, step[None], 0, "int8")
    for part in (W, W[:, ::-1], W[:, 5:9]):  # moved columns
        got, steps, precision = integers_of(part, 0, found)
        assert precision == "int8"
        assert meant(got.astype(np.int8), "int8", 0, steps).tobytes() == (part + 0.0).tobytes()
    other = W.copy()
    other[4, 4] = np.nextafter(other[4, 4], 1)
    assert integers_of(other, 0, found) is None  # one digit of one weight
    assert integers_of(W[:20], 0, {}) is None
    note_steps(found, W, step[None], 0, "int8-a16")
    assert integers_of(W, 0, found)[2] == "int8-a16"  # two uses of the same weights: the finer one


def conv_model(kernel: np.ndarray) -> onnx.ModelProto:
    body = (
        "t = Transpose <perm = [0, 2, 1]> (x) c = Conv <pads = [4, 0], kernel_shape = [5]> (t, K, v) "
        "y = Transpose <perm = [0, 2, 1]> (c)"
    )
    return float_model(body, K=kernel, v=weights()["v"])


@pytest.mark.parametrize("per_channel", [False, True])
def test_convolutions_hold_the_integers_of_the_file(tmp_path, per_channel):
    kernel = np.random.default_rng(2).normal(0, 0.1, (O, I, 5)).astype(np.float32)
    path, x = quantised(tmp_path, "int8", conv_model(kernel), per_channel=per_channel), values()
    model, file = fastrnn.load(path), stored(path)
    assert model.precision == "int8"
    (node,) = (n for n in model.graph.nodes if n.op == "conv")
    np.testing.assert_array_equal(model.graph.constants[node.inputs[1]], file["K_quantized"])
    scale = model.graph.constants[node.inputs[3]]
    np.testing.assert_array_equal(scale, np.broadcast_to(file["K_scale"].reshape(-1), scale.shape))
    y, exact = model.run(x=x)[0], run_there(conv_model(kernel), x)
    assert 0 < np.sqrt(((y - exact) ** 2).mean()) < 0.02 * exact.std()
    wide = kernel_of(file)
    np.testing.assert_allclose(
        fastrnn.load(path, precision="float32").run(x=x)[0], run_there(conv_model(wide), x), atol=1e-4
    )


def kernel_of(file: dict) -> np.ndarray:
    """The convolution's weights that a file means."""
    zero, scale = (file[f"K_{n}"].reshape(-1, 1, 1).astype(np.float32) for n in ("zero_point", "scale"))
    return (file["K_quantized"].astype(np.float32) - zero) * scale


class TestNeighboursOfQuantisedLayers:
    """Layers whose weights the file does not have as integers, beside one whose it has, stay as they are."""

    def check(self, tmp_path, model, feeds, **options):
        path = str(tmp_path / "n.onnx")
        onnx.save(model, path)
        quantised_path = quantised(tmp_path, "int8", path, **options)
        exact = onnxruntime.InferenceSession(path).run(None, feeds)[0]
        for precision in (None, "float32", "int8"):
            ours = fastrnn.load(quantised_path, precision=precision)
            assert np.abs(ours(**feeds) - exact).max() < 0.05 * np.abs(exact).max()

    @pytest.mark.parametrize("groups", [1, 2])
    def test_transposed_convolutions(self, tmp_path, groups):
        rng = np.random.default_rng(3)
        arrays = {
            "V": rng.normal(size=(I, 64)).astype(np.float32) / 8,
            "K": rng.normal(size=(64, O // groups, 4)).astype(np.float32) / 8,
        }
        body = (
            "m = MatMul(x, V) t = Transpose <perm = [0, 2, 1]> (m) "
            f"u = ConvTranspose <group = {groups}, strides = [2], kernel_shape = [4]> (t, K) "
            "y = Transpose <perm = [0, 2, 1]> (u)"
        )
        self.check(tmp_path, float_model(body, **arrays), {"x": values(2, 7)})

    @pytest.mark.parametrize("per_channel", [False, True])
    def test_embeddings(self, tmp_path, per_channel):
        rng = np.random.default_rng(3)
        text = (
            '<ir_version: 8, opset_import: ["" : 17]> g (int64[b,t] x) => (float[b,t,100] y) '
            "{ e = Gather(E, x) a = MatMul(e, W) r = Relu(a) y = MatMul(r, V) }"
        )
        model = parser.parse_model(text)
        for name, shape in (("E", (700, 64)), ("W", (64, 96)), ("V", (96, 100))):
            model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
        self.check(tmp_path, model, {"x": rng.integers(0, 700, size=(2, 9))}, per_channel=per_channel)

    def test_matrices_of_whole_numbers(self, tmp_path):
        sums = np.zeros((64, O), np.float32)
        sums[:16, 0] = sums[16:32, 1] = 1
        W = np.random.default_rng(3).normal(size=(I, 64)).astype(np.float32)
        body = "m = MatMul(x, W) n = Abs(m) y = MatMul(n, S)"
        model = float_model(body, W=W, S=sums)
        model.graph.node[2].name = "sums"
        self.check(tmp_path, model, {"x": values(2, 7)}, nodes_to_exclude=["sums"])


@pytest.mark.parametrize(
    ("shape", "axes"), [((2, 3, 4, 5), (1, 3)), ((6, 7), (0,)), ((6, 7), (1,)), ((4, 3, 2), (1, 2))]
)
def test_integers_of_any_columns(shape, axes):
    rng = np.random.default_rng(2)
    q = rng.integers(-127, 128, shape).astype(np.float32)
    kept = [n for axis, n in enumerate(shape) if axis not in axes]
    step = rng.uniform(0.01, 0.1, kept).astype(np.float32)
    along = np.expand_dims(step, axes)
    found = {}
    note_steps(found, q * along, along, axes, "int8")
    integers, steps, precision = integers_of(q * along, axes, found)
    np.testing.assert_array_equal(integers, q)
    np.testing.assert_array_equal(steps, step)
    assert precision == "int8"
