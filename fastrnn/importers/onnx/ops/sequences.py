"""Tensor sequences: a tensor split along an axis, and values appended one by one."""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading.reader import NodeReader, axis_of
from ..reading.registry import op
from ..reading.values import Collected, Growing, Ints, Items, Live, scalar
from ..sizes import slices


@op("SplitToSequence", attrs="axis keepdims")
def _split_to_sequence(ctx, n: NodeReader):
    x = ctx.live(n.input(0))
    axis = axis_of(n.attr("axis", "int", 0), len(x.dims))
    # With a split of 1 the ONNX specification ignores keepdims=0; PyTorch, which writes both, and onnxruntime don't.
    keepdims, split = bool(n.attr("keepdims", "int", 1)), n.const(1, "split", optional=True)
    if split is None or (split.ndim == 0 and split == 1):
        return [Items(x, axis, keepdims)]
    size = x.dims[axis]
    if isinstance(size, Dim):
        ctx.table.freeze([size], "SplitToSequence cuts it into parts")
        size = ctx.table.example(size)
    if (split <= 0).any() and split.ndim == 0:
        raise ModelFormatError(f"parts of {split}")
    widths = [min(int(split), size - low) for low in range(0, size, int(split))] if split.ndim == 0 else split.tolist()
    if sum(widths) != size or min(widths, default=0) < 0:
        raise ModelFormatError(f"parts of {widths} of an axis of {size}")
    ends = np.cumsum(widths).tolist()
    return [Collected(tuple(ctx.slice(x, axis, end - w, end) for w, end in zip(widths, ends, strict=True)))]


def parts_of(ctx, items) -> tuple:
    """The elements of a sequence of a known length."""
    if isinstance(items, Collected):
        return items.parts
    if not isinstance(items, Items):
        raise ModelFormatError("a node on sequences got something that is not a sequence")
    size = items.source.dims[items.axis]
    if isinstance(size, Dim):
        raise Finding(f"a place in a sequence of {size} elements")
    return tuple(_element(ctx, items, i, i + 1) for i in range(size))


def _element(ctx, items: Items, low, high):
    x = items.source
    part = ctx.slice(x, items.axis, low, high)
    return part if items.keepdims else ctx.reshape(part, (*x.dims[: items.axis], *x.dims[items.axis + 1 :]))


def _alike(ctx, items: Collected, besides) -> list[Live]:
    """The elements, whose dims must be equal except along the axes `besides`."""
    parts = [ctx.live(v) for v in items.parts]
    for part in parts[1:]:
        if len(part.dims) != len(parts[0].dims):
            raise Finding("a sequence of tensors of several ranks")
        for axis, (a, b) in enumerate(zip(part.dims, parts[0].dims, strict=True)):
            if axis not in besides:
                ctx.equal(a, b, "the tensors of a sequence must have the same dims")
    return parts


def joined(ctx, items) -> Live:
    """A sequence as one tensor, with a new first axis."""
    if isinstance(items, Collected):
        parts = _alike(ctx, items, ())
        return ctx.concat([ctx.reshape(p, (1, *p.dims)) for p in parts], 0)
    x, at = items.source, items.axis
    x = ctx.transpose(x, (at, *(a for a in range(len(x.dims)) if a != at)))
    return ctx.reshape(x, (*x.dims[: at + 1], 1, *x.dims[at + 1 :])) if items.keepdims else x


@op("SequenceEmpty", attrs="dtype")
def _sequence_empty(ctx, n: NodeReader):
    n.attr("dtype", "int")  # the dtype of its values, which carry their own
    return [Collected(())]


@op("SequenceConstruct")
def _sequence_construct(ctx, n: NodeReader):
    return [Collected(tuple(n.input(k) for k in range(len(n.values))))]


@op("SequenceInsert")
def _sequence_insert(ctx, n: NodeReader):
    items, value, place = n.input(0), n.input(1), n.const(2, "position", optional=True)
    place = None if place is None else int(place.reshape(-1)[0])
    if isinstance(items, Growing):
        if place is None:
            return [Growing(items.before, (*items.after, value))]
        if place != 0:
            raise Finding(f"position {place} of a sequence that a loop builds: only its ends")
        return [Growing((value, *items.before), items.after)]
    parts = parts_of(ctx, items)
    if place is not None and not -len(parts) <= place <= len(parts):
        raise ModelFormatError(f"position {place} of a sequence of {len(parts)}")
    place = len(parts) if place is None else place % len(parts) if place < 0 else place
    return [Collected((*parts[:place], value, *parts[place:]))]


