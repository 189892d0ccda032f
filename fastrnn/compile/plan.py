"""Plan: what this machine does for a graph, as a flat list of kernel calls over one arena.

A plan is built once per graph, mode and instruction set. It serves every batch and length: each integer that an op
needs (sizes, strides, offsets) is a dim over batch and time, and binding a plan to sizes is one small matrix product
(`Plan.coefficients`). A plan is never saved.

Modes
    "run"     inputs and outputs as the file has them; states start from the file's initial states.
    "stream"  inputs and outputs are contiguous [batch, time, features...] (no time axis if the file has none);
              states are stored in one slab row per stream and are kept between calls.
"""

from __future__ import annotations

from dataclasses import field
from functools import cached_property

import numpy as np

from ..errors import FastRNNError, ShapeError
from ..graph import Graph, Value, check_required
from ..graph import dims as D
from ..records import dataclass
from ..streaming.timetable import Timetable
from .tensors import ITEMSIZE, Buffer, Tensor, contiguous

LARGEST = 1 << 60  # of a size, offset or stride; larger ones could wrap around in int64 and then look small
SPAN = D.symbol("span")  # steps in the caller's arrays; one call of a stream plan takes `time` of them
STEP = D.symbol("step")  # the current step of a loop: only in offsets of its body's ops, and linear there


@dataclass(frozen=True)
class Op:
    """One kernel call. kind: a key of `_executor.OP_FIELDS`; fields: that kind's integers (ints or dims) by name.

    node: the graph node it came from, for people. flops: multiply-adds times two, as a dim; for the cost model.
    """

    kind: str
    fields: dict
    node: str
    flops: object = 0

    def __str__(self):
        shown = ", ".join(f"{k}={v}" for k, v in self.fields.items() if not isinstance(v, Buffer))
        return f"{self.kind}({shown})  # {self.node}"


@dataclass(frozen=True)
class StateSlot:
    """A part of a slab row: `size` elements of `dtype` from float32 number `offset`. name: as in `Model.states`.

    dims : as users see them, without batch; () for [size]. "context" represents a bound that isn't given yet.
    """

    name: str
    node: str
    part: str
    offset: int
    size: int
    dtype: str = "float32"
    dims: tuple = ()

    @property
    def floats(self) -> int:
        """The number of float32 places that it takes."""
        return self.size * ITEMSIZE[self.dtype] // 4


