"""Measures the costs by which calls choose between vectors and the tile unit (frnn_tile_costs_here in
fastrnn/_kernels/tile_unit.c), and prints them as that file has them. For a machine with AMX, on a quiet core:

    PYTHONPATH=. taskset -c 1 python tools/tile_costs.py

--emulated tries the command itself on any machine; its figures mean nothing.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "kernels"))
import tile_way

from fastrnn.machine import _isa
from fastrnn.machine import _kernel_calls as calls

INPUTS = 512
FEW, MANY = 256, 1024  # outputs of the two layers whose difference is the cost of weights alone


def layer(isa, format, outputs):
    W = np.random.default_rng(outputs).normal(size=(INPUTS, outputs)).astype(np.float32)
    return _isa.pack_linear(W, isa=isa, weights=format)


def least(packed, x, way, repeats, pause=0.0):
    """The least time of a call, in ns, each after a pause of so many seconds."""
    times = []
    with tile_way.way(way):
        for _ in range(repeats):
            end = time.perf_counter() + pause
            while time.perf_counter() < end:
                pass
            start = time.perf_counter_ns()
            calls.linear(packed, x)
            times.append(time.perf_counter_ns() - start)
    return min(times)


def slope(isa, format, rows, way, repeats):
    """ns for each KiB of weights."""
    x = np.random.default_rng(rows).normal(size=(rows, INPUTS)).astype(np.float32)
    few, many = layer(isa, format, FEW), layer(isa, format, MANY)
    return (least(many, x, way, repeats) - least(few, x, way, repeats)) / ((many.nbytes - few.nbytes) / 1024)


def measure(isa, repeats):
    """The lines of frnn_tile_costs_here."""
    for format in ("bfloat16", "int8", "int8-a16"):
        load, row = slope(isa, format, 1, "vectors", repeats), slope(isa, format, 16, "vectors", repeats) / 16
        yield f'{{"{format}", {load:.1f}f, {row:.1f}f, {slope(isa, format, 16, "tiles", repeats):.1f}f}}'
    small, x = layer(isa, "int8", 16), np.ones((1, INPUTS), np.float32)
    yield f".call = {least(small, x, 'tiles', repeats) - least(small, x, 'vectors', repeats):.0f}.0f"
    for pause in (0.5e-6, 1e-6, 10e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3):
        apart = least(small, x, "tiles", repeats // 10 + 1, pause) - least(
            small, x, "vectors", repeats // 10 + 1, pause
        )
        yield f"/* a call with tiles after {pause * 1e6:g} us takes {apart:.0f} ns more */"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulated", action="store_true", help="on the emulated unit")
    parser.add_argument("--repeats", type=int, default=2000, help="calls of each measurement (default 2000)")
    args = parser.parse_args()
    if not args.emulated and "amx" not in _isa.isa_info()["available"]:
        raise SystemExit("this machine has no tile unit (fastrnn.cpu_info().isa.available): run it on one with AMX")
    for line in measure("amx_emulated" if args.emulated else "amx", args.repeats):
        print(line, flush=True)


if __name__ == "__main__":
    main()
