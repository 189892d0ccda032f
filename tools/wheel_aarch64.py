"""A wheel for ARM64, cross-compiled on another machine and tried under qemu-user with an ARM64 Python.

The interpreter comes from Debian's arm64 packages and is unpacked into a folder, NumPy and the libraries of the tests
from their ARM64 wheels. The kernel tests then run as they do everywhere, on NEON and the baseline, and wheel_trial.py
runs a model. That takes ten minutes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from wheel_pythons import Missing, Python, extract, find

if TYPE_CHECKING:
    from build_wheels import Builder

RELEASE, VERSION = "bookworm", "3.11"  # of Debian, and its Python
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
BUILD = ["setuptools>=77", "Cython>=3.1", "numpy>=2.0"]
NEEDED = ["numpy", "onnx", "pytest>=8"]
# qemu can't start ARM64 programs for a program that it runs, so tests start interpreters through a script.
TESTS = """
import sys
sys.executable = sys.argv[1]
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/kernels"]))
"""


def build_and_try(builder: Builder) -> str:
    for program in (COMPILER, EMULATOR):
        if shutil.which(program) is None:
            raise Missing(f"{program} is not installed (Debian: gcc-aarch64-linux-gnu, qemu-user)")
    host = find(VERSION, builder.work, fetch=False)
    root = builder.work / "aarch64"
    if not (root / "usr" / "bin" / f"python{VERSION}").exists():
        packages = [f"python{VERSION}", f"libpython{VERSION}-dev", "libstdc++6", "zlib1g"]
        extract(root, RELEASE, packages, "arm64")
    wheel = builder.finish(build(builder, host, root), f".cpython-{VERSION.replace('.', '')}-aarch64-linux-gnu.so")
    python, site = environment(builder, root, wheel)
    sets = trial(builder, python, site, wheel)
    said = builder.run(python, "-P", "-c", TESTS, python, cwd=builder.source, PYTHONPATH=str(site))
    return (
        f"{wheel.name}  {wheel.stat().st_size / 1e6:.2f} MB, kernel tests on {', '.join(sets)}: {said.splitlines()[-1]}"
    )


def build(builder: Builder, host: Python, root: Path) -> Path:
    """Compile with a Python of this machine that believes what the ARM64 one knows about its compiler."""
    python = builder.environment(host.path, "cross")
    builder.pip(python, "install", "-q", *BUILD)
    data = builder.work / "sysconfig"
    data.mkdir(exist_ok=True)
    name = "_sysconfigdata__aarch64-linux-gnu"
    shutil.copy2(root / "usr" / "lib" / f"python{VERSION}" / f"{name}.py", data)
    include = root / "usr" / "include"
    raw = builder.work / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    builder.run(
        python, "setup.py", "-q", "build_ext", "-j", "2", "bdist_wheel", "--plat-name", "linux_aarch64", "-d", raw,
        cwd=builder.source,
        PYTHONPATH=str(data), _PYTHON_SYSCONFIGDATA_NAME=name, _PYTHON_HOST_PLATFORM="linux-aarch64",
        CFLAGS=f"-I{include / f'python{VERSION}'} -idirafter {include}",
    )  # fmt: skip
    return next(raw.glob("*.whl"))


def environment(builder: Builder, root: Path, wheel: Path) -> tuple[Path, Path]:
    """A script that runs the ARM64 Python, and the folder of its packages, the wheel among them."""
    python, site = builder.work / "python-aarch64", builder.work / "site-aarch64"
    python.write_text(
        f'#!/bin/sh\nexec {EMULATOR} -L "{root}" "{root}/usr/bin/python{VERSION}" "$@"\n', encoding="utf-8"
    )
    python.chmod(0o755)
    shutil.rmtree(site, ignore_errors=True)
    options = ["--target", site, "--python-version", VERSION, "--implementation", "cp", "--only-binary=:all:"]
    options += [word for platform in PLATFORMS for word in ("--platform", platform)]
    pip = [builder.bin / "python", "-m", "pip", "install", "-q", *options]
    builder.run(*pip, *NEEDED)
    builder.run(*pip, "--no-deps", wheel)
    return python, site


def trial(builder: Builder, python: Path, site: Path, wheel: Path) -> list[str]:
    """Convert a model and run it, on NEON and the baseline; the instruction sets."""
    folder = builder.work / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model, code = folder / "model.fastrnn", "import sys, fastrnn; fastrnn.load(sys.argv[1]).save(sys.argv[2])"
    example = builder.source / "examples" / "tone_words.onnx"
    builder.run(python, "-P", "-c", code, example, model, cwd=folder, PYTHONPATH=str(site))
    return builder.try_sets([str(python), "-P"], model, wheel, folder, PYTHONPATH=str(site))
