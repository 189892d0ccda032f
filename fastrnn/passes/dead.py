"""Nodes, outputs and constants that nothing needs."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Graph


def remove_dead_nodes(graph: Graph) -> Graph:
    """Drop nodes that no output depends on, outputs of nodes that nobody reads, and constants without a reader."""
    needed = set(graph.outputs)
    keep: set[int] = set()
    changed = True
    while changed:  # a state's input may be made after it, so one backward sweep is not always enough
        changed = False
        for k in range(len(graph.nodes) - 1, -1, -1):
            node = graph.nodes[k]
            if k not in keep and any(o in needed for o in node.outputs):
                keep.add(k)
                needed |= {i for i in node.inputs if i is not None}
                changed = True
    nodes = []
    for k, node in enumerate(graph.nodes):
        if k in keep:
            outputs = tuple(o if o in needed else None for o in node.outputs)
            nodes.append(node if outputs == node.outputs else replace(node, outputs=outputs))
    live = needed | set(graph.inputs)
    values = {k: v for k, v in graph.values.items() if k in live}
    constants = {k: v for k, v in graph.constants.items() if k in needed}
    dropped = len(graph.nodes) - len(nodes)
    notes = (*graph.notes, f"removed {dropped} dead nodes") if dropped else graph.notes
    return graph.replace(nodes=tuple(nodes), values=values, constants=constants, notes=notes)
