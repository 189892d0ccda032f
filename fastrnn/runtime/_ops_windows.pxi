# Part of _ops.pyx: windows over one or two spatial axes (conv, depthwise conv, pooling), arg max, running sums
# along an axis, and exact integer arithmetic. A convolution of one spatial axis has a first axis of size 1.
#
# Every output element is one sum in one fixed order: taps by row, by column, then channels, the bias last; a tap in the
# padding adds 0 * w. So its bits do not depend on where a block of positions begins or which positions run together.

from fastrnn.machine._isa cimport (
    FRNN_ABS,
    FRNN_DIV,
    FRNN_EQUAL,
    FRNN_GREATER,
    FRNN_GREATER_EQUAL,
    FRNN_LESS,
    FRNN_LESS_EQUAL,
    FRNN_MIN,
    FRNN_MOD,
    FRNN_MUL,
    FRNN_NEG,
    FRNN_POW,
    FRNN_SIGN,
    FRNN_SUB,
    FRNN_WHERE,
)

DEF DIRECT_ROWS = 24  # four tiles of the widest: what one more run costs no longer shows

cdef struct Window:  # output position (h, w) reads x at (h * stride_h - pad_h + i * dilation_h, ..), i < taps_h
    int64_t batch, x_buffer, x_offset, x_batch, x_h, x_w, in_h, in_w
    int64_t y_buffer, y_offset, y_batch, y_h, y_w, out_h, out_w
    int64_t taps_h, taps_w, stride_h, stride_w, dilation_h, dilation_w, pad_h, pad_w

cdef struct ConvArgs:
    Window w
    int64_t packed, groups, channels, outs, patches, scratch  # channels, outs: of one group; patches: rows of scratch

cdef struct DepthwiseArgs:
    Window w
    int64_t channels, weights_buffer, weights_offset, bias_buffer, bias_offset, fn, act_buffer, scratch

cdef struct PoolArgs:
    Window w
    int64_t channels, fn, count_pads, end_h, end_w, scratch  # end: where the padding after the last element ends

cdef struct ArgmaxArgs:
    int64_t count, step, largest, last, x_buffer, x_offset, y_buffer, y_offset
    int64_t n0, n1, n2, x0, x1, x2, y0, y1, y2

cdef struct CumsumArgs:
    int64_t type, count, x_step, y_step, exclusive, reverse, x_buffer, x_offset, y_buffer, y_offset
    int64_t n0, n1, n2, x0, x1, x2, y0, y1, y2

cdef struct IntegersArgs:
    int64_t fn, n_in
    int64_t in_buffer[3]
    int64_t in_offset[3]
    int64_t in_type[3]
    int64_t out_buffer, out_offset, out_type, rank
    int64_t size[6]
    int64_t in_stride[18]
    int64_t out_stride[6]

_window = ("batch", "x_buffer", "x_offset", "x_batch", "x_h", "x_w", "in_h", "in_w", "y_buffer", "y_offset", "y_batch",
           "y_h", "y_w", "out_h", "out_w", "taps_h", "taps_w", "stride_h", "stride_w", "dilation_h", "dilation_w",
           "pad_h", "pad_w")

cdef enum WindowOpKind:
    OP_CONV = 100
    OP_DEPTHWISE, OP_POOL, OP_ARGMAX, OP_CUMSUM, OP_INTEGERS

for _kind, _code, _size, _fields in (
    ("conv", OP_CONV, sizeof(ConvArgs), (*_window, "packed", "groups", "channels", "outs", "patches", "scratch")),
    ("depthwise", OP_DEPTHWISE, sizeof(DepthwiseArgs),
     (*_window, "channels", "weights_buffer", "weights_offset", "bias_buffer", "bias_offset", "fn", "act_buffer",
      "scratch")),
    ("pool", OP_POOL, sizeof(PoolArgs), (*_window, "channels", "fn", "count_pads", "end_h", "end_w", "scratch")),
    ("argmax", OP_ARGMAX, sizeof(ArgmaxArgs), ("count", "step", "largest", "last", *_ends, *_levels("x", "y"))),
    ("cumsum", OP_CUMSUM, sizeof(CumsumArgs),
     ("type", "count", "x_step", "y_step", "exclusive", "reverse", *_ends, *_levels("x", "y"))),
    ("integers", OP_INTEGERS, sizeof(IntegersArgs),
     ("fn", "n_in", *(f"in{i}_{what}" for what in ("buffer", "offset", "type") for i in range(3)), "out_buffer",
      "out_offset", "out_type", "rank", *(f"size{i}" for i in range(RANK)),
      *(f"in{j}_stride{i}" for j in range(3) for i in range(RANK)), *(f"out_stride{i}" for i in range(RANK)))),
):
    if 8 * len(_fields) != _size:
        raise ImportError(f"op {_kind}: {len(_fields)} fields named, the struct has {_size // 8}")
    OP_FIELDS[_kind], KINDS[_kind] = _fields, _code


