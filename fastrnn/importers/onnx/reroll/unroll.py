"""Rolls written-out recurrences up into one node, before the walk.

Two forms are known: one copy of the step's nodes per time step, with the results concatenated (PyTorch's new exporter
writes nn.RNN like this), and an ONNX Loop over the steps (tf2onnx writes Keras's SimpleRNN, and GRU with the reset
before the product, like this). Anything not recognised with certainty stays unchanged.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ....errors import ModelFormatError
from ..reading.nodes import OnnxNode, sort_nodes
from .loop_cells import from_loop
from .recognise import Base, NotACell, Product, Recognised, StepReader, SumOf, recognise, starts_at_zero
from .rolled import C, H, NodeGraph, Rolled, X, leaves, rolled_node

_FAR = 2**31 - 1


def roll_up(nodes: list[OnnxNode], constants: dict, known: set[str], outputs: list[str], opset: int) -> list[OnnxNode]:
    """The nodes with recognised recurrences replaced, sorted and pruned."""
    graph = NodeGraph(nodes, dict(constants), opset)
    changed = False
    for node in nodes:
        made = None
        try:
            if node.op == "Concat" and node.domain == "" and node.inputs:
                made = _from_concat(graph, node)
            elif node.op == "Loop" and node.domain == "":
                made = from_loop(graph, node)
        except (ModelFormatError, ValueError, IndexError, KeyError, TypeError, StopIteration):
            continue  # a malformed node can't be rolled up; the walk reports the error
        if made is not None:
            before = {name: graph.maker[name] for name in made.outputs if name}
            steps = {id(n) for n in _steps(graph, node)}
            graph.maker.update(dict.fromkeys(before, made))
            if any(id(n) in steps for n in sort_nodes(graph.maker, known, outputs)):
                graph.maker.update(before)  # one step's result is used elsewhere: only the file's own length works
                continue
            changed = True
    if not changed:
        return nodes
    return sort_nodes(graph.maker, known, outputs)


def _steps(graph: NodeGraph, node: OnnxNode) -> list[OnnxNode]:
    """The nodes that make the inputs of a Concat of all steps; none for a Loop."""
    found = [graph.maker[i] for i in node.inputs if i in graph.maker] if node.op == "Concat" else []
    return [graph.maker[n.inputs[0]] if n.op == "Unsqueeze" and n.inputs[0] in graph.maker else n for n in found]


# --- one copy per step ----------------------------------------------------------------------------------------------


def _take(graph: NodeGraph, node: OnnxNode, name: str) -> tuple[str, int] | None:
    """(sequence, index) if the value is one time step of a sequence along its first axis."""
    if node.op == "SequenceAt":
        source = graph.maker.get(node.inputs[0])
        if source is None or source.op != "SplitToSequence" or len(source.inputs) > 1:
            return None
        attrs = {k: v.i for k, v in source.attrs.items()}
        index = graph.scalar(node.inputs[1])
        graph.split.add(source.inputs[0])
        return (
            (source.inputs[0], index)
            if not attrs.get("axis", 0) and not attrs.get("keepdims", 1) and index is not None
            else None
        )
    if node.op == "Gather" and not (node.attrs["axis"].i if "axis" in node.attrs else 0):
        index = graph.constants.get(node.inputs[1])
        return (node.inputs[0], int(index)) if index is not None and index.ndim == 0 else None
    if node.op == "Squeeze":
        axes = (
            [graph.scalar(node.inputs[1])]
            if len(node.inputs) > 1
            else list(node.attrs["axes"].ints)
            if "axes" in node.attrs
            else []
        )
        inner = graph.maker.get(node.inputs[0])
        if axes != [0] or inner is None:
            return None
        if inner.op == "Slice" and graph.opset >= 10 and len(inner.inputs) >= 4:
            start, stop, axis = (graph.scalar(i) for i in inner.inputs[1:4])
            step = graph.scalar(inner.inputs[4]) if len(inner.inputs) > 4 else 1
            if None not in (start, stop) and axis == 0 and step == 1 and stop == start + 1:
                return inner.inputs[0], start
        if inner.op == "Split" and not (inner.attrs["axis"].i if "axis" in inner.attrs else 0):
            return inner.inputs[0], inner.outputs.index(node.inputs[0])
    return None


def _from_concat(graph: NodeGraph, node: OnnxNode) -> OnnxNode | None:
    """A rolled-up node to replace the Concat of all steps' results, or None."""
    axis = node.attrs["axis"].i if "axis" in node.attrs else None
    names, stack = list(node.inputs), None
    if len(set(names)) != len(names) or axis not in (0, 1):
        return None
    inner = [graph.maker.get(n) for n in names]
    if all(n is not None and n.op == "Unsqueeze" for n in inner):
        axes = {tuple(n.attrs["axes"].ints) if "axes" in n.attrs else (graph.scalar(n.inputs[1]),) for n in inner}
        if axes != {(axis,)}:
            return None
        names, stack = [n.inputs[0] for n in inner], axis
    elif axis != 0:
        return None
    for flip_y in (False, True) if len(names) > 1 else (False,):
        # With a single copy (one step), only an LSTM is unambiguous, since both of its states are named.
        for chain in (_lstm_chain, _chain) if len(names) > 1 else (_lstm_chain,):
            try:
                return chain(graph, node, names[::-1] if flip_y else names, flip_y, stack)
            except NotACell:
                continue
    return None


