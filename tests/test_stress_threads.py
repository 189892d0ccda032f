"""tools/stress_threads.py, for two seconds: every kind of call, on several threads at once, gives the right bits."""

import ast
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fastrnn

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.fastrnn"
    fastrnn.load(ROOT / "examples" / "tone_words.onnx").save(path)
    return path


def stress(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "stress_threads.py"), *map(str, arguments)]
    environ = {**os.environ, "PYTHONPATH": str(Path(fastrnn.__file__).parents[1])}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=False)


def test_many_threads_give_the_bits_of_one(model):
    done = stress(model, "--seconds", 2, "--threads", 4)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = ast.literal_eval(done.stdout.partition("threads:")[2].strip())
    assert set(counts) == {"stream", "slots", "run", "load", "stats"}
    assert min(counts.values()) > 0
    assert done.stdout.startswith("GIL on")


def test_a_wrong_answer_is_found(model, monkeypatch, capsys):
    """The check itself can fail."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import stress_threads

    class Wrong(stress_threads.Stress):
        def __init__(self, path, threads):
            super().__init__(path, threads)
            self.whole = self.whole + 1

    monkeypatch.setattr(stress_threads, "Stress", Wrong)
    monkeypatch.setattr(sys, "argv", ["stress_threads.py", str(model), "--seconds", "5", "--threads", "2"])
    assert stress_threads.main() == 1
    assert "WRONG: a stream gave other bits" in capsys.readouterr().out


def test_a_python_without_the_gil_gets_it_back():
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("needs a free-threaded Python")
    code = "import sys, fastrnn; fastrnn.cpu_info(); print(sys._is_gil_enabled())"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
