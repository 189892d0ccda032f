"""onnx's own node cases through fastrnn.onnx_backend: all recurrent ones, and all whose operators the importer knows
or ONNX defines by others.

A case that does not pass is listed, by name and with the words of its refusal, in onnx_node_cases.REFUSED, or as
a known bug, or uses a type that fastrnn does not compute in. A listed case that passes fails its test, so that the
lists stay true.
"""

import functools
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_node_cases import BUGS, REFUSED, RUN_TYPES

import fastrnn
from fastrnn import onnx_backend
from fastrnn.errors import ModelFormatError, ShapeError, UnsupportedError

HALVES = {"float16": 4e-3, "bfloat16": 2e-2}  # type -> tolerance: its results round at every node of onnx's answer
RECURRENT = ("_rnn", "_lstm", "_gru")


@functools.cache
def node_cases():
    """Name -> onnx.backend.test's TestCase, of those whose every operator the importer has a handler or a body for."""
    import warnings

    from onnx.backend.test import loader

    from fastrnn.importers.onnx.functions import defined
    from fastrnn.importers.onnx.reading.nodes import plain_nodes
    from fastrnn.importers.onnx.reading.registry import OPERATORS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx makes overflowing and invalid values on purpose
        cases = loader.load_model_tests(kind="node")

    def reads(model):
        opsets = {o.domain: o.version for o in model.opset_import}
        return all((n.domain, n.op) in OPERATORS or defined(n, opsets) for n in plain_nodes(model.graph))

    return {case.name: case for case in cases if reads(case.model)}


def is_recurrent(name):
    return any(word in name for word in RECURRENT)


def tensor_types(model) -> set[str]:
    """Names of all types of tensors that the model declares, mentions in Cast, or holds."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info]
    numbers = {v.type.tensor_type.elem_type for v in values if v.type.HasField("tensor_type")}
    numbers |= {a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"}
    return {TensorProto.DataType.Name(number).lower() for number in numbers}


def array_of(value):
    """A case's array; types that NumPy lacks come as TensorProto."""
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def rounding_of(array) -> float:
    """How far a number may be off that is computed in float32 from others as large as the largest of the array."""
    if array.dtype != np.float32:
        return 0.0
    return float(np.abs(array[np.isfinite(array)]).max(initial=0)) * 2**-23


def run_case(case):
    ready = onnx_backend.prepare(case.model)
    for inputs, outputs in case.data_sets:
        got = ready.run([array_of(a) for a in inputs])
        assert len(got) == len(outputs)
        for ours, theirs in zip(got, map(array_of, outputs), strict=True):
            half = HALVES.get(theirs.dtype.name)  # computes in float32 and gives it
            assert ours.dtype == (np.float32 if half else theirs.dtype)
            assert ours.shape == theirs.shape
            atol = max(case.atol, rounding_of(theirs))
            np.testing.assert_allclose(ours, theirs.astype(ours.dtype), rtol=half or case.rtol, atol=atol)


@pytest.mark.parametrize("name", sorted(filter(is_recurrent, node_cases())))
def test_recurrent_cases(name):
    run_case(node_cases()[name])


def test_there_are_18_recurrent_cases():
    assert sum(map(is_recurrent, node_cases())) >= 18


def other_cases():
    for name in sorted(n for n in node_cases() if not is_recurrent(n)):
        reason, harmless = BUGS.get(name, ("", True))
        yield pytest.param(name, marks=[pytest.mark.xfail(reason=reason, run=harmless)] if reason else [])


@pytest.mark.parametrize("name", list(other_cases()))
def test_other_cases(name):
    case = node_cases()[name]
    if name in REFUSED:
        with pytest.raises((UnsupportedError, ModelFormatError, ShapeError), match=re.escape(REFUSED[name])):
            run_case(case)
    elif tensor_types(case.model) <= RUN_TYPES:
        run_case(case)
    else:
        with pytest.raises((UnsupportedError, ShapeError), match=r"computes in|of dtype|to="):
            run_case(case)


def test_the_lists_name_cases_that_exist():
    """Cases that a newer onnx drops leave the lists."""
    assert set(REFUSED) | set(BUGS) <= set(node_cases())
    assert not set(REFUSED) & set(BUGS)


def test_most_cases_of_the_types_we_compute_in_pass():
    cases = node_cases().values()
    ran = [c for c in cases if tensor_types(c.model) <= RUN_TYPES and c.name not in REFUSED and c.name not in BUGS]
    assert len(ran) >= 1000


# ---- the API ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "supported"),
    [("CPU", True), ("CPU:0", True), ("CPU:1", False), ("CUDA", False), ("TPU:x", False), ("", False)],
)
def test_devices(device, supported):
    assert onnx_backend.supports_device(device) is supported
    assert fastrnn.onnx_backend is onnx_backend


