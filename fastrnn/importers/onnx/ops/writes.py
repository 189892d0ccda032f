"""Writes at any places of a value, for the Scatter operators: known places by a lookup, computed ones by comparison."""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading.reader import NodeReader, axis_of
from ..reading.registry import op
from ..reading.values import Const

REDUCTIONS = {"none": None, "add": "add", "mul": "mul", "min": "min", "max": "max"}
_MOST_WRITES = 64  # places that are computed, each compared with all elements
_MOST_KNOWN = 1 << 22
_MOST_ROUNDS = 64  # times that one element is written with a reduction


def combined(ctx, fn: str | None, old, new):
    """An element after a write."""
    return new if fn is None else ctx.one("binary", old, new, fn=fn)


def by_number(ctx, x, places: np.ndarray, updates, fn: str | None):
    """x[N, tail..] after writes of updates[m, tail..] to known rows, in order; N is known."""
    size, tail = x.dims[0], x.dims[1:]
    seen: dict[int, int] = {}
    rounds: list[dict[int, int]] = []
    for j, place in enumerate(places.tolist()):
        k = 0 if fn is None else seen.get(place, 0)  # without a reduction, a later write replaces an earlier one
        seen[place] = k + 1
        if k == len(rounds):
            rounds.append({})
        rounds[k][place] = j
    if len(rounds) > _MOST_ROUNDS:
        raise Finding(f"{len(rounds)} writes to one element; at most {_MOST_ROUNDS} are computed")
    out = x
    for written in rounds:
        if fn is None:
            picks = np.arange(size)
            picks[list(written)] = [size + j for j in written.values()]
            return ctx.one("gather", ctx.one("concat", out, updates, axis=0), Const(picks), axis=0)
        picks, hit = np.zeros(size, np.int64), np.zeros(size, bool)
        picks[list(written)], hit[list(written)] = list(written.values()), True
        new = combined(ctx, fn, out, ctx.one("gather", updates, Const(picks), axis=0))
        out = ctx.one("where", Const(hit.reshape(size, *[1] * len(tail))), new, out)
    return out


def by_place(ctx, x, places, updates, fn: str | None, axis: int = 0):
    """x after writes along an axis, in order, to computed places. places: int64, updates: as x; both broadcast to x
    except along the axis, which has one entry per write."""
    count = ctx.number(places.dims[axis], "each computed place is compared with all elements")
    if count > _MOST_WRITES:
        raise Finding(f"{count} computed places; at most {_MOST_WRITES} are compared with all elements")
    rank = len(x.dims)
    own = ctx.reshape(ctx.live(ctx.positions(x.dims[axis])), [x.dims[axis] if i == axis else 1 for i in range(rank)])
    for j in range(count):
        place, new = (ctx.slice(v, axis, j, j + 1) for v in (places, updates))
        hit = ctx.one("binary", own, place, fn="equal")
        x = ctx.one("where", hit, combined(ctx, fn, x, new), x)
    return x


def reduction(n: NodeReader) -> str | None:
    """The function of the attribute `reduction`; None to overwrite."""
    name = n.attr("reduction", "string", "none")
    if name not in REDUCTIONS:
        raise ModelFormatError(f"reduction={name!r}")
    return REDUCTIONS[name]


