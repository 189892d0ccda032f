"""The package as others see it: metadata, README, and what is shipped."""

import ast
import re
import sys
from pathlib import Path

import pytest

import fastrnn

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_one_version_everywhere(project):
    version = project["project"]["version"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {version}" in changes or "## Unreleased" in changes
    if fastrnn.__version__ == "0+unknown":
        pytest.skip("run from a tree that is not installed")
    assert fastrnn.__version__ == version


def test_torch_is_pinned(project):
    """Any other request for torch would bring its CUDA build."""
    extras = project["project"]["optional-dependencies"]
    wanted = [line for lines in extras.values() for line in lines if line.startswith("torch")]
    assert wanted
    assert all(re.match(r"torch==[\d.]+$", line) for line in wanted)


def test_services_need_little(project):
    names = {re.match(r"[\w-]+", line)[0] for line in project["project"]["dependencies"]}
    assert names == {"numpy", "onnx", "h5py", "rich"}


@pytest.mark.parametrize("name", ["try", "test"])
def test_readme_commands_are_one_line_each(name):
    block = re.search(rf"<!-- command: {name} -->\n```sh\n(.*?)\n```\n", README, re.DOTALL)
    assert block is not None
    assert "\n" not in block[1]
    assert ".venv/bin/pip install" in block[1]


def test_readme_convinces_in_thirty_seconds():
    """Two sentences, a picture, at most ten lines of code, and how to install."""
    said, picture, rest = re.split(r"^(!\[.*\]\(.*\))$", README.split("## ")[0], maxsplit=1, flags=re.MULTILINE)
    words = said.split("\n", 2)[2].strip()
    assert len(re.findall(r"\.(?:\s|$)", words)) == 2, words
    assert len(words) < 500
    assert (ROOT / re.search(r"\((.*)\)", picture)[1]).is_file()
    (code,) = re.findall(r"```python\n(.*?)```", rest, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 10
    assert re.findall(r"^## (.*)$", README, re.MULTILINE)[0] == "Install"


def test_readme_names_only_what_is_there():
    """Every fastrnn.name that README's Python blocks use exists."""
    used = set()
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        used |= set(re.findall(r"fastrnn\.([A-Za-z_]+)", re.sub(r'"[^"]*"', "", block)))
    assert used
    assert {name for name in used if not hasattr(fastrnn, name)} == set()


def test_readme_files_exist():
    for path in re.findall(r"\b(?:examples|docs|tools)/[\w./-]+\.\w+", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([^)#]*)[^)]*\)", README):
        assert (ROOT / path).exists(), path


def test_types_are_shipped():
    assert (ROOT / "fastrnn" / "py.typed").exists()
    for source in (ROOT / "fastrnn").rglob("*.pyx"):
        assert source.with_suffix(".pyi").exists(), f"{source.name} has no stub"


def own_files():
    """Sources of the project, without what Cython makes."""
    made = {p.with_suffix(".c") for p in (ROOT / "fastrnn").rglob("*.pyx")}
    for folder in ("fastrnn", "tools", "tests", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".pyx", ".c", ".h", ".pyi"} and path not in made:
                yield path


def test_no_file_is_too_long():
    """450 lines can be read in one sitting; tables of cases are looked up instead."""
    for path in own_files():
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 450 or path.parent.name == "cases", f"{path.relative_to(ROOT)} has {lines} lines"


def test_modules_of_tests_have_names_of_their_own():
    """They are in no packages, so pytest can't collect two of one name in one run."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_no_function_is_too_long():
    """60 lines, docstring included; ruff holds its branches to 20."""
    for path in own_files():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 60, f"{path.relative_to(ROOT)}: {node.name} has {lines} lines"


@pytest.mark.parametrize("flag", ["strict", "thaw", "allow_torch", "float64_as_float32"])
@pytest.mark.parametrize("value", ["no", 0, None])
def test_a_flag_that_is_no_bool_is_refused(flag, value):
    with pytest.raises(fastrnn.ModelFormatError, match=f"{flag} must be True or False, got {value!r}"):
        fastrnn.load(b"", **{flag: value})


def test_an_extra_can_be_read_without_a_library():
    """As .ci/run does for the programs of tests/clients."""
    import subprocess

    command = [sys.executable, str(ROOT / "tools" / "requirements_of.py"), "clients"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["optional-dependencies"]["clients"]
    assert lines == [entry for entry in wanted if not entry.startswith("fastrnn")]
    assert any(line.startswith("silero-vad==") for line in lines)
