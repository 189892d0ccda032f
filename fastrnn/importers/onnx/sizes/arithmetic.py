"""Arithmetic on sizes. Results of Shape, combined with numbers, stay symbolic as long as their meaning is certain."""

from __future__ import annotations

import numpy as np

from ....errors import ShapeError
from ....graph import dims as D
from ....graph.dims import Dim
from ..reading.reader import NodeReader
from ..reading.values import Const, Ints, simplest


def on_sizes(ctx, fn: str, a, b):
    """Arithmetic with sizes on one side; None if the result can't be expressed symbolically."""
    if fn not in ("add", "sub", "mul", "div", "mod", "equal") or not all(isinstance(v, (Ints, Const)) for v in (a, b)):
        return None
    if any(isinstance(v, Const) and v.array.dtype.kind not in "iu" for v in (a, b)):
        return None
    left, right = (v.array.astype(object) for v in (a, b))
    if fn == "equal":
        return _sizes_equal(left, right)
    if fn == "div":
        try:
            return simplest(np.frompyfunc(lambda p, q: _quotient(ctx, p, q), 2, 1)(left, right))
        except ShapeError:
            return None  # one size by another: only the example's quotient is known
    if fn == "mod":
        return _rests(left, right)
    return simplest({"add": np.add, "sub": np.subtract, "mul": np.multiply}[fn](left, right))


def _quotient(ctx, p, q):
    """p / q of integers, which ONNX rounds towards zero. Sizes are floored: they must not be negative."""
    if isinstance(p, Dim) and isinstance(q, int) and D.exact_div(p, q) is None and D.may_be_negative(p):
        if ctx.table.example(p) < 0:
            raise ShapeError(f"{p} is below zero")
        ctx.table.shortfalls.append(D.shortfall(p, 0))
    if isinstance(p, Dim) or isinstance(q, Dim):
        return p // q
    return abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1)


def _rests(left, right):
    """p mod q, of the sign of q; None if q is no positive number. `(Q - T % Q) % Q` is what T lacks to a multiple."""
    left, right = np.broadcast_arrays(left, right)
    if any(isinstance(q, Dim) or q < 1 for q in right.flat):
        return None
    return simplest(np.frompyfunc(_rest, 2, 1)(left, right))


def _rest(p, q: int):
    negative = isinstance(p, Dim) and any(c < 0 and c % q for key, c in p.terms.items() if key)
    return p + q * ((q - 1 - p) // q) if negative else p - q * (p // q)  # -((q - 1 - p) // q) is p // q


def assumed_one(ctx, fn: str, a, b):
    """Assume that windows over an open size give exactly one: squeeze() checks this before it removes an axis. The
    graph then requires it of every input. None for any other comparison."""
    sides = [v.array.flat[0] for v in (a, b) if v.dims in ((), (1,)) and isinstance(v, (Ints, Const))]
    dims = [v for v in sides if isinstance(v, Dim)]
    if (
        fn != "equal"
        or len(sides) != 2
        or len(dims) != 1
        or not any(isinstance(v, (int, np.integer)) and v == 1 for v in sides)
    ):
        return None
    syms = ctx.table.of(dims[0])
    if any(s.genuine for s in syms) or ctx.table.single(dims[0]) is not None:
        return None
    ctx.table.assumed[dims[0]] = 1
    ctx.table.notes.setdefault(f"assumed {ctx.label}", f"{ctx.label}: {dims[0]} is taken to be 1")
    return Const(np.full(max((a.dims, b.dims), key=len), True))


def _sizes_equal(left, right):
    """Equality of sizes, if certain: the same dim, two ints, or a size (>= 0) against a negative int."""
    flags = []
    left, right = np.broadcast_arrays(left, right)
    for p, q in zip(left.flat, right.flat, strict=True):
        same = p == q
        certain = same or (isinstance(p, int) and isinstance(q, int))
        plain = [v for v in (p, q) if isinstance(v, Dim) and not D.may_be_negative(v)]
        certain = certain or (plain and any(isinstance(v, int) and v < 0 for v in (p, q)))
        if not certain:
            return None
        flags.append(bool(same))
    return Const(np.array(flags, dtype=bool).reshape(left.shape))


def hold(ctx, n: NodeReader, values) -> None:
    """Hold sizes that the file fixes at their numbers if they meet only numbers, because the file may branch on them.
    Open sizes, and sizes that meet live values, are computed as values."""
    sizes = [d for v in values if isinstance(v, Ints) for d in v.array.flat]
    if all(isinstance(v, (Ints, Const)) for v in values) and all(ctx.table.genuine(d) for d in sizes):
        ctx.table.freeze(sizes, f"{n.node.op} is computed from it")


def smallest_size(values: list):
    """The minimum of two sizes of which one is never larger: T and T rounded up to a multiple; None otherwise."""
    if len(values) != 2 or not all(isinstance(v, (Ints, Const)) and v.dims in ((), (1,)) for v in values):
        return None
    for a, b in (values, values[::-1]):
        if _never_negative(b.array.flat[0] - a.array.flat[0]):
            return a if len(a.dims) >= len(b.dims) else simplest(a.array.astype(object).reshape(b.dims))
    return None


def _never_negative(dim) -> bool:
    """Whether a difference of sizes is certain to be at least 0: n * (x // n) is at least x - n + 1, and at most x."""
    if not isinstance(dim, Dim):
        return dim >= 0
    least = dim
    for key, count in dim.terms.items():
        if len(key) == 1 and isinstance(key[0], D.FloorDiv) and count % key[0].den == 0:
            num, den = key[0].num, key[0].den
            least = least - count * (num // den) + count // den * (num - (den - 1 if count > 0 else 0))
    return least >= 0 if isinstance(least, int) else not D.may_be_negative(least)


def largest_size(ctx, values: list):
    """The maximum of sizes that are all the same size or 1, as in a written-out Einsum; None otherwise."""
    if not all(isinstance(v, (Ints, Const)) for v in values):
        return None
    arrays = np.broadcast_arrays(*(v.array.astype(object) for v in values))
    out = np.empty(arrays[0].shape, dtype=object)
    for place in np.ndindex(out.shape):
        larger = {repr(a[place]): a[place] for a in arrays if isinstance(a[place], Dim) or a[place] != 1}
        if len(larger) > 1 and any(isinstance(v, Dim) for v in larger.values()):
            return None
        for size in larger.values():
            if isinstance(size, Dim) and ctx.table.single(size) is None:  # max(T - 1, 1) is T - 1 if that is 1 or more
                ctx.table.shortfalls.append(D.shortfall(size, 1))
        out[place] = max(larger.values()) if len(larger) > 1 else next(iter(larger.values()), 1)
    return simplest(out)
