# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Ops on single elements: elementwise programs, copies that cast, gathers, arg max, sums along an axis, zeros."""

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastrnn.machine._isa cimport (
    FRNN_MAX_INPUTS, FRNN_MAX_RANK, fpu_enter, fpu_leave, frnn_space, team_for, team_size,
)
from fastrnn.ops._frame cimport CHUNKS, LEVELS, Frame, Rows, at, const_row
from fastrnn.ops._items cimport (
    BOOL, FLOAT32, FLOAT64, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, bytes_of, load_integer,
    load_real, store_integer, store_real,
)
from fastrnn.ops._walk cimport DONE, add_op, number

cdef enum:
    SHORT_RUN = 4  # elements of an axis: long runs along another axis are quicker

cdef enum Held:  # rows of a table: as they are, or float32 in a smaller format (graph/precision.py)
    AS_IT_IS, BFLOAT16, SCALED_INT8

HELD = {"float32": AS_IT_IS, "bfloat16": BFLOAT16, "int8": SCALED_INT8, "int8-a16": SCALED_INT8}
RANK = FRNN_MAX_RANK  # axes of an op that walks element by element
TYPE_CODES = {
    "float32": FLOAT32, "float64": FLOAT64, "bool": BOOL, "int8": INT8, "int16": INT16, "int32": INT32, "int64": INT64,
    "uint8": UINT8, "uint16": UINT16, "uint32": UINT32, "uint64": UINT64,
}

cdef enum:
    SHARED_ELEMENTS = 100_000  # of all instructions of a program that threads share

cdef struct ElementwiseArgs:
    int64_t program, n_in
    int64_t in_buffer[FRNN_MAX_INPUTS]
    int64_t in_offset[FRNN_MAX_INPUTS]
    int64_t out_buffer, out_offset
    frnn_space space

cdef struct CopyArgs:
    int64_t source_type, target_type, source_buffer, source_offset, target_buffer, target_offset, rank
    int64_t size[FRNN_MAX_RANK]
    int64_t source_stride[FRNN_MAX_RANK]
    int64_t target_stride[FRNN_MAX_RANK]

cdef struct GatherArgs:
    int64_t table_buffer, table_offset, table_row, count, inner, item, from_zero
    int64_t held, scale_buffer, scale_offset  # held: how the rows are held, see Held; scale of each row
    int64_t index_buffer, index_offset, index_type, y_buffer, y_offset
    int64_t n[LEVELS]
    int64_t index_stride[LEVELS]
    int64_t y_stride[LEVELS]

cdef struct ArgmaxArgs:
    int64_t type, count, step, largest, last
    Rows r

cdef struct CumsumArgs:
    int64_t type, count, x_step, y_step, exclusive, reverse
    Rows r

cdef struct ZeroArgs:
    int64_t buffer, offset, count


cdef struct ElementsLoop:
    const ElementwiseArgs *a
    Frame *f
    int64_t axis  # whose elements threads share


cdef void elements_chunk(void *context, int64_t chunk, int64_t chunks) noexcept nogil:
    """Some of the elements of one axis, with all of the others."""
    cdef const ElementsLoop *s = <const ElementsLoop *> context
    cdef const ElementwiseArgs *a = s.a
    cdef frnn_space space = a.space
    cdef const_row inputs[FRNN_MAX_INPUTS]
    cdef int64_t i, size = space.size[s.axis], first = size * chunk // chunks
    cdef uint64_t token = fpu_enter()
    space.size[s.axis] = size * (chunk + 1) // chunks - first
    for i in range(a.n_in):
        inputs[i] = at(s.f, a.in_buffer[i], a.in_offset[i]) + first * space.in_stride[i][s.axis]
    s.f.table.elementwise(&s.f.programs[a.program], &space, inputs,
                          at(s.f, a.out_buffer, a.out_offset) + first * space.out_stride[s.axis])
    fpu_leave(token)


