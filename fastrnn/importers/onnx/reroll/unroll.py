"""Recurrences that an exporter wrote out are rolled up into one node again, before the walk.

Two forms are known: one copy of the step's nodes a time step, their results concatenated (PyTorch's new exporter does
this to nn.RNN), and an ONNX Loop over the steps (tf2onnx does this to Keras's SimpleRNN, and to GRU with the reset
before the product). What is not recognised with certainty stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from onnx import AttributeProto

from ....errors import ModelFormatError
from ...shared.ledger import Finding
from ..reading import files
from ..reading.nodes import OnnxNode, plain_nodes, sort_nodes
from ..reading.reader import NodeReader
from ..reading.registry import op
from ..reading.values import Const, Fill, Ints, uniform
from .recognise import Base, NotACell, Product, Recognised, StepReader, SumOf, recognise, starts_at_zero

DOMAIN = "fastrnn.rolled"
X, H, C = Base("x of the step"), Base("h of the step"), Base("c of the step")
_FAR = 2**31 - 1


@dataclass
class Rolled:
    """What a rolled-up node carries beside its inputs (sequence, h0, c0, trip count).

    steps : how many copies there were; None for a Loop, whose trip count is an input.
    flip_x, flip_y : the steps take the sequence from its end; y was put together from its end.
    stack : the axis of y along which the steps are stacked, or None where they are concatenated as they are.
    """

    cell: Recognised
    steps: int | None = None
    flip_x: bool = False
    flip_y: bool = False
    stack: int | None = 0
    rows: int = 1  # the batch that constants within the steps were written for
    split: bool = False  # the steps come from SplitToSequence: PyTorch's newer exporter unrolled a whole nn.RNN itself
    turned: bool = False  # the steps are counted from the end of the sequence
    lead: bool = False  # h has an axis of one before [batch, H], where h0 is not there to tell


def roll_up(nodes: list[OnnxNode], constants: dict, known: set[str], outputs: list[str], opset: int) -> list[OnnxNode]:
    """The nodes with recognised recurrences replaced, sorted and pruned again."""
    graph = _Graph(nodes, dict(constants), opset)
    changed = False
    for node in nodes:
        made = None
        try:
            if node.op == "Concat" and node.domain == "" and node.inputs:
                made = _from_concat(graph, node)
            elif node.op == "Loop" and node.domain == "":
                made = _from_loop(graph, node)
        except (ModelFormatError, ValueError, IndexError, KeyError, TypeError, StopIteration):
            continue  # a malformed node is nothing to roll up; the walk says what is wrong with it
        if made is not None:
            before = {name: graph.maker[name] for name in made.outputs if name}
            steps = {id(n) for n in _steps(graph, node)}
            graph.maker.update(dict.fromkeys(before, made))
            if any(id(n) in steps for n in sort_nodes(graph.maker, known, outputs)):
                graph.maker.update(before)  # one step's result is used by itself: only the file's own length is right
                continue
            changed = True
    if not changed:
        return nodes
    return sort_nodes(graph.maker, known, outputs)


def _steps(graph: _Graph, node: OnnxNode) -> list[OnnxNode]:
    """The nodes that make what a Concat of all steps is made of; none for a Loop."""
    found = [graph.maker[i] for i in node.inputs if i in graph.maker] if node.op == "Concat" else []
    return [graph.maker[n.inputs[0]] if n.op == "Unsqueeze" and n.inputs[0] in graph.maker else n for n in found]


class _Graph:
    """The makers of values, and constants, those of Constant nodes included."""

    def __init__(self, nodes: list[OnnxNode], constants: dict, opset: int):
        self.maker = {o: n for n in nodes for o in n.outputs if o}
        self.constants, self.opset = constants, opset
        self.split: set[str] = set()  # sequences that SplitToSequence takes apart
        for node in nodes:
            if node.op == "Constant" and "value" in node.attrs and node.domain == "":
                tensor = node.attrs["value"].t
                if len(tensor.dims) <= 2 and max(tensor.dims, default=1) <= 1 << 16:
                    try:
                        constants[node.outputs[0]] = files.tensor(tensor, None)
                    except ModelFormatError:
                        continue  # the walk reads it again and says what is wrong

    def scalar(self, name: str) -> int | None:
        array = self.constants.get(name)
        return int(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.dtype.kind in "iu" else None


# --- one copy a step ------------------------------------------------------------------------------------------------


def _take(graph: _Graph, node: OnnxNode, name: str) -> tuple[str, int] | None:
    """(sequence, index) where the value is one time step of a sequence along its first axis."""
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


def _from_concat(graph: _Graph, node: OnnxNode) -> OnnxNode | None:
    """A rolled-up node in place of the Concat of all steps' results, or None."""
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
        # One copy is one step: only an LSTM is unmistakable then, since it names both of its states.
        for chain in (_lstm_chain, _chain) if len(names) > 1 else (_lstm_chain,):
            try:
                return chain(graph, node, names[::-1] if flip_y else names, flip_y, stack)
            except NotACell:
                continue
    return None


