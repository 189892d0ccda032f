"""Slices with a negative step whose bounds are computed from an open length: right, or refused where ONNX counts a
negative bound from the end."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fastrnn

ort = pytest.importorskip("onnxruntime")
FAR = -(1 << 62)


def sliced(start, end, step):
    """x[:, start:end:step]; a bound is a number, or ("T", k) for k more than the length."""

    def bound(name, value):
        if isinstance(value, int):
            return [], name, [numpy_helper.from_array(np.array([value]), name)]
        node = helper.make_node("Add", ["length", f"{name}_k"], [name])
        return [node], name, [numpy_helper.from_array(np.array([value[1]]), f"{name}_k")]

    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "one", "two"], ["length"]),
    ]
    arrays = [numpy_helper.from_array(np.array([v]), n) for n, v in (("one", 1), ("two", 2), ("step", step))]
    for name, value in (("start", start), ("end", end)):
        more, _, constants = bound(name, value)
        nodes += more
        arrays += constants
    nodes.append(helper.make_node("Slice", ["x", "start", "end", "one", "step"], ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "time", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


STARTS = (-1, -2, -3, ("T", -1), ("T", -2), ("T", -3), ("T", 0), ("T", 2))
ENDS = (FAR, 0, 1, ("T", -2), ("T", -4))


@pytest.mark.parametrize("step", [-1, -2])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("start", STARTS)
def test_right_or_refused(start, end, step):
    model = sliced(start, end, step)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    try:
        ours = fastrnn.from_onnx(model)
    except (fastrnn.UnsupportedError, fastrnn.ModelFormatError):
        assert start not in (-1, ("T", -1)) or end not in (FAR, 0), "a plain reversal must load"
        return
    right = 0
    for length in range(1, 8):
        x = np.random.default_rng(length).standard_normal((2, length, 4)).astype(np.float32)
        try:
            got = ours.run(x)[0]
        except fastrnn.ShapeError:
            continue
        np.testing.assert_array_equal(got, session.run(None, {"x": x})[0])
        right += 1
    assert right >= 3


def test_an_output_that_looks_like_the_input_but_is_shorter():
    """x[:, T:0:-1] has T - 1 steps; its dims were taken for those of the input, and the search for states failed."""
    model = sliced(("T", 0), 0, -1)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "time", 4]))
    ours = fastrnn.from_onnx(onnx.load_from_string(model.SerializeToString()))
    x = np.arange(24, dtype=np.float32).reshape(1, 6, 4)
    np.testing.assert_array_equal(ours.run(x)[0], x[:, :0:-1])
