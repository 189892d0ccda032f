"""ScatterND. Known places that form a box are written by slices and a concat, others as writes.py says."""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading.reader import NodeReader
from ..reading.registry import op
from ..reading.values import Const, Ints, Live
from ..sizes import positions
from . import writes
from .indexing import flat_rows

_MAX_INDICES = 1 << 24


@op("ScatterND", attrs="reduction")
def _scatter_nd(ctx, n: NodeReader):
    x, updates = n.input(0), n.input(2)
    if isinstance(n.input(1), Live):
        sizes = positions.sizes_of(ctx, n.input(1))
        if sizes and all(map(ctx.table.genuine, sizes)):
            ctx.table.freeze(sizes, "ScatterND writes at places that are computed from it")
    fn = writes.reduction(n)
    if isinstance(x, Ints) or isinstance(updates, Ints):
        raise Finding("scatters into a shape")
    if not isinstance(n.input(1), Const):
        return [_at_computed_rows(ctx, x, ctx.live(n.input(1)), updates, fn)]
    indices = n.const(1, "indices")
    if indices.dtype.kind != "i" or not 1 <= indices.ndim or indices.shape[-1] > len(x.dims):
        raise ModelFormatError(f"indices {indices.dtype}{list(indices.shape)} into a value of rank {len(x.dims)}")
    if indices.size > _MAX_INDICES:
        raise Finding(f"{indices.size} indices")
    depth, outer = indices.shape[-1], indices.shape[:-1]
    rows = indices.reshape(-1, depth).astype(np.int64)
    if not rows.size:
        return [x]
    sizes = [ctx.table.example(d) for d in x.dims[:depth]]
    if ((rows < -np.array(sizes)) | (rows >= np.array(sizes))).any():
        raise ModelFormatError(f"indices outside the axes {sizes}")
    rows = np.where(rows < 0, rows + np.array(sizes), rows)
    box = _box(rows) if fn is None else None
    if box is None:
        return [_at_known_rows(ctx, x, rows, updates, outer, fn)]
    for k, (start, stop) in enumerate(box):
        d = x.dims[k]
        if isinstance(d, Dim) and not (start == 0 and stop == sizes[k]):
            ctx.table.freeze([d], "ScatterND writes to a part of it")
    tail = x.dims[depth:]
    # The box, axis by axis: a complete free axis stays free.
    shape = tuple(
        d if start == 0 and stop == size else stop - start
        for d, size, (start, stop) in zip(x.dims, sizes, box, strict=False)
    )
    if len(updates.dims) != len(outer) + len(tail):
        raise ModelFormatError(f"updates of rank {len(updates.dims)} for indices {list(indices.shape)}")
    for got, wanted in zip(updates.dims[len(outer) :], tail, strict=True):
        ctx.equal(got, wanted, "the updates of ScatterND must fit its data")
    updates = _as_box(ctx, updates, outer, shape, tail)
    return [_written(ctx, x, updates, box, 0)]


def _at_known_rows(ctx, x, rows: np.ndarray, updates, outer: tuple, fn: str | None):
    """Rows of x written in order. rows: [m, depth], in the updates [outer..]."""
    depth = rows.shape[1]
    sizes = [ctx.number(d, "ScatterND writes at known places of it") for d in x.dims[:depth]]
    tail = x.dims[depth:]
    if len(updates.dims) != len(outer) + len(tail):
        raise ModelFormatError(f"updates of rank {len(updates.dims)} for indices of rank {len(outer) + 1}")
    for got, wanted in zip(updates.dims, (*outer, *tail), strict=True):
        ctx.equal(got, wanted, "the updates of ScatterND must fit its indices and its data")
    flat = np.ravel_multi_index(tuple(rows.T), sizes)
    given = ctx.reshape(ctx.live(updates), (len(rows), *tail))
    out = writes.by_number(ctx, ctx.reshape(ctx.live(x), (int(np.prod(sizes)), *tail)), flat, given, fn)
    return ctx.reshape(out, x.dims)


