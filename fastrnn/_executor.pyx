# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Walks a Plan without the GIL; the only Cython that runs models.

Program     a plan made executable: ops, packed weights, coefficients. Immutable; shared by threads.
Scratch     a program bound to sizes: evaluated integers, and the arena. Used by one call at a time.
StreamCore  the state of one stream (or of several in lock-step) and the calls that step it.

Each op's integers lie in one int64 array as its ``cdef struct`` below; `OP_FIELDS` names them in that order, and
`Program` checks at import that both have the same length.
"""

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

cimport numpy as cnp

from fastrnn._isa cimport (
    FRNN_ADD,
    FRNN_MAX,
    PackedCell,
    PackedLinear,
    fpu_enter,
    fpu_leave,
    frnn_act,
    frnn_cell,
    frnn_cell_io,
    frnn_kernels,
    frnn_program,
    frnn_space,
    kernels_named,
)

import numpy as np

from .errors import FastRNNError, ShapeError, StreamError
from .plan import LARGEST, Coefficients
from .tensors import Buffer

cnp.import_array()

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **out, size_t alignment, size_t size)

ctypedef const float *const_row

DEF LEVELS = 3
DEF RANK = 6
DEF MAX_INPUTS = 8
DEF ALIGN = 64

# ---- the integers of each op -------------------------------------------------------------------------------------

cdef struct Rows:  # nested loops over rows; the last level is the kernel's own
    int64_t n[3]

cdef struct CellArgs:
    int64_t cell, steps, rows, reverse
    int64_t x_buffer, x_offset, x_time, x_row
    int64_t y_buffer, y_offset, y_time, y_row  # y_buffer -1: y is not stored
    int64_t lengths_buffer, lengths_offset, lengths_stride  # lengths_buffer -1: all rows have `steps` steps
    int64_t per_slot, h_state, c_state  # per_slot rows share a slab row; 0: h_state, c_state are buffers of this call
    int64_t scratch, pre, pre_capacity  # pre: room for the input half of some rows and steps; capacity in floats

cdef struct LinearArgs:
    int64_t packed, x_buffer, x_offset, y_buffer, y_offset
    int64_t n0, n1, n2, x0, x1, x2, y0, y1, y2

cdef struct MatmulArgs:
    int64_t m, k, n, a_buffer, a_offset, b_buffer, b_offset, y_buffer, y_offset
    int64_t a_row, b_row, b_column, y_row, scratch
    int64_t n0, n1, a0, a1, b0, b1, y0, y1

cdef struct ElementwiseArgs:
    int64_t program, n_in
    int64_t in_buffer[8]
    int64_t in_offset[8]
    int64_t out_buffer, out_offset
    frnn_space space

cdef struct CopyArgs:
    int64_t source_type, target_type, source_buffer, source_offset, target_buffer, target_offset, rank
    int64_t size[6]
    int64_t source_stride[6]
    int64_t target_stride[6]

cdef struct GatherArgs:
    int64_t table_buffer, table_offset, table_row, count, inner, item
    int64_t index_buffer, index_offset, index_type, y_buffer, y_offset
    int64_t n0, n1, n2, i0, i1, i2, y0, y1, y2

cdef struct ReduceArgs:
    int64_t fn, mean, count, step, x_buffer, x_offset, y_buffer, y_offset
    int64_t n0, n1, n2, x0, x1, x2, y0, y1, y2

cdef struct SoftmaxArgs:
    int64_t n, log, x_buffer, x_offset, y_buffer, y_offset
    int64_t n0, n1, n2, x0, x1, x2, y0, y1, y2

cdef struct NormArgs:
    int64_t n, epsilon, scale_buffer, scale_offset, bias_buffer, bias_offset, x_buffer, x_offset, y_buffer, y_offset
    int64_t n0, n1, n2, x0, x1, x2, y0, y1, y2

cdef struct StateArgs:
    int64_t tensor_buffer, tensor_offset, rows, size, row, per_slot, state

cdef struct RunningArgs:
    int64_t fn, mean, steps, rows, size, x_buffer, x_offset, x_time, x_row, y_buffer, y_offset, y_row, per_slot, state

cdef struct ZeroArgs:
    int64_t buffer, count


def _levels(*operands, int levels=LEVELS):
    names = [f"n{i}" for i in range(levels)]
    return (*names, *(f"{o}_stride{i}" for o in operands for i in range(levels)))


_ends = ("x_buffer", "x_offset", "y_buffer", "y_offset")

OP_FIELDS = {
    "cell": ("cell", "steps", "rows", "reverse", "x_buffer", "x_offset", "x_time", "x_row", "y_buffer", "y_offset",
             "y_time", "y_row", "lengths_buffer", "lengths_offset", "lengths_stride", "per_slot", "h_state", "c_state",
             "scratch", "pre", "pre_capacity"),
    "linear": ("packed", *_ends, *_levels("x", "y")),
    "matmul": ("m", "k", "n", "a_buffer", "a_offset", "b_buffer", "b_offset", "y_buffer", "y_offset", "a_row", "b_row",
               "b_column", "y_row", "scratch", *_levels("a", "b", "y", levels=2)),
    "elementwise": ("program", "n_in", *(f"in{i}_buffer" for i in range(MAX_INPUTS)),
                    *(f"in{i}_offset" for i in range(MAX_INPUTS)), "out_buffer", "out_offset", "rank",
                    *(f"size{i}" for i in range(RANK)),
                    *(f"in{j}_stride{i}" for j in range(MAX_INPUTS) for i in range(RANK)),
                    *(f"out_stride{i}" for i in range(RANK))),
    "copy": ("source_type", "target_type", "source_buffer", "source_offset", "target_buffer", "target_offset", "rank",
             *(f"size{i}" for i in range(RANK)), *(f"source_stride{i}" for i in range(RANK)),
             *(f"target_stride{i}" for i in range(RANK))),
    "gather": ("table_buffer", "table_offset", "table_row", "count", "inner", "item", "index_buffer", "index_offset",
               "index_type", "y_buffer", "y_offset", *_levels("index", "y")),
    "reduce": ("fn", "mean", "count", "step", *_ends, *_levels("x", "y")),
    "softmax": ("n", "log", *_ends, *_levels("x", "y")),
    "layer_norm": ("n", "epsilon", "scale_buffer", "scale_offset", "bias_buffer", "bias_offset", *_ends,
                   *_levels("x", "y")),
    "state_load": ("tensor_buffer", "tensor_offset", "rows", "size", "row", "per_slot", "state"),
    "state_store": ("tensor_buffer", "tensor_offset", "rows", "size", "row", "per_slot", "state"),
    "zero": ("buffer", "count"),
    "running": ("fn", "mean", "steps", "rows", "size", "x_buffer", "x_offset", "x_time", "x_row", "y_buffer",
                "y_offset", "y_row", "per_slot", "state"),
}

cdef enum OpKind:
    OP_CELL, OP_LINEAR, OP_MATMUL, OP_ELEMENTWISE, OP_COPY, OP_GATHER, OP_REDUCE, OP_SOFTMAX, OP_LAYER_NORM
    OP_STATE_LOAD, OP_STATE_STORE, OP_ZERO, OP_RUNNING

_KINDS = {kind: i for i, kind in enumerate(OP_FIELDS)}
_SIZES = (sizeof(CellArgs), sizeof(LinearArgs), sizeof(MatmulArgs), sizeof(ElementwiseArgs), sizeof(CopyArgs),
          sizeof(GatherArgs), sizeof(ReduceArgs), sizeof(SoftmaxArgs), sizeof(NormArgs), sizeof(StateArgs),
          sizeof(StateArgs), sizeof(ZeroArgs), sizeof(RunningArgs))
for _kind, _size in zip(OP_FIELDS, _SIZES, strict=True):
    if 8 * len(OP_FIELDS[_kind]) != _size:
        raise ImportError(f"op {_kind}: {len(OP_FIELDS[_kind])} fields named, the struct has {_size // 8}")

FLOPS_HOLDING_GIL = 40_000  # about 1 us of work: below it, handing the GIL over costs more than it gives (0.1-0.3 us)


# ---- one call of a program ---------------------------------------------------------------------------------------

cdef struct Frame:
    const frnn_kernels *table
    const frnn_cell *const *cells
    const float **linears
    const int64_t *linear_sizes  # K, N of each
    const frnn_act *linear_acts
    const frnn_program *programs
    void **base  # of every buffer: inputs, outputs, constants, arena slots
    float *slab  # state rows
    int64_t slab_row  # floats from one row to the next
    const int64_t *slots  # the slab row of each stream of the batch; NULL: the first ones


cdef inline float *at(Frame *f, int64_t buffer, int64_t offset) noexcept nogil:
    return (<float *> f.base[buffer]) + offset


cdef inline float *state_row(Frame *f, int64_t per_slot, int64_t state, int64_t size, int64_t row) noexcept nogil:
    """Where row `row` of a state of `size` floats a row lies: in its stream's slab row, or in a buffer of this call."""
    cdef int64_t slot
    if per_slot == 0:
        return (<float *> f.base[state]) + row * size
    slot = row // per_slot
    if f.slots != NULL:
        return f.slab + f.slots[slot] * f.slab_row + state + (row % per_slot) * size
    return f.slab + slot * f.slab_row + state + (row % per_slot) * size


