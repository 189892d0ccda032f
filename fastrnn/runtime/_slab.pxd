"""The base of streams and pools; see _slab.pyx."""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport int64_t

cimport numpy as cnp

from fastrnn.runtime._binding cimport Scratch, no_array
from fastrnn.runtime._executor cimport Program


cdef extern from "numpy/arrayobject.h":
    PyObject *unchecked_empty "PyArray_EMPTY" (int ndim, cnp.npy_intp *dims, int type, int fortran)


cdef struct Form:  # the required form of an argument's array for one step
    int type
    int ndim
    cnp.npy_intp dims[8]


cdef struct Trait:  # of an argument
    int64_t step  # bytes of one step of one row
    bint timed, batched


cdef class StreamParts:
    cdef readonly Program program
    cdef readonly object batch_size, context, layout, timetable
    cdef readonly dict sizes
    cdef readonly list inputs, outputs, names, still
    cdef readonly tuple many
    cdef readonly int64_t batch, room
    cdef int64_t n_in, n_sides, largest
    cdef int x_axis, y_axis  # of time, in chunks
    cdef Trait *traits  # of the inputs, then of the outputs
    cdef bint simple, plain_chunks, guesses
    cdef Form x_form, y_form

    cdef tuple brought(self, int64_t position, int64_t steps, bint final)
    cdef list room_for(self, tuple comes, object batch_size, bint one)
    cdef list seen(self, tuple comes, list made, bint one)


cdef class SlabCore:
    cdef readonly StreamParts _parts
    cdef float *slab_data  # [rows, state_size]

    cdef int hold(self) except -1
    cdef void let_go(self) noexcept
    cdef object states_of(self, int64_t n, const int64_t *places)
    cdef int put_back(self, object states, int64_t n, const int64_t *places) except -1
    cdef int call(self, Scratch s, int64_t n, const int64_t *places, object x, object out) except -1
    cdef int advance(self, int64_t n, int64_t *places, int64_t position, int64_t span, list columns,
                     int64_t most, bint final) except -1
    cdef int advance_ragged(self, places, positions, lengths, list columns, int64_t most, bint final) except -1


cdef inline bint fits(object x, const Form *form, int at, int64_t size) noexcept:
    """Whether x is a plain, C-contiguous, aligned array in native byte order with exactly this dtype and shape.

    at, size : of an axis in addition to those of the form. at -1: no such axis; size -1: any size
    """
    cdef int i
    cdef bint more = at >= 0
    cdef cnp.ndarray array
    if not cnp.PyArray_CheckExact(x):
        return False
    array = <cnp.ndarray> x
    if cnp.PyArray_TYPE(array) != form.type or cnp.PyArray_NDIM(array) != form.ndim + more:
        return False
    if not cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_CARRAY_RO) or not cnp.PyArray_ISNOTSWAPPED(array):
        return False
    if more and size >= 0 and cnp.PyArray_DIM(array, at) != size:
        return False
    for i in range(form.ndim):
        if cnp.PyArray_DIM(array, i + (more and i >= at)) != form.dims[i]:
            return False
    return True


cdef inline bint takes(object out, const Form *form, int at, int64_t size, object x) noexcept:
    """Whether a result of this form can be written directly to `out` while x is read."""
    cdef char *a
    cdef char *b
    if not (fits(out, form, at, size) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> out)):
        return False
    a, b = <char *> cnp.PyArray_DATA(<cnp.ndarray> x), <char *> cnp.PyArray_DATA(<cnp.ndarray> out)
    return a + cnp.PyArray_NBYTES(<cnp.ndarray> x) <= b or b + cnp.PyArray_NBYTES(<cnp.ndarray> out) <= a


cdef inline object new_array(int ndim, cnp.npy_intp *dims, int type):
    """A new array, or FastRNNMemoryError. A try block would take time at each step."""
    cdef PyObject *made = unchecked_empty(ndim, dims, type, 0)
    if made == NULL:
        no_array()
    array = <object> made
    Py_DECREF(array)  # `array` has a reference of its own
    return array


cdef inline object new_rows(int64_t n, int64_t size):
    """float32 [n, size]."""
    cdef cnp.npy_intp[2] dims
    dims[0], dims[1] = n, size
    return new_array(2, dims, cnp.NPY_FLOAT32)


cdef inline object empty(const Form *form, int at, int64_t size):
    """A new array of this form."""
    cdef cnp.npy_intp dims[9]
    cdef int i
    cdef bint more = at >= 0
    if more:
        dims[at] = size
    for i in range(form.ndim):
        dims[i + (more and i >= at)] = form.dims[i]
    return new_array(form.ndim + more, dims, form.type)
