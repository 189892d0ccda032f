"""Caches of all layers in one state, such as past[layers, 2, batch, heads, held, features].

A file takes the part of each layer, appends the new steps to it, and stacks the results again. `stacks` proves that,
element by element, at two lengths: the part of a layer in the next state is the part in this one with the new steps
behind it. `unstacked` gives each layer a state of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..records import dataclass
from . import dims as D
from .traverse import needed
from .types import Graph, Node, Value

_LENGTHS = ((3, 2), (5, 1))  # what the caches hold, and the steps of a call
_MOST = 1 << 20  # elements of a state that is followed
_MOVES = frozenset(("reshape", "transpose", "slice"))


@dataclass(frozen=True)
class Stack:
    """One input that holds several caches. output : the input with the new steps behind those of each cache; axis :
    along which; joints : what appends steps to one of its caches, each; new : the value of the first one's steps."""

    output: str
    axis: int
    joints: tuple[Node, ...]
    new: str


def stack(graph: Graph, name: str) -> Stack | None:
    """What an input is, if it holds several caches."""
    value = graph.values[name]
    axes = [k for k, d in enumerate(value.dims) if D.symbols(d) - {"batch"}]
    held = value.dims[axes[0]] if len(axes) == 1 else 1
    if len(D.symbols(held)) != 1 or held != D.symbol(*D.symbols(held)):
        return None
    joints = _joints(graph, name, held)
    for output in graph.outputs if joints else ():
        after = graph.values[output]
        steps = graph.values[joints[0].inputs[1] or ""].dims[joints[0].attrs["axis"]]
        want = (*value.dims[: axes[0]], held + steps, *value.dims[axes[0] + 1 :])
        if after.dtype == value.dtype and after.dims == want and _stacked(graph, name, output, joints):
            return Stack(output, axes[0], tuple(joints), joints[0].inputs[1] or "")
    return None


def unstacked(graph: Graph) -> Graph:
    """The graph in which each cache of such a state is a state of its own."""
    for name, output in graph.states.items():
        grows = graph.values[name].dims != graph.values[output].dims
        found = stack(graph, name) if grows else None
        if found is None or found.output != output:
            continue
        values, states, nodes = dict(graph.values), dict(graph.states), {n.name: n for n in graph.nodes}
        del states[name]
        for k, joint in enumerate(found.joints):
            part = f"{name}.{k}"
            before = values[joint.inputs[0] or ""]
            values[part] = Value(part, before.dtype, before.dims)
            states[part] = joint.outputs[0] or ""
            nodes[joint.name] = replace(joint, inputs=(part, *joint.inputs[1:]))
        parts = [f"{name}.{k}" for k in range(len(found.joints))]
        inputs = tuple(p for n in graph.inputs for p in (parts if n == name else [n]))
        ends = tuple(o for n in graph.outputs for o in ([states[p] for p in parts] if n == output else [n]))
        graph = graph.replace(inputs=inputs, outputs=ends, nodes=tuple(nodes.values()), values=values, states=states)
        graph = graph.replace(
            nodes=tuple(needed(graph, (*ends, *(n.outputs[0] for n in graph.nodes if n.op == "state"))))
        )
    return graph


def _joints(graph: Graph, name: str, held) -> list[Node]:
    """The concats that append steps to parts of an input; none if anything else reads it."""
    moved, found = {name}, []
    for node in graph.nodes:
        if not any(i in moved for i in node.inputs):
            continue
        if node.op in _MOVES and len(node.inputs) == 1:
            moved.add(node.outputs[0])
            continue
        if node.op != "concat" or len(node.inputs) != 2 or name == node.inputs[0] or node.inputs[1] in moved:
            return []
        lengths = [graph.values[i or ""].dims[node.attrs["axis"]] for i in node.inputs]
        if lengths[0] != held or D.symbols(lengths[1]) & D.symbols(held):
            return []
        found.append(node)
    steps = {graph.values[n.inputs[1] or ""].dims[n.attrs["axis"]] for n in found}
    return found if len(steps) == 1 else []


def _stacked(graph: Graph, name: str, output: str, joints: list[Node]) -> bool:
    """Whether the part that each joint reads is, in the output, what that joint makes."""
    (symbol,) = D.symbols(graph.values[joints[0].inputs[0] or ""].dims[joints[0].attrs["axis"]])
    makers = graph.producers()
    before = needed(graph, [n.inputs[0] or "" for n in joints], makers=makers)
    ends = {n.outputs[0] for n in joints}
    behind = needed(graph, [output], given=ends, makers=makers)
    allowed = all(n.op in _MOVES or n.op == "concat" for n in behind)
    if not allowed or any(n.op not in _MOVES for n in before):
        return False
    names = {s for v in graph.values.values() for d in v.dims for s in D.symbols(d)}
    for held, steps in _LENGTHS:
        sizes = dict.fromkeys(names, 2) | {"time": steps, symbol: held}
        shape = [D.evaluate(d, sizes) for d in graph.values[name].dims]
        if np.prod(shape, dtype=np.float64) > _MOST:
            return False
        values = {name: np.arange(np.prod(shape)).reshape(shape)}
        at = values[name].size
        _run(before, values, sizes)
        for joint in joints:
            new = [D.evaluate(d, sizes) for d in graph.values[joint.inputs[1] or ""].dims]
            count = int(np.prod(new))
            values[joint.inputs[1] or ""] = np.arange(at, at + count).reshape(new)
            at += count
        _run([*joints, *behind], values, sizes)
        later, rows = {name: values.get(output)}, joints[0].attrs["axis"]
        if later[name] is None:
            return False
        more = values[joints[0].outputs[0] or ""].shape[rows] - held
        _run(before, later, sizes | {symbol: held + more})
        for joint in joints:
            part = later.get(joint.inputs[0] or "")
            if part is None or not np.array_equal(part, values[joint.outputs[0] or ""]):
                return False
    return True


def _run(nodes: list[Node], values: dict, sizes: Mapping[str, int]) -> None:
    """Carry numbers through nodes that move them; what can't be followed gets none."""
    for node in nodes:
        xs = [values.get(i) for i in node.inputs]
        if any(x is None for x in xs):
            continue
        attrs = D.substitute_in(node.attrs, sizes)
        try:
            values[node.outputs[0]] = _moved(node.op, xs, attrs)
        except (ValueError, IndexError):
            continue


def _moved(op: str, xs: list, attrs: dict) -> np.ndarray:
    if op == "concat":
        return np.concatenate(xs, axis=attrs["axis"])
    if op == "transpose":
        return xs[0].transpose(attrs["perm"])
    if op == "reshape":
        return xs[0].reshape(attrs["dims"])
    start, stop, step = attrs["start"], attrs["stop"], attrs["step"]
    if step < 1 or not 0 <= start <= stop <= xs[0].shape[attrs["axis"]]:
        raise ValueError("outside")
    return xs[0].take(range(start, stop, step), attrs["axis"])
