"""Attention written out as products and a softmax becomes one node, and its masks become what they mean.

    softmax(scale * q k' [softcapped] [+ bias | where(mask)]) v        [weights that are NaN replaced by 0]

A mask that depends on nothing but positions is not matched by how it is written (exporters write triangles, ranges,
comparisons, slices of a stored table) but by what it is: it is computed, at a length beyond every number that it is
made of, and compared with "no later step" and "no later step, and of the earlier ones the last w".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from .. import dims as D
from .. import reference
from ..errors import FastRNNError
from ..graph import Graph, Node, Value
from .dead import remove_dead_nodes

LARGEST_PROOF = 2048  # steps at which a mask is computed at most: 4 Mi elements
LEAST_PROOF = 16


def fuse_attention(graph: Graph) -> Graph:
    """matmul, softmax, matmul as one `attention` node, with its scale, softcap, mask and bias.

    Only where nobody else reads the scores or weights.
    """
    editor = _Editor(graph)
    for node in graph.nodes:
        found = editor.match(node)
        if found is not None:
            editor.emit(node, found)
        else:
            editor.nodes.append(node)
    if not editor.notes:
        return graph
    notes = (*graph.notes, *editor.notes)
    changed = graph.replace(
        nodes=tuple(editor.nodes), values=editor.values, constants=editor.constants, notes=notes
    )  # fmt: skip
    return remove_dead_nodes(changed)


@dataclass
class _Found:
    """One attention: names of q [.., Tq, d], of k turned round [.., d, Tk] and of v [.., Tk, dv]."""

    q: str
    k_turned: str
    v: str
    scale: float = 1.0
    softcap: float = 0.0
    safe: bool = False
    causal: bool = False
    window: int = 0
    biases: list = field(default_factory=list)  # names of what is added to the scores


class _Editor:
    def __init__(self, graph: Graph):
        self.graph, self.makers, self.readers = graph, graph.producers(), graph.consumers()
        self.nodes: list[Node] = []
        self.values, self.constants = dict(graph.values), dict(graph.constants)
        self.notes: list[str] = []
        self.labels = {n.name for n in graph.nodes}

    # -- reading --
    def maker(self, name: str, *ops: str) -> Node | None:
        """The node of one of `ops` that makes a value which nobody else reads; else None."""
        node = self.makers.get(name)
        alone = len(self.readers.get(name, ())) == 1 and name not in self.graph.outputs
        return node if node is not None and node.op in ops and alone else None

    def number(self, name: str | None) -> float | None:
        """The one number that a constant is."""
        array = self.graph.constants.get(name)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.ndim < 2 else None

    def match(self, node: Node) -> _Found | None:
        """The attention whose last product `node` is."""
        if node.op != "matmul" or len(self.graph.values[node.inputs[0]].dims) < 3:
            return None
        weights, safe = node.inputs[0], False
        guarded = self._guarded(weights)
        if guarded is not None:
            weights, safe = guarded, True
        soft = self.makers.get(weights) if safe else self.maker(weights, "softmax")
        if soft is None or soft.op != "softmax" or soft.attrs["log"]:
            return None
        if soft.attrs["axis"] != len(self.graph.values[weights].dims) - 1:
            return None
        found = _Found("", "", node.inputs[1], safe=safe)
        scores = self._without_bias(soft.inputs[0], found)
        product = self._product(scores, found)
        if product is None:
            return None
        found.q, found.k_turned = product
        return self._judged(found, self.graph.values[weights])

    def _guarded(self, name: str) -> str | None:
        """w of where(isnan(w), 0, w), as PyTorch guards a row that sees nothing; isnan is not(equal(w, w))."""
        pick = self.maker(name, "where")
        if pick is None or self.number(pick.inputs[1]) != 0:
            return None
        w = pick.inputs[2]
        test = self.maker(pick.inputs[0], "unary")
        same = self.maker(test.inputs[0], "binary") if test is not None and test.attrs["fn"] == "not" else None
        if same is None or same.attrs["fn"] != "equal" or same.inputs != (w, w):
            return None
        return w if {n.name for n in self.readers[w]} <= {pick.name, same.name} else None

    def _without_bias(self, name: str, found: _Found) -> str:
        """The scores before masks and biases, which are noted in `found`."""
        while True:
            node = self.maker(name, "binary", "where")
            if node is None:
                return name
            inner = self._added(node) if node.op == "binary" else self._hidden(node)
            if inner is None:
                return name
            name, bias = inner
            found.biases.append(bias)

    def _added(self, node: Node) -> tuple | None:
        """(scores, what is added to them): the scores are the side that leads to the product."""
        if node.attrs["fn"] != "add":
            return None
        for scores, bias in (node.inputs, node.inputs[::-1]):
            if self._leads_to_product(scores):
                return scores, bias
        return None

    def _hidden(self, node: Node) -> tuple | None:
        """(scores, the `where` that hides some of them by a very negative number)."""
        for k in (1, 2):
            low = self.number(node.inputs[3 - k])
            if low is not None and low <= -1e4 and self._leads_to_product(node.inputs[k]):
                return node.inputs[k], (node.inputs[0], k == 1, low)
        return None

    def _leads_to_product(self, name: str) -> bool:
        for _ in range(16):
            node = self.maker(name, "binary", "where", "unary", "matmul")
            if node is None:
                return False
            if node.op == "matmul":
                return True
            sides = node.inputs[1:] if node.op == "where" else node.inputs
            live = [i for i in sides if self.maker(i, "binary", "where", "unary", "matmul") is not None]
            if len(live) != 1:
                return any(self._leads_to_product(i) for i in live)
            name = live[0]
        return False

    def _product(self, name: str, found: _Found) -> tuple[str, str] | None:
        """(q, k turned round) of the product that makes the scores, factors taken into the scale."""
        name, scale = self._scaled(name)
        node = self.maker(name, "unary", "matmul")
        if node is not None and node.op == "unary" and node.attrs["fn"] == "tanh" and scale > 0:
            found.softcap = scale
            name, inner = self._scaled(node.inputs[0])
            scale = inner * found.softcap  # the node divides by the softcap itself
            node = self.maker(name, "matmul")
        if node is None or node.op != "matmul" or any(len(self.graph.values[i].dims) < 2 for i in node.inputs):
            return None
        found.scale *= scale
        sides = []
        for side in node.inputs:
            side, factor = self._scaled(side)
            found.scale *= factor
            sides.append(side)
        return sides[0], sides[1]

    def _scaled(self, name: str) -> tuple[str, float]:
        """x and c of c * x or x / c, where nobody else reads it."""
        factor = 1.0
        while True:
            node = self.maker(name, "binary")
            if node is None or node.attrs["fn"] not in ("mul", "div"):
                return name, factor
            numbers = [self.number(i) for i in node.inputs]
            if node.attrs["fn"] == "div" and numbers[1]:
                name, factor = node.inputs[0], factor / numbers[1]
            elif node.attrs["fn"] == "mul" and (numbers[0] is None) != (numbers[1] is None):
                name = node.inputs[numbers[0] is not None]
                factor *= numbers[0] if numbers[0] is not None else numbers[1]
            else:
                return name, factor

    # -- masks --
    def _judged(self, found: _Found, weights: Value) -> _Found | None:
        """Biases that only say which steps are seen become `causal` and `window`; None where one can't be kept."""
        kept = []
        for bias in found.biases:
            width = self._seen(bias, weights)
            if width is None:
                kept.append(bias)
                continue
            found.causal = True
            if width and (not found.window or width < found.window):
                found.window = width
        found.biases = kept
        return found

    def _seen(self, bias, weights: Value) -> int | None:
        """How many steps back a query sees, itself counted, 0 for all; None where the bias is another one."""
        roots = [bias] if isinstance(bias, str) else [bias[0]]
        nodes = self._made_of(roots[0])
        if nodes is None or weights.dims[-1] != weights.dims[-2] or isinstance(weights.dims[-1], int):
            return None
        numbers = [abs(self.graph.constants[i]).max() for n in nodes for i in n.inputs if self._is_count(i)]
        tables = [self.graph.values[n.inputs[0]].dims[n.attrs["axis"]] for n in nodes if n.op == "gather"]
        length = max([LEAST_PROOF, *(2 * int(n) + 3 for n in numbers if n < LARGEST_PROOF)])
        length = min([length, LARGEST_PROOF, *(t for t in tables if isinstance(t, int))])
        try:
            table = self._computed(roots[0], nodes, length)
        except FastRNNError:
            return None
        if not isinstance(bias, str):
            shown, low = (table, bias[2]) if bias[1] else (~table, bias[2])
            table = np.where(shown, 0.0, low)
        return _width(table, length)

    def _made_of(self, name: str) -> list[Node] | None:
        """The nodes that make a value of positions alone, in order; None where an input has a part in it."""
        wanted, stack = set(), [name]
        while stack:
            value = stack.pop()
            node = self.makers.get(value)
            if node is None:
                if value not in self.graph.constants:
                    return None
            elif node.name not in wanted:
                if node.op in ("cell", "state"):
                    return None
                wanted.add(node.name)
                stack += [i for i in node.inputs if i is not None]
        return [n for n in self.graph.nodes if n.name in wanted]

    def _is_count(self, name: str | None) -> bool:
        array = self.graph.constants.get(name)
        return array is not None and array.size == 1 and array.dtype.kind in "if" and bool(np.isfinite(array).all())

    def _computed(self, name: str, nodes: list[Node], length: int) -> np.ndarray:
        """The mask at `length` steps."""
        part = self.graph.replace(inputs=(), outputs=(name,), nodes=tuple(nodes), states={}, requires=())
        names = {s for n in nodes for o in n.outputs if o for d in self.graph.values[o].dims for s in D.symbols(d)}
        (table,) = reference.run(part, {}, sizes=dict.fromkeys(names, 1) | {"time": length})
        return table

    # -- writing --
    def emit(self, node: Node, found: _Found) -> None:
        """The attention node in place of its last product, with what brings values to its four axes and back."""
        start = len(self.nodes)
        dims = self.graph.values[node.outputs[0]].dims
        lead = _lead(dims[:-2])
        q, v = self._four(node, found.q, lead), self._four(node, found.v, lead)
        k = found.k_turned
        rank = len(self.values[k].dims)
        perm = (*range(rank - 2), rank - 1, rank - 2)
        k = self._four(node, self._add("transpose", f"{node.name}.k", (k,), {"perm": perm}), lead)
        inputs = [q, k, v]
        if None in inputs:
            self._give_up(start, node)
            return
        bias = self._bias(node, found, lead, dims)
        if bias is not None:
            inputs.append(bias)
        attrs = {
            "scale": found.scale, "softcap": found.softcap, "causal": found.causal, "window": found.window,
            "offset": 0, "safe": found.safe,
        }  # fmt: skip
        self.labels.discard(node.name)
        try:
            out = self._add("attention", node.name, tuple(inputs), attrs)
        except FastRNNError:
            self._give_up(start, node)
            return
        joined = self._fresh(f"{node.name}.joined", self.labels)
        self.nodes.append(Node("reshape", joined, (out,), node.outputs, {"dims": dims}))
        shown = "causal " if found.causal else ""
        window = f" over the last {found.window} steps" if found.window else ""
        self.notes.append(f"{node.name}: products and softmax are one {shown}attention{window}")

    def _give_up(self, start: int, node: Node) -> None:
        del self.nodes[start:]
        self.nodes.append(node)

    def _four(self, node: Node, name: str, lead: tuple) -> str | None:
        """A value [.., length, features] as [batch, heads, length, features]."""
        have = self.values[name].dims
        dims = (*_lead(have[:-2]), *have[-2:])
        if len(dims) == 4 and D.product(dims[:2]) == D.product(lead) and dims[:2] != lead:
            dims = (*lead, *have[-2:])
        if D.product(dims) != D.product(have):
            return None
        if dims == have:
            return name
        return self._add("reshape", f"{node.name}.heads", (name,), {"dims": dims})

    def _bias(self, node: Node, found: _Found, lead: tuple, dims: tuple) -> str | None:
        """The sum of all biases that are left, as [.., .., Tq, Tk]."""
        total = None
        for bias in found.biases:
            name = bias if isinstance(bias, str) else self._as_number(node, bias)
            name = self._four_bias(node, name, lead, dims)
            add = {"fn": "add"}
            total = name if total is None else self._add("binary", f"{node.name}.bias", (total, name), add)
        return total

    def _as_number(self, node: Node, bias: tuple) -> str:
        """A mask as what it adds to the scores: 0, or a number that leaves nothing of them."""
        mask, shown, low = bias
        zero, least = (self._constant(f"{node.name}.{i}", np.float32(v)) for i, v in enumerate((0.0, low)))
        return self._add("where", f"{node.name}.mask", (mask, *((zero, least) if shown else (least, zero))), {})

    def _four_bias(self, node: Node, name: str, lead: tuple, dims: tuple) -> str:
        have = self.values[name].dims
        rank = len(dims)
        if rank == 4 or len(have) <= 2:
            return name
        full = ((1,) * (rank - len(have)) + tuple(have))[: rank - 2]
        four = (*(lead if _lead(full) == lead or D.product(full) == D.product(lead) else _lead(full)), *have[-2:])
        return name if four == have else self._add("reshape", f"{node.name}.bias_heads", (name,), {"dims": four})

    def _constant(self, base: str, array) -> str:
        name = self._fresh(base, self.values)
        array = np.asarray(array).reshape(())
        self.values[name], self.constants[name] = Value(name, str(array.dtype), ()), array.copy()
        return name

    def _add(self, op: str, label: str, inputs: tuple, attrs: dict) -> str:
        from ..shapes import infer

        ((dtype, dims),) = infer(op, [self.values[i] for i in inputs], attrs)
        name = self._fresh(f"{label}:out", self.values)
        label = self._fresh(label, self.labels)
        self.labels.add(label)
        self.values[name] = Value(name, dtype, tuple(dims))
        self.nodes.append(Node(op, label, inputs, (name,), attrs))
        return name

    @staticmethod
    def _fresh(name: str, taken) -> str:
        while name in taken:
            name += "'"
        return name


