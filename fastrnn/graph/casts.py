"""The one rule for numbers that callers pass: arrays are judged by dtype, Python numbers by value."""

from __future__ import annotations

from array import array as BufferArray
from collections.abc import Sequence

import numpy as np

from ..errors import ShapeError, out_of_memory
from .types import DTYPES

DEEPEST = 64  # nested lists: NumPy supports no more axes
_NUMBERS = frozenset({bool, int, float})
_LARGEST = {np.dtype(t): float(np.finfo(t).max) for t in (np.float16, np.float32, np.float64)}
_BUFFERS = (str, bytes, bytearray, memoryview, BufferArray)  # sequences that NumPy reads as one array or one text


def as_dtype(x, dtype: str, where: str, *, by_value: bool = False) -> np.ndarray:
    """x as a C-contiguous array of `dtype`, in native byte order.

    An array (a NumPy array or scalar, a tensor, anything that NumPy reads as an array; alone or in a list) is accepted
    if every value of its dtype is also a value of `dtype`: float16, int16 and bool into float32, int32 into int64. Its
    values and size don't matter, so code that works in a test does not fail on other data.

    A Python number, or a list (tuple, any sequence) of them, is accepted if each number fits:

    * into floating point: a float that does not round to an infinity (fractions are rounded, inf and nan are kept),
      an int that is exact, True and False as 1 and 0
    * into integers: an int within their range, True and False as 1 and 0
    * into bool: True and False

    Parameters
    ----------
    x : as above. dtype : a key of DTYPES, or the name of another dtype of numbers
    where : what x is, such as "input x", for the error
    by_value : in a list, judge every number by value, as onnxruntime does: NumPy scalars and arrays count as Python
        numbers, integers may be written as floats (2.0), bools as 0 and 1

    Returns
    -------
    array of x's shape: x itself if it already qualifies, else new memory.

    Raises
    ------
    ShapeError : anything else; ragged lists; a masked array, because its mask would be lost.
    """
    want = np.dtype(DTYPES.get(dtype, dtype))
    try:
        if type(x) is np.ndarray and x.dtype == want:
            found = x
        elif _is_number(x) or _is_list(x):
            found = _of_numbers(x, want, where, by_value)
        else:
            found = _of_array(x, want, where)
        return np.ascontiguousarray(found, want).reshape(found.shape)
    except MemoryError as error:
        raise out_of_memory(error, where) from None


def _is_number(x) -> bool:
    """Whether x is a Python number. np.float64 is a float too, but it has a dtype and is judged by that."""
    return isinstance(x, bool | int | float) and not isinstance(x, np.generic)


def _is_list(x) -> bool:
    return type(x) in (list, tuple) or (
        isinstance(x, Sequence) and not isinstance(x, _BUFFERS) and not hasattr(x, "__array__")
    )


# -- arrays: by dtype --


def _of_array(x, want: np.dtype, where: str) -> np.ndarray:
    """x as an array whose dtype has only values that `want` has too; ShapeError otherwise."""
    if isinstance(x, np.ndarray) and type(x) is not np.ndarray and np.any(getattr(x, "mask", False)):
        raise ShapeError(f"{where}: a masked array, of which the mask would be lost: fill it")
    try:
        array = np.asarray(x)
        if array.dtype.kind == "O" and not isinstance(x, np.ndarray) and hasattr(x, "__dlpack__"):
            array = np.from_dlpack(x)
    except (ValueError, TypeError, RuntimeError, BufferError) as error:  # tensors on a GPU, with gradients, of bfloat16
        raise ShapeError(f"{where}: {want} expected; a {type(x).__name__} that NumPy can't read ({error})") from None
    if not np.can_cast(array.dtype, want, "safe"):
        raise ShapeError(f"{where}: dtype {want} expected, got {array.dtype}: {_remedy(x, array.dtype, want)}")
    return array


def _remedy(x, got: np.dtype, want: np.dtype) -> str:
    """What a caller passes instead of x."""
    if got.kind not in "biuf":
        return "pass numbers"
    call = f"x.to(torch.{want})" if type(x).__module__.partition(".")[0] == "torch" else f"x.astype({want.name!r})"
    return f"pass {call}, if that loses nothing you need"


# -- Python numbers: by value --


def _of_numbers(x, want: np.dtype, where: str, by_value: bool) -> np.ndarray:
    """A number, or a list of numbers and arrays, as an array of `want` or wider. No finite float is too large."""
    checked = _item(x, want, where, by_value, 0)
    try:
        wide = np.asarray(checked, np.float64 if want.kind == "f" else want)
    except ValueError as error:  # ragged lists
        raise ShapeError(f"{where}: can't be read as an array ({error})") from None
    if want.kind != "f" or np.fmax.reduce(np.abs(wide), axis=None, initial=0.0) <= _LARGEST[want]:
        return wide
    with np.errstate(over="ignore"):
        found = wide.astype(want)
    lost = np.isinf(found) & np.isfinite(wide)
    if lost.any():
        raise ShapeError(
            f"{where}: {wide[lost][0]:.6g} is beyond {want}, whose largest number is {np.finfo(want).max:.6g}"
        )
    return found


