"""Multiplies 8-bit weights by the steps that they are counted in, as products of integers in files leave them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Graph, Node
from ..graph.precision import columns, integers_of, note_steps
from .conv_scale import per_channel
from .patch import Patch


def fold_steps(graph: Graph) -> Graph:
    """matmul(x, integers) * steps -> matmul(x, integers * steps), where the file has 8-bit weights; conv likewise.

    Only if nothing else reads the product. The bias after it can then be fused.
    """
    if not graph.integers:
        return graph
    readers, patch, integers = graph.consumers(), Patch(graph), dict(graph.integers)
    for node in graph.nodes:
        W = graph.constants.get(node.inputs[1] or "") if node.op in ("matmul", "conv") else None
        if W is None or W.dtype != np.float32 or (node.op == "matmul" and W.ndim != 2) or any(node.inputs[2:]):
            continue
        view, axes = columns("linear" if node.op == "matmul" else "conv", W)
        found = integers_of(view, axes, graph.integers)
        after = readers.get(str(node.outputs[0]), [])
        if found is None or not np.isin(found[1], (0, 1)).all() or len(after) != 1 or node.outputs[0] in graph.outputs:
            continue
        step = _steps(graph, after[0], str(node.outputs[0]), node.op)
        if step is None:
            continue
        step = np.expand_dims(np.broadcast_to(step, found[1].shape), axes)
        scaled = W * step
        note_steps(integers, scaled, step, axes, found[2])
        name = patch.constant(f"{node.inputs[1]}.scaled", scaled)
        patch.replace(node)
        patch.replace(after[0], replace(node, inputs=(node.inputs[0], name), outputs=after[0].outputs))
    return patch.done("multiplied 8-bit weights by their steps").replace(integers=integers)


def _steps(graph: Graph, node: Node, product: str, op: str) -> np.ndarray | None:
    """What a node multiplies the columns of a product by: float32 [], [1] or [N]; None if it does something else."""
    if node.op != "binary" or node.attrs["fn"] != "mul":
        return None
    if op == "conv":
        found = per_channel(graph, node, product)
        return None if found is None else found.astype(np.float32)
    step = graph.constants.get(node.inputs[1] if node.inputs[0] == product else node.inputs[0] or "")
    dims = graph.values[product].dims
    if step is None or step.dtype != np.float32 or graph.values[str(node.outputs[0])].dims != dims:
        return None
    return step.reshape(-1) if step.size == 1 or (step.size == dims[-1] == step.shape[-1]) else None
