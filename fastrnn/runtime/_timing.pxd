"""Timing the ops of a plan."""

from libc.stdint cimport int32_t, int64_t

from fastrnn.ops._frame cimport Frame

cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec, tv_nsec
    enum: CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *t)


cdef inline int64_t now_ns() noexcept nogil:
    """A monotonic clock; a reading takes about 20 ns."""
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t> t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef class OpTimer:
    cdef readonly int64_t n_ops, capacity, calls
    cdef object table
    cdef int64_t *data
    cdef int64_t *next_row(self) noexcept


cdef int walk_timed(int64_t n_ops, const int32_t *kinds, const int64_t *starts, const int64_t *integers, Frame *f,
                    int64_t *bad, int64_t *ns) noexcept nogil
