"""Whether an engine answered right, and how far its answer is from the true one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from . import entrants
from .figures import difference

# An element passes at |got - expected| <= tolerance * (1 + |expected|). float32 engines differ by about 1e-6 here; a
# wrong gate order, form or state by 1e-2 and more. In reduced precision, largest errors over 1,000 steps are about
# 5e-3 (bfloat16, int8-a16) and 2e-2 (int8), of a peer that has one scale for x and h 6e-2; wrong answers 0.2 and more.
TOLERANCES = {entrants.FLOAT32: 1e-4, entrants.BFLOAT16: 3e-2, entrants.INT8_A16: 3e-2, entrants.INT8: 1e-1}
# Judges of a model file's answers, best first: the files' authors checked them against onnxruntime.
JUDGES = ("ort", "ort-iobinding", "openvino")


def compare(results: dict[str, dict], folder: Path, job: Mapping) -> None:
    """Add to each result how its answer differs from the float64 one, or for a model file from a judge's.

    digest: of the answer's bytes, to see which are the same bits; difference: the largest; rms; steps: how many calls
    were compared; compared_with. An engine whose answer is not within the tolerance of its precision becomes "wrong".
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
        tolerance = TOLERANCES[entrants.find(name).precision]
        gap, ok = difference(answer, expected, tolerance)
        finite = math.isfinite(gap)
        result.update(difference=gap if finite else "inf", compared_with=judge)
        if finite:
            result.update(rms=root_mean_square(answer, expected), steps=len(answer) * job.get("T", 1))
        if not ok:
            got = f"largest difference {gap:.3g} from {judge}" if finite else "NaN, inf, or another size"
            result.update(status="wrong", reason=f"wrong answer: {got} (tolerance {tolerance:g})")


def root_mean_square(got: np.ndarray, expected: np.ndarray) -> float:
    """Of the difference of two arrays with equally many numbers, as float64."""
    gap = np.asarray(got, np.float64).ravel() - np.asarray(expected, np.float64).ravel()
    return float(np.sqrt(np.mean(gap * gap))) if gap.size else 0.0
