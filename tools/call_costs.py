"""What each kind of call costs around its arithmetic: interleaved, the least and the median of several rounds, in us.

python tools/call_costs.py                        LSTM 16, every kind of call beside the step and beside onnxruntime
python tools/call_costs.py --cells lstm gru rnn --sizes 16 32 64 128 --steps 1 10    `run` over onnxruntime's `run`
python tools/call_costs.py --models ../shared/models                                 Silero's frame too
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fastrnn
from fastrnn.bench.models import cell_weights, write_cell

OPSET, IR = 17, 8
ROUND_S = 0.004  # of one call in one round
Calls = dict[str, Callable[[], object]]


def timed(calls: Calls, rounds: int) -> dict[str, tuple[float, float]]:
    """(least, median) microseconds of each call; the calls take turns."""
    counts = {}
    for name, call in calls.items():
        start = time.perf_counter()
        for _ in range(20):
            call()
        counts[name] = max(5, int(ROUND_S / max((time.perf_counter() - start) / 20, 1e-8)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.disable()
    for _ in range(rounds):
        for name, call in calls.items():
            n = range(counts[name])
            start = time.perf_counter()
            for _ in n:
                call()
            times[name].append((time.perf_counter() - start) / len(n) * 1e6)
    gc.enable()
    return {name: (min(t), statistics.median(t)) for name, t in times.items()}


def ort_session(path: Path):
    """onnxruntime's session with one thread; None if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def write_pair(path: Path, size: int) -> None:
    """An LSTM between two inputs that are joined and two outputs that are cut apart."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    half, weights = size // 2, cell_weights("lstm", size, size, 1)

    def info(name: str, width: int):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["time", "batch", width])

    arrays = {"W": weights["W"][None], "R": weights["R"][None], "axis": np.array([1], np.int64)}
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["x"], axis=2),
        helper.make_node("LSTM", ["x", "W", "R"], ["y4"], hidden_size=size),
        helper.make_node("Squeeze", ["y4", "axis"], ["y"]),
        helper.make_node("Split", ["y"], ["first", "second"], axis=2, num_outputs=2),
    ]
    tensors = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    inputs, outputs = [info("a", half), info("b", half)], [info("first", half), info("second", half)]
    graph = helper.make_graph(nodes, "pair", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=IR), path)


def every_kind(folder: Path, size: int) -> Calls:
    """All kinds of calls of an LSTM of this size."""
    weights = cell_weights("lstm", size, size, 0)
    free, stepped, pair = (folder / f"{name}.onnx" for name in ("free", "stepped", "pair"))
    write_cell(free, "lstm", weights, None, None, stepped=False)
    write_cell(stepped, "lstm", weights, 1, 1, stepped=True)
    write_pair(pair, size)
    one, two, states = (fastrnn.load(p, threads=1) for p in (free, pair, stepped))
    x, x3 = np.ones(size, np.float32), np.ones((1, 1, size), np.float32)
    a, b, out = np.ones(size // 2, np.float32), np.ones(size // 2, np.float32), np.empty(size, np.float32)
    outs = np.empty(size // 2, np.float32), np.empty(size // 2, np.float32)
    a3, b3 = np.ones((1, 1, size // 2), np.float32), np.ones((1, 1, size // 2), np.float32)
    h, c = np.zeros((1, 1, size), np.float32), np.zeros((1, 1, size), np.float32)
    lone, both, chunk, chunks = x[None].copy(), (a, b), (a[None].copy(), b[None].copy()), {"a": a, "b": b}
    stream, pairs, pool, pools = one.stream(), two.stream(), one.pool(4), two.pool(4)
    batch = two.stream(4)
    rows = np.ones((4, size // 2), np.float32), np.ones((4, size // 2), np.float32)
    slot, slots = np.array([pool.open()]), np.array([pools.open()])
    p1, p2 = np.ones((1, size // 2), np.float32), np.ones((1, size // 2), np.float32)
    calls: Calls = {
        "step": lambda: stream.step(x),
        "step, out": lambda: stream.step(x, out),
        "push of 1": lambda: stream.push(lone),
        "step, 2 in 2 out": lambda: pairs.step(both),
        "step, 2 in 2 out, out": lambda: pairs.step(both, outs),
        "step, 2 in 2 out, dict": lambda: pairs.step(chunks),
        "step, 2 in 2 out, batch 4": lambda: batch.step(rows),
        "push of 1, 2 in 2 out": lambda: pairs.push(chunk),
        "pool step": lambda: pool.step(slot, lone),
        "pool step, 2 in 2 out": lambda: pools.step(slots, (p1, p2)),
        "run": lambda: one.run(x3),
        "run, by name": lambda: one.run(X=x3),
        "call": lambda: one(x3),
        "run, 2 in 2 out": lambda: two.run(a3, b3),
        "run, 3 in 2 out": lambda: states.run(x3, h, c),
        "call, states left out": lambda: states(x3),
    }
    for name, path, feeds in (("", free, {"X": x3}), (", 3 in 2 out", stepped, {"X": x3, "h": h, "c": c})):
        calls |= sessions(name, path, feeds)
    return calls


def sessions(suffix: str, path: Path, feeds: dict[str, np.ndarray]) -> Calls:
    """`run` and bound runs of our session and of onnxruntime's."""
    calls: Calls = {}
    ours = fastrnn.InferenceSession(str(path), threads=1)
    for who, session in (("session", ours), ("onnxruntime", ort_session(path))):
        if session is None:
            continue
        names = [o.name for o in session.get_outputs()]
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name in names:
            binding.bind_output(name)
        calls[f"{who} run{suffix}"] = lambda run=session.run: run(None, feeds)
        calls[f"{who} run by names{suffix}"] = lambda run=session.run, names=names: run(names, feeds)
        calls[f"{who} bound{suffix}"] = lambda run=session.run_with_iobinding, binding=binding: run(binding)
    return calls


