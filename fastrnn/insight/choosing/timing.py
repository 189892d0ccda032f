"""Times of layers and of whole calls of several models, measured by turns so that other load hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...compile.plan import Plan
from ...model import Model
from ...passes import precision_of
from ...runtime._timing import clock_ns
from ..profiling import Call

LEAST_ROUNDS, MOST_ROUNDS = 7, 400
QUIET = 0.25  # the quantile of the rounds that counts: other processes only slow rounds down, and a few by chance don't


def layer_times(
    models: Mapping[str, Model],
    batch: int,
    steps: int,
    seconds: float,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, dict[str, float]]:
    """Name of a model -> layer -> ns of its ops in one call with one thread. The models differ in precision only.

    An op of a cycle is timed as a whole, so layers inside one have the time of the cycle.
    """
    calls = {name: Call(Model(model.graph, 1), batch, steps) for name, model in models.items()}
    groups = {name: call.group() for name, call in calls.items()}
    rounds: dict[str, list[np.ndarray]] = {name: [] for name in calls}
    extra, begin = clock_ns(), time.perf_counter()
    for done in range(MOST_ROUNDS):
        spent = time.perf_counter() - begin
        if done >= LEAST_ROUNDS and spent > seconds:
            break
        for name, call in calls.items():
            rounds[name].append(_typical(call.op_ns(groups[name], extra)))
        progress(min(1.0, spent / seconds))
    found = {}
    for name, call in calls.items():
        quiet = np.quantile(rounds[name], QUIET, axis=0)
        layers = precision_of(models[name].graph)
        found[name] = {layer: float(quiet[_ops_of(call.plan, layer)].sum()) for layer in layers}
    return found


def _typical(ns: np.ndarray) -> np.ndarray:
    """Mean of the middle half of the calls, [calls, ops] -> [ops]: finer than the clock's ticks, which may be 10 ns."""
    part = len(ns) // 4
    return np.sort(ns, axis=0)[part : len(ns) - part].mean(axis=0)


def _ops_of(plan: Plan, layer: str) -> list[int]:
    """Places of the ops that a layer became, or of the cycle that contains them."""

    def within(op) -> bool:
        bodies = plan.bodies[op.fields["body"]] if op.kind == "loop" else ()
        return op.node == layer or any(within(inner) for inner in bodies)

    return [i for i, op in enumerate(plan.ops) if within(op)]


def paired_ns(calls: Sequence[Call], seconds: float) -> tuple[float, ...]:
    """ns of a call of each, by turns."""
    groups = [call.group() for call in calls]
    rounds, begin = [], time.perf_counter()
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < 10 * MOST_ROUNDS and time.perf_counter() - begin < seconds):
        rounds.append([call.total_ns(group) / group for call, group in zip(calls, groups, strict=True)])
    return tuple(map(float, np.quantile(rounds, QUIET, axis=0)))
