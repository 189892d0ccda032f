"""Operators that pick, place and sort elements by index, written as lookups, comparisons and sums."""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ....graph import INTEGERS
from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading.reader import NodeReader, axis_of
from ..reading.registry import OPERATORS, op
from ..reading.values import Const, Ints, uniform
from ..sizes import slices
from . import writes
from .shaping import gather_run

_OUTSIDE = 1 << 62  # no table has this row: looking it up raises the error for an index out of range
_MOST_PICKS = 16  # of TopK, one by one; more are ranked by comparing all pairs
_MOST_PLACES = 1 << 24
_MOST_RANKED = 512  # elements whose pairs are all compared, if their number is known


def _indices(ctx, n: NodeReader, i: int):
    """Input i as live int64 indices. Known ones are fixed positions, which hold the sizes of the axes they index."""
    if isinstance(n.input(i), Const):
        for size in n.input(0).dims:
            ctx.table.ledger.count(size, ctx.label, "looks up positions by number")
    value = ctx.live(n.input(i))
    if value.dtype not in ("int64", "int32"):
        raise ModelFormatError(f"indices must be int32 or int64, got {value.dtype}")
    return value if value.dtype == "int64" else ctx.one("cast", value, to="int64")


def _whole(value) -> Const:
    return Const(np.array(value, dtype=np.int64))


def _number(ctx, dim):
    return ctx.number_of(dim) if isinstance(dim, Dim) else _whole(dim)


def _within(ctx, index, size):
    """An index on an axis of `size` as a non-negative one; _OUTSIDE if it is not in [-size, size)."""
    count = _number(ctx, size)
    low = ctx.one("binary", index, ctx.one("binary", _whole(0), count, fn="sub"), fn="less")
    high = ctx.one("binary", index, count, fn="greater_equal")
    turned = ctx.one("binary", index, count, fn="add")
    index = ctx.one("where", ctx.one("binary", index, _whole(0), fn="less"), turned, index)
    return ctx.one("where", ctx.one("binary", low, high, fn="or"), _whole(_OUTSIDE), index)


def _added(ctx, total, index, apart):
    """total + index * apart, where apart is the distance between neighbours on an axis (an int or dim)."""
    if not (isinstance(apart, int) and apart == 1):
        index = ctx.one("binary", index, _number(ctx, apart), fn="mul")
    return index if total is None else ctx.one("binary", *ctx.broadcast([total, index], "indices"), fn="add")


def _positions(ctx, size, axis: int, rank: int):
    """Positions 0, 1, .. along `axis`, with `rank` axes."""
    if isinstance(size, int) and size > _MOST_PLACES:
        raise ModelFormatError(f"an axis of {size} elements")
    return ctx.reshape(ctx.positions(size), tuple(size if i == axis else 1 for i in range(rank)))


def _clamped(ctx, flat, total):
    """Clamp a flat index. One part out of range makes the sum too large; a fixed number keeps it from wrapping
    around."""
    return ctx.one("where", ctx.one("binary", flat, _number(ctx, total), fn="less"), flat, _whole(_OUTSIDE))


@op("GatherElements", attrs="axis")
def _gather_elements(ctx, n: NodeReader):
    x, index = ctx.live(n.input(0)), _indices(ctx, n, 1)
    rank = len(x.dims)
    axis = axis_of(n.attr("axis", "int", 0), rank)
    if len(index.dims) != rank:
        raise ModelFormatError(f"indices of rank {len(index.dims)} into a value of rank {rank}")
    flat = None
    for i in range(rank):
        if i != axis and isinstance(x.dims[i], int) and isinstance(index.dims[i], int) and index.dims[i] > x.dims[i]:
            raise ModelFormatError(f"indices [{', '.join(map(str, index.dims))}] into a value of {x.dims[i]}")
        if i != axis and (isinstance(x.dims[i], Dim) or isinstance(index.dims[i], Dim)):
            ctx.equal(index.dims[i], x.dims[i], f"axis {i} of the indices must be as long as that of the data")
        part = _within(ctx, index, x.dims[i]) if i == axis else _positions(ctx, index.dims[i], i, rank)
        flat = _added(ctx, flat, part, D.product(x.dims[i + 1 :]))
    if flat.dims != index.dims:
        flat = ctx.one("expand", flat, dims=index.dims)
    total = D.product(x.dims)
    return [ctx.one("gather", ctx.reshape(x, (total,)), _clamped(ctx, flat, total), axis=0)]


