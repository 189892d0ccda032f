"""Zeros put around a value that only a convolution reads become the convolution's own pads (a causal one, as PyTorch
exports it)."""

from __future__ import annotations

from ..graph import Graph, Node


def fold_pads(graph: Graph) -> Graph:
    """pad with zeros along spatial axes, then conv: the conv alone. Only where nothing else reads what is padded."""
    readers, producers, outputs = graph.consumers(), graph.producers(), set(graph.outputs)
    nodes: list[Node] = []
    gone: set[str] = set()
    for node in graph.nodes:
        before = producers.get(node.inputs[0]) if node.op == "conv" else None
        if before is None or before.op != "pad" or before.outputs[0] in outputs or not _zeros_in_space(before):
            nodes.append(node)
            continue
        if len(readers[before.outputs[0]]) > 1:
            nodes.append(node)
            continue
        rank = len(before.attrs["pads"]) // 2
        around = [*before.attrs["pads"][2:rank], *before.attrs["pads"][rank + 2 :]]
        pads = tuple(a + b for a, b in zip(node.attrs["pads"], around, strict=True))
        gone.add(before.name)
        inputs = (before.inputs[0], *node.inputs[1:])
        nodes.append(Node("conv", node.name, inputs, node.outputs, dict(node.attrs) | {"pads": pads}))
    if not gone:
        return graph
    kept = tuple(n for n in nodes if n.name not in gone)
    return graph.replace(nodes=kept, notes=(*graph.notes, f"folded {len(gone)} pads into convolutions"))


def _zeros_in_space(node: Node) -> bool:
    """Known, non-negative numbers of zeros, none of them around the batch or the channels."""
    pads, rank = node.attrs["pads"], len(node.attrs["pads"]) // 2
    whole = all(isinstance(p, int) and p >= 0 for p in pads)
    return whole and node.attrs["mode"] == "constant" and node.attrs["value"] == 0 and not any(
        pads[i] for i in (0, 1, rank, rank + 1)
    )  # fmt: skip
