"""Cycles of a graph: which nodes must be computed step by step, and the order of all others.

A cycle exists only through `state` nodes (fastrnn.graph). The nodes of one cycle, or of several that share a node, are
a `Loop`: for t = 0, 1, .. each of its nodes is computed at step t, and a state returns its input of step t - 1.
All other nodes see whole sequences. `schedule` lists nodes and loops so that each comes after what it reads.
"""

from __future__ import annotations

import heapq

from ..records import dataclass
from .types import Graph, Node


@dataclass(frozen=True)
class Loop:
    """nodes: the nodes of a cycle except its states, in an order in which one step can be computed; states: its states.

    A state that is not on a cycle, such as one that delays an input, is a loop without nodes.
    """

    nodes: tuple[Node, ...]
    states: tuple[Node, ...]

    @property
    def name(self) -> str:
        """Its name in messages: that of its first state."""
        return self.states[0].name


def schedule(graph: Graph, mixed: bool = False) -> tuple[Node | Loop, ...]:
    """Every node once, alone or in its loop, in the order of `graph.nodes` as far as possible.

    mixed: a node may come before what it reads, even without a state.
    """
    nodes = graph.nodes
    if not mixed and not any(n.op == "state" for n in nodes):
        return nodes
    maker = {name: k for k, node in enumerate(nodes) for name in node.outputs if name is not None}
    reads = [sorted({maker[i] for i in node.inputs if i is not None and i in maker}) for node in nodes]
    home = _components(reads)
    members: dict[int, list[int]] = {}
    for k, root in enumerate(home):
        members.setdefault(root, []).append(k)
    waits = {root: {home[r] for k in inside for r in reads[k]} - {root} for root, inside in members.items()}
    readers: dict[int, list[int]] = {}
    for root, before in waits.items():
        for other in before:
            readers.setdefault(other, []).append(root)
    left = {root: len(before) for root, before in waits.items()}
    ready = [(members[root][0], root) for root, count in left.items() if count == 0]
    heapq.heapify(ready)
    order: list[Node | Loop] = []
    while ready:
        _, root = heapq.heappop(ready)
        inside = [nodes[k] for k in members[root]]
        states = tuple(n for n in inside if n.op == "state")
        order.append(Loop(tuple(n for n in inside if n.op != "state"), states) if states else inside[0])
        for other in readers.get(root, ()):
            left[other] -= 1
            if left[other] == 0:
                heapq.heappush(ready, (members[other][0], other))
    return tuple(order)


def loops(graph: Graph) -> tuple[Loop, ...]:
    """The loops of a graph, in the order in which they run."""
    return tuple(item for item in schedule(graph) if isinstance(item, Loop))


def _components(edges: list[list[int]]) -> list[int]:
    """Strongly connected components (Tarjan, not recursive): for each vertex, the representative of its component."""
    count = len(edges)
    index, low, home = [-1] * count, [0] * count, [-1] * count
    stack: list[int] = []
    number = 0
    for first in range(count):
        if index[first] >= 0:
            continue
        work = [(first, 0)]
        while work:
            v, at = work.pop()
            if index[v] < 0:
                index[v] = low[v] = number
                number += 1
                stack.append(v)
            for k in range(at, len(edges[v])):
                w = edges[v][k]
                if index[w] < 0:  # return to v after w, at the same edge
                    work += [(v, k), (w, 0)]
                    break
                if home[w] < 0:
                    low[v] = min(low[v], low[w])
            else:
                if low[v] == index[v]:
                    while True:
                        w = stack.pop()
                        home[w] = v
                        if w == v:
                            break
    return home
