"""Pools beside the largest and the mean: the places of the largest, norms, sums over neighbouring channels, Col2Im."""

from __future__ import annotations

import itertools

import numpy as np

from ....errors import ModelFormatError
from ....graph import dims as D
from ....graph.dims import Dim
from ....graph.shapes import windows
from ...shared.ledger import Finding
from ..reading.reader import NodeReader
from ..reading.registry import op
from ..reading.values import Const
from . import volumes

_MOST_PAIRS = 1 << 20  # places of MaxUnpool that are compared with one another, of one channel
_MOST_TAPS = 256  # elements of a window that are compared one by one


def _power(ctx, x, p: float):
    """|x|^p"""
    if p == 2:
        return ctx.one("binary", x, x, fn="mul")
    x = ctx.unary("abs", x)
    return x if p == 1 else ctx.one("binary", x, Const(np.float32(p).reshape(())), fn="pow")


def _root(ctx, x, p: float):
    if p == 1:
        return x
    return ctx.unary("sqrt", x) if p == 2 else ctx.one("binary", x, Const(np.float32(1 / p).reshape(())), fn="pow")


def _padded(ctx, x, kernel, strides, pads, dilations, ceil: bool, value: float):
    """x with all its pads, and with those that the last window of `ceil` needs."""
    rank, ends = len(kernel), list(pads[len(kernel) :])
    for i in range(rank if ceil else 0):
        size = ctx.number(x.dims[2 + i], "ceil_mode rounds the number of its windows up")
        count = windows(size, kernel[i], strides[i], dilations[i], pads[i], ends[i], True)
        reach = (count - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1
        ends[i] = max(ends[i], reach - size - pads[i])
    full = (0, 0, *pads[:rank], 0, 0, *ends)
    return ctx.one("pad", x, pads=full, mode="constant", value=value) if any(full) else x


def norm_pool(ctx, x, attrs: dict, p: float):
    """The p-norm of each window. Padding counts as zeros."""
    kernel, strides, dilations = attrs["kernel"], attrs["strides"], attrs["dilations"]
    x = _padded(ctx, _power(ctx, x, p), kernel, strides, attrs["pads"], dilations, attrs["ceil"], 0.0)
    plain = {**attrs, "fn": "mean", "pads": (0,) * (2 * len(kernel)), "ceil": False, "count_include_pad": True}
    mean = volumes.emit(ctx, "pool", [x], plain)[0]
    count = Const(np.float32(np.prod(kernel)).reshape(()))
    return _root(ctx, ctx.one("binary", mean, count, fn="mul"), p)


@op("GlobalLpPool", attrs="p")
def _global_norm_pool(ctx, n: NodeReader):
    x, p = ctx.live(n.input(0)), n.attr("p", "int", 2)
    if len(x.dims) < 3 or x.dtype != "float32" or p < 1:
        raise ModelFormatError(f"GlobalLpPool of {x.dtype} of rank {len(x.dims)} with p={p}")
    axes = tuple(range(2, len(x.dims)))
    return [_root(ctx, ctx.one("reduce", _power(ctx, x, p), fn="sum", axes=axes, keepdims=True), p)]


def with_indices(ctx, source, x, attrs: dict, by_columns: bool) -> list:
    """MaxPool and the places of the largest elements in the whole of `source`. x: source, perhaps padded by a node."""
    kernel, strides, pads, dilations = (attrs[k] for k in ("kernel", "strides", "pads", "dilations"))
    rank, spatial = len(kernel), source.dims[2:]
    if x.dims != source.dims:
        raise Finding("its output Indices with auto_pad over a free size")
    if np.prod(kernel, dtype=np.float64) > _MOST_TAPS:
        raise Finding(f"its output Indices of windows of {list(kernel)}")
    counts = [
        windows(d, kernel[i], strides[i], dilations[i], pads[i], pads[rank + i], attrs["ceil"])
        for i, d in enumerate(spatial)
    ]
    wide = _padded(ctx, x, kernel, strides, pads, dilations, attrs["ceil"], -np.inf)
    apart = [D.product(spatial[i + 1 :]) for i in range(rank)]
    if by_columns:
        apart = [D.product(spatial[:i]) for i in range(rank)]
    best = places = None
    for k in itertools.product(*map(range, kernel)):
        value, shift = wide, Const(np.array(0))
        for i in range(rank):
            start = k[i] * dilations[i]
            value = ctx.slice(value, 2 + i, start, start + (counts[i] - 1) * strides[i] + 1, strides[i])
            shift = _moved(ctx, shift, Const(np.array(start - pads[i])), apart[i])
        if best is None:
            best, places = value, ctx.one("expand", shift, dims=value.dims)
            continue
        larger = ctx.one("binary", value, best, fn="greater")  # of equal ones the first counts
        best, places = ctx.one("where", larger, value, best), ctx.one("where", larger, shift, places)
    sizes = [D.product(source.dims[1:]), D.product(spatial)]
    steps = [(source.dims[0], sizes[0]), (source.dims[1], sizes[1])]
    steps += [(counts[i], apart[i] * strides[i]) for i in range(rank)]
    for axis, (count, step) in enumerate(steps):
        own = ctx.reshape(ctx.live(ctx.positions(count)), [count if i == axis else 1 for i in range(rank + 2)])
        places = _moved(ctx, places, own, step)
    return [best, places]


def _moved(ctx, places, steps, size):
    """places + steps * size, where size may be a size of the input."""
    size = ctx.number_of(size) if isinstance(size, Dim) else Const(np.array(size))
    return ctx.one("binary", places, ctx.one("binary", steps, size, fn="mul"), fn="add")


@op("MaxUnpool", attrs="kernel_shape pads strides")
def _max_unpool(ctx, n: NodeReader):
    x, index, shape = ctx.live(n.input(0)), ctx.live(n.input(1)), n.ints(2, "output_shape", optional=True)
    rank = len(x.dims) - 2
    kernel, strides = n.attr("kernel_shape", "ints", []), n.attr("strides", "ints", [1] * rank)
    pads = n.attr("pads", "ints", [0] * (2 * rank))
    if rank < 1 or len(kernel) != rank or len(strides) != rank or len(pads) != 2 * rank or len(index.dims) != rank + 2:
        raise ModelFormatError(f"MaxUnpool of rank {len(x.dims)} with kernel_shape {kernel}")
    sizes = [ctx.number(d, "MaxUnpool places it by number") for d in x.dims[1:]]
    for a, b in zip(index.dims, x.dims, strict=True):
        ctx.equal(a, b, "there must be an index for each element")
    own = [(sizes[1 + i] - 1) * strides[i] + kernel[i] - pads[i] - pads[rank + i] for i in range(rank)]
    spatial = own if shape is None else shape[2:]
    if spatial != own:
        raise Finding(f"output_shape {list(map(str, spatial))} other than {own}: engines differ on the indices")
    if any(not isinstance(d, int) or d < 1 for d in spatial) or len(spatial) != rank:
        raise ModelFormatError(f"output_shape {list(map(str, spatial))} over {rank} spatial axes")
    batch, channels, count, total = x.dims[0], sizes[0], int(np.prod(sizes[1:])), int(np.prod(spatial))
    if total * count > _MOST_PAIRS:
        raise Finding(f"{count} elements among {total} places")
    first = ctx.reshape(ctx.live(ctx.positions(batch * channels)), (batch * channels, 1))
    first = ctx.one("binary", first, Const(np.array(total)), fn="mul")
    index = ctx.one("binary", ctx.reshape(index, (batch * channels, count)), first, fn="sub")
    index = ctx.reshape(index, (batch * channels, 1, count))
    hit = ctx.one("binary", index, Const(np.arange(total).reshape(total, 1)), fn="equal")
    values = ctx.reshape(x, (batch * channels, 1, count))
    low = Const(np.float32(-np.inf).reshape(()))
    best = ctx.one("reduce", ctx.one("where", hit, values, low), fn="max", axes=(2,), keepdims=False)
    some = ctx.one("reduce", ctx.one("cast", hit, to="float32"), fn="max", axes=(2,), keepdims=False)
    out = ctx.one("where", ctx.one("cast", some, to="bool"), best, Const(np.zeros((), np.float32)))
    return [ctx.reshape(out, (batch, channels, *spatial))]


@op("LRN", attrs="alpha beta bias size")
def _lrn(ctx, n: NodeReader):
    """x / (bias + alpha / size * the sum of squares of the `size` nearest channels)^beta"""
    x, size = ctx.live(n.input(0)), n.attr("size", "int", 0)
    alpha, beta, bias = n.attr("alpha", "float", 1e-4), n.attr("beta", "float", 0.75), n.attr("bias", "float", 1.0)
    if not 1 <= size <= _MOST_TAPS or len(x.dims) < 3 or x.dtype != "float32":
        raise ModelFormatError(f"LRN with size={size} of {x.dtype} of rank {len(x.dims)}")
    rank, channels = len(x.dims), x.dims[1]
    pads = [0] * (2 * rank)
    pads[1], pads[rank + 1] = (size - 1) // 2, size // 2
    wide = ctx.one("pad", ctx.one("binary", x, x, fn="mul"), pads=tuple(pads), mode="constant", value=0.0)
    total = None
    for k in range(size):
        part = ctx.slice(wide, 1, k, channels + k)
        total = part if total is None else ctx.one("binary", total, part, fn="add")
    under = ctx.unary("affine", total, alpha / size, bias)
    return [ctx.one("binary", x, ctx.one("binary", under, Const(np.float32(beta).reshape(())), fn="pow"), fn="div")]


@op("Col2Im", attrs="dilations pads strides")
def _col2im(ctx, n: NodeReader):
    """Each column is a window that is added to the image: a transposed convolution by a kernel of ones and zeros."""
    x, shape, block = ctx.live(n.input(0)), n.ints(1, "image_shape"), n.ints(2, "block_shape")
    rank = len(block)
    strides, dilations = n.attr("strides", "ints", [1] * rank), n.attr("dilations", "ints", [1] * rank)
    pads = n.attr("pads", "ints", [0] * (2 * rank))
    known = all(isinstance(v, int) and v > 0 for v in (*shape, *block))
    if not known or not 1 <= rank <= 3 or len(x.dims) != 3 or x.dtype != "float32":
        raise Finding(f"an image of {list(map(str, shape))} from blocks of {list(map(str, block))}")
    if not len(shape) == len(strides) == len(dilations) == rank or len(pads) != 2 * rank:
        raise ModelFormatError(f"strides {strides}, dilations {dilations}, pads {pads} over {rank} axes")
    rows = ctx.number(x.dims[1], "Col2Im needs a known number of channels")
    count = ctx.number(x.dims[2], "Col2Im needs a known number of blocks")
    size = int(np.prod(block))
    counts = [
        windows(shape[i], block[i], strides[i], dilations[i], pads[i], pads[rank + i], False) for i in range(rank)
    ]
    if rows % size or count != np.prod(counts):
        raise ModelFormatError(f"{count} columns of {rows} for an image of {shape} from blocks of {block}")
    extra = [
        shape[i] + pads[i] + pads[rank + i] - (counts[i] - 1) * strides[i] - dilations[i] * (block[i] - 1) - 1
        for i in range(rank)
    ]
    batch, channels = x.dims[0], rows // size
    images = ctx.reshape(x, (batch * channels, size, *counts))
    weights = Const(np.eye(size, dtype=np.float32).reshape(size, 1, *block))
    attrs = {"strides": tuple(strides), "dilations": tuple(dilations), "groups": 1}
    attrs |= {"pads": (0,) * (2 * rank), "output_padding": (0,) * rank}
    out = volumes.emit(ctx, "conv_transpose", [images, weights, None], attrs)[0]
    more = (0, 0, *(-p for p in pads[:rank]), 0, 0, *(e - p for e, p in zip(extra, pads[rank:], strict=True)))
    if any(more):
        out = _fitted(ctx, out, more)
    return [ctx.reshape(out, (batch, channels, *shape))]


def _fitted(ctx, x, pads: tuple):
    """x with zeros added, or elements cut for pads below 0."""
    rank = len(x.dims)
    for axis in range(rank):
        low, high = min(pads[axis], 0), min(pads[rank + axis], 0)
        x = ctx.slice(x, axis, -low, x.dims[axis] + high)
    more = tuple(max(p, 0) for p in pads)
    return ctx.one("pad", x, pads=more, mode="constant", value=0.0) if any(more) else x
