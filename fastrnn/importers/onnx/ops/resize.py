"""Operators that lengthen or shorten an axis by an integer factor: repeats, interpolation between neighbours, cuts."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import floor

import numpy as np

from ....errors import ModelFormatError
from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading.reader import NodeReader, axes_of
from ..reading.registry import op
from ..reading.values import Const
from . import interpolation
from .interpolation import Way
from .products import matmul

MOST_FACTOR = 1 << 16  # by which an axis may grow; more is an error in the file

_HALF = Fraction(1, 2)
_MOST = 1 << 20  # elements of an axis that may be looked up one by one, or of a matrix
_FEW = 4  # elements that are mixed by lookups
_RESIZE = (
    "antialias axes coordinate_transformation_mode cubic_coeff_a exclude_outside extrapolation_value "
    "keep_aspect_ratio_policy mode nearest_mode"
)


@op("Resize", attrs=_RESIZE)
def _resize(ctx, n: NodeReader):
    x = ctx.live(n.input(0))
    mode = n.only("mode", "string", "nearest", ("nearest", "linear", "cubic"))
    how = n.attr("coordinate_transformation_mode", "string", "half_pixel" if n.opset >= 11 else "asymmetric")
    rounding = n.attr("nearest_mode", "string", "round_prefer_floor")
    if how not in (*interpolation.PLACES, "tf_crop_and_resize") or rounding not in interpolation.ROUNDINGS:
        raise Finding(f"coordinate_transformation_mode={how!r} with nearest_mode={rounding!r}")
    way = Way(
        mode,
        how,
        rounding,
        bool(n.attr("antialias", "int", 0)) and mode != "nearest",
        bool(n.attr("exclude_outside", "int", 0)),
        n.attr("cubic_coeff_a", "float", -0.75),
        n.attr("extrapolation_value", "float", 0.0),
    )
    policy = n.attr("keep_aspect_ratio_policy", "string", "stretch")
    axes = n.attr("axes", "ints")
    axes = list(range(len(x.dims))) if axes is None else axes_of(axes, len(x.dims))
    roi = None
    if n.opset < 11:
        scales, sizes = n.const(1, "scales"), None
    else:
        n.input(1, optional=True)  # roi: for tf_crop_and_resize only
        roi = n.const(1, "roi", optional=True) if how == "tf_crop_and_resize" else None
        scales, sizes = n.const(2, "scales", optional=True), n.ints(3, "sizes", optional=True)
    if sizes and policy != "stretch":
        factors, sizes = _kept_aspect(ctx, x, axes, sizes, policy)
    else:
        factors, sizes = _factors(ctx, x, axes, scales, sizes, how == "tf_crop_and_resize"), {}
    if how == "tf_crop_and_resize" and (roi is None or roi.size != 2 * len(axes)):
        raise ModelFormatError("coordinate_transformation_mode='tf_crop_and_resize' needs a start and an end per axis")
    for axis, factor in factors.items():
        if roi is not None:
            k = axes.index(axis)
            ends = (Fraction(float(roi.reshape(-1)[i])) for i in (k, len(axes) + k))
            way = replace(way, roi=tuple(ends))
            if factor == 1 and way.roi == (0, 1):
                continue
        x = _resized(ctx, x, axis, factor, way, sizes.get(axis))
    return [x]


def _kept_aspect(ctx, x, axes: list, sizes: list, policy: str) -> tuple[dict, dict]:
    """(axis -> factor, axis -> new size) with one factor for all axes: the smallest or the largest that is asked for.
    The new sizes are rounded."""
    if policy not in ("not_larger", "not_smaller") or len(sizes) != len(axes):
        raise ModelFormatError(f"keep_aspect_ratio_policy={policy!r} with {len(sizes)} sizes for {len(axes)} axes")
    olds = [ctx.number(x.dims[axis], "Resize keeps the ratio of its axes") for axis in axes]
    if any(not isinstance(size, int) for size in sizes):
        raise Finding("keep_aspect_ratio_policy with sizes that depend on a size of the input")
    factor = (min if policy == "not_larger" else max)(Fraction(a, b) for a, b in zip(sizes, olds, strict=True))
    return dict.fromkeys(axes, factor), {a: floor(factor * old + _HALF) for a, old in zip(axes, olds, strict=True)}


@op("Upsample", attrs="mode scales")
def _upsample(ctx, n: NodeReader):
    x = ctx.live(n.input(0))
    way = Way(n.only("mode", "string", "nearest", ("nearest", "linear")), "asymmetric", "floor")
    scales = n.attr("scales", "floats") if n.opset < 9 else n.const(1, "scales")
    for axis, factor in _factors(ctx, x, list(range(len(x.dims))), np.array(scales), None).items():
        x = _resized(ctx, x, axis, factor, way)
    return [x]


def _factors(ctx, x, axes: list, scales, sizes, every: bool = False) -> dict[int, Fraction]:
    """axis -> the factor by which it grows, for axes that change, or for every axis."""
    if scales is not None and scales.size:
        found = [Fraction(float(v)).limit_denominator(1 << 10) for v in np.asarray(scales).reshape(-1)]
        if any(v <= 0 or abs(float(v) - s) > 1e-6 * s for v, s in zip(found, np.ravel(scales), strict=True)):
            raise ModelFormatError(f"scales {np.ravel(scales).tolist()}")
    elif sizes:
        found = [_ratio(ctx, new, x.dims[axis]) for new, axis in zip(sizes, axes, strict=False)]
    else:
        raise ModelFormatError("Resize without scales or sizes")
    if len(found) != len(axes):
        raise ModelFormatError(f"{len(found)} scales or sizes for {len(axes)} axes")
    if any(v > MOST_FACTOR for v in found):
        raise ModelFormatError(f"an axis that grows by the factor {max(found)}, at most {MOST_FACTOR} is read")
    return {axis: factor for axis, factor in zip(axes, found, strict=True) if factor != 1 or every}


def _ratio(ctx, new, old) -> Fraction:
    factor = D.exact_div(new, old)
    if isinstance(factor, int):
        return Fraction(factor)
    if isinstance(old, Dim) and isinstance(new, int) and ctx.table.genuine(old):
        ctx.table.ledger.count(old, ctx.label, f"makes {new} steps of {ctx.table.example(old)}")
        return Fraction(new, ctx.table.example(old))
    if isinstance(new, Dim) and isinstance(old, Dim):
        for divisor in range(2, 17):
            if D.floordiv(old, divisor) == new:
                return Fraction(1, divisor)
    if isinstance(new, int) and isinstance(old, int) and old > 0:
        return Fraction(new, old)
    raise Finding(f"from {old} to {new} elements")


def _resized(ctx, x, axis: int, factor: Fraction, way: Way, new: int | None = None):
    if x.dtype != "float32":
        raise Finding(f"of {x.dtype}")
    size, mode, how, rounding = x.dims[axis], way.mode, way.how, way.rounding
    if way.antialias or new is not None:
        return _looked_up(ctx, x, axis, factor, way, new)
    if mode == "nearest" and factor.denominator == 1:
        # half_pixel rounds (i + 1/2)/k - 1/2 to i // k in every rounding mode except ceil and, for even k, round up.
        plain = (how == "asymmetric" and rounding == "floor") or (
            how in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
            and rounding in ("round_prefer_floor", "round_prefer_ceil")
        )
        if plain:
            return _spread(ctx, [x] * factor.numerator, axis)
    if mode == "nearest" and factor.numerator == 1 and how == "asymmetric" and rounding == "floor":
        step = factor.denominator
        count = D.floordiv(size, step)
        return ctx.slice(x, axis, 0, (count - 1) * step + 1, step)
    if mode == "linear" and factor.denominator == 1 and how in ("half_pixel", "pytorch_half_pixel"):
        return _mixed(ctx, x, axis, factor.numerator)
    return _looked_up(ctx, x, axis, factor, way, None)


def _looked_up(ctx, x, axis: int, factor: Fraction, way: Way, new: int | None):
    """Look up elements one by one, at places computed from the size of the axis, which stays the file's."""
    old = ctx.number(x.dims[axis], f"Resize by {factor}")
    new = floor(old * factor) if new is None else new
    if way.how == "align_corners" and new != old * factor:
        raise Finding(
            f"coordinate_transformation_mode={way.how!r} by {float(factor):g}, which leaves a part of an element"
        )
    if not 0 < new <= _MOST or old < 1:
        raise ModelFormatError(f"Resize of {old} elements to {new}")
    found = interpolation.places(way, factor, old, new)
    if way.mode == "nearest":
        out = ctx.one("gather", x, _picks(map(interpolation.ROUNDINGS[way.rounding], found), old), axis=axis)
    else:
        indices, weights = interpolation.taps(way, found, factor, old)
        out = _weighted(ctx, x, axis, indices, weights)
    apart = interpolation.outside(found, old) if way.how == "tf_crop_and_resize" else np.zeros(1)
    if apart.any():
        apart = Const(apart.reshape([new if i == axis else 1 for i in range(len(x.dims))]))
        out = ctx.one("where", apart, Const(np.float32(way.extrapolation).reshape(())), out)
    return out


