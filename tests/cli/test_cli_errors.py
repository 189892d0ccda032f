"""What the commands say of errors and wrong usage."""

import json
from pathlib import Path

import pytest
from test_cli import convert, run

import fastrnn
from fastrnn.cli import options, output

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data" / "onnx"
STATES = DATA / "gru_states.script.onnx"


class TestErrors:
    @pytest.mark.parametrize("command", ["convert", "inspect", "verify"])
    def test_a_missing_file(self, capsys, command, tmp_path):
        code, out, err = run(capsys, command, tmp_path / "absent.onnx")
        assert (code, out) == (1, "")
        assert "absent.onnx" in err
        assert "Traceback" not in err
        assert err.startswith("error: ")

    def test_a_bad_file(self, capsys, tmp_path):
        (tmp_path / "bad.onnx").write_bytes(b"\xff" * 100)
        code, _, err = run(capsys, "inspect", tmp_path / "bad.onnx")
        assert code == 1
        assert "bad.onnx" in err
        assert "Traceback" not in err

    def test_json_holds_the_error_too(self, capsys, tmp_path):
        (tmp_path / "bad.onnx").write_bytes(b"\xff" * 100)
        code, out, err = run(capsys, "inspect", tmp_path / "bad.onnx", "--json")
        told = json.loads(out)
        assert code == 1
        assert told["ok"] is False
        assert told["error"]["type"] == "ModelFormatError"
        assert told["error"]["message"] in err

    @pytest.mark.parametrize("how", ["--debug", "environment"])
    def test_the_traceback_shows_when_asked_for(self, capsys, tmp_path, monkeypatch, how):
        if how == "environment":
            monkeypatch.setenv("FASTRNN_DEBUG_TRACEBACK", "1")
        argv = ["inspect", tmp_path / "absent.onnx", *([how] if how == "--debug" else [])]
        code, _, err = run(capsys, *argv)
        assert code == 1
        assert "Traceback" in err

    def test_a_defect_is_called_one(self, capsys, monkeypatch):
        monkeypatch.setattr(fastrnn, "load", lambda *args, **kwargs: 1 / 0)
        code, _, err = run(capsys, "inspect", STATES)
        assert code == 1
        assert "ZeroDivisionError: division by zero (a bug in fastrnn; --debug shows the traceback)" in err

    def test_an_interrupt_is_130(self, capsys, monkeypatch):
        def stop(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(fastrnn, "load", stop)
        assert run(capsys, "inspect", STATES) == (130, "", "interrupted\n")

    @pytest.mark.parametrize(
        "argv",
        [
            [],
            ["nonsense"],
            ["inspect"],
            ["inspect", "m.onnx", "--unknown"],
            ["convert", "m.onnx", "--bind", "sr"],
            ["convert", "m.onnx", "--bind", "sr=loud"],
            ["convert", "m.onnx", "--bind", "=3"],
            ["convert", "m.onnx", "--states", "h0"],
            ["verify", "m.onnx", "--against", "tvm"],
            ["verify", "m.onnx", "--seed", "-1"],
            ["verify", "m.onnx", "--tolerance", "nan"],
            ["profile", "m.onnx", "--batch", "0"],
            ["profile", "m.onnx", "--steps", "1.5"],
            ["profile", "m.onnx", "--threads", "2000"],
            ["profile", "m.onnx", "--hop-ms", "inf"],
            ["profile", "m.onnx", "--seconds", "0"],
            ["analyze", "m.onnx", "--steps", "1"],
            ["analyze", "m.onnx", "--long-steps", "x"],
            ["analyze", "m.onnx", "--seconds", "-3"],
        ],
    )
    def test_wrong_usage_is_exit_2(self, capsys, argv):
        code, out, err = run(capsys, *argv)
        assert (code, out) == (2, "")
        assert "usage: fastrnn" in err


class TestParsing:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("sr=16000", 16000),
            ("k=-2.5e-1", -0.25),
            ("flag=true", True),
            ("v=[1, 2]", [1, 2]),
            ("v=[[1], [0.5]]", [[1], [0.5]]),
        ],
    )
    def test_bindings(self, text, value):
        assert options.binding(text) == (text.partition("=")[0], value)

    @pytest.mark.parametrize("text", ['k="a"', 'k={"a": 1}', "k=[null]", "k=", "k=" + "[" * 100_000])
    def test_what_is_no_number_is_refused(self, text):
        with pytest.raises(options.argparse.ArgumentTypeError, match="must be a number"):
            options.binding(text)

    @pytest.mark.parametrize(
        ("number", "text"),
        [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (50_381, "49.2 KiB"), (3 << 40, "3072.0 GiB")],
    )
    def test_sizes(self, number, text):
        assert output.size(number) == text


@pytest.mark.parametrize("command", ["convert", "inspect", "verify", None])
def test_help_has_an_example(capsys, command):
    code, out, _ = convert(capsys, "--help") if command is None else run(capsys, command, "--help")
    assert code == 0
    assert "example:\n  fastrnn" in out
