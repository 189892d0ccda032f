# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Exact integer arithmetic: one function of up to three int64, int32 and bool operands, element by element."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from fastrnn.machine._isa cimport (
    FRNN_ABS, FRNN_ADD, FRNN_DIV, FRNN_EQUAL, FRNN_GREATER, FRNN_GREATER_EQUAL, FRNN_LESS, FRNN_LESS_EQUAL, FRNN_MAX,
    FRNN_MAX_RANK, FRNN_MIN, FRNN_MOD, FRNN_MUL, FRNN_NEG, FRNN_POW, FRNN_SIGN, FRNN_SUB, FRNN_WHERE,
)
from fastrnn.ops._frame cimport BOOL, INT32, INT64, Frame
from fastrnn.ops._walk cimport DONE, add_op, number

cdef enum:
    OPERANDS = 3

cdef struct IntegersArgs:
    int64_t fn, n_in
    int64_t in_buffer[OPERANDS]
    int64_t in_offset[OPERANDS]
    int64_t in_type[OPERANDS]
    int64_t out_buffer, out_offset, out_type, rank
    int64_t size[FRNN_MAX_RANK]
    int64_t in_stride[OPERANDS][FRNN_MAX_RANK]
    int64_t out_stride[FRNN_MAX_RANK]


cdef inline int64_t load_integer(const void *p, int64_t type, int64_t i) noexcept nogil:
    if type == INT64:
        return (<const int64_t *> p)[i]
    if type == INT32:
        return (<const int32_t *> p)[i]
    if type == BOOL:
        return (<const uint8_t *> p)[i] != 0
    return (<const float *> p)[i] != 0  # a bool stored as float32


cdef inline void store_integer(void *p, int64_t type, int64_t i, int64_t value) noexcept nogil:
    if type == INT64:
        (<int64_t *> p)[i] = value
    elif type == INT32:
        (<int32_t *> p)[i] = <int32_t> <uint64_t> value
    elif type == BOOL:
        (<uint8_t *> p)[i] = value != 0
    else:
        (<float *> p)[i] = value


cdef inline int64_t integer_quotient(int64_t a, int64_t b) noexcept nogil:
    """Truncates towards zero. Division by zero returns zero. The smallest integer / -1 wraps to itself."""
    if b == 0:
        return 0
    if b == -1:
        return <int64_t> (0 - <uint64_t> a)
    return a // b


cdef inline int64_t integer_rest(int64_t a, int64_t b) noexcept nogil:
    """The remainder with the sign of b; zero if b is zero."""
    cdef int64_t rest
    if b == 0 or b == -1:
        return 0
    rest = a % b
    return rest + b if rest != 0 and (rest < 0) != (b < 0) else rest


cdef inline int64_t integer_power(int64_t a, int64_t b) noexcept nogil:
    """By squaring, with wraparound. For a negative power: 1 / a**-b truncated towards zero (zero if a is zero)."""
    cdef uint64_t result = 1, base = <uint64_t> a
    if b < 0:
        return a if a == 1 or (a == -1 and b % 2 != 0) else 1 if a == -1 else 0
    while b > 0:
        if b & 1:
            result *= base
        base *= base
        b >>= 1
    return <int64_t> result


cdef inline int64_t compared(int64_t fn, int64_t a, int64_t b) noexcept nogil:
    if fn == FRNN_EQUAL:
        return a == b
    if fn == FRNN_GREATER:
        return a > b
    if fn == FRNN_GREATER_EQUAL:
        return a >= b
    if fn == FRNN_LESS:
        return a < b
    return a <= b


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
    if FRNN_EQUAL <= fn <= FRNN_LESS_EQUAL:
        return compared(fn, a, b)
    if fn == FRNN_WHERE:
        return b if a else c
    if fn == FRNN_NEG or (fn == FRNN_ABS and a < 0):
        return <int64_t> (0 - <uint64_t> a)
    if fn == FRNN_SIGN:
        return (a > 0) - (a < 0)
    return a  # abs of a >= 0, identity


cdef int run_integers(const int64_t *args, Frame *f) noexcept nogil:
    """One function of int64, int32 and bool operands over a space of up to 6 axes, element by element."""
    cdef const IntegersArgs *a = <const IntegersArgs *> args
    cdef int64_t index[FRNN_MAX_RANK]
    cdef int64_t at_[OPERANDS]
    cdef int64_t value[OPERANDS]
    cdef int64_t axis, j, out = a.out_offset
    for axis in range(a.rank):
        index[axis] = 0
        if a.size[axis] == 0:
            return DONE
    for j in range(OPERANDS):
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


cdef union Args:
    IntegersArgs integers

cdef Args args
number(&args, sizeof(args))
add_op("integers", args.integers, run_integers, NULL)
