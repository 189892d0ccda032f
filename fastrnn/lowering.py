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
from .lowering_elementwise import ElementwiseLowering
from .lowering_fields import FUNCTIONS, LEVELS, RANK
from .lowering_fields import TYPE_CODES as _TYPE
from .lowering_fields import at as _at
from .lowering_fields import contiguous_last as _contiguous_last
from .lowering_fields import instruction as _instruction
from .lowering_fields import level_fields as _level_fields
from .lowering_loops import LoopLowering
from .lowering_windows import WindowLowering, channels_last_order
from .passes.fuse_elementwise import activations, groups
from .plan import Builder, Plan, StateSlot, axis_of
from .stream_graph import rewrite
from .tensors import ITEMSIZE, Buffer, Tensor, collapse
from .timetable import Timetable

MOST_LANES = 16  # float32 of the widest vector: the most that columns are padded by
MAY_FAIL = ("gather",)  # kinds of ops that meet an index that their table does not have
PRE_FLOATS = 32768  # room for the input half of a cell's next steps: 128 KiB, so that it stays in L2 beside the weights


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
        return sum(p.nbytes for p in self._packed.values())


class Lowering(WindowLowering, ElementwiseLowering, LoopLowering, AttentionLowering):
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
        cells_own = {name for name in threaded if _is_of_cells(graph, name)}
        self.fed_by_state = _descendants(graph, cells_own)
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
            dense = self.builder.allocate(x.dtype, x.dims)
            self._copy(x, dense, node.name)
            view = dense.reshape(dims)
        self.tensors[node.outputs[0]] = view

    def op_slice(self, node: Node) -> None:
        a = node.attrs
        size = self.graph.values[node.outputs[0]].dims[a["axis"]]
        whole = self.graph.values[node.inputs[0]].dims[a["axis"]]
        text = f"node {node.name}: a slice [{a['start']}:{a['stop']}:{a['step']}] needs an axis that long, not {whole}"
        first, last = (a["start"], a["stop"] - 1) if a["step"] > 0 else (a["stop"] + 1, a["start"])
        for dim in (first, last - first + 1, whole - 1 - last):
            if isinstance(dim, D.Dim):
                self.plan.conditions.append((dim, text))
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
    def op_reduce(self, node: Node) -> None:
        x, axes = self.real(node), list(node.attrs["axes"])
        # Rows whose own size depends on the length (scores of all steps) never stream: an ordinary sum.
        fixed = not any("time" in D.symbols(d) for i, d in enumerate(x.dims) if i not in axes)
        if len(axes) == 1 and self.is_time(x.dims[axes[0]]) and (fixed or self.mode == "stream"):
            return self._reduce_over_time(node, x, axes[0])
        fn, keep = node.attrs["fn"], [a for a in range(len(x.dims)) if a not in axes]
        x = x.transpose((*keep, *axes))
        loops = collapse(x.dims[len(keep) :], (x.strides[len(keep) :],), range(len(axes)))
        if len(loops) > 1:
            x = self.contiguous_last(x, node, len(axes))
            loops = collapse(x.dims[len(keep) :], (x.strides[len(keep) :],), range(len(axes)))
        count, (step,) = loops[0] if loops else (1, (1,))
        out = self.result(node)
        if out.dtype == "bool":
            out = self._float_stand_in(node, out)
        if node.attrs["keepdims"]:
            for axis in reversed(axes):
                out = out.squeeze(axis)
        rows = self._levels(x.dims[: len(keep)], (x.strides[: len(keep)], out.strides), range(len(keep)), node)
        self.builder.emit(
            "reduce", node.name, (x,), (out,), D.product(x.dims), fn=FUNCTIONS[_REDUCE[fn]], count=count, step=step,
            mean=int(fn == "mean"), **_level_fields(rows, ("x", "y")), **_at("x", x), **_at("y", out),
        )  # fmt: skip

    def is_time(self, dim) -> bool:
        """dim is a number of steps, and of nothing else."""
        return bool(D.symbols(dim)) and self.builder.time_axis((dim,)) == 0 and "batch" not in D.symbols(dim)

    def _reduce_over_time(self, node: Node, x: Tensor, axis: int) -> None:
        """One step after the other into float64 sums, whole or streamed: a stream's value is that of the run so far."""
        out = self.result(node)
        if out.dtype == "bool":
            out = self._float_stand_in(node, out)
        if node.attrs["keepdims"]:
            out = out.squeeze(axis)
        keep = [a for a in range(len(x.dims)) if a != axis]
        x = x.transpose((axis, *keep))
        if self.has_batch and D.BATCH in x.dims:
            first = x.dims.index(D.BATCH)
            x = x.transpose((0, first, *(a for a in range(1, len(x.dims)) if a != first)))
            out = out.transpose((first - 1, *(a for a in range(len(out.dims)) if a != first - 1)))
        else:
            x, out = x.unsqueeze(1), out.unsqueeze(0)
        features = x.dims[2:]
        if not all(isinstance(d, int) for d in features):
            raise UnsupportedError(f"a {node.attrs['fn']} over all steps of values of size {features}")
        x = self.contiguous_last(x, node, len(features))
        size = D.product(features)
        dense = collapse(features, (out.strides[1:],), range(len(features)))
        y = out if dense in ([], [(size, (1,))]) else self.builder.allocate("float32", out.dims)
        kept = not isinstance(x.dims[1], D.Dim) or x.dims[1] == D.BATCH
        offset = self.plan.state_size
        self.plan.states.append(
            StateSlot(f"{node.name}.{node.attrs['fn']}", node.name, "sum", offset, size + 1, "float64")
        )
        self.builder.emit(
            "running", node.name, (x,), (y,), D.product(x.dims), fn=FUNCTIONS[_REDUCE[node.attrs["fn"]]],
            mean=int(node.attrs["fn"] == "mean"), steps=x.dims[0], rows=x.dims[1], size=size, x_time=x.strides[0],
            x_row=x.strides[1], y_row=y.strides[0], per_slot=int(kept), state=offset, **_at("x", x), **_at("y", y),
        )  # fmt: skip
        self._copy(y, out, node.name)

    def op_softmax(self, node: Node) -> None:
        self._along_last(node, node.attrs["axis"], "softmax", 16, log=int(node.attrs["log"]))

    def op_layer_norm(self, node: Node) -> None:
        axis, dims = node.attrs["axis"], self.graph.values[node.inputs[0]].dims
        inner = dims[axis:]
        extra, present = {}, []
        for i, what in ((1, "scale"), (2, "bias")):
            array = self.array(node, i, what)
            if array is None:
                extra |= {f"{what}_buffer": -1, f"{what}_offset": 0}
                continue
            if array.ndim > len(inner) or any(isinstance(d, D.Dim) for d in inner):
                raise UnsupportedError(f"{what} of shape {array.shape} for normalised axes {inner}")
            t = self.builder.constant(np.broadcast_to(array, inner).astype(np.float32), "float32")
            extra |= _at(what, t)
            present.append(t)
        epsilon = self.builder.constant(np.array([node.attrs["epsilon"]], np.float32), "float32")
        self._along_last(node, axis, "layer_norm", 8, epsilon=epsilon.buffer, **extra)

    def _along_last(self, node: Node, axis: int, kind: str, cost: int, **fields) -> None:
        """softmax and layer_norm: rows of one contiguous run each. A softmax axis that isn't last is moved there."""
        x = self.real(node)
        rank = len(x.dims)
        count = rank - axis if kind == "layer_norm" else 1
        perm = [a for a in range(rank) if not axis <= a < axis + count] + list(range(axis, axis + count))
        x = self.contiguous_last(x.transpose(perm), node, count)
        y, back = self.result(node).transpose(perm), [perm.index(a) for a in range(rank)]
        dense = collapse(y.dims[rank - count :], (y.strides[rank - count :],), range(count))
        if len(dense) > 1 or (dense and dense[0][1] != (1,)):
            y = self.builder.allocate(
                "float32", y.dims, [*[a for a in x.order if a < rank - count], *range(rank - count, rank)]
            )
            self.tensors[node.outputs[0]] = y.transpose(back)
        keep = rank - count
        order = [a for a in x.order if a < keep]
        loops = self._levels(x.dims[:keep], (x.strides[:keep], y.strides[:keep]), order, node)
        n = D.product(x.dims[keep:])
        self.builder.emit(
            kind, node.name, (x,), (y,), D.product(x.dims) * cost, n=n, **fields, **_level_fields(loops, ("x", "y")),
            **_at("x", x), **_at("y", y),
        )  # fmt: skip

    def _levels(self, dims, strides, order, node: Node, levels: int = LEVELS) -> list[tuple]:
        """Rows as at most `levels` nested loops."""
        loops = collapse(dims, strides, order)
        if len(loops) > levels:
            raise UnsupportedError(f"rows over {len(loops)} axes that can't be merged; at most {levels}")
        return loops

    # -- recurrence --
    def op_cell(self, node: Node) -> None:
        spec = node.attrs["spec"]
        names = ("x", "W", "R", "Wb", "Rb", "P")
        arrays = tuple(self.array(node, i, names[i]) for i in range(1, 6))
        packed = self.weights.cell(spec, arrays, ("cell", spec, *node.inputs[1:6]))
        x = self.contiguous_last(self.real(node), node)
        steps, batch = x.dims[:2]
        H = spec.hidden_size
        h_state, c_state, per_slot = self._cell_states(node, batch, H)
        lengths = self.tensor_or_none(node, 8)
        mask = self.real(node, 9) if len(node.inputs) > 9 and node.inputs[9] is not None else None
        y = None
        if node.outputs[0] is not None:
            y = self.result(node, order=x.order if x.order[-1] == 2 else None, rows=True)
        pointers = Buffer("arena", "float32", batch * _row_scratch(packed, H, y is not None, mask is not None))
        self.plan.arena.append(pointers)
        fields = {"cell": len(self.plan.cells), "steps": steps, "rows": batch, "reverse": int(spec.reverse)}
        self.plan.cells.append(packed)
        fields |= {"x_time": x.strides[0], "x_row": x.strides[1], **_at("x", x)}
        fields |= {"y_time": y.strides[0], "y_row": y.strides[1], **_at("y", y)} if y is not None else _absent("y")
        fields |= {"lengths_stride": lengths.strides[0], **_at("lengths", lengths)} if lengths else _absent("lengths")
        fields |= (
            {"mask_time": mask.strides[0], "mask_row": mask.strides[1], **_at("mask", mask)}
            if mask
            else _absent("mask")
        )
        fields |= {"per_slot": per_slot, "h_state": h_state, "c_state": c_state, "scratch": pointers}
        pre = Buffer("arena", "float32", steps * (packed.pre_size + 4), cap=PRE_FLOATS)  # of one row
        self.plan.arena.append(pre)
        fields |= {"pre": pre, "pre_capacity": 0 if _is_one(steps) else PRE_FLOATS}
        reads, writes = [x, *(t for t in (lengths, mask) if t)], [pointers, pre, *([y] if y is not None else [])]
        for state in (h_state, c_state):
            if isinstance(state, Buffer):
                reads.append(state)
        flops = D.product((steps, batch)) * (2 * spec.gates * H * (spec.input_size + H))
        self.builder.emit("cell", node.name, reads, writes, flops, **fields)
        for i, state in ((1, h_state), (2, c_state)):
            if i < len(node.outputs) and node.outputs[i] is not None:
                self._state_move("state_store", node.name, state, per_slot, self.result(node, i, rows=True))

    def _cell_states(self, node: Node, batch, H: int) -> tuple:
        """Where a cell's h and c live: (h place, c place, rows a slot).

        A place is an offset in a slab row where the state is a stream's (rows a slot: the k of batch = k * BATCH), or a
        buffer of this call (rows a slot: 0) where the cell's steps are not the stream's, as over frequency.
        """
        parts = ["h", "c"] if node.attrs["spec"].kind == "lstm" else ["h"]
        steps = self.graph.values[node.inputs[0]].dims[0]
        per_slot = D.exact_div(batch, D.BATCH) if self.has_batch else batch
        over_time = self.is_time(steps) or any(i in self.fed_by_state for i in node.inputs[6:8])
        if not isinstance(per_slot, int) or (self.mode == "stream" and not over_time):
            per_slot = 0
        places: list = [-1, -1]
        for i, part in enumerate(parts):
            if per_slot:
                places[i] = self.plan.state_size
                self.plan.states.append(StateSlot(f"{node.name}.{part}", node.name, part, places[i], per_slot * H))
            else:
                places[i] = Buffer("arena", "float32", batch * H)
                self.plan.arena.append(places[i])
            name = node.inputs[6 + i] if len(node.inputs) > 6 + i else None
            if name is None or name in self.fed_by_state:
                if not per_slot:
                    self.builder.emit("zero", node.name, (), (places[i],), buffer=places[i], offset=0, count=batch * H)
            elif not (per_slot and self.mode == "stream"):  # there, `states.initial_row` has it
                initial = self.contiguous_last(self.tensor(name), node)
                self._state_move("state_load", node.name, places[i], per_slot, initial)
        return (*places, per_slot)

    def _state_move(self, kind: str, node: str, state, per_slot: int, t: Tensor) -> None:
        touched = (state,) if isinstance(state, Buffer) else ()
        self.builder.emit(
            kind, node, (t, *touched), (), rows=t.dims[0], size=t.dims[1], row=t.strides[0], per_slot=per_slot,
            state=state, **_at("tensor", t),
        )  # fmt: skip


