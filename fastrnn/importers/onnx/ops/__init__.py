"""The operators, one file per family. Importing this package fills the registry."""

from . import (
    attention,
    casts,
    einsum,
    elementwise,
    indexing,
    norms,
    positions,
    products,
    quantised,
    recurrence,
    recurrent,
    resize,
    scatter,
    sequences,
    shaping,
    windows,
)

__all__ = [
    "attention",
    "casts",
    "einsum",
    "elementwise",
    "indexing",
    "norms",
    "positions",
    "products",
    "quantised",
    "recurrence",
    "recurrent",
    "resize",
    "scatter",
    "sequences",
    "shaping",
    "windows",
]
