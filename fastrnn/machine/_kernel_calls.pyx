# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Calls of single kernels on NumPy arrays, for tests and for measuring the machine. No model uses them.

Arrays are float32 and C-contiguous, results are new arrays, denormals count as zero. `isa=None` is the name of a table,
None for the active one.
"""

import numpy as np

from ._isa import _CODES, _check, _code
from ..errors import FastRNNError, ShapeError

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

cimport numpy as cnp

from fastrnn.machine._isa cimport (
    _act,
    _aligned,
    _data,
    frnn_act,
    frnn_attention,
    frnn_cell_io,
    fpu_enter,
    fpu_leave,
    frnn_instruction,
    frnn_kernels,
    frnn_keys,
    FRNN_MAX_INPUTS,
    FRNN_MAX_INSTRUCTIONS,
    FRNN_MAX_RANK,
    frnn_product,
    frnn_program,
    frnn_scan,
    frnn_space,
    kernels_named,
    PackedCell,
    PackedLinear,
)

cnp.import_array()


# ---- cells and linear layers -------------------------------------------------------------------------------------

cdef class _Rows:
    """Pointers to the rows of a 2-d float32 array, which it keeps alive."""
    cdef float **rows
    cdef object array

    def __cinit__(self, array):
        cdef int64_t i
        self.array = array
        self.rows = NULL
        if array is None:
            return
        self.rows = <float **> malloc(max(array.shape[0], 1) * sizeof(float *))
        if self.rows == NULL:
            raise MemoryError()
        for i in range(array.shape[0]):
            self.rows[i] = <float *> <char *> cnp.PyArray_DATA(<cnp.ndarray> array) + i * (
                cnp.PyArray_STRIDE(<cnp.ndarray> array, 0) // <int64_t> sizeof(float))

    def __dealloc__(self):
        free(self.rows)


def _row_array(what, array, columns, rows=None):
    """A 2-d float32 array of contiguous rows (any row stride), so that tests can put rows anywhere."""
    good = isinstance(array, np.ndarray) and array.dtype == np.float32 and array.ndim == 2
    if not good or (array.shape[1] > 1 and array.strides[1] != 4) or array.strides[0] % 4:
        raise ShapeError(f"{what}: expected a float32 array of 2 axes with contiguous rows")
    if array.shape[1] != columns or (rows is not None and array.shape[0] != rows):
        expected = "rows" if rows is None else rows
        raise ShapeError(f"{what}: expected shape [{expected}, {columns}], got {list(array.shape)}")
    return array


def cell_step(PackedCell packed not None, x, h, c=None, pre=None, y=None, splits=(), rows=None, backwards=False):
    """One step of some rows; c is updated in place.

    Parameters
    ----------
    packed : PackedCell
    x : float32 [rows, I], rows contiguous; None if pre is given
    h : float32 [rows, H]
    c : float32 [rows, H], LSTM only, updated in place
    pre : float32 [rows * pre_size] of one step, from `cell_input`
    y : float32 [rows, H], receives the new h; None: a new array
    splits : block numbers between which the step is cut into several calls
    rows : (first, last): only these rows are stepped
    backwards : walk the blocks from the last to the first

    Returns
    -------
    y
    """
    cdef frnn_cell_io io
    cdef int64_t phase, row0, row1, i, H = packed.cell.H
    _row_array("h", h, H)
    count = h.shape[0]
    if (c is None) == (packed.cell.form.states == 2):
        raise ShapeError("c: needed by an LSTM and by nothing else")
    if (x is None) == (pre is None):
        raise ShapeError("one of x and pre is needed")
    if c is not None:
        _row_array("c", c, H, count)
    if x is not None:
        _row_array("x", x, packed.cell.I, count)
    if pre is not None:
        _row_array("pre", pre[None], packed.pre_size * count, 1)
    y = np.zeros((count, H), np.float32) if y is None else _row_array("y", y, H, count)
    row0, row1 = (0, count) if rows is None else rows
    cuts = [0, *splits, packed.blocks]
    if not 0 <= row0 <= row1 <= count or sorted(cuts) != cuts:
        raise ShapeError(f"rows {rows} of {count}, splits {splits} of {packed.blocks} blocks")
    cdef _Rows x_rows = _Rows(x), h_rows = _Rows(h), c_rows = _Rows(c), y_rows = _Rows(y)
    cdef float *scratch = _aligned(packed.table.cell_scratch(&packed.cell, count))
    memset(&io, 0, sizeof(io))
    io.x, io.h = <const float *const *> x_rows.rows, <const float *const *> h_rows.rows
    io.pre, io.pre_rows = NULL, count
    if pre is not None:
        io.pre = _data(pre)
    io.c, io.y, io.scratch, io.backwards = c_rows.rows, y_rows.rows, scratch, bool(backwards)
    cdef uint64_t token = fpu_enter()
    for phase in range(packed.phases):
        for i in range(len(cuts) - 1):
            packed.table.cell_step(&packed.cell, &io, phase, row0, row1, cuts[i], cuts[i + 1])
    fpu_leave(token)
    free(scratch)
    return y


cdef _rounded_rows(const frnn_product *product, int64_t size, x):
    """The rows of x as the product reads them, of `size` floats each; 0: as they are."""
    cdef int64_t r, step = x.strides[0] // 4
    cdef float *data = _data(x)
    cdef float *to
    if size == 0:
        return x
    rounded = np.empty((x.shape[0], size), np.float32)
    to = _data(rounded)
    for r in range(x.shape[0]):
        product.round(x.shape[1], data + r * step, to + r * size)
    return rounded


def cell_input(PackedCell packed not None, x, steps=1, splits=()):
    """The input half of the rows of some steps: x [steps * rows, I] -> pre [steps, rows * pre_size]."""
    _row_array("x", x, packed.cell.I)
    if x.shape[0] % steps:
        raise ShapeError(f"x: {x.shape[0]} rows are not those of {steps} steps")
    cdef int64_t rows = x.shape[0] // steps
    pre = np.zeros((steps, rows * packed.pre_size), np.float32)
    cuts = [0, *splits, packed.blocks]
    cdef uint64_t token = fpu_enter()
    cdef int64_t size = packed.product.rounded(packed.cell.I) if packed.cell.rounded else 0
    cdef _Rows x_rows = _Rows(_rounded_rows(packed.product, size, x))
    for a, b in zip(cuts, cuts[1:]):
        packed.table.cell_input(&packed.cell, <const float *const *> x_rows.rows, 0, <float *> _data(pre), rows, 0,
                                x.shape[0], a, b)
    fpu_leave(token)
    return pre


def linear(PackedLinear packed not None, x, activation="identity", alpha=0.0, beta=0.0, y=None, splits=()):
    """activation(x W + bias): x float32 [rows, K] of contiguous rows -> y [rows, N]."""
    _row_array("x", x, packed.K)
    y = np.zeros((x.shape[0], packed.N), np.float32) if y is None else _row_array("y", y, packed.N, x.shape[0])
    cdef frnn_act act = _act(activation, alpha, beta)
    cuts = [0, *splits, packed.blocks]
    cdef uint64_t token = fpu_enter()
    rows = _rounded_rows(packed.product, packed.rounded_size, x)
    for a, b in zip(cuts, cuts[1:]):
        packed.table.linear(packed.product, packed.K, packed.N, packed.data, act, _data(rows), rows.strides[0] // 4,
                            _data(y), y.strides[0] // 4, 0, x.shape[0], a, b)
    fpu_leave(token)
    return y


# ---- arrays ------------------------------------------------------------------------------------------------------

def map_function(name, x, alpha=0.0, beta=0.0, isa=None, y=None):
    """fn(x) for each element of a C-contiguous float32 array, by the name of a unary function."""
    cdef const frnn_kernels *table = kernels_named(isa)
    cdef frnn_act act = _act(name, alpha, beta)
    _check("x", x, (None,) * np.ndim(x))
    y = np.empty_like(x) if y is None else _check("y", y, x.shape, True)
    cdef uint64_t token = fpu_enter()
    table.map(act, x.size, _data(x), _data(y))
    fpu_leave(token)
    return y


def softmax(x, log=False, isa=None):
    """softmax (or its logarithm) along the last axis of x, float32 [rows, n]."""
    cdef const frnn_kernels *table = kernels_named(isa)
    _check("x", x, (None, None))
    y = np.empty_like(x)
    cdef uint64_t token = fpu_enter()
    table.softmax(x.shape[0], x.shape[1], log, _data(x), x.shape[1], _data(y), x.shape[1])
    fpu_leave(token)
    return y


def layer_norm(x, scale=None, bias=None, epsilon=1e-5, isa=None):
    """(x - mean) / sqrt(var + epsilon) * scale + bias along the last axis of x, float32 [rows, n]."""
    cdef const frnn_kernels *table = kernels_named(isa)
    _check("x", x, (None, None))
    for name, array in (("scale", scale), ("bias", bias)):
        if array is not None:
            _check(name, array, (x.shape[1],))
    y = np.empty_like(x)
    cdef uint64_t token = fpu_enter()
    table.layer_norm(x.shape[0], x.shape[1], epsilon, _data(scale), _data(bias), _data(x), x.shape[1], _data(y),
                     x.shape[1])
    fpu_leave(token)
    return y


def reduce(fn, x, axis=-1, scale=1.0, isa=None):
    """scale * ("add", "min" or "max" along an axis of x, float32 [n0, n1], C-contiguous)."""
    cdef const frnn_kernels *table = kernels_named(isa)
    _check("x", x, (None, None))
    if fn not in ("add", "min", "max"):
        raise FastRNNError(f"unknown reduction {fn!r}; known: add, min, max")
    n0, n1 = x.shape
    rows, n, x_row, x_stride = (n0, n1, n1, 1) if axis in (-1, 1) else (n1, n0, 1, n1)
    y = np.empty(rows, np.float32)
    cdef uint64_t token = fpu_enter()
    table.reduce(_CODES[fn], rows, n, scale, _data(x), x_row, x_stride, _data(y), 1)
    fpu_leave(token)
    return y


def elementwise(program, inputs, out=None, isa=None):
    """Run an elementwise program.

    Parameters
    ----------
    program : list of (name, registers, alpha, beta); registers: a tuple of 1 to 3 ints, inputs first, then results
    inputs : list of at most 8 float32 arrays that broadcast to each other, any strides of whole floats
    out : float32 array of the broadcast shape, any strides; None: a new one

    Returns
    -------
    out
    """
    cdef const frnn_kernels *table = kernels_named(isa)
    cdef frnn_program p
    cdef frnn_space s
    cdef const float *pointers[8]
    cdef int64_t i, d
    if not 1 <= len(inputs) <= FRNN_MAX_INPUTS or not 1 <= len(program) <= FRNN_MAX_INSTRUCTIONS:
        raise FastRNNError(f"{len(inputs)} inputs, {len(program)} instructions: at most 8 and 32, at least one of each")
    if any([a.dtype != np.float32 for a in inputs]):
        raise ShapeError("inputs: expected float32 arrays")
    views = np.broadcast_arrays(*inputs) if len(inputs) > 1 else list(inputs)
    shape = views[0].shape or (1,)
    views = [np.lib.stride_tricks.as_strided(a, shape, a.strides or (4,)) for a in views]
    out = np.empty(views[0].shape, np.float32) if out is None else out
    if out.dtype != np.float32 or out.shape != shape or not 1 <= len(shape) <= FRNN_MAX_RANK:
        raise ShapeError(f"out: expected float32 {list(shape)} of at most 6 axes, got {out.dtype} {list(out.shape)}")
    memset(&p, 0, sizeof(p))
    memset(&s, 0, sizeof(s))
    p.n_in, p.n_instructions, s.rank = len(views), len(program), len(shape)
    for i, (name, registers, alpha, beta) in enumerate(program):
        if any([not 0 <= r < len(views) + i for r in registers]):
            raise FastRNNError(f"instruction {i} ({name}) reads a register that is not written yet: {registers}")
        a, b, c = (*registers, 0, 0)[:3]
        p.instructions[i] = frnn_instruction(_code(name), a, b, c, alpha, beta)
    for d in range(s.rank):
        s.size[d] = shape[d]
        s.out_stride[d] = out.strides[d] // 4
        for i in range(p.n_in):
            s.in_stride[i][d] = views[i].strides[d] // 4
    for i in range(p.n_in):
        pointers[i] = _data(views[i])
    cdef uint64_t token = fpu_enter()
    table.elementwise(&p, &s, pointers, _data(out))
    fpu_leave(token)
    return out


def depthwise(W, bias, x, activation="identity", alpha=0.0, beta=0.0, y=None, isa=None):
    """y[w, c] = activation(bias[c] + sum_k x[w + k, c] W[k, c]): each channel of x separately.

    Parameters
    ----------
    W : float32 [K, C]
    bias : float32 [C] or None
    x : float32 [windows + K - 1, C], rows contiguous
    y : float32 [windows, C], rows contiguous; None: a new array
    """
    cdef const frnn_kernels *table = kernels_named(isa)
    cdef frnn_act act = _act(activation, alpha, beta)
    _check("W", W, (None, None))
    cdef int64_t K = W.shape[0], C = W.shape[1], i, k
    cdef int64_t windows = x.shape[0] - K + 1
    if bias is not None:
        _check("bias", bias, (C,))
    _row_array("x", x, C)
    y = np.zeros((windows, C), np.float32) if y is None else _row_array("y", y, C, windows)
    cdef _Rows rows = _Rows(x)
    cdef const float **taps = <const float **> malloc(max(windows * K, 1) * sizeof(float *))
    if taps == NULL:
        raise MemoryError()
    for i in range(windows):
        for k in range(K):
            taps[i * K + k] = rows.rows[i + k]
    cdef uint64_t token = fpu_enter()
    table.depthwise(C, K, _data(W), _data(bias), act, windows, taps, _data(y), y.strides[0] // 4)
    fpu_leave(token)
    free(taps)
    return y


def pool(fn, x, divisor=1.0, isa=None, y=None):
    """Over the rows of x, float32 [K, C]: the largest of each channel ("max"), or their sum / divisor ("add")."""
    cdef const frnn_kernels *table = kernels_named(isa)
    if fn not in ("add", "max"):
        raise FastRNNError(f"unknown pooling {fn!r}; known: add, max")
    _row_array("x", x, x.shape[1])
    y = np.zeros((1, x.shape[1]), np.float32) if y is None else _row_array("y", y, x.shape[1], 1)
    cdef _Rows rows = _Rows(x)
    cdef uint64_t token = fpu_enter()
    table.pool(_CODES[fn], x.shape[1], x.shape[0], divisor, <const float *const *> rows.rows, _data(y))
    fpu_leave(token)
    return y[0]


def attend(q, k, v, scale=1.0, softcap=0.0, bias=None, mask=None, safe=False, split=None, y=None, isa=None):
    """One query's attention: softmax(where(mask, softcap(scale * k q), 0) + bias) v.

    Parameters
    ----------
    q : float32 [d]
    k, v : float32 [n, d] and [n, dv], rows contiguous
    bias, mask : float32 [n] or None; a mask holds 0 if the score is replaced
    split : the kernel gets the keys before it and those from it on as two runs; None: one run
    y : float32 [dv]; None: a new array
    """
    cdef const frnn_kernels *table = kernels_named(isa)
    _check("q", q, (None,))
    _row_array("k", k, q.shape[0])
    _row_array("v", v, v.shape[1], k.shape[0])
    if bias is not None:
        _check("bias", bias, (k.shape[0],))
    if mask is not None:
        _check("mask", mask, (k.shape[0],))
    y = np.zeros(v.shape[1], np.float32) if y is None else _check("y", y, (v.shape[1],), True)
    cdef int64_t n = k.shape[0], first = n if split is None else min(max(split, 0), n)
    scores = np.empty(max(n, 1), np.float32)
    cdef frnn_attention how
    cdef frnn_keys keys
    how.scale, how.softcap, how.safe = scale, softcap, safe
    keys.k_step, keys.v_step = k.strides[0] // 4, v.strides[0] // 4
    keys.k[0], keys.v[0] = _data(k), _data(v)
    keys.k[1], keys.v[1] = keys.k[0] + first * keys.k_step, keys.v[0] + first * keys.v_step
    keys.n[0], keys.n[1] = first, n - first
    cdef uint64_t token = fpu_enter()
    table.attend(q.shape[0], v.shape[1], &how, _data(q), &keys, _data(bias), 1, _data(mask), 1, _data(scores),
                 _data(y))
    fpu_leave(token)
    return y


# ---- matrix states, and the ends of convolutions by Winograd ------------------------------------------------------

def scan(state, decay=None, rate=None, terms=(), q=None, across=False, out=None, y=None, keep=True, isa=None):
    """One step of a matrix state [K, V]: d * state + terms, read by q. Returns (out, y).

    decay : [K or 1, V or 1] or None, which is d; with rate [K], d = exp(rate * decay)
    terms : at most two of (u, w) or (u, w, sign): u at most two [K], whose product is a column; w [V] or [K, V]
    q : [K], or [V] if across, or None: no y
    keep : whether the new state is written
    out, y : receive the results; out may be `state`. None: new arrays
    """
    cdef const frnn_kernels *table = kernels_named(isa)
    cdef frnn_scan s
    memset(&s, 0, sizeof(s))
    _row_array("state", state, state.shape[1])
    s.K, s.V, s.across = state.shape[0], state.shape[1], bool(across)
    s.from_, s.from_row = _data(state), state.strides[0] // 4
    if keep:
        out = np.zeros((s.K, s.V), np.float32) if out is None else _row_array("out", out, s.V, s.K)
        s.to, s.to_row = _data(out), out.strides[0] // 4
    if decay is not None:
        wide = decay.shape[1] == s.V and (s.V > 1 or rate is not None)
        _row_array("decay", decay, s.V if wide else 1, s.K if decay.shape[0] > 1 else 1)
        s.decay, s.decay_row, s.decay_column = _data(decay), 0 if decay.shape[0] == 1 else decay.strides[0] // 4, wide
    if rate is not None:
        _check("rate", rate, (s.K,))
        s.rate, s.rate_row = _data(rate), 1
    for k, (u, w, *sign) in enumerate(terms):
        for i, factor in enumerate(u):
            _check("u", factor, (s.K,))
            s.term[k].u[i], s.term[k].u_row[i] = _data(factor), 1
        rows = () if w.ndim == 1 else (s.K,)
        _check("w", w, (*rows, s.V))
        s.term[k].w, s.term[k].w_row, s.term[k].sign = _data(w), s.V if rows else 0, sign[0] if sign else 1
    if q is not None:
        _check("q", q, (s.V if across else s.K,))
        y = np.zeros(s.K if across else s.V, np.float32) if y is None else y
        _check("y", y, (s.K if across else s.V,), True)
        s.q, s.q_step, s.y, s.y_step = _data(q), 1, _data(y), 1
    cdef uint64_t token = fpu_enter()
    table.scan(&s)
    fpu_leave(token)
    return out, y


def winograd_in(taps, y=None, isa=None):
    """The 16 sums and differences of 4 x 4 positions: float32 [16, C], rows contiguous -> [16, C]."""
    cdef const frnn_kernels *table = kernels_named(isa)
    _row_array("taps", taps, taps.shape[1], 16)
    y = np.zeros(taps.shape, np.float32) if y is None else _row_array("y", y, taps.shape[1], 16)
    cdef _Rows rows = _Rows(taps)
    cdef uint64_t token = fpu_enter()
    table.winograd_in(taps.shape[1], <const float *const *> rows.rows, _data(y), y.strides[0] // 4)
    fpu_leave(token)
    return y


def winograd_out(products, bias=None, activation="identity", alpha=0.0, beta=0.0, y=None, skip=(), isa=None):
    """The 2 x 2 results from 16 products: float32 [16, N], rows contiguous -> [4, N]. skip: results not wanted."""
    cdef const frnn_kernels *table = kernels_named(isa)
    cdef frnn_act act = _act(activation, alpha, beta)
    _row_array("products", products, products.shape[1], 16)
    if bias is not None:
        _check("bias", bias, (products.shape[1],))
    y = np.zeros((4, products.shape[1]), np.float32) if y is None else _row_array("y", y, products.shape[1], 4)
    cdef _Rows rows = _Rows(y)
    for i in skip:
        rows.rows[i] = NULL
    cdef uint64_t token = fpu_enter()
    table.winograd_out(products.shape[1], _data(products), products.strides[0] // 4, _data(bias), act, rows.rows)
    fpu_leave(token)
    return y


def turn(x, y=None, isa=None):
    """The transpose of x, float32 [rows, columns], rows contiguous. y: float32 [columns, rows], rows contiguous."""
    cdef const frnn_kernels *table = kernels_named(isa)
    _row_array("x", x, x.shape[1])
    y = np.zeros(x.shape[::-1], np.float32) if y is None else _row_array("y", y, x.shape[0], x.shape[1])
    table.turn(x.shape[0], x.shape[1], _data(x), x.strides[0] // 4, _data(y), y.strides[0] // 4)
    return y
