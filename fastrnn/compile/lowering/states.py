"""What a stream keeps from call to call: threaded states, and the last steps of a sequence (`keep`)."""

from __future__ import annotations

from collections.abc import Container

from ...errors import UnsupportedError
from ...graph import Graph, Node
from ...graph import dims as D
from ...graph.vocabulary import moves
from .. import bounds
from ..plan import axis_of
from ..tensors import ITEMSIZE, Buffer, Tensor, kept_as
from .base import Lowering, aims, lowers


def state_move(low: Lowering, kind: str, node: str, state, per_slot: int, t: Tensor) -> None:
    """`state_load` from a state into a tensor [rows, size], or `state_store` in the other direction.

    Items have 4 or 8 bytes (`kept_as`). The op counts in float32, so an item of 8 bytes counts twice.
    """
    touched, words = (state,) if isinstance(state, Buffer) else (), ITEMSIZE[t.dtype] // 4
    low.builder.emit(
        kind, node, (t, *touched), (), rows=t.dims[0], size=t.dims[1] * words, row=t.strides[0] * words,
        per_slot=per_slot, state=state, tensor_buffer=t.buffer, tensor_offset=t.offset * words,
    )  # fmt: skip


@bounds.touches("state_load", "state_store")
def _state_move_touches(plan, f):
    yield from bounds.at(f, "tensor", (f["rows"], f["row"]), (f["size"], 1))
    yield from bounds.states(plan, f, ("state",), f["size"])


def separate_threaded(low: Lowering) -> list[str]:
    """The states that a caller would thread and that don't belong to a cell. Cells find theirs in their slab row."""
    cells_own = {name for name in low.states if is_of_cells(low.graph, name)}
    low.fed_by_state = descendants(low.graph, cells_own)
    return [name for name in low.states if name not in cells_own]


def open_state(low: Lowering, name: str, tails: Container[str], in_place: bool = False) -> tuple:
    """Make the input `name` a tensor that each call fills from the slab; returns (offset, axes batch first).

    tails : the states that are caches in front of sequences, and may be read in a call of many steps
    in_place : the ops that read it and write its next value do so in the slab
    """
    value = low.graph.values[name]
    if not low.plan.steps_one and name not in tails:
        raise UnsupportedError(
            f"the state {value} feeds other nodes than cells in a model that takes many steps a call"
        )
    batch = next((i for i, d in enumerate(value.dims) if d == D.BATCH), None)
    order = [*([] if batch is None else [batch]), *(i for i in range(len(value.dims)) if i != batch)]
    size = D.product([d for i, d in enumerate(value.dims) if i != batch])
    if low.has_batch and batch is None:
        raise UnsupportedError(
            f"the state {value} has no batch axis, so one number serves all rows: load the model with "
            "sizes={'batch': 1}, and open one stream each"
        )
    if isinstance(size, D.Dim):
        raise UnsupportedError(f"the state {value} has a free size besides its batch: fix that with sizes=")
    kept = kept_as(value.dtype)
    offset = low.builder.keep(name, "value", size, kept)
    if in_place:
        low.in_slab[name] = offset
        return offset, (order, batch, size)
    tensor = low.builder.allocate(kept, value.dims, order)
    state_move(low, "state_store", name, offset, 1, _rows_of(tensor, batch, size))
    low.tensors[name] = in_own_type(low, tensor, value.dtype, name)
    return offset, (order, batch, size)


def in_own_type(low: Lowering, kept: Tensor, dtype: str, node: str) -> Tensor:
    """A value of this dtype from what a slab row keeps of it. Bools compute as float32, as they are kept."""
    if kept.dtype == dtype or dtype == "bool":
        return kept
    own = low.builder.allocate(dtype, kept.dims, kept.order)
    low.copy(kept, own, node)
    return own


def close_state(low: Lowering, name: str, offset: int, batch_first: tuple) -> None:
    """Store the output that is the next value of the state `name`."""
    order, batch, size = batch_first
    source = low.tensor(low.graph.states[name])
    dense = low.builder.allocate(kept_as(low.graph.values[name].dtype), source.dims, order)
    low.copy(source, dense, name)
    state_move(low, "state_load", name, offset, 1, _rows_of(dense, batch, size))


