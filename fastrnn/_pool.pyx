# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""PoolCore: one slab of states, a row a stream, and the calls that advance any of its rows, in place.

A slot is an int: generation << 24 | place. The place is a row of the slab; its generation goes up by one when it is
opened and again when it is closed, so it is odd while open, and a slot that was closed never fits again.
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int64_t
from libc.string cimport memcpy

cimport numpy as cnp

from fastrnn._executor cimport FLOPS_WATCHED, Form, Program, Scratch, apart, fits

import numpy as np

from .errors import ShapeError, StateError, StreamError

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
DEF ALIGN = 8
cdef int64_t MOST_PLACES = 1 << PLACE_BITS
cdef int64_t WAIT_US = 20_000  # between looks for signals while another thread has the pool
# Pools number their first generations apart, so that a slot of one is not one of another: 2^24 openings a place each.
cdef int64_t GENERATIONS = 1 << 24
cdef int64_t MOST_POOLS = 1 << 14
cdef int64_t pools_made = 0
# Rows of one call of the program: enough that reading the weights costs little beside the work, few enough that what
# the call works with stays in a core's second-level cache.
cdef int64_t LEAST_ROWS = 64
cdef int64_t CALL_BYTES = 1 << 20
cdef int64_t MOST_STEPS = 64  # of one call
cdef int64_t ROWS_TIMES_STEPS = 256  # of one call: with more rows than that, more steps a call win nothing


cdef struct Side:  # one input or output of a ragged push
    char **data  # of each row, sorted
    int64_t step  # bytes of one step of one row
    bint timed
    char *packed  # [rows, steps, ...] of one call


cdef class Alone:
    """A context manager that has a pool for itself, other threads wait. `__enter__` is one call in C: a Ctrl-C comes
    before it or inside the `with`, never between, where nobody would let go again."""

    cdef PoolCore pool

    def __enter__(self):
        self.pool.hold()

    def __exit__(self, *error):
        self.pool.let_go()


