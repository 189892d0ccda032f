"""How many sequences of a gateway's model are live, and the end of idle ones."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ..errors import FastRNNError
from ..serving.server.admission import BUSY_SECONDS
from ..serving.server.faults import Fault
from ..serving.server.options import Options
from ..serving.server.sequence import shown
from .caller import Caller
from .words import Unreachable

logger = logging.getLogger("fastrnn")

LOOK_SECONDS = 1.0  # between two looks; a quarter of the idle limit if that is less


class Watch:
    """Asks the actors every second for the streams of gateways, and has them end those that are idle.

    Parameters
    ----------
    name : of the model
    options : Options, of which it knows idle_timeout and max_sequences
    """

    def __init__(self, name: str, options: Options):
        self.name, self.options = name, options
        self._live: dict[str, int] = {}  # actor -> its streams of gateways, of the last look
        self._since = 0  # those that this gateway has started since, less those that it has ended
        self._task: asyncio.Task | None = None

    async def begin(self, caller: Caller) -> None:
        """Look for the first time, and then again and again."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._looks(caller))
            await self._look(caller)

    def end(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()

    def count(self, more: int) -> None:
        """So many sequences were started here, or ended (below 0)."""
        self._since += more

    @property
    def live(self) -> int:
        """Sequences of all gateways; of what others did in the last second it does not know."""
        return max(0, sum(self._live.values()) + self._since)

    def full(self, new: list[Any]) -> Fault | None:
        """Why these sequences can't start, if so."""
        most = self.options.max_sequences
        if not new or self.live + len(new) <= most:
            return None
        text = (
            f"sequence {shown(new[0])} can't start: '{self.name}' has {self.live} live sequences of at most {most}; "
            f"try again after {BUSY_SECONDS:g} s"
        )
        return Fault("UNAVAILABLE", "max_sequences", text, retry_after=BUSY_SECONDS)

    async def _looks(self, caller: Caller) -> None:
        while True:
            await asyncio.sleep(min(LOOK_SECONDS, self.options.idle_timeout / 4))
            try:
                await self._look(caller)
            except Exception:  # a defect: loud, and the next look follows
                logger.exception("%s: idle sequences can't be looked for", self.name)

    async def _look(self, caller: Caller) -> None:
        before, actors = self._since, list(caller.actors)
        asked = [caller.transport.call(a, "expire", caller.id, self.options.idle_timeout) for a in actors]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        for actor, reply in zip(actors, replies, strict=True):
            if isinstance(reply, FastRNNError | Unreachable):
                continue  # it will answer again, or its shards move
            if isinstance(reply, BaseException):
                raise reply
            _, self._live[actor], ended = reply
            caller.forget(ended)
        self._live = {a: n for a, n in self._live.items() if a in actors}
        self._since -= before
