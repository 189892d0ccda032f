"""Quantised files: integers held as float32, which represents those of 8 and 16 bits and most sums exactly.

QuantizeLinear and everything with scales from the file is computed as written: integer products are sums of exact
integers, and results round at the same places as onnxruntime's.

DynamicQuantizeLinear (onnxruntime's quantize_dynamic) takes its scale from the range of a whole tensor: a row depends
on its neighbours, and a step on later ones. Where its integers only enter products whose results are scaled back to
floats, as quantize_dynamic writes it, it is left out: values pass unrounded, with a scale of one. Rows and steps stay
independent. Anywhere else it is computed as written, over the whole tensor. docs/decisions/0017 has the reasons.

Weights become float32 too, and what their integers are worth is noted (`Graph.integers`): the last pass holds layers
that gain by it as the file's own integers, whose products round each row by itself.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ....errors import ModelFormatError
from ....graph.dims import Dim
from ....graph.precision import ROUNDED_EACH_CALL, note_steps
from ...shared.ledger import Finding
from ..reading import files
from ..reading.nodes import OnnxNode
from ..reading.reader import NodeReader, axis_of
from ..reading.registry import OPERATORS, op
from ..reading.values import Const, Fill, Live, Quantized
from .products import _float, matmul

MICROSOFT = "com.microsoft"
# Operators that only move integers: a quantised input gives a quantised output.
_MOVES = frozenset(
    "Identity Transpose Reshape Squeeze Unsqueeze Flatten Slice Split Gather Concat Expand Tile MaxPool".split()
)
_RANGES = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}
_TAKE = frozenset("QuantizeLinear DequantizeLinear MatMulInteger ConvInteger MatMulIntegerToFloat".split())
_FLOATS = ("float16", "float32", "float64")


def run(handler, ctx, n: NodeReader) -> list:
    """Run the handler of a node. Quantised integers reach it as float32 if it moves them, as `Quantized` if it is made
    for them, else as values of their integer type."""
    found = [v for v in n.values if isinstance(v, Quantized)]
    name = n.node.op
    if not found or name in _TAKE or name.startswith(("QLinear", "QGemm", "DynamicQuantize", "Nhwc")):
        return handler(ctx, n)
    if name in _MOVES and not n.node.domain:
        first = found[0]
        n.values = [_as_moved(v, first) for v in n.values]
        outputs = handler(ctx, n)
        return [None if o is None else Quantized(ctx.live(o), first.dtype, first.rounded) for o in outputs]
    if name == "Cast" and _to_float(n.node):
        n.values = [found[0].value]
        return handler(ctx, n)
    n.values = [ctx.live(v) if isinstance(v, Quantized) else v for v in n.values]
    return handler(ctx, n)


def _as_moved(value, like: Quantized):
    """A value that is moved together with quantised integers."""
    if isinstance(value, Quantized):
        if (value.dtype, value.rounded) != (like.dtype, like.rounded):
            raise Finding(f"of {value.dtype} and {like.dtype}")
        return value.value
    if isinstance(value, Const) and value.array.dtype.name == like.dtype and like.dtype in _RANGES:
        return Const(value.array.astype(np.float32))
    return value


def _to_float(node: OnnxNode) -> bool:
    to = node.attrs.get("to")
    return to is not None and to.i in files.NUMERIC and files.NUMERIC[to.i].name in _FLOATS


def held(ctx, x):
    """Integers as float32: a Const or a live value."""
    if isinstance(x, Quantized):
        return x.value
    if isinstance(x, Const):
        return Const(x.array.astype(np.float32))
    if isinstance(x, Fill) and not isinstance(x.value, Dim):
        return Fill(np.float32(x.value), np.dtype(np.float32), x.dims)
    if isinstance(x, Live):
        return x if x.dtype == "float32" else ctx.one("cast", x, to="float32")
    raise Finding("quantised sizes")


def _integers(ctx, x):
    """As `held`, for values that must be integers."""
    dtype = x.dtype if isinstance(x, Live | Quantized) else _array(x).dtype.name
    if "int" not in str(dtype):
        raise ModelFormatError(f"it needs integers, got {dtype}")
    return held(ctx, x)


def _along(ctx, x, value, axis: int, block: int = 0):
    """A scale or zero point as float32 that broadcasts over x: one for all of x, one per slice of `axis`, or one per
    `block` of them."""
    value = held(ctx, value) if block else single(ctx, held(ctx, value))
    if not value.dims:
        return value
    if block:
        return _blocks(ctx, x, value, axis_of(axis, len(x.dims)), block)
    if len(value.dims) != 1:
        if len(value.dims) != len(x.dims):
            raise ModelFormatError(f"a scale or zero point of rank {len(value.dims)} for a value of rank {len(x.dims)}")
        return value  # one per row, as integer products may have
    axis = axis_of(axis, len(x.dims))
    ctx.equal(x.dims[axis], value.dims[0], "there must be a scale for each channel")
    return ctx.reshape(value, (value.dims[0],) + (1,) * (len(x.dims) - axis - 1))


def single(ctx, value):
    """A scale or zero point with one element as a scalar; any other unchanged."""
    if value is None or any(ctx.table.example(d) != 1 for d in value.dims):
        return value
    for size in value.dims:
        ctx.equal(size, 1, "there is one scale or zero point")
    value = ctx.current(value)
    return (
        Quantized(ctx.reshape(value.value, ()), value.dtype) if isinstance(value, Quantized) else ctx.reshape(value, ())
    )


def _blocks(ctx, x, value, axis: int, block: int):
    """Each scale repeated for the `block` elements of `axis` that share it."""
    if len(value.dims) != len(x.dims) or block < 0:
        raise ModelFormatError(
            f"blocks of {block}: scales {list(map(str, value.dims))}, values {list(map(str, x.dims))}"
        )
    size = ctx.number(x.dims[axis], "scales are given in blocks along it")
    count = ctx.number(value.dims[axis], "scales are given in blocks along it")
    if count != -(-size // block):
        raise ModelFormatError(f"{count} blocks of {block} for an axis of {size}")
    if isinstance(value, Const):
        return Const(np.repeat(value.array, block, axis).take(range(size), axis))
    before, after = value.dims[:axis], value.dims[axis + 1 :]
    wide = ctx.one("expand", ctx.reshape(value, (*before, count, 1, *after)), dims=(*before, count, block, *after))
    return ctx.slice(ctx.reshape(wide, (*before, count * block, *after)), axis, 0, size)


def _is(value, number: int) -> bool:
    return isinstance(value, Const) and bool((value.array == number).all())


def _binary(ctx, fn: str, a, b):
    """fn of two values; constants are computed here."""
    if isinstance(a, Const) and isinstance(b, Const):
        made = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[fn](a.array, b.array)
        return Const(np.asarray(made, np.float32))
    if _is(b, 0 if fn in ("add", "sub") else 1) and not b.dims:
        return a
    return ctx.one("binary", *ctx.broadcast([a, b], "its scale"), fn=fn)


def less(ctx, x, zero, axis: int = 1, block: int = 0):
    """x - zero of integers, as float32."""
    x = _integers(ctx, x)
    if zero is None or (isinstance(zero, Const) and not zero.array.any()):
        return x
    return _binary(ctx, "sub", x, _along(ctx, x, zero, axis, block))


def numbers(ctx, x, scale, zero, axis: int = 1, block: int = 0):
    """(x - zero) * scale of integers, as float32."""
    return _binary(ctx, "mul", less(ctx, x, zero, axis, block), _along(ctx, x, scale, axis, block))


def quantised(ctx, x, scale, zero, axis: int = 1, block: int = 0, dtype: str = "uint8") -> Quantized:
    """round(x / scale) + zero, saturated. dtype: of the result if there is no zero point."""
    x = held(ctx, x)
    dtype = dtype if zero is None else zero.dtype if isinstance(zero, Live | Quantized) else _array(zero).dtype.name
    if dtype not in _RANGES:
        raise Finding(f"to {dtype}")
    steps = ctx.unary("round", ctx.live(_binary(ctx, "div", x, _along(ctx, x, scale, axis, block))))
    if zero is not None and not (isinstance(zero, Const) and not zero.array.any()):
        steps = _binary(ctx, "add", steps, _along(ctx, x, zero, axis, block))
    return Quantized(ctx.unary("clip", steps, *_RANGES[dtype]), dtype)


def _array(value) -> np.ndarray:
    return value.array if isinstance(value, Const) else np.zeros((), value.dtype)


def _no_type(n: NodeReader, allowed: tuple) -> str:
    """The attribute output_dtype as a name; uint8 if it is absent."""
    to = n.attr("output_dtype", "int", 0)
    if to not in (TensorProto.UNDEFINED, *allowed):
        raise Finding(f"output_dtype={files.dtype_name(to)}")
    return files.NUMERIC[to].name if to else "uint8"


def _quantize(ctx, n: NodeReader):
    x = n.input(0)
    x = held(ctx, x) if ctx.kind(x) != "float32" else _float(ctx, x, n.node.op)
    n.attr("saturate", "int", 1)
    n.only("precision", "int", 0, (0, TensorProto.FLOAT))
    dtype = _no_type(n, (TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16))
    block = n.attr("block_size", "int", 0)
    return [quantised(ctx, x, n.input(1), n.input(2, optional=True), n.attr("axis", "int", 1), block, dtype)]


def _dequantize(ctx, n: NodeReader):
    x, scale, zero = n.input(0), n.input(1), n.input(2, optional=True)
    _no_type(n, (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16))
    axis, block = n.attr("axis", "int", 1), n.attr("block_size", "int", 0)
    out = numbers(ctx, x, scale, zero, axis, block)
    if block == 0 and isinstance(out, Const) and isinstance(scale, Const):
        step, rank = _along(ctx, x, scale, axis).array, len(out.dims)
        step = step.reshape((1,) * (rank - step.ndim) + step.shape)
        sums = [(k,) for k in range(rank)] if rank > 1 else []  # which axes a product sums over is not known yet
        sums += [tuple(range(1, rank)), (0, *range(2, rank))] if rank > 2 else []  # those of convolutions
        for axes in sums:
            if all(step.shape[k] == 1 for k in axes):
                _note_steps(ctx, x, out, step, axes, "int8-a16")
    return [out]


def _note_steps(ctx, integers, widened, step: np.ndarray, axis: int | tuple[int, ...], precision: str) -> None:
    """Note what columns of 8-bit weights are worth, if these are such weights."""
    if isinstance(integers, Const) and isinstance(widened, Const) and integers.array.dtype.name in ("int8", "uint8"):
        note_steps(ctx.table.integers, widened.array, step, axis, precision)


for _domain in ("", MICROSOFT):
    op("QuantizeLinear", attrs="axis saturate block_size output_dtype precision", domain=_domain)(_quantize)
    op("DequantizeLinear", attrs="axis block_size output_dtype", domain=_domain)(_dequantize)


# --- ranges of each call ----------------------------------------------------------------------------------------------


def note_unrounded(ctx, what: str) -> None:
    """Say that values are not rounded to 8 bits as the file says."""
    ctx.table.notes.setdefault(
        "dynamic quantisation",
        f"{ROUNDED_EACH_CALL} ({what}) are not rounded so: a layer with "
        "8-bit weights rounds each row by itself, others don't round; answers differ from onnxruntime's by what it "
        "loses there",
    )


@op("DynamicQuantizeLinear")
def _dynamic(ctx, n: NodeReader):
    x = ctx.live(_float(ctx, n.input(0), n.node.op))
    if _scaled_back(ctx, n.node):
        note_unrounded(ctx, "DynamicQuantizeLinear")
        return [Quantized(x, "uint8", rounded=False), Const(np.ones((), np.float32)), Const(np.zeros((), np.uint8))]
    axes, zero = tuple(range(len(x.dims))), Const(np.zeros((), np.float32))
    low, high = (ctx.one("reduce", x, fn=fn, axes=axes, keepdims=False) if axes else x for fn in ("min", "max"))
    low, high = ctx.one("binary", low, zero, fn="min"), ctx.one("binary", high, zero, fn="max")
    span = ctx.one("binary", high, low, fn="sub")
    scale = ctx.one("binary", span, Const(np.array(255, np.float32)), fn="div")
    flat = ctx.one("binary", span, zero, fn="equal")
    scale = ctx.one("where", flat, Const(np.ones((), np.float32)), scale)
    begin = ctx.unary("clip", ctx.unary("neg", ctx.one("binary", low, scale, fn="div")), 0, 255)
    begin = Quantized(ctx.unary("round", begin), "uint8")
    return [quantised(ctx, x, scale, begin), scale, begin]


def _scaled_back(ctx, node: OnnxNode) -> bool:
    """Whether the integers of a DynamicQuantizeLinear enter only products whose results are multiplied by its scale."""
    outputs = [*node.outputs, "", ""][:3]
    products: list[str] = []
    for k, name in enumerate(outputs):
        if not all(_is_product(ctx, r, name, k, products) for r in _readers(ctx, name)):
            return False
    floats: set[str] = set()
    scales = {outputs[1]}
    for name in products:
        if not _casts(ctx, name, floats):
            return False
    for reader in _readers(ctx, outputs[1]):
        if reader.op == "Mul" and not floats & set(reader.inputs):
            scales.add(reader.outputs[0])
    return all(
        _rescales(r, name, floats, scales) for name in floats | scales for r in ctx.readers.get(name, {}).values()
    )


def _readers(ctx, name: str) -> list:
    return list(ctx.readers.get(name, {}).values()) if name else []


def _is_product(ctx, reader: OnnxNode | None, name: str, k: int, products: list[str]) -> bool:
    """Whether a node reads the output k of a DynamicQuantizeLinear as an integer product does. Adds its output."""
    if reader is None:
        return False
    if k == 1:
        return reader.op in ("Mul", "MatMulIntegerToFloat")
    if reader.op == "MatMulIntegerToFloat":
        return reader.inputs[0 if k == 0 else 4] == name
    if reader.op in ("MatMulInteger", "ConvInteger"):
        products.append(reader.outputs[0])
        return len(reader.inputs) > k and reader.inputs[k] == name and reader.inputs.count(name) == 1
    if k == 0 and reader.op in _MOVES and reader.op not in ("Concat",):
        return all(_is_product(ctx, r, o, 0, products) for o in reader.outputs for r in _readers(ctx, o))
    return False


def _casts(ctx, name: str, floats: set[str]) -> bool:
    """Whether an integer product is only moved and cast to float. Adds the floats."""
    for reader in _readers(ctx, name):
        if reader is None:
            return False
        if reader.op == "Cast" and _to_float(reader):
            floats.add(reader.outputs[0])
        elif (
            reader.op not in _MOVES or reader.op == "Concat" or not all(_casts(ctx, o, floats) for o in reader.outputs)
        ):
            return False
    return True


def _rescales(reader: OnnxNode | None, name: str, floats: set[str], scales: set[str]) -> bool:
    """Whether a reader of a product multiplies it by the scale, and a reader of the scale only that."""
    if reader is None or reader.op == "MatMulIntegerToFloat":
        return reader is not None and name in scales
    if reader.op != "Mul" or len(reader.inputs) != 2:
        return False
    other = reader.inputs[1] if reader.inputs[0] == name else reader.inputs[0]
    return other in scales if name in floats else other in floats or reader.outputs[0] in scales


# --- integer products -------------------------------------------------------------------------------------------------


def columns(kind: str) -> int:
    """The axis of weights along which scales and zero points may differ."""
    return 0 if "Conv" in kind else -1


def rows(ctx, value):
    """The zero points or scales of the rows of a matrix [.., M, K]: [M] as [M, 1]."""
    return ctx.reshape(value, (value.dims[0], 1)) if value is not None and len(value.dims) == 1 else value


def _per_row(ctx, x, zero):
    """x - zero, where zero may be one number a row."""
    zero = single(ctx, zero)
    if zero is None or len(zero.dims) != 1:
        return less(ctx, x, zero)
    return _binary(ctx, "sub", _integers(ctx, x), rows(ctx, held(ctx, zero)))


def _rounded(*values) -> bool:
    return all(not isinstance(v, Quantized) or v.rounded for v in values)


@op("MatMulInteger")
def _matmul_integer(ctx, n: NodeReader):
    a, b = n.input(0), n.input(1)
    left = _per_row(ctx, a, n.input(2, optional=True))
    right = less(ctx, b, n.input(3, optional=True), -1)
    if not _rounded(a) and len(right.dims) == 2:
        _note_steps(ctx, b, right, np.ones((1, 1), np.float32), 0, "int8")
    product = matmul(ctx, left, right)
    return [Quantized(product, "int32", _rounded(a, b))]


CONV = "auto_pad dilations group kernel_shape pads strides"


@op("ConvInteger", attrs=CONV)
def _conv_integer(ctx, n: NodeReader):
    x, w = n.input(0), n.input(1)
    values = [less(ctx, x, n.input(2, optional=True)), less(ctx, w, n.input(3, optional=True), 0)]
    if not _rounded(x):
        _note_steps(ctx, w, values[1], np.ones((), np.float32), tuple(range(1, len(w.dims))), "int8")
    return [Quantized(ctx.live(conv(ctx, n, values)), "int32", _rounded(x, w))]


def conv(ctx, n: NodeReader, values: list):
    """Conv with the node's attributes, but other inputs."""
    inner = n.within(values)
    outputs = OPERATORS["", "Conv"].handler(ctx, inner)
    inner.finish()
    return outputs[0]


