"""Products, reductions, softmax and normalisation."""

from __future__ import annotations

import numpy as np

from ... import dims as D
from ...dims import Dim
from ...errors import ModelFormatError
from .nodes import NodeReader, axes_of, axis_of
from .registry import op
from .symbols import Finding
from .values import Const, Ints, uniform

_REDUCE = {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min"}
# Since when axes are an input of each.
_AXES_INPUT = {
    "ReduceSum": 13,
    "ReduceMean": 18,
    "ReduceMax": 18,
    "ReduceMin": 18,
    "ReduceL2": 18,
    "ReduceSumSquare": 18,
}


def _float(ctx, value, what: str):
    """The value as a live one or a Const, floating point or refused."""
    if isinstance(value, Ints):
        ctx.table.freeze(list(value.array.flat), f"{what} of a size")
    dtype = ctx.kind(value)
    if dtype != "float32":
        raise Finding(f"{what} of {dtype}")
    return value if isinstance(value, Const) else ctx.live(value)


@op("MatMul")
def _matmul(ctx, n: NodeReader):
    a, b = _float(ctx, n.input(0), "MatMul"), _float(ctx, n.input(1), "MatMul")
    return [matmul(ctx, a, b)]


def matmul(ctx, a, b):
    """numpy.matmul of two values, their inner sizes tied together."""
    if not a.dims or not b.dims:
        raise ModelFormatError("MatMul of a scalar")
    ctx.equal(a.dims[-1], b.dims[-2] if len(b.dims) > 1 else b.dims[0], "the inner sizes of MatMul")
    if len(a.dims) > 2 and len(b.dims) > 2:
        _tie_batches(ctx, a.dims[:-2], b.dims[:-2])
    return ctx.one("matmul", a, b)


def _tie_batches(ctx, left: tuple, right: tuple) -> None:
    for d, e in zip(left[::-1], right[::-1], strict=False):
        if d == e or (isinstance(d, int) and d == 1) or (isinstance(e, int) and e == 1):
            continue
        ones = [v for v in (d, e) if isinstance(v, Dim) and ctx.table.example(v) == 1]
        if len(ones) == 1:
            ctx.table.freeze(ones, "MatMul broadcasts it")
        ctx.equal(d, e, "MatMul of unlike batches")


@op("Gemm", attrs="alpha beta transA transB")
def _gemm(ctx, n: NodeReader):
    a, b = _float(ctx, n.input(0), "Gemm"), _float(ctx, n.input(1), "Gemm")
    c = n.input(2, optional=True)
    alpha, beta = n.attr("alpha", "float", 1.0), n.attr("beta", "float", 1.0)
    if len(a.dims) != 2 or len(b.dims) != 2:
        raise ModelFormatError(f"Gemm of ranks {len(a.dims)} and {len(b.dims)}")
    if n.attr("transA", "int", 0):
        a = ctx.transpose(a, (1, 0))
    if n.attr("transB", "int", 0):
        b = ctx.transpose(b, (1, 0))
    out = _scaled(ctx, matmul(ctx, a, b), alpha)
    if c is None or beta == 0.0:
        return [out]
    out, c = ctx.broadcast([out, _scaled(ctx, _float(ctx, c, "Gemm"), beta)], "Gemm")
    total = ctx.one("binary", out, c, fn="add")
    if total.dims != out.dims:
        raise ModelFormatError(f"C of Gemm has dims {list(map(str, c.dims))}, the product {list(map(str, out.dims))}")
    return [total]


def _scaled(ctx, value, factor: float):
    if factor == 1.0:
        return value
    if isinstance(value, Const):
        return Const(value.array * value.array.dtype.type(factor))
    return ctx.one("binary", value, Const(np.float32(factor).reshape(())), fn="mul")


@op("Softmax", "LogSoftmax", attrs="axis")
def _softmax(ctx, n: NodeReader):
    x, log = _float(ctx, n.input(0), n.node.op), n.node.op == "LogSoftmax"
    x, rank = ctx.live(x), len(x.dims)
    axis = axis_of(n.attr("axis", "int", -1 if n.opset >= 13 else 1), rank)
    if n.opset >= 13 or axis == rank - 1:
        return [ctx.one("softmax", x, axis=axis, log=log)]
    # Before opset 13: everything from the axis on is one row.
    flat = ctx.reshape(x, (*x.dims[:axis], D.product(x.dims[axis:])))
    return [ctx.reshape(ctx.one("softmax", flat, axis=axis, log=log), x.dims)]


@op(*_REDUCE, "ReduceL2", "ReduceSumSquare", attrs="axes keepdims noop_with_empty_axes")
def _reduce(ctx, n: NodeReader):
    x = n.input(0)
    if isinstance(x, Ints):
        ctx.table.freeze(list(x.array.flat), f"{n.node.op} of a size")
    x, axes = ctx.live(x), n.axes(1, _AXES_INPUT[n.node.op])
    keepdims, noop = bool(n.attr("keepdims", "int", 1)), n.attr("noop_with_empty_axes", "int", 0)
    if n.node.op in ("ReduceL2", "ReduceSumSquare"):
        x = ctx.one("binary", x, x, fn="mul")
    if not axes:
        if noop:
            return [ctx.unary("sqrt", x) if n.node.op == "ReduceL2" else x]
        axes = range(len(x.dims))
    axes = tuple(sorted(axes_of(axes, len(x.dims))))
    if x.dtype != "float32" and n.node.op == "ReduceMean":
        raise Finding(f"ReduceMean of {x.dtype}")
    out = ctx.one("reduce", x, fn=_REDUCE.get(n.node.op, "sum"), axes=axes, keepdims=keepdims)
    return [ctx.unary("sqrt", out) if n.node.op == "ReduceL2" else out]


@op("LayerNormalization", attrs="axis epsilon stash_type")
def _layer_norm(ctx, n: NodeReader):
    x = ctx.live(_float(ctx, n.input(0), "LayerNormalization"))
    axis = axis_of(n.attr("axis", "int", -1), len(x.dims))
    epsilon = n.attr("epsilon", "float", 1e-5)
    n.attr("stash_type", "int", 1)  # in which precision the statistics are kept: float32 or better in every case here
    if any(k < len(n.needed) and n.needed[k] for k in (1, 2)):
        raise Finding("its outputs Mean and InvStdDev")
    inputs = [x]
    for i, what in ((1, "Scale"), (2, "B")):
        value = n.input(i, optional=i == 2)
        if value is None:
            continue
        tail = x.dims[axis:]
        if len(value.dims) > len(x.dims):
            raise ModelFormatError(f"{what} has dims {list(map(str, value.dims))}")
        for d, e in zip(value.dims[::-1], tail[::-1], strict=False):
            if not (isinstance(d, int) and d == 1):
                ctx.equal(d, e, f"{what} of LayerNormalization")
        inputs.append(value)
    return [ctx.emit("layer_norm", inputs, {"axis": axis, "epsilon": epsilon})[0]]


@op("BatchNormalization", attrs="epsilon momentum training_mode spatial is_test")
def _batch_norm(ctx, n: NodeReader):
    x = ctx.live(_float(ctx, n.input(0), "BatchNormalization"))
    if n.attr("training_mode", "int", 0) or (len(n.needed) > 1 and any(n.needed[1:])):
        raise Finding("training_mode: statistics of the batch; export the model for inference")
    n.only("spatial", "int", 1, (1,), "statistics an element instead of a channel")
    n.attr("momentum", "float", 0.9)  # speaks of training only
    epsilon = n.attr("epsilon", "float", 1e-5)
    parts = [n.input(i) for i in range(1, 5)]
    if not all(isinstance(p, Const) for p in parts):
        return [_live_norm(ctx, x, parts, epsilon)]
    arrays = [p.array for p in parts]
    channels = arrays[0].shape
    if len(channels) != 1 or any(a.shape != channels for a in arrays) or len(x.dims) < 2:
        raise ModelFormatError(f"BatchNormalization with {[list(a.shape) for a in arrays]} over rank {len(x.dims)}")
    ctx.equal(x.dims[1], channels[0], "the channels of BatchNormalization")
    # Folded in float64: x*factor + shift then rounds as little as the form with mean and variance.
    scale, bias, mean, var = (a.astype(np.float64) for a in arrays)
    if (var + epsilon <= 0).any():
        raise ModelFormatError("BatchNormalization with a variance below zero")
    factor = scale / np.sqrt(var + epsilon)
    shift = bias - mean * factor
    shape = (channels[0],) + (1,) * (len(x.dims) - 2)
    factor, shift = (Const(a.astype(np.float32).reshape(shape)) for a in (factor, shift))
    return [ctx.one("binary", ctx.one("binary", x, factor, fn="mul"), shift, fn="add")]


def _live_norm(ctx, x, parts: list, epsilon: float):
    """BatchNormalization with computed statistics, as tf2onnx writes Keras's LayerNormalization."""
    shaped = []
    for part in parts:
        if len(part.dims) != 1:
            raise ModelFormatError(f"BatchNormalization with a parameter of rank {len(part.dims)}")
        ctx.equal(part.dims[0], x.dims[1], "the channels of BatchNormalization")
        shaped.append(ctx.reshape(part, (x.dims[1],) + (1,) * (len(x.dims) - 2)))
    scale, bias, mean, var = shaped
    spread = ctx.one("binary", var, Const(np.float32(epsilon).reshape(())), fn="add")
    out = ctx.one("binary", ctx.one("binary", x, mean, fn="sub"), ctx.unary("sqrt", spread), fn="div")
    if uniform(scale) != 1:
        out = ctx.one("binary", out, scale, fn="mul")
    return out if uniform(bias) == 0 else ctx.one("binary", out, bias, fn="add")
