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

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .server.limits import Limits
    from .server.server import Server
    from .server.tls import Tls
else:
    _HOMES = {"Limits": "limits", "Server": "server", "Tls": "tls"}

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module 'fastrnn.serving' has no attribute {name!r}")
        try:
            found = getattr(import_module(f"{__name__}.server.{_HOMES[name]}"), name)
        except ImportError as error:
            raise ImportError(f"{name} needs {error.name}: pip install 'fastrnn[serve]'") from error
        globals()[name] = found
        return found


__all__ = ["Limits", "Server", "Tls"]
