"""What an ONNX file says of itself, as key and text, is on the model and in .fastrnn files."""

import onnx
import pytest
from onnx import helper, parser

import fastrnn

SAID = {"model_type": "zipformer2", "T": "45", "comment": "", "größe": "16 000 Hz"}


@pytest.fixture
def model():
    body = "g (float[batch, time, 4] x) => (float[batch, time, 4] y) { y = Tanh(x) }"
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {body}')
    helper.set_model_props(made, SAID)
    return made


def test_it_is_on_the_model_and_kept_in_files(model, tmp_path):
    onnx.save(model, tmp_path / "m.onnx")
    loaded = fastrnn.load(tmp_path / "m.onnx")
    assert loaded.metadata == SAID == fastrnn.from_onnx(model).metadata
    loaded.metadata["T"] = "1"  # a copy
    loaded.save(tmp_path / "m.fastrnn")
    assert fastrnn.load(tmp_path / "m.fastrnn").metadata == SAID


def test_it_is_no_part_of_what_a_model_means(model, tmp_path):
    """Snapshots fit models that differ in it alone."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    del plain.metadata_props[:]
    one, other = fastrnn.from_onnx(model), fastrnn.from_onnx(plain)
    assert other.metadata == {}
    assert one.fingerprint == other.fingerprint
    assert other.stream().restore(one.stream().snapshot()) is None


def test_a_model_of_branches_has_it(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (bool which, float[batch, time, 4] x) => (float[batch, time, 4] y) {
        y = If (which) <then_branch = t () => (float[batch, time, 4] a) { a = Tanh(x) },
                        else_branch = e () => (float[batch, time, 4] b) { b = Relu(x) }>
    }"""
    made = parser.parse_model(text)
    helper.set_model_props(made, SAID)
    assert fastrnn.from_onnx(made).metadata == SAID


def test_a_damaged_file_is_refused(model, tmp_path):
    """Text that is no text."""
    fastrnn.from_onnx(model).save(tmp_path / "m.fastrnn")
    data = (tmp_path / "m.fastrnn").read_bytes()
    broken = data.replace(
        b'\\"metadata\\":{\\"model_type\\":\\"zipformer2\\"', b'\\"metadata\\":[\\"model_type\\",\\"zipformer2\\"'
    )
    assert broken != data
    with pytest.raises(fastrnn.ModelFormatError):
        fastrnn.load(broken)
