"""Convolutions over all steps with a frozen kernel, by Fourier transforms: recurrences if their kernel is one."""

import numpy as np
import onnx
import onnxruntime
import pytest

import fastrnn

STEPS, WIDTH = 24, 3

# y = the inverse transform of the product of two spectra, cut to the steps, and the input times d
FILTER = """
    u = Transpose <perm = [0, 2, 1]> (v) p = Pad (u, pads) c = Unsqueeze (p, last) f = DFT <axis = 2> (c)
    a = Slice (f, zero, one, last) b = Slice (f, one, two, last)
    ac = Mul (a, re) bd = Mul (b, im) ad = Mul (a, im) bc = Mul (b, re) r = Sub (ac, bd) i = Add (ad, bc)
    m = Concat <axis = -1> (r, i) g = DFT <axis = 2, inverse = 1> (m) h = Slice (g, zero, one, last)
    s = Squeeze (h, last) w = Slice (s, zero, steps, time) e = Mul (d, u) z = Add (w, e)
    y = Transpose <perm = [0, 2, 1]> (z)
"""


def modes(steps, real=False):
    """The kernel of S4D: two modes for each feature, float64 [features, steps]."""
    rng = np.random.default_rng(3)
    a, c = -0.05 - 0.4 * rng.random((WIDTH, 2, 1)), rng.standard_normal((WIDTH, 2, 1))
    w = 0.0 if real else 3.0 * rng.random((WIDTH, 2, 1))
    t = np.arange(steps)
    return (c * np.exp(a * t) * np.cos(w * t)).sum(1)


D = np.random.default_rng(4).standard_normal((WIDTH, 1)).astype(np.float32)


def file(kernel, size=2 * STEPS, before="v = Identity (x)", nodes=FILTER):
    """A file of 24 steps. before: what makes v of x."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2,{STEPS},{WIDTH}] x) => (float[2,{STEPS},{WIDTH}] y) {{ {before} {nodes} }}"""
    made = onnx.parser.parse_model(text)
    spectrum = np.fft.fft(kernel, size)[..., None]
    arrays = {
        "re": np.float32(spectrum.real), "im": np.float32(spectrum.imag), "d": D, "steps": np.int64([STEPS]),
        "pads": np.int64([0, 0, 0, 0, 0, size - STEPS]), "last": np.int64([-1]), "time": np.int64([2]),
        "zero": np.int64([0]), "one": np.int64([1]), "two": np.int64([2]),
    }  # fmt: skip
    made.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in arrays.items() if k in text)
    return made.SerializeToString()


@pytest.mark.parametrize("earlier", [0.0, 0.5])
def test_a_layer_whose_matrix_looks_like_a_kernel_is_none(earlier):
    """Its features are no steps: the joiner of a transducer may have the identity."""
    n = 27
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,{n}] a, float[N,{n}] b) => (float[N,{n}] y) {{ c = Add (a, b) t = Tanh (c) y = MatMul (t, w) }}"""
    made = onnx.parser.parse_model(text)
    at = np.arange(n)
    w = np.where(at[None] >= at[:, None], earlier ** np.maximum(at[None] - at[:, None], 0.0), 0.0).astype(np.float32)
    made.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    model = fastrnn.load(made.SerializeToString())
    assert [v.dims for v in (*model.inputs, *model.outputs)] == [("batch", n)] * 3


def drawn(steps, batch=2):
    return np.random.default_rng(steps).standard_normal((batch, steps, WIDTH)).astype(np.float32)


def convolved(kernel, x):
    """y in float64, with a kernel as long as x."""
    y = x.astype(np.float64) * D[:, 0]
    for t in range(x.shape[1]):
        y[:, t] += (kernel.T[: t + 1] * x[:, t::-1]).sum(1)
    return y


@pytest.mark.parametrize("real", [False, True])
def test_a_kernel_of_few_modes_streams_and_goes_on(real):
    model = fastrnn.load(file(modes(STEPS, real)))
    states = 2  # a mode that turns is one of complex numbers
    assert any(f"a kernel of 24 steps is a recurrence of {states} states" in note for note in model.notes)
    for steps in (1, 7, STEPS, 150):
        x = drawn(steps)
        want = convolved(modes(steps, real), x)
        np.testing.assert_allclose(model(x), want, rtol=0, atol=2e-5 * np.abs(want).max())
    x = drawn(90)
    y, stream = model(x), model.stream()
    assert np.array_equal(np.stack([stream.step(row) for row in x[0]]), y[0])
    stream = model.stream()
    assert np.array_equal(np.concatenate([stream.push(x[1, :17]), stream.push(x[1, 17:])]), y[1])


def test_it_is_as_close_to_float64_as_the_file():
    source, x = file(modes(STEPS)), drawn(STEPS)
    want = convolved(modes(STEPS), x)
    (by_file,) = onnxruntime.InferenceSession(source).run(None, {"x": x})
    assert np.abs(fastrnn.load(source)(x) - want).max() <= 2 * np.abs(by_file - want).max()


def test_what_is_done_to_the_input_before_stays():
    model, x = fastrnn.load(file(modes(STEPS), before="v = Mul (x, x)")), drawn(40)
    np.testing.assert_allclose(model(x), convolved(modes(40), x * x), rtol=0, atol=1e-4)


def keeps_its_length(source):
    model, x = fastrnn.load(source), drawn(STEPS)
    (want,) = onnxruntime.InferenceSession(source).run(None, {"x": x})
    np.testing.assert_allclose(model(x), want, rtol=0, atol=2e-5 * np.abs(want).max())
    assert not any("is a recurrence of" in note for note in model.notes)
    with pytest.raises(fastrnn.ShapeError, match="must be 24"):
        model(drawn(STEPS + 1))
    with pytest.raises(fastrnn.StreamError) as raised:
        model.stream()
    return str(raised.value)


KERNELS = {
    "as many numbers as steps": np.random.default_rng(1).standard_normal((WIDTH, STEPS)),
    "one that never fades": np.ones((WIDTH, STEPS)),
    "one that grows": np.exp(0.1 * np.arange(STEPS)) * np.ones((WIDTH, 1)),
    "a box": np.where(np.arange(STEPS) < 9, 1.0, 0.0) * np.ones((WIDTH, 1)),
    "modes that are cut off": modes(STEPS) * (np.arange(STEPS) < STEPS - 1),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_that_is_no_recurrence_is_refused_with_its_error(kernel):
    text = keeps_its_length(file(KERNELS[kernel]))
    assert "convolves all steps with a kernel of 24 of them, which no recurrence of at most 6 states gives" in text
    assert "of its largest value" in text


@pytest.mark.parametrize(
    "case",
    {
        "circular": {"size": STEPS},
        "partly circular": {"size": STEPS + 3},
        "a kernel of the input": {"nodes": FILTER.replace("(a, re)", "(a, rl) xs = ReduceMean <axes = [1, 2]> (x) "
                                                          "xt = Unsqueeze (xs, last) rl = Mul (re, xt)")},
        "a square in between": {"nodes": FILTER.replace("r = Sub (ac, bd)", "rr = Sub (ac, bd) r = Mul (rr, rr)")},
        "a conjugate": {"nodes": FILTER.replace("r = Sub (ac, bd)", "r = Add (ac, bd)")},
    }.items(),
    ids=lambda case: case[0],
)  # fmt: skip
def test_what_is_no_causal_convolution_keeps_its_length(case):
    text = keeps_its_length(file(modes(STEPS), **case[1]))
    assert "no recurrence of at most" not in text
