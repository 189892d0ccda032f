"""The safetensors container: named tensors and some strings in one file.

A file is the length of its header (8 bytes, little-endian), the header as JSON (name -> dtype, shape and the bytes
[begin, end) after the header; strings under `__metadata__`) and the tensors without gaps. The format is that of
https://huggingface.co/docs/safetensors, whose library reads these files. fastrnn reads and writes them itself, because
the library aborts the process or raises a BaseException if memory runs out, and copies tensors that could be mapped.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ..records import dataclass
from . import pages

MOST_HEADER = 100_000_000  # bytes; the limit of the library
ALIGN = 64  # bytes of a cache line, on which the tensors of a file that is written here begin

# Name in the header -> dtype of the array. bfloat16 has none in NumPy: its arrays hold the bits.
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items() if name != "BF16"}


class ContainerError(ValueError):
    """The bytes are not such a container, or a damaged one. The text says what is wrong with them."""


@dataclass(frozen=True)
class Container:
    """tensors : name -> array, read-only, in the file's memory; types : name -> dtype as in the header."""

    metadata: dict[str, str]
    tensors: dict[str, np.ndarray]
    types: dict[str, str]


def map_file(path) -> Container:
    """The container in a file. Its tensors are mapped: the system reads them when they are used, and processes share
    them.

    Raises
    ------
    ContainerError : not a container, or a damaged one. OSError : the file can't be read.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise ContainerError("the file is empty")
        return parse(pages.map_handle(file.fileno(), path))


def parse(data) -> Container:
    """The container in bytes or another buffer; its arrays share the memory.

    Raises
    ------
    ContainerError : not a container, or a damaged one.
    """
    view = memoryview(data).cast("B")
    found, end = parse_first(view)
    if end != len(view):
        begin = 8 + int.from_bytes(view[:8], "little")
        raise ContainerError(f"the file has {len(view) - begin} bytes of tensors, its header describes {end - begin}")
    return found


def parse_first(view: memoryview) -> tuple[Container, int]:
    """(the container with which some bytes begin, the number of its bytes); its arrays share the memory.

    Raises
    ------
    ContainerError : not a container, or a damaged one.
    """
    size = int.from_bytes(view[:8], "little")
    if len(view) < 10 or size > min(len(view) - 8, MOST_HEADER):
        raise ContainerError("the header is longer than the file")
    try:
        header = json.loads(bytes(view[8 : 8 + size]).decode(), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise ContainerError(f"the header is not valid JSON: {error!s:.200}") from None
    if not isinstance(header, dict):
        raise ContainerError("the header is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ContainerError("its metadata is not strings by name")
    begin = 8 + size
    tensors, spans = {}, []
    for name, entry in header.items():
        tensors[name], span = _tensor(name, entry, view[begin:])
        spans.append(span)
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise ContainerError(f"its tensors overlap, or leave a gap, at byte {min(first, end)}")
        end = last
    return Container(metadata, tensors, {name: entry["dtype"] for name, entry in header.items()}), begin + end


def _without_twins(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _tensor(name: str, entry, data: memoryview) -> tuple[np.ndarray, tuple[int, int]]:
    """(the array of an entry of the header, its first byte and the one after its last)."""
    try:
        code, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, first, last))
    except (TypeError, KeyError, ValueError):
        raise ContainerError(f"{name!r:.80}: dtype, shape and data_offsets expected, got {entry!r:.120}") from None
    if not isinstance(code, str) or code not in DTYPES:
        raise ContainerError(f"{name!r:.80} has the dtype {code!r:.40}, which fastrnn does not read")
    dtype = np.dtype(DTYPES[code])
    if not whole or len(shape) > 32 or last > len(data) or first + math.prod(shape) * dtype.itemsize != last:
        raise ContainerError(f"{name!r:.80}: {code} {shape!r:.80} at the bytes {first}..{last} does not fit the file")
    array = np.frombuffer(data[first:last], dtype).reshape(shape)
    return array if array.flags.aligned else array.copy(), (first, last)


def chunks(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The parts of a container, in order. The tensors are not copied if they are contiguous.

    Raises
    ------
    ContainerError : a tensor has a dtype that the format does not know.
    """
    header: dict = {"__metadata__": dict(metadata)}
    # The largest elements first, so that each tensor is aligned to its own.
    arrays = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    end = 0
    for name, array in arrays:
        code = _NAMES.get(array.dtype) or _NAMES.get(array.dtype.newbyteorder("<"))
        if code is None:
            raise ContainerError(f"{name!r:.80} has the dtype {array.dtype}, which the format does not know")
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    if len(text) > MOST_HEADER:
        raise ContainerError(f"a header of {len(text)} bytes; the format allows {MOST_HEADER}")
    yield len(text).to_bytes(8, "little") + text
    for _, array in arrays:
        if array.nbytes:
            yield memoryview(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8))


def join(parts: Iterable[bytes | memoryview]) -> bytes:
    """The container as bytes."""
    return b"".join(parts)
