"""OrtValue: an array with onnxruntime's methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from .devices import check_cpu
from .exceptions import ArgumentError, InvalidArgument, RefusedError
from .types import dtype_of, number_of, type_of


class OrtValue:
    """An array in the CPU's memory, as `onnxruntime.OrtValue`. Make one with a static method.

    `ortvalue_from_numpy` keeps the array itself, not a copy, if it is C-contiguous and in native byte order; `numpy()`
    returns that array. Whoever writes to it while another thread runs a session on it must take turns.
    """

    def __init__(self, ortvalue: OrtValue | np.ndarray, numpy_obj: np.ndarray | None = None):
        self._array: np.ndarray = ortvalue.numpy() if isinstance(ortvalue, OrtValue) else _as_array(ortvalue)

    @staticmethod
    def ortvalue_from_numpy(
        numpy_obj: np.ndarray, device_type: str = "cpu", device_id: int = 0, vendor_id: int = -1
    ) -> OrtValue:
        """The array as an OrtValue. RuntimeError if it is not an array of numbers, or for another device."""
        check_cpu(device_type)
        return OrtValue(numpy_obj)

    @staticmethod
    def ortvalue_from_numpy_with_onnx_type(data: np.ndarray, onnx_element_type: int) -> OrtValue:
        """The same; RuntimeError if the type is not that of the array: fastrnn reads no numbers as others."""
        value = OrtValue(data)
        if value.element_type() != onnx_element_type:
            raise RefusedError(f"{value.data_type()} read as {type_of(onnx_element_type)}: convert the array")
        return value

    @staticmethod
    def ortvalue_from_shape_and_type(
        shape: Sequence[int], element_type: Any, device_type: str = "cpu", device_id: int = 0, vendor_id: int = -1
    ) -> OrtValue:
        """A new array. element_type: a NumPy dtype or ONNX's number. Its contents are undefined."""
        check_cpu(device_type)
        dtype = dtype_of(number_of(element_type))
        if dtype is None:
            raise RefusedError(f"values of {type_of(number_of(element_type))}: fastrnn holds numbers of NumPy's dtypes")
        return OrtValue(np.empty(shape, dtype))

    @staticmethod
    def ort_value_from_sparse_tensor(sparse_tensor: Any) -> OrtValue:
        """Refused: fastrnn has no sparse tensors."""
        raise RefusedError("OrtValue.ort_value_from_sparse_tensor: fastrnn has no sparse tensors")

    @staticmethod
    def from_dlpack(data: Any, is_bool_tensor: bool = False) -> OrtValue:
        """What another library exports by DLPack, in the same memory."""
        array = np.from_dlpack(data)
        return OrtValue(array.view(np.bool_) if is_bool_tensor else array)

    def __dlpack__(self, *arguments: Any, **named: Any) -> Any:
        return self._array.__dlpack__(*arguments, **named)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        array = np.asarray(self._array, dtype)
        return array.copy() if copy and array is self._array else array

    def numpy(self) -> np.ndarray:
        """The array itself, not a copy."""
        return self._array

    def shape(self) -> list[int]:
        """The sizes of its axes."""
        return list(self._array.shape)

    def data_type(self) -> str:
        """Such as "tensor(float)"."""
        return type_of(self.element_type())

    def element_type(self) -> int:
        """ONNX's number of its element type."""
        return number_of(self._array.dtype)

    def data_ptr(self) -> int:
        """The address of its first element."""
        return self._array.ctypes.data

    def tensor_size_in_bytes(self) -> int:
        """How many bytes it takes."""
        return self._array.nbytes

    def device_name(self) -> str:
        """ "cpu"."""
        return "cpu"

    def has_value(self) -> bool:
        """True."""
        return True

    def is_tensor(self) -> bool:
        """True."""
        return True

    def is_sparse_tensor(self) -> bool:
        """False."""
        return False

    def is_tensor_sequence(self) -> bool:
        """False."""
        return False

    def as_sparse_tensor(self) -> NoReturn:
        """Refused: it is not one."""
        raise RefusedError("OrtValue.as_sparse_tensor: fastrnn has no sparse tensors")

    def update_inplace(self, np_arr: np.ndarray) -> None:
        """Copy an array of the same dtype and shape into this one's memory."""
        array = np.asarray(np_arr)
        if array.shape != self._array.shape or array.dtype != self._array.dtype:
            wanted, got = (f"{a.dtype}{list(a.shape)}" for a in (self._array, array))
            raise ArgumentError(f"update_inplace: {wanted} expected, got {got}")
        self._array[...] = array

    def _get_c_value(self) -> OrtValue:
        return self


def of_new(array: np.ndarray) -> OrtValue:
    """A result of the model as an OrtValue."""
    value = OrtValue.__new__(OrtValue)
    value._array = array
    return value


def _as_array(value) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise ArgumentError(f"an OrtValue holds a NumPy array, got {type(value).__name__}")
    number_of(value.dtype)  # refuses text and objects
    array = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
    return array.reshape(value.shape)


def array_at(pointer: int, shape: Sequence[int], element_type: Any) -> np.ndarray:
    """The array in the caller's memory at an address. The caller answers for the address, as onnxruntime's does."""
    import ctypes

    dtype = dtype_of(number_of(element_type))
    sizes = tuple(int(s) for s in shape)
    if dtype is None or any(s < 0 for s in sizes):
        raise InvalidArgument(f"a buffer needs numbers and sizes, got {element_type!r:.60} and {list(sizes)}")
    count = int(np.prod(sizes, dtype=np.int64)) * dtype.itemsize
    if not count:
        return np.empty(sizes, dtype)
    if not pointer:
        raise InvalidArgument("a buffer at the address 0")
    memory = memoryview((ctypes.c_char * count).from_address(pointer))
    return np.frombuffer(memory, dtype).reshape(sizes)
