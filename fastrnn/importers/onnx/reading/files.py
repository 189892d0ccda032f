"""Bytes -> ModelProto and tensors. Sizes that a file claims are not trusted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ....errors import ModelFormatError, UnsupportedError

OLDEST_OPSET = 1
PLAIN_OPSET = 7  # of a file that names none
MAX_RANK = 32

# Elements per byte of raw_data, and the typed field that otherwise holds a dtype.
_FLOATS = {TensorProto.FLOAT, TensorProto.COMPLEX64}
_DOUBLES = {TensorProto.DOUBLE, TensorProto.COMPLEX128}
NUMERIC = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.INT8: np.dtype(np.int8),
    TensorProto.UINT8: np.dtype(np.uint8),
    TensorProto.INT16: np.dtype(np.int16),
    TensorProto.UINT16: np.dtype(np.uint16),
    TensorProto.INT32: np.dtype(np.int32),
    TensorProto.UINT32: np.dtype(np.uint32),
    TensorProto.INT64: np.dtype(np.int64),
    TensorProto.UINT64: np.dtype(np.uint64),
    TensorProto.BOOL: np.dtype(np.bool_),
    TensorProto.BFLOAT16: np.dtype(np.float32),  # widened on reading
}


def dtype_name(elem_type: int) -> str:
    """ONNX's name for an element type, for messages."""
    try:
        return TensorProto.DataType.Name(elem_type).lower()
    except ValueError:
        return f"type {elem_type}"


class NoGraphError(ModelFormatError):
    """An empty file, or one without a graph."""


class Read(NamedTuple):
    """The contents of a file: the model, its name for messages, the folder of its external data (None for bytes)."""

    model: onnx.ModelProto
    where: str
    folder: Path | None


def read_model(source) -> Read:
    """The model from a path, bytes, a ModelProto, or an earlier result of this function.

    Raises ModelFormatError if it is not a model, OSError if the file can't be read.
    """
    folder = None
    if isinstance(source, Read):
        return source
    if isinstance(source, onnx.ModelProto):
        return Read(source, source.graph.name or "model", None)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, where = bytes(source), "model bytes"
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        where, folder = str(path), path.resolve().parent
        data = path.read_bytes()
    else:
        raise TypeError(f"source must be a path, bytes or a ModelProto, got {type(source).__name__}")
    if not data:
        raise NoGraphError(f"{where}: is empty")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError is in a different module in each of its builds
        if "alloc" in str(error):  # "Arena alloc failed": protobuf has no error of its own for this
            raise MemoryError(str(error)) from None
        bytearray(2 * len(data))  # other failures for lack of memory are reported as wrong bytes: a MemoryError here
        raise ModelFormatError(f"{where}: not an ONNX model, or cut short ({error})") from None
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise NoGraphError(f"{where}: not an ONNX model: it holds no graph")
    return Read(model, where, folder)


def opsets(model: onnx.ModelProto, where: str) -> dict[str, int]:
    """Domain -> version. The default domain must be present, with a supported version."""
    found: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if found.setdefault(domain, entry.version) != entry.version:
            raise ModelFormatError(f"{where}: imports domain {domain or 'ai.onnx'!r} twice")
    if "" not in found:
        if any(n.domain in ("", "ai.onnx") for n in model.graph.node):
            raise ModelFormatError(f"{where}: names no opset for the default domain")
        found[""] = PLAIN_OPSET
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= found[""] <= newest:
        raise UnsupportedError(f"opset {found['']}; opsets {OLDEST_OPSET} to {newest} are read", where)
    return found


