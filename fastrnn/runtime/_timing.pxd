"""Timing the ops of a plan."""

from libc.stdint cimport int32_t, int64_t

from fastrnn.ops._frame cimport Frame


cdef class OpTimer:
    cdef readonly int64_t n_ops, capacity, calls
    cdef object table
    cdef int64_t *data
    cdef int64_t *next_row(self) noexcept


cdef int walk_timed(int64_t n_ops, const int32_t *kinds, const int64_t *starts, const int64_t *integers, Frame *f,
                    int64_t *bad, int64_t *ns) noexcept nogil
