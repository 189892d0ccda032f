"""Finds recurrences of matrix states that one kernel computes. The graph itself is unchanged.

    S = d * S + outer(u, w);    y = sum of q * S along one axis

`find_scans(graph)` finds the nodes of such an update and of its read-out, whether they are written with products of
matrices or with elementwise products and sums. What counts is only how values depend on each other and their dims, so
whole sequences and streams of a model find the same.

A state [K, 1] is a row: its axes are exchanged, and the kernel sees [1, K].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ..graph import Graph, Node
from ..graph import dims as D
from ..graph.traverse import needed
from ..records import dataclass


@dataclass(frozen=True)
class View:
    """The value `name`, with leading axes of size 1 up to the rank of the state, whose axis perm[i] is axis i here."""

    name: str
    perm: tuple[int, ...]


@dataclass(frozen=True)
class Scan:
    """One update of a state with at most one read-out, or one read-out of a state before its update.

    nodes : those that it computes, in the graph's order; the last one stands for all of them.
    state, root : the state before the step, and after it (None: it is only read).
    decay, rate : what the state is multiplied with: 1 if None; decay, or exp(rate * decay).
    u, w : the factors of the column, and the row, of the outer product.
    q, y : what the state is read with, and the result; across: summed along the last axis, else along the one before.
    """

    nodes: tuple[Node, ...]
    state: View
    root: str | None
    decay: View | None
    rate: View | None
    u: tuple[View, ...]
    w: View | None
    q: View | None
    y: View | None
    across: bool

    @property
    def names(self) -> set[str]:
        return {n.name for n in self.nodes}

    @property
    def leaves(self) -> tuple[View, ...]:
        found = (self.decay, self.rate, *self.u, self.w, self.q)
        return tuple(v for v in found if v is not None)


def find_scans(graph: Graph, region: Mapping[str, int]) -> list[Scan]:
    """All scans of a graph; no node is in two. region: name of a node on a cycle -> which cycle."""
    if not graph.states and not region:
        return []
    finder, found, taken = _Finder(graph, region), [], set()
    for node in graph.nodes:
        if node.op != "binary" or node.attrs["fn"] != "add":
            continue
        for k in (0, 1):
            scan = finder.update(node, node.inputs[k], node.inputs[1 - k])
            if scan is None or scan.names & taken:
                continue
            found.append(scan)
            taken |= scan.names
            for read in finder.earlier_reads(scan):
                if not read.names & taken:
                    found.append(read)
                    taken |= read.names
            break
    return found


class _Finder:
    def __init__(self, graph: Graph, region: Mapping[str, int]):
        self.graph, self.region = graph, region
        self.makers, self.readers = graph.producers(), graph.consumers()
        self.place = {n.name: k for k, n in enumerate(graph.nodes)}
        self.ends = {*graph.outputs, *graph.states.values()}

    # -- values --
    def dims(self, view: View) -> tuple:
        """The dims of a view."""
        dims = self.graph.values[view.name].dims
        dims = (1,) * (len(view.perm) - len(dims)) + tuple(dims)
        return tuple(dims[p] for p in view.perm)

    def fits(self, view: View, size: tuple) -> bool:
        dims, value = self.dims(view), self.graph.values[view.name]
        return value.dtype == "float32" and len(value.dims) <= len(view.perm) and all(
            d in (1, s) for d, s in zip(dims, size, strict=True)
        )  # fmt: skip

    def alone(self, name: str) -> Node | None:
        """The node that makes a value that is read once, by one node, and is no output."""
        if name in self.ends or len(self.readers.get(name, ())) != 1:
            return None
        return self.makers.get(name)

    def factors(self, view: View, size: tuple, nodes: list[Node]) -> list[View]:
        """What a product consists of: parts that are smaller than it, or that are no products. Adds its nodes."""
        node, dims = self.alone(view.name), self.dims(view)
        if node is None or dims[-2:] != size[-2:]:
            return [view]
        times = node.op == "binary" and node.attrs["fn"] == "mul" and node.inputs[0] != node.inputs[1]
        if node.op == "transpose":
            parts = [View(node.inputs[0], _composed(view.perm, node.attrs["perm"]))]
        elif times or (node.op == "matmul" and self.is_outer(node)):
            parts = [View(i, view.perm) for i in node.inputs]
        else:
            return [view]
        nodes.append(node)
        return [f for part in parts for f in self.factors(part, size, nodes)]

    def is_outer(self, node: Node) -> bool:
        a, b = (self.graph.values[i].dims for i in node.inputs)
        return len(a) > 1 and len(b) > 1 and a[-1] == 1 and b[-2] == 1

    # -- updates --
    def update(self, node: Node, kept: str, added: str) -> Scan | None:
        """The scan whose state after a step is `kept` (the decayed state) + `added` (the outer product)."""
        root, nodes = node.outputs[0], [node]
        state, decay = self.before(kept, root), None
        if state is None:
            product = self.alone(kept)
            if product is None or product.op != "binary" or product.attrs["fn"] != "mul":
                return None
            k = next((k for k in (0, 1) if self.before(product.inputs[k], root)), None)
            if k is None:
                return None
            state, decay = product.inputs[k], product.inputs[1 - k]
            nodes.append(product)
        rank, size = len(self.graph.values[root].dims), self.graph.values[root].dims
        if not self.is_plain(root) or self.graph.values[state].dims != size:
            return None
        perm = tuple(range(rank))
        if size[-1] == 1:
            perm = (*perm[:-2], rank - 1, rank - 2)
        size = self.dims(View(root, perm))
        outer = self.outer(View(added, perm), size, nodes)
        rates = self.decay(None if decay is None else View(decay, perm), size, nodes)
        if outer is None or rates is None:
            return None
        scan = Scan(tuple(nodes), View(state, perm), root, *rates, *outer, None, None, False)
        scan = self.with_read(scan, size)
        return self.in_order(scan) if self.is_together(scan) and all(self.fits(v, size) for v in scan.leaves) else None

    def in_order(self, scan: Scan) -> Scan:
        return replace(scan, nodes=tuple(sorted(scan.nodes, key=lambda n: self.place[n.name])))

    def before(self, name: str, root: str) -> str | None:
        """`name` if it is the value `root` one step earlier."""
        node = self.makers.get(name)
        if node is None:
            return name if self.graph.states.get(name) == root else None
        return name if node.op == "state" and node.inputs[0] == root else None

    def is_plain(self, root: str) -> bool:
        """Whether a state has the axes: steps (on a cycle), batch, at most one more, and two of fixed sizes."""
        value = self.graph.values[root]
        if value.dtype != "float32" or len(value.dims) < 2 or not all(isinstance(d, int) for d in value.dims[-2:]):
            return False
        lead, cycle = list(value.dims[:-2]), self.region.get(self.makers[root].name) is not None
        if cycle and (not lead or lead.pop(0) != D.TIME):
            return False
        if lead.count(D.BATCH) > 1 or not all(d == D.BATCH or isinstance(d, int) for d in lead):
            return False
        return sum(d != 1 for d in lead if d != D.BATCH) <= 1

    def outer(self, view: View, size: tuple, nodes: list[Node]) -> tuple | None:
        """(factors of the column, the row) of an outer product."""
        parts = self.factors(view, size, nodes)
        rows = [v for v in parts if self.dims(v)[-1] != 1]
        columns = tuple(v for v in parts if self.dims(v)[-1] == 1)
        if len(rows) != 1 or len(columns) > 2 or (size[-2] != 1 and self.dims(rows[0])[-2] != 1):
            return None
        return columns, rows[0]

    def decay(self, view: View | None, size: tuple, nodes: list[Node]) -> tuple:
        """(decay, rate). An exponential of a whole matrix is computed by the kernel."""
        node = None if view is None else self.alone(view.name)
        if node is None or self.dims(view)[-2:] != size[-2:] or size[-2] == 1:
            return view, None
        if node.op == "unary" and node.attrs["fn"] == "exp":
            inside: list[Node] = [node]
            parts = self.factors(View(node.inputs[0], view.perm), size, inside)
            rate = [v for v in parts if self.dims(v)[-1] == 1]
            if len(parts) == 2 and len(rate) == 1 and all(self.fits(v, size) for v in parts):
                nodes += inside
                return next(v for v in parts if v is not rate[0]), rate[0]
        return view, None

    def is_together(self, scan: Scan) -> bool:
        """Whether no node belongs to another cycle than the update's."""
        home = self.home(scan)
        return all(self.region.get(n.name) in (None, home) for n in scan.nodes)

    def home(self, scan: Scan) -> int | None:
        """The cycle of the update."""
        return self.region.get(self.makers[scan.root].name)

    # -- read-outs --
    def with_read(self, scan: Scan, size: tuple) -> Scan:
        """The scan with a read-out of its new state, if there is one that needs nothing made from that state."""
        home = self.home(scan)
        made = {scan.root}
        if home is not None:  # what else the cycle makes would have to come before and after it
            made |= {o for n in self.graph.nodes if self.region.get(n.name) == home for o in n.outputs if o}
        for nodes, q, y, across in self.reads(View(scan.root, scan.state.perm), size):
            inside = home is not None and all(self.region.get(n.name) == home for n in nodes)
            before = {o for n in needed(self.graph, [q.name], makers=self.makers) for o in n.outputs}
            if scan.root not in before and (inside or not before & made):
                return replace(scan, nodes=(*scan.nodes, *nodes), q=q, y=y, across=across)
        return scan

    def reads(self, state: View, size: tuple) -> Iterator[tuple]:
        """(nodes, q, y, across) of each sum of a state's products along one of its last two axes."""
        for node in self.readers.get(state.name, ()):
            if node.op == "transpose" and node.outputs[0] not in self.ends:
                if len(self.readers.get(node.outputs[0], ())) == 1:
                    moved = View(node.outputs[0], _inverse_composed(state.perm, node.attrs["perm"]))
                    yield from (([node, *nodes], *rest) for nodes, *rest in self.reads(moved, size))
            elif node.op == "binary" and node.attrs["fn"] == "mul" and node.inputs[0] != node.inputs[1]:
                yield from self.read_by_sum(node, state, size)
            elif node.op == "matmul" and node.inputs[0] != node.inputs[1]:
                yield from self.read_by_matmul(node, state, size)

    def read_by_sum(self, node: Node, state: View, size: tuple) -> Iterator[tuple]:
        out = node.outputs[0]
        after = self.readers.get(out, ())
        if out in self.ends or len(after) != 1 or after[0].op != "reduce" or after[0].attrs["fn"] != "sum":
            return
        q, axes = View(node.inputs[node.inputs[0] == state.name], state.perm), tuple(after[0].attrs["axes"])
        if self.dims(View(out, state.perm)) != size or not self.fits(q, size):
            return
        for across in (False, True):
            summed, other = (-1, -2) if across else (-2, -1)
            if axes == (state.perm[summed],) and self.dims(q)[other] == 1 and self.dims(q)[summed] == size[summed]:
                yield [node, after[0]], q, View(after[0].outputs[0], state.perm), across

    def read_by_matmul(self, node: Node, state: View, size: tuple) -> Iterator[tuple]:
        rank, left = len(state.perm), node.inputs[1] == state.name
        turned = (*state.perm[:-2], state.perm[-1], state.perm[-2])
        q = View(node.inputs[0] if left else node.inputs[1], turned)
        dims = self.graph.values[q.name].dims
        if len(dims) < 2 or dims[-2 if left else -1] != 1 or not self.fits(q, size):
            return
        if len(self.graph.values[node.outputs[0]].dims) != rank or set(state.perm[-2:]) != {rank - 1, rank - 2}:
            return
        across = (state.perm[-1] == rank - 1) != left
        summed = -1 if across else -2
        if self.dims(q)[summed] == size[summed] and self.dims(View(node.outputs[0], state.perm))[summed] == 1:
            yield [node], q, View(node.outputs[0], state.perm), across

    def earlier_reads(self, scan: Scan) -> Iterator[Scan]:
        """Read-outs of the state before the update."""
        size, home = self.dims(View(scan.root, scan.state.perm)), self.home(scan)
        before = {n.name for n in needed(self.graph, [scan.root], makers=self.makers)}
        for nodes, q, y, across in self.reads(scan.state, size):
            inside = all(self.region.get(n.name) == home for n in nodes)
            if inside and all(n.name in before for n in nodes):
                yield self.in_order(Scan(tuple(nodes), scan.state, None, None, None, (), None, q, y, across))


def _composed(perm: tuple, own: tuple) -> tuple:
    """The view's axes as axes of a transpose's input; own: its perm, of as many axes or fewer."""
    lead = len(perm) - len(own)
    whole = (*range(lead), *(p + lead for p in own))
    return tuple(whole[p] for p in perm)


def _inverse_composed(perm: tuple, own: tuple) -> tuple:
    """The view's axes as axes of a transpose's output."""
    return tuple(own.index(p) for p in perm)
