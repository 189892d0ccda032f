"""What a caller wants of a stream; see _queues.pyx."""


cdef class Request:
    cdef readonly object slot, future
    cdef readonly Py_ssize_t steps
    cdef public bint taken, expired


cdef class Step(Request):
    cdef readonly object arrays
