"""Fuses attention written as products and a softmax into one node, and simplifies its masks.

    softmax(scale * q k' [softcapped] [+ bias | where(mask)]) v        [weights that are NaN replaced by 0]

A mask that only says which steps are seen becomes `causal` and `window` (attention_masks.py). Any other mask stays as
the program wrote it: an addition becomes the node's bias, a `where` its mask and bias.
"""

from __future__ import annotations

from dataclasses import field, replace

import numpy as np

from ..errors import FastRNNError
from ..graph import Graph, Node
from ..graph import dims as D
from ..graph.bands import HIDING
from ..graph.traverse import fresh
from ..records import dataclass
from .attention_masks import WEAK, Bias, Positions, seen_alone
from .dead import remove_dead_nodes
from .moves import simplify_moves
from .patch import Patch


def fuse_attention(graph: Graph) -> Graph:
    """matmul, softmax, matmul as one `attention` node, with its scale, softcap, mask and bias.

    Only if no other node reads the scores or weights. Weights may be transposed, or their batch and heads merged, on
    the way, because products of several axes are written like that.
    """
    if not any(n.op == "softmax" for n in graph.nodes) and not any(n.op == "attention" for n in graph.nodes):
        return graph
    simple = simplify_moves(graph)
    editor = _AttentionEditor(simple)
    for node in simple.nodes:
        found = editor.match(node)
        if found is not None:
            editor.emit(node, found)
        else:
            editor.read_mask(node)
    return remove_dead_nodes(editor.patch.done(*editor.notes)) if editor.notes else graph


@dataclass
class _Found:
    """One attention: names of q [.., Tq, d], transposed k [.., d, Tk] and v [.., Tk, dv]."""

    q: str
    k_turned: str
    v: str
    scale: float = 1.0
    softcap: float = 0.0
    safe: bool = False
    causal: bool = False
    window: int = 0
    low: float = -np.inf  # the largest number that hides a step covered by `causal` and `window`
    turned: bool = False  # the scores, as far as they have been traced back, are [.., Tk, Tq]
    single: bool = False  # there is one query, or one key
    biases: list = field(default_factory=list)  # the outermost first


