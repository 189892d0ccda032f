"""Every elementwise function of the kernels with its float64 meaning: listing one here tests it.

`UNARY` and `BINARY` map a name to a `Case`; tests/kernels/ulp.json holds the largest error of each unary function on
each instruction set, in ULP. `python tests/kernels/function_cases.py` measures again and rewrites the entries of the
instruction sets that this CPU has (the table is checked by test_kernel_functions.py, so an error that grew shows).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TABLE = Path(__file__).parent / "ulp.json"
TINY = 2.0**-126  # the smallest normal float32; below it results count as zero
_erf = np.vectorize(math.erf, otypes=[float])


def _softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _sigmoid(x):
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def _mish(x):
    e = np.exp(np.minimum(x, 300))
    return np.where(x < 300, x * (e * (e + 2)) / (e * (e + 2) + 2), x)


@dataclass(frozen=True)
class Case:
    """One function: its float64 meaning, alpha and beta to try it with, and what holds of every result.

    low, high bound all results. odd: f(-x) is -f(x) to the bit. rising: never falls by more than its own error.
    by_argument: the error is measured in ULP of x, not of the result (x * Phi(x) cancels far below zero).
    """

    f: Callable
    alpha: float = 0.0
    beta: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    odd: bool = False
    rising: bool = False
    by_argument: bool = False


UNARY = {
    "identity": Case(lambda x: x, odd=True, rising=True),
    "neg": Case(lambda x: -x, odd=True),
    "abs": Case(np.abs, low=0),
    "exp": Case(np.exp, low=0, rising=True),
    "log": Case(np.log, rising=True),
    "sqrt": Case(np.sqrt, low=-0.0, rising=True),
    "recip": Case(lambda x: 1 / x, odd=True),
    "sign": Case(np.sign, low=-1, high=1, odd=True, rising=True),
    "floor": Case(np.floor, rising=True),
    "ceil": Case(np.ceil, rising=True),
    "round": Case(np.rint, odd=True, rising=True),
    "erf": Case(_erf, low=-1, high=1, odd=True, rising=True),
    "sin": Case(np.sin, low=-1, high=1, odd=True),
    "cos": Case(np.cos, low=-1, high=1),
    "tan": Case(np.tan, odd=True),
    "asin": Case(np.arcsin, low=-1.5708, high=1.5708, rising=True),
    "acos": Case(np.arccos, low=0, high=3.1416),
    "atan": Case(np.arctan, low=-1.5708, high=1.5708, odd=True, rising=True),
    "sinh": Case(np.sinh, odd=True, rising=True),
    "cosh": Case(np.cosh, low=1),
    "asinh": Case(np.arcsinh, odd=True, rising=True),
    "acosh": Case(np.arccosh, low=0, rising=True),
    "atanh": Case(np.arctanh, rising=True),
    "not": Case(lambda x: np.where(x == 0, 1.0, 0.0), low=0, high=1),
    "tanh": Case(np.tanh, low=-1, high=1, odd=True, rising=True),
    "sigmoid": Case(_sigmoid, low=0, high=1, rising=True),
    "relu": Case(lambda x: np.maximum(x, 0), low=0, rising=True),
    "affine": Case(lambda x: np.float64(np.float32(1.7)) * x + 0.25, 1.7, 0.25, rising=True, by_argument=True),
    "leaky_relu": Case(lambda x: np.where(x >= 0, x, np.float64(np.float32(0.3)) * x), 0.3, rising=True),
    "thresholded_relu": Case(lambda x: np.where((x >= 1.5) | np.isnan(x), x, 0.0), 1.5, low=0, rising=True),
    "scaled_tanh": Case(lambda x: 1.5 * np.tanh(0.75 * x), 1.5, 0.75, low=-1.5, high=1.5, odd=True, rising=True),
    "hard_sigmoid": Case(
        lambda x: np.clip(np.float64(np.float32(0.2)) * x + 0.5, 0, 1), 0.2, 0.5, 0, 1, rising=True, by_argument=True
    ),
    "elu": Case(lambda x: np.where(x >= 0, x, 0.75 * np.expm1(x)), 0.75, low=-0.75, rising=True),
    "selu": Case(lambda x: 1.25 * np.where(x > 0, x, 1.5 * np.expm1(x)), 1.5, 1.25, low=-1.875, rising=True),
    "softsign": Case(lambda x: x / (1 + np.abs(x)), low=-1, high=1, odd=True, rising=True),
    "softplus": Case(_softplus, low=0, rising=True),
    "gelu": Case(lambda x: x * (0.5 * (1 + _erf(x / math.sqrt(2)))), by_argument=True),
    "gelu_tanh": Case(lambda x: x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)), by_argument=True),
    "silu": Case(lambda x: x * _sigmoid(x), low=-0.2785),
    "hard_swish": Case(lambda x: x * np.clip(x + 3, 0, 6) / 6, low=-0.3751),
    "mish": Case(_mish, low=-0.309),
    "clip": Case(lambda x: np.clip(x, -0.5, 2), -0.5, 2.0, low=-0.5, high=2, rising=True),
}

BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power, "min": np.minimum,
    "max": np.maximum, "mod": np.mod, "equal": np.equal, "greater": np.greater, "greater_equal": np.greater_equal,
    "less": np.less, "less_equal": np.less_equal, "and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor,
    "prelu": lambda x, slope: np.where(x >= 0, x, slope * x),
}  # fmt: skip


def sweep(per_exponent: int = 200) -> np.ndarray:
    """float32 arguments over all exponents and both signs: per_exponent random mantissas each, and its ends."""
    rng = np.random.default_rng(20)
    exponents = np.repeat(np.arange(1, 255, dtype=np.uint32), per_exponent)
    mantissas = rng.integers(0, 1 << 23, exponents.size, dtype=np.uint32)
    mantissas[::per_exponent] = 0
    mantissas[1::per_exponent] = (1 << 23) - 1
    wide = ((exponents << 23) | mantissas).view(np.float32)
    dense = np.concatenate([np.linspace(0, 2, 20001), np.linspace(2, 110, 20001)]).astype(np.float32)  # where they bend
    both = np.concatenate([wide, dense])
    return np.unique(np.concatenate([both, -both, np.float32([0.0])]))


def ulp_errors(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|y - f(x)| in ULP of the float32 nearest to f(x) (or of x, if that is larger and the case says so).

    0 where both overflow, and where an intermediate may have been flushed: results below 2^-119 that are less than
    that apart. x, y : float32 arrays; a NaN on one side only counts as an infinite error.
    """
    case, flush = UNARY[name], 128 * TINY
    with np.errstate(all="ignore"):
        exact = case.f(x.astype(np.float64))
        size = np.abs(exact.astype(np.float32))
        unit = np.spacing(np.clip(np.maximum(size, np.abs(x)) if case.by_argument else size, TINY, 3e38))
        error = np.abs(y.astype(np.float64) - exact) / unit.astype(np.float64)
        over = np.isinf(y) & (np.abs(exact) > 2.0**128 - 2.0**103) & (np.sign(y) == np.sign(exact))
        flushed = (np.abs(exact) < flush) & (np.abs(y - exact) < flush)
        error = np.where(over | flushed | (y == exact) | (np.isnan(y) & np.isnan(exact)), 0.0, error)
    return np.where(np.isnan(error), np.inf, error)


def measure(isa: str) -> dict[str, float]:
    """The largest error of each unary function on one instruction set, rounded up to a hundredth."""
    from fastrnn.machine import _kernel_calls as calls

    x = sweep()
    worst = {}
    for name, case in UNARY.items():
        y = calls.map_function(name, x, case.alpha, case.beta, isa=isa)
        worst[name] = math.ceil(float(ulp_errors(name, x, y).max()) * 100) / 100
    return worst


if __name__ == "__main__":
    from fastrnn.machine import _isa

    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    for isa in [isa for isa in _isa.isa_info()["available"] if _isa.kernels_of(isa) == isa]:
        table[isa] = measure(isa)
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    for name in UNARY:
        print(f"{name:18}", *(f"{isa} {table[isa][name]:.2f}" for isa in sorted(table)))
