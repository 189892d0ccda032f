"""Quantised files: arithmetic in float32, with integer steps if the file fixes their scale.

Integers that QuantizeLinear makes are held as float32, which represents them exactly (`Quantized`). Quantisation by the
range of each call's values (DynamicQuantizeLinear, from onnxruntime's quantize_dynamic) is not reproduced: a row would
depend on its neighbours and a step on later ones, and digits would be lost. Instead, the values pass through unchanged,
with a scale of one, and the weights are dequantised.
"""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ...shared.ledger import Finding
from ..reading.reader import NodeReader, axis_of
from ..reading.registry import OPERATORS, op
from ..reading.values import Const, Live, Quantized
from .products import _float, matmul

_MICROSOFT = "com.microsoft"
# Operators that only move integers: a quantised input gives a quantised output.
_MOVES = frozenset("Transpose Reshape Squeeze Unsqueeze Flatten Slice Split Gather Concat Expand MaxPool".split())
_RANGES = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}


def run(handler, ctx, n: NodeReader) -> list:
    """Run the handler of a node; it also accepts quantised integers if the node only moves them."""
    if n.node.op not in _MOVES or n.node.domain or not any(isinstance(v, Quantized) for v in n.values):
        return handler(ctx, n)
    n.values = [v.value if isinstance(v, Quantized) else v for v in n.values]
    return [None if o is None else Quantized(ctx.live(o)) for o in handler(ctx, n)]


def _along(ctx, x, value: np.ndarray, axis: int) -> np.ndarray:
    """A scale or zero point for all of x, or one per slice of `axis`, in a shape that broadcasts."""
    if value.size == 1:
        return value.reshape(())
    if value.ndim != 1:
        raise Finding("scales in blocks")
    axis = axis_of(axis, len(x.dims))
    ctx.equal(x.dims[axis], len(value), "there must be a scale for each channel")
    return value.reshape((len(value),) + (1,) * (len(x.dims) - axis - 1))


def _quantised(ctx, x, scale: np.ndarray, zero: np.ndarray | None, axis: int = 1) -> Quantized:
    """round(x / scale) + zero, saturated."""
    zero = np.zeros((), np.uint8) if zero is None else zero
    if zero.dtype.name not in _RANGES:
        raise Finding(f"to {zero.dtype.name}")
    low, high = _RANGES[zero.dtype.name]
    divisor = Const(_along(ctx, x, scale.astype(np.float32), axis))
    offset = Const(_along(ctx, x, zero.astype(np.float32), axis))
    steps = ctx.unary("round", ctx.one("binary", x, divisor, fn="div"))
    return Quantized(ctx.unary("clip", ctx.one("binary", steps, offset, fn="add"), low, high))


def _numbers(ctx, x, scale: np.ndarray, zero: np.ndarray | None, axis: int = 1):
    """(x - zero) * scale of integers, as a Const or a live value."""
    if isinstance(x, Quantized):
        x = x.value
    elif isinstance(x, Live) and x.dtype in _RANGES:
        x = ctx.one("cast", x, to="float32")
    elif not isinstance(x, Const):
        raise Finding("of integers that no QuantizeLinear made")
    factor = _along(ctx, x, scale.astype(np.float32), axis)
    zero = None if zero is None or not zero.any() else _along(ctx, x, zero.astype(np.float32), axis)
    if isinstance(x, Const):
        return Const(((x.array.astype(np.float32) - (0 if zero is None else zero)) * factor).astype(np.float32))
    x = x if zero is None else ctx.one("binary", x, Const(zero), fn="sub")
    return x if (factor == 1).all() else ctx.one("binary", x, Const(factor), fn="mul")


@op("QuantizeLinear", attrs="axis saturate block_size output_dtype precision")
def _quantize(ctx, n: NodeReader):
    x = ctx.live(_float(ctx, n.input(0), n.node.op))
    scale, zero = n.const(1, "scale"), n.const(2, "zero point", optional=True)
    n.attr("saturate", "int", 1)
    n.only("block_size", "int", 0, (0,))
    n.only("output_dtype", "int", 0, (0,))
    n.only("precision", "int", 0, (0,))
    return [_quantised(ctx, x, scale, zero, n.attr("axis", "int", 1))]