class _AttentionEditor:
    def __init__(self, graph: Graph):
        self.graph, self.makers, self.readers = graph, graph.producers(), graph.consumers()
        self.patch, self.values = (patch := Patch(graph)), patch.values
        self.notes: list[str] = []
        self.positions = Positions(graph)

    # -- reading --
    def maker(self, name: str, *ops: str) -> Node | None:
        """The node that makes a value, if it is one of `ops` and the value has a single reader; else None."""
        node = self.makers.get(name)
        alone = len(self.readers.get(name, ())) == 1 and name not in self.graph.outputs
        return node if node is not None and node.op in ops and alone else None

    def number(self, name: str | None) -> float | None:
        """The value of a constant that holds a single number."""
        array = self.graph.constants.get(name)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.ndim < 2 else None

    def match(self, node: Node) -> _Found | None:
        """The attention that ends in the product `node`."""
        if node.op != "matmul" or len(self.graph.values[node.inputs[0]].dims) < 3:
            return None
        found = _Found("", "", node.inputs[1])
        found.single = 1 in self.graph.values[node.inputs[0]].dims[-2:]
        weights = self._followed(node.inputs[0], found)
        guarded = self._guarded(weights)
        if guarded is not None:
            weights, found.safe = guarded, True
        soft = self.makers.get(weights) if found.safe else self.maker(weights, "softmax")
        if soft is None or soft.op != "softmax" or soft.attrs["log"]:
            return None
        axes = [i for i, d in enumerate(self.graph.values[weights].dims) if found.single or d != 1]
        if soft.attrs["axis"] != axes[-2 if found.turned else -1]:
            return None
        scores = self._without_bias(soft.inputs[0], found)
        product = self._product(scores, found)
        if product is None or any(n in self.graph.constants for n in (*product, found.v)):
            return None
        found.q, found.k_turned = product
        found.biases, bands = seen_alone(self.positions, found.biases)
        found.causal, found.window = bool(bands), min((b.width for b in bands if b.width), default=0)
        found.low = max((b.low for b in bands), default=-np.inf)
        return found

    def _followed(self, name: str, found: _Found) -> str:
        """Trace back through moves that keep or swap (noted) the last two axes, and keep the order of all others.

        Axes of size one don't count. If there is one query or one key, nothing is traced.
        """
        while not found.single:
            node = self.maker(name, "reshape", "transpose")
            if node is None:
                break
            before = self.graph.values[node.inputs[0]].dims
            if node.op == "reshape":
                two = [[d for d in dims if d != 1][-2:] for dims in (before, node.attrs["dims"])]
                if two[0] != two[1] or len(two[0]) < 2:
                    break
            else:
                kept = [p for p in node.attrs["perm"] if before[p] != 1]
                *lead, row, column = sorted(kept)
                if kept not in ([*lead, row, column], [*lead, column, row]):
                    break
                found.turned ^= kept != sorted(kept)
            name = node.inputs[0]
        return name

    def _guarded(self, name: str) -> str | None:
        """w of where(isnan(w), 0, w), PyTorch's guard for a row that sees nothing. isnan is not(equal(w, w))."""
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
        """The scores before masks and biases, which are recorded in `found`."""
        while True:
            name = self._followed(name, found)
            node = self.maker(name, "binary", "where")
            inner = None if node is None else self._added(node) if node.op == "binary" else self._hidden(node)
            if inner is None or (not found.single and 1 in self.graph.values[name].dims[-2:]):
                return name
            name, bias = inner
            bias.dims, bias.turned = self.graph.values[node.outputs[0]].dims, found.turned
            found.biases.append(bias)

    def _added(self, node: Node) -> tuple | None:
        """(scores, what is added to them). The scores are the side that leads to the product."""
        sides = [node.inputs] if node.attrs["fn"] == "sub" else [node.inputs, node.inputs[::-1]]
        for scores, bias in sides if node.attrs["fn"] in ("add", "sub") else ():
            if self._leads_to_product(scores):
                return scores, Bias(bias, node.attrs["fn"], (), False)
        return None

    def _hidden(self, node: Node) -> tuple | None:
        """(scores, the `where` that hides some of them with a very negative number)."""
        for k in (1, 2):
            low = self.number(node.inputs[3 - k])
            if low is not None and low <= HIDING and self._leads_to_product(node.inputs[k]):
                return node.inputs[k], Bias(node.inputs[0], "show" if k == 1 else "hide", (), False, low)
        return None

    def _leads_to_product(self, name: str) -> bool:
        """Whether a value comes from a product followed only by elementwise operations."""
        steps = ("binary", "where", "unary", "matmul", "reshape", "transpose")
        for _ in range(16):
            node = self.maker(name, *steps)
            if node is None:
                return False
            if node.op == "matmul":
                return True
            sides = node.inputs[1:] if node.op == "where" else node.inputs
            live = [i for i in sides if self.maker(i, *steps) is not None]
            if len(live) != 1:
                return any(self._leads_to_product(i) for i in live)
            name = live[0]
        return False

    def _product(self, name: str, found: _Found) -> tuple[str, str] | None:
        """(q, transposed k) of the product that makes the scores; factors move into the scale."""
        name, scale = self._scaled(name, found)
        node = self.maker(name, "unary", "matmul")
        if node is not None and node.op == "unary" and node.attrs["fn"] == "tanh" and scale > 0:
            found.softcap = scale
            name, inner = self._scaled(node.inputs[0], found)
            scale = inner * found.softcap  # the node itself divides by the softcap
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

    def _scaled(self, name: str, found: _Found | None = None) -> tuple[str, float]:
        """x and c of c * x or x / c, if it has no other reader. found: for scores; they may be transposed in
        between."""
        factor = 1.0
        while True:
            name = name if found is None else self._followed(name, found)
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
    def read_mask(self, node: Node) -> None:
        """Remove the bias of an attention node if it only says which steps are seen."""
        if node.op != "attention" or len(node.inputs) != 4 or node.attrs["offset"] != 0:
            return
        q, k = (self.graph.values[i].dims for i in node.inputs[:2])
        _, bands = seen_alone(self.positions, [Bias(node.inputs[3], "add", (*q[:3], k[2]), False)])
        if not bands:
            return
        width = bands[0].width
        before = node.attrs["window"]
        window = min(width, before) if width and before else width or before
        self.notes.append(f"{node.name}: its mask shows no later step" + (f" and {window} in all" if window else ""))
        attrs = dict(node.attrs) | {"causal": True, "window": window}
        self.patch.replace(node, replace(node, inputs=node.inputs[:3], attrs=attrs))

    # -- writing --
    def emit(self, node: Node, found: _Found) -> None:
        """Put the attention node in place of its last product, with reshapes to its four axes and back."""
        dims = self.graph.values[node.outputs[0]].dims
        lead = _lead(dims[:-2])
        q, k = found.q, found.k_turned
        if found.turned:  # the program computes k q', the transpose of q k'
            q, k = self._turned(node, k), q
        else:
            k = self._turned(node, k)
        q, k, v = (self._four(node, name, lead) for name in (q, k, found.v))
        inputs = [q, k, v]
        if None in inputs:
            self.patch.made = []
            return
        attrs = {
            "scale": found.scale, "softcap": found.softcap, "causal": found.causal, "window": found.window,
            "offset": 0, "safe": found.safe,
        }  # fmt: skip
        self.patch.labels.discard(node.name)
        try:
            inputs += self._bias_and_mask(node, found, lead)
            while inputs[-1] is None:
                inputs.pop()
            out = self._add("attention", node.name, tuple(inputs), attrs)
        except FastRNNError:
            self.patch.made = []
            return
        joined = fresh(f"{node.name}.joined", self.patch.labels)
        self.patch.replace(node, Node("reshape", joined, (out,), node.outputs, {"dims": dims}))
        shown = "causal " if found.causal else ""
        window = f" over the last {found.window} steps" if found.window else ""
        weak = f"; its mask of {found.low:g} hides a step from scores above {found.low:g}" if found.low > WEAK else ""
        self.notes.append(f"{node.name}: products and softmax are one {shown}attention{window}{weak}")

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

    def _turned(self, node: Node, name: str) -> str:
        """The value with its last two axes swapped."""
        rank = len(self.values[name].dims)
        perm = (*range(rank - 2), rank - 1, rank - 2)
        return self._add("transpose", f"{node.name}.turned", (name,), {"perm": perm})

    def _bias_and_mask(self, node: Node, found: _Found, lead: tuple) -> list[str | None]:
        """Inputs 3 and 4 of the node: all that is done to the scores, innermost first, as [.., .., Tq, Tk].

        Where(m, s, fill) is (s where m, else 0) + (0 where m, else fill). What was added to s before stays with s.
        """
        added, kept = None, None
        for bias in reversed(found.biases):
            name = self._four_bias(node, bias.name, bias, lead)
            if bias.fn in ("add", "sub"):
                if bias.fn == "sub":
                    name = self._add("unary", f"{node.name}.less", (name,), {"fn": "neg", "alpha": 0.0, "beta": 0.0})
                label = f"{node.name}.bias"
                added = name if added is None else self._add("binary", label, (added, name), {"fn": "add"})
                continue
            if bias.fn == "hide":
                name = self._add("unary", f"{node.name}.shown", (name,), {"fn": "not", "alpha": 0.0, "beta": 0.0})
            kept = name if kept is None else self._add("binary", f"{node.name}.mask", (kept, name), {"fn": "and"})
            before = self.patch.constant(f"{node.name}.0", np.array(0.0, np.float32)) if added is None else added
            fill = self.patch.constant(f"{node.name}.1", np.array(bias.low, np.float32))
            added = self._add("where", f"{node.name}.fill", (name, before, fill), {})
        return [added, kept]

    def _four_bias(self, node: Node, name: str, bias: Bias, lead: tuple) -> str:
        """A bias of scores with `bias.dims`, reshaped to [batch, heads, Tq, Tk]."""
        have, rank = self.values[name].dims, len(bias.dims)
        if bias.turned and have:
            have = have if len(have) > 1 else (1, *have)
            if have != self.values[name].dims:
                name = self._add("reshape", f"{node.name}.bias_row", (name,), {"dims": have})
            name = self._turned(node, name)
            have = self.values[name].dims
        if rank == 4 or len(have) <= 2:
            return name
        full = ((1,) * (rank - len(have)) + tuple(have))[: rank - 2]
        four = (*(lead if D.product(full) == D.product(lead) else _lead(full)), *have[-2:])
        return name if four == have else self._add("reshape", f"{node.name}.bias_heads", (name,), {"dims": four})

    def _add(self, op: str, label: str, inputs: tuple, attrs: dict) -> str:
        return self.patch.add(op, inputs, attrs, label, f"{label}:out")


def _lead(dims: tuple) -> tuple:
    """The axes before length and features as batch and heads. A product that contains the batch is split."""
    if not dims:
        return (1, 1)
    if len(dims) == 1:
        heads = D.exact_div(dims[0], D.BATCH) if isinstance(dims[0], D.Dim) else None
        return (dims[0], 1) if heads is None else (D.BATCH, heads)
    return (dims[0], D.product(dims[1:]))


def merge_steps(graph: Graph) -> Graph:
    """Merge identical step numbers into one node."""
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
