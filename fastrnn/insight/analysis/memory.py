"""How a model remembers: how fast a push of its state decays, how long a fresh stream is wrong, what a touch does."""

from __future__ import annotations

import time

import numpy as np

from ...records import dataclass
from ...serving.stream import Stream
from .runner import Arrays, Runner

PUSH = 0.01  # of the state's norm
FORGOTTEN = 0.01  # of the push
LEAST_SEEN = 1e-3  # of the push: below it, float32's rounding of the state (1e-7 / PUSH) begins to show in a fit
STOP = 1e-4
LONGEST, LEAST_FOLLOWED = 2000, 100  # steps that a push is followed: at most, and at least regardless of time
STARTS = (8, 4, 2)  # a push, and a fresh stream, begins after 1/8, 1/4, 1/2 of the data
WARM = 0.01  # of an output's rms
TOUCH = 0.01  # of the input's rms
TOUCHES, REACH = 16, 64  # places that are touched, steps that are looked at afterwards
CURVE = 400  # points of a curve that are kept


@dataclass(frozen=True)
class Forgetting:
    """steps: median over rows and starts, None if more than half did not forget in `followed` steps; worst: the
    largest, None if one did not. decay: factor per step. curve: the median distance relative to the first, by step.
    warm_up: steps, None if a fresh stream did not converge to the running one by the end of the data."""

    steps: float | None
    worst: int | None
    decay: float | None
    curve: tuple[float, ...]
    followed: int
    warm_up: int | None
    warm_up_data: int


@dataclass(frozen=True)
class Touch:
    """response[k]: mean norm of the outputs' change k steps after the touch, over the norm of the touch.
    total: their sum; half: steps after which half of the sum is reached."""

    response: tuple[float, ...]
    total: float
    half: int


