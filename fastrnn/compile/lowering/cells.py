"""Lowering of the recurrent layers: where a cell's rows, states, lengths and mask are stored."""

from __future__ import annotations

from ...errors import UnsupportedError
from ...graph import Node
from ...graph import dims as D
from ...machine import tuning
from ...ops import cell_scratch, input_scratch
from .. import bounds
from ..tensors import Buffer
from .base import Lowering, lowers
from .fields import at
from .states import state_move

# Room for the input half of a cell's next steps: 128 KiB, so that it stays in L2 beside the weights. If more than two
# rows are hoisted, an eighth of the weights, between 512 KiB and 4 MiB: then the steps that go together read W once and
# R often, and R alone may fit a cache that both do not fit. 100 steps on a Zen 5, times as fast with an eighth as with
# 512 KiB: LSTM 1024 with 4, 8, 16 rows 1.13, 1.17, 1.16; GRU 1024 with 4, 16 rows 1.01, 1.12; LSTM 768 0.99 to 1.03.
PRE_FLOATS = 32768
MOST_PRE_FLOATS = 1 << 20

# When summing the input half ahead pays off: (up to this many rows, if W and R hold this many floats). Figures: time of
# 100 direct steps / time of hoisted ones. One row, Zen 4: LSTM 64 1.01, 128 1.21, 256 1.35, GRU 256 1.21, RNN 128 1.35;
# but LSTM 32 0.93. More rows share the weights that a tile reads, but sums must be written and read again. Two rows,
# Zen 3: LSTM 128 1.06, 256 1.10, GRU 256 1.06; but LSTM 64 0.94. 16 rows: LSTM 512 1.03 (1.10 beside busy
# neighbours), 768 1.10, RNN 1024 1.09, GRU 768 1.00; but LSTM 64 0.89, 128 0.94, 256 0.95, 384 0.97, GRU 512 0.99; 32
# rows of LSTM 512 0.97, 4 of LSTM 256 0.95. 32 rows, Zen 5: LSTM 1024 1.29, GRU 1024 1.07;
# but LSTM 768 0.96, 512 0.97.
HOISTED_UNITS = 48
HOISTED = ((32, 6 << 20), (16, 2 << 20), (2, 128 << 10), (1, 0))

# The same for reduced precision, by instruction set. It pays off where one row waits for its weights and a tile of many
# rows is much faster for each: with 8 bits that needs VNNI. Zen 5, AVX-512 VNNI, int8: one row, LSTM 64 0.92, 96 1.26,
# 128 1.25, 256 1.19, 512 1.60, GRU 512 1.68; two rows, LSTM 128 0.99, 256 1.09, 512 1.25; four of LSTM 512 1.00.
# int8-a16: one row, LSTM 128 1.06, 512 1.32. bfloat16: one row, LSTM 256 1.20, 512 1.23, GRU 256 1.02. AVX2: at most
# 0.98.
HOISTED_ROUNDED = {
    ("avx512_vnni", "int8"): ((2, 384 << 10), (1, 64 << 10)),
    ("avx512_vnni", "int8-a16"): ((1, 64 << 10),),
    ("avx512_vnni", "bfloat16"): ((1, 384 << 10),),
    ("avx512", "int8"): ((1, 512 << 10),),
    ("avx512", "bfloat16"): ((1, 384 << 10),),
    ("avx_vnni", "int8"): ((2, 1 << 20), (1, 512 << 10)),
    ("avx_vnni", "int8-a16"): ((1, 512 << 10),),
}


@lowers("cell")
def _cell(low: Lowering, node: Node) -> None:
    spec = node.attrs["spec"]
    names = ("x", "W", "R", "Wb", "Rb", "P")
    arrays = tuple(low.array(node, i, names[i]) for i in range(1, 6))
    precision = node.attrs.get("precision", "float32")
    scales = tuple(low.array(node, i, f"{names[i - 9]}_scale") for i in (10, 11))
    packed = low.weights.cell(
        spec, arrays, precision, scales, ("cell", spec, precision, *node.inputs[1:6], *node.inputs[10:12])
    )
    tuning.prepare(packed)
    x = low.contiguous_last(low.real(node), node)
    steps, batch = x.dims[:2]
    H = spec.hidden_size
    h_state, c_state, per_slot = _cell_states(low, node, batch, H)
    lengths = low.tensor_or_none(node, 8)
    mask = low.real(node, 9) if len(node.inputs) > 9 and node.inputs[9] is not None else None
    y = None
    if node.outputs[0] is not None:
        y = low.result(node, order=x.order if x.order[-1] == 2 else None, rows=True)
    pointers = low.builder.scratch(cell_scratch(packed, batch, y is not None, mask is not None))
    fields = {"cell": len(low.plan.cells), "steps": steps, "rows": batch, "reverse": int(spec.reverse)}
    low.plan.cells.append(packed)
    fields |= {"x_time": x.strides[0], "x_row": x.strides[1], **at("x", x)}
    fields |= {"y_time": y.strides[0], "y_row": y.strides[1], **at("y", y)} if y is not None else _absent("y")
    fields |= {"lengths_stride": lengths.strides[0], **at("lengths", lengths)} if lengths else _absent("lengths")
    fields |= (
        {"mask_time": mask.strides[0], "mask_row": mask.strides[1], **at("mask", mask)} if mask else _absent("mask")
    )
    fields |= {"per_slot": per_slot, "h_state": h_state, "c_state": c_state, "scratch": pointers}
    most = 0 if steps == 1 or mask is not None else _hoisted_rows(spec, precision, packed.isa)
    room = _hoisted_room(spec, most)
    pre = low.builder.scratch(input_scratch(packed, D.product((steps, batch))), cap=room)
    fields |= {"pre": pre, "pre_capacity": room, "hoisted_rows": most}
    reads, writes = [x, *(t for t in (lengths, mask) if t)], [pointers, pre, *([y] if y is not None else [])]
    for state in (h_state, c_state):
        if isinstance(state, Buffer):
            reads.append(state)
    flops = D.product((steps, batch)) * (2 * spec.gates * H * (spec.input_size + H))
    low.builder.emit("cell", node.name, reads, writes, flops, **fields)
    for i, state in ((1, h_state), (2, c_state)):
        if i < len(node.outputs) and node.outputs[i] is not None:
            if state == -1:
                raise UnsupportedError(f"the last c of a {spec.kind}, which has none")
            state_move(low, "state_store", node.name, state, per_slot, low.result(node, i, rows=True))


