"""Number formats of weights: what a product's constants hold, and what they mean.

A node has the attribute `precision`. "float32" holds weights as they are. "bfloat16" holds the upper halves of their
bits, uint16. "int8" and "int8-a16" hold int8, and the scale of each column besides: weight = integer * scale, and the
largest weight of a column is 127 steps. The two differ in how the kernels round what the weights are multiplied with
(_kernels/body_round.h): to 8 or to 15 bits.

What is rounded is a row. Of a convolution that is a window: the elements of x that one output position of one group
sums over, with zeros for the padding. A row of an embedding, a `gather` from a table, is multiplied by nothing: its
weights are widened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

# The ops that may have a precision. Inputs of each: place of the weights -> place of the scales of their columns. What
# is a column of which op, `columns` says.
SCALES = {"cell": {1: 10, 2: 11}, "linear": {1: 3}, "conv": {1: 3}, "conv_transpose": {1: 3}, "gather": {0: 2}}
PRECISIONS = ("float32", "bfloat16", "int8", "int8-a16")
DTYPE = {"float32": "float32", "bfloat16": "uint16", "int8": "int8", "int8-a16": "int8"}
BFLOAT16_MOST = 3.3895314e38  # the largest finite one
MOST_INTEGER = 255  # of an 8-bit weight less its zero point
# How the note of an importer begins if the graph leaves out a rounding of the file.
ROUNDED_EACH_CALL = "values that the file rounds to 8 bits by the range of each call"
MOST_TERMS = 132_000  # of a sum of products of bytes that fits 32 bits


def columns(op: str, W: np.ndarray, groups: int = 1) -> tuple[np.ndarray, tuple[int, ...]]:
    """(W, or a view of it with a group an index; the axes within a column): each index of the other axes is a column.

    A column is what one output sums over, or a row of a table that is looked up. groups: of a convolution.
    """
    if op == "conv_transpose":  # [C, M/groups, K..]
        return W.reshape(groups, W.shape[0] // groups, W.shape[1], math.prod(W.shape[2:])), (1, 3)
    return W, (0,) if op == "linear" else tuple(range(1, W.ndim))


def held(W: np.ndarray, precision: str, axis: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    """(W, float32, in this precision; the scale of each column, or None). axis: the axes within a column.

    Weights must be finite.
    """
    if precision == "float32":
        return W, None
    if precision == "bfloat16":
        bits = np.ascontiguousarray(W).view(np.uint32)
        return ((bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))) >> 16).astype(np.uint16), None
    scale = (np.abs(W).max(axis=axis, initial=0) / np.float32(127)).astype(np.float32)
    step = np.expand_dims(np.where(scale > 0, scale, np.float32(1)), axis)
    return np.clip(np.rint(W / step), -127, 127).astype(np.int8), scale


def check_held(scale: np.ndarray | None) -> str | None:
    """What is wrong with scales that a file holds; None if kernels and meaning agree about them."""
    if scale is None or (np.isfinite(scale).all() and (scale >= 0).all()):
        return None
    return "the scale of a column is negative or not finite"


def note_steps(found: dict, W: np.ndarray, step: np.ndarray, axis: int | tuple[int, ...], precision: str) -> None:
    """Add to `found`, a `Graph.integers`, that W [..], float32, are products of 8-bit integers and steps.

    Passes may move columns to other constants before they hold them as integers. A column is found again by the size of
    its largest weight.

    step : of each weight, broadcasts over W; the same along `axis`, over which a product sums
    precision : how values that these weights are multiplied with are rounded
    """
    tops, steps = np.abs(W).max(axis=axis, initial=0), np.broadcast_to(step, W.shape).max(axis=axis, initial=0)
    for top, one in set(zip(tops.reshape(-1).tolist(), steps.reshape(-1).tolist(), strict=True)):
        found[top] = found.get(top, frozenset()) | {(one, precision)}


def integers_of(
    W: np.ndarray, axis: int | tuple[int, ...], found: Mapping
) -> tuple[np.ndarray, np.ndarray, str] | None:
    """(integers as float32, the step of each column, their precision) of float32 weights; None if they are not exactly
    products of integers and steps that `found`, a `Graph.integers`, has."""
    within = axis if isinstance(axis, tuple) else (axis,)
    order = (*(a for a in range(W.ndim) if a not in within), *within)
    moved = W.transpose(order)
    sizes = moved.shape[: W.ndim - len(within)]
    rows = moved.reshape(math.prod(sizes), -1)  # a column each
    tops = np.abs(rows).max(axis=1, initial=0)
    options = [sorted(found.get(t, ()), key=lambda o: (o[1] == "int8", o)) if t else [(0.0, "")] for t in tops.tolist()]
    q, step, names = np.zeros_like(rows), np.zeros_like(tops), set[str]()
    left = np.array([bool(o) for o in options], bool)
    if not left.all():
        return None
    for k in range(max(map(len, options), default=0)):
        tried = np.array([o[min(k, len(o) - 1)][0] for o in options], np.float32)
        along = np.where(tried > 0, tried, np.float32(1))[:, None]
        with np.errstate(over="ignore", invalid="ignore"):
            made = np.rint(rows / along)
            good = left & (made * along == rows).all(axis=1) & (np.abs(made).max(axis=1, initial=0) <= MOST_INTEGER)
        q = np.where(good[:, None], made, q)
        step, left = np.where(good, tried, step), left & ~good
        names |= {options[j][min(k, len(options[j]) - 1)][1] for j in np.flatnonzero(good).tolist()}
    names.discard("")
    if left.any() or not names:
        return None
    back = q.reshape(moved.shape).transpose(np.argsort(order))
    return back, step.reshape(sizes), "int8" if names == {"int8"} else "int8-a16"


def held_by(op: str, W: np.ndarray, precision: str, groups: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
    """As `held`, for the weights of an op: (in the shape of W, the scales as one axis)."""
    view, axes = columns(op, W, groups)
    array, scale = held(view, precision, axes)
    return array.reshape(W.shape), None if scale is None else scale.reshape(-1)


def meant_by(op: str, W: np.ndarray, precision: str, scale: np.ndarray | None = None, groups: int = 1) -> np.ndarray:
    """The float32 weights that `held_by` holds."""
    view, axes = columns(op, W, groups)
    if scale is not None:
        scale = scale.reshape([n for axis, n in enumerate(view.shape) if axis not in axes])
    return meant(view, precision, axes, scale).reshape(W.shape)


def meant(W: np.ndarray, precision: str, axis: int | tuple[int, ...], scale: np.ndarray | None = None) -> np.ndarray:
    """The float32 weights that `held` holds."""
    if precision == "float32":
        return W
    if precision == "bfloat16":
        return (W.astype(np.uint32) << 16).view(np.float32)
    assert scale is not None
    return W.astype(np.float32) * np.expand_dims(scale, axis)