@op("Lookup", attrs="axis", domain="fastrnn")
def _lookup(ctx, n: NodeReader):
    """Gather with indices from 0, as in PyTorch's embedding: -1 is an error, not the last row.

    The importer of PyTorch's modules writes it (pytorch/lookups.py).
    """
    table, indices = n.input(0), n.input(1)
    if isinstance(table, Ints) or isinstance(indices, Ints):
        return OPERATORS[("", "Gather")].handler(ctx, n)
    if isinstance(indices, Const):
        if indices.array.size and indices.array.min() < 0:
            raise ModelFormatError(f"index {indices.array.min()} is below 0")
        return OPERATORS[("", "Gather")].handler(ctx, n)
    axis, indices = axis_of(n.attr("axis", "int", 0), len(table.dims)), _indices(ctx, n, 1)
    return [ctx.one("gather", table, indices, axis=axis, from_zero=True)]


@op("GatherND", attrs="batch_dims")
def _gather_nd(ctx, n: NodeReader):
    batch, known = n.attr("batch_dims", "int", 0), n.input(1)
    if isinstance(known, Const) and batch == 0 and len(known.dims) == 2 and known.dims[1] == 1:  # as in Gather
        run = gather_run(ctx, ctx.live(n.input(0)), 0, known.array[:, 0].tolist(), 1)
        if run is not None:
            return [run]
    x, index = ctx.live(n.input(0)), _indices(ctx, n, 1)
    rank = len(index.dims)
    depth = ctx.number(index.dims[-1], "GatherND needs indices of a known depth") if rank else 0
    if not 0 <= batch < rank or not 1 <= depth <= len(x.dims) - batch:
        raise ModelFormatError(f"indices [{', '.join(map(str, index.dims))}] into a value of rank {len(x.dims)}")
    flat = None
    for i in range(batch):
        ctx.equal(index.dims[i], x.dims[i], f"axis {i} of the indices must be as long as that of the data")
        flat = _added(ctx, flat, _positions(ctx, x.dims[i], i, rank - 1), D.product(x.dims[i + 1 : batch + depth]))
    flat = flat_rows(ctx, x, index, depth, batch, flat)
    total, tail = D.product(x.dims[: batch + depth]), x.dims[batch + depth :]
    return [ctx.one("gather", ctx.reshape(x, (total, *tail)), _clamped(ctx, flat, total), axis=0)]


def flat_rows(ctx, x, index, depth: int, batch: int = 0, flat=None):
    """The numbers of the rows of x that indices [.., depth] name, over the axes after `batch`; added to flat."""
    rank = len(index.dims)
    for k in range(depth):
        part = ctx.reshape(ctx.slice(index, rank - 1, k, k + 1), index.dims[:-1])
        part = _within(ctx, part, x.dims[batch + k])
        flat = _added(ctx, flat, part, D.product(x.dims[batch + k + 1 : batch + depth]))
    return flat


