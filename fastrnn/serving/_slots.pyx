# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""SlotCore: one slab of states, one row per stream, the slots that name them, and the lock of a pool.

A slot is an int: generation << 24 | place. The place is a row of the slab. Its generation goes up by one when it is
opened and again when it is closed, so it is odd while open, and a closed slot never becomes valid again.

The tables have one number per place. A place that was never opened has zeros in all of them, so that nothing is written
when a pool is made or grows: its memory is moved (machine/_region.pyx), and no stream waits for a copy.
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from libc.stdint cimport int64_t
from libc.string cimport memcpy

cimport numpy as cnp

from fastrnn.machine._region cimport Region
from fastrnn.runtime._forms cimport is_plain
from fastrnn.runtime._parts cimport StreamParts
from fastrnn.runtime._slab cimport SlabCore

import numpy as np

from ..errors import ShapeError, StateError, StreamError, out_of_memory

cnp.import_array()

cdef extern from "pythread.h" nogil:
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock lock)
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr)
cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *o)

DEF PLACE_BITS = 24
cdef int64_t MOST_PLACES = 1 << PLACE_BITS, WAIT_US = 20_000  # between looks for signals while a thread waits
# Pools start at different generations, so that a slot of one is not valid in another: 2^24 openings per place each.
cdef int64_t GENERATIONS = 1 << 24
cdef int64_t MOST_POOLS = 1 << 14
cdef int64_t pools_made = 0

cdef int64_t *integers(cnp.ndarray array) except? NULL:
    """The elements of a plain int64 array. Typed memoryviews would add 60 KB to the wheel."""
    if not is_plain(array, cnp.NPY_INT64):
        raise TypeError(f"expected a plain int64 array, got {array.dtype}")
    return <int64_t *> cnp.PyArray_DATA(array)


cdef char *states(cnp.ndarray array, size_t bytes) except? NULL:
    """The elements of a plain float32 array of this size."""
    if not is_plain(array, cnp.NPY_FLOAT32) or <size_t> cnp.PyArray_NBYTES(array) != bytes:
        raise TypeError(f"expected plain float32 states of {bytes} bytes, got {array.dtype} of "
                        f"{cnp.PyArray_NBYTES(array)}")
    return <char *> cnp.PyArray_DATA(array)


cdef str SHUT = "this pool was closed: make another one with model.pool(), or close it later"
cdef str TORN = ("another thread was in a call of this pool when the process was forked: make another one in the "
                 "child with model.pool()")