def tensor(proto: TensorProto, folder: Path | None) -> np.ndarray:
    """The array of a tensor. Its declared size is checked against the actual bytes before anything is allocated.

    bfloat16 is returned as float32, any other dtype unchanged. Raises ModelFormatError.
    """
    what = f"tensor {proto.name!r}"
    if proto.data_type not in NUMERIC:
        raise ModelFormatError(f"{what}: dtype {dtype_name(proto.data_type)} is not one that models compute with")
    if len(proto.dims) > MAX_RANK:
        raise ModelFormatError(f"{what}: rank {len(proto.dims)}")
    count = 1
    for dim in proto.dims:
        if dim < 0:
            raise ModelFormatError(f"{what}: negative dim in {list(proto.dims)}")
        count *= dim
    stored = np.dtype(np.uint16) if proto.data_type == TensorProto.BFLOAT16 else NUMERIC[proto.data_type]
    if proto.HasField("segment"):
        raise ModelFormatError(f"{what}: is one segment of a tensor; segments are not read")
    if proto.data_location == TensorProto.EXTERNAL:
        raw = _external(proto, folder, what, count * stored.itemsize)
    elif proto.HasField("raw_data"):
        raw = proto.raw_data
    else:
        return _typed(proto, what, count)
    if len(raw) != count * stored.itemsize:
        raise ModelFormatError(
            f"{what}: declares {list(proto.dims)} of {dtype_name(proto.data_type)}, {count * stored.itemsize} bytes, "
            f"but holds {len(raw)}"
        )
    array = np.frombuffer(raw, dtype=stored.newbyteorder("<")).astype(stored, copy=False)  # read-only, not copied
    if proto.data_type == TensorProto.BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(tuple(proto.dims))


def whole(read: Read) -> Read:
    """A private copy of the model that includes its external data."""
    model = onnx.ModelProto()
    model.CopyFrom(read.model)
    for proto in _tensors(model.graph):
        if proto.data_location == TensorProto.EXTERNAL:
            array = tensor(proto, read.folder)
            stored = array.view(np.uint32) >> 16 if proto.data_type == TensorProto.BFLOAT16 else array
            size = np.uint16 if proto.data_type == TensorProto.BFLOAT16 else array.dtype
            proto.raw_data = stored.astype(np.dtype(size).newbyteorder("<")).tobytes()
            proto.ClearField("external_data")
            proto.data_location = TensorProto.DEFAULT
    return Read(model, read.where, read.folder)


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """The initializers of a graph and its subgraphs, and the constants of their nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.TENSOR:
                yield attr.t
            elif attr.type == onnx.AttributeProto.GRAPH:
                yield from _tensors(attr.g)


def _typed(proto: TensorProto, what: str, count: int) -> np.ndarray:
    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    held = max(len(getattr(proto, f)) for f in fields)
    if held != count:
        raise ModelFormatError(f"{what}: declares {list(proto.dims)}, {count} elements, but holds {held}")
    try:
        return np.asarray(numpy_helper.to_array(proto)).astype(NUMERIC[proto.data_type], copy=False)
    except (ValueError, TypeError) as error:
        raise ModelFormatError(f"{what}: {error}") from None


def _external(proto: TensorProto, folder: Path | None, what: str, size: int) -> bytes:
    """The bytes of a tensor stored in a file next to the model. Links are resolved first; the file must be in the
    model's folder."""
    entries = {e.key: e.value for e in proto.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelFormatError(f"{what}: its data is in the file {location!r}, which only a model given by path has")
    if not location or "\0" in location:
        raise ModelFormatError(f"{what}: external data without a location")
    path = (folder / location).resolve()
    if os.path.isabs(location) or not path.is_relative_to(folder):
        raise ModelFormatError(f"{what}: its external data {location!r} is outside the model's folder")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
        if offset < 0 or length < 0:
            raise ValueError
    except ValueError:
        raise ModelFormatError(f"{what}: external data with a bad offset or length") from None
    try:
        there = path.stat().st_size if path.is_file() else -1
        if there < 0:
            raise ModelFormatError(f"{what}: its external data {location!r} is not a file in the model's folder")
        if length != size or offset + length > there:
            raise ModelFormatError(
                f"{what}: needs {size} bytes of external data; {location!r} gives {length} at {offset} of {there}"
            )
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (external data of {what})", str(path)) from None
