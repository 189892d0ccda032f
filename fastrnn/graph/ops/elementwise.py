"""Elementwise ops, which broadcast as NumPy does, and the functions that `unary` and `binary` apply."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ...errors import ShapeError
from ..shapes import broadcast, same_dims
from ..types import DTYPES, INTEGERS, WIDE
from ..vocabulary import ANY_FLOAT, ELEMENTWISE, TEXT, graph_op

# ---- functions -------------------------------------------------------------------------------------------------------


def _sigmoid(x):
    # Each half is computed from exp of a negative number, so neither overflows.
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _erf(x):
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _normal_cdf(x):
    # Phi(x) = erfc(-x / sqrt(2)) / 2 keeps its digits; 1 + erf would cancel.
    return np.vectorize(lambda v: math.erfc(-v / math.sqrt(2)) / 2, otypes=[np.float64])(x)


def _clip(x, low, high):
    if x.dtype.kind in "iu":  # bounds of integers are integers, and may be infinite
        info = np.iinfo(x.dtype)
        low = info.min if low <= info.min else math.ceil(low)
        high = info.max if high >= info.max else math.floor(high)
    return np.minimum(np.maximum(x, low), high)


# Functions of (x, alpha, beta). fastrnn.graph.cells.ACTIVATIONS has those that a cell may name, and their defaults.
_UNARY: dict[str, Callable] = {
    "relu": lambda x, a, b: np.maximum(x, 0),
    "tanh": lambda x, a, b: np.tanh(x),
    "sigmoid": lambda x, a, b: _sigmoid(x),
    "affine": lambda x, a, b: a * x + b,
    "leaky_relu": lambda x, a, b: np.where(x >= 0, x, a * x),
    "thresholded_relu": lambda x, a, b: np.where((x >= a) | np.isnan(x), x, 0.0),  # NaN stays NaN
    "scaled_tanh": lambda x, a, b: a * np.tanh(b * x),
    "hard_sigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "elu": lambda x, a, b: np.where(x >= 0, x, a * np.expm1(x)),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "softplus": lambda x, a, b: _softplus(x),
    "neg": lambda x, a, b: -x,
    "abs": lambda x, a, b: np.abs(x),
    "exp": lambda x, a, b: np.exp(x),
    "log": lambda x, a, b: np.log(x),
    "sqrt": lambda x, a, b: np.sqrt(x),
    "recip": lambda x, a, b: 1 / x,
    "sign": lambda x, a, b: np.sign(x),
    "floor": lambda x, a, b: np.floor(x),
    "ceil": lambda x, a, b: np.ceil(x),
    "round": lambda x, a, b: np.rint(x),  # halves to even
    "erf": lambda x, a, b: _erf(x),
    "sin": lambda x, a, b: np.sin(x),
    "cos": lambda x, a, b: np.cos(x),
    "tan": lambda x, a, b: np.tan(x),
    "asin": lambda x, a, b: np.arcsin(x),
    "acos": lambda x, a, b: np.arccos(x),
    "atan": lambda x, a, b: np.arctan(x),
    "sinh": lambda x, a, b: np.sinh(x),
    "cosh": lambda x, a, b: np.cosh(x),
    "asinh": lambda x, a, b: np.arcsinh(x),
    "acosh": lambda x, a, b: np.arccosh(x),
    "atanh": lambda x, a, b: np.arctanh(x),
    "not": lambda x, a, b: np.logical_not(x),
    "bit_not": lambda x, a, b: np.invert(x),
    "selu": lambda x, a, b: b * np.where(x > 0, x, a * np.expm1(x)),
    "gelu": lambda x, a, b: x * _normal_cdf(x),
    "gelu_tanh": lambda x, a, b: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x, a, b: x * _sigmoid(x),
    "hard_swish": lambda x, a, b: x * np.clip(x + 3, 0, 6) / 6,
    "mish": lambda x, a, b: x * np.tanh(_softplus(x)),
    "clip": _clip,
}


def divide(a, b):
    """a / b; integer division truncates towards zero, as in ONNX."""
    if a.dtype.kind in "iu":
        return a // b + ((a % b != 0) & ((a < 0) != (b < 0)))
    return a / b


_BINARY: dict[str, Callable] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": divide,
    "pow": np.power,
    "min": np.minimum,
    "max": np.maximum,
    "mod": np.mod,  # the result has the sign of b
    "fmod": np.fmod,  # the result has the sign of a
    "equal": np.equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "bit_and": np.bitwise_and,
    "bit_or": np.bitwise_or,
    "bit_xor": np.bitwise_xor,
    "shift_left": np.left_shift,  # 0 if b is negative or at least the number of bits
    "shift_right": np.right_shift,  # the same, but -1 for a negative a: copies of the sign come in
    "prelu": lambda x, slope: np.where(x >= 0, x, slope * x),
}


UNARY = frozenset(_UNARY)
BINARY = frozenset(_BINARY)
COMPARISONS = frozenset("equal greater greater_equal less less_equal and or xor".split())
BITWISE = frozenset("bit_not bit_and bit_or bit_xor shift_left shift_right".split())


def unary(fn: str, x: np.ndarray, alpha: float = 0.0, beta: float = 0.0) -> np.ndarray:
    """Apply the function `fn` of graph.UNARY to each element of x (float64, integers or bool; any shape)."""
    with np.errstate(all="ignore"):
        return _UNARY[fn](np.asarray(x), alpha, beta)


def binary(fn: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Apply the function `fn` of graph.BINARY to a and b, broadcast as NumPy does."""
    with np.errstate(all="ignore"):
        return _BINARY[fn](np.asarray(a), np.asarray(b))