cdef class PoolCore:
    """The slab, the slots and the lock of a pool. Its methods with a leading underscore want the lock held."""

    cdef readonly Program program
    cdef readonly int64_t capacity
    cdef readonly object slab  # float32 [capacity, state_size]; None before the sizes of a step are known
    cdef float *slab_data
    cdef int64_t *generation
    cdef int64_t *steps  # taken by the stream in each place
    cdef int64_t *mark  # the number of the last call that had the place: a second time in one call shows
    cdef int64_t *place  # the places of the call under way, one a row
    cdef int64_t *free  # a stack of the places that are closed
    cdef int64_t n_free, calls, first_generation
    cdef bint simple, timed
    cdef Form x_form, y_form  # of the step of `dims[0]` rows, or of the chunk of as many steps
    cdef int64_t rows_a_call, rows_a_push
    cdef double row_flops  # of one step of one row
    cdef object initial_row
    cdef PyThread_type_lock lock
    cdef unsigned long owner  # the thread that has the lock; 0: none
    cdef bint forked_within  # a fork that this thread makes in the middle of a call

    def __cinit__(self, *args, **kwargs):
        global pools_made
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError()
        self.first_generation = (pools_made % MOST_POOLS) * GENERATIONS
        pools_made += 1

    def __dealloc__(self):
        PyMem_Free(self.generation)
        PyMem_Free(self.steps)
        PyMem_Free(self.mark)
        PyMem_Free(self.place)
        PyMem_Free(self.free)
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    def _begin(self, Program program, initial_row, bint batched, bint shared, row_bytes, row_flops, forms, timed):
        """Take what the subclass prepared, after `_resize`; streams that were opened before begin here.

        initial_row : float32 [state_size]. batched : the model has a batch axis, so rows may share a call. shared : an
        input or output has none, so that rows which bring their own of it can't.
        row_bytes : scratch of a call a row. forms : () or, for a model with one float32 input and output each, their
        (numpy type number, shape of one step of one stream). timed : both have a time axis.
        """
        cdef int i
        cdef Form *form
        slab = np.zeros((self.capacity, program.state_size), np.float32)  # a page that is not written takes no memory
        slab[self._open_slots() & (MOST_PLACES - 1)] = initial_row
        self.slab, self.slab_data = slab, <float *> cnp.PyArray_DATA(<cnp.ndarray> slab)
        self.program, self.initial_row, self.row_flops = program, initial_row, row_flops
        self.rows_a_call = max(LEAST_ROWS, CALL_BYTES // max(<int64_t> row_bytes, 1)) if batched else 1
        self.rows_a_push = 1 if shared else self.rows_a_call
        self.simple, self.timed = len(forms) == 2, timed
        for i, (number, shape) in enumerate(forms):
            form = &self.x_form if i == 0 else &self.y_form
            form.type, form.ndim = number, len(shape) + 1
            form.step_bytes = 4
            for axis, size in enumerate(shape):
                form.dims[axis + 1] = size
                form.step_bytes *= <int64_t> size

    def _resize(self, int64_t capacity):
        """Make room for `capacity` streams, at least as many as there is room for now. Places keep their slots."""
        cdef int64_t i, old = self.capacity
        if self.program is not None:
            slab = np.zeros((capacity, self.program.state_size), np.float32)
            taken = self._open_slots() & (MOST_PLACES - 1)
            slab[taken] = self.slab[taken]
        self.generation = enlarged(self.generation, old, capacity)
        self.steps = enlarged(self.steps, old, capacity)
        self.mark = enlarged(self.mark, old, capacity)
        self.place = enlarged(self.place, old, capacity)
        self.free = enlarged(self.free, old, capacity)
        for i in range(old, capacity):
            self.generation[i] = self.first_generation
        memmove_up(self.free, self.n_free, capacity - old)
        for i in range(capacity - old):  # the lowest place on top
            self.free[i] = capacity - 1 - i
        self.n_free += capacity - old
        self.capacity = capacity
        if self.program is not None:
            self.slab, self.slab_data = slab, <float *> cnp.PyArray_DATA(<cnp.ndarray> slab)

    # -- the lock --
    cdef int hold(self) except -1:
        """Wait until no other thread is in a call of this pool. Give it back by `let_go`."""
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

    cdef void let_go(self) noexcept:
        self.owner = 0
        PyThread_release_lock(self.lock)

    def _alone(self):
        """A context manager: other threads wait."""
        cdef Alone alone = Alone.__new__(Alone)
        alone.pool = self
        return alone

    def _hold_for_fork(self):
        """Wait for calls of other threads; one of this thread may be under way, where a signal's handler forks."""
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
        self._reset(place)
        return self.generation[place] << PLACE_BITS | place

    def _copy(self, int64_t place):
        """A slot of a free place, in the state of another one."""
        cdef int64_t slot = self._open(), new = slot & (MOST_PLACES - 1)
        if self.program is not None:
            self.slab[new] = self.slab[place]
        self.steps[new] = self.steps[place]
        return slot

    def _close(self, int64_t place):
        self.generation[place] += 1
        self.free[self.n_free] = place
        self.n_free += 1

    def _reset(self, int64_t place):
        if self.program is not None:
            self.slab[place] = self.initial_row
        self.steps[place] = 0

    def _steps(self, int64_t place):
        return self.steps[place]

    def _set_steps(self, int64_t place, int64_t steps):
        self.steps[place] = steps

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

    def _is_open(self, int64_t slot):
        return self.is_open(slot)

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
        """The place of an open slot; StateError otherwise."""
        cdef int64_t number
        if isinstance(slot, bool | np.bool_) or not isinstance(slot, int | np.integer):
            raise StateError(f"a slot is an int that open() returned, got {type(slot).__name__}")
        if not -(1 << 63) <= slot < 1 << 63:
            raise StateError(f"slot {slot} is not one of this pool's")
        number = slot
        if not self.is_open(number):
            raise StateError(self.explain(number))
        return number & (MOST_PLACES - 1)

    cdef int64_t find(self, slots) except -1:
        """Write the places of the slots of a call to `place`; returns how many. Nothing else changes."""
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
                raise StateError(f"slot {slot} is there twice: a stream takes one step, or one chunk, a call")
            self.mark[place] = self.calls
            self.place[i] = place  # no place twice, so no more rows than places
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
        array [n, features...] (out where given); a tuple for several outputs.

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
        cdef int64_t n
        self.hold()
        try:
            n = self.find(slots)
            if self.simple:
                self.x_form.dims[0] = self.y_form.dims[0] = n
                if fits(x, &self.x_form):
                    if out is None:
                        out = cnp.PyArray_EMPTY(self.y_form.ndim, self.y_form.dims, self.y_form.type, 0)
                        self.step_rows(n, x, out)
                        return out
                    if fits(out, &self.y_form) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> out) and apart(x, out):
                        self.step_rows(n, x, out)
                        return out
            return self._step_general(n, x, out)
        finally:
            self.let_go()

    cdef int step_rows(self, int64_t n, x, out) except -1:
        cdef Scratch s
        if n <= self.rows_a_call and not self.careful(n):
            if n == 0:
                return 0
            self.check_room(n, 1)
            s = self.program.take(n, 1, 1)
            s.base[0] = cnp.PyArray_DATA(<cnp.ndarray> x)
            s.base[1] = cnp.PyArray_DATA(<cnp.ndarray> out)
            try:
                self.program.call(s, self.slab_data, self.place)
            finally:
                self.program.give(s)
            self.count(n)
            return 0
        self._advance(n, [x, out], [self.x_form.step_bytes, self.y_form.step_bytes])

    cdef int check_room(self, int64_t n, int64_t span) except -1:
        """Raise StreamError, with nothing touched, where one of the n streams in `place` can't take `span` more."""
        if self.program.room >= 0:
            self.program.check_room(self.slab_data, self.place, 0, n, span)
        return 0

    cdef inline bint careful(self, int64_t row_steps) noexcept:
        """A call of so many rows times steps can fail, or be interrupted, halfway: states are kept, to be put back."""
        return self.program.may_fail or row_steps * self.row_flops > FLOPS_WATCHED

    cdef void count(self, int64_t n) noexcept:
        cdef int64_t i
        for i in range(n):
            self.steps[self.place[i]] += 1

    def _advance(self, int64_t n, list arrays, list moves):
        """One step of the n streams in `place`.

        arrays : checked, C-contiguous inputs, then outputs. moves : bytes from one row of each to the next; 0 where it
        has no batch axis.
        """
        cdef int64_t done = 0, rows, i
        cdef Scratch s
        self.check_room(n, 1)
        kept = self.keep(n) if self.careful(n) else None
        try:
            while done < n:
                rows = min(self.rows_a_call, n - done)
                s = self.program.take(rows, 1, 1)
                for i in range(len(arrays)):
                    s.base[i] = <char *> cnp.PyArray_DATA(<cnp.ndarray?> arrays[i]) + done * <int64_t> moves[i]
                try:
                    self.program.call(s, self.slab_data, self.place + done)
                finally:
                    self.program.give(s)
                done += rows
                if kept is not None:
                    PyErr_CheckSignals()
        except BaseException:
            self.put_back(kept)
            raise
        self.count(n)

    cdef object keep(self, int64_t n):
        """The states of the places of this call, to be put back."""
        cdef cnp.npy_intp size = n
        places = cnp.PyArray_SimpleNewFromData(1, &size, cnp.NPY_INT64, self.place).copy()
        return places, self.slab[places]

    cdef put_back(self, kept):
        if kept is not None:
            places, states = kept
            self.slab[places] = states

    # -- chunks --
    def _push_plain(self, int64_t n, list chunks):
        """`push` of the n streams found, where each chunk is a plain array of the one input of a model that has one
        output: the new arrays. None, and nothing has happened, where a chunk needs a general check: 15 us each."""
        cdef int64_t i
        cdef cnp.npy_intp size = n
        cdef list results
        if not (self.simple and self.timed):
            return None
        lengths = cnp.PyArray_EMPTY(1, &size, cnp.NPY_INT64, 0)
        for i in range(n):
            if not cnp.PyArray_CheckExact(chunks[i]) or cnp.PyArray_NDIM(<cnp.ndarray> chunks[i]) == 0:
                return None
            self.x_form.dims[0] = cnp.PyArray_DIM(<cnp.ndarray> chunks[i], 0)
            if not fits(chunks[i], &self.x_form):
                return None
            (<int64_t *> cnp.PyArray_DATA(<cnp.ndarray> lengths))[i] = self.x_form.dims[0]
        results = []
        for i in range(n):
            self.y_form.dims[0] = cnp.PyArray_DIM(<cnp.ndarray> chunks[i], 0)
            results.append(cnp.PyArray_EMPTY(self.y_form.ndim, self.y_form.dims, self.y_form.type, 0))
        self._push(n, lengths, [chunks, results], [self.x_form.step_bytes, self.y_form.step_bytes], [True, True], 1)
        return results

    def _push(self, int64_t n, lengths, list arrays, list steps, list timed, int64_t n_in):
        """All steps of a chunk a row, each of its own length.

        lengths : int64 [n]. arrays : for each input, then each output, the list of a C-contiguous array a row.
        steps : bytes of a step of each. timed : whether it has a time axis; where not, an input is the same at each
        step and an output is written at each.
        """
        cdef int64_t i, r, total = lengths.sum()
        cdef int64_t n_sides = len(arrays)
        order = np.argsort(-lengths, kind="stable")
        cdef int64_t[::1] length = lengths[order]
        cdef int64_t[::1] source = order
        cdef int64_t[::1] given
        cdef Side *sides = <Side *> PyMem_Calloc(max(n_sides, 1), sizeof(Side))
        cdef char **data = <char **> PyMem_Calloc(max(n * n_sides, 1), sizeof(char *))
        cdef cnp.npy_intp size = n
        kept = None
        try:
            if sides == NULL or data == NULL:
                raise MemoryError()
            if self.program.room >= 0:
                for r in range(n):
                    self.program.check_room(self.slab_data, self.place, r, 1, lengths[r])
            kept = self.keep(n) if self.careful(total) else None
            for i in range(n_sides):
                sides[i].data, sides[i].step, sides[i].timed = data + i * n, steps[i], timed[i]
                column = <list?> arrays[i]
                for r in range(n):
                    sides[i].data[r] = <char *> cnp.PyArray_DATA(<cnp.ndarray?> column[source[r]])
            given = cnp.PyArray_SimpleNewFromData(1, &size, cnp.NPY_INT64, self.place)[order]
            for r in range(n):
                self.place[r] = given[r]
            r = 0
            while r < n and length[r] > 0:
                i = min(self.rows_a_push, n - r)
                self.push_rows(r, i, &length[r], sides, n_sides, n_in, kept is not None)
                r += i
        except BaseException:
            self.put_back(kept)
            raise
        finally:
            PyMem_Free(sides)
            PyMem_Free(data)
        for r in range(n):
            self.steps[self.place[r]] += length[r]

    cdef int push_rows(self, int64_t first, int64_t rows, const int64_t *length, Side *sides, int64_t n_sides,
                       int64_t n_in, bint careful) except -1:
        """The rows first..first + rows - 1, longest first: at each step those that are still alive, and no others."""
        cdef int64_t alive = rows, done = 0, n, i, biggest = 0, most
        for i in range(n_sides):
            biggest = max(biggest, sides[i].step)
        biggest = (max(biggest, 1) + ALIGN - 1) // ALIGN * ALIGN
        most = 1 if self.program.plan.steps_one else MOST_STEPS
        memory = np.empty((n_sides, max(rows, ROWS_TIMES_STEPS) * biggest), np.uint8) if rows > 1 else None
        for i in range(n_sides):
            sides[i].packed = NULL if rows == 1 else <char *> cnp.PyArray_DATA(<cnp.ndarray> memory[i])
        while True:
            while alive > 0 and length[alive - 1] <= done:
                alive -= 1
            if alive == 0:
                return 0
            n = most
            while n > 1 and n * alive > ROWS_TIMES_STEPS and alive > 1:
                n >>= 1
            while n > length[alive - 1] - done:  # powers of two: few sizes to bind
                n >>= 1
            self.call_rows(first, alive, done, n, sides, n_sides, n_in)
            done += n
            if careful:
                PyErr_CheckSignals()

    cdef int call_rows(self, int64_t first, int64_t rows, int64_t done, int64_t n, Side *sides, int64_t n_sides,
                       int64_t n_in) except -1:
        """n steps of `rows` rows, from step `done` on: inputs are packed for one call, outputs unpacked."""
        cdef int64_t i, r, bytes
        cdef Side *side
        cdef Scratch s = self.program.take(rows, n, n)
        cdef bint direct = sides[0].packed == NULL
        try:
            for i in range(n_sides):
                side = sides + i
                if direct:
                    s.base[i] = side.data[first] + (done * side.step if side.timed else 0)
                    continue
                s.base[i] = side.packed
                bytes = n * side.step if side.timed else side.step
                if i < n_in:
                    for r in range(rows):
                        memcpy(side.packed + r * bytes, side.data[first + r] + (done * side.step if side.timed else 0),
                               bytes)
            self.program.call(s, self.slab_data, self.place + first)
        finally:
            self.program.give(s)
        for i in range(n_in, 0 if direct else n_sides):
            side = sides + i
            bytes = n * side.step if side.timed else side.step
            for r in range(rows):
                memcpy(side.data[first + r] + (done * side.step if side.timed else 0), side.packed + r * bytes, bytes)
        return 0

    def _find(self, slots):
        """`find` for the subclass."""
        return self.find(slots)

    def _found(self, int64_t n):
        """int64 [n]: the places that `_find` has found, a copy."""
        cdef cnp.npy_intp size = n
        return cnp.PyArray_SimpleNewFromData(1, &size, cnp.NPY_INT64, self.place).copy()

    @property
    def _rows_a_call(self):
        return self.rows_a_call

    def _call_paced(self, places, arrays, int64_t number):
        """One call of a plan with a timetable, bound to the counts `number`: places int64 [rows], arrays of just the
        steps that it takes and brings. The caller puts the slab back where this raises."""
        cdef Scratch s = self.program.take(len(places), number, 0)
        cdef int64_t i
        for i in range(len(arrays)):
            s.base[i] = cnp.PyArray_DATA(<cnp.ndarray?> arrays[i])
        try:
            self.program.call(s, self.slab_data, <const int64_t *> cnp.PyArray_DATA(<cnp.ndarray?> places))
        finally:
            self.program.give(s)
        PyErr_CheckSignals()

    @property
    def _table_bytes(self):
        return 5 * self.capacity * sizeof(int64_t)


def _as_slots(slots):
    """int64 [n]; StateError for anything but ints."""
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
    cdef int64_t *new = <int64_t *> PyMem_Calloc(max(capacity, 1), sizeof(int64_t))
    if new == NULL:
        raise MemoryError()
    if used:
        memcpy(new, old, used * sizeof(int64_t))
    PyMem_Free(old)
    return new


cdef void memmove_up(int64_t *stack, int64_t n, int64_t by) noexcept:
    """Move n entries up by so many places."""
    cdef int64_t i
    for i in range(n):
        stack[n - 1 - i + by] = stack[n - 1 - i]
