# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Instruction sets: picks the kernel table at import and packs weights for it.

All C kernels are linked only here; other Cython modules reach them through `kernels_named` of `_isa.pxd`.
FASTRNN_ISA names the table to use instead of the best one. `isa=None` is the name of a table, None for the active one.
Arrays are float32 and C-contiguous.
"""

import os

import numpy as np

from ..errors import FastRNNError, ShapeError

from libc.math cimport INFINITY
from libc.stdlib cimport free
from libc.string cimport memset

cnp.import_array()

cdef extern from "pages.h" nogil:
    void *frnn_allocate(size_t size)

cdef extern from "frnn.h" nogil:
    const frnn_kernels *const *frnn_available() noexcept
    const frnn_kernels *const *frnn_compiled() noexcept
    const frnn_kernels *const *frnn_emulated() noexcept
    int frnn_tile_refusal() noexcept
    const frnn_form *frnn_form_of(const char *kind, int32_t variant) noexcept
    const char *const *frnn_function_names() noexcept
    uint64_t frnn_fpu_enter() noexcept
    void frnn_fpu_leave(uint64_t token) noexcept

cdef const frnn_kernels *ACTIVE = NULL
cdef object FORCED_BY = None
MAX_INPUTS = FRNN_MAX_INPUTS  # of an elementwise program
MAX_INSTRUCTIONS = FRNN_MAX_INSTRUCTIONS
FLOPS_A_THREAD = FRNN_FLOPS_A_THREAD  # the least operations of each thread in a shared call


# ---- choosing a table --------------------------------------------------------------------------------------------

cdef _names(const frnn_kernels *const *tables):
    names = []
    while tables[0] != NULL:
        names.append(tables[0].isa.decode())
        tables += 1
    return tuple(names)


cdef const frnn_kernels *_among(const frnn_kernels *const *tables, isa) noexcept:
    """The table of that name; NULL if absent."""
    while tables[0] != NULL and tables[0].isa.decode() != isa:
        tables += 1
    return tables[0]


cdef const frnn_kernels *_find(isa, str asked_by) except NULL:
    cdef const frnn_kernels *found = _among(frnn_available(), isa)
    found = found if found != NULL else _among(frnn_emulated(), isa)
    if found != NULL:
        return found
    there = _among(frnn_compiled(), isa) != NULL
    why = "this CPU or operating system does not run it" if there else "no such instruction set in this build"
    raise FastRNNError(f"{asked_by} asks for {isa!r}: {why}; available: {', '.join(_names(frnn_available()))}")


cdef void team_call(int threads, frnn_call_fn fn, void *context) noexcept nogil:
    frnn_team_call(threads, fn, context)


cdef void team_for(frnn_team *team, int64_t chunks, frnn_chunk_fn fn, void *context) noexcept nogil:
    frnn_team_for(team, chunks, fn, context)


cdef int team_size(const frnn_team *team) noexcept nogil:
    return frnn_team_size(team)


cdef frnn_join_fn use_openmp(frnn_region_fn region) noexcept nogil:
    return frnn_use_openmp(region)


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


def isa_info():
    """What was found and chosen: detected (best table this CPU runs), active, forced_by ("FASTRNN_ISA" or None),
    available and compiled (names, best first), emulated (those for tests), lanes (floats in the active table's
    widest vector), refusal (0; -1 or an error number: why the CPU's tile unit can't be used, see frnn.h)."""
    available = _names(frnn_available())
    return {
        "detected": available[0],
        "active": ACTIVE.isa.decode(),
        "forced_by": FORCED_BY,
        "available": available,
        "compiled": _names(frnn_compiled()),
        "emulated": _names(frnn_emulated()),
        "lanes": ACTIVE.lanes,
        "refusal": frnn_tile_refusal(),
    }


_THREADING = {"auto": FRNN_THREADING_TEAM, "team": FRNN_THREADING_TEAM, "openmp": FRNN_THREADING_OPENMP}


def set_threading(how):
    """Which workers share the calls of this process: "auto", "team" or "openmp". See machine/workers.py."""
    frnn_set_threading(_THREADING[how])


def has_openmp():
    """Whether calls can use OpenMP: machine/_openmp.pyx is loaded, and this process is not a fork's child."""
    return frnn_has_openmp() != 0


