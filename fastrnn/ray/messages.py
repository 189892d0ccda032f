"""Calls and answers of a step as values that Ray sends in the message itself.

Ray puts a value of more than 100 KiB into its object store, which costs some round trips to another process on each
side, while the actor waits. Smaller values are part of the message, up to 10 MB in all. So arrays are cut into pieces
below that size. Nothing is wrong if Ray's limits are others: then pieces go through the store, as whole arrays would.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

PIECE = 99 * 1024  # bytes of a value; its header comes on top
MOST = 9 << 20  # bytes of a message in pieces; larger ones go through the store


def packed(about: tuple, arrays: list[np.ndarray]) -> tuple:
    """The arguments of a call: (about, shapes, arrays), and then the pieces of the arrays if they are large."""
    total = sum(a.nbytes for a in arrays)
    if total <= PIECE:
        return ((about, None, arrays),)
    cuts = [cut(a, 1 if total > MOST else needed(a.nbytes)) for a in arrays]
    shapes = [(a.shape, len(c)) for a, c in zip(arrays, cuts, strict=True)]
    return ((about, shapes, []), *(piece for c in cuts for piece in c))


def unpacked(head: tuple, pieces: tuple) -> tuple[tuple, list[np.ndarray]]:
    """(about, arrays) of `packed`."""
    about, shapes, arrays = head
    return about, arrays if shapes is None else joined(shapes, pieces)


def counts_of(sizes: list[int]) -> list[int]:
    """Into how many pieces arrays of these bytes are cut; none: they fit into one value."""
    total = sum(sizes)
    return [] if total <= PIECE else [1 if total > MOST else needed(size) for size in sizes]


def answer(reply: tuple, counts: list[int]) -> Any:
    """The values of a reply of `Host.step`: a word, shapes and marks, and then so many pieces of each output."""
    if not counts:
        return reply
    if reply[0] != "done":
        return (reply, *[None] * sum(counts))
    _, outputs, marks = reply
    shapes = [(a.shape, n) for a, n in zip(outputs, counts, strict=True)]
    return (("done", shapes, marks), *(p for a, n in zip(outputs, counts, strict=True) for p in cut(a, n)))


def answered(values: list) -> tuple:
    """The reply of `Host.step` in these values. Its outputs are new memory: nothing of a message is kept with them."""
    reply, *pieces = values
    if reply[0] != "done":
        return reply
    outputs = joined(reply[1], pieces) if pieces else reply[1]
    return "done", [a if a.flags.writeable else np.array(a) for a in outputs], np.array(reply[2])


def needed(nbytes: int) -> int:
    """Into how many pieces an array is cut."""
    return max(1, -(-nbytes // PIECE))


def cut(array: np.ndarray, n: int) -> list[np.ndarray]:
    """An array as n flat pieces, of sizes that differ by one element at most."""
    flat = array.reshape(-1)
    if n == 1:
        return [flat]
    ends = [len(flat) * k // n for k in range(n + 1)]
    return [flat[a:b] for a, b in itertools.pairwise(ends)]


def joined(shapes: list[tuple[tuple, int]], pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Arrays of pieces. shapes : the shape of each array, and the number of its pieces."""
    arrays, at = [], 0
    for shape, n in shapes:
        own = pieces[at : at + n]
        arrays.append((own[0] if n == 1 else np.concatenate(own)).reshape(shape))
        at += n
    return arrays