cdef struct CellRows:  # one entry a row, longest first
    const float **x
    float **h
    float **c
    float **y
    float **state
    int64_t *length


cdef int check_lengths(const CellArgs *a, Frame *f, int64_t *bad) noexcept nogil:
    """Returns -1, with the length in `bad`, where one lies outside the steps: no kernel may see it."""
    cdef const int64_t *lengths
    cdef int64_t r
    if a.lengths_buffer < 0:
        return 0
    lengths = (<const int64_t *> f.base[a.lengths_buffer]) + a.lengths_offset
    for r in range(a.rows):
        if lengths[r * a.lengths_stride] < 0 or lengths[r * a.lengths_stride] > a.steps:
            bad[0] = lengths[r * a.lengths_stride]
            return -1
    return 0


cdef void cell_rows(const CellArgs *a, const frnn_cell *cell, Frame *f, CellRows *rows) noexcept nogil:
    """Point `rows` into the scratch and fill it: each row's first x and y, its states and its length; longest first."""
    cdef char *memory = <char *> f.base[a.scratch]
    cdef int64_t n = a.rows, r, i, length, first
    cdef const float *x = at(f, a.x_buffer, a.x_offset)
    cdef const int64_t *lengths = NULL
    rows.x = <const float **> memory
    rows.h = <float **> (rows.x + n)
    rows.c = rows.h + n
    rows.y = rows.c + n
    rows.state = rows.y + n
    rows.length = <int64_t *> (rows.state + n)
    if a.lengths_buffer >= 0:
        lengths = (<const int64_t *> f.base[a.lengths_buffer]) + a.lengths_offset
    for r in range(n):
        length = a.steps
        if lengths != NULL:
            length = lengths[r * a.lengths_stride]
        i = r  # insertion sort: rows come in any order, and a step works on the first ones that are still alive
        while i > 0 and rows.length[i - 1] < length:
            rows.x[i], rows.c[i], rows.y[i] = rows.x[i - 1], rows.c[i - 1], rows.y[i - 1]
            rows.state[i], rows.length[i] = rows.state[i - 1], rows.length[i - 1]
            i -= 1
        first = (length - 1) if a.reverse and length > 0 else 0
        rows.length[i] = length
        rows.x[i] = x + r * a.x_row + first * a.x_time
        rows.state[i] = state_row(f, a.per_slot, a.h_state, cell.H, r)
        rows.c[i] = state_row(f, a.per_slot, a.c_state, cell.H, r) if cell.kind == 1 else NULL
        if a.y_buffer >= 0:
            rows.y[i] = at(f, a.y_buffer, a.y_offset) + r * a.y_row + first * a.y_time
            if length < a.steps:
                clear_steps(a, cell.H, at(f, a.y_buffer, a.y_offset) + r * a.y_row, length)


