"""Products in reduced precision in NumPy, bit for bit: what _kernels/body_round.h and the tiles compute."""

from __future__ import annotations

import numpy as np

F32 = np.float32
MOST = {"int8": 127, "int8-a16": 16256}


def fma(a, b, c) -> np.ndarray:
    """a * b + c of float32, rounded once: in float64, rounded to odd there."""
    p = np.asarray(a, np.float64) * np.asarray(b, np.float64)  # exact
    c = np.asarray(c, np.float64)
    s = p + c
    back = s - p
    error = (p - (s - back)) + (c - back)  # exact
    even = (s.view(np.int64) & 1) == 0
    odd = np.where((error != 0) & even, np.nextafter(s, np.where(error > 0, np.inf, -np.inf)), s)
    return odd.astype(F32)


def to_bfloat16(x) -> np.ndarray:
    """The nearest bfloat16 of each element, as float32; ties to even."""
    bits = np.asarray(x, F32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(F32)


def rounded_rows(x: np.ndarray, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """(integers, scale of each row) of rows of x."""
    most, size = F32(MOST[precision]), np.abs(x).max(axis=1, initial=0)
    inverse = np.divide(most, size, out=np.zeros_like(size), where=size >= 1e-33)
    q = np.clip(np.rint(x * inverse[:, None]), -most, most).astype(np.int64)
    return q, np.where(size >= 1e-33, size / most, F32(0)).astype(F32)


def whole_sums(x: np.ndarray, W: np.ndarray, precision: str) -> np.ndarray:
    """Integer sums of rows by columns, as the float32 that the scales are multiplied with."""
    if precision == "int8":
        return (x @ W).astype(F32)
    high = (x + 64) // 128
    return fma((high @ W).astype(F32), F32(128), ((x - 128 * high) @ W).astype(F32))


def chains(x: np.ndarray, W: np.ndarray) -> np.ndarray:
    """Sums of bfloat16 products: an even and an odd chain over 32 terms, joined, then added to the total."""
    K, N = W.shape
    padded = -(-K // 32) * 32
    x, W = np.pad(x, ((0, 0), (0, padded - K))), np.pad(W, ((0, padded - K), (0, 0)))
    total = np.zeros((len(x), N), F32)
    for first in range(0, padded, 32):
        even, odd = np.zeros_like(total), np.zeros_like(total)
        for k in range(first, first + 32, 2):
            even = fma(x[:, k, None], W[k], even)
            odd = fma(x[:, k + 1, None], W[k + 1], odd)
        total = total + (even + odd)
    return total


def product(x: np.ndarray, W: np.ndarray, scale, bias, precision: str) -> np.ndarray:
    """Rows x [n, K] by W [K, N] as `held` holds it, plus bias [N]: float32 [n, N]. A row that is not finite is NaN."""
    bias = np.zeros(W.shape[1], F32) if bias is None else bias
    bad = ~np.isfinite(x).all(axis=1)
    x = np.where(bad[:, None], F32(0), x)
    if precision == "bfloat16":
        y = chains(to_bfloat16(x), (W.astype(np.uint32) << 16).view(F32)) + bias
    else:
        q, step = rounded_rows(x, precision)
        y = fma(whole_sums(q, W.astype(np.int64), precision), step[:, None] * scale, bias)
    y[bad] = np.nan
    return y


def windows(x, kernel, strides, dilations, pads, counts) -> np.ndarray:
    """The windows of x [B, C, L..]: [B, positions.., taps.., C]; zeros outside. pads: where the first window begins, as
    that many zeros before x (negative: it begins later). counts: positions of each axis."""
    B, C, *sizes = x.shape
    out = np.zeros((B, *counts, *kernel, C), F32)
    for position in np.ndindex(*counts):
        for tap in np.ndindex(*kernel):
            where = [p * s - b + t * d for p, s, b, t, d in zip(position, strides, pads, tap, dilations, strict=True)]
            if all(0 <= w < n for w, n in zip(where, sizes, strict=True)):
                out[(slice(None), *position, *tap)] = x[(slice(None), slice(None), *where)]
    return out