@op("ScatterElements", "Scatter", attrs="axis reduction")
def _scatter_elements(ctx, n: NodeReader):
    """For values with one axis: place j becomes the update with index j, or stays if there is none. Exporters invert
    permutations like this. For others see writes.py."""
    x, known, updates, fn = n.input(0), n.input(1), n.input(2), writes.reduction(n)
    axis = axis_of(n.attr("axis", "int", 0), len(x.dims))
    if isinstance(x, Ints):
        raise Finding("scatters into a shape")
    constant = isinstance(known, Const)
    if constant and fn is None and len(known.dims) == len(x.dims) == len(updates.dims):
        written = _written_by_number(ctx, x, axis, known.array, updates)
        if written is not None:
            return [written]
    index = _indices(ctx, n, 1)
    if len(x.dims) != 1 or len(index.dims) != 1 or fn is not None or constant:
        if not constant and all(isinstance(d, int) for d in x.dims) and not isinstance(index.dims[axis], int):
            ctx.number(index.dims[axis], "ScatterElements writes at computed places")
        places = index if constant else _on_axis(ctx, index, x.dims[axis])
        return [writes.elements(ctx, x, known.array if constant else None, places, updates, axis, fn)]
    x, updates = ctx.live(x), ctx.live(updates)
    size, count = x.dims[0], index.dims[0]
    ctx.equal(updates.dims[0], count, "there must be as many updates as indices")
    place = ctx.reshape(_within(ctx, index, size), (1, count))
    hits = ctx.one("binary", place, _positions(ctx, size, 0, 2), fn="equal")  # [size, count]
    if updates.dtype not in ("float32", *INTEGERS):
        raise Finding(f"of {updates.dtype}")
    total = _one_of(ctx, hits, ctx.reshape(updates, (1, count)), 1)
    counts = ctx.one("reduce", ctx.one("cast", hits, to="float32"), fn="sum", axes=(1,), keepdims=False)
    return [ctx.one("where", ctx.one("cast", counts, to="bool"), total, x)]


def _on_axis(ctx, index, size):
    """An index as a non-negative one. Looking it up raises the error for one that is out of range."""
    return ctx.one("gather", ctx.live(ctx.positions(size)), index, axis=0)


def _one_of(ctx, hits, values, axis: int):
    """The element of `values` along an axis where `hits` is True; 0 if there is none."""
    chosen = ctx.one("where", hits, values, Const(np.zeros((), values.dtype)))
    return ctx.one("reduce", chosen, fn="sum", axes=(axis,), keepdims=False)


def _written_by_number(ctx, x, axis: int, known: np.ndarray, updates):
    """x with a run replaced by the updates, if the indices are known, count up along the axis and are equal in all
    rows; None otherwise."""
    rows = np.moveaxis(known, axis, -1).reshape(-1, known.shape[axis])
    whole = all(
        n == ctx.table.example(d) for i, (n, d) in enumerate(zip(known.shape, x.dims, strict=True)) if i != axis
    )
    if not whole or not rows.size or (rows != rows[:1]).any() or (np.diff(rows[0]) != 1).any():
        return None
    first, last = int(rows[0, 0]), int(rows[0, -1])
    size = ctx.table.example(x.dims[axis])
    if first < 0 <= last or not -size <= first or not last < size:
        raise ModelFormatError(f"indices {first} to {last} outside an axis of {size}")
    low, high = slices.slice_bounds(ctx, x, axis, first, last + 1 if last != -1 else slices.FAR, 1)
    for i, d in enumerate(x.dims):
        if i != axis:
            (updates,) = ctx.alike([updates], i, d, f"axis {i} of the updates must be as long as that of the data")
    ctx.equal(updates.dims[axis], high - low, f"axis {axis} of the updates must be as long as that of the indices")
    parts = [ctx.slice(x, axis, 0, low), updates, ctx.slice(x, axis, high, x.dims[axis])]
    return ctx.concat([ctx.live(p) for p in parts if not (isinstance(p.dims[axis], int) and p.dims[axis] == 0)], axis)


