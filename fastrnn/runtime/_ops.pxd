"""The walk over the ops of a bound plan."""

from libc.stdint cimport int32_t, int64_t

from fastrnn.runtime._frame cimport Frame


cdef int walk(int64_t n_ops, const int32_t *kinds, const int64_t *starts, const int64_t *integers, Frame *f,
              int64_t *bad) noexcept nogil
cdef object explain(int32_t kind, const int64_t *integers, int64_t bad)
