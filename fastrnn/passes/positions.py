"""Gives each row of a batch its own position values. In a stream, rows may be at different steps."""

from __future__ import annotations

from dataclasses import replace

from ..errors import UnsupportedError
from ..graph import Graph, Node, validate
from ..graph import dims as D
from .patch import Patch


def spread_positions(graph: Graph) -> Graph:
    """Add a batch axis to every value made of step numbers alone. Answers for rows of equal length don't change.

    In a whole run all rows are at the same steps, and [T, features] serves them all. Raises UnsupportedError naming
    each node that uses such a value in a way that leaves no place for rows.
    """
    if not any(map(_counts, graph.nodes)) or not any(D.BATCH in graph.values[n].dims for n in graph.inputs):
        return graph
    spread = _Spread(graph)
    for node in graph.nodes:
        spread.visit(node)
    problems = spread.problems + [
        f"output {n} is made of step numbers alone" for n in graph.outputs if n in spread.rows
    ]
    if problems:
        raise UnsupportedError(problems, graph.name)
    return validate(spread.patch.done())


def _counts(node: Node) -> bool:
    """Whether a stream's steps have the numbers that a node makes."""
    if node.op != "steps":
        return False
    return node.attrs["dims"] == (D.TIME,) or (node.attrs["dims"] == (1,) and bool(node.attrs.get("grows")))


# An attribute, with a batch axis in front.
_SHIFTED = {
    "axis": lambda axis: axis + 1,
    "axes": lambda axes: tuple(a + 1 for a in axes),
    "perm": lambda perm: (0, *(a + 1 for a in perm)),
    "dims": lambda dims: (D.BATCH, *dims),
}
# Ops that work the same with a batch axis in front, except for such attributes.
_SAME = frozenset("unary cast binary where linear softmax layer_norm slice reduce transpose expand".split())


class _Spread:
    """rows: name of a value of positions [dims] -> name of that value with rows, [batch, dims]."""

    def __init__(self, graph: Graph):
        self.graph, self.patch = graph, Patch(graph)
        self.rows: dict[str, str] = {}
        self.problems: list[str] = []

    def visit(self, node: Node) -> None:
        """Replace a node computed from step numbers with one that has rows."""
        live = [i for i in node.inputs if i is not None and i not in self.graph.constants]
        if _counts(node):
            dims = (D.BATCH, *node.attrs["dims"])
            self.rows[node.outputs[0]] = self._add(node, "steps", (), {**node.attrs, "dims": dims})
            self.patch.replace(node)
            return
        if not any(i in self.rows for i in live):
            return
        try:
            dims = self.graph.values[node.outputs[0]].dims
            if all(i in self.rows for i in live) and D.BATCH not in dims:
                self.rows[node.outputs[0]] = self._with_rows(node)
                self.patch.replace(node)
            else:
                self._meet(node, dims)
        except UnsupportedError as error:
            self.problems += error.problems

    def _refuse(self, node: Node):
        raise UnsupportedError(f"node {node.name} ({node.op}): it is computed from step numbers, which each stream has")

    # -- values of positions alone --
    def _with_rows(self, node: Node) -> str:
        if node.op in _SAME or (node.op == "matmul" and all(self._rank(i) >= 2 for i in node.inputs)):
            rank = self._rank(node.outputs[0])
            inputs = tuple(i if i not in self.rows else self._ranked(node, i, rank) for i in node.inputs)
            return self._add(node, node.op, inputs, _shifted(node))
        if node.op == "reshape":
            return self._add(node, "reshape", (self.rows[node.inputs[0]],), _shifted(node))
        if node.op == "concat":
            return self._add(node, "concat", tuple(self._expanded(node, i) for i in node.inputs), _shifted(node))
        return self._gather(node) if node.op == "gather" else self._refuse(node)

    def _rank(self, name: str) -> int:
        return len(self.graph.values[name].dims)

    def _ranked(self, node: Node, name: str, rank: int) -> str:
        """The value with rows, its dims padded with ones to `rank` axes after the batch; constants broadcast."""
        dims = self.graph.values[name].dims
        if len(dims) >= rank:
            return self.rows[name]
        full = (D.BATCH, *(1,) * (rank - len(dims)), *dims)
        return self._add(node, "reshape", (self.rows[name],), {"dims": full})

    def _expanded(self, node: Node, name: str) -> str:
        """The value with rows, even if it is a constant."""
        if name in self.rows:
            return self.rows[name]
        return self._add(node, "expand", (name,), {"dims": (D.BATCH, *self.graph.values[name].dims)})

    def _gather(self, node: Node) -> str:
        table, indices = node.inputs
        axis = node.attrs["axis"]
        if indices not in self.rows:
            return self._add(node, "gather", (self.rows[table], indices), _shifted(node))
        if table in self.rows:
            self._refuse(node)
        out = self._add(node, "gather", (table, self.rows[indices]), node.attrs)
        if axis == 0:
            return out
        rank = len(self.patch.values[out].dims)
        perm = (axis, *(a for a in range(rank) if a != axis))
        return self._add(node, "transpose", (out,), {"perm": perm})

    # -- combinations with values of a batch --
    def _meet(self, node: Node, dims: tuple) -> None:
        if node.op not in ("binary", "where", "expand") or D.BATCH not in dims:
            self._refuse(node)
        at, rank = dims.index(D.BATCH), len(dims)
        inputs = []
        for name in node.inputs:
            if name not in self.rows:
                inputs.append(name)
                continue
            own = self.graph.values[name].dims
            full = [*(1,) * (rank - len(own)), *own]
            if full[at] != 1:
                self._refuse(node)
            del full[at]
            x = self._add(node, "reshape", (self.rows[name],), {"dims": (D.BATCH, *full)})
            perm = (*range(1, at + 1), 0, *range(at + 1, rank))
            inputs.append(self._add(node, "transpose", (x,), {"perm": perm}) if at else x)
        self.patch.replace(node, replace(node, inputs=tuple(inputs)))

    def _add(self, node: Node, op: str, inputs: tuple, attrs: dict) -> str:
        return self.patch.add(op, inputs, attrs, f"{node.name}.rows", f"{node.outputs[0]}:rows")


def _shifted(node: Node) -> dict:
    return {name: _SHIFTED.get(name, lambda same: same)(value) for name, value in node.attrs.items()}
