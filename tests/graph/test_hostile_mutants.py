"""Mutated .fastrnn files, and files that claim huge sizes."""

import copy
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_hostile_files import drop, forge, parts, put

import fastrnn

ROOT = Path(__file__).resolve().parents[2]


SEED = 20260


MUTANTS = 400


NASTY = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 1 << 31, 1 << 40, 1 << 63, 10**30, 1.5, -0.0, 1e30),
    *("", "x", "y", "h", "b", "time", "batch", "2*time", "batch*time", "time-5", "0", "float32", "int64", "bool"),
    *("gather", "cell", "linear", "unary", "softmax", "reshape", "slice", "concat", "state", "lengths", "tanh", "inf"),
    *([], {}, [0], ["x"], {"a": 1}, [None], [3, 0], ["time", "batch"]),
)


def leaves(data, path=()):
    """Paths of all elements below the top of a JSON value."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def mutants(count: int):
    """Files of the small graph with one to three elements of its JSON replaced, deleted or swapped."""
    rng = random.Random(SEED)
    for _ in range(count):
        data, tensors = parts()
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            path = rng.choice(list(leaves(data)))
            if rng.random() < 0.15:
                drop(path)(data)
            elif rng.random() < 0.3:
                other = rng.choice(list(leaves(data)))
                place = data
                for key in other:
                    place = place[key]
                put(path, copy.deepcopy(place))(data)
            else:
                put(path, copy.deepcopy(rng.choice(NASTY)))(data)
        yield data, forge(data, tensors)


def try_to_use(model) -> None:
    """Run a model that loaded, at small sizes; a FastRNNError is an answer too."""
    for batch, time in ((1, 1), (2, 3), (0, 2), (2, 0)):
        feeds = []
        for info in model.inputs:
            sizes = {"batch": batch, "time": time, **{d: 3 for d in info.dims if isinstance(d, str)}}
            sizes.update(batch=batch, time=time)
            feeds.append(np.ones([d if isinstance(d, int) else sizes[d] for d in info.dims], info.dtype))
        if sum(a.size for a in feeds) < 1 << 16:
            model.run(*feeds)


def survive() -> None:
    """Load and run every mutant within 1 GiB more than the process has now; FastRNNError is the only way out."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 30), resource.RLIM_INFINITY))
    loaded = 0
    for number, (data, blob) in enumerate(mutants(MUTANTS)):
        print(f"mutant {number} of seed {SEED}: {json.dumps(data)}", file=sys.stderr, flush=True)
        try:
            model = fastrnn.load(blob)
            loaded += 1
            try_to_use(model)
            model.stream()
        except fastrnn.FastRNNError:
            continue
    print(f"{loaded} of {MUTANTS} loaded")


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is set by Linux's means")
def test_mutants_neither_crash_nor_allocate():
    """In a process of its own, so that a crash is a failure of one test and not of the run."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).resolve().parent)]),
        "OMP_NUM_THREADS": "1",
    }
    code = "import test_hostile_mutants; test_hostile_mutants.survive()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, timeout=300
    )
    assert done.returncode == 0, "\n".join(done.stderr.splitlines()[-20:])
    loaded = int(done.stdout.split()[0])
    assert 0 < loaded < MUTANTS // 2, done.stdout


class TestHugeClaims:
    """Graphs that are sound but whose sizes no memory holds: an error at load or at run, and nothing allocated."""

    @pytest.mark.parametrize("size", [1 << 40, 1 << 55, 1 << 62, 1 << 80])
    def test_expand(self, size):
        data, tensors = parts()
        data["values"]["one"] = ["float32", ["time", "batch", 1, 2]]
        data["values"]["big"] = ["float32", ["time", "batch", size, 2]]
        data["nodes"].append(["reshape", "one", ["y"], ["one"], {"dims": ["time", "batch", 1, 2]}])
        data["nodes"].append(["expand", "big", ["one"], ["big"], {"dims": ["time", "batch", size, 2]}])
        data["outputs"] = ["big"]
        with pytest.raises(fastrnn.FastRNNError):
            fastrnn.load(forge(data, tensors)).run(np.array([[1], [2]]), np.array([2]))

    @pytest.mark.parametrize(
        "sizes", [(1 << 32, 1 << 30), (1 << 31, 1 << 31), (1 << 21, 1 << 41), (3, (1 << 64) // 3 + 1)]
    )
    def test_a_size_that_wraps_around(self, sizes):
        """2 * 2^62 floats are 2^65 bytes: as an int64, none at all. Or few."""
        data, tensors = parts()
        thin, wide = (["time", "batch", *middle, 2] for middle in ((1, 1), sizes))
        for name, dims in (("one", thin), ("big", wide), ("bent", wide), ("sum", ["time", "batch", 2])):
            data["values"][name] = ["float32", dims]
        data["nodes"].append(["reshape", "one", ["y"], ["one"], {"dims": thin}])
        data["nodes"].append(["expand", "big", ["one"], ["big"], {"dims": wide}])
        data["nodes"].append(["unary", "bent", ["big"], ["bent"], {"fn": "exp", "alpha": 0.0, "beta": 0.0}])
        data["nodes"].append(["reduce", "sum", ["bent"], ["sum"], {"fn": "sum", "axes": [2, 3], "keepdims": False}])
        data["outputs"] = ["sum"]
        with pytest.raises(fastrnn.FastRNNError):
            fastrnn.load(forge(data, tensors)).run(np.array([[1], [2]]), np.array([2]))

    def test_concat_of_itself(self):
        """64 doublings are 2^64 times as much."""
        data, tensors = parts()
        last, size = "y", 2
        for i in range(64):
            size *= 2
            data["values"][f"c{i}"] = ["float32", ["time", "batch", size]]
            data["nodes"].append(["concat", f"c{i}", [last, last], [f"c{i}"], {"axis": 2}])
            last = f"c{i}"
        data["outputs"] = [last]
        with pytest.raises(fastrnn.FastRNNError):
            fastrnn.load(forge(data, tensors)).run(np.array([[1], [2]]), np.array([2]))
