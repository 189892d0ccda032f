"""The commands, called as functions and as programs: what they print, write, and exit with."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import fastrnn
from fastrnn import cli
from fastrnn.insight.verification import OutputDifference

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data" / "onnx"
STATES = DATA / "gru_states.script.onnx"
BOTH_WAYS = DATA / "bigru_stacked.script.onnx"


def run(capsys, *argv, command=cli.main):
    """(exit code, stdout, stderr) of a command in this process."""
    try:
        code = command([str(a) for a in argv])
    except SystemExit as error:  # argparse's own
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def convert(capsys, *argv):
    return run(capsys, *argv, command=cli.convert_main)


def program(*argv, **kwargs):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, "-m", "fastrnn", *map(str, argv)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=env,
        timeout=120,
        **kwargs,
    )


class TestConvert:
    def test_the_file_gives_the_same_bits(self, capsys, tmp_path):
        code, out, err = convert(capsys, STATES, "-o", tmp_path / "m.fastrnn")
        assert (code, err) == (0, "")
        assert f"{STATES} -> {tmp_path / 'm.fastrnn'}" in out
        assert os.listdir(tmp_path) == ["m.fastrnn"]
        before, after = fastrnn.load(STATES), fastrnn.load(tmp_path / "m.fastrnn")
        rng = np.random.default_rng(0)
        sizes = {"batch": 2, "time": 5}
        feeds = {
            info.name: rng.standard_normal([sizes.get(str(d), d) for d in info.dims]).astype(info.dtype)
            for info in before.inputs
        }
        for a, b in zip(before.run(**feeds), after.run(**feeds), strict=True):
            assert a.tobytes() == b.tobytes()

    def test_it_is_written_beside_the_model(self, capsys, tmp_path):
        (tmp_path / "my.model.onnx").write_bytes(STATES.read_bytes())
        assert convert(capsys, tmp_path / "my.model.onnx")[0] == 0
        assert sorted(os.listdir(tmp_path)) == ["my.model.fastrnn", "my.model.onnx"]

    def test_verify_compares_with_onnxruntime(self, capsys, tmp_path):
        code, out, _ = convert(capsys, STATES, "-o", tmp_path / "m.fastrnn", "--verify")
        assert code == 0
        assert "answers like onnxruntime" in out
        assert "largest absolute difference" in out

    def test_without_onnxruntime_it_compares_with_the_reference_and_says_so(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        code, out, _ = convert(capsys, STATES, "-o", tmp_path / "m.fastrnn", "--verify")
        assert code == 0
        assert "compared with the float64 reference: onnxruntime is not installed" in out
        assert "answers like fastrnn's float64 reference" in out

    def test_a_file_that_is_not_onnx_is_compared_with_the_reference(self, capsys, tmp_path):
        fastrnn.load(STATES).save(tmp_path / "a.fastrnn")
        code, out, _ = convert(capsys, tmp_path / "a.fastrnn", "-o", tmp_path / "b.fastrnn", "--verify")
        assert code == 0
        assert "a.fastrnn is not an ONNX file" in out

    def test_nothing_is_written_where_the_answers_differ(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr(fastrnn, "verify", lambda *args, **kwargs: FAILED)
        code, out, _ = convert(capsys, STATES, "-o", tmp_path / "m.fastrnn", "--verify")
        assert code == 1
        assert "nothing written" in out
        assert "does NOT answer like onnxruntime 0" in out
        assert "at x [1]" in out
        assert os.listdir(tmp_path) == []

    def test_json(self, capsys, tmp_path):
        code, out, _ = convert(capsys, STATES, "-o", tmp_path / "m.fastrnn", "--verify", "--json")
        told = json.loads(out)
        assert code == 0
        assert told["ok"] is True
        assert told["output"] == str(tmp_path / "m.fastrnn")
        assert told["bytes"] == (tmp_path / "m.fastrnn").stat().st_size
        assert told["verify"]["ok"] is True
        assert told["verify"]["why_reference"] is None
        assert told["fingerprint"] == fastrnn.load(STATES).fingerprint

    def test_json_of_a_difference(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr(fastrnn, "verify", lambda *args, **kwargs: FAILED)
        code, out, _ = convert(capsys, STATES, "-o", tmp_path / "m.fastrnn", "--verify", "--json")
        told = json.loads(out)
        assert (code, told["ok"], told["output"]) == (1, False, None)
        assert told["verify"]["outputs"][0]["absolute"] == "inf"

    def test_bind_fixes_an_input(self, capsys, tmp_path):
        path = scaled(tmp_path / "scaled.onnx")
        code, out, _ = convert(capsys, path, "--bind", "k=2.5", "--verify", "--json")
        told = json.loads(out)
        assert code == 0
        assert [t["name"] for t in told["inputs"]] == ["x"]
        y = fastrnn.load(told["output"])(np.ones((1, 1, 2), np.float32))
        assert y.tolist() == [[[2.5, 2.5]]]


FAILED = fastrnn.VerifyReport(
    model="m",
    against="onnxruntime 0",
    ok=False,
    tolerance=1e-4,
    seed=0,
    outputs=(OutputDifference("y", float("inf"), 0.5, False, "at x [1]"),),
    runs=("x [1]",),
    skipped=("x [2]: other refused it",),
    notes=("a note",),
)


def scaled(path: Path) -> Path:
    """An ONNX file of y = x * k."""
    x, y = (onnx.helper.make_tensor_value_info(name, 1, ["batch", "time", 2]) for name in "xy")
    k = onnx.helper.make_tensor_value_info("k", 1, [])
    node = onnx.helper.make_node("Mul", ["x", "k"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [x, k], [y])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class TestOverwriting:
    def test_a_fastrnn_file_is_replaced(self, capsys, tmp_path):
        target = tmp_path / "m.fastrnn"
        fastrnn.load(BOTH_WAYS).save(target)
        assert convert(capsys, STATES, "-o", target)[0] == 0
        assert fastrnn.load(target).fingerprint == fastrnn.load(STATES).fingerprint

    @pytest.mark.parametrize("content", [b"", b"my diary", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
    def test_anything_else_is_left_alone(self, capsys, tmp_path, content):
        target = tmp_path / "m.fastrnn"
        target.write_bytes(content)
        code, out, err = convert(capsys, STATES, "-o", target)
        assert (code, out) == (1, "")
        assert "exists and is not a .fastrnn file of this version; --force replaces it" in err
        assert target.read_bytes() == content
        assert convert(capsys, STATES, "-o", target, "--force")[0] == 0
        assert fastrnn.load(target).fingerprint == fastrnn.load(STATES).fingerprint

    def test_the_model_itself_is_never_replaced(self, capsys, tmp_path):
        fastrnn.load(STATES).save(tmp_path / "m.fastrnn")
        before = (tmp_path / "m.fastrnn").read_bytes()
        code, _, err = convert(capsys, tmp_path / "m.fastrnn", "--force")
        assert code == 1
        assert "is the model itself" in err
        assert (tmp_path / "m.fastrnn").read_bytes() == before

    def test_a_folder_in_the_way(self, capsys, tmp_path):
        (tmp_path / "m.fastrnn").mkdir()
        code, _, err = convert(capsys, STATES, "-o", tmp_path / "m.fastrnn")
        assert code == 1
        assert "exists and is not a file" in err

    def test_a_missing_folder(self, capsys, tmp_path):
        code, _, err = convert(capsys, STATES, "-o", tmp_path / "no" / "m.fastrnn")
        assert code == 1
        assert "does not exist" in err

    def test_a_failed_write_leaves_the_old_file_and_nothing_else(self, capsys, tmp_path, monkeypatch):
        target = tmp_path / "m.fastrnn"
        fastrnn.load(BOTH_WAYS).save(target)
        before = target.read_bytes()

        def full(self, path):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))

        monkeypatch.setattr(fastrnn.Model, "save", full)
        code, _, err = convert(capsys, STATES, "-o", target)
        assert code == 1
        assert "No space left on device" in err
        assert target.read_bytes() == before
        assert os.listdir(tmp_path) == ["m.fastrnn"]

    def test_the_output_s_name_is_checked(self, capsys, tmp_path):
        code, _, err = convert(capsys, STATES, "-o", tmp_path / "m.onnx")
        assert code == 2
        assert "the output's name must end in .fastrnn" in err


class TestInspect:
    def test_a_model_that_streams(self, capsys):
        code, out, err = run(capsys, "inspect", STATES)
        assert (code, err) == (0, "")
        model = fastrnn.load(STATES)
        for info in (*model.inputs, *model.outputs):
            assert f"{info.name}: {info.dtype} [" in out
        for a, b in model.graph.states.items():
            assert f"{a} -> {b}" in out
        for layer in model.layers:
            assert layer.name in out
        assert f"{model.parameters:,} parameters" in out
        assert "yes, without delay" in out
        assert model.fingerprint in out
        assert not any(line.endswith(" ") for line in out.splitlines())
        assert "\x1b" not in out

    def test_one_that_does_not_says_why(self, capsys):
        code, out, _ = run(capsys, "inspect", BOTH_WAYS)
        with pytest.raises(fastrnn.StreamError) as caught:
            fastrnn.load(BOTH_WAYS).stream()
        assert code == 0
        assert f"no: {caught.value}" in out

    def test_json_holds_it_all(self, capsys):
        code, out, _ = run(capsys, "inspect", STATES, "--json")
        told, model = json.loads(out), fastrnn.load(STATES)
        assert code == 0
        assert told["parameters"] == model.parameters == sum(layer["parameters"] for layer in told["layers"])
        assert told["memory_bytes"] == model.memory_bytes
        assert told["streams"] is True
        assert told["delay"] == 0
        assert told["threaded_states"] == dict(model.graph.states)
        assert told["found_by"] == dict.fromkeys(model.graph.states, "dataflow") != {}
        assert told["notes"] == list(model.graph.notes)
        assert [t["name"] for t in told["inputs"]] == [i.name for i in model.inputs]

    def test_how_each_state_was_found_is_told(self, capsys):
        out = run(capsys, "inspect", STATES)[1]
        for a, b in fastrnn.load(STATES).graph.states.items():
            assert f"{a} -> {b} (found by dataflow)" in " ".join(out.split())

    def test_every_node_is_listed_where_asked(self, capsys):
        graph = fastrnn.load(STATES).graph
        _, short, _ = run(capsys, "inspect", STATES)
        _, long, _ = run(capsys, "inspect", STATES, "--nodes")
        for node in graph.nodes:
            for name in filter(None, node.outputs):
                assert str(graph.values[name]).rsplit("/", 1)[-1] in " ".join(long.split())
        assert len(long) > len(short)
        told = json.loads(run(capsys, "inspect", STATES, "--json")[1])
        assert [n["name"] for n in told["nodes"]] == [n.name for n in graph.nodes]

    def test_what_import_did_is_told(self, capsys):
        frozen = DATA / "gru_stacked.dynamo_frozen.onnx"
        notes = fastrnn.load(frozen).graph.notes
        assert notes
        _, out, _ = run(capsys, "inspect", frozen)
        assert all(note in out for note in notes)


class TestVerify:
    def test_agreement(self, capsys):
        code, out, err = run(capsys, "verify", STATES)
        assert (code, err) == (0, "")
        assert "answers like onnxruntime" in out

    def test_difference_is_exit_1(self, capsys, monkeypatch):
        monkeypatch.setattr(fastrnn, "verify", lambda *args, **kwargs: FAILED)
        code, out, _ = run(capsys, "verify", STATES)
        assert code == 1
        assert "does NOT answer" in out
        assert "FAIL" in out
        assert "skipped x [2]: other refused it" in out
        assert "note: a note" in out

    def test_json(self, capsys):
        code, out, _ = run(capsys, "verify", STATES, "--against", "reference", "--seed", "7", "--json")
        told = json.loads(out)
        assert code == 0
        assert (told["ok"], told["seed"]) == (True, 7)

    def test_a_converted_file_against_its_source(self, capsys, tmp_path):
        convert(capsys, STATES, "-o", tmp_path / "m.fastrnn")
        code, out, _ = run(capsys, "verify", tmp_path / "m.fastrnn", "--source", STATES)
        assert code == 0
        assert "answers like onnxruntime" in out

    def test_a_converted_file_alone_is_compared_with_the_reference_and_says_so(self, capsys, tmp_path):
        convert(capsys, STATES, "-o", tmp_path / "m.fastrnn")
        code, out, err = run(capsys, "verify", tmp_path / "m.fastrnn")
        assert (code, err) == (0, "")
        assert "compared with the float64 reference:" in out
        assert "m.fastrnn is not an ONNX file" in out
        assert "answers like fastrnn's float64 reference" in out
        told = json.loads(run(capsys, "verify", tmp_path / "m.fastrnn", "--json")[1])
        assert told["why_reference"] == f"{tmp_path / 'm.fastrnn'} is not an ONNX file"
        assert json.loads(run(capsys, "verify", STATES, "--json")[1])["why_reference"] is None

    def test_what_was_asked_for_and_can_not_be_is_an_error(self, capsys, tmp_path, monkeypatch):
        convert(capsys, STATES, "-o", tmp_path / "m.fastrnn")
        code, _, err = run(capsys, "verify", tmp_path / "m.fastrnn", "--against", "onnxruntime")
        assert code == 1
        assert "m.fastrnn is not an ONNX file: pass the ONNX file with --source, or use --against reference" in err
        code, _, err = run(capsys, "verify", tmp_path / "m.fastrnn", "--source", tmp_path / "m.fastrnn")
        assert code == 1
        assert "--source: " in err
        assert "source=" not in err
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        code, _, err = run(capsys, "verify", STATES, "--against", "onnxruntime")
        assert code == 1
        assert "onnxruntime is not installed" in err
        code, out, _ = run(capsys, "verify", STATES)
        assert code == 0
        assert "compared with the float64 reference: onnxruntime is not installed" in out


class TestAsPrograms:
    def test_without_stdin_and_in_a_pipe(self, tmp_path):
        done = program("convert", STATES, "-o", tmp_path / "m.fastrnn", "--verify")
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout

    def test_version(self):
        done = program("--version")
        assert (done.returncode, done.stdout) == (0, f"fastrnn {fastrnn.__version__}\n")

    def test_wrong_usage(self):
        assert program("inspect").returncode == 2

    def test_a_closed_pipe_is_quiet(self):
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, "-m", "fastrnn", "inspect", str(STATES)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=env,
        ) as process:
            process.stdout.close()
            err = process.stderr.read()
            assert process.wait(timeout=120) == 1
        assert err == b""

    def test_a_terminal_gets_colour(self):
        main, other = pty.openpty()
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "60"}
        env.pop("NO_COLOR", None)
        with subprocess.Popen(
            [sys.executable, "-m", "fastrnn", "inspect", str(STATES)], stdout=other, stdin=subprocess.DEVNULL, env=env
        ) as process:
            os.close(other)
            text = b""
            while True:
                try:
                    chunk = os.read(main, 4096)
                except OSError:  # the other end is closed
                    break
                if not chunk:
                    break
                text += chunk
            assert process.wait(timeout=120) == 0
        os.close(main)
        assert b"\x1b[" in text
