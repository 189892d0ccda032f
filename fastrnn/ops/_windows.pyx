# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Ops over windows of one or two spatial axes: conv, depthwise conv, pooling. A convolution of one spatial axis has a
first axis of size 1.

Every output element is one sum in one fixed order: taps by row, by column (or by column, by row: `across`), then
channels, with the bias last. A tap in the padding adds 0 * w. So the bits don't depend on where a block of positions
begins or which positions run together.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

from fastrnn.machine._isa cimport FRNN_TILE_ROWS, fpu_enter, fpu_leave, frnn_act, frnn_product, team_for, team_size
from fastrnn.ops._frame cimport CHUNKS, Frame, at, const_row, halt
from fastrnn.ops._walk cimport DONE, add_op, number
from fastrnn.ops._window cimport PARTS, Window

cdef enum:
    DIRECT_ROWS = 4 * FRNN_TILE_ROWS  # four of the largest tiles: the cost of one more run is negligible
    POSITIONS = 16  # of a depthwise convolution in one call of its kernel
    SHARED_WORK = 500_000  # operations of a product that threads share
    SHARED_POOL = 200_000  # taps of pooling that threads share
    PATCH_FLOATS = 8192  # room for the patches of some positions: 32 KiB, which stays in L1 or near it

cdef struct ConvArgs:
    Window w
    int64_t packed, groups, channels, outs, patches, scratch  # channels, outs: of one group; patches: rows of scratch
    int64_t across  # the weights are by column, by row
    int64_t rounded, rounded_rows  # reduced precision: room for that many rounded rows

cdef struct DepthwiseArgs:
    Window w
    int64_t channels, weights_buffer, weights_offset, bias_buffer, bias_offset, fn, act_buffer, scratch

cdef struct PoolArgs:
    Window w
    int64_t channels, fn, count_pads, end_h, end_w, scratch  # end: of the padding after the last element


# ---- scratch, in floats --------------------------------------------------------------------------------------------

