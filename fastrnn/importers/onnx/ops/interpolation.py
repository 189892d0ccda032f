"""Where the elements of a resized axis lie on the old one, and how many old elements each of them mixes."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np

from ....records import dataclass

_HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Way:
    """How Resize looks elements up; the names are those of its attributes. roi: (start, end) of the axis, as a share
    of it."""

    mode: str
    how: str
    rounding: str = "round_prefer_floor"
    antialias: bool = False
    exclude_outside: bool = False
    coefficient: float = -0.75
    extrapolation: float = 0.0
    roi: tuple[Fraction, Fraction] | None = None


# coordinate_transformation_mode -> the place among `old` elements of element i of `new`; new is about factor * old.
PLACES = {
    "asymmetric": lambda i, factor, old, new: i / factor,
    "half_pixel": lambda i, factor, old, new: (i + _HALF) / factor - _HALF,
    "pytorch_half_pixel": lambda i, factor, old, new: (i + _HALF) / factor - _HALF if new > 1 else Fraction(0),
    "align_corners": lambda i, factor, old, new: Fraction(i * (old - 1), new - 1) if new > 1 else Fraction(0),
    # The centre of the new axis lies on that of the old one, even if factor * old is no whole number.
    "half_pixel_symmetric": lambda i, factor, old, new: (
        Fraction(old, 2) + (i + _HALF - Fraction(new, 2)) / factor - _HALF
    ),
}
ROUNDINGS = {
    "floor": floor,
    "ceil": ceil,
    "round_prefer_floor": lambda place: ceil(place - _HALF),
    "round_prefer_ceil": lambda place: floor(place + _HALF),
}


def places(way: Way, factor: Fraction, old: int, new: int) -> list[Fraction]:
    """The place of each new element on the old axis."""
    if way.how == "tf_crop_and_resize":
        start, end = way.roi
        if new == 1:
            return [(start + end) * (old - 1) / 2]
        return [start * (old - 1) + i * (end - start) * (old - 1) / (new - 1) for i in range(new)]
    return [PLACES[way.how](Fraction(i), factor, old, new) for i in range(new)]


def outside(found: list[Fraction], old: int) -> np.ndarray:
    """bool per new element: whether it lies outside the old axis."""
    return np.array([place < 0 or place > old - 1 for place in found])


def taps(way: Way, found: list[Fraction], factor: Fraction, old: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices on the old axis, weights), both [taps, new]: what each new element mixes. The ends repeat beyond."""
    shrink = min(1.0, float(factor)) if way.antialias else 1.0
    reach = (2 if way.mode == "cubic" else 1) / shrink
    half = ceil(reach)
    firsts = [floor(place) - half + 1 for place in found]
    indices = np.array(firsts)[None, :] + np.arange(2 * half)[:, None]
    apart = np.abs(indices - np.array([float(place) for place in found])) * shrink
    weights = _cubic(apart, way.coefficient) if way.mode == "cubic" else np.maximum(1 - apart, 0)
    if way.exclude_outside:
        weights = np.where((indices < 0) | (indices >= old), 0.0, weights)
    if way.exclude_outside or way.antialias:
        weights = weights / weights.sum(axis=0)
    keep = (weights != 0).any(axis=1)
    return np.clip(indices, 0, old - 1)[keep], weights[keep]


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Cubic convolution: the weight of an element x >= 0 away."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
