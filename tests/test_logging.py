"""What the logger `fastrnn` says about loading."""

import logging
from pathlib import Path

import pytest

import fastrnn

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parent
MODEL = ROOT.parent / "examples" / "tone_words.onnx"


def test_a_model_that_is_loaded(caplog, tmp_path):
    with caplog.at_level(logging.DEBUG, "fastrnn"):
        model = fastrnn.load(MODEL)
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert line.startswith(f"loaded {MODEL} in ")
    assert f"{len(model.graph.nodes)} nodes, " in line
    assert f"{fastrnn.cpu_info().isa.active}, {model.threads} threads" in line
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.DEBUG] == [
        f"{MODEL}: {note}" for note in model.notes
    ]
    caplog.clear()
    model.save(tmp_path / "m.fastrnn")
    with caplog.at_level(logging.INFO, "fastrnn"):
        fastrnn.load((tmp_path / "m.fastrnn").read_bytes())
    assert [r.getMessage().split(" in ")[0] for r in caplog.records] == ["loaded bytes"]


def test_a_file_that_is_refused(caplog, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"garble")
    with caplog.at_level(logging.INFO, "fastrnn"), pytest.raises(fastrnn.ModelFormatError) as caught:
        fastrnn.load(tmp_path / "m.onnx")
    assert [r.getMessage() for r in caplog.records] == [f"{tmp_path / 'm.onnx'} is refused: {caught.value}"]


def test_a_step_logs_nothing(caplog):
    model = fastrnn.from_arrays("gru", W=[[1.0]] * 6, R=[[1.0, 0.0]] * 6)
    with caplog.at_level(logging.DEBUG, "fastrnn"):
        stream, pool = model.stream(), model.pool(2)
        stream.step([0.5])
        pool.step([pool.open()], [[0.5]])
    assert caplog.records == []
