"""Operators that slide windows over axes: convolutions, pools, and Pad."""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading.reader import NodeReader, axes_of
from ..reading.registry import op
from ..reading.values import Const, Fill, Ints
from . import integers, pools, volumes

_MAX_WINDOW = 1 << 24  # of any stride, dilation or pad; a larger one means a hostile file


def _numbers(n: NodeReader, name: str, count: int, default: int, least: int) -> tuple[int, ...]:
    """An attribute of `count` ints."""
    values = n.attr(name, "ints", [default] * count)
    if len(values) != count or not all(least <= v <= _MAX_WINDOW for v in values):
        raise ModelFormatError(f"{name} must be {count} numbers of at least {least}, got {values}")
    return tuple(values)


def _image(ctx, n: NodeReader):
    """Input 0 as [batch, channels, one to three spatial axes], and the number of spatial axes."""
    x = ctx.live(n.input(0))
    if x.dtype != "float32":
        raise Finding(f"of {x.dtype}")
    if len(x.dims) not in (3, 4, 5):
        raise Finding(f"over a value of rank {len(x.dims)}; windows slide over one, two or three axes")
    ctx.table.vote(x.dims[0], "batch")
    return x, len(x.dims) - 2


def _weights(ctx, n: NodeReader, rank: int) -> tuple[Const, Const | None]:
    found = []
    for i, what in ((1, "weights"), (2, "bias")):
        value = n.input(i, optional=i == 2)
        if value is not None and not isinstance(value, (Const, Fill)):
            raise Finding(f"its {what} must be constant, not computed from the inputs")
        if isinstance(value, Fill):
            if not all(isinstance(d, int) for d in value.dims):
                raise Finding(f"its {what} depend on a size of the input")
            value = Const(np.full(value.dims, value.value, value.dtype))
        found.append(value)
    w, bias = found
    if len(w.dims) != rank + 2 or 0 in w.dims:
        raise ModelFormatError(f"weights {list(w.dims)} over {rank} spatial axes")
    shape = n.attr("kernel_shape", "ints", list(w.dims[2:]))
    if tuple(shape) != tuple(w.dims[2:]):
        raise ModelFormatError(f"kernel_shape is {shape}, but the weights are {list(w.dims)}")
    return w, bias


def _pads(ctx, n: NodeReader, x, kernel, strides, dilations, fill: float):
    """(x, pads) with auto_pad resolved. If its amount depends on a free size, x is padded by a separate node."""
    rank, how = len(kernel), n.attr("auto_pad", "string", "NOTSET")
    pads = _numbers(n, "pads", 2 * rank, 0, 0)
    if how in ("NOTSET", ""):
        return x, pads
    if how == "VALID":
        return x, (0,) * (2 * rank)
    if how not in ("SAME_UPPER", "SAME_LOWER"):
        raise ModelFormatError(f"auto_pad={how!r}")
    begins, ends = [], []
    for size, k, stride, dilation in zip(x.dims[2:], kernel, strides, dilations, strict=True):
        reach = dilation * (k - 1) + 1
        # Padded to ceil(size/stride) windows; the name says on which side an odd element goes.
        total = (D.floordiv(size + stride - 1, stride) - 1) * stride + reach - size
        if isinstance(total, Dim) and reach < stride:
            raise Finding(f"auto_pad={how}: a stride of {stride} over windows of {reach} of a free size")
        total = max(total, 0) if isinstance(total, int) else total
        small = D.floordiv(total, 2)
        begins.append(small if how == "SAME_UPPER" else total - small)
        ends.append(total - begins[-1])
    if all(isinstance(p, int) for p in (*begins, *ends)):
        return x, (*begins, *ends)
    x = ctx.one("pad", x, pads=(0, 0, *begins, 0, 0, *ends), mode="constant", value=fill)
    return x, (0,) * (2 * rank)


