"""Compare the performance model with a benchmark record, save the figures for its test, or fit its factors.

    fastrnn bench --engines fastrnn --grid step --grid odd --grid batch --grid sequence --no-costs --json bench.json
    python tools/cost_model.py bench.json                      # on the machine that ran it, soon after
    python tools/cost_model.py measure                         # the same cases, for a machine that others use too
    python tools/cost_model.py measure --keep tests/data/bench_figures.json
    python tools/cost_model.py tests/data/bench_figures.json --fit
    python tools/cost_model.py measure --precision bfloat16 int8 int8-a16 --keep tests/data/bench_figures_reduced.json

Prints every case whose prediction is more than 30 % off, and the share of cases within 30 %. In a benchmark record,
cases with a shared core (CPU time below 97 % of wall time) say nothing about the engine: they are left out and counted.
`measure` uses CPU time instead. On a free core it equals wall time, and other processes hardly affect it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path

import numpy as np

from fastrnn.bench.cases import cases_of
from fastrnn.bench.models import cell_weights
from fastrnn.graph import Graph, Node, Value, validate
from fastrnn.graph.cells import CellSpec
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.graph.precision import PRECISIONS
from fastrnn.insight import cost_model, limits
from fastrnn.insight.limits import Limits
from fastrnn.machine.cpu import cpu_info
from fastrnn.model import Model

BUSY = 0.97
GRIDS = ("step", "odd", "batch", "sequence")
ROUNDED = [(kind, H, batch) for kind in ("lstm", "gru") for H in (64, 128, 256, 512) for batch in (1, 4, 16, 128)]
BATCH_NS, ROUNDS, CASE_NS = 100_000, 25, 400_000_000
FITTED = ("fma", "narrow", "read", "op", "step", "row", "update", "activation", "chain")


def figures_of(record: dict) -> dict:
    """{"limits", "cases": [{id, kind, H, batch, steps, ns}]} of a benchmark's record (limits: this machine's, measured
    now, each the best of three), or the record itself if it already has this form."""
    if "limits" in record:
        return record
    cases, shared = [], 0
    for case in record["cases"]:
        result = case["results"].get("fastrnn", {})
        if case["kind"] == "model" or result.get("status") != "ok":
            continue
        if result["cpu_share"] < BUSY:
            shared += 1
            continue
        cases.append(
            {"id": case["id"], "kind": case["kind"], "H": case["H"], "batch": case["batch"], "steps": case["T"],
             "ns": round(result["median_ns"], 1)}
        )  # fmt: skip
    print(f"{shared} cases left out: other processes took the core")
    return {
        "machine": record["machine"]["cpu"],
        "limits": limits.best_of(*(limits.measure() for _ in range(3))).as_dict(),
        "cases": cases,
    }


def entries_of(precision: str) -> list[dict]:
    """The cases to measure: those of the benchmark's grids, or steps of cells in reduced precision."""
    if precision == "float32":
        return [
            {"id": c.id, "kind": c.kind, "H": c.H, "batch": c.batch, "steps": c.T, "precision": precision}
            for c in cases_of(GRIDS)
        ]
    return [
        {"id": f"{precision}/{kind}-{H}/B{b}", "kind": kind, "H": H, "batch": b, "steps": 1, "precision": precision}
        for kind, H, b in ROUNDED
    ]


def measure(made: dict, precisions: list[str]) -> dict:
    """Figures of the cases in CPU time: medians over short batches of calls."""
    from fastrnn.insight.profiling import Call

    cases = []
    for entry in (entry for precision in precisions for entry in entries_of(precision)):
        plan_of(entry, made)
        calls = Call(made[key_of(entry)], entry["batch"], entry["steps"]).calls
        calls(2)
        first = cpu_ns(calls, 1)
        group, times = max(1, int(BATCH_NS / max(first, 1))), []
        while len(times) < ROUNDS and (len(times) < 3 or sum(times) * group < CASE_NS):
            times.append(cpu_ns(calls, group) / group)
        cases.append({**entry, "ns": round(float(np.median(times)), 1)})
    return {
        "machine": cpu_info().name,
        "limits": limits.best_of(*(limits.measure() for _ in range(3))).as_dict(),
        "cases": cases,
    }


def cpu_ns(calls, count: int) -> int:
    """CPU time of `count` calls by this thread."""
    start = time.thread_time_ns()
    calls(count)
    return time.thread_time_ns() - start


