"""Operators whose results depend only on positions: ranges, triangles, identity matrices."""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ....graph import DTYPES
from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading import files
from ..reading.reader import NodeReader
from ..reading.registry import op
from ..reading.values import Const, Ints, Live
from ..sizes.positions import MOST, apart, triangle


@op("Range")
def _range(ctx, n: NodeReader):
    values = [_number(ctx, n.input(i)) for i in range(3)]
    if any(v is None for v in values):
        return [_from_computed(ctx, n, values[2])]
    (start, limit, delta), dtype = values, ctx.kind(n.input(0))
    symbolic = any(isinstance(v, Dim) for v in values)
    if isinstance(delta, Dim) or (symbolic and any(not isinstance(v, Dim) and int(v) != v for v in values)):
        raise Finding("a Range in steps of a size, or from or to a fraction")
    if symbolic:
        start, limit, delta = (v if isinstance(v, Dim) else int(v) for v in values)
    if delta == 0 or (not isinstance(limit - start, Dim) and (limit - start) / delta > MOST):
        raise ModelFormatError(f"Range from {start} to {limit} by {delta}")
    if not symbolic:
        dtype = next(v.array.dtype for v in map(n.input, range(3)) if isinstance(v, Const))
        return [Const(np.arange(start, limit, delta, dtype=dtype))]
    if delta == 1:
        out = ctx.positions(limit - start, start)
        return [out if dtype == "int64" else ctx.one("cast", out, to=dtype)]
    span = limit - start if delta > 0 else start - limit
    out = ctx.positions(D.floordiv(span + abs(delta) - 1, abs(delta)))
    if dtype != "int64":
        out = ctx.one("cast", out, to=dtype)
    out = ctx.one("binary", out, Const(np.array(delta, dtype)), fn="mul")
    if isinstance(start, Dim) or start != 0:
        begin = ctx.number_of(start, dtype) if isinstance(start, Dim) else Const(np.array(start, dtype))
        out = ctx.one("binary", out, begin, fn="add")
    return [out]


def _from_computed(ctx, n: NodeReader, delta):
    """A Range from a computed integer to that integer plus a number: its length is known."""
    start, limit = n.input(0), n.input(1)
    count = apart(ctx, start, limit) if ctx.kind(start) in ("int64", "int32") and delta == 1 else None
    if count is None or not isinstance(start, Live) or (isinstance(count, int) and not 0 < count <= MOST):
        raise Finding("a Range that depends on the inputs, other than from a computed start on by a known number")
    steps = ctx.live(ctx.positions(count))
    steps = steps if start.dtype == "int64" else ctx.one("cast", steps, to=start.dtype)
    return ctx.one("binary", steps, ctx.reshape(start, ()), fn="add")


def _number(ctx, value):
    """A scalar as a Python number or a Dim; None if it is neither."""
    if isinstance(value, Ints) and value.array.size == 1:
        return value.array.flat[0]
    if isinstance(value, Const) and value.array.size == 1:
        return value.array.flat[0].item()
    if isinstance(value, Live) and value.name in ctx.sizes:
        dim, factor = ctx.sizes[value.name]
        return dim if factor == 1 else None
    return None


@op("Trilu", attrs="upper")
def _trilu(ctx, n: NodeReader):
    x, k = n.input(0), n.ints(1, "k", optional=True)
    upper, k = n.attr("upper", "int", 1), k[0] if k else 0
    if len(x.dims) < 2 or (not isinstance(k, Dim) and abs(k) > 1 << 31):
        raise ModelFormatError(f"Trilu with k={k} of rank {len(x.dims)}")
    keep = triangle(ctx, x.dims[-2:], k, bool(upper))
    x = ctx.live(x)
    if x.dtype == "bool":
        return [ctx.one("binary", keep, x, fn="and")]
    return [ctx.one("where", keep, x, Const(np.zeros((), DTYPES[x.dtype])))]


@op("EyeLike", attrs="dtype k")
def _eye_like(ctx, n: NodeReader):
    x, k, to = n.input(0), n.attr("k", "int", 0), n.attr("dtype", "int")
    if len(x.dims) != 2 or abs(k) > 1 << 31:
        raise ModelFormatError(f"EyeLike with k={k} of rank {len(x.dims)}")
    if to is not None and to not in files.NUMERIC:
        raise Finding(f"dtype={files.dtype_name(to)}")
    dtype = ctx.kind(x) if to is None else ctx.dtype(files.NUMERIC[to])
    upper, lower = triangle(ctx, x.dims, k, True), triangle(ctx, x.dims, k, False)
    if isinstance(upper, Const):
        return [Const((upper.array & lower.array).astype(DTYPES[dtype]))]
    on = ctx.one("binary", upper, lower, fn="and")
    return [on if dtype == "bool" else ctx.one("cast", on, to=dtype)]
