"""Blocks of an axis of open length: the length is assumed to be a multiple of the block.

`x.reshape(B, T // 4, 4, F)` with an open T runs if 4 divides T. The axis is cut to whole blocks, and the graph requires
that nothing is cut off. Every length that the file allows satisfies this anyway.
"""

from __future__ import annotations

from math import gcd

from ....graph import dims as D
from ....graph.dims import Dim, FloorDiv


def cut_axis(ctx, x, axis: int, block: int):
    """x with an axis cut to whole blocks."""
    size = x.dims[axis]
    whole = D.floordiv(size, block) * block
    if whole == size:
        return x
    ctx.table.blocks[size] = whole
    ctx.table.notes.setdefault(f"blocks {ctx.label}", f"{ctx.label}: {size} is taken to be a multiple of {block}")
    return ctx.slice(x, axis, 0, whole)


def cut(ctx, x, target: list, allowzero: bool) -> tuple | None:
    """(x, target) for a Reshape that fits no size as written: x with an axis cut to whole blocks, or a target that
    expresses such an axis in whole blocks. None if neither helps."""
    copied = [x.dims[i] if isinstance(t, int) and t == 0 and not allowzero else t for i, t in enumerate(target)]
    dims, copied = ([ctx.table.example(d) if ctx.table.genuine(d) else d for d in side] for side in (x.dims, copied))
    named = [ctx.table.blocks.get(t, t) if isinstance(t, Dim) else t for t in copied]
    if named != copied and _fits(dims, named):
        return x, named
    opened = [i for i, d in enumerate(dims) if (s := ctx.table.single(d)) is not None and not s.genuine]
    opened.sort(key=lambda i: (ctx.table.single(x.dims[i]).role != "time", -i))
    for axis in opened:
        block = _block(dims, axis, copied)
        if block is not None:
            return cut_axis(ctx, x, axis, block), target
    return None


def _rest(target: list):
    return D.product(t for t in target if not (isinstance(t, int) and t == -1))


def _fits(dims: list, target: list) -> bool:
    """Whether dims can be reshaped to the target at every size."""
    total, rest = D.product(dims), _rest(target)
    if not any(isinstance(t, int) and t == -1 for t in target):
        return total == rest
    return rest != 0 and D.exact_div(total, rest) is not None


def _block(dims: list, axis: int, target: list) -> int | None:
    """The smallest block of an axis with which dims fit the target; None if there is none."""
    size = dims[axis]
    sizes = [a for t in target if isinstance(t, Dim) for mono in t.terms for a in mono]
    blocks = [a.den for a in sizes if isinstance(a, FloorDiv) and a.num == size]
    rest, others = _rest(target), D.product(d for i, d in enumerate(dims) if i != axis)
    if not blocks and isinstance(_factor(rest), int) and isinstance(_factor(others), int) and _factor(rest):
        blocks = [_factor(rest) // gcd(_factor(rest), _factor(others))]
    for block in blocks:
        whole = D.floordiv(size, block) * block
        if block > 1 and _fits([*dims[:axis], whole, *dims[axis + 1 :]], target):
            return block
    return None


def _factor(dim) -> int | None:
    """The numeric factor of a product with sizes; None for a sum."""
    if not isinstance(dim, Dim):
        return int(dim)
    return next(iter(dim.terms.values())) if len(dim.terms) == 1 else None
