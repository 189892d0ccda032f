# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""3 x 3 convolutions by Winograd's F(2 x 2, 3 x 3): in tiles of 2 x 2 results, some at a time, and in three passes that
threads share: the sums and differences of their positions, 16 products, the results.

A result is one sum in one order; its place in the map decides which.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memset

from fastrnn.machine._isa cimport FRNN_TILE_ROWS, fpu_enter, fpu_leave, frnn_act, frnn_chunk_fn, team_for, team_size
from fastrnn.ops._frame cimport CHUNKS, Frame, at, const_row, halt
from fastrnn.ops._walk cimport DONE, add_op, number
from fastrnn.ops._window cimport Window

cdef enum:
    LINE = 16  # floats of a cache line
    WAYS = 16  # products of a tile
    TILE_FLOATS = 65536  # 256 KiB of tiles, which stay in L2 beside the weights
    SHORT = 128  # channels of products that `slide` does: sums over a few terms are mostly calls elsewhere
    SHARED_TILES = 2_000_000  # operations of some tiles that threads share

cdef struct TileArgs:
    Window w
    int64_t packed, channels, outs, tiles, scratch  # packed: the first of 16; tiles: at a time
    int64_t fn, act_buffer, bias_buffer, bias_offset


cdef struct TileLoop:  # n tiles of one map, from number `first` on, row by row
    const TileArgs *a
    Frame *f
    const float *x
    float *y
    int64_t first, n, in_step, out_step
    float *ins
    float *outs
    float *zeros


# ---- scratch, in floats --------------------------------------------------------------------------------------------

