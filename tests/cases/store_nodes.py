"""Engines on a store, without protocols, and a store that fails or waits."""

import asyncio

import numpy as np
import pytest

from fastrnn.serving.server.engine import Engine, Limits
from fastrnn.serving.server.faults import Fault
from fastrnn.serving.server.options import Options
from fastrnn.serving.server.sequence import Call
from fastrnn.serving.store import Record, StoreError, key_of, open_store


class Node:
    """One server's engine on a store, without protocols. `kill` ends it as SIGKILL does: nothing more is written."""

    def __init__(self, models, store, patience=None, **options):
        self.models = models if isinstance(models, dict) else {1: models}
        self.model = next(iter(self.models.values()))
        self.patience = patience  # with servers that were killed
        self.store, self.options = store, {"max_delay": 0.0, "checkpoint_seconds": 0.02, **options}

    async def __aenter__(self):
        self.engine = Engine({"m": self.models}, Options(store=self.store, **self.options), Limits())
        await self.engine.start()
        self.s, self.vault = self.engine.hosted("m").sequences, self.engine.vault
        self.killed = False
        if self.patience is not None and self.vault is not None:
            self.vault.neighbours.patience = self.patience
        return self

    async def __aexit__(self, *_):
        if not self.killed:
            await self.end()

    async def end(self):
        """As after SIGTERM."""
        self.killed = True
        await self.engine.drain()
        await self.engine.close()

    async def kill(self):
        self.killed = True

        async def nothing(*_):
            raise StoreError("killed")

        real = self.vault.store
        names = ("read", "claim", "write", "sweep", "close")
        self.vault.store = type("Dead", (), {n: staticmethod(nothing) for n in names})
        await self.engine.close()
        await real.close()

    async def step(self, id, x, start=False, end=False, index=None, **more):
        """The answer to one request."""
        indexes = None if index is None else (index,)
        inputs = {self.model.inputs[0].name: np.asarray(x)[None]}
        return await self.s.run(Call((id,), (start,), (end,), inputs, indexes=indexes, **more))

    async def y(self, *args, **named):
        """Its output."""
        return first(await self.step(*args, **named))

    async def written(self, id, steps):
        """Wait until the store has so many steps of a sequence."""
        store = open_store(self.store)
        try:
            for _ in range(3000):
                held = await store.read(key_of("m", id))
                if held is not None and Record.from_bytes(held.data).steps >= steps:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError(f"the store never got {steps} steps of {id}")
        finally:
            if store is not self.store:
                await store.close()


def first(answer):
    return next(v for v in answer.outputs.values() if v.ndim > 1)[0]


async def refused(node, id, x, match, code, status, **named):
    with pytest.raises(Fault, match=match) as caught:
        await node.step(id, x, **named)
    assert (caught.value.code, caught.value.status) == (code, status)
    return caught.value


class Slow:
    """A store that fails, or waits, as it is told."""

    def __init__(self, url):
        self.inner, self.broken, self.ambiguous, self.gate = open_store(url), False, False, asyncio.Event()
        self.gate.set()
        self.flying, self.most, self.calls, self.reads = {}, {}, 0, 0

    async def _do(self, name, key, *args):
        self.flying[key] = self.flying.get(key, 0) + 1
        self.calls += 1
        self.most[key] = max(self.most.get(key, 0), self.flying[key])
        try:
            await self.gate.wait()
            if self.broken:
                raise StoreError("the store is on fire")
            if self.ambiguous and name == "claim":
                raise StoreError("no route")
            result = await getattr(self.inner, name)(key, *args)
            if self.ambiguous:
                raise StoreError("it arrived, and the answer did not")
            return result
        finally:
            self.flying[key] -= 1

    async def read(self, key):
        self.reads += 1
        await self.gate.wait()
        if self.broken:
            raise StoreError("the store is on fire")
        return await self.inner.read(key)

    async def claim(self, *args):
        return await self._do("claim", *args)

    async def write(self, *args):
        return await self._do("write", *args)

    async def sweep(self, seconds):
        pass

    async def close(self):
        await self.inner.close()
