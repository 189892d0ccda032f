"""Normalisations and fused operators, written with ops of the graph."""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ....graph import INTEGERS
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading.reader import NodeReader, axis_of
from ..reading.registry import op
from ..reading.values import Const, Fill, Ints
from ..sizes import positions
from .products import _float, matmul

_MICROSOFT = "com.microsoft"
_LARGEST_DET = 4


def _channels(ctx, x, value, what: str):
    """A parameter per channel as [C, 1..], so that it broadcasts over x [B, C, L..]."""
    if len(value.dims) != 1:
        raise ModelFormatError(f"{what} has dims {list(map(str, value.dims))}")
    ctx.equal(value.dims[0], x.dims[1], f"{what} must have a number for each channel")
    return ctx.reshape(value, (x.dims[1],) + (1,) * (len(x.dims) - 2))


def _scaled(ctx, x, scale, bias):
    x = ctx.one("binary", x, scale, fn="mul")
    return x if bias is None else ctx.one("binary", x, bias, fn="add")


def _image(ctx, n: NodeReader):
    x = ctx.live(_float(ctx, n.input(0), n.node.op))
    if len(x.dims) < 3:
        raise ModelFormatError(f"{n.node.op} of rank {len(x.dims)}")
    return x


@op("InstanceNormalization", attrs="epsilon")
def _instance_norm(ctx, n: NodeReader):
    x, epsilon = _image(ctx, n), n.attr("epsilon", "float", 1e-5)
    scale, bias = (_channels(ctx, x, n.input(i), what) for i, what in ((1, "scale"), (2, "B")))
    even = ctx.emit("layer_norm", [x], {"axis": 2, "epsilon": epsilon})[0]
    return [_scaled(ctx, even, scale, bias)]


