"""If memory runs out, every call raises FastRNNMemoryError; the process, states and files stay as they were.

Each case runs in a process of its own, under RLIMIT_AS limits from almost nothing to enough.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

import fastrnn
from fastrnn.runtime.compiled import Compiled

pytestmark = [pytest.mark.any_isa, pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")]

PROGRAM = """
import gc, os, resource, sys
import numpy as np
import fastrnn
import fastrnn.graph.artifact, fastrnn.formats, fastrnn.onnx_files
case, folder = sys.argv[1:]
rng = np.random.default_rng(0)
I, H = 1000, 1000
W, R = (rng.normal(size=(3 * H, n)).astype(np.float32) * 0.03 for n in (I, H))
make = lambda: fastrnn.from_arrays("gru", W=W, R=R, threads=1)
model = make()
x = np.zeros((1, 3, I), np.float32)
model(x)


def load(name, write, **options):
    path = os.path.join(folder, name)
    write(path)
    fastrnn.load(path, threads=1, **options)  # its modules are imported without a limit
    return lambda: fastrnn.load(path, threads=1, **options)(x)


def onnx_file(path):
    import onnx
    from onnx import helper, numpy_helper
    info = [helper.make_tensor_value_info(n, 1, [1, "t", k]) for n, k in (("x", I), ("y", 3 * H))]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", info[:1], info[1:], [numpy_helper.from_array(W.T.copy(), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def safetensors_file(path):
    from safetensors.numpy import save_file
    b = np.zeros(3 * H, np.float32)
    save_file({"r.weight_ih_l0": W, "r.weight_hh_l0": R, "r.bias_ih_l0": b, "r.bias_hh_l0": b}, path)


def h5_file(path):
    import h5py
    with h5py.File(path, "w") as file:
        for name, array in (("kernel", W.T), ("recurrent_kernel", R.T), ("bias", np.zeros((2, 3 * H), "f4"))):
            file[f"gru/gru/{name}"] = array


pool = model.pool(10_000)
slots = [pool.open() for _ in range(10_000)]
frames = np.zeros((10_000, I), np.float32)
stream = model.stream()
before = pool.step(slots, frames), stream.step(x[0, 0])
file = os.path.join(folder, "all")
pool.snapshot_all(file)
target = os.path.join(folder, "target.fastrnn")
model.save(target)
old = open(target, "rb").read(100)
other = model.pool(10_000)
long = np.zeros((20_000, I), np.float32)
many = np.zeros((1, 20_000, I), np.float32)
wide = model.stream(3000)
wide.step(frames[:3000])
lists = [[0.0] * I] * 3000
halves = {name: state.astype(np.float16) for name, state in wide.state.items()}
calls = {
    "load fastrnn": lambda: load("m.fastrnn", model.save),
    "load onnx": lambda: load("m.onnx", onnx_file),
    "load safetensors": lambda: load("m.safetensors", safetensors_file),
    "load h5": lambda: load("m.h5", h5_file, layers=["gru:gru"]),
    "from_arrays": lambda: make,
    "save": lambda: lambda: model.save(target),
    "snapshot_all": lambda: pool.snapshot_all,
    "snapshot_all to a file": lambda: lambda: pool.snapshot_all(os.path.join(folder, "snapshot")),
    "restore_all": lambda: lambda: [other.close(s) for s in other.restore_all(file).values()],
    "run": lambda: lambda: model(many),
    "stream push": lambda: lambda: model.stream().push(long),
    "pool push": lambda: lambda: pool.push(slots[:1], [long]) and None,
    "pool step": lambda: lambda: pool.step(slots, frames) is None,
    "pool step of lists": lambda: lambda: pool.step(slots[:3000], lists) is None,
    "stream step": lambda: lambda: wide.step(frames[:3000]) is None,
    "stream step of lists": lambda: lambda: wide.step(lists) is None,
    "state": lambda: lambda: [wide.state for _ in range(20)] and None,
    "set state": lambda: lambda: setattr(wide, "state", halves),
    "pool": lambda: lambda: model.pool(20_000_00).open(),
    "grow": lambda: lambda: model.pool(1000).grow(200_000),
    "stream": lambda: lambda: model.stream(50_000),
}
call = calls[case]()
gc.collect()
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
outcomes = []
for headroom in (0, 2, 8, 16, 32, 64, 128, 256, 512):
    resource.setrlimit(resource.RLIMIT_AS, (size + headroom * 2**20, resource.RLIM_INFINITY))
    try:
        call()
        outcomes.append("done")
    except fastrnn.FastRNNMemoryError as error:
        outcomes.append("memory")
    except BaseException as error:
        outcomes.append(f"{type(error).__name__}: {error}"[:300])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    gc.collect()
assert open(target, "rb").read(100) == old
assert not [name for name in os.listdir(folder) if name.endswith(".partial")]
fresh = model.pool(1)
assert np.array_equal(fresh.step([fresh.open()], frames[:1]), before[0][:1])
print(outcomes)
"""
CASES = [
    "load fastrnn", "load onnx", "load safetensors", "load h5", "from_arrays", "save", "snapshot_all",
    "snapshot_all to a file", "restore_all", "run", "stream push", "pool push", "pool", "grow", "stream",
    "pool step", "pool step of lists", "stream step", "stream step of lists", "state", "set state",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_memory_runs_out(case, tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if case in ("stream step", "pool step"):  # whose result is the only large block
        # glibc raises this threshold with each large block that is freed, and then has room of its own.
        env["MALLOC_MMAP_THRESHOLD_"] = "131072"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, case, tmp_path], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr
    outcomes = eval(done.stdout)
    assert set(outcomes) <= {"done", "memory"}, outcomes
    little = ("save", "snapshot_all to a file", "restore_all", "load fastrnn", "load onnx")
    assert "memory" in outcomes or case in little, outcomes


@pytest.mark.parametrize("call", [lambda m: m.stream(), lambda m: m.stream(batch_size=2), lambda m: m.pool(3)])
@pytest.mark.parametrize("where", ["_program", "_stream_layout"])
def test_memory_runs_out_while_streams_are_planned(where, call, monkeypatch):
    """The first stream makes the plan and tables of 128 KiB."""
    model = fastrnn.from_arrays("gru", W=np.zeros((12, 3), "f4"), R=np.zeros((12, 4), "f4"), order="zrh")

    def fails(*_):
        raise MemoryError("tables")

    with monkeypatch.context() as patch:
        patch.setattr(Compiled, where, fails)
        with pytest.raises(fastrnn.FastRNNMemoryError, match="tables"):
            call(model)
    call(model)
