"""The kinds of abstract values during a walk over a file."""

from __future__ import annotations

import numpy as np

from ....graph.dims import Dim
from ....records import dataclass


@dataclass(frozen=True)
class Const:
    """A known array."""

    array: np.ndarray

    @property
    def dims(self) -> tuple:
        return self.array.shape


@dataclass(frozen=True)
class Ints:
    """Integers, some of them `Dim`s: results of Shape and of arithmetic on it. array: dtype object."""

    array: np.ndarray

    @property
    def dims(self) -> tuple:
        return self.array.shape


@dataclass(frozen=True)
class Fill:
    """One number (or `Dim`) repeated over dims that may be symbolic: a zero state before its batch is known."""

    value: object  # a NumPy scalar, or a Dim
    dtype: np.dtype
    dims: tuple


@dataclass(frozen=True)
class Live:
    """A value that depends on the inputs: an edge of the graph under construction."""

    name: str
    dtype: str
    dims: tuple


@dataclass(frozen=True)
class Items:
    """A tensor sequence made by SplitToSequence: `parts` in order, or all single steps of `source` along `axis`."""

    source: Live
    axis: int
    keepdims: bool


@dataclass(frozen=True)
class Collected:
    """A tensor sequence put together from values."""

    parts: tuple


@dataclass(frozen=True)
class Growing:
    """A tensor sequence that a loop builds: the values that one step puts in front of it and after it."""

    before: tuple = ()
    after: tuple = ()


@dataclass(frozen=True)
class Quantized:
    """Integers of type `dtype`, held exactly as float32 in `value`. Operators that don't know it get them as integers.

    rounded: False for the result of a DynamicQuantizeLinear that is left out: `value` is not rounded, and only integer
    products whose result is scaled back may read it.
    """

    value: Live
    dtype: str
    rounded: bool = True

    @property
    def dims(self) -> tuple:
        return self.value.dims


class UnknownValue:
    """The output of an unsupported node; values that depend on it are not examined further."""

    dims = ()


UNKNOWN = UnknownValue()


def ints(values) -> Const | Ints:
    """A 1-D array of ints and Dims as the simplest abstract value."""
    return simplest(np.array(list(values) + [None], dtype=object)[:-1])


def simplest(array) -> Const | Ints:
    """An object array as a Const if nothing in it is symbolic, else as Ints."""
    box = np.empty((), dtype=object)
    if not isinstance(array, np.ndarray):
        box[()] = array
        array = box
    if any(isinstance(v, Dim) for v in array.flat):
        return Ints(array)
    return Const(array.astype(np.int64))


def scalar(value) -> Const | Ints:
    """An int or a Dim as a value without axes."""
    box = np.empty((), dtype=object)
    box[()] = value
    return simplest(box)


def as_objects(value: Const | Ints) -> np.ndarray:
    """The entries as Python ints and Dims, in an object array."""
    return value.array if isinstance(value, Ints) else value.array.astype(object)


def uniform(value) -> object | None:
    """The number that a Const or Fill holds everywhere, or None if it is not uniform."""
    if isinstance(value, Fill):
        return value.value
    if isinstance(value, Const) and value.array.size:
        first = value.array.flat[0]
        if value.array.size == 1 or (value.array == first).all():
            return first
    return None


class Widen(Exception):
    """A carried value that begins as one constant row stands beside `rows` rows in the body: it must have as many."""

    def __init__(self, name: str, rows: Dim):
        super().__init__(name)
        self.name, self.rows = name, rows
