"""Exact integer arithmetic: sums, extremes and pads of int64 and int32 values, from ops that keep every bit."""

from __future__ import annotations

import numpy as np

from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading.values import Const, Live

INTEGERS = ("int64", "int32")
_PART = 21  # bits per part of an int64: float32 holds them exactly, including the signed top part


def total(ctx, x: Live, axes: tuple, keepdims: bool) -> Live:
    """The sum over axes: the last running sum."""
    return _over_axes(ctx, x, axes, keepdims, _sum)


def extreme(ctx, x: Live, axes: tuple, keepdims: bool, largest: bool) -> Live:
    """The maximum or minimum over axes."""
    fn = "max" if largest else "min"
    flags = from_bool(ctx, x)
    if flags is not None:
        found = ctx.one("cast", flags, to="float32")
        found = ctx.one("reduce", found, fn=fn, axes=axes, keepdims=keepdims)
        return ctx.one("cast", found, to=x.dtype)
    return _over_axes(ctx, x, axes, keepdims, lambda ctx, x, axis: _extreme(ctx, x, axis, fn))


def _over_axes(ctx, x: Live, axes: tuple, keepdims: bool, one) -> Live:
    """Apply one(ctx, x, axis), which reduces an axis to length one, to each axis. int32 is computed in int64 too."""
    dtype = x.dtype
    out = x if dtype == "int64" else ctx.one("cast", x, to="int64")
    for axis in axes:
        out = one(ctx, out, axis)
    if not keepdims:
        out = ctx.reshape(out, tuple(d for i, d in enumerate(out.dims) if i not in axes))
    return out if dtype == "int64" else ctx.one("cast", out, to=dtype)


def _sum(ctx, x: Live, axis: int) -> Live:
    sums = ctx.one("cumsum", x, axis=axis, exclusive=False, reverse=False)
    size = x.dims[axis]
    if not isinstance(size, Dim) and size == 0:
        raise Finding("a sum of no integers")
    return ctx.slice(sums, axis, size - 1, size)


def _extreme(ctx, x: Live, axis: int, fn: str) -> Live:
    """Compare the top bits first, then the next bits of the elements that share them. Each part fits in float32."""
    parts, rest = [], x
    unit = Const(np.array(1 << _PART))
    for _ in range(2):
        low = ctx.one("binary", rest, unit, fn="mod")  # non-negative for any sign of the rest
        parts.append(low)
        rest = ctx.one("binary", ctx.one("binary", rest, low, fn="sub"), unit, fn="div")
    parts.append(rest)
    out, among = None, None
    away = Const(np.float32(-np.inf if fn == "max" else np.inf))
    for part in reversed(parts):
        part = ctx.one("cast", part, to="float32")
        part = part if among is None else ctx.one("where", among, part, away)
        best = ctx.one("reduce", part, fn=fn, axes=(axis,), keepdims=True)
        here = ctx.one("binary", part, best, fn="equal")
        among = here if among is None else ctx.one("binary", among, here, fn="and")
        best = ctx.one("cast", best, to="int64")
        out = best if out is None else ctx.one("binary", ctx.one("binary", out, unit, fn="mul"), best, fn="add")
    return out


def from_bool(ctx, x: Live) -> Live | None:
    """The bools that x is a cast of; None for anything else."""
    maker = next((entry for entry in reversed(ctx.nodes) if x.name in entry[3]), None)
    if maker is None or maker[0] != "cast":
        return None
    source = ctx.values[maker[2][0]]
    return Live(source.name, source.dtype, source.dims) if source.dtype == "bool" else None


def padded(ctx, x: Live, pads: list, mode: str, value) -> Live:
    """x with elements added before and after: `value` (mode constant), or its first and last (mode edge)."""
    if mode not in ("constant", "edge"):
        raise Finding(f"mode={mode!r} of {x.dtype}")
    rank = len(x.dims)
    for axis in range(rank):
        size, parts = x.dims[axis], [x]
        for count, first in ((pads[axis], True), (pads[rank + axis], False)):
            if isinstance(count, int) and count == 0:
                continue
            dims = (*x.dims[:axis], count, *x.dims[axis + 1 :])
            if mode == "edge":
                source = ctx.slice(x, axis, 0, 1) if first else ctx.slice(x, axis, size - 1, size)
            else:
                source = Const(np.array(value, x.dtype))
            if D.may_be_negative(count):
                ctx.table.shortfalls.append(D.shortfall(count, 0))
            parts.insert(0 if first else len(parts), ctx.one("expand", source, dims=dims))
            if isinstance(size, Dim) and isinstance(count, int) and ctx.table.genuine(size):
                ctx.table.ledger.added(size, ctx.label, count, ctx.table.example(size))
        x = ctx.concat(parts, axis)
    return x
