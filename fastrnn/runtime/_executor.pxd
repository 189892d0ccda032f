"""Programs, for the modules that call them. See _executor.pyx."""

from libc.stdint cimport int32_t, int64_t

from fastrnn.ops._frame cimport Frame
from fastrnn.runtime._binding cimport Binding, Scratch
from fastrnn.runtime._meter cimport Meter
from fastrnn.runtime._timing cimport OpTimer

# A call with at least this many floating-point operations looks for signals while it runs.
cdef enum:
    FLOPS_WATCHED = 200_000_000


cdef class Program(Binding):
    cdef Frame frame
    cdef int64_t n_ops
    cdef int32_t *kinds
    cdef int64_t *starts  # of each op's integers; one more entry than ops, loop bodies included
    cdef object keep
    cdef list every_op  # those of the plan, then those of its loop bodies
    cdef readonly int64_t state_size
    cdef readonly int threads
    cdef readonly Meter meter
    cdef public OpTimer timer  # None except during `fastrnn profile`
    cdef bint may_fail
    cdef int64_t position, room  # where a slab row counts its steps; the most steps of a stream, -1: any number

    cdef _take_weights(self, plan)
    cdef _take_ops(self, plan)
    cdef int check_room(self, const float *slab, const int64_t *slots, int64_t first, int64_t rows,
                        int64_t span) except -1
    cdef int refuse(self, str who, int64_t taken, int64_t span) except -1
    cdef int call(self, Scratch s, float *slab, const int64_t *slots) except -1
    cdef int run_on(self, Scratch s) except -1