cdef int run_elementwise(const int64_t *args, Frame *f) noexcept nogil:
    cdef const ElementwiseArgs *a = <const ElementwiseArgs *> args
    cdef const_row inputs[FRNN_MAX_INPUTS]
    cdef int64_t i, elements = 1, threads = team_size(f.team)
    cdef ElementsLoop s
    if threads > 1:
        s.a, s.f, s.axis = a, f, 0
        for i in range(a.space.rank):
            elements *= a.space.size[i]
            if a.space.size[s.axis] < CHUNKS * threads and s.axis + 1 < a.space.rank:
                s.axis = i
        if elements * f.programs[a.program].n_instructions >= SHARED_ELEMENTS:
            team_for(f.team, min(CHUNKS * threads, a.space.size[s.axis]), elements_chunk, &s)
            return DONE
    for i in range(a.n_in):
        inputs[i] = at(f, a.in_buffer[i], a.in_offset[i])
    f.table.elementwise(&f.programs[a.program], &a.space, inputs, at(f, a.out_buffer, a.out_offset))
    return DONE


cdef void copy_bits(const char *source, int64_t source_stride, char *target, int64_t target_stride, int64_t n,
                    int64_t item) noexcept nogil:
    """n elements of `item` bytes each, as they are."""
    cdef int64_t k
    if source_stride == target_stride == 1:
        memcpy(target, source, n * item)
    elif item == 4:
        for k in range(n):
            (<uint32_t *> target)[k * target_stride] = (<const uint32_t *> source)[k * source_stride]
    elif item == 8:
        for k in range(n):
            (<uint64_t *> target)[k * target_stride] = (<const uint64_t *> source)[k * source_stride]
    elif item == 1:
        for k in range(n):
            target[k * target_stride] = source[k * source_stride]
    else:
        for k in range(n):
            (<uint16_t *> target)[k * target_stride] = (<const uint16_t *> source)[k * source_stride]


cdef inline bint is_real(int64_t type) noexcept nogil:
    return type == FLOAT32 or type == FLOAT64


cdef void copy_run(const void *source, int64_t source_type, int64_t i, int64_t source_stride, void *target,
                   int64_t target_type, int64_t o, int64_t target_stride, int64_t n) noexcept nogil:
    """n elements of one axis. An int64 is rounded once on its way to float32, as a double would round it twice."""
    cdef int64_t k, item
    if source_type == target_type:
        item = bytes_of(source_type)
        copy_bits((<const char *> source) + i * item, source_stride, (<char *> target) + o * item, target_stride, n,
                  item)
    elif source_type == INT64 and target_type == FLOAT32:
        for k in range(n):
            (<float *> target)[o + k * target_stride] = <float> (<const int64_t *> source)[i + k * source_stride]
    elif source_type == UINT64 and target_type == FLOAT32:
        for k in range(n):
            (<float *> target)[o + k * target_stride] = <float> (<const uint64_t *> source)[i + k * source_stride]
    elif source_type == UINT8 and target_type == FLOAT32:
        for k in range(n):
            (<float *> target)[o + k * target_stride] = (<const uint8_t *> source)[i + k * source_stride]
    elif is_real(source_type) or is_real(target_type):
        for k in range(n):
            store_real(target, target_type, o + k * target_stride,
                       load_real(source, source_type, i + k * source_stride))
    else:
        for k in range(n):
            store_integer(target, target_type, o + k * target_stride,
                          load_integer(source, source_type, i + k * source_stride))


cdef int64_t crossing(const CopyArgs *a) noexcept nogil:
    """The axis on which one side is contiguous, as the other is on the last axis; -1 if there is none, or the copy is
    small."""
    cdef int64_t axis, last = a.rank - 1
    if a.source_type != a.target_type or bytes_of(a.source_type) != 4:
        return -1
    for axis in range(last):
        if a.size[axis] * a.size[last] >= 64 and a.source_stride[last] != a.target_stride[last] and (
                (a.source_stride[axis] == 1 and a.target_stride[last] == 1)
                or (a.target_stride[axis] == 1 and a.source_stride[last] == 1)):
            return axis
    return -1


cdef void copy_crossed(const CopyArgs *a, int64_t axis, const float *source, float *target, Frame *f) noexcept nogil:
    """Elements of the last axis and another one: the rows of one side are the columns of the other."""
    cdef int64_t last = a.rank - 1
    if a.source_stride[axis] == a.target_stride[last] == 1:
        f.table.turn(a.size[last], a.size[axis], source, a.source_stride[last], target, a.target_stride[axis])
    else:
        f.table.turn(a.size[axis], a.size[last], source, a.source_stride[axis], target, a.target_stride[last])


