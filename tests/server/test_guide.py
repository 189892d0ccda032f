"""docs/guide/serving.md and serving_clients.md: every example runs as it is written, against the server of the page."""

import json
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest

import fastrnn

pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install 'fastrnn[test]'")
pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "guide"
CLIENTS = (GUIDE / "serving_clients.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def words(serve):
    with serve({"words": fastrnn.load(ROOT / "examples" / "tone_words.onnx")}) as server:
        yield server


def blocks(kind, server):
    """Those of the page, with the ports of this server."""
    found = [text for tag, text in BLOCK.findall(CLIENTS) if tag == kind]
    assert found
    return [text.replace(":8000", f":{server.http}").replace(":8001", f":{server.grpc}") for text in found]


def test_python(words):
    space = {"__name__": "__main__"}
    for i, text in enumerate(blocks("py", words), 1):
        exec(compile(text, f"serving_clients.md, Python block {i}", "exec"), space)
    space["client"].close()


def test_python_of_the_first_page(words, capsys):
    page = (GUIDE / "serving.md").read_text(encoding="utf-8")
    start = page.index("    import numpy as np\n    import tritonclient.grpc")
    text = textwrap.dedent(page[start : page.index("\n\n[Clients", start)]).replace(":8001", f":{words.grpc}")
    space = {}
    exec(compile(text, "serving.md", "exec"), space)
    space["client"].close()
    assert capsys.readouterr().out.startswith("[[")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed: apt-get install curl")
def test_curl(words):
    script = "\necho\n".join(text.replace("}]}'\n", "}]}'; echo\n") for text in blocks("bash", words))
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    about, first, second, whole = (json.loads(line) for line in done.stdout.splitlines() if line)
    assert about["inputs"] == [{"name": "bands", "datatype": "FP32", "shape": [-1, 20]}]
    assert first["parameters"] == {"sequence_id": 42, "step_index": 0, "steps_done": 1}
    assert second["parameters"] == {"sequence_id": 42, "step_index": 1, "steps_done": 3}
    both = first["outputs"][0]["data"] + second["outputs"][0]["data"]
    alone = fastrnn.load(ROOT / "examples" / "tone_words.onnx")(np.zeros((1, 3, 20), np.float32))
    assert np.array_equal(np.array(both, np.float32), alone.reshape(-1))
    assert np.array_equal(np.array(whole["outputs"][0]["data"], np.float32), alone[0, :2].reshape(-1))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed: apt-get install curl")
def test_curl_of_the_readme(words):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## A server") :]
    lines = next(text for tag, text in BLOCK.findall(section) if tag == "sh").splitlines(keepends=True)
    assert lines[:2] == ["pip install 'fastrnn[serve]'\n", "fastrnn serve words=examples/tone_words.onnx\n"]
    script = "".join(lines[2:]).replace(":8000", f":{words.http}")
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] == {"sequence_id": 42, "step_index": 0, "steps_done": 1}


def node():
    """The command of Node with WebSocket, or None."""
    found = shutil.which("node")
    for flags in ([], ["--experimental-websocket"]) if found else []:
        test = subprocess.run([found, *flags, "-e", "new WebSocket"], capture_output=True, text=True, timeout=60)
        if "bad option" not in test.stderr and "WebSocket is not defined" not in test.stderr:
            return [found, *flags]
    return None


def test_javascript(words):
    command = node()
    if command is None:
        pytest.skip("no Node with WebSocket: install Node 20.10 or later")
    stream, fetch = blocks("js", words)
    for text, wanted in ((stream, r"\[ \[ 0\.\d+, 0\.\d+, 0\.\d+ \] \]"), (fetch, r"\[ 0\.\d+, 0\.\d+, 0\.\d+ \]")):
        done = subprocess.run([*command, "--input-type=module", "-e", text], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(wanted, " ".join(done.stdout.split())), done.stdout
