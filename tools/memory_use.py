"""What a .fastrnn file costs in memory: after a load, at the peak of the load, and in several workers together.

    PYTHONPATH=. python tools/memory_use.py                             # 256 MB of each kind of model
    PYTHONPATH=. python tools/memory_use.py --megabytes 32 --kind lstm
    PYTHONPATH=. python tools/memory_use.py --file model.fastrnn
    PYTHONPATH=. python tools/memory_use.py --no-cache                  # each process packs into memory of its own

Every figure is of fresh processes that load the file, take one step and run one sequence. PSS counts a page that n
processes share as 1/n of a page in each. `after` and `workers` are sums of PSS, `peak` is the most resident memory
(which is at least PSS) between the call of `load` and its return. `first` is a load that fills the cache, `later` one
that finds it filled. All are multiples of the file's size, in brackets without what the same processes cost after
`import fastrnn`. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MEGABYTE = 1 << 20
WORKERS = 8
KINDS = ("lstm", "one layer", "gru", "linear", "embedding")


def make(kind: str, size: int, path: Path) -> None:
    """Write a model of this kind whose file has about `size` bytes."""
    import numpy as np

    import fastrnn

    rng = np.random.default_rng(0)

    def normal(*shape):
        return (rng.random(shape, np.float32) - 0.5) * np.float32(0.1)

    floats = size // 4
    if kind == "linear":
        n = int((floats / 2) ** 0.5) // 16 * 16
        model = fastrnn.from_equations("y = W @ x + b", W=normal(n, 2 * n), b=normal(n))
    elif kind == "embedding":
        n = floats // 64
        tensors = {"emb.weight": normal(n, 64), "rnn.weight_ih_l0": normal(64, 64), "rnn.weight_hh_l0": normal(64, 64)}
        tensors |= {"rnn.bias_ih_l0": normal(64), "rnn.bias_hh_l0": normal(64)}
        model = fastrnn.load(tensors, layers=["embedding:emb", "rnn:rnn"])
    else:
        gates, layers = {"lstm": (4, 4), "gru": (3, 3), "one layer": (4, 1)}[kind]
        n = int((floats / (2 * gates * layers)) ** 0.5)
        word, tensors = "gru" if kind == "gru" else "lstm", {}
        for layer in range(layers):
            for part in ("ih", "hh"):
                tensors[f"rnn.weight_{part}_l{layer}"] = normal(gates * n, n)
                tensors[f"rnn.bias_{part}_l{layer}"] = normal(gates * n)
        model = fastrnn.load(tensors, layers=[f"{word}:rnn"])
    model.save(path)


WORKER = """
import json, sys, resource
import numpy as np
import fastrnn
import fastrnn.loading
path, options = json.loads(sys.argv[1])

def kilobytes(file, name):
    with open(f"/proc/self/{file}") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

def say(**what):
    print(json.dumps(what), flush=True)
    sys.stdin.readline()

say(pss=kilobytes("smaps_rollup", "Pss:"))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # VmHWM begins anew
before = kilobytes("status", "VmRSS")
model = fastrnn.load(path, threads=1, **options)
peak = kilobytes("status", "VmHWM")
(value,) = model.inputs
shape = [1 if isinstance(d, str) else d for d in value.dims]
model.stream().step(np.zeros(shape[2:], value.dtype))
y = model.run(np.zeros(shape, value.dtype))[0]
say(pss=kilobytes("smaps_rollup", "Pss:"), peak=peak, start=before, bits=y.tobytes().hex()[:64])
"""


class Worker:
    """A process that has imported fastrnn and waits to be told to load."""

    def __init__(self, path: Path, options: dict):
        arguments = [sys.executable, "-c", WORKER, json.dumps([str(path), options])]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        self.start = self.answer()["pss"]

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with {self.process.wait()}")
        return json.loads(line)

    def go_on(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def pss(self) -> int:
        """KiB now."""
        with open(f"/proc/{self.process.pid}/smaps_rollup") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))

    def end(self) -> None:
        self.process.communicate("\n")


def measure(path: Path, options: dict, workers: int = WORKERS) -> dict[str, tuple[float, float]]:
    """Multiples of the file's size: name -> (all, without what the processes cost before they loaded)."""
    size = path.stat().st_size / 1024
    found = {}
    for name in ("first", "later") if "cache" in options else ("one",):
        worker = Worker(path, options)
        worker.go_on()
        got = worker.answer()
        found[f"{name} after"] = (worker.pss() / size, (worker.pss() - worker.start) / size)
        found[f"{name} peak"] = (got["peak"] / size, (got["peak"] - got["start"]) / size)
        worker.end()
    team = [Worker(path, options) for _ in range(workers)]
    start = sum(worker.pss() for worker in team)
    for worker in team:
        worker.go_on()
    answers = {worker.answer()["bits"] for worker in team}
    if len(answers) != 1:
        raise RuntimeError("the workers computed different bits")
    total = sum(worker.pss() for worker in team)
    found[f"{workers} workers"] = (total / size, (total - start) / size)
    for worker in team:
        worker.end()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--file", type=Path, help="a .fastrnn file with one input, instead of a made one")
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--no-cache", action="store_true")
    args = parser.parse_args()
    head = None
    for kind in args.kind or ([args.file.name] if args.file else KINDS):
        with tempfile.TemporaryDirectory(prefix="fastrnn-memory-") as folder:
            path = args.file or Path(folder) / "model.fastrnn"
            if args.file is None:
                make(kind, args.megabytes * MEGABYTE, path)
            options = {} if args.no_cache else {"cache": str(Path(folder) / "cache")}
            found = measure(path, options, args.workers)
        if head is None:
            head = ["model", *found]
            print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        cells = [f"{whole:.2f} ({own:.2f})" for whole, own in found.values()]
        print("| " + " | ".join([kind, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
