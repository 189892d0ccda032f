"""Calls and answers of a step as values that Ray sends in the message itself.

Ray puts a value of more than 100 KiB into its object store, which costs some round trips to another process on each
side, while the actor waits. Smaller values are part of the message, up to 10 MB in all. So arrays are cut into pieces
below that size. Nothing is wrong if Ray's limits are others: then pieces go through the store, as whole arrays would.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

PIECE = 99 * 1024  # bytes of a value; its header comess on top
MOST = 9 << 20  # bytes of a message in pieces; the arrays of larger ones go through the store as they are


def packed(about: tuple, arrays: list[np.ndarray]) -> tuple:
    """The arguments of a call: (about, layouts, arrays), and then the pieces of the arrays if they are large."""
    counts = counts_of([a.nbytes for a in arrays])
    if not counts:
        return ((about, None, arrays),)
    layouts = [(a.shape, a.dtype.str, n) for a, n in zip(arrays, counts, strict=True)]
    return ((about, layouts, []), *(p for a, n in zip(arrays, counts, strict=True) for p in cut(a, n)))


def unpacked(head: tuple, pieces: Sequence) -> tuple[tuple, list[np.ndarray]]:
    """(about, arrays) of `packed`."""
    about, layouts, arrays = head
    return about, arrays if layouts is None else joined(layouts, pieces)


def counts_of(sizes: list[int]) -> list[int]:
    """Into how many pieces arrays of these bytes are cut (0: they stay whole); none: they fit into one value."""
    total = sum(sizes)
    return [] if total <= PIECE else [0 if total > MOST else max(1, -(-size // PIECE)) for size in sizes]


def values_of(counts: list[int]) -> int:
    """How many values an answer has."""
    return 1 + sum(max(1, n) for n in counts)


def answer(reply: tuple, counts: list[int]) -> Any:
    """The values of a reply of `Host.step`: a word, layouts and marks, and then so many pieces of each output."""
    if not counts:
        return reply
    if reply[0] != "done":
        return (reply, *[None] * (values_of(counts) - 1))
    _, outputs, marks = reply
    layouts = [(a.shape, a.dtype.str, n) for a, n in zip(outputs, counts, strict=True)]
    return (("done", layouts, marks), *(p for a, n in zip(outputs, counts, strict=True) for p in cut(a, n)))


def answered(values: list) -> tuple:
    """The reply of `Host.step` in these values. Its arrays are new memory: nothing of a message is kept with them."""
    reply, *pieces = values
    if reply[0] != "done":
        return reply
    outputs = joined(reply[1], pieces) if pieces else reply[1]
    return "done", [a if a.flags.writeable else np.array(a) for a in outputs], np.array(reply[2])


def cut(array: np.ndarray, n: int) -> list:
    """An array as n pieces, of sizes that differ by one byte at most: bytes, which Ray does not pickle. 0: whole."""
    if not n:
        return [array]
    content = array.reshape(-1).view(np.uint8).data
    return [bytes(content[array.nbytes * k // n : array.nbytes * (k + 1) // n]) for k in range(n)]


def joined(layouts: list[tuple[tuple, str, int]], pieces: Sequence) -> list[np.ndarray]:
    """Arrays of pieces. layouts : the shape and dtype of each array, and the number of its pieces"""
    arrays, at = [], iter(pieces)
    for shape, dtype, n in layouts:
        if not n:
            arrays.append(next(at))
            continue
        array = np.empty(shape, dtype)
        content, end = array.reshape(-1).view(np.uint8).data, 0
        for piece in islice(at, n):
            content[end : end + len(piece)] = piece
            end += len(piece)
        arrays.append(array)
    return arrays
