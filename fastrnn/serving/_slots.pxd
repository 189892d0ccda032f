"""The slots of a pool; see _slots.pyx."""

from libc.stdint cimport int64_t

from fastrnn.machine._region cimport Region
from fastrnn.runtime._slab cimport SlabCore

cdef extern from "pythread.h" nogil:
    ctypedef void *PyThread_type_lock
    void PyThread_release_lock(PyThread_type_lock lock)
    int PyThread_acquire_lock(PyThread_type_lock lock, int wait)
    unsigned long PyThread_get_thread_ident()


cdef class SlotCore(SlabCore):
    cdef readonly int64_t capacity
    cdef readonly set ended  # places whose streams were flushed; only of models with a timetable
    cdef readonly dict still  # place -> the last arrays of `StreamParts.still`
    cdef readonly int64_t opened  # streams so far
    # Memory of the states, and of the tables whose pointers follow, with one number per place.
    cdef Region of_states, of_generation, of_steps, of_mark, of_place, of_closed
    cdef int64_t *generation  # since the pool was made: 0 for a place that was never opened
    cdef int64_t *steps  # taken by the stream in each place
    cdef int64_t *mark  # the number of the last call that used or changed the place
    cdef int64_t *place  # the places of the current call, one per row
    cdef int64_t *closed  # a stack of closed places
    cdef int64_t n_closed, fresh  # fresh: the first of the places that were never opened
    cdef size_t row_bytes  # of the slab
    cdef object initial  # float32 [state_size]
    cdef int64_t calls, first_generation
    cdef PyThread_type_lock lock
    cdef unsigned long owner  # the thread that has the lock; 0: none
    cdef bint forked_within  # this thread forks in the middle of a call
    cdef bint shut  # the pool was closed, or is torn
    cdef bint torn  # this process is a fork's child, and another thread was in a call of the pool

    cdef bint acquire(self, bint look=*) except -1
    cdef why_shut(self)
    cdef _lay_rows(self)
    cdef char *row(self, int64_t place) noexcept
    cdef int64_t slot_of(self, int64_t place) noexcept
    cdef void touch(self, int64_t place) noexcept
    cdef int64_t take_place(self) except -1
    cdef _clear(self, int64_t place)
    cdef _forget(self, int64_t place)
    cdef bint is_open(self, int64_t slot) noexcept
    cdef explain(self, int64_t slot)
    cdef int64_t find(self, slots) except -1


cdef inline int enter(SlotCore core) except -1:
    """`core.hold()`, for a step: inline, 8 ns less."""
    if core.shut or not PyThread_acquire_lock(core.lock, 0):
        return core.hold()
    core.owner = PyThread_get_thread_ident()
    return 0


cdef inline void leave(SlotCore core) noexcept:
    """`core.let_go()`"""
    core.owner = 0
    PyThread_release_lock(core.lock)