def shared_calls():
    """(calls with OpenMP's workers, calls with our own) of this process so far."""
    cdef int64_t openmp, own
    frnn_shared_calls(&openmp, &own)
    return openmp, own


def kernels_of(isa=None):
    """Name of the instruction set whose kernels this one uses for everything but products of 8-bit weights: its own, or
    "avx512" for "avx512_vnni"."""
    return bits_class("float32", isa).split()[1]


def tile_rows(isa, vectors, blocks=1):
    """The most rows of a tile of float32 products, over one or two blocks of that many vectors (1 to 4); 0 without such
    a tile. isa: any table of this build; otherwise, the active table is used."""
    cdef const frnn_kernels *table = _among(frnn_compiled(), isa)
    return (ACTIVE if table == NULL else table).products[0].rows[blocks - 1][vectors]


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
    """count floats (at least one cache line), 64-byte aligned, zero; in huge pages if it fills one."""
    cdef size_t size = max(count, 16) * sizeof(float)
    cdef void *memory = frnn_allocate(size)
    if memory == NULL:
        raise MemoryError(f"{size} bytes")
    memset(memory, 0, size)
    return <float *> memory


def _check(what, array, shape, writeable=False):
    """array, if it is a C-contiguous float32 ndarray of this shape (None: any size), else ShapeError."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or not array.flags.c_contiguous:
        got = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
        raise ShapeError(f"{what}: expected a C-contiguous float32 array, got {got}")
    if array.ndim != len(shape) or any([s is not None and s != d for s, d in zip(shape, array.shape)]):
        text = ", ".join(["any" if s is None else str(s) for s in shape])
        raise ShapeError(f"{what}: expected shape [{text}], got {list(array.shape)}")
    if writeable and not array.flags.writeable:
        raise ShapeError(f"{what}: the array is read-only")
    return array


cdef frnn_act _act(name, alpha, beta) except *:
    cdef frnn_act act
    act.fn, act.alpha, act.beta = _code(name, True), alpha, beta
    return act


# ---- packed weights ----------------------------------------------------------------------------------------------

cdef int64_t PIECE = 2 << 20  # bytes that are packed before the pages of what they were made of are given back
cdef int64_t SMALL = 64 << 10  # bytes of an array whose pages are not worth giving back


def _give_back(*arrays):
    """Let go of the pages of a mapped file that hold these arrays."""
    for array in arrays:
        if array is not None and array.nbytes >= SMALL:
            from .pages import give_back  # not part of `import fastrnn`

            give_back(array)


cdef class Packed:
    def __dealloc__(self):
        free(self.memory)

    @property
    def isa(self):
        """Name of the table it is packed for."""
        return self.table.isa.decode()

    @property
    def weights(self):
        """Number format of the packed weights: a name of `number_formats`."""
        return self.product.weights.decode()

    @property
    def mapped(self):
        """Whether the memory is that of a file, which processes share."""
        return self.file is not None

    cdef const float *take(self, store, tuple what, tuple arrays, int64_t size) except NULL:
        """The packed weights, of `size` floats: made by `fill` from these arrays, or as the store already has them.

        store : None, or with `packed`, as fastrnn.machine.packed_files. what : names table, format and sizes.
        """
        self.nbytes = size * sizeof(float)
        if store is None:
            self.fill(arrays, size)
            return self.memory
        what = ("layout", FRNN_LAYOUT, self.isa, self.table.lanes, *what)
        self.file = store.packed(what, arrays, self.nbytes, lambda: self.view(arrays, size))
        _give_back(*arrays)  # those that were not packed, but found in the store
        if self.file is None:
            self.fill(arrays, size)
            return self.memory
        free(self.memory)
        self.memory = NULL
        return _data(self.file)

    cdef fill(self, tuple arrays, int64_t size):
        """Pack into private memory, unless that is done."""
        if self.memory == NULL:
            self.memory = _aligned(size)
            self.pack(arrays)

    def view(self, tuple arrays, int64_t size):
        """The packed weights in private memory, as an array that is valid as long as this object and that memory."""
        cdef cnp.npy_intp length = size
        self.fill(arrays, size)
        return cnp.PyArray_SimpleNewFromData(1, &length, cnp.NPY_FLOAT32, self.memory)

    cdef pack(self, tuple arrays):
        raise NotImplementedError


# ---- cells -------------------------------------------------------------------------------------------------------

cdef class PackedCell(Packed):
    cdef pack(self, tuple arrays):
        cdef int64_t block, blocks = self.blocks, step = max(1, blocks * PIECE // max(self.nbytes, 1))
        cdef frnn_weights weights
        W, R, Wb, Rb, P, W_scale, R_scale = arrays
        weights.W, weights.R, weights.Wb, weights.Rb, weights.P = _data(W), _data(R), _data(Wb), _data(Rb), _data(P)
        weights.W_scale, weights.R_scale = _data(W_scale), _data(R_scale)
        for block in range(0, blocks, step):
            self.table.cell_pack(&self.cell, &weights, block, min(block + step, blocks), self.memory)
            _give_back(W, R)

    @property
    def blocks(self):
        """Into how many blocks of hidden units a step can be split."""
        return self.table.cell_blocks(&self.cell)

    @property
    def phases(self):
        """Phases of a step: one, or two for a GRU that resets before the product; twice that in reduced precision."""
        return self.cell.phases

    @property
    def pre_size(self):
        """Floats of the input half of one row (`cell_input`)."""
        return self.table.cell_pre_size(&self.cell)


cdef const frnn_product *_product(const frnn_kernels *table, weights) except NULL:
    """The table's first product of weights in this number format."""
    cdef const frnn_product *const *products = table.products
    while products[0] != NULL:
        if products[0].weights.decode() == weights:
            return products[0]
        products += 1
    raise FastRNNError(f"{table.isa.decode()} has no product of {weights} weights")