def key_of(case: dict) -> tuple:
    """What the model of a case depends on."""
    return case["kind"], case["H"], case.get("precision", "float32")


def plan_of(case: dict, made: dict):
    """The plan of a case's model: one cell."""
    key = key_of(case)
    if key not in made:
        kind, H, precision = key
        arrays = cell_weights(kind, H, H, 0)
        values = [Value(n, "float32", (TIME, BATCH, H)) for n in "xy"]
        values += [Value(n, "float32", a.shape) for n, a in arrays.items()]
        spec = CellSpec(kind, H, H, linear_before_reset=kind == "gru")
        node = Node("cell", "cell", ("x", *arrays), ("y",), {"spec": spec})
        graph = Graph(f"{kind}{H}", ("x",), ("y",), (node,), {v.name: v for v in values}, arrays)
        made[key] = Model(validate(graph), 1, {"cell": precision})
    return made[key]._core._program("stream" if case["steps"] == 1 else "run").plan


def ratios(figures: dict, factors: cost_model.Factors, made: dict) -> np.ndarray:
    """Predicted time over measured time, per case."""
    machine = Limits.from_dict(figures["limits"])
    found = []
    for case in figures["cases"]:
        plan = plan_of(case, made)
        sizes = {"batch": case["batch"], "time": case["steps"], "span": case["steps"]}
        context = cost_model.CallCosts(plan, machine, sizes, cost_model.footprint_of(plan), 1, factors)
        overhead = machine.step_ns if case["steps"] == 1 else machine.run_ns
        found.append((overhead + sum(cost_model.cost_of(op, context).ns for op in plan.ops)) / case["ns"])
    return np.array(found)


def fit(figures: dict, made: dict, rounds: int = 15) -> cost_model.Factors:
    """Factors with the least squared logarithm of the ratios: damped Gauss-Newton over their logarithms."""
    start = cost_model.FACTORS

    def factors(x):
        return dataclasses.replace(start, **dict(zip(FITTED, map(float, np.exp(x)), strict=True)))

    def error(x):
        return np.log(ratios(figures, factors(x), made))

    x, damping = np.log([getattr(start, name) for name in FITTED]), 1e-2
    e = error(x)
    for _ in range(rounds):
        steps = np.eye(len(x)) * 1e-3
        J = np.stack([(error(x + s) - e) / 1e-3 for s in steps], axis=1)
        new = x + np.clip(np.linalg.solve(J.T @ J + damping * np.eye(len(x)), -J.T @ e), -0.4, 0.4)
        after = error(new)
        better = after @ after < e @ e
        damping *= 0.5 if better else 5
        x, e = (new, after) if better else (x, e)
    return factors(x)


def report(figures: dict, factors: cost_model.Factors, made: dict) -> bool:
    """Print the cases that are off; returns whether 9 of 10 are within 30 %."""
    found = ratios(figures, factors, made)
    for case, ratio in zip(figures["cases"], found, strict=True):
        if not 0.7 <= ratio <= 1.3:
            print(f"{case['id']:32} {case['ns'] / 1e3:10.2f} us measured, predicted {ratio - 1:+.0%}")
    within = np.mean((found >= 0.7) & (found <= 1.3))
    spread = math.sqrt(np.mean(np.log(found) ** 2))
    print(f"{within:.1%} of {len(found)} cases within 30 %; root mean square {spread:.1%}")
    return bool(within >= 0.9)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", help="JSON of fastrnn bench, figures that --keep wrote, or the word measure")
    parser.add_argument("--keep", type=Path, help="write the figures there")
    parser.add_argument("--precision", nargs="+", default=["float32"], choices=PRECISIONS, help="of what is measured")
    parser.add_argument("--fit", action="store_true", help="fit the factors and print them")
    args = parser.parse_args(argv)
    made: dict = {}
    figures = (
        measure(made, args.precision)
        if args.record == "measure"
        else figures_of(json.loads(Path(args.record).read_text()))
    )
    if args.keep:
        rows = ",\n".join(json.dumps(case) for case in figures["cases"])
        head = json.dumps({k: v for k, v in figures.items() if k != "cases"})
        args.keep.write_text(f'{head[:-1]}, "cases": [\n{rows}\n]}}\n')
    ok = report(figures, cost_model.FACTORS, made)
    if args.fit:
        factors = fit(figures, made)
        print("fitted:", ", ".join(f"{n} = {getattr(factors, n):.3g}" for n in FITTED))
        ok = report(figures, factors, made)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
