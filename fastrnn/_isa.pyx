# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Instruction sets: picks the kernel table at import, packs weights for it, and lets tests call each kernel.

All C kernels are linked here and nowhere else; other Cython modules reach them through `active_kernels` and
`kernels_named` of `_isa.pxd`. FASTRNN_ISA names the table to use instead of the best one.

Every function takes `isa=None`: the name of a table, None for the active one. Arrays are float32 and C-contiguous,
results are new arrays, denormals count as zero; the functions that compute are for tests, not for speed.
"""

import os

import numpy as np

from .errors import FastRNNError, ShapeError

from libc.math cimport INFINITY
from libc.stdlib cimport free, malloc
from libc.string cimport memset

cnp.import_array()

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **out, size_t alignment, size_t size)

cdef extern from "frnn.h" nogil:
    const frnn_kernels *const *frnn_available() noexcept
    const char *const *frnn_compiled() noexcept
    const char *const *frnn_function_names() noexcept
    uint64_t c_fpu_enter "frnn_fpu_enter"() noexcept
    void c_fpu_leave "frnn_fpu_leave"(uint64_t token) noexcept

cdef const frnn_kernels *ACTIVE = NULL
cdef object FORCED_BY = None
_KINDS = {"rnn": FRNN_RNN, "lstm": FRNN_LSTM, "gru": FRNN_GRU}


# ---- choosing a table --------------------------------------------------------------------------------------------

def _compiled():
    cdef const char *const *names = frnn_compiled()
    found = []
    while names[0] != NULL:
        found.append(names[0].decode())
        names += 1
    return tuple(found)


def _available():
    cdef const frnn_kernels *const *tables = frnn_available()
    found = []
    while tables[0] != NULL:
        found.append(tables[0].isa.decode())
        tables += 1
    return tuple(found)


cdef const frnn_kernels *_find(isa, str asked_by) except NULL:
    cdef const frnn_kernels *const *tables = frnn_available()
    while tables[0] != NULL:
        if tables[0].isa.decode() == isa:
            return tables[0]
        tables += 1
    there = isa in _compiled()
    why = "this CPU or operating system does not run it" if there else "no such instruction set in this build"
    raise FastRNNError(f"{asked_by} asks for {isa!r}: {why}; available: {', '.join(_available())}")


cdef const frnn_kernels *active_kernels() noexcept nogil:
    return ACTIVE


cdef frnn_team *team_begin(int threads) noexcept nogil:
    return frnn_team_begin(threads)


cdef void team_end(frnn_team *team) noexcept nogil:
    frnn_team_end(team)


cdef void team_for(frnn_team *team, int64_t chunks, frnn_chunk_fn fn, void *context) noexcept nogil:
    frnn_team_for(team, chunks, fn, context)


cdef int team_size(const frnn_team *team) noexcept nogil:
    return frnn_team_size(team)


cdef uint64_t fpu_enter() noexcept nogil:
    return frnn_fpu_enter()


cdef void fpu_leave(uint64_t token) noexcept nogil:
    frnn_fpu_leave(token)


cdef const frnn_kernels *kernels_named(isa) except NULL:
    return ACTIVE if isa is None else _find(isa, "isa")


def _activate():
    global ACTIVE, FORCED_BY
    forced = os.environ.get("FASTRNN_ISA", "")
    FORCED_BY = "FASTRNN_ISA" if forced else None
    ACTIVE = _find(forced, "FASTRNN_ISA") if forced else frnn_available()[0]


_activate()


cdef uint64_t frnn_fpu_enter() noexcept nogil:
    return c_fpu_enter()


cdef void frnn_fpu_leave(uint64_t token) noexcept nogil:
    c_fpu_leave(token)


def isa_info():
    """What was found and chosen.

    Returns
    -------
    dict: detected (best table this CPU runs), active, forced_by ("FASTRNN_ISA" or None), available and compiled
    (tuples of names, best first), lanes (floats in the active table's widest vector).
    """
    available = _available()
    return {
        "detected": available[0],
        "active": ACTIVE.isa.decode(),
        "forced_by": FORCED_BY,
        "available": available,
        "compiled": _compiled(),
        "lanes": ACTIVE.lanes,
    }


def functions():
    """Names of the elementwise functions, a tuple in the order of their codes."""
    cdef const char *const *names = frnn_function_names()
    return tuple([names[i].decode() for i in range(FRNN_FN_COUNT)])


_CODES = {name: code for code, name in enumerate(functions())}
_UNARY_END = _CODES["add"]  # unary functions come first


def _code(name, bint unary_only=False):
    code = _CODES.get(name)
    if code is None or (unary_only and code >= _UNARY_END):
        known = ", ".join([n for n, c in _CODES.items() if not unary_only or c < _UNARY_END])
        raise FastRNNError(f"unknown {'unary ' if unary_only else ''}function {name!r}; known: {known}")
    return code


# ---- memory and checks -------------------------------------------------------------------------------------------

cdef float *_aligned(int64_t count) except NULL:
    """count floats (at least one cache line), 64-byte aligned, zero."""
    cdef void *memory = NULL
    cdef size_t size = max(count, 16) * sizeof(float)
    if posix_memalign(&memory, 64, size) != 0:
        raise MemoryError(f"{size} bytes")
    memset(memory, 0, size)
    return <float *> memory


def _check(what, array, shape, writeable=False):
    """array, if it is a float32, C-contiguous ndarray of this shape (None: any size); ShapeError otherwise."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or not array.flags.c_contiguous:
        got = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
        raise ShapeError(f"{what}: expected a C-contiguous float32 array, got {got}")
    if array.ndim != len(shape) or any([s is not None and s != d for s, d in zip(shape, array.shape)]):
        text = ", ".join(["any" if s is None else str(s) for s in shape])
        raise ShapeError(f"{what}: expected shape [{text}], got {list(array.shape)}")
    if writeable and not array.flags.writeable:
        raise ShapeError(f"{what}: the array is read-only")
    return array


cdef inline float *_data(object array) noexcept:
    return NULL if array is None else <float *> cnp.PyArray_DATA(<cnp.ndarray> array)


cdef frnn_act _act(name, alpha, beta) except *:
    cdef frnn_act act
    act.fn, act.alpha, act.beta = _code(name, True), alpha, beta
    return act


# ---- cells -------------------------------------------------------------------------------------------------------

cdef class PackedCell:
    def __dealloc__(self):
        free(self.memory)

    @property
    def isa(self):
        """Name of the table it is packed for."""
        return self.table.isa.decode()

    @property
    def blocks(self):
        """Into how many blocks of hidden units a step can be split."""
        return self.table.cell_blocks(&self.cell)

    @property
    def phases(self):
        """Phases of a step: 2 for a GRU that resets before the product."""
        return self.table.cell_phases(&self.cell)

    @property
    def pre_size(self):
        """Floats of the input half of one row (`cell_input`)."""
        return self.table.cell_pre_size(&self.cell)


def pack_cell(spec, W, R, Wb=None, Rb=None, P=None, isa=None):
    """Pack the weights of one direction of one recurrent layer.

    Parameters
    ----------
    spec : CellSpec
    W, R : float32 arrays, shapes [G*H, I] and [G*H, H], C-contiguous, gates in ONNX order
    Wb, Rb : float32 arrays, shape [G*H]; None is zeros
    P : float32 array, shape [3*H], peepholes i o f; None for none. LSTM only.
    isa : name of a table; None is the active one

    Returns
    -------
    PackedCell : owns a copy of the weights.

    Raises
    ------
    ShapeError : an array does not fit the spec.
    FastRNNError : the table can't be had on this machine.
    """
    cdef PackedCell packed = PackedCell.__new__(PackedCell)
    cdef int64_t size, i
    H, GH = spec.hidden_size, spec.gates * spec.hidden_size
    _check("W", W, (GH, spec.input_size))
    _check("R", R, (GH, H))
    for name, array in (("Wb", Wb), ("Rb", Rb)):
        if array is not None:
            _check(name, array, (GH,))
    if P is not None:
        if spec.kind != "lstm":
            raise ShapeError(f"P: a {spec.kind} has no peephole")
        _check("P", P, (3 * H,))
    packed.table = kernels_named(isa)
    packed.spec = spec
    packed.cell.kind = _KINDS[spec.kind]
    packed.cell.input_forget = spec.input_forget
    packed.cell.reset_after = spec.linear_before_reset
    packed.cell.peephole = P is not None
    packed.cell.I, packed.cell.H = spec.input_size, H
    packed.cell.clip = INFINITY if spec.clip is None else spec.clip
    for i, act in enumerate(spec.activations):
        packed.cell.act[i] = _act(act.name, act.alpha, act.beta)
    size = packed.table.cell_pack_size(&packed.cell)
    packed.memory = _aligned(size)
    packed.nbytes = size * sizeof(float)
    packed.table.cell_pack(&packed.cell, _data(W), _data(R), _data(Wb), _data(Rb), _data(P), packed.memory)
    packed.cell.packed = packed.memory
    return packed


def cell_scratch_size(PackedCell packed not None, int64_t rows=1):
    """Floats of scratch that a step of `rows` rows needs; proportional to rows."""
    return packed.table.cell_scratch(&packed.cell, rows)


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
    x : float32 [rows, I], rows contiguous; None where pre is given
    h : float32 [rows, H]
    c : float32 [rows, H], LSTM only, updated in place
    pre : float32 [rows, pre_size] from `cell_input`
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
    if (c is None) == (packed.cell.kind == FRNN_LSTM):
        raise ShapeError("c: needed by an LSTM and by nothing else")
    if (x is None) == (pre is None):
        raise ShapeError("one of x and pre is needed")
    if c is not None:
        _row_array("c", c, H, count)
    if x is not None:
        _row_array("x", x, packed.cell.I, count)
    if pre is not None:
        _row_array("pre", pre, packed.pre_size, count)
    y = np.zeros((count, H), np.float32) if y is None else _row_array("y", y, H, count)
    row0, row1 = (0, count) if rows is None else rows
    cuts = [0, *splits, packed.blocks]
    if not 0 <= row0 <= row1 <= count or sorted(cuts) != cuts:
        raise ShapeError(f"rows {rows} of {count}, splits {splits} of {packed.blocks} blocks")
    cdef _Rows x_rows = _Rows(x), h_rows = _Rows(h), c_rows = _Rows(c), y_rows = _Rows(y), pre_rows = _Rows(pre)
    cdef float *scratch = _aligned(packed.table.cell_scratch(&packed.cell, count))
    memset(&io, 0, sizeof(io))
    io.x, io.h = <const float *const *> x_rows.rows, <const float *const *> h_rows.rows
    io.pre = <const float *const *> pre_rows.rows
    io.c, io.y, io.scratch, io.backwards = c_rows.rows, y_rows.rows, scratch, bool(backwards)
    cdef uint64_t token = frnn_fpu_enter()
    for phase in range(packed.phases):
        for i in range(len(cuts) - 1):
            packed.table.cell_step(&packed.cell, &io, phase, row0, row1, cuts[i], cuts[i + 1])
    frnn_fpu_leave(token)
    free(scratch)
    return y


def cell_input(PackedCell packed not None, x, splits=()):
    """The input half of some rows: x [rows, I] -> pre [rows, pre_size]."""
    _row_array("x", x, packed.cell.I)
    pre = np.zeros((x.shape[0], packed.pre_size), np.float32)
    cdef _Rows x_rows = _Rows(x), pre_rows = _Rows(pre)
    cuts = [0, *splits, packed.blocks]
    cdef uint64_t token = frnn_fpu_enter()
    for a, b in zip(cuts, cuts[1:]):
        packed.table.cell_input(&packed.cell, <const float *const *> x_rows.rows, 0, pre_rows.rows, 0, 0, x.shape[0],
                                a, b)
    frnn_fpu_leave(token)
    return pre


# ---- linear ------------------------------------------------------------------------------------------------------

cdef class PackedLinear:
    def __dealloc__(self):
        free(self.memory)

    @property
    def isa(self):
        """Name of the table it is packed for."""
        return self.table.isa.decode()

    @property
    def blocks(self):
        """Into how many blocks of columns the product can be split."""
        return self.table.linear_blocks(self.K, self.N)


def linear_pack_size(int64_t K, int64_t N, isa=None):
    """Floats that `pack_linear` needs for W [K, N] and its bias."""
    return kernels_named(isa).linear_pack_size(K, N)


def pack_linear(W, bias=None, isa=None):
    """Pack W, float32 [K, N] (any strides of whole floats), and bias, float32 [N] or None.

    Returns
    -------
    PackedLinear : owns a copy.

    Raises
    ------
    ShapeError, FastRNNError : as `pack_cell`.
    """
    cdef PackedLinear packed = PackedLinear.__new__(PackedLinear)
    cdef int64_t size
    if not isinstance(W, np.ndarray) or W.dtype != np.float32 or W.ndim != 2 or any([s % 4 for s in W.strides]):
        raise ShapeError("W: expected a float32 array [K, N]")
    if bias is not None:
        _check("bias", bias, (W.shape[1],))
    packed.table = kernels_named(isa)
    packed.K, packed.N = W.shape
    size = packed.table.linear_pack_size(packed.K, packed.N)
    packed.memory = _aligned(size)
    packed.nbytes = size * sizeof(float)
    packed.table.linear_pack(packed.K, packed.N, _data(W), W.strides[0] // 4, W.strides[1] // 4, _data(bias),
                             packed.memory)
    packed.data = packed.memory
    return packed


def linear(PackedLinear packed not None, x, activation="identity", alpha=0.0, beta=0.0, y=None, splits=()):
    """activation(x W + bias): x float32 [rows, K] of contiguous rows -> y [rows, N]."""
    _row_array("x", x, packed.K)
    y = np.zeros((x.shape[0], packed.N), np.float32) if y is None else _row_array("y", y, packed.N, x.shape[0])
    cdef frnn_act act = _act(activation, alpha, beta)
    cuts = [0, *splits, packed.blocks]
    cdef uint64_t token = frnn_fpu_enter()
    for a, b in zip(cuts, cuts[1:]):
        packed.table.linear(packed.K, packed.N, packed.data, act, _data(x), x.strides[0] // 4, _data(y),
                            y.strides[0] // 4, 0, x.shape[0], a, b)
    frnn_fpu_leave(token)
    return y


# ---- arrays ------------------------------------------------------------------------------------------------------

def map_function(name, x, alpha=0.0, beta=0.0, isa=None, y=None):
    """fn(x) for each element of a C-contiguous float32 array, by the name of a unary function."""
    cdef const frnn_kernels *table = kernels_named(isa)
    cdef frnn_act act = _act(name, alpha, beta)
    _check("x", x, (None,) * np.ndim(x))
    y = np.empty_like(x) if y is None else _check("y", y, x.shape, True)
    cdef uint64_t token = frnn_fpu_enter()
    table.map(act, x.size, _data(x), _data(y))
    frnn_fpu_leave(token)
    return y


def softmax(x, log=False, isa=None):
    """softmax (or its logarithm) along the last axis of x, float32 [rows, n]."""
    cdef const frnn_kernels *table = kernels_named(isa)
    _check("x", x, (None, None))
    y = np.empty_like(x)
    cdef uint64_t token = frnn_fpu_enter()
    table.softmax(x.shape[0], x.shape[1], log, _data(x), x.shape[1], _data(y), x.shape[1])
    frnn_fpu_leave(token)
    return y


def layer_norm(x, scale=None, bias=None, epsilon=1e-5, isa=None):
    """(x - mean) / sqrt(var + epsilon) * scale + bias along the last axis of x, float32 [rows, n]."""
    cdef const frnn_kernels *table = kernels_named(isa)
    _check("x", x, (None, None))
    for name, array in (("scale", scale), ("bias", bias)):
        if array is not None:
            _check(name, array, (x.shape[1],))
    y = np.empty_like(x)
    cdef uint64_t token = frnn_fpu_enter()
    table.layer_norm(x.shape[0], x.shape[1], epsilon, _data(scale), _data(bias), _data(x), x.shape[1], _data(y),
                     x.shape[1])
    frnn_fpu_leave(token)
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
    cdef uint64_t token = frnn_fpu_enter()
    table.reduce(_CODES[fn], rows, n, scale, _data(x), x_row, x_stride, _data(y), 1)
    frnn_fpu_leave(token)
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
    cdef uint64_t token = frnn_fpu_enter()
    table.elementwise(&p, &s, pointers, _data(out))
    frnn_fpu_leave(token)
    return out


def depthwise(W, bias, x, activation="identity", alpha=0.0, beta=0.0, y=None, isa=None):
    """y[w, c] = activation(bias[c] + sum_k x[w + k, c] W[k, c]): each channel of x by itself.

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
    cdef uint64_t token = frnn_fpu_enter()
    table.depthwise(C, K, _data(W), _data(bias), act, windows, taps, _data(y), y.strides[0] // 4)
    frnn_fpu_leave(token)
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
    cdef uint64_t token = frnn_fpu_enter()
    table.pool(_CODES[fn], x.shape[1], x.shape[0], divisor, <const float *const *> rows.rows, _data(y))
    frnn_fpu_leave(token)
    return y[0]


def attend(q, k, v, scale=1.0, softcap=0.0, bias=None, safe=False, split=None, y=None, isa=None):
    """One query's attention: softmax(softcap(scale * k q) + bias) v.

    Parameters
    ----------
    q : float32 [d]
    k, v : float32 [n, d] and [n, dv], rows contiguous
    bias : float32 [n] or None
    split : the keys before it and those from it on are given to the kernel as two runs; None: one run
    y : float32 [dv]; None: a new array
    """
    cdef const frnn_kernels *table = kernels_named(isa)
    _check("q", q, (None,))
    _row_array("k", k, q.shape[0])
    _row_array("v", v, v.shape[1], k.shape[0])
    if bias is not None:
        _check("bias", bias, (k.shape[0],))
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
    cdef uint64_t token = frnn_fpu_enter()
    table.attend(q.shape[0], v.shape[1], &how, _data(q), &keys, _data(bias), 1, _data(scores), _data(y))
    frnn_fpu_leave(token)
    return y
