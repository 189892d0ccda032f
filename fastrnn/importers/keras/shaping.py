"""Layers that only move elements: Flatten, Reshape, Permute, RepeatVector."""

from __future__ import annotations

from ...graph import Value
from ...graph import dims as D
from ...graph.dims import Dim
from ..shared.ledger import Finding
from .calls import LayerCall, NeedsLength, layer


@layer("Flatten", masks="drop")
def _flatten(c: LayerCall) -> Value:
    """Merge all axes but the batch. With several features per step the result grows with time, so time stays fixed."""
    x = c.x
    if c.get("data_format") == "channels_first" and len(x.dims) > 2:
        x = c.w.transpose(x, 0, *range(2, len(x.dims)), 1)
    if any(dim != 1 for dim in x.dims[2:]):  # steps of a single number stay a sequence
        for dim in x.dims[1:]:
            c.fixed(dim, "it makes features of all steps")
    return c.reshape(x, (x.dims[0], D.product(x.dims[1:])))


@layer("Reshape", masks="drop")
def _reshape(c: LayerCall) -> Value:
    x, target = c.x, c.get("target_shape")
    if not isinstance(target, list) or any(type(d) is not int or d < -1 for d in target) or target.count(-1) > 1:
        raise Finding(f"target_shape={target!r:.60}")
    total = D.product(x.dims[1:])
    known = D.product([d for d in target if d != -1])
    if -1 in target:
        size = D.exact_div(total, known) if known else None
        if size is None:
            raise NeedsLength(f"target_shape={target} of {total} elements")
        return c.reshape(x, (x.dims[0], *(size if d == -1 else d for d in target)))
    if total == known:
        return c.reshape(x, (x.dims[0], *target))
    # The file's own length, written as a number, means time if everything else fits.
    time = next((d for d in x.dims[1:] if isinstance(d, Dim)), None)
    for axis, number in enumerate(target):
        if time is not None and number == c.work.steps:
            dims = (*target[:axis], time, *target[axis + 1 :])
            if D.product(dims) == total:
                return c.reshape(x, (x.dims[0], *dims))
    if isinstance(total, Dim):
        raise NeedsLength(f"target_shape={target} of {total} elements")
    raise Finding(f"target_shape={target} of {total} elements")


@layer("Permute", masks="drop")
def _permute(c: LayerCall) -> Value:
    x, order = c.x, c.get("dims")
    if not isinstance(order, list) or sorted(order) != list(range(1, len(x.dims))):
        raise Finding(f"dims={order!r:.60} of {len(x.dims) - 1} axes")
    return c.w.transpose(x, 0, *order)


@layer("RepeatVector", masks="drop")
def _repeat_vector(c: LayerCall) -> Value:
    x, n = c.x, c.size("n")
    if len(x.dims) != 2:
        raise Finding(f"over {len(x.dims)} axes, expected 2")
    B, F = x.dims
    return c.add("expand", c.reshape(x, (B, 1, F)), dims=(B, n, F))
