"""Whole sequences without an id: requests that wait at the same time share a run, whatever their lengths."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .faults import Fault, failure

MOST_WAITING = 1024  # requests; more are refused
MOST_ELEMENTS = 1 << 24  # of the inputs of a joint run


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
        self._joint = all(i.dims[:2] == ("batch", "time") for i in self.inputs) and all(
            o.dims[:2] == ("batch", "time") for o in self.outputs
        )
        self._waiting: list[tuple[dict[str, np.ndarray], asyncio.Future]] = []
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fastrnn-whole")
        self._task: asyncio.Task | None = None

    async def run(self, inputs: dict[str, np.ndarray], timeout: float | None = None) -> dict[str, np.ndarray]:
        """The outputs of whole sequences, by name. timeout: seconds in which a run must take them; None: any time.

        Fault: the inputs are wrong, too many requests wait, or no run took this one in time.
        """
        if len(self._waiting) >= MOST_WAITING:
            text = f"{len(self._waiting)} requests wait for '{self.model.name}': send it again after 1 s"
            raise Fault("RESOURCE_EXHAUSTED", "queue_full", text, retry_after=1.0)
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting.append((inputs, future))
        self.requests += 1
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._serve())
        if timeout is None:
            return await future
        timer = loop.call_later(timeout, self._expire, future, timeout)
        try:
            return await future
        finally:
            timer.cancel()

    def _expire(self, future: asyncio.Future, timeout: float) -> None:
        if not future.done() and any(future is waiting for _, waiting in self._waiting):
            text = f"no run took the request in {timeout:g} s: send it again later"
            future.set_exception(Fault("DEADLINE_EXCEEDED", "timeout", text))

    async def close(self) -> None:
        """Finish what waits."""
        if self._task is not None:
            await asyncio.wait([self._task])
        self._worker.shutdown(wait=True)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            if self.max_delay:
                await asyncio.sleep(self.max_delay)
            some, self._waiting = self._waiting, []
            live = [(inputs, future) for inputs, future in some if not future.done()]
            began = time.monotonic()  # a loop's time() is that of uvloop: whole milliseconds
            try:
                results = await loop.run_in_executor(self._worker, self._answers, [inputs for inputs, _ in live])
            except BaseException as error:  # of the loop itself: no caller may wait for ever
                results = [error] * len(live)
                if not isinstance(error, Exception):
                    raise
            self.seconds = time.monotonic() - began
            for (_, future), result in zip(live, results, strict=True):
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
        groups: dict[Any, list[list[int]]] = {}
        sizes: dict[Any, int] = {}
        for i, inputs in enumerate(requests):
            leading = {v.shape[:2] for v in inputs.values()}  # NumPy would repeat one row for those of another input
            key = tuple((n, v.dtype.str, v.shape[2:], v.ndim) for n, v in sorted(inputs.items()))
            size = sum(v.size for v in inputs.values())
            if not self._joint or len(leading) != 1 or not all(map(all, leading)):
                key, size = i, 0  # alone
            if key not in groups or sizes[key] + size > MOST_ELEMENTS:
                groups.setdefault(key, []).append([])
                sizes[key] = 0
            groups[key][-1].append(i)
            sizes[key] += size
        return [group for some in groups.values() for group in some]

    def _alone(self, inputs: dict[str, np.ndarray]) -> Any:
        try:
            y = self.model(**inputs)
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
        outputs = self._named(self.model(**joined, lengths=lengths))
        self.runs += 1
        answers, at = [], 0
        for n, steps in rows:
            answers.append({name: v[at : at + n, :steps].copy() for name, v in outputs.items()})
            at += n
        return answers

    def _named(self, y: Any) -> dict[str, np.ndarray]:
        values = y if isinstance(y, tuple) else (y,)
        return dict(zip([o.name for o in self.outputs], values, strict=True))
