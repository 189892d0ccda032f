"""`fastrnn-convert --precision auto`: what it prints and writes, and what it refuses."""

import json

import numpy as np
import pytest
from test_cli import STATES, convert, run

import fastrnn
from fastrnn import cli
from fastrnn.insight import choosing

EXAMPLE = STATES.parents[3] / "examples" / "tone_words.onnx"


@pytest.fixture
def frames(tmp_path):
    file = tmp_path / "frames.npz"
    np.savez(file, bands=np.random.default_rng(0).normal(size=(2, 60, 20)).astype(np.float32))
    return file


@pytest.fixture
def clock(monkeypatch):
    """Times that don't depend on the machine."""
    speed = {"float32": 1.0, "bfloat16": 0.7, "int8-a16": 0.5, "int8": 0.4}

    def layer_times(models, batch, steps, seconds, progress=None):
        return {name: {i.name: i.parameters * speed[name] for i in models["float32"].layers} for name in models}

    monkeypatch.setattr(choosing, "layer_times", layer_times)
    monkeypatch.setattr(choosing, "paired_ns", lambda calls, seconds: (100.0, 50.0)[: len(calls)])


def auto(capsys, out, *argv):
    return convert(capsys, EXAMPLE, "-o", out, "--precision", "auto", *argv)


def test_it_writes_what_it_chose_and_shows_it(capsys, tmp_path, frames, clock):
    out = tmp_path / "m.fastrnn"
    code, text, err = auto(capsys, out, "--data", frames, "--tolerance", "0.5", "--verify")
    assert (code, err) == (0, "")
    model = fastrnn.load(out)
    assert model.precision == "int8"
    assert "2.00 times as fast" in text
    assert "answers like onnxruntime" in text
    for info in model.layers:
        assert any(info.name in line and "int8" in line and "->" in line for line in text.splitlines())


def test_json(capsys, tmp_path, frames, clock):
    out = tmp_path / "m.fastrnn"
    code, text, err = auto(capsys, out, "--data", frames, "--tolerance", "0.02", "--json")
    assert (code, err) == (0, "")
    told = json.loads(text)["choice"]
    model = fastrnn.load(out)
    kept = {i.name: told["precision"][i.name] for i in model.layers}
    assert model.precision in (kept, *set(kept.values()))
    assert told["tolerance"] == 0.02
    assert all(e["error"] <= 0.02 and e["decisions_changed"] <= 0.02 for e in told["outputs"])
    assert {t["precision"] for t in told["trials"]} == {"float32", "bfloat16", "int8-a16", "int8"}
    code, text, _ = convert(capsys, EXAMPLE, "-o", out, "--json")
    assert json.loads(text)["choice"] is None


def test_no_tolerance_writes_float32(capsys, tmp_path, frames, clock):
    out = tmp_path / "m.fastrnn"
    code, text, _ = auto(capsys, out, "--data", frames, "--tolerance", "0")
    assert code == 0
    assert fastrnn.load(out).precision == "float32"
    assert "beyond the tolerance" in text


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"bands": np.zeros((60, 7), np.float32)}, "input bands takes data [T, 20] or [rows, T, 20], got [60, 7]"),
        ({"a": np.zeros((60, 20)), "b": np.zeros((60, 20))}, "the data lack ['bands']"),
        ({"bands": np.zeros((1, 20), np.float32)}, "1 steps long"),
        ({"bands": np.array([["x"] * 20] * 3)}, "input bands takes float32, the data are <U1"),
    ],
)
def test_bad_data(capsys, tmp_path, arrays, text):
    np.savez(tmp_path / "bad.npz", **arrays)
    code, _, err = auto(capsys, tmp_path / "m.fastrnn", "--data", tmp_path / "bad.npz")
    assert code == 1
    assert text in err
    assert not (tmp_path / "m.fastrnn").exists()


def test_no_data_and_options_without_auto(capsys, tmp_path, frames):
    code, _, err = auto(capsys, tmp_path / "m.fastrnn")
    assert code == 1
    assert "--precision auto judges by your data: pass --data FILE" in err
    code, _, err = auto(capsys, tmp_path / "m.fastrnn", "--data", tmp_path / "absent.npz")
    assert code == 1
    assert "absent.npz" in err
    code, _, err = convert(capsys, EXAMPLE, "--data", frames, "--tolerance", "0.1", "-o", tmp_path / "m.fastrnn")
    assert code == 1
    assert "--data, --tolerance only with --precision auto" in err
    for wrong in ("-1", "nan", "inf", "much"):
        code, _, err = auto(capsys, tmp_path / "m.fastrnn", "--data", frames, f"--tolerance={wrong}")
        assert code == 2
        assert "expected a number from 0 up" in err
    assert [p.name for p in tmp_path.iterdir()] == ["frames.npz"]


def test_a_file_in_reduced_precision_and_other_commands(capsys, tmp_path, frames):
    names = [i.name for i in fastrnn.load(EXAMPLE).layers]
    fastrnn.load(EXAMPLE, precision={names[0]: "int8"}).save(tmp_path / "small.fastrnn")
    code, _, err = convert(
        capsys, tmp_path / "small.fastrnn", "-o", tmp_path / "m.fastrnn", "--precision", "auto", "--data", frames
    )
    assert code == 1
    assert f"layer {names[0]} holds its weights in int8, from which float32 can't be made: load the file" in err
    code, _, err = run(capsys, "inspect", EXAMPLE, "--precision", "auto", command=cli.main)
    assert code == 1
    assert "fastrnn-convert --precision auto --data FILE" in err


def test_inspect_shows_formats_and_what_they_save(capsys, tmp_path):
    exact = fastrnn.load(EXAMPLE)
    names = [i.name for i in exact.layers]
    fastrnn.load(EXAMPLE, precision={names[0]: "bfloat16", names[1]: "int8"}).save(tmp_path / "m.fastrnn")
    small = fastrnn.load(tmp_path / "m.fastrnn")
    for before, after in zip(exact.layers, small.layers, strict=True):
        assert after.saved_bytes == before.bytes - after.bytes
    code, out, _ = run(capsys, "inspect", tmp_path / "m.fastrnn")
    assert code == 0
    assert f"1 layer in bfloat16, 1 in int8, 1 in float32; {size(small)} less than in float32" in out
    row = next(line for line in out.splitlines() if line.startswith(names[1]))
    assert "int8" in row
    assert row.endswith(size(small, 1))
    code, out, _ = run(capsys, "inspect", tmp_path / "m.fastrnn", "--json")
    told = json.loads(out)
    assert told["precision"] == small.precision
    assert [layer["precision"] for layer in told["layers"]] == ["bfloat16", "int8", "float32"]
    assert [layer["saved_bytes"] for layer in told["layers"]][2] == 0
    code, out, _ = run(capsys, "inspect", EXAMPLE)
    assert "saved" not in out
    assert "precision" not in out


def size(model, at=slice(None)):
    """The bytes that the layers save, as the command writes them."""
    layers = model.layers[at]
    return fastrnn.report.size(sum(i.saved_bytes for i in (layers if isinstance(layers, tuple) else (layers,))))
