"""Drops taps of a convolution that meet only padding. Silero's last two layers work on one and two steps, so most of
what they multiply is zeros."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Graph, Node
from .patch import Patch


def drop_idle_taps(graph: Graph) -> Graph:
    """Drop the outer taps of a conv over an axis of known size that are in the padding at every position."""
    patch = Patch(graph)
    for node in graph.nodes:
        idle = _idle_taps(graph, node) if node.op == "conv" else []
        if not any(begin or end for begin, end in idle):
            continue
        W = graph.constants[node.inputs[1]]
        index = [slice(None), slice(None)]
        pads, rank = list(node.attrs["pads"]), len(idle)
        for axis, (begin, end) in enumerate(idle):
            index.append(slice(begin, W.shape[2 + axis] - end))
            pads[axis] -= begin * node.attrs["dilations"][axis]
            pads[rank + axis] -= end * node.attrs["dilations"][axis]
        name = patch.constant(f"{node.name}.taps", np.ascontiguousarray(W[tuple(index)]))
        inputs = (node.inputs[0], name, *node.inputs[2:])
        patch.replace(node, replace(node, inputs=inputs, attrs=dict(node.attrs) | {"pads": tuple(pads)}))
    return patch.done(f"dropped the taps of {len(patch.instead)} convolutions that meet only padding")


def _idle_taps(graph: Graph, node: Node) -> list[tuple[int, int]]:
    """How many taps at the beginning and end of each spatial axis are idle. At least one tap stays, and pads don't go
    below zero."""
    x, y = graph.values[node.inputs[0]].dims[2:], graph.values[node.outputs[0]].dims[2:]
    rank, taps = len(x), graph.values[node.inputs[1]].dims[2:]
    found = []
    for axis, (size, positions) in enumerate(zip(x, y, strict=True)):
        if not isinstance(size, int) or not isinstance(positions, int) or positions < 1:
            found.append((0, 0))
            continue
        stride, dilation = node.attrs["strides"][axis], node.attrs["dilations"][axis]
        begin_pad, end_pad = node.attrs["pads"][axis], node.attrs["pads"][rank + axis]
        reach = (positions - 1) * stride - begin_pad  # where the first tap of the last position is
        begin = min(max(0, -(reach // dilation)), begin_pad // dilation, taps[axis] - 1)
        live_end = (size + begin_pad - 1) // dilation  # the last tap of the first position that is within x
        end = min(max(0, taps[axis] - 1 - live_end), end_pad // dilation, taps[axis] - 1 - begin)
        found.append((begin, end))
    return found
