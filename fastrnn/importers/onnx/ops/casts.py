"""Casts, and operators that return their input unchanged."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading import files
from ..reading.reader import NodeReader
from ..reading.registry import op
from ..reading.values import Const, Fill, Ints, Live, simplest


def as_dtype(ctx, value, dtype: str):
    if isinstance(value, Const):
        return Const(value.array.astype(dtype))
    return ctx.one("cast", value, to=dtype)


@op("Cast", attrs="to saturate round_mode")
def _cast(ctx, n: NodeReader):
    x, to = n.input(0), n.attr("to", "int")
    n.attr("saturate", "int", 1)  # affects float8 targets only, which are refused below
    n.attr("round_mode", "string", "up")
    if to not in files.NUMERIC:
        raise Finding(f"to={files.dtype_name(to or 0)}")
    target = np.dtype(np.float16) if to == TensorProto.BFLOAT16 else files.NUMERIC[to]
    return [cast(ctx, x, target)]


@op("CastLike", attrs="saturate round_mode")
def _cast_like(ctx, n: NodeReader):
    n.attr("saturate", "int", 1)
    n.attr("round_mode", "string", "up")
    like = n.input(1)
    if isinstance(like, Live):
        return [cast(ctx, n.input(0), np.dtype(like.dtype))]
    return [cast(ctx, n.input(0), like.dtype if isinstance(like, Fill) else like.array.dtype)]


def cast(ctx, x, target: np.dtype):
    """x in another dtype of the file."""
    if isinstance(x, Ints):
        if target.kind in "iu" and target.itemsize >= 4:
            return x
        if target.kind == "f" and x.array.size == 1:
            number = ctx.number_of(x.array.flat[0], ctx.dtype(target))
            return ctx.reshape(number, x.dims)
        if target.kind == "b":
            ctx.table.freeze(list(x.array.flat), "it is cast to bool")
        x = ctx.live(x)
    if isinstance(x, Fill):
        if isinstance(x.value, Dim):
            if target.kind in "iu":
                return Fill(x.value, target, x.dims)
            return ctx.one("expand", ctx.number_of(x.value, ctx.dtype(target)), dims=x.dims)
        return Fill(target.type(x.value), target, x.dims)
    if isinstance(x, Const):
        return Const(x.array.astype(target))
    name = ctx.dtype(target)
    if x.name in ctx.sizes and target.kind in "iu" and target.itemsize >= 4:
        dim, factor = ctx.sizes[x.name]
        box = np.empty(x.dims, dtype=object)
        box[...] = D.floordiv(dim * factor.numerator, factor.denominator)
        return simplest(box)
    return x if x.dtype == name else ctx.one("cast", x, to=name)


@op("Identity")
def _identity(ctx, n: NodeReader):
    return [n.input(0)]


@op("Dropout", attrs="ratio seed is_test")
def _dropout(ctx, n: NodeReader):
    n.attr("ratio", "float", 0.5)
    n.attr("seed", "int", 0)
    if n.opset < 7 and not n.attr("is_test", "int", 0):
        raise Finding("is_test=0: Dropout that drops; export the model for inference")
    if n.opset >= 12:
        n.input(1, optional=True)
        training = n.const(2, "training_mode", optional=True)
        if training is not None and training.any():
            raise Finding("training_mode: Dropout that drops; export the model for inference")
    if len(n.needed) > 1 and n.needed[1]:
        raise Finding("its mask output is used")
    return [n.input(0)]