@dataclass
class Plan:
    """A flat list of ops and everything they refer to. Built by `fastrnn.compile.lowering.lower`; immutable afterwards.

    bodies : ops of each loop, which its op in `ops` runs at every step (field `body`: which).
    inputs, outputs : tensors of the arguments, whose buffers have kind "input" / "output" and index their position.
    constants : arrays that ops read as they are. cells, linears : packed weights. programs : elementwise programs.
    conditions : (dim, text): if the dim is negative at the sizes of a call, the call is rejected with the text.
    slot_sizes : arena slots, each the list of (bytes, an int or dim; cap in bytes or None) of the buffers in it.
    timetable : when the values of a stream come; None in mode "run". If it is not plain, dims are over its symbols,
        and a call is bound to the number of its counts in place of the time.
    position : where a slab row counts its stream's steps, -1 if no op needs the count.
    room : how many steps a stream can take in total, None for any number; room_text says why.
    may_fail : a call can fail halfway, depending on the contents of its inputs.
    """

    mode: str
    isa: str
    graph: Graph
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    bodies: list[list[Op]] = field(default_factory=list)
    constants: list[np.ndarray] = field(default_factory=list)
    cells: list = field(default_factory=list)
    linears: list = field(default_factory=list)
    programs: list[tuple] = field(default_factory=list)
    states: list[StateSlot] = field(default_factory=list)
    conditions: list[tuple] = field(default_factory=list)
    slot_sizes: list[list] = field(default_factory=list)
    arena: list[Buffer] = field(default_factory=list)
    timetable: Timetable | None = None
    position: int = -1
    room: int | None = None
    room_text: str = ""
    may_fail: bool = False

    @property
    def paced(self) -> bool:
        """Whether values have their own paces, so that calls are bound to counts of the timetable."""
        return self.timetable is not None and not self.timetable.plain

    @cached_property  # read at every step; computing it takes 350 us for the 1,000 values of GTCRN
    def steps_one(self) -> bool:
        """Whether the graph is a step function: none of its values has a time axis."""
        return not has_time(self.graph)

    @cached_property
    def has_batch(self) -> bool:
        """Whether some value of the graph has a batch axis."""
        return any("batch" in D.symbols(d) for v in self.graph.values.values() for d in v.dims)

    def depends(self, name: str) -> bool:
        """Whether the graph may be invalid for some sizes `name`, so that `check_sizes` must see it."""
        required = [dim for dim, _ in self.graph.requires]
        return any(name in D.symbols(dim) for dim in (*required, *(dim for dim, _ in self.all_conditions)))

    @cached_property
    def all_conditions(self) -> list[tuple]:
        """`conditions`, and that no axis of any value is below 0: (dim, text) pairs, each dim once."""
        texts: dict[object, str] = {}
        for dim, text in self.conditions:
            texts.setdefault(dim, text)
        for node in self.graph.nodes:
            for name in node.outputs:
                for axis, dim in enumerate(() if name is None else self.graph.values[name].dims):
                    if isinstance(dim, D.Dim) and D.may_be_negative(dim):
                        text = f"node {node.name} ({node.op}): axis {axis} of what it makes has {dim} elements"
                        texts.setdefault(dim, text)
        return list(texts.items())

    def check_sizes(self, batch: int, time: int) -> None:
        """Raise ShapeError if the graph is invalid at these sizes (for example a slice of missing steps)."""
        if self.paced:  # the timetable counts no steps below 0, and checks that a sequence is long enough
            return
        sizes = {"batch": batch, "time": time}
        check_required(self.graph, sizes)
        for dim, text in self.all_conditions:
            if D.evaluate(dim, sizes) < 0:
                raise ShapeError(f"{text}, but batch is {batch} and time is {time}: give other sizes")

    @property
    def flops(self):
        """Floating-point operations of one call, an int or dim."""
        return sum((op.flops for op in self.every_op), 0)

    @property
    def every_op(self) -> list[Op]:
        """The ops, then those of the loops' bodies."""
        return [*self.ops, *(op for body in self.bodies for op in body)]

    @property
    def state_size(self) -> int:
        """float32 elements of a slab row."""
        return sum(s.floats for s in self.states)

    def __str__(self):
        lines = [
            f"plan {self.graph.name} ({self.mode}, {self.isa}): {len(self.ops)} ops, {self.state_size} state floats"
        ]
        for op in self.ops:
            lines.append(f"  {op}")
            if op.kind == "loop":
                lines += [f"    {inner}" for inner in self.bodies[op.fields["body"]]]
        return "\n".join(lines)


def split_step(dim) -> tuple:
    """(value at step 0, growth per step) of an int or a dim that is linear in STEP."""
    if "step" not in D.symbols(dim):
        return dim, 0
    start = D.substitute(dim, {"step": 0})
    return start, D.substitute(dim, {"step": 1}) - start


