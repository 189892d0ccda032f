"""Operators that move data without computing, and arithmetic on shapes."""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading import files, fold
from ..reading.reader import NodeReader, axes_of, axis_of
from ..reading.registry import op
from ..reading.values import Const, Fill, Ints, Live, as_objects, ints, simplest, uniform
from ..sizes import blocks, positions, slices, thaw

_MOST_PLACES = 1 << 16  # largest fill of integers that is expanded


@op("Shape", attrs="start end")
def _shape(ctx, n: NodeReader):
    dims = n.input(0).dims
    start, end = n.attr("start", "int", 0), n.attr("end", "int", len(dims))
    return [ints(dims[slice(start, end)])]


@op("Size")
def _size(ctx, n: NodeReader):
    return [simplest(D.product(n.input(0).dims))]


@op("Transpose", attrs="perm")
def _transpose(ctx, n: NodeReader):
    x = n.input(0)
    perm = n.attr("perm", "ints", list(range(len(x.dims)))[::-1])
    perm = [a + len(x.dims) if a < 0 else a for a in perm]  # PyTorch's older exporter writes some from the end
    if sorted(perm) != list(range(len(x.dims))):
        raise ModelFormatError(f"perm {perm} of a value of rank {len(x.dims)}")
    if isinstance(x, Ints):
        return [Ints(x.array.transpose(perm))]
    return [ctx.transpose(x, perm)]


@op("Reshape", attrs="allowzero shape")
def _reshape(ctx, n: NodeReader):
    x, allowzero = n.input(0), n.attr("allowzero", "int", 0)
    target = n.ints(1, "shape") if n.opset >= 5 else n.attr("shape", "ints")
    if target is None:
        raise ModelFormatError("Reshape without a shape")
    return [_resolved(ctx, x, target, bool(allowzero))]


def _resolved(ctx, x, target: list, allowzero: bool):
    if isinstance(x, Ints):
        if all(isinstance(t, int) for t in target):
            return Ints(x.array.reshape(target))
        raise Finding("reshapes a shape by a size")
    try:
        return ctx.reshape(x, thaw.reshape_dims(ctx, x.dims, target, allowzero))
    except Finding:
        whole = blocks.cut(ctx, x, target, allowzero) if isinstance(x, Live) else None
        if whole is None:
            raise
        x, target = whole
        return ctx.reshape(x, thaw.reshape_dims(ctx, x.dims, target, allowzero))


@op("Flatten", attrs="axis")
def _flatten(ctx, n: NodeReader):
    x, axis = n.input(0), n.attr("axis", "int", 1)
    if not -len(x.dims) <= axis <= len(x.dims):
        raise ModelFormatError(f"axis {axis} of a value of rank {len(x.dims)}")
    axis += len(x.dims) if axis < 0 else 0
    return [ctx.reshape(ctx.live(x), (D.product(x.dims[:axis]), D.product(x.dims[axis:])))]


@op("Squeeze", attrs="axes")
def _squeeze(ctx, n: NodeReader):
    x, axes = n.input(0), n.axes(1, 13)
    if axes is None:
        ones = [d for d in x.dims if isinstance(d, Dim) and ctx.table.example(d) == 1]
        if ones:
            ctx.table.freeze(ones, "Squeeze removes it")
        opened = [d for d in x.dims if isinstance(d, Dim) and not ctx.table.genuine(d)]
        if opened:
            raise Finding(f"without axes: whether it removes the size {opened[0]} is not known before it runs")
        axes = [i for i, d in enumerate(x.dims) if isinstance(d, int) and d == 1]
    axes = axes_of(axes, len(x.dims))
    for a in axes:
        ctx.equal(x.dims[a], 1, f"Squeeze removes axis {a}, which must be 1 long")
        if isinstance(x.dims[a], Dim):  # assumed to be 1, which the graph then requires
            x = ctx.slice(x, a, 0, 1)
    dims = [d for i, d in enumerate(x.dims) if i not in axes]
    if isinstance(x, Ints):
        return [simplest(x.array.reshape(dims))]
    return [ctx.reshape(x, dims)]


