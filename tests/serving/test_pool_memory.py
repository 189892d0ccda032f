"""A service runs for months: memory stays flat over ticks of changing size, and a stream costs its state."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_model_stream import some, stack

from fastrnn.model import Model

pytestmark = [
    pytest.mark.any_isa,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm"),
]
TICKS = int(os.environ.get("FASTRNN_TEST_TICKS", "100000"))  # a million by hand
ROOT = Path(__file__).resolve().parents[2]


def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_ticks_of_changing_size_take_no_memory():
    model = Model(stack("lstm", I=4, H=8))
    pool, rng = model.pool(capacity=64), np.random.default_rng(0)
    slots = np.array([pool.open() for _ in range(64)])
    x, y = some(64, 4), np.zeros((64, 3), np.float32)
    sizes = rng.integers(0, 65, 997).tolist()

    def ticks(n):
        for i in range(n):
            k = sizes[i % 997]
            pool.step(slots[:k], x[:k], out=y[:k])
            if i % 50 == 0:
                pool.push(slots[:k], [x[: k % 7] for _ in range(k)])
                pool.close(slots[k % 64])
                slots[k % 64] = pool.open()

    ticks(5000)
    before = rss()
    ticks(TICKS)
    assert rss() - before < 1 << 20, f"{rss() - before} bytes more after {TICKS} ticks"
    assert model._core._program("stream").scratch_bytes < 1 << 20


COST = """
import os, sys
import numpy as np
import fastrnn

def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

pool = fastrnn.load(sys.argv[1]).pool(capacity=100_000)
x = np.zeros((8000, 4), np.float32)
first = [pool.open() for _ in range(8000)]
pool.step(first, x)
for s in first[1000:]:
    pool.close(s)
opened = rss()
more = [pool.open() for _ in range(60_000)]
for i in range(0, 60_000, 8000):
    part = more[i : i + 8000]
    pool.step(part, x[: len(part)])
print(rss() - opened, 4 * pool.slab.shape[1] * 53_000, pool.memory_bytes, 4 * pool.slab.shape[1] * 100_000)
"""


def test_a_stream_costs_its_state(tmp_path):
    """Of 100,000 places those that were never opened take no memory; an opened one takes its state and little."""
    Model(stack("lstm", I=4, H=64)).save(tmp_path / "model.fastrnn")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    command = [sys.executable, "-c", COST, str(tmp_path / "model.fastrnn")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=True)
    grown, states, told, slab = map(int, done.stdout.split())
    # Its row of the tables, and its slot as a Python int in a list; and the rest of the first and last huge page.
    assert 0.9 * states < grown < states + 200 * 60_000 + (4 << 20)
    assert slab <= told <= slab + 50 * 100_000