class Coefficients:
    """Integers that depend on batch and time, collected so that all are evaluated by one matrix product.

    timetable : if given, `time` is the number of its counts, and the integers depend on its symbols.
    """

    def __init__(self, timetable: Timetable | None = None):
        self.timetable = timetable
        self.monomials: dict[tuple, int] = {(): 0}
        self.rows: list[dict[int, int]] = []

    def add(self, dim) -> None:
        """Append one dim (or int); its value will be element `len(rows) - 1` of the evaluated vector."""
        row = {}
        for mono, coef in D._terms(dim).items():
            row[self.monomials.setdefault(mono, len(self.monomials))] = coef
        self.rows.append(row)

    def add_ops(self, plan: Plan, names: dict, first: dict) -> list[int]:
        """Append the fields of every op, those of loop bodies last. Returns where each begins, and where all end.

        names : kind -> its fields in order. first : kind of a buffer -> the number of the first of that kind.
        """
        starts, moves = [], {}
        for i, op in enumerate(plan.every_op):
            starts.append(len(self.rows))
            known = dict.fromkeys(names[op.kind], 0)
            unknown = [k for k in op.fields if k not in known]
            if unknown:
                raise FastRNNError(f"op {op.kind} of node {op.node} has no field {unknown}")
            for value in (known | op.fields).values():
                value = first[value.kind] + value.index if isinstance(value, Buffer) else value
                start, per_step = split_step(value)
                if per_step != 0:
                    moves.setdefault(i, []).append((len(self.rows), per_step))
                self.add(start)
        starts.append(len(self.rows))
        self._add_loops(plan, starts, moves)
        return starts

    def _add_loops(self, plan: Plan, starts: list[int], moves: dict[int, list]) -> None:
        """Where each loop's body is, and which of its integers change per step: pairs (integer, distance)."""
        place, places = len(plan.ops), []
        for body in plan.bodies:
            places.append((place, len(body)))
            place += len(body)
        for i, op in enumerate(plan.ops):
            if op.kind != "loop":
                continue
            place, count = places[op.fields["body"]]
            pairs = [pair for k in range(place, place + count) for pair in moves.get(k, ())]
            for k, value in enumerate((place - i, count, len(self.rows), len(pairs)), starts[i] + 1):
                self.rows[k] = {0: value}
            for integer, distance in pairs:
                self.add(integer)
                self.add(distance)

    def matrix(self) -> np.ndarray:
        """int64 [rows, monomials]. Raises ShapeError for a size that does not fit an integer."""
        out = np.zeros((len(self.rows), len(self.monomials)), np.int64)
        for i, row in enumerate(self.rows):
            for j, coef in row.items():
                if abs(coef) > LARGEST:
                    raise ShapeError(f"the model works with arrays of {coef} elements or bytes: no memory holds them")
                out[i, j] = coef
        return out

    def degree(self, name: str) -> int:
        """The highest power of a symbol; 2 or more if it is inside a floor or a max."""
        floors = any(name in D.symbols(atom.num) for m in self.monomials for atom in m if not isinstance(atom, str))
        return 2 if floors else max(mono.count(name) for mono in self.monomials)

    def holds(self, name: str) -> np.ndarray:
        """bool [monomials]: which of them contain a symbol (not inside a floor or a max)."""
        return np.array([name in mono for mono in self.monomials])

    def evaluate_monomials(self, batch: int, time: int, span: int) -> np.ndarray:
        """int64 [monomials] at these sizes. Raises ShapeError if a size would not fit any memory."""
        env = {"batch": batch, "time": time, "span": span}
        if self.timetable is not None:
            env |= self.timetable.sizes(time)
        values = []
        for mono in self.monomials:
            value = 1
            for atom in mono:
                value *= D.evaluate_atom(atom, env)
            if abs(value) > 1 << 46:
                raise ShapeError(f"batch {batch} and time {time} are too large for this model")
            values.append(value)
        return np.array(values, np.int64)


