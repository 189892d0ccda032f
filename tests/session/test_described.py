"""get_inputs and get_outputs report what the file declares, as onnxruntime does; fastrnn still runs other sizes."""

import numpy as np
import pytest
from onnx import TensorProto, helper, load_from_string
from ort_models import both, identity
from rnn_cases import BY_ID, make_model

import fastrnn

RESHAPE = [helper.make_node("Reshape", ["x", "s"], ["y"])]
BY_SHAPE = [helper.make_node("Shape", ["x"], ["s"]), *RESHAPE]


def described(session):
    return [(a.name, a.type, list(a.shape)) for a in (*session.get_inputs(), *session.get_outputs())]


@pytest.mark.parametrize(
    ("dims", "out"),
    [
        (("batch", 3), ("n", 3)),
        (("batch", 3), ("batch", 4)),
        ((None, 3), (None, None)),
        ((None, 3), ("q", "r")),
        ((2, 3), ("q", "r")),
        ((2, 3), None),
        ((2, 3), (None, "r")),
        (("batch", 3), None),
        ((0, 3), (0, 3)),
        ((), ()),
        ((2, 3), (5, 3)),
        (("", 3), ("", 3)),
        (("b", "b"), ("b", None)),
    ],
)
def test_shapes_of_ends(dims, out):
    ours, theirs = both(identity(dims=dims, out=out))
    assert described(ours) == described(theirs)


@pytest.mark.parametrize(
    ("dims", "out", "shape"),
    [
        (("b", 4), ("b", 2, 2), [-1, 2, 2]),
        (("b", 4), None, [-1, 2, 2]),
        (("b", 4), None, [0, 2, 2]),
        (("b", 4), ("c", "d", "e"), [0, 2, -1]),
        ((2, 4), ("c", "d"), [4, 2]),
    ],
)
def test_shapes_that_are_inferred(dims, out, shape):
    weight = helper.make_tensor("s", TensorProto.INT64, [len(shape)], shape)
    ours, theirs = both(identity(dims=dims, out=out, nodes=RESHAPE, weights=[weight]))
    assert described(ours) == described(theirs)


@pytest.mark.parametrize(("dims", "out"), [(("b", 4), None), ((2, 4), None), ((2, 4), ("p", "q"))])
def test_shapes_that_other_shapes_decide(dims, out):
    ours, theirs = both(identity(dims=dims, out=out, nodes=BY_SHAPE))
    assert described(ours) == described(theirs)


@pytest.mark.parametrize(
    "name", [name for name in sorted(BY_ID) if "layout1" not in name and "softplus" not in name][::9]
)
def test_recurrent_files(name):
    ours, theirs = both(make_model(BY_ID[name]).SerializeToString())
    assert described(ours) == described(theirs)


def test_types_of_outputs():
    proto = load_from_string(identity())
    proto.graph.output[0].ClearField("type")
    ours, theirs = both(proto.SerializeToString())
    assert described(ours) == described(theirs)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, ["batch", 3]))
    for module in (fastrnn.onnxruntime, pytest.importorskip("onnxruntime")):
        with pytest.raises(module.capi.onnxruntime_pybind11_state.Fail):
            module.InferenceSession(proto.SerializeToString())
    with pytest.raises(fastrnn.ModelFormatError, match="output y is declared int64, but computes float32"):
        fastrnn.InferenceSession(proto.SerializeToString())


def test_a_frozen_file_reports_its_numbers_and_runs_other_sizes():
    cell = [helper.make_node("LSTM", ["x", "W", "R"], ["", "h"], hidden_size=2)]
    weights = [
        helper.make_tensor("W", TensorProto.FLOAT, [1, 8, 3], np.linspace(-1, 1, 24)),
        helper.make_tensor("R", TensorProto.FLOAT, [1, 8, 2], np.linspace(-1, 1, 16)),
    ]
    cell[0].output[:] = ["", "y"]
    ours, theirs = both(identity(dims=(5, 1, 3), out=(1, 1, 2), nodes=cell, weights=weights))
    assert (
        described(ours) == described(theirs) == [("x", "tensor(float)", [5, 1, 3]), ("y", "tensor(float)", [1, 1, 2])]
    )
    x = np.zeros((5, 1, 3), np.float32)
    np.testing.assert_allclose(ours.run(None, {"x": x})[0], theirs.run(None, {"x": x})[0], atol=1e-6)
    assert ours.run(None, {"x": np.zeros((7, 4, 3), np.float32)})[0].shape == (1, 4, 2)


def test_sizes_of_options_are_reported():
    data = identity()
    for module in (fastrnn.onnxruntime, pytest.importorskip("onnxruntime")):
        options = module.SessionOptions()
        options.log_severity_level = 4
        options.add_free_dimension_override_by_name("batch", 4)
        session = module.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        assert [a.shape for a in (*session.get_inputs(), *session.get_outputs())] == [[4, 3], [4, 3]]
    proto = load_from_string(data)
    proto.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    options = fastrnn.onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_denotation("DATA_BATCH", 6)
    assert fastrnn.InferenceSession(proto.SerializeToString(), options).get_inputs()[0].shape == [6, 3]


def test_other_files_report_the_models_dims(tmp_path):
    fastrnn.from_onnx(make_model(BY_ID["lstm-bidirectional_lengths_states"])).save(tmp_path / "m.fastrnn")
    session = fastrnn.InferenceSession(tmp_path / "m.fastrnn")
    assert session.get_inputs()[0].shape == ["time", "batch", 7]
    assert session.get_outputs()[1].shape == [2, "batch", 17]
    assert session.get_overridable_initializers() == []


def test_a_description_can_not_be_changed_and_reads_as_onnxruntimes():
    ours, theirs = both(identity())
    assert str(ours.get_inputs()[0]) == str(theirs.get_inputs()[0])
    with pytest.raises(AttributeError):
        ours.get_inputs()[0].name = "other"
    ours.get_inputs().clear()
    assert len(ours.get_inputs()) == 1


def test_weights_that_are_inputs_too():
    proto = load_from_string(identity(op="Mul"))
    proto.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [3], [1, 2, 3]))
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
    proto.graph.node[0].input[1] = "w"
    ours, theirs = both(proto.SerializeToString())
    assert described(ours) == described(theirs)
    names = [[a.name for a in s.get_overridable_initializers()] for s in (ours, theirs)]
    assert names == [["w"], ["w"]]
    with pytest.raises(fastrnn.ShapeError, match="unknown input 'w'"):
        ours.run(None, {"x": np.ones((1, 3), np.float32), "w": np.ones(3, np.float32)})
