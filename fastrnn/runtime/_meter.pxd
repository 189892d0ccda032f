"""Counters of calls, for the modules that count. See _meter.pyx."""

from libc.stdint cimport int64_t

from fastrnn.runtime._timing cimport now_ns

cdef enum:
    PARTS = 4  # buckets per power of two
    BUCKETS = 64 * PARTS
    EVERY = 64  # calls of which one is timed, a power of two: reading the clock twice takes 40 ns


cdef extern from *:
    int __builtin_clzll(unsigned long long x) nogil


cdef class Histogram:
    cdef readonly int64_t count
    cdef int64_t total
    cdef int64_t counts[BUCKETS]
    cdef double unit
    cdef int first, last

    cdef inline void put(self, int64_t value) noexcept nogil:
        """Count a value in units."""
        cdef int power
        if value < 1:
            value = 1
        power = 63 - __builtin_clzll(value)
        self.counts[power * PARTS + ((value - (<int64_t> 1 << power)) * PARTS >> power)] += 1
        self.count += 1
        self.total += value


cdef class Meter:
    cdef readonly int64_t calls, rows, steps
    cdef readonly Histogram seconds, batch_size

    cdef inline int64_t begin(self) noexcept nogil:
        """When a call began, if it is one of those that are timed; else 0."""
        self.calls += 1
        return now_ns() if self.calls & (EVERY - 1) == 1 else 0

    cdef inline void end(self, int64_t began, int64_t rows, int64_t steps) noexcept nogil:
        """Count a call of that many rows and steps per row."""
        self.rows += rows
        self.steps += rows * steps
        if began and rows > 0:
            self.seconds.put(now_ns() - began)
            self.batch_size.put(rows)