@op("Unsqueeze", attrs="axes")
def _unsqueeze(ctx, n: NodeReader):
    x, axes = n.input(0), n.axes(1, 13)
    if axes is None:
        raise ModelFormatError("Unsqueeze without axes")
    rank = len(x.dims) + len(axes)
    axes, rest = axes_of(axes, rank), iter(x.dims)
    dims = [1 if i in axes else next(rest) for i in range(rank)]
    if isinstance(x, Ints):
        return [Ints(x.array.reshape(dims))]
    return [ctx.reshape(x, dims)]


@op("Slice", attrs="axes starts ends")
def _slice(ctx, n: NodeReader):
    x = n.input(0)
    if n.opset < 10:
        starts, ends, axes, steps = n.attr("starts", "ints"), n.attr("ends", "ints"), n.attr("axes", "ints"), None
        if starts is None or ends is None:
            raise ModelFormatError("Slice without starts or ends")
    elif isinstance(n.input(1), Live):
        return [_from_computed(ctx, n, x, n.input(1))]
    else:
        starts, ends = n.ints(1, "starts"), n.ints(2, "ends")
        axes, steps = n.ints(3, "axes", optional=True), n.ints(4, "steps", optional=True)
    axes = list(range(len(starts))) if axes is None else axes
    if any(isinstance(a, Dim) for a in axes):
        raise Finding("its axes depend on a size of the input")
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ModelFormatError(f"Slice: {len(starts)} starts, {len(ends)} ends, {len(axes)} axes, {len(steps)} steps")
    for axis, start, end, step in zip(axes_of(axes, len(x.dims)), starts, ends, steps, strict=True):
        if not isinstance(step, int) or step == 0:
            raise ModelFormatError(f"Slice with step {step}")
        if isinstance(x, Ints):
            if not isinstance(start, int) or not isinstance(end, int):
                raise Finding("slices a shape by a size")
            key = [slice(None)] * x.array.ndim
            key[axis] = slice(start, end, step)
            x = simplest(x.array[tuple(key)])
            continue
        rows = positions.slice_table(ctx, x, axis, start, end, step)
        if rows is not None:
            x = rows
            continue
        low, high = slices.slice_bounds(ctx, x, axis, start, end, step)
        x = ctx.slice(x, axis, low, high, step)
    return [x]


def _from_computed(ctx, n: NodeReader, x, start: Live):
    """A Slice from a computed start to that start plus a number: its length is known."""
    axes, steps = n.ints(3, "axes", optional=True), n.ints(4, "steps", optional=True)
    if len(start.dims) != 1:
        raise ModelFormatError(f"starts of rank {len(start.dims)}")
    one = ctx.number(start.dims[0], "Slice needs a known number of axes") == 1
    count = positions.apart(ctx, start, n.input(2)) if one else None
    if count is None or (steps or [1]) != [1]:
        raise Finding("its starts are computed from the inputs; only a slice of a known length may be, from one start")
    if isinstance(count, int) and count < 1:
        raise ModelFormatError(f"a slice of {count} elements")
    (axis,) = axes_of(axes or [0], len(x.dims))
    return positions.slice_from(ctx, ctx.live(x), axis, start, count)


@op("Concat", attrs="axis")
def _concat(ctx, n: NodeReader):
    values = [n.input(i) for i in range(len(n.values))]
    axis = n.attr("axis", "int", None if n.opset >= 4 else 1)
    if axis is None or not values:
        raise ModelFormatError("Concat without axis or inputs")
    axis = axis_of(axis, len(values[0].dims))
    if len(values) == 1:
        return values
    if not any(isinstance(v, Live) for v in values):
        values = [_as_known(v) for v in values]
    if all(isinstance(v, (Const, Ints)) for v in values):
        return [simplest(np.concatenate([as_objects(v) for v in values], axis=axis))]
    if any(len(v.dims) != len(values[0].dims) for v in values):
        raise ModelFormatError(f"Concat of values of ranks {[len(v.dims) for v in values]}")
    if all(isinstance(v, Fill) for v in values) and len({repr(v.value) for v in values}) == 1:
        first = values[0]
        return [Fill(first.value, first.dtype, _joined(ctx, values, axis))]
    for i in range(len(values[0].dims)):
        free = [v.dims[i] for v in values if isinstance(v.dims[i], Dim)]
        if i != axis and free:
            values = ctx.alike(values, i, free[0], f"Concat needs equal sizes along axis {i}")
    _joined(ctx, values, axis)
    return [ctx.one("concat", *values, axis=axis)]


