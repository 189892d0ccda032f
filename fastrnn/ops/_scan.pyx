# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The recurrence of matrix states: decay, outer product and read-out of each step in one pass over the state.

A row's steps run one after the other, so its state stays in the nearest cache for a whole sequence.
"""

from libc.stdint cimport int64_t

from fastrnn.machine._isa cimport frnn_scan
from fastrnn.ops._frame cimport Frame, at, halt, state_row
from fastrnn.ops._walk cimport DONE, add_op, number

cdef enum:  # operands
    BEFORE, AFTER, DECAY, RATE, U, V, W, Q, Y, OPERANDS

cdef enum:  # axes of their strides
    STEP, OUTER, INNER, ROW, COLUMN, AXES

SCAN_OPERANDS = ("before", "after", "decay", "rate", "u", "v", "w", "q", "y")

cdef struct ScanArgs:
    int64_t across  # y is summed over the columns
    int64_t state  # where the slab keeps the state; below 0: it is `before` and `after`
    int64_t size[AXES]  # steps, rows of the batch, matrices of a row, rows and columns of a matrix
    int64_t in_buffer[OPERANDS]  # -1: there is none
    int64_t in_offset[OPERANDS]
    int64_t in_stride[OPERANDS][AXES]


cdef inline float *operand(const ScanArgs *a, Frame *f, int k, int64_t i, int64_t j) noexcept nogil:
    """Operand k of matrix j of row i at the first step; NULL if there is none."""
    if a.in_buffer[k] < 0:
        return NULL
    return at(f, a.in_buffer[k], a.in_offset[k]) + i * a.in_stride[k][OUTER] + j * a.in_stride[k][INNER]


cdef inline void start(const ScanArgs *a, Frame *f, int64_t i, int64_t j, frnn_scan *s) noexcept nogil:
    cdef float *kept
    if a.state < 0:
        s.from_, s.to = operand(a, f, BEFORE, i, j), operand(a, f, AFTER, i, j)
    else:
        kept = state_row(f, 1, a.state, 0, i) + j * a.in_stride[BEFORE][INNER]
        s.from_, s.to = kept, kept
    s.decay, s.rate = operand(a, f, DECAY, i, j), operand(a, f, RATE, i, j)
    s.u[0], s.u[1] = operand(a, f, U, i, j), operand(a, f, V, i, j)
    s.w, s.q, s.y = operand(a, f, W, i, j), operand(a, f, Q, i, j), operand(a, f, Y, i, j)


cdef inline void onward(const ScanArgs *a, frnn_scan *s) noexcept nogil:
    """To the next step."""
    s.from_ += a.in_stride[BEFORE][STEP]
    if s.to != NULL:
        s.to += a.in_stride[AFTER][STEP]
    if s.decay != NULL:
        s.decay += a.in_stride[DECAY][STEP]
    if s.rate != NULL:
        s.rate += a.in_stride[RATE][STEP]
    if s.u[0] != NULL:
        s.u[0] += a.in_stride[U][STEP]
    if s.u[1] != NULL:
        s.u[1] += a.in_stride[V][STEP]
    if s.w != NULL:
        s.w += a.in_stride[W][STEP]
    if s.q != NULL:
        s.q += a.in_stride[Q][STEP]
    if s.y != NULL:
        s.y += a.in_stride[Y][STEP]


cdef int run_scan(const int64_t *args, Frame *f) noexcept nogil:
    cdef const ScanArgs *a = <const ScanArgs *> args
    cdef frnn_scan s
    cdef int64_t i, j, _step
    s.K, s.V, s.across = a.size[ROW], a.size[COLUMN], <int> a.across
    s.from_row, s.to_row = a.in_stride[BEFORE][ROW], a.in_stride[AFTER][ROW]
    s.decay_row, s.decay_column = a.in_stride[DECAY][ROW], a.in_stride[DECAY][COLUMN]
    s.rate_row, s.u_row[0], s.u_row[1] = a.in_stride[RATE][ROW], a.in_stride[U][ROW], a.in_stride[V][ROW]
    s.q_step = a.in_stride[Q][<int> COLUMN if a.across else <int> ROW]
    s.y_step = a.in_stride[Y][<int> ROW if a.across else <int> COLUMN]
    for i in range(a.size[OUTER]):
        for j in range(a.size[INNER]):
            start(a, f, i, j, &s)
            for _step in range(a.size[STEP]):
                f.table.scan(&s)
                onward(a, &s)
                if halt(f, 4 * s.K * s.V):
                    return DONE
    return DONE


cdef union Args:
    ScanArgs scan

cdef Args args
number(&args, sizeof(args))
add_op("scan", args.scan, run_scan, NULL)
