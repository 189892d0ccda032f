"""The float64 meaning of the ops that slide windows over axes: pad, conv, conv_transpose, pool.

Part of the package, and like it written to be read: each output element is what its definition says, gathered
window position by window position. Arrays are [B, C, L..] with one or two spatial axes; sizes and attributes are as
fastrnn.graph has them.
"""

from __future__ import annotations

import itertools

import numpy as np

from ...errors import ShapeError
from ..shapes import windows


def pad(x: np.ndarray, pads: list[int], mode: str, value: float) -> np.ndarray:
    """x with `pads` (begins then ends, an int an axis) put around it; a negative one cuts off.

    What is cut off is cut first, so that "edge" and "reflect" continue what is left. Raises ShapeError where a cut or a
    reflection needs more elements than there are.
    """
    begins, ends = pads[: x.ndim], pads[x.ndim :]
    for axis, (b, e) in enumerate(zip(begins, ends, strict=True)):
        if min(b, 0) + min(e, 0) + x.shape[axis] < 0:
            raise ShapeError(f"pads {b} and {e} cut more than the {x.shape[axis]} of axis {axis}")
    key = tuple(slice(max(-b, 0), n - max(-e, 0)) for b, e, n in zip(begins, ends, x.shape, strict=True))
    x = x[key]
    widths = [(max(b, 0), max(e, 0)) for b, e in zip(begins, ends, strict=True)]
    if mode == "constant":
        return np.pad(x, widths, constant_values=value)
    for axis, width in enumerate(widths):
        least = max(width) + 1 if mode == "reflect" and max(width) else min(max(width), 1)
        if x.shape[axis] < least:
            raise ShapeError(f"{mode} padding by {max(width)} of axis {axis}, which has {x.shape[axis]} elements")
    return np.pad(x, widths, mode=mode)


def _spans(shape, kernel, strides, dilations, pads, ceil=False) -> list[np.ndarray]:
    """Per spatial axis the padded positions that each window covers: int [windows, kernel]."""
    spans, rank = [], len(kernel)
    for i in range(rank):
        count = windows(shape[i], kernel[i], strides[i], dilations[i], pads[i], pads[rank + i], ceil)
        spans.append(np.arange(max(count, 0))[:, None] * strides[i] + np.arange(kernel[i])[None, :] * dilations[i])
    return spans


def conv(x, W, bias, strides, dilations, pads, groups):
    """y[b, m, l..] = bias[m] + the sum over c and k.. of W[m, c, k..] * x[b, group's c, l*stride + k*dilation ..]."""
    rank = x.ndim - 2
    spans = _spans(x.shape[2:], W.shape[2:], strides, dilations, pads)
    x = pad(x, [0, 0, *pads[:rank], 0, 0, *pads[rank:]], "constant", 0.0)
    B, M, C = x.shape[0], W.shape[0], W.shape[1]
    y = np.zeros((B, M, *(len(s) for s in spans)))
    for k in itertools.product(*map(range, W.shape[2:])):
        seen = x[(..., *np.ix_(*(s[:, i] for s, i in zip(spans, k, strict=True))))]  # [B, channels, L'..]
        for g in range(groups):
            maps = slice(g * (M // groups), (g + 1) * (M // groups))
            weights = W[(maps, slice(None), *k)]  # [M/groups, C/groups]
            y[:, maps] += np.einsum("mc,bc...->bm...", weights, seen[:, g * C : (g + 1) * C])
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


def conv_transpose(x, W, bias, strides, dilations, pads, output_padding, groups):
    """The transpose of conv: every x[b, c, l..] adds W[c, m, k..] to y[b, m, l*stride + k*dilation ..]; then pads come
    off both ends and output_padding stays at the end."""
    rank, C, M = x.ndim - 2, x.shape[1] // groups, W.shape[1]
    full = [
        (x.shape[2 + i] - 1) * strides[i] + dilations[i] * (W.shape[2 + i] - 1) + 1 + output_padding[i]
        for i in range(rank)
    ]
    if any(n - pads[i] - pads[rank + i] < 0 for i, n in enumerate(full)):
        raise ShapeError(f"a transposed convolution of {list(x.shape[2:])} with pads {list(pads)}")
    y = np.zeros((x.shape[0], M * groups, *(max(n, 0) for n in full)))
    for k in itertools.product(*map(range, W.shape[2:])) if min(x.shape[2:]) else ():
        where = tuple(
            slice(k[i] * dilations[i], k[i] * dilations[i] + (x.shape[2 + i] - 1) * strides[i] + 1, strides[i])
            for i in range(rank)
        )
        for g in range(groups):
            channels, maps = slice(g * C, (g + 1) * C), slice(g * M, (g + 1) * M)
            weights = W[(channels, slice(None), *k)]  # [C/groups, M/groups]
            y[(slice(None), maps, *where)] += np.einsum("cm,bc...->bm...", weights, x[:, channels])
    y = y[(slice(None), slice(None), *(slice(pads[i], n - pads[rank + i]) for i, n in enumerate(full)))]
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


def pool(x, fn, kernel, strides, pads, dilations, count_include_pad, ceil):
    """The largest element or the mean of each window. Padding is below every number for max; for mean it counts as
    zeros (count_include_pad) or not at all. A window of padding alone, of mean: 0/0."""
    rank, shape = len(kernel), x.shape[2:]
    spans = _spans(shape, kernel, strides, dilations, pads, ceil)
    # Far enough for the last window of `ceil`, which may leave the padding.
    over = [
        max([0, *(s.max(initial=-1) + 1 - n - pads[i],)]) for i, (s, n) in enumerate(zip(spans, shape, strict=True))
    ]
    wide = [0, 0, *pads[:rank], 0, 0, *(max(o, pads[rank + i]) for i, o in enumerate(over))]
    inside = pad(np.ones(shape), wide[2 : 2 + rank] + wide[4 + rank :], "constant", 0.0)
    if count_include_pad:
        ends = [n + pads[i] + pads[rank + i] for i, n in enumerate(shape)]
        inside = np.zeros_like(inside)
        inside[tuple(slice(0, e) for e in ends)] = 1
    x = pad(x, wide, "constant", -np.inf if fn == "max" else 0.0)
    total = np.full((*x.shape[:2], *map(len, spans)), -np.inf if fn == "max" else 0.0)
    count = np.zeros([len(s) for s in spans])
    for k in itertools.product(*map(range, kernel)):
        where = np.ix_(*(s[:, i] for s, i in zip(spans, k, strict=True)))
        seen = x[(..., *where)]
        total = np.maximum(total, seen) if fn == "max" else total + seen
        count += inside[where]
    return total if fn == "max" else total / count
