"""Layers with several inputs, and how their masks combine.

Up to Keras 3.3, a step counts if it counts in every input that has a mask. From 3.4 on it counts if it counts in any
input, there is no mask at all if one input has none, and products and extremes leave out steps that don't count.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from ...graph import Value
from ..shared.ledger import Finding
from .calls import LayerCall, MaskedTensor, layer
from .core import unit_length


def _folded(fn: str) -> Callable[[LayerCall, list[Value]], Value]:
    return lambda c, values: reduce(lambda a, b: c.binary(fn, a, b), values)


_MERGES: dict[str, Callable[[LayerCall, list[Value]], Value]] = {
    "Add": _folded("add"),
    "Subtract": _folded("sub"),
    "Multiply": _folded("mul"),
    "Average": lambda c, values: c.unary("affine", _folded("add")(c, values), 1 / len(values), 0.0),
    "Maximum": _folded("max"),
    "Minimum": _folded("min"),
}


@layer(*_MERGES, masks="own")
def _merge(c: LayerCall) -> MaskedTensor:
    inputs = c.inputs
    if len(inputs) < 2 or (c.layer.kind == "Subtract" and len(inputs) != 2):
        raise Finding(f"of {len(inputs)} inputs")
    masks = c.masks()
    values = _equal_ranks(c, [x.value for x in inputs])
    if _newer(c) and c.layer.kind in _LEAVING and any(m is not None for m in masks):
        if any(m is not None and len(m.dims) != len(v.dims) - 1 for m, v in zip(masks, values, strict=True)):
            raise Finding("with masks of other axes than all but the last")
        return MaskedTensor(_LEAVING[c.layer.kind](c, values, masks), _joined(c, masks))
    return MaskedTensor(_MERGES[c.layer.kind](c, values), _joined(c, masks))


def _newer(c: LayerCall) -> bool:
    return c.version.numbers >= (3, 4)


def _product(c: LayerCall, values: list[Value], masks: list[Value | None]) -> Value:
    """Values that don't count are 1; the result is 0 if nothing counts."""
    one = c.number(1.0)
    kept = [v if m is None else c.where(c.like(m, len(v.dims)), v, one) for v, m in zip(values, masks, strict=True)]
    y, mask = _MERGES["Multiply"](c, kept), _joined(c, masks)
    return y if mask is None else c.where(c.like(mask, len(y.dims)), y, c.number(0.0))


def _extreme(c: LayerCall, values: list[Value], masks: list[Value | None]) -> Value:
    """Combine inputs one by one; a value that doesn't count yields to the other."""
    fn = {"Maximum": "max", "Minimum": "min"}[c.layer.kind]
    y, mask = values[0], masks[0]
    for x, m in zip(values[1:], masks[1:], strict=True):
        x = x if m is None else c.where(c.like(m, len(x.dims)), x, y)
        y = y if mask is None else c.where(c.like(mask, len(y.dims)), y, x)
        mask = None if m is None or mask is None else _joined(c, [mask, m])
        y = c.binary(fn, y, x)
    return y


_LEAVING = {"Multiply": _product, "Maximum": _extreme, "Minimum": _extreme}


def _equal_ranks(c: LayerCall, values: list[Value]) -> list[Value]:
    """Keras adds axes of one after the batch to inputs of lower rank."""
    rank = max(len(v.dims) for v in values)
    return [c.reshape(v, (v.dims[0], *(1,) * (rank - len(v.dims)), *v.dims[1:])) for v in values]


def _joined(c: LayerCall, masks: list[Value | None]) -> Value | None:
    given = [m for m in masks if m is not None]
    if not given or (_newer(c) and len(given) < len(masks)):
        return None
    fn = "or" if _newer(c) else "and"
    return reduce(lambda a, b: a if a.name == b.name else c.binary(fn, a, b), given)


@layer("Concatenate", masks="own")
def _concatenate(c: LayerCall) -> MaskedTensor:
    inputs, axis = c.inputs, c.get("axis", -1)
    rank = len(inputs[0].dims)
    if type(axis) is not int or not -rank <= axis < rank or axis % rank == 0:
        raise Finding(f"axis={axis!r:.40} of {rank} axes")
    axis %= rank
    value = c.w.concat([x.value for x in inputs], axis) if len(inputs) < 2 else _concat(c, inputs, axis)
    masks = c.masks()
    if all(m is None for m in masks):
        return MaskedTensor(value)
    if axis >= min(len(m.dims) for m in masks if m is not None):  # along features: as a merge of equal steps
        newer = _newer(c)
        if newer and any(m is None for m in masks):  # all steps of that input count, and one input is enough
            first = next(m for m in masks if m is not None)
            return MaskedTensor(value, c.binary("or", first, c.unary("not", first)))
        given = [m for m in masks if m is not None]
        return MaskedTensor(
            value, reduce(lambda a, b: a if a.name == b.name else c.binary("or" if newer else "and", a, b), given)
        )
    if axis != 1 or any(m is not None and len(m.dims) != 2 for m in masks):
        raise Finding(f"axis={axis} with masks")
    parts = [m if m is not None else _ones(c, x.value) for m, x in zip(masks, inputs, strict=True)]
    return MaskedTensor(value, c.add("concat", *parts, axis=axis))


def _concat(c: LayerCall, inputs: list[MaskedTensor], axis: int) -> Value:
    return c.add("concat", *(x.value for x in inputs), axis=axis)


def _ones(c: LayerCall, x: Value) -> Value:
    """A mask in which all steps of x count."""
    yes = c.w.constant(True, "true")
    return c.add("expand", c.reshape(yes, (1, 1)), dims=x.dims[:2])


@layer("Dot", masks="drop")
def _dot(c: LayerCall) -> Value:
    """Products over one axis of each of two inputs; the other axes keep their order."""
    inputs, axes = c.inputs, c.get("axes")
    if len(inputs) != 2:
        raise Finding(f"of {len(inputs)} inputs")
    a, b = inputs[0].value, inputs[1].value
    axes = [axes, axes] if type(axes) is int else axes
    if not isinstance(axes, list) or len(axes) != 2 or not all(type(n) is int for n in axes):
        raise Finding(f"axes={axes!r:.40}")
    ranks = (len(a.dims), len(b.dims))
    first, second = (n % r if -r <= n < r else 0 for n, r in zip(axes, ranks, strict=True))
    if not 1 <= first < ranks[0] <= 3 or not 1 <= second < ranks[1] <= 3:
        raise Finding(f"axes={axes} of {ranks[0]} and {ranks[1]} axes")
    if c.flag("normalize"):
        least = 1e-12 if c.version.major < 3 else 1e-14
        for value, axis in ((a, first), (b, second)):
            c.fixed(value.dims[axis], "it normalises over that axis")
        a, b = unit_length(c, a, [first], least), unit_length(c, b, [second], least)
    left = a if ranks[0] == 3 else c.reshape(a, (a.dims[0], 1, a.dims[1]))
    left = c.w.transpose(left, 0, 2, 1) if ranks[0] == 3 and first == 1 else left
    right = b if ranks[1] == 3 else c.reshape(b, (b.dims[0], b.dims[1], 1))
    right = c.w.transpose(right, 0, 2, 1) if ranks[1] == 3 and second == 2 else right
    y = c.add("matmul", left, right)
    dims = [a.dims[0], *(d for i, d in enumerate(a.dims[1:], 1) if i != first)]
    dims += [d for i, d in enumerate(b.dims[1:], 1) if i != second]
    return c.reshape(y, dims if len(dims) > 1 else [*dims, 1])