cdef int copy_all(const CopyArgs *a, Frame *f) noexcept nogil:
    cdef int64_t index[FRNN_MAX_RANK]
    cdef int64_t axis, last = a.rank - 1, i = a.source_offset, o = a.target_offset, crossed
    cdef const void *source = f.base[a.source_buffer]
    cdef void *target = f.base[a.target_buffer]
    if a.rank == 0:
        copy_run(source, a.source_type, i, 1, target, a.target_type, o, 1, 1)
        return DONE
    for axis in range(a.rank):
        index[axis] = 0
        if a.size[axis] == 0:
            return DONE
    crossed = crossing(a)
    while True:
        if crossed >= 0:
            copy_crossed(a, crossed, (<const float *> source) + i, (<float *> target) + o, f)
        else:
            copy_run(source, a.source_type, i, a.source_stride[last], target, a.target_type, o, a.target_stride[last],
                     a.size[last])
        axis = last - 1
        while axis >= 0:
            if axis == crossed:
                axis -= 1
                continue
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
            return DONE
    return DONE


cdef int run_copy(const int64_t *args, Frame *f) noexcept nogil:
    cdef const CopyArgs *a = <const CopyArgs *> args
    cdef CopyArgs turned
    cdef int64_t inner = a.rank - 1, outer = a.rank - 2
    if outer >= 0 and a.size[inner] <= SHORT_RUN and a.size[outer] > 4 * SHORT_RUN and crossing(a) < 0:
        turned = a[0]
        turned.size[inner], turned.size[outer] = a.size[outer], a.size[inner]
        turned.source_stride[inner], turned.source_stride[outer] = a.source_stride[outer], a.source_stride[inner]
        turned.target_stride[inner], turned.target_stride[outer] = a.target_stride[outer], a.target_stride[inner]
        return copy_all(&turned, f)
    return copy_all(a, f)


cdef inline void widen_row(const GatherArgs *a, const char *row, float scale, float *y) noexcept nogil:
    """One row of a table in reduced precision, as float32."""
    cdef int64_t i
    cdef const int8_t *steps = <const int8_t *> row
    cdef const uint16_t *halves = <const uint16_t *> row
    cdef uint32_t *bits = <uint32_t *> y
    if a.held == SCALED_INT8:
        for i in range(a.inner):
            y[i] = steps[i] * scale
    else:
        for i in range(a.inner):
            bits[i] = <uint32_t> halves[i] << 16


cdef int run_gather(const int64_t *args, Frame *f) noexcept nogil:
    """Rows of a table. Fails if an index is out of range."""
    cdef const GatherArgs *a = <const GatherArgs *> args
    cdef int64_t i, j, k, index, size = a.inner * a.item, low = 0 if a.from_zero else -a.count
    cdef int64_t y_item = a.item if a.held == AS_IT_IS else sizeof(float)
    cdef const char *table = <const char *> f.base[a.table_buffer] + a.table_offset * a.item
    cdef const float *scales = at(f, a.scale_buffer, a.scale_offset) if a.held == SCALED_INT8 else NULL
    cdef char *y = <char *> f.base[a.y_buffer] + a.y_offset * y_item
    cdef char *to
    for i in range(a.n[0]):
        for j in range(a.n[1]):
            for k in range(a.n[2]):
                index = a.index_offset + i * a.index_stride[0] + j * a.index_stride[1] + k * a.index_stride[2]
                if a.index_type == INT64:
                    index = (<const int64_t *> f.base[a.index_buffer])[index]
                else:
                    index = (<const int32_t *> f.base[a.index_buffer])[index]
                if index < low or index >= a.count:
                    f.bad = index
                    return 0
                if index < 0:
                    index += a.count
                to = y + (i * a.y_stride[0] + j * a.y_stride[1] + k * a.y_stride[2]) * y_item
                if a.held == AS_IT_IS:
                    memcpy(to, table + index * a.table_row * a.item, size)
                else:
                    widen_row(a, table + index * a.table_row * a.item, 0 if scales == NULL else scales[index],
                              <float *> to)
    return DONE


cdef object explain_gather(const int64_t *args, int64_t bad):
    cdef const GatherArgs *a = <const GatherArgs *> args
    return f"index {bad} is outside the table's [{0 if a.from_zero else -a.count}, {a.count})"


cdef inline int64_t best_of(const float *x, int64_t n, int64_t step, bint largest, bint last) noexcept nogil:
    """The index of the largest (or smallest) of n elements; ties go to the first or the last. The first NaN wins."""
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