@op("OneHot", attrs="axis")
def _one_hot(ctx, n: NodeReader):
    index, values, depth = ctx.live(n.input(0)), n.const(2, "values"), n.input(1)
    if isinstance(depth, Const) and depth.array.dtype.kind == "f":  # the operator allows floats
        depth = [int(v) for v in depth.array.reshape(-1)]
    else:
        depth = n.ints(1, "depth")
    if len(depth) != 1 or values.shape != (2,) or (isinstance(depth[0], int) and depth[0] < 1):
        raise ModelFormatError(f"OneHot with depth {list(map(str, depth))} and values of shape {list(values.shape)}")
    index = index if index.dtype == "int64" else ctx.one("cast", index, to="int64")
    depth, rank = depth[0], len(index.dims) + 1
    if isinstance(depth, int):
        ctx.table.ledger.width(depth, ctx.label)
    axis = axis_of(n.attr("axis", "int", -1), rank)
    index = ctx.reshape(index, (*index.dims[:axis], 1, *index.dims[axis:]))
    turned = ctx.one("binary", index, _number(ctx, depth), fn="add")
    index = ctx.one("where", ctx.one("binary", index, _whole(0), fn="less"), turned, index)
    hot = ctx.one("binary", index, _positions(ctx, depth, axis, rank), fn="equal")
    off, on = (Const(v) for v in values)
    return [ctx.one("where", hot, on, off)]


@op("Hardmax", attrs="axis")
def _hardmax(ctx, n: NodeReader):
    x = ctx.live(n.input(0))
    if x.dtype != "float32":
        raise Finding(f"of {x.dtype}")
    if n.opset < 13:
        raise Finding("of opset 12 or older, which flattens its input")
    axis = axis_of(n.attr("axis", "int", -1), len(x.dims))
    best = ctx.one("argmax", x, axis=axis, keepdims=True, last=False, largest=True)
    hot = ctx.one("binary", best, _positions(ctx, x.dims[axis], axis, len(x.dims)), fn="equal")
    return [ctx.one("cast", hot, to="float32")]


@op("TopK", attrs="axis largest sorted k")
def _top_k(ctx, n: NodeReader):
    x = n.input(0)
    k = [n.attr("k", "int")] if n.opset < 10 else n.ints(1, "k")
    largest = bool(n.attr("largest", "int", 1))
    n.attr("sorted", "int", 1)  # the result is always sorted
    if isinstance(x, Ints) or len(k) != 1 or k[0] is None or not x.dims:
        raise ModelFormatError(f"TopK with k={k}")
    x, k = ctx.live(x), k[0]
    axis = axis_of(n.attr("axis", "int", -1), len(x.dims))
    size = x.dims[axis]
    if isinstance(k, int) and isinstance(size, int) and not 0 < k <= size:
        raise ModelFormatError(f"TopK with k={k} of {size}")
    if isinstance(k, Dim) and isinstance(size, Dim) and not ctx.table.genuine(size) and isinstance(size - k, Dim):
        ctx.table.shortfalls.append(D.shortfall(size - k, 0))
    elif isinstance(k, Dim) or (isinstance(size, Dim) and k == ctx.table.example(size) and ctx.table.genuine(size)):
        ctx.equal(k, size, "TopK takes all elements of it")
        k = size
    elif k != 1:
        ctx.table.ledger.count(size, ctx.label, f"takes the {k} largest")
    if isinstance(k, int) and k <= _MOST_PICKS and x.dtype == "float32":
        return _picked(ctx, x, k, axis, largest)
    if isinstance(size, int) and size > _MOST_RANKED:
        raise Finding(f"the {k} largest of {size}")
    return _ranked(ctx, x, k, axis, largest)


def _picked(ctx, x, k: int, axis: int, largest: bool):
    """Pick the largest, then the largest of the rest, and so on."""
    values, indices, left = [], [], x
    places = _positions(ctx, x.dims[axis], axis, len(x.dims))
    gone = Const(np.float32(-np.inf if largest else np.inf))
    for _ in range(k):
        best = ctx.one("argmax", left, axis=axis, keepdims=True, last=False, largest=largest)
        fn = "max" if largest else "min"
        values.append(ctx.one("reduce", left, fn=fn, axes=(axis,), keepdims=True))
        indices.append(best)
        left = ctx.one("where", ctx.one("binary", best, places, fn="equal"), gone, left)
    return [ctx.concat(values, axis), ctx.concat(indices, axis)]


