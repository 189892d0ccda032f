"""What `pip install` puts on a machine: no sources, no symbols, nothing of the machine that built it."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.any_isa
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
    assert {path.suffix for path in files} - {".py", ".pyc", ".pyi", ".pxd", ".so", ".typed"} == set()
    assert any(path.name == "_isa.pxd" for path in files)  # for others' Cython
    assert any(path.name == "py.typed" for path in files)


def test_the_extensions_are_stripped(files):
    """With debug information they are 16 MB."""
    assert sum(path.stat().st_size for path in files if path.suffix == ".so") < MOST_BYTES


def test_no_path_of_the_builder(files):
    try:
        for path in files:
            if path.suffix == ".so":
                text = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
                assert "RPATH" not in text
                assert "RUNPATH" not in text
    except FileNotFoundError:
        pytest.skip("readelf is not installed")
