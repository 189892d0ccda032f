"""RNN, LSTM and GRU nodes in full: the shared list of cases, and the onnx package's own recurrent node cases."""

import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rnn_cases import CASES, expected, make_inputs, make_model

from fastrnn import passes
from fastrnn.errors import FastRNNError, ModelFormatError, UnsupportedError
from fastrnn.graph import reference
from fastrnn.importers.onnx import import_onnx


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_shared_case(case):
    graph = passes.run(import_onnx(make_model(case)))
    inputs = make_inputs(case)
    want = expected(case)
    got = reference.run(graph, {n: inputs[n] for n in graph.inputs})
    for name, answer in zip(graph.outputs, got, strict=True):
        assert answer.shape == want[name].shape
        np.testing.assert_allclose(answer, want[name], rtol=1e-9, atol=1e-9)


def lstm(
    initializers=(), T="time", batch="batch", inputs=("X", "W", "R"), outputs=("Y",), opset=17, op="LSTM", **attrs
):
    """A model of one recurrent node, I=3, H=2; further initializers by name."""
    rng = np.random.default_rng(5)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    arrays = {
        "W": rng.standard_normal((1, gates * 2, 3)).astype(np.float32),
        "R": rng.standard_normal((1, gates * 2, 2)).astype(np.float32),
    } | dict(initializers)
    attrs = {"hidden_size": 2} | attrs
    node = helper.make_node(
        op, list(inputs), list(outputs), name="the_node", **{k: v for k, v in attrs.items() if v is not None}
    )
    dims = {"Y": None, "Y_h": None, "Y_c": None}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [T, batch, 3])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, dims[o]) for o in outputs if o],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def cell_of(graph):
    return next(n for n in graph.nodes if n.op == "cell")


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 14, 17, 21, 22])
def test_every_opset(opset):
    graph = import_onnx(lstm(opset=opset))
    assert cell_of(graph).attrs["spec"].hidden_size == 2


@pytest.mark.parametrize("name", ["ScaledTanh", "scaledtanh", "SCALEDTANH"])
def test_activation_names_have_no_case(name):
    graph = import_onnx(lstm(op="RNN", activations=[name], activation_alpha=[2.0], activation_beta=[0.5]))
    (act,) = cell_of(graph).attrs["spec"].activations
    assert (act.name, act.alpha, act.beta) == ("scaled_tanh", 2.0, 0.5)


def test_alpha_and_beta_go_in_order_to_those_that_take_them():
    """onnxruntime's rule: tanh takes none, so the first alpha is LeakyRelu's; HardSigmoid's are what is left."""
    graph = import_onnx(
        lstm(activations=["Tanh", "LeakyRelu", "HardSigmoid"], activation_alpha=[0.3, 0.7], activation_beta=[0.1])
    )
    tanh, leaky, hard = cell_of(graph).attrs["spec"].activations
    assert tanh == reference_activation("tanh")
    assert (leaky.alpha, hard.alpha, hard.beta) == pytest.approx((0.3, 0.7, 0.1))


def reference_activation(name):
    from fastrnn.graph.cells import activation

    return activation(name)


@pytest.mark.parametrize(
    ("attrs", "kind", "text"),
    [
        ({"output_sequence": 1}, UnsupportedError, "output_sequence=1"),
        ({"activations": ["Sin", "Tanh", "Tanh"]}, UnsupportedError, "'Sin'"),
        ({"activation_alpha": [0.5]}, UnsupportedError, "no activation takes"),
        ({"activations": ["Tanh"]}, ModelFormatError, "needs 3 a direction"),
        ({"direction": "sideways"}, ModelFormatError, "sideways"),
        ({"clip": -1.0}, ModelFormatError, "clip must be positive"),
        ({"clip": float("nan")}, ModelFormatError, "clip is nan"),
        ({"layout": 2}, ModelFormatError, "layout 2; there are 0 and 1"),
        ({"layout": -1}, ModelFormatError, "layout -1; there are 0 and 1"),
        ({"input_forget": 2}, ModelFormatError, "input_forget 2; there are 0 and 1"),
        ({"hidden_size": 3}, ModelFormatError, "hidden_size is 3"),
        ({"hidden_size": 2.0}, ModelFormatError, "hidden_size must be int"),
        ({"direction": "bidirectional"}, ModelFormatError, "W must be"),
        ({"linear_before_reset": 1}, UnsupportedError, "linear_before_reset"),
    ],
)
def test_attribute_is_consumed_or_refused(attrs, kind, text):
    with pytest.raises(kind, match="the_node") as info:
        import_onnx(lstm(**attrs))
    assert text in str(info.value)


