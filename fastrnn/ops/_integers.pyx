# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Exact integer arithmetic: functions of up to three integer or bool operands, sums and extremes.

All types compute in int64 and wrap around when they are stored (_items.pxd). uint64 has the bits of an int64; the
functions whose result depends on its sign take `unsigned`.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from fastrnn.machine._isa cimport (
    FRNN_ABS, FRNN_ADD, FRNN_DIV, FRNN_EQUAL, FRNN_GREATER, FRNN_GREATER_EQUAL, FRNN_LESS, FRNN_LESS_EQUAL, FRNN_MAX,
    FRNN_MAX_RANK, FRNN_MIN, FRNN_MOD, FRNN_MUL, FRNN_NEG, FRNN_POW, FRNN_SIGN, FRNN_SUB, FRNN_WHERE,
)
from fastrnn.ops._frame cimport Frame, Rows, state_row
from fastrnn.ops._items cimport BOOL, FLOAT32, INT32, INT64, UINT64, end_of, load_integer, store_integer
from fastrnn.ops._walk cimport DONE, add_op, number

cdef enum:
    OPERANDS = 3
    RUN = 128  # elements at a time

cdef enum:  # functions of integers alone, numbered apart from those of floats
    BIT_AND = 1000
    BIT_OR
    BIT_XOR
    BIT_NOT
    SHIFT_LEFT
    SHIFT_RIGHT
    REST
    TRUTH

INTEGER_FUNCTIONS = {
    "add": FRNN_ADD, "sub": FRNN_SUB, "mul": FRNN_MUL, "div": FRNN_DIV, "pow": FRNN_POW, "mod": FRNN_MOD, "fmod": REST,
    "min": FRNN_MIN, "max": FRNN_MAX, "equal": FRNN_EQUAL, "greater": FRNN_GREATER,
    "greater_equal": FRNN_GREATER_EQUAL, "less": FRNN_LESS, "less_equal": FRNN_LESS_EQUAL, "neg": FRNN_NEG,
    "abs": FRNN_ABS, "sign": FRNN_SIGN, "where": FRNN_WHERE, "bit_and": BIT_AND, "bit_or": BIT_OR, "bit_xor": BIT_XOR,
    "bit_not": BIT_NOT, "shift_left": SHIFT_LEFT, "shift_right": SHIFT_RIGHT, "truth": TRUTH,
}

cdef struct IntegersArgs:
    int64_t fn, n_in, unsigned_
    int64_t in_buffer[OPERANDS]
    int64_t in_offset[OPERANDS]
    int64_t in_type[OPERANDS]
    int64_t out_buffer, out_offset, out_type, rank
    int64_t size[FRNN_MAX_RANK]
    int64_t in_stride[OPERANDS][FRNN_MAX_RANK]
    int64_t out_stride[FRNN_MAX_RANK]

cdef struct FoldArgs:
    int64_t fn, mean, type, count, step
    Rows r

cdef struct RunningArgs:
    int64_t fn, mean, type, steps, rows, size, x_buffer, x_offset, x_time, x_row, y_buffer, y_offset, y_row
    int64_t per_slot, state


cdef inline bint below(int64_t a, int64_t b, bint unsigned_) noexcept nogil:
    return <uint64_t> a < <uint64_t> b if unsigned_ else a < b