_REDUCE = {"sum": "add", "mean": "add", "max": "max", "min": "min"}


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


def _row_scratch(packed, H: int, y_stored: bool, masked: bool) -> int:
    """Floats that one row of a cell needs while it runs: pointers, the kernel's own, two h where y is not stored."""
    pointers = 6 * 2  # x, h, c, y, state, and the row's length and index: 8 bytes each
    pointers += 5 * 2 if masked else 0  # its mask; x, c, y, state once more, of the rows that are there in a step
    return pointers + _isa.cell_scratch_size(packed) + (0 if y_stored else 2 * H) + 16


def _absent(name: str) -> dict:
    fields = {f"{name}_buffer": -1, f"{name}_offset": 0}
    strides = {"y": ("y_time", "y_row"), "mask": ("mask_time", "mask_row"), "lengths": ("lengths_stride",)}[name]
    return fields | dict.fromkeys(strides, 0)


def _rows_of(t: Tensor, order: list[int], batch: int | None, size: int) -> Tensor:
    """A dense tensor, batch axis slowest, as [batch (or 1), size]."""
    rows = 1 if batch is None else t.dims[batch]
    return Tensor(t.buffer, (rows, size), (size, 1), t.offset)


def _is_one(dim) -> bool:
    return isinstance(dim, int) and dim == 1