cdef void clear_steps(const CellArgs *a, int64_t H, float *y, int64_t length) noexcept nogil:
    """y is zero at the steps that a row does not have."""
    cdef int64_t t
    for t in range(length, a.steps):
        memset(y + t * a.y_time, 0, H * sizeof(float))


cdef struct Hoisted:  # the input half, summed ahead for the steps before `end`
    int64_t end, size  # size: floats of one row of pre
    const float **x
    float **pre
    const float **now  # the rows of the current step


cdef void hoist(const CellArgs *a, const frnn_cell *cell, Frame *f, const CellRows *rows, int64_t t, int64_t alive,
                Hoisted *h) noexcept nogil:
    """Sum bias + x W for as many steps from t as there is room for: one product of many rows, at the speed of a matrix
    product instead of a vector's. Loading an accumulator back is exact, so the bits are those of the direct step."""
    cdef int64_t capacity = min(a.pre_capacity // (h.size + 4), a.steps * a.rows)
    cdef int64_t n = 0, r, step = -a.x_time if a.reverse else a.x_time
    cdef float *memory = <float *> f.base[a.pre]
    h.x = <const float **> memory
    h.pre = <float **> (h.x + capacity)
    memory = <float *> (h.pre + capacity)
    h.now = <const float **> h.pre
    h.end = t
    while h.end < a.steps:
        while alive > 0 and rows.length[alive - 1] <= h.end:
            alive -= 1
        if alive == 0 or n + alive > capacity:
            break
        for r in range(alive):
            h.x[n] = rows.x[r] + h.end * step
            h.pre[n] = memory + n * h.size
            n += 1
        h.end += 1
    f.table.cell_input(cell, h.x, 0, h.pre, 0, 0, n, 0, f.table.cell_blocks(cell))


cdef void run_cell(const CellArgs *a, Frame *f) noexcept nogil:
    """All steps of one direction of one layer. h of step t - 1 is read where step t - 1 wrote it, in y."""
    cdef Hoisted ahead
    cdef const frnn_cell *cell = f.cells[a.cell]
    cdef CellRows rows
    cdef frnn_cell_io io
    cdef int64_t n = a.rows, alive, t, r, phase, sign = -1 if a.reverse else 1
    cdef int64_t blocks = f.table.cell_blocks(cell), phases = f.table.cell_phases(cell)
    cdef int64_t y_time = sign * a.y_time
    cdef float *spare
    cdef bint hoisting
    if n == 0 or a.steps == 0:
        return
    cell_rows(a, cell, f, &rows)
    spare = <float *> ((<uintptr_t> (rows.length + n) + ALIGN - 1) & ~(<uintptr_t> (ALIGN - 1)))
    if a.y_buffer < 0:  # nobody reads y: two rows of h take turns
        y_time = cell.H
        for r in range(n):
            rows.y[r] = spare + 2 * r * cell.H
        spare += 2 * n * cell.H
    io.scratch = <float *> ((<uintptr_t> spare + ALIGN - 1) & ~(<uintptr_t> (ALIGN - 1)))
    io.pre, io.pre_off = NULL, 0
    io.x, io.c, io.y = rows.x, rows.c if cell.kind == 1 else NULL, rows.y
    io.c_off = 0
    alive = n
    ahead.now = NULL
    ahead.end, ahead.size = 0, f.table.cell_pre_size(cell)
    hoisting = a.pre_capacity // (ahead.size + 4) >= 2 * n and a.steps > 1
    for t in range(a.steps):
        while alive > 0 and rows.length[alive - 1] <= t:
            alive -= 1
        if alive == 0:
            break
        if hoisting:
            if t == ahead.end:
                hoist(a, cell, f, &rows, t, alive, &ahead)
            io.pre = ahead.now
            ahead.now += alive
        io.x_off = t * sign * a.x_time
        io.y_off = (t & 1) * y_time if a.y_buffer < 0 else t * y_time
        if t == 0:
            io.h, io.h_off = <const float *const *> rows.state, 0
        else:
            io.h = <const float *const *> rows.y
            io.h_off = ((t - 1) & 1) * y_time if a.y_buffer < 0 else (t - 1) * y_time
        for phase in range(phases):
            f.table.cell_step(cell, &io, phase, 0, alive, 0, blocks)
    for r in range(n):
        t = rows.length[r] - 1
        if t >= 0:
            memcpy(rows.state[r], rows.y[r] + ((t & 1) * y_time if a.y_buffer < 0 else t * y_time),
                   cell.H * sizeof(float))


cdef void run_linear(const LinearArgs *a, Frame *f) noexcept nogil:
    cdef int64_t i, j, K = f.linear_sizes[2 * a.packed], N = f.linear_sizes[2 * a.packed + 1]
    cdef int64_t blocks = f.table.linear_blocks(K, N)
    cdef const float *x = at(f, a.x_buffer, a.x_offset)
    cdef float *y = at(f, a.y_buffer, a.y_offset)
    for i in range(a.n0):
        for j in range(a.n1):
            f.table.linear(K, N, f.linears[a.packed], f.linear_acts[a.packed], x + i * a.x0 + j * a.x1, a.x2,
                           y + i * a.y0 + j * a.y1, a.y2, 0, a.n2, 0, blocks)


cdef void run_matmul(const MatmulArgs *a, Frame *f) noexcept nogil:
    cdef int64_t i, j, blocks = f.table.linear_blocks(a.k, a.n)
    cdef const float *x = at(f, a.a_buffer, a.a_offset)
    cdef const float *w = at(f, a.b_buffer, a.b_offset)
    cdef float *y = at(f, a.y_buffer, a.y_offset)
    cdef float *packed = <float *> f.base[a.scratch]
    cdef frnn_act identity
    identity.fn, identity.alpha, identity.beta = 0, 0, 0
    for i in range(a.n0):
        for j in range(a.n1):
            f.table.linear_pack(a.k, a.n, w + i * a.b0 + j * a.b1, a.b_row, a.b_column, NULL, packed)
            f.table.linear(a.k, a.n, packed, identity, x + i * a.a0 + j * a.a1, a.a_row, y + i * a.y0 + j * a.y1,
                           a.y_row, 0, a.m, 0, blocks)


cdef void run_elementwise(const ElementwiseArgs *a, Frame *f) noexcept nogil:
    cdef const_row inputs[8]
    cdef int64_t i
    for i in range(a.n_in):
        inputs[i] = at(f, a.in_buffer[i], a.in_offset[i])
    f.table.elementwise(&f.programs[a.program], &a.space, inputs, at(f, a.out_buffer, a.out_offset))


cdef inline double load_as_double(const void *p, int64_t type, int64_t i) noexcept nogil:
    if type == 0:
        return (<const float *> p)[i]
    if type == 1:
        return <double> (<const int64_t *> p)[i]
    if type == 2:
        return (<const int32_t *> p)[i]
    if type == 3:
        return (<const uint8_t *> p)[i] != 0
    return (<const double *> p)[i]


cdef inline void store_double(void *p, int64_t type, int64_t i, double value) noexcept nogil:
    if type == 0:
        (<float *> p)[i] = <float> value
    elif type == 1:
        (<int64_t *> p)[i] = <int64_t> value
    elif type == 2:
        (<int32_t *> p)[i] = <int32_t> value
    elif type == 3:
        (<uint8_t *> p)[i] = value != 0 and value != -INFINITY  # -inf: the largest of no bools
    else:
        (<double *> p)[i] = value


cdef void copy_run(const void *source, int64_t source_type, int64_t i, int64_t source_stride, void *target,
                   int64_t target_type, int64_t o, int64_t target_stride, int64_t n) noexcept nogil:
    """n elements of one axis. int64 to int64 keeps all bits; every other pair goes through double, which holds them."""
    cdef int64_t k
    if source_type == target_type == 0 and source_stride == target_stride == 1:
        memcpy((<float *> target) + o, (<const float *> source) + i, n * sizeof(float))
    elif source_type == target_type == 0:
        for k in range(n):
            (<float *> target)[o + k * target_stride] = (<const float *> source)[i + k * source_stride]
    elif source_type == target_type == 1:
        for k in range(n):
            (<int64_t *> target)[o + k * target_stride] = (<const int64_t *> source)[i + k * source_stride]
    else:
        for k in range(n):
            store_double(target, target_type, o + k * target_stride,
                         load_as_double(source, source_type, i + k * source_stride))


cdef inline int64_t item_size(int64_t type) noexcept nogil:
    return 4 if type == 0 or type == 2 else 1 if type == 3 else 8


cdef void run_copy(const CopyArgs *a, Frame *f) noexcept nogil:
    cdef int64_t index[6]
    cdef int64_t axis, last = a.rank - 1, i = a.source_offset, o = a.target_offset
    cdef const void *source = f.base[a.source_buffer]
    cdef void *target = f.base[a.target_buffer]
    if a.rank == 0:
        copy_run(source, a.source_type, i, 1, target, a.target_type, o, 1, 1)
        return
    for axis in range(a.rank):
        index[axis] = 0
        if a.size[axis] == 0:
            return
    while True:
        copy_run(source, a.source_type, i, a.source_stride[last], target, a.target_type, o, a.target_stride[last],
                 a.size[last])
        axis = last - 1
        while axis >= 0:
            index[axis] += 1
            i += a.source_stride[axis]
            o += a.target_stride[axis]
            if index[axis] < a.size[axis]:
                break
            i -= a.size[axis] * a.source_stride[axis]
            o -= a.size[axis] * a.target_stride[axis]
            index[axis] = 0
            axis -= 1
        if axis < 0:
            return


cdef int run_gather(const GatherArgs *a, Frame *f, int64_t *bad) noexcept nogil:
    """Rows of a table. Returns -1, with the index in `bad`, where one lies outside."""
    cdef int64_t i, j, k, index, size = a.inner * a.item
    cdef const char *table = <const char *> f.base[a.table_buffer] + a.table_offset * a.item
    cdef char *y = <char *> f.base[a.y_buffer] + a.y_offset * a.item
    for i in range(a.n0):
        for j in range(a.n1):
            for k in range(a.n2):
                index = a.index_offset + i * a.i0 + j * a.i1 + k * a.i2
                if a.index_type == 1:
                    index = (<const int64_t *> f.base[a.index_buffer])[index]
                else:
                    index = (<const int32_t *> f.base[a.index_buffer])[index]
                if index < -a.count or index >= a.count:
                    bad[0] = index
                    return -1
                if index < 0:
                    index += a.count
                memcpy(y + (i * a.y0 + j * a.y1 + k * a.y2) * a.item, table + index * a.table_row * a.item, size)
    return 0


cdef void run_reduce(const ReduceArgs *a, Frame *f) noexcept nogil:
    cdef int64_t i, j
    cdef float scale = <float> (1.0 / a.count) if a.mean else 1.0
    cdef const float *x = at(f, a.x_buffer, a.x_offset)
    cdef float *y = at(f, a.y_buffer, a.y_offset)
    for i in range(a.n0):
        for j in range(a.n1):
            f.table.reduce(<int32_t> a.fn, a.n2, a.count, scale, x + i * a.x0 + j * a.x1, a.x2, a.step,
                           y + i * a.y0 + j * a.y1, a.y2)


cdef void run_softmax(const SoftmaxArgs *a, Frame *f) noexcept nogil:
    cdef int64_t i, j
    cdef const float *x = at(f, a.x_buffer, a.x_offset)
    cdef float *y = at(f, a.y_buffer, a.y_offset)
    for i in range(a.n0):
        for j in range(a.n1):
            f.table.softmax(a.n2, a.n, <int32_t> a.log, x + i * a.x0 + j * a.x1, a.x2, y + i * a.y0 + j * a.y1, a.y2)


cdef void run_layer_norm(const NormArgs *a, Frame *f, float epsilon) noexcept nogil:
    cdef int64_t i, j
    cdef const float *scale = at(f, a.scale_buffer, a.scale_offset) if a.scale_buffer >= 0 else NULL
    cdef const float *bias = at(f, a.bias_buffer, a.bias_offset) if a.bias_buffer >= 0 else NULL
    cdef const float *x = at(f, a.x_buffer, a.x_offset)
    cdef float *y = at(f, a.y_buffer, a.y_offset)
    for i in range(a.n0):
        for j in range(a.n1):
            f.table.layer_norm(a.n2, a.n, epsilon, scale, bias, x + i * a.x0 + j * a.x1, a.x2,
                               y + i * a.y0 + j * a.y1, a.y2)


cdef void run_state(const StateArgs *a, Frame *f, bint load) noexcept nogil:
    """Rows of a tensor into states, or back."""
    cdef int64_t r
    cdef float *tensor = at(f, a.tensor_buffer, a.tensor_offset)
    cdef float *state
    for r in range(a.rows):
        state = state_row(f, a.per_slot, a.state, a.size, r)
        if load:
            memcpy(state, tensor + r * a.row, a.size * sizeof(float))
        else:
            memcpy(tensor + r * a.row, state, a.size * sizeof(float))


cdef void run_running(const RunningArgs *a, Frame *f) noexcept nogil:
    """Sum, mean, largest or smallest over all steps so far. The state of a row is `size` float64 and a count: float64
    because a stream has no end, and a float32 sum stops growing after 2^24 ones."""
    cdef int64_t r, t, i
    cdef const float *x
    cdef float *y
    cdef float *state
    cdef double value, count
    for r in range(a.rows):
        state = state_row(f, a.per_slot, a.state, 2 * a.size + 2, r)
        memcpy(&count, state + 2 * a.size, sizeof(double))
        x = at(f, a.x_buffer, a.x_offset) + r * a.x_row
        y = at(f, a.y_buffer, a.y_offset) + r * a.y_row
        for i in range(a.size):
            memcpy(&value, state + 2 * i, sizeof(double))
            if count == 0 and a.steps == 0 and a.fn != FRNN_ADD:  # of nothing, as ONNX has it
                value = -INFINITY if a.fn == FRNN_MAX else INFINITY
            for t in range(a.steps):
                value = combine(a.fn, value, x[t * a.x_time + i], count + t == 0)
            memcpy(state + 2 * i, &value, sizeof(double))
            y[i] = <float> (value / (count + a.steps) if a.mean else value)
        count += a.steps
        memcpy(state + 2 * a.size, &count, sizeof(double))


cdef inline double combine(int64_t fn, double so_far, double x, bint first) noexcept nogil:
    """One more value of a sum, largest or smallest; a NaN stays."""
    if first:
        return x
    if fn == FRNN_ADD:
        return so_far + x
    if so_far != so_far or x != x:
        return so_far + x
    if fn == FRNN_MAX:
        return x if x > so_far else so_far
    return x if x < so_far else so_far


include "_executor_windows.pxi"


cdef class Scratch:
    """A program bound to sizes, and the arena it works in. One call at a time uses it."""

    cdef int64_t batch, time, span
    cdef int64_t *integers
    cdef void **base
    cdef char *arena
    cdef int64_t arena_bytes

    def __dealloc__(self):
        PyMem_Free(self.integers)
        PyMem_Free(self.base)
        free(self.arena)


cdef class Program:
    """An executable plan.

    Parameters
    ----------
    plan : fastrnn.plan.Plan

    Threads may share a program: all that changes lies in `Scratch` objects, which it keeps for reuse.
    """

    cdef Frame frame
    cdef readonly object plan
    cdef int64_t n_ops
    cdef int32_t *kinds
    cdef int64_t *starts  # of each op's integers; n_ops + 1 entries
    cdef int64_t n_integers, n_monomials
    cdef object matrix, magnitude, coefficients, slot_rows, keep
    cdef int64_t n_inputs, n_outputs, n_constants, n_slots
    cdef readonly int64_t state_size
    cdef bint may_fail
    cdef Scratch idle
    cdef dict spare

    def __cinit__(self, plan):
        self.plan = plan
        self.n_ops = len(plan.ops)
        self.n_inputs, self.n_outputs = len(plan.inputs), len(plan.outputs)
        self.n_constants, self.n_slots = len(plan.constants), len(plan.slot_sizes)
        self.state_size = plan.state_size
        self.spare = {}
        self.frame.table = kernels_named(plan.isa)
        self.frame.slab_row = self.state_size
        self._take_weights(plan)
        self._take_ops(plan)

    def __dealloc__(self):
        PyMem_Free(self.kinds)
        PyMem_Free(self.starts)
        PyMem_Free(<void *> self.frame.cells)
        PyMem_Free(<void *> self.frame.linears)
        PyMem_Free(<void *> self.frame.linear_sizes)
        PyMem_Free(<void *> self.frame.linear_acts)
        PyMem_Free(<void *> self.frame.programs)

    cdef _take_weights(self, plan):
        cdef const frnn_cell **cells = <const frnn_cell **> allocate(len(plan.cells), sizeof(void *))
        cdef const float **linears = <const float **> allocate(len(plan.linears), sizeof(void *))
        cdef int64_t *sizes = <int64_t *> allocate(len(plan.linears), 2 * sizeof(int64_t))
        cdef frnn_act *acts = <frnn_act *> allocate(len(plan.linears), sizeof(frnn_act))
        cdef frnn_program *programs = <frnn_program *> allocate(len(plan.programs), sizeof(frnn_program))
        self.frame.cells, self.frame.linears, self.frame.linear_sizes = cells, linears, sizes
        self.frame.linear_acts, self.frame.programs = acts, programs
        self.keep = (plan.cells, plan.linears, plan.constants)
        for i, cell in enumerate(plan.cells):
            cells[i] = &(<PackedCell?> cell).cell
        for i, (packed, act) in enumerate(plan.linears):
            linears[i] = (<PackedLinear?> packed).data
            sizes[2 * i], sizes[2 * i + 1] = (<PackedLinear> packed).K, (<PackedLinear> packed).N
            acts[i].fn, acts[i].alpha, acts[i].beta = act[0], act[4], act[5]
        for i, (n_in, instructions) in enumerate(plan.programs):
            programs[i].n_in, programs[i].n_instructions = n_in, len(instructions)
            for j, (fn, a, b, c, alpha, beta) in enumerate(instructions):
                programs[i].instructions[j].fn = fn
                programs[i].instructions[j].a = a
                programs[i].instructions[j].b = b
                programs[i].instructions[j].c = c
                programs[i].instructions[j].alpha = alpha
                programs[i].instructions[j].beta = beta

    cdef _take_ops(self, plan):
        """Every integer of every op, the work of the plan, the size of every slot, as rows of coefficients."""
        self.kinds = <int32_t *> allocate(self.n_ops, sizeof(int32_t))
        self.starts = <int64_t *> allocate(self.n_ops + 1, sizeof(int64_t))
        first = {"input": 0, "output": self.n_inputs, "const": self.n_inputs + self.n_outputs}
        first["arena"] = first["const"] + self.n_constants
        coefficients = Coefficients()
        for i, op in enumerate(plan.ops):
            self.kinds[i] = _KINDS[op.kind]
            self.starts[i] = len(coefficients.rows)
            self.may_fail |= op.kind == "gather"
            known = dict.fromkeys(OP_FIELDS[op.kind], 0)
            unknown = [k for k in op.fields if k not in known]
            if unknown:
                raise FastRNNError(f"op {op.kind} of node {op.node} has no field {unknown}")
            for value in (known | op.fields).values():
                coefficients.add(first[value.kind] + value.index if isinstance(value, Buffer) else value)
        self.starts[self.n_ops] = self.n_integers = len(coefficients.rows)
        coefficients.add(plan.flops)
        self.slot_rows = []
        for sizes in plan.slot_sizes:
            self.slot_rows.append(len(coefficients.rows))
            for size, _ in sizes:
                coefficients.add(size)
        self.coefficients = coefficients
        self.matrix = coefficients.matrix()
        self.magnitude = np.abs(self.matrix).astype(np.float64)

    # -- binding to sizes --
    cdef Scratch take(self, int64_t batch, int64_t time, int64_t span):
        """A scratch for these sizes that nobody else uses. Needs the GIL; give it back."""
        cdef Scratch s = self.idle
        if s is not None and s.batch == batch and s.time == time and s.span == span:
            self.idle = None
            return s
        waiting = self.spare.get((batch, time))
        s = waiting.pop() if waiting else self._new_scratch(batch, time)
        if s.span != span:
            self._evaluate(s, span)
        return s

    cdef void give(self, Scratch s) noexcept:
        """Keep a scratch for the next call of its sizes: one at hand, and a few of other sizes, newest kept."""
        cdef Scratch old = self.idle
        self.idle = s
        if old is not None:
            waiting = self.spare.pop((old.batch, old.time), [])
            waiting.append(old)
            if len(waiting) > 8:
                del waiting[0]
            self.spare[(old.batch, old.time)] = waiting
            if len(self.spare) > 16:
                del self.spare[next(iter(self.spare))]

    cdef Scratch _new_scratch(self, int64_t batch, int64_t time):
        cdef Scratch s = Scratch.__new__(Scratch)
        cdef int64_t i, place
        cdef int64_t n_base = self.n_inputs + self.n_outputs + self.n_constants
        self.plan.check_sizes(batch, time)
        s.batch, s.time, s.span = batch, time, -1
        s.integers = <int64_t *> allocate(self.n_integers + 1, sizeof(int64_t))
        s.base = <void **> allocate(n_base + self.n_slots, sizeof(void *))
        self._evaluate(s, time)
        values = self._values(batch, time, time)
        sizes = []
        for first, shared in zip(self.slot_rows, self.plan.slot_sizes, strict=True):
            need = [min(int(v), v if cap is None else cap) for v, (_, cap) in zip(values[first:], shared, strict=False)]
            sizes.append((int(max(need)) + ALIGN - 1) // ALIGN * ALIGN)
        total = max(sum(sizes), 1)
        if total > 1 << 40:
            raise ShapeError(f"batch {batch} and time {time} would take {total >> 30} GiB of scratch")
        if posix_memalign(<void **> &s.arena, ALIGN, total) != 0:
            raise MemoryError(f"no {total} bytes of scratch for batch {batch}, time {time}")
        s.arena_bytes = total
        place = 0
        for i in range(self.n_slots):
            s.base[n_base + i] = s.arena + place
            place += sizes[i]
        for i, array in enumerate(self.plan.constants):
            s.base[self.n_inputs + self.n_outputs + i] = cnp.PyArray_DATA(<cnp.ndarray> array)
        return s

    cdef _values(self, int64_t batch, int64_t time, int64_t span):
        monomials = self.coefficients.evaluate_monomials(batch, time, span)
        if (self.magnitude @ monomials).max(initial=0) > LARGEST:  # in float64, which does not wrap around
            raise ShapeError(f"batch {batch} and time {time} are too large for this model")
        return self.matrix @ monomials

    cdef _evaluate(self, Scratch s, int64_t span):
        """The integers of all ops at the sizes of s."""
        cdef int64_t[::1] values = self._values(s.batch, s.time, span)
        memcpy(s.integers, &values[0], (self.n_integers + 1) * sizeof(int64_t))
        s.span = span

    @property
    def scratch_bytes(self):
        """Bytes of the scratch that is kept for reuse now."""
        everything = [s for waiting in self.spare.values() for s in waiting]
        if self.idle is not None:
            everything.append(self.idle)
        return sum((<Scratch> s).arena_bytes + 8 * self.n_integers for s in everything)

    # -- running --
    cdef int execute(self, Scratch s, float *slab, const int64_t *slots, int64_t *bad) noexcept nogil:
        """Walk the ops once. Returns -1, or the number of the op that failed, with the offending integer in `bad`."""
        cdef Frame f = self.frame
        cdef int64_t i
        cdef const int64_t *a
        cdef uint64_t token = fpu_enter()
        cdef int failed = -1
        f.base, f.slab, f.slots = s.base, slab, slots
        for i in range(self.n_ops):
            a = s.integers + self.starts[i]
            if self.kinds[i] == OP_CELL:
                if check_lengths(<const CellArgs *> a, &f, bad) != 0:
                    failed = <int> i
                    break
                run_cell(<const CellArgs *> a, &f)
            elif self.kinds[i] == OP_LINEAR:
                run_linear(<const LinearArgs *> a, &f)
            elif self.kinds[i] == OP_ELEMENTWISE:
                run_elementwise(<const ElementwiseArgs *> a, &f)
            elif self.kinds[i] == OP_COPY:
                run_copy(<const CopyArgs *> a, &f)
            elif self.kinds[i] == OP_GATHER:
                if run_gather(<const GatherArgs *> a, &f, bad) != 0:
                    failed = <int> i
                    break
            elif self.kinds[i] == OP_REDUCE:
                run_reduce(<const ReduceArgs *> a, &f)
            elif self.kinds[i] == OP_SOFTMAX:
                run_softmax(<const SoftmaxArgs *> a, &f)
            elif self.kinds[i] == OP_LAYER_NORM:
                run_layer_norm(<const NormArgs *> a, &f, (<float *> f.base[(<const NormArgs *> a).epsilon])[0])
            elif self.kinds[i] == OP_STATE_LOAD:
                run_state(<const StateArgs *> a, &f, True)
            elif self.kinds[i] == OP_STATE_STORE:
                run_state(<const StateArgs *> a, &f, False)
            elif self.kinds[i] == OP_MATMUL:
                run_matmul(<const MatmulArgs *> a, &f)
            elif self.kinds[i] == OP_RUNNING:
                run_running(<const RunningArgs *> a, &f)
            elif self.kinds[i] >= OP_CONV:
                run_window_op(self.kinds[i], a, &f)
            else:  # OP_ZERO
                memset(f.base[(<const ZeroArgs *> a).buffer], 0, (<const ZeroArgs *> a).count * sizeof(float))
        fpu_leave(token)
        return failed

    cdef int call(self, Scratch s, float *slab, const int64_t *slots) except -1:
        """execute, without the GIL where the work is worth it; raise what failed."""
        cdef int64_t bad = 0
        cdef int failed
        if s.integers[self.n_integers] < FLOPS_HOLDING_GIL:
            failed = self.execute(s, slab, slots, &bad)
        else:
            with nogil:
                failed = self.execute(s, slab, slots, &bad)
        if failed >= 0:
            op = self.plan.ops[failed]
            if op.kind == "cell":
                steps = (<const CellArgs *> (s.integers + self.starts[failed])).steps
                raise ShapeError(f"node {op.node}: lengths must lie in 0..{steps} (the steps of x), got {bad}")
            rows = (<const GatherArgs *> (s.integers + self.starts[failed])).count
            raise ShapeError(f"node {op.node}: index {bad} is outside the table's [-{rows}, {rows})")
        return 0

    def run(self, inputs, outputs, int64_t batch, int64_t time):
        """Run the plan once on fresh states.

        Parameters
        ----------
        inputs, outputs : sequences of C-contiguous arrays of the plan's dtypes and shapes (the caller checked them)
        batch, time : int
        """
        cdef Scratch s = self.take(batch, time, time)
        cdef float *slab
        cdef int64_t i
        slab_array = np.zeros(max(batch * self.state_size, 1), np.float32)
        slab = <float *> cnp.PyArray_DATA(<cnp.ndarray> slab_array)
        for i, array in enumerate((*inputs, *outputs)):
            s.base[i] = cnp.PyArray_DATA(<cnp.ndarray?> array)
        try:
            self.call(s, slab, NULL)
        finally:
            self.give(s)


cdef void *allocate(int64_t count, size_t size) except NULL:
    cdef void *memory = PyMem_Calloc(max(count, 1), size)
    if memory == NULL:
        raise MemoryError()
    return memory


# ---- streams -----------------------------------------------------------------------------------------------------

cdef struct Form:  # what the array of one argument must be for one step
    int type
    int ndim
    cnp.npy_intp dims[8]
    int64_t step_bytes  # of one step of one stream


cdef inline bint fits(object x, const Form *form) noexcept:
    """x is a plain, C-contiguous, aligned array in native byte order of exactly this dtype and shape."""
    cdef int i
    cdef cnp.ndarray array
    if not cnp.PyArray_CheckExact(x):
        return False
    array = <cnp.ndarray> x
    if cnp.PyArray_TYPE(array) != form.type or cnp.PyArray_NDIM(array) != form.ndim:
        return False
    if not cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_CARRAY_RO):
        return False
    for i in range(form.ndim):
        if cnp.PyArray_DIM(array, i) != form.dims[i]:
            return False
    return True


cdef inline bint apart(object x, object y) noexcept:
    """The memory of two contiguous arrays does not overlap."""
    cdef char *a = <char *> cnp.PyArray_DATA(<cnp.ndarray> x)
    cdef char *b = <char *> cnp.PyArray_DATA(<cnp.ndarray> y)
    return a + cnp.PyArray_NBYTES(<cnp.ndarray> x) <= b or b + cnp.PyArray_NBYTES(<cnp.ndarray> y) <= a


cdef class StreamCore:
    """The state of one stream, or of `batch` streams in lock-step, and the calls that advance it.

    `step` is the fast path: where x (and out) are plain arrays of the right form it goes straight to the program;
    everything else goes to `_step_general` of the subclass, which checks, converts or explains.
    """

    cdef readonly Program program
    cdef readonly int64_t batch
    cdef readonly object slab  # float32 [batch, state_size]
    cdef float *slab_data
    cdef bint busy, simple
    cdef Form x_form, y_form
    cdef readonly int64_t steps_done

    def _open(self, Program program, int64_t batch, slab, simple, x_form, y_form):
        """Take what the subclass prepared. x_form, y_form: (numpy type number, shape) of a step where `simple`."""
        cdef int i
        self.program, self.batch, self.slab, self.simple = program, batch, slab, simple
        self.slab_data = <float *> cnp.PyArray_DATA(<cnp.ndarray?> slab)
        if simple:
            self.x_form.type, self.y_form.type = x_form[0], y_form[0]
            self.x_form.ndim, self.y_form.ndim = len(x_form[1]), len(y_form[1])
            for i, size in enumerate(x_form[1]):
                self.x_form.dims[i] = size
            for i, size in enumerate(y_form[1]):
                self.y_form.dims[i] = size

    def step(self, x, out=None):
        """Advance by one time step.

        Parameters
        ----------
        x : array, shape [features...], or [batch_size, features...] for a stream opened with batch_size
            A model with several inputs takes a tuple in the order of `model.inputs`, or a dict by name.
        out : array, optional
            Where the result is written: C-contiguous, of the output's dtype and shape. With it, and a
            C-contiguous x of the model's dtype, a step allocates nothing.

        Returns
        -------
        array [features...] or [batch_size, features...] (out where given); a tuple for several outputs.

        Raises
        ------
        ShapeError : dtype or shape of x or out; an index outside an embedding's table.
        StreamError : another thread is using this stream.
        """
        cdef Scratch s
        if not (self.simple and fits(x, &self.x_form)):
            return self._step_general(x, out)
        if out is None:
            out = cnp.PyArray_EMPTY(self.y_form.ndim, self.y_form.dims, self.y_form.type, 0)
        elif not (fits(out, &self.y_form) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> out) and apart(x, out)):
            return self._step_general(x, out)
        if self.busy:
            self._complain()
        self.busy = True
        try:
            s = self.program.take(self.batch, 1, 1)
            s.base[0] = cnp.PyArray_DATA(<cnp.ndarray> x)
            s.base[1] = cnp.PyArray_DATA(<cnp.ndarray> out)
            try:
                self._call(s)
            finally:
                self.program.give(s)
            self.steps_done += 1
        finally:
            self.busy = False
        return out

    cdef int _call(self, Scratch s) except -1:
        """One call of the program; where it can fail halfway, the state is put back."""
        if not self.program.may_fail:
            return self.program.call(s, self.slab_data, NULL)
        before = self.slab.copy()
        try:
            return self.program.call(s, self.slab_data, NULL)
        except BaseException:
            self.slab[...] = before
            raise

    def _complain(self):
        raise StreamError("this stream is in use by another thread; give each thread its own stream")

    def _advance(self, inputs, outputs, input_steps, output_steps, int64_t span):
        """Take `span` steps over checked arrays.

        Parameters
        ----------
        inputs, outputs : lists of C-contiguous arrays [batch, span, ...] (or [batch, ...] where they have no time)
        input_steps, output_steps : lists of the bytes from one step of an array to the next; 0 without a time axis
        """
        cdef int64_t done = 0, n, i, largest = 1 if self.program.plan.steps_one else 64
        cdef Scratch s
        cdef list arrays = [*inputs, *outputs]
        cdef list moves = [*input_steps, *output_steps]
        if self.busy:
            self._complain()
        self.busy = True
        before = self.slab.copy() if self.program.may_fail else None
        try:
            while done < span:
                n = largest
                while n > span - done:  # powers of two: few sizes to bind, whatever the lengths of chunks
                    n >>= 1
                s = self.program.take(self.batch, n, n if self.batch == 1 else span)
                for i in range(len(arrays)):
                    s.base[i] = <char *> cnp.PyArray_DATA(<cnp.ndarray?> arrays[i]) + done * <int64_t> moves[i]
                try:
                    self.program.call(s, self.slab_data, NULL)
                finally:
                    self.program.give(s)
                done += n
            self.steps_done += span
        except BaseException:
            if before is not None:
                self.slab[...] = before
            raise
        finally:
            self.busy = False