def _rows_of(t: Tensor, batch: int | None, size: int) -> Tensor:
    """A dense tensor, batch axis slowest, as [batch (or 1), size]."""
    rows = 1 if batch is None else t.dims[batch]
    return Tensor(t.buffer, (rows, size), (size, 1), t.offset)


@aims("keep")
def _aim_keep(low: Lowering, node: Node) -> None:
    """Allocate kept and new steps as one run per row, so that the new ones are written directly into it."""
    axis, length = node.attrs["axis"], node.attrs["length"]
    value = low.graph.values[node.outputs[0]]
    batch = axis_of(value.dims, "batch")
    rest = [a for a in range(len(value.dims)) if a not in (axis, batch)]
    if node.attrs["window"]:  # channels last
        rest = [*(a for a in rest if a != 1), 1]
    order = [*([] if batch is None else [batch]), axis, *rest]
    whole = low.builder.allocate(kept_as(value.dtype), value.dims, order)
    low.destinations[node.outputs[0]] = whole
    if whole.dtype == value.dtype:
        low.aim(node.inputs[0], whole.narrow(axis, length, value.dims[axis] - length))


@lowers("keep")
def _keep(low: Lowering, node: Node) -> None:
    axis, length = node.attrs["axis"], node.attrs["length"]
    x, whole = low.tensor(node.inputs[0]), low.destinations[node.outputs[0]]
    batch = axis_of(whole.dims, "batch")
    rows = 1 if batch is None else whole.dims[batch]
    per_slot = D.exact_div(rows, D.BATCH) if low.has_batch else rows
    features = tuple(d for a, d in enumerate(whole.dims) if a not in (axis, batch))
    if not isinstance(per_slot, int) or not all(isinstance(d, int) for d in features):
        raise UnsupportedError(f"keeping steps of [{', '.join(map(str, x.dims))}]")
    step = D.product(features)
    low.copy(x, whole.narrow(axis, length, x.dims[axis]), node.name)
    words = ITEMSIZE[whole.dtype] // 4
    dims = (*([per_slot] if per_slot > 1 else []), length, *features)
    offset = low.builder.keep(node.name, "tail", per_slot * length * step, whole.dtype, dims)
    low.builder.emit(
        "tail", node.name, (whole,), (whole,), buffer=whole.buffer, rows=rows,
        row=whole.dims[axis] * (step * words), size=length * step * words, shift=x.dims[axis] * (step * words),
        per_slot=per_slot, state=offset,
    )  # fmt: skip
    low.tensors[node.outputs[0]] = in_own_type(low, whole, low.graph.values[node.outputs[0]].dtype, node.name)


@bounds.touches("tail")
def _tail_touches(plan, f):
    for start in (0, f["shift"]):
        yield bounds.Access("steps", f["buffer"], start, ((f["rows"], f["row"]), (f["size"], 1)))
    yield from bounds.states(plan, f, ("state",), f["size"])


def descendants(graph: Graph, roots: set[str]) -> set[str]:
    """`roots` and all values made from them only by moving data: what a threaded state input turns into."""
    found = set(roots)
    for node in graph.nodes:
        if moves(node.op) and any(i in found for i in node.inputs):
            found.update(o for o in node.outputs if o is not None)
    return found


def is_of_cells(graph: Graph, name: str) -> bool:
    """Whether a threaded state is only the initial state of cells, and its next value only their last states."""
    found = descendants(graph, {name})
    for node in graph.nodes:
        for i, value in enumerate(node.inputs):
            starts = (node.op == "cell" and i in (6, 7)) or (node.op == "state" and i == 1)
            if value in found and not (moves(node.op) or starts):
                return False
    kept = {n.inputs[0] for n in graph.nodes if n.op == "state" and set(n.inputs[1:]) & found}
    producers, stack = graph.producers(), [graph.states[name]]
    while stack:
        value = stack.pop()
        if value in kept:
            continue
        node = producers.get(value)
        if node is None or not (moves(node.op) or (node.op == "cell" and value in node.outputs[1:])):
            return False
        stack += node.inputs if moves(node.op) else ()
    return True
