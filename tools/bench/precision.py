"""From how many weights on a layer gains by a number format: the figures behind `LEAST` of passes/precision.py.

    python tools/bench/precision.py [KIND ...] [--rows 1 16] [--seconds 0.3] [--json FILE]

Times one layer at a time, alone, steps in a row, in float32 and in each other format by turns. Prints how many times as
fast as in float32 each is, by size and rows, and where it crosses: the least weights from which on every size gains, by
the geometric mean over the rows. "thin" are linear layers of few columns, by columns. An embedding is timed over many
random rows of its table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fastrnn
from fastrnn.graph.precision import PRECISIONS
from fastrnn.insight.choosing.timing import layer_times

MARGIN = 1.02  # less is within the noise of a measurement
LOOKUPS = 2000  # rows of a table in one call
SIZES = {
    "lstm": (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    "gru": (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    "rnn": (16, 32, 64, 96, 128, 192, 256, 384, 512, 1024),
    "linear": (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024),
    "thin": (1, 4, 8, 16, 32, 48, 64),
    "conv": (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    "embedding": (100, 300, 1000, 3000, 10_000, 30_000, 100_000),
}


def layers(kind: str, size: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Weights and words of a model of one layer with `size` inputs and outputs (an embedding: rows)."""
    rng = np.random.default_rng(size)

    def weights(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    gates = {"lstm": 4, "gru": 3, "rnn": 1}.get(kind)
    if gates:
        named = {"weight_ih_l0": weights(gates * size, size), "weight_hh_l0": weights(gates * size, size)}
        named |= {"bias_ih_l0": weights(gates * size), "bias_hh_l0": weights(gates * size)}
        return {f"a.{name}": array for name, array in named.items()}, [f"{kind}:a"]
    if kind == "linear":
        return {"a.weight": weights(size, size), "a.bias": weights(size)}, ["linear:a"]
    if kind == "thin":
        return {"a.weight": weights(size, 2048), "a.bias": weights(size)}, ["linear:a"]
    if kind == "conv":
        return {"a.weight": weights(size, size, 3), "a.bias": weights(size)}, ["conv1d:a(padding=causal)"]
    return {"a.weight": weights(size, 256)}, ["embedding:a"]


def models(kind: str, size: int) -> dict[str, fastrnn.Model]:
    """Precision -> the model."""
    named, words = layers(kind, size)
    (name,) = (info.name for info in fastrnn.load(named, layers=words).layers)
    return {p: fastrnn.load(named, layers=words, precision={name: p}, threads=1) for p in PRECISIONS}


def times(kind: str, size: int, rows: int, seconds: float) -> dict[str, float]:
    """Precision -> ns of the layer in one step."""
    made = models(kind, size)
    if kind != "embedding":
        return {p: next(iter(found.values())) for p, found in layer_times(made, rows, 1, seconds).items()}
    index = np.random.default_rng(1).integers(0, size, (rows, LOOKUPS))
    return {p: ns / LOOKUPS for p, ns in by_turns({p: lambda m=m: m(index) for p, m in made.items()}, seconds).items()}


def by_turns(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """ns of each call, the lower quartile."""
    rounds: list[list[int]] = []
    begin = time.perf_counter()
    while len(rounds) < 7 or time.perf_counter() - begin < seconds:
        rounds.append([])
        for call in calls.values():
            start = time.perf_counter_ns()
            call()
            rounds[-1].append(time.perf_counter_ns() - start)
    return dict(zip(calls, map(float, np.quantile(rounds, 0.25, axis=0)), strict=True))


def weights_of(kind: str, size: int) -> int:
    """Weights of the layer that precisions apply to."""
    return sum(a.size for name, a in layers(kind, size)[0].items() if "bias" not in name)


def crossing(gains: dict[int, list[float]]) -> int | None:
    """The least number of weights from which on every one gains; None if the largest does not."""
    least = None
    for count in sorted(gains, reverse=True):
        if np.exp(np.mean(np.log(gains[count]))) < MARGIN:
            break
        least = count
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(SIZES)}; default: all")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    parser.add_argument("--json", metavar="FILE", help="write the figures, too")
    args = parser.parse_args()
    record = []
    for kind in args.kinds or SIZES:
        found: dict[str, dict[int, list[float]]] = {p: {} for p in PRECISIONS[1:]}
        for rows, size in itertools.product(args.rows, SIZES[kind]):
            ns, count = times(kind, size, rows, args.seconds), weights_of(kind, size)
            gains = {p: ns["float32"] / ns[p] for p in found}
            for p, gain in gains.items():
                found[p].setdefault(count, []).append(gain)
            shown = "  ".join(f"{p} {gain:5.2f}" for p, gain in gains.items())
            print(f"{kind:9} {size:6} {count:9} weights, {rows:3} rows: {ns['float32']:10.0f} ns  {shown}", flush=True)
            record.append({"kind": kind, "size": size, "weights": count, "rows": rows, "ns": ns})
        least = ", ".join(f"{p} {crossing(gains) or 'never'}" for p, gains in found.items())
        print(f"{kind:9} gains from as many weights: {least}\n", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
