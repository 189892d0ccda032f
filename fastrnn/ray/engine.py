"""The streams of a host in a pool of the model."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import StreamError, UnsupportedError
from ..runtime import snapshots
from ..serving import pool_snapshots

FIRST_CAPACITY = 1024


class PoolEngine:
    """A pool that grows, as `Host` needs it.

    Parameters
    ----------
    model : Model

    Attributes
    ----------
    inputs, outputs : of a step: (name, dtype, features)
    """

    def __init__(self, model: Any):
        self.pool = model.pool(FIRST_CAPACITY)
        self.inputs, self.outputs = sides_of(model, self.pool)

    def open(self, n: int) -> np.ndarray:
        """New streams: slots, int64 [n]."""
        self._room(n)
        return np.array([self.pool.open() for _ in range(n)], np.int64)

    def _room(self, n: int) -> None:
        capacity = self.pool.capacity
        while capacity - len(self.pool) < n:
            capacity *= 2
        if capacity > self.pool.capacity:
            self.pool.grow(capacity)

    def close(self, slots: np.ndarray) -> None:
        """End streams."""
        with self.pool._alone():
            self.pool._close_all(np.ascontiguousarray(slots))

    def step(self, slots: np.ndarray, arrays: list[np.ndarray], lengths: np.ndarray | None) -> list[np.ndarray]:
        """One step of each stream, or lengths[i] of them."""
        if lengths is None:
            y = self.pool.step(slots, arrays[0] if len(arrays) == 1 else tuple(arrays))
            return list(y) if isinstance(y, tuple) else [y]
        ends = np.cumsum(lengths)[:-1]
        parts = [np.split(a, ends) for a in arrays]
        chunks = parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))
        rows = self.pool.push(slots, chunks)
        columns = list(zip(*rows, strict=True)) if len(self.outputs) > 1 else [rows]
        return [np.concatenate(column) for column in columns]

    def capture(self, groups: list[np.ndarray]) -> list:
        """The states of streams now, by group."""
        taken, at, found = pool_snapshots.of_some(self.pool, np.concatenate(groups)), 0, []
        for slots in groups:
            found.append(taken.only(slice(at, at + len(slots))))
            at += len(slots)
        return found

    def encode(self, captured: Any) -> bytes:
        """Their bytes."""
        return snapshots.to_bytes(captured)

    def restore(self, blob: bytes) -> np.ndarray:
        """New streams with these states, in the order in which they were captured."""
        self._room(sum(len(part.steps) for part in snapshots.read_parts(blob)))
        return np.array(list(self.pool.restore_all(blob).values()), np.int64)


def sides_of(model: Any, pool: Any = None) -> tuple[list[tuple], list[tuple]]:
    """(inputs, outputs) of a step of a model's streams, each (name, dtype, features).

    StreamError, UnsupportedError : the model can't be stepped by a cluster.
    """
    pool = pool or model.pool(1)
    if pool.program is None:
        raise UnsupportedError(
            "it leaves a size open, which the first step fixes: a cluster needs it before, so load it with sizes=",
            model.name,
        )
    parts = pool._parts
    if parts.timetable:
        raise UnsupportedError("its outputs don't come one per step, so a cluster can't step it", model.name)
    if not all(a.batched for a in (*parts.inputs, *parts.outputs)):
        raise StreamError(f"{model.name}: an input or output has no batch axis, so its streams can't share a step")
    return tuple([(a.name, a.dtype, tuple(a.features)) for a in side] for side in (parts.inputs, parts.outputs))  # type: ignore[return-value]