def _ranked(ctx, x, k, axis: int, largest: bool):
    """An element's rank is the number of larger elements plus that of equal ones before it. Elements are picked by
    rank."""
    last = len(x.dims) - 1
    perm = [*(i for i in range(last + 1) if i != axis), axis]
    x = ctx.transpose(x, perm)
    lead, size = x.dims[:-1], x.dims[-1]
    rows, columns = ctx.reshape(x, (*lead, size, 1)), ctx.reshape(x, (*lead, 1, size))
    place = ctx.positions(size)
    earlier = ctx.one("binary", ctx.reshape(place, (1, size)), ctx.reshape(place, (size, 1)), fn="less")
    ahead = ctx.one("binary", columns, rows, fn="greater" if largest else "less")
    equal = ctx.one("binary", columns, rows, fn="equal")
    ahead = ctx.one("binary", ahead, ctx.one("binary", equal, earlier, fn="and"), fn="or")
    rank = ctx.one("reduce", ctx.one("cast", ahead, to="float32"), fn="sum", axes=(last + 1,), keepdims=False)
    rank = ctx.reshape(ctx.one("cast", rank, to="int64"), (*lead, 1, size))
    wanted = ctx.reshape(ctx.positions(k), (k, 1))
    chosen = ctx.one("cast", ctx.one("binary", rank, wanted, fn="equal"), to="float32")  # [.., k, size]
    index = ctx.one("argmax", chosen, axis=last + 1, keepdims=False, last=False, largest=True)
    hit = ctx.one("cast", chosen, to="bool")
    value = _one_of(ctx, hit, columns, last + 1)
    back = [perm.index(i) for i in range(last + 1)]
    return [ctx.transpose(value, back), ctx.transpose(index, back)]


@op("ReverseSequence", attrs="batch_axis time_axis")
def _reverse_sequence(ctx, n: NodeReader):
    x, lengths = n.input(0), n.input(1)
    time_axis, batch_axis = n.attr("time_axis", "int", 0), n.attr("batch_axis", "int", 1)
    if len(x.dims) < 2 or {time_axis, batch_axis} != {0, 1}:
        raise ModelFormatError(f"ReverseSequence with axes {time_axis} and {batch_axis} of rank {len(x.dims)}")
    time, length = x.dims[time_axis], uniform(lengths)
    if isinstance(lengths, Ints) and len({repr(v) for v in lengths.array.flat}) == 1:
        length = lengths.array.flat[0]
    if length is not None and (length == time or length == ctx.table.example(time)):
        return [ctx.slice(x, time_axis, time - 1, -1, -1)]
    return [_reversed_in_part(ctx, ctx.live(x), ctx.live(lengths), time_axis)]


def _reversed_in_part(ctx, x, lengths, time_axis: int):
    """Each row reversed over its own length; the steps after it stay. Rows and steps are the first two axes."""
    batch, time = x.dims[1 - time_axis], x.dims[time_axis]
    ctx.equal(lengths.dims[0], batch, "ReverseSequence needs a length for each row")
    if lengths.dtype != "int64":
        lengths = ctx.one("cast", lengths, to="int64")
    by_row = ctx.transpose(x, (1, 0, *range(2, len(x.dims)))) if time_axis == 0 else x
    lengths, step = ctx.reshape(lengths, (batch, 1)), ctx.live(ctx.positions(time))
    mirrored = ctx.one("binary", ctx.one("binary", lengths, step, fn="sub"), Const(np.array(1)), fn="sub")
    place = ctx.one("where", ctx.one("binary", step, lengths, fn="less"), mirrored, step)
    place = ctx.one("gather", step, place, axis=0, from_zero=True)  # an error for a length beyond the steps
    row = ctx.reshape(ctx.live(ctx.positions(batch)), (batch, 1))
    size = ctx.number_of(time) if isinstance(time, Dim) else Const(np.array(time))
    flat = ctx.one("binary", ctx.one("binary", row, size, fn="mul"), place, fn="add")
    out = ctx.one("gather", ctx.reshape(by_row, (batch * time, *x.dims[2:])), flat, axis=0)
    return ctx.transpose(out, (1, 0, *range(2, len(x.dims)))) if time_axis == 0 else out
