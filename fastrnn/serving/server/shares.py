"""What waits for an engine, by client: each time as much is taken as keeps the engine busy for a short while, and of
each client that waits the same share."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from .._queues import PUSH_STEPS, Close, Push, Request
from ..batcher import Batcher
from ..pool import StreamPool

ROWS, MOST_ROWS = 64, 256  # that a tick takes at least, for each thread of its model, and at most
TICK_SECONDS = 0.002  # in which it should be over, if it has more than the least
FORGET = 1.02  # by which the shortest time of a row grows with each tick, so that it can become longer
CHUNK_STEPS = 8  # of a chunk that count as one row: they are computed one after the other, and answered at once
SERVER = ""  # the client of what the server itself asks for

T = TypeVar("T")


class Shares(Generic[T]):
    """Items that wait, each with the `future` of its answer. Those of one client are taken in the order in which they
    came. Clients take turns, and each has at least one item in whatever is taken.

    Attributes
    ----------
    size : items that wait, including those whose caller has gone
    since : time.monotonic() at which the oldest of those came that were taken last
    """

    def __init__(self):
        self.size, self.since = 0, 0.0
        self._of: dict[str, deque[tuple[T, int, float]]] = {}  # client -> what waits; clients in the order of turns

    def __len__(self) -> int:
        return self.size

    def add(self, client: str, item: T, cost: int) -> None:
        """An item waits, behind those of its client. cost: its part of what is taken at once."""
        queue = self._of.get(client)
        if queue is None:
            queue = self._of[client] = deque()
        queue.append((item, cost, time.monotonic()))
        self.size += 1

    def waiting(self, client: str) -> int:
        """How many items of a client wait."""
        return len(self._of.get(client, ()))

    @property
    def clients(self) -> int:
        """How many clients wait."""
        return len(self._of)

    def some(self, cost: int) -> list[T]:
        """Take the next items, until their cost is reached; those whose caller has gone leave. What the share of a
        client leaves over goes to the others."""
        found: list[T] = []
        turns, left = list(self._of), cost
        clients, self.since = turns, time.monotonic()
        while clients:
            share = max(1, left // len(clients))
            for client in clients:
                if left <= 0 and clients is not turns:
                    break
                left -= self._first(self._of[client], share, found)
            clients = [client for client in clients if self._of[client]] if left > 0 else []
        if turns:  # the next time another client comes first
            self._of = {client: self._of[client] for client in (*turns[1:], turns[0]) if self._of[client]}
        return found

    def _first(self, queue: deque[tuple[T, int, float]], share: int, found: list[T]) -> int:
        """Take the first items of a client until its share is reached; their cost."""
        taken = 0
        while queue and taken < share:
            item, cost, since = queue.popleft()
            self.size -= 1
            if not item.future.done():  # type: ignore[attr-defined]
                found.append(item)
                taken += cost
                self.since = min(self.since, since)
        return taken

    def clear(self) -> list[T]:
        """Remove and return all items."""
        found = [item for queue in self._of.values() for item, _, _ in queue]
        self._of, self.size = {}, 0
        return found


class TickQueues(Shares[Request]):
    """The requests that wait for the ticks of a lane, instead of the FairQueues of a Batcher: at most one of each
    stream waits or runs, as a server's sequences make sure.

    Parameters
    ----------
    rows : of a tick, if no single request has more
    """

    pressed = False  # nothing waits outside

    def __init__(self, rows: int):
        super().__init__()
        self.rows = rows

    def put(self, request: Request) -> None:
        """Add a request behind those of its client."""
        if isinstance(request, Push):
            cost = 1 + min(request.steps - request.at, PUSH_STEPS) // CHUNK_STEPS
        else:
            cost = request.steps or 1
        self.add(SERVER if isinstance(request, Close) else request.future.call.client, request, cost)

    def put_back(self, requests: Iterable[Request]) -> None:
        """Return chunks of which a tick took a part, behind what else their clients wait for."""
        for request in requests:
            request.taken = False
            self.put(request)

    def take(self, _: int | None = None) -> list[list[Request]]:
        """The requests of the next tick: one round, or none."""
        found = self.some(self.rows)
        for request in found:
            request.taken = True
        return [found] if found else []


class Ticks(Batcher):
    """A Batcher whose ticks are short, and shared by the clients of a server.

    Parameters
    ----------
    pool : StreamPool
    max_delay : seconds that a step may wait for others
    rows : of a tick; None: as many as take TICK_SECONDS, and at least ROWS a thread
    threads : that a call of the pool uses
    """

    def __init__(self, pool: StreamPool, max_delay: float, rows: int | None, threads: int):
        self._least = min(ROWS * threads, MOST_ROWS) if rows is None else rows
        self._most = MOST_ROWS if rows is None else rows
        super().__init__(pool, max_delay, max_rows=self._least)
        self._queues: Any = TickQueues(self._least)
        self._row_seconds, self._steps_only = math.inf, False

    def _look(self) -> None:
        """Set the rows of the next tick by the quickest row of late: other times have waits for Python's lock in them,
        and those are long when the machine is busy. A tick that closed streams tells nothing of steps, nor does one
        that was shorter than the clock can tell."""
        counts = self._counts
        if self._steps_only and counts.last_rows and counts.last > 0:
            self._row_seconds = min(self._row_seconds * FORGET, counts.last / counts.last_rows)
            rows = min(self._most, max(self._least, int(TICK_SECONDS / self._row_seconds)))
            self.max_rows = self._queues.rows = rows

    def _next(self) -> list[list[Request]]:
        """The rounds of the next tick."""
        if self._most > self._least:
            self._look()
        rounds = self._queues.take()
        self._at_once, self._since = False, 0.0  # those that are left have waited
        if rounds:
            self._steps_only = Close not in map(type, rounds[0])
            self._counts.waits.add(time.monotonic() - self._queues.since)
        return rounds
