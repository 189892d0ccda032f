"""Idle streams of gateways: their host ends them, and says so.

A client that goes away leaves its stream open, and no gateway sees all its steps, so the clock is the host's. Each
gateway asks every second. A host ends what that gateway stepped last, and what a gateway did that has not asked for
a while: its process is gone. A program's own streams never end by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .shards import Shard
from .words import GATEWAY

ABSENT_SECONDS = 10.0  # without a question, after which a gateway is gone


class Idling:
    """The part of `Host` that ends idle streams."""

    clock: Callable[[], float]
    owned: dict[int, Shard]
    _until: np.ndarray
    _slot: np.ndarray
    _writer: np.ndarray
    _unsure: np.ndarray
    _used: np.ndarray
    _asked: dict[int, float]
    if TYPE_CHECKING:

        def _drop(self, own: Shard, id: Any) -> None: ...
        def _bury(self, own: Shard, id: Any, gen: int) -> None: ...

    def expire(self, caller: int, seconds: float) -> tuple:
        """End the streams of gateways that took no step for so long.

        caller : the gateway that asks. ("done", how many streams of gateways are left, those that were ended: ids and
        generations)
        """
        now = self.clock()
        self._asked[caller] = now
        live = np.flatnonzero((self._slot > 0) & (self._writer >= GATEWAY))
        writers = self._writer[live]
        gone = [w for w in np.unique(writers).tolist() if now - self._asked.setdefault(w, now) > ABSENT_SECONDS]
        late = live[np.isin(writers, [caller, *gone]) & (now - self._used[live] >= seconds)]
        late = set(self._slot[late[self._unsure[late] <= now]].tolist())
        ended = []
        for own in self.owned.values() if late else ():
            if self._until[own.shard] <= now:
                continue
            for id in [id for id, slot in own.streams.items() if slot in late]:
                gen = own.gens[id]
                self._drop(own, id)
                self._bury(own, id, gen)
                own.expired.add(id)
                own.ended = own.number
                ended.append((id, gen))
        return "done", len(live) - len(ended), ended
