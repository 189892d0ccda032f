"""Elements in memory, by type: how each is read and written. `TYPE_CODES` names the types.

Integers are read as int64, and uint64 as the int64 of the same bits; writing keeps the low bits. So sums and products
wrap around as in every type of C. Only functions that depend on the sign of an operand must know about uint64.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum ItemType:
    FLOAT32, INT64, INT32, BOOL, FLOAT64, INT16, INT8, UINT64, UINT32, UINT16, UINT8


cdef inline bint is_unsigned(int64_t type) noexcept nogil:
    return type == UINT8 or type == UINT16 or type == UINT32 or type == UINT64


cdef inline int64_t bytes_of(int64_t type) noexcept nogil:
    if type == INT64 or type == UINT64 or type == FLOAT64:
        return 8
    if type == INT8 or type == UINT8 or type == BOOL:
        return 1
    return 2 if type == INT16 or type == UINT16 else 4


cdef inline int64_t end_of(int64_t type, bint largest) noexcept nogil:
    """The largest or the smallest number of an integer type, as the int64 that `load_integer` gives."""
    cdef uint64_t half = <uint64_t> 1 << (8 * bytes_of(type) - 1)
    if is_unsigned(type):
        return <int64_t> (half - 1 + half) if largest else 0
    return <int64_t> (half - 1) if largest else <int64_t> (0 - half)


cdef inline int64_t load_integer(const void *p, int64_t type, int64_t i) noexcept nogil:
    if type == INT64 or type == UINT64:
        return (<const int64_t *> p)[i]
    if type == INT32:
        return (<const int32_t *> p)[i]
    if type == UINT8:
        return (<const uint8_t *> p)[i]
    if type == INT8:
        return (<const int8_t *> p)[i]
    if type == BOOL:
        return (<const uint8_t *> p)[i] != 0
    if type == INT16:
        return (<const int16_t *> p)[i]
    if type == UINT16:
        return (<const uint16_t *> p)[i]
    if type == UINT32:
        return (<const uint32_t *> p)[i]
    return (<const float *> p)[i] != 0  # a bool stored as float32


cdef inline void store_integer(void *p, int64_t type, int64_t i, int64_t value) noexcept nogil:
    if type == INT64 or type == UINT64:
        (<int64_t *> p)[i] = value
    elif type == INT32 or type == UINT32:
        (<uint32_t *> p)[i] = <uint32_t> <uint64_t> value
    elif type == UINT8 or type == INT8:
        (<uint8_t *> p)[i] = <uint8_t> <uint64_t> value
    elif type == UINT16 or type == INT16:
        (<uint16_t *> p)[i] = <uint16_t> <uint64_t> value
    elif type == BOOL:
        (<uint8_t *> p)[i] = value != 0
    else:
        (<float *> p)[i] = value


cdef inline double load_real(const void *p, int64_t type, int64_t i) noexcept nogil:
    if type == FLOAT32:
        return (<const float *> p)[i]
    if type == FLOAT64:
        return (<const double *> p)[i]
    if type == UINT64:
        return <double> (<const uint64_t *> p)[i]
    return <double> load_integer(p, type, i)


cdef inline int64_t whole(double value) noexcept nogil:
    """Towards zero. The smallest int64 for NaN and for numbers beyond int64."""
    if -9223372036854775808.0 <= value < 9223372036854775808.0:
        return <int64_t> value
    return <int64_t> (<uint64_t> 1 << 63)


cdef inline int64_t whole_32(double value) noexcept nogil:
    """As `whole`, with the range of int32."""
    return <int64_t> value if -2147483649.0 < value < 2147483648.0 else -(<int64_t> 1 << 31)


cdef inline void store_real(void *p, int64_t type, int64_t i, double value) noexcept nogil:
    """Numbers that an integer can't hold give what onnxruntime gives on x86-64: int32 and int64 their smallest number;
    int8, int16, uint8 and uint16 the low bits of the int32. The upper halves of uint32 and uint64 are those of the
    signed type, moved up; below zero they have the bits of the signed type."""
    if type == FLOAT32:
        (<float *> p)[i] = <float> value
    elif type == FLOAT64:
        (<double *> p)[i] = value
    elif type == BOOL:
        (<uint8_t *> p)[i] = value != 0 and value != -INFINITY  # -inf: the max of no bools
    elif type == UINT64 and value >= 9223372036854775808.0:
        (<uint64_t *> p)[i] = <uint64_t> whole(value - 9223372036854775808.0) ^ (<uint64_t> 1 << 63)
    elif type == INT64 or type == UINT64:
        store_integer(p, type, i, whole(value))
    elif type == UINT32 and value >= 2147483648.0:
        store_integer(p, type, i, whole_32(value - 2147483648.0) + (<int64_t> 1 << 31))
    else:
        store_integer(p, type, i, whole_32(value))
