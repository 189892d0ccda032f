"""Writes tests/data/snapshots: models, snapshots of their streams and pools, and what comes next.

    PYTHONPATH=. python tools/make_golden_snapshots.py tests/data/snapshots/format2

Every later release must restore them (tests/runtime/test_golden_snapshots.py). So a folder is written once, by the
first release that writes the format, and never again: the tool refuses a folder that exists. For each model:

    NAME.fastrnn   the model, as that release saved it
    NAME.stream    a stream that has taken 7 steps; NAME.rows: three in lock-step; NAME.pool: a pool of 4 streams that
                   have taken 3, 4, 5 and 6 steps
    NAME.npz       x [5, features...], the next inputs; y_stream, y_rows, y_pool, what they give

It uses nothing but the public API, so that it also runs with an older release.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import fastrnn

ROOT = Path(__file__).resolve().parent.parent
ONNX = ROOT / "tests" / "data" / "onnx"
FILES = {
    "gru_stacked": "gru_stacked.script.onnx",
    "states": "gru_states.dynamo.onnx",
    "convolutions": "batch_norm.script.onnx",
    "window": "causal_window.dynamo.onnx",
    "positions": "causal_positions.dynamo.onnx",
    "gated": "gated_head.script.onnx",
}
EQUATIONS = "h = tanh(W @ x + R @ prev(h) + Q @ prev(h, 2) + b); y = V @ h"
CONTEXT = {"context": 16}


def models() -> dict:
    """name -> (the model, options of its streams)."""
    rng = np.random.default_rng(15)

    def normal(*shape):
        return (rng.standard_normal(shape) * 0.4).astype(np.float32)

    found = {name: (fastrnn.load(ONNX / file), {}) for name, file in FILES.items()}
    lstm = {"W": normal(28, 3), "R": normal(28, 7), "Wb": normal(28), "Rb": normal(28), "P": normal(21)}
    found["lstm"] = fastrnn.from_arrays("lstm", **lstm), {}
    gru = {"W": normal(18, 3), "R": normal(18, 6), "Wb": normal(18), "h0": normal(6)}
    found["gru"] = fastrnn.from_arrays("gru", reset="before", **gru), {}
    shapes = {"W": (7, 3), "R": (7, 7), "Q": (7, 7), "b": (7,), "V": (2, 7)}
    found["equations"] = fastrnn.from_equations(EQUATIONS, **{k: normal(*s) for k, s in shapes.items()}), {}
    found["positions"] = found["positions"][0], CONTEXT
    return found


def inputs(model, count: int, seed: int) -> np.ndarray:
    """[count, features...] for the one input of a stream."""
    (value,) = [t for t in model.inputs if t.name not in {s.name for s in model.states}]
    features = [d for d in value.dims if isinstance(d, int)]
    rng = np.random.default_rng(seed)
    if value.dtype == "int64":
        return rng.integers(0, 5, (count, *features))
    return rng.standard_normal((count, *features)).astype(np.float32)


def first(result) -> np.ndarray:
    """The first output of a push."""
    return np.asarray(result[0] if isinstance(result, tuple) else result)


def write(folder: Path, name: str, model, options: dict) -> None:
    """All files of one model."""
    model.save(folder / f"{name}.fastrnn")
    x, arrays = inputs(model, 5, 1), {}
    stream, rows, pool = model.stream(**options), model.stream(3, **options), model.pool(8, **options)
    stream.push(inputs(model, 7, 2))
    stream.snapshot(folder / f"{name}.stream")
    arrays["y_stream"] = first(stream.push(x))
    rows.push(np.stack([inputs(model, 7, k) for k in (3, 4, 5)]))
    rows.snapshot(folder / f"{name}.rows")
    arrays["y_rows"] = first(rows.push(np.stack([x] * 3)))
    slots = [pool.open() for _ in range(4)]
    pool.push(slots, [inputs(model, 3 + k, 10 + k) for k in range(4)])
    pool.snapshot_all(folder / f"{name}.pool")
    arrays["y_pool"] = np.stack([first(y) for y in pool.push(slots, [x] * 4)])
    np.savez(folder / f"{name}.npz", x=x, **arrays)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    for name, (model, options) in models().items():
        write(folder, name, model, options)
    print(f"{len(list(folder.iterdir()))} files in {folder}")


if __name__ == "__main__":
    main()
