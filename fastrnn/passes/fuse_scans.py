"""Finds recurrences of matrix states that one kernel computes. The graph itself is unchanged.

    S = d * S + terms;    y = sum of q * S along one axis

A term is an outer product, or a matrix whose rows are scaled. `find_scans(graph)` finds the nodes of such an update and
of its read-out, whether they are written with products of matrices or with elementwise products and sums. It also finds
read-outs before the update: of the state, of the decayed state (a gated delta rule), or of the state with a term added
(the bonus of RWKV). What counts is only how values depend on each other and their dims, so whole sequences and streams
of a model find the same.

A state [K, 1] is a row: its axes are exchanged, and the kernel sees [1, K].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..graph import Graph, Node
from ..graph import dims as D
from ..graph.traverse import needed
from ..records import dataclass

TERMS = 2  # of an update


@dataclass(frozen=True)
class View:
    """The value `name`, with leading axes of size 1 up to the rank of the state, whose axis perm[i] is axis i here."""

    name: str
    perm: tuple[int, ...]


@dataclass(frozen=True)
class Term:
    """What is added to a state, or taken away: the product of at most two columns and w, a row or a matrix."""

    u: tuple[View, ...]
    w: View
    negative: bool


@dataclass(frozen=True)
class Scan:
    """One update of a state with at most one read-out, or one read-out of a state before its update.

    nodes : those that it computes, in the graph's order; the last one stands for all of them.
    state, root : the state before the step, and after it (None: it is only read).
    decay, rate : what the state is multiplied with: 1 if None; decay, or exp(rate * decay).
    terms : what is added to that.
    q, y : what the sum is read with, and the result; across: summed along the last axis, else along the one before.
    """

    nodes: tuple[Node, ...]
    state: View
    root: str | None
    decay: View | None
    rate: View | None
    terms: tuple[Term, ...]
    q: View | None = None
    y: View | None = None
    across: bool = False

    @property
    def names(self) -> set[str]:
        return {n.name for n in self.nodes}

    @property
    def leaves(self) -> tuple[View, ...]:
        found = (self.decay, self.rate, *(v for t in self.terms for v in (*t.u, t.w)), self.q)
        return tuple(v for v in found if v is not None)


def find_scans(graph: Graph, region: Mapping[str, int]) -> list[Scan]:
    """All scans of a graph; no node is in two. region: name of a node on a cycle -> which cycle."""
    if not graph.states and not region:
        return []
    finder, found, taken = _Finder(graph, region), [], set()
    for node in graph.nodes:
        if _is_sum(node):
            scans = finder.scans_of(node)
            if not any(scan.names & taken for scan in scans):
                found += scans
                taken |= {name for scan in scans for name in scan.names}
    return found


def _is_sum(node: Node) -> bool:
    return node.op == "binary" and node.attrs["fn"] in ("add", "sub")


def _is_product(node: Node) -> bool:
    return node.op == "binary" and node.attrs["fn"] == "mul" and node.inputs[0] != node.inputs[1]


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

    def factors(self, view: View, size: tuple, nodes: list[Node], shared: list[Node] | None) -> list[View]:
        """What a product consists of: parts that are smaller than it, or that are no products. Adds its nodes.

        shared: takes nodes that others read too; None: such a product is a part.
        """
        node, dims = self.makers.get(view.name), self.dims(view)
        if node is None or view.name in self.ends or dims[-2:] != size[-2:]:
            return [view]
        if len(self.readers.get(view.name, ())) != 1:
            if shared is None:
                return [view]
            nodes = shared
        if node.op == "transpose":
            parts = [View(node.inputs[0], _composed(view.perm, node.attrs["perm"]))]
        elif _is_product(node) or (node.op == "matmul" and self.is_outer(node)):
            parts = [View(i, view.perm) for i in node.inputs]
        else:
            return [view]
        nodes.append(node)
        return [f for part in parts for f in self.factors(part, size, nodes, shared)]

    def is_outer(self, node: Node) -> bool:
        a, b = (self.graph.values[i].dims for i in node.inputs)
        return len(a) > 1 and len(b) > 1 and a[-1] == 1 and b[-2] == 1

    # -- updates --
    def scans_of(self, node: Node) -> list[Scan]:
        """The scan of an update whose last sum is this node, and the read-outs before it."""
        for shared in ([], None):
            update = self.update(node, shared)
            if update is None:
                continue
            scans = [update, *self.earlier_reads(update, shared)]
            names = {name for scan in scans for name in scan.names}
            alone = all(n.name in names for n in shared or ()) and all(self.keeps_its_own(s, names) for s in scans)
            if alone and self.reads_what_is_made(scans):
                return scans
        return []

    def keeps_its_own(self, scan: Scan, names: set[str]) -> bool:
        """Whether only these nodes read what a scan computes, but for its results."""
        results = {scan.root, scan.y.name if scan.y else None}
        inner = {n.outputs[0] for n in scan.nodes} - results
        return not inner & self.ends and all(r.name in names for name in inner for r in self.readers.get(name, ()))

    def reads_what_is_made(self, scans: Sequence[Scan]) -> bool:
        """Whether no operand is the state itself, or a value that only these scans compute. If a matrix has one row or
        one column, a read-out of it has its dims, and a term can be a product of that read-out."""
        made = {o for scan in scans for n in scan.nodes for o in n.outputs if o}
        kept = {scan.y.name for scan in scans if scan.y} | {scans[0].root}
        return not {v.name for scan in scans for v in scan.leaves} & ((made - kept) | {scans[0].state.name})

    def update(self, node: Node, shared: list[Node] | None) -> Scan | None:
        """The scan whose state after a step is this sum. shared: takes nodes that others read too."""
        root, size, nodes = node.outputs[0], self.graph.values[node.outputs[0]].dims, list[Node]()
        if not self.is_plain(root):
            return None
        summands = self.summands(root, size, nodes)
        found = next(((k, *kept) for k, (name, minus) in enumerate(summands)
                      if not minus and (kept := self.kept(name, root, shared))), None)  # fmt: skip
        if found is None:
            return None
        k, state, decay, product = found
        perm = tuple(range(len(size)))
        if size[-1] == 1:
            perm = (*perm[:-2], perm[-1], perm[-2])
        if self.graph.values[state].dims != size:
            return None
        size = self.dims(View(root, perm))
        if product is not None:
            (nodes if self.alone(product.outputs[0]) else shared).append(product)
        terms = self.terms([s for i, s in enumerate(summands) if i != k], perm, size, nodes, shared)
        rates = self.decay(None if decay is None else View(decay, perm), size, nodes)
        if not terms or (rates[1] is not None and (len(terms) > 1 or not self.is_row(terms[0], size))):
            return None
        scan = self.with_read(Scan(tuple(nodes), View(state, perm), root, *rates, terms), size)
        if scan.y is None and not all(self.is_row(t, size) for t in terms):
            return None  # elementwise programs compute what is not read here
        return self.in_order(scan) if self.is_together(scan) and all(self.fits(v, size) for v in scan.leaves) else None

    def summands(self, name: str, size: tuple, nodes: list[Node], minus: bool = False) -> list[tuple[str, bool]]:
        """(value, whether it is taken away) of each part of a sum, in order. Adds the nodes of the sum."""
        node = self.makers.get(name)
        whole = node is not None and _is_sum(node) and self.graph.values[name].dims == size
        if not whole or (nodes and self.alone(name) is None):
            return [(name, minus)]
        nodes.append(node)
        a, b = node.inputs
        other = minus != (node.attrs["fn"] == "sub")
        return [*self.summands(a, size, nodes, minus), *self.summands(b, size, nodes, other)]

    def kept(self, name: str, root: str, shared: list[Node] | None) -> tuple | None:
        """(the state before the step, its decay or None, the node of their product or None) of a summand."""
        if self.before(name, root):
            return name, None, None
        product = self.makers.get(name) if shared is not None and name not in self.ends else self.alone(name)
        if product is None or not _is_product(product):
            return None
        k = next((k for k in (0, 1) if self.before(product.inputs[k], root)), None)
        return None if k is None else (product.inputs[k], product.inputs[1 - k], product)

    def terms(self, summands: Sequence[tuple], perm: tuple, size: tuple, nodes: list[Node], shared) -> tuple[Term, ...]:
        """The summands as terms; none if one is something else."""
        found = [self.term(View(name, perm), minus, size, nodes, shared) for name, minus in summands]
        return () if None in found or len(found) > TERMS else tuple(found)

    def term(self, view: View, negative: bool, size: tuple, nodes: list[Node], shared) -> Term | None:
        parts = self.factors(view, size, nodes, shared)
        wide = [v for v in parts if self.dims(v)[-1] != 1]
        columns = tuple(v for v in parts if self.dims(v)[-1] == 1)
        return Term(columns, wide[0], negative) if len(wide) == 1 and len(columns) <= 2 else None

    def is_row(self, term: Term, size: tuple) -> bool:
        """Whether a term is an outer product: its w is one row."""
        return size[-2] == 1 or self.dims(term.w)[-2] == 1

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

    def decay(self, view: View | None, size: tuple, nodes: list[Node]) -> tuple:
        """(decay, rate). An exponential of a whole matrix is computed by the kernel."""
        node = None if view is None else self.alone(view.name)
        if node is None or self.dims(view)[-2:] != size[-2:] or size[-2] == 1:
            return view, None
        if node.op == "unary" and node.attrs["fn"] == "exp":
            inside: list[Node] = [node]
            parts = self.factors(View(node.inputs[0], view.perm), size, inside, None)
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
        for nodes, q, y, across in self.reads(View(scan.root, scan.state.perm), size):
            if self.in_body(scan, nodes, (q,)) and scan.root not in self.made_before((q,)):
                return replace(scan, nodes=(*scan.nodes, *nodes), q=q, y=y, across=across)
        return scan

    def made_before(self, views: Sequence[View]) -> set[str]:
        """All that is computed for these values at the same step."""
        return {o for n in needed(self.graph, [v.name for v in views], makers=self.makers) for o in n.outputs if o}

    def in_body(self, scan: Scan, nodes: Sequence[Node], views: Sequence[View]) -> bool:
        """Whether these nodes of a read-out can be computed with the update: on the same cycle, or on none while the
        values that they read do not come from the cycle, as else they would have to come before and after it."""
        home, regions = self.home(scan), {self.region.get(n.name) for n in nodes}
        if home is None or regions == {home}:
            return regions == {home}
        if not regions <= {None, home}:
            return False
        made = {o for n in self.graph.nodes if self.region.get(n.name) == home for o in n.outputs if o}
        return not self.made_before(views) & made

    def reads(self, state: View, size: tuple) -> Iterator[tuple]:
        """(nodes, q, y, across) of each sum of a state's products along one of its last two axes."""
        for node in self.readers.get(state.name, ()):
            if node.op == "transpose" and node.outputs[0] not in self.ends:
                if len(self.readers.get(node.outputs[0], ())) == 1:
                    moved = View(node.outputs[0], _inverse_composed(state.perm, node.attrs["perm"]))
                    yield from (([node, *nodes], *rest) for nodes, *rest in self.reads(moved, size))
            elif _is_product(node):
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

    def earlier_reads(self, update: Scan, shared: list[Node] | None) -> list[Scan]:
        """Read-outs of the state before the update, decayed or with terms. The first one takes the shared nodes.

        They come before the update, as it depends on each of them or on a node that it shares with them.
        """
        size, perm = self.dims(View(update.root, update.state.perm)), update.state.perm
        before = {n.name for n in needed(self.graph, [update.root], makers=self.makers)}
        found: list[Scan] = []
        for nodes, decay, terms, name in self.previews(update, size, shared):
            for read, q, y, across in self.reads(View(name, perm), size):
                own = tuple({n.name: n for n in (*nodes, *read)}.values())
                scan = Scan(own, update.state, None, decay, None, terms, q, y, across)
                if self.in_body(update, own, scan.leaves) and all(self.fits(v, size) for v in scan.leaves):
                    found.append(self.in_order(scan))
        reads: list[Scan] = []
        taken, links = set[str](), {n.name for n in shared or ()}
        for scan in sorted(found, key=lambda s: self.place[s.nodes[-1].name]):
            own = tuple(n for n in scan.nodes if n.name not in taken)
            linked = links & {n.name for n in own} and update.root not in self.made_before(scan.leaves)
            if scan.nodes[-1].name not in taken and (linked or all(n.name in before for n in own)):
                reads.append(replace(scan, nodes=own))
                taken |= scan.names
        return reads

    def previews(self, update: Scan, size: tuple, shared: list[Node] | None) -> Iterator[tuple]:
        """(nodes, decay, terms, value) of each value that is the state before the update, decayed or with terms."""
        state, dims = update.state.name, self.graph.values[update.state.name].dims
        bases: list[tuple[tuple[Node, ...], View | None, str]] = [((), None, state)]
        if update.rate is None:
            bases += [((n,), update.decay, n.outputs[0]) for n in shared or () if state in n.inputs]
        for nodes, decay, base in bases:
            yield nodes, decay, (), base
            for node in self.readers.get(base, ()):
                out, minus = node.outputs[0], node.op == "binary" and node.attrs["fn"] == "sub"
                whole = _is_sum(node) and self.graph.values[out].dims == dims and out != update.root
                if not whole or self.alone(out) is None or (minus and node.inputs[0] != base):
                    continue
                own, other = [node], node.inputs[node.inputs[0] == base]
                terms = self.terms([(other, minus)], update.state.perm, size, own, None if shared is None else own)
                if terms:
                    yield (*nodes, *own), decay, terms, out


def _composed(perm: tuple, own: tuple) -> tuple:
    """The view's axes as axes of a transpose's input; own: its perm, of as many axes or fewer."""
    lead = len(perm) - len(own)
    whole = (*range(lead), *(p + lead for p in own))
    return tuple(whole[p] for p in perm)


def _inverse_composed(perm: tuple, own: tuple) -> tuple:
    """The view's axes as axes of a transpose's output."""
    return tuple(own.index(p) for p in perm)
