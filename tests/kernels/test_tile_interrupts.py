"""Tiles beside forks, signals, alternate stacks and other processes on the same core: the same bits, and nothing of the
unit in use when a call has returned. On the real unit where the machine has one, else on the emulated one."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tile_way
from test_kernel_cells import run
from test_kernel_rounded import FORMATS, Rounded

from fastrnn.machine import _isa

HERE = Path(__file__).parent
REAL = "amx" in _isa.isa_info()["available"]
TILED = ["amx"] if REAL else list(_isa.isa_info()["emulated"][:1])
pytestmark = pytest.mark.skipif(not TILED or not hasattr(os, "fork"), reason="needs a tile unit, and Linux")

SETUP = """
import faulthandler, os, signal, sys, time
sys.path.insert(0, {here!r})
import tile_way
from test_kernel_cells import run, same
from test_kernel_rounded import FORMATS, Rounded

def answers(rounds=1):
    found = []
    for format in FORMATS:
        layer = Rounded("lstm", 100, 64, format, seed=5)
        packed = layer.pack({isa!r})
        x, h, c = layer.rows(33)
        with tile_way.way("tiles"):
            for _ in range(rounds):
                h, c = run(packed, x, h, c)
        found.append((h, c))
    return found

def agree(a, b):
    return all(same(p, q) for p, q in zip(a, b))

expected = answers()
"""


def python(code, count=1, cpu=None):
    """Runs the code in so many processes at once, all on one CPU if it is given; returns what each printed."""
    text = SETUP.format(here=str(HERE), isa=TILED[0]) + code
    if cpu is not None:
        text = f"import os; os.sched_setaffinity(0, {{{cpu}}})\n" + text
    environ = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    started = [subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=environ) for _ in range(count)]  # fmt: skip
    ended = [(process.communicate(timeout=120), process.returncode) for process in started]
    for (_, errors), status in ended:
        assert status == 0, errors
    return [out.strip() for (out, _), _ in ended]


def test_the_child_of_a_fork_computes_the_same():
    code = """
pid = os.fork()
if pid == 0:
    os._exit(0 if agree(answers(), expected) else 1)
print(os.waitpid(pid, 0)[1], agree(answers(), expected))
"""
    assert python(code) == ["0 True"]


def test_signals_during_products_change_nothing():
    """A handler in C, which sets a flag, and one in Python, every 300 us, also on an alternate stack."""
    code = """
faulthandler.enable()
faulthandler.register(signal.SIGUSR1, file=open(os.devnull, "w"), all_threads=True)
count = [0]
def handle(*_):
    count[0] += 1
    if count[0] % 10 == 0:
        os.kill(os.getpid(), signal.SIGUSR1)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
good, end = True, time.monotonic() + 60
while count[0] < 200 and time.monotonic() < end:
    good = good and agree(answers(), expected)
signal.setitimer(signal.ITIMER_REAL, 0)
print(good, count[0] >= 200)
"""
    assert python(code) == ["True True"]


def test_processes_on_one_core_keep_their_tiles_apart():
    code = """
other = answers(1 + os.getpid() % 7)
print(all(agree(answers(1 + os.getpid() % 7), other) for _ in range(20)))
"""
    assert python(code, count=3, cpu=min(os.sched_getaffinity(0))) == ["True"] * 3


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_in_use_when_a_call_has_returned(format):
    layer = Rounded("gru after", 40, 48, format)
    packed = layer.pack(TILED[0])
    tile_way.LIBRARY.frnn_state_in_use.restype = ctypes.c_uint64
    with tile_way.way("tiles"):
        for rows in (1, 16, 17):
            run(packed, *layer.rows(rows))
            assert not tile_way.emulated_state()[0]
            assert tile_way.LIBRARY.frnn_state_in_use() >> 17 & 3 == 0
