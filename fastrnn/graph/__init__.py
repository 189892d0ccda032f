"""The vocabulary: what a model means, free of machine and of length.

types.py        Graph, Node, Value
vocabulary.py   what an op is: one row of a table
registry.py     tables of functions
ops/            the rows, one file per family: inputs, attributes, dims and float64 meaning of every op
validation.py   `validate`: what every later stage relies on
dims.py         sizes that depend on batch and time
cells.py        the known recurrent cells: gates, activations, order of weights
shapes.py       dims and dtype of every op's outputs
windows.py      one spatial axis of a window
loops.py        which nodes are on a cycle
tails.py        which states are the last steps of a sequence, that a caller hands on
casts.py        which numbers of callers are taken as a value's dtype
artifact.py     Graph <-> `.fastrnn`
reference.py    the float64 meaning of a graph: the oracle
"""

from .ops.elementwise import BINARY, COMPARISONS, UNARY
from .types import DTYPES, INTEGERS, Graph, Node, Value
from .validation import check_required, validate
from .vocabulary import ROWS

OPS = ROWS.keys()

__all__ = [
    "BINARY",
    "COMPARISONS",
    "DTYPES",
    "INTEGERS",
    "OPS",
    "UNARY",
    "Graph",
    "Node",
    "Value",
    "check_required",
    "validate",
]
