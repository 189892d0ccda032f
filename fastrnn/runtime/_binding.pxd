"""Bindings and scratch, for the modules that call programs. See _binding.pyx."""

from libc.stdint cimport int64_t


cdef class Scratch:
    cdef int64_t batch, time, span  # bound to
    cdef int64_t room  # the batch that the arena is large enough for
    cdef int64_t *integers
    cdef int64_t *linear  # (index, value at batch 0, growth per row) of each integer that depends on the batch
    cdef int64_t n_linear  # -1: not computed yet
    cdef void **base
    cdef char *arena
    cdef float *states  # of a run, `Binding.own_floats` a row; part of the arena
    cdef int64_t arena_bytes


cdef class Binding:
    cdef readonly object plan
    cdef int64_t n_integers, n_bound  # n_bound: also counts the work of a call, and the rows of `accesses`
    cdef int64_t n_arguments, n_constants
    cdef int64_t own_floats  # states a row that a call begins with zeros, and keeps in its scratch; of whole runs
    cdef object matrix, magnitude, coefficients, slot_rows, bounds
    cdef int64_t *accesses  # as `Bounds.table`
    cdef int64_t n_accesses
    cdef bint batch_linear  # every integer is at most linear in the batch, and no condition depends on it
    cdef Scratch idle
    cdef dict spare
    cdef int64_t kept_bytes  # of the arenas in `spare`

    cdef bind(self, plan, coefficients)
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


cdef void *allocate(int64_t count, size_t size) except NULL
cdef int no_array() except -1