def silero(folder: Path) -> Calls:
    """One frame of Silero VAD: by step, by run, and by a session."""
    path = folder / "silero_vad_v5.onnx"
    frame, state = np.full((1, 512), 0.01, np.float32), np.zeros((2, 1, 128), np.float32)
    rate = np.array(16000, np.int64)
    feeds = {"input": frame, "state": state, "sr": rate}
    model = fastrnn.load(path, bind={"sr": 16000}, threads=1)
    selected = fastrnn.load(path, threads=1)
    stream = model.stream()
    lone = frame[0].copy()
    calls: Calls = {
        "silero step": lambda: stream.step(lone),
        "silero run": lambda: model.run(frame, state),
        "silero run, sr fed": lambda: selected.run(frame, state, rate),
    }
    ours, theirs = fastrnn.InferenceSession(str(path), threads=1), ort_session(path)
    calls["silero session run"] = lambda: ours.run(None, feeds)
    if theirs is not None:
        calls["silero onnxruntime run"] = lambda: theirs.run(None, feeds)
    return calls


def show_kinds(calls: Calls, rounds: int) -> None:
    """A line for each kind of call."""
    found = timed(calls, rounds)
    step = next(iter(found.values()))[1]
    print(f"{'call':34} {'least':>8} {'median':>8}   over the first")
    for name, (least, median) in found.items():
        print(f"{name:34} {least:8.3f} {median:8.3f} {median - step:+10.3f}")


def show_grid(folder: Path, cells: list[str], sizes: list[int], steps: list[int], rounds: int) -> None:
    """`run` and the session's `run` beside onnxruntime's `run`, with the geometric means of the ratios."""
    for T in steps:
        ratios: dict[str, list[float]] = {"run": [], "session": []}
        for kind in cells:
            for size in sizes:
                path = folder / f"{kind}-{size}.onnx"
                write_cell(path, kind, cell_weights(kind, size, size, 0), None, None, stepped=False)
                model, x = fastrnn.load(path, threads=1), np.ones((T, 1, size), np.float32) / 8
                ours, theirs, feeds = fastrnn.InferenceSession(str(path), threads=1), ort_session(path), {"X": x}
                if theirs is None:
                    sys.exit("the grid compares with onnxruntime: pip install onnxruntime")
                calls: Calls = {
                    "run": lambda model=model, x=x: model.run(x),
                    "session": lambda ours=ours, feeds=feeds: ours.run(None, feeds),
                    "theirs": lambda theirs=theirs, feeds=feeds: theirs.run(None, feeds),
                }
                found = {name: median for name, (_, median) in timed(calls, rounds).items()}
                line = f"{kind}-{size:<4} {T:3} steps"
                for name, known in ratios.items():
                    known.append(found["theirs"] / found[name])
                    line += f"   {name} {found[name]:7.2f} ({known[-1]:5.2f}x)"
                print(f"{line}   onnxruntime {found['theirs']:7.2f}", flush=True)
        means = ", ".join(f"{name} {statistics.geometric_mean(r):.2f}x" for name, r in ratios.items())
        print(f"{T} steps, geometric means over onnxruntime's run: {means}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", choices=("lstm", "gru", "rnn"), help="the grid of these cells")
    parser.add_argument("--sizes", nargs="*", type=int, default=[16, 32, 64, 128])
    parser.add_argument("--steps", nargs="*", type=int, default=[1, 10], help="of one run of the grid")
    parser.add_argument("--models", type=Path, help="folder with silero_vad_v5.onnx")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.cells:
            show_grid(folder, given.cells, given.sizes, given.steps, given.rounds)
            return
        show_kinds(every_kind(folder, 16), given.rounds)
        if given.models:
            show_kinds(silero(given.models), given.rounds)


if __name__ == "__main__":
    main()
