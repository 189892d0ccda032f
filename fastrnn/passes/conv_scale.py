"""Folds a scale and shift per channel after a convolution (an inference batch norm) into its weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Graph, Node
from ..graph.windows import CONVOLUTIONS
from .patch import Patch


def fold_scales(graph: Graph) -> Graph:
    """Fold mul and add by constants of one number per channel into the weights and bias of the conv before.

    Only if the values in between have no other reader and are not outputs. The new weights are computed in float64 and
    rounded once.
    """
    readers, outputs, patch = graph.consumers(), set(graph.outputs), Patch(graph)
    folded = scaled = 0
    for node in graph.nodes:
        if node.op not in CONVOLUTIONS:
            continue
        last, scale, shift = node, np.ones(()), np.zeros(())
        while last.outputs[0] not in outputs and len(readers.get(last.outputs[0], [])) == 1:
            after = readers[last.outputs[0]][0]
            numbers = per_channel(graph, after, last.outputs[0])
            if numbers is None:
                break
            if after.attrs["fn"] == "mul":
                scale, shift = scale * numbers, shift * numbers
            else:
                shift = shift + numbers
            patch.replace(last)
            last = after
            folded += 1
        if last is not node:
            patch.replace(last, replace(node, inputs=_scaled(patch, node, scale, shift), outputs=last.outputs))
            scaled += 1
    return patch.done(f"folded {folded} scales and shifts of channels into {scaled} convolutions")


def per_channel(graph: Graph, node: Node, name: str) -> np.ndarray | None:
    """The constant that `node` multiplies the value `name` by, or adds to it: float64 [channels], or [] for one number
    for all channels. None if the node does something else."""
    if node.op != "binary" or node.attrs["fn"] not in ("mul", "add"):
        return None
    other = node.inputs[1] if node.inputs[0] == name else node.inputs[0]
    array, dims = graph.constants.get(other), graph.values[name].dims
    if array is None or array.dtype != "float32" or graph.values[node.outputs[0]].dims != dims:
        return None
    if array.size == 1:
        return array.astype(np.float64).reshape(())
    channels = len(dims) - array.ndim  # the axis of array for the channels is 1 - channels
    if 1 - channels < 0 or array.size != array.shape[1 - channels]:
        return None
    return array.astype(np.float64).reshape(-1)


def _scaled(patch: Patch, node: Node, scale, shift) -> tuple:
    """The inputs of `node` with its weights and bias scaled and shifted, as new constants."""
    graph = patch.graph
    W = graph.constants[node.inputs[1]].astype(np.float64)
    groups = node.attrs["groups"]
    maps = W.shape[0] if node.op == "conv" else W.shape[1] * groups
    scale, shift = np.broadcast_to(scale, maps), np.broadcast_to(shift, maps)
    if node.op == "conv":
        W = W * scale.reshape(-1, *[1] * (W.ndim - 1))
    else:  # [C, M/groups, K..]: the rows of a group share its maps
        apart = W.reshape(groups, W.shape[0] // groups, W.shape[1], -1)
        W = (apart * scale.reshape(groups, 1, -1, 1)).reshape(W.shape)
    bias = np.zeros(maps)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = graph.constants[node.inputs[2]].astype(np.float64)
    made = (("weights", W), ("bias", bias * scale + shift))
    return (node.inputs[0], *(patch.constant(f"{node.name}:{what}", a.astype(np.float32)) for what, a in made))
