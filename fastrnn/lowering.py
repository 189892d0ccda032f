"""Graph -> Plan: one function a graph op, each choosing views where it can and kernels where it must.

`lower(graph, mode, weights)` walks the nodes once. A value becomes a `Tensor`; ops that only move data become views;
a value that a concat or an output is made of is written in place by the op that makes it (`destinations`).
"""

from __future__ import annotations

import numpy as np

from . import _isa
from . import dims as D
from .errors import FastRNNError, UnsupportedError
from .graph import Graph, Node
from .loops import Loop, schedule
from .lowering_attention import AttentionLowering, Context
from .lowering_cells import CellLowering, descendants, is_of_cells
from .lowering_elementwise import ElementwiseLowering
from .lowering_fields import RANK
from .lowering_fields import TYPE_CODES as _TYPE
from .lowering_fields import at as _at
from .lowering_fields import contiguous_last as _contiguous_last
from .lowering_fields import instruction as _instruction
from .lowering_fields import level_fields as _level_fields
from .lowering_loops import LoopLowering
from .lowering_reductions import ReductionLowering
from .lowering_windows import WindowLowering, channels_last_order
from .passes.fuse_elementwise import activations, groups
from .plan import Builder, Plan, StateSlot, axis_of
from .stream_graph import rewrite
from .tensors import ITEMSIZE, Buffer, Tensor, collapse, contiguous
from .timetable import Timetable

MOST_LANES = 16  # float32 of the widest vector: the most that columns are padded by
MAY_FAIL = ("gather",)  # kinds of ops that meet an index that their table does not have


class Weights:
    """Packed weights of one model for one instruction set, shared by its plans."""

    def __init__(self, isa: str | None = None):
        self.isa = isa or _isa.isa_info()["active"]
        self._packed: dict[tuple, object] = {}

    def cell(self, spec, arrays: tuple, key: tuple):
        """The packed cell of these weights; packed at the first call with this key."""
        if key not in self._packed:
            self._packed[key] = _isa.pack_cell(spec, *arrays, isa=self.isa)
        return self._packed[key]

    def linear(self, W, bias, key: tuple):
        """The packed product of these weights; packed at the first call with this key."""
        if key not in self._packed:
            self._packed[key] = _isa.pack_linear(W, bias, isa=self.isa)
        return self._packed[key]

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in list(self._packed.values()))  # another thread may be packing