def _taker(graph: _Graph, taken: list):
    """What `StepReader` asks of a node: X where it takes one step out of a sequence, which `taken` then has."""

    def item(inner, value):
        found = _take(graph, inner, value)
        if found is None:
            return None
        taken.append(found)
        return X

    return item


def _lstm_chain(graph: _Graph, node: OnnxNode, names: list[str], flip_y: bool, stack: int | None) -> OnnxNode:
    """As `_chain`, for the steps of an LSTM: names are its h, each o * tanh(c). Raises NotACell."""
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
    return _node(node.label, [source, *starts, ""], [node.outputs[0], names[-1], ends[-1]], payload)


def _squashed(graph: _Graph, name: str) -> str:
    """The value c of h = o * tanh(c)."""
    node = graph.maker.get(name)
    sides = [graph.maker.get(i) for i in node.inputs] if node is not None and node.op == "Mul" else []
    # The squash is the one whose argument is itself a sum of products; o is an activation of an affine form.
    for side in sides:
        if side is not None and side.op in ("Tanh", "Relu", "Softsign") and side.domain == "":
            inner = graph.maker.get(side.inputs[0])
            made = [graph.maker.get(i) for i in inner.inputs] if inner is not None and inner.op == "Add" else []
            if len(made) == 2 and all(m is not None and m.op == "Mul" for m in made):
                return side.inputs[0]
    raise NotACell


def _lstm_starts(out, new_c) -> tuple[Base, Base]:
    """h0 and c0 of the first step: the two values from outside that it is made of, c0 a factor of the new c."""
    if not isinstance(new_c, SumOf):
        raise NotACell
    factors = [f for p in (new_c.left, new_c.right) if isinstance(p, Product) for f in (p.left, p.right)]
    cells = [f for f in factors if isinstance(f, Base) and f != X]
    others = _leaves(out) - {c.name for c in cells}
    if len(cells) != 1 or len(others) != 1:
        raise NotACell
    return Base(others.pop()), cells[0]


def _chain(graph: _Graph, node: OnnxNode, names: list[str], flip_y: bool, stack: int | None) -> OnnxNode:
    """names: the results in the order in which they are computed. Raises NotACell."""
    rows, first = 1, None
    start = source = opening = None
    indices = []
    for t, name in enumerate(names):
        taken: list[tuple[str, int]] = []
        step = StepReader(
            graph.maker, graph.constants, {names[t - 1]: H} if t else {}, _taker(graph, taken), graph.opset
        )
        out = step.value(name)
        if t == 0 and not _leaves(out):
            opening, cell = out, None  # h0 was a constant and its product is folded: settled by the second step
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
    return _node(node.label, [source, start or "", "", ""], [node.outputs[0], names[-1], ""], payload)


def _only_leaf(out) -> str:
    """The one value from outside that the first step starts from: h0."""
    found = _leaves(out)
    if len(found) != 1:
        raise NotACell
    return found.pop()


def _leaves(out) -> set[str]:
    """The values from outside that an operand is made of."""
    found: set[str] = set()

    def look(value) -> None:
        if isinstance(value, Base):
            if value not in (X, H, C):
                found.add(value.name)
            return
        for part in getattr(value, "terms", {}):
            look(part)
        for name in ("of", "left", "right"):
            if hasattr(value, name):
                look(getattr(value, name))

    look(out)
    return found


def _unflip(graph: _Graph, name: str) -> tuple[str, bool]:
    """The sequence behind a reversal of its first axis, and whether there was one."""
    node = graph.maker.get(name)
    if node is not None and node.op == "Slice" and graph.opset >= 10 and len(node.inputs) == 5:
        start, stop, axis, step = (graph.scalar(i) for i in node.inputs[1:5])
        if start == -1 and stop is not None and stop <= -_FAR and axis == 0 and step == -1:
            return node.inputs[0], True
    return name, False


def _absorb(graph: _Graph, name: str, cell: Recognised) -> tuple[str, Recognised]:
    """Where the sequence is itself x @ W (+ bias) and the step takes it as it is, the product joins the cell."""
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
    # The step's own bias was the only one and so came out as Wb; it is the recurrent one.
    wb, rb = cell.Wb, cell.Rb
    if bias is not None:
        wb, rb = bias.astype(np.float32), np.zeros(size, np.float32) if cell.Wb is None else cell.Wb
    spec = replace(cell.spec, input_size=weight.shape[0])
    return node.inputs[0], Recognised(spec, np.ascontiguousarray(weight.T, dtype=np.float32), cell.R, wb, rb)


