"""What `pip install` puts on a machine: no sources, no symbols, nothing of the machine that built it."""

import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import wheel_checks

pytestmark = pytest.mark.any_isa
PAGE = Path(__file__).resolve().parent.parent / "fastrnn" / "serving" / "server" / "page"  # the live page
MOST_BYTES = 5_000_000  # of the extensions on disk; the wheel compresses them to 2 MB


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """The files of the distribution in FASTRNN_SITE_PACKAGES (.ci/run names the environment of the README's first
    command, which installs a wheel), or of the one that is installed here."""
    where = os.environ.get("FASTRNN_SITE_PACKAGES")
    every = metadata.distributions(name="fastrnn", path=[where] if where else sys.path)
    found = [file for distribution in every for file in distribution.files or ()]
    paths = [Path(str(file.locate())) for file in found if str(file).startswith("fastrnn/")]
    if not any(path.suffix == ".so" for path in paths):
        assert not where, f"no fastrnn with extensions in {where}"
        pytest.skip("fastrnn is not installed from a wheel here")
    return paths


def test_there_are_no_sources(files):
    odd = [path for path in files if path.suffix not in {".py", ".pyc", ".pyi", ".pxd", ".so", ".typed"}]
    page = {path.name for path in odd if path.parent.name == "page"}
    assert [path.name for path in odd if not path.name.startswith("LICENSE") and path.parent.name != "page"] == []
    assert page == {path.name for path in PAGE.iterdir()}
    assert any(path.name == "_isa.pxd" for path in files)  # for others' Cython
    assert any(path.name == "py.typed" for path in files)


def test_the_extensions_are_stripped(files):
    """With debug information they are 16 MB."""
    assert sum(path.stat().st_size for path in files if path.suffix == ".so") < MOST_BYTES


def test_the_extensions_need_python_and_an_old_glibc(files):
    """No folder of the builder, no other library, no function that came with a glibc later than 2.28."""
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    wrong = {path.name: wheel_checks.wrong_with_symbols(path) for path in files if path.suffix == ".so"}
    assert {name: found for name, found in wrong.items() if found} == {}
