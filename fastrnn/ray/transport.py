"""Calls of a caller to actors, through Ray."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from ..errors import StreamError
from .messages import answered, counts_of, packed, values_of
from .store import ObjectStore, owners_of
from .words import Unreachable

logger = logging.getLogger("fastrnn")

NAMESPACE = "fastrnn"
CALL_SECONDS = 60.0  # after which a call counts as lost


class RayTransport:
    """Finds actors by name, and carries calls to them in their order.

    Parameters
    ----------
    store : ObjectStore
    spawn : makes the actor of a name, or finds it: its handle
    outputs : of a step: (name, dtype, features)

    Attributes
    ----------
    whose : the cluster, as its owners say; an actor of another one takes no call
    """

    def __init__(self, store: ObjectStore, spawn: Callable[[str], Any], outputs: list[tuple]):
        self.store, self._spawn = store, spawn
        self._sizes = [np.dtype(dtype).itemsize * math.prod(features) for _, dtype, features in outputs]
        self.handles: dict[str, Any] = {}
        self.whose = ""

    def call(self, actor: str, method: str, *args: Any) -> Awaitable[Any]:
        """The answer of a method of the actor."""
        handle = self.handles.get(actor)
        if handle is None:
            return _unreachable()
        if method == "step":
            return self._stepped(actor, handle, *args)
        return self._answer(actor, handle.call.remote(self.whose, method, *args))

    def _stepped(self, actor: str, handle: Any, caller, number, acked, head, rows, arrays) -> Awaitable[tuple]:
        """Calls `ShardActor.step`, at once: the answer, whose outputs are the caller's own memory."""
        steps = len(arrays[0]) if arrays else rows.shape[1]
        counts = counts_of([steps * size for size in self._sizes])
        about = caller, number, acked, head, counts
        refs = handle.step.options(num_returns=values_of(counts)).remote(*packed(about, [rows, *arrays]))
        return self._whole(actor, refs if counts else [refs])

    async def _whole(self, actor: str, refs: list) -> tuple:
        whole = asyncio.gather(*refs) if len(refs) > 1 else refs[0]
        values = await self._answer(actor, whole)
        return answered(values if len(refs) > 1 else [values])

    async def _answer(self, actor: str, ref: Any) -> Any:
        import ray

        try:
            return await asyncio.wait_for(ref, CALL_SECONDS)
        except asyncio.TimeoutError:
            raise Unreachable from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, StreamError):
                raise error.cause from None
            raise StreamError(f"actor {actor}: {error}") from None
        except ray.exceptions.ActorDiedError:
            self.handles.pop(actor, None)
            raise Unreachable from None
        except ray.exceptions.RayError:
            raise Unreachable from None

    async def owners(self) -> tuple[list[str], np.ndarray]:
        """Who owns what, and handles of these actors. OSError: the store or Ray does not answer."""
        return await asyncio.get_running_loop().run_in_executor(None, self.find)

    def find(self) -> tuple[list[str], np.ndarray]:
        """The same, while the caller waits."""
        version, content = self.store.owners()
        if not version:
            raise OSError(f"{self.store.root}: the owners of shards are not there any more")
        actors, owner = owners_of(content)
        for name in actors:
            if name not in self.handles:
                try:
                    self.handles[name] = self._spawn(name)
                except Exception as error:
                    logger.warning("actor %s can't be found or made now: %s", name, error)
                    raise OSError(str(error)) from None
        return actors, owner

    @staticmethod
    def now() -> int:
        """Nanoseconds since 1970."""
        return time.time_ns()


async def _unreachable() -> Any:
    raise Unreachable
