"""What callers pass to a step, as arrays in the order of the model's inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ShapeError
from .words import ids_of


def rows_of(inputs: list[tuple], x: Any, n: int) -> list[np.ndarray]:
    """Arrays [n, features...] of a step. ShapeError: of another shape or dtype."""
    arrays = [np.asarray(v) for v in _ordered(inputs, x)]
    for (name, dtype, features), array in zip(inputs, arrays, strict=True):
        _check(name, dtype, (n, *features), array)
    return arrays


def chunks_of(inputs: list[tuple], chunks: Any, n: int) -> tuple[list[np.ndarray], np.ndarray]:
    """(arrays [steps, features...], one stream's steps after another's; int64 [n], how many each has)."""
    rows = [_ordered(inputs, chunk) for chunk in chunks]
    if len(rows) != n:
        raise ShapeError(f"push takes one chunk per stream: {n} ids, {len(rows)} chunks")
    lengths = np.array([len(np.asarray(row[0])) if np.ndim(row[0]) else -1 for row in rows], np.int64)
    columns = []
    for k, (name, dtype, features) in enumerate(inputs):
        arrays = [np.asarray(row[k]) for row in rows]
        for i, array in enumerate(arrays):
            _check(f"{name} of chunk {i}", dtype, (int(lengths[i]), *features), array)
        columns.append(np.concatenate(arrays) if arrays else np.zeros((0, *features), dtype))
    return columns, lengths


def count_of(ids: Any) -> int:
    """How many ids there are. StateError: they are no list and no array."""
    array = isinstance(ids, np.ndarray) and ids.ndim
    return len(ids) if array or isinstance(ids, list) else len(ids_of(ids))


def index_of(step_index: Any, n: int) -> np.ndarray | None:
    """int64 [n], or None without one. ShapeError: they are something else."""
    if step_index is None:
        return None
    found = np.asarray(step_index)
    if found.shape != (n,) or found.dtype.kind not in "iu" or (found < 0).any():
        got = (
            f"{found.dtype} {list(found.shape)}" if found.shape != (n,) or found.dtype.kind not in "iu" else found.min()
        )
        raise ShapeError(f"step_index must be whole numbers from 0 up, int64 [{n}], got {got}")
    return found.astype(np.int64)


def _ordered(inputs: list[tuple], x: Any) -> list:
    names = [name for name, _, _ in inputs]
    if isinstance(x, dict):
        if sorted(x) != sorted(names):
            raise ShapeError(f"the model's inputs are {', '.join(names)}, got {', '.join(map(str, x))}")
        return [x[name] for name in names]
    if len(inputs) == 1 and not isinstance(x, tuple):
        return [x]
    if not isinstance(x, (tuple, list)) or len(x) != len(inputs):
        raise ShapeError(f"the model has {len(inputs)} inputs ({', '.join(names)}): pass a tuple or dict of arrays")
    return list(x)


def _check(name: str, dtype: Any, shape: tuple, array: np.ndarray) -> None:
    if array.shape != shape or array.dtype != dtype:
        want = f"{np.dtype(dtype)} {list(shape)}"
        raise ShapeError(f"input {name}: {want} expected, got {array.dtype} {list(array.shape)}")
