"""Graphs at other sizes, and values of a graph that are computed without running it as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..graph import DTYPES, Graph, Node, Value, reference
from ..graph import dims as D
from ..graph.traverse import free_inputs, needed


def resized(graph: Graph, sizes: Mapping) -> Graph:
    """The graph with sizes replaced in its values, not in its nodes."""
    values = {n: Value(n, v.dtype, tuple(D.substitute(d, sizes) for d in v.dims)) for n, v in graph.values.items()}
    return graph.replace(values=values)


def resized_node(node: Node, sizes: Mapping) -> Node:
    return replace(node, attrs=D.substitute_in(node.attrs, sizes))


def computed(graph: Graph, name: str, sizes: Mapping[str, int], feeds: Mapping[str, np.ndarray] | None = None):
    """The value of this name at these sizes, from `feeds` or ones; sizes that are not given are 1."""
    nodes = needed(graph, [name])
    inputs = [i for i in (free_inputs(nodes) if nodes else (name,)) if i not in graph.constants]
    names = {s for n in nodes for v in (*n.inputs, *n.outputs) if v for d in graph.values[v].dims for s in D.symbols(d)}
    names |= {s for i in inputs for d in graph.values[i].dims for s in D.symbols(d)}
    env = dict.fromkeys(names | {"batch"}, 1) | dict(sizes)
    arrays = {
        i: np.ones([D.evaluate(d, env) for d in graph.values[i].dims], DTYPES[graph.values[i].dtype]) for i in inputs
    }
    arrays |= {i: a for i, a in (feeds or {}).items() if i in arrays}
    part = graph.replace(
        inputs=tuple(inputs), outputs=(name,), nodes=tuple(nodes), states={}, requires=(), undecided=()
    )
    return reference.run(part, arrays, sizes=env)[0]
