"""Shapes of values at given sizes, and the parts of arrays that rows of a batch take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ShapeError, claims_too_much
from ..graph import DTYPES, Graph, Value
from ..graph import dims as D


def shape_of(value: Value, sizes: dict[str, int]) -> list[int]:
    """The shape of a value at these sizes. Raises ShapeError if an axis has none."""
    shape = [D.evaluate(d, sizes) for d in value.dims]
    if any(s < 0 for s in shape):
        given = " and ".join(f"{name} {size}" for name, size in sizes.items())
        raise ShapeError(f"{value} has no size at {given}: its axes would be {shape}; give other sizes")
    return shape


def empty(value: Value, shape: list[int]) -> np.ndarray:
    """A new array for a value. Raises ShapeError if no memory could hold it: its size may be a file's bare claim."""
    try:
        return np.empty(shape, DTYPES[value.dtype])
    except (MemoryError, ValueError) as error:  # NumPy: not available; more than an index can count
        if isinstance(error, MemoryError) and not claims_too_much(error):
            raise
        raise ShapeError(f"no memory for {value}, of shape {shape}") from None


def index_of(value: Value, rows: np.ndarray, length: int, shape: Sequence[int]) -> tuple:
    """The index of `rows`, cut to `length` steps, in a whole array of this value."""
    index = []
    for axis, dim in enumerate(value.dims):
        if dim == D.BATCH:
            index.append(rows)
        elif isinstance(dim, int):
            index.append(np.arange(dim))
        elif "batch" in D.symbols(dim):
            raise ShapeError(f"{value}: with lengths, axis {axis} must be plain batch")
        else:
            index.append(np.arange(shape[axis]))
    return np.ix_(*index)


def cut(array: np.ndarray, value: Value, rows: np.ndarray, length: int) -> np.ndarray:
    """These rows of an array of this value, cut to `length` steps."""
    shape = [length if d == D.TIME else s for d, s in zip(value.dims, array.shape, strict=True)]
    return np.ascontiguousarray(array[index_of(value, rows, length, shape)])


def open_sizes(graph: Graph) -> tuple[str, ...]:
    """Names of the sizes that the inputs leave free, other than batch and time, in the order of the inputs' axes."""
    found = [s for n in graph.inputs for d in graph.values[n].dims for s in sorted(D.symbols(d))]
    return tuple(s for s in dict.fromkeys(found) if s not in ("batch", "time"))