def _weighted(ctx, x, axis: int, indices: np.ndarray, weights: np.ndarray):
    """Sums of elements along an axis: few by lookups, many by a product with a matrix. indices, weights: [taps, new]"""
    rank, new, old = len(x.dims), indices.shape[1], x.dims[axis]
    if len(indices) > _FEW and old * new <= _MOST:
        matrix = np.zeros((old, new))
        np.add.at(matrix, (indices, np.arange(new)[None, :]), weights)
        order = [*(i for i in range(rank) if i != axis), axis]
        out = matmul(ctx, ctx.transpose(x, order), Const(matrix.astype(np.float32)))
        return ctx.transpose(out, [order.index(i) for i in range(rank)])
    shape, total = [new if i == axis else 1 for i in range(rank)], None
    for index, weight in zip(indices, weights, strict=True):
        part = ctx.one("gather", x, Const(index), axis=axis)
        part = ctx.one("binary", part, Const(weight.astype(np.float32).reshape(shape)), fn="mul")
        total = part if total is None else ctx.one("binary", total, part, fn="add")
    return total


def _picks(indices, size: int) -> Const:
    """Indices clamped to an axis of `size`."""
    return Const(np.clip(np.array(list(indices), np.int64), 0, size - 1))


def _spread(ctx, parts: list, axis: int):
    """Interleave parts: parts[r] goes to places k*i + r of an axis k times as long."""
    dims = parts[0].dims
    k, size = len(parts), dims[axis]
    if all(p is parts[0] for p in parts):
        x = ctx.reshape(parts[0], (*dims[: axis + 1], 1, *dims[axis + 1 :]))
        x = ctx.one("expand", x, dims=(*dims[: axis + 1], k, *dims[axis + 1 :]))
    else:
        x = ctx.concat([ctx.reshape(p, (*dims[: axis + 1], 1, *dims[axis + 1 :])) for p in parts], axis + 1)
    return ctx.reshape(x, (*dims[:axis], k * size, *dims[axis + 1 :]))


