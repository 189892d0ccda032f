"""Products on a tile unit, real or emulated: the bits of vectors at every size, row and height; what a unit rejects;
nothing stays configured."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_kernel_cells import run, same
from test_kernel_rounded import FORMATS, FUSED, Rounded
from tile_way import emulated_state

from fastrnn.machine import _isa
from fastrnn.machine import _kernel_calls as calls

INFO = _isa.isa_info()
EMULATED = INFO["emulated"]
TILED = tuple(isa for isa in INFO["available"] if isa == "amx") + EMULATED
VECTORS = next((isa for isa in FUSED if isa not in TILED), None)
FORMS = ["rnn", "lstm", "lstm peephole", "gru after", "gru before", "lstm other"]
pytestmark = pytest.mark.skipif(not TILED, reason="needs an instruction set that fuses multiply and add")
KERNELS = Path(__file__).parents[2] / "fastrnn" / "_kernels"


@pytest.mark.parametrize("isa", TILED)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("form", FORMS)
def test_every_size_has_the_bits_of_vectors(form, format, isa):
    """Hidden sizes and inputs of 0 to 3 tiles and one element."""
    lanes, terms = 16, {"bfloat16": 32}.get(format, 64)
    sizes = {1, lanes - 1, lanes, lanes + 1, 2 * lanes, 3 * lanes + 1, terms, terms + 1, 3 * terms + 1}
    for H, I in itertools.product(sorted(sizes), (1, terms - 1, terms, 3 * terms + 1)):  # noqa: E741
        layer = Rounded(form, I, H, format)
        x, h, c = layer.rows(1 + (H + I) % 19)
        before = emulated_state()[1]
        answer = run(layer.pack(isa), x, h, c)
        assert not emulated_state()[0]
        assert isa not in EMULATED or H < lanes or emulated_state()[1] > before
        assert same(answer, run(layer.pack(VECTORS), x, h, c)), f"I={I} H={H}"


@pytest.mark.parametrize("isa", TILED)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("form", ["rnn", "lstm", "gru after", "gru before"])
def test_every_number_of_rows_has_the_bits_of_vectors(form, format, isa):
    layer = Rounded(form, 40, 48, format)
    tiles, vectors = layer.pack(isa), layer.pack(VECTORS)
    x, h, c = layer.rows(40)
    whole = run(vectors, x, h, c)
    for rows in range(1, 41):  # the last ones of the batch, and a part of a call
        part = slice(40 - rows, 40)
        answer = run(tiles, x[part], h[part], None if c is None else c[part])
        assert same(answer, (whole[0][part], None if c is None else whole[1][part])), f"{rows} rows"
        y, _ = run(tiles, x, h, c, rows=(part.start, 40))
        assert y[part].tobytes() == whole[0][part].tobytes(), f"{rows} rows of a call"


@pytest.mark.parametrize("isa", TILED)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("form", ["rnn", "lstm", "gru after", "gru before"])
def test_other_rows_never_matter(form, format, isa):
    """One row beside any others, in any place; neighbours that are NaN or huge."""
    layer = Rounded(form, 33, 32, format)
    packed = layer.pack(isa)
    x, h, c = layer.rows(37)
    alone = [run(packed, x[r : r + 1], h[r : r + 1], None if c is None else c[r : r + 1])[0] for r in range(37)]
    together = run(packed, x, h, c)[0]
    for r in range(37):
        assert together[r].tobytes() == alone[r][0].tobytes(), f"row {r}"
    for r in range(37):
        others = x.copy()
        others[np.arange(37) != r] = np.nan if r % 2 else 1e30
        assert run(packed, others, h, c)[0][r].tobytes() == alone[r][0].tobytes(), f"row {r}"


@pytest.mark.parametrize("isa", TILED)
@pytest.mark.parametrize("format", FORMATS)
def test_stays_in_bounds(format, isa):
    """Nothing but the rows of y and c is written, at any alignment."""
    for H, offset, rows in itertools.product((16, 48, 50), (0, 1, 3), (1, 7, 17, 20)):
        layer = Rounded("lstm", 35, H, format)
        x, h, c = layer.rows(rows)
        expected = run(layer.pack(VECTORS), x, h, c)
        room = [np.full((rows + 2, H + 9), 7.5, np.float32) for _ in range(2)]
        y, state = (a[1:-1, 4 + offset : 4 + offset + H] for a in room)
        state[:] = c
        calls.cell_step(layer.pack(isa), x, h, state, y=y)
        assert same((np.ascontiguousarray(y), np.ascontiguousarray(state)), expected)
        y[:] = state[:] = 7.5
        assert all((a == 7.5).all() for a in room)


@pytest.mark.parametrize("isa", TILED)
@pytest.mark.parametrize("format", FORMATS)
def test_extreme_numbers_have_the_bits_of_vectors(format, isa):
    """Zeros, denormals, one huge number, saturated bytes, weights of one value, and sums that cancel or overflow."""
    layer = Rounded("lstm", 70, 32, format)
    x, h, c = layer.rows(20)
    x[0], h[0] = 0, 0
    x[1], x[2] = 1e-40, 1e-20
    x[3, 5] = 1e30
    x[4], x[5, ::2], x[5, 1::2] = 1, 1, -1
    h[6] *= 40
    x[7], x[8, 3], h[9, 4] = 3e38, np.inf, np.nan
    c[10] = 1e-42
    for weight in (None, 0.0, 1.0, -0.37, 1e-38, 1e-41, 2e38):
        if weight is not None:
            layer.W[:], layer.R[:] = weight, -weight
            layer.W[::3, ::2] *= -1
        answers = [run(layer.pack(which), x, h, c) for which in (isa, VECTORS)]
        for a, b in zip(*answers, strict=True):
            np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32), err_msg=f"weights {weight}")
        assert np.isnan(answers[0][0][[8, 9]]).all()


@pytest.mark.parametrize("isa", TILED)
@pytest.mark.parametrize("format", FORMATS)
def test_linear_has_the_bits_of_vectors(format, isa):
    rng = np.random.default_rng(3)
    for K, N, rows in itertools.product((1, 64, 129), (1, 16, 64, 70, 130), (1, 5, 16, 17, 40)):
        W, bias, x = (rng.normal(size=shape).astype(np.float32) for shape in ((K, N), N, (rows, K)))
        tiles, vectors = (_isa.pack_linear(W, bias, isa=name, weights=format) for name in (isa, VECTORS))
        assert calls.linear(tiles, x, "tanh").tobytes() == calls.linear(vectors, x, "tanh").tobytes(), (K, N, rows)
    assert not emulated_state()[0]


# ---- the instructions ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def amx_code(tmp_path_factory):
    """The instructions of the object file of AMX: a list of (name, operands)."""
    compiler, disassembler = shutil.which("gcc"), shutil.which("objdump")
    if "amx" not in INFO["compiled"] or not (compiler and disassembler and KERNELS.joinpath("frnn.h").exists()):
        pytest.skip("needs the sources, gcc with AMX, and objdump")
    target = tmp_path_factory.mktemp("amx") / "amx.o"
    sets = [f"-mavx512{name}" for name in ("f", "vl", "bw", "dq", "vnni")]
    flags = ["-std=c99", "-O3", "-mavx2", "-mfma", *sets, "-mamx-tile", "-mamx-bf16", "-mamx-int8"]
    subprocess.run([compiler, *flags, "-c", str(KERNELS / "kernels_amx.c"), "-o", str(target)], check=True)
    command = [disassembler, "-d", "--no-show-raw-insn", str(target)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    code = [line.split("\t")[-1].split(None, 1) for line in lines if "\t" in line]
    return [(words[0], words[1] if len(words) > 1 else "") for words in code if words]


def test_the_kernels_of_amx_are_made_of_its_instructions(amx_code):
    names = {name for name, _ in amx_code}
    tiles = {"ldtilecfg", "tilerelease", "tilezero", "tileloadd", "tilestored", "tdpbf16ps", "tdpbusd"}
    assert {name for name in names if name.startswith(("tile", "tdp", "ldtile", "sttile"))} == tiles
    # sums += rows x weights; rows are in 4 and 5, and they are the unsigned factor
    products = {operands for name, operands in amx_code if name.startswith("tdp")}
    assert products
    for operands in products:
        weights, rows, sums = (int(word.removeprefix("%tmm")) for word in operands.split(","))
        assert sums < 4 <= min(rows, weights)
        assert rows in (4, 5)
        assert weights != rows


def test_the_kernels_of_amx_hold_no_other_recent_instructions(amx_code):
    """Of AVX-512 BF16, FP16 and IFMA, which a CPU with AMX may have, and the compiler must not assume."""
    strays = {name for name, _ in amx_code if name.startswith(("vdpbf16", "vcvtne", "vpmadd52")) or name.endswith("ph")}
    assert not strays


# ---- what the emulated unit rejects, as the hardware does ------------------------------------------------------------

CONFIG = """
import ctypes, sys
unit = ctypes.CDLL(sys.argv[1])
def config(rows=(16,) * 8, bytes=(64,) * 8, palette=1, start=0, more=0):
    memory = bytearray(64)
    memory[0], memory[1], memory[2] = palette, start, more
    for t, (r, b) in enumerate(zip(rows, bytes)):
        memory[16 + 2 * t], memory[48 + t] = b, r
    unit.frnn_emulated_config((ctypes.c_char * 64).from_buffer(memory))