def _at_computed_rows(ctx, x, index, updates, fn: str | None):
    """As `_at_known_rows`, for indices that depend on the inputs."""
    x, updates = ctx.live(x), ctx.live(updates)
    depth = ctx.number(index.dims[-1], "ScatterND needs indices of a known depth") if index.dims else 0
    outer, tail = index.dims[:-1], x.dims[depth:]
    if index.dtype not in ("int64", "int32") or not 1 <= depth <= len(x.dims):
        raise ModelFormatError(f"indices {index.dtype} of depth {depth} into a value of rank {len(x.dims)}")
    if len(updates.dims) != len(outer) + len(tail):
        raise ModelFormatError(f"updates of rank {len(updates.dims)} for indices of rank {len(index.dims)}")
    for got, wanted in zip(updates.dims, (*outer, *tail), strict=True):
        ctx.equal(got, wanted, "the updates of ScatterND must fit its indices and its data")
    if index.dtype != "int64":
        index = ctx.one("cast", index, to="int64")
    if fn is None and positions.is_grid(ctx, index):
        return _at_front(ctx, x, updates, outer, 0)
    total, count = D.product(x.dims[:depth]), D.product(outer)
    rows = ctx.reshape(flat_rows(ctx, x, index, depth), (count,))
    # Looking a row up raises the error for one that is out of range.
    rows = ctx.one("gather", ctx.live(ctx.positions(total)), rows, axis=0, from_zero=True)
    rows = ctx.reshape(rows, (count, *[1] * len(tail)))
    out = writes.by_place(ctx, ctx.reshape(x, (total, *tail)), rows, ctx.reshape(updates, (count, *tail)), fn)
    return ctx.reshape(out, x.dims)


def _at_front(ctx, x, updates, sizes: tuple, axis: int):
    """x with its first elements along each axis from `axis` on replaced: as many as `sizes`, which may be all."""
    if axis == len(sizes):
        return updates
    size, count = x.dims[axis], sizes[axis]
    if size == count:
        return _at_front(ctx, x, updates, sizes, axis + 1)
    if isinstance(size, Dim) or isinstance(count, Dim):
        ctx.table.shortfalls.append(D.shortfall(size - count, 0))
    inner = _at_front(ctx, ctx.slice(x, axis, 0, count), updates, sizes, axis + 1)
    return ctx.concat([inner, ctx.slice(x, axis, count, size)], axis)


def _box(rows: np.ndarray) -> list[tuple[int, int]] | None:
    """(start, stop) per axis if the rows are all places of a box in row-major order, each once; None otherwise."""
    low, high = rows.min(axis=0), rows.max(axis=0) + 1
    shape = tuple((high - low).tolist())
    if np.prod(shape, dtype=np.float64) != len(rows):
        return None
    places = np.indices(shape).reshape(len(shape), -1).T + low
    return list(zip(low.tolist(), high.tolist(), strict=True)) if np.array_equal(places, rows) else None


def _as_box(ctx, updates, outer: tuple, shape: tuple, tail: tuple):
    """updates [indices.., tail..] as [box.., tail..]. If its leading dims are free, they are the box's."""
    head = updates.dims[: len(outer)]
    for got, number in zip(head, outer, strict=True):
        if ctx.table.example(got) != number:
            raise ModelFormatError(f"updates {list(map(str, updates.dims))} for indices {list(outer)}")
    ones = [d for d in (*head, *shape) if isinstance(d, Dim)]
    plain = [d for d in head if not (isinstance(d, int) and d == 1)]
    if plain != [d for d in shape if not (isinstance(d, int) and d == 1)] and ones:
        # Free on one side only, for example if an exporter wrote the batch of one into the indices.
        fixed = [d for d in head if isinstance(d, Dim)]
        ctx.table.freeze(
            fixed or [d for d in shape if isinstance(d, Dim)], "the indices of ScatterND are for this size"
        )
    return ctx.reshape(ctx.live(updates), (*shape, *tail))


def _written(ctx, x, updates, box: list, axis: int):
    """x with its box from `axis` on replaced. updates: [box.., tail..]; box axes before `axis` are already cut."""
    if axis == len(box):
        return updates
    (start, stop), size = box[axis], x.dims[axis]
    whole = start == 0 and stop == ctx.table.example(size)
    middle = x if whole else ctx.slice(x, axis, start, stop)
    inner = _written(ctx, middle, updates, box, axis + 1)
    if whole:
        return inner
    parts = [] if start == 0 else [ctx.slice(x, axis, 0, start)]
    parts.append(inner)
    if stop != size:
        parts.append(ctx.slice(x, axis, stop, size))
    return ctx.concat(parts, axis)