def number_formats(isa=None):
    """Number formats in which the weights of products may be packed, a tuple that begins with "float32"."""
    cdef const frnn_product *const *products = kernels_named(isa).products
    found = []
    while products[0] != NULL:
        found.append(products[0].weights.decode())
        products += 1
    return tuple(found)


def bits_class(weights, isa=None):
    """The class of equal bits of products of this number format: sets that name the same one give the same answers."""
    return _product(kernels_named(isa), weights).bits.decode()


def pack_cell(
    spec, W, R, Wb=None, Rb=None, P=None, isa=None, weights="float32", W_scale=None, R_scale=None, store=None
):
    """Pack the weights of one direction of one recurrent layer.

    Parameters
    ----------
    spec : CellSpec
    W, R : float32 arrays, shapes [G*H, I] and [G*H, H], C-contiguous, gates in ONNX order
    Wb, Rb : float32 arrays, shape [G*H]; None means zeros
    P : float32 array, shape [3*H], peepholes i o f; None for none. LSTM only.
    isa : name of a table; None is the active one
    weights : number format of the packed weights, one of `number_formats`
    W_scale, R_scale : float32 arrays, shape [G*H]: what one step of the 8-bit weights of a row is worth. None: the
        largest weight of the row is 127 steps. For 8-bit formats only.
    store : where packed weights are looked up and kept, such as a `packed_files.Store`; None for private memory

    Returns
    -------
    PackedCell : a copy of the weights.

    Raises
    ------
    ShapeError : an array does not fit the spec.
    FastRNNError : the table can't run on this machine, or has no product of such weights.
    """
    cdef PackedCell packed = PackedCell.__new__(PackedCell)
    cdef int64_t size, i
    H, GH = spec.hidden_size, spec.gates * spec.hidden_size
    _check("W", W, (GH, spec.input_size))
    _check("R", R, (GH, H))
    for name, array in (("Wb", Wb), ("Rb", Rb), ("W_scale", W_scale), ("R_scale", R_scale)):
        if array is not None:
            _check(name, array, (GH,))
    if P is not None:
        if spec.kind != "lstm":
            raise ShapeError(f"P: a {spec.kind} has no peephole")
        _check("P", P, (3 * H,))
    packed.table = kernels_named(isa)
    packed.spec = spec
    packed.cell.form = frnn_form_of(spec.kind.encode(), spec.linear_before_reset)
    if packed.cell.form == NULL:
        raise FastRNNError(f"no fused cell {spec.kind!r}")
    packed.product = packed.cell.product = _product(packed.table, weights)
    packed.cell.input_forget = spec.input_forget
    packed.cell.peephole = P is not None
    packed.cell.I, packed.cell.H = spec.input_size, H
    packed.cell.clip = INFINITY if spec.clip is None else spec.clip
    for i, act in enumerate(spec.activations):
        packed.cell.act[i] = _act(act.name, act.alpha, act.beta)
    size = packed.table.cell_layout(&packed.cell)
    arrays = (W, R, Wb, Rb, P, W_scale, R_scale)
    packed.cell.packed = packed.take(store, ("cell", weights, spec), arrays, size)
    return packed


