"""The packed weights of a model."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np

from ..graph.precision import meant_by
from ..machine import _isa, pages

if TYPE_CHECKING:
    from ..machine.packed_files import Store


AT_ONCE = 128 << 10  # bytes that are widened in one go: what NumPy makes on the way is small


class Weights:
    """Packed weights of one model for one instruction set, shared by its plans.

    store : where processes share them; None: they are this process's own
    """

    def __init__(self, isa: str | None = None, store: Store | None = None):
        self.isa, self.store = isa or _isa.isa_info()["active"], store
        self._packed: dict[tuple, object] = {}

    def cell(self, spec, arrays: tuple, precision: str, scales: tuple, key: tuple):
        """The packed cell of these weights; packed at the first call with this key. arrays: W, R, Wb, Rb, P, the first
        two as `precision` holds them, with the scales of their columns."""
        if key not in self._packed:
            (W, R), store = self._float32("cell", arrays[:2], precision, scales)
            self._packed[key] = _isa.pack_cell(spec, W, R, *arrays[2:], self.isa, precision, *scales, store)
        return self._packed[key]

    def linear(self, W, bias, precision: str, scale, key: tuple):
        """The packed product of these weights; packed at the first call with this key. W: as `precision` holds it, with
        the scales of its columns."""
        if key not in self._packed:
            (W,), store = self._float32("linear", (W,), precision, (scale,))
            self._packed[key] = _isa.pack_linear(W, bias, self.isa, precision, scale, store)
        return self._packed[key]

    def _float32(self, op: str, held: tuple, precision: str, scales: tuple) -> tuple:
        """(What packing reads in place of the held weights, the store to pass along with them)."""
        if precision == "float32":
            return held, self.store
        wide = _Wide(op, held, precision, scales, self.store)
        if self.store is None:
            wide.fill()
        return wide.arrays, None if self.store is None else wide

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in list(self._packed.values()))  # another thread may be packing


class _Wide:
    """The float32 weights that held ones mean, in memory that is written only if they must be packed; and the store
    that decides that. Memory is taken when it is first written to.

    arrays : the float32 weights
    """

    def __init__(self, op: str, held: tuple, precision: str, scales: tuple, store: Store | None):
        self._held, self._how, self._scales, self._store = held, (op, precision), scales, store
        self.arrays = tuple(_float32_like(array) for array in held)

    def fill(self) -> None:
        """Widen the held weights, a few rows at a time."""
        op, precision = self._how
        for array, held, scale in zip(self.arrays, self._held, self._scales, strict=True):
            rows = max(1, AT_ONCE * len(array) // max(array.nbytes, 1))
            for begin in range(0, len(array), rows):
                part = slice(begin, begin + rows)
                own = scale[part] if op == "cell" and scale is not None else scale  # of a cell, a column is a row of W
                array[part] = meant_by(op, held[part], precision, own)
        pages.give_back(*self._held)

    def packed(self, what: tuple, arrays: tuple, nbytes: int, pack) -> np.ndarray | None:
        """As `Store.packed`: under the name of the held weights."""

        def filled() -> np.ndarray:
            self.fill()
            return pack()

        assert self._store is not None
        found = self._store.packed(what, (*self._held, *arrays[len(self._held) :]), nbytes, filled)
        if found is None:  # private memory, which the caller packs into
            self.fill()
        return found


def _float32_like(held: np.ndarray) -> np.ndarray:
    """Memory for as many float32. If large, it goes back to the system with the array: the allocator of C would keep up
    to 32 MB of such blocks for itself."""
    if 4 * held.size < pages.SMALL:
        return np.empty(held.shape, np.float32)
    try:
        return np.frombuffer(mmap.mmap(-1, 4 * held.size), np.float32).reshape(held.shape)
    except OSError:
        raise MemoryError(f"{4 * held.size} bytes for weights in float32") from None
