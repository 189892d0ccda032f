"""PacedStream: the stream of a model whose outputs don't come one a step: it looks ahead, or changes the rate.

A convolution that sees later steps lets its outputs lag (`delay`), a strided one brings one every few steps, a
transposed one several at once. What a call brings follows from the steps taken so far (fastrnn.timetable), so that a
pool may step streams of equal `phase` together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._executor import StreamParts
from .arguments import check_out, collect, deliver
from .casts import as_dtype
from .errors import StateError, StreamError
from .stream import Stream
from .streaming import MOST_STEPS
from .timetable import Timetable

if TYPE_CHECKING:
    from .model import Model
    from .plan import Plan

LARGEST = 64  # steps of one call: powers of two, so that few sizes are bound, whatever the lengths of chunks
POSITION = "steps_done"  # beside the states: how far the sequence is; -1 after `flush`


def check_room(plan: Plan, who: str, taken: int, span: int) -> None:
    """Raise StreamError where a stream that has taken so many steps can't take `span` more."""
    if plan.room is not None and taken + span > plan.room:
        text = f"{plan.room_text}; {who} has taken {taken} steps and is given {span} more"
        raise StreamError(f"{plan.graph.name}: {text}. reset() begins anew")


def take_position(state, name: str) -> tuple[int, dict]:
    """`steps_done` of a state as its user sees it, -1 after `flush`, and the other entries; StateError without it."""
    try:
        position = as_dtype(state[POSITION], "int64", f"state {POSITION}")
        rest = {k: v for k, v in state.items() if k != POSITION}
    except (TypeError, KeyError, IndexError, AttributeError):
        raise StateError(f"a state of {name} is a dict that holds {POSITION} too") from None
    if position.shape != () or not -1 <= position <= MOST_STEPS:
        raise StateError(f"{POSITION} must be one number of steps, got {state[POSITION]!r:.80}")
    return int(position), rest