def conv_patches(int64_t size):
    """How many patches of `size` floats the scratch of a convolution holds."""
    return max(FRNN_TILE_ROWS, min(16 * FRNN_TILE_ROWS, PATCH_FLOATS // max(size, 1)))


def depthwise_scratch(int64_t taps, int64_t channels):
    """Pointers to the taps of some positions, and zeros for those in the padding."""
    return POSITIONS * taps * (sizeof(void *) // sizeof(float)) + channels


def pool_scratch(int64_t taps):
    """Pointers to the taps of one position, for each part."""
    return PARTS * taps * (sizeof(void *) // sizeof(float))


# ---- the ops -------------------------------------------------------------------------------------------------------

cdef struct Run:  # rows for one call of the product: row r reads x + r * x_step, writes y + r * y_step
    int64_t n, x_step, y_step
    const float *x
    float *y


cdef void flush_rounded(const Run *run, const ConvArgs *a, int64_t packed, Frame *f) noexcept nogil:
    """Round each row, which is a window, and multiply as many as there is room for."""
    cdef int64_t K = f.linear_sizes[2 * packed], N = f.linear_sizes[2 * packed + 1], row = 0, i, n
    cdef const frnn_product *product = f.linear_products[packed]
    cdef int64_t size = product.rounded(K)
    cdef float *rounded = <float *> f.base[a.rounded]
    while row < run.n:
        n = min(a.rounded_rows, run.n - row)
        for i in range(n):
            product.round(K, run.x + (row + i) * run.x_step, rounded + i * size)
        f.table.linear(product, K, N, f.linears[packed], f.linear_acts[packed], rounded, size,
                       run.y + row * run.y_step, run.y_step, 0, n, 0, f.table.linear_blocks(K, N))
        row += n


cdef struct Blocks:  # a product whose columns threads share
    const Run *run
    Frame *f
    int64_t packed


cdef void blocks_chunk(void *context, int64_t chunk, int64_t chunks) noexcept nogil:
    cdef const Blocks *s = <const Blocks *> context
    cdef Frame *f = s.f
    cdef int64_t K = f.linear_sizes[2 * s.packed], N = f.linear_sizes[2 * s.packed + 1]
    cdef int64_t blocks = f.table.linear_blocks(K, N)
    cdef uint64_t token = fpu_enter()
    f.table.linear(f.linear_products[s.packed], K, N, f.linears[s.packed], f.linear_acts[s.packed], s.run.x,
                   s.run.x_step, s.run.y, s.run.y_step, 0, s.run.n, blocks * chunk // chunks,
                   blocks * (chunk + 1) // chunks)
    fpu_leave(token)


cdef inline void flush(Run *run, const ConvArgs *a, int64_t packed, Frame *f) noexcept nogil:
    cdef int64_t K = f.linear_sizes[2 * packed], N = f.linear_sizes[2 * packed + 1], blocks, threads
    cdef Blocks s
    if run.n > 0 and f.linear_products[packed].round != NULL:
        flush_rounded(run, a, packed, f)
    elif run.n > 0:
        s.run, s.f, s.packed = run, f, packed
        threads = team_size(f.team)
        blocks = f.table.linear_blocks(K, N)
        if threads > 1 and blocks > 1 and 2 * K * N * run.n >= SHARED_WORK:
            team_for(f.team, min(CHUNKS * threads, blocks), blocks_chunk, &s)
        else:
            blocks_chunk(&s, 0, 1)
    run.n = 0


cdef inline void append(Run *run, int64_t n, const float *x, int64_t x_step, float *y, int64_t y_step,
                        const ConvArgs *a, int64_t packed, Frame *f) noexcept nogil:
    """Add n rows to the run if they continue it. Otherwise compute the run and start a new one."""
    cdef bint joins = run.n > 0 and (n == 1 or (x_step == run.x_step and y_step == run.y_step))
    if joins and run.n == 1 and n == 1 and x > run.x and y > run.y:  # two rows define a step
        run.x_step, run.y_step = x - run.x, y - run.y
    if joins and x == run.x + run.n * run.x_step and y == run.y + run.n * run.y_step:
        run.n += n
        return
    flush(run, a, packed, f)
    run.n, run.x, run.x_step, run.y, run.y_step = n, x, x_step, y, y_step


cdef inline void inner_span(const Window *w, int64_t *first, int64_t *last) noexcept nogil:
    """The output columns first <= w < last whose taps are all inside a row of the input."""
    cdef int64_t room = w.in_w - 1 - (w.taps_w - 1) * w.dilation_w + w.pad_w
    first[0] = min((w.pad_w + w.stride_w - 1) // w.stride_w if w.pad_w > 0 else 0, w.out_w)
    last[0] = max(min(room // w.stride_w + 1 if room >= 0 else 0, w.out_w), first[0])


cdef inline bint rows_inside(const Window *w, int64_t h) noexcept nogil:
    return h >= 0 and h + (w.taps_h - 1) * w.dilation_h < w.in_h


cdef inline void few(int64_t n, const float *x, float *y) noexcept nogil:
    """n floats. A call of memcpy costs more than three of them, which is a picture's colours."""
    if n == 3:
        y[0], y[1], y[2] = x[0], x[1], x[2]
    elif n == 1:
        y[0] = x[0]
    else:
        memcpy(y, x, n * sizeof(float))


cdef void fill_patch(const Window *w, const float *x, int64_t h, int64_t i, int64_t channels, bint across,
                     float *patch) noexcept nogil:
    """All taps of one position, one after the other, from row h, column i of x; zeros in the padding."""
    cdef int64_t a, b, row, column
    cdef bint inside = i >= 0 and i + (w.taps_w - 1) * w.dilation_w < w.in_w
    if across:
        fill_columns(w, x, h, i, w.taps_w, channels, patch)
        return
    for a in range(w.taps_h):
        row = h + a * w.dilation_h
        if row < 0 or row >= w.in_h:
            memset(patch, 0, w.taps_w * channels * sizeof(float))
            patch += w.taps_w * channels
        elif inside and w.dilation_w * w.x_w == channels:  # one run of memory
            memcpy(patch, x + row * w.x_h + i * w.x_w, w.taps_w * channels * sizeof(float))
            patch += w.taps_w * channels
        else:
            for b in range(w.taps_w):
                column = i + b * w.dilation_w
                if 0 <= column < w.in_w:
                    few(channels, x + row * w.x_h + column * w.x_w, patch)
                else:
                    memset(patch, 0, channels * sizeof(float))
                patch += channels


cdef void fill_columns(const Window *w, const float *x, int64_t h, int64_t i, int64_t n, int64_t channels,
                       float *y) noexcept nogil:
    """n columns from column i of x on, each with the rows of the taps from row h on, one after the other; zeros in the
    padding. So the patches of neighbouring positions overlap, and each element is copied once for each row of taps."""
    cdef int64_t a, c, row, column, size = w.taps_h * channels
    for a in range(w.taps_h):
        row = h + a * w.dilation_h
        for c in range(n):
            column = i + c
            if 0 <= row < w.in_h and 0 <= column < w.in_w:
                few(channels, x + row * w.x_h + column * w.x_w, y + c * size + a * channels)
            else:
                memset(y + c * size + a * channels, 0, channels * sizeof(float))


cdef void run_across(const ConvArgs *a, const float *x, float *y, int64_t h, int64_t packed, Frame *f) noexcept nogil:
    """The products of one row of positions, over columns of taps."""
    cdef const Window *w = &a.w
    cdef int64_t i = 0, n, column = w.taps_h * a.channels, most = (a.patches - 1) * w.taps_w // w.stride_w + 1
    cdef float *columns = <float *> f.base[a.scratch]
    cdef Run run
    run.x, run.x_step, run.y_step = columns, w.stride_w * column, w.y_w
    while i < w.out_w:
        n = min(most, w.out_w - i)
        fill_columns(w, x, h, i * w.stride_w - w.pad_w, (n - 1) * w.stride_w + w.taps_w, a.channels, columns)
        run.n, run.y = n, y + i * w.y_w
        flush(&run, a, packed, f)
        i += n


cdef void run_conv_group(const ConvArgs *a, int64_t group, Frame *f) noexcept nogil:
    """The products of all positions. If a patch is one run of memory, rows are read in place and overlap. Otherwise
    they are gathered, several positions at a time. A few inner positions between positions in the padding are gathered
    too, because each run of rows reads all weights (Silero's first convolution, 4 positions: 6.6 us in three runs, 4.0
    in one)."""
    cdef const Window *w = &a.w
    cdef Run run
    cdef int64_t b, h, i, next, top, first, last, used = 0, size = w.taps_h * w.taps_w * a.channels
    cdef int64_t packed = a.packed + group
    cdef const float *x
    cdef float *y
    cdef float *patch
    cdef float *patches = <float *> f.base[a.scratch]
    cdef bint direct = w.taps_h == 1 and (w.taps_w == 1 or w.dilation_w * w.x_w == a.channels)
    run.n, run.x_step, run.y_step, run.x, run.y = 0, 0, 0, NULL, NULL
    inner_span(w, &first, &last)
    direct = direct and (last - first == w.out_w or last - first >= DIRECT_ROWS)
    for b in range(w.batch):
        x = at(f, w.x_buffer, w.x_offset) + b * w.x_batch + group * a.channels
        for h in range(w.out_h):
            if halt(f, 2 * size * a.outs * w.out_w):
                return
            y = at(f, w.y_buffer, w.y_offset) + b * w.y_batch + h * w.y_h + group * a.outs
            top = h * w.stride_h - w.pad_h
            if a.across and w.out_w >= DIRECT_ROWS:
                run_across(a, x, y, top, packed, f)
                continue
            i = 0
            while i < w.out_w:
                if direct and first <= i < last and rows_inside(w, top):
                    next = last
                    append(&run, next - i, x + top * w.x_h + (i * w.stride_w - w.pad_w) * w.x_w, w.stride_w * w.x_w,
                           y + i * w.y_w, w.y_w, a, packed, f)
                else:
                    next = i + 1
                    if used == a.patches:
                        flush(&run, a, packed, f)
                        used = 0
                    patch = patches + used * size
                    fill_patch(w, x, top, i * w.stride_w - w.pad_w, a.channels, a.across, patch)
                    append(&run, 1, patch, size, y + i * w.y_w, w.y_w, a, packed, f)
                    used += 1
                i = next
    flush(&run, a, packed, f)


cdef int run_conv(const int64_t *args, Frame *f) noexcept nogil:
    cdef const ConvArgs *a = <const ConvArgs *> args
    cdef int64_t group
    for group in range(a.groups):
        run_conv_group(a, group, f)
    return DONE


cdef int64_t find_taps(const Window *w, const float *x, int64_t h, int64_t i, const float *outside,
                       const_row *taps) noexcept nogil:
    """Pointers to the taps of one position; those in the padding are `outside`, or left out if that is NULL."""
    cdef int64_t a, b, row, column, n = 0
    for a in range(w.taps_h):
        row = h + a * w.dilation_h
        for b in range(w.taps_w):
            column = i + b * w.dilation_w
            if 0 <= row < w.in_h and 0 <= column < w.in_w:
                taps[n] = x + row * w.x_h + column * w.x_w
                n += 1
            elif outside != NULL:
                taps[n] = outside
                n += 1
    return n


cdef int run_depthwise(const int64_t *args, Frame *f) noexcept nogil:
    """Each channel separately, vectors over channels; POSITIONS of a row per call of the kernel."""
    cdef const DepthwiseArgs *a = <const DepthwiseArgs *> args
    cdef const Window *w = &a.w
    cdef int64_t b, h, i, n, K = w.taps_h * w.taps_w
    cdef const float *x
    cdef float *y
    cdef const_row *taps = <const_row *> f.base[a.scratch]
    cdef float *zeros = <float *> (taps + POSITIONS * K)
    cdef const float *weights = at(f, a.weights_buffer, a.weights_offset)
    cdef const float *bias = at(f, a.bias_buffer, a.bias_offset) if a.bias_buffer >= 0 else NULL
    cdef const float *alpha_beta = <const float *> f.base[a.act_buffer]
    cdef frnn_act act
    act.fn, act.alpha, act.beta = <int32_t> a.fn, alpha_beta[0], alpha_beta[1]
    memset(zeros, 0, a.channels * sizeof(float))
    for b in range(w.batch):
        x = at(f, w.x_buffer, w.x_offset) + b * w.x_batch
        for h in range(w.out_h):
            y = at(f, w.y_buffer, w.y_offset) + b * w.y_batch + h * w.y_h
            n = 0
            for i in range(w.out_w):
                find_taps(w, x, h * w.stride_h - w.pad_h, i * w.stride_w - w.pad_w, zeros, taps + n * K)
                n += 1
                if n == POSITIONS or i == w.out_w - 1:
                    f.table.depthwise(a.channels, K, weights, bias, act, n, taps, y + (i + 1 - n) * w.y_w, w.y_w)
                    n = 0
    return DONE


cdef inline int64_t padded_taps(int64_t first, int64_t taps, int64_t dilation, int64_t end) noexcept nogil:
    """Taps before `end`. Those beyond are not padding; they come from rounding up the number of outputs."""
    cdef int64_t n = 0, i
    for i in range(taps):
        n += first + i * dilation < end
    return n


cdef struct PoolLoop:
    const PoolArgs *a
    Frame *f


cdef void pool_line(const PoolArgs *a, const float *x, float *y, int64_t h, const_row *taps, Frame *f) noexcept nogil:
    """One row of positions of one map. Those whose taps are all inside a row of the input are done together."""
    cdef const Window *w = &a.w
    cdef int64_t i = 0, n, count, first, last, top = h * w.stride_h - w.pad_h, left
    inner_span(w, &first, &last)
    while i < w.out_w:
        left = i * w.stride_w - w.pad_w
        n = count = find_taps(w, x, top, left, NULL, taps)
        if a.count_pads:
            count = padded_taps(top, w.taps_h, w.dilation_h, a.end_h)
            count *= padded_taps(left, w.taps_w, w.dilation_w, a.end_w)
        if i == first and last > first:
            f.table.pool_row(<int32_t> a.fn, a.channels, n, <float> count, taps, w.stride_w * w.x_w, last - first,
                             y + i * w.y_w, w.y_w)
            i = last
        else:
            f.table.pool(<int32_t> a.fn, a.channels, n, <float> count, taps, y + i * w.y_w)
            i += 1


cdef void pool_chunk(void *context, int64_t chunk, int64_t chunks) noexcept nogil:
    """One thread's share of the rows of all maps."""
    cdef const PoolLoop *s = <const PoolLoop *> context
    cdef const PoolArgs *a = s.a
    cdef const Window *w = &a.w
    cdef int64_t line, lines = w.batch * w.out_h, taps = w.taps_h * w.taps_w
    cdef uint64_t token = fpu_enter()
    for line in range(lines * chunk // chunks, lines * (chunk + 1) // chunks):
        pool_line(a, at(s.f, w.x_buffer, w.x_offset) + line // w.out_h * w.x_batch,
                  at(s.f, w.y_buffer, w.y_offset) + line // w.out_h * w.y_batch + line % w.out_h * w.y_h,
                  line % w.out_h, (<const_row *> s.f.base[a.scratch]) + chunk * taps, s.f)
    fpu_leave(token)


cdef int run_pool(const int64_t *args, Frame *f) noexcept nogil:
    cdef const PoolArgs *a = <const PoolArgs *> args
    cdef const Window *w = &a.w
    cdef PoolLoop s
    cdef int64_t threads = team_size(f.team)
    s.a, s.f = a, f
    if threads > 1 and w.batch * w.out_h * w.out_w * w.taps_h * w.taps_w * a.channels >= SHARED_POOL:
        team_for(f.team, min(min(CHUNKS * threads, PARTS), w.batch * w.out_h), pool_chunk, &s)
    else:
        pool_chunk(&s, 0, 1)
    return DONE


cdef union Args:
    ConvArgs conv
    DepthwiseArgs depthwise
    PoolArgs pool

cdef Args args
number(&args, sizeof(args))
add_op("conv", args.conv, run_conv, NULL)
add_op("depthwise", args.depthwise, run_depthwise, NULL)
add_op("pool", args.pool, run_pool, NULL)
