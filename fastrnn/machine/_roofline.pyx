# cython: language_level=3
"""Timing of the two loops of _kernels/body_probe.h; used by the benchmark, never by a model."""

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free
from libc.string cimport memset

import time

from ..errors import FastRNNError

from fastrnn.machine._isa cimport frnn_kernels, kernels_named


cdef extern from "pages.h" nogil:
    void *frnn_allocate(size_t size)


cdef const frnn_kernels *find(str isa) except NULL:
    try:
        return kernels_named(isa)
    except FastRNNError:
        raise ValueError(f"no roofline probe for the instruction set {isa!r} on this machine") from None


def fma_rate(str isa, int64_t repeats):
    """Floating point operations per second over `repeats` rounds of multiply-adds; a multiply-add is two."""
    cdef const frnn_kernels *probe = find(isa)
    cdef float kept
    start = time.perf_counter_ns()
    with nogil:
        kept = probe.probe_fma(repeats)
    spent = time.perf_counter_ns() - start
    if kept != kept:
        raise ArithmeticError("the multiply-adds of the probe became NaN")
    return 1e9 * probe.probe_flops * repeats / max(spent, 1)


cdef class Reader:
    """A buffer, and how fast it can be read.

    Parameters
    ----------
    isa : str, the instruction set whose loads are used; raises ValueError if it can't run here
    size : int, bytes; rounded up to a multiple of 1024
    """
    cdef void *data
    cdef size_t size
    cdef const frnn_kernels *probe

    def __cinit__(self, str isa, size_t size):
        self.probe = find(isa)
        self.size = (size + 1023) // 1024 * 1024 if size > 0 else 1024
        self.data = frnn_allocate(self.size)  # like packed weights
        if self.data == NULL:
            raise MemoryError(f"{self.size} bytes for the roofline probe")
        memset(self.data, 1, self.size)

    def __dealloc__(self):
        free(self.data)

    def rate(self, int64_t repeats, size_t ahead=0):
        """Bytes read per second over `repeats` passes; ahead: bytes by which a software prefetch runs ahead."""
        cdef int32_t kept
        start = time.perf_counter_ns()
        with nogil:
            kept = self.probe.probe_read(self.data, self.size, repeats, ahead)
        spent = time.perf_counter_ns() - start
        if kept != 0x01010101:
            raise ArithmeticError("the probe read something else than was written")
        return 1e9 * self.size * repeats / max(spent, 1)

    @property
    def bytes(self):
        """Bytes of the buffer."""
        return self.size
