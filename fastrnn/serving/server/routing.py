"""A model of a server with several workers: each request runs where its sequences are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from .faults import Fault, invalid
from .hosted import Hosted, Reply, Request, ids_of
from .peers import Peers


class Router:
    """Runs requests here or on another worker, as `Hosted` does.

    Parameters
    ----------
    hosted : the model on this worker
    peers : Peers
    """

    def __init__(self, hosted: Hosted, peers: Peers):
        self.hosted, self.peers = hosted, peers
        self._order = asyncio.Lock()
        self._busy = 0  # requests that have the lock, or wait for it: nobody may overtake them

    async def infer(self, request: Request) -> Reply:
        """Run a request. Fault: it is refused, or failed."""
        rows = self._rows(request)
        if len(rows) > 1:
            return await Joint(self, request, rows).run()
        if self._busy:
            async with self.turn():
                pass
        (k,) = rows
        return await (self.hosted.infer(request) if k == self.peers.index else self.peers.infer(k, request))

    def post(self, request: Request, tell: Callable[[Reply | Fault], None]) -> Callable[[], None] | None:
        """As `Hosted.post`."""
        rows = self._rows(request)
        if len(rows) > 1 or self._busy:
            return None
        (k,) = rows
        return self.hosted.post(request, tell) if k == self.peers.index else self.peers.post(k, request, tell)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The place of a request among those that came while those of several workers were checked."""
        self._busy += 1
        try:
            async with self._order:
                yield
        finally:
            self._busy -= 1

    def _rows(self, request: Request) -> dict[int, list[int]]:
        """Worker -> the rows that are its. A request without a sequence, or a wrong one, is this worker's."""
        peers = self.peers
        if "SEQUENCE_IDS" in request.inputs:
            rows: dict[int, list[int]] = {}
            for i, id in enumerate(ids_of(request.inputs["SEQUENCE_IDS"])):
                rows.setdefault(peers.owner(id), []).append(i)
            return rows
        id = request.parameters.get("sequence_id")
        if type(id) not in (int, str) or not id:
            return {peers.index: []}
        return {peers.owner(id): []}


class Joint:
    """A request for sequences of several workers.

    Each worker first checks its rows, and none runs if one is refused. Then all run. What happens to a sequence between
    the two, such as its end by another client, is the only way in which some rows run and others don't: the error says
    so, and STEP_INDEX tells which.

    Parameters
    ----------
    router : Router; request : Request; rows : worker -> its rows
    """

    def __init__(self, router: Router, request: Request, rows: dict[int, list[int]]):
        self.router, self.request, self.rows = router, request, rows
        self.count = sum(map(len, rows.values()))

    async def run(self) -> Reply:
        """The reply for all rows."""
        for name, array in self.request.inputs.items():
            if array.ndim == 0 or len(array) != self.count:
                shape = list(array.shape)
                raise invalid(
                    f"input {name!r} has shape {shape}: a request of {self.count} sequences has a row of each"
                )
        parts = {k: self._part(k) for k in self.rows}
        async with self.router.turn():
            versions = await _all([self._check(k, part) for k, part in parts.items()])
            if len(set(versions)) > 1:
                text = " and ".join(map(str, sorted(set(versions))))
                raise invalid(f"the rows run on versions {text} of '{self.request.model}': send them apart", "version")
            tasks = [asyncio.ensure_future(self._run(k, part)) for k, part in parts.items()]
            await asyncio.sleep(0)  # all take their places in the queues
        found = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [error for error in found if isinstance(error, BaseException)]
        if failed:
            ran = [n for n, result in zip(self.rows.values(), found, strict=True) if isinstance(result, Reply)]
            raise self._torn(failed[0], sum(map(len, ran)))
        return self._joined([reply for reply in found if isinstance(reply, Reply)])

    def _part(self, k: int) -> Request:
        """The request with the rows of one worker."""
        rows = np.array(self.rows[k])
        return replace(self.request, inputs={name: array[rows] for name, array in self.request.inputs.items()})

    async def _check(self, k: int, part: Request) -> int:
        peers = self.router.peers
        return await (self.router.hosted.check(part) if k == peers.index else peers.check(k, part))

    async def _run(self, k: int, part: Request) -> Reply:
        peers = self.router.peers
        return await (self.router.hosted.infer(part) if k == peers.index else peers.infer(k, part))

    def _torn(self, error: BaseException, ran: int) -> BaseException:
        """What is told if some rows were refused after the check."""
        if not isinstance(error, Fault) or not ran:
            return error
        text = f"{error}; it came between the check of the rows and their run: {ran} of {self.count} ran"
        return Fault(error.code, error.reason, text, retry_after=error.retry_after, status=error.status)

    def _joined(self, replies: list[Reply]) -> Reply:
        order = np.concatenate([np.array(rows) for rows in self.rows.values()])
        outputs = {}
        for name, first in replies[0].outputs.items():
            whole = np.empty((self.count, *first.shape[1:]), first.dtype)
            whole[order] = np.concatenate([reply.outputs[name] for reply in replies])
            outputs[name] = whole
        computed = max(reply.computed for reply in replies)
        return Reply(replies[0].version, outputs, replies[0].parameters, computed)


async def _all(work: list[Any]) -> list[Any]:
    """The results of coroutines, all of which end before the first error is raised."""
    found = await asyncio.gather(*work, return_exceptions=True)
    for result in found:
        if isinstance(result, BaseException):
            raise result
    return list(found)