def _without_last(order: tuple) -> list[int]:
    return [a for a in order if a != len(order) - 1]


def _rows_order(t: Tensor) -> list[int]:
    """t's memory order with the last axis fastest: the order of a result whose rows follow t's."""
    return [*_without_last(t.order), len(t.dims) - 1]


_MOVES = ("transpose", "reshape", "slice", "expand", "concat")


def _descendants(graph: Graph, roots: set[str]) -> set[str]:
    """Values that moving data alone makes of `roots` (and the roots): what a threaded state input turns into."""
    found = set(roots)
    for node in graph.nodes:
        if node.op in _MOVES and any(i in found for i in node.inputs):
            found.update(o for o in node.outputs if o is not None)
    return found


def _is_of_cells(graph: Graph, name: str) -> bool:
    """A threaded state that only starts cells, and becomes only what those cells end with."""
    found = _descendants(graph, {name})
    for node in graph.nodes:
        for i, value in enumerate(node.inputs):
            starts = (node.op == "cell" and i in (6, 7)) or (node.op == "state" and i == 1)
            if value in found and not (node.op in _MOVES or starts):
                return False
    kept = {n.inputs[0] for n in graph.nodes if n.op == "state" and set(n.inputs[1:]) & found}
    producers, stack = graph.producers(), [graph.states[name]]
    while stack:
        value = stack.pop()
        if value in kept:
            continue
        node = producers.get(value)
        if node is None or not (node.op in _MOVES or (node.op == "cell" and value in node.outputs[1:])):
            return False
        stack += node.inputs if node.op in _MOVES else ()
    return True
