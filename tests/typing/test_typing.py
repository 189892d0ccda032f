"""Strict type checkers accept code that uses the public API, and the stubs of compiled modules are true."""

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastrnn
from fastrnn import aio, metrics, report

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parents[2]
CODE = Path(__file__).with_name("public_face.py")

# Compiled modules, each with a stub.
COMPILED = sorted(".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "fastrnn").rglob("*.pyi"))
# Classes that take their arguments in `__cinit__` have no signature at run time.
ALLOWED = r"""
fastrnn\.machine\._roofline\.Reader\.__init__
fastrnn\.machine\._roofline\.StepTimer\.__init__
fastrnn\.runtime\._executor\.Program\.__init__
fastrnn\.runtime\._meter\.Meter\.__init__
fastrnn\.runtime\._slab\.SlabCore\.__init__
fastrnn\.runtime\._timing\.OpTimer\.__init__
"""
CLASSES = [
    fastrnn.Model,
    fastrnn.SelectedModel,
    fastrnn.Stream,
    fastrnn.StreamPool,
    fastrnn.VerifyReport,
    fastrnn.Profile,
    fastrnn.Analysis,
    fastrnn.CpuInfo,
    fastrnn.Description,
    aio.Batcher,
]
# What belongs to the implementation: counters and tables that only fastrnn reads.
INTERNAL = {f"SlotCore.{name}" for name in ("ended", "still", "opened", "slab")} | {"PoolCore.meter"}
INTERNAL |= {f"StreamCore.{name}" for name in ("ended", "still", "batch", "slab")} | {"SlabCore.program"}


def run(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_mypy_strict():
    pytest.importorskip("mypy")
    done = run(sys.executable, "-m", "mypy", "--strict", str(CODE))
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_strict(tmp_path):
    """basedpyright is pyright in a wheel that needs no download at its first run."""
    found = shutil.which("basedpyright", path=Path(sys.executable).parent) or shutil.which("basedpyright")
    if found is None:
        pytest.skip("basedpyright is not installed: pip install 'fastrnn[test]'")
    config = tmp_path / "pyrightconfig.json"
    config.write_text(
        f'{{"include": ["{CODE}"], "extraPaths": ["{ROOT}"], "typeCheckingMode": "strict", "pythonVersion": "3.11"}}'
    )
    done = run(found, "-p", str(config), "--pythonpath", sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors, 0 warnings" in done.stdout


def test_a_mistake_is_found(tmp_path):
    """The checks can fail: types are not Any all the way."""
    pytest.importorskip("mypy")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import fastrnn\nmodel = fastrnn.load('m.onnx')\n"
        "a: str = model.stream().push([[1.0]])\n"
        "b: str = model.stream().flush()\n"
        "c: str = model.pool().step([1], [[1.0]])\n"
        "d: str = model([[1.0]])\n"
        "model.run([1.0], lengths='no')\n"
    )
    done = run(sys.executable, "-m", "mypy", "--strict", str(wrong))
    assert [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line] == ["3", "4", "5", "6", "7"]


def public_members():
    """Class.name of each public method and attribute that a class of the API defines or inherits from fastrnn."""
    for cls in CLASSES:
        for name in dir(cls):
            owner = next((base for base in cls.__mro__ if name in vars(base)), None)
            if owner is None or name.startswith("_") or not owner.__module__.startswith("fastrnn"):
                continue
            if f"{owner.__name__}.{name}" not in INTERNAL:
                yield cls, name


def test_every_public_name_is_used():
    text = CODE.read_text(encoding="utf-8")
    missing = [f"{cls.__name__}.{name}" for cls, name in public_members() if not re.search(rf"\.{name}\b", text)]
    modules = {"report": ("draw", "write_profile", "write_analysis"), "metrics": metrics.__all__}
    names = [f"fastrnn.{name}" for name in fastrnn.__all__ if name not in OTHER]
    names += [f"{module}.{name}" for module, those in modules.items() for name in those]
    missing += [name for name in names if not re.search(rf"\b{name}\b", text)]
    assert missing == []
    assert inspect.ismodule(report)


OTHER = {"onnx_backend", "aio"}  # onnx itself has no types; aio's names are imported


def test_stubs_are_true(tmp_path):
    """Names, signatures and kinds of what compiled modules hold."""
    pytest.importorskip("mypy")
    allowed = tmp_path / "allowed.txt"
    allowed.write_text(ALLOWED)
    options = [
        "--mypy-config-file",
        "pyproject.toml",
        "--allowlist",
        str(allowed),
        "--ignore-missing-stub",
        "--ignore-disjoint-bases",
    ]
    done = run(sys.executable, "-m", "mypy.stubtest", *options, *COMPILED)
    assert done.returncode == 0, done.stdout + done.stderr