class PacedStream(Stream):
    """One live sequence of a model whose outputs come at paces of their own; made by `Model.stream()`.

    `step` returns None while nothing comes, and leaves `out` untouched then. An output of which one step may bring
    several has a first axis (after the batch's) for them in `step` too; it takes no `out`. A value over all steps (the
    last one, a mean) is that of the whole run of the steps so far: where the model looks ahead, each call works it out
    by a second one, on the padding that the end would bring. It is None where that run has no steps to take it of.
    """

    __slots__ = ("_still",)

    def __init__(self, model: Model, parts: StreamParts):
        self._still: list = []  # the last arrays of inputs without time, which flush needs again
        super().__init__(model, parts)

    @property
    def _timetable(self) -> Timetable:
        return self._parts.timetable

    @property
    def phase(self) -> int:
        """Streams of one model with equal phases take and bring the same steps in a call."""
        return self._timetable.phase(self.steps_done)

    # -- calls --
    def step(self, x, out=None):
        """As `Stream.step`; None (or a tuple with None) where no step of an output comes."""
        if self._timetable.simple:
            y = self._step_paced(x, out)
            if y is not NotImplemented:
                return y
        return self._step_general(x, out)

    def _step_general(self, x, out):
        self._check_room(1)  # before what is wrong with x; once more when the stream is held
        parts, batch, many = self._parts, self.batch_size, self._timetable.many
        if out is not None and any(many):
            raise StreamError(f"{self.model.name}: a step may bring several steps of an output, so it takes no out")
        outs = check_out(parts.outputs, out, batch)
        given = collect(parts.names, x)
        arrays = [a.check_step(v, batch) for a, v in zip(parts.inputs, given, strict=True)]
        arrays = [v.reshape(a.chunk_shape(batch, 1)) for a, v in zip(parts.inputs, arrays, strict=True)]
        with self._held():
            results = self._take(arrays, 1)
        for i, (argument, result) in enumerate(zip(parts.outputs, results, strict=True)):
            if result is not None and argument.timed and not many[i]:
                result = result.reshape(argument.step_shape(batch)) if result.size or 0 in argument.features else None
            elif result is not None and argument.timed and result.shape[self._axis(argument)] == 0:
                result = None
            results[i] = result
        if outs is not None:
            for target, result in zip(outs, results, strict=True):
                if result is not None:
                    np.copyto(target, result)
            results = [None if r is None else target for target, r in zip(outs, results, strict=True)]
        return deliver(results, None)

    def push(self, chunk):
        """As `Stream.push`; the outputs are those that come with these steps."""
        self._check_room(0)
        arrays, span = self._checked_chunk(chunk)
        with self._held():
            return deliver(self._take(arrays, span), None)

    def flush(self):
        """As `Stream.flush`: what was held back, and the final value of what is reduced over time.

        A sequence that is too short for a window of the model, which a whole run refuses, brings nothing more.
        """
        batch, inputs = self.batch_size, self._parts.inputs
        with self._held():
            if not self.ended and not self._still and not all(a.timed for a in inputs):
                raise StreamError(
                    f"{self.model.name}: flush before the first step, with inputs unknown that have no time axis"
                )
            still = iter(self._still)
            arrays = [
                np.empty(a.chunk_shape(batch, 0), a.stored) if a.timed else next(still, np.empty(0)) for a in inputs
            ]
            results = self._take(arrays, 0, final=True)
            self.ended = True
        return deliver(results, None)

    def _check_room(self, span: int) -> None:
        """Raise StreamError where the stream can't take `span` steps more."""
        if self.ended:
            raise StreamError("this stream was flushed: its sequence is at its end; reset() begins another")
        check_room(self._parts.program.plan, "the stream", self.steps_done, span)

    def _axis(self, argument) -> int:
        """The axis of steps in a chunk."""
        return len(argument._lead(self.batch_size))

    def _take(self, arrays: list, span: int, final: bool = False) -> list:
        """Advance the stream, which is held, by the steps of checked chunks; returns what comes, None for a value over
        time that is not there."""
        self._check_room(span)
        parts, position, done = self._parts, self.steps_done, 0
        new = self._timetable.outputs(position, span, final)
        if final and position < self._timetable.least:  # too short for a window of the model: it brings no more
            new, final = (0,) * len(new), False
        results = self._room(new)
        filled = [0] * len(results)
        before = self.slab.copy()
        try:
            while done < span or (final and done == span == 0):
                n = min(LARGEST, 1 << (span - done).bit_length() - 1) if span else 0
                counts = self._timetable.counts(position + done, n, final and done + n == span)
                sources = [self._part(a, v, done, n) for a, v in zip(parts.inputs, arrays, strict=True)]
                targets = [
                    self._part(o, r, at, k)
                    for o, r, at, k in zip(parts.outputs, results, filled, counts.outputs, strict=True)
                ]
                self._call_paced([*sources, *targets], counts.number)
                for i, (o, target) in enumerate(zip(parts.outputs, targets, strict=True)):
                    if o.timed:
                        self._put(o, results[i], filled[i], target)
                        filled[i] += counts.outputs[i]
                if span == 0:
                    break
                done += n
            self.steps_done = position + span
            if self._timetable.guesses and span and not final:
                new = self._guess(arrays, results, new)
        except BaseException:
            self.slab[...], self.steps_done = before, position
            raise
        if span and not all(a.timed for a in parts.inputs):  # a chunk of no steps says nothing, not even this
            self._still = [np.array(v) for a, v in zip(parts.inputs, arrays, strict=True) if not a.timed]
        nothing = span == 0 and not final
        return [
            r if o.timed or (n and not nothing) else None for o, n, r in zip(parts.outputs, new, results, strict=True)
        ]

    def _room(self, new: tuple[int, ...]) -> list[np.ndarray]:
        """An array for so many new steps of each output."""
        both = zip(self._parts.outputs, new, strict=True)
        return [np.empty(o.chunk_shape(self.batch_size, n), o.stored) for o, n in both]

    def _guess(self, arrays: list, results: list, new: tuple[int, ...]) -> tuple[int, ...]:
        """Put values over time as they are if the sequence ended here into `results`; returns `new` with whether each
        is there. The states stay."""
        counts = self._timetable.counts(self.steps_done, 0, True)
        sources = [self._part(a, v, 0, 0) for a, v in zip(self._parts.inputs, arrays, strict=True)]
        targets, now = self._room(counts.outputs), self.slab.copy()
        try:
            self._call_paced([*sources, *targets], counts.number)
        finally:
            self.slab[...] = now
        for i, o in enumerate(self._parts.outputs):
            results[i] = results[i] if o.timed else targets[i]
        return tuple(n if o.timed else k for o, n, k in zip(self._parts.outputs, new, counts.outputs, strict=True))

    def _part(self, argument, array: np.ndarray, start: int, steps: int) -> np.ndarray:
        """Steps of a chunk as one run of memory: a view where they are one."""
        if not argument.timed:
            return array
        index = (slice(None),) * self._axis(argument) + (slice(start, start + steps),)
        return np.ascontiguousarray(array[index])

    def _put(self, argument, array: np.ndarray, start: int, part: np.ndarray) -> None:
        """Steps of an output into their place, where `_part` had to copy."""
        index = (slice(None),) * self._axis(argument) + (slice(start, start + part.shape[self._axis(argument)]),)
        if part.size and not np.may_share_memory(array, part):
            array[index] = part

    # -- state --
    def _states(self) -> dict[str, np.ndarray]:
        """With `steps_done`: int64, where in the sequence the states belong; -1 after `flush`."""
        return super()._states() | {POSITION: np.array(-1 if self.ended else self.steps_done, np.int64)}

    def _set_states(self, new) -> None:
        position, states = take_position(new, self.model.name)
        super()._set_states(states)
        self.ended, self.steps_done = position == -1, max(position, 0)

    def _tail(self) -> tuple[bool, dict[str, np.ndarray]]:
        n, names = self.slab.shape[0], [a for a in self._parts.inputs if not a.timed]
        whole = [v if len(a._lead(self.batch_size)) else v[None] for a, v in zip(names, self._still, strict=False)]
        still = {a.name: np.broadcast_to(v, (n, *v.shape[1:])) for a, v in zip(names, whole, strict=False)}
        return self.ended, still

    def _checked_tail(self, ended: bool, still: dict[str, np.ndarray]):
        found = []
        names = [a for a in self._parts.inputs if not a.timed] if still else []
        for a in names:
            want = np.empty((self.slab.shape[0], *a.features), a.stored)
            got = still.get(a.name)
            if got is None or got.shape != want.shape or got.dtype != want.dtype or len(still) != len(names):
                raise StateError(f"the snapshot's input {a.name} is not {want.dtype}{list(want.shape)}")
            found.append(np.array(got if len(a._lead(self.batch_size)) else got[0]))
        return ended, found

    def _own_tail(self) -> tuple[bool, list]:
        return self.ended, self._still

    def _set_tail(self, ended: bool, still: list) -> None:
        self.ended, self._still = ended, still
