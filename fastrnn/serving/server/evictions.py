"""How `on_evict` hears of sequences that their clients have not ended."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

from .sequence import Sequence, shown

logger = logging.getLogger("fastrnn")


async def tell_of(on_evict: Callable | None, sequence: Sequence, reason: str, left: asyncio.Future) -> None:
    """Call it with a sequence that was lost. left : gets the sequence's snapshot when its slot is closed"""
    snapshot = await left
    if on_evict is None:
        return
    try:
        result: Any = on_evict(sequence.id, reason, snapshot)
        if inspect.isawaitable(result):
            await result
    except Exception:
        logger.exception("on_evict failed for sequence %s: its snapshot is lost", shown(sequence.id))


def pass_on(future: asyncio.Future, ended: asyncio.Future) -> None:
    """The result of a closed slot is that of the sequence's end."""
    if future.done():
        return
    error = None if ended.cancelled() else ended.exception()
    if error is not None:
        logger.error("the end of a sequence failed: %s", error)
    future.set_result(None if ended.cancelled() or error is not None else ended.result())