@pytest.mark.parametrize(
    ("activations", "numbers", "notes"),
    [
        (["Sigmoid", "Affine", "Tanh"], {}, ["the_node: Affine without alpha, which is 1 as ONNX has it"]),
        (["Sigmoid", "ScaledTanh", "Tanh"], {"activation_alpha": [2.0]}, ["the_node: ScaledTanh without beta,"]),
        (["ThresholdedRelu", "ScaledTanh", "Tanh"], {}, ["ThresholdedRelu without alpha,", "without alpha and beta,"]),
        (["Sigmoid", "Affine", "Tanh"], {"activation_alpha": [2.0]}, []),
        (["Sigmoid", "LeakyRelu", "HardSigmoid"], {}, []),
    ],
)
def test_defaults_that_onnxruntime_takes_otherwise_are_noted(activations, numbers, notes):
    found = [n for n in import_onnx(lstm(activations=activations, **numbers)).notes if "onnxruntime takes 0" in n]
    assert len(found) == len(notes)
    assert all(want in got for want, got in zip(notes, found, strict=True))


def test_linear_before_reset_is_0_or_1():
    made = lstm(linear_before_reset=2)
    made.graph.node[0].op_type = "GRU"
    with pytest.raises(ModelFormatError, match=r"the_node.*linear_before_reset 2; there are 0 and 1"):
        import_onnx(made)


@pytest.mark.parametrize(
    ("name", "array", "position", "text"),
    [
        ("B", np.zeros((1, 15), np.float32), 3, "B must be"),
        ("P", np.zeros((2, 6), np.float32), 7, "P must be"),
        ("B", np.zeros((1, 16), np.int64), 3, "floating point"),
        ("initial_h", np.zeros((1, 4), np.float32), 5, "rank 3"),
        ("initial_h", np.zeros((2, 1, 2), np.float32), 5, "initial_h"),
        ("initial_c", np.ones((1, 1, 3), np.float32), 6, "initial_c"),
    ],
)
def test_a_part_of_the_wrong_form(name, array, position, text):
    inputs = ["X", "W", "R", "", "", "", "", ""]
    inputs[position] = name
    while not inputs[-1]:
        inputs.pop()
    with pytest.raises(ModelFormatError, match=text):
        import_onnx(lstm({name: array}, inputs=inputs))


def test_zero_states_leave_and_the_batch_stays_free():
    """A zero state frozen at the exporter's batch says nothing of the batch."""
    zeros = {"h": np.zeros((1, 4, 2), np.float32)}
    graph = import_onnx(lstm(zeros, T=19, batch=4, inputs=("X", "W", "R", "", "", "h", "h")))
    cell = cell_of(graph)
    assert cell.inputs[6] is None
    assert cell.inputs[7] is None
    assert [str(d) for d in graph.values["X"].dims] == ["time", "batch", "3"]


def test_one_constant_state_for_every_row_is_expanded():
    start = np.broadcast_to(np.float32([[[0.25, -1.0]]]), (1, 4, 2))
    graph = import_onnx(lstm({"h": np.ascontiguousarray(start)}, T=19, batch=4, inputs=("X", "W", "R", "", "", "h")))
    assert [str(d) for d in graph.values["X"].dims] == ["time", "batch", "3"]
    x = np.random.default_rng(1).standard_normal((3, 2, 3))
    (got,) = reference.run(graph, {"X": x})
    one = lstm({"h": start[:, :1].copy()}, T=3, batch=1, inputs=("X", "W", "R", "", "", "h"))
    for b in range(2):
        (want,) = reference.run(import_onnx(one), {"X": x[:, b : b + 1]})
        np.testing.assert_allclose(got[:, :, b : b + 1], want, rtol=1e-12)


def test_rows_that_differ_hold_the_batch_fast():
    start = np.arange(8, dtype=np.float32).reshape(1, 4, 2)
    graph = import_onnx(lstm({"h": start}, T=19, batch=4, inputs=("X", "W", "R", "", "", "h")))
    assert [str(d) for d in graph.values["X"].dims] == ["time", "4", "3"]
    assert any("different rows" in n for n in graph.notes)


def test_constant_lengths_of_the_whole_length_leave():
    lengths = {"n": np.full(4, 19, np.int32)}
    graph = import_onnx(lstm(lengths, T=19, batch=4, inputs=("X", "W", "R", "", "n")))
    assert len(cell_of(graph).inputs) < 9 or cell_of(graph).inputs[8] is None
    assert [str(d) for d in graph.values["X"].dims] == ["time", "batch", "3"]


