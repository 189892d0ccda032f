"""The store of a server, with what is counted of it and whether it works."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..store import Fenced, Held, Store, StoreError
from .neighbours import Neighbours

logger = logging.getLogger("fastrnn")
SWEEP_SECONDS = 3600.0  # between two sweeps
KEEP_SECONDS = 86_400.0  # that a record stays after the sequence's idle timeout: it explains the end to late clients


class Vault:
    """A store as one server uses it.

    Parameters
    ----------
    store : Store
    keep_seconds : after which an entry that is not written may be dropped

    Attributes
    ----------
    holder : the name under which this server holds sequences
    snapshots, failures, restored : writes of states, calls of the store that failed, and states that were read, so far
    failing_since : time.time() of the first failure after the last success; None: the store works
    unmarked : ends of sequences that the store was not told of since then
    error : the text of the last failure
    thread : serialises states
    neighbours : the other servers on the store
    """

    def __init__(self, store: Store, keep_seconds: float):
        self.store, self.keep_seconds = store, keep_seconds
        self.holder = secrets.token_hex(16)
        self.snapshots = self.failures = self.restored = self.unmarked = 0
        self.failing_since: float | None = None
        self.error = ""
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="fastrnn-snapshot")
        self._sweeper: asyncio.Task | None = None
        self.neighbours: Neighbours

    def start(self, give: Callable[[str, int | str], Awaitable[None]]) -> None:
        """Begin to tidy up, on this event loop, and to `give` other servers what they want: called with (model, id)."""
        self.neighbours = Neighbours(self, give, getattr(self.store, "poll_seconds", 1.0))
        self.neighbours.start()
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def read(self, key: str) -> Held | None:
        """`Store.read`."""
        return await self._watched(self.store.read(key))

    async def claim(self, key: str, after: int | None, data: bytes) -> int:
        """`Store.claim` for this server."""
        return await self._watched(self.store.claim(key, after, self.holder, data))

    async def write(self, key: str, epoch: int, data: bytes) -> None:
        """`Store.write` for this server."""
        await self._watched(self.store.write(key, epoch, self.holder, data))
        self.snapshots += 1

    async def show(self, key: str, data: bytes) -> None:
        """`Store.write` of what is no state: under the first epoch, and not counted."""
        await self._watched(self.store.write(key, 1, self.holder, data))

    def health(self) -> str:
        """What is wrong with the store; "" if it works. Strangers may read it, so it names no host and no file."""
        if self.failing_since is None:
            return ""
        ago = time.time() - self.failing_since
        return f"the store has failed for {ago:.0f} s, so a crash would lose steps: the server's log says why"

    async def close(self) -> None:
        """End its threads and connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await self.neighbours.stop()
        self.thread.shutdown(wait=False)
        try:
            await self.store.close()
        except Exception as error:
            logger.warning("the store could not be closed: %s", error)

    async def _watched(self, call: Awaitable[Any]) -> Any:
        """The result of a call, noting whether the store works."""
        try:
            result = await call
        except Fenced:
            self._works()
            raise
        except StoreError as error:
            self._fails(str(error))
            raise
        except Exception as error:  # of a store that is not ours
            self._fails(f"{type(error).__name__}: {error}")
            raise StoreError(self.error) from error
        self._works()
        return result

    def _works(self) -> None:
        if self.failing_since is not None:
            ago, ends = time.time() - self.failing_since, self.unmarked
            more = f"; it was not told of the ends of {ends} sequences" if ends else ""
            logger.warning("the store works again, after %.1f s%s", ago, more)
            self.failing_since, self.unmarked = None, 0

    def _fails(self, text: str) -> None:
        self.failures += 1
        self.error = text
        if self.failing_since is None:  # one line, not one for each sequence
            self.failing_since = time.time()
            logger.warning("the store fails, and sequences go on without it: %s", text)

    async def _sweep(self) -> None:
        while True:
            try:
                await self.store.sweep(self.keep_seconds)
            except Exception as error:
                logger.warning("old records could not be removed from the store: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)