@op("GroupNormalization", attrs="epsilon num_groups stash_type")
def _group_norm(ctx, n: NodeReader):
    x, epsilon, groups = _image(ctx, n), n.attr("epsilon", "float", 1e-5), n.attr("num_groups", "int", 0)
    n.attr("stash_type", "int", 1)  # the precision of the statistics: float32 or better here
    channels = ctx.number(x.dims[1], "GroupNormalization needs a known number of channels")
    if groups < 1 or channels % groups:
        raise ModelFormatError(f"num_groups is {groups} for {channels} channels")
    grouped = ctx.reshape(x, (x.dims[0], groups, channels // groups, *x.dims[2:]))
    even = ctx.emit("layer_norm", [grouped], {"axis": 2, "epsilon": epsilon})[0]
    if n.opset >= 21:
        scale, bias = (_channels(ctx, x, n.input(i), what) for i, what in ((1, "scale"), (2, "bias")))
        return [_scaled(ctx, ctx.reshape(even, x.dims), scale, bias)]
    # Before opset 21: one parameter per group.
    shape = (groups,) + (1,) * (len(grouped.dims) - 2)
    parts = [n.input(i) for i in (1, 2)]
    for part in parts:
        if tuple(part.dims) != (groups,):
            raise ModelFormatError(f"a parameter with dims {list(map(str, part.dims))} for {groups} groups")
    scale, bias = (ctx.reshape(part, shape) for part in parts)
    return [ctx.reshape(_scaled(ctx, even, scale, bias), x.dims)]


@op("RMSNormalization", attrs="axis epsilon stash_type")
def _rms_norm(ctx, n: NodeReader):
    x, epsilon = ctx.live(_float(ctx, n.input(0), n.node.op)), n.attr("epsilon", "float", 1e-5)
    axis = axis_of(n.attr("axis", "int", -1), len(x.dims))
    n.attr("stash_type", "int", 1)
    square = ctx.one("binary", x, x, fn="mul")
    mean = ctx.one("reduce", square, fn="mean", axes=tuple(range(axis, len(x.dims))), keepdims=True)
    spread = ctx.unary("sqrt", ctx.one("binary", mean, Const(np.float32(epsilon).reshape(())), fn="add"))
    even, scale = ctx.broadcast([ctx.one("binary", x, spread, fn="div"), n.input(1)], n.node.op)
    out = ctx.one("binary", even, scale, fn="mul")
    if out.dims != x.dims:
        raise ModelFormatError(f"a scale with dims {list(map(str, scale.dims))}")
    return [out]


@op("SkipLayerNormalization", attrs="epsilon", domain=_MICROSOFT)
def _skip_layer_norm(ctx, n: NodeReader):
    """LayerNormalization(input + skip + bias) * gamma + beta over the last axis."""
    x, skip = (_float(ctx, n.input(i), n.node.op) for i in (0, 1))
    gamma, beta, bias = n.input(2), n.input(3, optional=True), n.input(4, optional=True)
    epsilon = n.attr("epsilon", "float", 1e-12)
    if any(k < len(n.needed) and n.needed[k] for k in (1, 2)):
        raise Finding("its outputs mean and inv_std_var")
    total = ctx.one("binary", *ctx.broadcast([x, skip], n.node.op), fn="add")
    if bias is not None:
        total = ctx.one("binary", *ctx.broadcast([total, bias], n.node.op), fn="add")
    for part in (gamma, beta):
        if part is not None:
            ctx.equal(part.dims[-1], total.dims[-1], "the weights of SkipLayerNormalization must fit the last axis")
    attrs = {"axis": len(total.dims) - 1, "epsilon": epsilon}
    return [ctx.emit("layer_norm", [total, gamma, beta], attrs)[0], None, None, total]


@op("BiasGelu", domain=_MICROSOFT)
def _bias_gelu(ctx, n: NodeReader):
    values = ctx.broadcast([_float(ctx, n.input(i), n.node.op) for i in (0, 1)], n.node.op)
    return [ctx.unary("gelu", ctx.one("binary", *values, fn="add"))]


@op("Gelu", domain=_MICROSOFT)
def _gelu(ctx, n: NodeReader):
    return [ctx.unary("gelu", _float(ctx, n.input(0), n.node.op))]


@op("FusedMatMul", attrs="alpha transA transB transBatchA transBatchB", domain=_MICROSOFT)
def _fused_matmul(ctx, n: NodeReader):
    a, b = (_float(ctx, n.input(i), n.node.op) for i in (0, 1))
    n.only("transBatchA", "int", 0, (0,))
    n.only("transBatchB", "int", 0, (0,))
    alpha = n.attr("alpha", "float", 1.0)
    sides = []
    for value, name in ((a, "transA"), (b, "transB")):
        if n.attr(name, "int", 0):
            rank = len(value.dims)
            if rank < 2:
                raise ModelFormatError(f"{name} of a value of rank {rank}")
            value = ctx.transpose(value, (*range(rank - 2), rank - 1, rank - 2))
        sides.append(value)
    out = matmul(ctx, *sides)
    return [out if alpha == 1.0 else ctx.one("binary", out, Const(np.float32(alpha).reshape(())), fn="mul")]


# --- arg max, running sums, triangles --------------------------------------------------------------------------------


@op("ArgMax", "ArgMin", attrs="axis keepdims select_last_index")
def _arg(ctx, n: NodeReader):
    x = n.input(0)
    x = ctx.live(x if not isinstance(x, Ints) and ctx.kind(x) in INTEGERS else _float(ctx, x, n.node.op))
    axis, keepdims = axis_of(n.attr("axis", "int", 0), len(x.dims)), bool(n.attr("keepdims", "int", 1))
    last = bool(n.attr("select_last_index", "int", 0))
    return [ctx.one("argmax", x, axis=axis, keepdims=keepdims, last=last, largest=n.node.op == "ArgMax")]


def _along(n: NodeReader, x) -> tuple:
    """(axis, exclusive, reverse) of CumSum and CumProd."""
    axes = n.const(1, "axis")
    if axes.size != 1 or axes.dtype.kind != "i":
        raise ModelFormatError(f"axis {axes.dtype}{list(axes.shape)}")
    axis = axis_of(int(axes.reshape(-1)[0]), len(x.dims))
    return axis, bool(n.attr("exclusive", "int", 0)), bool(n.attr("reverse", "int", 0))


@op("CumSum", attrs="exclusive reverse")
def _cumsum(ctx, n: NodeReader):
    x = n.input(0)
    axis, exclusive, reverse = _along(n, x)
    if isinstance(x, Fill) and not isinstance(x.value, Dim) and x.dtype.kind in "iu" and not reverse:
        return [positions.running_count(ctx, x, axis, exclusive)]
    x = ctx.live(x)
    if x.dtype not in ("float32", *INTEGERS):
        raise Finding(f"CumSum of {x.dtype}")
    return [ctx.one("cumsum", x, axis=axis, exclusive=exclusive, reverse=reverse)]


@op("CumProd", attrs="exclusive reverse")
def _cumprod(ctx, n: NodeReader):
    """Running products of a known number of elements: each times the one 1, 2, 4, .. places before it."""
    x = ctx.live(n.input(0))
    axis, exclusive, reverse = _along(n, x)
    size = ctx.number(x.dims[axis], "CumProd multiplies all elements of it")
    if x.dtype not in ("float32", *INTEGERS) or size > 4096:
        raise Finding(f"of {size} of {x.dtype}")
    if size == 0:
        return [x]

    def moved(x, count: int):
        """x, `count` places further on, with ones before it."""
        dims = (*x.dims[:axis], count, *x.dims[axis + 1 :])
        ones = ctx.one("expand", Const(np.ones((), x.dtype)), dims=dims)
        return ctx.concat([ones, ctx.slice(x, axis, 0, size - count)], axis)

    x = ctx.slice(x, axis, size - 1, -1, -1) if reverse else x
    x = moved(x, 1) if exclusive else x
    count = 1
    while count < size:
        x = ctx.one("binary", x, moved(x, count), fn="mul")
        count *= 2
    return [ctx.slice(x, axis, size - 1, -1, -1) if reverse else x]


@op("Det")
def _det(ctx, n: NodeReader):
    """The determinant of small matrices, by the definition."""
    x = ctx.live(_float(ctx, n.input(0), "Det"))
    if len(x.dims) < 2:
        raise ModelFormatError(f"Det of rank {len(x.dims)}")
    rank = len(x.dims)
    rows, columns = (ctx.number(d, "Det needs matrices of a known size") for d in x.dims[-2:])
    if rows != columns:
        raise ModelFormatError(f"Det of {rows} x {columns}")
    if not 1 <= rows <= _LARGEST_DET:
        raise Finding(f"of {rows} x {columns}; at most {_LARGEST_DET} x {_LARGEST_DET} are computed")
    lead = x.dims[:-2]
    parts = [
        [ctx.reshape(ctx.slice(ctx.slice(x, rank - 2, i, i + 1), rank - 1, j, j + 1), lead) for j in range(rows)]
        for i in range(rows)
    ]
    return [_minor(ctx, parts, tuple(range(rows)))]


def _minor(ctx, parts: list, columns: tuple):
    """The determinant of the last rows in these columns, along its first row."""
    row = parts[len(parts) - len(columns)]
    if len(columns) == 1:
        return row[columns[0]]
    total = None
    for k, column in enumerate(columns):
        rest = _minor(ctx, parts, columns[:k] + columns[k + 1 :])
        term = ctx.one("binary", row[column], rest, fn="mul")
        total = term if total is None else ctx.one("binary", total, term, fn="sub" if k % 2 else "add")
    return total