cdef class SlotCore(SlabCore):
    """The slab, the slots and the lock of a pool. Methods with a leading underscore require the lock to be held."""

    def __cinit__(self, *args, **kwargs):
        global pools_made
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError()
        self.first_generation = (pools_made % MOST_POOLS) * GENERATIONS
        pools_made += 1
        self.ended, self.still = set(), {}
        self.of_states = None
        self.of_generation, self.of_steps, self.of_mark = Region(), Region(), Region()
        self.of_place, self.of_closed = Region(), Region()

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    # -- memory --
    cdef _lay_rows(self):
        """Make the slab, for a row size that has just become known; initializes streams that were opened before."""
        cdef Region states = Region(huge=True)
        cdef int64_t place
        self.row_bytes = self._parts.program.state_size * sizeof(float)
        self.initial = np.ascontiguousarray(self._parts.layout.initial_row, np.float32)
        states.grow(self.capacity * self.row_bytes)
        self.of_states, self.slab_data = states, <float *> states.data
        for place in range(self.fresh):
            if self.generation[place] & 1:
                memcpy(self.row(place), cnp.PyArray_DATA(self.initial), self.row_bytes)

    def _resize(self, int64_t capacity):
        """Make room for `capacity` streams, not fewer than now. Places keep their slots. Needs the GIL throughout, so
        that no array of `slab` can come into being while the memory moves."""
        cdef size_t size = capacity * sizeof(int64_t)
        for table in (self.of_generation, self.of_steps, self.of_mark, self.of_place, self.of_closed):
            (<Region> table).grow(size)
        self.generation, self.steps = <int64_t *> self.of_generation.data, <int64_t *> self.of_steps.data
        self.mark, self.place = <int64_t *> self.of_mark.data, <int64_t *> self.of_place.data
        self.closed = <int64_t *> self.of_closed.data
        if self.of_states is not None:
            if Py_REFCNT(<PyObject *> self.of_states) > 1:  # the caller still has an array of `slab`
                self.of_states = self.of_states.enlarged(capacity * self.row_bytes, self.fresh * self.row_bytes)
            else:
                self.of_states.grow(capacity * self.row_bytes)
            self.slab_data = <float *> self.of_states.data
        self.capacity = capacity

    cdef inline char *row(self, int64_t place) noexcept:
        return <char *> self.slab_data + place * self.row_bytes

    @property
    def slab(self):
        """float32 [capacity, state_size], the states by place, for reading only; None before the sizes of a step are
        known. A view: while it is used, `grow` copies the slab."""
        cdef cnp.npy_intp[2] dims
        if self.of_states is None:
            return None
        dims[0], dims[1] = self.capacity, self._parts.program.state_size
        view = cnp.PyArray_SimpleNewFromData(2, dims, cnp.NPY_FLOAT32, self.of_states.data)
        cnp.set_array_base(view, self.of_states)
        return view

    @property
    def _table_bytes(self):
        return 5 * self.capacity * sizeof(int64_t)

    # -- the lock --
    cdef int hold(self) except -1:
        """Wait until no other thread is in a call of this pool. StreamError if it is closed by then."""
        self.acquire()
        if self.shut:
            self.let_go()
            self._check_open()
        return 0

    def _check_open(self):
        """StreamError if the pool is closed."""
        if self.shut:
            raise StreamError(self.why_shut())

    cdef why_shut(self):
        return TORN if self.torn else SHUT

    cdef bint acquire(self, bint look=True) except -1:
        """`hold` of any pool. look: for signals, while it waits."""
        cdef int got
        cdef unsigned long me = PyThread_get_thread_ident()
        if not PyThread_acquire_lock(self.lock, 0):
            if self.owner == me:
                raise StreamError("this pool is in a call of this very thread: it can't be called from within one")
            while True:
                with nogil:
                    got = PyThread_acquire_lock_timed(self.lock, WAIT_US, 0)
                if got:
                    break
                if look:
                    PyErr_CheckSignals()
        self.owner = me
        return True

    cdef void let_go(self) noexcept:
        leave(self)

    def _shut(self):
        """Free all memory, when no other thread is in a call. Threads that wait for the pool get a StreamError."""
        self.acquire()
        try:
            self.shut = True
            self.capacity = self.fresh = self.n_closed = 0  # no place exists, also for readers without the lock
            self.generation = self.steps = self.mark = self.place = self.closed = NULL
            self.slab_data = NULL
            self.ended, self.still, self._parts, self.initial = set(), {}, StreamParts(), None
            self.of_states = None
            self.of_generation, self.of_steps, self.of_mark = Region(), Region(), Region()
            self.of_place, self.of_closed = Region(), Region()
        finally:
            self.let_go()

    @property
    def _is_shut(self):
        return self.shut

    def _alone(self):
        return self._held()  # a context manager during which other threads wait

    def _hold_for_fork(self):
        """Wait for calls of other threads, without looking at signals: see machine/_forks.pyx. This thread may be in a
        call itself, if a signal's handler forks."""
        self.forked_within = self.owner == PyThread_get_thread_ident()
        if not self.forked_within:
            self.acquire(look=False)

    def _let_go_after_fork(self):
        if not self.forked_within:
            self.let_go()

    def _renew_after_fork(self):
        """In the child, for a pool that the forking thread does not have. If another thread was in a call, that call
        never ends, and its streams are somewhere in the middle of it: the pool is refused. Nothing is freed."""
        if PyThread_acquire_lock(self.lock, 0):
            PyThread_release_lock(self.lock)
            return
        self.lock = PyThread_allocate_lock()
        self.owner = 0
        self.torn = self.shut = True
        self.capacity = self.fresh = self.n_closed = 0  # no place exists, also for readers without the lock

    # -- slots --
    def _open(self):
        """A slot of a free place, in the initial state."""
        return self.slot_of(self.take_place())

    cdef int64_t take_place(self) except -1:
        """Open a free place."""
        cdef int64_t place
        if self.n_closed:
            self.n_closed -= 1
            place = self.closed[self.n_closed]
        elif self.fresh < self.capacity:
            place = self.fresh
            self.fresh += 1
        else:
            raise StateError(f"all {self.capacity} slots of this pool are open: close one, or grow(capacity)")
        self.generation[place] += 1
        self.opened += 1
        self._clear(place)
        return place

    cdef inline int64_t slot_of(self, int64_t place) noexcept:
        return (self.first_generation + self.generation[place]) << PLACE_BITS | place

    cdef inline void touch(self, int64_t place) noexcept:
        """Note that a stream has changed outside of a call."""
        self.calls += 1
        self.mark[place] = self.calls

    def _copy(self, int64_t place):
        """A slot of a free place, with the state of another stream."""
        cdef int64_t slot = self._open(), new = slot & (MOST_PLACES - 1)
        if self.of_states is not None:
            memcpy(self.row(new), self.row(place), self.row_bytes)
        self.steps[new] = self.steps[place]
        if place in self.ended:
            self.ended.add(new)
        if place in self.still:
            self.still[new] = self.still[place]
        return slot

    def _close(self, int64_t place):
        self.generation[place] += 1
        self.closed[self.n_closed] = place
        self.n_closed += 1
        self.touch(place)
        self._forget(place)

    def _close_all(self, cnp.ndarray slots):
        """Close these slots, those of them that are open. slots : int64 [n]"""
        cdef int64_t i
        cdef const int64_t *slot = integers(slots)
        for i in range(cnp.PyArray_SIZE(slots)):
            if self.is_open(slot[i]):
                self._close(slot[i] & (MOST_PLACES - 1))

    def _reset(self, int64_t place):
        self._clear(place)

    cdef _clear(self, int64_t place):
        if self.of_states is not None:
            memcpy(self.row(place), cnp.PyArray_DATA(self.initial), self.row_bytes)
        self.steps[place] = 0
        self.touch(place)
        self._forget(place)

    cdef _forget(self, int64_t place):
        """Clear the data that only streams with a timetable have."""
        if self.ended:
            self.ended.discard(place)
        if self.still:
            self.still.pop(place, None)

    def _steps(self, int64_t place):
        if place >= self.capacity:  # closed since the place was found
            raise StreamError(self.why_shut())
        return self.steps[place]

    def _set_steps(self, int64_t place, int64_t steps, bint ended=False, still=None):
        """Set the position of the stream in a place; still: as in `self.still`, None: unchanged."""
        self.steps[place] = steps
        self.touch(place)
        if ended:
            self.ended.add(place)
        else:
            self.ended.discard(place)
        if still is not None:
            self.still[place] = still

    def _open_slots(self):
        """int64 [open], by place."""
        cdef int64_t i, n = 0
        found = np.empty(self._n_open, np.int64)
        cdef int64_t *slots = integers(found)
        for i in range(self.fresh):
            if self.generation[i] & 1:
                slots[n] = self.slot_of(i)
                n += 1
        return found

    @property
    def _n_open(self):
        return self.fresh - self.n_closed

    cdef inline bint is_open(self, int64_t slot) noexcept:
        cdef int64_t place = slot & (MOST_PLACES - 1), generation = (slot >> PLACE_BITS) - self.first_generation
        return place < self.capacity and self.generation[place] == generation and generation & 1

    cdef explain(self, int64_t slot):
        """Why a slot is not open."""
        cdef int64_t place = slot & (MOST_PLACES - 1), generation = (slot >> PLACE_BITS) - self.first_generation
        if slot < 0 or place >= self.capacity or generation <= 0 or not generation & 1 or \
                generation > self.generation[place]:
            return f"slot {slot} is not one of this pool's"
        if self.generation[place] & 1:
            return f"slot {slot} was closed, and its place has been opened for another stream since"
        return f"slot {slot} was closed"

    def _place(self, slot):
        """The place of an open slot, else StateError; StreamError if the pool is closed."""
        cdef int64_t number
        if isinstance(slot, bool | np.bool_) or not isinstance(slot, int | np.integer):
            raise StateError(f"a slot is an int that open() returned, got {type(slot).__name__}")
        if not -(1 << 63) <= slot < 1 << 63:
            raise StateError(f"slot {slot} is not one of this pool's")
        number = slot
        if not self.is_open(number):
            self._check_open()
            raise StateError(self.explain(number))
        return number & (MOST_PLACES - 1)

    def _find(self, slots):
        return self.find(slots)

    cdef int64_t find(self, slots) except -1:
        """Write the places of a call's slots to `place`; returns their number. Nothing else changes."""
        cdef int64_t i, n, slot, place
        cdef const int64_t *given
        if not (cnp.PyArray_CheckExact(slots) and cnp.PyArray_TYPE(<cnp.ndarray> slots) == cnp.NPY_INT64
                and cnp.PyArray_NDIM(<cnp.ndarray> slots) == 1
                and cnp.PyArray_CHKFLAGS(<cnp.ndarray> slots, cnp.NPY_ARRAY_CARRAY_RO)
                and cnp.PyArray_ISNOTSWAPPED(<cnp.ndarray> slots)):
            try:
                slots = _as_slots(slots)
            except MemoryError as error:
                raise out_of_memory(error, "the slots of a call") from None
        n = cnp.PyArray_DIM(<cnp.ndarray> slots, 0)
        given = <const int64_t *> cnp.PyArray_DATA(<cnp.ndarray> slots)
        self.calls += 1
        for i in range(n):
            slot = given[i]
            if not self.is_open(slot):
                raise StateError(self.explain(slot))
            place = slot & (MOST_PLACES - 1)
            if self.mark[place] == self.calls:
                raise StateError(f"slot {slot} is there twice: a stream takes one step, or one chunk, per call")
            self.mark[place] = self.calls
            self.place[i] = place  # no place occurs twice, so there are no more rows than places
        return n

    # -- snapshots --
    def _open_with(self, cnp.ndarray steps, cnp.ndarray rows, cnp.ndarray slots):
        """New slots for streams with these states that have taken these steps; not more than are free. steps : int64
        [n]. rows : float32 [n, state_size]. slots : int64 [n], is filled. Allocates nothing."""
        cdef int64_t i, place, n = cnp.PyArray_SIZE(slots)
        cdef int64_t *slot = integers(slots)
        cdef const int64_t *step = integers(steps)
        cdef const char *row = states(rows, n * self.row_bytes)
        if cnp.PyArray_SIZE(steps) != n:
            raise TypeError(f"{n} slots need as many positions, got {cnp.PyArray_SIZE(steps)}")
        for i in range(n):
            place = self.take_place()
            slot[i], self.steps[place] = self.slot_of(place), step[i]
            if self.row_bytes:
                memcpy(self.row(place), row + i * self.row_bytes, self.row_bytes)

    @property
    def _now(self):
        """The number of the last call or change; `_slice` finds the places that have changed after it."""
        return self.calls

    def _slice(self, int64_t start, int64_t since, cnp.ndarray slots, cnp.ndarray steps, cnp.ndarray rows,
               cnp.ndarray gone):
        """One slice of a snapshot: streams from place `start` on that have changed after `since`, -1: all.

        Parameters
        ----------
        slots, steps : int64 [most], rows : float32 [most, state_size]; are filled
        gone : int64 [places that a slice may look at]; is filled with places whose streams were closed after `since`

        Returns
        -------
        (streams found, closed places found, the place where the next slice begins, -1 after the last)
        """
        cdef int64_t place = start, n = 0, closed = 0, most = cnp.PyArray_SIZE(slots)
        cdef int64_t last = min(self.fresh, start + cnp.PyArray_SIZE(gone))
        cdef int64_t *slot = integers(slots)
        cdef int64_t *step = integers(steps)
        cdef int64_t *closed_place = integers(gone)
        cdef char *row = states(rows, most * self.row_bytes)
        while place < last and n < most:
            if self.mark[place] > since:
                if self.generation[place] & 1:
                    slot[n], step[n] = self.slot_of(place), self.steps[place]
                    if self.row_bytes:
                        memcpy(row + n * self.row_bytes, self.row(place), self.row_bytes)
                    n += 1
                elif since >= 0:
                    closed_place[closed] = place
                    closed += 1
            place += 1
        return n, closed, -1 if place >= self.fresh else place


def _as_slots(slots):
    """int64 [n]; StateError for anything other than ints."""
    try:
        array = np.asarray(slots)
    except (ValueError, TypeError, OverflowError) as error:
        raise StateError(f"slots are ints that open() returned: {error}") from None
    if array.ndim == 0 and array.dtype.kind not in "iufb":
        raise ShapeError(f"slots must be an array or a sequence, with one axis, got {type(slots).__name__}")
    if array.ndim != 1:
        raise ShapeError(f"slots must have one axis, got {list(array.shape)}; a single one is written [slot]")
    if array.size and array.dtype.kind not in "iu":
        raise StateError(f"slots are ints that open() returned, got {array.dtype}")
    return np.ascontiguousarray(array, np.int64)
