"""What a host works with: its engine, its store, its shards and the checkpoints that it writes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

import numpy as np

from ..records import dataclass
from .checkpoints import Checkpoint


class Engine(Protocol):
    """The streams of a host. A slot's low 24 bits are its place; a closed slot is never used again."""

    def open(self, n: int) -> np.ndarray:
        """n new streams in the initial state: slots, int64 [n]."""

    def close(self, slots: np.ndarray) -> None:
        """End streams."""

    def step(self, slots: np.ndarray, arrays: list[np.ndarray], lengths: np.ndarray | None) -> list[np.ndarray]:
        """The outputs of one step of each stream, [n, ...], or of lengths[i] steps, [steps, ...], one after the other
        in the order of slots. After an error no state has changed."""

    def capture(self, groups: list[np.ndarray]) -> list:
        """The states of streams now, for each group of slots what `encode` takes."""

    def encode(self, captured: Any) -> bytes:
        """Bytes of captured states; called outside the host's lock."""

    def restore(self, blob: bytes) -> np.ndarray:
        """New streams with these states: slots, in the order in which they were captured."""


class Store(Protocol):
    """Checkpoints and epochs of the shards of a cluster. Each method may raise OSError."""

    def claim(self, shard: int) -> int:
        """Raise the shard's epoch: the new one, which no other caller gets."""

    def epoch(self, shard: int, known: int = 0) -> int:
        """The newest epoch of a shard; 0 if none was claimed. known : an epoch of it, which it may be still."""

    def names(self, shard: int) -> list[str]:
        """Its checkpoints, newest last."""

    def read(self, shard: int, name: str) -> bytes:
        """The bytes of a checkpoint."""

    def write(self, shard: int, name: str, blob: bytes) -> None:
        """Write a checkpoint, whole or not at all."""

    def delete(self, shard: int, name: str) -> None:
        """Delete one; it may be gone."""


@dataclass(eq=False)
class Shard:
    """A shard that a host has. number : of the next checkpoint. kept : (number, name) of those in the store, the older
    first. streams : id -> slot. gens : id -> its generation. dirty : something changed since the last capture.
    closed : id -> generation, of streams that ended lately; expired : those that were idle.
    unsure : until when callers may bring back streams that no checkpoint had. owes : the checkpoint that the older
    one kept must reach before the streams that changed their caller may be stepped. ended : the next checkpoint when a
    stream was closed last."""

    shard: int
    epoch: int
    number: int
    kept: list[tuple[int, str]]
    streams: dict[Any, int]
    gens: dict[Any, int]
    closed: OrderedDict[Any, int]
    expired: set
    dirty: bool = False
    writing: bool = False
    owes: int = -1
    ended: int = -1
    unsure: float = 0.0

    @property
    def owed(self) -> bool:
        """Whether a checkpoint that is kept does not know yet which caller has a stream."""
        return self.lacks(self.owes)

    def lacks(self, number: int) -> bool:
        """Whether a checkpoint from before this one is still kept. number : of a checkpoint, or -1"""
        return number >= 0 and (len(self.kept) < 2 or self.kept[0][0] < number)


@dataclass(eq=False)
class Job:
    """A checkpoint to be written: states were copied, bytes are not made yet."""

    shard: Shard
    number: int
    content: Checkpoint
    captured: Any
