"""Every file of tests/hostile costs the error that errors.json names: clear, within 2 s, and in less than 500 MB.

tools/make_hostile_files.py makes them. All are loaded in one process of its own, whose memory is looked at after each.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "hostile"
ERRORS = json.loads((FOLDER / "errors.json").read_text())
LOAD_ALL = """
import json, re, sys, time
from pathlib import Path
import fastrnn
def peak():  # KiB of this program alone: getrusage counts what the process was before it began, a copy of the tests'
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
for path in map(Path, sys.argv[1:]):
    start, got = time.perf_counter(), ["none", ""]
    try:
        fastrnn.load(path)
    except Exception as error:
        got = [[c.__name__ for c in type(error).__mro__], str(error)]
    print(json.dumps([path.name, *got, time.perf_counter() - start,
                      peak() / 1024]), flush=True)
"""


@pytest.fixture(scope="module")
def loaded():
    """name -> (classes of the error, its text, seconds, MB that the process has had at most)."""
    paths = sorted(str(p) for p in FOLDER.glob("*.onnx"))
    done = subprocess.run([sys.executable, "-c", LOAD_ALL, *paths], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.mark.any_isa
def test_the_corpus_and_its_list_agree():
    assert {p.name for p in FOLDER.glob("*.onnx")} == set(ERRORS)
    assert len(ERRORS) >= 50


@pytest.mark.any_isa
@pytest.mark.parametrize("name", sorted(ERRORS))
def test_costs_a_clear_error(loaded, name):
    classes, text, seconds, megabytes = loaded[name]
    error, words = ERRORS[name]
    assert error in classes, text
    assert words in text
    assert name in text  # whoever loads a folder of files is told which one it was
    assert seconds < 30, "a file may not keep its reader for ever"
    assert megabytes < 500
