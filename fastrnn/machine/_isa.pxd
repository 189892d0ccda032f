"""The C kernels for other Cython modules: their structs, the active table, packed weights."""

# First, because NumPy includes complex.h, whose macro I frnn.h takes away again.
cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t, uint64_t


cdef extern from "frnn.h" nogil:
    enum: FRNN_FN_COUNT, FRNN_MAX_RANK, FRNN_MAX_INPUTS, FRNN_MAX_INSTRUCTIONS, FRNN_TILE_ROWS
    enum: FRNN_PACK_STEP, FRNN_LAYOUT
    enum: FRNN_IDENTITY, FRNN_ADD, FRNN_MIN, FRNN_MAX
    enum: FRNN_NEG, FRNN_ABS, FRNN_SIGN, FRNN_SUB, FRNN_MUL, FRNN_DIV, FRNN_POW, FRNN_MOD, FRNN_EQUAL
    enum: FRNN_GREATER, FRNN_GREATER_EQUAL, FRNN_LESS, FRNN_LESS_EQUAL, FRNN_WHERE

    ctypedef struct frnn_act:
        int32_t fn
        float alpha, beta

    enum: FRNN_IN_L2, FRNN_IN_L3, FRNN_IN_MEMORY, FRNN_LEVELS, FRNN_KINDS, FRNN_SPREAD

    ctypedef struct frnn_tuning:
        int64_t most[2]
        int64_t ahead[3][3]
    void frnn_tune(frnn_tuning *now, const frnn_tuning *chosen) noexcept

    ctypedef struct frnn_product:
        const char *weights
        const char *bits
        int32_t rows[2][5]
        int64_t (*rounded)(int64_t K) noexcept nogil
        void (*round)(int64_t K, const float *x, float *rounded) noexcept nogil
        frnn_tuning *tuning

    ctypedef struct frnn_form:
        int32_t gates, states, phases

    ctypedef struct frnn_cell:
        const frnn_form *form
        const frnn_product *product
        int32_t input_forget, peephole
        int64_t I, H
        float clip
        frnn_act act[3]
        const float *packed
        int32_t phases, rounded

    ctypedef struct frnn_weights:
        const float *W
        const float *R
        const float *Wb
        const float *Rb
        const float *P
        const float *W_scale
        const float *R_scale

    ctypedef struct frnn_cell_io:
        const float *const *x
        Py_ssize_t x_off
        const float *pre
        int64_t pre_rows
        const float *const *h
        Py_ssize_t h_off
        float *const *c
        Py_ssize_t c_off
        float *const *y
        Py_ssize_t y_off
        float *scratch
        int32_t backwards

    ctypedef struct frnn_instruction:
        int32_t fn, a, b, c
        float alpha, beta

    ctypedef struct frnn_program:
        int32_t n_in, n_instructions
        frnn_instruction instructions[FRNN_MAX_INSTRUCTIONS]

    ctypedef struct frnn_space:
        int64_t rank
        int64_t size[FRNN_MAX_RANK]
        int64_t in_stride[FRNN_MAX_INPUTS][FRNN_MAX_RANK]
        int64_t out_stride[FRNN_MAX_RANK]

    ctypedef struct frnn_attention:
        float scale, softcap
        int32_t safe

    ctypedef struct frnn_keys:
        const float *k[2]
        const float *v[2]
        int64_t n[2]
        int64_t k_step, v_step

    ctypedef struct frnn_scan_term:
        const float *u[2]
        int64_t u_row[2]
        const float *w
        int64_t w_row
        float sign

    ctypedef struct frnn_scan:
        int64_t K, V
        const float *from_ "from"
        int64_t from_row
        float *to
        int64_t to_row
        const float *decay
        int64_t decay_row, decay_column
        const float *rate
        int64_t rate_row
        frnn_scan_term term[2]
        const float *q
        int64_t q_step
        float *y
        int64_t y_step
        int32_t across

    ctypedef struct frnn_kernels:
        const char *isa
        int64_t lanes
        const frnn_product *const *products
        int64_t (*cell_layout)(frnn_cell *cell) noexcept nogil
        void (*cell_pack)(const frnn_cell *cell, const frnn_weights *weights, int64_t block0, int64_t block1,
                          float *packed) noexcept nogil
        int64_t (*cell_blocks)(const frnn_cell *cell) noexcept nogil
        int64_t (*cell_scratch)(const frnn_cell *cell, int64_t rows) noexcept nogil
        void (*cell_step)(const frnn_cell *cell, const frnn_cell_io *io, int64_t phase, int64_t row0, int64_t row1,
                          int64_t block0, int64_t block1) noexcept nogil
        int64_t (*cell_pre_size)(const frnn_cell *cell) noexcept nogil
        void (*cell_input)(const frnn_cell *cell, const float *const *x, Py_ssize_t x_off, float *pre,
                           int64_t pre_rows, int64_t row0, int64_t row1, int64_t block0,
                           int64_t block1) noexcept nogil
        int64_t (*linear_pack_size)(const frnn_product *product, int64_t K, int64_t N) noexcept nogil
        void (*linear_pack)(const frnn_product *product, int64_t K, int64_t N, const float *W, int64_t k_stride,
                            int64_t n_stride, const float *bias, const float *scale, int64_t k0, int64_t k1,
                            float *packed) noexcept nogil
        int64_t (*linear_blocks)(int64_t K, int64_t N) noexcept nogil
        void (*linear)(const frnn_product *product, int64_t K, int64_t N, const float *packed, frnn_act act,
                       const float *x, int64_t x_stride, float *y, int64_t y_stride, int64_t row0, int64_t row1,
                       int64_t block0, int64_t block1) noexcept nogil
        void (*elementwise)(const frnn_program *program, const frnn_space *space, const float *const *inputs,
                            float *out) noexcept nogil
        void (*reduce)(int32_t fn, int64_t rows, int64_t n, float scale, const float *x, int64_t x_row,
                       int64_t x_stride, float *y, int64_t y_row) noexcept nogil
        void (*softmax)(int64_t rows, int64_t n, int32_t log, const float *x, int64_t x_row, float *y,
                        int64_t y_row) noexcept nogil
        void (*layer_norm)(int64_t rows, int64_t n, float epsilon, const float *scale, const float *bias,
                           const float *x, int64_t x_row, float *y, int64_t y_row) noexcept nogil
        void (*map)(frnn_act act, int64_t n, const float *x, float *y) noexcept nogil
        void (*depthwise)(int64_t C, int64_t K, const float *W, const float *bias, frnn_act act, int64_t windows,
                          const float *const *taps, float *y, int64_t y_stride) noexcept nogil
        void (*depthwise_row)(int64_t n, int64_t period, int64_t K, const float *W, const float *bias, frnn_act act,
                              const float *const *source, float *y) noexcept nogil
        void (*slide)(int64_t pieces, int64_t length, int64_t N, const float *packed, frnn_act act,
                      const float *const *source, int64_t x_step, float *y, int64_t y_step,
                      int64_t rows) noexcept nogil
        void (*pool)(int32_t fn, int64_t C, int64_t K, float divisor, const float *const *taps,
                     float *y) noexcept nogil
        void (*pool_row)(int32_t fn, int64_t C, int64_t K, float divisor, const float *const *taps, int64_t x_step,
                         int64_t windows, float *y, int64_t y_step) noexcept nogil
        void (*attend)(int64_t d, int64_t dv, const frnn_attention *how, const float *q, const frnn_keys *keys,
                       const float *bias, int64_t bias_step, const float *mask, int64_t mask_step, float *scores,
                       float *y) noexcept nogil
        void (*winograd_in)(int64_t C, const float *const *taps, float *y, int64_t y_step) noexcept nogil
        void (*winograd_out)(int64_t N, const float *x, int64_t x_step, const float *bias, frnn_act act,
                             float *const *y) noexcept nogil
        void (*scan)(const frnn_scan *scan) noexcept nogil
        void (*turn)(int64_t rows, int64_t columns, const float *x, int64_t x_row, float *y,
                     int64_t y_row) noexcept nogil
        int64_t probe_flops
        float (*probe_fma)(int64_t repeats) noexcept nogil
        int32_t (*probe_read)(const void *data, size_t size, int64_t repeats, size_t ahead) noexcept nogil


