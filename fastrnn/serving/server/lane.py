"""One version of a model: what its steps take, the pool of its live sequences, and the batcher that steps them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import FastRNNError
from ...runtime.arguments import chunk_arrays, step_arrays
from .._queues import Close, Many, Push, Request, Step
from ..rounds import Last
from .faults import invalid
from .shares import Ticks

NO_STEP = -1  # the steps of a request that only ends its sequence
FIRST = 64  # slots of a pool at first; it doubles when they are taken


class Steps:
    """What a step of one version takes and gives, whatever runs it.

    Parameters
    ----------
    model : Model
    version : int
    slots : of its pool
    """

    def __init__(self, model: Any, version: int, slots: int = 1):
        self.model, self.version = model, version
        self.pool = model.pool(slots)
        self.inputs = self.pool._parts.inputs
        self.outputs = self.pool._parts.outputs
        # Whether each step of each row gives one step of each output; other models answer in chunks, one by one.
        self.even = not self.pool._parts.timetable and all(a.batched for a in (*self.inputs, *self.outputs))
        self.late = bool(self.pool._parts.timetable)  # whether a stream may hold outputs back until its end
        features = self.inputs[0].features if self.even and len(self.inputs) == 1 else ("open",)
        plain = all(isinstance(n, int) for n in features) and self.inputs[0].dtype == "float32"
        self.plain = (1, *features) if plain else None  # the shape of a step of a model with one float32 input

    def steps_of(self, arrays: list[np.ndarray], ends: bool = False) -> tuple[list[np.ndarray], int]:
        """(the inputs of a request, checked, in memory that stays, without their batch axis; their steps). An input is
        [1, F...] for one step or [1, T, F...] for a chunk. ends: T may be 0, as the request ends its sequence."""
        array = arrays[0]
        if array.shape == self.plain and array.dtype == np.float32 and array.flags.c_contiguous and array.flags.aligned:
            return [_own(array[0])], 0
        bare, ranks = [], set()
        for argument, array in zip(self.inputs, arrays, strict=True):
            if argument.batched:
                if array.ndim == 0 or array.shape[0] != 1:
                    raise invalid(
                        f"input {argument.name!r} has shape {list(array.shape)}: a request of one sequence is "
                        "[1, features] for one step, or [1, steps, features] for a chunk"
                    )
                array = array[0]
            bare.append(array)
            ranks.add(array.ndim - len(argument.features) if argument.timed else 0)
        try:
            if ranks <= {0} and not self.even:
                bare = [v[None] if a.timed else v for a, v in zip(self.inputs, bare, strict=True)]
            elif ranks <= {0}:
                return [_own(v) for v in step_arrays(self.pool._parts, _given(bare), None)], 0
            checked, steps = chunk_arrays(self.pool._parts, _given(bare), None)
        except FastRNNError as error:
            raise invalid(str(error)) from None
        if not steps and not ends:
            raise invalid(
                "the chunk has no step: an input is [1, steps, features] with at least one step, unless the request "
                "ends its sequence and does not start it"
            )
        return [_own(v) for v in checked], steps or NO_STEP

    def rows_of(self, arrays: list[np.ndarray], rows: int) -> list[np.ndarray]:
        """The inputs of one step of each of several sequences, checked, in memory that stays: [rows, F...]."""
        if not self.even:
            raise invalid(
                f"'{self.model.name}' does not give one step of each output for each step of a sequence: send requests "
                "of one sequence each"
            )
        try:
            return [_own(v) for v in step_arrays(self.pool._parts, _given(arrays), rows)]
        except FastRNNError as error:
            raise invalid(str(error)) from None


class Lane(Steps):
    """The engine of one version in this process.

    Parameters
    ----------
    model : Model
    version : int
    max_delay : seconds that a step may wait for others
    rows : of a tick, shared by the clients; None: by the threads of the model
    """

    def __init__(self, model: Any, version: int, max_delay: float, rows: int | None = None):
        super().__init__(model, version, FIRST)
        self.batcher = Ticks(self.pool, max_delay, rows, model.threads)

    @property
    def names(self) -> tuple[str, ...]:
        """The fingerprints of the model: one that it shares with another makes them the same."""
        return self.pool._core.identity.models

    # -- what runs on the engine's thread, between ticks --
    async def call(self, function: Callable, *args: Any) -> Any:
        """The result of a function of the pool."""
        return await asyncio.get_running_loop().run_in_executor(self.batcher._worker, function, *args)

    def opened(self, number: int) -> list[int]:
        """Slots of new streams, in their initial state: all, or none if there is an error."""
        found: list[int] = []
        try:
            for _ in range(number):
                self._make_room()
                found.append(self.pool.open())
        except BaseException:
            for slot in found:
                self.pool.close(slot)
            raise
        return found

    def restored(self, snapshot: bytes) -> int:
        """A slot of a stream that goes on."""
        self._make_room()
        return self.pool.restore(snapshot)

    def _make_room(self) -> None:
        if len(self.pool) == self.pool.capacity:
            self.pool.grow(2 * self.pool.capacity)

    # -- what ticks run --
    def submit(
        self, slots: list[int], future: Any, arrays: list[np.ndarray], steps: int, *, many: bool, ends: bool = False
    ) -> Request:
        """Give the batcher checked inputs. future: gets the result; steps: of a chunk; 0 for one step. ends: they are
        the last of their stream."""
        request: Request
        if many:
            request = Many(slots, future, arrays)
        elif steps == NO_STEP or (ends and self.late):
            request = Last(slots[0], future, arrays, max(steps, 0))
        elif steps:
            request = Push(slots[0], future, arrays, steps)
        else:
            request = Step(slots[0], future, tuple(arrays))
        self.batcher._submit(request)
        return request

    def end(self, slot: int, *, snapshot: bool = False) -> asyncio.Future:
        """End a stream after the steps of it that wait. The future gets its snapshot, or None."""
        request = Close(slot, asyncio.get_running_loop().create_future(), snapshot)
        self.batcher._submit(request)
        return request.future

    def stats(self) -> dict[str, Any]:
        """What `Batcher.stats` says."""
        return self.batcher.stats()

    @property
    def tick_seconds(self) -> float:
        """Of the last tick; its requests are answered before the next one ends."""
        return self.batcher._counts.last

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of the open streams."""
        return 0 if self.pool.program is None else len(self.pool) * self.pool.slab.strides[0]

    async def close(self) -> None:
        """Finish what waits, and end the thread."""
        await self.batcher.close()
        self.pool.close()


def _own(array: np.ndarray) -> np.ndarray:
    """An array that nobody else writes: itself if it can't be written, as those of messages, else a copy."""
    return array if array.base is not None and not array.flags.writeable else np.array(array)


def _given(arrays: list[np.ndarray]) -> Any:
    """Inputs as callers of a stream pass them: one bare, several as a tuple."""
    return arrays[0] if len(arrays) == 1 else tuple(arrays)
