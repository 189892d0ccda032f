# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Convolutions that read their input where it is, without patches of their own for each position: over rows of
positions of channels-last memory, whose windows overlap.

A band is some rows and columns of the output, and the part of the input that they read. If the windows reach into
padding, that part is copied with zeros around it, a band at a time; else only rows above and below the map are zeros.
Threads share the bands. Every sum has the order of _windows.pyx: taps by row, by column, then channels, the bias last.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

from fastrnn.machine._isa cimport FRNN_TILE_ROWS, fpu_enter, fpu_leave, frnn_act, team_for, team_size
from fastrnn.ops._frame cimport CHUNKS, Frame, at, const_row, halt
from fastrnn.ops._walk cimport DONE, add_op, number
from fastrnn.ops._window cimport PARTS, Window, span_h, span_w

cdef enum:
    BAND_FLOATS = 16384  # of an input with padding: 64 KiB, which stays in L2 beside the results
    MOST_TAPS = 128
    SHARED_BANDS = 500_000  # operations of a convolution that threads share
    BANDS_WORK = 100_000_000  # operations between two looks for signals

cdef struct BandArgs:
    Window w
    int64_t packed, groups, channels, outs, scratch, room  # channels, outs: of one group; room: floats of a part
    # of a depthwise convolution: its weights, repeated so that they fill whole vectors
    int64_t period, weights_buffer, weights_offset, bias_buffer, bias_offset, fn, act_buffer


cdef struct Bands:  # how a map is cut
    const BandArgs *a
    Frame *f
    frnn_act act
    int64_t width  # channels of a position
    int64_t rows, columns, row_bands, column_bands, first, count
    bint edges, copied  # windows reach rows beyond the map; what they read is copied


cdef struct Band:
    int64_t batch, top, left, rows, columns  # of the output
    const float *x  # of what (top, left) reads first, floats from a row to the next and from a column to the next
    int64_t x_h, x_w, above, below  # rows before `above` and from `below` on, counted from x, are zeros
    const float *zeros


# ---- scratch, in floats --------------------------------------------------------------------------------------------

def band_room(int64_t taps_h, int64_t taps_w, int64_t stride_w, int64_t dilation_h, int64_t dilation_w,
              int64_t channels, columns):
    """Floats that one part of a convolution over so many channels takes for copies of its input; 0 if a band would not
    fit. columns: of the output, None if they are not known."""
    cdef int64_t span = (taps_w - 1) * dilation_w + 1, rows = (taps_h - 1) * dilation_h + 1
    cdef int64_t most = 2 * FRNN_TILE_ROWS if columns is None else min(<int64_t> columns, 2 * FRNN_TILE_ROWS)
    if taps_h * taps_w > MOST_TAPS or rows * ((most - 1) * stride_w + span) * channels > BAND_FLOATS:
        return 0
    return BAND_FLOATS


def band_scratch(room):
    """Of all parts, with zeros for rows beyond the map."""
    return PARTS * room


# ---- bands ---------------------------------------------------------------------------------------------------------