@op("DequantizeLinear", attrs="axis block_size output_dtype")
def _dequantize(ctx, n: NodeReader):
    x, scale, zero = n.input(0), n.const(1, "scale"), n.const(2, "zero point", optional=True)
    n.only("block_size", "int", 0, (0,))
    n.only("output_dtype", "int", 0, (0, 1))
    return [_numbers(ctx, x, scale, zero, n.attr("axis", "int", 1))]


@op("DynamicQuantizeLinear")
def _dynamic(ctx, n: NodeReader):
    x = ctx.live(_float(ctx, n.input(0), n.node.op))
    ctx.table.notes.setdefault(
        "dynamic quantisation",
        "values that the file rounds to 8 bits by the range of each call (DynamicQuantizeLinear) are not rounded: "
        "answers differ from onnxruntime's by what it loses there",
    )
    return [Quantized(x), Const(np.ones((), np.float32)), Const(np.zeros((), np.uint8))]


def _pair(ctx, n: NodeReader, zeros: tuple[int, int]) -> tuple:
    """Integer inputs 0 and 1 minus their zero points (which are inputs too); each column of B may have its own."""
    ones = np.ones((), np.float32)
    a_zero, b_zero = (n.const(i, "zero point", optional=True) for i in zeros)
    if a_zero is not None and a_zero.size != 1:
        raise Finding("a zero point for each row")
    return _numbers(ctx, n.input(0), ones, a_zero), _numbers(ctx, n.input(1), ones, b_zero, _columns(n.node.op))


def _columns(kind: str) -> int:
    """The axis of weights along which scales and zero points may differ."""
    return 0 if "Conv" in kind else -1


@op("MatMulInteger")
def _matmul_integer(ctx, n: NodeReader):
    return [matmul(ctx, *_pair(ctx, n, (2, 3)))]


_CONV = "auto_pad dilations group kernel_shape pads strides"


@op("ConvInteger", attrs=_CONV)
def _conv_integer(ctx, n: NodeReader):
    return _conv(ctx, n, list(_pair(ctx, n, (2, 3))))


def _conv(ctx, n: NodeReader, values: list) -> list:
    """Conv with the node's attributes, but other inputs."""
    inner = n.within(values)
    outputs = OPERATORS["", "Conv"].handler(ctx, inner)
    inner.finish()
    return outputs


def _scaled(ctx, n: NodeReader, first: int, axis: int = 1):
    """The dequantised values of inputs first, first + 1 (scale) and first + 2 (zero point)."""
    return _numbers(ctx, n.input(first), n.const(first + 1, "scale"), n.const(first + 2, "zero point"), axis)


def _result(ctx, n: NodeReader, y, first: int):
    """y quantised with inputs first (scale) and first + 1 (zero point)."""
    return [_quantised(ctx, ctx.live(y), n.const(first, "scale"), n.const(first + 1, "zero point", optional=True))]


@op("QLinearMatMul")
def _qlinear_matmul(ctx, n: NodeReader):
    return _result(ctx, n, matmul(ctx, _scaled(ctx, n, 0), _scaled(ctx, n, 3, _columns("MatMul"))), 6)


@op("QLinearConv", attrs=_CONV)
def _qlinear_conv(ctx, n: NodeReader):
    x, w = _scaled(ctx, n, 0), _scaled(ctx, n, 3, _columns("Conv"))
    bias = n.const(8, "bias", optional=True)
    if bias is not None:  # integers in units of (step of x) * (step of w)
        step = n.const(1, "scale").astype(np.float32) * n.const(4, "scale").astype(np.float32)
        if bias.dtype != np.int32 or step.size not in (1, bias.size):
            raise ModelFormatError(f"bias {bias.dtype}{list(bias.shape)} with {step.size} scales")
        bias = Const((bias * step.reshape(-1)).astype(np.float32))
    return _result(ctx, n, _conv(ctx, n, [x, w, bias])[0], 6)


@op("QLinearAdd", "QLinearMul", domain=_MICROSOFT)
def _qlinear_binary(ctx, n: NodeReader):
    sides = ctx.broadcast([_scaled(ctx, n, 0), _scaled(ctx, n, 3)], n.node.op)
    return _result(ctx, n, ctx.one("binary", *sides, fn=n.node.op.removeprefix("QLinear").lower()), 6)


@op("QLinearSigmoid", domain=_MICROSOFT)
def _qlinear_sigmoid(ctx, n: NodeReader):
    return _result(ctx, n, ctx.unary("sigmoid", ctx.live(_scaled(ctx, n, 0))), 3)
