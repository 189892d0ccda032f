"""Which nodes around a cycle are computed in its body, step by step, and not for all steps at once.

A matrix state is updated by an outer product, S[t] = decay[t] * S[t-1] + k[t] v[t]', and read by a product, q[t] S[t].
Neither is on the cycle. Computed for all steps, the outer products and the states fill memory of [T, K, V] each, which
costs more than the arithmetic. In the body, they stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from heapq import heappop, heappush

from ...errors import FastRNNError
from ...graph import Graph, Node
from ...graph import dims as D
from ...graph.loops import Loop
from ...graph.traverse import free_inputs, needed
from ...passes.fuse_scans import Scan

Item = Node | Loop | tuple[Node, ...]


def with_bodies(graph: Graph, items: Sequence[Node | Loop], scans: Sequence[Scan] = ()) -> Sequence[Node | Loop]:
    """The items of a schedule. Products that make or read a large value of a cycle are moved into its body. So are the
    nodes of a scan, which follow one another."""
    if not scans and not any(isinstance(item, Loop) and item.nodes for item in items):
        return items
    readers, makers = graph.consumers(), graph.producers()
    taken = {name for scan in scans for name in scan.names}
    found: list[Item] = []
    free = list(scans)
    for item in items:
        if isinstance(item, Loop) and item.nodes:
            inside, states = {n.name for n in item.nodes}, {s.outputs[0] for s in item.states}
            own = [scan for scan in scans if scan.names & inside or scan.state.name in states]
            free = [scan for scan in free if scan not in own]
            first = _feeding(graph, item, readers, makers, taken)
            last = _reading(graph, item, readers, makers, taken)
            apart = {name for scan in own for name in scan.names}
            alone = (n for n in (*first, *item.nodes, *last) if n.name not in apart)
            item = replace(item, nodes=_flat(_in_order([*alone, *(scan.nodes for scan in own)])))
        if isinstance(item, Loop) or item.name not in taken:
            found.append(item)
    found = [i for i in found if isinstance(i, Loop) or i.name not in taken]
    return _flat(_in_order([*found, *(scan.nodes for scan in free)]))


def _flat(items: list[Item]) -> tuple:
    return tuple(part for item in items for part in (item if isinstance(item, tuple) else (item,)))


def _elements(graph: Graph, name: str) -> int:
    """The elements of one step of one row."""
    size = D.product(graph.values[name].dims)
    return D.evaluate(size, dict.fromkeys(D.symbols(size), 1))


def _timed(graph: Graph, name: str) -> bool:
    return D.TIME in graph.values[name].dims


def _feeding(graph: Graph, loop: Loop, readers, makers, taken: set[str]) -> list[Node]:
    """Outer products that only the body reads."""
    inside, found = {n.name for n in loop.nodes}, []
    for name in free_inputs((*loop.nodes, *loop.states)):
        node = makers.get(name)
        if node is None or node.name in taken | inside or node.op not in ("binary", "matmul"):
            continue
        known = [i for i in node.inputs if i in graph.constants]
        grows = _elements(graph, name) > sum(_elements(graph, i) for i in node.inputs)
        read = {n.name for n in readers.get(name, ())}
        if grows and not known and _timed(graph, name) and read <= inside and name not in graph.outputs:
            found.append(node)
            taken.add(node.name)
    return found


def _reading(graph: Graph, loop: Loop, readers, makers, taken: set[str]) -> list[Node]:
    """Products with a value of the body that are smaller than it, if they read nothing else that depends on it."""
    made = {o for n in (*loop.nodes, *loop.states) for o in n.outputs if o is not None}
    inside, found = {n.name for n in (*loop.nodes, *loop.states)}, []
    for name in sorted(made):
        for node in readers.get(name, ()):
            if node.op != "matmul" or node.name in taken | inside or len(node.inputs) != 2:
                continue
            others = [i for i in node.inputs if i not in made]
            small = 2 * _elements(graph, node.outputs[0]) <= _elements(graph, name)
            if not small or not all(i not in graph.constants for i in others):
                continue
            if not {n.name for n in needed(graph, others, makers=makers)} & inside:
                found.append(node)
                taken.add(node.name)
    return found


def _in_order(items: list[Item]) -> list[Item]:
    """The items so that each comes after what it reads, otherwise in the order that they have."""
    maker = {o: k for k, item in enumerate(items) for n in _nodes(item) for o in n.outputs if o is not None}
    waits = [{maker[i] for n in _nodes(item) for i in n.inputs if i in maker} - {k} for k, item in enumerate(items)]
    readers: list[list[int]] = [[] for _ in items]
    for k, before in enumerate(waits):
        for other in before:
            readers[other].append(k)
    left = [len(before) for before in waits]
    ready, order = [k for k, count in enumerate(left) if count == 0], []
    while ready:
        k = heappop(ready)
        order.append(items[k])
        for other in readers[k]:
            left[other] -= 1
            if left[other] == 0:
                heappush(ready, other)
    if len(order) < len(items):
        raise FastRNNError("internal error: nodes that one op computes would have to come before and after others")
    return order


def _nodes(item: Item) -> tuple[Node, ...]:
    if isinstance(item, tuple):
        return item
    return (*item.nodes, *item.states) if isinstance(item, Loop) else (item,)
