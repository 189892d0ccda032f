# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""States of streams in a slab, one row each, and the calls that advance these rows.

SlabCore     the base of streams (one row, or `batch` rows in lock-step) and of pools (any rows, in any order)
Rows         the rows of one call: their places in the slab, their positions in their sequences, their chunks

Rows of equal phase (streaming/timetable.py) take and return the same steps, so they share calls of the program. A model
with one output step per input step is a timetable with a single phase and needs no table lookup.
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport int64_t
from libc.string cimport memcpy

cimport numpy as cnp

from fastrnn.runtime._binding cimport Scratch, allocate
from fastrnn.runtime._executor cimport FLOPS_WATCHED, Program
from fastrnn.runtime._forms cimport new_rows
from fastrnn.runtime._parts cimport StreamParts

import numpy as np

from ..errors import FastRNNMemoryError

cnp.import_array()

cdef int64_t ROWS_TIMES_STEPS = 256  # in one call that packs rows: beyond this, more steps per call gain nothing


cdef StreamParts NO_PARTS = StreamParts()


cdef class Alone:
    """A context manager with exclusive use of a stream or a pool. `__enter__` is one C call, so a Ctrl-C comes before
    it or inside the `with`. It never comes in between, where it would leave the lock held."""

    cdef SlabCore core

    def __enter__(self):
        self.core.hold()

    def __exit__(self, *error):
        self.core.let_go()


cdef class SlabCore:
    """States in a slab, and the calls that advance its rows. Methods that change states require the core to be held."""

    def __cinit__(self, *args, **kwargs):
        self._parts = NO_PARTS

    @property
    def program(self):
        """The Program that runs the streams; None before the sizes of a step are known."""
        return self._parts.program

    cdef int hold(self) except -1:
        """Take the states for this thread until `let_go`. Before this, don't read anything that a call changes."""
        raise NotImplementedError

    cdef void let_go(self) noexcept:
        pass

    def _held(self):
        """A context manager during which no other thread uses the states."""
        cdef Alone alone = Alone.__new__(Alone)
        alone.core = self
        return alone

    cdef object states_of(self, int64_t n, const int64_t *places):
        """float32 [n, state_size], a copy of the rows at `places`; NULL: of the first n."""
        cdef int64_t i, size = self._parts.program.state_size
        states = new_rows(n, size)
        cdef float *data = <float *> cnp.PyArray_DATA(<cnp.ndarray> states)
        for i in range(n):
            memcpy(data + i * size, self.slab_data + (i if places == NULL else places[i]) * size, size * sizeof(float))
        return states

    cdef int put_back(self, object states, int64_t n, const int64_t *places) except -1:
        """Inverse of `states_of`."""
        cdef int64_t i, size = self._parts.program.state_size
        cdef float *data = <float *> cnp.PyArray_DATA(<cnp.ndarray> states)
        for i in range(n):
            memcpy(self.slab_data + (i if places == NULL else places[i]) * size, data + i * size, size * sizeof(float))
        return 0

    cdef int call(self, Scratch s, int64_t n, const int64_t *places) except -1:
        """One call of the program, on a scratch that has the memory of all arguments; gives it back. If the call can
        fail or be interrupted halfway, the states are restored."""
        cdef Program program = self._parts.program
        try:
            if not program.may_fail and program.work(s) < FLOPS_WATCHED:
                return program.call(s, self.slab_data, places)
            before = self.states_of(n, places)
            try:
                return program.call(s, self.slab_data, places)
            except BaseException:
                self.put_back(before, n, places)
                raise
        finally:
            program.give(s)

    cdef int advance(self, int64_t n, int64_t *places, int64_t position, int64_t span, list columns,
                     int64_t most, bint final) except -1:
        """Advance n rows, all at the same position, by `span` steps.

        places : of the rows in the slab; NULL: the first n. columns : a C-contiguous array for each input, then each
        output, [n, steps, ...] if it has these axes. most : rows in one call. final : the sequences end here.
        """
        cdef Rows rows = Rows.__new__(Rows)
        rows.core, rows.n, rows.place, rows.position, rows.span, rows.most = self, n, places, position, span, most
        rows.total = n * span
        return rows.run(columns, final)

    cdef int advance_ragged(self, places, positions, lengths, list columns, int64_t most, bint final) except -1:
        """Advance rows at different positions, each by a chunk of its own length.

        places, positions, lengths : int64 [n]. columns : for each input, then each output, a list of one C-contiguous
        array per row, or one array for all rows as in `advance`.
        """
        cdef Rows rows = Rows.__new__(Rows)
        table = self._parts.timetable
        rows.core, rows.n, rows.most, rows.total = self, len(places), most, lengths.sum()
        key = -lengths
        if table is not None:  # group rows of equal phase
            start = table.start
            phases = np.where(positions < start, positions, start + (positions - start) % table.period)
            key = phases * (lengths.max(initial=0) + 1) - lengths
        order = np.argsort(key, kind="stable")  # the longest first
        rows.arrays = places[order], positions[order], lengths[order], order, None if table is None else phases[order]
        rows.place, rows.positions = numbers(rows.arrays[0]), numbers(rows.arrays[1])
        rows.length, rows.source = numbers(rows.arrays[2]), numbers(rows.arrays[3])
        if table is not None:
            rows.phase = numbers(rows.arrays[4])
        return rows.run(columns, final)


