"""The vocabulary: what a model means, free of machine and of length.

types.py        Graph, Node, Value and what every op means
validation.py   `validate`: what every later stage relies on
dims.py         sizes that depend on batch and time
cells.py        the known recurrent cells: gates, activations, order of weights
shapes.py       dims and dtype of every op's outputs
windows.py      one spatial axis of a window
loops.py        which nodes are on a cycle
casts.py        which numbers of callers are taken as a value's dtype
artifact.py     Graph <-> `.fastrnn`
reference/      the float64 NumPy meaning of every op: the oracle
"""

from .types import BINARY, COMPARISONS, DTYPES, OPS, UNARY, Graph, Node, Value
from .validation import check_required, validate

__all__ = [
    "BINARY",
    "COMPARISONS",
    "DTYPES",
    "OPS",
    "UNARY",
    "Graph",
    "Node",
    "Value",
    "check_required",
    "validate",
]
