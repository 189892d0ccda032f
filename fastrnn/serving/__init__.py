"""Streams that callers step: one, or many in one slab.

stream.py           Stream: only state; PacedStream, if outputs don't come one per step
pool.py             StreamPool: many streams by slot; PacedPool
_stream.pyx         the fast path of a stream
_slots.pyx          slots, their memory, and the lock of a pool
_pool.pyx           its steps and ragged chunks
pool_snapshots.py   snapshots of all slots, in slices, and increments
_queues.pyx         requests of many callers for a pool, in fair queues
rounds.py           the calls of a pool that answer them
idle.py             ends streams that are not stepped
batcher.py          Batcher: asyncio callers that share the calls of a pool
server/             the network server, `Server`
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .server.server import Server
else:

    def __getattr__(name):
        if name != "Server":
            raise AttributeError(f"module 'fastrnn.serving' has no attribute {name!r}")
        try:
            from .server.server import Server
        except ImportError as error:
            raise ImportError(f"Server needs {error.name}: pip install 'fastrnn[serve]'") from error
        globals()[name] = Server
        return Server


__all__ = ["Server"]
