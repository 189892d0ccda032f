"""Opens slots of a pool for asyncio callers, on a worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

from .pool import StreamPool


async def opened(pool: StreamPool, worker: Executor) -> int:
    """A new slot. If the caller is cancelled meanwhile, no slot stays open."""
    gone: list[bool] = []  # not empty: the caller was cancelled
    opening = asyncio.get_running_loop().run_in_executor(worker, _open_unless, pool, gone)
    try:
        slot = await asyncio.shield(opening)
    except asyncio.CancelledError:
        gone.append(True)
        opening.add_done_callback(_closer(pool, worker))
        raise
    assert slot is not None  # only for a caller that has gone
    return slot


def _open_unless(pool: StreamPool, gone: list[bool]) -> int | None:
    """A new slot; None, and none is open, if the caller has gone."""
    slot = pool.open()
    if gone:
        pool.close(slot)
        return None
    return slot


def _closer(pool: StreamPool, worker: Executor) -> Callable[[asyncio.Future], None]:
    """Closes a slot whose caller was cancelled between its opening and the answer."""

    def close(opening: asyncio.Future) -> None:
        if opening.cancelled() or opening.exception() is not None or opening.result() is None:
            return
        try:
            worker.submit(pool.close, opening.result())
        except RuntimeError:  # the worker has ended, so nothing holds the pool
            pool.close(opening.result())

    return close