cdef void cut(Bands *s, int64_t threads) noexcept nogil:
    """Bands that fit their room. With several threads, enough of them."""
    cdef const BandArgs *a = s.a
    cdef const Window *w = &a.w
    cdef int64_t units
    s.width = a.channels * a.groups if a.period == 0 else a.channels
    s.rows, s.columns = w.out_h, w.out_w
    s.edges = w.pad_h > 0 or span_h(w, w.out_h) - w.pad_h > w.in_h
    s.copied = w.pad_w > 0 or span_w(w, w.out_w) - w.pad_w > w.in_w or (
        w.x_w != s.width and (s.edges or a.period > 0))
    if s.copied:
        if span_h(w, 1) * span_w(w, s.columns) * s.width > a.room:
            s.columns = (a.room // (span_h(w, 1) * s.width) - span_w(w, 1)) // w.stride_w + 1
        s.rows = (a.room // (span_w(w, s.columns) * s.width) - span_h(w, 1)) // w.stride_h + 1
        s.rows = min(s.rows, w.out_h)
    elif s.edges:  # zeros of a row are as long as what it reads
        if span_w(w, s.columns) * s.width > a.room:
            s.columns = (a.room // s.width - span_w(w, 1)) // w.stride_w + 1
    if threads > 1:
        units = w.batch * ((w.out_w + s.columns - 1) // s.columns)
        s.rows = max(min(s.rows, w.out_h * units // (CHUNKS * threads)), 1)
        if w.out_h == 1 and w.batch == 1:
            s.columns = max(min(s.columns, w.out_w // (CHUNKS * threads)), min(s.columns, 4 * FRNN_TILE_ROWS))
    s.row_bands = (w.out_h + s.rows - 1) // s.rows
    s.column_bands = (w.out_w + s.columns - 1) // s.columns


cdef void fill(const Bands *s, Band *b, const float *x, int64_t h, int64_t i, float *to) noexcept nogil:
    """Copies what a band reads from row h, column i of x on, with zeros in the padding."""
    cdef const Window *w = &s.a.w
    cdef int64_t r, c, rows = span_h(w, b.rows), columns = span_w(w, b.columns), width = s.width
    cdef int64_t before = min(max(-i, 0), columns), end = max(min(w.in_w - i, columns), before)
    b.x, b.x_h, b.x_w, b.above, b.below = to, columns * width, width, 0, rows
    for r in range(rows):
        if h + r < 0 or h + r >= w.in_h:
            memset(to, 0, columns * width * sizeof(float))
            to += columns * width
            continue
        memset(to, 0, before * width * sizeof(float))
        if w.x_w == width:
            memcpy(to + before * width, x + (h + r) * w.x_h + (i + before) * width,
                   (end - before) * width * sizeof(float))
        else:
            for c in range(before, end):
                memcpy(to + c * width, x + (h + r) * w.x_h + (i + c) * w.x_w, width * sizeof(float))
        memset(to + end * width, 0, (columns - end) * width * sizeof(float))
        to += columns * width


cdef bint find_band(const Bands *s, int64_t place, float *scratch, Band *b) noexcept nogil:
    """Band `place` of the map; what it reads is made ready."""
    cdef const Window *w = &s.a.w
    cdef int64_t h, i
    cdef const float *x
    b.left = place % s.column_bands * s.columns
    b.top = place // s.column_bands % s.row_bands * s.rows
    b.batch = place // s.column_bands // s.row_bands
    b.rows, b.columns = min(s.rows, w.out_h - b.top), min(s.columns, w.out_w - b.left)
    if b.rows <= 0 or b.columns <= 0:
        return False
    h, i = b.top * w.stride_h - w.pad_h, b.left * w.stride_w - w.pad_w
    x = at(s.f, w.x_buffer, w.x_offset) + b.batch * w.x_batch
    b.zeros = scratch
    if s.copied:
        fill(s, b, x, h, i, scratch)
        return True
    b.x, b.x_h, b.x_w = x + h * w.x_h + i * w.x_w, w.x_h, w.x_w
    b.above, b.below = -h, w.in_h - h
    if s.edges:
        memset(scratch, 0, span_w(w, b.columns) * s.width * sizeof(float))
    return True


cdef int64_t find_pieces(const Bands *s, const Band *b, int64_t row, int64_t first, int64_t piece,
                         const_row *pieces) noexcept nogil:
    """Where the windows of output row `row` of a band read: one pointer for each tap, or for each row of taps if
    `piece` is 0, because they are one run of memory. first: of the channels."""
    cdef const Window *w = &s.a.w
    cdef int64_t a, c, n = 0, line, columns = w.taps_w if piece else 1
    for a in range(w.taps_h):
        line = row * w.stride_h + a * w.dilation_h
        for c in range(columns):
            if b.above <= line < b.below:
                pieces[n] = b.x + line * b.x_h + c * w.dilation_w * b.x_w + first
            else:
                pieces[n] = b.zeros
            n += 1
    return n


# ---- products ------------------------------------------------------------------------------------------------------

cdef void slide_band(const Bands *s, const Band *b) noexcept nogil:
    """The products of a band. Rows of a tile are positions of a row of the map, or of a column if those are more and
    all of them are there."""
    cdef const BandArgs *a = s.a
    cdef const Window *w = &a.w
    cdef Frame *f = s.f
    cdef int64_t group, i, n, piece, length
    cdef const_row pieces[MOST_TAPS]
    cdef float *y
    cdef bint down = s.copied and b.rows > b.columns
    for group in range(a.groups):
        # taps of a row are one run of memory if no channels of other groups or other tensors are between them
        piece = 0 if a.groups == 1 and w.dilation_w == 1 and b.x_w == a.channels else 1
        length = a.channels if piece else a.channels * w.taps_w
        y = at(f, w.y_buffer, w.y_offset) + b.batch * w.y_batch + b.top * w.y_h + b.left * w.y_w + group * a.outs
        if down:
            for i in range(b.columns):
                n = find_pieces(s, b, 0, i * w.stride_w * b.x_w + group * a.channels, piece, pieces)
                f.table.slide(n, length, a.outs, f.linears[a.packed + group], s.act, pieces, w.stride_h * b.x_h,
                              y + i * w.y_w, w.y_h, b.rows)
            continue
        for i in range(b.rows):
            n = find_pieces(s, b, i, group * a.channels, piece, pieces)
            f.table.slide(n, length, a.outs, f.linears[a.packed + group], s.act, pieces, w.stride_w * b.x_w,
                          y + i * w.y_h, w.y_w, b.columns)


cdef void depthwise_band(const Bands *s, const Band *b) noexcept nogil:
    cdef const BandArgs *a = s.a
    cdef const Window *w = &a.w
    cdef Frame *f = s.f
    cdef int64_t i
    cdef const_row pieces[MOST_TAPS]
    cdef const float *weights = at(f, a.weights_buffer, a.weights_offset)
    cdef const float *bias = at(f, a.bias_buffer, a.bias_offset) if a.bias_buffer >= 0 else NULL
    cdef float *y = at(f, w.y_buffer, w.y_offset) + b.batch * w.y_batch + b.top * w.y_h + b.left * w.y_w
    for i in range(b.rows):
        find_pieces(s, b, i, 0, 1, pieces)
        f.table.depthwise_row(b.columns * a.channels, a.period, w.taps_h * w.taps_w, weights, bias, s.act, pieces,
                              y + i * w.y_h)


cdef void band_chunk(void *context, int64_t chunk, int64_t chunks) noexcept nogil:
    cdef const Bands *s = <const Bands *> context
    cdef int64_t i
    cdef Band b
    cdef uint64_t token = fpu_enter()
    cdef float *scratch = (<float *> s.f.base[s.a.scratch]) + chunk * s.a.room
    for i in range(s.first + s.count * chunk // chunks, s.first + s.count * (chunk + 1) // chunks):
        if not find_band(s, i, scratch, &b):
            continue
        if s.a.period > 0:
            depthwise_band(s, &b)
        else:
            slide_band(s, &b)
    fpu_leave(token)


cdef int run_bands(const int64_t *args, Frame *f) noexcept nogil:
    cdef const BandArgs *a = <const BandArgs *> args
    cdef const Window *w = &a.w
    cdef int64_t threads = team_size(f.team), bands, most, work
    cdef const float *alpha_beta
    cdef Bands s
    if w.batch <= 0 or w.out_h <= 0 or w.out_w <= 0:
        return DONE
    s.a, s.f = a, f
    if a.period > 0:
        alpha_beta = <const float *> f.base[a.act_buffer]
        s.act.fn, s.act.alpha, s.act.beta = <int32_t> a.fn, alpha_beta[0], alpha_beta[1]
    else:
        s.act = f.linear_acts[a.packed]
    work = 2 * w.batch * w.out_h * w.out_w * w.taps_h * w.taps_w * a.channels * max(a.outs * a.groups, 1)
    if work < SHARED_BANDS:
        threads = 1
    cut(&s, threads)
    bands = w.batch * s.row_bands * s.column_bands
    most = bands if f.watch == NULL else max(BANDS_WORK * threads // max(work // bands, 1), threads)
    s.first = 0
    while s.first < bands:
        s.count = min(most, bands - s.first)
        if threads == 1:
            band_chunk(&s, 0, 1)
        else:
            team_for(f.team, min(min(CHUNKS * threads, PARTS), s.count), band_chunk, &s)
        if halt(f, work // bands * s.count):
            return DONE
        s.first += s.count
    return DONE


cdef union Args:
    BandArgs band

cdef Args args
number(&args, sizeof(args))
add_op("conv_rows", args.band, run_bands, NULL)
add_op("depthwise_rows", args.band, run_bands, NULL)
