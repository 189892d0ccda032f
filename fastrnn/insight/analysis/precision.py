"""The cost of fewer bits: layers in reduced precision, and a long stream against float64."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ...graph.precision import PRECISIONS
from ...model import Model
from ...passes import precision_of
from ...passes.precision import is_reduced
from ...records import dataclass
from ..formats import in_precision, widened
from .figures import ErrorFigures
from .float64 import Float64, Whole, chunkable
from .runner import Arrays, Runner

SPANS = 20  # successive parts of a long stream
FIRST, CHUNK = 4, 1000  # steps at a time: at first, and at most; few enough for any memory
IN_FLOAT32 = 0.5  # of the time for float64: the limit for the further steps, in float32 only


@dataclass(frozen=True)
class Rounding:
    """A model in reduced precision. to: the format; layers: how many hold their weights in it; bytes_before,
    bytes_after: of the constants of those layers. to "float32" are the layers of a model in reduced precision."""

    to: str
    layers: int
    bytes_before: int
    bytes_after: int
    relative_error: float
    largest_change: float
    decisions_changed: float | None


@dataclass(frozen=True)
class Drift:
    """A long stream. steps: streamed steps; compared: those compared with float64; spans: (first step, relative
    error) of successive parts; finite: nothing became NaN or infinite; largest_state: of the float32 state at the
    ends of all spans."""

    steps: int
    compared: int
    spans: tuple[tuple[int, float], ...]
    largest_change: float
    finite: bool
    largest_state: float | None
    how: str


def roundings(model: Model, x: Arrays, figures: ErrorFigures) -> tuple[Rounding, ...]:
    """Outputs with every float32 layer in each other format that it can have, as `load(precision=...)` computes them.
    Of a model in reduced precision, first those with its weights as they are and everything else in float32."""
    runner, found = Runner(model), []
    models = {} if not is_reduced(model.graph) else {"float32": Model(widened(model.graph), model.threads)}
    models |= {p: in_precision(model, p)[0] for p in PRECISIONS[1:]}
    before, own = precision_of(model.graph), {i.name: i.bytes for i in model.layers}
    for to, other in models.items():
        after = precision_of(other.graph)
        changed = [name for name in own if name in before and before[name] != after[name]]
        if changed:
            size = {i.name: i.bytes for i in other.layers}
            sizes = sum(own[name] for name in changed), sum(size[name] for name in changed)
            found.append(Rounding(to, len(changed), *sizes, *figures.errors(runner.run(x, other))))
    return tuple(found)


def drift(runner: Runner, x: Arrays, steps: int, seconds: float, progress: Callable[[float], None]) -> Drift | str:
    """Stream the data repeatedly, `steps` steps, or as many as fit into 1.5 x `seconds`. float64 runs alongside, as far
    as it gets in `seconds`.

    Returns the reason if this is not possible.
    """
    timed = [i for i, o in enumerate(runner.outputs) if o.timed]
    row = {n: v[:1] for n, v in x.items()}
    if not runner.streams:
        return "the model does not stream"
    stream = runner.open(1)
    if stream.delay or not timed or runner.run(row)[timed[0]].shape[1] != runner.steps_of(x):
        return "the outputs lag behind the inputs, or have fewer steps"
    steps = min(steps, runner.horizon)
    exact: Float64 | Whole = Float64(runner.model.graph)
    reach = steps  # of float64
    if not exact.timed:
        how = "step by step"
    elif chunkable(runner, row):
        how = "chunk by chunk"
    else:
        exact = Whole(runner, steps, 0.5 * seconds, lambda at, n: _circle(runner, row, at, n))
        how, reach = "in one run", exact.steps
    errors, levels, at, first = [], [], 0, time.monotonic()
    compared, finite, largest, state = 0, True, 0.0, 0.0
    going, size, spent = True, FIRST, 0.0
    while at < steps and spent < (1 + IN_FLOAT32) * seconds:
        n = min(size, (reach if going else steps) - at)
        chunk = _circle(runner, row, at, n)
        got = runner.answers(stream, chunk)
        finite = finite and all(np.isfinite(y).all() for y in got)
        flat = runner.flat_state(stream)
        state = max(state, float(np.abs(flat).max(initial=0.0)))
        if going:
            want = exact.push({a.name: chunk[a.name] for a in runner.inputs}, runner)
            gap = [got[i].reshape(n, -1) - want[i].reshape(n, -1) for i in timed]
            errors.append(np.sum([np.sum(g**2, axis=1) for g in gap], axis=0))
            levels.append(np.sum([np.sum(want[i].reshape(n, -1) ** 2, axis=1) for i in timed], axis=0))
            largest = max(largest, *(float(np.abs(g).max(initial=0.0)) for g in gap))
            compared += n
        at += n
        before, spent = spent, time.monotonic() - first
        going = spent < seconds and at < reach
        if spent - before < 0.05 * seconds:  # else twice as many steps could far exceed the remaining time
            size = min(2 * size, CHUNK)
        progress(at / steps)
    return Drift(
        at, compared, _spans(np.concatenate(errors), np.concatenate(levels)), largest, finite,
        state if flat.size else None, how,
    )  # fmt: skip


def _circle(runner: Runner, row: Arrays, first: int, count: int) -> Arrays:
    """Steps first.. of the endlessly repeated data."""
    steps = runner.steps_of(row)
    places = np.arange(first, first + count) % steps
    return {a.name: np.ascontiguousarray(row[a.name][:, places]) if a.timed else row[a.name] for a in runner.inputs}


def _spans(errors: np.ndarray, levels: np.ndarray) -> tuple[tuple[int, float], ...]:
    found = []
    for part in np.array_split(np.arange(len(errors)), min(SPANS, len(errors))):
        level = levels[part].sum()
        found.append((int(part[0]), float(np.sqrt(errors[part].sum() / level)) if level > 0 else float("nan")))
    return tuple(found)
