# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Runs of whole sequences: the way from a caller's arrays, by place and by name, to a program and back.

Prepared  what a run at known shapes of its inputs needs: sizes, program, shapes of the outputs
RunCore   the base of `Compiled`: keeps the last shapes, so that a call only compares them
BranchCore  the same for a file in which inputs select a branch: hands the other inputs to the branch's model

The methods of RunCore return None if an argument is not a plain array of the input's dtype, is missing or unknown:
calls.py converts it then, or raises an error.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_Clear
from cpython.mem cimport PyMem_Free
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport int64_t
from libc.string cimport memcmp, memcpy

cimport numpy as cnp

from fastrnn.runtime._binding cimport Scratch, allocate
from fastrnn.runtime._executor cimport Program
from fastrnn.runtime._forms cimport (
    FORM_AXES,
    MOST_SIDES,
    Form,
    Sides,
    all_apart,
    as_tuple,
    by_name,
    drop_sides,
    fits,
    hold_side,
    is_plain,
    replace_side,
    set_form,
    unchecked_empty,
)

from ..errors import out_of_memory

cnp.import_array()

cdef int KEPT_SHAPES = 64  # of inputs, with what a run needs at them: finding it takes 20 us


cdef class Prepared:
    """A run at known shapes of its inputs: all that depends on them alone. Made by `Compiled._prepare`.

    program, batch, time : what runs, and its sizes
    forms : (NumPy type number, shape) of each input, then of each output
    absent : for each input, whether the call leaves it out
    fixed : the Compiled that the program is of, if the model leaves sizes open; else None
    """

    def __init__(self, Program program, int64_t batch, int64_t time, forms, absent, fixed):
        cdef int i
        self.program, self.batch, self.time, self.fixed, self.n_sides = program, batch, time, fixed, len(forms)
        self.forms = <Form *> allocate(self.n_sides, sizeof(Form))
        for i, given in enumerate(forms):
            set_form(&self.forms[i], given)
        for i, out in enumerate(absent):
            self.absent[i] = out

    def __dealloc__(self):
        PyMem_Free(self.forms)

    cdef bint suits(self, const Sides *sides) noexcept:
        """Whether it is for inputs of these shapes, which must be plain arrays of the right dtypes."""
        cdef int i
        for i in range(sides.n_in):
            if self.absent[i] != (sides.arrays[i] == NULL):
                return False
            if sides.arrays[i] != NULL and not fits(<object> sides.arrays[i], &self.forms[i], -1, 0):
                return False
        return True


