# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""PoolCore: one slab of states, one row per stream, and the calls that advance any of its rows, in place.

A slot is an int: generation << 24 | place. The place is a row of the slab. Its generation goes up by one when it is
opened and again when it is closed, so it is odd while open, and a closed slot never becomes valid again.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memmove

cimport numpy as cnp

from fastrnn.runtime._binding cimport allocate
from fastrnn.runtime._meter cimport Meter
from fastrnn.runtime._slab cimport SlabCore, StreamParts, empty, fits, takes

import numpy as np

from ..errors import ShapeError, StateError, StreamError

cnp.import_array()

cdef extern from "pythread.h" nogil:
    ctypedef void *PyThread_type_lock
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock lock)
    void PyThread_release_lock(PyThread_type_lock lock)
    int PyThread_acquire_lock(PyThread_type_lock lock, int wait)
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr)
    unsigned long PyThread_get_thread_ident()

DEF PLACE_BITS = 24
cdef int64_t MOST_PLACES = 1 << PLACE_BITS, WAIT_US = 20_000  # between looks for signals while a thread waits
# Pools start at different generations, so that a slot of one is not valid in another: 2^24 openings per place each.
cdef int64_t GENERATIONS = 1 << 24
cdef int64_t MOST_POOLS = 1 << 14
cdef int64_t pools_made = 0
# Rows in one call of the program: enough that reading the weights costs little compared to the work, and few enough
# that the data of the call stays in a core's second-level cache.
cdef int64_t LEAST_ROWS = 64
cdef int64_t CALL_BYTES = 1 << 20