cdef struct Run:  # rows for one call of the product: row r reads x + r * x_step, writes y + r * y_step
    int64_t n, x_step, y_step
    const float *x
    float *y


cdef inline void flush(Run *run, const ConvArgs *a, int64_t packed, Frame *f) noexcept nogil:
    cdef int64_t K = f.linear_sizes[2 * packed], N = f.linear_sizes[2 * packed + 1]
    if run.n > 0:
        f.table.linear(K, N, f.linears[packed], f.linear_acts[packed], run.x, run.x_step, run.y, run.y_step, 0, run.n,
                       0, f.table.linear_blocks(K, N))
    run.n = 0


cdef inline void append(Run *run, int64_t n, const float *x, int64_t x_step, float *y, int64_t y_step,
                        const ConvArgs *a, int64_t packed, Frame *f) noexcept nogil:
    """n more rows: they join the run where they lie as its rows do, else the run is computed and they begin another."""
    cdef bint joins = run.n > 0 and (n == 1 or (x_step == run.x_step and y_step == run.y_step))
    if joins and run.n == 1 and n == 1 and x > run.x and y > run.y:  # two rows make a step
        run.x_step, run.y_step = x - run.x, y - run.y
    if joins and x == run.x + run.n * run.x_step and y == run.y + run.n * run.y_step:
        run.n += n
        return
    flush(run, a, packed, f)
    run.n, run.x, run.x_step, run.y, run.y_step = n, x, x_step, y, y_step


