"""The geometry of windows (conv, conv_transpose, pool) along one spatial axis."""

from __future__ import annotations

import math

from ..records import dataclass

CONVOLUTIONS = frozenset(("conv", "conv_transpose"))
WINDOWS = CONVOLUTIONS | {"pool"}


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a window: output o reads input o * stride - pad + i * dilation for i < taps."""

    taps: int
    stride: int
    dilation: int
    pad: object  # an int; in a stream a dim
    pad_end: int = 0


def phases_of(taps: int, stride: int, dilation: int, pad: int) -> list[tuple]:
    """A transposed convolution along one axis as plain ones: a (first output, Axis, taps in input order) for each.

    Output o gets W[k] of input i if o = i * stride - pad + k * dilation. The outputs o = first + j * stride share
    their k: those with k * dilation = first + pad (mod stride). These k are stride / gcd(stride, dilation) apart, and
    from the largest k to the next the input moves by dilation / gcd(stride, dilation).
    """
    common = math.gcd(stride, dilation)
    found = []
    for first in range(stride):
        ks = [k for k in range(taps) if (k * dilation - first - pad) % stride == 0][::-1]
        start = (first + pad - ks[0] * dilation) // stride if ks else 0
        found.append((first, Axis(len(ks), 1, dilation // common, -start), ks))
    return found