class Builder:
    """Builds a plan for lowering: buffers, tensors of values, ops; then `finish` places the arena."""

    def __init__(self, graph: Graph, mode: str, isa: str):
        self.plan = Plan(mode, isa, graph)
        self.graph = graph
        self.sink = self.plan.ops  # where ops go: the plan, or a loop's body
        self.repeats: object = 1  # how many times one call runs the ops that are emitted now
        self.emitted = 0

    # -- buffers and tensors --
    def allocate(self, dtype: str, dims, order=None) -> Tensor:
        """A fresh dense tensor in the arena."""
        buffer = Buffer("arena", dtype, D.product(dims))
        self.plan.arena.append(buffer)
        return contiguous(buffer, dims, order)

    def scratch(self, size, cap: int | None = None) -> Buffer:
        """Room in the arena for `size` floats, an int or dim; more than `cap` would not help."""
        self.plan.arena.append(Buffer("arena", "float32", size, cap=cap))
        return self.plan.arena[-1]

    def keep(self, node: str, part: str, size: int, dtype: str = "float32", dims: tuple = (), name: str = "") -> int:
        """A `StateSlot` at the end of the slab row; returns its offset. name: by default the node's."""
        self.plan.states.append(StateSlot(name or node, node, part, self.plan.state_size, size, dtype, dims))
        return self.plan.states[-1].offset

    def constant(self, array: np.ndarray, dtype: str) -> Tensor:
        """A tensor over a constant array that ops read in place."""
        array = np.ascontiguousarray(array).reshape(array.shape)  # ascontiguousarray turns a scalar into rank 1
        buffer = Buffer("const", dtype, array.size, index=len(self.plan.constants))
        self.plan.constants.append(array)
        return contiguous(buffer, array.shape)

    def argument(self, kind: str, index: int, value: Value) -> Tensor:
        """The tensor of input or output `index`; in stream mode memory is [batch, SPAN, features...].

        SPAN is how many steps the caller's array holds; one call of the plan may take a part of them. A value without
        a time axis has none there either, unless the whole model is a step function: then a call takes one step of it.
        """
        buffer = Buffer(kind, value.dtype, D.product(value.dims), index=index)
        if self.plan.mode == "run":
            return contiguous(buffer, value.dims)
        batch, time = axis_of(value.dims, "batch"), self.time_axis(value.dims)
        features = [a for a in range(len(value.dims)) if a not in (batch, time)]
        strides, step = [0] * len(value.dims), 1
        for axis in reversed(features):
            strides[axis] = step
            step = value.dims[axis] * step
        if time is not None:
            strides[time] = step
        if time is not None and self.plan.paced:  # a call has its own arrays, with exactly its steps
            step = value.dims[time] * step
        elif time is not None or self.plan.steps_one:
            step = SPAN * step
        if batch is not None:
            strides[batch] = step
        order = [a for a in (batch, time) if a is not None] + features
        return Tensor(buffer, value.dims, tuple(strides), 0, tuple(order))

    def time_axis(self, dims) -> int | None:
        """The axis along which a value of this plan has steps; None if absent."""
        names = {"time"} if self.plan.timetable is None else {"time", *self.plan.timetable.names}
        return next((axis for axis, dim in enumerate(dims) if D.symbols(dim) & names), None)

    # -- ops --
    def emit(self, kind: str, node: str, reads=(), writes=(), flops=0, **fields) -> None:
        """Append an op. reads, writes: the tensors or buffers whose memory it touches (for their lifetime)."""
        at, self.emitted = self.emitted, self.emitted + 1
        for item in (*reads, *writes):
            buffer = item.buffer if isinstance(item, Tensor) else item
            if buffer.kind == "arena":
                buffer.first = at if buffer.first is None else buffer.first
                buffer.last = at
        self.sink.append(Op(kind, fields, node, flops * self.repeats))

    def begin_loop(self, node: str, steps) -> int:
        """Start the body of a loop over `steps` steps; returns the mark for `end_loop`."""
        mark = self.emitted
        self.emit("loop", node, steps=steps, body=len(self.plan.bodies))
        self.sink, self.repeats = [], steps
        self.plan.bodies.append(self.sink)
        return mark

    def end_loop(self, mark: int, kept) -> None:
        """kept: the tensors that hold something between steps, or for after the loop.

        Their memory, and the memory from before the loop that its body reads, stays alive during the whole loop.
        """
        self.sink, self.repeats = self.plan.ops, 1
        for tensor in kept:
            if tensor.buffer.kind == "arena":
                first = tensor.buffer.first
                tensor.buffer.first = mark if first is None else min(first, mark)
        for buffer in self.plan.arena:
            if buffer.first is not None and buffer.first <= mark < buffer.last:
                buffer.last = max(buffer.last, self.emitted - 1)

    def finish(self) -> Plan:
        """Give every arena buffer a slot. Buffers with disjoint lifetimes share one, most similar sizes first."""
        free: list[int] = []
        ends: dict[int, list[int]] = {}
        slots = self.plan.slot_sizes
        for buffer in sorted((b for b in self.plan.arena if b.first is not None), key=lambda b: b.first):
            for at in [a for a in ends if a < buffer.first]:
                free += ends.pop(at)
            item = ITEMSIZE[buffer.dtype]
            size = (item * buffer.size, None if buffer.cap is None else item * buffer.cap)
            if free:
                best = next((s for s in free if size in slots[s]), free[-1])
                free.remove(best)
                if size not in slots[best]:
                    slots[best].append(size)
            else:
                best = len(slots)
                slots.append([size])
            buffer.index = best
            ends.setdefault(buffer.last, []).append(best)
        return self.plan


def has_time(graph: Graph) -> bool:
    """Whether some value of the graph has a time axis. A graph without one is a step function."""
    return any("time" in D.symbols(d) for v in graph.values.values() for d in v.dims)


def axis_of(dims, name: str) -> int | None:
    """The axis whose dim depends on the symbol `name`; None if absent."""
    for axis, dim in enumerate(dims):
        if name in D.symbols(dim):
            return axis
    return None
