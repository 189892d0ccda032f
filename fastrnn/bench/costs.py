"""What it costs to begin: an import, a load, a stream. Each is measured in fresh processes, several times."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ..loading import load
from .cells import cell_weights, write_cell

SIZE = 256  # an LSTM with I = H = 256 holds 2 MiB of weights
TIMES = 5
STREAMS = 5000  # 10 MiB of states: small remains of freed memory do not matter
PROGRAM = """
import time
start = time.perf_counter_ns()
import fastrnn
imported = time.perf_counter_ns()
import gc, json, os, sys
before = time.perf_counter_ns()
model = fastrnn.load(sys.argv[1])
loaded = time.perf_counter_ns()
def resident():
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
streams = [model.stream()]
gc.collect()
try:  # give freed memory back, or streams would be served from it and look smaller than they are
    import ctypes
    ctypes.CDLL(None).malloc_trim(0)
except (OSError, AttributeError):
    pass
held = resident()
streams += [model.stream() for _ in range(int(sys.argv[2]))]
grown = None if held is None else (resident() - held) / int(sys.argv[2])
print(json.dumps({"import_ns": imported - start, "load_ns": loaded - before, "stream_bytes": grown}))
"""


def measure(folder: Path, environ: Mapping[str, str]) -> dict:
    """Medians over `TIMES` processes: import_ns, load_ns (the first load of a process), stream_bytes, and what of the
    last the state itself needs (state_bytes: h and c of an LSTM with H = 256) and their ratio."""
    weights = cell_weights("lstm", SIZE, SIZE, 0)
    write_cell(folder / "cost.onnx", "lstm", weights, None, None, stepped=False)
    artifact = folder / "cost.fastrnn"
    load(folder / "cost.onnx").save(artifact)
    environ = {k: v for k, v in environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environ["PYTHONPYCACHEPREFIX"] = str(folder)  # compiled once, as pip leaves an installed package: 60 ms a process
    runs = []
    for _ in range(TIMES):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(artifact), str(STREAMS)],
            capture_output=True,
            text=True,
            env=environ,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
        if done.returncode != 0:
            return {"why": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    found: dict = {key: statistics.median(r[key] for r in runs) for key in ("import_ns", "load_ns")}
    found["artifact_bytes"] = artifact.stat().st_size
    if runs[0]["stream_bytes"] is not None:
        found["stream_bytes"] = round(statistics.median(r["stream_bytes"] for r in runs))
        found["state_bytes"] = 2 * 4 * SIZE
        found["stream_ratio"] = found["stream_bytes"] / found["state_bytes"]
    return found
