# cython: language_level=3
"""Measuring the machine: the two loops of _kernels/body_probe.h, steps of a cell, and the settings that follow."""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

import time

from ..errors import FastRNNError

from fastrnn.machine._isa cimport (
    fpu_enter,
    fpu_leave,
    frnn_cell_io,
    FRNN_KINDS,
    frnn_kernels,
    FRNN_LEVELS,
    FRNN_SPREAD,
    frnn_tune,
    frnn_tuning,
    kernels_named,
    PackedCell,
)

SPREAD = FRNN_SPREAD  # a setting of `tune`: see frnn_tuning in frnn.h


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


# ---- how products of float32 prefetch ----------------------------------------------------------------------------


def tuning(isa=None):
    """(most, ahead) of an instruction set, as `tune` takes them."""
    cdef const frnn_tuning *now = kernels_named(isa).products[0].tuning
    ahead = tuple([tuple([now.ahead[i][k] for k in range(FRNN_KINDS)]) for i in range(FRNN_LEVELS)])
    return tuple([now.most[i] for i in range(FRNN_LEVELS - 1)]), ahead


def tune(most, ahead, isa=None):
    """Change how products of float32 prefetch, from the next step on and for the whole process. It changes no bit.

    most : bytes of the largest weights that count as in L2, in L3
    ahead : for L2, L3 and memory, and in each for one row, for a tile of rows and for more: bytes ahead of its own
        reads that a tile prefetches, 0 for none, or SPREAD
    """
    cdef frnn_tuning *now = kernels_named(isa).products[0].tuning
    cdef int64_t i, k
    if len(most) != FRNN_LEVELS - 1 or [len(row) for row in ahead] != [FRNN_KINDS] * FRNN_LEVELS:
        raise ValueError(f"expected {FRNN_LEVELS - 1} sizes and {FRNN_LEVELS} x {FRNN_KINDS} settings")
    cdef frnn_tuning chosen
    for i in range(FRNN_LEVELS - 1):
        chosen.most[i] = most[i]
    for i in range(FRNN_LEVELS):
        for k in range(FRNN_KINDS):
            chosen.ahead[i][k] = ahead[i][k]
    frnn_tune(now, &chosen)


cdef class StepTimer:
    """Steps of a cell in float32 with rows of zeros, and how long they take.

    Parameters
    ----------
    packed : PackedCell
    rows : int, of a step
    """
    cdef PackedCell packed
    cdef float *memory
    cdef void **pointers
    cdef frnn_cell_io io
    cdef int64_t rows, turn

    def __cinit__(self, PackedCell packed not None, int64_t rows):
        cdef int64_t H = packed.cell.H, row, k, scratch = packed.table.cell_scratch(&packed.cell, rows)
        self.packed, self.rows, self.turn = packed, rows, 0
        self.memory = <float *> calloc(rows * (packed.cell.I + 3 * H) + scratch + 16, sizeof(float))
        self.pointers = <void **> calloc(4 * rows, sizeof(void *))
        if self.memory == NULL or self.pointers == NULL:
            raise MemoryError(f"{rows} rows of a trial")
        memset(&self.io, 0, sizeof(self.io))
        for row in range(rows):
            self.pointers[row] = self.memory + row * packed.cell.I
            for k in range(1, 4):
                self.pointers[k * rows + row] = self.memory + rows * packed.cell.I + ((k - 1) * rows + row) * H
        self.io.x, self.io.h = <const float *const *> self.pointers, <const float *const *> (self.pointers + rows)
        self.io.c, self.io.y = <float *const *> (self.pointers + 2 * rows), <float *const *> (self.pointers + 3 * rows)
        self.io.scratch = self.memory + rows * (packed.cell.I + 3 * H)

    def __dealloc__(self):
        free(self.memory)
        free(self.pointers)

    def ns(self, int64_t block0, int64_t block1, int64_t steps):
        """The ns of each of so many steps of these blocks, which walk to and fro."""
        cdef int64_t left = steps, phase
        cdef uint64_t token
        if not 0 <= block0 <= block1 <= self.packed.blocks:
            raise ValueError(f"blocks {block0} to {block1} of {self.packed.blocks}")
        start = time.perf_counter_ns()
        with nogil:
            token = fpu_enter()
            while left > 0:
                left -= 1
                self.turn ^= 1
                self.io.backwards = <int32_t> self.turn
                for phase in range(self.packed.cell.phases):
                    self.packed.table.cell_step(&self.packed.cell, &self.io, phase, 0, self.rows, block0, block1)
            fpu_leave(token)
        return (time.perf_counter_ns() - start) / max(steps, 1)
