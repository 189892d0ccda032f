"""What a run is fed is cast as onnxruntime casts it, or refused with an exception of the same kind."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto
from ort_models import both, identity

import fastrnn
from fastrnn.onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

T = TensorProto
X = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("element", "dims", "value"),
    [
        (T.FLOAT, ("b", 3), [[1, 2, 3]]),
        (T.FLOAT, ("b", 3), [[1.5, True, np.float64(2)]]),
        (T.FLOAT, ("b", 3), [np.arange(3)]),
        (T.FLOAT, ("b", 3), [np.arange(3, dtype=np.float16), [0.1, 1e-300, np.inf]]),
        (T.FLOAT, ("b", 3), np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]),
        (T.FLOAT, ("b", 3), np.arange(6, dtype=np.float32).reshape(3, 2).T),
        (T.FLOAT, ("b", 3), np.zeros((0, 3), np.float32)),
        (T.INT64, (1,), [16000]),
        (T.INT64, (1,), [1.0]),
        (T.INT64, (1,), [True]),
        (T.INT64, (1,), [np.int32(3)]),
        (T.INT64, (), np.array(5)),
        (T.INT32, ("b",), [1, -2]),
        (T.BOOL, ("b",), [1, 0, True]),
        (T.FLOAT16, ("b",), [1, 0.1, -2.5]),
        (T.FLOAT16, ("b",), np.arange(3, dtype=np.float16)),
    ],
)
def test_taken_as_onnxruntime_takes_it(element, dims, value):
    ours, theirs = both(identity(element, dims, dims))
    (mine,), (other,) = ours.run(None, {"x": value}), theirs.run(None, {"x": value})
    assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
    np.testing.assert_array_equal(mine, other)


def test_the_other_byte_order():
    """onnxruntime 1.32 reads the bytes as they are."""
    x = np.arange(6, dtype=">f4").reshape(2, 3)
    np.testing.assert_array_equal(fastrnn.InferenceSession(identity()).run(None, {"x": x})[0], x)


@pytest.mark.parametrize("value", [16000, 16000.0, np.int64(16000), [16000], np.array([16000]), np.array([[16000]])])
def test_a_scalar_is_taken_however_it_is_written(value):
    """onnxruntime takes arrays of one element for a scalar, and refuses numbers; both mean the same."""
    ours = fastrnn.InferenceSession(identity(T.INT64, (), ()))
    (mine,) = ours.run(None, {"x": value})
    assert (mine.dtype, mine.shape, mine.item()) == (np.int64, (), 16000)


@pytest.mark.parametrize(
    ("element", "feed", "text"),
    [
        (T.FLOAT, {}, "missing input x"),
        (T.FLOAT, {"z": X}, "missing input x"),
        (T.FLOAT, {"x": X, "z": X}, "unknown input 'z'; the inputs are x"),
        (T.FLOAT, {"x": np.zeros((2, 3))}, "dtype float32 expected, got float64"),
        (T.FLOAT, {"x": np.zeros((2, 3), np.int64)}, "dtype float32 expected, got int64"),
        (T.FLOAT, {"x": np.zeros(3, np.float32)}, r"\[batch, 3\] expected, got \[3\]"),
        (T.FLOAT, {"x": np.zeros((2, 4), np.float32)}, "axis 1 .* must be 3, got 4"),
        (T.FLOAT, {"x": [[1, 2], [3]]}, "can't be read as an array"),
        (T.FLOAT, {"x": [["a", "b", "c"]]}, "pass numbers"),
        (T.FLOAT, {"x": 3.5}, r"\[batch, 3\] expected, got \[\]"),
        (T.FLOAT16, {"x": np.zeros((2, 3), np.float32)}, "float16 expected, got float32"),
        (T.BOOL, {"x": np.zeros((2, 3), np.uint8)}, "dtype bool expected, got uint8"),
        (T.FLOAT, [X], "input_feed must be a dict of input name -> array, got list"),
        (T.FLOAT, None, "input_feed must be a dict"),
    ],
)
def test_refused_with_an_exception_of_the_same_kind(element, feed, text):
    ours, theirs = both(identity(element))
    with pytest.raises(Exception) as other:
        theirs.run(None, feed)
    with pytest.raises(fastrnn.ShapeError, match=text) as mine:
        ours.run(None, feed)
    kind = type(other.value)
    if kind.__module__.startswith("onnxruntime"):
        assert kind.__name__ == "InvalidArgument"
        kind = InvalidArgument
    if not (isinstance(feed, dict) and isinstance(feed.get("x"), float)):  # a number is an array without axes here
        assert isinstance(mine.value, kind)


@pytest.mark.parametrize(
    ("element", "value"),
    [
        (T.INT64, [[1.5, 2, 3]]),
        (T.INT64, [[np.float32(2.5), 2, 3]]),
        (T.INT64, [[2**63, 2, 3]]),
        (T.FLOAT, [[1e300, 2, 3]]),
        (T.FLOAT16, [[1e6, 2, 3]]),
        (T.BOOL, [[2, 0, 1]]),
        (T.INT32, [[2**31, 0, 1]]),
    ],
)
def test_a_cast_that_loses_something_is_refused(element, value):
    """onnxruntime casts some of these silently, and raises RuntimeError for the others."""
    ours = fastrnn.InferenceSession(identity(element))
    with pytest.raises(InvalidArgument, match="input x: ") as found:
        ours.run(None, {"x": value})
    assert isinstance(found.value, RuntimeError)


def test_float16_goes_in_and_comes_out():
    ours, theirs = both(identity(T.FLOAT16, op="Mul"))
    assert [a.type for a in (*ours.get_inputs(), *ours.get_outputs())] == ["tensor(float16)"] * 2
    x = np.array([[1.5, -300, 200]], np.float16)
    (mine,), (other,) = ours.run(None, {"x": x}), theirs.run(None, {"x": x})
    assert mine.dtype == other.dtype == np.float16
    np.testing.assert_array_equal(mine, other)  # -300 squared is beyond float16: inf


def test_float64_is_asked_for_by_name():
    data = identity(T.DOUBLE, op="Mul")
    with pytest.raises(fastrnn.UnsupportedError, match=r"float64 .*float64_as_float32=True"):
        fastrnn.InferenceSession(data)
    session = fastrnn.InferenceSession(data, float64_as_float32=True)
    assert session.get_inputs()[0].type == "tensor(double)"
    (y,) = session.run(None, {"x": np.full((1, 3), 1.5)})
    assert (y.dtype, y.tolist()) == (np.float64, [[2.25] * 3])
    with pytest.raises(InvalidArgument, match="input x has numbers up to 1e"):
        session.run(None, {"x": np.full((1, 3), 1e300)})


def test_an_ort_value_is_an_array():
    ours, _ = both(identity())
    value = fastrnn.onnxruntime.OrtValue.ortvalue_from_numpy(X)
    np.testing.assert_array_equal(ours.run(None, {"x": value})[0], X)
    (found,) = ours.run_with_ort_values(["y"], {"x": value})
    np.testing.assert_array_equal(found.numpy(), X)


def test_the_real_package_is_what_is_compared_with():
    assert onnxruntime.__file__.replace("\\", "/").endswith("site-packages/onnxruntime/__init__.py")
