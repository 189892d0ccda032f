"""Batcher: asyncio callers step a pool; those that wait at the same time share one call, on a worker thread.

async with Batcher(model.pool(capacity=1024), max_delay=0.002) as batcher:
    slot = await batcher.open()
    y = await batcher.step(slot, x)
"""

from .serving.batcher import Batcher, QueueFullError

__all__ = ["Batcher", "QueueFullError"]
