"""Scan and Loop: a body that runs for every step, with values carried from step to step.

The body is walked once, for one step, and lifted over all of them (lift.py); a carried value becomes a `state` node.
If the file fixes the number of steps and it is not a size of an input, the body is written out instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ....errors import ModelFormatError, ShapeError
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading.nodes import OnnxNode
from ..reading.reader import NodeReader, axis_of
from ..reading.registry import op
from ..reading.values import Collected, Const, Fill, Ints, Items, Live, ints, scalar, uniform
from .lift import Lift
from .loop_cells import alias, counts_up, trip_of
from .recognise import NotACell

# Handled by `run`, which needs the walk itself.
op("Scan", attrs="body num_scan_inputs scan_input_axes scan_input_directions scan_output_axes scan_output_directions")(
    None
)
op("Loop", attrs="body")(None)

KINDS = ("Scan", "Loop")
MAX_WRITTEN = 20_000  # most nodes in a body that is written out
_ENDLESS = 1 << 31  # exporters of `while` write this many steps or more


@dataclass
class Body:
    """A subgraph: its nodes, the names of its inputs and outputs, its constants by name. walk: runs its nodes. outer:
    values of the enclosing graph by name."""

    nodes: list[OnnxNode]
    constants: dict[str, np.ndarray]
    inputs: list[str]
    outputs: list[str]
    walk: Callable[[dict], dict]  # values of the inputs -> values of everything
    outer: dict


def run(ctx, node: OnnxNode, values: list, opset: int, body: Body, needed: list[bool]) -> list:
    """The outputs of a Scan or Loop. values: of its inputs. needed: which outputs have readers."""
    reader = NodeReader(node, values, opset, needed)
    reader.elsewhere("body")
    made = (_scan if node.op == "Scan" else _loop)(ctx, reader, body)
    reader.finish()
    return made


# --- Scan -----------------------------------------------------------------------------------------------------------


def _scan(ctx, n: NodeReader, body: Body) -> list:
    if n.opset < 9:
        raise Finding("a Scan of opset 8, which runs over the batch as well")
    count = n.attr("num_scan_inputs", "int", 0)
    carried = len(n.values) - count
    collected = len(body.outputs) - carried
    if not 0 < count <= len(n.values) or len(body.inputs) != len(n.values) or collected < 0:
        raise ModelFormatError(
            f"{len(n.values)} inputs of which {count} are scanned, a body of {len(body.inputs)} inputs and "
            f"{len(body.outputs)} outputs"
        )
    axes, turned = _list(n, "scan_input_axes", count), _list(n, "scan_input_directions", count)
    out_axes, out_turned = _list(n, "scan_output_axes", collected), _list(n, "scan_output_directions", collected)
    scanned = []
    for k in range(count):
        x = ctx.live(n.input(carried + k))
        axis = axis_of(axes[k], len(x.dims))
        if scanned:
            ctx.equal(scanned[0].dims[0], x.dims[axis], "scanned inputs must have equally many steps")
        x = ctx.transpose(x, (axis, *(a for a in range(len(x.dims)) if a != axis)))
        scanned.append(ctx.slice(x, 0, x.dims[0] - 1, -1, -1) if turned[k] else x)
    loop = _Steps(ctx, n, body, scanned[0].dims[0], [n.input(k) for k in range(carried)])
    loop.forward = not any(turned)
    loop.scanned = dict(zip(body.inputs[carried:], scanned, strict=True))
    loop.carry(dict(zip(body.inputs[:carried], body.outputs[:carried], strict=True)))
    finals, sequences = loop.outputs(body.outputs[carried:])
    for k, y in enumerate(sequences):
        if y is None:
            continue
        y = ctx.slice(y, 0, y.dims[0] - 1, -1, -1) if out_turned[k] else y
        axis = axis_of(out_axes[k], len(y.dims))
        sequences[k] = ctx.transpose(y, (*range(1, axis + 1), 0, *range(axis + 1, len(y.dims))))
    return [*finals, *sequences]


def _list(n: NodeReader, name: str, count: int) -> list[int]:
    found = n.attr(name, "ints") or [0] * count
    if len(found) != count or ("directions" in name and not set(found) <= {0, 1}):
        raise ModelFormatError(f"{name}={found} for {count} values")
    return found


# --- Loop -----------------------------------------------------------------------------------------------------------


def _loop(ctx, n: NodeReader, body: Body) -> list:
    carried = len(n.values) - 2
    if carried < 0 or len(body.inputs) != carried + 2 or len(body.outputs) < carried + 1:
        raise ModelFormatError(
            f"{len(n.values)} inputs, a body of {len(body.inputs)} inputs and {len(body.outputs)} outputs"
        )
    starts = [n.input(2 + k) for k in range(carried)]
    n.input(0, optional=True)
    trip, kept, counters = _plan(n, body, starts)
    _begins(ctx, n.input(1, optional=True), trip)
    loop = _Steps(ctx, n, body, trip, starts)
    loop.counters = counters
    loop.known = {body.inputs[1]: Const(np.array(True))} | {body.inputs[2 + k]: starts[k] for k in kept}
    loop.kept = {body.inputs[2 + k]: starts[k] for k in kept}
    loop.carry(dict(zip(body.inputs[2:], body.outputs[1 : 1 + carried], strict=True)))
    finals, sequences = loop.outputs(body.outputs[1 + carried :])
    return [*finals, *sequences]


def _begins(ctx, condition, steps) -> None:
    """Check that the condition before the first step agrees with the number of steps: always true, or 0 < steps."""
    if condition is None:
        return
    if isinstance(condition, Const | Fill):
        value = uniform(condition)
        if value is None or isinstance(value, Dim) or not value:
            raise Finding("a Loop whose condition is false from the start")
        return
    made = [e for e in ctx.nodes if isinstance(condition, Live) and condition.name in e[3] and e[0] == "binary"]
    for _, _, (zero, size), _, attrs in made:
        numbers = [dim for (dim, _), value in ctx.known_numbers() if value.name == size]
        start = ctx.constants.get(zero)
        if attrs["fn"] == "less" and start is not None and not start.any() and numbers == [steps]:
            return
    raise Finding("a Loop whose condition depends on values before its first step")


def _plan(n: NodeReader, body: Body, starts: list) -> tuple:
    """(trip count, carried values that never change, names of body inputs that count the steps)."""
    maker = {o: part for part in body.nodes for o in part.outputs if o}
    read = {i for part in body.nodes for i in part.inputs} | set(body.outputs)
    outside = {i: body.outer[i] for i in read if i in body.outer and i not in maker}
    constants = {i: v.array for i, v in outside.items() if isinstance(v, Const) and v.array.size <= 1 << 16}
    constants |= body.constants | _own_constants(body.nodes)
    ins, outs = body.inputs, body.outputs
    kept = {k for k in range(len(starts)) if alias(maker, outs[1 + k]) == ins[2 + k]}
    for k in kept:
        if isinstance(starts[k], Const):
            constants[ins[2 + k]] = starts[k].array
    counters = {ins[0]}
    for k, start in enumerate(starts):
        if isinstance(start, Const) and uniform(start) == 0 and counts_up(maker, constants, outs[1 + k], ins[2 + k]):
            counters.add(ins[2 + k])
    record = n.node
    first = body.outer.get(record.inputs[0]) if record.inputs[0] else None
    number = _count(first)
    if number is not None and not isinstance(number, Dim) and number >= _ENDLESS:  # the same as no limit
        record, number = OnnxNode(record.op, "", record.label, ["", *record.inputs[1:]], record.outputs), None
    try:
        name = trip_of(maker, constants, record, ins, outs, kept, counters)
    except NotACell:
        name = None
    limit = body.outer.get(name) if name is not None else None
    steps = number if name is not None and name == n.node.inputs[0] else _count(limit)
    if steps is None:
        raise Finding("a Loop whose number of steps depends on values; it must be known")
    return steps, kept, counters


def _own_constants(nodes: list[OnnxNode]) -> dict:
    """Small tensors of Constant nodes."""
    from ..reading import files

    found = {}
    for node in nodes:
        if node.op == "Constant" and "value" in node.attrs and not node.domain:
            tensor = node.attrs["value"].t
            if max(tensor.dims, default=1) <= 1 << 16:
                found[node.outputs[0]] = files.tensor(tensor, None)
    return found


def _count(value):
    """A number of steps as an int or a Dim; None if it is unknown."""
    if isinstance(value, Ints) and value.array.size == 1:
        return value.array.reshape(-1)[0]
    number = uniform(value) if isinstance(value, Const) and value.array.size == 1 else None
    return None if number is None else int(number)


# --- common to both -------------------------------------------------------------------------------------------------


class _Steps:
    """All steps of a body. steps: how many. scanned: body input -> sequence [steps, ..]. counters: body inputs that
    hold the step number. known, kept: body inputs that are the same at every step (kept: carried ones)."""

    def __init__(self, ctx, n: NodeReader, body: Body, steps, starts: list):
        self.ctx, self.n, self.body, self.steps, self.starts = ctx, n, body, steps, starts
        self.scanned: dict[str, Live] = {}
        self.counters: set[str] = set()
        self.known: dict = {}
        self.kept: dict = {}
        self.forward = True
        self.pairs: dict[str, str] = {}

    def carry(self, pairs: dict[str, str]) -> None:
        """Set the carried values: body input -> body output, in order."""
        self.pairs = pairs
        self.start = dict(zip(pairs, self.starts, strict=True))

    def outputs(self, collected: list[str]) -> tuple[list, list]:
        """(final carried values, sequences of the collected outputs)."""
        given = dict(self.start)
        self._free_rows()
        steps = self.steps if isinstance(self.steps, Dim) else self._thawed()
        if isinstance(steps, Dim):
            return self._lifted(steps, collected)
        self.start = given
        return self._written_out(steps, collected)

    def _thawed(self):
        """The number of steps; a fixed number becomes the length of a sequence if each step takes one of its
        elements."""
        mark, labels = len(self.ctx.nodes), set(self.ctx.labels)
        values = self._one_step()
        self.body.walk(values)
        counts, found = {values[c].name for c in self.counters}, []
        for kind, _, inputs, outputs, attrs in self.ctx.nodes[mark:]:
            if kind in ("cast", "reshape") and inputs[0] in counts:
                counts.add(outputs[0])
            if kind == "gather" and inputs[1] in counts:
                found.append(self.ctx.values[inputs[0]].dims[attrs["axis"]])
        del self.ctx.nodes[mark:]
        self.ctx.labels = labels
        for size in found:
            if isinstance(size, Dim) and self.ctx.table.genuine(size) and self.ctx.table.example(size) == self.steps:
                return size
        return self.steps

    def _one_step(self) -> dict:
        """Values of the body's inputs at one representative step."""
        values = dict(self.known)
        for name, sequence in self.scanned.items():
            values[name] = self._placeholder(sequence.dtype, sequence.dims[1:])
        for name in self.counters:
            values[name] = self._placeholder("int64", self.start[name].dims if name in self.start else ())
        for name, start in self.start.items():
            if name in values:
                continue
            if isinstance(start, Collected):
                if start.parts:
                    raise Finding("a sequence that is not empty before the first step")
                values[name] = start
            else:
                values[name] = self._placeholder(self.ctx.kind(start), start.dims)
        return values

    def _placeholder(self, dtype: str, dims: tuple) -> Live:
        return self.ctx.declare(self.ctx.fresh(f"{self.ctx.label}:step"), dtype, tuple(dims))

    def _lifted(self, steps: Dim, collected: list[str]) -> tuple[list, list]:
        """Steps over a size of the input: one cycle, with each carried value as a state."""
        ctx, label = self.ctx, self.ctx.label
        self._widen()
        inner, mark = self._one_step(), len(ctx.nodes)
        made = self.body.walk(inner)
        entries, ctx.nodes[mark:] = ctx.nodes[mark:], []
        ctx.label = label
        lift, states = Lift(ctx, steps), {}
        lift.counters = {inner[name].name for name in self.counters}
        for name, sequence in self.scanned.items():
            lift.give(inner[name], sequence)
        for name in self.pairs:
            if name not in self.known and name not in self.counters and isinstance(inner[name], Live):
                states[name] = self._state(lift, inner[name], self.start[name], steps)
        lift.nodes(entries)
        ctx.label = label
        finals = []
        for name, out in self.pairs.items():
            finals.append(self._final(lift, name, made[out], states, steps))
        sequences = [lift.whole(made[out]) for out in collected]
        self._roles(steps, sequences)
        return finals, sequences

    def _free_rows(self) -> None:
        """Make constant initial values follow the batch. If such a constant has as many equal rows as the file's own
        batch, it starts as one row, and the body makes as many rows as needed."""
        given, mark, labels = dict(self.start), len(self.ctx.nodes), set(self.ctx.labels)
        for name, start in given.items():
            rows = start.dims[0] if isinstance(start, Const | Fill) and start.dims else 1
            if name in self.known or name in self.counters or isinstance(rows, Dim) or rows < 2:
                continue
            if isinstance(start, Const) and not (start.array == start.array[:1]).all():
                continue
            one = start.array[:1] if isinstance(start, Const) else None
            self.start[name] = Fill(start.value, start.dtype, (1, *start.dims[1:])) if one is None else Const(one)
        cut = [name for name in given if self.start[name] is not given[name]]
        if not cut:
            return
        try:
            self._widen()
            good = all(
                isinstance(size := self.start[name].dims[0], Dim)
                and self.ctx.table.example(size) == given[name].dims[0]
                for name in cut
            )
        except (ModelFormatError, ShapeError, Finding):
            good = False
        if not good:
            self.start = given
            del self.ctx.nodes[mark:]
            self.ctx.labels = labels

    def _widen(self) -> None:
        """Expand carried values that begin as one row and continue as several."""
        mark, labels = len(self.ctx.nodes), set(self.ctx.labels)
        inner = self._one_step()
        made = self.body.walk(inner)
        for name, out in self.pairs.items():
            after = made[out]
            if name in self.known or name in self.counters or not isinstance(inner[name], Live):
                continue
            if not isinstance(after, Live | Const | Fill) or len(after.dims) != len(inner[name].dims):
                raise ModelFormatError(f"the carried value {name!r} changes its rank or dtype from step to step")
            before, dims = inner[name].dims, after.dims
            if before != dims and all(a == b or a == 1 for a, b in zip(before, dims, strict=True)):
                del self.ctx.nodes[mark:]
                self.ctx.labels = set(labels)
                start = self.start[name]
                same = Fill(start.value, start.dtype, dims) if isinstance(start, Fill) else None
                self.start[name] = same or self.ctx.one("expand", start, dims=dims)
                return self._widen()
            for a, b in zip(before, dims, strict=True):
                self.ctx.equal(a, b, f"the carried value {name!r} must keep its size from step to step")
        del self.ctx.nodes[mark:]
        self.ctx.labels = labels
        return None

    def _state(self, lift: Lift, placeholder: Live, start, steps) -> list:
        """The entry of a state node; its first input is set once that value exists."""
        ctx = self.ctx
        zero = isinstance(start, Const | Fill) and uniform(start) == 0 and placeholder.dtype != "bool"
        initial = None if zero else ctx.live(start).name
        prev = ctx.declare(ctx.fresh(f"{ctx.label}:prev"), placeholder.dtype, (steps, *placeholder.dims))
        name, k = ctx.label, 2
        while name in ctx.labels:
            name, k = f"{ctx.label}.{k}", k + 1
        ctx.labels.add(name)
        entry = ["state", name, ("", initial), [prev.name], {}]
        ctx.nodes.append(entry)
        lift.give(placeholder, prev)
        ctx.cells += 1
        return entry

    def _final(self, lift: Lift, name: str, after, states: dict, steps):
        """A carried value after the last step."""
        ctx = self.ctx
        if name in self.kept:
            return self.kept[name]
        if name in self.counters:
            return ints([steps]) if self.start[name].dims else scalar(steps)
        if isinstance(after, Collected):
            if len(after.parts) != 1:
                raise Finding("a sequence that does not grow by exactly one value per step")
            return Items(lift.whole(after.parts[0]), 0, False)
        sequence = lift.whole(after)
        states[name][2] = (sequence.name, states[name][2][1])
        if not self.n.needed[list(self.pairs).index(name)]:
            return None
        return ctx.reshape(ctx.slice(sequence, 0, steps - 1, steps), sequence.dims[1:])

    def _roles(self, steps, sequences: list) -> None:
        """The axis of the steps is time; the first axis of a carried value, if free, is batch."""
        batch = next(
            (s.dims[0] for s in self.start.values() if getattr(s, "dims", ()) and isinstance(s.dims[0], Dim)), 1
        )
        if batch == 1:
            batch = next((s.dims[1] for s in sequences if len(s.dims) > 2 and isinstance(s.dims[1], Dim)), 1)
        self.ctx.table.cell(self.ctx.label, steps, batch, forward=self.forward)

    def _written_out(self, steps: int, collected: list[str]) -> tuple[list, list]:
        """A fixed number of steps: the body once per step."""
        if steps < 0 or steps * max(len(self.body.nodes), 1) > MAX_WRITTEN:
            raise Finding(
                f"{steps} steps of {len(self.body.nodes)} nodes each; written out, at most {MAX_WRITTEN} nodes"
            )
        ctx, label = self.ctx, self.ctx.label
        now = dict(self.start)
        parts: list[list] = [[] for _ in collected]
        for t in range(steps):
            ctx.label = label
            values = {**self.known, **now}
            for name, sequence in self.scanned.items():
                values[name] = ctx.reshape(ctx.slice(sequence, 0, t, t + 1), sequence.dims[1:])
            for name in self.counters:
                dims = self.start[name].dims if name in self.start else ()
                values[name] = Const(np.full(dims, t, np.int64))
            made = self.body.walk(values)
            now = {name: made[out] for name, out in self.pairs.items()}
            for part, out in zip(parts, collected, strict=True):
                part.append(made[out])
        ctx.label = label
        if steps == 0 and collected:
            raise Finding("no steps at all")
        joined = [ctx.concat([ctx.reshape(v, (1, *v.dims)) for v in part], 0) for part in parts]
        return [self.kept.get(name, value) for name, value in now.items()], joined