def _node(label: str, inputs: list[str], outputs: list[str], payload: Rolled) -> OnnxNode:
    return OnnxNode("Recurrence", DOMAIN, label, inputs, outputs, {}, payload)


# --- a Loop over the steps ------------------------------------------------------------------------------------------


def _from_loop(graph: _Graph, node: OnnxNode) -> OnnxNode | None:
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


def _loop(graph: _Graph, node: OnnxNode, body, carried: int) -> OnnxNode:
    maker = {o: n for n in plain_nodes(body) for o in n.outputs if o}
    constants = dict(graph.constants)
    constants |= {t.name: files.tensor(t, None) for t in body.initializer if max(t.dims, default=1) <= 1 << 16}
    ins, outs = [i.name for i in body.input], [o.name for o in body.output]
    kept = {k for k in range(carried) if _alias(maker, outs[1 + k]) == ins[2 + k]}
    for k in kept:
        if node.inputs[2 + k] in graph.constants:
            constants[ins[2 + k]] = graph.constants[node.inputs[2 + k]]
    counters = {ins[0]} | {
        ins[2 + k]
        for k in range(carried)
        if _counts(maker, constants, outs[1 + k], ins[2 + k]) and _is(graph.constants.get(node.inputs[2 + k]), 0)
    }
    trip = _trip(maker, constants, node, ins, outs, kept, counters)
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
    """The rolled-up node with the Loop's outputs; those that are neither h, c nor y stay unmade, and must be unused."""
    h, c = states
    y = None
    for k, name in enumerate(outs[1 + carried :]):
        if _alias(maker, name) == _alias(maker, outs[1 + h]) and carried + k < len(node.outputs):
            y = node.outputs[carried + k]
    ends = [node.outputs[k] if k is not None and k < len(node.outputs) else "" for k in (h, c)]
    inputs = [sequence, node.inputs[2 + h], "" if c is None else node.inputs[2 + c], trip]
    return _node(node.label, inputs, [y or "", *ends], payload)


def _alias(maker: dict, name: str) -> str:
    while name in maker and maker[name].op == "Identity" and maker[name].domain == "":
        name = maker[name].inputs[0]
    return name


def _is(array, number: int) -> bool:
    return array is not None and array.size == 1 and array.reshape(-1)[0] == number


def _counts(maker: dict, constants: dict, out: str, start: str) -> bool:
    """Whether the carried value goes up by one a step."""
    node = maker.get(_alias(maker, out))
    if node is None or node.op != "Add":
        return False
    sides = [i for i in node.inputs if i != start]
    return len(sides) == 1 and _is(constants.get(sides[0]), 1)


def _through_casts(maker: dict, name: str) -> str:
    while name in maker and maker[name].op in ("Identity", "Cast"):
        name = maker[name].inputs[0]
    return name


def _trip(maker, constants, node, ins, outs, kept, counters) -> str:
    """The outer value that says how many steps there are: the trip count, or n of the condition `i + 1 < n`."""
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
    if adder is None or adder.op != "Add" or not any(_counts(maker, constants, left, c) for c in counters):
        raise NotACell
    for k in kept:
        if right == ins[2 + k]:
            return node.inputs[2 + k]
    if right in maker or right in ins:
        raise NotACell
    return right


# --- the walk's side ------------------------------------------------------------------------------------------------


