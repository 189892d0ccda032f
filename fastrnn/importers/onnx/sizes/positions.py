"""Values that depend only on positions: step numbers, triangles, slices of tables, and masks that a file froze."""

from __future__ import annotations

import numpy as np

from ....errors import FastRNNError
from ....graph import dims as D
from ....graph import reference
from ....graph.dims import Dim
from ....graph.traverse import subgraph
from ...shared.ledger import Finding
from ..reading.values import Const, Fill, Ints, Live

_GRIDS = 4  # sizes at which computed places are compared
MOST = 1 << 24  # most numbers in a computed table


def sizes_of(ctx, value: Live) -> list[Dim] | None:
    """The sizes that a value is computed from; None if it depends on an input of the file."""
    needed, sizes = {value.name}, list(value.dims)
    for op_, _, inputs, outputs, attrs in reversed(ctx.nodes):
        if needed & set(outputs):
            needed |= {i for i in inputs if i is not None and i not in ctx.constants}
            needed -= set(outputs)
            sizes += [*attrs["dims"], attrs["start"]] if op_ == "steps" else ()
            sizes += attrs["dims"] if op_ == "expand" else ()
    return None if needed else [d for d in dict.fromkeys(sizes) if isinstance(d, Dim)]


def is_grid(ctx, index: Live) -> bool:
    """Whether indices [sizes.., depth] are the places of a block that begins at 0 along each axis, in order. They are
    computed at sizes of several kinds."""
    if len(index.dims) - 1 != index.dims[-1] or sizes_of(ctx, index) is None:
        return False
    names = sorted({s for dim in sizes_of(ctx, index) for s in D.symbols(dim)})
    part = subgraph(ctx.graph("indices", [], [index.name], ()), (), (index.name,))
    for first in range(_GRIDS):
        sizes = {name: 1 + (3 * k + 2 * first) % 7 for k, name in enumerate(names)}
        try:
            (found,) = reference.run(part, {}, sizes=sizes)
        except FastRNNError:
            return False
        want = np.moveaxis(np.indices(found.shape[:-1]), 0, -1)
        if not np.array_equal(found, want):
            return False
    return True


def exact_size(ctx, dim) -> Live:
    """A size as an int64 value: number_of for each factor, so that a product may be larger than 2^24."""
    if not isinstance(dim, Dim) or all(len(factors) < 2 for factors in dim.terms):
        return ctx.number_of(dim)
    total = None
    for factors, count in dim.terms.items():
        term = Const(np.array(count))
        for atom in factors:
            size = D.symbol(atom) if isinstance(atom, str) else D.floordiv(atom.num, atom.den)
            term = ctx.one("binary", ctx.number_of(size), term, fn="mul")
        total = term if total is None else ctx.one("binary", total, term, fn="add")
    return total


def apart(ctx, start, end):
    """end - start of two integers if it is known: both are one computed number plus something known; else None."""
    (base, low), (other, high) = _offset(ctx, start), _offset(ctx, end)
    return high - low if base == other else None


def _offset(ctx, value) -> tuple:
    """(name of the number that an integer is computed from, or None; what was added to it)."""
    total, names = 0, {v.name: size for (size, _), v in ctx.known_numbers()}
    while isinstance(value, Live):
        name = value.name
        if name in names:
            return None, total + names[name]
        entry = next((e for e in reversed(ctx.nodes) if name in e[3]), None)
        inputs = [] if entry is None else entry[2]
        step = None
        if entry is not None and entry[0] in ("reshape", "cast") and ctx.values[inputs[0]].dtype in ("int64", "int32"):
            step, added = inputs[0], 0
        elif entry is not None and entry[0] == "binary" and entry[4]["fn"] in ("add", "sub"):
            for own, more in ((0, 1), (1, 0)) if entry[4]["fn"] == "add" else ((0, 1),):
                known = names.get(inputs[more], ctx.constants.get(inputs[more]))
                if known is not None and (isinstance(known, Dim) or known.size == 1):
                    known = known if isinstance(known, Dim) else int(known.reshape(-1)[0])
                    step, added = inputs[own], known if entry[4]["fn"] == "add" else -known
                    break
        if step is None:
            return name, total
        total, found = total + added, ctx.values[step]
        if step in ctx.constants:
            value = Const(ctx.constants[step])
        else:
            value = Live(found.name, found.dtype, found.dims)
    if isinstance(value, (Const, Ints)) and value.array.size == 1:
        number = value.array.reshape(-1)[0]
        return None, total + (number if isinstance(number, Dim) else int(number))
    return value, total


def slice_from(ctx, x, axis: int, start: Live, count):
    """`count` elements from a computed position on; a position from which there are fewer is an error at run time."""
    start = start if start.dtype == "int64" else ctx.one("cast", start, to="int64")
    index = ctx.one("binary", ctx.live(ctx.positions(count)), ctx.reshape(start, ()), fn="add")
    return ctx.one("gather", x, index, axis=axis, from_zero=True)


def triangle(ctx, dims: tuple, k, upper: bool):
    """bool [rows, columns], True where column - row >= k (upper) or <= k, an int or a size: constant for known dims."""
    rows, columns = dims
    fn = "greater_equal" if upper else "less_equal"
    if isinstance(k, Dim):  # column - k is at most, or at least, row
        return ctx.one("binary", ctx.positions(columns, -k), ctx.reshape(ctx.positions(rows), (rows, 1)), fn=fn)
    if isinstance(rows, Dim) or isinstance(columns, Dim):
        from_row = ctx.one("binary", ctx.positions(columns), ctx.reshape(ctx.positions(rows), (rows, 1)), fn="sub")
        return ctx.one("binary", from_row, Const(np.array(k)), fn=fn)
    if rows * columns > MOST:
        raise Finding(f"a triangle of {rows} x {columns}")
    from_row = np.arange(columns) - np.arange(rows)[:, None]
    return Const(from_row >= k if upper else from_row <= k)


