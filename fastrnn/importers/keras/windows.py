"""Convolution and pooling over one and two axes. Keras has channels last, W [K.., C, M]; graphs have [B, C, L..]."""

from __future__ import annotations

import numpy as np

from ...graph import Value
from ...graph.dims import Dim
from ..shared.ledger import Finding
from .activations import activate
from .calls import LayerCall, NeedsLength, layer


def _channels_first(c: LayerCall, spatial: int) -> bool:
    """Whether channels come first; Keras 1 called the setting dim_ordering."""
    value = c.get("data_format") or ("channels_first" if c.get("dim_ordering") == "th" else "channels_last")
    if value not in ("channels_last", "channels_first"):
        raise Finding(f"data_format={value!r:.40}")
    if len(c.x.dims) != spatial + 2:
        raise Finding(f"over {len(c.x.dims)} axes, expected {spatial + 2}")
    return value == "channels_first"


def _moved(c: LayerCall, x: Value, first: bool) -> Value:
    """x as [B, C, L..]."""
    rank = len(x.dims)
    return x if first else c.w.transpose(x, 0, rank - 1, *range(1, rank - 1))


def _back(c: LayerCall, y: Value, first: bool) -> Value:
    rank = len(y.dims)
    return y if first else c.w.transpose(y, 0, *range(2, rank), 1)


