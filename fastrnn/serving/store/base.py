"""The interface of a store, and its rules.

A key has one entry: an epoch, the holder that wrote it, and bytes. A server that begins or takes over a sequence
claims the next epoch; from then on the store refuses what holders of older epochs write (fencing). So of two servers
that believe to have a sequence, one learns at its next write that it has lost it.
"""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

from ...errors import FastRNNError
from ...records import dataclass


class StoreError(FastRNNError):
    """A store can't be used, or an entry of it can't be read."""


class Fenced(StoreError):
    """Another holder has the key. epoch : its epoch"""

    def __init__(self, key: str, epoch: int):
        super().__init__(f"{key} was taken over at epoch {epoch}")
        self.epoch = epoch


@dataclass(frozen=True)
class Held:
    """An entry. epoch : from 1 on; holder : 32 hexadecimal digits; data : as it was written"""

    epoch: int
    holder: str
    data: bytes


class Store(Protocol):
    """What a server asks of a store. All methods are coroutines; a StoreError says what failed. It may have
    `poll_seconds`, the time between two looks at what other servers want; 1 otherwise."""

    async def read(self, key: str) -> Held | None:
        """The entry of a key; None if it has none."""

    async def claim(self, key: str, after: int | None, holder: str, data: bytes) -> int:
        """Take a key over: its epoch is now `after` + 1, which is returned. after : the epoch that was read, 0 for no
        entry; None: whatever is there. Fenced: another epoch is there, and nothing was written."""

    async def write(self, key: str, epoch: int, holder: str, data: bytes) -> None:
        """Replace the entry of this holder at this epoch, or write it again if it has vanished. Fenced: another holder
        has the key, and its entry is as it was."""

    async def sweep(self, seconds: float) -> None:
        """Drop what has not been written for so long."""

    async def close(self) -> None:
        """End its connections and threads."""


def key_of(model: str, id: int | str) -> str:
    """A name for files and keys, of two parts: any text becomes letters and digits, no two of them the same name."""
    readable = re.sub(r"[^A-Za-z0-9]", "_", model)[:32]
    folder = f"{readable}-{_digest(model)[:16]}"
    return f"{folder}/i{id}" if isinstance(id, int) else f"{folder}/s{_digest(id)}"


def _digest(text: str) -> str:
    """64 hexadecimal digits: case-blind file systems keep them apart."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def without_password(url: str) -> str:
    """A URL for messages."""
    return re.sub(r"//[^/@]*@", "//...@", url)
