"""Finds elementwise nodes that are worth computing in one sweep over memory. The graph itself is unchanged.

`groups(graph)` finds chains (and small nets) of elementwise nodes over one iteration space. The lowering makes one
program of each. It computes the same functions on the same numbers, so no bit changes. `activations(graph)` finds the
activation after a convolution, which the product's last step applies.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..graph import Graph, Node
from ..graph.traverse import free_inputs
from ..graph.windows import CONVOLUTIONS
from ..machine._isa import MAX_INPUTS, MAX_INSTRUCTIONS
from ..records import dataclass
from .linear import _FUSABLE

ELEMENTWISE = frozenset(("unary", "binary", "where"))


@dataclass(frozen=True)
class Group:
    """Nodes in an order in which they can be computed. Only the last one's output is read outside the group.

    inputs : names of the values that come from outside, each once, in the order of their first read.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]


def activations(graph: Graph) -> dict[str, Node]:
    """Name of a convolution -> its activation node, if that is its only reader and the convolution is not an output."""
    readers, outputs = graph.consumers(), set(graph.outputs)
    found = {}
    for node in graph.nodes:
        if node.op not in CONVOLUTIONS or node.outputs[0] in outputs:
            continue
        after = readers.get(node.outputs[0], [])
        if len(after) == 1 and activation_of(graph, after[0], node.outputs[0]) is not None:
            found[node.name] = after[0]
    return found


def activation_of(graph: Graph, node: Node, name: str) -> tuple | None:
    """(function, alpha, beta) that `node` applies to each element of the value `name`; None for any other node.

    prelu with a single slope is leaky_relu.
    """
    if node.op == "unary" and node.attrs["fn"] in _FUSABLE:
        return node.attrs["fn"], node.attrs["alpha"], node.attrs["beta"]
    if node.op == "binary" and node.attrs["fn"] == "prelu" and node.inputs[0] == name:
        slope = graph.constants.get(node.inputs[1])
        same = graph.values[name].dims == graph.values[node.outputs[0]].dims
        if slope is not None and slope.dtype == "float32" and slope.size == 1 and same:
            return "leaky_relu", float(slope.flat[0]), 0.0
    return None


def groups(
    graph: Graph, apart: frozenset[str] = frozenset(), region: Mapping[str, int] | None = None
) -> dict[str, Group]:
    """Name of a group's last node -> the group. Only groups of two or more nodes.

    A node joins the group of its readers if all of them are in one group, it is not an output, it has the same dims (a
    smaller value is computed once, not once for every place it is broadcast to), and the program stays within its
    limits. apart: names of nodes that stay alone. region: name of a node -> the cycle that it is on. Nodes on a cycle
    are not grouped with nodes outside it.
    """
    region = region or {}
    readers, outputs = graph.consumers(), set(graph.outputs)
    candidates = {n.outputs[0]: n for n in graph.nodes if _fits(graph, n) and n.name not in apart}
    members: dict[str, list[Node]] = {}  # by name of the last node; latest first
    home: dict[str, str] = {}  # node name -> name of the last node of its group
    for node in reversed(graph.nodes):
        if candidates.get(node.outputs[0]) is not node:
            continue
        name = node.outputs[0]
        homes = {home.get(r.name) for r in readers.get(name, [])}
        root = homes.pop() if len(homes) == 1 else None
        if root is not None and region.get(root) != region.get(node.name):
            root = None
        if root is not None and name not in outputs:
            grown = [*members[root], node]
            last = grown[0]
            same = graph.values[name].dims == graph.values[last.outputs[0]].dims
            if same and len(grown) <= MAX_INSTRUCTIONS and len(free_inputs(grown)) <= MAX_INPUTS:
                members[root] = grown
                home[node.name] = root
                continue
        members[node.name] = [node]
        home[node.name] = node.name
    found = {}
    for root, nodes in members.items():
        if len(nodes) > 1:
            ordered = tuple(reversed(nodes))
            found[root] = Group(ordered, free_inputs(ordered))
    return found


def _fits(graph: Graph, node: Node) -> bool:
    """Whether a node is elementwise over reals and bools, which a program computes in float32."""
    if node.op not in ELEMENTWISE:
        return False
    names = [*(i for i in node.inputs if i is not None), node.outputs[0]]
    return all(graph.values[n].dtype in ("float32", "bool") for n in names)
