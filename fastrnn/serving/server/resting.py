"""Sequences at rest, and the clock of each: what is idle for too long is ended."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from .sequence import Sequence


class Resting:
    """The sequences that nothing waits for and nothing runs for.

    Parameters
    ----------
    limit : seconds until `over` is called with one; it must `discard` it
    """

    def __init__(self, limit: float, over: Callable[[Sequence], None]):
        self.limit, self.over = limit, over
        self._since: OrderedDict[Sequence, float] = OrderedDict()  # the one that rests longest stands first
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.discard = self._since.pop  # called with (sequence, None), for every row of a request: without a method

    def add(self, sequence: Sequence) -> None:
        """Its clock starts."""
        self.add_all([sequence])

    def add_all(self, sequences: list[Sequence]) -> None:
        """The clocks of several start at once."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()  # kept, because it asks the system each time
        now = loop.time()
        for sequence in sequences:
            self._since[sequence] = now
        if self._timer is None:
            self._timer = loop.call_later(self.limit, self._look)

    def since(self, sequence: Sequence) -> float | None:
        """When its clock started, in the loop's time; None: it is not at rest."""
        return self._since.get(sequence)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """End the sequences whose time is over, and look again when the next one's is."""
        self._timer, loop = None, asyncio.get_running_loop()
        now = loop.time()
        while self._since:
            sequence, since = next(iter(self._since.items()))
            if now - since < self.limit:
                self._timer = loop.call_later(since + self.limit - now, self._look)
                return
            self.over(sequence)
