"""Operators of onnxruntime and ONNX on quantised values, with scales from the file (QLinear.., QGemm).

Each is computed as onnxruntime does: products of exact integers, times one factor; other functions on the numbers that
the integers stand for. The result is rounded once.
"""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ...shared.ledger import Finding
from ..reading.reader import NodeReader, axis_of
from ..reading.registry import OPERATORS, op
from ..reading.values import Const, Live, Quantized
from .products import matmul
from .quantised import CONV, MICROSOFT, _binary, columns, conv, held, less, numbers, quantised, rows, single

_POOL = "auto_pad ceil_mode channels_last count_include_pad dilations kernel_shape pads storage_order strides"


def _of(ctx, n: NodeReader, first: int):
    """The numbers that input `first` stands for; the next two are its scale and zero point."""
    return numbers(ctx, n.input(first), n.input(first + 1), n.input(first + 2, optional=True))


def _result(ctx, n: NodeReader, y, first: int) -> list[Quantized]:
    """y quantised with inputs first (scale) and first + 1 (zero point), which also gives the type."""
    zero = n.input(first + 1, optional=True)
    return [quantised(ctx, y, n.input(first), zero, dtype=_type(n.values[0]))]


def _type(value) -> str:
    return value.dtype if isinstance(value, Quantized | Live) else value.array.dtype.name


def _factor(ctx, a, b, y):
    """a * b / y of scales."""
    return _binary(ctx, "div", _binary(ctx, "mul", held(ctx, a), held(ctx, b)), held(ctx, y))


@op("QLinearMatMul")
def _matmul(ctx, n: NodeReader):
    a_scale, b_scale, y_scale = (single(ctx, n.input(i)) for i in (1, 4, 6))
    a_zero, b_zero, y_zero = (single(ctx, n.input(i)) for i in (2, 5, 7))
    left = _binary(ctx, "sub", held(ctx, n.input(0)), held(ctx, rows(ctx, a_zero)))
    product = matmul(ctx, left, less(ctx, n.input(3), b_zero, columns("MatMul")))
    factor = _factor(ctx, rows(ctx, a_scale), b_scale, rows(ctx, y_scale))
    scaled = _binary(ctx, "mul", product, factor)
    one = Const(np.ones((), np.float32))
    if y_zero.dims:
        raise Finding("a zero point of each row of the result")
    return [quantised(ctx, scaled, one, y_zero)]


@op("QLinearConv", attrs=CONV)
def _conv(ctx, n: NodeReader):
    return [_qlinear_conv(ctx, n)]


@op("QLinearConv", attrs=CONV + " channels_last", domain=MICROSOFT)
def _nhwc_conv(ctx, n: NodeReader):
    """With channels_last, x and the result are [batch, .., channels]."""
    if not n.attr("channels_last", "int", 0):
        return [_qlinear_conv(ctx, n)]
    x = n.input(0)
    rank = len(x.dims)
    n.values[0] = moved(x, ctx.transpose(held(ctx, x), (0, rank - 1, *range(1, rank - 1))))
    y = _qlinear_conv(ctx, n)
    return [Quantized(ctx.transpose(y.value, (0, *range(2, rank), 1)), y.dtype)]


def moved(x, value) -> Quantized:
    """Integers like x, held in `value`."""
    return Quantized(value, _type(x), not isinstance(x, Quantized) or x.rounded)


def _qlinear_conv(ctx, n: NodeReader) -> Quantized:
    x = less(ctx, n.input(0), n.input(2))
    w = less(ctx, n.input(3), n.input(5), columns("Conv"))
    bias = n.const(8, "bias", optional=True)
    if bias is not None:
        if bias.dtype != np.int32 or bias.ndim != 1:
            raise ModelFormatError(f"bias {bias.dtype}{list(bias.shape)}")
        bias = Const(bias.astype(np.float32))
    sums = conv(ctx, n, [x, w, bias])
    factor = _factor(ctx, single(ctx, n.input(1)), single(ctx, n.input(4)), single(ctx, n.input(6)))
    if factor.dims:
        ctx.equal(factor.dims[0], sums.dims[1], "there must be a scale for each channel")
        factor = ctx.reshape(factor, (factor.dims[0],) + (1,) * (len(sums.dims) - 2))
    return quantised(ctx, _binary(ctx, "mul", sums, factor), Const(np.ones((), np.float32)), n.input(7))


