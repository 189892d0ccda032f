"""A graph with some nodes replaced: collects the changes of a pass and builds the new graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..graph import Graph, Node, Value
from ..graph.shapes import infer
from ..graph.traverse import fresh


class Patch:
    """Changes to a graph, which itself is not modified. Nodes keep their order; `done` returns the changed graph.

    values, constants : those of the new graph; `remove_dead_nodes` drops unused names
    instead : name of a node -> the nodes that replace it
    made : nodes that `add` made since the last `replace`, which puts them before its own
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.values, self.constants = dict(graph.values), dict(graph.constants)
        self.labels = {n.name for n in graph.nodes}
        self.instead: dict[str, tuple[Node, ...]] = {}
        self.made: list[Node] = []

    def add(self, op: str, inputs: Sequence[str | None], attrs: dict, label: str, value: str | None = None) -> str:
        """Make a node with one output, whose dims are inferred; returns its output's name. Both names are made unique.

        value : if None, both get the same name.
        """
        ((dtype, dims),) = infer(op, [None if i is None else self.values[i] for i in inputs], attrs)
        if value is None:
            label = value = self.declare(label, dtype, dims)
        else:
            label, value = fresh(label, self.labels), fresh(value, self.values)
            self.labels.add(label)
            self.values[value] = Value(value, dtype, tuple(dims))
        self.made.append(Node(op, label, tuple(inputs), (value,), attrs))
        return value

    def declare(self, name: str, dtype: str, dims: tuple) -> str:
        """Declare the value of a node that is added later under the same name; returns the name, unique for both."""
        name = fresh(name, self.labels, self.values, mark="_")
        self.labels.add(name)
        self.values[name] = Value(name, dtype, tuple(dims))
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add a constant; returns its name, made unique."""
        name = fresh(name, self.values)
        self.values[name], self.constants[name] = Value(name, str(array.dtype), array.shape), array
        return name

    def replace(self, node: Node, *nodes: Node) -> None:
        """Replace a node with what `add` made and then these nodes; without any, the node is dropped."""
        self.instead[node.name] = (*self.made, *nodes)
        self.made = []

    def done(self, *notes: str) -> Graph:
        """The graph with all changes and these notes; the graph itself if nothing was replaced."""
        if not self.instead:
            return self.graph
        nodes = tuple(new for n in self.graph.nodes for new in self.instead.get(n.name, (n,)))
        notes = (*self.graph.notes, *notes)
        return self.graph.replace(nodes=nodes, values=self.values, constants=self.constants, notes=notes)
