"""DFT, STFT and GridSample against onnxruntime and NumPy, at sizes that the file leaves open."""

import numpy as np
import pytest
from onnx_text import model, noise, runs_as_onnxruntime, streams_as_it_runs

import fastrnn
from fastrnn.errors import ModelFormatError


def as_complex(x):
    return x[..., 0] + 1j * x[..., 1] if x.shape[-1] == 2 else x[..., 0]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("length", [None, 5, 12])
@pytest.mark.parametrize(("size", "inverse", "onesided"), [(8, 0, 0), (7, 0, 0), (8, 1, 0), (8, 0, 1), (9, 0, 1)])
def test_a_transform(parts, length, size, inverse, onesided):
    if onesided and parts == 2:
        made = model(f"(float[B, {size}, 2] x) => (float[B, N, 2] y)", "y = DFT <axis = 1, onesided = 1> (x)")
        with pytest.raises(ModelFormatError, match="onesided=1"):
            fastrnn.from_onnx(made)
        return
    made = model(
        f"(float[B, T, {size}, {parts}] x) => (float[B, T, N, 2] y)",
        f"y = DFT <inverse = {inverse}, onesided = {onesided}> (x, {'n' if length else ''}, axis)",
        opset=20,
        n=np.array(length or 0),
        axis=np.array(-2),
    )
    found = fastrnn.from_onnx(made)
    for batch, time in ((1, 1), (3, 4)):
        x = noise(batch, time, size, parts)
        (y,) = found.run(x)
        fft = np.fft.ifft if inverse else np.fft.rfft if onesided else np.fft.fft
        want = fft(as_complex(x.astype(np.float64)), length, axis=2)
        np.testing.assert_allclose(as_complex(y), want, atol=1e-5)
    streams_as_it_runs(found, noise(2, 5, size, parts))


@pytest.mark.parametrize("length", [None, 6, 7, 14])
def test_a_real_signal_from_its_spectrum(length):
    made = model(
        "(float[B, 5, 2] x) => (float[B, N, 1] y)",
        f"y = DFT <inverse = 1, onesided = 1> (x, {'n' if length else ''}, axis)",
        opset=20,
        n=np.array(length or 0),
        axis=np.array(1),
    )
    x = noise(3, 5, 2)
    (y,) = fastrnn.from_onnx(made).run(x)
    np.testing.assert_allclose(y[..., 0], np.fft.irfft(as_complex(x.astype(np.float64)), length, axis=1), atol=1e-5)


def test_the_older_form_names_its_axis_by_an_attribute():
    made = model("(float[B, 6, 4, 1] x) => (float[B, 6, 4, 2] y)", "y = DFT (x)")
    runs_as_onnxruntime(made, *({"x": noise(b, 6, 4, 1)} for b in (1, 3)))


def test_a_transform_of_an_open_size_takes_the_size_that_the_caller_gives():
    made = model("(float[B, N, 1] x) => (float[B, N, 2] y)", "y = DFT <axis = 1> (x)")
    x = noise(3, 8, 1)
    (y,) = fastrnn.from_onnx(made, sizes={"N": 8}).run(x)
    np.testing.assert_allclose(as_complex(y), np.fft.fft(x[..., 0].astype(np.float64), axis=1), atol=1e-5)


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize(("length", "step"), [(16, 8), (9, 4), (5, 5)])
def test_frames(window, onesided, length, step):
    made = model(
        "(float[B, T, 1] x) => (float[B, F, N, 2] y)",
        f"y = STFT <onesided = {onesided}> (x, step, {'w' if window else ''}, n)",
        step=np.array(step),
        n=np.array(length),
        w=np.hanning(length).astype(np.float32),
    )
    calls = [{"x": noise(b, t, 1)} for b, t in ((1, length), (2, 3 * length + 1), (3, 64))]
    runs_as_onnxruntime(made, *calls, atol=3e-5)


def test_frames_of_a_stream_come_as_their_samples_do():
    made = model("(float[B, T] x) => (float[B, F, 9, 2] y)", "y = STFT (x, s, , n)", s=np.array(8), n=np.array(16))
    found = fastrnn.from_onnx(made)
    x = noise(2, 83)
    (whole,) = found.run(x)
    for sizes in ([1] * 83, [16, 8, 8, 51], [83]):
        stream, parts, start = found.stream(batch_size=2), [], 0
        for size in sizes:
            parts.append(stream.push(x[:, start : start + size]))
            start += size
        np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("aligned", [0, 1])
def test_a_grid(mode, padding, aligned):
    made = model(
        "(float[B, C, H, W] x, float[B, P, Q, 2] g) => (float[B, C, P, Q] y)",
        f'y = GridSample <mode = "{mode}", padding_mode = "{padding}", align_corners = {aligned}> (x, g)',
        opset=20,
    )
    rng = np.random.default_rng(3)
    calls = []
    for b, c, h, w, p, q in ((1, 1, 4, 5, 3, 2), (2, 3, 6, 3, 5, 7)):
        grid = rng.uniform(-2.3, 2.3, (b, p, q, 2)).astype(np.float32)
        calls.append({"x": noise(b, c, h, w), "g": grid})
    runs_as_onnxruntime(made, *calls, rtol=1e-3, atol=1e-4)


def test_a_grid_over_three_axes():
    made = model(
        "(float[B, 2, 3, 4, 5] x, float[B, P, Q, R, 3] g) => (float[B, 2, P, Q, R] y)",
        "y = GridSample (x, g)",
        opset=20,
    )
    grid = np.random.default_rng(3).uniform(-1.5, 1.5, (2, 2, 3, 4, 3)).astype(np.float32)
    runs_as_onnxruntime(made, {"x": noise(2, 2, 3, 4, 5), "g": grid})
