"""GridSample: elements looked up at computed places, and mixed."""

from __future__ import annotations

import itertools

import numpy as np

from ....errors import ModelFormatError
from ....graph import dims as D
from ....graph.dims import Dim
from ..reading.reader import NodeReader
from ..reading.registry import op
from ..reading.values import Const
from .products import _float

_MODES = {"linear": "linear", "bilinear": "linear", "nearest": "nearest", "cubic": "cubic", "bicubic": "cubic"}
_CUBIC = -0.75  # the free number of cubic convolution


def _c(value: float) -> Const:
    return Const(np.float32(value).reshape(()))


def _bin(ctx, fn: str, a, b):
    return ctx.one("binary", a, b, fn=fn)


def _size(ctx, dim, dtype: str):
    return ctx.number_of(dim, dtype) if isinstance(dim, Dim) else Const(np.array(dim, dtype))


class _Axis:
    """One spatial axis: its places from the grid, and lookups at them."""

    def __init__(self, ctx, dim, place, aligned: bool, padding: str):
        self.ctx, self.padding, size = ctx, padding, _size(ctx, dim, "float32")
        self.count = _size(ctx, dim, "int64")
        self.last = _bin(ctx, "sub", size, _c(1))
        self.low = _c(0) if aligned else _c(-0.5)
        self.span = self.last if aligned else size  # of the reflection: from low to low + span
        span = self.last if aligned else size
        place = _bin(ctx, "mul", _bin(ctx, "mul", _bin(ctx, "add", place, _c(1)), span), _c(0.5))
        self.place = place if aligned else _bin(ctx, "sub", place, _c(0.5))

    def inside(self, place):
        """Places moved onto the axis: to its end (border), or mirrored at it (reflection)."""
        ctx = self.ctx
        if self.padding == "border":
            return _bin(ctx, "min", _bin(ctx, "max", place, _c(0)), self.last)
        if self.padding == "zeros":
            return place
        away = ctx.unary("abs", _bin(ctx, "sub", place, self.low))
        turns = ctx.unary("floor", _bin(ctx, "div", away, self.span))
        rest = _bin(ctx, "sub", away, _bin(ctx, "mul", turns, self.span))
        odd = _bin(ctx, "equal", _bin(ctx, "mod", turns, _c(2)), _c(1))
        rest = ctx.one("where", odd, _bin(ctx, "sub", self.span, rest), rest)
        return _bin(ctx, "add", rest, self.low)

    def index(self, place):
        """(int64 index on the axis, bool whether it is on the axis; None if it always is) of whole places."""
        ctx = self.ctx
        held = _bin(ctx, "min", _bin(ctx, "max", self.inside(place), _c(0)), self.last)
        if self.padding != "zeros":
            return ctx.one("cast", held, to="int64"), None
        return ctx.one("cast", held, to="int64"), _bin(ctx, "equal", held, place)

    def taps(self, mode: str) -> list[tuple]:
        """(index, whether it is on the axis, weight or None) of each element that counts."""
        ctx = self.ctx
        if mode == "nearest":
            return [(*self.index(ctx.unary("round", self.place)), None)]
        place = self.place if mode == "cubic" else self.inside(self.place)
        first = ctx.unary("floor", place)
        part = _bin(ctx, "sub", place, first)
        if mode == "linear":
            weights = [_bin(ctx, "sub", _c(1), part), part]
        else:
            weights = [self._cubic(_bin(ctx, "add", part, _c(1)), True), self._cubic(part, False)]
            rest = _bin(ctx, "sub", _c(1), part)
            weights += [self._cubic(rest, False), self._cubic(_bin(ctx, "add", rest, _c(1)), True)]
        at = -1 if mode == "cubic" else 0
        return [(*self.index(_bin(ctx, "add", first, _c(at + k))), w) for k, w in enumerate(weights)]

    def _cubic(self, x, outer: bool):
        """The weight of an element x away: 1 <= x <= 2 (outer) or 0 <= x <= 1."""
        a, ctx = _CUBIC, self.ctx
        factors = (a, -5 * a, 8 * a, -4 * a) if outer else (a + 2, -(a + 3), 0.0, 1.0)
        out = _bin(ctx, "mul", x, _c(factors[0]))
        for factor in factors[1:3]:
            out = _bin(ctx, "mul", _bin(ctx, "add", out, _c(factor)), x)
        return _bin(ctx, "add", out, _c(factors[3]))


@op("GridSample", attrs="align_corners mode padding_mode")
def _grid_sample(ctx, n: NodeReader):
    x, grid = (ctx.live(_float(ctx, n.input(i), "GridSample")) for i in (0, 1))
    mode = n.attr("mode", "string", "linear")
    padding = n.attr("padding_mode", "string", "zeros")
    aligned = bool(n.attr("align_corners", "int", 0))
    rank = len(x.dims) - 2
    if mode not in _MODES or padding not in ("zeros", "border", "reflection"):
        raise ModelFormatError(f"mode={mode!r}, padding_mode={padding!r}")
    axes = ctx.number(grid.dims[-1], "GridSample needs a known number of axes") if len(grid.dims) > 2 else 0
    if rank < 1 or len(grid.dims) != rank + 2 or axes != rank:
        raise ModelFormatError(f"a grid of {list(map(str, grid.dims))} over {list(map(str, x.dims))}")
    ctx.equal(grid.dims[0], x.dims[0], "GridSample needs a grid for each row")
    batch, spatial, places = x.dims[0], x.dims[2:], grid.dims[1:-1]
    axes = []
    for i, dim in enumerate(spatial):  # the grid's last number is that of the first axis
        place = ctx.reshape(ctx.slice(grid, rank + 1, rank - 1 - i, rank - i), (batch, *places))
        axes.append(_Axis(ctx, dim, place, aligned, padding).taps(_MODES[mode]))
    rows = ctx.transpose(x, (0, *range(2, rank + 2), 1))
    rows = ctx.reshape(rows, (D.product((batch, *spatial)), x.dims[1]))
    counts = [_size(ctx, dim, "int64") for dim in spatial]
    row = ctx.reshape(ctx.live(ctx.positions(batch)), (batch, *[1] * len(places)))
    total = None
    for taps in itertools.product(*axes):
        flat, shown, weight = row, None, None
        for (index, valid, part), count in zip(taps, counts, strict=True):
            flat = _bin(ctx, "add", _bin(ctx, "mul", flat, count), index)
            shown = valid if shown is None else shown if valid is None else _bin(ctx, "and", shown, valid)
            weight = part if weight is None else weight if part is None else _bin(ctx, "mul", weight, part)
        value = ctx.one("gather", rows, flat, axis=0)  # [batch, places.., channels]
        if shown is not None:
            value = ctx.one("where", ctx.reshape(shown, (*shown.dims, 1)), value, _c(0))
        if weight is not None:
            value = _bin(ctx, "mul", value, ctx.reshape(weight, (*weight.dims, 1)))
        total = value if total is None else _bin(ctx, "add", total, value)
    last = len(places) + 1
    return [ctx.transpose(total, (0, last, *range(1, last)))]
