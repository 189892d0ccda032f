"""The calls of a pool that answer the requests of a tick."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..errors import FastRNNError, out_of_memory
from ..runtime._meter import Histogram, seconds
from ._queues import MORE, Close, Many, Push, Request, Step
from .pool import StreamPool


class Last(Push):
    """A chunk after which its stream ends: the answer has what the stream held back as well. It may have no step."""

    def add(self, answer: Any, outputs: Iterable[Any], flush: Callable[[], Any] | None = None) -> Any:
        """As `Push.add`. flush: returns the outputs that were held back."""
        found = super().add(answer, outputs)
        if found is MORE or flush is None:
            return found
        sides = [v if isinstance(v, tuple) else (v,) for v in (found, flush())]
        joined = [_joined(a.timed, *parts) for a, *parts in zip(outputs, *sides, strict=True)]
        return joined[0] if len(joined) == 1 else tuple(joined)


def _joined(timed: bool, before: Any, after: Any) -> Any:
    """The steps of an output that came, and those that were held back; or its last value over all steps."""
    if timed:
        return np.concatenate([before, after]) if len(after) else before
    return before if after is None else after


class TickCounts:
    """What a batcher counts besides its steps."""

    def __init__(self):
        self.timeouts = self.refused = 0
        self.last, self.last_rows = 0.0, 0  # seconds and rows of the last tick
        self.seconds, self.waits, self.sizes = seconds(), seconds(), Histogram()

    def tick(self, seconds: float, rows: int) -> None:
        """A tick has ended. rows: of its requests."""
        self.last, self.last_rows = seconds, rows
        self.seconds.add(seconds)
        self.sizes.add(rows)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "timeouts": self.timeouts,
            "refused": self.refused,
            "tick_seconds": self.seconds.as_dict(),
            "batch_size": self.sizes.as_dict(),
            "queue_wait_seconds": self.waits.as_dict(),
        }


def run_rounds(pool: StreamPool, rounds: list[list[Request]], limit: float) -> tuple[list[Request], list]:
    """Run the first round, and others until `limit` seconds are over.

    Returns
    -------
    (requests that were run, their answers): an answer is what `StreamPool.step` or `push` returns for the row, MORE, or
    the error of this request alone.
    """
    end = time.monotonic() + limit
    done: list[Request] = []
    answers: list = []
    blocked: set[int] = set()  # streams whose push has steps left: their later requests must wait
    for number, requests in enumerate(rounds):
        if number and (time.monotonic() > end or not blocked.isdisjoint(r.slot for r in requests)):
            break
        try:
            found = run_round(pool, requests)
        except Exception as error:  # such as MemoryError; the rounds before it keep their answers
            own = out_of_memory(error, "a tick") if isinstance(error, MemoryError) else error
            found = [own] * len(requests)
        done += requests
        answers += found
        blocked.update(r.slot for r, answer in zip(requests, found, strict=True) if answer is MORE)
    return done, answers


def unfinished(rounds: list[list[Request]], done: list[Request], answers: list) -> list[Request]:
    """The requests that a tick took and did not finish: chunks that have steps left, then whole rounds, in order."""
    left = [request for request, answer in zip(done, answers, strict=True) if answer is MORE]
    count = 0
    for requests in rounds:
        count += len(requests)
        if count > len(done):
            left += requests
    return left


def run_round(pool: StreamPool, requests: list[Request]) -> list:
    """The answer to each request, or the error that is its own. No two are of one stream."""
    if all(issubclass(kind, Step) for kind in {type(r) for r in requests}):
        return _apart(pool, requests, _steps)
    answers: dict[int, Any] = {}
    for kind, call in _CALLS.items():
        some = [r for r in requests if (Step if isinstance(r, Step) else type(r)) is kind]
        if some:
            answers.update(zip(map(id, some), _apart(pool, some, call), strict=True))
    return [answers[id(r)] for r in requests]


def _apart(pool: StreamPool, requests: list, call) -> list:
    """`call`, again in halves if it fails: an error belongs to one request, and no state has changed."""
    try:
        return call(pool, requests)
    except FastRNNError as error:
        if len(requests) == 1:
            return [error]
    half = len(requests) // 2  # one by one, every caller would lose the batch
    return _apart(pool, requests[:half], call) + _apart(pool, requests[half:], call)


def _steps(pool: StreamPool, requests: list[Step]) -> list:
    columns = [_stacked([r.arrays[i] for r in requests]) for i in range(len(requests[0].arrays))]
    y = pool.step([r.slot for r in requests], columns[0] if len(columns) == 1 else tuple(columns))
    if isinstance(y, list):  # of a model with a timetable: each row has its own array already
        return y
    outputs = pool._parts.outputs
    if not isinstance(y, tuple):
        return [row.copy() for row in y] if outputs[0].batched else [y.copy() for _ in requests]
    rows = [[(v[i] if a.batched else v).copy() for a, v in zip(outputs, y, strict=True)] for i in range(len(requests))]
    return [tuple(row) for row in rows]


def _many(pool: StreamPool, requests: list[Many]) -> list:
    """A call each: its rows are a batch already, and a failure is that of its own caller."""
    return [_one_of_many(pool, request) for request in requests]


def _one_of_many(pool: StreamPool, request: Many) -> Any:
    try:
        return pool.step(request.slots, request.arrays[0] if len(request.arrays) == 1 else tuple(request.arrays))
    except FastRNNError as error:
        return error


def _stacked(rows: list[np.ndarray]) -> np.ndarray:
    """np.stack, which takes 5 times as long."""
    return np.concatenate(rows).reshape(len(rows), *rows[0].shape) if rows[0].ndim else np.array(rows)


def _pushes(pool: StreamPool, requests: list[Push]) -> list:
    inputs, outputs = pool._parts.inputs, pool._parts.outputs
    pieces = [r.piece(inputs) for r in requests]
    answers = pool.push([r.slot for r in requests], [p[0] if len(p) == 1 else p for p in pieces])
    return [r.add(answer, outputs) for r, answer in zip(requests, answers, strict=True)]


def _lasts(pool: StreamPool, requests: list[Last]) -> list:
    inputs, outputs = pool._parts.inputs, pool._parts.outputs
    pieces = [r.piece(inputs) for r in requests]
    answers = pool.push([r.slot for r in requests], [p[0] if len(p) == 1 else p for p in pieces])
    return [_last(pool, r, answer, outputs) for r, answer in zip(requests, answers, strict=True)]


def _last(pool: StreamPool, request: Last, answer: Any, outputs: Any) -> Any:
    try:
        return request.add(answer, outputs, lambda: pool.flush(request.slot))
    except Exception as error:  # its steps were taken: it must not run again
        return error


def _closes(pool: StreamPool, requests: list[Close]) -> list:
    return [_close(pool, request) for request in requests]


def _close(pool: StreamPool, request: Close) -> Any:
    """End one stream: None, its snapshot, or the error."""
    try:
        snapshot = pool.snapshot(request.slot) if request.snapshot else None
        pool.close(request.slot)
        return snapshot
    except FastRNNError as error:
        return error


_CALLS: dict[type, Any] = {Step: _steps, Many: _many, Push: _pushes, Last: _lasts, Close: _closes}
