# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The recurrence of matrix states: decay, outer products and read-out of each step in one pass over the state.

A row's steps run one after the other, so its state stays in the nearest cache for a whole sequence. Threads share the
matrices.
"""

from libc.stdint cimport int64_t, uint64_t

from fastrnn.machine._isa cimport fpu_enter, fpu_leave, frnn_scan, team_for, team_size
from fastrnn.ops._frame cimport CHUNKS, Frame, at, halt, state_row
from fastrnn.ops._walk cimport DONE, add_op, number

cdef enum:
    SHARED_WORK = 250_000  # threads share states with at least this many elements, over all steps
    WORK_A_TURN = 20_000_000  # elements between two looks for signals
    TERMS = 2

cdef enum:  # operands. U, V, W: those of the first term, followed by those of the second one
    BEFORE, AFTER, DECAY, RATE, Q, Y, U, V, W, MORE_U, MORE_V, MORE_W, OPERANDS

cdef enum:  # axes of their strides
    STEP, OUTER, INNER, ROW, COLUMN, AXES

SCAN_OPERANDS = ("before", "after", "decay", "rate", "q", "y", "u0", "v0", "w0", "u1", "v1", "w1")

cdef struct ScanArgs:
    int64_t across  # y is summed over the columns
    int64_t state  # where the slab keeps the state; below 0: it is `before` and `after`
    int64_t negative[TERMS]  # whether a term is taken away
    int64_t slab[TERMS]  # where the slab keeps a term's matrix w; below 0: it is no state there
    int64_t size[AXES]  # steps, rows of the batch, matrices of a row, rows and columns of a matrix
    int64_t in_buffer[OPERANDS]  # -1: there is none
    int64_t in_offset[OPERANDS]
    int64_t in_stride[OPERANDS][AXES]


cdef struct ScanLoop:
    const ScanArgs *a
    Frame *f
    int64_t step, stop  # the steps to do


cdef inline float *operand(const ScanArgs *a, Frame *f, int k, int64_t t, int64_t i, int64_t j) noexcept nogil:
    """Operand k of matrix j of row i at step t; NULL if there is none."""
    if a.in_buffer[k] < 0:
        return NULL
    return (at(f, a.in_buffer[k], a.in_offset[k]) + t * a.in_stride[k][STEP] + i * a.in_stride[k][OUTER]
            + j * a.in_stride[k][INNER])


cdef inline float *kept(const ScanArgs *a, Frame *f, int64_t state, int k, int64_t i, int64_t j) noexcept nogil:
    """Matrix j of row i of a state in the slab, which is operand k."""
    return state_row(f, 1, state, 0, i) + j * a.in_stride[k][INNER]


cdef inline void start(const ScanArgs *a, Frame *f, int64_t t, int64_t i, int64_t j, frnn_scan *s) noexcept nogil:
    cdef int n, first
    if a.state < 0:
        s.from_, s.to = operand(a, f, BEFORE, t, i, j), operand(a, f, AFTER, t, i, j)
    else:
        s.from_ = kept(a, f, a.state, BEFORE, i, j)
        s.to = <float *> s.from_ if a.in_stride[AFTER][COLUMN] else NULL
    s.decay, s.rate = operand(a, f, DECAY, t, i, j), operand(a, f, RATE, t, i, j)
    s.q, s.y = operand(a, f, Q, t, i, j), operand(a, f, Y, t, i, j)
    for n in range(TERMS):
        first = U + n * (MORE_U - U)
        s.term[n].u[0], s.term[n].u[1] = operand(a, f, first, t, i, j), operand(a, f, first + 1, t, i, j)
        s.term[n].w = operand(a, f, first + 2, t, i, j)
        if a.slab[n] >= 0:
            s.term[n].w = kept(a, f, a.slab[n], first + 2, i, j)


cdef inline void onward(const ScanArgs *a, frnn_scan *s) noexcept nogil:
    """To the next step. A state in the slab does not move."""
    cdef int n, first
    s.from_ += a.in_stride[BEFORE][STEP]
    if s.to != NULL:
        s.to += a.in_stride[AFTER][STEP]
    if s.decay != NULL:
        s.decay += a.in_stride[DECAY][STEP]
    if s.rate != NULL:
        s.rate += a.in_stride[RATE][STEP]
    if s.q != NULL:
        s.q += a.in_stride[Q][STEP]
    if s.y != NULL:
        s.y += a.in_stride[Y][STEP]
    for n in range(TERMS):
        first = U + n * (MORE_U - U)
        if s.term[n].w == NULL:
            return
        s.term[n].w += a.in_stride[first + 2][STEP]
        if s.term[n].u[0] != NULL:
            s.term[n].u[0] += a.in_stride[first][STEP]
        if s.term[n].u[1] != NULL:
            s.term[n].u[1] += a.in_stride[first + 1][STEP]


cdef void scan_chunk(void *context, int64_t chunk, int64_t chunks) noexcept nogil:
    """Some of the matrices, over all steps of the turn."""
    cdef const ScanLoop *loop = <const ScanLoop *> context
    cdef const ScanArgs *a = loop.a
    cdef frnn_scan s
    cdef int n, first
    cdef int64_t matrix, _step, matrices = a.size[OUTER] * a.size[INNER]
    cdef uint64_t token = fpu_enter()
    s.K, s.V, s.across = a.size[ROW], a.size[COLUMN], <int> a.across
    s.from_row, s.to_row = a.in_stride[BEFORE][ROW], a.in_stride[AFTER][ROW]
    s.decay_row, s.decay_column = a.in_stride[DECAY][ROW], a.in_stride[DECAY][COLUMN]
    s.rate_row = a.in_stride[RATE][ROW]
    s.q_step = a.in_stride[Q][<int> COLUMN if a.across else <int> ROW]
    s.y_step = a.in_stride[Y][<int> ROW if a.across else <int> COLUMN]
    for n in range(TERMS):
        first = U + n * (MORE_U - U)
        s.term[n].u_row[0], s.term[n].u_row[1] = a.in_stride[first][ROW], a.in_stride[first + 1][ROW]
        s.term[n].w_row, s.term[n].sign = a.in_stride[first + 2][ROW], -1 if a.negative[n] else 1
    for matrix in range(matrices * chunk // chunks, matrices * (chunk + 1) // chunks):
        start(a, loop.f, loop.step, matrix // a.size[INNER], matrix % a.size[INNER], &s)
        for _step in range(loop.step, loop.stop):
            loop.f.table.scan(&s)
            onward(a, &s)
    fpu_leave(token)


cdef int run_scan(const int64_t *args, Frame *f) noexcept nogil:
    cdef const ScanArgs *a = <const ScanArgs *> args
    cdef ScanLoop loop
    cdef int64_t matrices = a.size[OUTER] * a.size[INNER], elements = matrices * a.size[ROW] * a.size[COLUMN]
    cdef int64_t threads = team_size(f.team), most = a.size[STEP]
    if f.watch != NULL:
        most = max(1, min(most, WORK_A_TURN // max(elements, 1)))
    loop.a, loop.f, loop.stop = a, f, 0
    while loop.stop < a.size[STEP]:
        loop.step, loop.stop = loop.stop, min(loop.stop + most, a.size[STEP])
        if threads == 1 or matrices == 1 or elements * (loop.stop - loop.step) < SHARED_WORK:
            scan_chunk(&loop, 0, 1)
        else:
            team_for(f.team, min(CHUNKS * threads, matrices), scan_chunk, &loop)
        if halt(f, 4 * elements * (loop.stop - loop.step)):
            return DONE
    return DONE


cdef union Args:
    ScanArgs scan

cdef Args args
number(&args, sizeof(args))
add_op("scan", args.scan, run_scan, NULL)
