"""Fourier transforms: products with constant matrices, and windows of a convolution that streams."""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ....graph import dims as D
from ...shared.ledger import Finding
from ..reading.reader import NodeReader, axis_of
from ..reading.registry import op
from ..reading.values import Const
from .products import _float, matmul

_MOST = 1 << 24  # elements of a matrix, 64 MiB
_WHOLE = (
    "DFT transforms all of it; a convolution over time that is computed by DFT can't be streamed: export the "
    "recurrence that it is, as a step, a loop or a scan"
)


def _waves(length: int, bins: int, inverse: bool) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of 2*pi*n*k/length, float64 [length, bins]. n*k is reduced in integers, so long ones stay exact."""
    if length * bins > _MOST:
        raise Finding(f"a transform of {length} elements to {bins}; at most {_MOST} products are computed")
    angle = 2 * np.pi / length * (np.outer(np.arange(length), np.arange(bins)) % length)
    return np.cos(angle), np.sin(angle) if inverse else -np.sin(angle)


def _transform(length: int, bins: int, parts: int, inverse: bool) -> np.ndarray:
    """The matrix of a transform [length * parts, bins * 2]: real and imaginary parts are neighbours on both axes."""
    cos, sin = _waves(length, bins, inverse)
    out = np.empty((length, parts, bins, 2))
    out[:, 0, :, 0], out[:, 0, :, 1] = cos, sin
    if parts == 2:
        out[:, 1, :, 0], out[:, 1, :, 1] = -sin, cos
    out = out.reshape(length * parts, bins * 2)
    return out / length if inverse else out


def _real_inverse(length: int, given: int) -> np.ndarray:
    """The matrix [given * 2, length] from the first `given` bins of a real signal's spectrum to the signal."""
    cos, sin = _waves(length, length // 2 + 1, True)
    weight = np.full(length // 2 + 1, 2.0 / length)
    weight[0] = 1 / length
    if length % 2 == 0:
        weight[-1] = 1 / length
    out = np.zeros((given, 2, length))
    used = min(given, length // 2 + 1)
    out[:used, 0], out[:used, 1] = (cos * weight).T[:used], -(sin * weight).T[:used]
    return out.reshape(given * 2, length)


@op("DFT", attrs="axis inverse onesided")
def _dft(ctx, n: NodeReader):
    x = ctx.live(_float(ctx, n.input(0), "DFT"))
    inverse, onesided = bool(n.attr("inverse", "int", 0)), bool(n.attr("onesided", "int", 0))
    lengths, rank = n.ints(1, "dft_length", optional=True), len(x.dims)
    axes = [n.attr("axis", "int", 1)] if n.opset < 20 else n.ints(2, "axis", optional=True)
    axis = axis_of((axes or [-2])[0], rank)
    parts = ctx.number(x.dims[-1], "DFT needs a known number of parts: 1 or 2") if rank > 1 else 0
    if axis == rank - 1 or parts not in (1, 2):
        raise ModelFormatError(f"DFT of {list(map(str, x.dims))} along axis {axis}: the last axis holds 1 or 2 parts")
    if onesided and parts != (2 if inverse else 1):
        raise ModelFormatError(f"onesided={int(onesided)} and inverse={int(inverse)} of {parts} parts")
    size = ctx.number(x.dims[axis], _WHOLE)
    length = (2 * (size - 1) if onesided and inverse else size) if lengths is None else lengths[0]
    if not isinstance(length, int) or length < 1:
        raise Finding(f"a transform of {length} elements")
    if onesided and inverse:
        matrix, last = _real_inverse(length, size), 1
    else:
        bins = length // 2 + 1 if onesided else length
        matrix, last = _transform(length, bins, parts, inverse), 2
        whole = np.zeros((size * parts, matrix.shape[1]))  # zeros beyond the signal, or the signal is cut
        used = min(size, length) * parts
        whole[:used] = matrix[:used]
        matrix = whole
    order = [i for i in range(rank - 1) if i != axis]
    rows = ctx.transpose(x, (*order, axis, rank - 1))
    rows = ctx.reshape(rows, (*(x.dims[i] for i in order), size * parts))
    out = matmul(ctx, rows, Const(matrix.astype(np.float32)))
    out = ctx.reshape(out, (*out.dims[:-1], out.dims[-1] // last, last))
    back = [order.index(i) if i != axis else rank - 2 for i in range(rank - 1)]
    return [ctx.transpose(out, (*back, rank - 1))]


@op("STFT", attrs="onesided")
def _stft(ctx, n: NodeReader):
    """Each frame is a window of a convolution, so frames come as soon as their last sample does."""
    x = ctx.live(_float(ctx, n.input(0), "STFT"))
    step, length = n.ints(1, "frame_step"), n.ints(3, "frame_length", optional=True)
    window = n.const(2, "window", optional=True)
    onesided = bool(n.attr("onesided", "int", 1))
    parts = ctx.number(x.dims[2], "STFT needs a known number of parts: 1 or 2") if len(x.dims) == 3 else 1
    if len(x.dims) not in (2, 3) or parts not in (1, 2):
        raise ModelFormatError(f"STFT of {list(map(str, x.dims))}: it must be [batch, samples, 1 or 2 parts]")
    if length is None and window is None:
        raise ModelFormatError("STFT without a window and without frame_length")
    length = window.size if length is None else length[0]
    if not isinstance(length, int) or not isinstance(step[0], int) or length < 1 or step[0] < 1:
        raise Finding(f"frames of {length} in steps of {step[0]}")
    if window is not None and (window.ndim != 1 or window.size != length):
        raise Finding(f"a window of {list(window.shape)} over frames of {length}")
    if onesided and parts == 2:
        raise ModelFormatError("onesided=1 of complex samples")
    bins = length // 2 + 1 if onesided else length
    matrix = _transform(length, bins, parts, False).reshape(length, parts, bins * 2)
    if window is not None:
        matrix = matrix * window.astype(np.float64)[:, None, None]
    weights = Const(np.ascontiguousarray(matrix.transpose(2, 1, 0)).astype(np.float32))  # [bins * 2, parts, length]
    rows = ctx.transpose(x, (0, 2, 1)) if len(x.dims) == 3 else ctx.reshape(x, (x.dims[0], 1, x.dims[1]))
    attrs = {"strides": (step[0],), "dilations": (1,), "pads": (0, 0), "groups": 1}
    out = ctx.transpose(ctx.emit("conv", [rows, weights, None], attrs)[0], (0, 2, 1))  # [batch, frames, bins * 2]
    return [ctx.reshape(out, (*out.dims[:2], D.floordiv(out.dims[2], 2), 2))]