cdef inline int64_t *numbers(array) except NULL:
    return <int64_t *> cnp.PyArray_DATA(<cnp.ndarray?> array)


cdef struct Side:  # an input or output of all rows
    char **rows  # where the array of each row begins; NULL: each is `apart` bytes after the one before, from `base` on
    char *base
    int64_t apart
    int64_t step  # as in Trait
    bint timed, batched
    int64_t done  # steps that calls have taken or returned so far
    int64_t steps  # of the current call
    char *packed  # [rows, steps, ...] of one call
    int64_t room  # bytes of it


cdef class Rows:
    """The rows of one call, in the order in which they run: rows of equal phase together, the longest first.

    At each step, only rows that still have data run; nothing is padded. After an error no state has changed.
    """

    cdef SlabCore core
    cdef int64_t n, most, total  # rows; rows in one call of the program; steps of all rows
    cdef int64_t *place  # NULL: the first n
    cdef int64_t position, span  # of all rows, if the arrays per row are NULL
    cdef const int64_t *positions
    cdef const int64_t *length
    cdef const int64_t *source  # index of each among the caller's rows; NULL: each array holds all rows, in their order
    cdef const int64_t *phase
    cdef tuple arrays  # owners of this memory
    cdef Side *sides
    cdef char **pointers
    cdef object before  # the states before the first call, if they may have to be restored
    cdef bint begun

    def __dealloc__(self):
        cdef int64_t i
        if self.sides != NULL:
            for i in range(self.core._parts.n_sides):
                PyMem_Free(self.sides[i].packed)
        PyMem_Free(self.sides)
        PyMem_Free(self.pointers)

    cdef int run(self, list columns, bint final) except -1:
        """Run all steps of all rows; final: no new steps, only those that the end of the sequences releases."""
        cdef int64_t first = 0, rows, position, i
        cdef StreamParts p = self.core._parts
        if final and p.timetable is None:  # nothing is held back
            return 0
        self.take_columns(columns)
        try:
            while first < self.n:
                rows = 1
                while rows < self.most and first + rows < self.n and (
                        self.phase == NULL or self.phase[first + rows] == self.phase[first]):
                    rows += 1
                position = self.position if self.positions == NULL else self.positions[first]
                for i in range(p.n_sides):
                    self.sides[i].done = 0
                if not final:
                    self.run_group(first, rows, position, 0)
                elif position >= p.timetable.least:
                    self.call(first, rows, 0, position, True, False)
                first += rows
        except BaseException:
            if self.before is not None:
                self.core.put_back(self.before, self.n, self.place)
            raise
        return 0

    cdef int take_columns(self, list columns) except -1:
        """Where the arrays of each row begin."""
        cdef int64_t i, r
        cdef StreamParts p = self.core._parts
        cdef Side *side
        self.sides = <Side *> allocate(p.n_sides, sizeof(Side))
        if self.source != NULL:
            self.pointers = <char **> allocate(p.n_sides * self.n, sizeof(char *))
        for i in range(p.n_sides):
            side = &self.sides[i]
            side.step, side.timed, side.batched = p.traits[i].step, p.traits[i].timed, p.traits[i].batched
            column = columns[i]
            if not isinstance(column, list):
                side.base = <char *> cnp.PyArray_DATA(<cnp.ndarray?> column)
                side.apart = cnp.PyArray_NBYTES(<cnp.ndarray> column) // max(self.n, 1) if side.batched else 0
            if self.source != NULL:
                side.rows = self.pointers + i * self.n
                for r in range(self.n):
                    if side.base != NULL:
                        side.rows[r] = side.base + self.source[r] * side.apart
                    else:
                        side.rows[r] = <char *> cnp.PyArray_DATA(<cnp.ndarray?> (<list> column)[self.source[r]])
        return 0

    cdef inline int64_t length_of(self, int64_t row) noexcept:
        return self.span if self.length == NULL else self.length[row]

    cdef int run_group(self, int64_t first, int64_t rows, int64_t position, int64_t done) except -1:
        """Run all steps of `rows` rows of one phase, from step `done` of their chunks on; the longest come first."""
        cdef StreamParts p = self.core._parts
        cdef bint packs = self.source != NULL
        cdef int64_t n, longer, left
        while True:
            longer = rows
            while longer > 0 and self.length_of(first + longer - 1) <= done:
                longer -= 1
            if p.guesses and done > 0 and longer < rows:
                self.guess(first + longer, rows - longer, position + done)
            rows = longer
            if rows == 0:
                return 0
            n = p.largest
            if p.timetable is None:  # rows run together while all of them have data: the weights are read once
                left = self.length_of(first + rows - 1) - done
                while n > 1 and n * rows > ROWS_TIMES_STEPS and rows > 1 and packs:
                    n >>= 1
            else:  # use long calls: each one moves the tails of windows
                left = self.length_of(first) - done
            while n > left:  # powers of two, so that few sizes are bound
                n >>= 1
            while self.length_of(first + longer - 1) - done < n:
                longer -= 1
            if longer < rows:  # rows with fewer steps left run separately
                marks = [self.sides[i].done for i in range(p.n_sides)]
                self.run_group(first + longer, rows - longer, position, done)
                for i in range(p.n_sides):
                    self.sides[i].done = marks[i]
                rows = longer
            self.call(first, rows, n, position + done, False, False)
            done += n

    cdef int guess(self, int64_t first, int64_t rows, int64_t position) except -1:
        """Compute values over time for rows without more steps, as if the sequences ended here. The states, and
        the outputs so far, stay unchanged."""
        cdef int64_t *place = NULL if self.place == NULL else self.place + first
        now = self.core.states_of(rows, place)
        self.call(first, rows, 0, position, True, True)
        return self.core.put_back(now, rows, place)

    cdef int call(self, int64_t first, int64_t rows, int64_t n, int64_t position, bint final, bint guess) except -1:
        """One call of the program: the next n steps of some rows. Packs inputs and unpacks outputs."""
        cdef StreamParts p = self.core._parts
        cdef Program program = p.program
        cdef Scratch s
        cdef Side *side
        cdef int64_t i, r, bytes
        if p.timetable is None:
            s = program.take(rows, n, n if rows == 1 or self.source != NULL else self.span)
            for i in range(p.n_sides):
                self.sides[i].steps = n
        else:
            counts = p.timetable.counts(position, n, final)
            s = program.take(rows, counts.number, 0)
            for i in range(p.n_sides):
                self.sides[i].steps = n if i < p.n_in else counts.outputs[i - p.n_in]
        try:
            if not self.begun:
                self.begin(program, program.work(s) // (max(n, 1) * rows))
            for i in range(p.n_sides):
                s.base[i] = self.memory_of(&self.sides[i], first, rows, i < p.n_in, guess)
            program.call(s, self.core.slab_data, NULL if self.place == NULL else self.place + first)
        finally:
            program.give(s)
        for i in range(p.n_sides):
            side = &self.sides[i]
            if i >= p.n_in and not (guess and side.timed) and not self.direct(side, rows):
                bytes = (side.steps if side.timed else 1) * side.step
                for r in range(rows):
                    memcpy(self.at(side, first + r), side.packed + r * bytes, bytes)
            if not guess:
                side.done += side.steps
        if self.before is not None:
            PyErr_CheckSignals()
        return 0

    cdef int begin(self, Program program, int64_t row_work) except -1:
        """Before the first call: save the states if a call can fail or be interrupted after states have changed."""
        self.begun = True
        if program.may_fail or self.core._parts.timetable is not None or row_work * self.total >= FLOPS_WATCHED:
            self.before = self.core.states_of(self.n, self.place)
        return 0

    cdef inline char *at(self, Side *side, int64_t row) noexcept:
        """Where the next steps of a row begin in its own array."""
        cdef char *begin = side.rows[row] if side.rows != NULL else side.base + row * side.apart
        return begin + side.done * side.step if side.timed else begin

    cdef inline bint direct(self, Side *side, int64_t rows) noexcept:
        """Whether a call can work in the caller's memory, because it has the layout that the program needs."""
        if rows == 1 or not side.batched:
            return True
        if self.source != NULL:
            return False
        # With a timetable, the program needs only the steps of the call. Otherwise it knows `span`.
        return self.core._parts.timetable is None or side.apart == (side.steps if side.timed else 1) * side.step

    cdef char *memory_of(self, Side *side, int64_t first, int64_t rows, bint is_input, bint guess) except NULL:
        """The memory of one side in a call. Copies inputs there if necessary."""
        cdef int64_t r, bytes = (side.steps if side.timed else 1) * side.step
        cdef char *packed
        cdef bint spare = guess and side.timed and not is_input  # steps that come again if the sequence continues
        if not spare and self.direct(side, rows):
            return self.at(side, first)
        if side.room < rows * bytes or side.packed == NULL:
            packed = <char *> PyMem_Realloc(side.packed, max(rows * bytes, 1))
            if packed == NULL:
                raise FastRNNMemoryError("not enough memory for the arrays of a call")
            side.packed, side.room = packed, rows * bytes
        if is_input:
            for r in range(rows):
                memcpy(side.packed + r * bytes, self.at(side, first + r), bytes)
        return side.packed