cdef inline void inner_span(const Window *w, int64_t *first, int64_t *last) noexcept nogil:
    """Columns first <= w < last of the output whose taps all lie inside a row of the input."""
    cdef int64_t room = w.in_w - 1 - (w.taps_w - 1) * w.dilation_w + w.pad_w
    first[0] = min((w.pad_w + w.stride_w - 1) // w.stride_w if w.pad_w > 0 else 0, w.out_w)
    last[0] = max(min(room // w.stride_w + 1 if room >= 0 else 0, w.out_w), first[0])


cdef inline bint rows_inside(const Window *w, int64_t h) noexcept nogil:
    return h >= 0 and h + (w.taps_h - 1) * w.dilation_h < w.in_h


cdef void fill_patch(const Window *w, const float *x, int64_t h, int64_t i, int64_t channels,
                     float *patch) noexcept nogil:
    """All taps of one position, whose first is row h, column i of x, one after the other; zeros in the padding."""
    cdef int64_t a, b, row, column
    cdef bint inside = i >= 0 and i + (w.taps_w - 1) * w.dilation_w < w.in_w
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
                    memcpy(patch, x + row * w.x_h + column * w.x_w, channels * sizeof(float))
                else:
                    memset(patch, 0, channels * sizeof(float))
                patch += channels


cdef void run_conv(const ConvArgs *a, Frame *f) noexcept nogil:
    cdef int64_t group
    for group in range(a.groups):
        run_conv_group(a, group, f)


cdef void run_conv_group(const ConvArgs *a, int64_t group, Frame *f) noexcept nogil:
    """The products of all positions. Where a patch is one run of memory, rows are read where they lie, overlapping;
    else they are copied together, some positions at a time. So are those that lie inside where there are few of them
    between others in the padding: each run of rows reads all weights (Silero's first convolution, 4 positions: 6.6 us
    in three runs, 4.0 in one)."""
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
                    fill_patch(w, x, top, i * w.stride_w - w.pad_w, a.channels, patch)
                    append(&run, 1, patch, size, y + i * w.y_w, w.y_w, a, packed, f)
                    used += 1
                i = next
    flush(&run, a, packed, f)


cdef int64_t find_taps(const Window *w, const float *x, int64_t h, int64_t i, const float *outside,
                       const_row *taps) noexcept nogil:
    """Pointers to the taps of one position; those in the padding are `outside`, or left out where that is NULL."""
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


cdef void run_depthwise(const DepthwiseArgs *a, Frame *f) noexcept nogil:
    """Every channel for itself, vectors over channels; 16 positions of a row a call of the kernel."""
    cdef const Window *w = &a.w
    cdef int64_t b, h, i, n, K = w.taps_h * w.taps_w
    cdef const float *x
    cdef float *y
    cdef const_row *taps = <const_row *> f.base[a.scratch]
    cdef float *zeros = <float *> (taps + 16 * K)
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
                if n == 16 or i == w.out_w - 1:
                    f.table.depthwise(a.channels, K, weights, bias, act, n, taps, y + (i + 1 - n) * w.y_w, w.y_w)
                    n = 0


cdef inline int64_t padded_taps(int64_t first, int64_t taps, int64_t dilation, int64_t end) noexcept nogil:
    """Taps that lie before `end`; those beyond are no padding but what rounding the number of outputs up has added."""
    cdef int64_t n = 0, i
    for i in range(taps):
        n += first + i * dilation < end
    return n


cdef void run_pool(const PoolArgs *a, Frame *f) noexcept nogil:
    cdef const Window *w = &a.w
    cdef int64_t b, h, i, n, count, top, left
    cdef const float *x
    cdef float *y
    cdef const_row *taps = <const_row *> f.base[a.scratch]
    for b in range(w.batch):
        x = at(f, w.x_buffer, w.x_offset) + b * w.x_batch
        for h in range(w.out_h):
            y = at(f, w.y_buffer, w.y_offset) + b * w.y_batch + h * w.y_h
            top = h * w.stride_h - w.pad_h
            for i in range(w.out_w):
                left = i * w.stride_w - w.pad_w
                n = count = find_taps(w, x, top, left, NULL, taps)
                if a.count_pads:
                    count = padded_taps(top, w.taps_h, w.dilation_h, a.end_h)
                    count *= padded_taps(left, w.taps_w, w.dilation_w, a.end_w)
                f.table.pool(<int32_t> a.fn, a.channels, n, <float> count, taps, y + i * w.y_w)


cdef inline int64_t best_of(const float *x, int64_t n, int64_t step, bint largest, bint last) noexcept nogil:
    """Where the largest (or smallest) of n elements is; the first or the last of equal ones. The first NaN wins."""
    cdef int64_t i, best = 0
    cdef float value
    for i in range(n):
        value = x[i * step]
        if value != value:
            return i
        if i == 0:
            continue
        if (value > x[best * step]) if largest else (value < x[best * step]):
            best = i
        elif last and value == x[best * step]:
            best = i
    return best


cdef void run_argmax(const ArgmaxArgs *a, Frame *f) noexcept nogil:
    cdef int64_t i, j, k
    cdef const float *x = at(f, a.x_buffer, a.x_offset)
    cdef int64_t *y = (<int64_t *> f.base[a.y_buffer]) + a.y_offset
    for i in range(a.n0):
        for j in range(a.n1):
            for k in range(a.n2):
                y[i * a.y0 + j * a.y1 + k * a.y2] = best_of(x + i * a.x0 + j * a.x1 + k * a.x2, a.count, a.step,
                                                            a.largest, a.last)


cdef void sum_along(const CumsumArgs *a, const void *x, int64_t x_at, void *y, int64_t y_at) noexcept nogil:
    """One row. float64 sums of floats, so that a long row keeps its small terms; uint64 of integers, which wrap."""
    cdef int64_t i, at_, x_step = a.x_step, y_step = a.y_step
    cdef double real = 0.0
    cdef uint64_t whole = 0
    if a.reverse:
        x_at += (a.count - 1) * x_step
        y_at += (a.count - 1) * y_step
        x_step, y_step = -x_step, -y_step
    for i in range(a.count):
        at_ = y_at + i * y_step
        if a.exclusive and a.type == 0:
            (<float *> y)[at_] = <float> real
        elif a.exclusive:
            (<int64_t *> y)[at_] = <int64_t> whole
        if a.type == 0:
            real += (<const float *> x)[x_at + i * x_step]
        else:
            whole += <uint64_t> (<const int64_t *> x)[x_at + i * x_step]
        if not a.exclusive and a.type == 0:
            (<float *> y)[at_] = <float> real
        elif not a.exclusive:
            (<int64_t *> y)[at_] = <int64_t> whole


cdef void run_cumsum(const CumsumArgs *a, Frame *f) noexcept nogil:
    cdef int64_t i, j, k
    for i in range(a.n0):
        for j in range(a.n1):
            for k in range(a.n2):
                sum_along(a, f.base[a.x_buffer], a.x_offset + i * a.x0 + j * a.x1 + k * a.x2, f.base[a.y_buffer],
                          a.y_offset + i * a.y0 + j * a.y1 + k * a.y2)


# ---- integers ----------------------------------------------------------------------------------------------------

cdef inline int64_t load_integer(const void *p, int64_t type, int64_t i) noexcept nogil:
    if type == 1:
        return (<const int64_t *> p)[i]
    if type == 2:
        return (<const int32_t *> p)[i]
    if type == 3:
        return (<const uint8_t *> p)[i] != 0
    return (<const float *> p)[i] != 0  # a bool on its way


cdef inline void store_integer(void *p, int64_t type, int64_t i, int64_t value) noexcept nogil:
    if type == 1:
        (<int64_t *> p)[i] = value
    elif type == 2:
        (<int32_t *> p)[i] = <int32_t> <uint64_t> value
    elif type == 3:
        (<uint8_t *> p)[i] = value != 0
    else:
        (<float *> p)[i] = value


cdef inline int64_t integer_quotient(int64_t a, int64_t b) noexcept nogil:
    """Towards zero; by zero: zero. Divided by -1 the smallest integer is itself, as it wraps."""
    if b == 0:
        return 0
    if b == -1:
        return <int64_t> (0 - <uint64_t> a)
    return a // b


cdef inline int64_t integer_rest(int64_t a, int64_t b) noexcept nogil:
    """The rest that has the sign of b; of a division by zero: zero."""
    cdef int64_t rest
    if b == 0 or b == -1:
        return 0
    rest = a % b
    return rest + b if rest != 0 and (rest < 0) != (b < 0) else rest


cdef inline int64_t integer_power(int64_t a, int64_t b) noexcept nogil:
    """By squaring, wrapping. To a negative power: 1 / a**-b towards zero (of zero: zero)."""
    cdef uint64_t result = 1, base = <uint64_t> a
    if b < 0:
        return a if a == 1 or (a == -1 and b % 2 != 0) else 1 if a == -1 else 0
    while b > 0:
        if b & 1:
            result *= base
        base *= base
        b >>= 1
    return <int64_t> result


cdef inline int64_t integer_function(int64_t fn, int64_t a, int64_t b, int64_t c) noexcept nogil:
    if fn == FRNN_ADD:
        return <int64_t> (<uint64_t> a + <uint64_t> b)
    if fn == FRNN_SUB:
        return <int64_t> (<uint64_t> a - <uint64_t> b)
    if fn == FRNN_MUL:
        return <int64_t> (<uint64_t> a * <uint64_t> b)
    if fn == FRNN_DIV:
        return integer_quotient(a, b)
    if fn == FRNN_MOD:
        return integer_rest(a, b)
    if fn == FRNN_POW:
        return integer_power(a, b)
    if fn == FRNN_MIN:
        return a if a < b else b
    if fn == FRNN_MAX:
        return a if a > b else b
    if fn == FRNN_EQUAL:
        return a == b
    if fn == FRNN_GREATER:
        return a > b
    if fn == FRNN_GREATER_EQUAL:
        return a >= b
    if fn == FRNN_LESS:
        return a < b
    if fn == FRNN_LESS_EQUAL:
        return a <= b
    if fn == FRNN_WHERE:
        return b if a else c
    if fn == FRNN_NEG or (fn == FRNN_ABS and a < 0):
        return <int64_t> (0 - <uint64_t> a)
    if fn == FRNN_SIGN:
        return (a > 0) - (a < 0)
    return a  # abs of what is not negative, identity


cdef void run_integers(const IntegersArgs *a, Frame *f) noexcept nogil:
    """One function of int64, int32 and bool operands over a space of up to 6 axes, element by element."""
    cdef int64_t index[6]
    cdef int64_t at_[3]
    cdef int64_t value[3]
    cdef int64_t axis, j, out = a.out_offset
    for axis in range(a.rank):
        index[axis] = 0
        if a.size[axis] == 0:
            return
    for j in range(3):
        at_[j], value[j] = a.in_offset[j], 0
    while True:
        for j in range(a.n_in):
            value[j] = load_integer(f.base[a.in_buffer[j]], a.in_type[j], at_[j])
        store_integer(f.base[a.out_buffer], a.out_type, out, integer_function(a.fn, value[0], value[1], value[2]))
        axis = a.rank - 1
        while axis >= 0:
            index[axis] += 1
            out += a.out_stride[axis]
            for j in range(a.n_in):
                at_[j] += a.in_stride[6 * j + axis]
            if index[axis] < a.size[axis]:
                break
            out -= a.size[axis] * a.out_stride[axis]
            for j in range(a.n_in):
                at_[j] -= a.size[axis] * a.in_stride[6 * j + axis]
            index[axis] = 0
            axis -= 1
        if axis < 0:
            return


cdef void run_window_op(int32_t kind, const int64_t *a, Frame *f) noexcept nogil:
    if kind == OP_CONV:
        run_conv(<const ConvArgs *> a, f)
    elif kind == OP_DEPTHWISE:
        run_depthwise(<const DepthwiseArgs *> a, f)
    elif kind == OP_POOL:
        run_pool(<const PoolArgs *> a, f)
    elif kind == OP_ARGMAX:
        run_argmax(<const ArgmaxArgs *> a, f)
    elif kind == OP_CUMSUM:
        run_cumsum(<const CumsumArgs *> a, f)
    else:
        run_integers(<const IntegersArgs *> a, f)
