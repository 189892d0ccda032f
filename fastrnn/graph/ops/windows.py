"""Windows over one or two spatial axes, L.

strides, dilations, kernel: an int per axis; pads: begins then ends, ints >= 0.
Each output element is computed by its definition, one window position at a time.
"""

from __future__ import annotations

import itertools

import numpy as np

from ...errors import ShapeError
from ..precision import meant_by
from ..shapes import check_precision, windows
from ..types import Value
from ..vocabulary import BOOL, INT, INTS, PRECISION, TEXT, graph_op
from .moves import pad


def _windows(x: Value, kernel: tuple, attrs) -> int:
    """The number of spatial axes. Checks that each has strides, dilations and pads."""
    rank = len(x.dims) - 2
    if rank not in (1, 2) or len(kernel) != rank:
        raise ShapeError(f"windows of {len(kernel)} axes over {x}: [batch, channels] and one or two spatial axes")
    if x.dtype != "float32":
        raise ShapeError(f"windows over {x}: only float32 is computed")
    for name, length, least in (("strides", rank, 1), ("dilations", rank, 1), ("pads", 2 * rank, 0)):
        if len(attrs[name]) != length or min(attrs[name]) < least:
            raise ShapeError(f"{name} must be {length} numbers of at least {least}, got {list(attrs[name])}")
    if any(isinstance(k, int) and k < 1 for k in kernel):
        raise ShapeError(f"a kernel of {list(kernel)}")
    return rank


def _slid(x: Value, kernel: tuple, attrs, ceil: bool = False) -> tuple:
    rank = _windows(x, kernel, attrs)
    spatial = []
    for i in range(rank):
        stride, dilation, begin, end = (
            attrs["strides"][i], attrs["dilations"][i], attrs["pads"][i], attrs["pads"][rank + i]
        )  # fmt: skip
        size = windows(x.dims[2 + i], kernel[i], stride, dilation, begin, end, ceil)
        if isinstance(size, int) and size < 0:
            raise ShapeError(f"a kernel of {kernel[i]} with dilation {dilation} over the {x.dims[2 + i]} of {x}")
        spatial.append(size)
    return tuple(spatial)


def _weights(inputs, attrs, maps: int, per_group: int) -> tuple:
    """(x, W) of a convolution, with its channels checked. W's axis `per_group` is divided among the groups."""
    x, w = inputs[:2]
    groups = attrs["groups"]
    if len(w.dims) != len(x.dims) or len(x.dims) < 3 or not all(isinstance(d, int) for d in w.dims) or groups < 1:
        raise ShapeError(f"weights {w} in {groups} groups over {x}")
    channels = w.dims[1] * groups if per_group == 1 else w.dims[0]
    if x.dims[1] != channels or w.dims[0] % groups:
        raise ShapeError(f"weights {w} in {groups} groups over the channels of {x}")
    if len(inputs) > 2 and inputs[2] is not None and inputs[2].dims != (maps,):
        raise ShapeError(f"bias must be [{maps}], got {inputs[2]}")
    if len(inputs) > 3 and inputs[3] is not None and inputs[3].dims != (maps,):
        raise ShapeError(f"scale must be [{maps}], got {inputs[3]}")
    check_precision(attrs, (w,), inputs[3:4])
    return x, w


def _spans(shape, kernel, strides, dilations, pads, ceil=False) -> list[np.ndarray]:
    """For each spatial axis, the padded positions that each window covers: int [windows, kernel]."""
    spans, rank = [], len(kernel)
    for i in range(rank):
        count = windows(shape[i], kernel[i], strides[i], dilations[i], pads[i], pads[rank + i], ceil)
        spans.append(np.arange(max(count, 0))[:, None] * strides[i] + np.arange(kernel[i])[None, :] * dilations[i])
    return spans


def _conv_dims(inputs, attrs):
    x, w = _weights(inputs, attrs, inputs[1].dims[0] if inputs[1].dims else 0, 1)
    return [(x.dtype, (x.dims[0], w.dims[0], *_slid(x, w.dims[2:], attrs)))]


