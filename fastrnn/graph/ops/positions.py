"""Positions: the numbers of steps."""

from __future__ import annotations

import numpy as np

from ...errors import ShapeError
from ..vocabulary import DIM, DIMS, GROWS, graph_op


def _steps_dims(inputs, attrs):
    if len(attrs["dims"]) not in (1, 2):
        raise ShapeError(f"steps of dims [{', '.join(map(str, attrs['dims']))}]: one axis, or rows and one axis")
    return [("int64", tuple(attrs["dims"]))]


@graph_op("steps()", attrs={"dims": DIMS, "start": DIM, "grows": GROWS}, dims=_steps_dims)
def _steps(dims, start, grows):
    """int64: element i along the last axis is start + i. dims: (n,), or (rows, n) with all rows equal. If n is TIME,
    a stream continues to count: the elements are its step numbers. grows: so it does if a call is one step, or beside
    caches in front of a chunk.
    """
    return np.broadcast_to(start + np.arange(dims[-1], dtype=np.int64), dims)