def running_count(ctx, x: Fill, axis: int, exclusive: bool):
    """The running sum of a uniform integer: the count so far, times that integer."""
    dims = [1] * len(x.dims)
    dims[axis] = x.dims[axis]
    out = ctx.reshape(ctx.positions(x.dims[axis], int(not exclusive)), dims)
    dtype = ctx.dtype(x.dtype)
    if dtype != "int64":
        out = ctx.one("cast", out, to=dtype)
    if int(x.value) != 1:
        out = ctx.one("binary", out, Const(np.array(x.value, x.dtype)), fn="mul")
    return out if out.dims == tuple(x.dims) else ctx.one("expand", out, dims=tuple(x.dims))


def slice_table(ctx, x, axis: int, start, end, step: int):
    """As many of the first rows of a fixed table as a size says, looked up by step number. None for any other slice.

    If the table is shorter than the size, running the model raises an index error.
    """
    size = x.dims[axis]
    if isinstance(x, (Ints, Fill)) or isinstance(size, Dim) or step != 1:
        return None
    if not isinstance(end, Dim) or (isinstance(start, int) and start < 0):
        return None
    if ctx.table.genuine(end) and ctx.table.example(end) >= size:
        return None  # to the end, at the file's own size
    return ctx.one("gather", x, ctx.positions(end - start, start), axis=axis)


# --- masks that a file froze -----------------------------------------------------------------------------------------


def thaw_masks(ctx, values: list) -> list:
    """Rewrite constants that say which step sees which, at the file's own length, for every length.

    Such a constant meets a value that has one size, T, on two axes. It has the file's own number on both, and holds one
    number where 0 <= row - column < w (w may be the full length) and another elsewhere.
    """
    rank = max(len(v.dims) for v in values)
    for dims in [v.dims for v in values if not isinstance(v, Const)]:
        axes = [i - len(dims) + rank for i, d in enumerate(dims) if isinstance(d, Dim) and dims.count(d) == 2]
        if len(axes) != 2:
            continue
        size = dims[axes[0] - rank + len(dims)]
        values = [_thawed(ctx, v, [a - rank + len(v.dims) for a in axes], size) for v in values]
    return values


def _thawed(ctx, value, axes: list, size: Dim):
    n = ctx.table.example(size)
    if not isinstance(value, Const) or min(axes) < 0 or not ctx.table.genuine(size) or n < 2:
        return value
    if any(value.dims[a] != n for a in axes):
        return value
    flat = np.moveaxis(value.array, axes, (-2, -1)).reshape(-1, n, n)
    if not (flat == flat[:1]).all():
        return value
    found = _band(flat[0])
    if found is None:
        return value
    inside, outside, width = found
    keep = triangle(ctx, (size, size), 0, False)
    if width < n:
        keep = ctx.one("binary", keep, triangle(ctx, (size, size), 1 - width, True), fn="and")
    dims = [1] * len(value.dims)
    dims[axes[0]] = dims[axes[1]] = size
    shown = "no later step" if width == n else f"its own and the {width - 1} steps before it"
    ctx.table.notes.setdefault(f"mask {ctx.label}", f"{ctx.label}: a mask of {n} x {n}: each step sees {shown}")
    return ctx.reshape(ctx.one("where", keep, *(Const(v.reshape(())) for v in (inside, outside))), dims)


def counted(ctx, value):
    """A constant that counts along one axis (like arange), or a mask that met no value with two equal axes, as a value
    whose length becomes a size of the file if they meet."""
    if not isinstance(value, Const) or not value.dims or value.array.size < 2 or value.array.dtype.kind not in "ifb":
        return value
    array, n = value.array, value.dims[-1]
    if array.size == max(value.dims) and (array.reshape(-1) == np.arange(array.size)).all():
        size = ctx.table.literal(("a constant that counts", value.dims, array.dtype.name), array.size)
        if not isinstance(size, Dim):
            return value
        out, kind = ctx.positions(size), ctx.dtype(array.dtype)
        out = out if kind == "int64" else ctx.one("cast", out, to=kind)
        return ctx.reshape(out, tuple(size if d != 1 else 1 for d in value.dims))
    if len(value.dims) < 2 or value.dims[-2] != n or array.size != n * n:
        return value
    found = _band(array.reshape(n, n))
    size = n if found is None or found[2] != n else ctx.table.literal(("a mask", value.dims, array.dtype.name), n)
    if not isinstance(size, Dim):
        return value
    past, ahead = (Const(np.array(v)) for v in found[:2])
    chosen = ctx.one("where", triangle(ctx, (size, size), 0, False), past, ahead)
    return ctx.reshape(chosen, (*(1 for _ in value.dims[:-2]), size, size))


def _band(mask: np.ndarray) -> tuple | None:
    """(number inside, number outside, width) of a matrix that is constant in a band below its diagonal; else None."""
    n = len(mask)
    inside, outside = mask[0, 0], mask[0, 1]
    if inside == outside:
        return None
    width = int((mask[:, 0] == inside).argmin()) or n
    apart = np.arange(n)[:, None] - np.arange(n)
    band = np.where((apart >= 0) & (apart < width), inside, outside)
    return (inside, outside, width) if (mask == band).all() else None
