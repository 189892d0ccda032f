"""Imports point down: the checker agrees with this tree, and complains of each kind of wrong arrow."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def layers():
    spec = importlib.util.spec_from_file_location("check_layers", ROOT / "tools" / "check_layers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_imports_point_down(layers):
    assert layers.check(ROOT / "fastrnn") == []


def test_every_level_is_in_use(layers):
    """A name that no longer exists leaves the table, or the table stops being a map."""
    package = ROOT / "fastrnn"
    files = (path for suffix in ("*.py", "*.pyx", "*.pxd") for path in package.rglob(suffix))
    found = {path.relative_to(package).with_suffix("").parts[0] for path in files}
    assert set(layers.LEVELS) - found == set()


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("graph.py", "from .model import Model", "graph (level 1) imports model (level 6)"),
        ("graph.py", "import fastrnn", "graph (level 1) imports __init__ (level 9)"),
        ("graph.py", "from fastrnn import plan", "graph (level 1) imports plan (level 3)"),
        ("graph.py", "def f():\n    from . import plan", "graph (level 1) imports plan (level 3)"),
        ("importers/keras.py", "from .torch import read", "importer keras imports importer torch"),
        ("importers/onnx/reader.py", "from ..torch import read", "importer onnx imports importer torch"),
        ("importers/onnx/reader.py", "from ...stream import Stream", "importers (level 2) imports stream (level 5)"),
        ("model.py", "import onnx", "model imports onnx; allowed in: bench, importers, onnx_backend"),
        ("model.py", "import keras", "model imports keras; allowed in: verification_keras"),
        ("model.py", "import pandas as pd", "model imports pandas, which has no entry in FOREIGN"),
        ("cli/inspect.py", "from ..graph import Graph", "cli uses the public package alone"),
        ("cli/inspect.py", "from fastrnn.model import Model", "cli uses the public package alone"),
        ("new.py", "", "module new has no level"),
        ("_executor.pyx", "from .stream cimport Stream", "_executor (level 4) imports stream (level 5)"),
        ("_executor.pyx", "from . cimport model, _isa", "_executor (level 4) imports model (level 6)"),
    ],
)
def test_wrong_arrows_are_found(layers, tmp_path, module, line, complaint):
    package = tmp_path / "fastrnn"
    (package / "importers").mkdir(parents=True)
    (package / "importers" / "torch.py").write_text("")
    path = package / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n")
    problems = layers.check(package)
    assert len(problems) == 1, problems
    assert complaint in problems[0]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("model.py", "import numpy as np\nfrom .graph import Graph\nfrom . import stream"),
        ("importers/onnx/reader.py", "import onnx\nfrom . import symbols\nfrom ...graph import Graph"),
        ("importers/__init__.py", "from . import torch"),
        ("stream.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .model import Model"),
        ("cli/inspect.py", "import fastrnn\nfrom .output import table\nfrom fastrnn import FastRNNError"),
        ("_executor.pyx", "cimport cython\nfrom libc.stdint cimport int64_t\nfrom ._isa cimport active_kernels"),
    ],
)
def test_right_arrows_pass(layers, tmp_path, module, line):
    package = tmp_path / "fastrnn"
    (package / "importers").mkdir(parents=True)
    (package / "importers" / "torch.py").write_text("")
    path = package / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n")
    assert layers.check(package) == []


def test_the_command_reports_and_exits(layers, tmp_path, capsys):
    package = tmp_path / "fastrnn"
    package.mkdir()
    (package / "errors.py").write_text("from .graph import Graph\n")
    assert layers.main(["check_layers.py", str(package)]) == 1
    assert "errors.py:1: errors (level 0) imports graph (level 1)" in capsys.readouterr().out
    (package / "errors.py").write_text("")
    assert layers.main(["check_layers.py", str(package)]) == 0