def _same_pads(size, reach: int, stride: int) -> tuple[int, int]:
    """The padding of 'same' before and after an axis: one output per started stride, an odd element at the end."""
    totals = [max(reach - (rest or stride), 0) for rest in range(stride)]  # by the remainder of the last stride
    if not isinstance(size, Dim):
        total = totals[size % stride]
        return total // 2, total - total // 2
    begin = totals[0] // 2
    if any(total // 2 != begin for total in totals):
        raise NeedsLength(f"padding='same' with strides of {stride} starts where the length says (here {size})")
    return begin, max(totals) - begin  # the excess at the end is less than a stride: no window begins there


def _pads(c: LayerCall, dims: tuple, kernel, strides, dilations) -> tuple[int, ...]:
    """Pads of a window, begins then ends."""
    name = "padding" if "padding" in c.layer.config else "border_mode"
    how = c.option(name, "valid", ("valid", "same", "causal"))
    begins, ends = [], []
    for size, k, stride, dilation in zip(dims, kernel, strides, dilations, strict=True):
        reach = dilation * (k - 1) + 1
        begin, end = (0, 0) if how == "valid" else (reach - 1, 0)
        if how == "same":
            begin, end = _same_pads(size, reach, stride)
        elif how == "causal" and len(kernel) > 1:
            raise Finding("padding='causal' over two axes")
        begins.append(begin)
        ends.append(end)
    return (*begins, *ends)


def _window(c: LayerCall, spatial: int) -> tuple[tuple, tuple, tuple]:
    """(kernel, strides, dilations) of a convolution."""
    if "filter_length" in c.layer.config:  # Keras 1
        return (c.size("filter_length"),), (c.size("subsample_length"),), (1,)
    return (
        c.sizes("kernel_size", spatial),
        c.sizes("strides", spatial, 1),
        c.sizes("dilation_rate", spatial, 1),
    )


def _conv(c: LayerCall, x: Value, W: np.ndarray, name: str, bias, how: tuple, pads: tuple, groups: int) -> Value:
    inputs = [x, c.held(W, name)] + ([] if bias is None else [c.held(bias, "bias")])
    _, strides, dilations = how
    return c.add("conv", *inputs, strides=strides, dilations=dilations, pads=pads, groups=groups)


def _to_graph(W: np.ndarray) -> np.ndarray:
    """[K.., C, M] -> [M, C, K..]."""
    return np.moveaxis(np.moveaxis(W, -1, 0), -1, 1)


def _features(c: LayerCall, x: Value) -> int:
    return c.fixed(x.dims[1], "the number of channels must be fixed")


@layer("Conv1D", "Conv2D", "Convolution1D", masks="drop")
def _convolution(c: LayerCall) -> Value:
    spatial = 2 if c.layer.kind == "Conv2D" else 1
    first, how, filters = _channels_first(c, spatial), _window(c, spatial), c.size("filters", "nb_filter")
    x, groups = _moved(c, c.x, first), c.get("groups", 1)
    channels = _features(c, x)
    if type(groups) is not int or groups < 1 or channels % groups or filters % groups:
        raise Finding(f"groups={groups!r:.40} over {channels} channels and {filters} filters")
    W = _to_graph(c.take("kernel", (*how[0], channels // groups, filters)))
    bias = c.take("bias", (filters,)) if c.get("use_bias", c.get("bias", True)) else None
    y = _conv(c, x, W, "W", bias, how, _pads(c, x.dims[2:], *how), groups)
    return activate(c, _back(c, y, first), c.get("activation"))


@layer("Conv1DTranspose", masks="drop")
def _transposed(c: LayerCall) -> Value:
    """T steps become T * stride, and what the last window adds unless padding is 'same', as the gradient of Conv1D."""
    first, (K,), (stride,) = _channels_first(c, 1), c.sizes("kernel_size", 1), c.sizes("strides", 1, 1)
    filters, x = c.size("filters"), _moved(c, c.x, first)
    if c.sizes("dilation_rate", 1, 1) != (1,) or c.get("output_padding") is not None or c.get("groups", 1) != 1:
        raise Finding("with a dilation, groups or output_padding")
    cut = max(K - stride, 0) if c.option("padding", "valid", ("valid", "same")) == "same" else 0
    W = c.take("kernel", (K, filters, _features(c, x))).transpose(2, 1, 0)
    inputs = [x, c.held(W, "W")]
    inputs += [c.held(c.take("bias", (filters,)), "bias")] if c.flag("use_bias", True) else []
    y = c.add(
        "conv_transpose", *inputs, strides=(stride,), dilations=(1,), pads=(cut // 2, cut - cut // 2),
        output_padding=(max(stride - K, 0),), groups=1,
    )  # fmt: skip
    return activate(c, _back(c, y, first), c.get("activation"))


@layer("DepthwiseConv1D", masks="drop")
def _depthwise(c: LayerCall) -> Value:
    first, how, many = _channels_first(c, 1), _window(c, 1), c.size("depth_multiplier")
    x = _moved(c, c.x, first)
    channels = _features(c, x)
    W = c.take("kernel", (*how[0], channels, many)).transpose(1, 2, 0).reshape(channels * many, 1, *how[0])
    bias = c.take("bias", (channels * many,)) if c.flag("use_bias", True) else None
    y = _conv(c, x, W, "W", bias, how, _pads(c, x.dims[2:], *how), channels)
    for name in ("groups", "filters"):
        c.get(name)
    return activate(c, _back(c, y, first), c.get("activation"))


@layer("SeparableConv1D", masks="drop")
def _separable(c: LayerCall) -> Value:
    """A convolution per channel, then a product over all channels at each step."""
    first, how, many = _channels_first(c, 1), _window(c, 1), c.size("depth_multiplier")
    filters, x = c.size("filters"), _moved(c, c.x, first)
    channels = _features(c, x)
    W = c.take("depthwise_kernel", (*how[0], channels, many)).transpose(1, 2, 0).reshape(channels * many, 1, *how[0])
    y = _conv(c, x, W, "depthwise", None, how, _pads(c, x.dims[2:], *how), channels)
    point = _to_graph(c.take("pointwise_kernel", (1, channels * many, filters)))
    bias = c.take("bias", (filters,)) if c.flag("use_bias", True) else None
    y = _conv(c, y, point, "pointwise", bias, ((1,), (1,), (1,)), (0, 0), 1)
    c.option("groups", 1, (1,))
    return activate(c, _back(c, y, first), c.get("activation"))


@layer("MaxPooling1D", "AveragePooling1D", "MaxPooling2D", "AveragePooling2D", masks="drop")
def _pooling(c: LayerCall) -> Value:
    spatial = int(c.layer.kind[-2])
    first, x = _channels_first(c, spatial), c.x
    older = "pool_length" if "pool_length" in c.layer.config else "pool_size"
    kernel = c.sizes(older, spatial, 2)
    name = "stride" if "stride" in c.layer.config else "strides"
    strides = c.sizes(name, spatial, 1) if c.get(name) is not None else kernel
    x = _moved(c, x, first)
    y = c.add(
        "pool", x, fn="max" if c.layer.kind.startswith("Max") else "mean", kernel=kernel, strides=strides,
        pads=_pads(c, x.dims[2:], kernel, strides, (1,) * spatial), dilations=(1,) * spatial,
        count_include_pad=False, ceil=False,
    )  # fmt: skip
    return _back(c, y, first)


@layer("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalAveragePooling2D", masks="drop")
def _global_pooling(c: LayerCall) -> Value:
    spatial = int(c.layer.kind[-2])
    first = _channels_first(c, spatial)
    axes = tuple(range(2, spatial + 2)) if first else tuple(range(1, spatial + 1))
    fn = "max" if "Max" in c.layer.kind else "mean"
    x, keepdims = c.x, c.flag("keepdims")
    for axis in axes if spatial > 1 else ():
        c.fixed(x.dims[axis], "it pools over both axes at once")
    return c.reduce(fn, x, axes, keepdims)


@layer("GlobalAveragePooling1D", masks="drop")
def _global_mean(c: LayerCall) -> Value:
    """The mean over the steps that count."""
    first = _channels_first(c, 1)
    x, mask, axis, keepdims = c.x, c.mask, 2 if first else 1, c.flag("keepdims")
    if mask is None:
        return c.reduce("mean", x, (axis,), keepdims)
    c.work.masked.append(c.label)
    wide = c.reshape(mask, (mask.dims[0], 1, mask.dims[1]) if first else (*mask.dims, 1))
    total = c.reduce("sum", c.where(wide, x, c.number(0.0)), (axis,), keepdims)
    return c.binary("div", total, c.reduce("sum", c.add("cast", wide, to="float32"), (axis,), keepdims))


@layer("UpSampling1D", masks="drop")
def _upsampling(c: LayerCall) -> Value:
    """Repeat each step `size` times."""
    x = c.x
    size = c.size("size", "length")
    B, T, F = x.dims
    wide = c.add("expand", c.reshape(x, (B, T, 1, F)), dims=(B, T, size, F))
    return c.reshape(wide, (B, T * size, F))


@layer("ZeroPadding1D", "ZeroPadding2D", masks="drop")
def _zero_padding(c: LayerCall) -> Value:
    spatial = int(c.layer.kind[-2])
    first = _channels_first(c, spatial)
    before, after = _both_ends(c, "padding", spatial)
    begins, ends = ([0, 0, *side] if first else [0, *side, 0] for side in (before, after))
    return c.add("pad", c.x, pads=(*begins, *ends), mode="constant", value=0.0)


@layer("Cropping1D", masks="drop")
def _cropping(c: LayerCall) -> Value:
    x = c.x
    _channels_first(c, 1)
    (before,), (after,) = _both_ends(c, "cropping", 1)
    return c.add("slice", x, axis=1, start=before, stop=x.dims[1] - after, step=1)


def _both_ends(c: LayerCall, name: str, spatial: int) -> tuple[list[int], list[int]]:
    """Amounts at the beginning and end of each axis, given as n, (n, m), or a pair per axis."""
    value = c.get(name, 1)
    if spatial == 1 or type(value) is int:
        pairs = [value if isinstance(value, list | tuple) else (value, value)] * spatial
    else:
        pairs = [v if isinstance(v, list | tuple) else (v, v) for v in value]
    flat = [v for pair in pairs for v in pair]
    if len(flat) != 2 * spatial or any(type(v) is not int or v < 0 for v in flat):
        raise Finding(f"{name}={value!r:.40}")
    return [p[0] for p in pairs], [p[1] for p in pairs]
