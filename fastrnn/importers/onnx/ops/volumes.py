"""Windows over three axes, as windows over the last two and sums or windows over the first."""

from __future__ import annotations

from ....graph import dims as D
from ....graph.shapes import windows
from ..reading.values import Const

_SWAPPED = (0, 2, 1, 3, 4)  # [batch, channels, depth, ..] <-> [batch, depth, channels, ..]


def emit(ctx, op: str, inputs: list, attrs: dict) -> list:
    """`ctx.emit`, which also takes windows over three axes."""
    if len(inputs[0].dims) != 5:
        return ctx.emit(op, inputs, attrs)
    return [{"conv": _conv, "conv_transpose": _conv_transpose, "pool": _pool}[op](ctx, inputs, attrs)]


def _halves(attrs: dict) -> tuple[dict, dict]:
    """The attributes of the first axis by name, and those of the others as a node has them."""
    first = {k: attrs[k][0] for k in ("strides", "dilations", "kernel", "output_padding") if k in attrs}
    rest = {k: attrs[k][1:] for k in first}
    pads = attrs["pads"]
    return {**first, "pads": (pads[0], pads[3])}, {**attrs, **rest, "pads": (*pads[1:3], *pads[4:])}


def _flat(ctx, x):
    """[batch, channels, depth, height, width] -> [batch * depth, channels, height, width]"""
    x = ctx.transpose(x, _SWAPPED)
    return ctx.reshape(x, (x.dims[0] * x.dims[1], *x.dims[2:]))


def _deep(ctx, x, batch, depth):
    """The reverse of `_flat`."""
    return ctx.transpose(ctx.reshape(x, (batch, depth, *x.dims[1:])), _SWAPPED)


def _conv(ctx, inputs: list, attrs: dict):
    """The sum over the kernel's planes of convolutions over two axes."""
    x, w, bias = inputs
    own, rest = _halves(attrs)
    (begin, end), stride, step, count = own["pads"], own["strides"], own["dilations"], w.dims[2]
    depth = windows(x.dims[2], count, stride, step, begin, end, False)
    if begin or end:
        x = ctx.one("pad", x, pads=(0, 0, begin, 0, 0, 0, 0, end, 0, 0), mode="constant", value=0.0)
    total = None
    for k in range(count):
        part = ctx.slice(x, 2, k * step, k * step + (depth - 1) * stride + 1, stride)
        plane = [_flat(ctx, part), Const(w.array[:, :, k]), bias if k == 0 else None]
        part = ctx.emit("conv", plane, rest)[0]
        total = part if total is None else ctx.one("binary", total, part, fn="add")
    return _deep(ctx, total, x.dims[0], depth)


def _pool(ctx, inputs: list, attrs: dict):
    """Pools over two axes, then over the first. A mean of means is right: all windows of a plane have equally many
    elements that count."""
    (x,) = inputs
    own, rest = _halves(attrs)
    batch, channels, depth = x.dims[:3]
    planes = _deep(ctx, ctx.emit("pool", [_flat(ctx, x)], rest)[0], batch, depth)
    height, width = planes.dims[3:]
    columns = ctx.reshape(planes, (batch, channels, depth, height * width))
    along = {"strides": (own["strides"], 1), "dilations": (own["dilations"], 1), "kernel": (own["kernel"], 1)}
    along["pads"] = (own["pads"][0], 0, own["pads"][1], 0)
    out = ctx.emit("pool", [columns], {**attrs, **along})[0]
    return ctx.reshape(out, (batch, channels, out.dims[2], height, width))


def _conv_transpose(ctx, inputs: list, attrs: dict):
    """Each plane of the kernel makes planes that lie a stride apart; they are added where they meet."""
    x, w, bias = inputs
    own, rest = _halves(attrs)
    batch, depth = x.dims[0], x.dims[2]
    stride, step, count = own["strides"], own["dilations"], w.dims[2]
    flat, total = _flat(ctx, x), None
    for k in range(count):
        part = _deep(ctx, ctx.emit("conv_transpose", [flat, Const(w.array[:, :, k]), None], rest)[0], batch, depth)
        tail = part.dims[3:]
        if stride > 1:
            part = ctx.reshape(part, (*part.dims[:3], 1, D.product(tail)))
            part = ctx.one("pad", part, pads=(0, 0, 0, 0, 0, 0, 0, 0, stride - 1, 0), mode="constant", value=0.0)
            part = ctx.reshape(part, (*part.dims[:2], depth * stride, *tail))
            part = ctx.slice(part, 2, 0, (depth - 1) * stride + 1)
        after = (count - 1 - k) * step + own["output_padding"]
        pads = (0, 0, k * step, 0, 0, 0, 0, after, 0, 0)
        part = ctx.one("pad", part, pads=pads, mode="constant", value=0.0)
        total = part if total is None else ctx.one("binary", total, part, fn="add")
    total = ctx.slice(total, 2, own["pads"][0], total.dims[2] - own["pads"][1])
    if bias is None:
        return total
    return ctx.one("binary", total, ctx.reshape(bias, (bias.dims[0], 1, 1, 1)), fn="add")
