"""Masks that only say which steps attention sees, recognised by their values."""

from __future__ import annotations

import numpy as np

from ..records import dataclass

HIDING = -1e4  # exp of it is 0 in float32; added to a score that must not count


@dataclass(frozen=True)
class Band:
    """width : how many steps a query sees, including itself, 0 for all; low : the largest number that hides a step."""

    width: int
    low: float


def band(table: np.ndarray) -> Band | None:
    """The band that a table [length, length] of biases shows; None if it says more than which steps are seen."""
    length = len(table)
    seen = table == 0
    if not (table[~seen] <= HIDING).all():
        return None
    apart = np.arange(length)[:, None] - np.arange(length)
    width = int(seen[:, 0].sum())
    if not (seen == ((apart >= 0) & (apart < width))).all() or not width:
        return None
    return Band(0 if width == length else width, float(table[~seen].max(initial=-np.inf)))
