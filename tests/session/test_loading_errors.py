"""What can't be loaded raises onnxruntime's exception, which is fastrnn's too."""

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as real
from ort_models import identity

import fastrnn
from fastrnn.onnxruntime.capi import onnxruntime_pybind11_state as ours


@pytest.mark.parametrize(
    ("content", "name", "also", "text"),
    [
        (None, "NoSuchFile", FileNotFoundError, "no such file"),
        (b"garbage", "InvalidProtobuf", fastrnn.ModelFormatError, "not an ONNX model, or cut short"),
        (b"", "InvalidArgument", fastrnn.ModelFormatError, "is empty"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "InvalidArgument", fastrnn.ModelFormatError, "no graph"),
    ],
)
def test_files(tmp_path, content, name, also, text):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    for source in [str(path), path] + ([content] if content is not None else []):
        with pytest.raises(getattr(real, name)):
            onnxruntime.InferenceSession(source)
        with pytest.raises(getattr(ours, name), match=text) as found:
            fastrnn.InferenceSession(source)
        assert isinstance(found.value, also)
        assert isinstance(found.value, fastrnn.FastRNNError)


@pytest.mark.parametrize("source", [5, None, ["model.onnx"]])
def test_sources_of_another_type(source):
    with pytest.raises(TypeError):
        onnxruntime.InferenceSession(source)
    with pytest.raises(TypeError, match=f"a session takes a path or bytes, got {type(source).__name__}"):
        fastrnn.InferenceSession(source)


def test_everything_that_is_not_supported_is_listed():
    nodes = [helper.make_node("Det", ["x"], ["a"]), helper.make_node("StringNormalizer", ["a"], ["y"])]
    with pytest.raises(ours.NotImplemented) as found:
        fastrnn.InferenceSession(identity(nodes=nodes))
    assert isinstance(found.value, fastrnn.UnsupportedError)
    assert len(found.value.problems) == 2
    assert "operator StringNormalizer" in str(found.value)


def test_a_file_that_contradicts_itself():
    nodes = [helper.make_node("Relu", ["nothing"], ["y"])]
    with pytest.raises(ours.InvalidGraph, match="nothing makes its input 'nothing'"):
        fastrnn.InferenceSession(identity(nodes=nodes))


def test_onnxruntimes_own_format_is_refused_by_name(tmp_path):
    for source in (b"\x00\x00\x00\x00ORTM....", tmp_path / "model.ort"):
        if not isinstance(source, bytes):
            source.write_bytes(b"\x00\x00\x00\x00ORTM....")
        with pytest.raises(ours.NotImplemented, match=r"own \.ort format; load the \.onnx file"):
            fastrnn.InferenceSession(source)


def test_options_of_load_that_do_not_fit_are_errors_of_load():
    with pytest.raises(fastrnn.ModelFormatError, match="onnx files do not take layers="):
        fastrnn.InferenceSession(identity(TensorProto.FLOAT), layers=["lstm"])
    with pytest.raises(fastrnn.ShapeError, match="bind: there is no input 'sr'"):
        fastrnn.InferenceSession(identity(), bind={"sr": 1})
