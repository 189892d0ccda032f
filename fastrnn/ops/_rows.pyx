# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Ops over rows: products with packed and unpacked matrices, reductions, softmax, normalisation."""

from libc.stdint cimport int32_t, int64_t, uint64_t

from fastrnn.machine._isa cimport FRNN_TILE_ROWS, fpu_enter, fpu_leave, frnn_act, frnn_product, team_for, team_size
from fastrnn.ops._frame cimport CHUNKS, Frame, Rows, at, halt, x_row, y_row
from fastrnn.ops._walk cimport DONE, add_op, number

cdef enum:
    SHARED_WORK = 500_000  # threads share a product with at least this many operations
    LINEAR_WORK = 200_000_000  # multiply-adds of a product between two looks for signals
    ROWS_WORTH_SPLITTING = 8 * FRNN_TILE_ROWS  # with at least this many rows per thread, split rows instead of columns


# ---- products with packed weights ------------------------------------------------------------------------------------

cdef struct LinearArgs:
    int64_t packed
    int64_t rounded, rounded_rows  # reduced precision: room for that many rounded rows of x
    Rows r


cdef struct LinearLoop:
    const LinearArgs *a
    Frame *f
    const frnn_product *product
    const float *x
    float *y
    float *rounded  # NULL: x is read as it is
    int64_t K, N, blocks, rows, x_stride, y_stride
    bint by_rows


cdef inline void round_rows(const LinearLoop *s, int64_t row0, int64_t row1) noexcept nogil:
    cdef int64_t row, size = s.product.rounded(s.K)
    for row in range(row0, row1):
        s.product.round(s.K, s.x + row * s.x_stride, s.rounded + row * size)


cdef void linear_chunk(void *context, int64_t chunk, int64_t chunks) noexcept nogil:
    """One thread's share of a product: some rows, or some blocks of columns."""
    cdef const LinearLoop *s = <const LinearLoop *> context
    cdef const LinearArgs *a = s.a
    cdef int64_t row0 = 0, row1 = s.rows, block0 = 0, block1 = s.blocks, x_stride = s.x_stride
    cdef const float *x = s.x
    cdef uint64_t token = fpu_enter()
    if s.by_rows:
        row0, row1 = s.rows * chunk // chunks, s.rows * (chunk + 1) // chunks
    else:
        block0, block1 = s.blocks * chunk // chunks, s.blocks * (chunk + 1) // chunks
    if s.rounded != NULL:
        if s.by_rows:
            round_rows(s, row0, row1)
        x, x_stride = s.rounded, s.product.rounded(s.K)
    s.f.table.linear(s.product, s.K, s.N, s.f.linears[a.packed], s.f.linear_acts[a.packed], x, x_stride, s.y,
                     s.y_stride, row0, row1, block0, block1)
    fpu_leave(token)


