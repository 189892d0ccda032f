"""What a run is fed: arrays and lists, as the dtypes that the file declares and those that the model computes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..graph.casts import as_dtype, check_float32
from .described import NodeArg
from .exceptions import ArgumentError, FeedTypeError, InvalidArgument
from .types import dtype_of
from .values import OrtValue


class Feed:
    """One input: how a caller's value becomes the model's array.

    arg : as the file declares it. element : ONNX's element type. computes : the dtype that the model computes it in, a
    key of `DTYPES`; None for an input that was bound at load. bound : its value then.
    """

    def __init__(self, arg: NodeArg, element: int, computes: str | None, bound: Any = None):
        self.name, self.where = arg.name, f"input {arg.name}"
        self.computes, self.bound = computes, bound
        declared = dtype_of(element)
        self.declared = declared.name if declared is not None else computes or "float32"
        self._dtype = np.dtype(self.declared)
        self._scalar = arg.shape == []
        self._plain = self.declared == computes and not self._scalar

    def array(self, value) -> np.ndarray:
        """The value as an array that `Model.run` takes.

        Raises InvalidArgument for an array of another dtype, ArgumentError for what can't be cast without loss.
        """
        if isinstance(value, OrtValue):
            value = value.numpy()
        if self._plain and type(value) is np.ndarray and value.dtype == self._dtype:
            return value
        found = self._typed(value)
        if self._scalar and found.size == 1:
            found = found.reshape(())  # onnxruntime takes any axes of one for a scalar
        if self.computes == "float32" and self.declared == "float64":  # asked for by float64_as_float32=True
            check_float32(found, self.where, InvalidArgument)
            return found.astype(np.float32)
        return found

    def _typed(self, value) -> np.ndarray:
        is_array = isinstance(value, np.ndarray | np.generic)
        if is_array and value.dtype != self._dtype and self.declared == "float16":
            raise InvalidArgument(f"{self.where}: float16 expected, got {value.dtype}: pass x.astype('float16')")
        try:
            return as_dtype(value, self.declared, self.where, by_value=True)
        except ShapeError as error:
            kind = InvalidArgument if isinstance(value, np.ndarray) else ArgumentError
            raise kind(str(error)) from None

    def check_bound(self, value) -> None:
        """Refuse another value than the one that the input was bound to at load."""
        given = self.array(value)
        fixed = np.asarray(self.bound).astype(given.dtype)
        if given.size != fixed.size or not np.array_equal(given.reshape(-1), fixed.reshape(-1)):
            shown = f"{given.tolist()!r:.60}"
            raise InvalidArgument(
                f"{self.where} was bound to {self.bound!r:.60} when the model was loaded, got {shown}"
            )


def check_names(given: Any, feeds: list[Feed]) -> None:
    """Refuse a feed that is no dict, misses an input, or has one that the model does not have."""
    if not isinstance(given, Mapping):
        raise FeedTypeError(f"input_feed must be a dict of input name -> array, got {type(given).__name__}")
    needed = [feed.name for feed in feeds if feed.computes is not None]
    missing = [name for name in needed if name not in given]
    if missing:
        raise ShapeError(f"missing input {', '.join(missing)}; the inputs are {', '.join(needed)}")
    known = {feed.name for feed in feeds}
    for name in given:
        if name not in known:
            raise InvalidArgument(unknown("input", name, needed))


def unknown(what: str, name: object, known: list[str]) -> str:
    """A message that names what there is, and what may be meant."""
    import difflib

    close = difflib.get_close_matches(str(name), known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {name!r}; the {what}s are {', '.join(known)}{hint}"
