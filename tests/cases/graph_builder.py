"""Graphs written by hand, for tests: `GraphBuilder` infers every dim, so that a test says only what matters to it."""

from __future__ import annotations

import numpy as np

from fastrnn.graph import Graph, Node, Value, validate
from fastrnn.graph.shapes import infer


class GraphBuilder:
    """Adds nodes whose output dims come from shapes.infer; `done` makes the validated Graph."""

    def __init__(self, name: str):
        self.name, self.nodes, self.values, self.constants, self.inputs = name, [], {}, {}, []

    def input(self, name: str, dtype: str, *dims) -> str:
        """Declare an input of the graph; returns its name."""
        self.values[name] = Value(name, dtype, dims)
        self.inputs.append(name)
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        """Declare a constant; returns its name."""
        self.values[name] = Value(name, str(array.dtype), array.shape)
        self.constants[name] = np.array(array)
        return name

    def add(self, op: str, *inputs, name: str | None = None, outputs=None, **attrs):
        """Add a node; returns the name of its output, or the tuple `outputs` where that is given (None: omitted)."""
        name = name or f"{op}_{len(self.nodes)}"
        made = outputs or (name,)
        given = [None if i is None else self.values[i] for i in inputs]
        for out, (dtype, dims) in zip(made, infer(op, given, attrs), strict=False):
            if out is not None:
                self.values[out] = Value(out, dtype, tuple(dims))
        self.nodes.append(Node(op, f"node_{name}", tuple(inputs), tuple(made), attrs))
        return made if outputs else name

    def done(self, *outputs: str, states=None) -> Graph:
        """The validated graph."""
        return validate(
            Graph(
                self.name,
                tuple(self.inputs),
                outputs,
                tuple(self.nodes),
                self.values,
                self.constants,
                states or {},
            )
        )