def _taker(graph: NodeGraph, taken: list):
    """The `item` of a `StepReader`: X if the node takes one step out of a sequence, which is then recorded in
    `taken`."""

    def item(inner, value):
        found = _take(graph, inner, value)
        if found is None:
            return None
        taken.append(found)
        return X

    return item


def _lstm_chain(graph: NodeGraph, node: OnnxNode, names: list[str], flip_y: bool, stack: int | None) -> OnnxNode:
    """As `_chain`, for the steps of an LSTM. names: of its h, each o * tanh(c). Raises NotACell."""
    ends = [_squashed(graph, name) for name in names]
    rows, first, starts, sources, indices = 1, None, ("", ""), set(), []
    for t, name in enumerate(names):
        taken: list[tuple[str, int]] = []
        before = {names[t - 1]: H, ends[t - 1]: C} if t else {}
        step = StepReader(graph.maker, graph.constants, before, _taker(graph, taken), graph.opset)
        out, new_c = step.value(name), step.value(ends[t])
        h, c = (H, C) if t else _lstm_starts(out, new_c)
        cell = recognise(out, new_c, X, h, c)
        if t == 0:
            first, starts = cell, (h.name, c.name)
        if len({*taken}) != 1 or not cell.same(first):
            raise NotACell
        sources.add(taken[0][0])
        indices.append(taken[0][1])
        rows = max(rows, step.rows)
    count = len(names)
    if len(sources) != 1 or indices not in (list(range(count)), list(range(count))[::-1]):
        raise NotACell
    taken_from = sources.pop()
    source, turned = _unflip(graph, taken_from)
    flip_x = indices[0] != 0
    split = taken_from in graph.split
    payload = Rolled(first, count, flip_x != turned, flip_y, stack, rows, split, turned, stack is None)
    return rolled_node(node.label, [source, *starts, ""], [node.outputs[0], names[-1], ends[-1]], payload)


def _squashed(graph: NodeGraph, name: str) -> str:
    """The value c of h = o * tanh(c)."""
    node = graph.maker.get(name)
    sides = [graph.maker.get(i) for i in node.inputs] if node is not None and node.op == "Mul" else []
    # tanh(c) is the factor whose argument is a sum of products; o is an activation of an affine form.
    for side in sides:
        if side is not None and side.op in ("Tanh", "Relu", "Softsign") and side.domain == "":
            inner = graph.maker.get(side.inputs[0])
            made = [graph.maker.get(i) for i in inner.inputs] if inner is not None and inner.op == "Add" else []
            if len(made) == 2 and all(m is not None and m.op == "Mul" for m in made):
                return side.inputs[0]
    raise NotACell


