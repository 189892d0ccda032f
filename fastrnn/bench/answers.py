"""Whether an engine answered right, and how far its answer is from the true one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from . import entrants
from .figures import difference

# In float32 an element passes at |got - expected| <= TOLERANCE * (1 + |expected|). Engines differ by about 1e-6 here; a
# wrong gate order, form or state by 1e-2 and more.
TOLERANCE = 1e-4
# In reduced precision an answer passes if its rms error is within this share of the true answer's rms. Cells have 0.2
# to 2 % (6 % in a peer with one scale for x and h), DTLN's mask 10 % in int8; a wrong gate order or state 100 %.
SHARES = {entrants.BFLOAT16: 0.1, entrants.INT8_A16: 0.1, entrants.INT8: 0.25}
# Judges of a model file's answers, best first: the files' authors checked them against onnxruntime.
JUDGES = ("ort", "ort-iobinding", "openvino")


def compare(results: dict[str, dict], folder: Path, job: Mapping) -> None:
    """Add to each result how its answer differs from the float64 one, or for a model file from a judge's.

    digest: of the answer's bytes, to see which are the same bits; difference: the largest; rms; size: rms of the true
    answer; steps: how many were compared; compared_with; decisions: of a classifier, the share of rows whose largest
    class is the true one. An engine whose answer is not within the tolerance of its precision becomes "wrong".
    """
    answers = {n: np.load(folder / f"{n}.npy") for n, r in results.items() if r["status"] == "ok"}
    if "expected" in job:
        judge, expected = job.get("judge", "float64 reference"), np.load(job["expected"])
    else:
        judge = next((name for name in JUDGES if name in answers), "")
        expected = answers.get(judge)
    for name, answer in answers.items():
        result = results[name]
        result["digest"] = hashlib.sha256(np.ascontiguousarray(answer).tobytes()).hexdigest()[:16]
        if expected is None:
            result.update(difference=None, compared_with=None)
            continue
        precision = entrants.find(name).precision
        precision = job["precision"] if precision == entrants.FLOAT32 else precision
        gap, ok = difference(answer, expected, TOLERANCE)
        result.update(difference=gap if math.isfinite(gap) else "inf", compared_with=judge)
        if not math.isfinite(gap):
            result.update(status="wrong", reason="wrong answer: NaN, inf, or another size")
            continue
        rms, size = root_mean_square(answer, expected), root_mean_square(expected, np.zeros_like(expected))
        result.update(rms=rms, size=size, steps=len(answer) * job["T"])
        if "classes" in job:
            result.update(decisions=agreement(answer, expected, job["classes"]))
        if precision == entrants.FLOAT32 and not ok:
            why = f"largest difference {gap:.3g} from {judge} (tolerance {TOLERANCE:g})"
            result.update(status="wrong", reason=f"wrong answer: {why}")
        elif precision != entrants.FLOAT32 and rms > SHARES[precision] * size:
            why = f"rms difference {rms:.3g} from {judge}, whose rms is {size:.3g} (limit {SHARES[precision]:.0%})"
            result.update(status="wrong", reason=f"wrong answer: {why}")


def root_mean_square(got: np.ndarray, expected: np.ndarray) -> float:
    """Of the difference of two arrays with equally many numbers, as float64."""
    gap = np.asarray(got, np.float64).ravel() - np.asarray(expected, np.float64).ravel()
    return float(np.sqrt(np.mean(gap * gap))) if gap.size else 0.0


def agreement(got: np.ndarray, expected: np.ndarray, classes: int) -> float:
    """The share of rows whose largest class is the same in both arrays of [..., classes]."""
    choices = [np.argmax(np.asarray(array).reshape(-1, classes), axis=1) for array in (got, expected)]
    return float(np.mean(choices[0] == choices[1]))
