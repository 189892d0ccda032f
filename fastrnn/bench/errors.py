"""Errors of a benchmark as a whole, not of a single engine."""

from ..errors import FastRNNError


class BenchError(FastRNNError):
    """The benchmark can't be run as asked, or a record can't be read."""