@graph_op(
    "conv(x, W, bias?, scale?)",
    attrs={"strides": INTS, "dilations": INTS, "pads": INTS, "groups": INT, "precision": PRECISION},
    dims=_conv_dims,
    weights=True,
)
def _conv(x, W, bias, scale, strides, dilations, pads, groups, precision):
    """x[B,C,L..], W[M,C/groups,K..], bias[M], scale[M] -> [B,M,L'..]; all but x constant. Pads with zeros. As in all
    frameworks, this is a correlation: W is not flipped.
    L' = (L + begin + end - dilation*(K-1) - 1)//stride + 1, which may depend on TIME.

    y[b, m, l..] = bias[m] + the sum over c and k.. of W[m, c, k..] * x[b, group's c, l*stride + k*dilation ..].
    precision: how W is held (graph/precision.py); its meaning rounds nothing else.
    """
    W = meant_by("conv", W, precision, scale)
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


def _conv_transpose_dims(inputs, attrs):
    maps = inputs[1].dims[1] * attrs["groups"] if len(inputs[1].dims) > 1 else 0
    x, w = _weights(inputs, attrs, maps, 0)
    rank = _windows(x, w.dims[2:], attrs)
    extra, spatial = attrs["output_padding"], []
    if len(extra) != rank or min(extra) < 0:
        raise ShapeError(f"output_padding must be {rank} numbers of at least 0, got {list(extra)}")
    for i in range(rank):
        stride, dilation, pads = attrs["strides"][i], attrs["dilations"][i], attrs["pads"][i] + attrs["pads"][rank + i]
        if extra[i] >= max(stride, dilation):
            raise ShapeError(f"output_padding {extra[i]} is not below stride {stride} or dilation {dilation}")
        size = (x.dims[2 + i] - 1) * stride + (dilation * (w.dims[2 + i] - 1) + 1 + extra[i] - pads)
        if isinstance(size, int) and size < 0:
            raise ShapeError(f"pads {list(attrs['pads'])} take off more than there is of {x}")
        spatial.append(size)
    return [(x.dtype, (x.dims[0], maps, *spatial))]


@graph_op(
    "conv_transpose(x, W, bias?, scale?)",
    attrs={
        "strides": INTS, "dilations": INTS, "pads": INTS, "output_padding": INTS, "groups": INT, "precision": PRECISION,
    },
    dims=_conv_transpose_dims,
    weights=True,
)  # fmt: skip
def _conv_transpose(x, W, bias, scale, strides, dilations, pads, output_padding, groups, precision):
    """x[B,C,L..], W[C,M/groups,K..], bias[M], scale[M] -> [B,M,L'..]; all but x constant. pads are cropped from both
    ends of the result. L' = (L-1)*stride + dilation*(K-1) + 1 + output_padding - begin - end

    The transpose of conv: every x[b, c, l..] adds W[c, m, k..] to y[b, m, l*stride + k*dilation ..]; then pads are
    cropped from both ends, and output_padding stays at the end. precision: as for conv.
    """
    W = meant_by("conv_transpose", W, precision, scale, groups)
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


def _pool_dims(inputs, attrs):
    (x,), kernel = inputs, attrs["kernel"]
    spatial = _slid(x, kernel, attrs, attrs["ceil"])
    for i, k in enumerate(kernel):
        reach = attrs["dilations"][i] * (k - 1) + 1
        if attrs["pads"][i] >= reach or attrs["pads"][len(kernel) + i] >= reach:
            raise ShapeError(f"pads {list(attrs['pads'])} leave windows of {list(kernel)} with padding alone")
    return [(x.dtype, (*x.dims[:2], *spatial))]


@graph_op(
    "pool(x)",
    attrs={
        "fn": TEXT.among("max", "mean"), "kernel": INTS, "strides": INTS, "pads": INTS, "dilations": INTS,
        "count_include_pad": BOOL, "ceil": BOOL,
    },
    dims=_pool_dims,
)  # fmt: skip
def _pool(x, fn, kernel, strides, pads, dilations, count_include_pad, ceil):
    """x[B,C,L..] -> [B,C,L'..]: the largest element or the mean of each window. ceil: the last window may pass the
    end if it begins within x or the padding before it. count_include_pad (mean only): padding counts as zeros in the
    divisor, but positions beyond the padding never count.

    For max, padding is below every number. For mean, a window of only padding is 0/0.
    """
    rank, shape = len(kernel), x.shape[2:]
    spans = _spans(shape, kernel, strides, dilations, pads, ceil)
    # Far enough for the last window of `ceil`, which may extend past the padding.
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
