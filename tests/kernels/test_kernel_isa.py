"""Choosing a table: the best one, a forced one, one that can't be had; NEON under an emulator; the control word."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastrnn.errors import FastRNNError
from fastrnn.graph.cells import CellSpec
from fastrnn.machine import _isa
from fastrnn.machine import _kernel_calls as calls

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "fastrnn" / "_kernels"  # an installed package has no sources
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
    assert INFO["lanes"] == {"avx512": 16, "avx2": 8, "neon": 4, "baseline": 4}[_isa.kernels_of()]


def test_detection_agrees_with_the_operating_system():
    path = Path("/proc/cpuinfo")
    if not path.exists() or "avx2" not in INFO["compiled"]:
        pytest.skip("needs Linux on x86-64")
    flags = set(next(line for line in path.read_text().splitlines() if line.startswith("flags")).split())
    assert ("avx2" in INFO["available"]) == ({"avx2", "fma"} <= flags)
    wide = {"avx2", "fma", "avx512f", "avx512vl", "avx512bw", "avx512dq"}
    assert ("avx512" in INFO["available"]) == (wide <= flags)
    assert ("avx512_vnni" in INFO["available"]) == (wide | {"avx512_vnni"} <= flags)
    assert ("avx_vnni" in INFO["available"]) == ({"avx2", "fma", "avx_vnni"} <= flags)
    # Linux lists AMX if it saves tiles, but may still refuse them to a process
    tiles = wide | {"avx512_vnni", "amx_tile", "amx_bf16", "amx_int8"} <= flags
    assert ("amx" in INFO["available"]) == (tiles and INFO["refusal"] == 0)


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
    sources = [
        KERNELS / name
        for name in (
            "kernels_neon.c",
            "kernels_emulated_4.c",
            "kernels_baseline.c",
            "dispatch.c",
            "tile_unit.c",
            "tile_emulated.c",
        )
    ]
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
    if INFO["available"][0] != "baseline":  # it has no fused operation, and other bits
        assert done.stdout.split()[-1] == hash_rounded(INFO["available"][0])


class Numbers:
    """The numbers of neon_check.c."""

    def __init__(self):
        self.seed = 1

    def __call__(self, *shape):
        found = np.empty(int(np.prod(shape)), np.uint32)
        for i in range(len(found)):
            self.seed = (self.seed * 1664525 + 1013904223) % (1 << 32)
            found[i] = self.seed >> 8
        values = (found.astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)) * np.float32(0.8)
        return values.reshape(shape)


def hash_rounded(isa):
    """As the function of neon_check.c: a hash of the answers of every form and format of reduced precision."""
    numbers, found = Numbers(), 14695981039346656037
    forms = [("lstm", False), ("lstm", True), ("gru", False), ("gru", True), ("rnn", False)]
    for format in _isa.number_formats(isa)[1:]:
        for (kind, other), H in itertools.product(forms, (1, 5, 16, 33, 70)):
            spec = CellSpec(kind, 37, H, linear_before_reset=kind == "gru" and other)
            arrays = [numbers(4 * H, 37), numbers(4 * H, H), numbers(4 * H), numbers(4 * H), numbers(3 * H)]
            x, h, c, _, _ = numbers(13, 37), numbers(13, H), numbers(13, H), numbers(13, H), numbers(13, H)
            used = [a[: spec.gates * H] for a in arrays[:4]] + [arrays[4] if kind == "lstm" and other else None]
            packed = _isa.pack_cell(spec, *map(ascontiguous, used), isa=isa, weights=format)
            y = calls.cell_step(packed, x, h, c if kind == "lstm" else None)
            for byte in y.tobytes():
                found = (found ^ byte) * 1099511628211 % (1 << 64)
    return f"{found:016x}"


def ascontiguous(array):
    return None if array is None else np.ascontiguousarray(array)


@pytest.mark.parametrize("isa", INFO["available"][1:-1])
def test_reduced_precision_has_one_hash(isa):
    assert hash_rounded(isa) == hash_rounded(INFO["available"][0])


def test_baseline_compiles_without_any_vector_instructions(tmp_path):
    """As on a CPU that is neither x86 nor ARM: only the plain C words are left (NEON's check runs them)."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    flags = ["-std=c99", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-U__SSE2__"]
    source, target = KERNELS / "kernels_baseline.c", tmp_path / "out.o"
    subprocess.run([compiler, *flags, "-c", str(source), "-o", str(target)], check=True)
    assert target.stat().st_size > 0
