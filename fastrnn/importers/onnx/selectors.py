"""Inputs that select a branch of an `If`, such as the sample rate of a voice detector.

The graph depends on their values, so the walk can't continue without one. It reports them here, and the caller imports
the file again with `bind=`, once for each value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from ...errors import UnsupportedError
from ...records import dataclass
from .reading import files
from .reading.values import Live

MOST_ELEMENTS = 8  # of a selector: a switch or a rate, not data
_DTYPES = ("bool", "int32", "int64")


@dataclass(frozen=True)
class Selector:
    """An input whose value decides the condition of an `If`.

    dims : ints, as the file declares them. candidates : arrays of that shape, the likeliest first: the numbers in the
    condition's comparisons, and their neighbours.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    candidates: tuple[np.ndarray, ...]


class UndecidedError(UnsupportedError):
    """A branch of the file depends on inputs without a value.

    selectors : tuple of Selector, one per input. problems : those of `UnsupportedError`; `only_undecided` says whether
    the missing values are the only problem.
    """

    def __init__(self, problems, where: str, selectors: tuple[Selector, ...], only_undecided: bool):
        super().__init__(problems, where)
        self.selectors = selectors
        self.only_undecided = only_undecided


class Undecided:
    """What the walks over one file learned about its open conditions."""

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Forget the last walk."""
        self._constants: dict[str, list[np.ndarray]] = {}  # input -> the constants it is compared with
        self._count = 0
        self._data = False

    def note(self, ctx, condition, infos: Sequence[onnx.ValueInfoProto]) -> list[str]:
        """Record an open condition; returns the names of the inputs it depends on."""
        names, constants = _cone(ctx, condition, {info.name for info in infos})
        self._count += 1
        for info in infos:
            if info.name in names:
                self._constants.setdefault(info.name, []).extend(constants)
                self._data |= _dims(info) is None
        return [info.name for info in infos if info.name in names]

    def can_bind(self, ctx, value, infos: Sequence[onnx.ValueInfoProto]) -> bool:
        """Whether a live value depends on inputs that may be selectors, and on nothing else."""
        names, _ = _cone(ctx, value, {info.name for info in infos})
        return bool(names) and all(_dims(info) is not None for info in infos if info.name in names)

    def error(self, problems: list[str], where: str, infos: Sequence[onnx.ValueInfoProto]) -> UnsupportedError:
        """The error for a walk with these problems: an `UndecidedError` if values of small inputs can resolve it."""
        if not self._constants or self._data:
            return UnsupportedError(problems, where)
        found = tuple(_selector(info, self._constants[info.name]) for info in infos if info.name in self._constants)
        return UndecidedError(problems, where, found, len(problems) == self._count)


def _cone(ctx, condition, inputs: set[str]) -> tuple[set[str], list[np.ndarray]]:
    """The inputs that a live value depends on, and the small constants in its computation."""
    needed = {condition.name} if isinstance(condition, Live) else set()
    for _, _, given, made, _ in reversed(ctx.nodes):
        if needed & set(made):
            needed |= {i for i in given if i}
    small = [a for name, a in ctx.constants.items() if name in needed and a.size <= MOST_ELEMENTS]
    return needed & inputs, [a for a in small if a.dtype.kind in "biu"]


def _dims(info: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """The dims of an input that can be a selector; None for any other."""
    kind = info.type.tensor_type
    if kind.elem_type not in files.NUMERIC or files.NUMERIC[kind.elem_type].name not in _DTYPES:
        return None
    dims = tuple(d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim)
    return dims if all(d > 0 for d in dims) and math.prod(dims) <= MOST_ELEMENTS else None


def _selector(info: onnx.ValueInfoProto, constants: list[np.ndarray]) -> Selector:
    dims, dtype = _dims(info), files.NUMERIC[info.type.tensor_type.elem_type]
    assert dims is not None
    numbers = [int(v) for array in constants for v in array.flat]
    numbers = numbers + [n + d for n in numbers for d in (1, -1)] + [1, 0]
    if dtype.kind != "b":
        ends = np.iinfo(dtype)
        numbers = [n for n in numbers if ends.min <= n <= ends.max]
    else:
        numbers = [int(bool(n)) for n in numbers]
    candidates = tuple(np.full(dims, n, dtype) for n in dict.fromkeys(numbers))
    return Selector(info.name, dtype.name, dims, candidates)
