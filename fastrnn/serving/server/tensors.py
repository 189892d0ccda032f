"""Tensors of the Open Inference Protocol: names of dtypes, and bytes on the wire."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from .faults import Fault, brief, invalid

MOST_AXES = 8
MOST_SIZE = 1 << 40  # of an axis, and elements of a tensor
MOST_STRINGS = 1 << 17  # of a BYTES tensor: only ids of sequences are such
MOST_NUMBERS = 1 << 20  # of a tensor that is a list of numbers, each of which becomes an object
# Name on the wire -> numpy's, little-endian.
DTYPES = {
    "BOOL": "bool",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
NAMES = {np.dtype(v): k for k, v in DTYPES.items()}
# Name -> its number in a model's configuration.
CONFIG = {name: 1 + i for i, name in enumerate(DTYPES)} | {"BYTES": 13}


def name_of(dtype: Any) -> str:
    """The wire's name of a dtype of numpy."""
    return NAMES[np.dtype(dtype).newbyteorder("<")]


def shape_of(name: str, shape: Any) -> tuple[int, ...]:
    """A shape that a client gave."""
    whole = isinstance(shape, (list, tuple)) or hasattr(shape, "__iter__")
    axes = tuple(shape) if whole and not isinstance(shape, (str, bytes)) else None
    if axes is None or len(axes) > MOST_AXES or not all(type(n) is int and 0 <= n < MOST_SIZE for n in axes):
        raise invalid(f"input {brief(name)}: shape must be a list of at most {MOST_AXES} sizes, got {brief(shape)}")
    if math.prod(n or 1 for n in axes) > MOST_SIZE:
        raise invalid(f"input {brief(name)}: shape {list(axes)} has more than 2**40 elements")
    return axes


def from_bytes(name: str, datatype: Any, shape: tuple[int, ...], data: Any) -> np.ndarray:
    """The array that raw bytes hold; it is a view of them."""
    if datatype == "BYTES":
        _bound(name, math.prod(shape), MOST_STRINGS, "BYTES elements")
        return np.array(_strings(name, bytes(data), math.prod(shape)), object).reshape(shape)
    dtype = np.dtype(_numpy_name(name, datatype))
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise invalid(f"input {brief(name)}: {datatype} {list(shape)} takes {wanted} bytes, got {len(data)}")
    if datatype == "BOOL":
        return np.frombuffer(data, np.uint8).reshape(shape) != 0
    return np.frombuffer(data, dtype).reshape(shape)


def from_values(name: str, datatype: Any, shape: tuple[int, ...], values: Any) -> np.ndarray:
    """The array of a list of numbers, flat or nested, as JSON has them."""
    if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__len__"):
        raise invalid(f"input {brief(name)}: data must be a list of numbers, got {type(values).__name__}")
    most, what = (MOST_STRINGS, "BYTES elements") if datatype == "BYTES" else (MOST_NUMBERS, "numbers as a list")
    _bound(name, len(values), most, what)
    values = list(values)
    try:
        if datatype == "BYTES":
            array = np.array(_flat(values), object)
            other = [v for v in array if not isinstance(v, (str, bytes))]
            if other:
                raise invalid(f"input {brief(name)}: BYTES takes texts, got {brief(other[0])}")
        else:
            kind = np.dtype(_numpy_name(name, datatype))
            plain = np.array(values)
            if plain.dtype.kind not in "biuf" and plain.size:
                raise invalid(f"input {brief(name)}: data must be numbers in rows of one length, got {brief(values)}")
            if kind.kind in "iu" and plain.dtype.kind not in "iu" and plain.size:
                raise invalid(f"input {brief(name)}: {datatype} takes whole numbers, got {brief(values)}")
            if kind.kind == "b" and plain.dtype.kind != "b" and plain.size:
                raise invalid(f"input {brief(name)}: BOOL takes true and false, got {brief(values)}")
            if kind.kind == "f" and plain.dtype.kind == "b":
                raise invalid(f"input {brief(name)}: {datatype} takes numbers, got {brief(values)}")
            with np.errstate(over="raise"):  # 1e39 is no FP32, and must not become an infinity
                array = np.array(values, kind)
    except (ValueError, ArithmeticError, TypeError) as error:
        raise invalid(f"input {brief(name)}: data is not {datatype}: {error}") from None
    if array.size != math.prod(shape):
        raise invalid(f"input {brief(name)}: shape {list(shape)} has {math.prod(shape)} numbers, got {array.size}")
    return array.reshape(shape)


def _bound(name: str, count: int, most: int, what: str) -> None:
    if count > most:
        text = (
            f"input {brief(name)}: a tensor may have {most} {what}, got {count}: send raw tensors, or several requests"
        )
        raise Fault("RESOURCE_EXHAUSTED", "message_size", text, status=413)


def to_bytes(array: np.ndarray) -> bytes:
    """An array's elements on the wire."""
    if array.dtype == object:
        parts = [v if isinstance(v, bytes) else v.encode("utf-8", "surrogatepass") for v in array.reshape(-1)]
        return b"".join(len(p).to_bytes(4, "little") + p for p in parts)
    if array.dtype.isnative and sys.byteorder == "little":
        return array.tobytes()
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _numpy_name(name: str, datatype: Any) -> str:
    if not isinstance(datatype, str) or datatype not in DTYPES:
        known = ", ".join((*DTYPES, "BYTES"))
        raise invalid(f"input {brief(name)}: datatype must be one of {known}, got {brief(datatype)}")
    return DTYPES[datatype]


def _strings(name: str, data: bytes, count: int) -> list[bytes]:
    """The elements of a BYTES tensor: each is its length, 4 bytes little-endian, and its bytes."""
    found, at = [], 0
    for _ in range(count):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if at + 4 > len(data) or end > len(data):
            break
        found.append(data[at + 4 : end])
        at = end
    if len(found) != count or at != len(data):
        raise invalid(f"input {brief(name)}: its bytes are not {count} elements, each behind its length")
    return found


def _flat(values: Any) -> list:
    """The leaves of nested lists."""
    flat, left = [], [values]
    while left:
        item = left.pop()
        if isinstance(item, (list, tuple)):
            left.extend(reversed(item))
        else:
            flat.append(item)
    return flat
