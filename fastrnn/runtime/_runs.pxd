"""Runs of whole sequences; see _runs.pyx."""

from libc.stdint cimport int64_t

from fastrnn.runtime._executor cimport Program
from fastrnn.runtime._forms cimport MOST_SIDES, Form, Sides


cdef class Prepared:
    cdef Program program
    cdef object fixed
    cdef int64_t batch, time
    cdef int n_sides
    cdef Form *forms  # of the inputs, then of the outputs
    cdef bint absent[MOST_SIDES]  # inputs that the call leaves out: states that start at zero

    cdef bint suits(self, const Sides *sides) noexcept


cdef class RunCore:
    cdef tuple names, kept
    cdef int n_in, n_out
    cdef int types[MOST_SIDES]  # of the inputs
    cdef int place[MOST_SIDES]  # of the inputs among those that aren't states; -1: a state
    cdef bint few
    cdef dict known  # shapes of the inputs -> Prepared
    cdef Prepared last  # used
    cdef object newest  # the last used of the models for other free sizes

    cdef object results(self, Sides *sides)
    cdef bint collect(self, Sides *sides, tuple arrays, dict named, bint without_states) except -1
    cdef Prepared prepared(self, Sides *sides)
    cdef bint run_sides(self, Sides *sides, outs) except -1


cdef class BranchCore(RunCore):
    cdef bint selects[MOST_SIDES]  # for each input
    cdef Form forms[MOST_SIDES]  # of those that select
    cdef dict models  # values of these, joined -> Model
    cdef tuple last_branch  # (values, Model) of the last call

    cdef RunCore branch(self, const Sides *sides, Sides *rest)
