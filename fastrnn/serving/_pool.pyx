# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""PoolCore: the calls that advance any of a pool's streams, in place."""

from libc.stdint cimport int64_t

cimport numpy as cnp

from fastrnn.runtime._meter cimport Meter
from fastrnn.runtime._binding cimport Scratch
from fastrnn.runtime._forms cimport Sides, drop_sides, empty, fits, takes
from fastrnn.runtime._parts cimport StreamParts
from fastrnn.serving._slots cimport SlotCore, enter, leave

import numpy as np

from ..errors import StreamError, out_of_memory

cnp.import_array()

# Rows in one call of the program: enough that reading the weights costs little compared to the work, and few enough
# that the data of the call stays in a core's second-level cache.
cdef int64_t LEAST_ROWS = 64
cdef int64_t CALL_BYTES = 1 << 20


cdef class PoolCore(SlotCore):
    """Steps and chunks of a pool's streams. Methods with a leading underscore require the lock to be held."""

    cdef readonly Meter meter  # of steps
    cdef bint simple, plain  # rows of plain arrays go straight to the program: of one input and one output, of any
    cdef int64_t rows_a_call, rows_a_push

    def __cinit__(self, *args, **kwargs):
        self.meter = Meter()

    def _begin(self, StreamParts parts):
        """Take the shared parts of all streams, and make the slab; initializes streams that were opened before."""
        cdef int64_t row_bytes = 0, number = 1
        plan, table, before = parts.program.plan, parts.timetable, self._parts
        if table is not None:
            number = table.counts(table.start, 1).number
        if plan.has_batch:
            row_bytes = parts.program.arena_bytes(2, number) - parts.program.arena_bytes(1, number)
        shared = not all(a.batched for a in (*parts.inputs, *parts.outputs))  # else each row needs a call
        self.rows_a_call = max(LEAST_ROWS, CALL_BYTES // max(row_bytes, 1)) if plan.has_batch else 1
        self.rows_a_push = 1 if shared else self.rows_a_call
        self._parts = parts
        try:
            self._lay_rows()
        except BaseException:
            self._parts = before
            raise
        self.simple = parts.simple and not shared and table is None
        self.plain = parts.plain and parts.held is None and table is None

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
        array [n, features...], new memory (out if it is given); a tuple for several outputs. If outputs don't come one
        per step, a list with what a lone stream's step returns for each slot.

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
        cdef Scratch s
        cdef StreamParts p
        enter(self)
        try:
            began = self.meter.begin()
            n, p = self.find(slots), self._parts
            if self.simple and fits(x, p.forms, 0, n) and (out is None or takes(out, p.forms + 1, 0, n, x)):
                if out is None:
                    out = empty(p.forms + 1, 0, n)
                if n > self.rows_a_call:
                    self._advance(n, [x, out])
                elif n:
                    s = p.program.take(n, 1, 1)
                    s.base[0] = cnp.PyArray_DATA(<cnp.ndarray> x)
                    s.base[1] = cnp.PyArray_DATA(<cnp.ndarray> out)
                    self.call(s, n, self.place)
                    self.count(n)
            else:
                out = self.step_otherwise(n, x, out)
            self.meter.end(began, n, 1)
            return out
        finally:
            leave(self)

    cdef object step_otherwise(self, int64_t n, x, out):
        """`step` of the n streams found, with several arrays, or with anything that has to be checked or converted."""
        cdef Sides sides
        sides.n = 0
        try:
            if self.plain and self._parts.step_sides(&sides, x, out, n):
                return self.step_with(n, &sides, out)
            return self._step_general(n, x, out)
        except MemoryError as error:
            raise out_of_memory(error, f"step of {n} streams") from None
        finally:
            drop_sides(&sides)

    cdef object step_with(self, int64_t n, Sides *sides, out):
        """`step` of the n streams found, with these arrays."""
        cdef int i
        cdef Scratch s
        cdef StreamParts p = self._parts
        p.make_outputs(sides, None, n)
        if n > self.rows_a_call:
            self._advance(n, [<object> sides.arrays[i] for i in range(sides.n)])
        elif n:
            s = p.program.take(n, 1, 1)
            for i in range(sides.n):
                s.base[i] = cnp.PyArray_DATA(<cnp.ndarray> sides.arrays[i])
            self.call(s, n, self.place)
            self.count(n)
        return p.results(sides, out, None)

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
        """`push` of the n streams found, if each chunk has plain arrays. Returns the results. Otherwise returns None
        without any effect. A general check takes 15 us per chunk."""
        cdef int64_t i
        cdef cnp.npy_intp size = n
        cdef StreamParts p = self._parts
        cdef list results = []
        if not (self.simple and p.simple_chunks):
            return self.push_several(n, chunks) if self.plain else None
        lengths = cnp.PyArray_EMPTY(1, &size, cnp.NPY_INT64, 0)
        for i in range(n):
            if not fits(chunks[i], p.forms, 0, -1):
                return None
            (<int64_t *> cnp.PyArray_DATA(<cnp.ndarray> lengths))[i] = cnp.PyArray_DIM(<cnp.ndarray> chunks[i], 0)
        for i in range(n):
            results.append(empty(p.forms + 1, 0, cnp.PyArray_DIM(<cnp.ndarray> chunks[i], 0)))
        self.check_room(n, lengths)
        self.advance_found(n, lengths, [chunks, results], False)
        return results

    cdef object push_several(self, int64_t n, list chunks):
        """`_push_plain` of a model with several inputs or outputs."""
        cdef int64_t i, span
        cdef int k
        cdef Sides sides
        cdef StreamParts p = self._parts
        columns = [[] for _ in p.inputs]
        lengths = np.empty(n, np.int64)
        for i in range(n):
            sides.n = 0
            try:
                span = p.chunk_sides(&sides, chunks[i])
                if span < 0:
                    return None
                for k in range(sides.n):
                    (<list> columns[k]).append(<object> sides.arrays[k])
            finally:
                drop_sides(&sides)
            (<int64_t *> cnp.PyArray_DATA(<cnp.ndarray> lengths))[i] = span
        return [row[0] if len(row) == 1 else tuple(row) for row in self._take(n, lengths, columns)]

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
