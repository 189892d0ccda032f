"""What is said along time in a way that no stream could follow, said in one that it can."""

from __future__ import annotations

import numpy as np

from ..graph import Graph, Node, Value
from ..graph import dims as D


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


def step_sums(graph: Graph) -> Graph:
    """A running sum over time: each step's is that of the step before and its own value, which a stream keeps."""
    nodes: list[Node] = []
    values, names, count = dict(graph.values), {n.name for n in graph.nodes} | set(graph.values), 0
    for node in graph.nodes:
        parts = _as_steps(node, values, names) if node.op == "cumsum" else None
        nodes += parts or [node]
        count += parts is not None
    if not count:
        return graph
    notes = (*graph.notes, f"took {count} running sums step by step")
    return graph.replace(nodes=tuple(nodes), values=values, notes=notes)


def _as_steps(node: Node, values: dict[str, Value], names: set[str]) -> list[Node] | None:
    x, axis = values[node.inputs[0]], node.attrs["axis"]
    if x.dims[axis] != D.TIME or node.attrs["reverse"] or x.dtype != "float32":
        return None
    first = (axis, *(a for a in range(len(x.dims)) if a != axis))
    back = tuple(first.index(a) for a in range(len(x.dims)))
    dims = tuple(x.dims[a] for a in first)
    steps, before, total = (_new(f"{node.name}.{part}", names) for part in ("steps", "before", "sum"))
    values |= {name: Value(name, x.dtype, dims) for name in (steps, before, total)}
    result = before if node.attrs["exclusive"] else total
    return [
        Node("transpose", steps, (x.name,), (steps,), {"perm": first}),
        Node("state", before, (total,), (before,), {}),
        Node("binary", total, (before, steps), (total,), {"fn": "add"}),
        Node("transpose", node.name, (result,), node.outputs, {"perm": back}),
    ]


MOST_RUNS = 64  # of one lookup; windows of more steps than this are left as they are


def cut_runs(graph: Graph) -> Graph:
    """A lookup of steps t + 0, t + 1.. for every t, as Unfold is exported: cuts of the sequence, side by side."""
    producers, nodes = graph.producers(), []
    values, names, count = dict(graph.values), {n.name for n in graph.nodes} | set(graph.values), 0
    for node in graph.nodes:
        run = _run(graph, producers, node.inputs[1]) if node.op == "gather" else None
        parts = _as_cuts(node, values, names, *run) if run is not None else None
        nodes += parts or [node]
        count += parts is not None
    if not count:
        return graph
    notes = (*graph.notes, f"took {count} lookups by step numbers as cuts")
    return graph.replace(nodes=tuple(nodes), values=values, notes=notes)


def _run(graph: Graph, producers: dict, name: str) -> tuple | None:
    """(offsets, time first) of indices [k, T] or [T, k] that are t + offsets[j], at t = 0 to T - 1."""
    offset, dims = np.zeros(1, np.int64), graph.values[name].dims
    while (node := producers.get(name)) is not None and node.op != "steps":
        if node.op == "binary" and node.attrs["fn"] == "add" and offset.size == 1:
            known = [i for i in node.inputs if i in graph.constants]
            if len(known) != 1:
                return None
            offset = offset + graph.constants[known[0]].reshape(-1)
            name = next(i for i in node.inputs if i != known[0])
        elif node.op == "reshape" and graph.values[name].dims.count(D.TIME) == 1:
            name = node.inputs[0]
        else:
            return None
    if node is None or node.attrs["dims"] != (D.TIME,) or not isinstance(node.attrs["start"], int):
        return None
    long = [d for d in dims if d not in (1, D.TIME)]
    if dims.count(D.TIME) != 1 or offset.size > MOST_RUNS or long != ([offset.size] if offset.size > 1 else []):
        return None
    first = bool(long) and dims.index(D.TIME) < dims.index(offset.size)
    return offset + node.attrs["start"], first


def _as_cuts(node: Node, values: dict[str, Value], names: set[str], offsets, time_first: bool) -> list[Node] | None:
    x, axis = values[node.inputs[0]], node.attrs["axis"]
    room = x.dims[axis] - D.TIME
    if not isinstance(room, int) or min(offsets) < 0 or max(offsets) > room:
        return None
    made, parts = [], []

    def add(op: str, what: str, inputs: tuple, dims: tuple, attrs: dict) -> str:
        name = _new(f"{node.name}.{what}", names)
        values[name] = Value(name, x.dtype, dims)
        made.append(Node(op, name, inputs, (name,), attrs))
        return name

    before, after = x.dims[:axis], x.dims[axis + 1 :]
    for start in map(int, offsets):
        attrs = {"axis": axis, "start": start, "stop": D.TIME + start, "step": 1}
        cut = add("slice", f"from{start}", (x.name,), (*before, D.TIME, *after), attrs)
        dims = (*before, *((D.TIME, 1) if time_first else (1, D.TIME)), *after)
        parts.append(add("reshape", f"at{start}", (cut,), dims, {"dims": dims}))
    k, out = len(offsets), values[node.outputs[0]]
    dims = (*before, *((D.TIME, k) if time_first else (k, D.TIME)), *after)
    joined = add("concat", "joined", tuple(parts), dims, {"axis": axis + time_first}) if k > 1 else parts[0]
    return [*made, Node("reshape", node.name, (joined,), node.outputs, {"dims": out.dims})]


def _alike(array: np.ndarray) -> bool:
    return array.dtype == np.float32 and bool((array == array.flat[0]).all())


def _new(name: str, names: set[str]) -> str:
    while name in names:
        name += "_"
    names.add(name)
    return name