@op("Recurrence", domain=DOMAIN)
def _rolled(ctx, n: NodeReader):
    """Inputs: sequence [T, batch, I]; h0, c0 [batch, H] or [1, batch, H]; trip count. Outputs: y, h_n, c_n."""
    payload: Rolled = n.node.payload
    spec, cell = payload.cell.spec, payload.cell
    x = ctx.live(n.input(0))
    starts = [n.input(1, optional=True), n.input(2, optional=True)]
    trip = n.input(3, optional=True)
    if len(x.dims) != 3:
        raise ModelFormatError(f"a recurrence over a value of rank {len(x.dims)}")
    ctx.equal(x.dims[2], spec.input_size, "the features must fit the weights of the recurrence")
    x = _whole(ctx, x, payload, trip)
    time, batch = x.dims[:2]
    states, lead = [], payload.lead
    for start in starts:
        if start is None:
            states.append(None)
            continue
        lead = len(start.dims) == 3
        states.append(_start(ctx, start, batch, spec.hidden_size))
    if payload.rows not in (1, ctx.table.example(batch)):
        ctx.equal(batch, payload.rows, "a recurrence has constants for as many rows")
    ctx.table.cell(ctx.label, time, batch, forward=not payload.flip_x)
    ctx.cells += 1
    reverse = payload.flip_x and payload.flip_y
    if payload.flip_x and not reverse:
        x = ctx.slice(x, 0, time - 1, -1, -1)
    spec = replace(spec, reverse=reverse)
    wanted = [k < len(n.needed) and n.needed[k] for k in range(3 if spec.kind == "lstm" else 2)]
    biases = [None if b is None else Const(b) for b in (cell.Wb, cell.Rb)]
    inputs = [x, Const(cell.W), Const(cell.R), *biases, None, *states, None]
    y, *ends = ctx.emit("cell", inputs, {"spec": spec}, wanted)
    ctx.table.notes.setdefault(f"rolled {ctx.label}", f"{ctx.label}: rolled up into one {spec.kind} cell")
    if y is not None:
        y = ctx.slice(y, 0, time - 1, -1, -1) if payload.flip_y and not reverse else y
        if payload.stack is None and not lead:
            y = ctx.reshape(y, (time * batch, spec.hidden_size))
        elif payload.stack is not None and lead:
            raise Finding("a recurrence whose steps are stacked with an axis of one between")
        elif payload.stack == 1:
            y = ctx.transpose(y, (1, 0, 2))
    ends = [e if e is None or not lead else ctx.reshape(e, (1, *e.dims)) for e in ends]
    return [y, *ends]


def _whole(ctx, x, payload: Rolled, trip):
    """The part of the sequence that the steps cover: all of it, unless the file leaves the length open and yet has one
    copy of the cell for each step of its example: it then reads as many steps of any sequence, no more."""
    time = x.dims[0]
    if payload.steps is not None:
        steps = payload.steps
        sym = ctx.table.single(time)
        if sym is not None and not sym.genuine and payload.split:
            ctx.table.hint(sym, steps, f"{ctx.label} (unrolled {steps} times)")
        if sym is not None and not sym.genuine:
            ctx.table.notes.setdefault(
                f"unrolled {ctx.label}",
                f"{ctx.label}: unrolled {steps} times over a length that the file leaves open: it reads the first "
                f"{steps} steps of any sequence; export the model without dynamic axes to free its length",
            )
            for k in range(steps):
                ctx.table.ledger.single(ctx.label, 0, time, k)
            return ctx.slice(x, 0, time - steps, time) if payload.turned else ctx.slice(x, 0, 0, steps)
    else:
        steps = _count(trip)
        if steps is None:
            raise Finding("a Loop whose trip count is computed from values")
    if steps in (time, ctx.table.example(time)):
        return x
    if not isinstance(steps, int) or payload.flip_x:
        raise Finding(f"a recurrence over {steps} of {time} steps")
    if steps > ctx.table.example(time):
        raise ModelFormatError(f"a recurrence of {steps} steps over a sequence of {ctx.table.example(time)}")
    ctx.table.ledger.count(time, ctx.label, f"takes the first {steps} steps")
    return ctx.slice(x, 0, 0, steps)


def _count(trip):
    if isinstance(trip, Ints) and trip.array.size == 1:
        return trip.array.reshape(-1)[0]
    number = uniform(trip) if isinstance(trip, Const) else None
    return None if number is None else int(number)


def _start(ctx, value, batch, hidden: int):
    """An initial state [batch, H] of any rank that has only ones before, or None where it is zero."""
    dims = value.dims
    if len(dims) < 2 or any(isinstance(d, int) and d != 1 for d in dims[:-2]):
        raise ModelFormatError(f"an initial state with dims {list(map(str, dims))}")
    constant = isinstance(value, (Const, Fill))
    if constant and uniform(value) == 0 and ctx.table.example(dims[-2]) in (1, ctx.table.example(batch)):
        ctx.equal(dims[-1], hidden, "the initial state must fit the hidden size and the batch")
        return None
    for d in dims[:-2]:
        ctx.equal(d, 1, "the initial state must fit the hidden size and the batch")
    ctx.equal(dims[-1], hidden, "the initial state must fit the hidden size and the batch")
    if constant and isinstance(dims[-2], int) and dims[-2] == 1:
        return ctx.one("expand", ctx.reshape(ctx.live(value), (1, hidden)), dims=(batch, hidden))
    ctx.equal(dims[-2], batch, "the initial state must fit the hidden size and the batch")
    return ctx.reshape(ctx.live(value), (batch, hidden))
