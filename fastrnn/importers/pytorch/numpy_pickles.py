"""NumPy arrays and numbers in a pickle, built from the pickle's own bytes: none of NumPy's code reads them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import ModelFormatError, UnsupportedError
from .saved import SavedTensor

_PLAIN = re.compile(r"[<>|=]?([fiu][1248]|b1)")


class Built:
    """An object whose content the pickle sets after it has made the object."""

    def build(self, unpickler, state) -> None:
        raise NotImplementedError


class PickledDtype(Built):
    """A dtype of numbers. Others are refused when an array needs them."""

    def __init__(self, name: str):
        self.name, self.order = name, "="

    def build(self, unpickler, state) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = state[1]

    def dtype(self, where: str) -> np.dtype:
        if not _PLAIN.fullmatch(self.name):
            raise UnsupportedError(f"a NumPy array of {self.name!r:.40}; arrays of numbers are read", where)
        name = self.name.lstrip("<>|=")
        return np.dtype("?" if name == "b1" else name).newbyteorder(self.order.replace("|", "="))


class PickledArray(SavedTensor, Built):
    """An array. It is empty until the pickle sets its content."""

    def __init__(self) -> None:
        super().__init__(np.empty(0, np.float32), "numpy")

    def build(self, unpickler, state) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ModelFormatError(f"{unpickler.where}: a NumPy array whose content is {state!r:.60}")
        _, shape, dtype, fortran, data = state
        object.__setattr__(self, "bits", _array(unpickler, shape, dtype, bool(fortran), data))


def _array(unpickler, shape, dtype, fortran: bool, data) -> np.ndarray:
    where = unpickler.where
    if not isinstance(dtype, PickledDtype) or not isinstance(data, bytes):
        raise UnsupportedError("a NumPy array of Python objects; arrays of numbers are read", where)
    if not isinstance(shape, tuple) or any(type(n) is not int or n < 0 for n in shape) or len(shape) > 16:
        raise ModelFormatError(f"{where}: a NumPy array of shape {shape!r:.80}")
    kind = dtype.dtype(where)
    if math.prod(shape) * kind.itemsize != len(data):
        raise ModelFormatError(f"{where}: a NumPy array {list(shape)} of {kind} with {len(data)} bytes")
    return np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")


def _reconstruct(unpickler, kind, shape, code) -> PickledArray:
    return PickledArray()


def _from_buffer(unpickler, data, dtype, shape, order) -> SavedTensor:
    return SavedTensor(_array(unpickler, shape, dtype, order == "F", data), "numpy")


def _dtype(unpickler, name, *_) -> PickledDtype:
    if not isinstance(name, str):
        raise ModelFormatError(f"{unpickler.where}: a NumPy dtype {name!r:.40}")
    return PickledDtype(name)


def _scalar(unpickler, dtype, data=None):
    return _array(unpickler, (), dtype, False, data).item()


def _encode(unpickler, text, encoding="latin1") -> bytes:
    """How pickles of protocol 2 and less write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ModelFormatError(f"{unpickler.where}: bytes as a {type(text).__name__} in {encoding!r:.20}")
    return text.encode("latin1")


CALLS: dict[str, Callable[..., Any]] = {"numpy.dtype": _dtype, "_codecs.encode": _encode}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    CALLS |= {
        f"{_core}.multiarray._reconstruct": _reconstruct,
        f"{_core}.multiarray.scalar": _scalar,
        f"{_core}.numeric._frombuffer": _from_buffer,
    }
