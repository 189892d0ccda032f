"""The data of one call of a program, shared by the modules that run ops. Declarations and inline code only."""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy

from fastrnn.machine._isa cimport frnn_act, frnn_cell, frnn_kernels, frnn_product, frnn_program, frnn_team


cdef struct Frame:
    const frnn_kernels *table
    const frnn_cell *const *cells
    const float **linears
    const int64_t *linear_sizes  # K, N of each
    const frnn_product *const *linear_products
    const frnn_act *linear_acts
    const frnn_program *programs
    void **base  # of every buffer: inputs, outputs, constants, arena slots
    float *slab  # state rows
    int64_t slab_row  # floats from one row to the next
    const int64_t *slots  # the slab row of each stream of the batch; NULL: the first ones
    int64_t turn  # odd after an odd number of steps: cells then walk their weights backwards
    frnn_team *team  # threads that share the heavy ops; NULL: only this one
    void (*watch)(void *frame) noexcept nogil  # looks for signals in a call that may take long; NULL: don't look
    int64_t work, looked  # operations since the last look, and when that was, in ns
    uint64_t fpu  # the caller's rounding and denormals, for handlers of signals
    bint halted  # a signal handler has raised: the call must end, even if it is incomplete
    int64_t bad  # of an op that failed: the offending integer
    # The current op, in the numbering of `walk`: its kind, where its integers begin, and the integers of all ops.
    const int32_t *kinds
    const int64_t *starts
    const int64_t *integers


cdef enum:
    ALIGN = 64  # bytes of a cache line, on which arenas and their parts begin
    WORK_A_LOOK = 50_000_000  # operations between two looks at the clock: 1 ms of a fast core, 20 of a slow one
    CHUNKS = 4  # chunks per thread in a loop, so that a worker that wakes late still finds some
    LEVELS = 3  # loops of rows that a row op walks: two outside and the kernel's own

ctypedef const float *const_row


cdef struct Rows:  # what a row op reads and writes: n0 x n1 x n2 rows
    int64_t x_buffer, x_offset, y_buffer, y_offset
    int64_t n[LEVELS]
    int64_t x_stride[LEVELS]
    int64_t y_stride[LEVELS]


cdef inline bint halt(Frame *f, int64_t flops) noexcept nogil:
    """Count operations that were done or are about to be done. Returns True if the call must end. Only for the thread
    that made the call, between shared loops."""
    if f.watch == NULL:
        return False
    f.work += flops
    if f.work >= WORK_A_LOOK:
        f.work = 0
        f.watch(f)
    return f.halted


cdef inline float *at(Frame *f, int64_t buffer, int64_t offset) noexcept nogil:
    return (<float *> f.base[buffer]) + offset


cdef inline const float *x_row(const Rows *r, Frame *f, int64_t i, int64_t j) noexcept nogil:
    """The first of the n2 rows of x at (i, j)."""
    return at(f, r.x_buffer, r.x_offset) + i * r.x_stride[0] + j * r.x_stride[1]


cdef inline float *y_row(const Rows *r, Frame *f, int64_t i, int64_t j) noexcept nogil:
    return at(f, r.y_buffer, r.y_offset) + i * r.y_stride[0] + j * r.y_stride[1]


cdef inline float *state_row(Frame *f, int64_t per_slot, int64_t state, int64_t size, int64_t row) noexcept nogil:
    """Row `row` of a state of `size` floats per row: in its stream's slab row, or in a buffer of this call."""
    cdef int64_t slot
    if per_slot == 1:  # the usual case, without a division
        return f.slab + (row if f.slots == NULL else f.slots[row]) * f.slab_row + state
    if per_slot == 0:
        return (<float *> f.base[state]) + row * size
    slot = row // per_slot
    if f.slots != NULL:
        return f.slab + f.slots[slot] * f.slab_row + state + (row % per_slot) * size
    return f.slab + slot * f.slab_row + state + (row % per_slot) * size


cdef inline int64_t steps_seen(Frame *f, int64_t position, int64_t row) noexcept nogil:
    """How many steps the stream of this row has seen before this call."""
    cdef int64_t seen
    memcpy(&seen, state_row(f, 1, position, 2, row), sizeof(int64_t))
    return seen
