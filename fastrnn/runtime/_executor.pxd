"""Programs and scratch, for the modules that call them. What they are: _executor.pyx."""

from libc.stdint cimport int32_t, int64_t

cimport numpy as cnp

from fastrnn.ops._frame cimport Frame
from fastrnn.runtime._timing cimport OpTimer

# Work of a call, in floating-point operations, from which on it looks for signals on the way.
cdef enum:
    FLOPS_WATCHED = 200_000_000


cdef class Scratch:
    cdef int64_t batch, time, span  # bound to
    cdef int64_t room  # the batch that the arena is large enough for
    cdef int64_t *integers
    cdef int64_t *linear  # (which integer, its value at batch 0, its growth a row) of each that the batch changes
    cdef int64_t n_linear  # -1: not worked out yet
    cdef void **base
    cdef char *arena
    cdef int64_t arena_bytes


cdef class Program:
    cdef Frame frame
    cdef readonly object plan
    cdef int64_t n_ops
    cdef int32_t *kinds
    cdef int64_t *starts  # of each op's integers; an entry more than there are ops, those in bodies of loops too
    cdef int64_t n_integers, n_bound, n_monomials  # n_bound: with the work of a call, and the rows of `accesses`
    cdef object matrix, magnitude, coefficients, slot_rows, keep, bounds
    cdef int64_t *accesses  # as `Bounds.table`
    cdef int64_t n_accesses
    cdef list every_op  # those of the plan, then those of its loops' bodies
    cdef int64_t n_inputs, n_outputs, n_constants, n_slots
    cdef readonly int64_t state_size
    cdef readonly int threads
    cdef public OpTimer timer  # None but while `fastrnn profile` looks
    cdef bint may_fail
    cdef int64_t position, room  # where a slab row counts its steps; how many a stream can take in all, -1: any number
    cdef bint batch_linear  # every integer is at most linear in the batch, and no condition depends on it
    cdef Scratch idle
    cdef dict spare
    cdef int64_t kept_bytes  # of the arenas in `spare`

    cdef _take_weights(self, plan)
    cdef _take_ops(self, plan)
    cdef Scratch take(self, int64_t batch, int64_t time, int64_t span)
    cdef Scratch _take_other(self, int64_t batch, int64_t time, int64_t span)
    cdef void give(self, Scratch s) noexcept
    cdef void _keep(self, Scratch s) noexcept
    cdef Scratch _new_scratch(self, int64_t batch, int64_t time, int64_t room)
    cdef _values(self, int64_t batch, int64_t time, int64_t span)
    cdef _evaluate(self, Scratch s, int64_t span)
    cdef _rebind(self, Scratch s, int64_t batch)
    cdef int _check_bounds(self, Scratch s) except -1
    cdef _refuse(self, Scratch s, int64_t k, int64_t size, int64_t first, int64_t last, int64_t room)
    cdef inline int64_t work(self, Scratch s) noexcept:
        """Floating-point operations of a call."""
        return s.integers[self.n_integers]

    cdef int walked(self, Scratch s, Frame *f, int64_t *bad, int64_t *ns) noexcept nogil
    cdef int check_room(self, const float *slab, const int64_t *slots, int64_t first, int64_t rows,
                        int64_t span) except -1
    cdef int call(self, Scratch s, float *slab, const int64_t *slots) except -1


cdef struct Form:  # what the array of one argument must be for one step
    int type
    int ndim
    cnp.npy_intp dims[8]
    int64_t step_bytes  # of one step of one stream


cdef inline bint fits(object x, const Form *form) noexcept:
    """x is a plain, C-contiguous, aligned array in native byte order of exactly this dtype and shape."""
    cdef int i
    cdef cnp.ndarray array
    if not cnp.PyArray_CheckExact(x):
        return False
    array = <cnp.ndarray> x
    if cnp.PyArray_TYPE(array) != form.type or cnp.PyArray_NDIM(array) != form.ndim:
        return False
    if not cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_CARRAY_RO) or not cnp.PyArray_ISNOTSWAPPED(array):
        return False
    for i in range(form.ndim):
        if cnp.PyArray_DIM(array, i) != form.dims[i]:
            return False
    return True


cdef inline bint apart(object x, object y) noexcept:
    """The memory of two contiguous arrays does not overlap."""
    cdef char *a = <char *> cnp.PyArray_DATA(<cnp.ndarray> x)
    cdef char *b = <char *> cnp.PyArray_DATA(<cnp.ndarray> y)
    return a + cnp.PyArray_NBYTES(<cnp.ndarray> x) <= b or b + cnp.PyArray_NBYTES(<cnp.ndarray> y) <= a