cdef class RunCore:
    """Runs of one model. Threads may share it: nothing is locked, and what is kept is replaced as a whole."""

    def _begin_runs(self, inputs, axes, plain, kept):
        """Take what calls pass and get.

        inputs : (name, NumPy type number) of each; axes : how many each input has, then each output
        plain : names of the inputs that aren't states, which `call_plain` takes by place
        kept : numbers of the outputs that `call_plain` returns
        """
        cdef int i
        self.names, self.kept, self.known = tuple([name for name, _ in inputs]), tuple(kept), {}
        self.n_in, self.n_out = len(inputs), len(axes) - len(inputs)
        self.few = len(axes) <= MOST_SIDES and max(axes, default=0) <= FORM_AXES
        for i in range(self.n_in if self.few else 0):
            self.types[i] = inputs[i][1]
            self.place[i] = plain.index(self.names[i]) if self.names[i] in plain else -1

    # -- calls --
    def run_plain(self, tuple arrays, named, outs=None):
        """A run of plain arrays by place, then by name.

        named : a dict. outs : for each output an array to write it to, which may not fit, or None

        Returns
        -------
        tuple of all outputs; None if calls.py must look at the arguments
        """
        cdef Sides sides
        sides.n = 0
        try:
            if type(named) is dict and self.collect(&sides, arrays, <dict> named, False) and \
                    self.run_sides(&sides, outs):
                return as_tuple(&sides, self.n_in, self.n_out)
            return None
        finally:
            drop_sides(&sides)

    def call_plain(self, tuple arrays, dict named):
        """The same for a call without the states: they start at zero unless they are given by name.

        Returns
        -------
        what `Model.__call__` returns; None as in `run_plain`
        """
        cdef Sides sides
        sides.n = 0
        try:
            if not (self.collect(&sides, arrays, named, True) and self.run_sides(&sides, None)):
                return None
            return self.results(&sides)
        finally:
            drop_sides(&sides)

    cdef object results(self, Sides *sides):
        """Of `call_plain`, after a run."""
        if len(self.kept) == 1:
            return <object> sides.arrays[self.n_in + <int> self.kept[0]]
        if len(self.kept) == self.n_out:
            return as_tuple(sides, self.n_in, self.n_out)
        return tuple([<object> sides.arrays[self.n_in + <int> k] for k in self.kept])

    # -- their steps --
    cdef bint collect(self, Sides *sides, tuple arrays, dict named, bint without_states) except -1:
        """The array of each input. False if one is missing, unknown or given twice."""
        cdef int i, place, by_place = 0, n = <int> len(arrays)
        cdef Py_ssize_t named_ones = 0
        if not self.few or n + len(named) > self.n_in:
            return False
        sides.n_in = self.n_in
        for i in range(self.n_in):
            place = self.place[i] if without_states else i
            if 0 <= place < n:
                hold_side(sides, arrays[place])
                by_place += 1
            elif len(named) and by_name(sides, named, self.names[i]):
                named_ones += 1
            elif place < 0:
                sides.arrays[sides.n] = NULL
                sides.n += 1
            else:
                return False
        return by_place == n and named_ones == len(named)

    cdef Prepared prepared(self, Sides *sides):
        """What a run of these arrays needs; None if one is not plain."""
        cdef int64_t shapes[MOST_SIDES * (FORM_AXES + 1)]
        cdef int i, axis, n = 0
        cdef cnp.ndarray array
        cdef Prepared found = self.last
        if found is not None and found.suits(sides):
            return found
        for i in range(self.n_in):
            if sides.arrays[i] == NULL:
                shapes[n] = -1
                n += 1
                continue
            if not is_plain(<object> sides.arrays[i], self.types[i]):
                return None
            array = <cnp.ndarray> sides.arrays[i]
            if cnp.PyArray_NDIM(array) > FORM_AXES:
                return None
            shapes[n] = cnp.PyArray_NDIM(array)
            for axis in range(cnp.PyArray_NDIM(array)):
                shapes[n + 1 + axis] = cnp.PyArray_DIM(array, axis)
            n += 1 + cnp.PyArray_NDIM(array)
        key = PyBytes_FromStringAndSize(<char *> shapes, n * sizeof(int64_t))
        found = self.known.get(key)
        if found is None:
            arrays = [None if sides.arrays[i] == NULL else <object> sides.arrays[i] for i in range(self.n_in)]
            found = self._prepare(arrays)
            if found is None:
                return None
            with self._lock:
                if found.fixed is not None and not self._is_kept(found.fixed):
                    return found  # another thread needed other sizes meanwhile: it must not live as long as its shape
                if len(self.known) >= KEPT_SHAPES:  # no order worth keeping: a service has few shapes, or all of them
                    self.known.clear()
                self.known[key] = found
        self.last = found
        return found

    cdef bint run_sides(self, Sides *sides, outs) except -1:
        """Run on these inputs, and add the outputs. False if an input is not plain."""
        cdef int i, k
        cdef PyObject *made
        cdef Form *form
        cdef Scratch s
        cdef Program program
        cdef Prepared p = self.prepared(sides)
        if p is None:
            return False
        if p.fixed is not None and p.fixed is not self.newest:
            self._use(p.fixed)
            self.newest = p.fixed
        program = p.program
        try:
            for i in range(self.n_in):
                if sides.arrays[i] == NULL:
                    replace_side(sides, i, cnp.PyArray_ZEROS(p.forms[i].ndim, p.forms[i].dims, p.forms[i].type, 0))
            for k in range(self.n_out):
                form = &p.forms[self.n_in + k]
                if outs is not None and outs[k] is not None and not program.may_fail and \
                        fits(outs[k], form, -1, 0) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> outs[k]):
                    hold_side(sides, outs[k])
                    if all_apart(sides, k):
                        continue
                    sides.n -= 1
                    Py_DECREF(outs[k])
                made = unchecked_empty(form.ndim, form.dims, form.type, 0)
                if made == NULL:  # says why, or gets the memory by now
                    PyErr_Clear()
                    hold_side(sides, self._empty(k, [form.dims[i] for i in range(form.ndim)]))
                else:
                    sides.arrays[sides.n] = made  # with its reference
                    sides.n += 1
            s = program.take(p.batch, p.time, p.time)
            for i in range(sides.n):
                s.base[i] = cnp.PyArray_DATA(<cnp.ndarray> sides.arrays[i])
            try:
                program.run_on(s)
            finally:
                program.give(s)
        except MemoryError as error:
            at = f"batch {p.batch} and time {p.time}"
            raise out_of_memory(error, f"run of {self.name} with {at}") from None
        return True

    def _forget(self, fixed):
        """Drop what was prepared for a model of other free sizes that is no longer kept."""
        self.known = {key: p for key, p in self.known.items() if (<Prepared> p).fixed is not fixed}
        if self.last is not None and self.last.fixed is fixed:
            self.last = None
        if self.newest is fixed:
            self.newest = None