def forgetting(runner: Runner, x: Arrays, rng, seconds: float = 3.0) -> Forgetting | None:
    """Push the state at several places and follow it for about `seconds` at most; None for a model without float32
    states."""
    steps, ratios = runner.steps_of(x), []
    for part in STARTS:
        stream = runner.open(runner.rows_of(x))
        runner.answers(stream, runner.cut(x, 0, max(1, steps // part)))
        if not runner.flat_state(stream).size:
            return None
        ratios += _follow(runner, stream, _pushed(runner, stream, rng), x, max(1, steps // part), seconds / len(STARTS))
    times = [_settled(r, FORGOTTEN) for r in ratios]
    found = sorted(t if t is not None else np.inf for t in times)
    middle = float(np.median(found))
    longest = max(len(r) for r in ratios)
    padded = np.full((len(ratios), longest), np.nan)
    for row, ratio in zip(padded, ratios, strict=True):
        row[: len(ratio)] = ratio
        row[len(ratio) :] = ratio[-1]  # it had decayed, or time was up: its last distance is the best estimate
    curve = np.median(padded, axis=0)
    slopes = [s for s in map(_decay, ratios) if s is not None]
    warm_up, seen = _warm_up(runner, x)
    return Forgetting(
        middle if np.isfinite(middle) else None, int(found[-1]) if np.isfinite(found[-1]) else None,
        float(np.median(slopes)) if slopes else None, tuple(map(float, curve[:CURVE])), longest - 1, warm_up, seen,
    )  # fmt: skip


def _pushed(runner: Runner, stream: Stream, rng) -> Stream:
    """A copy whose float32 states are moved by PUSH of their norm, each row in its own direction."""
    other = stream.copy()
    shown = {s.name: s for s in stream._parts.layout.shown if s.dtype == "float32"}
    states = other.state
    norm = np.linalg.norm(runner.flat_state(stream), axis=1)
    moves = {n: rng.standard_normal(states[n].shape) for n in shown}
    squares = 0.0
    for name, move in moves.items():
        axis = shown[name].batch_axis
        rows = np.moveaxis(move, axis, 0) if axis >= 0 and runner.has_batch else move[None]
        squares = squares + np.sum(rows.reshape(rows.shape[0], -1) ** 2, axis=1)
    scale = PUSH * np.where(norm > 0, norm, np.sqrt(squares)) / np.sqrt(squares)
    for name, move in moves.items():
        axis = shown[name].batch_axis
        shape = [1] * move.ndim
        if axis >= 0 and runner.has_batch:
            shape[axis] = -1
        states[name] = (states[name] + move * scale.reshape(shape)).astype(states[name].dtype)
    other.state = states
    return other


def _follow(runner: Runner, stream: Stream, other: Stream, x: Arrays, first: int, seconds: float) -> list[np.ndarray]:
    """The distance of two streams' states over their first one, by step, one curve per row; the data repeat."""
    start = np.linalg.norm(runner.flat_state(other) - runner.flat_state(stream), axis=1)
    start[start == 0] = np.inf  # an all-zero state that a push did not move: forgotten at once
    curves, steps, end = [np.ones_like(start)], runner.steps_of(x), time.monotonic() + seconds
    for t in range(first, min(first + LONGEST, runner.horizon)):
        chunk = runner.cut(x, t % steps, t % steps + 1)
        runner.answers(stream, chunk)
        runner.answers(other, chunk)
        curves.append(np.linalg.norm(runner.flat_state(other) - runner.flat_state(stream), axis=1) / start)
        late = len(curves) > LEAST_FOLLOWED and time.monotonic() > end
        if late or curves[-1].max() < STOP or not np.isfinite(curves[-1]).all():
            break
    return list(np.array(curves).T)


def _settled(curve: np.ndarray, bound: float) -> int | None:
    """The first step from which on a curve stays at or below the bound; None if it ends above."""
    above = np.flatnonzero(~(curve <= bound))
    if not above.size:
        return 0
    return int(above[-1]) + 1 if above[-1] + 1 < len(curve) else None


def _decay(curve: np.ndarray) -> float | None:
    """exp of the slope of the curve's logarithm, over its beginning, which is well above rounding errors."""
    low = np.flatnonzero(~(curve > LEAST_SEEN))
    end = int(low[0]) if low.size else len(curve)
    if end < 2:  # gone in a step
        return float(curve[1]) if len(curve) > 1 else None
    return float(np.exp(np.polyfit(np.arange(end), np.log(curve[:end]), 1)[0]))


def _warm_up(runner: Runner, x: Arrays) -> tuple[int | None, int]:
    """(steps until a fresh stream agrees with the running one, for the worst start; steps of data that were used)."""
    steps, worst, seen = runner.steps_of(x), 0, 0
    clean = runner.run(x)
    for part in STARTS:
        first = max(1, steps // part)
        stream = runner.open(runner.rows_of(x))
        if stream.delay:
            return None, 0
        fresh = runner.answers(stream, runner.cut(x, first, steps))
        for y, z, o in zip(clean, fresh, runner.outputs, strict=True):
            if not o.timed or y.shape[1] != steps or z.shape[1] != steps - first:
                continue
            rms = float(np.sqrt(np.mean(y**2)))
            gap = np.abs(z - y[:, first:]).reshape(z.shape[0], z.shape[1], -1).max(axis=(0, 2))
            settled = _settled(gap / rms if rms else gap, WARM)
            if settled is None:
                return None, steps - first
            worst, seen = max(worst, settled), max(seen, steps - first)
    return (worst, seen) if seen else (None, 0)


def touch(runner: Runner, x: Arrays, rng) -> Touch | None:
    """Touch single steps of the first row and measure how far the outputs move afterwards."""
    steps = runner.steps_of(x)
    timed = [i for i, o in enumerate(runner.outputs) if o.timed]
    if not runner.real() or not timed:
        return None
    reach = min(REACH, max(1, steps // 2))
    places = np.unique(np.linspace(0, steps - reach, TOUCHES if runner.has_batch else 4).astype(int))
    row = {n: v[:1] for n, v in x.items()}
    clean = runner.run(row)
    if any(clean[i].shape[1] != steps for i in timed):
        return None
    touched, norms = _touched(runner, row, places, rng)
    if runner.has_batch:
        answers = runner.run(touched)
    else:
        each = [runner.run({n: v[i : i + 1] for n, v in touched.items()}) for i in range(len(places))]
        answers = [np.concatenate(parts) for parts in zip(*each, strict=True)]
    response = np.zeros(reach)
    for i, (place, norm) in enumerate(zip(places, norms, strict=True)):
        squares = sum(
            np.sum((answers[o][i] - clean[o][0]).reshape(steps, -1)[place : place + reach] ** 2, axis=1) for o in timed
        )
        response += np.sqrt(squares) / norm / len(places)
    total = float(response.sum())
    half = int(np.searchsorted(np.cumsum(response), total / 2)) if total > 0 else 0
    return Touch(tuple(map(float, response)), total, half)


def _touched(runner: Runner, row: Arrays, places, rng) -> tuple[Arrays, np.ndarray]:
    """The row once per place, with noise added at that step of every real input; and the norm of each touch."""
    real, squares = {a.name for a in runner.real()}, np.zeros(len(places))
    found = {}
    for name, v in row.items():
        rows = np.repeat(v, len(places), axis=0)
        if name in real:
            rms = float(np.sqrt(np.mean(np.square(v, dtype=np.float64)))) or 1.0
            before = rows.astype(np.float64)
            for i, place in enumerate(places):
                rows[i, place] += (TOUCH * rms * rng.standard_normal(v.shape[2:])).astype(v.dtype)
            squares += np.sum((rows - before).reshape(len(places), -1) ** 2, axis=1)
        found[name] = rows
    return found, np.sqrt(np.maximum(squares, 1e-300))