def gemm_model():
    W = np.arange(6, dtype=np.float32).reshape(3, 2)
    node = helper.make_node("Gemm", ["x", "W"], ["y"])
    x, y = (helper.make_tensor_value_info(n, 1, ["batch", k]) for n, k in (("x", 3), ("y", 2)))
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(W, "W")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), W


def test_prepare_and_run_take_arrays_in_each_form():
    model, W = gemm_model()
    ready, x = onnx_backend.prepare(model), np.ones((2, 3), np.float32)
    for inputs in (x, [x], (x,), {"x": x}):
        outputs = ready.run(inputs)
        np.testing.assert_allclose(outputs[0], x @ W, rtol=1e-6)
        np.testing.assert_array_equal(outputs.y, outputs[0])
    np.testing.assert_allclose(onnx_backend.run_model(model, [x])[0], x @ W, rtol=1e-6)
    assert onnx_backend.is_compatible(model)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([], "got 0 inputs, expected 1: x"),
        ({"z": 1}, "missing input 'x'; the inputs are x"),
        ({"x": 1, "z": 1}, "unknown input 'z'; the inputs are x"),
    ],
)
def test_wrong_inputs_say_which(inputs, text):
    with pytest.raises(ShapeError, match=text):
        onnx_backend.prepare(gemm_model()[0]).run(inputs)


def test_what_is_not_supported_is_refused():
    model, _ = gemm_model()
    with pytest.raises(UnsupportedError, match="device 'CUDA' is not supported: use 'CPU'"):
        onnx_backend.prepare(model, "CUDA")
    with pytest.raises(UnsupportedError, match="run takes only inputs, got seed"):
        onnx_backend.prepare(model).run([np.ones((1, 3), np.float32)], seed=1)
    model.graph.node[0].op_type = "MatMulInteger"
    with pytest.raises((ModelFormatError, onnx.checker.ValidationError)):
        onnx_backend.prepare(model)
    unknown = helper.make_node("NonZero", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(n, t, s) for n, t, s in (("x", 1, [2, 2]), ("y", 7, [2, None])))
    found = helper.make_model(helper.make_graph([unknown], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)])
    assert not onnx_backend.is_compatible(found)


def test_an_invalid_model_is_not_run():
    model, _ = gemm_model()
    del model.graph.node[0].input[:]
    with pytest.raises(onnx.checker.ValidationError):
        onnx_backend.prepare(model)


def test_a_node_runs_alone_at_any_opset():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    node = helper.make_node("ReduceSum", ["x"], ["y"], axes=[1], keepdims=0)
    np.testing.assert_array_equal(onnx_backend.run_node(node, [x], opset_version=11)[0], x.sum(1))
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    np.testing.assert_array_equal(onnx_backend.run_node(node, [x, np.array([1])], opset_version=18)[0], x.sum(1))
    node = helper.make_node("Clip", ["x", "", "high"], ["y"])
    got = onnx_backend.run_node(node, [x, np.float32(2.5)], opset_version=18)[0]
    np.testing.assert_array_equal(got, np.minimum(x, np.float32(2.5)))
    with pytest.raises(ShapeError, match="node Clip: got 1 inputs, expected 2: x, high"):
        onnx_backend.run_node(node, [x])


def test_weights_that_are_inputs_may_change_between_runs():
    node = helper.make_node("RNN", ["X", "W", "R"], ["Y", "Y_h"], hidden_size=2)
    shapes = {"X": [3, 1, 2], "W": [1, 2, 2], "R": [1, 2, 2]}
    infos = [helper.make_tensor_value_info(n, 1, s) for n, s in shapes.items()]
    outs = [helper.make_tensor_value_info(n, 1, s) for n, s in (("Y", [3, 1, 1, 2]), ("Y_h", [1, 1, 2]))]
    model = helper.make_model(
        helper.make_graph([node], "g", infos, outs), opset_imports=[helper.make_opsetid("", 14)], ir_version=8
    )
    ready, rng = onnx_backend.prepare(model), np.random.default_rng(3)
    for _ in range(3):
        x, W, R = (rng.normal(size=s).astype(np.float32) for s in shapes.values())
        h = np.zeros((1, 2))
        for step in x:
            h = np.tanh(step @ W[0].T + h @ R[0].T)
        outputs = ready.run([x, W, R])
        np.testing.assert_allclose(outputs.Y_h[0], h, atol=1e-6)
        np.testing.assert_array_equal(outputs.Y[-1, 0], outputs.Y_h[0])


@pytest.mark.parametrize("fn", ["Max", "Min", "Sum"])
def test_reductions_of_integers_are_right_or_refused(fn):
    x = np.array([[1, 5, 2, 3], [-7, 0, 9, 4]])
    node = helper.make_node(f"Reduce{fn}", ["x"], ["y"], keepdims=0)
    try:
        (y,) = onnx_backend.run_node(node, [x], opset_version=13)
    except UnsupportedError:
        return
    assert y == getattr(x, fn.lower())()
