"""Moving data: views, cuts, joins, lookups and borders."""

from __future__ import annotations

import numpy as np

from ...errors import ShapeError
from .. import dims as D
from ..precision import meant_by
from ..shapes import broadcast, check_axis, check_precision
from ..vocabulary import ANY_FLOAT, BOOL, DIM, DIMS, INT, INTS, PRECISION, TEXT, graph_op


def _transpose_dims(inputs, attrs):
    (x,), perm = inputs, attrs["perm"]
    if sorted(perm) != list(range(len(x.dims))):
        raise ShapeError(f"perm {list(perm)} does not fit {x}")
    return [(x.dtype, tuple(x.dims[p] for p in perm))]


@graph_op("transpose(x)", attrs={"perm": INTS}, dims=_transpose_dims, moves=True)
def _transpose(x, perm):
    """Axis i of the result is axis perm[i] of x."""
    return np.transpose(x, perm)


def _reshape_dims(inputs, attrs):
    (x,), dims = inputs, tuple(attrs["dims"])
    if D.product(x.dims) != D.product(dims):
        raise ShapeError(f"{x} has {D.product(x.dims)} elements, not {D.product(dims)}")
    return [(x.dtype, dims)]


@graph_op("reshape(x)", attrs={"dims": DIMS}, dims=_reshape_dims, moves=True)
def _reshape(x, dims):
    """The elements of x in row-major order. The product of dims is that of x."""
    return np.reshape(x, dims)


def _slice_dims(inputs, attrs):
    (x,) = inputs
    axis, start, stop, step = (attrs[k] for k in ("axis", "start", "stop", "step"))
    check_axis(x, axis)
    if step == 0:
        raise ShapeError("slice with step 0")
    span = stop - start if step > 0 else start - stop
    size = D.floordiv(span + abs(step) - 1, abs(step))
    if isinstance(size, int) and size < 0:
        raise ShapeError(f"slice [{start}:{stop}:{step}] of axis {axis} of {x}")
    return [(x.dtype, (*x.dims[:axis], size, *x.dims[axis + 1 :]))]


@graph_op("slice(x)", attrs={"axis": INT, "start": DIM, "stop": DIM, "step": INT}, dims=_slice_dims, moves=True)
def _slice(x, axis, start, stop, step):
    """Every step-th element of `axis`. Bounds are already resolved: 0 <= start <= stop <= size. If step is negative,
    start > stop and stop >= -1, as in range().
    """
    indices = np.arange(start, stop, step)
    if len(indices) and (indices.min() < 0 or indices.max() >= x.shape[axis]):
        raise ShapeError(f"slice [{start}:{stop}:{step}] of axis {axis} leaves its size {x.shape[axis]}")
    return np.take(x, indices, axis=axis)


def _concat_dims(inputs, attrs):
    axis, first = attrs["axis"], inputs[0]
    check_axis(first, axis)
    total = 0
    for x in inputs:
        same = len(x.dims) == len(first.dims) and x.dtype == first.dtype
        if not same or any(a != b for i, (a, b) in enumerate(zip(x.dims, first.dims, strict=True)) if i != axis):
            raise ShapeError(f"can't concat {x} to {first} along axis {axis}")
        total = x.dims[axis] + total
    return [(first.dtype, (*first.dims[:axis], total, *first.dims[axis + 1 :]))]


@graph_op(
    "concat(x, ...)",
    attrs={"axis": INT},
    dims=_concat_dims,
    moves=True,
)
def _concat(*parts, axis):
    """The parts one after the other along `axis` >= 0."""
    return np.concatenate(parts, axis=axis)


def _expand_dims(inputs, attrs):
    (x,), dims = inputs, tuple(attrs["dims"])
    if broadcast(x.dims, dims) != dims:
        raise ShapeError(f"{x} does not expand to [{', '.join(map(str, dims))}]")
    return [(x.dtype, dims)]


@graph_op("expand(x)", attrs={"dims": DIMS}, dims=_expand_dims, moves=True)
def _expand(x, dims):
    """x broadcast to dims."""
    return np.broadcast_to(x, dims)


