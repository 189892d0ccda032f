"""The cost of fewer bits: weights rounded to bfloat16 and int8, and a long float32 stream against float64."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ...graph import Graph
from ...model import Model
from ...records import dataclass
from .figures import ErrorFigures
from .float64 import Float64, Whole, chunkable
from .runner import Arrays, Runner

SPANS = 20  # successive parts of a long stream
FIRST, CHUNK = 4, 1000  # steps at a time: at first, and at most; few enough for any memory
IN_FLOAT32 = 0.5  # of the time for float64: the limit for the further steps, in float32 only
# op -> {input: its axis of outputs}: one int8 scale each
OUTPUT_AXES = {
    "cell": {1: 0, 2: 0},
    "linear": {1: 1},
    "conv": {1: 0},
    "conv_transpose": {1: 1},
    "gather": {0: 0},
}


@dataclass(frozen=True)
class Rounding:
    """Rounded weights. to: "bfloat16" or "int8"; bytes_before, bytes_after: of the matrices that were rounded."""

    to: str
    matrices: int
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
    """Outputs with the weights in bfloat16 and in int8; nothing for a model without matrices."""
    axes = _matrices(model.graph)
    found = []
    for to, rounded, size in (("bfloat16", to_bfloat16, 2), ("int8", to_int8, 1)):
        if not axes:
            break
        constants = dict(model.graph.constants)
        before = after = 0
        for name, axis in axes.items():
            array = constants[name]
            constants[name] = rounded(array, axis).astype(array.dtype)
            before += array.nbytes
            after += size * array.size + (4 * array.shape[axis] if to == "int8" else 0)
        runner = Runner(Model(model.graph.replace(constants=constants), model.threads))
        found.append(Rounding(to, len(axes), before, after, *figures.errors(runner.run(x))))
    return tuple(found)


def _matrices(graph: Graph) -> dict[str, int]:
    """Constants that are matrices of weights -> the axis of their outputs."""
    found = {}
    for node in graph.nodes:
        for i, axis in OUTPUT_AXES.get(node.op, {}).items():
            name = node.inputs[i] if i < len(node.inputs) else None
            array = graph.constants.get(name) if name is not None else None
            if array is not None and array.ndim >= 2 and array.dtype.kind == "f":
                found[name] = axis
    return found


def to_bfloat16(array: np.ndarray, axis: int = 0) -> np.ndarray:
    """Each float32 rounded to the nearest of 8 significant bits, halves to even; NaN and infinity stay."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(array), rounded.astype(np.uint32).view(np.float32), array)


def to_int8(array: np.ndarray, axis: int) -> np.ndarray:
    """Each number rounded to a multiple of largest / 127 of its place along `axis`."""
    others = tuple(i for i in range(array.ndim) if i != axis)
    scale = np.max(np.abs(array), axis=others, keepdims=True) / 127
    scale[scale == 0] = 1
    return np.rint(array / scale) * scale


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
