"""Operators on the bits of integers, and what other operators share about integers."""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ....graph import DTYPES, INTEGERS
from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading import files
from ..reading.reader import NodeReader
from ..reading.registry import op
from ..reading.values import Const, Ints, Live

_BITWISE = {"BitwiseAnd": "bit_and", "BitwiseOr": "bit_or", "BitwiseXor": "bit_xor"}


@op(*_BITWISE)
def _bitwise(ctx, n: NodeReader):
    values = of_one_type(ctx, [_whole(ctx, n.input(i), n.node.op) for i in (0, 1)])
    return [ctx.one("binary", *ctx.broadcast(values, n.node.op), fn=_BITWISE[n.node.op])]


@op("BitwiseNot")
def _bitwise_not(ctx, n: NodeReader):
    return [ctx.unary("bit_not", _whole(ctx, n.input(0), n.node.op))]


@op("BitShift", attrs="direction")
def _shift(ctx, n: NodeReader):
    direction = n.attr("direction", "string")
    if direction not in ("LEFT", "RIGHT"):
        raise ModelFormatError(f"direction={direction!r}; there are LEFT and RIGHT")
    values = of_one_type(ctx, [_whole(ctx, n.input(i), n.node.op) for i in (0, 1)])
    return [ctx.one("binary", *ctx.broadcast(values, n.node.op), fn=f"shift_{direction.lower()}")]


@op("BitCast", attrs="to")
def _bitcast(ctx, n: NodeReader):
    x, to = ctx.live(n.input(0)), n.attr("to", "int")
    if to not in files.NUMERIC or (files.NUMERIC[to].itemsize == 2 and files.NUMERIC[to].kind == "f"):
        raise Finding(f"of {x.dtype} to {files.dtype_name(to or 0)}")
    if ctx.half and x.dtype == "float32":
        raise Finding("in a file with float16, which computes in float32")
    target = ctx.dtype(files.NUMERIC[to])
    if np.dtype(DTYPES[target]).itemsize != np.dtype(DTYPES[x.dtype]).itemsize:
        raise ModelFormatError(f"the bits of {x.dtype} as {target}, which has another size")
    if "bool" in (x.dtype, target):  # its byte is 0 or 1
        return [x if x.dtype == target else ctx.one("cast", x, to=target)]
    return [x if x.dtype == target else ctx.one("bitcast", x, of=x.dtype, to=target)]


def _whole(ctx, value, what: str):
    """The value, which must be integers."""
    if ctx.kind(value) not in INTEGERS:
        raise ModelFormatError(f"{what} of {ctx.kind(value)}")
    return value


def of_one_type(ctx, values: list) -> list:
    """Values of one operator, in which a size (int64 here) takes the integer type of the values that it meets."""
    kinds = {ctx.kind(v) for v in values if not isinstance(v, Ints)}
    if len(kinds) != 1 or kinds == {"int64"} or not kinds <= INTEGERS:
        return values
    (kind,) = kinds
    return [ctx.one("cast", ctx.live(v), to=kind) if isinstance(v, Ints) else v for v in values]


def padded(ctx, x: Live, pads: list, value: int) -> Live:
    """x with a value added before and after that a `pad`, whose value is a float, can't hold."""
    rank = len(x.dims)
    for axis in range(rank):
        parts = [x]
        for count, first in ((pads[axis], True), (pads[rank + axis], False)):
            if isinstance(count, int) and count == 0:
                continue
            dims = (*x.dims[:axis], count, *x.dims[axis + 1 :])
            if D.may_be_negative(count):
                ctx.table.shortfalls.append(D.shortfall(count, 0))
            parts.insert(0 if first else len(parts), ctx.one("expand", Const(np.array(value, x.dtype)), dims=dims))
            size = x.dims[axis]
            if isinstance(size, Dim) and isinstance(count, int) and ctx.table.genuine(size):
                ctx.table.ledger.added(size, ctx.label, count, ctx.table.example(size))
        x = ctx.concat(parts, axis)
    return x


def wrapped(ctx, x: Live, pads: list) -> Live:
    """x with its own elements from the other end before and after it."""
    rank = len(x.dims)
    for axis in range(rank):
        size, parts = x.dims[axis], [x]
        for count, first in ((pads[axis], True), (pads[rank + axis], False)):
            if not isinstance(count, int):
                raise Finding("mode='wrap' by a size of the input")
            if count == 0:
                continue
            if isinstance(size, int) and size < count:
                raise Finding(f"mode='wrap' by {count} of the {size} of axis {axis}")
            if isinstance(size, Dim):
                ctx.table.shortfalls.append(D.shortfall(size, count))
            part = ctx.slice(x, axis, size - count, size) if first else ctx.slice(x, axis, 0, count)
            parts.insert(0 if first else len(parts), part)
        x = ctx.concat(parts, axis)
    return x
