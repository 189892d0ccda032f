"""The operators, a file per family. Importing this package fills the registry."""

from . import (
    attention,
    einsum,
    elementwise,
    indexing,
    norms,
    positions,
    products,
    quantised,
    recurrent,
    resize,
    scatter,
    sequences,
    shaping,
    windows,
)

__all__ = [
    "attention",
    "einsum",
    "elementwise",
    "indexing",
    "norms",
    "positions",
    "products",
    "quantised",
    "recurrent",
    "resize",
    "scatter",
    "sequences",
    "shaping",
    "windows",
]
