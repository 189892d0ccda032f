# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A clock around every op of a plan, for `fastrnn profile`. A program without an `OpTimer` never runs this code."""

from libc.stdint cimport int32_t, int64_t

cimport numpy as cnp

from fastrnn.ops._frame cimport Frame
from fastrnn.ops._walk cimport walk

import numpy as np

cnp.import_array()


cdef class OpTimer:
    """Nanoseconds of each op in each of the next `capacity` calls of a program of `n_ops` ops; later calls go untimed.

    Set it as `Program.timer` of a program that no other thread runs, because calls write here without a lock. Every
    figure includes the cost of reading the clock. `clock_ns` is that cost, the median over readings with no op between.
    """

    def __cinit__(self, int64_t n_ops, int64_t capacity):
        self.n_ops, self.capacity, self.calls = n_ops, capacity, 0
        self.table = np.zeros((capacity, max(n_ops, 1)), np.int64)
        self.data = <int64_t *> cnp.PyArray_DATA(<cnp.ndarray> self.table)

    @property
    def ns(self):
        """int64 [calls, n_ops], a copy of the times written so far."""
        return self.table[:self.calls, :self.n_ops].copy()

    cdef int64_t *next_row(self) noexcept:
        """Where the next call's times go; NULL if no room is left."""
        if self.calls == self.capacity:
            return NULL
        self.calls += 1
        return self.data + (self.calls - 1) * max(self.n_ops, 1)


def clock_ns():
    """What timing adds to an op: the median of 1,001 walks over no ops, each between two readings of the clock."""
    cdef int64_t i, bad = 0
    cdef int32_t kind = 0
    cdef int64_t start = 0, number = 0
    cdef Frame f
    spent = np.empty(1001, np.int64)
    cdef int64_t *data = <int64_t *> cnp.PyArray_DATA(<cnp.ndarray> spent)
    cdef int64_t before = now_ns(), after
    for i in range(1001):
        walk(0, &kind, &start, &number, &f, &bad)
        after = now_ns()
        data[i] = after - before
        before = after
    return float(np.median(spent))


cdef int walk_timed(int64_t n_ops, const int32_t *kinds, const int64_t *starts, const int64_t *integers, Frame *f,
                    int64_t *bad, int64_t *ns) noexcept nogil:
    """`walk`, op by op; writes the time of each to `ns`."""
    cdef int64_t i, before = now_ns(), after
    cdef int failed
    for i in range(n_ops):
        failed = walk(1, kinds + i, starts + i, integers, f, bad)
        if failed >= 0:
            return <int> i + failed
        after = now_ns()
        ns[i] = after - before
        before = after
    return -1
