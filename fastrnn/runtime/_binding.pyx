# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Binding: a plan at the sizes of one call. Every integer of every op is computed and checked here, and kept for reuse.

Scratch   a plan bound to sizes: the evaluated integers, and the arena. One call at a time uses it.
Binding   makes scratch from rows of coefficients; the base of `Program`, which fills it in.
"""

from cpython.exc cimport PyErr_Clear, PyErr_ExceptionMatches
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

cimport numpy as cnp

from fastrnn.ops._frame cimport ALIGN

import numpy as np

from ..compile.bounds import Bounds
from ..compile.plan import LARGEST
from ..errors import FastRNNMemoryError, ShapeError, out_of_memory

cnp.import_array()

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **out, size_t alignment, size_t size)
cdef extern from * nogil:
    """
    #if defined(__SANITIZE_ADDRESS__)
    #include <sanitizer/asan_interface.h>
    #define FRNN_REDZONE 64
    #else
    #define FRNN_REDZONE 0
    #define ASAN_POISON_MEMORY_REGION(start, size) ((void)(start), (void)(size))
    #define ASAN_UNPOISON_MEMORY_REGION(start, size) ((void)(start), (void)(size))
    #endif
    """
    enum: FRNN_REDZONE  # bytes after each slot of an arena that no op may touch; for AddressSanitizer
    void ASAN_POISON_MEMORY_REGION(void *start, size_t size)
    void ASAN_UNPOISON_MEMORY_REGION(void *start, size_t size)


DEF FARTHEST = 1 << 50  # elements from the start of a buffer; more than any memory has, and exact in float64

# Scratch that a program keeps for reuse: the last one, unless it is large, and some of other sizes.
cdef int64_t LARGE_BYTES = 32 << 20
cdef int64_t KEPT_BYTES = 16 << 20
cdef int KEPT_SIZES = 32


cdef const int64_t *integers_of(cnp.ndarray array) except NULL:
    """The elements of an int64 array that is C-contiguous. A typed memoryview would add 60 KB to the wheel."""
    if cnp.PyArray_TYPE(array) != cnp.NPY_INT64 or not cnp.PyArray_IS_C_CONTIGUOUS(array):
        raise TypeError(f"expected a contiguous int64 array, got {array.dtype}")
    return <const int64_t *> cnp.PyArray_DATA(array)


cdef class Scratch:
    """A program bound to sizes, and its arena. One call at a time uses it."""

    def __dealloc__(self):
        PyMem_Free(self.integers)
        PyMem_Free(self.linear)
        PyMem_Free(self.base)
        if self.arena != NULL:
            ASAN_UNPOISON_MEMORY_REGION(self.arena, self.arena_bytes)
        free(self.arena)


cdef class Binding:
    """The integers of a plan as functions of a call's sizes, and the scratch kept for reuse."""

    def __cinit__(self, *args, **kwargs):
        self.spare = {}

    def __dealloc__(self):
        PyMem_Free(self.accesses)

    cdef bind(self, plan, coefficients):
        """Take a plan and the rows for the integers of its ops. Adds the work of a call and the sizes of slots."""
        cdef int64_t i
        self.plan, self.coefficients = plan, coefficients
        self.n_arguments, self.n_constants = len(plan.inputs) + len(plan.outputs), len(plan.constants)
        self.n_integers = len(coefficients.rows)
        coefficients.add(plan.flops)
        self.bounds = Bounds(plan, coefficients)
        self.n_bound = len(coefficients.rows)
        self.n_accesses = len(self.bounds.about)
        self.accesses = <int64_t *> allocate(len(self.bounds.table), sizeof(int64_t))
        for i, number in enumerate(self.bounds.table):
            self.accesses[i] = number
        self.slot_rows = []
        for sizes in plan.slot_sizes:
            self.slot_rows.append(len(coefficients.rows))
            for size, _ in sizes:
                coefficients.add(size)
        self.matrix = coefficients.matrix()
        self.magnitude = np.abs(self.matrix).astype(np.float64)
        self.batch_linear = self._is_batch_linear()

    def _is_batch_linear(self):
        """Whether a scratch can be rebound to another batch by one multiply-add per integer, in the same arena."""
        if self.plan.depends("batch") or self.coefficients.degree("batch") > 1:
            return False
        arena = self.matrix[self.n_bound :, self.coefficients.holds("batch")]
        return bool((arena >= 0).all())  # a smaller batch never needs more room

    cdef Scratch take(self, int64_t batch, int64_t time, int64_t span):
        """A scratch for these sizes that no other call uses. Needs the GIL. Return it with `give`."""
        cdef Scratch s = self.idle
        if s is None or s.time != time or s.span != span:
            return self._take_other(batch, time, span)
        if s.batch != batch:
            if not self.batch_linear or batch > s.room:
                return self._take_other(batch, time, span)
            self.idle = None
            self._rebind(s, batch)
        self.idle = None
        return s

    cdef Scratch _take_other(self, int64_t batch, int64_t time, int64_t span):
        cdef Scratch s = None
        cdef int64_t room = batch
        key = (0 if self.batch_linear else batch, time)
        waiting = self.spare.get(key)
        if waiting:
            s = waiting.pop()
            self.kept_bytes -= s.arena_bytes
            if not waiting:
                del self.spare[key]
            if s.room < batch:  # the room doubles as a batch grows, so that few arenas are made
                room = max(batch, min(2 * s.room, 2 * batch))
                s = None
        elif self.batch_linear and self.idle is not None and self.idle.time == time and self.idle.room < batch:
            room = max(batch, min(2 * self.idle.room, 2 * batch))
            self.idle = None
        if s is None:
            s = self._new_scratch(batch, time, room)
        if s.span != span:
            s.batch = batch
            self._evaluate(s, span)
        elif s.batch != batch:
            self._rebind(s, batch)
        return s

    cdef void give(self, Scratch s) noexcept:
        """Keep a scratch for the next call of its sizes: the last one for quick access, and a few of other sizes."""
        cdef Scratch old = self.idle
        if s.arena_bytes > LARGE_BYTES:  # a rare, long run: allocating it again costs little compared to the work
            return
        self.idle = s
        if old is not None:
            self._keep(old)

    cdef void _keep(self, Scratch s) noexcept:
        """Keep a scratch among those of other sizes. If their total is too large, the oldest are dropped."""
        if s.arena_bytes > KEPT_BYTES:
            return
        key = (0 if self.batch_linear else s.batch, s.time)
        waiting = self.spare.pop(key, [])
        waiting.append(s)
        self.spare[key] = waiting
        self.kept_bytes += s.arena_bytes
        while self.kept_bytes > KEPT_BYTES or len(self.spare) > KEPT_SIZES:
            oldest = next(iter(self.spare))
            gone = self.spare[oldest].pop(0)
            self.kept_bytes -= (<Scratch> gone).arena_bytes
            if not self.spare[oldest]:
                del self.spare[oldest]

    cdef Scratch _new_scratch(self, int64_t batch, int64_t time, int64_t room):
        """Set sizes and arena. room: the largest batch that it may be bound to later."""
        cdef Scratch s = Scratch.__new__(Scratch)
        cdef int64_t i, place
        cdef int64_t n_base = self.n_arguments + self.n_constants
        self.plan.check_sizes(batch, time)
        s.batch, s.time, s.span, s.room, s.n_linear = batch, time, -1, room, -1
        s.integers = <int64_t *> allocate(self.n_bound, sizeof(int64_t))
        s.base = <void **> allocate(n_base + len(self.slot_rows) + 1, sizeof(void *))
        # States that don't depend on the batch (a sum over step numbers) take one row of a run without rows too.
        slots = [*self._slot_bytes(room, time), max(room, 1) * self.own_floats * sizeof(float)]
        sizes = [-(-size // ALIGN) * ALIGN + FRNN_REDZONE for size in slots]
        total = max(sum(sizes), 1)
        if total > 1 << 40:
            raise ShapeError(f"batch {batch} and time {time} would take {total >> 30} GiB of scratch")
        if posix_memalign(<void **> &s.arena, ALIGN, total) != 0:
            raise FastRNNMemoryError(f"not enough memory: {total} bytes of scratch for batch {batch}, time {time}")
        s.arena_bytes = total
        place = 0
        if FRNN_REDZONE:
            ASAN_POISON_MEMORY_REGION(s.arena, total)
        for i, size in enumerate(slots):
            s.base[n_base + i] = s.arena + place
            ASAN_UNPOISON_MEMORY_REGION(s.arena + place, size)
            place += sizes[i]
        s.states = <float *> s.base[n_base + len(self.slot_rows)]
        for i, array in enumerate(self.plan.constants):
            s.base[self.n_arguments + i] = cnp.PyArray_DATA(<cnp.ndarray> array)
        return s

    def _slot_bytes(self, int64_t batch, int64_t time):
        """Bytes of each slot of the arena at these sizes."""
        values = self._values(batch, time, time)
        sizes = []
        for first, shared in zip(self.slot_rows, self.plan.slot_sizes, strict=True):
            need = [min(int(v), v if cap is None else cap) for v, (_, cap) in zip(values[first:], shared, strict=False)]
            sizes.append(max(0, *need))
        return sizes

    def arena_bytes(self, batch, time):
        """Bytes of scratch that a call at these sizes uses, without its arguments and the states."""
        return sum(-(-size // ALIGN) * ALIGN for size in self._slot_bytes(batch, time))

    cdef _values(self, int64_t batch, int64_t time, int64_t span):
        monomials = self.coefficients.evaluate_monomials(batch, time, span)
        if (self.magnitude @ np.abs(monomials)).max(initial=0) > LARGEST:  # float64 does not wrap around
            raise ShapeError(f"batch {batch} and time {time} are too large for this model")
        return self.matrix @ monomials

    cdef _evaluate(self, Scratch s, int64_t span):
        """The integers of all ops at the sizes of s."""
        cdef cnp.ndarray values = self._values(s.batch, s.time, span)
        memcpy(s.integers, integers_of(values), self.n_bound * sizeof(int64_t))
        s.span = span
        s.n_linear = -1
        self._check_bounds(s)

    cdef _rebind(self, Scratch s, int64_t batch):
        """Bind to another batch of at most `s.room` rows. Writes only the integers that grow with the batch.

        These are 20 to 500, one multiply-add each. The matrix product for all integers takes 10 us and more.
        """
        cdef int64_t i
        cdef int64_t *entry
        cdef cnp.ndarray table
        if s.n_linear < 0:
            self._values(s.room, s.time, s.span)  # rejects sizes that would wrap around
            monomials = self.coefficients.evaluate_monomials(1, s.time, s.span)
            rows = self.matrix[: self.n_bound]
            growth = rows @ np.where(self.coefficients.holds("batch"), monomials, 0)
            changed = np.flatnonzero(growth)
            at_zero = rows[changed] @ monomials - growth[changed]
            table = np.ascontiguousarray(np.stack([changed, at_zero, growth[changed]], 1), np.int64)
            PyMem_Free(s.linear)
            s.linear = NULL
            s.linear = <int64_t *> allocate(3 * len(changed), sizeof(int64_t))
            s.n_linear = len(changed)
            if s.n_linear:
                memcpy(s.linear, integers_of(table), 3 * s.n_linear * sizeof(int64_t))
        for i in range(s.n_linear):
            entry = s.linear + 3 * i
            s.integers[entry[0]] = entry[1] + entry[2] * batch
        s.batch = batch
        self._check_bounds(s)

    cdef int _check_bounds(self, Scratch s) except -1:
        """Raise ShapeError if an op, run at the sizes that s is bound to, would touch memory outside its buffers.

        Every binding is checked here, and only bindings make the integers of ops. So ops don't check them again.
        """
        cdef int64_t k, level, count, first, last, room, size
        cdef double span
        cdef bint empty
        cdef const int64_t *access = self.accesses
        cdef const int64_t *n = s.integers
        for k in range(self.n_accesses):
            first = last = n[access[1]]
            room = (max(s.batch, 1) if access[0] < 0 else n[access[0]]) // access[2]
            empty = False
            size = 0
            for level in range(access[3]):
                count = n[access[4 + 2 * level]]
                if count <= 0:
                    empty = True
                    size = min(size, count)
                    continue
                span = <double> (count - 1) * <double> n[access[5 + 2 * level]]
                if span > FARTHEST or span < -FARTHEST:
                    first, last = -FARTHEST, FARTHEST
                elif span < 0:
                    first += <int64_t> span
                else:
                    last += <int64_t> span
            if size < 0 or not (empty or (0 <= first and last < room)):
                self._refuse(s, k, size, first, last, room)
            access += 4 + 2 * access[3]
        return 0

    cdef _refuse(self, Scratch s, int64_t k, int64_t size, int64_t first, int64_t last, int64_t room):
        op, access = self.bounds.about[k]
        what = "elements" if access.buffer is not None else "rows of states"
        text = f"a count of {size}" if size < 0 else f"{what} {first} to {last} of {room}"
        given = f"{s.time} steps" if not self.plan.paced else "the steps of this call"
        raise ShapeError(
            f"node {op.node}: at batch {s.batch} and {given} its {op.kind} ({access.what}) would work with {text}: the "
            "model has no meaning at these sizes; give others"
        )

    @property
    def scratch_bytes(self):
        """Bytes of the scratch kept for reuse."""
        everything = [s for waiting in self.spare.values() for s in waiting]
        if self.idle is not None:
            everything.append(self.idle)
        return sum((<Scratch> s).arena_bytes + 8 * self.n_integers for s in everything)


cdef void *allocate(int64_t count, size_t size) except NULL:
    cdef void *memory = PyMem_Calloc(max(count, 1), size)
    if memory == NULL:
        raise FastRNNMemoryError("not enough memory for the tables of a stream or pool")
    return memory


cdef int no_array() except -1:
    """Raise the error that NumPy has set when it made no array; a MemoryError becomes a FastRNNMemoryError."""
    if PyErr_ExceptionMatches(MemoryError):
        PyErr_Clear()
        raise out_of_memory(MemoryError(), "the arrays of a call")
    return -1
