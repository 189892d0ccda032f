"""What all streams of a model share; see _parts.pyx."""

from libc.stdint cimport int64_t

from fastrnn.runtime._executor cimport Program
from fastrnn.runtime._forms cimport Form, Sides


cdef struct Trait:  # of an argument
    int64_t step  # bytes of one step of one row
    bint timed, batched
    int time_axis  # of chunks; -1: none


cdef class StreamParts:
    cdef readonly Program program
    cdef readonly object batch_size, context, layout, timetable
    cdef readonly dict sizes
    cdef readonly list inputs, outputs, names, still
    cdef readonly tuple many
    cdef readonly int64_t batch, room
    cdef readonly bint simple, plain
    cdef int64_t n_in, n_sides, largest
    cdef int n_given  # inputs that steps pass: those that are not bound
    cdef list held  # the bound values, None for each input that steps pass; None if no input is bound
    cdef Trait *traits  # of the inputs, then of the outputs
    cdef Form *forms  # of one step, in the same order
    cdef bint simple_chunks, plain_steps, plain_chunks, guesses

    cdef int row_axis(self, int i, int64_t rows) noexcept
    cdef bint inputs_of(self, Sides *sides, x) except -1
    cdef bint step_sides(self, Sides *sides, x, out, int64_t rows) except -1
    cdef int64_t chunk_sides(self, Sides *sides, x) except -2
    cdef int make_outputs(self, Sides *sides, tuple comes, int64_t rows) except -1
    cdef object results(self, Sides *sides, out, tuple comes)
    cdef tuple brought(self, int64_t position, int64_t steps, bint final)
    cdef list room_for(self, tuple comes, object batch_size, bint one)
    cdef list seen(self, tuple comes, list made, bint one)
