# cython: language_level=3, cdivision=True
"""What calls cost, counted while they run: log-scale histograms that take a few nanoseconds per call.

Nothing is locked. Counters are written with the GIL held, or by the one thread that has the stream or pool. A reader
may see a call's count before its time.
"""

from libc.stdint cimport int64_t


cdef class Histogram:
    """Counts of positive values by size, 4 buckets per power of two, so that a quantile is right to 12 %.

    unit : what the number 1 means in `as_dict`: 1e-9 if nanoseconds are counted
    first, last : powers of two that are the first and the last bound of `buckets`
    """

    def __init__(self, double unit=1.0, int first=0, int last=20):
        self.unit, self.first, self.last = unit, first, last

    def add(self, double value):
        """Count a value."""
        self.put(<int64_t> (value / self.unit))

    def quantile(self, double share):
        """The value below which this share of the counts lies, None without any."""
        cdef int64_t left = <int64_t> (share * self.count)
        cdef int i
        for i in range(BUCKETS):
            left -= self.counts[i]
            if self.counts[i] and left < 0:
                return 0.5 * (lower(i) + lower(i + 1)) * self.unit
        return None

    def as_dict(self):
        """JSON-able: count, sum, p50, p99, and `buckets`, a list of [upper bound, counts up to it] by powers of two."""
        cdef int i, power
        cdef int64_t seen = 0
        buckets = []
        for power in range(self.last):
            for i in range(power * PARTS, (power + 1) * PARTS):
                seen += self.counts[i]
            if power + 1 >= self.first:
                buckets.append([2.0 ** (power + 1) * self.unit, seen])
        return {"count": self.count, "sum": self.total * self.unit, "p50": self.quantile(0.5),
                "p99": self.quantile(0.99), "buckets": buckets}


def seconds():
    """A histogram of times, with bounds from 1 us to 17 s."""
    return Histogram(1e-9, 10, 34)


cdef double lower(int i):
    """The least value of a bucket."""
    return 2.0 ** (i // PARTS) * (1 + <double> (i % PARTS) / PARTS)


cdef class Meter:
    """Calls, rows and steps; and of every 64th call its time and rows."""

    def __init__(self):
        self.seconds, self.batch_size = seconds(), Histogram()

    def as_dict(self):
        """JSON-able: calls, rows, steps, and the histograms `seconds` and `batch_size` of every 64th call."""
        return {"calls": self.calls, "rows": self.rows, "steps": self.steps, "seconds": self.seconds.as_dict(),
                "batch_size": self.batch_size.as_dict()}


def merged(meters):
    """One Meter with the counts of all."""
    cdef Meter found = Meter(), meter
    for meter in meters:
        found.calls += meter.calls
        found.rows += meter.rows
        found.steps += meter.steps
        add(found.seconds, meter.seconds)
        add(found.batch_size, meter.batch_size)
    return found


cdef void add(Histogram to, Histogram other) noexcept:
    cdef int i
    to.count += other.count
    to.total += other.total
    for i in range(BUCKETS):
        to.counts[i] += other.counts[i]
