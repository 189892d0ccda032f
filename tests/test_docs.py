"""The documentation: every Python block and every `fastrnn` line of every page runs, and the site builds without a
warning. A page's blocks run in order, in one namespace, in an empty folder with the example model in it."""

import html
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

import fastrnn
from fastrnn import aio, cli, onnx_backend
from fastrnn.cli.main import COMMANDS

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDERS = ("guide", "coming_from")
PAGES = [
    *(page for folder in FOLDERS for page in sorted((DOCS / folder).glob("*.md"))),
    *(DOCS / f"{name}.md" for name in ("index", "file_format", "extending")),
]


def address(page):
    """The path of a page in docs/."""
    return os.path.relpath(page, DOCS)


# Pages whose Python needs a library that not everyone has.
NEEDS = {
    "guide/pytorch.md": ("torch",),
    "coming_from/pytorch.md": ("torch",),
    "coming_from/keras.md": ("keras",),
    "coming_from/silero_vad.md": ("silero_vad", "torch"),
    "guide/keras.md": ("keras",),
    "guide/attention.md": ("torch",),
    "guide/serving.md": ("uvicorn", "grpc"),
    "guide/monitoring.md": ("prometheus_client", "opentelemetry"),
}
# Pages whose Python runs in a process of its own: after `install()`, this one would have no onnxruntime.
REPLACES_MODULES = {"coming_from/silero_vad.md"}


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


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=address)
def test_python_blocks_run(page, folder, capsys):
    found = blocks(page, "python")
    if not found:
        pytest.skip("this page has no Python")
    for library in NEEDS.get(address(page), ()):
        pytest.importorskip(library)
    if address(page) in REPLACES_MODULES:
        script = "\n".join(found)
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env=env)
        assert done.returncode == 0, done.stderr
        return
    space = {"__name__": "__main__"}
    for i, text in enumerate(found, 1):
        code = compile(text, f"{page.name}, Python block {i}", "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that a page shows
            exec(code, space)


@pytest.mark.parametrize("page", PAGES, ids=address)
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


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a warning is an error."""
    pytest.importorskip("sphinx", reason="sphinx is not installed")
    pytest.importorskip("furo", reason="furo is not installed")
    made = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", made / "trees", DOCS, made / "site"]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, timeout=300,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return made / "site"


def test_the_site_has_every_page(site):
    addresses = [str(p.relative_to(DOCS).with_suffix(".html")) for p in PAGES]
    for page in ("performance.html", "commands.html", "changelog.html", "security.html", *addresses):
        assert (site / page).is_file()
        if page != "index.html":
            assert page in (site / "index.html").read_text(), f"{page} is in no table of contents of docs/index.md"


PUBLIC_CLASSES = {
    "fastrnn.Model": fastrnn.Model,
    "fastrnn.Stream": fastrnn.Stream,
    "fastrnn.StreamPool": fastrnn.StreamPool,
    "fastrnn.aio.Batcher": aio.Batcher,
    "fastrnn.InferenceSession": fastrnn.InferenceSession,
    "fastrnn.VerifyReport": fastrnn.VerifyReport,
    "fastrnn.Profile": fastrnn.Profile,
    "fastrnn.Analysis": fastrnn.Analysis,
}


def test_the_index_holds_every_public_name(site):
    """A name that is missing here belongs into a page of docs/api."""
    index = set(re.findall(r'href="api/\w+\.html#(?:module-)?([\w.]+)"', (site / "genindex.html").read_text()))
    names = {f"fastrnn.{name}" for name in fastrnn.__all__}
    names |= {
        "fastrnn.aio.QueueFullError",
        "fastrnn.errors",
        "fastrnn.metrics.register",
        "fastrnn.threadpools.register",
    }
    names |= {f"fastrnn.onnx_backend.{name}" for name in onnx_backend.__all__}
    for name, kind in PUBLIC_CLASSES.items():
        members = (m for m in dir(kind) if not m.startswith("_") and getattr(getattr(kind, m), "__doc__", None))
        names |= {name, *(f"{name}.{m}" for m in members if callable(getattr(kind, m)))}
    assert sorted(names - index) == []


def test_docstrings_are_shown_by_section(site):
    text = (site / "api" / "models.html").read_text()
    assert '<p class="rubric">Parameters</p>' in text
    raised = re.search(r'<p class="rubric">Raises</p>\s*<dl.*?</dl>', text, re.DOTALL)
    assert raised is not None
    assert "errors.html#fastrnn.ModelFormatError" in raised[0]
    assert "<p>damaged, hostile" in raised[0]
    streams = (site / "api" / "streams.html").read_text()
    assert 'id="fastrnn.Stream"' in streams
    assert "core" not in re.search(r'id="fastrnn.Stream">.*?</dt>', streams, re.DOTALL)[0]  # callers don't make streams
    for page in (site / "api").glob("*.html"):
        assert "-----" not in re.sub(r"<(script|style).*?</\1>", "", page.read_text(), flags=re.DOTALL), page


def test_the_commands_page_shows_the_help_of_each(site, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "88")  # as the page has it: argparse breaks lines after hyphens too
    page = html.unescape(re.sub(r"<[^>]*>", "", (site / "commands.html").read_text()))
    for name, (_, summary) in COMMANDS.items():
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        words = " ".join(capsys.readouterr().out.split())
        assert words in " ".join(page.split()), name
        assert summary[1:] in page


def test_the_commands_page_has_every_variable_of_the_environment():
    code = "".join(p.read_text() for kind in ("*.py", "*.pyx") for p in (ROOT / "fastrnn").rglob(kind))
    names = set(re.findall(r"\bFASTRNN_[A-Z_]+\b", code)) - {"FASTRNN_"}
    page = (DOCS / "commands.md").read_text()
    assert {"FASTRNN_ISA", "FASTRNN_THREADS"} <= names
    assert {name for name in names if f"`{name}" not in page} == set()
