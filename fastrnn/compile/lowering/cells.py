"""Lowering of the recurrent layers: where a cell's rows, states, lengths and mask lie."""

from __future__ import annotations

from ...errors import UnsupportedError
from ...graph import Graph, Node
from ...graph import dims as D
from ...ops import cell_scratch
from ..plan import StateSlot
from ..tensors import Buffer, Tensor
from .fields import at as _at
from .fields import is_one

# Room for the input half of a cell's next steps: 128 KiB, so that it stays in L2 beside the weights; four times that
# where up to 16 rows are hoisted, so that four steps of LSTM 512 go together.
PRE_FLOATS = 32768

# Where summing the input half ahead pays: (rows up to this, of cells whose W and R hold so many floats), the time of
# 100 steps direct by that of hoisted. One row, Zen 4: LSTM 64 1.01, 128 1.21, 256 1.35, GRU 256 1.21, RNN 128 1.35;
# but LSTM 32 0.93. More rows share what a tile reads of the weights, and sums have to be written and read again. Two
# rows, Zen 3: LSTM 128 1.06, 256 1.10, GRU 256 1.06; but LSTM 64 0.94. 16 rows: LSTM 512 1.03 (1.10 beside busy
# neighbours), 768 1.10, RNN 1024 1.09, GRU 768 1.00; but LSTM 64 0.89, 128 0.94, 256 0.95, 384 0.97, GRU 512 0.99; 32
# rows of LSTM 512 0.97, 4 of LSTM 256 0.95.
HOISTED_UNITS = 48
HOISTED = ((16, 2 << 20), (2, 128 << 10), (1, 0))


class CellLowering:
    """The methods of `fastrnn.compile.lowering.Lowering` for cells, and what fills and keeps their states."""

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
        pointers = Buffer("arena", "float32", cell_scratch(packed, batch, y is not None, mask is not None))
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
        most = 0 if is_one(steps) or mask is not None else _hoisted_rows(spec)
        room = 0 if most == 0 else PRE_FLOATS if most <= 2 else 4 * PRE_FLOATS
        pre = Buffer("arena", "float32", D.product((steps, batch)) * (packed.pre_size + 4), cap=room)
        self.plan.arena.append(pre)
        fields |= {"pre": pre, "pre_capacity": room, "hoisted_rows": most}
        reads, writes = [x, *(t for t in (lengths, mask) if t)], [pointers, pre, *([y] if y is not None else [])]
        for state in (h_state, c_state):
            if isinstance(state, Buffer):
                reads.append(state)
        flops = D.product((steps, batch)) * (2 * spec.gates * H * (spec.input_size + H))
        self.builder.emit("cell", node.name, reads, writes, flops, **fields)
        for i, state in ((1, h_state), (2, c_state)):
            if i < len(node.outputs) and node.outputs[i] is not None:
                if state == -1:
                    raise UnsupportedError(f"the last c of a {spec.kind}, which has none")
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


def _hoisted_rows(spec) -> int:
    """With how many rows, at most, a cell's input half is summed ahead."""
    weights = spec.gates * spec.hidden_size * (spec.input_size + spec.hidden_size)
    return 0 if spec.hidden_size < HOISTED_UNITS else next(rows for rows, least in HOISTED if weights >= least)


def _absent(name: str) -> dict:
    fields = {f"{name}_buffer": -1, f"{name}_offset": 0}
    strides = {"y": ("y_time", "y_row"), "mask": ("mask_time", "mask_row"), "lengths": ("lengths_stride",)}[name]
    return fields | dict.fromkeys(strides, 0)


_MOVES = ("transpose", "reshape", "slice", "expand", "concat")


def descendants(graph: Graph, roots: set[str]) -> set[str]:
    """Values that moving data alone makes of `roots` (and the roots): what a threaded state input turns into."""
    found = set(roots)
    for node in graph.nodes:
        if node.op in _MOVES and any(i in found for i in node.inputs):
            found.update(o for o in node.outputs if o is not None)
    return found


def is_of_cells(graph: Graph, name: str) -> bool:
    """A threaded state that only starts cells, and becomes only what those cells end with."""
    found = descendants(graph, {name})
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