def test_constant_ragged_lengths_hold_both_fast():
    lengths = {"n": np.int32([19, 7, 1, 3])}
    graph = import_onnx(lstm(lengths, T=19, batch=4, inputs=("X", "W", "R", "", "n")))
    assert graph.values["X"].dims == (19, 4, 3)
    too_long = {"n": np.int32([19, 20, 1, 3])}
    with pytest.raises(ModelFormatError, match="outside"):
        import_onnx(lstm(too_long, T=19, batch=4, inputs=("X", "W", "R", "", "n")))


def converted(model, dtype):
    """The model with all floats in another dtype."""
    new, kind = onnx.ModelProto(), helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    new.CopyFrom(model)
    for value in (*new.graph.input, *new.graph.output):
        value.type.tensor_type.elem_type = kind
    for k, tensor in enumerate(new.graph.initializer):
        array = numpy_helper.to_array(tensor).astype(dtype)
        new.graph.initializer[k].CopyFrom(numpy_helper.from_array(array, tensor.name))
    return new


def test_float64_is_refused_unless_asked_for():
    double = converted(lstm(), np.float64)
    with pytest.raises(UnsupportedError, match="float64_as_float32=True"):
        import_onnx(double)
    graph = import_onnx(double, float64_as_float32=True)
    assert graph.values["X"].dtype == "float32"


def test_float16_computes_in_float32_and_says_so():
    graph = import_onnx(converted(lstm(), np.float16))
    assert graph.values["X"].dtype == graph.values["Y"].dtype == "float32"
    assert any("float16" in n for n in graph.notes)
    weights = graph.constants[cell_of(graph).inputs[1]]
    np.testing.assert_array_equal(weights, weights.astype(np.float16).astype(np.float32))


def test_weights_computed_from_inputs_are_refused_and_can_be_bound():
    model = lstm()
    w = model.graph.initializer.pop(0)
    model.graph.input.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [1, 8, 3]))
    with pytest.raises(UnsupportedError, match="W must be constant"):
        import_onnx(model)
    graph = import_onnx(model, bind={"W": numpy_helper.to_array(w)})
    assert graph.inputs == ("X",)


def node_cases():
    from onnx.backend.test.case.node import collect_testcases

    known = ("test_rnn", "test_simple_rnn", "test_lstm", "test_gru")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it makes all other cases as well, some of which overflow
        return [c for c in collect_testcases(None) if c.name.startswith(known)]


def test_onnx_recurrent_node_cases():
    """All of them, weights bound as the backend API gives them (as inputs)."""
    cases = node_cases()
    assert len(cases) >= 18
    for case in cases:
        names = [i.name for i in case.model.graph.input]
        for inputs, wanted in case.data_sets:
            feeds = dict(zip(names, inputs, strict=True))
            graph = import_onnx(case.model, bind={n: a for n, a in feeds.items() if n != "X"})
            for got, want in zip(reference.run(graph, {"X": feeds["X"]}), wanted, strict=True):
                assert got.shape == want.shape, case.name
                np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5, err_msg=case.name)


def test_what_is_wrong_is_one_error_for_the_whole_file():
    """Three findings of three kinds, all named at once."""
    model = lstm(activations=["Sin", "Tanh", "Tanh"])
    model.graph.node[0].output[0] = "y0"
    model.graph.node.append(helper.make_node("Fourier", ["y0"], ["y1"], name="the:second"))
    model.graph.node.append(helper.make_node("Relu", ["X"], ["r"], name="third", slope=2))
    model.graph.node.append(helper.make_node("Concat", ["y1", "r"], ["Y"], name="fourth", axis=0))
    with pytest.raises(UnsupportedError) as info:
        import_onnx(model)
    model.graph.node.append(helper.make_node("Add", ["Y", "text"], ["Z"], name="fifth"))
    model.graph.input.append(helper.make_tensor_value_info("text", TensorProto.STRING, [1]))
    model.graph.output[0].name = "Z"
    with pytest.raises(UnsupportedError, match="'text': of dtype string") as more:
        import_onnx(model)
    assert len(info.value.problems) == 3
    assert len(more.value.problems) == 4
    assert all(word in str(info.value) for word in ("the_node", "Sin", "second", "Fourier", "third", "slope=2"))
    assert isinstance(info.value, FastRNNError)
