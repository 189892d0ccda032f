"""What goes wrong in a benchmark that is no single engine's fault."""

from ..errors import FastRNNError


class BenchError(FastRNNError):
    """The benchmark can't be run as asked, or a record can't be read."""