def _item(x, want: np.dtype, where: str, by_value: bool, depth: int):
    """Check one item of a list at some depth. Returns a number, a list, or an array of `want`."""
    if by_value and depth and isinstance(x, np.generic | np.ndarray) and x.dtype.kind in "biuf":
        x = x.tolist()
    if _is_number(x):
        plain = x if type(x) in _NUMBERS else int(x) if isinstance(x, int) else float(x)
        return _numbers([plain], {type(plain)}, want, where, by_value)[0]
    if not _is_list(x):
        return _of_array(x, want, where).astype(want)
    if depth == DEEPEST:
        raise ShapeError(f"{where}: lists in lists, more than {DEEPEST} deep")
    kinds = set(map(type, x))
    if kinds <= _NUMBERS:
        return _numbers(x, kinds, want, where, by_value)
    return [_item(part, want, where, by_value, depth + 1) for part in x]


def _numbers(row: Sequence, kinds: set, want: np.dtype, where: str, by_value: bool) -> Sequence:
    """A row of bools, ints and floats as `want` stores them. Floats that are too large for it are kept."""
    if want.kind == "b":
        wrong = [v for v in row if type(v) is not bool and not (by_value and v in (0, 1))]
        if wrong:
            raise ShapeError(f"{where}: bool expected, got {_shown(wrong[0])}: pass True or False")
        return [bool(v) for v in row]
    if want.kind == "f":
        whole = row if kinds == {int} else [v for v in row if type(v) is int] if int in kinds else ()
        exact = 1 << (np.finfo(want).nmant + 1)  # every int up to here is exact
        if whole and (max(whole) > exact or min(whole) < -exact):
            for v in whole:
                if not _is_exact(v, want):
                    raise ShapeError(f"{where}: the int {_shown(v)} is not a number of {want}: pass the float you mean")
        return row
    if float in kinds:
        for v in row:
            if type(v) is float and not (by_value and v.is_integer()):
                raise ShapeError(f"{where}: {want} expected, got {v}: pass an int")
        row = [int(v) for v in row]
    ends = np.iinfo(want)
    for v in (min(row), max(row)) if row else ():
        if not ends.min <= v <= ends.max:
            raise ShapeError(f"{where}: {_shown(v)} is outside {want}, {ends.min} to {ends.max}")
    return row


def _is_exact(v: int, want: np.dtype) -> bool:
    """Whether floating point represents this int exactly."""
    form, size = np.finfo(want), abs(v)
    zeros = (size & -size).bit_length() - 1 if size else 0
    return size.bit_length() - zeros <= form.nmant + 1 and size.bit_length() <= form.maxexp


def _shown(v) -> str:
    """A number as text: Python refuses to write ints of more than 4,300 digits."""
    return f"{v!r}" if not isinstance(v, int) or v.bit_length() < 256 else f"an int of {v.bit_length()} bits"


# -- weights: floats are rounded, in any container --


def as_float32(array: np.ndarray, name: str, error: type[Exception] = ShapeError) -> np.ndarray:
    """A copy of weights in float32, in C order; raises `error` as `check_float32` does."""
    check_float32(array, name, error)
    return np.array(array, np.float32, order="C")


def check_float32(array: np.ndarray, name: str, error: type[Exception] = ShapeError) -> None:
    """Raise `error`, with the array's name, if float32 changes one of its numbers other than by rounding a fraction.

    That is: if a finite number becomes infinite, or an integer becomes another integer.
    """
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        with np.errstate(over="ignore"):
            lost = np.isinf(array.astype(np.float32)) & np.isfinite(array)
        if lost.any():
            raise error(f"{name} has numbers up to {np.abs(array[lost]).max():.3g}, which float32 can't hold")
    elif array.dtype.kind in "iu" and array.dtype.itemsize > 2:
        for v in array[(array > 1 << 24) | (array < -(1 << 24))].tolist():
            if not _is_exact(v, np.dtype(np.float32)):
                raise error(f"{name} has the integer {v}, which is not a number of float32: pass floats")


def check_list(x, name: str, error: type[Exception] = ShapeError) -> None:
    """Raise `error` if x is a list of weights with a number that float32 can't represent, by the rule of `as_dtype`.

    NumPy turns [2**53 + 1, 0.5] into an array of floats. This changes the first number before `as_float32` sees it.
    """
    if _is_list(x):
        try:
            as_dtype(x, "float32", name, by_value=True)
        except ShapeError as found:
            raise error(str(found)) from None
