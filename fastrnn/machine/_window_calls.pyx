# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""As _kernel_calls.pyx: calls of the kernels that work on rows of overlapping windows.

x is a float32 array of one axis, and `offsets` say where in it each tap (or run of taps) of the first window begins.
"""

import numpy as np

from ._isa import _CODES, _check
from ..errors import FastRNNError, ShapeError

from libc.stdint cimport int64_t, uint64_t

cimport numpy as cnp

from fastrnn.machine._isa cimport _act, _data, frnn_act, fpu_enter, fpu_leave, frnn_kernels, kernels_named, PackedLinear

cnp.import_array()

cdef enum:
    MOST = 128

ctypedef const float *const_row


cdef int64_t _pieces(x, offsets, int64_t reach, const_row *pieces) except -1:
    """Pointers into x; each reads `reach` floats."""
    cdef int64_t n = 0, offset
    cdef const float *start = _data(_check("x", x, (None,)))
    if len(offsets) > MOST:
        raise FastRNNError(f"{len(offsets)} offsets; at most {MOST} are taken")
    for offset in offsets:
        if offset < 0 or offset + reach > x.size:
            raise ShapeError(f"an offset of {offset} into {x.size} floats, of which {reach} are read")
        pieces[n] = start + offset
        n += 1
    return n


def slide(PackedLinear packed not None, x, offsets, int64_t length, int64_t x_step, y, activation="identity", alpha=0.0,
          beta=0.0):
    """y[r, n] = activation(bias[n] + sum_{i, k} x[offsets[i] + r * x_step + k] W[i * length + k, n]).

    Parameters
    ----------
    packed : PackedLinear of len(offsets) * length rows, float32
    y : float32 [rows, N], rows contiguous
    """
    cdef const_row pieces[MOST]
    cdef frnn_act act = _act(activation, alpha, beta)
    cdef int64_t rows = y.shape[0], n
    if y.dtype != np.float32 or y.shape[1:] != (packed.N,) or (packed.N > 1 and y.strides[1] != 4) or length < 0:
        raise ShapeError(f"y: expected float32 rows of {packed.N}")
    n = _pieces(x, offsets, max(rows - 1, 0) * x_step + length, pieces)
    if n * length != packed.K or packed.product.round != NULL:
        raise ShapeError(f"{n} pieces of {length} floats over {packed.K} weights in float32")
    cdef uint64_t token = fpu_enter()
    packed.table.slide(n, length, packed.N, packed.data, act, pieces, x_step, _data(y), y.strides[0] // 4, rows)
    fpu_leave(token)
    return y


def depthwise_row(W, bias, x, offsets, y, activation="identity", alpha=0.0, beta=0.0, isa=None):
    """y[i] = activation(bias[i % period] + sum_k x[offsets[k] + i] W[k, i % period]).

    Parameters
    ----------
    W : float32 [K, period], period a multiple of the lanes; bias : float32 [period] or None
    y : float32 [n]
    """
    cdef const frnn_kernels *table = kernels_named(isa)
    cdef const_row pieces[MOST]
    cdef frnn_act act = _act(activation, alpha, beta)
    _check("W", W, (len(offsets), None))
    _check("y", y, (None,), True)
    cdef int64_t period = W.shape[1]
    if bias is not None:
        _check("bias", bias, (period,))
    if period < 1 or period % table.lanes:
        raise ShapeError(f"the period must be a multiple of {table.lanes} floats, got {period}")
    cdef int64_t n = _pieces(x, offsets, y.size, pieces)
    cdef uint64_t token = fpu_enter()
    table.depthwise_row(y.size, period, n, _data(W), _data(bias), act, pieces, _data(y))
    fpu_leave(token)
    return y


def pool_row(fn, x, offsets, int64_t x_step, y, divisor=1.0, isa=None):
    """y[w, c] = the largest ("max") of x[offsets[k] + w * x_step + c], or their sum / divisor ("add").

    y : float32 [windows, C], rows contiguous
    """
    cdef const frnn_kernels *table = kernels_named(isa)
    cdef const_row pieces[MOST]
    if fn not in ("add", "max"):
        raise FastRNNError(f"unknown pooling {fn!r}; known: add, max")
    if y.dtype != np.float32 or y.ndim != 2 or (y.shape[1] > 1 and y.strides[1] != 4):
        raise ShapeError("y: expected float32 rows")
    cdef int64_t n = _pieces(x, offsets, max(y.shape[0] - 1, 0) * x_step + y.shape[1], pieces)
    cdef uint64_t token = fpu_enter()
    table.pool_row(_CODES[fn], y.shape[1], n, divisor, pieces, x_step, y.shape[0], _data(y), y.strides[0] // 4)
    fpu_leave(token)
    return y