@op("Conv", attrs="auto_pad dilations group kernel_shape pads strides")
def _conv(ctx, n: NodeReader):
    x, rank = _image(ctx, n)
    w, bias = _weights(ctx, n, rank)
    strides, dilations = _numbers(n, "strides", rank, 1, 1), _numbers(n, "dilations", rank, 1, 1)
    groups = n.attr("group", "int", 1)
    ctx.equal(x.dims[1], w.dims[1] * groups, "the channels must fit the weights of Conv")
    x, pads = _pads(ctx, n, x, w.dims[2:], strides, dilations, 0.0)
    attrs = {"strides": strides, "dilations": dilations, "pads": pads, "groups": groups}
    return volumes.emit(ctx, "conv", [x, w, bias], attrs)


@op("ConvTranspose", attrs="auto_pad dilations group kernel_shape output_padding output_shape pads strides")
def _conv_transpose(ctx, n: NodeReader):
    x, rank = _image(ctx, n)
    w, bias = _weights(ctx, n, rank)
    strides, dilations = _numbers(n, "strides", rank, 1, 1), _numbers(n, "dilations", rank, 1, 1)
    extra, groups = _numbers(n, "output_padding", rank, 0, 0), n.attr("group", "int", 1)
    ctx.equal(x.dims[1], w.dims[0], "the channels must fit the weights of ConvTranspose")
    how, shape = n.attr("auto_pad", "string", "NOTSET"), n.attr("output_shape", "ints")
    pads = _numbers(n, "pads", 2 * rank, 0, 0)
    if how not in ("NOTSET", "", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise ModelFormatError(f"auto_pad={how!r}")
    if shape is not None or how.startswith("SAME"):
        pads, extra = _fitting(ctx, x, w, strides, dilations, extra, shape, how)
    elif how == "VALID":
        pads = (0,) * (2 * rank)
    attrs = {"strides": strides, "dilations": dilations, "pads": pads, "output_padding": extra, "groups": groups}
    return volumes.emit(ctx, "conv_transpose", [x, w, bias], attrs)


def _fitting(ctx, x, w, strides, dilations, extra, shape, how):
    """(pads, output_padding) that give ConvTranspose the output_shape, or size*stride for SAME."""
    rank = len(strides)
    if shape is not None and len(shape) == rank + 2:
        shape = shape[2:]
    if shape is not None and len(shape) != rank:
        raise ModelFormatError(f"output_shape {shape} over {rank} spatial axes")
    begins, ends, more = [], [], list(extra)
    for i in range(rank):
        size = x.dims[2 + i]
        goal = size * strides[i] if shape is None else shape[i]
        if shape is not None:
            size = ctx.number(size, "ConvTranspose has a fixed output_shape")
        total = (size - 1) * strides[i] + dilations[i] * (w.dims[2 + i] - 1) + 1 + extra[i] - goal
        if not isinstance(total, int):
            raise Finding("an output shape that depends on the input's size otherwise than by its stride")
        if total < 0:  # longer than the computed result: zeros at the end
            more[i], total = more[i] - total, 0
        # An odd element is cut off the end for SAME_UPPER, off the beginning otherwise, as ONNX specifies.
        begins.append(total // 2 if how == "SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    return (*begins, *ends), tuple(more)


@op(
    "MaxPool",
    "AveragePool",
    attrs="auto_pad ceil_mode count_include_pad dilations kernel_shape pads storage_order strides",
)
def _pool(ctx, n: NodeReader):
    narrow = ctx.kind(n.input(0))
    if n.node.op == "MaxPool" and narrow in ("int8", "uint8"):  # float32 has all of their numbers
        x = ctx.one("cast", n.input(0), to="float32")
        best, *places = _pooled(ctx, n, n.within([x]))
        return [ctx.one("cast", best, to=narrow), *places]
    return _pooled(ctx, n, n)


def _pooled(ctx, n: NodeReader, given: NodeReader) -> list:
    """The pool of the node, with its inputs in `given`."""
    x, rank = _image(ctx, given)
    mean = n.node.op == "AveragePool"
    kernel = _numbers(n, "kernel_shape", rank, 0, 1)
    strides, dilations = _numbers(n, "strides", rank, 1, 1), _numbers(n, "dilations", rank, 1, 1)
    by_columns = bool(n.attr("storage_order", "int", 0))  # affects the indices only
    include = bool(n.attr("count_include_pad", "int", 0))
    ceil = bool(n.attr("ceil_mode", "int", 0))
    if n.attr("auto_pad", "string", "NOTSET").startswith("SAME") and mean:
        size = [d for d in x.dims[2:] if isinstance(d, Dim)]
        if size and any(s != 1 for s in strides):
            ctx.table.freeze(size, "AveragePool with auto_pad") if all(map(ctx.table.genuine, size)) else None
            raise Finding("auto_pad over a free size")
    x, pads = _pads(ctx, n, x, kernel, strides, dilations, -np.inf)
    adaptive = ctx.by_torch and kernel == strides and _is_adaptive(n, mean, kernel, x.dims)
    for size, k, stride in zip(x.dims[2:], kernel, strides, strict=True):
        _note_windows(ctx, size, k, stride, alone=set(kernel) == {1}, adaptive=adaptive)
    attrs = {
        "fn": "mean" if mean else "max", "kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations,
        "ceil": ceil, "count_include_pad": include and mean,
    }  # fmt: skip
    if len(n.needed) > 1 and n.needed[1]:
        return pools.with_indices(ctx, given.input(0), x, attrs, by_columns)
    return volumes.emit(ctx, "pool", [x], attrs)


def _is_adaptive(n: NodeReader, mean: bool, kernel: tuple, dims: tuple) -> bool:
    """Whether PyTorch's exporters write adaptive pooling like this. The older one leaves out settings that it writes
    for plain pooling; the newer one pools sequences as images of one row."""
    plain = {"pads", "count_include_pad"} if mean else {"ceil_mode", "dilations"}
    if n.opset >= 10 and not plain & set(n.node.attrs):
        return True
    return len(kernel) == 2 and kernel[0] == 1 and kernel[1] > 1 and isinstance(dims[2], int) and dims[2] == 1


def _note_windows(ctx, size, k: int, stride: int, alone: bool, adaptive: bool) -> None:
    """Record windows that divide an axis evenly. They may be adaptive pooling, which makes a fixed number of windows
    from any length; windows of two or three steps are ordinary pooling. alone: each window is one element. adaptive:
    the node has the form in which exporters write adaptive pooling."""
    if isinstance(size, Dim) and ctx.table.genuine(size):
        example = ctx.table.example(size)
        if k >= example or alone or ((k > 3 or (adaptive and k > 1)) and k == stride and example % k == 0):
            ctx.table.ledger.count(size, ctx.label, f"pools {k} of {example} steps at a time")
    elif isinstance(size, Dim) and adaptive:  # the file's own meaning: undefined for a sequence shorter than a window
        ctx.table.shortfalls.append(D.shortfall(size, k))


@op("LpPool", attrs="auto_pad ceil_mode dilations kernel_shape p pads strides")
def _norm_pool(ctx, n: NodeReader):
    x, rank = _image(ctx, n)
    kernel, p = _numbers(n, "kernel_shape", rank, 0, 1), n.attr("p", "int", 2)
    strides, dilations = _numbers(n, "strides", rank, 1, 1), _numbers(n, "dilations", rank, 1, 1)
    if p < 1:
        raise ModelFormatError(f"LpPool with p={p}")
    x, pads = _pads(ctx, n, x, kernel, strides, dilations, 0.0)
    for size, k, stride in zip(x.dims[2:], kernel, strides, strict=True):
        _note_windows(ctx, size, k, stride, alone=set(kernel) == {1}, adaptive=False)
    attrs = {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    return [pools.norm_pool(ctx, x, {**attrs, "ceil": bool(n.attr("ceil_mode", "int", 0))}, p)]


@op("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(ctx, n: NodeReader):
    x = ctx.live(n.input(0))
    if len(x.dims) < 3 or x.dtype != "float32":
        raise ModelFormatError(f"{n.node.op} of {x.dtype} of rank {len(x.dims)}")
    fn = "mean" if n.node.op == "GlobalAveragePool" else "max"
    return [ctx.one("reduce", x, fn=fn, axes=tuple(range(2, len(x.dims))), keepdims=True)]


@op("Pad", attrs="mode pads value")
def _pad(ctx, n: NodeReader):
    x, mode = n.input(0), n.attr("mode", "string", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise Finding(f"mode={mode!r}")
    rank = len(x.dims)
    if n.opset < 11:
        pads, value, axes = n.attr("pads", "ints"), n.attr("value", "float", 0.0), None
        if pads is None:
            raise ModelFormatError("Pad without pads")
    else:
        pads, given = n.ints(1, "pads"), n.const(2, "constant_value", optional=True)
        value, axes = _number(given), n.ints(3, "axes", optional=True)
    if axes is not None:
        if any(not isinstance(a, int) for a in axes) or len(pads) != 2 * len(axes):
            raise ModelFormatError(f"{len(pads)} pads for the axes {list(map(str, axes))}")
        full = [0] * (2 * rank)
        for k, axis in enumerate(axes_of(axes, rank)):
            full[axis], full[rank + axis] = pads[k], pads[len(axes) + k]
        pads = full
    if len(pads) != 2 * rank or any(isinstance(p, int) and abs(p) > _MAX_WINDOW for p in pads):
        raise ModelFormatError(f"pads {list(map(str, pads))} of a value of rank {rank}")
    if all(isinstance(p, int) and p == 0 for p in pads):
        return [x]
    if isinstance(x, Ints):
        raise Finding("pads a shape")
    x = ctx.live(x)
    ctx.table.ledger.number(float(value), n.node, [x])
    if x.dtype == "bool":
        floats = _padded(ctx, ctx.one("cast", x, to="float32"), pads, mode, float(value))
        return [ctx.one("cast", floats, to="bool")]
    if x.dtype not in ("float32", *integers.INTEGERS):
        raise Finding(f"of {x.dtype}")
    return [_padded(ctx, x, pads, mode, value)]


def _number(array):
    if array is None:
        return 0
    if array.size != 1:
        raise ModelFormatError(f"constant_value must be one number, got {list(array.shape)}")
    value = array.reshape(-1)[0].item()
    if value != value:
        raise Finding("constant_value is NaN")
    return value


def _padded(ctx, x, pads: list, mode: str, value: float):
    """Apply pads: negative ones as slices, positive ones as a pad node."""
    rank = len(x.dims)
    more = list(pads)
    for axis in range(rank):
        begin, end = pads[axis], pads[rank + axis]
        low = -begin if isinstance(begin, int) and begin < 0 else 0
        high = end if isinstance(end, int) and end < 0 else 0
        if not low and not high:
            continue
        size = x.dims[axis]
        if isinstance(size, int) and size - low + high < 0:
            raise ModelFormatError(f"pads {begin} and {end} cut more than the {size} of axis {axis}")
        x = ctx.slice(x, axis, low, size + high)
        more[axis], more[rank + axis] = (0 if low else begin), (0 if high else end)
    if all(isinstance(p, int) and p == 0 for p in more):
        return x
    if mode == "wrap":
        return integers.wrapped(ctx, x, more)
    if x.dtype in integers.INTEGERS and (int(value) != value or int(float(value)) != value or abs(value) > 1 << 62):
        return integers.padded(ctx, x, more, value)
    return ctx.one("pad", x, pads=tuple(more), mode=mode, value=float(value))
