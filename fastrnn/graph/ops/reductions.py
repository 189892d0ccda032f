"""Reductions, norms, and other ops along one axis."""

from __future__ import annotations

import math

import numpy as np

from ..shapes import check_axis, same_dims
from ..vocabulary import BOOL, FLOAT, INT, INTS, TEXT, Meeting, graph_op
from .elementwise import divide

_NORMALISES = "normalises over all {all}"


def _reduce_dims(inputs, attrs):
    (x,), axes = inputs, attrs["axes"]
    for axis in axes:
        check_axis(x, axis)
    if attrs["keepdims"]:
        return [(x.dtype, tuple(1 if i in axes else d for i, d in enumerate(x.dims)))]
    return [(x.dtype, tuple(d for i, d in enumerate(x.dims) if i not in axes))]


@graph_op(
    "reduce(x)",
    attrs={"fn": TEXT.among("sum", "mean", "max", "min"), "axes": INTS, "keepdims": BOOL},
    dims=_reduce_dims,
)
def _reduce(x, fn, axes, keepdims):
    """The sum, mean, largest or smallest element over `axes` (sorted, >= 0). Sums of integers wrap around."""
    # The smallest and the largest value of the dtype: the max and the min of no elements.
    low, high = (-np.inf, np.inf) if x.dtype.kind == "f" else (False, True)
    if x.dtype.kind in "iu":
        low, high = np.iinfo(x.dtype).min, np.iinfo(x.dtype).max
    if fn == "min":
        return np.min(x, axis=axes, keepdims=keepdims, initial=high)
    if fn == "max":
        return np.max(x, axis=axes, keepdims=keepdims, initial=low)
    total = np.sum(x, axis=axes, keepdims=keepdims, dtype=None if x.dtype.kind == "b" else x.dtype)
    if fn == "sum":
        return total
    count = np.asarray(math.prod(x.shape[axis] for axis in axes), total.dtype)
    return divide(np.asarray(total), count)


@graph_op(
    "softmax(x)",
    attrs={"axis": INT, "log": BOOL},
    dims=same_dims,
    meets=Meeting(lambda attrs, rank: (attrs["axis"],), _NORMALISES),
)
def softmax(x, axis, log):
    """exp(x) divided by its sum along `axis` >= 0; log: the logarithm of that."""
    x = x - np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    if log:
        return x - np.log(np.sum(np.exp(x), axis=axis, keepdims=True))
    return np.exp(x) / np.sum(np.exp(x), axis=axis, keepdims=True)


@graph_op(
    "layer_norm(x, scale?, bias?)",
    attrs={"axis": INT, "epsilon": FLOAT},
    dims=same_dims,
    meets=Meeting(lambda attrs, rank: range(attrs["axis"], rank), _NORMALISES),
)
def _layer_norm(x, scale, bias, axis, epsilon):
    """Normalises axes axis..last, axis >= 0; scale and bias broadcast to x."""
    axes = tuple(range(axis, x.ndim))
    centred = x - np.mean(x, axis=axes, keepdims=True)
    y = centred / np.sqrt(np.mean(centred**2, axis=axes, keepdims=True) + epsilon)
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


def _argmax_dims(inputs, attrs):
    (x,), axis = inputs, attrs["axis"]
    check_axis(x, axis)
    return [("int64", x.dims[:axis] + ((1,) if attrs["keepdims"] else ()) + x.dims[axis + 1 :])]


@graph_op(
    "argmax(x)",
    attrs={"axis": INT, "keepdims": BOOL, "last": BOOL, "largest": BOOL},
    dims=_argmax_dims,
    meets=Meeting(lambda attrs, rank: (attrs["axis"],), "its argmax runs over all {all}"),
)
def _argmax(x, axis, keepdims, last, largest):
    """int64: the index of the largest element along `axis` >= 0 (largest false: of the smallest). last: ties go to the
    last one, else to the first. A NaN counts as the largest and as the smallest, as in NumPy.
    """
    find = np.argmax if largest else np.argmin
    if not last:
        return find(x, axis=axis, keepdims=keepdims)
    return x.shape[axis] - 1 - find(np.flip(x, axis), axis=axis, keepdims=keepdims)


@graph_op(
    "cumsum(x)",
    attrs={"axis": INT, "exclusive": BOOL, "reverse": BOOL},
    dims=same_dims,
    meets=Meeting(lambda attrs, rank: (attrs["axis"],), "its cumsum runs over all {all}"),
)
def _cumsum(x, axis, exclusive, reverse):
    """Running sums along `axis` >= 0. exclusive: a sum leaves out its own element; reverse: from the end."""
    x = np.flip(x, axis) if reverse else x
    total = np.cumsum(x, axis=axis, dtype=x.dtype)
    if exclusive:  # the sum up to the previous element
        zeros = np.zeros_like(np.take(total, [0], axis)) if x.shape[axis] else total
        total = np.concatenate([zeros, np.delete(total, -1, axis)], axis) if x.shape[axis] else total
    return np.flip(total, axis) if reverse else total
