"""Compare a step in `push` with a fixed-size LSTM on Eigen: run alternately, the minimum of each, and the ratio.

python tools/bench/push_step.py FIXED_SIZE_LSTM     the program that fixed_size_lstm.cpp says how to build
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

import numpy as np

import fastrnn

SIZES = (16, 32, 64, 128)
STEPS, RUNS, ROUNDS = 1000, 20, 7


def model(size: int) -> fastrnn.Model:
    """An LSTM with I = H = size."""
    rng = np.random.default_rng(size)
    W, R = ((rng.standard_normal((4 * size, size)) / np.sqrt(size)).astype(np.float32) for _ in range(2))
    return fastrnn.from_arrays("lstm", W=W, R=R, order="iofc", threads=1)


def step_ns(stream: fastrnn.Stream, x: np.ndarray) -> float:
    """Nanoseconds per step: the minimum over several pushes."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter_ns()
        stream.push(x)
        times.append((time.perf_counter_ns() - start) / len(x))
    return min(times)


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print(__doc__)
        return 2
    cases = {size: (model(size).stream(), np.ones((STEPS, size), np.float32) / 8) for size in SIZES}
    ours: dict[int, list[float]] = {size: [] for size in SIZES}
    theirs: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(ROUNDS):
        text = subprocess.run([argv[1]], capture_output=True, text=True, check=True).stdout
        for size, ns in re.findall(r"lstm-(\d+) +([\d.]+) ns", text):
            theirs[int(size)].append(float(ns))
        for size, (stream, x) in cases.items():
            ours[size].append(step_ns(stream, x))
    for size in SIZES:
        mine, eigen = min(ours[size]), min(theirs[size])
        print(f"lstm-{size:<4} push {mine:7.1f} ns a step, fixed size on Eigen {eigen:7.1f}: {eigen / mine:.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