cdef class PoolCore(SlabCore):
    """The slab, the slots and the lock of a pool. Methods with a leading underscore require the lock to be held."""

    cdef readonly int64_t capacity
    cdef readonly object slab  # float32 [capacity, state_size]; None before the sizes of a step are known
    cdef int64_t *generation
    cdef int64_t *steps  # taken by the stream in each place
    cdef int64_t *mark  # the number of the last call with the place, to detect duplicates in one call
    cdef int64_t *place  # the places of the current call, one per row
    cdef int64_t *free  # a stack of closed places
    cdef int64_t n_free, calls, first_generation
    cdef readonly set ended  # places whose streams were flushed; only of models with a timetable
    cdef readonly dict still  # place -> the last arrays of `StreamParts.still`
    cdef readonly int64_t opened  # streams so far
    cdef readonly Meter meter  # of steps
    cdef bint simple  # rows of plain arrays go straight to the program
    cdef int64_t rows_a_call, rows_a_push
    cdef PyThread_type_lock lock
    cdef unsigned long owner  # the thread that has the lock; 0: none
    cdef bint forked_within  # this thread forks in the middle of a call

    def __cinit__(self, *args, **kwargs):
        global pools_made
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError()
        self.first_generation = (pools_made % MOST_POOLS) * GENERATIONS
        pools_made += 1
        self.ended, self.still, self.meter = set(), {}, Meter()

    def __dealloc__(self):
        PyMem_Free(self.generation)
        PyMem_Free(self.steps)
        PyMem_Free(self.mark)
        PyMem_Free(self.place)
        PyMem_Free(self.free)
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    def _begin(self, StreamParts parts):
        """Take the shared parts of all streams, and make the slab; initializes streams that were opened before."""
        cdef int64_t row_bytes = 0, number = 1
        plan, table = parts.program.plan, parts.timetable
        slab = np.zeros((self.capacity, parts.program.state_size), np.float32)  # an unwritten page takes no memory
        slab[self._open_slots() & (MOST_PLACES - 1)] = parts.layout.initial_row
        if table is not None:
            number = table.counts(table.start, 1).number
        if plan.has_batch:
            row_bytes = parts.program.arena_bytes(2, number) - parts.program.arena_bytes(1, number)
        shared = not all(a.batched for a in (*parts.inputs, *parts.outputs))  # else each row needs a call
        self.rows_a_call = max(LEAST_ROWS, CALL_BYTES // max(row_bytes, 1)) if plan.has_batch else 1
        self.rows_a_push = 1 if shared else self.rows_a_call
        self.simple = parts.simple and not shared and table is None
        self.slab, self.slab_data = slab, <float *> cnp.PyArray_DATA(<cnp.ndarray> slab)
        self._parts = parts

    def _resize(self, int64_t capacity):
        """Make room for `capacity` streams, not fewer than now. Places keep their slots."""
        cdef int64_t i, old = self.capacity
        if self.program is not None:
            slab = np.zeros((capacity, self._parts.program.state_size), np.float32)
            taken = self._open_slots() & (MOST_PLACES - 1)
            slab[taken] = self.slab[taken]
        self.generation = enlarged(self.generation, old, capacity)
        self.steps = enlarged(self.steps, old, capacity)
        self.mark = enlarged(self.mark, old, capacity)
        self.place = enlarged(self.place, old, capacity)
        self.free = enlarged(self.free, old, capacity)
        for i in range(old, capacity):
            self.generation[i] = self.first_generation
        memmove(self.free + capacity - old, self.free, self.n_free * sizeof(int64_t))
        for i in range(capacity - old):  # the lowest place on top
            self.free[i] = capacity - 1 - i
        self.n_free += capacity - old
        self.capacity = capacity
        if self.program is not None:
            self.slab, self.slab_data = slab, <float *> cnp.PyArray_DATA(<cnp.ndarray> slab)

    # -- the lock --
    @cython.final
    cdef int hold(self) except -1:
        """Wait until no other thread is in a call of this pool."""
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
                PyErr_CheckSignals()
        self.owner = me
        return 0

    @cython.final
    cdef void let_go(self) noexcept:
        self.owner = 0
        PyThread_release_lock(self.lock)

    def _alone(self):
        return self._held()  # a context manager during which other threads wait

    def _hold_for_fork(self):
        """Wait for calls of other threads. This thread may be in a call itself, if a signal's handler forks."""
        self.forked_within = self.owner == PyThread_get_thread_ident()
        if not self.forked_within:
            self.hold()

    def _let_go_after_fork(self):
        if not self.forked_within:
            self.let_go()

    # -- slots --
    def _open(self):
        """A slot of a free place, in the initial state."""
        cdef int64_t place
        if self.n_free == 0:
            raise StateError(f"all {self.capacity} slots of this pool are open: close one, or grow(capacity)")
        self.n_free -= 1
        place = self.free[self.n_free]
        self.generation[place] += 1
        self.opened += 1
        self._reset(place)
        return self.generation[place] << PLACE_BITS | place

    def _copy(self, int64_t place):
        """A slot of a free place, with the state of another stream."""
        cdef int64_t slot = self._open(), new = slot & (MOST_PLACES - 1)
        if self.program is not None:
            self.slab[new] = self.slab[place]
        self.steps[new] = self.steps[place]
        if place in self.ended:
            self.ended.add(new)
        if place in self.still:
            self.still[new] = self.still[place]
        return slot

    def _close(self, int64_t place):
        self.generation[place] += 1
        self.free[self.n_free] = place
        self.n_free += 1
        self._forget(place)

    def _reset(self, int64_t place):
        if self.program is not None:
            self.slab[place] = self._parts.layout.initial_row
        self.steps[place] = 0
        self._forget(place)

    cdef _forget(self, int64_t place):
        """Clear the data that only streams with a timetable have."""
        if self.ended:
            self.ended.discard(place)
        if self.still:
            self.still.pop(place, None)

    def _steps(self, int64_t place):
        return self.steps[place]

    def _set_steps(self, int64_t place, int64_t steps, bint ended=False, still=None):
        """Set the position of the stream in a place; still: as in `self.still`, None: unchanged."""
        self.steps[place] = steps
        if ended:
            self.ended.add(place)
        else:
            self.ended.discard(place)
        if still is not None:
            self.still[place] = still

    def _open_slots(self):
        """int64 [open], by place."""
        cdef int64_t i, n = 0
        cdef int64_t[::1] found = np.empty(self.capacity - self.n_free, np.int64)
        for i in range(self.capacity):
            if self.generation[i] & 1:
                found[n] = self.generation[i] << PLACE_BITS | i
                n += 1
        return np.asarray(found)

    @property
    def _n_open(self):
        return self.capacity - self.n_free

    cdef inline bint is_open(self, int64_t slot) noexcept:
        cdef int64_t place = slot & (MOST_PLACES - 1)
        return place < self.capacity and self.generation[place] == slot >> PLACE_BITS and (slot >> PLACE_BITS) & 1

    cdef explain(self, int64_t slot):
        """Why a slot is not open."""
        cdef int64_t place = slot & (MOST_PLACES - 1), generation = slot >> PLACE_BITS
        if slot < 0 or place >= self.capacity or generation <= self.first_generation or not generation & 1 or \
                generation > self.generation[place]:
            return f"slot {slot} is not one of this pool's"
        if self.generation[place] & 1:
            return f"slot {slot} was closed, and its place has been opened for another stream since"
        return f"slot {slot} was closed"

    def _place(self, slot):
        """The place of an open slot, else StateError."""
        cdef int64_t number
        if isinstance(slot, bool | np.bool_) or not isinstance(slot, int | np.integer):
            raise StateError(f"a slot is an int that open() returned, got {type(slot).__name__}")
        if not -(1 << 63) <= slot < 1 << 63:
            raise StateError(f"slot {slot} is not one of this pool's")
        number = slot
        if not self.is_open(number):
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
            slots = _as_slots(slots)
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

    # -- steps --
    def step(self, slots, x, out=None):
        """Advance the streams in `slots` by one time step.

        Parameters
        ----------
        slots : ints that `open` returned, an array or sequence of shape [n]; any of them, in any order, none twice
        x : array or list, shape [n, features...]; row i is the input of slots[i]; dtypes as in `Model.run`
            A model with several inputs takes a tuple in the order of `model.inputs`, or a dict by name. An input
            without a batch axis has none here: the rows share it.
        out : array, optional
            Where the result is written: C-contiguous, of the output's dtype and shape.

        Returns
        -------
        array [n, features...] (out if it is given); a tuple for several outputs.

        Raises
        ------
        StateError : a slot that is closed, of another pool, or there twice.
        ShapeError : dtype or shape of x or out; a number that does not fit; an index outside an embedding's table.
        After an error, and after Ctrl-C, no state has changed.

        Notes
        -----
        Threads may call one pool at the same time: they take turns. With int64 slots, a C-contiguous float32 x, and
        out, a step allocates nothing.
        """
        cdef int64_t n, began
        cdef StreamParts p
        self.hold()
        try:
            began = self.meter.begin()
            n, p = self.find(slots), self._parts
            if self.simple and fits(x, &p.x_form, 0, n) and (out is None or takes(out, &p.y_form, 0, n, x)):
                if out is None:
                    out = empty(&p.y_form, 0, n)
                if n > self.rows_a_call:
                    self._advance(n, [x, out])
                elif n:
                    self.call(p.program.take(n, 1, 1), n, self.place, x, out)
                    self.count(n)
            else:
                out = self._step_general(n, x, out)
            self.meter.end(began, n, 1)
            return out
        finally:
            self.let_go()

    cdef void count(self, int64_t n) noexcept:
        cdef int64_t i
        for i in range(n):
            self.steps[self.place[i]] += 1

    def _advance(self, int64_t n, list arrays):
        """One step of the n streams found, if each output has one step per input step. arrays : C-contiguous inputs,
        then outputs, [n, ...] if they have a batch axis."""
        if self._parts.program.room >= 0:
            self._parts.program.check_room(self.slab_data, self.place, 0, n, 1)
        self.advance(n, self.place, 0, 1, arrays, self.rows_a_call, False)
        self.count(n)

    # -- chunks --
    def _push_plain(self, int64_t n, list chunks):
        """`push` of the n streams found, if the model has one input and one output and each chunk is a plain array.
        Returns the new arrays. Otherwise returns None without any effect. A general check takes 15 us per chunk."""
        cdef int64_t i
        cdef cnp.npy_intp size = n
        cdef StreamParts p = self._parts
        cdef list results = []
        if not (self.simple and p.plain_chunks):
            return None
        lengths = cnp.PyArray_EMPTY(1, &size, cnp.NPY_INT64, 0)
        for i in range(n):
            if not fits(chunks[i], &p.x_form, 0, -1):
                return None
            (<int64_t *> cnp.PyArray_DATA(<cnp.ndarray> lengths))[i] = cnp.PyArray_DIM(<cnp.ndarray> chunks[i], 0)
        for i in range(n):
            results.append(empty(&p.y_form, 0, cnp.PyArray_DIM(<cnp.ndarray> chunks[i], 0)))
        self.check_room(n, lengths)
        self.advance_found(n, lengths, [chunks, results], False)
        return results

    def _take(self, int64_t n, lengths, list columns, bint one=False, bint final=False):
        """Advance each of the n streams found by a chunk of its own length.

        Parameters
        ----------
        lengths : int64 [n]; columns : of each input, as `advance_ragged` takes them
        one : return the results of a single step; final : the sequences end here

        Returns
        -------
        list of n lists with a new array for each output, with the steps that come; None for a value over time that
        does not exist yet
        """
        cdef int64_t i, place
        cdef StreamParts p = self._parts
        if n == 0:
            return []
        self.check_room(n, lengths)
        spans = lengths.tolist()
        comes = [p.brought(self.steps[self.place[i]], spans[i], final) for i in range(n)]
        made = [p.room_for(row, None, one) for row in comes]
        self.advance_found(n, lengths, columns + [list(column) for column in zip(*made)], final)
        for i in range(n):
            place = self.place[i]
            if final and p.timetable is not None:
                self.ended.add(place)
            if p.still and spans[i]:
                self.still[place] = [np.array(c[i]) for a, c in zip(p.inputs, columns) if a in p.still]
        return [p.seen(row, arrays, one) for row, arrays in zip(comes, made)]

    cdef int check_room(self, int64_t n, lengths) except -1:
        """Raise StreamError if one of the n streams found has ended, or can't take that many more steps."""
        cdef int64_t i, place, steps
        cdef StreamParts p = self._parts
        for i in range(n):
            place, steps = self.place[i], (<int64_t *> cnp.PyArray_DATA(<cnp.ndarray?> lengths))[i]
            if self.ended and place in self.ended:
                raise StreamError("a stream of these slots was flushed: its sequence is at its end; reset() begins "
                                  "another")
            if p.room >= 0 and self.steps[place] + steps > p.room:
                p.program.refuse(f"row {i}", self.steps[place], steps)
            if p.program.room >= 0:
                p.program.check_room(self.slab_data, self.place, i, 1, steps)
        return 0

    cdef int advance_found(self, int64_t n, lengths, list columns, bint final) except -1:
        """Rows of the n streams found, by chunks of their own lengths."""
        cdef int64_t i
        cdef cnp.npy_intp size = n
        places = cnp.PyArray_SimpleNewFromData(1, &size, cnp.NPY_INT64, self.place)
        positions = np.empty(n, np.int64)
        for i in range(n):
            (<int64_t *> cnp.PyArray_DATA(<cnp.ndarray> positions))[i] = self.steps[self.place[i]]
        self.advance_ragged(places, positions, lengths, columns, self.rows_a_push, final)
        for i in range(n):
            self.steps[self.place[i]] += (<int64_t *> cnp.PyArray_DATA(<cnp.ndarray> lengths))[i]
        return 0

    @property
    def _table_bytes(self):
        return 5 * self.capacity * sizeof(int64_t)


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


cdef int64_t *enlarged(int64_t *old, int64_t used, int64_t capacity) except NULL:
    cdef int64_t *new = <int64_t *> allocate(capacity, sizeof(int64_t))
    if used:
        memcpy(new, old, used * sizeof(int64_t))
    PyMem_Free(old)
    return new
