"""Whole sequences without an id: requests that wait at the same time share a run, whatever their lengths.

Clients send [batch, steps, features...] and get the same, whatever the order of the axes in the model's file is.
"""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .faults import Fault, failure
from .shares import Shares

MOST_WAITING = 1024  # requests, shared by the clients that wait; more are refused
RUN_ELEMENTS = 1 << 21  # of the inputs that the thread takes at once, if no single request has more
MOST_PADDED = 1 << 22  # elements of a joint run, whose shorter sequences are padded


class Waiting:
    """A request that waits. taken : a run has it."""

    __slots__ = ("future", "inputs", "taken")

    def __init__(self, inputs: dict[str, np.ndarray], future: asyncio.Future):
        self.inputs, self.future, self.taken = inputs, future, False


class WholeRuns:
    """Runs of one version of a model on a thread of its own.

    Parameters
    ----------
    model : Model
    max_delay : seconds that a request may wait for others
    """

    def __init__(self, model: Any, max_delay: float):
        self.model, self.max_delay = model, max_delay
        states = model.graph.states  # input -> the output that follows it
        self.inputs = [i for i in model.inputs if i.name not in states]
        self.outputs = [o for o in model.outputs if o.name not in states.values()] or list(model.outputs)
        self.runs = self.requests = 0
        self.seconds = 0.0  # of the last runs; their requests are answered before the next ones end
        self._orders = {a.name: _batch_first(a.dims) for a in (*self.inputs, *self.outputs)}
        self._joint = all({*a.dims[:2]} == {"batch", "time"} for a in (*self.inputs, *self.outputs))
        self._waiting: Shares[Waiting] = Shares()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fastrnn-whole")
        self._task: asyncio.Task | None = None

    async def run(
        self, inputs: dict[str, np.ndarray], timeout: float | None = None, client: str = ""
    ) -> dict[str, np.ndarray]:
        """The outputs of whole sequences, by name. timeout: seconds in which a run must take them; None: any time.
        client: whose request it is.

        Fault: the inputs are wrong, too many requests wait, or no run took this one in time.
        """
        has = self._waiting.waiting(client)
        if len(self._waiting) >= MOST_WAITING and has >= MOST_WAITING // (self._waiting.clients + (not has)):
            text = f"{len(self._waiting)} requests wait for '{self.model.name}', {has} of them of this client"
            raise Fault("RESOURCE_EXHAUSTED", "queue_full", f"{text}: send it again after 1 s", retry_after=1.0)
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        waiting = Waiting(inputs, future)
        self._waiting.add(client, waiting, max(1, sum(v.size for v in inputs.values())))
        self.requests += 1
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._serve())
        if timeout is None:
            return await future
        timer = loop.call_later(timeout, self._expire, waiting, timeout)
        try:
            return await future
        finally:
            timer.cancel()

    def _expire(self, waiting: Waiting, timeout: float) -> None:
        if not waiting.future.done() and not waiting.taken:
            text = f"no run took the request in {timeout:g} s: send it again later"
            waiting.future.set_exception(Fault("DEADLINE_EXCEEDED", "timeout", text))

    async def close(self) -> None:
        """Finish what waits."""
        if self._task is not None:
            await asyncio.wait([self._task])
        self._worker.shutdown(wait=True)

    async def _serve(self) -> None:
        loop, late = asyncio.get_running_loop(), False
        while self._waiting:
            if self.max_delay and not late:  # those that are left have waited
                await asyncio.sleep(self.max_delay)
            live = self._waiting.some(RUN_ELEMENTS)
            late = bool(self._waiting)
            for waiting in live:
                waiting.taken = True
            began = time.monotonic()  # a loop's time() is that of uvloop: whole milliseconds
            try:
                results = await loop.run_in_executor(self._worker, self._answers, [w.inputs for w in live])
            except BaseException as error:  # of the loop itself: no caller may wait for ever
                results = [error] * len(live)
                if not isinstance(error, Exception):
                    raise
            self.seconds = time.monotonic() - began
            for waiting, result in zip(live, results, strict=True):
                future = waiting.future
                if future.done():
                    continue
                if isinstance(result, BaseException):
                    future.set_exception(failure(result, "run"))
                else:
                    future.set_result(result)

    # -- on the thread --
    def _answers(self, requests: list[dict[str, np.ndarray]]) -> list:
        """The outputs of each request, or its error."""
        answers: list = [None] * len(requests)
        for group in self._groups(requests):
            try:
                found = self._together([requests[i] for i in group]) if len(group) > 1 else None
            except Exception:  # it is one request's alone, which gets it below
                found = None
            for k, i in enumerate(group):
                answers[i] = found[k] if found is not None else self._alone(requests[i])
        return answers

    def _groups(self, requests: list[dict[str, np.ndarray]]) -> list[list[int]]:
        """Which requests may share a run: those that differ in rows and steps alone, while they fit."""
        kinds: dict[Any, list[int]] = {}
        for i, inputs in enumerate(requests):
            leading = {v.shape[:2] for v in inputs.values()}  # NumPy would repeat one row for those of another input
            key = tuple((n, v.dtype.str, v.shape[2:], v.ndim) for n, v in sorted(inputs.items()))
            flat = any(v.ndim < 2 for v in inputs.values())
            if not self._joint or flat or len(leading) != 1 or not all(map(all, leading)):
                key = i  # alone
            kinds.setdefault(key, []).append(i)
        return [group for some in kinds.values() for group in _fitting(requests, some)]

    def _alone(self, inputs: dict[str, np.ndarray]) -> Any:
        try:
            y = self._run(inputs)
        except Exception as error:
            return error
        self.runs += 1
        return self._named(y)

    def _together(self, requests: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """One run of all rows: shorter sequences are padded, and end at their own length."""
        rows = [next(iter(inputs.values())).shape[:2] for inputs in requests]
        most = max(steps for _, steps in rows)
        joined = {}
        for name, first in requests[0].items():
            whole = np.zeros((sum(n for n, _ in rows), most, *first.shape[2:]), first.dtype)
            at = 0
            for inputs, (n, steps) in zip(requests, rows, strict=True):
                whole[at : at + n, :steps] = inputs[name]
                at += n
            joined[name] = whole
        lengths = np.repeat([steps for _, steps in rows], [n for n, _ in rows])
        outputs = self._named(self._run(joined, lengths=lengths))
        self.runs += 1
        answers, at = [], 0
        for n, steps in rows:
            answers.append({name: v[at : at + n, :steps].copy() for name, v in outputs.items()})
            at += n
        return answers

    def _run(self, inputs: dict[str, np.ndarray], **more: Any) -> Any:
        """A run of the model, whose axes are in the order of its file."""
        moved = {}
        for name, v in inputs.items():
            order = self._orders.get(name, ())
            moved[name] = v.transpose(np.argsort(order)) if len(order) == v.ndim else v
        return self.model(**moved, **more)

    def _named(self, y: Any) -> dict[str, np.ndarray]:
        values = y if isinstance(y, tuple) else (y,)
        names = [o.name for o in self.outputs]
        return {name: v.transpose(self._orders[name]) for name, v in zip(names, values, strict=True)}


def _batch_first(dims: tuple[int | str, ...]) -> list[int]:
    """The axes of an array of a file, in the order of a request: batch, time, features."""
    batch = [i for i, d in enumerate(dims) if d == "batch"][:1]
    steps = [i for i, d in enumerate(dims) if isinstance(d, str) and re.search(r"\btime\b", d)][:1]
    return [*batch, *steps, *(i for i in range(len(dims)) if i not in (*batch, *steps))]


def _fitting(requests: list[dict[str, np.ndarray]], some: list[int]) -> list[list[int]]:
    """Requests of one kind in groups of similar lengths: padding a thousand short ones to a long one would fill the
    memory."""
    if len(some) == 1:
        return [some]
    sizes = {}
    for i in some:
        rows, steps = next(iter(requests[i].values())).shape[:2]
        sizes[i] = steps, rows, sum(v.size for v in requests[i].values()) / max(1, rows * steps)
    groups: list[list[int]] = []
    padded = 0.0
    for i in sorted(some, key=lambda i: sizes[i][0], reverse=True):
        _, rows, width = sizes[i]
        if groups:
            padded += rows * sizes[groups[-1][0]][0] * width
        if not groups or padded > MOST_PADDED:
            groups.append([])
            padded = sizes[i][0] * rows * width
        groups[-1].append(i)
    return groups
