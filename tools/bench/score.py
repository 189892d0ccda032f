"""Bulk scoring beside `model.run` on the same cores, and beside onnxruntime in the same Ray Data pipeline.

    python tools/bench/score.py [--quick] [--json FILE] [--rows 12000] [--cores 2] [--no-ray | --no-files]

The model is an LSTM of 256 units with 40 features and 10 classes at each step, the data are sequences of 50 to 150
steps. Four figures, measured by turns, `--tries` times; each figure is the best one, and each share the median of those
of the rounds, so that a machine that is busy for a while counts for both:

* `model.run`: rows that are in memory, sorted by length, in batches of 128 that are as long as their shortest row and
  so need no padding: the most that the same cores can do. Each core runs a batch of its own. Steps a second count.
* `fastrnn score`: the same rows from a parquet file into one, reading and writing included. Target: 90 % of it.
* `fastrnn.ray.score`: the rows are blocks in Ray's memory, an actor per core; from the begin of the first batch to the
  end of the last one, since actors start once. Target: 90 %.
* onnxruntime in the same pipeline: an actor per core, with one thread, sorts a batch by length, pads 128 rows at a
  time to the longest, and cuts the answers. Target: fastrnn at least 1.5 times as fast.

It takes about a minute. Answers of both engines are compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import fastrnn
from fastrnn.scoring.columns import Side, column_of

ROOT = Path(__file__).resolve().parent.parent.parent
FEATURES, UNITS, CLASSES = 40, 256, 10
LEAST, MOST, TOGETHER = 50, 150, 128
COMPARED = 200  # rows of both engines


def onnx_file(folder: Path) -> Path:
    """The model as an ONNX file, as PyTorch would write it."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)

    def made(name, *shape):
        return numpy_helper.from_array((rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32), name)

    weights = [made("W", 1, 4 * UNITS, FEATURES), made("R", 1, 4 * UNITS, UNITS), made("B", 1, 8 * UNITS)]
    weights += [made("V", UNITS, CLASSES), numpy_helper.from_array(np.array([1]), "one")]
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["xt", "W", "R", "B"], ["h"], hidden_size=UNITS),
        helper.make_node("Squeeze", ["h", "one"], ["hs"]),
        helper.make_node("Transpose", ["hs"], ["hb"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["hb", "V"], ["z"]),
        helper.make_node("Softmax", ["z"], ["y"], axis=-1),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "time", s])
        for n, s in (("x", FEATURES), ("y", CLASSES))
    ]
    graph = helper.make_graph(nodes, "scored", ends[:1], ends[1:], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "m.onnx")
    return folder / "m.onnx"


def table_of(rows: list[np.ndarray]) -> pa.Table:
    """Rows as a table with an id."""
    return pa.table({"id": np.arange(len(rows)), "x": column_of(rows, Side("x", "x", "float32", True, (FEATURES,)))})


class Runs:
    """`model.run` of batches of equal lengths, on each core."""

    def __init__(self, model, rows: list[np.ndarray], cores: int):
        self.model, self.cores, ordered = model, cores, sorted(rows, key=len)
        parts = [ordered[at : at + TOGETHER] for at in range(0, len(ordered), TOGETHER)]
        self.batches = [np.stack([r[: len(some[0])] for r in some]) for some in parts]
        self.steps = sum(b.shape[0] * b.shape[1] for b in self.batches)

    def rate(self) -> float:
        """Steps a second."""
        with ThreadPoolExecutor(self.cores) as pool:
            began = time.perf_counter()
            list(pool.map(self.model.run, self.batches))
            return self.steps / (time.perf_counter() - began)


