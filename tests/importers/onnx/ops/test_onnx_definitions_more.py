"""Sizes as outputs, running products, determinants and rows reversed in part, at sizes that the file leaves open."""

import numpy as np
import pytest
from onnx_text import model, noise, runs_as_onnxruntime

import fastrnn
from fastrnn.errors import FastRNNError, UnsupportedError


def test_sizes_are_outputs():
    made = model(
        "(float[B, T, 3] x) => (float[B, T, 3] y, int64[3] s, int64[1] t, int64 n)",
        "y = Relu (x) s = Shape (x) t = Shape <start = 1, end = 2> (y) n = Size (x)",
    )
    runs_as_onnxruntime(made, *({"x": noise(b, t, 3)} for b, t in ((1, 1), (2, 5), (3, 0))))


def test_a_size_that_is_a_product_is_exact():
    made = model("(float[B, T] x) => (int64 n)", "w = Expand (x, s) n = Size (w)", s=np.array([1001, 1, 1]))
    (n,) = fastrnn.from_onnx(made).run(noise(257, 129))
    assert n == 1001 * 257 * 129  # odd and above 2^24: no float32


def test_a_sequence_is_no_output():
    made = model("(float[2, 3] x) => (seq(float[3]) y)", "y = SplitToSequence <axis = 0, keepdims = 0> (x)")
    with pytest.raises(UnsupportedError, match="output y"):
        fastrnn.from_onnx(made)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_running_products(exclusive, reverse, size):
    made = model(
        f"(float[B, {size}] x) => (float[B, {size}] y)",
        f"y = CumProd <exclusive = {exclusive}, reverse = {reverse}> (x, a)",
        opset=26,
        a=np.array(1),
    )
    for batch in (1, 3):
        x = noise(batch, size)
        want = x[:, ::-1] if reverse else x
        if exclusive:
            want = np.concatenate([np.ones((batch, 1), np.float32), want[:, :-1]], 1)
        want = np.cumprod(want, 1)
        np.testing.assert_allclose(fastrnn.from_onnx(made).run(x)[0], want[:, ::-1] if reverse else want, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_determinants(size):
    made = model(f"(float[B, T, {size}, {size}] x) => (float[B, T] y)", "y = Det (x)")
    runs_as_onnxruntime(made, *({"x": noise(b, t, size, size)} for b, t in ((1, 1), (2, 3))))


def test_large_determinants_are_refused():
    made = model("(float[5, 5] x) => (float y)", "y = Det (x)")
    with pytest.raises(UnsupportedError, match="of 5 x 5; at most 4 x 4"):
        fastrnn.from_onnx(made)


@pytest.mark.parametrize("time_axis", [0, 1])
def test_rows_reversed_in_part(time_axis):
    dims = "T, B" if time_axis == 0 else "B, T"
    made = model(
        f"(float[{dims}, 3] x, int64[B] n) => (float[{dims}, 3] y)",
        f"y = ReverseSequence <time_axis = {time_axis}, batch_axis = {1 - time_axis}> (x, n)",
    )
    calls = []
    for b, t, lengths in ((1, 1, [1]), (3, 5, [5, 2, 1])):
        calls.append({"x": noise(*((t, b) if time_axis == 0 else (b, t)), 3), "n": np.array(lengths)})
    found = runs_as_onnxruntime(made, *calls)
    with pytest.raises(FastRNNError):
        found.run(calls[1]["x"], np.array([6, 1, 1]))
