"""Use fastrnn from many threads at once and compare every bit; for builds without the GIL, and for ThreadSanitizer.

    python tools/stress_threads.py MODEL.fastrnn [--seconds 20] [--threads 8]

Each thread has its own stream of one shared Model and its own slots of one shared pool. It runs whole sequences of
several lengths, loads the file again and reads the counters. Every answer must have the bits of a run on one thread.
Prints how often each was done. Exits 1 if an answer differs or a call raises; ThreadSanitizer sets a code of its own.
The record on free-threaded Python in docs/decisions says how to build for that, and what is found there.
"""

import argparse
import sys
import threading
import time
from collections import Counter

import numpy as np

import fastrnn

LENGTHS = (1, 3, 8, 20)


class Stress:
    """The shared model and pool, the right answers, and what was done and found."""

    def __init__(self, path: str, threads: int):
        self.path, self.model = path, fastrnn.load(path)
        self.x = np.random.default_rng(5).standard_normal((4, 20, self.model.inputs[0].dims[-1])).astype(np.float32)
        self.whole = self.model(self.x)
        self.short = {n: self.model(self.x[:, :n]).tobytes() for n in LENGTHS}
        self.pool = self.model.pool(capacity=4 * threads)
        self.wrong: list[str] = []
        self.ended = False

    def same(self, what: str, ours: bytes, right: bytes) -> None:
        if ours != right:
            self.wrong.append(f"{what} gave other bits")

    def stream(self, n: int) -> None:
        stream = self.model.stream()
        steps = [stream.step(row) for row in self.x[n % 4]]
        self.same("a stream", np.stack(steps).tobytes(), self.whole[n % 4].tobytes())

    def slots(self, n: int) -> None:
        slots = [self.pool.open() for _ in range(4)]
        steps = [self.pool.step(slots, self.x[:, t]) for t in range(10)]
        self.same("a pool", np.stack(steps, axis=1).tobytes(), self.whole[:, :10].tobytes())
        for slot in slots:
            self.pool.close(slot)

    def run(self, n: int) -> None:
        length = LENGTHS[n % len(LENGTHS)]
        self.same(f"a run of {length} steps", self.model(self.x[:, :length]).tobytes(), self.short[length])

    def load(self, n: int) -> None:
        if n % 10 == 0:
            self.same("a loaded model", fastrnn.load(self.path)(self.x).tobytes(), self.whole.tobytes())

    def stats(self, n: int) -> None:
        self.model.stats()
        self.pool.stats()

    def work(self, seed: int, done: Counter) -> None:
        jobs = (self.stream, self.slots, self.run, self.load, self.stats)
        n = seed
        while not self.ended and not self.wrong:
            job = jobs[n % len(jobs)]
            try:
                job(n)
            except Exception as error:
                self.wrong.append(f"{job.__name__}: {type(error).__name__}: {error}")
            done[job.__name__] += 1
            n += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL.fastrnn")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--threads", type=int, default=8)
    args = parser.parse_args()
    stress = Stress(args.model, args.threads)
    counts = [Counter() for _ in range(args.threads)]
    threads = [threading.Thread(target=stress.work, args=(n, count)) for n, count in enumerate(counts)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + args.seconds
    while time.monotonic() < end and not stress.wrong:
        time.sleep(0.05)
    stress.ended = True
    for thread in threads:
        thread.join()
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"GIL {'on' if gil else 'off'}, {args.threads} threads:", dict(sum(counts, Counter())))
    for text in dict.fromkeys(stress.wrong):
        print("WRONG:", text)
    return 1 if stress.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
