"""The documentation: every Python block and every `fastrnn` line of every page runs, and the site builds without a
warning. A page's blocks run in order, in one namespace, in an empty folder with the example model in it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from fastrnn import cli

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [*sorted((DOCS / "guide").glob("*.md")), DOCS / "file_format.md", DOCS / "extending.md"]
# Pages whose Python needs a library that not everyone has.
NEEDS = {
    "pytorch.md": ("torch",),
    "keras.md": ("keras",),
    "attention.md": ("torch",),
    "monitoring.md": ("prometheus_client", "opentelemetry"),
}


def blocks(page, kind):
    return [text for tag, text in BLOCK.findall(page.read_text(encoding="utf-8")) if tag == kind]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "tone_words.onnx", tmp_path / "examples")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((80, 20)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page, folder, capsys):
    found = blocks(page, "python")
    if not found:
        pytest.skip("this page has no Python")
    for library in NEEDS.get(page.name, ()):
        pytest.importorskip(library)
    space = {"__name__": "__main__"}
    for i, text in enumerate(found, 1):
        code = compile(text, f"{page.name}, Python block {i}", "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that a page shows
            exec(code, space)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_run(page, folder, capsys):
    lines = [line for text in blocks(page, "sh") for line in text.splitlines() if line.startswith("fastrnn ")]
    if not lines:
        pytest.skip("this page has no commands")
    for line in lines:
        assert cli.main(shlex.split(line, comments=True)[1:]) == 0, line


def test_there_are_pages():
    assert {p.name for p in PAGES} >= {
        "getting_started.md", "onnx.md", "performance.md", "robustness.md", "file_format.md", "extending.md",
    }  # fmt: skip


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="sphinx is not installed")
    pytest.importorskip("furo", reason="furo is not installed")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        tmp_path / "trees",
        DOCS,
        tmp_path / "site",
    ]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, timeout=180,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for page in ("index.html", "performance.html", *(str(p.relative_to(DOCS).with_suffix(".html")) for p in PAGES)):
        assert (tmp_path / "site" / page).is_file()
    index = (tmp_path / "site" / "index.html").read_text()
    for page in PAGES:
        address = str(page.relative_to(DOCS).with_suffix(".html"))
        assert address in index, f"{page.name} is in no table of contents of docs/index.md"
