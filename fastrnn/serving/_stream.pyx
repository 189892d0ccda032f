# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""StreamCore: the states of one stream, or of `batch` streams in lock-step, and the calls that advance them."""

cimport cython
from cpython.mem cimport PyMem_Free
from libc.stdint cimport int64_t
from libc.string cimport memcpy

cimport numpy as cnp

from fastrnn.runtime._binding cimport Scratch, allocate
from fastrnn.runtime._forms cimport Sides, drop_sides, empty, fits, takes
from fastrnn.runtime._parts cimport StreamParts
from fastrnn.runtime._slab cimport SlabCore

import numpy as np

from ..errors import StreamError, out_of_memory

cnp.import_array()

cdef enum Use:  # of a stream
    FREE, BUSY, CLOSED


cdef class StreamCore(SlabCore):
    """The states of one stream, or of `batch` streams in lock-step, and the calls that advance them.

    `step` is the fast path: plain arrays of the right form go directly to the program. Everything else goes to
    `_step_general` of the subclass, which checks, converts or raises an error.
    """

    cdef public int64_t steps_done
    cdef char use  # one of Use; chars, because thousands of streams take little more than their states
    cdef char viewed  # an array of `slab` may live
    cdef public bint ended  # flushed; only streams with a timetable
    cdef public list still  # the last arrays of `StreamParts.still`; None before the first step
    cdef public object _compiled  # the Compiled that runs the stream; None after `close`

    def __dealloc__(self):
        PyMem_Free(self.slab_data)

    def _begin(self, StreamParts parts):
        """Take the parts, and allocate the states if they have a program."""
        cdef int64_t r, row
        cdef cnp.ndarray initial
        if self.slab_data != NULL:
            raise StreamError("this stream was initialized before: make another one with model.stream()")
        self._check_open()
        if parts.program is not None:
            row, initial = parts.program.state_size, parts.layout.initial_row
            self.slab_data = <float *> allocate(parts.batch, max(row, 1) * sizeof(float))  # calloc detects an overflow
            for r in range(parts.batch):
                memcpy(self.slab_data + r * row, cnp.PyArray_DATA(initial), row * sizeof(float))
        self._parts = parts

    @property
    def batch(self):
        """Rows of the slab."""
        return self._parts.batch

    @property
    def batch_size(self):
        """The number of rows in lock-step, or None."""
        return self._parts.batch_size

    @property
    def slab(self):
        """float32 [batch, state_size], the states: a view; None before the sizes of a step are known, and after
        `close`."""
        if self.slab_data == NULL or self.use == CLOSED:
            return None
        self.viewed = True
        return self._rows()

    def _rows(self):
        """`slab`, for use while the stream is held."""
        cdef cnp.npy_intp dims[2]
        dims[0], dims[1] = self._parts.batch, self._parts.program.state_size
        view = cnp.PyArray_SimpleNewFromData(2, dims, cnp.NPY_FLOAT32, self.slab_data)
        cnp.set_array_base(view, self)
        return view

    @cython.final
    cdef int hold(self) except -1:
        """Take the stream for this thread. Other threads that use it meanwhile get a StreamError."""
        if self.use != FREE:
            self._check_open()
            raise StreamError("this stream is in use by another thread, or was when the process was forked; give each "
                              "thread its own stream")
        self.use = BUSY
        return 0

    def _check_open(self):
        """StreamError if the stream is closed."""
        if self.use == CLOSED:
            raise StreamError("this stream was closed: open another one with model.stream(), or close it later")

    @cython.final
    cdef void let_go(self) noexcept:
        self.use = FREE

    def close(self):
        """Free the states at once, and the stream's part of the model's memory. It may be called again.

        Every other use of the stream is a StreamError from then on. `steps_done` and `batch_size` stay. Memory that an
        array of `slab` shows goes with the stream itself.

        Raises
        ------
        StreamError : another thread is using this stream; it stays open.
        """
        if self.use == CLOSED:
            return
        parts = StreamParts(self._parts.batch_size)
        self.hold()
        self.use = CLOSED
        if not self.viewed:
            PyMem_Free(self.slab_data)
            self.slab_data = NULL
        self.still, self._parts, self._compiled = None, parts, None

    @property
    def closed(self):
        """Whether `close` was called."""
        return self.use == CLOSED

    cdef int check_room(self, int64_t span) except -1:
        """Raise StreamError if the stream has ended, or can't take `span` more steps."""
        cdef StreamParts p = self._parts
        if self.ended:
            raise StreamError("this stream was flushed: its sequence is at its end; reset() begins another")
        if p.room >= 0 and self.steps_done + span > p.room:
            p.program.refuse("the stream", self.steps_done, span)
        if p.program.room >= 0:
            p.program.check_room(self.slab_data, NULL, 0, p.batch, span)
        return 0

    def _check_room(self, int64_t span):
        """`check_room` for the subclass, before it holds the stream: this error comes before those of a chunk."""
        if self._parts.timetable is not None:
            self.check_room(span)

    def step(self, x, out=None):
        """Advance by one time step.

        Parameters
        ----------
        x : array or list, shape [features...], or [batch_size, features...] for a stream opened with batch_size
            dtypes as in `Model.run`
            A model with several inputs takes a tuple in the order of `model.inputs`, or a dict by name.
        out : array, optional
            Where the result is written: C-contiguous, of the output's dtype and shape. With it, and a
            C-contiguous x of the model's dtype, a step allocates nothing.

        Returns
        -------
        array [features...] or [batch_size, features...], new memory (out if it is given); a tuple for several outputs.
        None, or a tuple with None, if no step of an output comes.

        Raises
        ------
        ShapeError : dtype or shape of x or out; a number that does not fit; an index outside an embedding's table.
        StreamError : another thread is using this stream; it was flushed.
        """
        cdef Scratch s
        cdef StreamParts p = self._parts
        cdef bint comes = True
        cdef object target = out
        if not (p.simple and fits(x, p.forms, -1, 0)) or (out is not None and not takes(out, p.forms + 1, -1, 0, x)):
            return self.step_otherwise(x, out)
        self.hold()
        try:
            if p.timetable is None:
                s = p.program.take(p.batch, 1, 1)
            else:
                counts = self.paced_counts()
                comes = counts.outputs[0] != 0
                if not (comes or p.traits[1].timed):  # a value over time is written at every step
                    target = None
                s = p.program.take(p.batch, counts.number, 0)
            if target is None:
                target = empty(p.forms + 1, -1, 0)
            s.base[0] = cnp.PyArray_DATA(<cnp.ndarray> x)
            s.base[1] = cnp.PyArray_DATA(<cnp.ndarray> target)
            self.call(s, p.batch, NULL)
            self.steps_done += 1
        finally:
            self.use = FREE
        return target if comes else None

    cdef object paced_counts(self):
        """The counts of the next step, of a stream with a timetable."""
        cdef StreamParts p = self._parts
        if self.ended or (p.room >= 0 and self.steps_done >= p.room):
            self.check_room(1)
        return p.timetable.counts(self.steps_done, 1)

    cdef object step_otherwise(self, x, out):
        """`step` with several arrays, or with anything that has to be checked or converted."""
        cdef Sides sides
        cdef StreamParts p = self._parts
        sides.n = 0
        try:
            if p.step_sides(&sides, x, out, -1):
                return self.step_with(&sides, out)
            return self._step_general(x, out)
        except MemoryError as error:
            raise out_of_memory(error, "a step") from None
        finally:
            drop_sides(&sides)

    cdef object step_with(self, Sides *sides, out):
        """`step` with these arrays."""
        cdef int i
        cdef Scratch s
        cdef tuple comes = None
        cdef StreamParts p = self._parts
        self.hold()
        try:
            if p.timetable is None:
                s = p.program.take(p.batch, 1, 1)
            else:
                counts = self.paced_counts()
                comes = counts.outputs
                s = p.program.take(p.batch, counts.number, 0)
            p.make_outputs(sides, comes, -1)
            for i in range(sides.n):
                s.base[i] = cnp.PyArray_DATA(<cnp.ndarray> sides.arrays[i])
            self.call(s, p.batch, NULL)
            self.steps_done += 1
        finally:
            self.use = FREE
        return p.results(sides, out, comes)

    cdef object push_otherwise(self, chunk):
        """`push` of several arrays, or of anything that has to be checked or converted."""
        cdef int i
        cdef Sides sides
        cdef int64_t span
        sides.n = 0
        try:
            span = self._parts.chunk_sides(&sides, chunk)
            if span < 0:
                return self._push_general(chunk)
            made = self._take([<object> sides.arrays[i] for i in range(sides.n)], span)
            return made[0] if len(made) == 1 else tuple(made)
        except MemoryError as error:
            raise out_of_memory(error, "a push") from None
        finally:
            drop_sides(&sides)

    def push(self, chunk):
        """Advance by all steps of a chunk of any length.

        Parameters
        ----------
        chunk : array or list, shape [T, features...], or [batch_size, T, features...]; T >= 0; dtypes as in `Model.run`
            A model with several inputs takes a tuple or dict; an input without a time axis has none here.

        Returns
        -------
        array [T, features...] or [batch_size, T, features...], new memory: the step outputs. If the model looks ahead
        or changes the rate, these steps may yield fewer outputs, none or more. For an output that the model reduces
        over time: [features...] or [batch_size, features...], the value as if the sequence ended here, and None if T
        is 0. A tuple for several outputs.

        Raises
        ------
        ShapeError, StreamError : as `step`.
        """
        cdef StreamParts p = self._parts
        cdef int64_t span
        if not (p.simple_chunks and fits(chunk, p.forms, p.traits[0].time_axis, -1)):
            return self.push_otherwise(chunk)
        span = cnp.PyArray_DIM(<cnp.ndarray> chunk, p.traits[0].time_axis)
        self.hold()
        try:
            self.check_room(span)
            comes = span if p.timetable is None else p.brought(self.steps_done, span, False)[0]
            out = empty(p.forms + 1, p.traits[1].time_axis, comes)
            self.advance(p.batch, NULL, self.steps_done, span, [chunk, out], p.batch, False)
            self.steps_done += span
        except MemoryError as error:
            raise out_of_memory(error, f"push of {span} steps") from None
        finally:
            self.use = FREE
        return out

    def _take(self, list arrays, int64_t span, bint one=False, bint final=False):
        """Advance by `span` steps.

        Parameters
        ----------
        arrays : C-contiguous arrays [batch, span, ...] of the inputs, if they have these axes
            None with final: no steps.
        one : return the result of a single step; final : the sequence ends here

        Returns
        -------
        list with a new array for each output, with the steps that come; None for a value over time that does not exist
        yet
        """
        cdef StreamParts p = self._parts
        cdef tuple comes
        cdef list made
        self.hold()
        try:
            self.check_room(span)
            if final:
                arrays = p.last_inputs(p.batch_size, self.still)
            comes = p.brought(self.steps_done, span, final)
            made = p.room_for(comes, p.batch_size, one)
            self.advance(p.batch, NULL, self.steps_done, span, arrays + made, p.batch, final)
            self.steps_done += span
            self.ended = final and p.timetable is not None
            if p.still and span:  # an empty chunk changes nothing, not even these inputs
                self.still = [np.array(v) for a, v in zip(p.inputs, arrays) if a in p.still]
        except MemoryError as error:
            raise out_of_memory(error, f"{span} steps") from None
        finally:
            self.use = FREE
        return p.seen(comes, made, one)
