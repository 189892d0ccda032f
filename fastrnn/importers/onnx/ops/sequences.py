"""Tensor sequences: a tensor split along an axis, and values appended one by one."""

from __future__ import annotations

from ....errors import ModelFormatError
from ...shared.ledger import Finding
from ..reading.reader import NodeReader, axis_of
from ..reading.registry import op
from ..reading.values import Collected, Items, Live, scalar
from ..sizes import slices


@op("SplitToSequence", attrs="axis keepdims")
def _split_to_sequence(ctx, n: NodeReader):
    x = ctx.live(n.input(0))
    # With a split of 1 the ONNX specification ignores keepdims=0; PyTorch, which writes both, and onnxruntime don't.
    split = n.const(1, "split", optional=True)
    if split is not None and (split.ndim != 0 or split != 1):
        raise Finding("split: a sequence of parts longer than one")
    axis = axis_of(n.attr("axis", "int", 0), len(x.dims))
    return [Items(x, axis, bool(n.attr("keepdims", "int", 1)))]


@op("SequenceEmpty", attrs="dtype")
def _sequence_empty(ctx, n: NodeReader):
    n.attr("dtype", "int")  # the dtype of its values, which carry their own
    return [Collected(())]


@op("SequenceConstruct")
def _sequence_construct(ctx, n: NodeReader):
    return [Collected(tuple(n.input(k) for k in range(len(n.values))))]


@op("SequenceInsert")
def _sequence_insert(ctx, n: NodeReader):
    items = n.input(0)
    if n.input(2, optional=True) is not None:
        raise Finding("a position: only the end is taken")
    if not isinstance(items, Collected):
        raise Finding("into a sequence that was taken apart from a tensor")
    return [Collected((*items.parts, n.input(1)))]


@op("SequenceLength")
def _sequence_length(ctx, n: NodeReader):
    items = n.input(0)
    if not isinstance(items, Items | Collected):
        raise ModelFormatError("SequenceLength of something that is not a sequence")
    return [scalar(items.source.dims[items.axis] if isinstance(items, Items) else len(items.parts))]


@op("SequenceAt")
def _sequence_at(ctx, n: NodeReader):
    items, position = n.input(0), n.input(1)
    if not isinstance(items, Items | Collected) or len(position.dims) > 1:
        raise ModelFormatError("SequenceAt of something that is not a sequence")
    if isinstance(position, Live):
        return [_at_live(ctx, items, position)]
    i = int(n.const(1, "position").reshape(-1)[0])
    if isinstance(items, Collected):
        if not -len(items.parts) <= i < len(items.parts):
            raise ModelFormatError(f"position {i} of a sequence of {len(items.parts)}")
        return [items.parts[i]]
    x = items.source
    low, high = slices.slice_bounds(ctx, x, items.axis, i, i + 1 if i != -1 else slices.FAR, 1)
    part = ctx.slice(x, items.axis, low, high)
    return [part if items.keepdims else ctx.reshape(part, (*x.dims[: items.axis], *x.dims[items.axis + 1 :]))]


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
        parts = [ctx.live(v) for v in items.parts]
        if not parts:
            raise Finding("a sequence of nothing")
        axis = axis_of(axis, len(parts[0].dims) + new)
        if new:
            parts = [ctx.reshape(p, (*p.dims[:axis], 1, *p.dims[axis:])) for p in parts]
        return [ctx.concat(parts, axis)]
    x, at = items.source, items.axis
    if items.keepdims and not new and axis_of(axis, len(x.dims)) == at:
        return [x]
    # Steps first, each with the dims of a value of the sequence.
    x = ctx.transpose(x, (at, *(a for a in range(len(x.dims)) if a != at)))
    if items.keepdims:
        x = ctx.reshape(x, (*x.dims[: at + 1], 1, *x.dims[at + 1 :]))
    axis = axis_of(axis, len(x.dims) - 1 + new)
    x = ctx.transpose(x, (*range(1, axis + 1), 0, *range(axis + 1, len(x.dims))))
    if new:
        return [x]
    return [ctx.reshape(x, (*x.dims[:axis], x.dims[axis] * x.dims[axis + 1], *x.dims[axis + 2 :]))]
