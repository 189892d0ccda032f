"""Which calls go to a tile unit: by their costs and by how long it has slept; either way gives the same bits."""

import ctypes
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import tile_way
from test_kernel_cells import run, same
from test_kernel_rounded import FORMATS, Rounded

from fastrnn.machine import _isa

TILED = [isa for isa in _isa.isa_info()["available"] if isa == "amx"] + list(_isa.isa_info()["emulated"])
EMULATED = _isa.isa_info()["emulated"]
ASLEEP = 1e9  # ns since anything


def awake(format, rows, kib):
    """The choice of a call in a row of such calls."""
    return tile_way.chosen(format, rows, kib, ASLEEP + 10, tile_way.Clock(ASLEEP, ASLEEP, 0))


def kib(H, format, gates=4):
    """Packed weights of a cell with as many inputs as units."""
    return gates * H * 2 * H * (2 if format == "bfloat16" else 1) / 1024


def test_awake_a_call_goes_where_it_is_cheaper():
    assert not awake("bfloat16", 1, kib(32, "bfloat16"))
    assert all(awake("bfloat16", 1, kib(H, "bfloat16")) for H in (64, 128, 256, 512))
    for H in (128, 256, 512):  # 8-bit vectors win up to two rows
        assert [awake("int8", rows, kib(H, "int8")) for rows in (1, 2, 4, 16, 128)] == [False] * 2 + [True] * 3
    assert not awake("int8", 16, 1)  # too little to configure for


@pytest.mark.parametrize(
    ("H", "rows", "goes"),
    [(64, 1, False), (128, 1, False), (256, 1, False), (512, 1, True), (128, 8, True), (64, 4, False), (64, 16, True)],
)
def test_a_call_after_a_long_pause_pays_for_waking(H, rows, goes):
    assert tile_way.chosen("bfloat16", rows, kib(H, "bfloat16"), ASLEEP, tile_way.Clock(0, 0, 0)) == goes


def test_calls_in_a_row_wake_the_unit_when_their_gains_pay_for_it():
    clock, size, now, ways = tile_way.Clock(0, 0, 0), kib(128, "bfloat16"), ASLEEP, []
    for _ in range(30):
        ways.append(tile_way.chosen("bfloat16", 1, size, now, clock))
        now += 700
    assert not ways[0]
    first = ways.index(True)
    assert 2 <= first <= 10
    assert all(ways[first:])  # it stays awake


def test_single_calls_with_pauses_never_wake_it():
    clock = tile_way.Clock(0, 0, 0)
    assert not any(tile_way.chosen("bfloat16", 1, kib(128, "bfloat16"), ASLEEP + i * 1e6, clock) for i in range(100))


def test_a_short_pause_costs_less():
    size = kib(128, "bfloat16")
    assert tile_way.chosen("bfloat16", 1, size, ASLEEP + 50e3, tile_way.Clock(ASLEEP, ASLEEP, 0))
    assert not tile_way.chosen("bfloat16", 1, kib(64, "bfloat16"), ASLEEP + 50e3, tile_way.Clock(ASLEEP, ASLEEP, 0))


def test_costs_can_be_replaced():
    costs = tile_way.costs()
    kept = ctypes.string_at(ctypes.byref(costs), ctypes.sizeof(costs))
    try:
        costs.call = 1e9
        assert not awake("int8", 128, kib(512, "int8"))
        costs.call = 0
        costs.formats[1].tile = 0
        assert awake("int8", 1, kib(16, "int8"))
    finally:
        ctypes.memmove(ctypes.byref(costs), kept, len(kept))


@pytest.mark.skipif(not EMULATED, reason="needs the emulated unit")
def test_a_call_goes_the_way_that_is_asked_for():
    layer = Rounded("lstm", 64, 64, "int8")
    packed = layer.pack("amx_emulated")
    rows = layer.rows(1)
    used = {}
    for name in tile_way.WAYS:
        with tile_way.way(name):
            before = tile_way.emulated_state()[1]
            run(packed, *rows)
            used[name] = tile_way.emulated_state()[1] > before
    assert used == {"usual": True, "tiles": True, "vectors": False, "costs": False}  # one row of int8: vectors


@pytest.mark.parametrize("isa", TILED)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("form", ["rnn", "lstm", "gru after", "gru before"])
def test_a_sequence_that_changes_its_way_has_the_same_bits(form, format, isa):
    for rows in (1, 3, 20):
        layer = Rounded(form, 40, 50, format)
        packed = layer.pack(isa)
        x, h, c = layer.rows(rows)
        answers = []
        for ways in (("tiles",), ("vectors",), ("tiles", "vectors", "costs")):
            y, state = h, c
            for _, name in zip(range(12), itertools.cycle(ways)):
                with tile_way.way(name):
                    y, state = run(packed, x, y, state)
            answers.append((y, state))
        assert same(answers[0], answers[1])
        assert same(answers[0], answers[2])


@pytest.mark.skipif(not EMULATED, reason="needs the emulated unit")
def test_the_command_that_measures_the_costs_runs():
    root = Path(__file__).parents[2]
    if not root.joinpath("tools").exists():
        pytest.skip("needs the sources")
    command = [sys.executable, str(root / "tools" / "tile_costs.py"), "--emulated", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env={"PYTHONPATH": str(root)}, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split('"')[1] for line in done.stdout.splitlines()[:3]] == list(FORMATS)
    assert ".call = " in done.stdout
