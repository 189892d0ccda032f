"""Turns an ONNX Loop over the steps of one cell (how tf2onnx writes Keras's SimpleRNN and GRU) into that cell."""

from __future__ import annotations

from onnx import AttributeProto

from ..reading import files
from ..reading.nodes import OnnxNode, plain_nodes
from .recognise import NotACell, StepReader, recognise
from .rolled import C, H, NodeGraph, Rolled, X, rolled_node


def from_loop(graph: NodeGraph, node: OnnxNode) -> OnnxNode | None:
    proto = node.attrs.get("body")
    if proto is None or proto.type != AttributeProto.GRAPH or len(node.inputs) < 3:
        return None
    body = proto.g
    carried = len(node.inputs) - 2
    if len(body.input) != carried + 2 or len(body.output) < carried + 1 or len(node.outputs) > len(body.output) - 1:
        return None
    try:
        return _loop(graph, node, body, carried)
    except NotACell:
        return None


def _loop(graph: NodeGraph, node: OnnxNode, body, carried: int) -> OnnxNode:
    maker = {o: n for n in plain_nodes(body) for o in n.outputs if o}
    constants = dict(graph.constants)
    constants |= {t.name: files.tensor(t, None) for t in body.initializer if max(t.dims, default=1) <= 1 << 16}
    ins, outs = [i.name for i in body.input], [o.name for o in body.output]
    kept = {k for k in range(carried) if alias(maker, outs[1 + k]) == ins[2 + k]}
    for k in kept:
        if node.inputs[2 + k] in graph.constants:
            constants[ins[2 + k]] = graph.constants[node.inputs[2 + k]]
    counters = {ins[0]} | {
        ins[2 + k]
        for k in range(carried)
        if counts_up(maker, constants, outs[1 + k], ins[2 + k]) and _is(graph.constants.get(node.inputs[2 + k]), 0)
    }
    trip = trip_of(maker, constants, node, ins, outs, kept, counters)
    taken: list[str] = []

    def item(inner, value):
        axis = inner.attrs["axis"].i if "axis" in inner.attrs else 0
        if inner.op == "Gather" and axis == 0 and inner.inputs[1] in counters and inner.inputs[0] not in maker:
            taken.append(inner.inputs[0])
            return X
        return None

    states = [k for k in range(carried) if k not in kept and ins[2 + k] not in counters]
    if len(states) not in (1, 2):
        raise NotACell
    for order in (states, states[::-1]):
        h, c = order[0], order[1] if len(order) > 1 else None
        known = {ins[2 + h]: H} | ({ins[2 + c]: C} if c is not None else {})
        step = StepReader(maker, constants, known, item, graph.opset)
        try:
            new_h = step.value(outs[1 + h])
            new_c = step.value(outs[1 + c]) if c is not None else None
            cell = recognise(new_h, new_c, X, H, C if c is not None else None)
            break
        except NotACell:
            taken.clear()
    else:
        raise NotACell
    if len(set(taken)) != 1:
        raise NotACell
    return _loop_node(node, maker, outs, carried, (h, c), Rolled(cell), taken[0], trip)


def _loop_node(node, maker, outs, carried, states, payload, sequence, trip) -> OnnxNode:
    """The rolled-up node with the Loop's outputs. Outputs other than h, c and y are not made and must be unused."""
    h, c = states
    y = None
    for k, name in enumerate(outs[1 + carried :]):
        if alias(maker, name) == alias(maker, outs[1 + h]) and carried + k < len(node.outputs):
            y = node.outputs[carried + k]
    ends = [node.outputs[k] if k is not None and k < len(node.outputs) else "" for k in (h, c)]
    inputs = [sequence, node.inputs[2 + h], "" if c is None else node.inputs[2 + c], trip]
    return rolled_node(node.label, inputs, [y or "", *ends], payload)


def alias(maker: dict, name: str) -> str:
    while name in maker and maker[name].op == "Identity" and maker[name].domain == "":
        name = maker[name].inputs[0]
    return name


def _is(array, number: int) -> bool:
    return array is not None and array.size == 1 and array.reshape(-1)[0] == number


def counts_up(maker: dict, constants: dict, out: str, start: str) -> bool:
    """Whether the carried value increases by one per step."""
    node = maker.get(alias(maker, out))
    if node is None or node.op != "Add":
        return False
    sides = [i for i in node.inputs if i != start]
    return len(sides) == 1 and _is(constants.get(sides[0]), 1)


def stride_of(maker: dict, constants: dict, out: str, start: str) -> int | None:
    """The whole number that the carried value grows by in every step; None if it changes otherwise."""
    node = maker.get(alias(maker, out))
    if node is None or node.op not in ("Add", "Sub") or node.domain or len(node.inputs) != 2:
        return None
    sides = [alias(maker, i) for i in node.inputs]
    if start not in sides or (node.op == "Sub" and sides[0] != start):
        return None
    other = constants.get(sides[1] if sides[0] == start else sides[0])
    if other is None or other.size != 1 or other.dtype.kind != "i":
        return None
    number = int(other.reshape(-1)[0])
    return number if node.op == "Add" else -number


def _through_casts(maker: dict, name: str) -> str:
    while name in maker and maker[name].op in ("Identity", "Cast"):
        name = maker[name].inputs[0]
    return name


def trip_of(maker, constants, node, ins, outs, kept, counters) -> str:
    """The outer value with the number of steps: the trip count, or n in the condition `i + 1 < n`."""
    condition = maker.get(_through_casts(maker, outs[0]))
    if condition is None:
        name = _through_casts(maker, outs[0])
        if node.inputs[0] and (name == ins[1] or _is(constants.get(name), 1)):
            return node.inputs[0]
        raise NotACell
    if condition.op != "Less" or node.inputs[0]:
        raise NotACell
    left, right = (_through_casts(maker, i) for i in condition.inputs)
    adder = maker.get(left)
    if adder is None or adder.op != "Add" or not any(counts_up(maker, constants, left, c) for c in counters):
        raise NotACell
    for k in kept:
        if right == ins[2 + k]:
            return node.inputs[2 + k]
    if right in maker or right in ins:
        raise NotACell
    return right
