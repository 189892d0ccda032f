"""Folds zeros around a value that only convolutions read into the convolutions' own pads, and skips outputs that are
sliced off a convolution. Causal convolutions are written in these two ways (PyTorch has no other)."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Graph, Node
from .patch import Patch


def fold_pads(graph: Graph) -> Graph:
    """Fold a pad with zeros along spatial axes into the convs that follow, if nothing else reads the padded value."""
    readers, producers, outputs, patch = graph.consumers(), graph.producers(), set(graph.outputs), Patch(graph)
    gone: set[str] = set()
    for node in graph.nodes:
        before = producers.get(node.inputs[0]) if node.op == "conv" else None
        if before is None or before.op != "pad" or before.outputs[0] in outputs or not _zeros_in_space(before):
            continue
        others = readers[before.outputs[0]]
        if not all(n.op == "conv" and n.inputs.count(before.outputs[0]) == 1 for n in others):
            continue
        rank = len(before.attrs["pads"]) // 2
        around = [*before.attrs["pads"][2:rank], *before.attrs["pads"][rank + 2 :]]
        pads = tuple(a + b for a, b in zip(node.attrs["pads"], around, strict=True))
        gone.add(before.name)
        inputs = (before.inputs[0], *node.inputs[1:])
        patch.replace(before)
        patch.replace(node, replace(node, inputs=inputs, attrs=dict(node.attrs) | {"pads": pads}))
    return patch.done(f"folded {len(gone)} pads into convolutions")


def fold_cuts(graph: Graph) -> Graph:
    """Fold a slice into the conv before it: less padding, if the slice cuts off only what the padding added."""
    readers, producers, outputs, patch = graph.consumers(), graph.producers(), set(graph.outputs), Patch(graph)
    gone = 0
    for node in graph.nodes:
        conv = producers.get(node.inputs[0]) if node.op == "slice" else None
        if conv is None or conv.op != "conv" or conv.outputs[0] in outputs or len(readers[node.inputs[0]]) > 1:
            continue
        pads = _cut_pads(graph, conv, node)
        if pads is not None:
            # A second slice is folded into the same convolution.
            less = replace(conv, outputs=node.outputs, attrs=dict(conv.attrs) | {"pads": pads})
            producers[node.outputs[0]] = less
            patch.replace(conv, less)
            patch.replace(node)
            gone += 1
    return patch.done(f"folded {gone} cuts into convolutions")


def _cut_pads(graph: Graph, conv: Node, node: Node) -> tuple | None:
    """The pads with which a conv makes exactly what the slice keeps; None if the slice cuts off more than padding."""
    axis, first, pads = node.attrs["axis"], node.attrs["start"], list(conv.attrs["pads"])
    rest = graph.values[node.inputs[0]].dims[axis] - node.attrs["stop"]
    if axis < 2 or node.attrs["step"] != 1 or not isinstance(first, int) or not isinstance(rest, int):
        return None
    if first < 0 or rest < 0:  # of an axis that is too short for the slice, which lowering refuses
        return None
    n, stride = len(pads) // 2, conv.attrs["strides"][axis - 2]
    pads[axis - 2] -= first * stride
    pads[n + axis - 2] -= rest * stride
    return tuple(pads) if min(pads) >= 0 else None


def _zeros_in_space(node: Node) -> bool:
    """Whether the pads are known and non-negative, fill in zeros, and leave the batch and the channels alone."""
    pads, rank = node.attrs["pads"], len(node.attrs["pads"]) // 2
    whole = all(isinstance(p, int) and p >= 0 for p in pads)
    return whole and node.attrs["mode"] == "constant" and node.attrs["value"] == 0 and not any(
        pads[i] for i in (0, 1, rank, rank + 1)
    )  # fmt: skip
