"""The arithmetic of errors, and what each figure means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...records import dataclass

DEFINITIONS = {
    "relative error": "rms of (dirty output - clean output) over the rms of the clean output, all outputs, steps and "
    "rows together; 0.01 is one percent",
    "largest change": "the largest absolute difference between a dirty and the clean output anywhere",
    "decisions changed": "share of decisions that differ from the clean run's: of an output whose step is a "
    "distribution (or its logarithm), the place of its largest; of up to 16 numbers that stay in [0, 1], whether "
    "each is above 0.5; of integers and bools, each of them. Left out if no output is any of these",
    "noise at s dB": "white Gaussian noise, added to every element of every real input; its rms is the input's own "
    "times 10^(-s/20)",
    "impulses at s dB": "one element in a hundred gets +a or -a, with a such that the power of all impulses is that of "
    "the noise at s dB",
    "dropped steps": "that share of the steps, chosen at random, is all zeros in every real input",
    "dropped features": "that share of the features of every real input is zero at all steps",
    "saturation": "inputs are cut off at that share of their largest absolute value",
    "gap": "that number of consecutive steps is missing, from the middle of the data on; zeroed: fed as zeros; "
    "held: the last step before is repeated; skipped: the stream is not stepped, its state stays and its last output "
    "is repeated",
    "error after a gap": "relative error over the steps after the gap",
    "steps to recover": "steps after the gap until every later output differs by less than 1 % of the clean rms",
    "forgetting time": "the state is pushed by 1 % of its norm in a random direction and the same data go on; the "
    "number of steps until the distance of the two states has fallen to 1 % of what it was, and stays below",
    "decay per step": "the factor by which that distance shrinks per step: the slope of its logarithm, fitted from the "
    "push until it meets float32's rounding",
    "warm-up": "a stream that starts with its initial state beside one that has seen the data before; the number of "
    "steps until each output differs by less than 1 % of its rms, the worst of several places to start. If a "
    "stream's state is lost, feed it that many steps before you trust its outputs",
    "sensitivity": "one step of the input is touched by noise; the norm of the change of the outputs k steps "
    "later over the norm of the touch, averaged over places",
    "reduced precision": "every float32 layer that can holds its weights in the format, and its products round inputs "
    "and states, as in a model loaded with that precision. float32: the weights of a model in reduced precision as "
    "they are, and everything else in float32, so the error is that of rounding inputs and states",
    "drift": "the stream against the same model in float64 on the same data, repeated: relative error of the "
    "outputs in successive spans of steps",
}


@dataclass(frozen=True)
class Level:
    """A clean output. decides: "largest", "above 0.5", "value" (integers and bools) or None."""

    output: str
    rms: float
    largest: float
    decides: str | None


class ErrorFigures:
    """Compares outputs with the clean ones. problems: what makes the figures doubtful.

    dtypes : of the outputs; all are taken for floats without it.
    """

    def __init__(self, clean: Sequence[np.ndarray], dtypes: Sequence[str] | None = None):
        self.clean = list(clean)
        self.rms = [_rms(y) for y in self.clean]
        dtypes = ["float32"] * len(self.clean) if dtypes is None else dtypes
        self.decides = [_decision(y, dtype) for y, dtype in zip(self.clean, dtypes, strict=True)]
        self.problems = []
        if any(not np.isfinite(y).all() for y in self.clean):
            self.problems.append("the clean outputs hold NaN or infinity: no figure means much")
        if not any(self.rms):
            self.problems.append("the clean outputs are all zero: relative errors are not defined and given as none")

    def levels(self, names: Sequence[str]) -> tuple[Level, ...]:
        """The clean outputs, described."""
        return tuple(
            Level(n, r, float(np.max(np.abs(y), initial=0.0)), d)
            for n, y, r, d in zip(names, self.clean, self.rms, self.decides, strict=True)
        )

    def errors(self, got: Sequence[np.ndarray], span: slice = slice(None)) -> tuple[float, float, float | None]:
        """(relative error, largest change, share of changed decisions or None); span: of steps, for outputs that have
        them."""
        gaps, levels, changed, decisions = [], [], 0, 0
        for y, z, decides in zip(self.clean, got, self.decides, strict=True):
            y, z = _cut(y, span), _cut(z, span)
            gaps.append((z - y).ravel())
            levels.append(y.ravel())
            if decides is not None and y.size:
                a, b = _choices(y, decides), _choices(z, decides)
                changed, decisions = changed + int(np.sum(a != b)), decisions + a.size
        gap, level = np.concatenate(gaps), np.concatenate(levels)
        scale = _rms(level)
        relative = _rms(gap) / scale if scale > 0 else float("nan")
        share = changed / decisions if decisions else None
        return relative, float(np.max(np.abs(gap), initial=0.0)), share

    def by_step(self, got: Sequence[np.ndarray], steps: int) -> np.ndarray:
        """Relative error of each step, [steps]: the largest over rows and outputs that have that many steps."""
        found = np.zeros(steps)
        for y, z, rms in zip(self.clean, got, self.rms, strict=True):
            if y.ndim > 1 and y.shape[1] == steps and rms > 0:
                gap = (z - y).reshape(y.shape[0], steps, -1)
                found = np.maximum(found, np.sqrt(np.mean(gap**2, axis=2)).max(axis=0) / rms)
        return found


def _cut(y: np.ndarray, span: slice) -> np.ndarray:
    return y[:, span] if span != slice(None) and y.ndim > 1 else y


def _rms(y: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(y)))) if y.size else 0.0


def _decision(y: np.ndarray, dtype: str) -> str | None:
    """What an output decides: the largest of several if each step is a distribution (or its logarithm), or above 0.5
    if it is up to 16 numbers in [0, 1]. A mask of hundreds decides nothing. Integers and bools are decisions."""
    if not dtype.startswith("float"):
        return "value"
    if y.ndim not in (2, 3) or not y.size:
        return None
    if y.shape[-1] > 1:
        if np.all(y >= 0) and np.allclose(np.sum(y, axis=-1), 1, atol=1e-3):
            return "largest"
        if np.all(y <= 1e-6) and np.allclose(np.sum(np.exp(y), axis=-1), 1, atol=1e-3):
            return "largest"
    return "above 0.5" if y.shape[-1] <= 16 and np.all((y >= 0) & (y <= 1)) else None


def _choices(y: np.ndarray, decides: str) -> np.ndarray:
    if decides == "value":
        return y
    return np.argmax(y, axis=-1) if decides == "largest" else (y > 0.5)
