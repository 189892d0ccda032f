"""Products, reductions, softmax and normalisation."""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ....graph import INTEGERS
from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading.reader import NodeReader, axes_of, axis_of
from ..reading.registry import op
from ..reading.values import Const, Ints, ints, simplest, uniform

_REDUCE = {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min"}
# Those that integers have an exact answer to.
_EXACT = frozenset((*_REDUCE, "ReduceProd", "ReduceL1", "ReduceSumSquare"))
# The opset since which axes are an input, per operator.
_AXES_INPUT = dict.fromkeys(
    "ReduceMean ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp ReduceProd".split(),
    18,
) | {"ReduceSum": 13}


def _float(ctx, value, what: str):
    """The value as a live one or a Const; refused if it is not floating point."""
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
    """numpy.matmul of two values; their inner sizes are made equal."""
    if not a.dims or not b.dims:
        raise ModelFormatError("MatMul of a scalar")
    ctx.equal(a.dims[-1], b.dims[-2] if len(b.dims) > 1 else b.dims[0], "the sizes that MatMul sums over must be equal")
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
        ctx.equal(d, e, "MatMul needs equal leading sizes")


@op("Gemm", attrs="alpha beta broadcast transA transB")
def _gemm(ctx, n: NodeReader):
    a, b = _float(ctx, n.input(0), "Gemm"), _float(ctx, n.input(1), "Gemm")
    c = n.input(2, optional=True)
    if n.opset < 7:
        n.attr("broadcast", "int", 0)  # C broadcasts in any case
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
    # Before opset 13, everything from the axis on is one row.
    flat = ctx.reshape(x, (*x.dims[:axis], D.product(x.dims[axis:])))
    return [ctx.reshape(ctx.one("softmax", flat, axis=axis, log=log), x.dims)]


@op(*_AXES_INPUT, attrs="axes keepdims noop_with_empty_axes")
def _reduce(ctx, n: NodeReader):
    x, name = n.input(0), n.node.op
    if name == "ReduceProd" and isinstance(x, Ints) and x.array.ndim == 1:
        return [_product_of_sizes(n, x)]
    if isinstance(x, Ints):
        ctx.table.freeze(list(x.array.flat), f"{name} is computed from it")
    x, axes = ctx.live(x), n.axes(1, _AXES_INPUT[name])
    keepdims, noop = bool(n.attr("keepdims", "int", 1)), n.attr("noop_with_empty_axes", "int", 0)
    if (x.dtype == "bool" and name not in _REDUCE) or (x.dtype in INTEGERS and name not in _EXACT):
        raise Finding(f"{name} of {x.dtype}")
    if not axes and noop:
        axes = ()
    axes = tuple(sorted(axes_of(range(len(x.dims)) if axes is None or (not axes and not noop) else axes, len(x.dims))))
    if name == "ReduceProd":
        return [_multiplied(ctx, x, axes, keepdims)]
    if name == "ReduceLogSumExp":
        return [_log_sum_exp(ctx, x, axes, keepdims)]
    if name in ("ReduceL2", "ReduceSumSquare"):
        x = ctx.one("binary", x, x, fn="mul")
    if name == "ReduceL1":
        x = ctx.unary("abs", x)
    if axes:
        x = ctx.one("reduce", x, fn=_REDUCE.get(name, "sum"), axes=axes, keepdims=keepdims)
    after = {"ReduceL2": "sqrt", "ReduceLogSum": "log"}.get(name)
    return [ctx.unary(after, x) if after else x]


def _product_of_sizes(n: NodeReader, x: Ints):
    n.axes(1, 18)
    n.attr("noop_with_empty_axes", "int", 0)
    total = D.product(list(x.array))
    return ints([total]) if n.attr("keepdims", "int", 1) else simplest(total)


def _multiplied(ctx, x, axes: tuple, keepdims: bool):
    """The product over axes of known sizes, by repeated halving."""
    kept = tuple(1 if i in axes else d for i, d in enumerate(x.dims))
    for axis in axes:
        size = ctx.number(x.dims[axis], "ReduceProd multiplies all elements of it")
        if size == 0 or size > 4096:
            raise Finding(f"ReduceProd over {size}")
        while size > 1:
            half = size // 2
            pair = ctx.one("binary", ctx.slice(x, axis, 0, half), ctx.slice(x, axis, half, 2 * half), fn="mul")
            x = pair if size % 2 == 0 else ctx.concat([pair, ctx.slice(x, axis, size - 1, size)], axis)
            size -= half
    return ctx.reshape(x, kept if keepdims else tuple(d for i, d in enumerate(x.dims) if i not in axes))


def _log_sum_exp(ctx, x, axes: tuple, keepdims: bool):
    """m + log(sum(exp(x - m))), m the maximum. An infinite m is left out, since inf - inf is NaN."""
    if not axes:
        return x
    most = ctx.one("reduce", x, fn="max", axes=axes, keepdims=True)
    finite = ctx.one("binary", ctx.unary("abs", most), Const(np.float32(np.inf)), fn="less")
    most = ctx.one("where", finite, most, Const(np.float32(0)))
    total = ctx.one(
        "reduce", ctx.unary("exp", ctx.one("binary", x, most, fn="sub")), fn="sum", axes=axes, keepdims=True
    )
    out = ctx.one("binary", ctx.unary("log", total), most, fn="add")
    return out if keepdims else ctx.reshape(out, tuple(d for i, d in enumerate(out.dims) if i not in axes))


@op("LpNormalization", attrs="axis p")
def _lp_norm(ctx, n: NodeReader):
    x, p = ctx.live(_float(ctx, n.input(0), n.node.op)), n.only("p", "int", 2, (1, 2))
    axis = axis_of(n.attr("axis", "int", -1), len(x.dims))
    size = ctx.unary("abs", x) if p == 1 else ctx.one("binary", x, x, fn="mul")
    size = ctx.one("reduce", size, fn="sum", axes=(axis,), keepdims=True)
    size = size if p == 1 else ctx.unary("sqrt", size)
    zero = ctx.one("binary", size, Const(np.float32(0)), fn="equal")  # all zeros stay zeros
    return [ctx.one("binary", x, ctx.one("where", zero, Const(np.float32(1)), size), fn="div")]


@op("MeanVarianceNormalization", attrs="axes")
def _mean_variance(ctx, n: NodeReader):
    x = ctx.live(_float(ctx, n.input(0), n.node.op))
    axes = tuple(sorted(axes_of(n.attr("axes", "ints", [0, 2, 3]), len(x.dims))))
    even = ctx.one("binary", x, ctx.one("reduce", x, fn="mean", axes=axes, keepdims=True), fn="sub")
    spread = ctx.one("reduce", ctx.one("binary", even, even, fn="mul"), fn="mean", axes=axes, keepdims=True)
    spread = ctx.one("binary", ctx.unary("sqrt", spread), Const(np.float32(1e-9)), fn="add")
    return [ctx.one("binary", even, spread, fn="div")]


@op("LayerNormalization", attrs="axis epsilon stash_type")
def _layer_norm(ctx, n: NodeReader):
    x = ctx.live(_float(ctx, n.input(0), "LayerNormalization"))
    axis = axis_of(n.attr("axis", "int", -1), len(x.dims))
    epsilon = n.attr("epsilon", "float", 1e-5)
    n.attr("stash_type", "int", 1)  # the precision of the statistics: always float32 or better here
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
                ctx.equal(d, e, f"{what} of LayerNormalization must fit the normalized axes")
        inputs.append(value)
    if all(isinstance(v, Const) for v in inputs[1:]):
        y = ctx.emit("layer_norm", inputs, {"axis": axis, "epsilon": epsilon})[0]
    else:
        y = ctx.emit("layer_norm", [x], {"axis": axis, "epsilon": epsilon})[0]
        for value, fn in zip(inputs[1:], ("mul", "add"), strict=False):
            y = ctx.one("binary", *ctx.broadcast([y, value], n.node.op), fn=fn)
    if not any(n.needed[1:]):
        return [y]
    axes = tuple(range(axis, len(x.dims)))
    mean = ctx.one("reduce", x, fn="mean", axes=axes, keepdims=True)
    centred = ctx.one("binary", x, mean, fn="sub")
    square = ctx.one("binary", centred, centred, fn="mul")
    spread = ctx.one("reduce", square, fn="mean", axes=axes, keepdims=True)
    spread = ctx.one("binary", spread, Const(np.float32(epsilon).reshape(())), fn="add")
    return [y, mean, ctx.unary("recip", ctx.unary("sqrt", spread))]


@op("BatchNormalization", attrs="epsilon momentum training_mode spatial is_test")
def _batch_norm(ctx, n: NodeReader):
    x = ctx.live(_float(ctx, n.input(0), "BatchNormalization"))
    if n.attr("training_mode", "int", 0) or (len(n.needed) > 1 and any(n.needed[1:])):
        raise Finding("training_mode: statistics of the batch; export the model for inference")
    if n.opset < 7 and not n.attr("is_test", "int", 0):
        raise Finding("is_test=0: statistics of the batch; export the model for inference")
    n.only("spatial", "int", 1, (1,), "statistics an element instead of a channel")
    n.attr("momentum", "float", 0.9)  # affects training only
    epsilon = n.attr("epsilon", "float", 1e-5)
    parts = [n.input(i) for i in range(1, 5)]
    if not all(isinstance(p, Const) for p in parts):
        return [_live_norm(ctx, x, parts, epsilon)]
    arrays = [p.array for p in parts]
    channels = arrays[0].shape
    if len(channels) != 1 or any(a.shape != channels for a in arrays) or len(x.dims) < 2:
        raise ModelFormatError(f"BatchNormalization with {[list(a.shape) for a in arrays]} over rank {len(x.dims)}")
    ctx.equal(x.dims[1], channels[0], "the channels must fit the weights of BatchNormalization")
    # Folded in float64, so that x*factor + shift rounds as little as the form with mean and variance.
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
        ctx.equal(part.dims[0], x.dims[1], "the channels must fit the weights of BatchNormalization")
        shaped.append(ctx.reshape(part, (x.dims[1],) + (1,) * (len(x.dims) - 2)))
    scale, bias, mean, var = shaped
    spread = ctx.one("binary", var, Const(np.float32(epsilon).reshape(())), fn="add")
    out = ctx.one("binary", ctx.one("binary", x, mean, fn="sub"), ctx.unary("sqrt", spread), fn="div")
    if uniform(scale) != 1:
        out = ctx.one("binary", out, scale, fn="mul")
    return out if uniform(bias) == 0 else ctx.one("binary", out, bias, fn="add")
