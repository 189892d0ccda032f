"""Lowering of windows (conv, conv_transpose, pool), and of pad, argmax and cumsum.

Windows work on channels-last memory: the channels of a position are one run, so a patch of neighbouring positions is
one too where it can be, and vectors run over channels. A value [B, C, L..] keeps its dims; only its strides differ.
A transposed convolution is one convolution for each remainder of the output's position by the stride: every output
element is one sum in one order, and no product is added up through memory.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ...errors import UnsupportedError
from ...graph import Node
from ...graph import dims as D
from ...graph.windows import Axis, phases_of
from ...ops import conv_patches, depthwise_scratch, pool_scratch
from ...passes.fuse_elementwise import activation_of
from ..tensors import Buffer, Tensor
from .fields import FUNCTIONS, TYPE_CODES, at, level_fields

_WINDOWS = ("conv", "conv_transpose", "pool")
ALONE = Axis(1, 1, 1, 0)  # the axis of size 1 that a window of one spatial axis gets


class WindowLowering:
    """The methods `op_...` of `fastrnn.compile.lowering.Lowering` for these ops; self is that class."""

    # -- memory --
    def feeds_window(self, name: str) -> bool:
        """A window reads the value `name`, so it should lie channels-last."""
        readers = self.consumers.get(name, [])
        return any(n.op in _WINDOWS and n.inputs[0] == name for n in readers)

    def reshaped_for_window(self, x: Tensor, node: Node) -> Tensor | None:
        """x reshaped by one copy into channels-last memory; None where its axes don't fall together in it."""
        whole = self.builder.allocate(x.dtype, node.attrs["dims"], channels_last_order(len(node.attrs["dims"])))
        back = whole.reshape(x.dims)
        if back is None:
            return None
        self._copy(x, back, node.name)
        return whole

    def _channels_last(self, t: Tensor, node: Node) -> Tensor:
        """t [B, C, L..] where the channels of a position are one run, else a copy in which they are."""
        if t.strides[1] == 1 or _is_one(t.dims[1]):
            return t
        dense = self.builder.allocate(t.dtype, t.dims, channels_last_order(len(t.dims)))
        self._copy(t, dense, node.name)
        return dense

    def _window_result(self, node: Node, x: Tensor) -> Tensor:
        """Where a window's output goes: its destination if channels are one run there, else memory in x's order."""
        target = self.destinations.get(node.outputs[0])
        good = target is not None and (target.strides[1] == 1 or _is_one(target.dims[1]))
        order = [*(a for a in x.order if a != 1), 1] if x.dims[1] != 1 else channels_last_order(len(x.dims))
        return self.result(node, order=order, fresh=not good)

    def _window_fields(self, x: Tensor, y: Tensor, axes: list[Axis], counts=None, starts=None, steps=None) -> dict:
        """The fields of the executor's Window. counts, starts, steps: which outputs an axis, if not all of them."""
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

    def _window_input(self, node: Node) -> Tensor:
        """Input 0 of a window with its channels one run; what a length can be too short for becomes a condition."""
        x = self._channels_last(self.real(node), node)
        spatial = len(x.dims) - 2
        if spatial not in (1, 2):
            raise UnsupportedError(f"windows over {spatial} axes; 1 or 2 are")
        if not isinstance(x.dims[1], int):
            raise UnsupportedError(f"{x.dims[1]} channels: their number must be fixed")
        for axis, dim in enumerate(self.graph.values[node.outputs[0]].dims):
            if isinstance(dim, D.Dim) and axis >= 2:
                text = f"node {node.name}: axis {axis} is too short for the window"
                self.plan.conditions.append((dim, text))
        return x

    # -- convolutions --
    def op_conv(self, node: Node) -> None:
        W, bias = self._conv_weights(node)
        groups = node.attrs["groups"]
        x = self._window_input(node)
        y, act = self._activated_result(node, x)
        axes = _axes_of(node.attrs, W.shape[2:])
        # [M, C/groups, K..] -> [groups, K.., C/groups, M/groups]
        M, C = W.shape[:2]
        parts = W.reshape(groups, M // groups, C, *W.shape[2:])
        parts = np.moveaxis(np.moveaxis(parts, 1, -1), 1, -2)
        self._emit_conv(node, "conv", parts, bias, act, x, y, self._window_fields(x, y, axes))

    def op_conv_transpose(self, node: Node) -> None:
        W, bias = self._conv_weights(node)
        a, groups = node.attrs, node.attrs["groups"]
        x = self._window_input(node)
        y, act = self._activated_result(node, x)
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
            fields = self._window_fields(x, y, axes, counts, starts, list(a["strides"]))
            self._emit_conv(
                node, f"conv_transpose{number}{a['strides']}{a['dilations']}{a['pads']}", part, bias, act, x, y, fields
            )

    def _conv_weights(self, node: Node) -> tuple:
        W, bias = self.array(node, 1, "W"), self.array(node, 2, "bias")
        return W.astype(np.float32), None if bias is None else bias.astype(np.float32)

    def _activated_result(self, node: Node, x: Tensor) -> tuple:
        """(where the output goes, the activation): the node after a convolution may be its activation."""
        after = self.activations.get(node.name)
        if after is None:
            return self._window_result(node, x), (FUNCTIONS["identity"], 0.0, 0.0)
        fn, alpha, beta = activation_of(self.graph, after, node.outputs[0])
        return self._window_result(after, x), (FUNCTIONS[fn], float(alpha), float(beta))

    def _emit_conv(self, node: Node, key: str, W, bias, act: tuple, x: Tensor, y: Tensor, fields: dict) -> None:
        """W [groups, taps.., channels, outs] over channels-last x."""
        groups, channels, outs = W.shape[0], W.shape[-2], W.shape[-1]
        taps = math.prod(W.shape[1:-2])
        flops = D.product((x.dims[0], fields["out_h"], fields["out_w"])) * (2 * taps * channels * outs * groups)
        if channels == outs == 1 and groups > 1:
            self._emit_depthwise(node, W.reshape(groups, taps).T, bias, act, (x, y), fields, flops)
            return
        first = len(self.plan.linears)
        for g in range(groups):
            matrix = np.ascontiguousarray(W[g].reshape(taps * channels, outs))
            part = None if bias is None else np.ascontiguousarray(bias[g * outs : (g + 1) * outs])
            packed = self.weights.linear(matrix, part, (key, g, groups, *node.inputs[1:]))
            self.plan.linears.append((packed, (act[0], 0, 0, 0, act[1], act[2])))
        size = taps * channels
        patches = conv_patches(size)
        scratch = Buffer("arena", "float32", patches * size)
        self.plan.arena.append(scratch)
        self.builder.emit(
            "conv", node.name, (x,), (y, scratch), flops, **fields, packed=first, groups=groups, channels=channels,
            outs=outs, patches=patches, scratch=scratch,
        )  # fmt: skip

    def _emit_depthwise(self, node: Node, W, bias, act: tuple, ends: tuple, fields: dict, flops) -> None:
        """W [taps, channels]: each channel by itself."""
        taps, channels = W.shape
        weights = self.builder.constant(W, "float32")
        extra = {"bias_buffer": -1, "bias_offset": 0}
        if bias is not None:
            extra = at("bias", self.builder.constant(bias, "float32"))
        alpha_beta = self.builder.constant(np.array(act[1:], np.float32), "float32")
        scratch = Buffer("arena", "float32", depthwise_scratch(taps, channels))
        self.plan.arena.append(scratch)
        self.builder.emit(
            "depthwise", node.name, ends[:1], (ends[1], scratch), flops, **fields, **at("weights", weights), **extra,
            channels=channels, fn=act[0], act_buffer=alpha_beta.buffer, scratch=scratch,
        )  # fmt: skip

    def op_pool(self, node: Node) -> None:
        a = node.attrs
        x = self._window_input(node)
        y = self._window_result(node, x)
        axes = _axes_of(a, a["kernel"])
        scratch = Buffer("arena", "float32", pool_scratch(math.prod(a["kernel"])))
        self.plan.arena.append(scratch)
        ends = [x.dims[2 + i] + axis.pad_end for i, axis in enumerate(axes)]
        ends = [1, *ends] if len(ends) == 1 else ends
        self.builder.emit(
            "pool", node.name, (x,), (y, scratch), D.product(y.dims) * math.prod(a["kernel"]),
            **self._window_fields(x, y, axes), channels=x.dims[1], fn=FUNCTIONS["max" if a["fn"] == "max" else "add"],
            count_pads=int(a["count_include_pad"]), end_h=ends[0], end_w=ends[1], scratch=scratch,
        )  # fmt: skip

    # -- pad --
    def op_pad(self, node: Node) -> None:
        """Copies: the inside, then border after border, axis after axis, so that corners follow from filled borders."""
        x, a = self.tensor(node.inputs[0]), node.attrs
        rank = len(x.dims)
        before, after = list(a["pads"][:rank]), list(a["pads"][rank:])
        for axis in range(rank):  # negative pads cut; which ones are may depend on the sizes
            low, high = D.positive(-before[axis]), D.positive(-after[axis])
            if not (_is_zero(low) and _is_zero(high)):
                text = f"node {node.name}: axis {axis} of {x.dims[axis]} elements is cut by {low} and {high}"
                x = x.narrow(axis, low, x.dims[axis] - low - high)
                self.need(x.dims[axis], text)
                before[axis], after[axis] = D.positive(before[axis]), D.positive(after[axis])
        y = self.result(node, order=x.order)
        if y.dtype == "bool" and x.dtype != "bool":  # held as 0.0 and 1.0 until an output asks for bytes
            y = self._float_stand_in(node, y)
        inside = y
        for axis in range(rank):
            inside = inside.narrow(axis, before[axis], x.dims[axis])
        self._copy(x, inside, node.name)
        for axis in range(rank):
            if _is_zero(before[axis]) and _is_zero(after[axis]):
                continue
            band = y  # axes already done are whole, those to come are still the inside
            for other in range(axis + 1, rank):
                band = band.narrow(other, before[other], x.dims[other])
            for start, size, source in _borders(band, axis, before[axis], x.dims[axis], after[axis], a["mode"]):
                if _is_zero(size):
                    continue
                border = band.narrow(axis, start, size)
                if source is None:
                    fill = np.array(a["value"]).astype(np.float32 if y.dtype == "float32" else y.dtype)
                    source = self.builder.constant(fill.reshape((1,) * rank), y.dtype).expand(border.dims)
                self._copy(source, border, node.name)
            self._refuse_short(node, x.dims[axis], before[axis], after[axis], axis)

    def _refuse_short(self, node: Node, size, before, after, axis: int) -> None:
        """A mirror shows what is there: reflect needs more elements than it adds, edge at least one."""
        least = {"constant": 0, "edge": 1, "reflect": 1}[node.attrs["mode"]]
        for pad in (before, after):
            need = size - least - (pad if node.attrs["mode"] == "reflect" else 0)
            text = f"node {node.name}: axis {axis} of {size} elements is too short to be padded ({node.attrs['mode']})"
            self.need(need, text)

    def need(self, dim, text: str) -> None:
        """The node has a meaning only if `dim` is not below 0: a condition of each call, or an error now."""
        if isinstance(dim, D.Dim):
            self.plan.conditions.append((dim, text))
        elif dim < 0:
            raise UnsupportedError(text)

    # -- along an axis --
    def op_argmax(self, node: Node) -> None:
        x, a = self.real(node), node.attrs
        axis, y = a["axis"], self.result(node)
        if a["keepdims"]:
            y = y.squeeze(axis)
        rows = x.transpose([*(i for i in range(len(x.dims)) if i != axis), axis])
        loops = self._levels(rows.dims[:-1], (rows.strides[:-1], y.strides), range(len(rows.dims) - 1), node)
        if isinstance(rows.dims[-1], D.Dim):
            self.plan.conditions.append((rows.dims[-1] - 1, f"node {node.name}: the largest of no elements"))
        self.builder.emit(
            "argmax", node.name, (x,), (y,), D.product(x.dims), count=rows.dims[-1], step=rows.strides[-1],
            largest=int(a["largest"]), last=int(a["last"]), **level_fields(loops, ("x", "y")), **at("x", x),
            **at("y", y),
        )  # fmt: skip

    def op_cumsum(self, node: Node) -> None:
        whole = self.graph.values[node.inputs[0]].dtype == "int64"
        x, a = self.tensor(node.inputs[0]) if whole else self.real(node), node.attrs
        axis, y = a["axis"], self.result(node, order=x.order)
        keep = [i for i in range(len(x.dims)) if i != axis]
        strides = [[t.strides[i] for i in keep] for t in (x, y)]
        order = [keep.index(i) for i in x.order if i != axis]
        loops = self._levels([x.dims[i] for i in keep], strides, order, node)
        self.builder.emit(
            "cumsum", node.name, (x,), (y,), D.product(x.dims), type=TYPE_CODES[x.dtype], count=x.dims[axis],
            x_step=x.strides[axis], y_step=y.strides[axis], exclusive=int(a["exclusive"]), reverse=int(a["reverse"]),
            **level_fields(loops, ("x", "y")), **at("x", x), **at("y", y),
        )  # fmt: skip


def _axes_of(attrs, taps) -> list[Axis]:
    n = len(taps)
    return [Axis(taps[i], attrs["strides"][i], attrs["dilations"][i], attrs["pads"][i], attrs["pads"][n + i])
            for i in range(n)]  # fmt: skip


def _borders(band: Tensor, axis: int, before, size, after, mode: str):
    """(start, size, what to copy there or None for the value) of the two borders of an axis."""
    end = before + size
    if mode == "constant":
        return [(0, before, None), (end, after, None)]
    if mode == "edge":
        low, high = band.narrow(axis, before, 1), band.narrow(axis, end - 1, 1)
        dims = list(band.dims)
        return [
            (0, before, low.expand((*dims[:axis], before, *dims[axis + 1 :]))),
            (end, after, high.expand((*dims[:axis], after, *dims[axis + 1 :]))),
        ]
    low = band.narrow(axis, before + before, before, -1)
    return [(0, before, low), (end, after, band.narrow(axis, end - 2, after, -1))]


def channels_last_order(rank: int) -> list[int]:
    """Axes of [B, C, L..] from the slowest to the fastest in the memory that windows work on."""
    return [0, *range(2, rank), 1]


def _is_one(dim) -> bool:
    return isinstance(dim, int) and dim == 1


def _is_zero(dim) -> bool:
    return isinstance(dim, int) and dim == 0
