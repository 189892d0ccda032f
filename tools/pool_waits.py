"""How long a stepping thread waits while its pool is saved or grows, beside a quiet run.

python tools/pool_waits.py [--slots 1000000] [--rows 64] [--hidden 16] [--seconds 3]

One thread steps some of the slots over and over and measures each call. Meanwhile the main thread does nothing, takes
snapshots of all slots, takes increments of them while a tenth of the slots changes, or lets the pool grow. Each phase
prints the calls' p50, p99 and maximum in milliseconds. The maximum minus that of the quiet run is the wait; the GIL,
the scheduler and other programs take their share of both.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time

import numpy as np

import fastrnn


def small_model(hidden: int) -> fastrnn.Model:
    """A GRU with I = 4."""
    rng = np.random.default_rng(0)
    W, R = ((rng.standard_normal((3 * hidden, n)) / np.sqrt(n)).astype(np.float32) for n in (4, hidden))
    return fastrnn.from_arrays("gru", W=W, R=R, order="zrh", threads=1)


class Stepper(threading.Thread):
    """Steps `rows` random slots over and over; times: (when, nanoseconds) of each call."""

    def __init__(self, pool, slots: np.ndarray, rows: int, pause: float):
        super().__init__(daemon=True)
        self.pool, self.slots, self.rows, self.pause = pool, slots, rows, pause
        self.times: list[tuple[int, int]] = []
        self.stopped = False

    def run(self) -> None:
        rng = np.random.default_rng(1)
        x = rng.standard_normal((self.rows, 4)).astype(np.float32)
        y = self.pool.step(self.slots[: self.rows], x)
        choices = [np.sort(rng.choice(self.slots, self.rows, replace=False)) for _ in range(50)]
        i = 0
        while not self.stopped:
            chosen = choices[i % 50]
            began = time.perf_counter_ns()
            self.pool.step(chosen, x, out=y)
            self.times.append((began, time.perf_counter_ns() - began))
            if self.pause:
                time.sleep(self.pause)
            i += 1


def phase(stepper: Stepper, name: str, work) -> float:
    """Run `work` and print the stepper's calls meanwhile; returns the longest in ms."""
    began = time.perf_counter_ns()
    said = work()
    end = time.perf_counter_ns()
    took = np.array([ns for when, ns in stepper.times if began <= when < end]) / 1e6
    p50, p99 = np.percentile(took, [50, 99])
    print(
        f"{name:24} {(end - began) / 1e9:6.2f} s {len(took):7} calls, ms: p50 {p50:.3f} p99 {p99:.3f} max "
        f"{took.max():.3f}{said or ''}",
        flush=True,
    )
    return float(took.max())


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=64, help="that each call steps")
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3, help="of the quiet run")
    parser.add_argument("--rounds", type=int, default=3, help="of each phase")
    parser.add_argument("--pause", type=float, default=0, help="seconds between the calls")
    args = parser.parse_args()
    pool = small_model(args.hidden).pool(capacity=args.slots)
    slots = np.array([pool.open() for _ in range(args.slots)])
    for first in range(0, args.slots, 10_000):  # every page is there before the first measurement
        part = slots[first : first + 10_000]
        pool.step(part, np.ones((len(part), 4), np.float32))
    stepper = Stepper(pool, slots, args.rows, args.pause)
    stepper.start()
    time.sleep(0.2)
    token = ""

    def save(path: str, since: str | None) -> str:
        nonlocal token
        token = pool.snapshot_all(path, since=token if since else None)
        size = os.path.getsize(path)
        return f", {size / 1e6:.0f} MB"

    def grow() -> None:
        for _ in range(30):
            pool.grow(pool.capacity + args.slots // 100)
            time.sleep(0.005)

    def changes() -> None:
        for first in range(0, args.slots // 10, 10_000):
            part = slots[first : min(first + 10_000, args.slots // 10)]
            pool.step(part, np.ones((len(part), 4), np.float32))

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "pool")
        for _ in range(args.rounds):
            phase(stepper, "quiet", lambda: time.sleep(args.seconds))
            phase(stepper, "snapshot_all(path)", lambda: save(path, None))
            changes()
            phase(stepper, "snapshot_all(since=)", lambda: save(path, token))
            phase(stepper, "grow, 30 times", grow)
    stepper.stopped = True
    stepper.join()


if __name__ == "__main__":
    main()