def _lstm_starts(out, new_c) -> tuple[Base, Base]:
    """h0 and c0 of the first step: the two outer values that it uses; c0 is a factor of the new c."""
    if not isinstance(new_c, SumOf):
        raise NotACell
    factors = [f for p in (new_c.left, new_c.right) if isinstance(p, Product) for f in (p.left, p.right)]
    cells = [f for f in factors if isinstance(f, Base) and f != X]
    others = leaves(out) - {c.name for c in cells}
    if len(cells) != 1 or len(others) != 1:
        raise NotACell
    return Base(others.pop()), cells[0]


def _chain(graph: NodeGraph, node: OnnxNode, names: list[str], flip_y: bool, stack: int | None) -> OnnxNode:
    """names: the results in the order of computation. Raises NotACell."""
    rows, first = 1, None
    start = source = opening = None
    indices = []
    for t, name in enumerate(names):
        taken: list[tuple[str, int]] = []
        step = StepReader(
            graph.maker, graph.constants, {names[t - 1]: H} if t else {}, _taker(graph, taken), graph.opset
        )
        out = step.value(name)
        if t == 0 and not leaves(out):
            opening, cell = out, None  # h0 was a constant and its product is folded: the second step decides
        else:
            start = _only_leaf(out) if t == 0 else start
            cell = recognise(out, None, X, H if t else Base(start), None)
        if len(taken) != 1 or (source is not None and taken[0][0] != source):
            raise NotACell
        source, first, rows = taken[0][0], first or cell, max(rows, step.rows)
        indices.append(taken[0][1])
        if cell is not None and not cell.same(first):
            raise NotACell
        if opening is not None and t == 1 and not starts_at_zero(opening, cell):
            raise NotACell
    if first is None:
        raise NotACell
    count = len(names)
    if indices == list(range(count)):
        flip_x = False
    elif indices == list(range(count))[::-1]:
        flip_x = True
    else:
        raise NotACell
    split = source in graph.split
    source, turned = _unflip(graph, source)
    source, cell = _absorb(graph, source, first)
    payload = Rolled(cell, count, flip_x != turned, flip_y, stack, rows, split, turned, stack is None)
    return rolled_node(node.label, [source, start or "", "", ""], [node.outputs[0], names[-1], ""], payload)


def _only_leaf(out) -> str:
    """The only outer value of the first step: h0."""
    found = leaves(out)
    if len(found) != 1:
        raise NotACell
    return found.pop()


def _unflip(graph: NodeGraph, name: str) -> tuple[str, bool]:
    """The sequence before a reversal of its first axis, and whether it was reversed."""
    node = graph.maker.get(name)
    if node is not None and node.op == "Slice" and graph.opset >= 10 and len(node.inputs) == 5:
        start, stop, axis, step = (graph.scalar(i) for i in node.inputs[1:5])
        if start == -1 and stop is not None and stop <= -_FAR and axis == 0 and step == -1:
            return node.inputs[0], True
    return name, False


def _absorb(graph: NodeGraph, name: str, cell: Recognised) -> tuple[str, Recognised]:
    """If the sequence is itself x @ W (+ bias) and the step uses it unchanged, move the product into the cell."""
    size = cell.spec.input_size
    if not np.array_equal(cell.W, np.eye(size, dtype=np.float32)):
        return name, cell
    node, bias = graph.maker.get(name), None
    if node is not None and node.op == "Add":
        sides = [i for i in node.inputs if i in graph.constants]
        if len(sides) == 1 and graph.constants[sides[0]].shape == (size,):
            bias = graph.constants[sides[0]]
            node = graph.maker.get(next(i for i in node.inputs if i not in graph.constants))
    if node is None or node.op != "MatMul" or (bias is not None and cell.Rb is not None and cell.Rb.any()):
        return name, cell
    weight = graph.constants.get(node.inputs[1])
    if weight is None or weight.ndim != 2 or weight.shape[1] != size:
        return name, cell
    # The step's bias was the only one, so it was read as Wb; it is the recurrent one.
    wb, rb = cell.Wb, cell.Rb
    if bias is not None:
        wb, rb = bias.astype(np.float32), np.zeros(size, np.float32) if cell.Wb is None else cell.Wb
    spec = replace(cell.spec, input_size=weight.shape[0])
    return node.inputs[0], Recognised(spec, np.ascontiguousarray(weight.T, dtype=np.float32), cell.R, wb, rb)
