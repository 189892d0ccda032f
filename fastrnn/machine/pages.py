"""Weights in a mapped file: which pages stay in memory, and what proves their content.

The pages of a mapped file are shared by all processes that map it. They count as memory of a process from when it has
touched them until it gives them back, which costs nothing: the system still has them, and the next access maps them
again. Weights that are only read once, to check or to pack them, are given back piece by piece.
"""

from __future__ import annotations

import bisect
import errno
import hashlib
import mmap
from collections.abc import Iterator

import numpy as np

PIECE = 2 << 20  # bytes that are read before they are given back
SMALL = 64 << 10  # bytes of an array whose pages are not worth giving back: the system maps 16 pages at a fault


class MappedFile(mmap.mmap):
    """A file that is mapped read-only, so that giving pages back can't lose anything.

    address : of its first byte
    sealed : (first byte, end, digest) of arrays in it, in order; see `seal`
    """

    address: int
    sealed: list[tuple[int, int, bytes]]


def map_handle(handle: int, name) -> MappedFile:
    """The file of an open descriptor, which may be closed afterwards. name: for errors.

    Raises OSError if it can't be mapped, and MemoryError if the address space is too small.
    """
    try:
        mapped = MappedFile(handle, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryError(f"can't map {name}") from None
    mapped.address = np.frombuffer(mapped, np.uint8).ctypes.data
    mapped.sealed = []
    return mapped


def mapping_of(array: np.ndarray) -> MappedFile | None:
    """The mapped file that holds the memory of this array; None if another memory does."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, MappedFile) else None


def _span(array: np.ndarray, mapped: MappedFile) -> tuple[int, int]:
    """(first byte, end) of the part of the file that holds the elements of an array."""
    first = end = array.ctypes.data - mapped.address
    for size, stride in zip(array.shape, array.strides, strict=True):
        reach = (size - 1) * stride
        first, end = min(first, first + reach), max(end, end + reach)
    return first, end + array.itemsize


def give_back(*arrays: np.ndarray | None) -> None:
    """Let go of the pages of these arrays that are in a mapped file; the next access maps them again."""
    for array in arrays:
        mapped = None if array is None or array.size == 0 else mapping_of(array)
        if mapped is None or not hasattr(mmap, "MADV_DONTNEED"):
            continue
        first, end = _span(array, mapped)
        first -= first % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, first, end - first)


def read(array: np.ndarray) -> Iterator[np.ndarray]:
    """The bytes of an array in row-major order, in pieces. The pages of a mapped file are given back behind it."""
    flat = np.asarray(array, order="C").reshape(-1).view(np.uint8)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        yield piece
        if flat.size >= SMALL:
            give_back(piece)


def seal(array: np.ndarray, digest: bytes) -> None:
    """Record a digest that no other content has, for `content`; nothing if the array is not in a mapped file."""
    mapped = mapping_of(array)
    if mapped is not None and array.size:
        bisect.insort(mapped.sealed, (*_span(array, mapped), digest))


def content(array: np.ndarray) -> bytes:
    """A digest of the dtype, shape and elements of an array. Those of a sealed array, and its views, are not read."""
    form = f"{array.dtype.str} {array.shape}"
    mapped = mapping_of(array) if array.size else None
    if mapped is not None:
        first, end = _span(array, mapped)
        at = bisect.bisect_right(mapped.sealed, first, key=lambda entry: entry[0]) - 1
        if at >= 0 and end <= mapped.sealed[at][1]:
            start, _, sealed = mapped.sealed[at]
            view = f"{array.ctypes.data - mapped.address - start} {array.strides}"
            return hashlib.sha256(f"{form} {view} of ".encode() + sealed).digest()
    digest = hashlib.sha256(f"{form} elements ".encode())
    for piece in read(array):
        digest.update(piece)
    return digest.digest()
