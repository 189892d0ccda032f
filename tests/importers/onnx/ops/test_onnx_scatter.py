"""Scatters to known and computed places, with reductions, against onnxruntime."""

import numpy as np
import pytest
from onnx_text import model, noise, runs_as_onnxruntime

import fastrnn
from fastrnn.errors import FastRNNError, UnsupportedError

REDUCTIONS = ["none", "add", "mul", "min", "max"]
RNG = np.random.default_rng(11)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["float", "int64"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_elements_at_known_places(reduction, kind, axis):
    index = RNG.integers(-3, 3, (3, 2, 3))
    made = model(
        f"({kind}[4, 3, 5] x, {kind}[3, 2, 3] u) => ({kind}[4, 3, 5] y)",
        f'y = ScatterElements <axis = {axis}, reduction = "{reduction}"> (x, index, u)',
        opset=18,
        index=index,
    )
    if reduction == "none":  # the order of equal indices is not specified: none are equal
        made.graph.initializer[0].CopyFrom(_array(np.argsort(RNG.random((3, 2, 3)), axis=axis) - 1, "index"))
    dtype = np.float32 if kind == "float" else np.int64
    feeds = {"x": (noise(4, 3, 5) * 5).astype(dtype), "u": (noise(3, 2, 3) * 5).astype(dtype)}
    runs_as_onnxruntime(made, feeds)


def _array(values, name):
    from onnx import numpy_helper

    return numpy_helper.from_array(values, name)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_elements_at_computed_places(reduction):
    made = model(
        "(float[B, T, 5] x, int64[B, T, 3] index, float[B, T, 3] u) => (float[B, T, 5] y)",
        f'y = ScatterElements <axis = -1, reduction = "{reduction}"> (x, index, u)',
        opset=18,
    )
    calls = []
    for b, t in ((1, 1), (3, 4)):
        index = np.argsort(RNG.random((b, t, 5)), axis=-1)[..., :3]
        index = index if reduction == "none" else RNG.integers(-5, 5, (b, t, 3))
        calls.append({"x": noise(b, t, 5), "index": index, "u": noise(b, t, 3)})
    runs_as_onnxruntime(made, *calls)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("live", [False, True])
def test_rows(reduction, live):
    index = np.array([[[2, 0], [0, 3]], [[-1, -1], [1, 2]]])
    if reduction != "none":
        index[1, 1] = index[0, 0]
    made = model(
        f"(float[3, 4, N] x, {'int64[2, 2, 2] index, ' if live else ''}float[2, 2, N] u) => (float[3, 4, N] y)",
        f'y = ScatterND <reduction = "{reduction}"> (x, index, u)',
        opset=18,
        index=index,
    )
    if live:
        del made.graph.initializer[:]
    calls = [{"x": noise(3, 4, n), "u": noise(2, 2, n)} | ({"index": index} if live else {}) for n in (1, 6)]
    runs_as_onnxruntime(made, *calls)


def test_computed_places_out_of_range_are_an_error():
    made = model("(float[4, 2] x, int64[1, 1] i, float[1, 2] u) => (float[4, 2] y)", "y = ScatterND (x, i, u)")
    found = fastrnn.from_onnx(made)
    np.testing.assert_array_equal(found.run(noise(4, 2), np.array([[-1]]), np.ones((1, 2), np.float32))[0][3], [1, 1])
    with pytest.raises(FastRNNError):
        found.run(noise(4, 2), np.array([[4]]), np.ones((1, 2), np.float32))


def test_the_old_name():
    made = model("(float[2, 3] x, int64[1, 2] i, float[1, 2] u) => (float[2, 3] y)", "y = Scatter (x, i, u)", opset=10)
    runs_as_onnxruntime(made, {"x": noise(2, 3), "i": np.array([[1, 0]]), "u": noise(1, 2)})


def test_too_many_computed_places_are_refused():
    made = model("(float[99] x, int64[99, 1] i, float[99] u) => (float[99] y)", "y = ScatterND (x, i, u)")
    with pytest.raises(UnsupportedError, match="99 computed places"):
        fastrnn.from_onnx(made)


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_a_cache_written_from_a_position_of_each_row(mode):
    made = model(
        "(float[B, 2, S, 3] cache, float[B, 2, 2, 3] u, int64[B] at) => (float[B, 2, S, 3] y)",
        f'y = TensorScatter <mode = "{mode}"> (cache, u, at)',
        opset=24,
    )
    found = fastrnn.from_onnx(made)
    for b, s in ((1, 4), (3, 7)):
        cache, u, at = noise(b, 2, s, 3), noise(b, 2, 2, 3), RNG.integers(0, s - 1, b)
        want = cache.copy()
        for row in range(b):
            for j in range(2):
                want[row, :, (at[row] + j) % s] = u[row, :, j]
        np.testing.assert_array_equal(found.run(cache, u, at)[0], want)
    if mode == "linear":
        with pytest.raises(FastRNNError):
            found.run(cache, u, np.array([0, 0, 6]))
