"""Detects recurrences written in parallel with running sums, a form that fails in float32 after some steps.

    h = exp(a) * cumsum(z * exp(-a)), a = cumsum(log keep)            [minGRU, Mamba and others by running sums]
    h = w * cumsum(x / w), w = 0.9 ** steps
    y = mask((q * exp(a)) (k * exp(-a))')                             [decayed attention]

The summed values grow or shrink exponentially with the steps, so float32 runs out of range: at a mean gate of 0.5,
exp(-a) is infinite after 128 steps, and digits are lost long before. The result stays what the file's own arithmetic
gives, as in every engine. A note says so, and `fastrnn verify` reports after how many steps the result is off.
"""

from __future__ import annotations

from collections.abc import Callable

from ..graph import Graph, Node
from ..graph import dims as D
from ..graph.vocabulary import moves

MARK = "loses digits and overflows in float32 after some steps"
_PASSED_ON = frozenset({"cast", "pad", "gather"})  # besides ops that only move elements
# Their result stays small for any input.
_BOUNDED = frozenset({"sigmoid", "tanh", "hard_sigmoid", "sin", "cos", "erf", "softsign", "sign", "not", "log", "atan"})


def note_parallel_forms(graph: Graph) -> Graph:
    """Add a note for each node that sums values scaled by an exponential of steps or of a running sum."""
    sums = [n for n in graph.nodes if n.op == "cumsum" and graph.values[n.inputs[0]].dtype == "float32"]
    if not any(n.op in ("cumsum", "matmul") for n in graph.nodes):
        return graph
    readers = graph.consumers()
    counted = [n for n in graph.nodes if n.op == "steps" and any(D.symbols(d) for d in n.attrs["dims"])]
    found: dict[str, tuple[Node, Node]] = {}  # name of a node that fails -> the node, and the source of the growth
    for source in (*sums, *counted):
        grown: dict[str, str] = {}  # value scaled by an exponential -> the exponential's node
        for power in _reached(readers, source, _linear):
            if _is_power(power, source):
                for node in (power, *_reached(readers, power, _carries)):
                    grown |= dict.fromkeys((o for o in node.outputs if o), power.name)
        for node in graph.nodes:
            sides = {grown[i] for i in node.inputs if i in grown}
            if (node.op == "cumsum" and sides) or (node.op == "matmul" and len(sides) > 1):
                found.setdefault(node.name, (node, source))
    notes = [_told(node, source) for node, source in found.values()]
    return graph.replace(notes=(*graph.notes, *notes)) if notes else graph


def _told(node: Node, source: Node) -> str:
    what = "a running sum" if node.op == "cumsum" else "a product"
    grows = f"the running sum {source.name}" if source.op == "cumsum" else "step numbers"
    return (
        f"{node.name}: {what} of values that are scaled by an exponential of {grows}: a recurrence in parallel form, "
        f"which {MARK}; fastrnn verify says after how many"
    )


def _reached(readers: dict[str, list[Node]], source: Node, passes: Callable[[Node], bool]) -> list[Node]:
    """The readers of `source` and, through the nodes that `passes` accepts, of their results; each once."""
    found: dict[str, Node] = {}
    waiting = [o for o in source.outputs if o]
    while waiting:
        for node in readers.get(waiting.pop(), ()):
            if node.name not in found:
                found[node.name] = node
                if passes(node):
                    waiting += [o for o in node.outputs if o]
    return list(found.values())


def _hands_on(node: Node) -> bool:
    return moves(node.op) or node.op in _PASSED_ON


def _linear(node: Node) -> bool:
    """Whether the result of the node also grows with the steps if its input is a sum of steps."""
    if node.op == "binary":
        return node.attrs["fn"] in ("add", "sub", "mul", "div")
    return _hands_on(node) or (node.op == "unary" and node.attrs["fn"] in ("neg", "affine"))


def _is_power(node: Node, source: Node) -> bool:
    if node.op == "unary":
        return node.attrs["fn"] == "exp"
    return node.op == "binary" and node.attrs["fn"] == "pow" and source.op == "steps"


def _carries(node: Node) -> bool:
    """Whether the result of the node is scaled by an exponential if its input is."""
    if node.op == "unary":
        return node.attrs["fn"] not in _BOUNDED
    return (
        _hands_on(node)
        or node.op == "where"
        or (node.op == "binary" and node.attrs["fn"] in ("mul", "div", "add", "sub"))
    )
