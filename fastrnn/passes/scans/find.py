"""Finds recurrences in parallel form, and replaces those that are proved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...graph import Graph, Node
from ...graph import dims as D
from ...graph.vocabulary import ROWS
from ..dead import remove_dead_nodes
from ..patch import Patch
from .proof import agrees
from .read import Reader
from .write import resolved


def recurrences_of_parallel_forms(graph: Graph) -> Graph:
    """Replace each value that is a first-order linear recurrence, written as sums over all steps, with the recurrence.

    One that is not proved stays as it is.
    """
    if not any(n.op == "cumsum" or (n.op == "matmul" and _of_two_times(graph, n)) for n in graph.nodes):
        return graph
    reader, found = Reader(graph), []
    for node in graph.nodes:
        reader.visit(node)
        new = resolved(reader, node)
        if new is not None and _replaced(reader, node, new):
            reader.forms.pop(node.outputs[0], None)
            found.append(node.name)
    if not found:
        return graph
    text = ", ".join(found)
    note = f"took {len(found)} recurrences in parallel form step by step: {text}"
    done = remove_dead_nodes(reader.nodes.patch.done())
    return _folded(done, graph).replace(notes=(*graph.notes, note))


def _folded(graph: Graph, before: Graph) -> Graph:
    """Compute what was written of constants alone, in float64 until other values read it."""
    written, patch = {n.name for n in graph.nodes} - {n.name for n in before.nodes}, Patch(graph)
    known: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        if node.name not in written or not _constant(graph, node, known):
            for name in {i for i in node.inputs if i in known}:
                patch.constants[name] = np.ascontiguousarray(known[name], np.float32)
            continue
        arrays = [np.asarray(known.get(i, graph.constants.get(i)), np.float64) for i in node.inputs]
        known[node.outputs[0]] = ROWS[node.op].compute(arrays, node.attrs, int)[0]
        patch.replace(node)
    return patch.done()


def _of_two_times(graph: Graph, node: Node) -> bool:
    return graph.values[node.outputs[0]].dims.count(D.TIME) == 2


def _replaced(reader: Reader, node: Node, new: str) -> bool:
    """Put the recurrence in the place of the node if it is proved to give the same."""
    patch, old = reader.nodes.patch, node.outputs[0]
    value, made = patch.values[new], patch.values[old]
    if (value.dtype, value.dims) != (made.dtype, made.dims):
        return False
    whole = reader.graph.replace(
        nodes=(*reader.graph.nodes, *_written(patch)), values=patch.values, constants=patch.constants
    )
    if not agrees(reader.graph, whole, old, new, {n.name for n in _written(patch)}):
        return False
    last = next((n for n in patch.made if n.outputs == (new,)), None)
    if last is not None and not any(new in n.inputs for n in patch.made):
        patch.made.remove(last)
        patch.replace(node, replace(last, name=node.name, outputs=(old,)))
    else:
        patch.replace(node, Node("reshape", node.name, (new,), (old,), {"dims": made.dims}))
    return True


def _written(patch) -> list[Node]:
    """All nodes that were added so far, those of replaced nodes too."""
    return [*(n for nodes in patch.instead.values() for n in nodes), *patch.made]


def _constant(graph: Graph, node: Node, known: dict) -> bool:
    sizes = any(D.symbols(d) for d in graph.values[str(node.outputs[0])].dims)
    moved = node.op in ("unary", "binary", "reshape", "transpose")
    return moved and not sizes and all(i in known or i in graph.constants for i in node.inputs)