cdef extern from "threads.h" nogil:
    enum: FRNN_FLOPS_A_THREAD
    ctypedef struct frnn_team:
        pass
    ctypedef void (*frnn_chunk_fn)(void *context, int64_t chunk, int64_t chunks) noexcept nogil
    ctypedef void (*frnn_call_fn)(frnn_team *team, void *context) noexcept nogil
    void frnn_team_call(int threads, frnn_call_fn fn, void *context) noexcept
    void frnn_team_for(frnn_team *team, int64_t chunks, frnn_chunk_fn fn, void *context) noexcept
    int frnn_team_size(const frnn_team *team) noexcept
    enum: FRNN_THREADING_TEAM, FRNN_THREADING_OPENMP
    void frnn_set_threading(int how) noexcept
    ctypedef void (*frnn_region_fn)(int threads) noexcept nogil
    ctypedef void (*frnn_join_fn)(int first) noexcept nogil
    frnn_join_fn frnn_use_openmp(frnn_region_fn region) noexcept
    void frnn_shared_calls(int64_t *openmp, int64_t *own) noexcept
    int frnn_has_openmp() noexcept


# What threads.h and frnn.h declare. Wrapped, because the kernels are linked only into this extension, and one call at a
# time has workers.
cdef void team_call(int threads, frnn_call_fn fn, void *context) noexcept nogil
cdef void team_for(frnn_team *team, int64_t chunks, frnn_chunk_fn fn, void *context) noexcept nogil
cdef int team_size(const frnn_team *team) noexcept nogil
cdef frnn_join_fn use_openmp(frnn_region_fn region) noexcept nogil
cdef uint64_t fpu_enter() noexcept nogil
cdef void fpu_leave(uint64_t token) noexcept nogil
# The table of that name; None: the active one. Raises FastRNNError if it can't run here.
cdef const frnn_kernels *kernels_named(isa) except NULL


cdef class Packed:
    """Weights, packed for one instruction set, in private memory or mapped from a file. Immutable."""
    cdef const frnn_kernels *table
    cdef const frnn_product *product
    cdef readonly int64_t nbytes
    cdef float *memory  # NULL if mapped
    cdef object file  # None if private; the array in the mapped file

    cdef const float *take(self, store, tuple what, tuple arrays, int64_t size) except NULL
    cdef fill(self, tuple arrays, int64_t size)
    cdef pack(self, tuple arrays)


cdef class PackedCell(Packed):
    """One direction of one recurrent layer."""
    cdef frnn_cell cell
    cdef readonly object spec  # CellSpec


cdef class PackedLinear(Packed):
    """W [K, N] and bias [N]."""
    cdef readonly int64_t K, N
    cdef const float *data


# What calls kernels on arrays (_kernel_calls.pyx) shares with packing.
cdef float *_aligned(int64_t count) except NULL
cdef frnn_act _act(name, alpha, beta) except *
cdef inline float *_data(object array) noexcept:
    return NULL if array is None else <float *> cnp.PyArray_DATA(<cnp.ndarray> array)
