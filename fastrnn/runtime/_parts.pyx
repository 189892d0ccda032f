# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""StreamParts: the data that all streams of one model, batch size and context share, and the arguments of their calls.

A step or push passes one array, or several in a tuple, a list or a dict by name. `step_sides` and `chunk_sides` collect
them, with the memory of the results, if all are plain arrays of the right form. Everything else is checked in Python
(arguments.py), which converts it or raises an error.
"""

from cpython.mem cimport PyMem_Free
from libc.stdint cimport int64_t

cimport numpy as cnp

from fastrnn.runtime._binding cimport allocate
from fastrnn.runtime._executor cimport Program
from fastrnn.runtime._forms cimport (
    Form,
    Sides,
    all_apart,
    as_tuple,
    by_name,
    empty,
    fits,
    hold_side,
    replace_side,
    set_form,
)

import numpy as np

from ..errors import StreamError

cnp.import_array()

cdef int64_t MOST_STEPS = 64  # in one call


cdef class StreamParts:
    """The data that all streams of one model, batch size and context share, so that a stream is little but its state.

    Made by `Compiled._stream_parts`, never changed. If the model leaves sizes open, program is None and all below it is
    empty: the first step of a stream fixes the sizes and gives the stream other parts.

    batch_size : int or None, as passed to `Model.stream`; batch : rows of the slab
    context : bound of attention; sizes : the sizes that the model leaves open, by name
    layout : StateLayout; inputs, outputs : lists of Argument; names : of the inputs that steps pass
    timetable : None if each output has one step per input step; many : for each output, whether one step may return
        several
    room : steps that a stream with a timetable can take, -1: any number
    still : inputs without a time axis, if a stream must remember their last values for `flush`; not those whose
        arguments are bound to a value
    plain : arrays of the right form go to the program as they are; simple : and there is one of each side
    """

    def __init__(self, batch_size=None, context=None, sizes=None, Program program=None, layout=None, inputs=(),
                 outputs=(), forms=()):
        """forms : (NumPy type number, shape) of each side for one step, or () if all are checked in Python"""
        cdef int64_t i
        sides = (*inputs, *outputs)
        self.batch_size, self.context, self.sizes = batch_size, context, dict(sizes or {})
        self.batch, self.room, self.largest = batch_size or 1, -1, MOST_STEPS
        self.program, self.layout, self.inputs, self.outputs = program, layout, list(inputs), list(outputs)
        self.names, self.still = [a.name for a in inputs if a.bound is None], []
        self.n_in, self.n_sides, self.n_given = len(inputs), len(sides), len(self.names)
        self.many = (False,) * len(outputs)
        if program is None:
            return
        self.plain = len(forms) == len(sides)
        self.traits = <Trait *> allocate(self.n_sides, sizeof(Trait))
        self.forms = <Form *> allocate(self.n_sides, sizeof(Form))
        for i, argument in enumerate(sides):
            self.traits[i].step = argument.step_bytes
            self.traits[i].timed, self.traits[i].batched = argument.timed, argument.batched
            self.traits[i].time_axis = len(argument._lead(batch_size)) if argument.timed else -1
            if self.plain:
                set_form(&self.forms[i], forms[i])
        if self.n_given < self.n_in:
            self.held = [None if a.bound is None else a.of_rows(batch_size) for a in inputs]
        if program.plan.steps_one:
            self.largest = 1
        if program.plan.paced:
            self.timetable = program.plan.timetable
            self.room = -1 if program.plan.room is None else program.plan.room
            self.still = [a for a in inputs if not a.timed and a.bound is None]
            self.many, self.guesses = self.timetable.many, self.timetable.guesses
        one_step = self.timetable is None or self.timetable.simple
        one_each = self.n_in == 1 and len(outputs) == 1
        self.plain_steps = self.plain and one_step and not self.still
        self.simple = self.plain_steps and one_each
        self.simple_chunks = self.plain and one_each and all(a.timed for a in sides)
        self.plain_chunks = self.plain and not any(a.timed for a in inputs if a.bound is not None)

    def __dealloc__(self):
        PyMem_Free(self.traits)
        PyMem_Free(self.forms)

    # -- the arrays of a call --
    cdef inline int row_axis(self, int i, int64_t rows) noexcept:
        """The axis of a pool's rows in the array of one side; -1: none."""
        return 0 if rows >= 0 and self.traits[i].batched else -1

    cdef bint inputs_of(self, Sides *sides, x) except -1:
        """Collect what x has for each input. False if it must be looked at in Python."""
        cdef int i, next_one = 0
        cdef bint named = type(x) is dict, several = not named and self.n_given != 1
        sides.n_in = self.n_in
        if several and type(x) is not tuple and type(x) is not list:
            return False
        if (named or several) and len(x) != self.n_given:
            return False
        for i in range(self.n_in):
            if self.held is not None and self.held[i] is not None:
                hold_side(sides, self.held[i])
                continue
            if named:
                if not by_name(sides, <dict> x, self.names[next_one]):
                    return False
            elif not several:
                hold_side(sides, x)
            elif type(x) is tuple:
                hold_side(sides, (<tuple> x)[next_one])
            else:
                hold_side(sides, (<list> x)[next_one])
            next_one += 1
        return True

    cdef bint step_sides(self, Sides *sides, x, out, int64_t rows) except -1:
        """Collect the arrays of one step, those of `out` if it is given. False if they must be checked in Python.

        rows : of a pool's call, a first axis of each array that has a batch axis; -1: no such axis
        """
        cdef int i, k, n_out = self.n_sides - self.n_in
        cdef bint several = type(out) is tuple or type(out) is list
        if not (self.plain_steps and self.inputs_of(sides, x)):
            return False
        for i in range(self.n_in):
            if not fits(<object> sides.arrays[i], &self.forms[i], self.row_axis(i, rows), rows):
                return False
        if out is not None and (len(out) if several else 1) != n_out:
            return False
        for k in range(n_out):
            if out is None:
                sides.arrays[sides.n] = NULL
                sides.n += 1
                continue
            target = out[k] if several else out
            hold_side(sides, target)
            i = self.n_in + k
            if not (fits(target, &self.forms[i], self.row_axis(i, rows), rows) and all_apart(sides, k)
                    and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> target)):
                return False
        return True

    cdef int64_t chunk_sides(self, Sides *sides, x) except -2:
        """Collect the inputs of a chunk. Returns its steps; -1 if they must be checked in Python."""
        cdef int i
        cdef int64_t steps = -1
        if not (self.plain_chunks and self.inputs_of(sides, x)):
            return -1
        for i in range(self.n_in):
            if not fits(<object> sides.arrays[i], &self.forms[i], self.traits[i].time_axis, steps):
                return -1
            if steps < 0 and self.traits[i].time_axis >= 0:
                steps = cnp.PyArray_DIM(<cnp.ndarray> sides.arrays[i], self.traits[i].time_axis)
        return steps

    cdef int make_outputs(self, Sides *sides, tuple comes, int64_t rows) except -1:
        """Make the arrays for the results of a step that are still missing. comes: as of `brought`, None: all."""
        cdef int i
        for i in range(self.n_in, self.n_sides):
            # A value over time that does not exist yet is written at every step, and `out` stays as it is.
            if comes is not None and not comes[i - self.n_in] and not self.traits[i].timed:
                replace_side(sides, i, empty(&self.forms[i], -1, 0))
            elif sides.arrays[i] == NULL:
                replace_side(sides, i, empty(&self.forms[i], self.row_axis(i, rows), rows))
        return 0

    cdef object results(self, Sides *sides, out, tuple comes):
        """What a step returns: the one output or a tuple of all; None for one that does not come."""
        cdef int k, n_out = self.n_sides - self.n_in
        if comes is not None:
            made = tuple([<object> sides.arrays[self.n_in + k] if comes[k] else None for k in range(n_out)])
            return made[0] if n_out == 1 else made
        if n_out == 1:
            return <object> sides.arrays[self.n_in]
        if type(out) is tuple:
            return out
        return as_tuple(sides, self.n_in, n_out)

    cdef tuple brought(self, int64_t position, int64_t steps, bint final):
        """How many steps of each output the next `steps` steps yield. For an output without time: whether it has
        a value. final: the sequence ends here."""
        if self.timetable is None:
            return (steps,) * len(self.outputs)
        if final and position < self.timetable.least:  # too short for a window of the model: no more steps
            return (0,) * len(self.outputs)
        new = self.timetable.outputs(position, steps, final)
        if final:
            return new
        if steps and self.guesses:
            now = self.timetable.counts(position + steps, 0, True).outputs
        else:
            now = new if steps else (0,) * len(new)
        return tuple([k if o.timed else value for o, k, value in zip(self.outputs, new, now)])

    def last_inputs(self, batch_size, still):
        """Empty chunks of all inputs, to end a sequence; still : the last arrays of `self.still`."""
        if self.still and not still:
            text = "flush before the first step, with inputs unknown that have no time axis"
            raise StreamError(f"{self.program.plan.graph.name}: {text}")
        last = iter(still or ())
        return [a.of_rows(batch_size, 0) if a.bound is not None else next(last) if a in self.still else
                np.empty(a.chunk_shape(batch_size, 0), a.dtype) for a in self.inputs]

    cdef list room_for(self, tuple comes, object batch_size, bint one):
        """A new array for each output, with as many steps as `brought` says; one: for the result of a single step."""
        cdef list made = []
        cdef int i = self.n_in
        cdef bint as_step
        for o, n, many in zip(self.outputs, comes, self.many):
            as_step = one and n == 1 and not many
            if self.plain:
                made.append(empty(&self.forms[i], -1 if as_step else self.traits[i].time_axis, n))
            else:
                made.append(np.empty(o.step_shape(batch_size) if as_step else o.chunk_shape(batch_size, n), o.dtype))
            i += 1
        return made

    cdef list seen(self, tuple comes, list made, bint one):
        """These arrays as returned to the caller: None for a missing value, and for no step instead of one."""
        return [r if n or (o.timed and not one) else None for o, n, r in zip(self.outputs, comes, made)]
