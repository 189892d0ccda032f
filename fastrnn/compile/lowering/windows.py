"""Lowering of windows: conv, conv_transpose, pool.

Windows work on channels-last memory: the channels of a position are contiguous. So a patch of neighbouring positions
can be contiguous too, and vectors run over channels. A value [B, C, L..] keeps its dims; only its strides differ.
A transposed convolution is one convolution for each remainder of the output position modulo the stride. So every output
element is one sum in one order, and no partial sums go through memory.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ...errors import UnsupportedError
from ...graph import Node
from ...graph import dims as D
from ...graph.windows import WINDOWS, Axis, phases_of
from ...ops import conv_patches, depthwise_scratch, pool_scratch
from ...passes.fuse_elementwise import activation_of
from .. import bounds
from ..tensors import Tensor
from .bands import by_bands, depthwise_by_bands, emit_bands, emit_depthwise_bands
from .base import Lowering, lowers
from .fields import FUNCTIONS, at
from .products import room_for_rounded
from .tiles import by_tiles, emit_tiles

ALONE = Axis(1, 1, 1, 0)  # the axis of size 1 that is added to a window of one spatial axis


def feeds_window(low: Lowering, name: str) -> bool:
    """A window reads the value `name`, so it should be stored channels-last."""
    readers = low.consumers.get(name, [])
    return any(n.op in WINDOWS and n.inputs[0] == name for n in readers)


def reshaped_for_window(low: Lowering, x: Tensor, node: Node) -> Tensor | None:
    """x reshaped by one copy into channels-last memory; None if its axes can't be merged there."""
    whole = low.builder.allocate(x.dtype, node.attrs["dims"], channels_last_order(len(node.attrs["dims"])))
    back = whole.reshape(x.dims)
    if back is None:
        return None
    low.copy(x, back, node.name)
    return whole


def _channels_last(low: Lowering, t: Tensor, node: Node) -> Tensor:
    """t [B, C, L..] if the channels of a position are contiguous, else a copy in which they are."""
    if t.strides[1] == 1 or t.dims[1] == 1:
        return t
    dense = low.builder.allocate(t.dtype, t.dims, channels_last_order(len(t.dims)))
    low.copy(t, dense, node.name)
    return dense


def _window_result(low: Lowering, node: Node, x: Tensor) -> Tensor:
    """The output of a window: its destination if channels are contiguous there, else memory in x's order."""
    target = low.destinations.get(node.outputs[0])
    good = target is not None and (target.strides[1] == 1 or target.dims[1] == 1)
    order = [*(a for a in x.order if a != 1), 1] if x.dims[1] != 1 else channels_last_order(len(x.dims))
    return low.result(node, order=order, fresh=not good)


def _window_fields(low: Lowering, x: Tensor, y: Tensor, axes: list[Axis], counts=None, starts=None, steps=None) -> dict:
    """The fields of the executor's Window. counts, starts, steps: which outputs of each axis, if not all."""
    spatial = len(x.dims) - 2
    counts = list(counts or y.dims[2:])
    starts, steps = list(starts or [0] * spatial), list(steps or [1] * spatial)
    fields = {"batch": x.dims[0], "x_batch": x.strides[0], "y_batch": y.strides[0]}
    offset = y.offset
    for i in range(spatial):
        offset = starts[i] * y.strides[2 + i] + offset
    for name, i in (("h", spatial - 2), ("w", spatial - 1)):
        axis = axes[i] if i >= 0 else ALONE
        sizes = (x.dims[2 + i], counts[i]) if i >= 0 else (1, 1)
        strides = (x.strides[2 + i], y.strides[2 + i] * steps[i]) if i >= 0 else (0, 0)
        fields |= {f"in_{name}": sizes[0], f"out_{name}": sizes[1], f"x_{name}": strides[0]}
        fields |= {f"y_{name}": strides[1], f"taps_{name}": axis.taps, f"stride_{name}": axis.stride}
        fields |= {f"dilation_{name}": axis.dilation, f"pad_{name}": axis.pad}
    return fields | at("x", x) | {"y_buffer": y.buffer, "y_offset": offset}


def _window_input(low: Lowering, node: Node) -> Tensor:
    """Input 0 of a window with contiguous channels. If a length can be too short, a condition is added."""
    x = _channels_last(low, low.real(node), node)
    spatial = len(x.dims) - 2
    if spatial not in (1, 2):
        raise UnsupportedError(f"windows over {spatial} axes; 1 or 2 are")
    if not isinstance(x.dims[1], int):
        raise UnsupportedError(f"{x.dims[1]} channels: their number must be fixed")
    for axis, dim in enumerate(low.graph.values[node.outputs[0]].dims):
        if isinstance(dim, D.Dim) and axis >= 2:
            text = f"node {node.name}: axis {axis} is too short for the window"
            low.plan.conditions.append((dim, text))
    return x


