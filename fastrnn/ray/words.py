"""What callers and hosts of shards say to each other: errors, refusals and the shard of an id. No Ray, no IO."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from ..errors import StateError, StreamError

MOST_SHARDS = 1 << 16
NEVER = 1 << 62  # a label that no checkpoint reaches
UNKNOWN_END = sys.maxsize  # of a range of lost steps: nobody knows how many were answered
GATEWAY = 1 << 60  # callers from this number on are gateways, whose idle streams end

# Why a host refuses a shard. MOVED: it has no such shard. STALE: it took it up again since. CUT_OFF: its lease ended.
MOVED, STALE, CUT_OFF = "moved", "stale", "cut off"
OWED = "owed"  # why a flush is refused: a checkpoint that is kept does not know yet which caller has a stream
# What became of a row of an attach. FOUND; EXISTS: an open of a live id; UNKNOWN; TAKEN: another caller steps it;
# CLOSED: it was closed. WAITING: the caller that stepped it may still send again what its restored shard lacks.
# EXPIRED: it was ended because it was idle.
FOUND, EXISTS, UNKNOWN, TAKEN, CLOSED, WAITING, EXPIRED = range(7)
# What an attach wants of a row. OPEN: a new stream. ADOPT: one that is there, whoever stepped it before. RECOVER: this
# caller's own, made anew if it is gone.
OPEN, ADOPT, RECOVER = range(3)


class StepsLost(StreamError):
    """Steps that were answered are gone from the state of their streams, and nobody has their inputs any more.

    If the program that stepped a stream ended together with the stream's actor, nobody knows whether there were such
    steps. The range of this stream then ends at `sys.maxsize`.

    Each stream in `missing` is at the first step of its range, unless another handle has stepped it since. Send those
    steps again, the first call with `step_index`, or close the stream. Calls without `step_index` raise StepsLost
    again: they may have been made by a task that has not heard of the loss. No step of such a stream that was under way
    was taken. All other streams of the call have taken theirs, unless `outputs` is None.

    Attributes
    ----------
    missing : {id: range of step indexes}
    outputs : what the call would have returned, with NaN (or 0) in the rows of these streams; None if no step was taken
    """

    def __init__(self, missing: dict[Any, range], outputs: Any = None):
        self.missing, self.outputs = missing, outputs
        some = list(missing.items())[:5]
        ends = ["on, if any were answered" if r.stop == UNKNOWN_END else f"to {r.stop - 1}" for _, r in some]
        begins = [f"{id!r:.60}: {'from ' * (r.stop == UNKNOWN_END)}{r.start}" for id, r in some]
        shown = ", ".join(f"{begin} {end}" for begin, end in zip(begins, ends, strict=True))
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        super().__init__(
            f"the steps of {len(missing)} streams are lost ({shown}{more}): their states are those before these steps; "
            "send the steps again, the first with step_index=, or close the streams"
        )

    def __reduce__(self):
        return StepsLost, (self.missing, self.outputs)


class Unreachable(Exception):
    """A call failed in a way that leaves open whether it was executed."""


class OtherCluster(StreamError):
    """An actor of this name belongs to a cluster in another store."""


class Fenced(Exception):
    """Another process has taken a shard: its epoch in the store is newer."""


def ids_of(ids: Any) -> list:
    """Ids of callers as plain ints and texts, which messages and checkpoints hold. StateError: one is neither."""
    if isinstance(ids, np.ndarray) and ids.ndim:
        names = ids.tolist()
    elif isinstance(ids, Collection) and not isinstance(ids, str | bytes | np.ndarray):
        names = list(ids)
    else:
        raise StateError(f"ids are a list or an array of ids, got {ids!r:.80}: pass [{ids!r:.60}]")
    return [id if type(id) is str else _id_of(id) for id in names]


def _id_of(id: Any) -> int | str:
    if isinstance(id, str):
        return str(id)
    if isinstance(id, int | np.integer) and not isinstance(id, bool) and 0 <= id < 1 << 64:
        return int(id)
    raise StateError(f"an id is an integer from 0 to 2**64 - 1 or a text, got {id!r:.80}")


def key_of(ids: Any) -> Any:
    """A key by which equal ids are known again. An array of objects has their addresses, which others get later."""
    if isinstance(ids, np.ndarray) and not ids.dtype.hasobject:
        return ids.dtype.str, ids.shape, ids.tobytes()
    try:
        key = tuple(ids)
        hash(key)
    except TypeError:
        return None  # it is refused
    return key


def shards_of(ids: Iterable[int | str], shards: int) -> np.ndarray:
    """The shard of each id, int64 [n]: the same in every process and release."""
    ids = list(ids)
    numbers = np.empty(len(ids), np.uint64)
    for i, id in enumerate(ids):
        if isinstance(id, str):
            digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8, person=b"text").digest()
            numbers[i] = int.from_bytes(digest, "little")
        else:
            numbers[i] = id & 0xFFFFFFFFFFFFFFFF
    with np.errstate(over="ignore"):  # splitmix64
        z = numbers + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z % np.uint64(shards)).astype(np.int64)