cdef inline int64_t integer_quotient(int64_t a, int64_t b, bint unsigned_) noexcept nogil:
    """Truncates towards zero. Division by zero returns zero. The smallest integer / -1 wraps to itself."""
    if b == 0:
        return 0
    if unsigned_:
        return <int64_t> (<uint64_t> a // <uint64_t> b)
    if b == -1:
        return <int64_t> (0 - <uint64_t> a)
    return a // b


cdef inline int64_t integer_rest(int64_t a, int64_t b, bint of_dividend, bint unsigned_) noexcept nogil:
    """The remainder with the sign of b, or of a if `of_dividend`; zero if b is zero."""
    cdef int64_t rest
    if b == 0:
        return 0
    if unsigned_:
        return <int64_t> (<uint64_t> a % <uint64_t> b)
    if b == -1:
        return 0
    rest = a % b
    return rest + b if not of_dividend and rest != 0 and (rest < 0) != (b < 0) else rest


cdef inline int64_t integer_power(int64_t a, int64_t b, bint unsigned_) noexcept nogil:
    """By squaring, with wraparound. For a negative power: 1 / a**-b truncated towards zero (zero if a is zero)."""
    cdef uint64_t result = 1, base = <uint64_t> a, power = <uint64_t> b
    if b < 0 and not unsigned_:
        return a if a == 1 or (a == -1 and b % 2 != 0) else 1 if a == -1 else 0
    while power > 0:
        if power & 1:
            result *= base
        base *= base
        power >>= 1
    return <int64_t> result


cdef inline int64_t shifted(int64_t a, int64_t b, bint left, bint unsigned_) noexcept nogil:
    """Zero if all bits leave (or copies of the sign). Storing cuts the bits that leave a narrow type to the left."""
    if <uint64_t> b >= 64:
        return -1 if not left and a < 0 and not unsigned_ else 0
    if left:
        return <int64_t> (<uint64_t> a << b)
    return <int64_t> (<uint64_t> a >> b) if unsigned_ else a >> b


cdef inline int64_t compared(int64_t fn, int64_t a, int64_t b, bint unsigned_) noexcept nogil:
    if fn == FRNN_EQUAL:
        return a == b
    if fn == FRNN_GREATER:
        return below(b, a, unsigned_)
    if fn == FRNN_GREATER_EQUAL:
        return not below(a, b, unsigned_)
    if fn == FRNN_LESS:
        return below(a, b, unsigned_)
    return not below(b, a, unsigned_)


cdef inline int64_t of_bits(int64_t fn, int64_t a, int64_t b, bint unsigned_) noexcept nogil:
    if fn == BIT_AND:
        return a & b
    if fn == BIT_OR:
        return a | b
    if fn == BIT_XOR:
        return a ^ b
    if fn == BIT_NOT:
        return ~a
    if fn == REST:
        return integer_rest(a, b, True, unsigned_)
    if fn == TRUTH:
        return a != 0
    return shifted(a, b, fn == SHIFT_LEFT, unsigned_)


cdef inline int64_t integer_function(int64_t fn, int64_t a, int64_t b, int64_t c, bint unsigned_) noexcept nogil:
    if fn == FRNN_ADD:
        return <int64_t> (<uint64_t> a + <uint64_t> b)
    if fn == FRNN_SUB:
        return <int64_t> (<uint64_t> a - <uint64_t> b)
    if fn == FRNN_MUL:
        return <int64_t> (<uint64_t> a * <uint64_t> b)
    if fn == FRNN_DIV:
        return integer_quotient(a, b, unsigned_)
    if fn == FRNN_MOD:
        return integer_rest(a, b, False, unsigned_)
    if fn == FRNN_POW:
        return integer_power(a, b, unsigned_)
    if fn == FRNN_MIN:
        return a if below(a, b, unsigned_) else b
    if fn == FRNN_MAX:
        return b if below(a, b, unsigned_) else a
    if FRNN_EQUAL <= fn <= FRNN_LESS_EQUAL:
        return compared(fn, a, b, unsigned_)
    if fn == FRNN_WHERE:
        return b if a else c
    if fn >= BIT_AND:
        return of_bits(fn, a, b, unsigned_)
    if fn == FRNN_NEG or (fn == FRNN_ABS and a < 0 and not unsigned_):
        return <int64_t> (0 - <uint64_t> a)
    if fn == FRNN_SIGN:
        return a != 0 if unsigned_ else (a > 0) - (a < 0)
    return a  # abs of a >= 0


cdef void load_run(const void *p, int64_t type, int64_t i, int64_t stride, int64_t n, int64_t *y) noexcept nogil:
    cdef int64_t k
    if type == INT64 or type == UINT64:
        for k in range(n):
            y[k] = (<const int64_t *> p)[i + k * stride]
    elif type == INT32:
        for k in range(n):
            y[k] = (<const int32_t *> p)[i + k * stride]
    elif type == BOOL:
        for k in range(n):
            y[k] = (<const uint8_t *> p)[i + k * stride] != 0
    elif type == FLOAT32:
        for k in range(n):
            y[k] = (<const float *> p)[i + k * stride] != 0
    else:
        for k in range(n):
            y[k] = load_integer(p, type, i + k * stride)


cdef void store_run(void *p, int64_t type, int64_t i, int64_t stride, int64_t n, const int64_t *x) noexcept nogil:
    cdef int64_t k
    if type == INT64 or type == UINT64:
        for k in range(n):
            (<int64_t *> p)[i + k * stride] = x[k]
    elif type == BOOL:
        for k in range(n):
            (<uint8_t *> p)[i + k * stride] = x[k] != 0
    elif type == FLOAT32:
        for k in range(n):
            (<float *> p)[i + k * stride] = <float> x[k]
    else:
        for k in range(n):
            store_integer(p, type, i + k * stride, x[k])


cdef void compare_run(int64_t fn, int64_t n, const int64_t *a, const int64_t *b, int64_t *y) noexcept nogil:
    """Signed."""
    cdef int64_t k
    if fn == FRNN_EQUAL:
        for k in range(n):
            y[k] = a[k] == b[k]
    elif fn == FRNN_GREATER:
        for k in range(n):
            y[k] = a[k] > b[k]
    elif fn == FRNN_GREATER_EQUAL:
        for k in range(n):
            y[k] = a[k] >= b[k]
    elif fn == FRNN_LESS:
        for k in range(n):
            y[k] = a[k] < b[k]
    else:
        for k in range(n):
            y[k] = a[k] <= b[k]


cdef void integer_run(int64_t fn, int64_t n, const int64_t *a, const int64_t *b, const int64_t *c, bint unsigned_,
                      int64_t *y) noexcept nogil:
    """`integer_function` of n elements: those that masks and counters are made of have loops of their own, which the
    compiler turns into vectors."""
    cdef int64_t k
    if FRNN_EQUAL <= fn <= FRNN_LESS_EQUAL and not unsigned_:
        compare_run(fn, n, a, b, y)
    elif fn == FRNN_ADD:
        for k in range(n):
            y[k] = <int64_t> (<uint64_t> a[k] + <uint64_t> b[k])
    elif fn == FRNN_SUB:
        for k in range(n):
            y[k] = <int64_t> (<uint64_t> a[k] - <uint64_t> b[k])
    elif fn == BIT_AND:
        for k in range(n):
            y[k] = a[k] & b[k]
    elif fn == BIT_OR:
        for k in range(n):
            y[k] = a[k] | b[k]
    elif fn == FRNN_WHERE:
        for k in range(n):
            y[k] = b[k] if a[k] else c[k]
    else:
        for k in range(n):
            y[k] = integer_function(fn, a[k], b[k], c[k], unsigned_)


cdef int run_integers(const int64_t *args, Frame *f) noexcept nogil:
    """One function of integer and bool operands over a space of up to 6 axes, a run of the last axis at a time. All
    operands of a run are read before its results are written."""
    cdef const IntegersArgs *a = <const IntegersArgs *> args
    cdef int64_t index[FRNN_MAX_RANK]
    cdef int64_t at_[OPERANDS]
    cdef int64_t operand[OPERANDS][RUN]
    cdef int64_t result[RUN]
    cdef int64_t axis, j, i, n, last = a.rank - 1, out = a.out_offset
    for axis in range(a.rank):
        index[axis] = 0
        if a.size[axis] == 0:
            return DONE
    for j in range(OPERANDS):
        at_[j] = a.in_offset[j]
    while True:
        i = 0
        while i < a.size[last]:
            n = min(RUN, a.size[last] - i)
            for j in range(a.n_in):
                load_run(f.base[a.in_buffer[j]], a.in_type[j], at_[j] + i * a.in_stride[j][last],
                         a.in_stride[j][last], n, operand[j])
            for j in range(a.n_in, OPERANDS):  # not read, but defined
                memset(operand[j], 0, n * sizeof(int64_t))
            integer_run(a.fn, n, operand[0], operand[1], operand[2], a.unsigned_, result)
            store_run(f.base[a.out_buffer], a.out_type, out + i * a.out_stride[last], a.out_stride[last], n, result)
            i += n
        axis = last - 1
        while axis >= 0:
            index[axis] += 1
            out += a.out_stride[axis]
            for j in range(a.n_in):
                at_[j] += a.in_stride[j][axis]
            if index[axis] < a.size[axis]:
                break
            out -= a.size[axis] * a.out_stride[axis]
            for j in range(a.n_in):
                at_[j] -= a.size[axis] * a.in_stride[j][axis]
            index[axis] = 0
            axis -= 1
        if axis < 0:
            return DONE
    return DONE


cdef inline int64_t of_none(int64_t fn, int64_t type) noexcept nogil:
    """What no integers give: the sum 0, the largest the smallest number of the type, and the reverse."""
    return 0 if fn == FRNN_ADD else end_of(type, fn == FRNN_MIN)


cdef inline void store_total(void *y, int64_t type, int64_t i, int64_t total, int64_t count) noexcept nogil:
    """total / count, of a total that first wraps around in its type."""
    store_integer(y, type, i, total)
    if count != 1:
        store_integer(y, type, i, integer_quotient(load_integer(y, type, i), count, type == UINT64))


cdef int run_fold(const int64_t *args, Frame *f) noexcept nogil:
    """The sum, mean, largest or smallest of `count` integers in each of n0 x n1 x n2 places. The mean is the sum,
    wrapped around in its type, divided by the count towards zero."""
    cdef const FoldArgs *a = <const FoldArgs *> args
    cdef const Rows *r = &a.r
    cdef int64_t i, j, k, t, x_at, value
    cdef const void *x = f.base[r.x_buffer]
    for i in range(r.n[0]):
        for j in range(r.n[1]):
            for k in range(r.n[2]):
                x_at = r.x_offset + i * r.x_stride[0] + j * r.x_stride[1] + k * r.x_stride[2]
                value = load_integer(x, a.type, x_at) if a.count > 0 else of_none(a.fn, a.type)
                for t in range(1, a.count):
                    value = integer_function(a.fn, value, load_integer(x, a.type, x_at + t * a.step), 0,
                                             a.type == UINT64)
                x_at = r.y_offset + i * r.y_stride[0] + j * r.y_stride[1] + k * r.y_stride[2]
                store_total(f.base[r.y_buffer], a.type, x_at, value, a.count if a.mean else 1)
    return DONE


cdef int run_running_integers(const int64_t *args, Frame *f) noexcept nogil:
    """As `fold`, of all steps that a stream has had. The state of a row: an int64 of each element, and the count."""
    cdef const RunningArgs *a = <const RunningArgs *> args
    cdef int64_t r, t, i, value, count, x_at, y_at
    cdef float *state
    for r in range(a.rows):
        state = state_row(f, a.per_slot, a.state, 2 * a.size + 2, r)
        memcpy(&count, state + 2 * a.size, sizeof(int64_t))
        x_at = a.x_offset + r * a.x_row
        y_at = a.y_offset + r * a.y_row
        for i in range(a.size):
            memcpy(&value, state + 2 * i, sizeof(int64_t))
            value = value if count > 0 else of_none(a.fn, a.type)
            for t in range(a.steps):
                value = integer_function(a.fn, value, load_integer(f.base[a.x_buffer], a.type, x_at + t * a.x_time + i),
                                         0, a.type == UINT64)
            memcpy(state + 2 * i, &value, sizeof(int64_t))
            store_total(f.base[a.y_buffer], a.type, y_at + i, value, count + a.steps if a.mean else 1)
        count += a.steps
        memcpy(state + 2 * a.size, &count, sizeof(int64_t))
    return DONE


cdef union Args:
    IntegersArgs integers
    FoldArgs fold
    RunningArgs running

cdef Args args
number(&args, sizeof(args))
add_op("integers", args.integers, run_integers, NULL)
add_op("fold", args.fold, run_fold, NULL)
add_op("running_integers", args.running, run_running_integers, NULL)