cdef int64_t best_integer(const ArgmaxArgs *a, const void *x, int64_t at_) noexcept nogil:
    """As `best_of`, for integers from element `at_` of x on."""
    cdef int64_t i, value, best = 0, found = load_integer(x, a.type, at_)
    cdef int64_t flip = (<int64_t> 1 << 63) if a.type == UINT64 else 0  # orders uint64 as int64
    for i in range(1, a.count):
        value = load_integer(x, a.type, at_ + i * a.step)
        if (value ^ flip) == (found ^ flip):
            best = i if a.last else best
        elif ((value ^ flip) > (found ^ flip)) == a.largest:
            best, found = i, value
    return best


cdef int run_argmax(const int64_t *args, Frame *f) noexcept nogil:
    cdef const ArgmaxArgs *a = <const ArgmaxArgs *> args
    cdef const Rows *r = &a.r
    cdef int64_t i, j, k, x_at
    cdef int64_t *y = (<int64_t *> f.base[r.y_buffer]) + r.y_offset
    cdef int64_t *out
    for i in range(r.n[0]):
        for j in range(r.n[1]):
            for k in range(r.n[2]):
                out = y + i * r.y_stride[0] + j * r.y_stride[1] + k * r.y_stride[2]
                x_at = r.x_offset + i * r.x_stride[0] + j * r.x_stride[1] + k * r.x_stride[2]
                if a.type == FLOAT32:
                    out[0] = best_of(at(f, r.x_buffer, x_at), a.count, a.step, a.largest, a.last)
                else:
                    out[0] = best_integer(a, f.base[r.x_buffer], x_at)
    return DONE


cdef void sum_along(const CumsumArgs *a, const void *x, int64_t x_at, void *y, int64_t y_at) noexcept nogil:
    """One row. Floats are summed in float64, so that a long row keeps its small terms; integers in uint64 (wraps)."""
    cdef int64_t i, at_, x_step = a.x_step, y_step = a.y_step
    cdef double real = 0.0
    cdef uint64_t whole = 0
    if a.reverse:
        x_at += (a.count - 1) * x_step
        y_at += (a.count - 1) * y_step
        x_step, y_step = -x_step, -y_step
    for i in range(a.count):
        at_ = y_at + i * y_step
        if a.exclusive and a.type == FLOAT32:
            (<float *> y)[at_] = <float> real
        elif a.exclusive:
            store_integer(y, a.type, at_, <int64_t> whole)
        if a.type == FLOAT32:
            real += (<const float *> x)[x_at + i * x_step]
        else:
            whole += <uint64_t> load_integer(x, a.type, x_at + i * x_step)
        if not a.exclusive and a.type == FLOAT32:
            (<float *> y)[at_] = <float> real
        elif not a.exclusive:
            store_integer(y, a.type, at_, <int64_t> whole)


cdef int run_cumsum(const int64_t *args, Frame *f) noexcept nogil:
    cdef const CumsumArgs *a = <const CumsumArgs *> args
    cdef const Rows *r = &a.r
    cdef int64_t i, j, k
    for i in range(r.n[0]):
        for j in range(r.n[1]):
            for k in range(r.n[2]):
                sum_along(a, f.base[r.x_buffer],
                          r.x_offset + i * r.x_stride[0] + j * r.x_stride[1] + k * r.x_stride[2],
                          f.base[r.y_buffer],
                          r.y_offset + i * r.y_stride[0] + j * r.y_stride[1] + k * r.y_stride[2])
    return DONE


cdef int run_zero(const int64_t *args, Frame *f) noexcept nogil:
    cdef const ZeroArgs *a = <const ZeroArgs *> args
    memset(at(f, a.buffer, a.offset), 0, a.count * sizeof(float))
    return DONE


cdef union Args:
    ElementwiseArgs elementwise
    CopyArgs copy
    GatherArgs gather
    ArgmaxArgs argmax
    CumsumArgs cumsum
    ZeroArgs zero

cdef Args args
number(&args, sizeof(args))
add_op("elementwise", args.elementwise, run_elementwise, NULL)
add_op("copy", args.copy, run_copy, NULL)
add_op("gather", args.gather, run_gather, explain_gather)
add_op("argmax", args.argmax, run_argmax, NULL)
add_op("cumsum", args.cumsum, run_cumsum, NULL)
add_op("zero", args.zero, run_zero, NULL)
