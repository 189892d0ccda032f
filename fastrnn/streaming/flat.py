"""What a step of a value consists of, for the names of meanings (meaning.py).

An `Atom` is what one node makes at one step: some elements under one name. A value at one step is a list of elements of
atoms, in row-major order: a transpose, reshape, slice, concat or expand makes no atom, it lists the elements of others.
So a value has the same name however the file arranges it: batch first or time first, with axes of one element or
without, cut and joined again.
"""

from __future__ import annotations

from math import prod

import numpy as np

from ..graph.digests import array_name, named
from ..records import dataclass

_SHIFT = 32  # an element is number of the atom << 32 | index in it
_INDEX = (1 << _SHIFT) - 1
ALONG_TIME = ("last", "cut")  # functions that take another step of each element, and leave constants as they are


@dataclass(frozen=True)
class Atom:
    """name: of what it means; size: its elements; array: its elements, if they are constant; cell: it is the output of
    a cell, or (last) the state that the cell ends with; threaded: it is a state that a caller begins with; end_of: the
    number of the atom of whose steps it is the last."""

    name: bytes
    size: int
    array: np.ndarray | None = None
    cell: bool = False
    last: bool = False
    threaded: bool = False
    end_of: int | None = None


@dataclass(frozen=True)
class Flat:
    """A value at one step: `elements` int64 [dims...], or `array` if it is constant, or only a name if its sizes are
    not known."""

    dtype: str
    elements: np.ndarray | None = None
    array: np.ndarray | None = None
    name: bytes | None = None

    @property
    def known(self) -> bool:
        """Whether its elements are known."""
        return self.elements is not None or self.array is not None

    @property
    def dims(self) -> tuple:
        return (self.array if self.elements is None else self.elements).shape


class Atoms:
    """Every atom of a graph, and the names of lists of their elements."""

    def __init__(self):
        self.all: list[Atom] = []
        self._derived: dict[tuple, int] = {}
        self._names: dict[int, tuple[np.ndarray, bytes]] = {}

    def make(self, name: bytes, dims: tuple, dtype: str, **about) -> Flat:
        """A new atom of these dims."""
        size = prod(dims)
        self.all.append(Atom(name, size, **about))
        start = (len(self.all) - 1) << _SHIFT
        return Flat(dtype, np.arange(start, start + size, dtype=np.int64).reshape(dims))

    def elements(self, flat: Flat) -> np.ndarray:
        """Its elements, int64; those of a constant become an atom."""
        if flat.elements is not None:
            return flat.elements
        array = flat.array
        assert array is not None
        made = self.make(b"", array.shape, flat.dtype, array=array.reshape(-1))
        assert made.elements is not None
        return made.elements

    def of(self, elements: np.ndarray) -> list[Atom]:
        """The atoms of a list of elements, each once, in the order in which they first appear."""
        return [self.all[k] for k in _first_seen(elements.reshape(-1) >> _SHIFT)]

    def derived(self, flat: Flat, *how) -> Flat:
        """What a function of single elements makes of them: an atom for each of theirs, its elements in their places.
        how: names the function."""
        elements = self.elements(flat)
        result = elements.copy()
        numbers = elements >> _SHIFT
        for k in _first_seen(numbers.reshape(-1)):
            atom = self.all[k]
            if atom.array is not None and how[0] in ALONG_TIME:
                continue
            if (k, how) not in self._derived:
                name = constant_name(atom.array, flat.dtype) if atom.array is not None else atom.name
                ends = how == ("last",)
                made = Atom(named(*how, name), atom.size, last=atom.cell and ends, end_of=k if ends else None)
                self.all.append(made)
                self._derived[k, how] = len(self.all) - 1
            result[numbers == k] += (self._derived[k, how] - k) << _SHIFT
        return Flat(flat.dtype, result)

    def before_end(self, flat: Flat) -> Flat | None:
        """The value of whose steps this is the last; None if some of its elements are something else."""
        if flat.elements is None:
            return None
        numbers = flat.elements >> _SHIFT
        sources = {k: self.all[k].end_of for k in _first_seen(numbers.reshape(-1))}
        if not sources or any(source is None for source in sources.values()):
            return None
        result = flat.elements.copy()
        for k, source in sources.items():
            result[numbers == k] += ((source or 0) - k) << _SHIFT
        return Flat(flat.dtype, result)

    def name(self, flat: Flat) -> bytes:
        """What a value is called: the name of its atom if it is just that, of a list of elements otherwise."""
        if flat.name is not None:
            return flat.name
        if flat.array is not None:
            return constant_name(flat.array, flat.dtype)
        elements = flat.elements
        assert elements is not None
        known = self._names.get(id(elements))
        if known is None or known[0] is not elements:
            known = self._names[id(elements)] = elements, self._named(elements.reshape(-1), flat.dtype)
        return known[1]

    def _named(self, elements: np.ndarray, dtype: str) -> bytes:
        numbers, index = elements >> _SHIFT, elements & _INDEX
        order = _first_seen(numbers)
        if len(order) == 1 and self.all[order[0]].array is None and self.all[order[0]].size == elements.size:
            if np.array_equal(index, np.arange(elements.size)):
                return self.all[order[0]].name
        arrays = {k: a for k in order if (a := self.all[k].array) is not None}
        if len(arrays) == len(order):
            return constant_name(_gathered(numbers, index, arrays, dtype), dtype)
        live = [k for k in order if k not in arrays]
        names: dict[bytes, int] = {}
        place = {k: names.setdefault(self.all[k].name, len(names)) for k in live}
        where = np.full(elements.size, -1, np.int64)
        for k in live:
            mine = numbers == k
            where[mine] = place[k] << _SHIFT | index[mine]
        held = _gathered(numbers[where < 0], index[where < 0], arrays, dtype) if arrays else np.zeros(0, dtype)
        return named("elements", *names, array_name(where), constant_name(held, dtype))


def constant_name(array: np.ndarray, dtype: str) -> bytes:
    """The name of constant elements: how many, and their bits; their arrangement does not matter."""
    plain = np.ascontiguousarray(array).reshape(-1)
    bits = plain.view(np.uint8).reshape(plain.size, -1) if plain.size else np.zeros((0, 1), np.uint8)
    if plain.size > 1 and (bits == bits[0]).all():
        return named("all", dtype, plain.size, bits[0].tobytes())
    if plain.size * plain.itemsize < 64:
        return named("all" if plain.size == 1 else "some", dtype, plain.size, plain.tobytes())
    return named("some", dtype, plain.size, array_name(plain))


def _first_seen(numbers: np.ndarray) -> list[int]:
    if not numbers.size:
        return []
    if (numbers == numbers[0]).all():
        return [int(numbers[0])]
    found, first = np.unique(numbers, return_index=True)
    return [int(k) for k in found[np.argsort(first)]]


def _gathered(numbers: np.ndarray, index: np.ndarray, arrays: dict[int, np.ndarray], dtype: str) -> np.ndarray:
    """The numbers at these elements of constants."""
    out = np.zeros(numbers.size, dtype)
    for k, array in arrays.items():
        mine = numbers == k
        out[mine] = array[index[mine]]
    return out