def _as_known(value):
    """A small fill of one integer as an array; anything else unchanged."""
    small = isinstance(value, Fill) and value.dtype == np.int64 and not isinstance(value.value, Dim)
    if small and all(isinstance(d, int) for d in value.dims) and D.product(value.dims) <= _MOST_PLACES:
        return Const(np.full(value.dims, value.value, np.int64))
    return value


def _joined(ctx, values, axis: int) -> tuple:
    """The dims of a concatenation; makes all other axes equal."""
    dims = list(values[0].dims)
    for v in values[1:]:
        for i, (a, b) in enumerate(zip(dims, v.dims, strict=True)):
            if i != axis:
                ctx.equal(a, b, f"Concat needs equal sizes along axis {i}")
        dims[axis] = v.dims[axis] + dims[axis]
    return tuple(dims)


@op("Split", attrs="axis split num_outputs")
def _split(ctx, n: NodeReader):
    x, count = n.input(0), len(n.node.outputs)
    axis = axis_of(n.attr("axis", "int", 0), len(x.dims))
    size = x.dims[axis]
    parts = n.attr("split", "ints") if n.opset < 13 else n.ints(1, "split", optional=True)
    if n.opset >= 18:
        declared = n.attr("num_outputs", "int")
        if declared is not None and declared != count:
            raise ModelFormatError(f"num_outputs is {declared}, but there are {count} outputs")
    if parts is None and count == 1:
        return [x]
    if parts is None and isinstance(size, Dim) and not ctx.table.genuine(size):
        x = blocks.cut_axis(ctx, x, axis, count)
        size = x.dims[axis]
        parts = [D.floordiv(size, count)] * count
    if parts is None:
        size = ctx.number(size, "Split makes equal parts of it")
        if n.opset < 18 and size % count:
            raise ModelFormatError(f"Split of {size} into {count} equal parts")
        chunk = -(-size // count)
        parts = [chunk] * (count - 1) + [size - chunk * (count - 1)]
    if len(parts) != count or any(isinstance(p, int) and p < 0 for p in parts):
        raise ModelFormatError(f"split {list(map(str, parts))} for {count} outputs")
    if count == 1 and isinstance(size, Dim) and parts == [ctx.table.example(size)]:
        return [x]
    total = 0
    for p in parts:
        total = p + total
    ctx.equal(size, total, "the parts of Split must add up to it")
    out, at = [], 0
    for p in parts:
        if isinstance(x, Ints):
            out.append(simplest(x.array[at : at + p]))
        else:
            out.append(ctx.slice(x, axis, at, at + p))
        at = p + at
    return out


@op("Gather", attrs="axis")
def _gather(ctx, n: NodeReader):
    x, indices = n.input(0), n.input(1)
    axis = axis_of(n.attr("axis", "int", 0), len(x.dims))
    if isinstance(indices, Ints):
        if indices.array.size != 1 or isinstance(x, Ints):
            ctx.table.freeze(list(indices.array.flat), "it is used as an index")
    elif isinstance(indices, Const):
        if indices.array.dtype not in (np.int64, np.int32):
            raise ModelFormatError(f"indices must be int32 or int64, got {indices.array.dtype}")
    else:
        return [_gather_live(ctx, x, ctx.live(indices), axis)]
    if isinstance(x, Ints):
        wanted = indices.array
        if ((wanted < -x.array.shape[axis]) | (wanted >= x.array.shape[axis])).any():
            raise ModelFormatError(f"indices {wanted.tolist()} outside a shape of {x.array.shape[axis]}")
        return [simplest(x.array.take(wanted, axis=axis))]
    flat = [v if isinstance(v, Dim) else int(v) for v in indices.array.flat]
    part = gather_run(ctx, x, axis, flat, len(indices.dims))
    if part is not None:
        middle = (part.dims[axis],) if len(indices.dims) == 1 else indices.dims
        return [ctx.reshape(part, (*x.dims[:axis], *middle, *x.dims[axis + 1 :]))]
    wanted, size = indices.array.astype(np.int64), x.dims[axis]
    if isinstance(size, Dim) and not ctx.table.genuine(size) and wanted.size and isinstance(x, Live):
        ctx.table.shortfalls.append(D.shortfall(size, max(int(wanted.max()) + 1, -int(wanted.min()))))
        return [ctx.one("gather", x, Const(wanted), axis=axis)]
    size = ctx.number(size, "Gather takes elements of it by number")
    if ((wanted < -size) | (wanted >= size)).any():
        raise ModelFormatError(f"indices outside an axis of {size}")
    if isinstance(x, Fill):
        return [Fill(x.value, x.dtype, (*x.dims[:axis], *wanted.shape, *x.dims[axis + 1 :]))]
    return [ctx.one("gather", x, Const(np.where(wanted < 0, wanted + size, wanted)), axis=axis)]


def gather_run(ctx, x, axis: int, indices: list, rank: int):
    """A slice for constant indices that count up by one, or that reverse the whole axis; None otherwise."""
    size = x.dims[axis]
    if not indices or any(isinstance(v, Dim) for v in indices[1:]):
        return None
    if (
        rank == 1
        and len(indices) > 1
        and indices == list(range(len(indices)))[::-1]
        and len(indices) == ctx.table.example(size)
    ):
        return ctx.slice(x, axis, size - 1, -1, -1)
    first, last = indices[0], indices[-1]
    if len(indices) == 1 and isinstance(size, Dim) and ctx.table.genuine(size) and ctx.table.example(size) == 1:
        # The first, the last, or everything: can't be decided.
        ctx.table.freeze([size], "Gather takes its one element")
    if len(indices) > 1 and (indices != list(range(first, first + len(indices))) or (first < 0) != (last < 0)):
        return None
    whole = first == 0 and last + 1 == ctx.table.example(size)  # like arange(T)
    low, high = slices.slice_bounds(ctx, x, axis, first, last + 1 if last != -1 and not whole else slices.FAR, 1)
    if high - low != len(indices) and not (whole and high - low == size):
        raise ModelFormatError(f"indices {first} to {last} outside an axis of {ctx.table.example(size)}")
    return ctx.slice(x, axis, low, high)


def _gather_live(ctx, x, indices, axis: int):
    if indices.dtype not in ("int32", "int64"):
        raise ModelFormatError(f"indices must be int32 or int64, got {indices.dtype}")
    if isinstance(x, Ints):
        ctx.table.freeze(list(x.array.flat), "the input selects one of several sizes")
    if indices.dtype == "int32":
        indices = ctx.one("cast", indices, to="int64")
    return ctx.one("gather", x, indices, axis=axis)


@op("Constant", attrs="value value_float value_floats value_int value_ints value_string value_strings sparse_value")
def _constant(ctx, n: NodeReader):
    value = n.attr("value", "tensor")
    if value is not None:
        return [Const(files.tensor(value, None))]
    for name, kind, dtype in (
        ("value_float", "float", np.float32),
        ("value_floats", "floats", np.float32),
        ("value_int", "int", np.int64),
        ("value_ints", "ints", np.int64),
    ):
        found = n.attr(name, kind)
        if found is not None:
            return [Const(np.array(found, dtype=dtype))]
    if not n.node.attrs:
        raise ModelFormatError("Constant without a value")
    raise Finding(f"a constant given by {', '.join(n.node.attrs)}")


@op("ConstantOfShape", attrs="value")
def _constant_of_shape(ctx, n: NodeReader):
    dims, tensor = n.ints(0, "shape"), n.attr("value", "tensor")
    value = np.zeros(1, np.float32) if tensor is None else files.tensor(tensor, None)
    if value.size != 1 or any(isinstance(d, int) and d < 0 for d in dims):
        raise ModelFormatError(f"ConstantOfShape of {list(value.shape)} to {list(map(str, dims))}")
    return [_filled(value.reshape(-1)[0], value.dtype, tuple(dims))]


def _filled(value, dtype, dims: tuple):
    """A small known integer array as a constant (for further shape arithmetic), anything else as a Fill."""
    if dtype.kind in "iub" and len(dims) <= 1 and all(isinstance(d, int) and d <= 64 for d in dims):
        if isinstance(value, Dim):
            return simplest(np.array([value] * (dims[0] if dims else 1), dtype=object).reshape(dims))
        return Const(np.full(dims, value, dtype))
    return Fill(value, dtype, dims)


@op("Expand")
def _expand(ctx, n: NodeReader):
    x, target = n.input(0), n.ints(1, "shape")
    value = uniform(x)
    if isinstance(x, Const) and value is not None:
        return [_filled(value, x.array.dtype, _expand_uniform(ctx, x.dims, target))]
    dims = _expand_dims(ctx, x.dims, target, isinstance(x, Live))
    if x.dims == dims:
        return [x]
    if isinstance(x, Ints) and x.array.size == 1:
        return [_filled(x.array.reshape(-1)[0], np.dtype(np.int64), dims)]
    if isinstance(x, Fill):
        return [Fill(x.value, x.dtype, dims)]
    if isinstance(x, Const) and all(isinstance(d, int) for d in dims) and D.product(dims) <= fold.MAX_ELEMENTS:
        return [Const(np.broadcast_to(x.array, dims))]
    return [ctx.one("expand", x, dims=dims)]


def _expand_dims(ctx, dims: tuple, target: list, live: bool = False) -> tuple:
    """Broadcast dims with a target whose ints may be frozen: an int equal to the example follows the dim."""
    rank, out = max(len(dims), len(target)), []
    dims, target = (1,) * (rank - len(dims)) + tuple(dims), (1,) * (rank - len(target)) + tuple(target)
    for d, t in zip(dims, target, strict=True):
        if isinstance(t, int) and t < 0 and t != -1:
            raise ModelFormatError(f"Expand to {list(map(str, target))}")
        if d == t or (isinstance(t, int) and t in (1, -1)):
            out.append(d)
        elif isinstance(d, int) and d == 1:
            out.append(_repeats(ctx, t, len(out) - rank) if live else t)
        elif isinstance(d, Dim) and isinstance(t, int) and ctx.table.example(d) == t:
            out.append(d)
        elif isinstance(d, Dim) and ctx.table.example(d) == 1:
            ctx.table.freeze([d], "Expand broadcasts it")
        else:
            ctx.equal(d, t, "Expand needs sizes that are equal or 1")
    return tuple(out)


def _repeats(ctx, t, axis: int):
    """A literal number of repeats. If it equals a size of the file, the exporter may have meant that size: it follows
    the size if the two meet, or if a recurrence steps along both."""
    return t if isinstance(t, Dim) or t < 2 else ctx.table.literal((ctx.label, axis), t)


def _expand_uniform(ctx, dims: tuple, target: list) -> tuple:
    """As `_expand_dims`, for a uniform value. Its length is the example's and follows the target's size, even one that
    the file leaves open: PyTorch writes zeros for the example's batch and expands them to the batch."""
    rank = max(len(dims), len(target))
    dims, target = (1,) * (rank - len(dims)) + tuple(dims), (1,) * (rank - len(target)) + tuple(target)
    for d, t in zip(dims, target, strict=True):
        sym = ctx.table.single(t)
        if d > 1 and sym is not None and not sym.genuine:
            ctx.table.hint(sym, d, f"{ctx.label} (Expand of {d} equal ones)")
    loose = [1 if isinstance(t, Dim) and ctx.table.example(t) == d else d for d, t in zip(dims, target, strict=True)]
    return _expand_dims(ctx, tuple(loose), list(target))


@op("Tile")
def _tile(ctx, n: NodeReader):
    x, repeats = n.input(0), n.ints(1, "repeats")
    if isinstance(x, Ints) or len(repeats) != len(x.dims) or any(isinstance(r, int) and r < 0 for r in repeats):
        raise ModelFormatError(f"Tile of rank {len(x.dims)} by {list(map(str, repeats))}")
    if isinstance(x, Fill):
        return [Fill(x.value, x.dtype, tuple(r * d for r, d in zip(repeats, x.dims, strict=True)))]
    if isinstance(x, Const) and x.array.size == 1:
        return [_filled(x.array.reshape(-1)[0], x.array.dtype, tuple(repeats))]
    for axis, r in enumerate(repeats):
        if isinstance(r, int) and r == 1:
            continue
        size = x.dims[axis]
        if isinstance(size, int) and size == 1:
            x = ctx.one("expand", x, dims=(*x.dims[:axis], _repeats(ctx, r, axis), *x.dims[axis + 1 :]))
            continue
        # [.., n, ..] -> [.., 1, n, ..] -> [.., r, n, ..] -> [.., r*n, ..]
        before, after = x.dims[:axis], x.dims[axis + 1 :]
        x = ctx.reshape(x, (*before, 1, size, *after))
        x = ctx.one("expand", x, dims=(*before, r, size, *after))
        x = ctx.reshape(x, (*before, r * size, *after))
    return [x]