@op("SequenceErase")
def _sequence_erase(ctx, n: NodeReader):
    parts, place = parts_of(ctx, n.input(0)), n.const(1, "position", optional=True)
    place = -1 if place is None else int(place.reshape(-1)[0])
    if not -len(parts) <= place < len(parts):
        raise ModelFormatError(f"position {place} of a sequence of {len(parts)}")
    place %= len(parts)
    return [Collected((*parts[:place], *parts[place + 1 :]))]


@op("SequenceLength")
def _sequence_length(ctx, n: NodeReader):
    items = n.input(0)
    if isinstance(items, Growing):
        raise Finding("it counts the sequence that the loop builds; carry a number from step to step")
    if not isinstance(items, Items | Collected):
        raise ModelFormatError("SequenceLength of something that is not a sequence")
    return [scalar(items.source.dims[items.axis] if isinstance(items, Items) else len(items.parts))]


@op("SequenceAt")
def _sequence_at(ctx, n: NodeReader):
    items, position = n.input(0), n.input(1)
    if isinstance(items, Growing):
        raise Finding("it reads the sequence that the loop builds; carry the value itself from step to step")
    if not isinstance(items, Items | Collected) or len(position.dims) > 1:
        raise ModelFormatError("SequenceAt of something that is not a sequence")
    if isinstance(position, Live):
        return [_at_live(ctx, items, position)]
    if isinstance(position, Ints) and isinstance(items, Items):
        i, size = position.array.reshape(-1)[0], items.source.dims[items.axis]
        if i == size - 1:
            return [_element(ctx, items, i, size)]
    i = int(n.const(1, "position").reshape(-1)[0])
    if isinstance(items, Collected):
        if not -len(items.parts) <= i < len(items.parts):
            raise ModelFormatError(f"position {i} of a sequence of {len(items.parts)}")
        return [items.parts[i]]
    x = items.source
    low, high = slices.slice_bounds(ctx, x, items.axis, i, i + 1 if i != -1 else slices.FAR, 1)
    return [_element(ctx, items, low, high)]


def _at_live(ctx, items, position: Live) -> Live:
    """The element at a position that is a step number."""
    if not isinstance(items, Items):
        raise Finding("a position that is computed, in a sequence put together value by value")
    index = ctx.reshape(position, ()) if position.dims else position
    index = ctx.one("cast", index, to="int64") if index.dtype != "int64" else index
    x, axis = items.source, items.axis
    part = ctx.one("gather", x, index, axis=axis)
    return ctx.reshape(part, (*x.dims[:axis], 1, *x.dims[axis + 1 :])) if items.keepdims else part


@op("ConcatFromSequence", attrs="axis new_axis")
def _concat_from_sequence(ctx, n: NodeReader):
    items, new = n.input(0), n.attr("new_axis", "int", 0)
    axis = n.attr("axis", "int")
    if not isinstance(items, Items | Collected) or axis is None:
        raise ModelFormatError("ConcatFromSequence of something that is not a sequence, or without an axis")
    if isinstance(items, Collected):
        if not items.parts:
            raise Finding("a sequence of nothing")
        axis = axis_of(axis, len(items.parts[0].dims) + new)
        parts = _alike(ctx, items, () if new else (axis,))
        if new:
            parts = [ctx.reshape(p, (*p.dims[:axis], 1, *p.dims[axis:])) for p in parts]
        return [ctx.concat(parts, axis)]
    x, at = items.source, items.axis
    if items.keepdims and not new and axis_of(axis, len(x.dims)) == at:
        return [x]
    x = joined(ctx, items)
    axis = axis_of(axis, len(x.dims) - 1 + new)
    x = ctx.transpose(x, (*range(1, axis + 1), 0, *range(axis + 1, len(x.dims))))
    if new:
        return [x]
    return [ctx.reshape(x, (*x.dims[:axis], x.dims[axis] * x.dims[axis + 1], *x.dims[axis + 2 :]))]
