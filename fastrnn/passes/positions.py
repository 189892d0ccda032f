"""Values of positions alone, for streams: each row of a batch gets its own, since its stream may be at another step."""

from __future__ import annotations

from .. import dims as D
from ..errors import UnsupportedError
from ..graph import Graph, Node, Value, validate
from ..shapes import infer


def spread_positions(graph: Graph) -> Graph:
    """The graph with a batch axis on all that is made of step numbers alone; the same answers for rows of one length.

    In a whole run all rows are at the same steps, and [T, features] serves them all. Raises UnsupportedError naming
    each node that uses such a value in a way that has no place for rows.
    """
    counted = [n for n in graph.nodes if n.op == "steps" and n.attrs["dims"] == (D.TIME,)]
    if not counted or not any(D.BATCH in graph.values[n].dims for n in graph.inputs):
        return graph
    spread = _Spread(graph)
    for node in graph.nodes:
        spread.visit(node)
    problems = spread.problems + [
        f"output {n} is made of step numbers alone" for n in graph.outputs if n in spread.rows
    ]
    if problems:
        raise UnsupportedError(problems, graph.name)
    return validate(graph.replace(nodes=tuple(spread.nodes), values=spread.values))


class _Spread:
    """rows: name of a value of positions [dims] -> name of the same with rows, [batch, dims]."""

    def __init__(self, graph: Graph):
        self.graph, self.nodes, self.values = graph, [], dict(graph.values)
        self.rows: dict[str, str] = {}
        self.labels = {n.name for n in graph.nodes}
        self.problems: list[str] = []

    def visit(self, node: Node) -> None:
        """Copy a node, with rows where it needs them."""
        live = [i for i in node.inputs if i is not None and i not in self.graph.constants]
        if node.op == "steps" and node.attrs["dims"] == (D.TIME,):
            self.rows[node.outputs[0]] = self._add(node, "steps", (), {**node.attrs, "dims": (D.BATCH, D.TIME)})
            return
        if not any(i in self.rows for i in live):
            self.nodes.append(node)
            return
        try:
            dims = self.graph.values[node.outputs[0]].dims
            if all(i in self.rows for i in live) and D.BATCH not in dims:
                self.rows[node.outputs[0]] = getattr(self, f"_{node.op}", self._refuse)(node)
            else:
                self._meet(node, dims)
        except UnsupportedError as error:
            self.problems += error.problems
            self.nodes.append(node)

    def _refuse(self, node: Node):
        raise UnsupportedError(f"node {node.name} ({node.op}): it is computed from step numbers, which each stream has")

    # -- values of positions alone --
    def _same(self, node: Node, shift: tuple = ()) -> str:
        """An op whose axes are all one further on; constants stay, broadcasting as before."""
        rank = len(self.graph.values[node.outputs[0]].dims)
        inputs = tuple(i if i not in self.rows else self._ranked(node, i, rank) for i in node.inputs)
        attrs = {k: self._shifted(v) if k in shift else v for k, v in node.attrs.items()}
        return self._add(node, node.op, inputs, attrs)

    @staticmethod
    def _shifted(axes):
        return axes + 1 if isinstance(axes, int) else tuple(a + 1 for a in axes)

    def _ranked(self, node: Node, name: str, rank: int) -> str:
        """The value with rows, its dims filled up with ones to `rank` axes after the batch."""
        dims = self.graph.values[name].dims
        if len(dims) >= rank:
            return self.rows[name]
        full = (D.BATCH, *(1,) * (rank - len(dims)), *dims)
        return self._add(node, "reshape", (self.rows[name],), {"dims": full})

    def _unary(self, node):
        return self._same(node)

    _cast = _binary = _where = _linear = _unary

    def _softmax(self, node):
        return self._same(node, ("axis",))

    _layer_norm = _softmax

    def _slice(self, node):
        return self._same(node, ("axis",))

    def _reduce(self, node):
        axes = self._shifted(node.attrs["axes"])
        return self._add(node, "reduce", (self.rows[node.inputs[0]],), {**node.attrs, "axes": axes})

    def _transpose(self, node):
        perm = (0, *self._shifted(node.attrs["perm"]))
        return self._add(node, "transpose", (self.rows[node.inputs[0]],), {"perm": perm})

    def _reshape(self, node):
        return self._add(node, "reshape", (self.rows[node.inputs[0]],), {"dims": (D.BATCH, *node.attrs["dims"])})

    def _expand(self, node):
        dims = node.attrs["dims"]
        x = self._ranked(node, node.inputs[0], len(dims))
        return self._add(node, "expand", (x,), {"dims": (D.BATCH, *dims)})

    def _concat(self, node):
        inputs = []
        for name in node.inputs:
            if name not in self.rows:
                dims = (D.BATCH, *self.graph.values[name].dims)
                inputs.append(self._add(node, "expand", (name,), {"dims": dims}))
            else:
                inputs.append(self.rows[name])
        return self._add(node, "concat", tuple(inputs), {"axis": node.attrs["axis"] + 1})

    def _matmul(self, node):
        ranks = [len(self.graph.values[i].dims) for i in node.inputs]
        if min(ranks) < 2:
            self._refuse(node)
        return self._same(node)

    def _gather(self, node):
        table, indices = node.inputs
        axis = node.attrs["axis"]
        if indices not in self.rows:
            return self._add(node, "gather", (self.rows[table], indices), {**node.attrs, "axis": axis + 1})
        if table in self.rows:
            self._refuse(node)
        out = self._add(node, "gather", (table, self.rows[indices]), node.attrs)
        if axis == 0:
            return out
        rank = len(self.values[out].dims)
        perm = (axis, *(a for a in range(rank) if a != axis))
        return self._add(node, "transpose", (out,), {"perm": perm})

    # -- where they meet values of a batch --
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
        self.nodes.append(Node(node.op, node.name, tuple(inputs), node.outputs, node.attrs))

    def _add(self, node: Node, op: str, inputs: tuple, attrs: dict) -> str:
        ((dtype, dims),) = infer(op, [self.values[i] for i in inputs], attrs)
        name, label = f"{node.outputs[0]}:rows", f"{node.name}.rows"
        while name in self.values:
            name += "'"
        while label in self.labels:
            label += "'"
        self.labels.add(label)
        self.values[name] = Value(name, dtype, tuple(dims))
        self.nodes.append(Node(op, label, inputs, (name,), attrs))
        return name