@lowers("conv")
def _conv(low: Lowering, node: Node) -> None:
    W, bias = _conv_weights(low, node)
    groups = node.attrs["groups"]
    x = _window_input(low, node)
    y, act = _activated_result(low, node, x)
    axes = _axes_of(node.attrs, W.shape[2:])
    # [M, C/groups, K..] -> [groups, K.., C/groups, M/groups]
    M, C = W.shape[:2]
    parts = W.reshape(groups, M // groups, C, *W.shape[2:])
    parts = np.moveaxis(np.moveaxis(parts, 1, -1), 1, -2)
    _emit_conv(low, node, "conv", parts, bias, act, x, y, _window_fields(low, x, y, axes))


@lowers("conv_transpose")
def _conv_transpose(low: Lowering, node: Node) -> None:
    W, bias = _conv_weights(low, node)
    a, groups = node.attrs, node.attrs["groups"]
    x = _window_input(low, node)
    y, act = _activated_result(low, node, x)
    # [C, M/groups, K..] -> [groups, K.., C/groups, M/groups]
    C, M = W.shape[:2]
    parts = W.reshape(groups, C // groups, M, *W.shape[2:])
    parts = np.moveaxis(np.moveaxis(parts, 1, -1), 1, -1)
    spatial = len(W.shape) - 2
    phases = [phases_of(k, a["strides"][i], a["dilations"][i], a["pads"][i]) for i, k in enumerate(W.shape[2:])]
    for number in np.ndindex(*map(len, phases)):
        chosen = [phases[i][n] for i, n in enumerate(number)]
        part = parts
        for i, (_, _, taps) in enumerate(chosen):
            part = np.take(part, taps, axis=1 + i)
        counts = [
            D.floordiv(y.dims[2 + i] - chosen[i][0] + a["strides"][i] - 1, a["strides"][i]) for i in range(spatial)
        ]
        starts, axes = [c[0] for c in chosen], [c[1] for c in chosen]
        for i, spread in a.get("spread", {}).items():  # in a stream: the outputs of this call
            counts[i], starts[i], begin = spread[starts[i]]
            axes[i] = replace(axes[i], pad=begin)
        fields = _window_fields(low, x, y, axes, counts, starts, list(a["strides"]))
        _emit_conv(
            low, node, f"conv_transpose{number}{a['strides']}{a['dilations']}{a['pads']}", part, bias, act, x, y, fields
        )


def _conv_weights(low: Lowering, node: Node) -> tuple:
    """W as its precision holds it, and the bias."""
    W, bias = low.array(node, 1, "W"), low.array(node, 2, "bias")
    W = W.astype(np.float32) if W.dtype.kind == "f" else W
    return W, None if bias is None else bias.astype(np.float32)


def _activated_result(low: Lowering, node: Node, x: Tensor) -> tuple:
    """(output tensor, activation). The node after a convolution may be its activation."""
    after = low.activations.get(node.name)
    if after is None:
        return _window_result(low, node, x), (FUNCTIONS["identity"], 0.0, 0.0)
    fn, alpha, beta = activation_of(low.graph, after, node.outputs[0])
    return _window_result(low, after, x), (FUNCTIONS[fn], float(alpha), float(beta))


def _emit_conv(low: Lowering, node: Node, key: str, W, bias, act: tuple, x: Tensor, y: Tensor, fields: dict) -> None:
    """W [groups, taps.., channels, outs] over channels-last x."""
    groups, channels, outs = W.shape[0], W.shape[-2], W.shape[-1]
    taps = math.prod(W.shape[1:-2])
    flops = D.product((x.dims[0], fields["out_h"], fields["out_w"])) * (2 * taps * channels * outs * groups)
    if channels == outs == 1 and groups > 1:
        _emit_depthwise(low, node, W.reshape(groups, taps).T, bias, act, (x, y), fields, flops)
        return
    first, precision, scale = len(low.plan.linears), node.attrs.get("precision", "float32"), low.array(node, 3, "scale")
    if key == "conv" and precision == "float32" and by_tiles(low, W, fields):
        emit_tiles(low, node, W[0], bias, act, (x, y), fields)
        return
    bands = precision == "float32" and by_bands(W, len(x.dims) == 4, fields)
    # Patches of several rows overlap if the rows of a column are together: each element is copied a third as often.
    across = not bands and fields["dilation_w"] == 1 and fields["taps_h"] > 1 and fields["stride_w"] < fields["taps_w"]
    if across:
        W, key = W.swapaxes(1, 2), f"{key} across"
    for g in range(groups):
        matrix = np.ascontiguousarray(W[g].reshape(taps * channels, outs))
        part, steps = (None if a is None else np.ascontiguousarray(a[g * outs : (g + 1) * outs]) for a in (bias, scale))
        packed = low.weights.linear(matrix, part, precision, steps, (key, precision, g, groups, *node.inputs[1:]))
        low.plan.linears.append((packed, (act[0], 0, 0, 0, act[1], act[2])))
    if bands:
        emit_bands(low, node, (groups, channels, outs), first, (x, y), fields, flops)
        return
    size = taps * channels
    patches = conv_patches(size)
    scratch = low.builder.scratch(patches * size)
    rounded, rounded_rows = room_for_rounded(low, packed, D.product((x.dims[0], fields["out_h"], fields["out_w"])))
    writes = (y, scratch) if rounded == -1 else (y, scratch, rounded)
    low.builder.emit(
        "conv", node.name, (x,), writes, flops, **fields, packed=first, groups=groups, channels=channels, outs=outs,
        patches=patches, scratch=scratch, rounded=rounded, rounded_rows=rounded_rows, across=int(across),
    )  # fmt: skip


def _emit_depthwise(low: Lowering, node: Node, W, bias, act: tuple, ends: tuple, fields: dict, flops) -> None:
    """W [taps, channels]: each channel separately."""
    if depthwise_by_bands(W, ends[1], fields):
        emit_depthwise_bands(low, node, W, bias, act, ends, fields, flops)
        return
    taps, channels = W.shape
    weights = low.builder.constant(W, "float32")
    extra = {"bias_buffer": -1, "bias_offset": 0}
    if bias is not None:
        extra = at("bias", low.builder.constant(bias, "float32"))
    alpha_beta = low.builder.constant(np.array(act[1:], np.float32), "float32")
    scratch = low.builder.scratch(depthwise_scratch(taps, channels))
    low.builder.emit(
        "depthwise", node.name, ends[:1], (ends[1], scratch), flops, **fields, **at("weights", weights), **extra,
        channels=channels, fn=act[0], act_buffer=alpha_beta.buffer, scratch=scratch,
    )  # fmt: skip


@lowers("pool")
def _pool(low: Lowering, node: Node) -> None:
    a = node.attrs
    x = _window_input(low, node)
    y = _window_result(low, node, x)
    axes = _axes_of(a, a["kernel"])
    scratch = low.builder.scratch(pool_scratch(math.prod(a["kernel"])))
    ends = [x.dims[2 + i] + axis.pad_end for i, axis in enumerate(axes)]
    ends = [1, *ends] if len(ends) == 1 else ends
    low.builder.emit(
        "pool", node.name, (x,), (y, scratch), D.product(y.dims) * math.prod(a["kernel"]),
        **_window_fields(low, x, y, axes), channels=x.dims[1], fn=FUNCTIONS["max" if a["fn"] == "max" else "add"],
        count_pads=int(a["count_include_pad"]), end_h=ends[0], end_w=ends[1], scratch=scratch,
    )  # fmt: skip


def _window_touches(plan, f, ins, outs):
    batch = f["batch"]
    yield from bounds.at(f, "x", (batch, f["x_batch"]), (f["in_h"], f["x_h"]), (f["in_w"], f["x_w"]), (ins, 1))
    yield from bounds.at(f, "y", (batch, f["y_batch"]), (f["out_h"], f["y_h"]), (f["out_w"], f["y_w"]), (outs, 1))


@bounds.touches("conv", "conv_rows")
def _conv_touches(plan, f):
    yield from _window_touches(plan, f, f["channels"] * f["groups"], f["outs"] * f["groups"])


@bounds.touches("conv_tiles")
def _tiles_touches(plan, f):
    yield from _window_touches(plan, f, f["channels"], f["outs"])


@bounds.touches("depthwise", "depthwise_rows", "pool")
def _channels_touches(plan, f):
    yield from _window_touches(plan, f, f["channels"], f["channels"])


def _axes_of(attrs, taps) -> list[Axis]:
    n = len(taps)
    return [Axis(taps[i], attrs["strides"][i], attrs["dilations"][i], attrs["pads"][i], attrs["pads"][n + i])
            for i in range(n)]  # fmt: skip


def channels_last_order(rank: int) -> list[int]:
    """Axes of [B, C, L..] from the slowest to the fastest in the memory that windows work on."""
    return [0, *range(2, rank), 1]