@op("MatMulIntegerToFloat", domain=MICROSOFT)
def _matmul_to_float(ctx, n: NodeReader):
    """(A - zero) * a_scale @ (B - zero) * b_scale + bias."""
    return [_product(ctx, n, less(ctx, n.input(0), n.input(4, optional=True)), n.input(2), (3, 5, 6))]


@op("DynamicQuantizeMatMul", domain=MICROSOFT)
def _dynamic_matmul(ctx, n: NodeReader):
    note_unrounded(ctx, n.node.op)
    return [_product(ctx, n, _float(ctx, n.input(0), n.node.op), None, (2, 3, 4))]


def _product(ctx, n: NodeReader, a, a_scale, places: tuple[int, int, int]):
    """a @ (B - zero) * scale + bias; places: of the scale and the zero point of B, and of the bias."""
    scale, zero, bias = (n.input(i, optional=k > 0) for k, i in enumerate(places))
    b = numbers(ctx, n.input(1), scale, zero, -1)
    if isinstance(scale, Const) and len(b.dims) == 2 and (a_scale is None or not _rounded(n.input(0))):
        _note_steps(ctx, n.input(1), b, _along(ctx, b, scale, -1).array, 0, "int8")
    out = matmul(ctx, a, b)
    out = out if a_scale is None else _binary(ctx, "mul", out, _along(ctx, out, a_scale, -2))
    return out if bias is None else ctx.one("binary", *ctx.broadcast([out, bias], n.node.op), fn="add")
