"""Products: `linear` by constant weights, `matmul` of any two values."""

from __future__ import annotations

import numpy as np

from ...errors import ShapeError
from ..precision import meant
from ..shapes import broadcast, check_precision
from ..vocabulary import ANY_FLOAT, PRECISION, Attribute, Meeting, graph_op
from .elementwise import UNARY, unary


def _linear_dims(inputs, attrs):
    x, w = inputs[:2]
    if len(w.dims) != 2 or not x.dims or x.dims[-1] != w.dims[0]:
        raise ShapeError(f"x must end in the {w.dims[0]} of W, got {x} and {w}")
    if len(inputs) > 2 and inputs[2] is not None and inputs[2].dims != w.dims[1:]:
        raise ShapeError(f"bias must be [{w.dims[1]}], got {inputs[2]}")
    if len(inputs) > 3 and inputs[3] is not None and inputs[3].dims != w.dims[1:]:
        raise ShapeError(f"scale must be [{w.dims[1]}], got {inputs[3]}")
    check_precision(attrs, inputs[1:2], inputs[3:4])
    return [(x.dtype, (*x.dims[:-1], w.dims[1]))]


@graph_op(
    "linear(x, W, bias?, scale?)",
    attrs={
        "activation": Attribute((str, type(None))).among(*UNARY, None),
        "alpha": ANY_FLOAT,
        "beta": ANY_FLOAT,
        "precision": PRECISION,
    },
    dims=_linear_dims,
    meets=Meeting(lambda attrs, rank: (rank - 1,), "sums over {symbol}"),
    weights=True,
)
def _linear(x, W, bias, scale, activation, alpha, beta, precision):
    """x[..,K], W[K,N], bias[N], scale[N] -> [..,N]; all but x constant. activation: the name of a unary function, or
    None. precision: how W is held (graph/precision.py); its meaning rounds nothing else."""
    W = meant(W, precision, 0, scale)
    y = x @ W if bias is None else x @ W + bias
    return y if activation is None else unary(activation, y, alpha, beta)


def _matmul_dims(inputs, attrs):
    a, b = inputs
    if not a.dims or not b.dims:
        raise ShapeError(f"matmul of a scalar: {a}, {b}")
    left = a.dims if len(a.dims) > 1 else (1, *a.dims)
    right = b.dims if len(b.dims) > 1 else (*b.dims, 1)
    if left[-1] != right[-2]:
        raise ShapeError(f"matmul of {a} and {b}: {left[-1]} is not {right[-2]}")
    out = broadcast(left[:-2], right[:-2])
    out += (left[-2],) if len(a.dims) > 1 else ()
    out += (right[-1],) if len(b.dims) > 1 else ()
    return [(a.dtype, out)]


@graph_op("matmul(a, b)", dims=_matmul_dims)
def _matmul(a, b):
    """numpy.matmul(a, b); neither needs to be constant."""
    return np.matmul(a, b)