@op("QGemm", attrs="alpha transA transB", domain=MICROSOFT)
def _gemm(ctx, n: NodeReader):
    """alpha * A @ B + C, where C is in units of alpha * (step of A) * (step of B). Without a scale of the result, it is
    float."""
    a = less(ctx, n.input(0), n.input(2))
    b = n.input(3)
    if len(a.dims) != 2 or len(b.dims) != 2:
        raise ModelFormatError(f"QGemm of ranks {len(a.dims)} and {len(b.dims)}")
    turned = n.attr("transB", "int", 0)
    b = less(ctx, b, n.input(5), 0 if turned else 1)
    a = ctx.transpose(a, (1, 0)) if n.attr("transA", "int", 0) else a
    total = matmul(ctx, a, ctx.transpose(b, (1, 0)) if turned else b)
    bias = n.input(6, optional=True)
    if bias is not None:
        total = ctx.one("binary", *ctx.broadcast([total, held(ctx, bias)], n.node.op), fn="add")
    step = _binary(ctx, "mul", held(ctx, single(ctx, n.input(1))), held(ctx, single(ctx, n.input(4))))
    step = _binary(ctx, "mul", Const(np.array(n.attr("alpha", "float", 1.0), np.float32)), step)
    total = _binary(ctx, "mul", total, step)
    return _result(ctx, n, total, 7) if n.input(7, optional=True) is not None else [total]


@op("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def _arithmetic(ctx, n: NodeReader):
    sides = ctx.broadcast([_of(ctx, n, 0), _of(ctx, n, 3)], n.node.op)
    return _result(ctx, n, ctx.one("binary", *sides, fn=n.node.op.removeprefix("QLinear").lower()), 6)


@op("QLinearSigmoid", domain=MICROSOFT)
def _sigmoid(ctx, n: NodeReader):
    return _result(ctx, n, ctx.unary("sigmoid", ctx.live(_of(ctx, n, 0))), 3)


@op("QLinearLeakyRelu", attrs="alpha", domain=MICROSOFT)
def _leaky_relu(ctx, n: NodeReader):
    return _result(ctx, n, ctx.unary("leaky_relu", ctx.live(_of(ctx, n, 0)), n.attr("alpha", "float", 0.01)), 3)


@op("QLinearSoftmax", attrs="axis opset", domain=MICROSOFT)
def _softmax(ctx, n: NodeReader):
    x, opset = ctx.live(_of(ctx, n, 0)), n.attr("opset", "int", 13)
    axis = axis_of(n.attr("axis", "int", -1), len(x.dims))
    if opset < 13 and axis != len(x.dims) - 1:
        raise Finding(f"opset={opset} and axis={axis}: rows of several axes")
    return _result(ctx, n, ctx.one("softmax", x, axis=axis, log=False), 3)


@op("QLinearGlobalAveragePool", attrs="channels_last", domain=MICROSOFT)
def _global_pool(ctx, n: NodeReader):
    x, last = ctx.live(_of(ctx, n, 0)), n.attr("channels_last", "int", 0)
    axes = tuple(range(1, len(x.dims) - 1) if last else range(2, len(x.dims)))
    return _result(ctx, n, ctx.one("reduce", x, fn="mean", axes=axes, keepdims=True), 3)


@op("QLinearAveragePool", attrs=_POOL, domain=MICROSOFT)
def _pool(ctx, n: NodeReader):
    x, last = ctx.live(_of(ctx, n, 0)), n.attr("channels_last", "int", 0)
    rank = len(x.dims)
    inner = n.within([ctx.transpose(x, (0, rank - 1, *range(1, rank - 1))) if last else x])
    inner.node = type(n.node)("AveragePool", "", n.node.label, n.node.inputs[:1], n.node.outputs[:1], n.node.attrs)
    outputs = OPERATORS["", "AveragePool"].handler(ctx, inner)
    inner.finish()
    y = ctx.transpose(outputs[0], (0, *range(2, rank), 1)) if last else outputs[0]
    return _result(ctx, n, y, 3)


@op("QLinearConcat", attrs="axis", domain=MICROSOFT)
def _concat(ctx, n: NodeReader):
    """Inputs: the result's scale and zero point, then a value, a scale and a zero point each."""
    if len(n.values) < 5 or (len(n.values) - 2) % 3:
        raise ModelFormatError(f"QLinearConcat of {len(n.values)} inputs")
    parts = [ctx.live(_of(ctx, n, k)) for k in range(2, len(n.values), 3)]
    axis = axis_of(n.attr("axis", "int"), len(parts[0].dims))
    for part in parts[1:]:
        for i, (a, b) in enumerate(zip(part.dims, parts[0].dims, strict=True)):
            if i != axis:
                ctx.equal(a, b, "QLinearConcat needs equal sizes on the other axes")
    return [quantised(ctx, ctx.concat(parts, axis), n.input(0), n.input(1))]