cdef class BranchCore(RunCore):
    """Runs of a file in which inputs select a branch. Each value of them has a model of its own; those that were used
    are kept here, so that a call only compares the value."""

    def __init__(self, inputs, axes, plain, selectors):
        """selectors : name -> shape; the rest as of `_begin_runs`"""
        cdef int i
        self._begin_runs(inputs, axes, plain, ())
        self.models, self.last_branch = {}, None
        for i in range(self.n_in if self.few else 0):
            self.selects[i] = self.names[i] in selectors
            if self.selects[i]:
                set_form(&self.forms[i], (self.types[i], selectors[self.names[i]]))

    def keep(self, bytes values, model):
        """Keep the model of these values (the bytes of all that select, in the order of the inputs), if it takes the
        other inputs in their order, and leaves out the same ones as states."""
        cdef int i, k = 0
        cdef RunCore core = model._runs
        if core is None or not self.few:
            return
        for i in range(self.n_in):
            if self.selects[i]:
                continue
            if k == core.n_in or core.names[k] != self.names[i] or (core.place[k] < 0) != (self.place[i] < 0):
                return
            k += 1
        if k == core.n_in:
            self.models[values] = model

    @property
    def _known_values(self):
        return list(self.models)

    def forget(self, bytes values):
        """Drop the model of these values."""
        self.models.pop(values, None)
        self.last_branch = None

    def run_plain(self, tuple arrays, named, outs=None):
        """As of RunCore."""
        cdef Sides sides, rest
        cdef RunCore core
        sides.n = rest.n = 0
        try:
            if type(named) is not dict or not self.collect(&sides, arrays, <dict> named, False):
                return None
            core = self.branch(&sides, &rest)
            if core is None or not core.run_sides(&rest, outs):
                return None
            return as_tuple(&rest, core.n_in, core.n_out)
        finally:
            drop_sides(&sides)
            drop_sides(&rest)

    def call_plain(self, tuple arrays, dict named):
        """As of RunCore."""
        cdef Sides sides, rest
        cdef RunCore core
        sides.n = rest.n = 0
        try:
            if not self.collect(&sides, arrays, named, True):
                return None
            core = self.branch(&sides, &rest)
            return core.results(&rest) if core is not None and core.run_sides(&rest, None) else None
        finally:
            drop_sides(&sides)
            drop_sides(&rest)

    cdef RunCore branch(self, const Sides *sides, Sides *rest):
        """The model that these inputs select, and its own inputs; None if it is not known yet."""
        cdef int i
        cdef Py_ssize_t n = 0, size
        cdef char key[256]
        cdef tuple last = self.last_branch
        for i in range(self.n_in):
            if not self.selects[i]:
                continue
            if sides.arrays[i] == NULL or not fits(<object> sides.arrays[i], &self.forms[i], -1, 0):
                return None
            size = cnp.PyArray_NBYTES(<cnp.ndarray> sides.arrays[i])
            if n + size > <Py_ssize_t> sizeof(key):
                return None
            memcpy(key + n, cnp.PyArray_DATA(<cnp.ndarray> sides.arrays[i]), size)
            n += size
        if last is None or len(<bytes> last[0]) != n or memcmp(<char *> <bytes> last[0], key, n):
            values = PyBytes_FromStringAndSize(key, n)
            model = self.models.get(values)
            if model is None:
                return None
            self.last_branch = last = (values, model)
        core = last[1]._runs  # None: it was closed
        rest.n_in = 0 if core is None else (<RunCore?> core).n_in
        for i in range(self.n_in):
            if sides.arrays[i] == NULL:
                rest.arrays[rest.n] = NULL
                rest.n += 1
            elif not self.selects[i]:
                hold_side(rest, <object> sides.arrays[i])
        return core