def _mixed(ctx, x, axis: int, k: int):
    """Linear interpolation at (i + 1/2)/k - 1/2; the first and last elements are repeated beyond the ends."""
    rank, size = len(x.dims), x.dims[axis]
    pads = [0] * (2 * rank)
    pads[axis] = pads[rank + axis] = 1
    wide, parts = ctx.one("pad", x, pads=tuple(pads), mode="edge", value=0.0), []
    for r in range(k):
        place = Fraction(2 * r + 1, 2 * k) - Fraction(1, 2)
        low = -1 if place < 0 else 0
        weight = float(place - low)
        left, right = (ctx.slice(wide, axis, low + 1 + j, size + (low + 1 + j)) for j in (0, 1))
        if weight == 0:
            parts.append(left)
            continue
        left = ctx.one("binary", left, Const(np.float32(1 - weight)), fn="mul")
        right = ctx.one("binary", right, Const(np.float32(weight)), fn="mul")
        parts.append(ctx.one("binary", left, right, fn="add"))
    return _spread(ctx, parts, axis)


@op("DepthToSpace", attrs="blocksize mode")
def _depth_to_space(ctx, n: NodeReader):
    x, block = ctx.live(n.input(0)), n.attr("blocksize", "int", 0)
    mode = n.only("mode", "string", "DCR", ("DCR", "CRD"))
    if len(x.dims) != 4 or block < 1:
        raise ModelFormatError(f"DepthToSpace by {block} of rank {len(x.dims)}")
    b, c, h, w = x.dims
    inner = ctx.number(c, "DepthToSpace needs a known number of channels")
    if inner % (block * block):
        raise ModelFormatError(f"DepthToSpace by {block} of {inner} channels")
    c = inner // (block * block)
    first = (b, block, block, c, h, w) if mode == "DCR" else (b, c, block, block, h, w)
    perm = (0, 3, 4, 1, 5, 2) if mode == "DCR" else (0, 1, 4, 2, 5, 3)
    return [ctx.reshape(ctx.transpose(ctx.reshape(x, first), perm), (b, c, h * block, w * block))]


@op("SpaceToDepth", attrs="blocksize mode")
def _space_to_depth(ctx, n: NodeReader):
    x, block = ctx.live(n.input(0)), n.attr("blocksize", "int", 0)
    mode = n.only("mode", "string", "DCR", ("DCR", "CRD"))
    if len(x.dims) != 4 or block < 1:
        raise ModelFormatError(f"SpaceToDepth by {block} of rank {len(x.dims)}")
    b, c, h, w = x.dims
    rows, columns = (ctx.number(d, "SpaceToDepth needs a known size") for d in (h, w))
    if rows % block or columns % block:
        raise ModelFormatError(f"SpaceToDepth by {block} of {rows} x {columns}")
    x = ctx.reshape(x, (b, c, rows // block, block, columns // block, block))
    x = ctx.transpose(x, (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4))
    return [ctx.reshape(x, (b, c * block * block, rows // block, columns // block))]