class Lowering(CellLowering, ReductionLowering, WindowLowering, ElementwiseLowering, LoopLowering, AttentionLowering):
    """One walk over a graph; the methods named `op_...` lower one op each."""

    def __init__(
        self,
        graph: Graph,
        mode: str,
        weights: Weights,
        timetable: Timetable | None = None,
        context: Context | None = None,
    ):
        self.graph, self.mode, self.weights, self.context = graph, mode, weights, context
        self.builder = Builder(graph, mode, weights.isa)
        self.builder.plan.timetable = timetable
        self.plan = self.builder.plan
        self.consumers = graph.consumers()
        self.has_batch = any("batch" in D.symbols(d) for v in graph.values.values() for d in v.dims)
        self.destinations: dict[str, Tensor] = {}
        self.positions: dict[object, int] = {}  # new steps a call -> where a slab row counts them all
        self.sure_lookups: set[str] = set()  # nodes whose indices can't lie outside their table
        self.tensors: dict[str, Tensor] = {}
        self.problems: list[str] = []
        self._chain_slots: dict[tuple, int] = {}
        threaded = set(graph.states) if mode == "stream" else set()
        cells_own = {name for name in threaded if is_of_cells(graph, name)}
        self.fed_by_state = descendants(graph, cells_own)
        self.free_states = [n for n in graph.states if n in threaded - cells_own]
        self.input_names = [n for n in graph.inputs if n not in threaded]
        ends = set(graph.states.values()) if mode == "stream" else set()
        self.output_names = [n for n in graph.outputs if n not in ends]
        self.activations = activations(graph)
        absorbed = {n.name for n in self.activations.values()}
        self.items = schedule(graph)
        # Name of a node on a cycle -> which one.
        self.region = {n.name: k for k, item in enumerate(self.items) if isinstance(item, Loop) for n in item.nodes}
        self.groups = groups(graph, frozenset(absorbed), self.region)
        # Nodes that are computed with another one: nothing is emitted for them.
        self.absorbed = absorbed | {n.name for g in self.groups.values() for n in g.nodes[:-1]}

    def run(self) -> Plan:
        for i, name in enumerate(self.input_names):
            self.tensors[name] = self.builder.argument("input", i, self.graph.values[name])
            self.plan.inputs.append(self.tensors[name])
        for i, name in enumerate(self.output_names):
            tensor = self.builder.argument("output", i, self.graph.values[name])
            self.plan.outputs.append(tensor)
            self._aim(name, tensor)
        for node in reversed(self.graph.nodes):
            if node.op == "concat" and node.name not in self.region:
                self._aim_concat(node)
            elif node.op == "keep":
                self._aim_keep(node)
        places = {name: self._open_state(name) for name in self.free_states}
        wanted = self._wanted_nodes()
        for item in self.items:
            if not isinstance(item, Loop):
                self._lower_nodes((item,) if item.name in wanted else ())
            elif item.name in wanted:
                self._lower_loop(item)
        if self.problems:
            raise UnsupportedError(self.problems, self.graph.name)
        for name, tensor in zip(self.output_names, self.plan.outputs, strict=True):
            self._copy(self.tensor(name), tensor, name)
        for name, (offset, batch_first) in places.items():
            self._close_state(name, offset, batch_first)
        self.advance()
        self.plan.may_fail = any(op.kind in MAY_FAIL and op.node not in self.sure_lookups for op in self.plan.every_op)
        return self.builder.finish()

    def _lower_nodes(self, nodes) -> None:
        """Emit the ops of each node; what can't be lowered is noted, so that all such nodes are named at once."""
        for node in nodes:
            if node.name in self.absorbed:
                continue
            try:
                if node.name in self.groups:
                    self._elementwise_group(self.groups[node.name])
                else:
                    getattr(self, f"op_{node.op}")(node)
            except UnsupportedError as error:
                self._note(node, error)
                if node.name in self.activations:
                    self._stand_in(self.activations[node.name])

    def _lower_loop(self, loop: Loop) -> None:
        try:
            self.loop(loop)
        except UnsupportedError as error:
            self._note(loop.states[0], error)
            for node in (*loop.nodes, *loop.states):
                self._stand_in(node)

    def _note(self, node: Node, error: UnsupportedError) -> None:
        self.problems += [f"node {node.name} ({node.op}): {p}" for p in error.problems]
        self._stand_in(node)

    def _stand_in(self, node: Node) -> None:
        """Some tensors for the outputs of a node that can't be lowered, so that the nodes after it can be looked at."""
        for i, out in enumerate(node.outputs):
            self.result(node, i, fresh=True) if out is not None else None

    # -- states that the caller would thread and that are no cell's own --
    def _open_state(self, name: str) -> tuple:
        """Make the input `name` a tensor that each call fills from the slab; returns (offset, axes batch first)."""
        value = self.graph.values[name]
        if not self.plan.steps_one:
            raise UnsupportedError(
                f"the state {value} feeds other nodes than cells in a model that takes many steps a call"
            )
        if value.dtype != "float32":
            raise UnsupportedError(f"the state {value} is not float32")
        batch = next((i for i, d in enumerate(value.dims) if d == D.BATCH), None)
        order = [*([] if batch is None else [batch]), *(i for i in range(len(value.dims)) if i != batch)]
        size = D.product([d for i, d in enumerate(value.dims) if i != batch])
        if isinstance(size, D.Dim) or (self.has_batch and batch is None):
            raise UnsupportedError(f"the state {value} has no plain batch axis")
        offset = self.plan.state_size
        self.plan.states.append(StateSlot(name, name, "value", offset, size))
        tensor = self.builder.allocate("float32", value.dims, order)
        self.tensors[name] = tensor
        self._state_move("state_store", name, offset, 1, _rows_of(tensor, order, batch, size))
        return offset, (order, batch, size)

    def _close_state(self, name: str, offset: int, batch_first: tuple) -> None:
        """Keep the output that the state `name` becomes."""
        order, batch, size = batch_first
        source = self.tensor(self.graph.states[name])
        dense = self.builder.allocate("float32", source.dims, order)
        self._copy(source, dense, name)
        self._state_move("state_load", name, offset, 1, _rows_of(dense, order, batch, size))

    def _wanted_nodes(self) -> set[str]:
        """Names of the nodes on which an output of this mode depends."""
        producers, wanted, stack = self.graph.producers(), set(), list(self.output_names)
        if self.mode == "stream":  # a state that no output shows is still a state
            stack += [self.graph.states[name] for name in self.free_states]
            keepers = [n for n in self.graph.nodes if n.op in ("cell", "state", "attention")]
            stack += [o for n in keepers for o in n.outputs if o is not None]
        while stack:
            node = producers.get(stack.pop())
            if node is None or node.name in wanted:
                continue
            wanted.add(node.name)
            inputs = node.inputs
            if node.op == "cell":
                inputs = [i for i in inputs if i not in self.fed_by_state]
            elif node.op == "state" and self.mode == "stream":
                inputs = inputs[:1]  # what it begins with is in the slab row
            stack += [i for i in inputs if i is not None]
        return wanted

    # -- where results go --
    def _aim(self, name: str, tensor: Tensor) -> None:
        """Ask whoever makes value `name` to write it into `tensor`, through views that can be undone."""
        if name in self.destinations:
            return
        self.destinations[name] = tensor
        node = self._producer(name)
        if node is None or not node.inputs:
            return
        source = node.inputs[0]
        if node.op == "transpose":
            perm = node.attrs["perm"]
            self._aim(source, tensor.transpose([perm.index(a) for a in range(len(perm))]))
        elif node.op == "reshape" and self.graph.values[name].dims != self.graph.values[source].dims:
            view = tensor.reshape(self.graph.values[source].dims)
            if view is not None:
                self._aim(source, view)

    def _aim_concat(self, node: Node) -> None:
        """Allocate a concat's result now, so that its parts are written straight into it."""
        name, axis = node.outputs[0], node.attrs["axis"]
        if name not in self.destinations:
            users = self.consumers.get(name, [])
            order = users[0].attrs["perm"] if len(users) == 1 and users[0].op == "transpose" else None
            value = self.graph.values[name]
            if self.feeds_window(name):
                order = channels_last_order(len(value.dims))
            self.destinations[name] = self.builder.allocate(value.dtype, value.dims, order)
        whole, start = self.destinations[name], 0
        for part in node.inputs:
            size = self.graph.values[part].dims[axis]
            if node.inputs.count(part) == 1:
                self._aim(part, whole.narrow(axis, start, size))
            start = size + start

    def _producer(self, name: str) -> Node | None:
        if not hasattr(self, "_producers"):
            self._producers = self.graph.producers()
        return self._producers.get(name)

    def result(self, node: Node, i: int = 0, order=None, rows: bool = False, fresh: bool = False) -> Tensor:
        """The tensor that output i of a node is written to: its destination, or a fresh one.

        rows: its last axis must be contiguous. order: memory order of a fresh tensor.
        """
        name = node.outputs[i]
        value = self.graph.values[name]
        tensor = None if fresh else self.destinations.get(name)
        if tensor is not None and rows and not _contiguous_last(tensor):
            tensor = None
        if tensor is None:
            tensor = self.builder.allocate(value.dtype, value.dims, order)
        self.tensors[name] = tensor
        return tensor

    def tensor(self, name: str) -> Tensor:
        """The tensor of a value that is already made (or of a constant)."""
        if name not in self.tensors:
            value, array = self.graph.values[name], self.graph.constants[name]
            if value.dtype == "bool":
                self.tensors[name] = self.builder.constant(array.astype(np.float32), "float32")
            else:
                self.tensors[name] = self.builder.constant(array, value.dtype)
        return self.tensors[name]

    def real(self, node: Node, i: int = 0) -> Tensor:
        """Input i of a node as float32, which is what kernels take; bools become 0.0 and 1.0."""
        return self.real_value(node.inputs[i], node)

    def real_value(self, name: str, node: Node) -> Tensor:
        """The value `name` as float32, for this node."""
        t = self.tensor(name)
        if t.dtype == "bool":
            floats = self.builder.allocate("float32", t.dims, t.order)
            self._copy(t, floats, node.name)
            return floats
        if t.dtype != "float32":
            raise UnsupportedError(f"arithmetic on live {t.dtype} values ({name})")
        return t

    def tensor_or_none(self, node: Node, i: int) -> Tensor | None:
        """The tensor of input i of a node, None where that is absent."""
        name = node.inputs[i] if i < len(node.inputs) else None
        return None if name is None else self.tensor(name)

    def array(self, node: Node, i: int, what: str) -> np.ndarray | None:
        """The array of input i of a node, which must be a constant (None where absent)."""
        name = node.inputs[i] if i < len(node.inputs) else None
        if name is None:
            return None
        if name not in self.graph.constants:
            raise UnsupportedError(f"{what} ({name}) is not a constant")
        return self.graph.constants[name]

    def contiguous_last(self, t: Tensor, node: Node, count: int = 1) -> Tensor:
        """t itself where its last `count` axes are one run in memory, else a copy in row-major order."""
        step: object = 1
        for axis in reversed(range(len(t.dims) - count, len(t.dims))):
            if t.strides[axis] != step and t.dims[axis] != 1:
                dense = self.builder.allocate(t.dtype, t.dims)
                self._copy(t, dense, node.name)
                return dense
            step = t.dims[axis] * step
        return t

    def _dense(self, t: Tensor, node: Node) -> Tensor:
        """A copy in row-major order."""
        dense = self.builder.allocate(t.dtype, t.dims)
        self._copy(t, dense, node.name)
        return dense

    # -- data movement --
    def _copy(self, source: Tensor, target: Tensor, node: str) -> None:
        """Elements of source into target (equal dims), converting dtypes; nothing where both are one place."""
        loops = collapse(target.dims, (source.strides, target.strides), target.order)
        same_place = source.buffer is target.buffer and source.offset == target.offset
        if same_place and all(a == b for _, (a, b) in loops):
            return
        if len(loops) > RANK:
            raise UnsupportedError(f"a copy over {len(loops)} axes that can't be merged; at most {RANK}")
        fields = {"rank": len(loops), "source_type": _TYPE[source.dtype], "target_type": _TYPE[target.dtype]}
        for i in range(RANK):
            size, steps = loops[i] if i < len(loops) else (1, (0, 0))
            fields |= {f"size{i}": size, f"source_stride{i}": steps[0], f"target_stride{i}": steps[1]}
        self.builder.emit(
            "copy", node, (source,), (target,), **fields, **_at("source", source), **_at("target", target)
        )

    def op_transpose(self, node: Node) -> None:
        self.tensors[node.outputs[0]] = self.tensor(node.inputs[0]).transpose(node.attrs["perm"])

    def op_reshape(self, node: Node) -> None:
        x, dims = self.tensor(node.inputs[0]), node.attrs["dims"]
        view = x.reshape(dims)
        if view is None and self.feeds_window(node.outputs[0]):
            view = self.reshaped_for_window(x, node)
        if view is None:
            dense = self._dense(x, node)
            view = contiguous(dense.buffer, dims)  # in row-major order the elements are those of any dims
        self.tensors[node.outputs[0]] = view

    def op_slice(self, node: Node) -> None:
        a = node.attrs
        size = self.graph.values[node.outputs[0]].dims[a["axis"]]
        whole = self.graph.values[node.inputs[0]].dims[a["axis"]]
        text = f"node {node.name}: a slice [{a['start']}:{a['stop']}:{a['step']}] needs an axis that long, not {whole}"
        first, last = (a["start"], a["stop"] - 1) if a["step"] > 0 else (a["stop"] + 1, a["start"])
        for dim in (first, last - first + 1, whole - 1 - last):
            self.need(dim, text)
        self.tensors[node.outputs[0]] = self.tensor(node.inputs[0]).narrow(a["axis"], a["start"], size, a["step"])

    def op_expand(self, node: Node) -> None:
        self.tensors[node.outputs[0]] = self.tensor(node.inputs[0]).expand(node.attrs["dims"])

    def op_concat(self, node: Node) -> None:
        whole, axis, start = self.destinations[node.outputs[0]], node.attrs["axis"], 0
        for part in node.inputs:
            size = self.graph.values[part].dims[axis]
            self._copy(self.tensor(part), whole.narrow(axis, start, size), node.name)
            start = size + start
        self.tensors[node.outputs[0]] = whole

    # -- what a stream keeps of a sequence --
    def _aim_keep(self, node: Node) -> None:
        """Allocate what is kept and what is new as one run of steps a row, so that the new ones are written into it."""
        axis, length = node.attrs["axis"], node.attrs["length"]
        value = self.graph.values[node.outputs[0]]
        batch = axis_of(value.dims, "batch")
        rest = [a for a in range(len(value.dims)) if a not in (axis, batch)]
        if node.attrs["window"]:  # channels last
            rest = [*(a for a in rest if a != 1), 1]
        order = [*([] if batch is None else [batch]), axis, *rest]
        whole = self.builder.allocate("float32" if value.dtype == "bool" else value.dtype, value.dims, order)
        self.destinations[node.outputs[0]] = whole
        if value.dtype != "bool":
            self._aim(node.inputs[0], whole.narrow(axis, length, value.dims[axis] - length))

    def op_keep(self, node: Node) -> None:
        axis, length = node.attrs["axis"], node.attrs["length"]
        x, whole = self.tensor(node.inputs[0]), self.destinations[node.outputs[0]]
        batch = axis_of(whole.dims, "batch")
        rows = 1 if batch is None else whole.dims[batch]
        per_slot = D.exact_div(rows, D.BATCH) if self.has_batch else rows
        features = tuple(d for a, d in enumerate(whole.dims) if a not in (axis, batch))
        if not isinstance(per_slot, int) or not all(isinstance(d, int) for d in features):
            raise UnsupportedError(f"keeping steps of [{', '.join(map(str, x.dims))}]")
        step = D.product(features)
        self._copy(x, whole.narrow(axis, length, x.dims[axis]), node.name)
        words = ITEMSIZE[whole.dtype] // 4
        offset, dims = self.plan.state_size, (*([per_slot] if per_slot > 1 else []), length, *features)
        size = per_slot * length * step
        self.plan.states.append(StateSlot(node.name, node.name, "tail", offset, size, whole.dtype, dims))
        self.builder.emit(
            "tail", node.name, (whole,), (whole,), buffer=whole.buffer, rows=rows,
            row=whole.dims[axis] * (step * words), size=length * step * words, shift=x.dims[axis] * (step * words),
            per_slot=per_slot, state=offset,
        )  # fmt: skip
        self.tensors[node.outputs[0]] = whole

    # -- products --
    def op_linear(self, node: Node) -> None:
        W, bias = self.array(node, 1, "W"), self.array(node, 2, "bias")
        packed = self.weights.linear(W, bias, ("linear", *node.inputs[1:]))
        x = self.contiguous_last(self.real(node), node)
        out = self.result(node, order=_rows_order(x), rows=True)
        loops = self._levels(x.dims[:-1], (x.strides[:-1], out.strides[:-1]), _without_last(x.order), node)
        k, n = W.shape
        act = _instruction(node.attrs["activation"] or "identity", (0,), node.attrs["alpha"], node.attrs["beta"])
        fields = {"packed": len(self.plan.linears), **_level_fields(loops, ("x", "y"))}
        self.plan.linears.append((packed, act))
        flops = D.product(x.dims[:-1]) * (2 * k * n)
        self.builder.emit("linear", node.name, (x,), (out,), flops, **fields, **_at("x", x), **_at("y", out))

    def op_matmul(self, node: Node) -> None:
        """Both sides live: b is packed when it is met, once for each matrix of the batch."""
        a, b = self.real(node, 0), self.real(node, 1)
        dims = self.graph.values[node.outputs[0]].dims
        vector_a, vector_b = len(a.dims) == 1, len(b.dims) == 1
        a = a.unsqueeze(0) if vector_a else a
        b = b.unsqueeze(1) if vector_b else b
        a = self.contiguous_last(a, node)
        m, k, n = a.dims[-2], a.dims[-1], b.dims[-1]
        full = (*dims[: len(dims) - (not vector_a) - (not vector_b)], m, n)
        out = self.builder.allocate("float32", full) if vector_a or vector_b else self.result(node, rows=True)
        lead = full[:-2]
        a, b = a.expand((*lead, m, k)), b.expand((*lead, k, n))
        strides = tuple(t.strides[:-2] for t in (a, b, out))
        if len(collapse(lead, strides, tuple(range(len(lead))))) > 2:  # in row-major order they merge into one
            a, b = self._dense(a, node), self._dense(b, node)
            out = self.result(node, fresh=True) if not (vector_a or vector_b) else out
            strides = tuple(t.strides[:-2] for t in (a, b, out))
        loops = self._levels(lead, strides, tuple(range(len(lead))), node, levels=2)
        if isinstance(k, D.Dim) or isinstance(n, D.Dim):
            packed_size = (n + MOST_LANES) * (k + 1)  # no less than what linear_pack_size says of any length
        else:
            packed_size = _isa.linear_pack_size(k, n, isa=self.weights.isa)
        scratch = Buffer("arena", "float32", packed_size)
        self.plan.arena.append(scratch)
        flops = D.product(full) * (2 * k)
        self.builder.emit(
            "matmul", node.name, (a, b), (out, scratch), flops, m=m, k=k, n=n,
            **_level_fields(loops, ("a", "b", "y"), 2),
            a_row=a.strides[-2], b_row=b.strides[-2], b_column=b.strides[-1], y_row=out.strides[-2],
            scratch=scratch, **_at("a", a), **_at("b", b), **_at("y", out),
        )  # fmt: skip
        if vector_a or vector_b:
            self.tensors[node.outputs[0]] = out.reshape(dims)

    # -- reductions and norms --


def lower(graph: Graph, mode: str, weights: Weights, context: Context | None = None) -> Plan:
    """The plan of a validated graph; context: how far its attention looks back in a stream.

    Raises UnsupportedError that lists every node the executor has no kernel for.
    """
    if mode not in ("run", "stream"):
        raise FastRNNError(f"unknown plan mode {mode!r}")
    if mode == "run":
        return Lowering(graph, mode, weights).run()
    ends = set(graph.states.values())
    graph, timetable = rewrite(graph, tuple(n for n in graph.outputs if n not in ends))
    return Lowering(graph, mode, weights, timetable, context).run()


def _rows_of(t: Tensor, order: list[int], batch: int | None, size: int) -> Tensor:
    """A dense tensor, batch axis slowest, as [batch (or 1), size]."""
    rows = 1 if batch is None else t.dims[batch]
    return Tensor(t.buffer, (rows, size), (size, 1), t.offset)


def _without_last(order: tuple) -> list[int]:
    return [a for a in order if a != len(order) - 1]


def _rows_order(t: Tensor) -> list[int]:
    """t's memory order with the last axis fastest: the order of a result whose rows follow t's."""
    return [*_without_last(t.order), len(t.dims) - 1]
