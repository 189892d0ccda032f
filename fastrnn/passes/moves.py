"""Moves of data that cancel, merge, or cost nothing in another form."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Graph, Node, Value
from ..graph import dims as D
from ..graph.traverse import fresh


def simplify_moves(graph: Graph) -> Graph:
    """Merge chains of transpose and reshape, drop those that do nothing, and join bidirectional outputs in one concat.

    Rules, applied until none matches: transpose of transpose; a transpose that only moves axes of size one is a
    reshape; reshape of reshape; a move to the same form is dropped; transpose of concat is concat of transposes, and a
    reshape that merges the axis of a concat into the next one is a concat of such reshapes, if nothing else reads the
    value in between; ops that work row by row move above a reshape that merges rows.
    """
    editor = _MoveEditor(graph)
    while editor.sweep():
        pass
    if not editor.changes:
        return graph
    notes = (*graph.notes, f"simplified {editor.changes} moves of data")
    return graph.replace(nodes=tuple(editor.nodes), values=editor.values, notes=notes)


class _MoveEditor:
    def __init__(self, graph: Graph):
        self.graph, self.nodes, self.values = graph, list(graph.nodes), dict(graph.values)
        self.outputs, self.names = set(graph.outputs), {n.name for n in graph.nodes}
        self.changes = 0

    def sweep(self) -> bool:
        """One pass over the nodes; True if a rule matched."""
        self.maker = {o: n for n in self.nodes for o in n.outputs if o is not None}
        self.reads: dict[str, int] = {}
        for node in self.nodes:
            for name in node.inputs:
                if name is not None:
                    self.reads[name] = self.reads.get(name, 0) + 1
        for k, node in enumerate(self.nodes):
            new = self._rule(node)
            if new is not None:
                self.nodes[k : k + 1] = new
                self._drop_unread()
                self.changes += 1
                return True
        return False

    def _drop_unread(self) -> None:
        """Drop moves that lost their last reader, so that the next sweep counts readers correctly."""
        needed = set(self.outputs)
        for node in self.nodes:
            needed |= {i for i in node.inputs if i is not None}
        self.nodes = [n for n in self.nodes if n.op not in ("transpose", "reshape", "concat") or n.outputs[0] in needed]

    def _rule(self, node: Node) -> list[Node] | None:
        if node.op not in ("transpose", "reshape"):
            return self._through_pointwise(node)
        source, out = self.values[node.inputs[0]], self.values[node.outputs[0]]
        before = self.maker.get(source.name)
        if node.op == "transpose" and _moves_only_ones(source.dims, node.attrs["perm"]):
            return [Node("reshape", node.name, node.inputs, node.outputs, {"dims": out.dims})]
        if source.dims == out.dims and (node.op == "reshape" or node.attrs["perm"] == tuple(range(len(out.dims)))):
            dropped = self._drop(node, source.name, out.name)
            if dropped is not None:
                return dropped
        if before is not None and before.op == node.op:
            attrs = {"dims": out.dims}
            if node.op == "transpose":
                attrs = {"perm": tuple(before.attrs["perm"][p] for p in node.attrs["perm"])}
            return [replace(node, inputs=before.inputs, attrs=attrs)]
        if (
            before is not None
            and before.op == "concat"
            and self.reads[source.name] == 1
            and source.name not in self.outputs
        ):
            return self._through_concat(node, before, source, out)
        return None

    def _through_pointwise(self, node: Node) -> list[Node] | None:
        """Move an op that works on each row separately above a reshape that only merges rows. Keras folds batch and
        time into one axis around every Dense; the reshape then meets its inverse and both are dropped."""
        k = _row_input(node, self.graph)
        before = self.maker.get(node.inputs[k]) if k is not None else None
        if (
            before is None
            or before.op != "reshape"
            or self.reads[node.inputs[k]] != 1
            or node.inputs[k] in self.outputs
        ):
            return None
        source, merged = self.values[before.inputs[0]], self.values[node.inputs[k]]
        out = self.values[node.outputs[0]]
        if len(source.dims) <= len(merged.dims) or len(merged.dims) < 2 or source.dims[-1:] != merged.dims[-1:]:
            return None
        if len(out.dims) != len(merged.dims) or ("axis" in node.attrs and node.attrs["axis"] != len(merged.dims) - 1):
            return None
        inputs = tuple(before.inputs[0] if i == k else name for i, name in enumerate(node.inputs))
        name = fresh(f"{out.name}:rows", self.values)
        self.values[name] = Value(name, out.dtype, (*source.dims[:-1], out.dims[-1]))
        label = fresh(f"{node.name}.rows", self.names)
        self.names.add(label)
        attrs = dict(node.attrs) | ({"axis": len(source.dims) - 1} if "axis" in node.attrs else {})
        return [
            replace(node, inputs=inputs, outputs=(name,), attrs=attrs),
            Node("reshape", label, (name,), node.outputs, {"dims": out.dims}),
        ]

    def _drop(self, node: Node, source: str, out: str) -> list[Node] | None:
        """Remove a move that does nothing. Readers take its input; an output's name goes to the maker of its input."""
        if out not in self.outputs:
            self._rename_reads(out, source)
            return []
        maker = self.maker.get(source)
        if maker is None or source in self.outputs or maker.op == "state":
            return None
        self._rename_reads(source, out)
        for k, other in enumerate(self.nodes):
            if other is maker:
                self.nodes[k] = replace(maker, outputs=tuple(out if o == source else o for o in maker.outputs))
        return []

    def _rename_reads(self, old: str, new: str) -> None:
        for k, other in enumerate(self.nodes):
            if old in other.inputs:
                self.nodes[k] = replace(other, inputs=tuple(new if i == old else i for i in other.inputs))

    def _through_concat(self, node: Node, concat: Node, source: Value, out: Value) -> list[Node] | None:
        axis = concat.attrs["axis"]
        if node.op == "transpose":
            perm = node.attrs["perm"]
            parts = [tuple(self.values[i].dims[p] for p in perm) for i in concat.inputs]
            return self._spread(node, concat, parts, perm.index(axis), {"perm": perm})
        merged = (*source.dims[:axis], D.product(source.dims[axis : axis + 2]), *source.dims[axis + 2 :])
        if axis + 1 >= len(source.dims) or out.dims != merged:
            return None
        parts = []
        for name in concat.inputs:
            dims = self.values[name].dims
            parts.append((*dims[:axis], D.product(dims[axis : axis + 2]), *dims[axis + 2 :]))
        return self._spread(node, concat, parts, axis, None)

    def _spread(self, node: Node, concat: Node, parts: list, axis: int, attrs: dict | None) -> list[Node]:
        """Apply the move to each input of the concat, and put a concat of the results in its place."""
        made, names = [], []
        for k, (source, dims) in enumerate(zip(concat.inputs, parts, strict=True)):
            name = fresh(f"{node.outputs[0]}:{k}", self.values)
            self.values[name] = Value(name, self.values[source].dtype, dims)
            label = fresh(f"{node.name}.{k}", self.names)
            self.names.add(label)
            made.append(Node(node.op, label, (source,), (name,), attrs or {"dims": dims}))
            names.append(name)
        return [*made, Node("concat", node.name, tuple(names), node.outputs, {"axis": axis})]


def _moves_only_ones(dims: tuple, perm: tuple) -> bool:
    """Whether all axes longer than one keep their order."""
    kept = [p for p in perm if dims[p] != 1]
    return kept == sorted(kept) and list(perm) != list(range(len(perm)))


def _row_input(node: Node, graph: Graph) -> int | None:
    """Which input the node processes row by row (along its last axis), if all others are constants of one row."""
    if node.op in ("unary", "softmax", "cast"):
        return 0
    if node.op == "linear" or (node.op == "matmul" and _rank(graph, node.inputs[1]) == 2):
        return 0
    if node.op == "layer_norm":
        return 0 if all(_rank(graph, i) == 1 for i in node.inputs[1:] if i is not None) else None
    if node.op == "binary":
        ranks = [_rank(graph, i) for i in node.inputs]
        return next((k for k in (0, 1) if ranks[k] is None and ranks[1 - k] in (0, 1)), None)
    return None


def _rank(graph: Graph, name: str) -> int | None:
    """The rank of a constant; None for any other value."""
    array = graph.constants.get(name)
    return None if array is None else array.ndim