def _lead(dims: tuple) -> tuple:
    """The axes before length and features as batch and heads: a product that holds the batch comes apart."""
    if not dims:
        return (1, 1)
    if len(dims) == 1:
        heads = D.exact_div(dims[0], D.BATCH) if isinstance(dims[0], D.Dim) else None
        return (dims[0], 1) if heads is None else (D.BATCH, heads)
    return (dims[0], D.product(dims[1:]))


def _width(table: np.ndarray, length: int) -> int | None:
    """How many steps a query sees by a table of biases; 0 for all before it; None where it is no such table."""
    if table.ndim < 2 or table.shape[-2:] != (length, length) or table.size != length * length:
        return None
    table = table.reshape(length, length)
    seen = table == 0
    if not (table[~seen] <= -1e4).all():
        return None
    apart = np.arange(length)[:, None] - np.arange(length)
    width = int(seen[:, 0].sum())
    if not (seen == ((apart >= 0) & (apart < width))).all() or not width:
        return None
    return 0 if width == length else width


def merge_steps(graph: Graph) -> Graph:
    """Step numbers that are the same are counted once."""
    first: dict[tuple, str] = {}
    renamed: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(renamed.get(i, i) for i in node.inputs)) if renamed else node
        if node.op == "steps" and node.outputs[0] not in graph.outputs:
            key = (node.attrs["dims"], node.attrs["start"])
            if key in first:
                renamed[node.outputs[0]] = first[key]
                continue
            first[key] = node.outputs[0]
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes)) if renamed else graph
