"""Writes a Graph value by value, for importers that know their shapes beforehand. Independent of any format.

    w = GraphWriter("name")
    x = w.input("x", "float32", (BATCH, TIME, 40))
    y = w.add("unary", x, label="act", fn="tanh", alpha=0.0, beta=0.0)
    graph = w.done(y)

A value is passed as a `fastrnn.graph.Value`; its dims are inferred.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import ModelFormatError, ShapeError
from ...graph import DTYPES, Graph, Node, Value, validate
from ...graph.casts import as_float32
from ...graph.cells import CellSpec
from ...graph.shapes import infer


class GraphWriter:
    """Collects nodes, values and constants; `done` returns the validated Graph. Names are made unique."""

    def __init__(self, name: str):
        self.name = name
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: list[str] = []
        self.notes: list[str] = []
        self.integers: dict[float, frozenset[tuple[float, str]]] = {}  # Graph.integers
        self._labels: set[str] = set()

    def input(self, name: str, dtype: str, dims: tuple) -> Value:
        """Declare an input of the graph."""
        value = Value(_free(name, self.values), dtype, tuple(dims))
        self.values[value.name] = value
        self.inputs.append(value.name)
        return value

    def constant(self, array, name: str = "constant") -> Value:
        """A copy of an array (floating point becomes float32, integers int64, bools stay) as a constant.

        Raises ModelFormatError, with the name, for a finite number outside the range of float32.
        """
        array = np.asarray(array)
        dtype = {"f": "float32", "b": "bool"}.get(array.dtype.kind, "int64")
        held = (
            as_float32(array, name, ModelFormatError)
            if dtype == "float32"
            else np.array(array, DTYPES[dtype], order="C")
        )
        value = Value(_free(name, self.values), dtype, held.shape)
        self.values[value.name], self.constants[value.name] = value, held
        return value

    def add(self, op: str, *inputs: Value | None, label: str | None = None, **attrs) -> Value:
        """Append a node with one output, and return the output."""
        return self.many(op, inputs, attrs, (True,), label)[0]

    def many(self, op: str, inputs: Sequence[Value | None], attrs: dict, wanted: Sequence[bool], label=None) -> list:
        """Append a node; returns a Value, or None if it isn't wanted, for each entry of `wanted`.

        Raises ShapeError, naming the node, if the inputs don't fit.
        """
        label = _free(label or op, self._labels)
        try:
            implied = infer(op, inputs, attrs)
        except ShapeError as error:
            raise ShapeError(f"{label} ({op}): {error}") from None
        outputs: list[Value | None] = []
        for k, (want, (dtype, dims)) in enumerate(zip(wanted, implied, strict=False)):
            value = None
            if want:
                value = Value(_free(f"{label}:{k}" if k else label, self.values), dtype, tuple(dims))
                self.values[value.name] = value
            outputs.append(value)
        self._labels.add(label)
        names = tuple(None if v is None else v.name for v in inputs)
        self.nodes.append(Node(op, label, names, tuple(None if v is None else v.name for v in outputs), attrs))
        return outputs

    # -- operations that every importer needs --
    def unary(self, fn: str, x: Value, alpha: float = 0.0, beta: float = 0.0, label: str | None = None) -> Value:
        """An elementwise function of graph.UNARY."""
        return self.add("unary", x, label=label or fn, fn=fn, alpha=float(alpha), beta=float(beta))

    def binary(self, fn: str, a: Value, b: Value, label: str | None = None) -> Value:
        """An elementwise function of graph.BINARY."""
        return self.add("binary", a, b, label=label or fn, fn=fn)

    def transpose(self, x: Value, *perm: int) -> Value:
        return self.add("transpose", x, label=f"{x.name}.transpose", perm=tuple(perm))

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        """The parts joined along an axis; a single part is returned unchanged."""
        return parts[0] if len(parts) == 1 else self.add("concat", *parts, axis=axis)

    def linear(self, x: Value, W: np.ndarray, bias: np.ndarray | None = None, label: str = "linear") -> Value:
        """x [.., in] @ W [in, out] + bias [out]."""
        inputs = [x, self.constant(W, f"{label}.W")]
        inputs += [] if bias is None else [self.constant(bias, f"{label}.bias")]
        return self.add("linear", *inputs, label=label, activation=None, alpha=0.0, beta=0.0)

    def cell(
        self,
        x: Value,
        spec: CellSpec,
        weights: Sequence[np.ndarray | None],
        *,
        initial: Sequence[Value | None] = (None, None),
        wanted: Sequence[bool] = (True, False, False),
        label: str = "cell",
    ) -> list:
        """One direction of one layer: x [T, B, I], weights (W, R, Wb, Rb, P) in ONNX order, initial (h0, c0)
        [B, H] -> [y [T, B, H], h_n, c_n], None if not wanted."""
        names = ("W", "R", "Wb", "Rb", "P")
        held = [None if a is None else self.constant(a, f"{label}.{n}") for n, a in zip(names, weights, strict=True)]
        return self.many("cell", [x, *held, *initial, None], {"spec": spec}, wanted, label)

    def done(self, *outputs: Value, states: dict[str, str] | None = None) -> Graph:
        """The validated graph."""
        if len({v.name for v in outputs}) != len(outputs):
            raise ModelFormatError(f"{self.name}: an output is named twice")
        return validate(
            Graph(
                self.name,
                tuple(self.inputs),
                tuple(v.name for v in outputs),
                tuple(self.nodes),
                self.values,
                self.constants,
                states or {},
                tuple(self.notes),
                integers=self.integers,
            )
        )

    def rename(self, value: Value, name: str) -> Value:
        """Rename a value that a node made, for example to the name of a model output."""
        if name == value.name:
            return value
        new = Value(_free(name, self.values), value.dtype, value.dims)
        for k, node in enumerate(self.nodes):
            if value.name in node.inputs or value.name in node.outputs:
                inputs = tuple(new.name if i == value.name else i for i in node.inputs)
                outputs = tuple(new.name if o == value.name else o for o in node.outputs)
                self.nodes[k] = Node(node.op, node.name, inputs, outputs, node.attrs)
        del self.values[value.name]
        self.values[new.name] = new
        return new


def _free(base: str, taken) -> str:
    """`base`, or the first of base.1, base.2, ... that is not taken."""
    name, k = base, 1
    while name in taken:
        name, k = f"{base}.{k}", k + 1
    return name
