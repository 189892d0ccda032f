"""Rewrites operations along time that can't be streamed into forms that can."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Graph, Node
from ..graph import dims as D
from .patch import Patch


def split_reductions(graph: Graph) -> Graph:
    """Split a reduction over time and other axes in two: over the other axes at each step, then over time."""
    patch = Patch(graph)
    for node in graph.nodes:
        if node.op == "reduce":
            _split(patch, node)
    return patch.done(f"split {len(patch.instead)} reductions over time and other axes")


def _split(patch: Patch, node: Node) -> None:
    x, axes, keepdims = patch.values[node.inputs[0]], node.attrs["axes"], node.attrs["keepdims"]
    timed = [a for a in axes if "time" in D.symbols(x.dims[a])]
    others = tuple(a for a in axes if a not in timed)
    if len(timed) != 1 or not others or not all(isinstance(x.dims[a], int) for a in others):
        return
    name = patch.add("reduce", node.inputs, dict(node.attrs) | {"axes": others}, f"{node.name}.each")
    time = timed[0] if keepdims else timed[0] - sum(a < timed[0] for a in others)
    patch.replace(node, replace(node, inputs=(name,), attrs=dict(node.attrs) | {"axes": (time,)}))


def join_constants(graph: Graph) -> Graph:
    """Turn a concat of a sequence with constant steps (mostly zeros) before or after it into a pad."""
    patch, source = Patch(graph), {name: name for name in graph.constants}  # value -> the constant with its elements
    for node in graph.nodes:
        if node.op in ("expand", "reshape", "transpose") and node.inputs[0] in source:
            source[node.outputs[0]] = source[node.inputs[0]]
        pad = _as_pad(graph, node, source) if node.op == "concat" else None
        if pad is not None:
            patch.replace(node, pad)
    return patch.done(f"took {len(patch.instead)} joins with constants as pads")


def _as_pad(graph: Graph, node: Node, source: dict[str, str]) -> Node | None:
    """The pad equivalent to a concat along time: one part is not constant, the others all hold the same number."""
    axis, dims = node.attrs["axis"], graph.values[node.outputs[0]].dims
    if "time" not in D.symbols(dims[axis]) or graph.values[node.outputs[0]].dtype != "float32":
        return None
    arrays = {name: graph.constants[source[name]] for name in node.inputs if name in source}
    alike = {name: array.flat[0] for name, array in arrays.items() if array.size and _alike(array)}
    live = [i for i, name in enumerate(node.inputs) if name not in alike]
    if len(live) != 1:
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
    """Turn a running sum over time into a state: the sum of the previous step plus the step's own value."""
    patch = Patch(graph)
    for node in graph.nodes:
        if node.op == "cumsum":
            _as_steps(patch, node)
    return patch.done(f"took {len(patch.instead)} running sums step by step")


def _as_steps(patch: Patch, node: Node) -> None:
    x, axis = patch.values[node.inputs[0]], node.attrs["axis"]
    if x.dims[axis] != D.TIME or node.attrs["reverse"] or x.dtype != "float32":
        return
    if any("time" in D.symbols(d) for a, d in enumerate(x.dims) if a != axis):
        return
    first = (axis, *(a for a in range(len(x.dims)) if a != axis))
    back = tuple(first.index(a) for a in range(len(x.dims)))
    steps = patch.add("transpose", (x.name,), {"perm": first}, f"{node.name}.steps")
    before, total = (
        patch.declare(f"{node.name}.{part}", x.dtype, patch.values[steps].dims) for part in ("before", "sum")
    )
    result = before if node.attrs["exclusive"] else total
    patch.replace(
        node,
        Node("state", before, (total,), (before,), {}),
        Node("binary", total, (before, steps), (total,), {"fn": "add"}),
        Node("transpose", node.name, (result,), node.outputs, {"perm": back}),
    )


MOST_RUNS = 64  # of one lookup; longer windows are left unchanged


def cut_runs(graph: Graph) -> Graph:
    """Turn a lookup of steps t + 0, t + 1.. for every t (how Unfold is exported) into slices, side by side."""
    producers, patch = graph.producers(), Patch(graph)
    for node in graph.nodes:
        run = _run(graph, producers, node.inputs[1]) if node.op == "gather" else None
        if run is not None:
            _as_cuts(patch, node, *run)
    return patch.done(f"took {len(patch.instead)} lookups by step numbers as cuts")


def _run(graph: Graph, producers: dict, name: str) -> tuple | None:
    """(offsets, time first) of indices [k, T] or [T, k] that equal t + offsets[j] for t = 0 to T - 1."""
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


def _as_cuts(patch: Patch, node: Node, offsets: np.ndarray, time_first: bool) -> None:
    x, axis = patch.values[node.inputs[0]], node.attrs["axis"]
    room = x.dims[axis] - D.TIME
    if not isinstance(room, int) or min(offsets) < 0 or max(offsets) > room:
        return
    before, after, parts = x.dims[:axis], x.dims[axis + 1 :], []
    dims = (*before, *((D.TIME, 1) if time_first else (1, D.TIME)), *after)
    for start in map(int, offsets):
        attrs = {"axis": axis, "start": start, "stop": D.TIME + start, "step": 1}
        cut = patch.add("slice", (x.name,), attrs, f"{node.name}.from{start}")
        parts.append(patch.add("reshape", (cut,), {"dims": dims}, f"{node.name}.at{start}"))
    joined = parts[0]
    if len(parts) > 1:
        joined = patch.add("concat", parts, {"axis": axis + time_first}, f"{node.name}.joined")
    dims = patch.values[node.outputs[0]].dims
    patch.replace(node, Node("reshape", node.name, (joined,), node.outputs, {"dims": dims}))


def _alike(array: np.ndarray) -> bool:
    return array.dtype == np.float32 and bool((array == array.flat[0]).all())
