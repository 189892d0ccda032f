"""Choosing a table: the best one, a forced one, one that can't be had; NEON under an emulator; the control word."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastrnn.errors import FastRNNError
from fastrnn.machine import _isa
from fastrnn.machine import _kernel_calls as calls

KERNELS = Path(_isa.__file__).parents[1] / "_kernels"
HERE = Path(__file__).parent
INFO = _isa.isa_info()


def python(code, **environ):
    """Run code in a fresh interpreter; (exit status, output)."""
    environ = {**os.environ, "PYTHONPATH": str(Path(_isa.__file__).parents[2]), **environ}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_active_set_is_the_expected_one():
    forced = os.environ.get("FASTRNN_ISA")
    assert INFO["active"] == (forced or INFO["available"][0])
    assert INFO["forced_by"] == ("FASTRNN_ISA" if forced else None)
    assert INFO["detected"] == INFO["available"][0]
    assert set(INFO["available"]) <= set(INFO["compiled"])
    assert INFO["available"][-1] == "baseline"
    assert INFO["lanes"] == {"avx512": 16, "avx2": 8, "neon": 4, "baseline": 4}[INFO["active"]]


def test_detection_agrees_with_the_operating_system():
    path = Path("/proc/cpuinfo")
    if not path.exists() or "avx2" not in INFO["compiled"]:
        pytest.skip("needs Linux on x86-64")
    flags = set(next(line for line in path.read_text().splitlines() if line.startswith("flags")).split())
    assert ("avx2" in INFO["available"]) == ({"avx2", "fma"} <= flags)
    wide = {"avx2", "fma", "avx512f", "avx512vl", "avx512bw", "avx512dq"}
    assert ("avx512" in INFO["available"]) == (wide <= flags)


@pytest.mark.parametrize("isa", INFO["available"])
def test_forcing_a_set(isa):
    code = "from fastrnn import _isa; print(_isa.isa_info()['active'], _isa.isa_info()['forced_by'])"
    assert python(code, FASTRNN_ISA=isa) == (0, f"{isa} FASTRNN_ISA\n")


def test_forcing_what_is_not_there_is_an_error_that_names_what_is():
    status, text = python("import fastrnn.machine._isa", FASTRNN_ISA="sse9")
    assert status == 1
    assert "FastRNNError: FASTRNN_ISA asks for 'sse9': no such instruction set in this build; available: " in text
    assert text.rstrip().endswith("baseline")


def test_an_unknown_name_is_an_error():
    with pytest.raises(FastRNNError, match="isa asks for 'mmx'"):
        calls.map_function("exp", np.zeros(3, np.float32), isa="mmx")


def test_denormals_are_flushed_inside_and_kept_outside():
    x = np.full(4, 1e-38, np.float32)
    for isa in INFO["available"]:
        assert calls.map_function("affine", x, 0.01, 0.0, isa=isa).tolist() == [0.0] * 4
        assert np.all(x * np.float32(0.01) > 0), f"{isa} left the control word changed"


def test_functions_share_their_order_with_the_header():
    text = (KERNELS / "frnn.h").read_text()
    body = text[text.index("enum frnn_fn {") : text.index("FRNN_FN_COUNT")]
    names = [word.strip().removeprefix("FRNN_").lower() for line in body.splitlines() if "FRNN_" in line
             for word in line.split(",") if word.strip().startswith("FRNN_")]  # fmt: skip
    assert tuple(names) == _isa.functions()


def test_neon_agrees_with_baseline(tmp_path):
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("needs aarch64-linux-gnu-gcc and qemu-aarch64")
    sources = [KERNELS / name for name in ("kernels_neon.c", "kernels_baseline.c", "dispatch.c")]
    program = tmp_path / "check"
    flags = ["-std=c99", "-O2", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror", "-static"]
    command = [
        compiler,
        *flags,
        f"-I{KERNELS}",
        *map(str, sources),
        str(HERE / "neon_check.c"),
        "-lm",
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)
    done = subprocess.run([emulator, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_baseline_compiles_without_any_vector_instructions(tmp_path):
    """As on a CPU that is neither x86 nor ARM: only the plain C words are left (NEON's check runs them)."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    flags = ["-std=c99", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-U__SSE2__"]
    source, target = KERNELS / "kernels_baseline.c", tmp_path / "out.o"
    subprocess.run([compiler, *flags, "-c", str(source), "-o", str(target)], check=True)
    assert target.stat().st_size > 0
