"""verify of reduced precision: errors against float64, beside those of float32 and of onnxruntime's int8."""

import json
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn.graph import reference
from fastrnn.insight.verification import beside

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "tone_words.onnx"
DATA = ROOT / "tests" / "data" / "onnx"


def every(file, precision):
    """All layers in a format."""
    return {i.name: precision for i in fastrnn.load(file).layers}


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int8-a16"])
def test_errors_against_float64(precision):
    report = fastrnn.verify(EXAMPLE, precision=every(EXAMPLE, precision), seed=3)
    exact, small = fastrnn.load(EXAMPLE), fastrnn.load(EXAMPLE, precision=every(EXAMPLE, precision))
    x = np.random.default_rng(3).standard_normal((5, 100, 20)).astype(np.float32)
    (want,) = reference.run(exact.graph, {"bands": x})
    (found,) = report.reduced
    assert found.name == "words"
    assert found.reduced == pytest.approx(np.abs(small(x) - want).max() / np.abs(want).max())
    assert found.float32 == pytest.approx(np.abs(exact(x) - want).max() / np.abs(want).max())
    assert found.float32 < 1e-5 < found.reduced < found.onnxruntime_int8 * 3
    assert 1e-3 < found.onnxruntime_int8 < 0.2
    assert str(found) in str(report)
    assert str(found) in report._repr_html_()
    assert json.loads(report.to_json())["reduced"][0]["onnxruntime_int8"] == found.onnxruntime_int8


def test_float32_has_none():
    assert fastrnn.verify(EXAMPLE).reduced == ()


def test_a_converted_file_needs_the_original(tmp_path):
    fastrnn.load(EXAMPLE, precision=every(EXAMPLE, "int8")).save(tmp_path / "m.fastrnn")
    report = fastrnn.verify(tmp_path / "m.fastrnn", "reference")
    assert report.reduced == ()
    assert "as source=" in report.notes[-1]
    for against in ("reference", "onnxruntime"):
        report = fastrnn.verify(tmp_path / "m.fastrnn", against, source=EXAMPLE)
        assert report.reduced[0].reduced > 1e-3 > report.reduced[0].float32
        assert report.reduced[0].onnxruntime_int8 > 1e-3


def test_another_original(tmp_path):
    fastrnn.load(EXAMPLE, precision=every(EXAMPLE, "int8")).save(tmp_path / "m.fastrnn")
    report = fastrnn.verify(tmp_path / "m.fastrnn", "reference", source=DATA / "gru_states.script.onnx")
    assert report.reduced == ()
    assert "has other inputs or outputs than the model" in report.notes[-1]


def test_what_quantize_dynamic_leaves_in_float32_is_not_called_int8(tmp_path):
    file = DATA / "gru_no_bias.script.onnx"
    report = fastrnn.verify(file, precision=every(file, "int8"), tolerance=0.1)
    assert all(e.onnxruntime_int8 is None and e.reduced > 1e-4 for e in report.reduced)
    assert any("leaves the whole file in float32" in note for note in report.notes)
    assert "onnxruntime" not in str(report.reduced[0])


def test_without_the_tools_of_onnxruntime(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime.quantization", None)
    report = fastrnn.verify(EXAMPLE, precision=every(EXAMPLE, "int8"))
    assert report.ok
    assert report.reduced[0].onnxruntime_int8 is None
    assert any("quantization tools are not installed" in note for note in report.notes)


def test_a_file_that_is_quantised(tmp_path):
    beside._quantised(str(EXAMPLE), tmp_path / "int8.onnx")
    name = next(i.name for i in fastrnn.load(tmp_path / "int8.onnx").layers)
    report = fastrnn.verify(tmp_path / "int8.onnx", precision={name: "int8"})
    assert report.reduced[0].float32 < 1e-5 < report.reduced[0].reduced
    assert report.reduced[0].onnxruntime_int8 > 1e-5


@pytest.mark.parametrize("precision", [None, "float32"])
def test_a_quantised_file_whose_layers_are_float32(tmp_path, precision):
    """onnxruntime rounds what it multiplies, and its answers are 1 % from those of the same weights."""
    beside._quantised(str(EXAMPLE), tmp_path / "int8.onnx")
    report = fastrnn.verify(tmp_path / "int8.onnx", precision=precision)
    assert report.ok
    assert report.tolerance == 0.05
    assert fastrnn.verify(tmp_path / "int8.onnx", precision=precision, against="reference").tolerance < 0.06
    assert fastrnn.verify(EXAMPLE).tolerance == 1e-4


def test_the_command_shows_them(capsys):
    from fastrnn.cli import main

    formats = ",".join(f"{n}={p}" for n, p in every(EXAMPLE, "int8").items())
    assert main(["verify", str(EXAMPLE), "--precision", formats]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("error against float64"))
    assert lines[head].split()[-1] == "int8"
    assert lines[head + 1].split()[0] == "words"
    assert len(lines[head + 1].split()) == 4
    assert main(["verify", str(EXAMPLE)]) == 0
    assert "float64" not in capsys.readouterr().out