data = ctypes.create_string_buffer(4096)
load = lambda t: unit.frnn_emulated_load(t, data, ctypes.c_int64(64))
bf16, int8 = unit.frnn_emulated_dp_bf16, lambda c, a, b: unit.frnn_emulated_dp_int8(c, a, b, 128)
"""


@pytest.mark.skipif(not EMULATED, reason="needs the emulated unit")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("load(0)", "before LDTILECFG"),
        ("config(); unit.frnn_emulated_release(); unit.frnn_emulated_zero(0)", "after TILERELEASE"),
        ("config(palette=2)", "palette 1"),
        ("config(start=1)", "palette 1"),
        ("config(more=1)", "reserved bytes"),
        ("config(rows=(17,))", "larger than 16 rows"),
        ("config(rows=(0,), bytes=(64,))", "bytes of no rows"),
        ("config(rows=(16,) * 9, bytes=(64,) * 9)", "beyond the eighth"),
        ("config(rows=(4,), bytes=(64,)); load(1)", "leaves out"),
        ("config(); bf16(0, 0, 1)", "fewer than three tiles"),
        ("config(rows=(3, 4, 16), bytes=(64,) * 3); bf16(0, 1, 2)", "other rows than its first factor"),
        ("config(rows=(4, 4, 8), bytes=(64,) * 3); int8(0, 1, 2)", "other numbers of terms"),
        ("config(rows=(4, 4, 16), bytes=(32, 64, 64)); int8(0, 1, 2)", "other columns"),
        ("config(rows=(4, 4, 16), bytes=(62, 64, 62)); int8(0, 1, 2)", "parts of a term"),
        ("config(); config()", "LDTILECFG before the TILERELEASE"),
        ("unit.frnn_emulated_release()", "TILERELEASE of nothing"),
    ],
)
def test_the_emulated_unit_rejects(code, message):
    done = subprocess.run([sys.executable, "-c", CONFIG + code, _isa.__file__], capture_output=True, text=True)
    assert done.returncode < 0
    assert message in done.stderr


@pytest.mark.skipif(not EMULATED, reason="needs the emulated unit")
def test_the_emulated_unit_takes_what_fits():
    code = "config(rows=(4, 4, 16), bytes=(32, 64, 32)); [load(t) for t in range(3)]; bf16(0, 1, 2); int8(0, 1, 2)"
    code += "; unit.frnn_emulated_release(); print('done')"
    done = subprocess.run([sys.executable, "-c", CONFIG + code, _isa.__file__], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_the_emulated_unit_is_on_request_only():
    assert EMULATED[:1] == ("amx_emulated",)
    assert not set(EMULATED) & {*INFO["available"], *INFO["compiled"]}