def _cell_states(low: Lowering, node: Node, batch, H: int) -> tuple:
    """Where a cell's h and c are stored: (h place, c place, rows per slot).

    If a stream keeps the state, a place is an offset in a slab row (rows per slot: the k of batch = k * BATCH). If the
    cell's steps are not those of the stream, as over frequency, it is a buffer of this call (rows per slot: 0).
    """
    parts = ["h", "c"] if node.attrs["spec"].kind == "lstm" else ["h"]
    steps = low.graph.values[node.inputs[0]].dims[0]
    per_slot = D.exact_div(batch, D.BATCH) if low.has_batch else batch
    over_time = low.is_time(steps) or any(i in low.fed_by_state for i in node.inputs[6:8])
    if not isinstance(per_slot, int) or (low.mode == "stream" and not over_time):
        per_slot = 0
    places: list = [-1, -1]
    for i, part in enumerate(parts):
        if per_slot:
            places[i] = low.builder.keep(node.name, part, per_slot * H, name=f"{node.name}.{part}")
        else:
            places[i] = low.builder.scratch(batch * H)
        name = node.inputs[6 + i] if len(node.inputs) > 6 + i else None
        if name is None or name in low.fed_by_state:
            if not per_slot:
                low.builder.emit("zero", node.name, (), (places[i],), buffer=places[i], offset=0, count=batch * H)
        elif not (per_slot and low.mode == "stream"):  # else `states.initial_row` has it
            initial = low.contiguous_last(low.tensor(name), node)
            state_move(low, "state_load", node.name, places[i], per_slot, initial)
    return (*places, per_slot)


@bounds.touches("cell")
def _cell_touches(plan, f):
    spec = plan.cells[f["cell"]].spec
    time, rows = f["steps"], f["rows"]
    yield from bounds.at(f, "x", (time, f["x_time"]), (rows, f["x_row"]), (spec.input_size, 1))
    yield from bounds.at(f, "y", (time, f["y_time"]), (rows, f["y_row"]), (spec.hidden_size, 1))
    yield from bounds.at(f, "lengths", (rows, f["lengths_stride"]), item=8)
    yield from bounds.at(f, "mask", (time, f["mask_time"]), (rows, f["mask_row"]))
    names = ("h_state", "c_state") if spec.kind == "lstm" else ("h_state",)
    yield from bounds.states(plan, f, names, spec.hidden_size)


@bounds.touches("zero")
def _zero_touches(plan, f):
    yield bounds.Access("zeros", f["buffer"], f["offset"], ((f["count"], 1),))


def _weights(spec) -> int:
    """How many weights W and R hold."""
    return spec.gates * spec.hidden_size * (spec.input_size + spec.hidden_size)


def _hoisted_rows(spec, precision: str, isa: str) -> int:
    """The most rows for which a cell's input half is summed ahead."""
    weights = _weights(spec)
    if precision != "float32":
        return next((rows for rows, least in HOISTED_ROUNDED.get((isa, precision), ()) if weights >= least), 0)
    return 0 if spec.hidden_size < HOISTED_UNITS else next(rows for rows, least in HOISTED if weights >= least)


def _hoisted_room(spec, rows: int) -> int:
    """Floats for the input half of the next steps of up to so many rows."""
    if rows <= 2:
        return PRE_FLOATS if rows > 0 else 0
    return min(max(4 * PRE_FLOATS, _weights(spec) // 8), MOST_PRE_FLOATS)


def _absent(name: str) -> dict:
    fields = {f"{name}_buffer": -1, f"{name}_offset": 0}
    strides = {"y": ("y_time", "y_row"), "mask": ("mask_time", "mask_row"), "lengths": ("lengths_stride",)}[name]
    return fields | dict.fromkeys(strides, 0)
