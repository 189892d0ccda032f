"""Lowering of ops that move data: views if possible, else copies; lookups; borders."""

from __future__ import annotations

import numpy as np

from ...graph import Node
from ...graph import dims as D
from ...ops import HELD
from .. import bounds
from ..tensors import ITEMSIZE, Tensor, contiguous
from .base import Lowering, aims, lowers
from .fields import TYPE_CODES, at, contiguous_last, level_fields
from .positions import bound_by_table
from .windows import channels_last_order, feeds_window, reshaped_for_window


@lowers("transpose")
def _transpose(low: Lowering, node: Node) -> None:
    low.tensors[node.outputs[0]] = low.tensor(node.inputs[0]).transpose(node.attrs["perm"])


@lowers("reshape")
def _reshape(low: Lowering, node: Node) -> None:
    x, dims = low.tensor(node.inputs[0]), node.attrs["dims"]
    view = x.reshape(dims)
    if view is None and feeds_window(low, node.outputs[0]):
        view = reshaped_for_window(low, x, node)
    if view is None:
        dense = low.dense(x, node)
        view = contiguous(dense.buffer, dims)  # row-major elements are the same for any dims
    low.tensors[node.outputs[0]] = view


@lowers("slice")
def _slice(low: Lowering, node: Node) -> None:
    a = node.attrs
    size = low.graph.values[node.outputs[0]].dims[a["axis"]]
    whole = low.graph.values[node.inputs[0]].dims[a["axis"]]
    text = f"node {node.name}: a slice [{a['start']}:{a['stop']}:{a['step']}] needs an axis that long, not {whole}"
    first, last = (a["start"], a["stop"] - 1) if a["step"] > 0 else (a["stop"] + 1, a["start"])
    for dim in (first, last - first + 1, whole - 1 - last):
        low.need(dim, text)
    low.tensors[node.outputs[0]] = low.tensor(node.inputs[0]).narrow(a["axis"], a["start"], size, a["step"])


@lowers("expand")
def _expand(low: Lowering, node: Node) -> None:
    low.tensors[node.outputs[0]] = low.tensor(node.inputs[0]).expand(node.attrs["dims"])


@aims("concat")
def _aim_concat(low: Lowering, node: Node) -> None:
    """Allocate a concat's result now, so that its parts are written directly into it."""
    name, axis = node.outputs[0], node.attrs["axis"]
    if name not in low.destinations:
        users = low.consumers.get(name, [])
        order = users[0].attrs["perm"] if len(users) == 1 and users[0].op == "transpose" else None
        value = low.graph.values[name]
        if feeds_window(low, name):
            order = channels_last_order(len(value.dims))
        low.destinations[name] = low.builder.allocate(value.dtype, value.dims, order)
    whole, start = low.destinations[name], 0
    for part in node.inputs:
        size = low.graph.values[part].dims[axis]
        if node.inputs.count(part) == 1:
            low.aim(part, whole.narrow(axis, start, size))
        start = size + start


@lowers("concat")
def _concat(low: Lowering, node: Node) -> None:
    whole, axis, start = low.destinations[node.outputs[0]], node.attrs["axis"], 0
    for part in node.inputs:
        size = low.graph.values[part].dims[axis]
        low.copy(low.tensor(part), whole.narrow(axis, start, size), node.name)
        start = size + start
    low.tensors[node.outputs[0]] = whole


@lowers("gather")
def _gather(low: Lowering, node: Node) -> None:
    """Rows of a table by index. If `axis` is not the first, it is moved to the front, and the result is moved back."""
    axis, precision = node.attrs["axis"], node.attrs.get("precision", "float32")
    view = _gather_view(low, node, axis) if precision == "float32" else None
    if view is not None:
        low.tensors[node.outputs[0]] = view
        return
    table, indices = low.tensor(node.inputs[0]), low.tensor(node.inputs[1])
    low.plan.may_fail |= not bound_by_table(low, node)
    if axis != 0:
        return _gather_along(low, node, table, indices, axis)
    table = low.contiguous_last(table, node, len(table.dims) - 1)
    inner = D.product(table.dims[1:])
    out = low.result(node)
    dtype = table.dtype if precision == "float32" else "float32"
    flat = out.reshape((*indices.dims, inner)) if out.dtype == dtype else None
    if flat is None or not contiguous_last(flat):
        out = low.tensors[node.outputs[0]] = low.builder.allocate(dtype, out.dims)
        flat = out.reshape((*indices.dims, inner))
    rank = len(indices.dims)
    strides = flat.strides[:rank] if len(flat.strides) > rank else flat.strides
    loops = low.levels(indices.dims, (indices.strides, strides), indices.order, node)
    fields = level_fields(loops, ("index", "y")) | {"held": HELD[precision]}
    if low.array(node, 2, "scale") is not None:
        fields |= at("scale", low.tensor(node.inputs[2]))
    low.builder.emit(
        "gather", node.name, (table, indices), (out,), **fields, count=table.dims[0], table_row=table.strides[0],
        inner=inner, index_type=TYPE_CODES[indices.dtype], item=ITEMSIZE[table.dtype], from_zero=_from_zero(node),
        **at("table", table), **at("index", indices), **at("y", flat),
    )  # fmt: skip