def cell_scratch_size(PackedCell packed not None, int64_t rows=1):
    """Floats of scratch that a step of `rows` rows needs; proportional to rows."""
    return packed.table.cell_scratch(&packed.cell, rows)


# ---- linear layers -----------------------------------------------------------------------------------------------

cdef class PackedLinear(Packed):
    cdef pack(self, tuple arrays):
        cdef int64_t k = 0, step = max(1, self.K * PIECE // max(self.nbytes, 1) // FRNN_PACK_STEP) * FRNN_PACK_STEP
        W, bias, scale = arrays
        if self.weights.startswith("int8"):  # a column's scale and sum need all of it
            step = self.K + 1
        while True:
            self.table.linear_pack(self.product, self.K, self.N, _data(W), W.strides[0] // 4, W.strides[1] // 4,
                                   _data(bias), _data(scale), k, min(k + step, self.K), self.memory)
            _give_back(W)
            k += step
            if k >= self.K:
                return

    @property
    def blocks(self):
        """Into how many blocks of columns the product can be split."""
        return self.table.linear_blocks(self.K, self.N)

    @property
    def rounded_size(self):
        """Floats of a rounded row of x, which the product reads in reduced precision; 0 in float32."""
        return 0 if self.product.round == NULL else self.product.rounded(self.K)


def linear_pack_size(int64_t K, int64_t N, isa=None):
    """Floats that `pack_linear` needs for W [K, N] and its bias, in float32."""
    return kernels_named(isa).linear_pack_size(kernels_named(isa).products[0], K, N)


def pack_linear(W, bias=None, isa=None, weights="float32", scale=None, store=None):
    """Pack W, float32 [K, N] (any strides of whole floats), and bias, float32 [N] or None.

    weights : number format of the packed weights, one of `number_formats`
    scale : float32 [N], what one step of a column's 8-bit weights is worth; None: its largest weight is 127 steps
    store : as for `pack_cell`

    Returns
    -------
    PackedLinear : a copy.

    Raises
    ------
    As `pack_cell`.
    """
    cdef PackedLinear packed = PackedLinear.__new__(PackedLinear)
    cdef int64_t size
    if not isinstance(W, np.ndarray) or W.dtype != np.float32 or W.ndim != 2 or any([s % 4 for s in W.strides]):
        raise ShapeError("W: expected a float32 array [K, N]")
    for name, array in (("bias", bias), ("scale", scale)):
        if array is not None:
            _check(name, array, (W.shape[1],))
    packed.table = kernels_named(isa)
    packed.product = _product(packed.table, weights)
    packed.K, packed.N = W.shape
    size = packed.table.linear_pack_size(packed.product, packed.K, packed.N)
    packed.data = packed.take(store, ("linear", weights, packed.K, packed.N), (W, bias, scale), size)
    return packed
