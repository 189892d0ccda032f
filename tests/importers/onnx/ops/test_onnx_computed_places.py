"""Slices and ranges from a computed position on, by a known number."""

import numpy as np
import pytest
from onnx_text import model, noise, runs_as_onnxruntime

import fastrnn
from fastrnn.errors import FastRNNError, UnsupportedError


@pytest.mark.parametrize("kind", ["int64", "int32"])
def test_a_slice_from_a_computed_start(kind):
    dtype = np.int64 if kind == "int64" else np.int32
    made = model(
        f"(float[B, T, 3] x, {kind}[1] at) => (float[B, 4, 3] y)",
        "one = Add (at, o) end = Add (at, five) y = Slice (x, one, end, axes)",
        o=np.ones(1, dtype), five=np.array([5], dtype), axes=np.array([1], dtype),
    )  # fmt: skip
    calls = [{"x": noise(b, t, 3), "at": np.array([at], dtype)} for b, t, at in ((1, 6, 0), (2, 9, 3), (3, 9, 4))]
    found = runs_as_onnxruntime(made, *calls)
    for at in (5, -7):  # onnxruntime would give fewer steps, or count from the end
        with pytest.raises(FastRNNError):
            found.run(calls[1]["x"], np.array([at], dtype))


def test_a_table_from_a_computed_start_for_as_many_steps_as_there_are():
    """Positions after a cache: arange(past, past + T), and rows of a table from `past` on."""
    made = model(
        "(float[B, T, 3] x, int64 past) => (float[B, T, 3] y, int64[T] p)",
        "s = Shape <start = 1, end = 2> (x) t = Squeeze (s) limit = Add (t, past) p = Range (past, limit, one) "
        "start = Unsqueeze (past, zero) end = Unsqueeze (limit, zero) rows = Slice (table, start, end, zero) "
        "y = Add (x, rows)",
        table=noise(20, 3), one=np.array(1), zero=np.array([0]),
    )  # fmt: skip
    runs_as_onnxruntime(
        made, *({"x": noise(b, t, 3), "past": np.array(p)} for b, t, p in ((1, 2, 0), (2, 5, 3), (2, 7, 13)))
    )


def test_a_length_that_is_computed_is_refused():
    made = model(
        "(float[B, T, 3] x, int64[1] n) => (float[B, N, 3] y)",
        "y = Slice (x, n, e, a)",
        e=np.array([9]),
        a=np.array([1]),
    )
    with pytest.raises(UnsupportedError, match="only a slice of a known length"):
        fastrnn.from_onnx(made)
    made = model("(int64 n) => (int64[N] y)", "y = Range (z, n, o)", z=np.array(0), o=np.array(1))
    with pytest.raises(UnsupportedError, match="a Range that depends on the inputs"):
        fastrnn.from_onnx(made)
