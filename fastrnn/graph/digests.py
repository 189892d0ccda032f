"""Names of arrays and of tuples of numbers: SHA-256 over their contents. What names a model's meaning is made of them.

The text that is hashed is part of the format of snapshots: it never changes.
"""

from __future__ import annotations

import hashlib
import weakref

import numpy as np

from ..machine import pages

SIZE = 16  # bytes of a name: no two things in the life of a program share one by chance
_REMEMBERED = 4096  # bytes; the name of a larger array is kept as long as the array
_known: dict[int, tuple[weakref.ref, bytes]] = {}  # by id: arrays have no hash


def named(*parts) -> bytes:
    """The name of a tuple of names, texts and numbers; each is told apart from the next."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(b"%s%d:" % (b"b" if isinstance(part, bytes) else b"r", len(data)))
        digest.update(data)
    return digest.digest()[:SIZE]


def array_name(array: np.ndarray) -> bytes:
    """The name of an array: its dtype, shape and bits. An array that can't be written to is hashed once."""
    key, kept = id(array), not array.flags.writeable and array.nbytes >= _REMEMBERED
    if kept and key in _known and _known[key][0]() is array:
        return _known[key][1]
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{plain.dtype.name} {list(array.shape)} ".encode())
    for piece in pages.read(plain):
        digest.update(piece)
    name = digest.digest()[:SIZE]
    if kept:
        _known[key] = weakref.ref(array, lambda _: _known.pop(key, None)), name
    return name