def _gather_view(low: Lowering, node: Node, axis: int) -> Tensor | None:
    """Evenly spaced constant indices (as in an unfold into overlapping frames) are a view of the table."""
    picks, table = low.graph.constants.get(node.inputs[1]), low.tensor(node.inputs[0])
    size = table.dims[axis]
    if picks is None or picks.size == 0 or not isinstance(size, int):
        return None
    if picks.min() < (0 if node.attrs.get("from_zero") else -size) or picks.max() >= size:
        return None
    picks = np.where(picks < 0, picks + size, picks)
    first = int(picks.flat[0])
    steps = [int(np.take(picks, 1, i).flat[0]) - first if n > 1 else 0 for i, n in enumerate(picks.shape)]
    even = first + sum(np.indices(picks.shape)[i] * step for i, step in enumerate(steps))
    if not np.array_equal(picks, even):
        return None
    stride = table.strides[axis]
    dims = (*table.dims[:axis], *picks.shape, *table.dims[axis + 1 :])
    strides = (*table.strides[:axis], *(step * stride for step in steps), *table.strides[axis + 1 :])
    new = {a: [a + (picks.ndim - 1) * (a > axis)] for a in range(len(table.dims))} | {
        axis: list(range(axis, axis + picks.ndim))
    }
    order = tuple(b for a in table.order for b in new[a])
    return Tensor(table.buffer, dims, strides, first * stride + table.offset, order)


def _gather_along(low: Lowering, node: Node, table: Tensor, indices: Tensor, axis: int) -> None:
    rank, picks = len(table.dims), len(indices.dims)
    table = table.transpose((axis, *range(axis), *range(axis + 1, rank)))
    table = low.contiguous_last(table, node, rank - 1)
    out = low.builder.allocate(table.dtype, (*indices.dims, *table.dims[1:]))
    inner = D.product(table.dims[1:])
    loops = low.levels(indices.dims, (indices.strides, out.strides[:picks]), indices.order, node)
    low.builder.emit(
        "gather", node.name, (table, indices), (out,), **level_fields(loops, ("index", "y")),
        count=table.dims[0], table_row=table.strides[0], inner=inner, index_type=TYPE_CODES[indices.dtype],
        item=ITEMSIZE[table.dtype], from_zero=_from_zero(node), **at("table", table), **at("index", indices),
        **at("y", out),
    )  # fmt: skip
    before = range(picks, picks + axis)
    low.tensors[node.outputs[0]] = out.transpose((*before, *range(picks), *range(picks + axis, len(out.dims))))


@bounds.touches("gather")
def _gather_touches(plan, f):
    inner = (f["inner"], 1)
    yield from bounds.at(f, "table", (f["count"], f["table_row"]), inner, item=f["item"])
    yield from bounds.at(f, "index", *bounds.rows(f, "index"), item=bounds.ITEMS[f["index_type"]])
    yield from bounds.at(f, "y", *bounds.rows(f, "y"), inner, item=4 if f.get("held") else f["item"])
    yield from bounds.at(f, "scale", (f["count"], 1))


def _from_zero(node: Node) -> int:
    return int(node.attrs.get("from_zero", False))


@lowers("pad")
def _pad(low: Lowering, node: Node) -> None:
    """Copy the inside, then the borders axis by axis, so that corners are copied from filled borders."""
    x, a = low.tensor(node.inputs[0]), node.attrs
    rank = len(x.dims)
    before, after = list(a["pads"][:rank]), list(a["pads"][rank:])
    for axis in range(rank):  # negative pads crop; the sizes may decide which are negative
        begin, end = D.positive(-before[axis]), D.positive(-after[axis])
        if (begin, end) != (0, 0):
            text = f"node {node.name}: axis {axis} of {x.dims[axis]} elements is cut by {begin} and {end}"
            x = x.narrow(axis, begin, x.dims[axis] - begin - end)
            low.need(x.dims[axis], text)
            before[axis], after[axis] = D.positive(before[axis]), D.positive(after[axis])
    y = low.result(node, order=x.order) if x.dtype == "bool" else low.real_result(node, x.order)
    inside = y
    for axis in range(rank):
        inside = inside.narrow(axis, before[axis], x.dims[axis])
    low.copy(x, inside, node.name)
    for axis in range(rank):
        if before[axis] == after[axis] == 0:
            continue
        band = y  # finished axes are whole, the others are still the inside
        for other in range(axis + 1, rank):
            band = band.narrow(other, before[other], x.dims[other])
        for start, size, source in _borders(band, axis, before[axis], x.dims[axis], after[axis], a["mode"]):
            if size == 0:
                continue
            border = band.narrow(axis, start, size)
            if source is None:
                fill = np.array(a["value"]).astype(np.float32 if y.dtype == "float32" else y.dtype)
                source = low.builder.constant(fill.reshape((1,) * rank), y.dtype).expand(border.dims)
            low.copy(source, border, node.name)
        _refuse_short(low, node, x.dims[axis], before[axis], after[axis], axis)


def _refuse_short(low: Lowering, node: Node, size, before, after, axis: int) -> None:
    """Padding copies existing elements: reflect needs more elements than it adds, edge needs at least one."""
    least = {"constant": 0, "edge": 1, "reflect": 1}[node.attrs["mode"]]
    for pad in (before, after):
        need = size - least - (pad if node.attrs["mode"] == "reflect" else 0)
        text = f"node {node.name}: axis {axis} of {size} elements is too short to be padded ({node.attrs['mode']})"
        low.need(need, text)


def _borders(band: Tensor, axis: int, before, size, after, mode: str):
    """(start, size, source to copy, or None for the value) of the two borders of an axis."""
    end = before + size
    if mode == "constant":
        return [(0, before, None), (end, after, None)]
    if mode == "edge":
        low, high = band.narrow(axis, before, 1), band.narrow(axis, end - 1, 1)
        dims = list(band.dims)
        return [
            (0, before, low.expand((*dims[:axis], before, *dims[axis + 1 :]))),
            (end, after, high.expand((*dims[:axis], after, *dims[axis + 1 :]))),
        ]
    low = band.narrow(axis, before + before, before, -1)
    return [(0, before, low), (end, after, band.narrow(axis, end - 2, after, -1))]