def score_rate(model, data: Path, folder: Path, steps: int, cores: int) -> float:
    """Steps a second of `fastrnn.score`."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        began = time.perf_counter()
        fastrnn.score(data, model, out, threads=cores)
        return steps / (time.perf_counter() - began)


class OnnxruntimeActor:
    """The pipeline as it is written with onnxruntime."""

    def __init__(self, path: str):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, table: pa.Table) -> pa.Table:
        began = time.time()
        column = table.column("x").combine_chunks()
        inner = column.values
        flat = inner.values.to_numpy()
        first, second = column.offsets.to_numpy(), inner.offsets.to_numpy()
        rows = [flat[second[a] : second[b]].reshape(b - a, FEATURES) for a, b in itertools.pairwise(first)]
        order, answers = np.argsort([len(r) for r in rows], kind="stable"), [None] * len(rows)
        for at in range(0, len(rows), TOGETHER):
            some = order[at : at + TOGETHER]
            x = np.zeros((len(some), max(len(rows[i]) for i in some), FEATURES), np.float32)
            for k, i in enumerate(some):
                x[k, : len(rows[i])] = rows[i]
            (y,) = self.session.run(None, {"x": x})
            for k, i in enumerate(some):
                answers[i] = y[k, : len(rows[i])]
        found = pa.table(
            {"id": table.column("id"), "y": column_of(answers, Side("y", "y", "float32", True, (CLASSES,)))}
        )
        return timed(found, began)


class FastrnnActor:
    """What `fastrnn.ray.score` runs, with the time of each batch."""

    def __init__(self, shipped, threads: int):
        from fastrnn.ray.scoring import _Actor

        self.actor = _Actor(shipped, threads)

    def __call__(self, table: pa.Table) -> pa.Table:
        began = time.time()
        return timed(self.actor(table), began)


def timed(table: pa.Table, began: float) -> pa.Table:
    """The table with the time at which its batch began and ended."""
    n = table.num_rows
    return table.append_column("began", pa.array([began] * n)).append_column("ended", pa.array([time.time()] * n))


def ray_rate(dataset, actor, given: tuple, steps: int, cores: int) -> tuple[float, dict]:
    """(steps a second of a pipeline, some of its answers by id)."""
    import ray

    done = dataset.map_batches(
        actor, fn_constructor_args=given, batch_format="pyarrow", batch_size=1024, zero_copy_batch=True, num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=cores),
    ).materialize()  # fmt: skip
    found = done.select_columns(["began", "ended"]).to_pandas()
    rate = steps / float(found["ended"].max() - found["began"].min())
    answers = {}
    for batch in done.iter_batches(batch_format="pyarrow"):
        small = batch.filter(pc.less(batch.column("id"), COMPARED))
        answers |= {r["id"]: np.array(r["y"], np.float32) for r in small.select(["id", "y"]).to_pylist()}
    return rate, answers


def with_ray(path: Path, model, table: pa.Table, runs: Runs, steps: int, args) -> dict:
    """The two pipelines, and `model.run` beside them."""
    import ray
    import ray.data

    from fastrnn.scoring import Scorer
    from fastrnn.scoring.shipping import Shipped

    env = {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    ray.init("local", num_cpus=args.cores, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": env})
    ray.data.DataContext.get_current().enable_progress_bars = False
    found: dict = {"run beside ray": [], "ray": [], "onnxruntime": []}
    try:
        blocks = [table.slice(at, 1024).combine_chunks() for at in range(0, table.num_rows, 1024)]
        dataset = ray.data.from_arrow(blocks)
        shipped = Shipped(Scorer(model, threads=1))
        for _ in range(args.tries):
            found["run beside ray"].append(runs.rate())
            ours, mine = ray_rate(dataset, FastrnnActor, (shipped, 1), steps, args.cores)
            theirs, other = ray_rate(dataset, OnnxruntimeActor, (str(path),), steps, args.cores)
            found["ray"].append(ours)
            found["onnxruntime"].append(theirs)
    finally:
        ray.shutdown()
    common = sorted(set(mine) & set(other))
    worst = max((float(np.abs(mine[i] - other[i]).max()) for i in common), default=float("nan"))
    return {**found, "difference": worst, "compared": len(common)}


def main(argv: list[str]) -> int:
    """The command; returns 1 if a target is missed."""
    parser = argparse.ArgumentParser(description="Bulk scoring beside model.run and beside onnxruntime.")
    parser.add_argument("--rows", type=int, default=12_000, help="sequences (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=2, help="cores of each engine (default: %(default)s)")
    parser.add_argument("--tries", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--no-ray", action="store_true", help="leave Ray out")
    parser.add_argument("--no-files", action="store_true", help="leave `fastrnn score` out")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, once")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    if args.quick:
        args.rows, args.tries = args.rows // 10, 1
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((n, FEATURES)).astype(np.float32) for n in rng.integers(LEAST, MOST + 1, args.rows)]
    steps = sum(map(len, rows))
    found: dict = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = onnx_file(folder)
        model, table = fastrnn.load(path, threads=1), table_of(rows)
        runs = Runs(model, rows, args.cores)
        runs.rate()
        if not args.no_files:
            pq.write_table(table, folder / "data.parquet", row_group_size=4096)
            found = {"run": [], "score": []}
            for _ in range(args.tries):
                found["run"].append(runs.rate())
                found["score"].append(score_rate(model, folder / "data.parquet", folder, steps, args.cores))
        if not args.no_ray:
            found |= with_ray(path, model, table, runs, steps, args)
    return report(found, args)


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over the rounds."""
    return float(np.median(np.divide(ours, theirs)))


def report(found: dict, args: argparse.Namespace) -> int:
    """Print the figures beside their targets."""
    missed = False
    print(f"LSTM {UNITS}, {FEATURES} features, {args.rows:,} sequences of {LEAST} to {MOST} steps, {args.cores} cores")
    for name, beside, label in (
        ("score", "run", "fastrnn score"),
        ("ray", "run beside ray", "fastrnn.ray.score"),
    ):
        if name in found:
            share = ratio(found[name], found[beside])
            missed |= share < 0.9
            print(f"{'model.run':<22} {max(found[beside]) / 1e6:8.3f} M steps/s")
            print(f"{label:<22} {max(found[name]) / 1e6:8.3f} M steps/s  {share:6.1%} of model.run (target 90 %)")
    if "onnxruntime" in found:
        times = ratio(found["ray"], found["onnxruntime"])
        missed |= times < 1.5 or not found["difference"] < 1e-4
        rate = f"{max(found['onnxruntime']) / 1e6:8.3f} M steps/s"
        print(f"{'onnxruntime in Ray':<22} {rate}  fastrnn is {times:.2f} times as fast (target 1.5)")
        print(f"largest difference of {found['compared']} sequences: {found['difference']:.2g}")
    if args.json:
        args.json.write_text(json.dumps({**found, "rows": args.rows, "cores": args.cores}) + "\n")
    return int(missed)


if __name__ == "__main__":
    # Under its own name, so that the actors' processes find these classes.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import score

    sys.exit(score.main(sys.argv[1:]))