def winograd_tiles(int64_t channels, int64_t outs, tiles):
    """How many tiles of 2 x 2 results the scratch of a convolution by Winograd holds: more if the weights are large,
    which are read once for all of them. tiles: of a map, None if that is not known."""
    cdef int64_t floats = max(<int64_t> TILE_FLOATS, WAYS * channels * outs // 2)
    cdef int64_t n = floats // (WAYS * (channels + outs)) // FRNN_TILE_ROWS * FRNN_TILE_ROWS
    n = max(2 * FRNN_TILE_ROWS, min(16 * FRNN_TILE_ROWS, n))
    return n if tiles is None else min(n, tiles)


def winograd_scratch(int64_t channels, int64_t outs, int64_t tiles):
    """What goes into the products of those tiles, what comes out, and zeros for positions in the padding."""
    return WAYS * (tiles * (channels + outs) + 2 * LINE) + channels


# ---- the passes ----------------------------------------------------------------------------------------------------

cdef inline void find_tile(const Window *w, const float *x, int64_t h, int64_t i, const float *zeros,
                           const_row *taps) noexcept nogil:
    """Pointers to the 4 x 4 positions from row h, column i of x on."""
    cdef int64_t a, b
    cdef bint inside = h >= 0 and i >= 0 and h + 4 <= w.in_h and i + 4 <= w.in_w
    for a in range(4):
        for b in range(4):
            taps[4 * a + b] = x + (h + a) * w.x_h + (i + b) * w.x_w if inside or (
                0 <= h + a < w.in_h and 0 <= i + b < w.in_w) else zeros


cdef inline void find_ends(const Window *w, float *y, int64_t h, int64_t i, float **ends) noexcept nogil:
    """Pointers to the 2 x 2 results from row h, column i of y on; NULL beyond the map."""
    cdef float *at_ = y + h * w.y_h + i * w.y_w
    cdef bint right = i + 1 < w.out_w, below = h + 1 < w.out_h
    ends[0] = at_
    ends[1] = at_ + w.y_w if right else NULL
    ends[2] = at_ + w.y_h if below else NULL
    ends[3] = at_ + w.y_h + w.y_w if right and below else NULL


cdef void sums_chunk(void *context, int64_t chunk, int64_t chunks) noexcept nogil:
    """What goes into the products, of some tiles."""
    cdef const TileLoop *s = <const TileLoop *> context
    cdef const Window *w = &s.a.w
    cdef int64_t across = (w.out_w + 1) // 2, t = s.n * chunk // chunks
    cdef int64_t h = 2 * ((s.first + t) // across), i = 2 * ((s.first + t) % across)
    cdef const_row taps[WAYS]
    cdef uint64_t token = fpu_enter()
    for t in range(t, s.n * (chunk + 1) // chunks):
        find_tile(w, s.x, h - w.pad_h, i - w.pad_w, s.zeros, taps)
        s.f.table.winograd_in(s.a.channels, taps, s.ins + t * s.a.channels, s.in_step)
        i += 2
        if i >= w.out_w:
            h, i = h + 2, 0
    fpu_leave(token)


cdef void products_chunk(void *context, int64_t chunk, int64_t chunks) noexcept nogil:
    """Some of the 16 products."""
    cdef const TileLoop *s = <const TileLoop *> context
    cdef Frame *f = s.f
    cdef int64_t k, packed, C = s.a.channels, N = s.a.outs
    cdef const float *rows
    cdef uint64_t token = fpu_enter()
    for k in range(WAYS * chunk // chunks, WAYS * (chunk + 1) // chunks):
        packed, rows = s.a.packed + k, s.ins + k * s.in_step
        if C <= SHORT:
            f.table.slide(1, C, N, f.linears[packed], f.linear_acts[packed], &rows, C, s.outs + k * s.out_step, N, s.n)
        else:
            f.table.linear(f.linear_products[packed], C, N, f.linears[packed], f.linear_acts[packed], rows, C,
                           s.outs + k * s.out_step, N, 0, s.n, 0, f.table.linear_blocks(C, N))
    fpu_leave(token)


cdef void results_chunk(void *context, int64_t chunk, int64_t chunks) noexcept nogil:
    cdef const TileLoop *s = <const TileLoop *> context
    cdef const TileArgs *a = s.a
    cdef const Window *w = &a.w
    cdef int64_t across = (w.out_w + 1) // 2, t = s.n * chunk // chunks
    cdef int64_t h = 2 * ((s.first + t) // across), i = 2 * ((s.first + t) % across)
    cdef const float *bias = at(s.f, a.bias_buffer, a.bias_offset) if a.bias_buffer >= 0 else NULL
    cdef const float *alpha_beta = <const float *> s.f.base[a.act_buffer]
    cdef float *ends[4]
    cdef frnn_act act
    cdef uint64_t token = fpu_enter()
    act.fn, act.alpha, act.beta = <int32_t> a.fn, alpha_beta[0], alpha_beta[1]
    for t in range(t, s.n * (chunk + 1) // chunks):
        find_ends(w, s.y, h, i, ends)
        s.f.table.winograd_out(a.outs, s.outs + t * a.outs, s.out_step, bias, act, ends)
        i += 2
        if i >= w.out_w:
            h, i = h + 2, 0
    fpu_leave(token)


cdef inline void shared(TileLoop *s, frnn_chunk_fn fn, int64_t threads) noexcept nogil:
    if threads == 1:
        fn(s, 0, 1)
    else:
        team_for(s.f.team, min(CHUNKS * threads, WAYS), fn, s)


cdef int run_tiles(const int64_t *args, Frame *f) noexcept nogil:
    """A cache line lies between the rows of one product and those of the next, or all of them would be in the same sets
    of L1."""
    cdef const TileArgs *a = <const TileArgs *> args
    cdef const Window *w = &a.w
    cdef int64_t b, tiles = ((w.out_h + 1) // 2) * ((w.out_w + 1) // 2), work, threads
    cdef TileLoop s
    s.a, s.f = a, f
    s.ins = <float *> f.base[a.scratch]
    s.outs = s.ins + WAYS * (a.tiles * a.channels + LINE)
    s.zeros = s.outs + WAYS * (a.tiles * a.outs + LINE)
    memset(s.zeros, 0, a.channels * sizeof(float))
    for b in range(w.batch):
        s.x, s.y = at(f, w.x_buffer, w.x_offset) + b * w.x_batch, at(f, w.y_buffer, w.y_offset) + b * w.y_batch
        s.first = 0
        while s.first < tiles:
            s.n = min(a.tiles, tiles - s.first)
            s.in_step, s.out_step = s.n * a.channels + LINE, s.n * a.outs + LINE
            work = 2 * WAYS * s.n * a.channels * a.outs
            if halt(f, work):
                return DONE
            threads = team_size(f.team) if work >= SHARED_TILES else 1
            shared(&s, sums_chunk, threads)
            shared(&s, products_chunk, threads)
            shared(&s, results_chunk, threads)
            s.first += s.n
    return DONE


cdef union Args:
    TileArgs tiles

cdef Args args
number(&args, sizeof(args))
add_op("conv_tiles", args.tiles, run_tiles, NULL)
