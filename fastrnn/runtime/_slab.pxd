"""The base of streams and pools; see _slab.pyx."""

from libc.stdint cimport int64_t

from fastrnn.runtime._binding cimport Scratch
from fastrnn.runtime._parts cimport StreamParts


cdef class SlabCore:
    cdef readonly StreamParts _parts
    cdef float *slab_data  # [rows, state_size]

    cdef int hold(self) except -1
    cdef void let_go(self) noexcept
    cdef object states_of(self, int64_t n, const int64_t *places)
    cdef int put_back(self, object states, int64_t n, const int64_t *places) except -1
    cdef int call(self, Scratch s, int64_t n, const int64_t *places) except -1
    cdef int advance(self, int64_t n, int64_t *places, int64_t position, int64_t span, list columns,
                     int64_t most, bint final) except -1
    cdef int advance_ragged(self, places, positions, lengths, list columns, int64_t most, bint final) except -1