def _gather_dims(inputs, attrs):
    x, indices = inputs[:2]
    check_axis(x, attrs["axis"])
    if indices.dtype not in ("int64", "int32"):
        raise ShapeError(f"indices must be integers, got {indices}")
    check_precision(attrs, (x,), inputs[2:3])
    reduced = attrs.get("precision", "float32") != "float32"
    if reduced and (attrs["axis"] != 0 or len(x.dims) < 2):
        raise ShapeError(f"only rows of a table are held in reduced precision, got axis {attrs['axis']} of {x}")
    if len(inputs) > 2 and inputs[2] is not None and inputs[2].dims != x.dims[:1]:
        raise ShapeError(f"scale must be [{x.dims[0]}], got {inputs[2]}")
    return [("float32" if reduced else x.dtype, x.dims[: attrs["axis"]] + indices.dims + x.dims[attrs["axis"] + 1 :])]


@graph_op(
    "gather(x, indices, scale?)",
    attrs={"axis": INT, "from_zero": BOOL.or_lacking(False), "precision": PRECISION},
    dims=_gather_dims,
)
def _gather(x, indices, scale, axis, from_zero, precision):
    """-> x.dims[:axis] + indices.dims + x.dims[axis+1:], axis >= 0. Indices are in [-size, size), and negative ones
    count from the end. With from_zero they are in [0, size), as in PyTorch's embedding. An index out of range is an
    error at run time. precision: how x, a constant [rows, ..], is held (graph/precision.py), with scale[rows]; only for
    axis 0.
    """
    size = x.shape[axis]
    low = 0 if from_zero else -size
    bad = indices[(indices < low) | (indices >= size)]
    if bad.size:
        raise ShapeError(f"index {bad[0]} is outside [{low}, {size}), the size of axis {axis}")
    return np.take(meant_by("gather", x, precision, scale), indices, axis=axis)


def _pad_dims(inputs, attrs):
    (x,), pads = inputs, attrs["pads"]
    rank = len(x.dims)
    if len(pads) != 2 * rank:
        raise ShapeError(f"{len(pads)} pads for {x}: a beginning and an end an axis")
    return [(x.dtype, tuple(d + b + e for d, b, e in zip(x.dims, pads[:rank], pads[rank:], strict=True)))]


@graph_op(
    "pad(x)",
    attrs={"pads": DIMS, "mode": TEXT.among("constant", "reflect", "edge"), "value": ANY_FLOAT},
    dims=_pad_dims,
)
def pad(x: np.ndarray, pads, mode: str, value: float) -> np.ndarray:
    """x with `pads` (begins then ends, one per axis) added around it; a negative pad crops. "constant" pads with
    `value`. reflect does not repeat the edge, so it pads by less than the size of its axis.

    Cropping comes first, so "edge" and "reflect" continue what is left. Raises ShapeError if a crop or a reflection
    needs more elements than x has.
    """
    begins, ends = pads[: x.ndim], pads[x.ndim :]
    for axis, (b, e) in enumerate(zip(begins, ends, strict=True)):
        if min(b, 0) + min(e, 0) + x.shape[axis] < 0:
            raise ShapeError(f"pads {b} and {e} cut more than the {x.shape[axis]} of axis {axis}")
    key = tuple(slice(max(-b, 0), n - max(-e, 0)) for b, e, n in zip(begins, ends, x.shape, strict=True))
    x = x[key]
    widths = [(max(b, 0), max(e, 0)) for b, e in zip(begins, ends, strict=True)]
    if mode == "constant":
        return np.pad(x, widths, constant_values=value)
    for axis, width in enumerate(widths):
        least = max(width) + 1 if mode == "reflect" and max(width) else min(max(width), 1)
        if x.shape[axis] < least:
            raise ShapeError(f"{mode} padding by {max(width)} of axis {axis}, which has {x.shape[axis]} elements")
    return np.pad(x, widths, mode=mode)
