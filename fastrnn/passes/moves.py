"""Moves of data that cancel, merge, or cost nothing in another form."""

from __future__ import annotations

from dataclasses import replace
from heapq import heappop, heappush

from ..graph import Graph, Node, Value
from ..graph import dims as D
from ..graph.traverse import fresh

_MOVES = frozenset(("transpose", "reshape", "concat"))


def simplify_moves(graph: Graph) -> Graph:
    """Merge chains of transpose and reshape, drop those that do nothing, and join bidirectional outputs in one concat.

    Rules, applied until none matches: transpose of transpose; a transpose that only moves axes of size one is a
    reshape; reshape of reshape; a move to the same form is dropped; transpose of concat is concat of transposes, and a
    reshape that merges the axis of a concat into the next one is a concat of such reshapes, if nothing else reads the
    value in between; ops that work row by row move above a reshape that merges rows.
    """
    editor = _MoveEditor(graph)
    editor.run()
    if not editor.changes:
        return graph
    notes = (*graph.notes, f"simplified {editor.changes} moves of data")
    return graph.replace(nodes=editor.ordered(), values=editor.values, notes=notes)


class _MoveEditor:
    """Applies the rule of the first node that has one, until none has.

    A rule of a node depends on the node, on the makers of its inputs and on whether it is their only reader. Only
    nodes for which one of these changed are tried again, so the work grows with the number of changes.

    nodes : place -> node. Places are ordered as the nodes are; nodes that replace one get its place, or, if they are
        several, places that extend it.
    maker, readers : value -> place, and value -> place -> how often the node there reads it
    """

    def __init__(self, graph: Graph):
        self.graph, self.values = graph, dict(graph.values)
        self.outputs, self.names = set(graph.outputs), {n.name for n in graph.nodes}
        self.changes = 0
        self.nodes: dict[tuple[int, ...], Node] = {}
        self.maker: dict[str, tuple[int, ...]] = {}
        self.readers: dict[str, dict[tuple[int, ...], int]] = {}
        self.waiting: list[tuple[int, ...]] = []  # a heap of the places to try
        self.unread: list[tuple[int, ...]] = []  # moves that may have lost their last reader
        for k, node in enumerate(graph.nodes):
            self._put((k,), node)
        self.unread = [p for p, n in self.nodes.items() if n.op in _MOVES]
        self.waiting = list(self.nodes)

    def run(self) -> None:
        """Apply rules until none matches."""
        while self.waiting:
            place = heappop(self.waiting)
            while self.waiting and self.waiting[0] == place:
                heappop(self.waiting)
            node = self.nodes.get(place)
            new = None if node is None else self._rule(node)
            if new is not None:
                self._take(place)
                for k, made in enumerate(new):
                    self._put(place if len(new) == 1 else (*place, k), made)
                self._drop_unread()
                self.changes += 1

    def ordered(self) -> tuple[Node, ...]:
        return tuple(self.nodes[place] for place in sorted(self.nodes))

    def _put(self, place: tuple[int, ...], node: Node) -> None:
        self.nodes[place] = node
        heappush(self.waiting, place)
        for name in node.outputs:
            if name is not None:
                self.maker[name] = place
                for reader in self.readers.get(name, ()):
                    heappush(self.waiting, reader)
        for name in node.inputs:
            if name is not None:
                places = self.readers.setdefault(name, {})
                places[place] = places.get(place, 0) + 1
        if node.op in _MOVES:
            self.unread.append(place)

    def _take(self, place: tuple[int, ...]) -> None:
        node = self.nodes.pop(place)
        for name in node.outputs:
            if name is not None and self.maker.get(name) == place:
                del self.maker[name]
        for name in node.inputs:
            if name is None:
                continue
            places = self.readers[name]
            places.pop(place, None)
            if name in self.maker and not places:
                self.unread.append(self.maker[name])
            elif name in self.maker and len(places) == 1:
                heappush(self.waiting, next(iter(places)))

    def _made_by(self, name: str | None) -> Node | None:
        """The node that makes a value, if any."""
        place = self.maker.get(name)
        return None if place is None else self.nodes[place]

    def _read_once(self, name: str) -> bool:
        """Whether a value has one reader, which reads it once, and is not an output."""
        return sum(self.readers.get(name, {}).values()) == 1 and name not in self.outputs

    def _drop_unread(self) -> None:
        """Drop moves that lost their last reader, so that readers are counted correctly from here on. Those that lose
        theirs by this follow after the next change."""
        candidates, self.unread = dict.fromkeys(self.unread), []
        for place in [p for p in candidates if p in self.nodes and self._is_unread(self.nodes[p])]:
            self._take(place)

    def _is_unread(self, node: Node) -> bool:
        return node.op in _MOVES and node.outputs[0] not in self.outputs and not self.readers.get(node.outputs[0])

    def _rule(self, node: Node) -> list[Node] | None:
        if node.op not in ("transpose", "reshape"):
            return self._through_pointwise(node)
        source, out = self.values[node.inputs[0]], self.values[node.outputs[0]]
        before = self._made_by(source.name)
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
        if before is not None and before.op == "concat" and self._read_once(source.name):
            return self._through_concat(node, before, source, out)
        return None

    def _through_pointwise(self, node: Node) -> list[Node] | None:
        """Move an op that works on each row separately above a reshape that only merges rows. Keras folds batch and
        time into one axis around every Dense; the reshape then meets its inverse and both are dropped."""
        k = _row_input(node, self.graph)
        before = self._made_by(node.inputs[k]) if k is not None else None
        if before is None or before.op != "reshape" or not self._read_once(node.inputs[k]):
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
        maker = self._made_by(source)
        if maker is None or source in self.outputs or maker.op == "state":
            return None
        place = self.maker[source]
        self._rename_reads(source, out)
        self._take(place)
        self._put(place, replace(maker, outputs=tuple(out if o == source else o for o in maker.outputs)))
        return []

    def _rename_reads(self, old: str, new: str) -> None:
        for place in list(self.readers.get(old, ())):
            node = self.nodes[place]
            self._take(place)
            self._put(place, replace(node, inputs=tuple(new if i == old else i for i in node.inputs)))

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
