"""Dirty input: the errors of real sensors, networks and microphones."""

from __future__ import annotations

import numpy as np

from ...records import dataclass
from .figures import ErrorFigures
from .runner import Arrays, Runner

SNRS = (40, 30, 20, 10, 0)  # dB
IMPULSES = 0.01  # share of elements
DROPPED_STEPS = (0.01, 0.05, 0.2)
DROPPED_FEATURES = (0.05, 0.2)
SATURATION = (0.5, 0.25, 0.1)
GAPS = (1, 5, 20, 100)  # steps
RECOVERED = 0.01  # of the clean rms


@dataclass(frozen=True)
class Corruption:
    """One kind of error at one strength. kind: "noise", "impulses", "dropped steps", "dropped features", "saturation";
    strength: dB, or a share; unit: "dB" or "share". The other three: see `figures.DEFINITIONS`."""

    kind: str
    strength: float
    unit: str
    relative_error: float
    largest_change: float
    decisions_changed: float | None


@dataclass(frozen=True)
class Gap:
    """A number of missing steps, filled in one way ("zeroed", "held", "skipped"). error: after the gap; recovery:
    steps, None if the data end before."""

    steps: int
    fill: str
    error_within: float
    error_after: float
    recovery: int | None


def corruptions(runner: Runner, x: Arrays, figures: ErrorFigures, rng) -> tuple[Corruption, ...]:
    """Every kind at every strength; nothing for a model without real inputs."""
    if not runner.real():
        return ()
    found = []
    for kind, strengths, unit, spoil in (
        ("noise", SNRS, "dB", _noise),
        ("impulses", SNRS, "dB", _impulses),
        ("dropped steps", DROPPED_STEPS, "share", _drop_steps),
        ("dropped features", DROPPED_FEATURES, "share", _drop_features),
        ("saturation", SATURATION, "share", _saturate),
    ):
        for strength in strengths:
            dirty = _spoiled(runner, x, lambda v, spoil=spoil, s=strength: spoil(v, s, rng))
            found.append(Corruption(kind, strength, unit, *figures.errors(runner.run(dirty))))
    return tuple(found)


def quiet_inputs(runner: Runner, x: Arrays) -> list[str]:
    """The notes on inputs that are zero: corruption is proportional to them, so they stay clean."""
    names = [a.name for a in runner.real() if not np.any(x[a.name])]
    return [f"dirt: the data for {name} are all zero, and so is noise in proportion to them" for name in names]


def _spoiled(runner: Runner, x: Arrays, spoil) -> Arrays:
    """x with every real input corrupted, the rest untouched."""
    real = {a.name for a in runner.real()}
    return {n: np.ascontiguousarray(spoil(v), v.dtype) if n in real else v for n, v in x.items()}


def _rms(v: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(v, dtype=np.float64))))


def _noise(v, snr: float, rng):
    return v + rng.standard_normal(v.shape) * _rms(v) * 10 ** (-snr / 20)


def _impulses(v, snr: float, rng):
    height = _rms(v) * 10 ** (-snr / 20) / np.sqrt(IMPULSES)
    hit = rng.random(v.shape) < IMPULSES
    return v + hit * height * np.where(rng.random(v.shape) < 0.5, -1, 1)


def _drop_steps(v, share: float, rng):
    kept = rng.random(v.shape[:2]) >= share
    kept[:, rng.integers(v.shape[1])] = False  # at least one
    return v * kept.reshape(*kept.shape, *(1 for _ in v.shape[2:]))


def _drop_features(v, share: float, rng):
    flat = v.reshape(v.shape[0], v.shape[1], -1).copy()
    count = max(1, round(share * flat.shape[2]))
    flat[:, :, rng.choice(flat.shape[2], count, replace=False)] = 0
    return flat.reshape(v.shape)


def _saturate(v, share: float, rng):
    bound = share * float(np.max(np.abs(v), initial=0.0))
    return np.clip(v, -bound, bound)


# ---- gaps ------------------------------------------------------------------------------------------------------------


def gaps(runner: Runner, x: Arrays, figures: ErrorFigures) -> tuple[Gap, ...]:
    """Missing steps in the middle, filled in each way. Skips gaps with fewer steps after them than in them, and models
    whose outputs have other steps than their inputs."""
    steps = runner.steps_of(x)
    if not any(
        y.ndim > 1 and o.timed and y.shape[1] == steps for y, o in zip(figures.clean, runner.outputs, strict=True)
    ):
        return ()
    found = []
    for length in GAPS:
        first = steps // 2
        last = first + length
        if first < 1 or last + max(length, 2) > steps:
            continue
        for fill in ("zeroed", "held", "skipped"):
            if fill == "skipped":
                ys = _skipped(runner, x, first, last)
            elif runner.real():
                ys = runner.run(_filled(runner, x, first, last, fill))
            else:
                continue
            if ys is not None:
                found.append(_gap(figures, ys, length, first, last, fill, steps))
    return tuple(found)


def _filled(runner: Runner, x: Arrays, first: int, last: int, fill: str) -> Arrays:
    def spoil(v):
        v = v.copy()
        v[:, first:last] = 0 if fill == "zeroed" else v[:, first - 1 : first]
        return v

    return _spoiled(runner, x, spoil)


def _skipped(runner: Runner, x: Arrays, first: int, last: int) -> list[np.ndarray] | None:
    """The stream waits and repeats its last outputs. None unless the model streams step for step."""
    if not runner.streams:
        return None
    stream = runner.open(runner.rows_of(x))
    before = runner.answers(stream, runner.cut(x, 0, first))
    after = runner.answers(stream, runner.cut(x, last, runner.steps_of(x)))
    if stream.delay or any(o.timed and b.shape[1] != first for o, b in zip(runner.outputs, before, strict=True)):
        return None
    return [
        np.concatenate([b, np.repeat(b[:, -1:], last - first, axis=1), a], axis=1) if o.timed else a
        for o, b, a in zip(runner.outputs, before, after, strict=True)
    ]


def _gap(figures: ErrorFigures, ys, length: int, first: int, last: int, fill: str, steps: int) -> Gap:
    within, _, _ = figures.errors(ys, slice(first, last))
    after, _, _ = figures.errors(ys, slice(last, None))
    late = np.flatnonzero(figures.by_step(ys, steps)[last:] >= RECOVERED)
    recovery = 0 if not late.size else int(late[-1]) + 1
    return Gap(length, fill, within, after, recovery if last + recovery < steps else None)
