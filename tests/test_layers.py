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


def test_the_table_is_the_code(layers):
    """A package or an arrow that no longer exists leaves the table, or the table stops being a map."""
    assert {name: " ".join(below) for name, below in layers.arrows(ROOT / "fastrnn").items()} == layers.ARROWS
    places = {name: ROOT / "fastrnn" / name for name in layers.TOP}
    assert {n for n, place in places.items() if not (place.is_dir() or place.with_suffix(".py").exists())} == set()


def test_every_arrow_of_the_table_points_down(layers):
    """So there is no circle: a package imports only those that stand before it."""
    above: set[str] = set()
    for name, below in layers.ARROWS.items():
        assert set(below.split()) <= above, name
        above.add(name)


def test_the_picture_in_hacking_is_what_the_code_says(layers):
    text = (ROOT / "HACKING.md").read_text(encoding="utf-8")
    picture = "".join(f"    {line}\n" for line in layers.show(ROOT / "fastrnn").splitlines())
    assert f"\n\n{picture}\n" in text, "HACKING.md must hold what `python tools/check_layers.py --arrows` prints"


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("graph/types.py", "from ..model import Model", "graph imports model; it may import: errors, records, machine"),
        ("graph/types.py", "import fastrnn", "graph imports fastrnn; it may import: errors, records, machine"),
        (
            "graph/types.py",
            "from fastrnn import compile",
            "graph imports compile; it may import: errors, records, machine",
        ),
        ("graph/types.py", "def f():\n    from ..compile import plan", "graph imports compile; it may import"),
        ("errors.py", "from .graph import Graph", "errors imports graph; it may import: nothing"),
        ("serving/stream.py", "from ..compile.plan import Plan", "serving imports compile; it may import"),
        ("importers/keras.py", "from .torch import read", "importer keras imports importer torch"),
        ("importers/onnx/reader.py", "from ..torch import read", "importer onnx imports importer torch"),
        ("importers/shared/names.py", "from ..torch import read", "importer shared imports importer torch"),
        ("importers/onnx/reader.py", "from ...serving.stream import Stream", "importers imports serving"),
        ("model.py", "import onnx", "model imports onnx; allowed in: bench, importers, insight"),
        ("model.py", "import keras", "model imports keras; allowed in: insight.verification.engine_keras"),
        (
            "insight/limits.py",
            "import keras",
            "insight.limits imports keras; allowed in: insight.verification.engine_keras",
        ),
        ("model.py", "import pandas as pd", "model imports pandas, which has no entry in FOREIGN"),
        ("cli/inspect.py", "from ..graph import Graph", "cli uses the public package alone"),
        ("cli/inspect.py", "from fastrnn.model import Model", "cli uses the public package alone"),
        ("new.py", "", "new is in no package"),
        ("runtime/_executor.pyx", "from ..serving._pool cimport Pool", "runtime imports serving"),
        ("runtime/_executor.pyx", "from .. cimport model, machine", "runtime imports model"),
        ("runtime/_loop.pxi", "from fastrnn.serving._pool cimport Pool", "runtime imports serving"),
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
        ("model.py", "import numpy as np\nfrom .graph import Graph\nfrom .serving import stream"),
        ("importers/onnx/reader.py", "import onnx\nfrom . import symbols\nfrom ...graph import Graph"),
        ("importers/onnx/reader.py", "from ..shared.builder import GraphWriter"),
        ("importers/__init__.py", "from . import torch"),
        ("serving/stream.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..model import Model"),
        ("cli/inspect.py", "import fastrnn\nfrom .output import table\nfrom fastrnn import FastRNNError"),
        ("runtime/_executor.pyx", "cimport cython\nfrom libc.stdint cimport int64_t\nfrom ._timing cimport walk"),
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


def test_a_circle_of_modules_is_found(layers, tmp_path):
    package = tmp_path / "fastrnn"
    (package / "graph").mkdir(parents=True)
    (package / "graph" / "__init__.py").write_text("from .types import Graph\n")
    (package / "graph" / "types.py").write_text("from . import shapes\n")
    (package / "graph" / "shapes.py").write_text("def rule():\n    from .types import Value\n")
    (problem,) = layers.check(package)
    assert problem.startswith("modules import each other in a circle: ")
    assert {"graph.types", "graph.shapes"} <= set(problem.split(": ")[1].split(" -> "))
    (package / "graph" / "shapes.py").write_text("")
    assert layers.check(package) == []


def test_the_command_reports_and_exits(layers, tmp_path, capsys):
    package = tmp_path / "fastrnn"
    package.mkdir()
    (package / "errors.py").write_text("from .graph import Graph\n")
    assert layers.main(["check_layers.py", str(package)]) == 1
    assert "errors.py:1: errors imports graph; it may import: nothing" in capsys.readouterr().out
    (package / "errors.py").write_text("")
    assert layers.main(["check_layers.py", str(package)]) == 0
    assert layers.main(["check_layers.py", "--arrows", str(package)]) == 0
    assert capsys.readouterr().out.endswith("errors\n")


def test_arrows_are_read_from_the_code(layers, tmp_path):
    package = tmp_path / "fastrnn"
    (package / "runtime").mkdir(parents=True)
    (package / "errors.py").write_text("")
    (package / "runtime" / "_ops.pyx").write_text(
        "from fastrnn.machine._isa cimport walk\nfrom ..errors import ShapeError\n"
    )
    assert layers.arrows(package) == {"errors": [], "runtime": ["errors", "machine"]}
    assert layers.show(package) == "errors\nruntime  -> errors machine\n"
