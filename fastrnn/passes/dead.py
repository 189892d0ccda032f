"""Nodes, outputs and constants that nothing needs."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Graph
from ..graph.traverse import needed


def remove_dead_nodes(graph: Graph) -> Graph:
    """Drop nodes that no output depends on, node outputs without a reader, and constants without a reader."""
    kept = needed(graph, graph.outputs)
    read = {*graph.outputs, *(i for n in kept for i in n.inputs if i is not None)}
    nodes = []
    for node in kept:
        outputs = tuple(o if o in read else None for o in node.outputs)
        nodes.append(node if outputs == node.outputs else replace(node, outputs=outputs))
    live = read | set(graph.inputs)
    values = {k: v for k, v in graph.values.items() if k in live}
    constants = {k: v for k, v in graph.constants.items() if k in read}
    dropped = len(graph.nodes) - len(nodes)
    notes = (*graph.notes, f"removed {dropped} dead nodes") if dropped else graph.notes
    return graph.replace(nodes=tuple(nodes), values=values, constants=constants, notes=notes)
