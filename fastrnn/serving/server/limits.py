"""What one request and one client may take."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...errors import ShapeError
from ...records import dataclass
from ...runtime.arguments import whole_number
from .faults import Fault

HELD_MESSAGES = 16  # of the largest size, whose bodies may be in memory before they are whole
MOST_CLIENTS = 100_000  # whose rates are remembered


@dataclass(frozen=True)
class Limits:
    """What one request, one client and all connections may take.

    A client is the name of its token or certificate, or else its address. None is no bound.

    message_bytes : of a request, after decompression too
    connections : open connections of HTTP and WebSocket, and as many of gRPC
    client_connections : of HTTP and WebSocket that one address may have open
    client_streams : WebSockets and gRPC streams of one client
    client_rate : requests and messages of one client a second. More wait on a stream, and are refused otherwise.
    client_burst : how many may come at once; None: those of a second
    """

    message_bytes: int = 64 << 20
    connections: int = 10_000
    client_connections: int | None = None
    client_streams: int | None = None
    client_rate: float | None = None
    client_burst: int | None = None

    def __post_init__(self):
        for name in ("message_bytes", "connections"):
            whole_number(getattr(self, name), name, 1 << 31)
        for name in ("client_connections", "client_streams", "client_burst"):
            if getattr(self, name) is not None:
                whole_number(getattr(self, name), name, 1 << 31)
        rate = self.client_rate
        if rate is not None and not (isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate < 1e9):
            raise ShapeError(f"client_rate must be a number of requests a second above 0, got {rate!r:.40}")
        if self.client_burst is not None and rate is None:
            raise ShapeError("client_burst goes with client_rate: give both")


class Clients:
    """What each client has taken so far. It belongs to the event loop.

    Parameters
    ----------
    limits : Limits
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.streams: Counter[str] = Counter()
        self._held = 0  # bytes of bodies that are not whole
        self._full: OrderedDict[str, float] = OrderedDict()  # client -> when its bucket is full again
        self._rate = limits.client_rate
        self._burst = limits.client_burst or max(1.0, self._rate or 1.0)

    @property
    def paced(self) -> bool:
        """Whether clients have a rate."""
        return self._rate is not None

    def take(self, client: str) -> None:
        """One request. Fault RESOURCE_EXHAUSTED: it comes too early."""
        if self._rate is None:
            return
        wait = self._wait(client)
        if wait > 0:
            text = f"{client} may send {self._rate:g} requests a second: send it again after {wait:.3g} s"
            raise Fault("RESOURCE_EXHAUSTED", "rate", text, retry_after=wait)
        self._count(client)

    async def pace(self, client: str) -> None:
        """One message of a stream: returns when it may be read."""
        if self._rate is None:
            return
        while (wait := self._wait(client)) > 0:
            await asyncio.sleep(wait)
        self._count(client)

    def _wait(self, client: str) -> float:
        """Seconds until the client may send one more. The bucket holds `burst` and fills at `rate`."""
        assert self._rate is not None
        full = self._full.get(client, 0.0)
        return full + 1.0 / self._rate - time.monotonic() - self._burst / self._rate

    def _count(self, client: str) -> None:
        assert self._rate is not None
        now = time.monotonic()
        self._full[client] = max(self._full.pop(client, 0.0), now) + 1.0 / self._rate
        while len(self._full) > MOST_CLIENTS or next(iter(self._full.values())) < now:
            self._full.popitem(last=False)  # it is full, or the one that has sent nothing for longest

    @contextmanager
    def held(self) -> Iterator[Callable[[int], None]]:
        """A body is read meanwhile: call the function with the bytes of each part. Fault: all bodies are too many."""
        most, own = HELD_MESSAGES * self.limits.message_bytes, 0

        def more(size: int) -> None:
            nonlocal own
            own += size
            self._held += size
            if self._held > most:
                text = f"the bodies that come at the moment have more than {most} bytes: send it again after 1 s"
                raise Fault("UNAVAILABLE", "memory", text, retry_after=1.0)

        try:
            yield more
        finally:
            self._held -= own

    @contextmanager
    def stream(self, client: str) -> Any:
        """A WebSocket or a stream of gRPC is open meanwhile. Fault RESOURCE_EXHAUSTED: the client has too many."""
        most = self.limits.client_streams
        if most is not None and self.streams[client] >= most:
            text = f"{client} has {most} streams open, as many as it may: close one first"
            raise Fault("RESOURCE_EXHAUSTED", "client_streams", text, retry_after=1.0)
        self.streams[client] += 1
        try:
            yield
        finally:
            self.streams[client] -= 1
            if not self.streams[client]:
                del self.streams[client]
