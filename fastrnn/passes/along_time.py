"""What is said along time in a way that no stream could follow, said in one that it can."""

from __future__ import annotations

import numpy as np

from .. import dims as D
from ..graph import Graph, Node, Value


def split_reductions(graph: Graph) -> Graph:
    """A reduction over time and other axes at once: first over the others, at each step, then over time."""
    nodes: list[Node] = []
    values, names, count = dict(graph.values), {n.name for n in graph.nodes} | set(graph.values), 0
    for node in graph.nodes:
        parts = _split(node, values, names) if node.op == "reduce" else None
        nodes += parts or [node]
        count += parts is not None
    if not count:
        return graph
    notes = (*graph.notes, f"split {count} reductions over time and other axes")
    return graph.replace(nodes=tuple(nodes), values=values, notes=notes)


def _split(node: Node, values: dict[str, Value], names: set[str]) -> list[Node] | None:
    x, axes, keepdims = values[node.inputs[0]], node.attrs["axes"], node.attrs["keepdims"]
    timed = [a for a in axes if "time" in D.symbols(x.dims[a])]
    others = tuple(a for a in axes if a not in timed)
    if len(timed) != 1 or not others or not all(isinstance(x.dims[a], int) for a in others):
        return None
    name = _new(f"{node.name}.each", names)
    dims = [1 if a in others else d for a, d in enumerate(x.dims) if keepdims or a not in others]
    values[name] = Value(name, x.dtype, tuple(dims))
    time = timed[0] if keepdims else timed[0] - sum(a < timed[0] for a in others)
    return [
        Node("reduce", name, node.inputs, (name,), dict(node.attrs) | {"axes": others}),
        Node("reduce", node.name, (name,), node.outputs, dict(node.attrs) | {"axes": (time,)}),
    ]


def join_constants(graph: Graph) -> Graph:
    """A concat of a sequence with steps of one constant before or after it, zeros mostly: a pad."""
    nodes: list[Node] = []
    alike = {name: array.flat[0] for name, array in graph.constants.items() if array.size and _alike(array)}
    count = 0
    for node in graph.nodes:
        if node.op in ("expand", "reshape", "transpose") and node.inputs[0] in alike:
            alike[node.outputs[0]] = alike[node.inputs[0]]
        pad = _as_pad(graph, node, alike) if node.op == "concat" else None
        nodes.append(pad or node)
        count += pad is not None
    if not count:
        return graph
    return graph.replace(nodes=tuple(nodes), notes=(*graph.notes, f"took {count} joins with constants as pads"))


def _as_pad(graph: Graph, node: Node, alike: dict) -> Node | None:
    """The pad that a concat along time is: one part lives, the others hold one and the same number."""
    axis, dims = node.attrs["axis"], graph.values[node.outputs[0]].dims
    live = [i for i, name in enumerate(node.inputs) if name not in alike]
    if "time" not in D.symbols(dims[axis]) or len(live) != 1 or graph.values[node.outputs[0]].dtype != "float32":
        return None
    sizes = [graph.values[name].dims[axis] for name in node.inputs]
    around = [(n, alike[name]) for n, name in zip(sizes, node.inputs, strict=True) if name in alike]
    same = len({float(v) for _, v in around}) == 1 and all(isinstance(n, int) for n, _ in around)
    if not same or not around:
        return None
    rank, where = len(dims), live[0]
    pads: list = [0] * (2 * rank)
    pads[axis], pads[rank + axis] = sum(sizes[:where]), sum(sizes[where + 1 :])
    attrs = {"pads": tuple(pads), "mode": "constant", "value": float(around[0][1])}
    return Node("pad", node.name, (node.inputs[where],), node.outputs, attrs)


def _alike(array: np.ndarray) -> bool:
    return array.dtype == np.float32 and bool((array == array.flat[0]).all())


def _new(name: str, names: set[str]) -> str:
    while name in names:
        name += "_"
    names.add(name)
    return name
