"""The arrays of a call: which forms go to a program as they are, and those of one call. All of it is inline."""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport int64_t

cimport numpy as cnp

from fastrnn.runtime._binding cimport no_array


cdef extern from "numpy/arrayobject.h":
    PyObject *unchecked_empty "PyArray_EMPTY" (int ndim, cnp.npy_intp *dims, int type, int fortran)
cdef extern from "Python.h":
    PyObject *PyDict_GetItemWithError(PyObject *found, PyObject *key) except? NULL

cdef enum:
    FORM_AXES = 8  # `arguments.MOST_AXES`
    MOST_SIDES = 64  # `arguments.MOST_SIDES`; the arrays of a call are on the stack


cdef struct Form:  # the required form of an argument's array
    int type
    int ndim
    cnp.npy_intp dims[FORM_AXES]


cdef struct Sides:  # the arrays of one call, each with a reference: inputs, then outputs; NULL: still to be made
    int n_in, n
    PyObject *arrays[MOST_SIDES]


cdef inline int set_form(Form *form, given) except -1:
    """given : (NumPy type number, shape)"""
    cdef int i
    form.type, form.ndim = given[0], len(given[1])
    for i, size in enumerate(given[1]):
        form.dims[i] = size
    return 0


# -- forms --
cdef inline bint is_plain(object x, int type) noexcept:
    """Whether x is a plain, C-contiguous, aligned array of this type in native byte order."""
    return (cnp.PyArray_CheckExact(x) and cnp.PyArray_TYPE(<cnp.ndarray> x) == type
            and cnp.PyArray_CHKFLAGS(<cnp.ndarray> x, cnp.NPY_ARRAY_CARRAY_RO)
            and cnp.PyArray_ISNOTSWAPPED(<cnp.ndarray> x))


cdef inline bint fits(object x, const Form *form, int at, int64_t size) noexcept:
    """Whether x is a plain array with exactly this dtype and shape.

    at, size : of an axis in addition to those of the form. at -1: no such axis; size -1: any size
    """
    cdef int i
    cdef bint more = at >= 0
    cdef cnp.ndarray array
    if not is_plain(x, form.type):
        return False
    array = <cnp.ndarray> x
    if cnp.PyArray_NDIM(array) != form.ndim + more:
        return False
    if more and size >= 0 and cnp.PyArray_DIM(array, at) != size:
        return False
    for i in range(form.ndim):
        if cnp.PyArray_DIM(array, i + (more and i >= at)) != form.dims[i]:
            return False
    return True


cdef inline bint apart(object x, object y) noexcept:
    """Whether two plain arrays share no memory."""
    cdef char *a = <char *> cnp.PyArray_DATA(<cnp.ndarray> x)
    cdef char *b = <char *> cnp.PyArray_DATA(<cnp.ndarray> y)
    return a + cnp.PyArray_NBYTES(<cnp.ndarray> x) <= b or b + cnp.PyArray_NBYTES(<cnp.ndarray> y) <= a


cdef inline bint takes(object out, const Form *form, int at, int64_t size, object x) noexcept:
    """Whether a result of this form can be written directly to `out` while x is read."""
    return fits(out, form, at, size) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> out) and apart(x, out)


# -- new arrays --
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
    cdef cnp.npy_intp dims[FORM_AXES + 1]
    cdef int i
    cdef bint more = at >= 0
    if more:
        dims[at] = size
    for i in range(form.ndim):
        dims[i + (more and i >= at)] = form.dims[i]
    return new_array(form.ndim + more, dims, form.type)


# -- the arrays of one call --
cdef inline void hold_side(Sides *sides, object array) noexcept:
    """Add an array, or whatever else the caller passed."""
    Py_INCREF(array)
    sides.arrays[sides.n] = <PyObject *> array
    sides.n += 1


cdef inline void replace_side(Sides *sides, int i, object array) noexcept:
    """Put an array in the place of another one, or of none."""
    cdef PyObject *old = sides.arrays[i]
    Py_INCREF(array)
    sides.arrays[i] = <PyObject *> array
    if old != NULL:
        Py_DECREF(<object> old)


cdef inline void drop_sides(Sides *sides) noexcept:
    """Give back all references."""
    cdef int i
    for i in range(sides.n):
        if sides.arrays[i] != NULL:
            Py_DECREF(<object> sides.arrays[i])
    sides.n = 0


cdef inline tuple as_tuple(const Sides *sides, int first, int n):
    """n of the arrays."""
    cdef int i
    found = PyTuple_New(n)
    for i in range(n):
        Py_INCREF(<object> sides.arrays[first + i])  # the tuple takes this reference
        PyTuple_SET_ITEM(found, i, <object> sides.arrays[first + i])
    return found


cdef inline bint by_name(Sides *sides, dict named, object name) except -1:
    """Add the array of this name; False if there is none."""
    cdef PyObject *found = PyDict_GetItemWithError(<PyObject *> named, <PyObject *> name)
    if found == NULL:
        return False
    hold_side(sides, <object> found)
    return True


cdef inline bint all_apart(const Sides *sides, int k) noexcept:
    """Whether output number k shares no memory with an input, nor with an output before it."""
    cdef int i, at = sides.n_in + k
    for i in range(at):
        if sides.arrays[i] != NULL and not apart(<object> sides.arrays[i], <object> sides.arrays[at]):
            return False
    return True