def elements(ctx, x, known, places, updates, axis: int, fn: str | None):
    """ScatterElements. known: the indices as an array, or None; places: the live indices, none below 0."""
    x, updates = ctx.live(x), ctx.live(updates)
    sizes = places.dims
    if len(sizes) != len(x.dims) or len(updates.dims) != len(x.dims):
        raise ModelFormatError(f"indices and updates of rank {len(sizes)} and {len(updates.dims)} for {len(x.dims)}")
    for i, (a, b) in enumerate(zip(updates.dims, sizes, strict=True)):
        ctx.equal(a, b, f"axis {i} of the updates must be as long as that of the indices")
    if known is not None:
        if known.size > _MOST_KNOWN:
            raise Finding(f"{known.size} known places; at most {_MOST_KNOWN} are written")
        for d in (*x.dims, *updates.dims):
            ctx.number(d, "ScatterElements writes at known places of it")
        grid = np.indices(known.shape)
        size = x.dims[axis]
        if ((known < -size) | (known >= size)).any() or any(s > d for s, d in zip(known.shape, x.dims, strict=True)):
            raise ModelFormatError(f"indices {list(known.shape)} outside of {list(x.dims)}")
        grid[axis] = np.where(known < 0, known + size, known)
        flat = np.ravel_multi_index(tuple(grid.reshape(len(x.dims), -1)), x.dims)
        rows = by_number(ctx, ctx.reshape(x, (int(np.prod(x.dims)),)), flat, ctx.reshape(updates, (known.size,)), fn)
        return ctx.reshape(rows, x.dims)
    pads = [0] * (2 * len(x.dims))
    for i, d in enumerate(x.dims):
        if i == axis:
            continue
        if ctx.table.example(sizes[i]) < ctx.table.example(d):
            ctx.number(d, "ScatterElements writes a part of it")
            ctx.number(sizes[i], "ScatterElements writes a part of an axis")
            pads[len(x.dims) + i] = d - sizes[i]  # the rest of the axis is not written
        else:
            ctx.equal(sizes[i], d, f"axis {i} of the indices must be as long as that of the data")
    if any(pads):
        places, updates = _beyond(ctx, places, pads, -1), _beyond(ctx, updates, pads, 0)
    return by_place(ctx, x, places, updates, fn, axis)


def _beyond(ctx, x, pads: list, value: int):
    """x with a number after the ends of its axes."""
    rank = len(x.dims)
    for axis in range(rank):
        if pads[rank + axis]:
            dims = (*x.dims[:axis], pads[rank + axis], *x.dims[axis + 1 :])
            more = ctx.one("expand", Const(np.array(value, x.dtype)), dims=dims)
            x = ctx.one("concat", x, more, axis=axis)
    return x


@op("TensorScatter", attrs="axis mode")
def _tensor_scatter(ctx, n: NodeReader):
    """A cache with new steps written from a position on, which each row has of its own."""
    x, updates, begins = ctx.live(n.input(0)), ctx.live(n.input(1)), n.input(2, optional=True)
    axis, mode = axis_of(n.attr("axis", "int", -2), len(x.dims)), n.attr("mode", "string", "linear")
    if mode not in ("linear", "circular") or axis == 0 or len(updates.dims) != len(x.dims):
        raise ModelFormatError(f"mode={mode!r}, axis {axis} of updates of rank {len(updates.dims)}")
    for i, d in enumerate(x.dims):
        if i != axis:
            ctx.equal(updates.dims[i], d, f"axis {i} of the update must be as long as that of the cache")
    count = updates.dims[axis]
    steps = ctx.reshape(ctx.live(ctx.positions(count)), [count if i == axis else 1 for i in range(len(x.dims))])
    if begins is not None:
        begins = ctx.live(begins)
        ctx.equal(begins.dims[0], x.dims[0], "there must be a write index for each row")
        begins = begins if begins.dtype == "int64" else ctx.one("cast", begins, to="int64")
        begins = ctx.reshape(begins, (x.dims[0], *[1] * (len(x.dims) - 1)))
        steps = ctx.one("binary", begins, steps, fn="add")
    size = ctx.number_of(x.dims[axis]) if isinstance(x.dims[axis], Dim) else Const(np.array(x.dims[axis]))
    if mode == "circular":
        steps = ctx.one("binary", steps, size, fn="mod")
    else:  # looking a step up raises the error for one outside the cache
        steps = ctx.one("gather", ctx.live(ctx.positions(x.dims[axis])), steps, axis=0, from_zero=True)
    return [by_place(ctx, x, steps, updates, None, axis)]
