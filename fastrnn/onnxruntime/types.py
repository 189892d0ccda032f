"""Element types: ONNX's number, onnxruntime's text and NumPy's dtype of each."""

from __future__ import annotations

import numpy as np

from .exceptions import ArgumentTypeError, RefusedError

_TABLE = (  # ONNX's number, the text between the brackets of "tensor(...)", NumPy's name
    (1, "float", "float32"),
    (2, "uint8", "uint8"),
    (3, "int8", "int8"),
    (4, "uint16", "uint16"),
    (5, "int16", "int16"),
    (6, "int32", "int32"),
    (7, "int64", "int64"),
    (8, "string", None),
    (9, "bool", "bool"),
    (10, "float16", "float16"),
    (11, "double", "float64"),
    (12, "uint32", "uint32"),
    (13, "uint64", "uint64"),
    (14, "complex64", "complex64"),
    (15, "complex128", "complex128"),
    (16, "bfloat16", None),
)
_TEXTS = {number: f"tensor({text})" for number, text, _ in _TABLE}
_DTYPES = {number: np.dtype(name) for number, _, name in _TABLE if name}
_NUMBERS = {dtype: number for number, dtype in _DTYPES.items()}


def type_of(number: int) -> str:
    """onnxruntime's text of an ONNX element type, such as "tensor(float)"; that of an unknown one shows its number."""
    return _TEXTS.get(number, f"tensor({number})")


def dtype_of(number: int) -> np.dtype | None:
    """NumPy's dtype of an ONNX element type; None if it has none."""
    return _DTYPES.get(number)


def number_of(dtype) -> int:
    """ONNX's number of an element type: of a NumPy dtype, or of such a number. RefusedError for text and objects."""
    if isinstance(dtype, int) and not isinstance(dtype, bool):
        if dtype not in _TEXTS:
            raise ArgumentTypeError(f"there is no ONNX element type {dtype}")
        return dtype
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise ArgumentTypeError(f"an element type is a NumPy dtype or ONNX's number, got {dtype!r:.60}") from None
    if found.newbyteorder("=") not in _NUMBERS:
        raise RefusedError(f"values of dtype {found}: fastrnn holds numbers alone")
    return _NUMBERS[found.newbyteorder("=")]