# ---- ops -------------------------------------------------------------------------------------------------------------


def _check_bitwise(value, fn: str) -> None:
    if fn in BITWISE and value.dtype not in INTEGERS:
        raise ShapeError(f"{fn} of {value.dtype}")


def _unary_dims(inputs, attrs):
    _check_bitwise(inputs[0], attrs["fn"])
    return same_dims(inputs, attrs)


@graph_op(
    "unary(x)",
    attrs={"fn": TEXT.among(*UNARY), "alpha": ANY_FLOAT, "beta": ANY_FLOAT},
    dims=_unary_dims,
    meets=ELEMENTWISE,
)
def _unary_op(x, fn, alpha, beta):
    """fn of each element. Functions without alpha or beta ignore them."""
    return unary(fn, x, alpha, beta)


def _binary_dims(inputs, attrs):
    a, b = inputs
    if a.dtype != b.dtype:
        raise ShapeError(f"{attrs['fn']} of {a.dtype} and {b.dtype}")
    _check_bitwise(a, attrs["fn"])
    return [("bool" if attrs["fn"] in COMPARISONS else a.dtype, broadcast(a.dims, b.dims))]


@graph_op("binary(a, b)", attrs={"fn": TEXT.among(*BINARY)}, dims=_binary_dims, meets=ELEMENTWISE)
def _binary_op(a, b, fn):
    """fn of each pair of elements."""
    return binary(fn, a, b)


_BITS = TEXT.among(*DTYPES.keys() - {"bool"})


def _where_dims(inputs, attrs):
    condition, a, b = inputs
    if condition.dtype != "bool" or a.dtype != b.dtype:
        raise ShapeError(f"where of {condition.dtype}, {a.dtype}, {b.dtype}")
    return [(a.dtype, broadcast(condition.dims, a.dims, b.dims))]


@graph_op("where(condition, a, b)", dims=_where_dims, meets=ELEMENTWISE)
def _where(condition, a, b):
    """a if the bool condition holds, else b."""
    return np.where(condition, a, b)


@graph_op(
    "cast(x)",
    attrs={"to": TEXT.among(*DTYPES)},
    dims=lambda inputs, attrs: [(attrs["to"], inputs[0].dims)],
    meets=ELEMENTWISE,
)
def _cast(x, to):
    """x in another dtype: to bool x != 0; to integers towards zero. Integers that `to` can't hold wrap around. A float
    beyond int32 (int64 for 8 bytes) is its smallest number, of which a narrower type has the low bits.
    """
    if x.dtype.kind == "f" and to in INTEGERS:
        return _whole(x, to)
    return x.astype(WIDE[to])


def _whole(x: np.ndarray, to: str) -> np.ndarray:
    if to in ("uint64", "uint32"):  # the upper half: that of the signed type, moved up
        bits, dtype = np.iinfo(to).bits - 1, DTYPES[to]
        above = x >= 2.0**bits
        return _whole(np.where(above, x - 2.0**bits, x), to[1:]).astype(dtype) ^ (above.astype(dtype) << bits)
    half = 2.0 ** (63 if to == "int64" else 31)
    x = np.trunc(x)
    return np.where((x >= -half) & (x < half), x, -half).astype(np.int64).astype(DTYPES[to])


def _bitcast_dims(inputs, attrs):
    (x,), to = inputs, attrs["to"]
    if x.dtype != attrs["of"] or np.dtype(DTYPES[to]).itemsize != np.dtype(DTYPES[x.dtype]).itemsize:
        raise ShapeError(f"the bits of {x} ({attrs['of']}) as {to}")
    return [(to, x.dims)]


@graph_op("bitcast(x)", attrs={"of": _BITS, "to": _BITS}, dims=_bitcast_dims, meets=ELEMENTWISE)
def _bitcast(x, of, to):
    """The same bits, read as another dtype of as many bytes. of: the dtype of x; neither is bool."""
    return np.asarray(x, DTYPES[of]).view(DTYPES[to])