cdef int run_linear(const int64_t *args, Frame *f) noexcept nogil:
    """The rows that share each read of the weights are those of the longer inner loop: in a step of many streams, whose
    rows are SPAN steps apart, not the one step of each."""
    cdef const LinearArgs *a = <const LinearArgs *> args
    cdef LinearLoop s
    cdef int64_t i, j, row, inner = 2 if a.r.n[2] >= a.r.n[1] else 1, outer = 3 - inner
    cdef int64_t count = a.r.n[inner], most = count, threads = team_size(f.team)
    s.x_stride, s.y_stride = a.r.x_stride[inner], a.r.y_stride[inner]
    s.a, s.f, s.K, s.N = a, f, f.linear_sizes[2 * a.packed], f.linear_sizes[2 * a.packed + 1]
    s.blocks = f.table.linear_blocks(s.K, s.N)
    s.product, s.rounded = f.linear_products[a.packed], NULL
    if s.product.round != NULL:
        s.rounded, most = <float *> f.base[a.rounded], min(most, a.rounded_rows)
    if f.watch != NULL:  # about 10 ms of rows at a time, between which signals are looked for
        most = min(most, max(ROWS_WORTH_SPLITTING * threads, LINEAR_WORK // max(s.K * s.N, 1)))
    for i in range(a.r.n[0]):
        for j in range(a.r.n[outer]):
            row = 0
            while row < count:
                s.rows = min(most, count - row)
                s.by_rows = s.rows >= ROWS_WORTH_SPLITTING * threads
                s.x = x_row(&a.r, f, i, 0) + j * a.r.x_stride[outer] + row * s.x_stride
                s.y = y_row(&a.r, f, i, 0) + j * a.r.y_stride[outer] + row * s.y_stride
                if s.rounded != NULL and not s.by_rows:
                    round_rows(&s, 0, s.rows)
                if threads == 1 or 2 * s.K * s.N * s.rows < SHARED_WORK:
                    linear_chunk(&s, 0, 1)
                else:
                    team_for(f.team, CHUNKS * threads if s.by_rows else min(CHUNKS * threads, s.blocks), linear_chunk,
                             &s)
                row += s.rows
                if halt(f, 2 * s.K * s.N * s.rows):
                    return DONE
    return DONE


# ---- products of two run-time matrices -------------------------------------------------------------------------------

cdef struct MatmulArgs:
    int64_t m, k, n, a_buffer, a_offset, b_buffer, b_offset, y_buffer, y_offset
    int64_t a_row, b_row, b_column, y_row, scratch
    int64_t n0, n1
    int64_t a_stride[2]
    int64_t b_stride[2]
    int64_t y_stride[2]


cdef int run_matmul(const int64_t *args, Frame *f) noexcept nogil:
    cdef const MatmulArgs *a = <const MatmulArgs *> args
    cdef int64_t i, j, blocks = f.table.linear_blocks(a.k, a.n)
    cdef const float *x = at(f, a.a_buffer, a.a_offset)
    cdef const float *w = at(f, a.b_buffer, a.b_offset)
    cdef float *y = at(f, a.y_buffer, a.y_offset)
    cdef float *packed = <float *> f.base[a.scratch]
    cdef frnn_act identity
    identity.fn, identity.alpha, identity.beta = 0, 0, 0
    for i in range(a.n0):
        for j in range(a.n1):
            f.table.linear_pack(f.table.products[0], a.k, a.n, w + i * a.b_stride[0] + j * a.b_stride[1], a.b_row,
                                a.b_column, NULL, NULL, 0, a.k, packed)
            f.table.linear(f.table.products[0], a.k, a.n, packed, identity,
                           x + i * a.a_stride[0] + j * a.a_stride[1], a.a_row,
                           y + i * a.y_stride[0] + j * a.y_stride[1], a.y_row, 0, a.m, 0, blocks)
            if halt(f, 2 * a.k * a.n * a.m):
                return DONE
    return DONE


# ---- one number, or one row, of each row -----------------------------------------------------------------------------

cdef struct ReduceArgs:
    int64_t fn, mean, count, step
    Rows r

cdef struct SoftmaxArgs:
    int64_t n, log
    Rows r

cdef struct NormArgs:
    int64_t n, epsilon, scale_buffer, scale_offset, bias_buffer, bias_offset
    Rows r


cdef int run_reduce(const int64_t *args, Frame *f) noexcept nogil:
    cdef const ReduceArgs *a = <const ReduceArgs *> args
    cdef int64_t i, j
    cdef float scale = <float> (1.0 / a.count) if a.mean else 1.0
    for i in range(a.r.n[0]):
        for j in range(a.r.n[1]):
            f.table.reduce(<int32_t> a.fn, a.r.n[2], a.count, scale, x_row(&a.r, f, i, j), a.r.x_stride[2], a.step,
                           y_row(&a.r, f, i, j), a.r.y_stride[2])
    return DONE


cdef int run_softmax(const int64_t *args, Frame *f) noexcept nogil:
    cdef const SoftmaxArgs *a = <const SoftmaxArgs *> args
    cdef int64_t i, j
    for i in range(a.r.n[0]):
        for j in range(a.r.n[1]):
            f.table.softmax(a.r.n[2], a.n, <int32_t> a.log, x_row(&a.r, f, i, j), a.r.x_stride[2],
                            y_row(&a.r, f, i, j), a.r.y_stride[2])
    return DONE


cdef int run_layer_norm(const int64_t *args, Frame *f) noexcept nogil:
    cdef const NormArgs *a = <const NormArgs *> args
    cdef int64_t i, j
    cdef float epsilon = (<float *> f.base[a.epsilon])[0]
    cdef const float *scale = at(f, a.scale_buffer, a.scale_offset) if a.scale_buffer >= 0 else NULL
    cdef const float *bias = at(f, a.bias_buffer, a.bias_offset) if a.bias_buffer >= 0 else NULL
    for i in range(a.r.n[0]):
        for j in range(a.r.n[1]):
            f.table.layer_norm(a.r.n[2], a.n, epsilon, scale, bias, x_row(&a.r, f, i, j), a.r.x_stride[2],
                               y_row(&a.r, f, i, j), a.r.y_stride[2])
    return DONE


cdef union Args:
    LinearArgs linear
    MatmulArgs matmul
    ReduceArgs reduce
    SoftmaxArgs softmax
    NormArgs layer_norm

cdef Args args
number(&args, sizeof(args))
add_op("linear", args.linear, run_linear, NULL)
add_op("matmul", args.matmul, run_matmul, NULL)
add_op("reduce", args.reduce, run_reduce, NULL)
add_op("softmax", args.softmax, run_softmax, NULL)
add_op("layer_norm", args.layer_norm, run_layer_norm, NULL)
