"""The clients of a Batcher in soak.py: paced, slow, impatient ones, and one that floods it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import math
import random
import time

import numpy as np
from soak_streams import Found, World

from fastrnn.aio import Batcher

PERIOD = 0.02  # seconds between the steps of a paced client
PACED, SLOW, IMPATIENT = 40, 10, 8  # clients
BACKLOG, BURST = 1000, 20  # steps that the flooding client always has waiting; that it adds at a time
LONG = 20_000  # steps of its sequence
BINS = 16  # of waits, per power of two
SETTLE = 0.3  # seconds at the beginning of a window that are not measured


class Clients:
    """A Batcher, and clients that compare each answer.

    waits : (whether it was flooded, whether other parts ran) -> how many steps of paced clients took how long, in BINS
    per power of two microseconds; a list of all would grow
    """

    def __init__(self, found: Found, batcher: Batcher, world: World, long: World):
        self.found, self.batcher, self.world, self.long = found, batcher, world, long
        self.rng, self.over, self.window = random.Random(3), False, None
        self.waits: dict[tuple[bool, bool], np.ndarray] = collections.defaultdict(lambda: np.zeros(32 * BINS, np.int64))

    def compare(self, y: np.ndarray, wanted: np.ndarray, what: str) -> None:
        self.found.counts["steps"] += len(wanted) if wanted.ndim > 1 else 1
        if y.tobytes() != wanted.tobytes():
            self.found.problem(f"WRONG BITS: {what}")

    async def sequence(self, step) -> None:
        """A stream from its beginning to its end: `step(slot, sequence, steps)` returns how many it has taken then."""
        slot, sequence, steps = await self.batcher.open(), self.rng.randrange(len(self.world.x)), 0
        try:
            while steps < self.world.x.shape[1] and not self.over:
                steps = await step(slot, sequence, steps)
                if self.batcher.steps_done(slot) != steps:
                    self.found.problem(f"steps_done says {self.batcher.steps_done(slot)}, not {steps}")
        finally:
            await self.batcher.close_slot(slot)

    async def paced(self) -> None:
        """Steps at a fixed rate, and measures."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self.rng.random() * PERIOD

        async def step(slot, sequence, steps):
            nonlocal due
            await asyncio.sleep(max(due - loop.time(), 0))
            window, began = self.window, loop.time()
            y = await self.batcher.step(slot, self.world.x[sequence, steps])
            if window is not None and window is self.window:
                self.waits[window][int(BINS * math.log2(max((loop.time() - began) * 1e6, 1)))] += 1
            self.compare(y, self.world.y[sequence, steps], f"paced, sequence {sequence}, step {steps}")
            due = max(due + PERIOD, loop.time())
            return steps + 1

        while not self.over:
            await self.sequence(step)

    async def slow(self) -> None:
        """Sends a chunk, and takes its time until the next."""

        async def step(slot, sequence, steps):
            await asyncio.sleep(self.rng.random() * 0.4)
            chunk = self.world.x[sequence, steps : steps + 1 + self.rng.randrange(100)]
            y = await self.batcher.push(slot, chunk)
            self.compare(y, self.world.y[sequence, steps : steps + len(chunk)], f"slow, sequence {sequence}")
            return steps + len(chunk)

        while not self.over:
            await self.sequence(step)

    async def impatient(self) -> None:
        """Gives up, by a timeout or a cancel; then asks what was done, and goes on."""

        async def step(slot, sequence, steps):
            x = self.world.x[sequence, steps]
            if self.rng.random() < 0.5:
                call = self.batcher.step(slot, x, timeout=self.rng.random() * 0.004)
            else:
                call = asyncio.wait_for(self.batcher.step(slot, x), self.rng.random() * 0.004)
            try:
                y = await call
            except (TimeoutError, asyncio.TimeoutError):
                self.found.counts["given up"] += 1
                await self.batcher.push(slot, self.world.x[sequence, :0])  # answered after a tick that has begun
                return self.batcher.steps_done(slot)
            self.compare(y, self.world.y[sequence, steps], f"impatient, sequence {sequence}, step {steps}")
            return steps + 1

        while not self.over:
            await self.sequence(step)

    async def flood(self, stop: asyncio.Event) -> None:
        """One stream with a backlog, until it is told to stop."""
        slot, sent, done = await self.batcher.open(), 0, 0
        waiting: collections.deque = collections.deque()
        try:
            while not stop.is_set() and done < LONG:
                for _ in range(min(BURST, BACKLOG - len(waiting), LONG - sent)):
                    waiting.append(asyncio.ensure_future(self.batcher.step(slot, self.long.x[0, sent])))
                    sent += 1
                self.compare(await waiting.popleft(), self.long.y[0, done], f"flooding, step {done}")
                done += 1
                self.found.counts["flooding steps"] += 1
        finally:
            for future in waiting:
                future.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await self.batcher.close_slot(slot)

    async def windows(self, end: float, alone: float) -> None:
        """Quiet and flooded ones in turn. alone : until when no other part runs."""
        length, number = min(5.0, max(1.0, (end - time.monotonic()) / 16)), 0
        while time.monotonic() + SETTLE < end and not self.found.problems:
            flooded, stop = number % 2 == 1, asyncio.Event()
            flooding = asyncio.ensure_future(self.keep_flooding(stop)) if flooded else None
            await asyncio.sleep(SETTLE)
            self.window = (flooded, time.monotonic() >= alone)
            await asyncio.sleep(min(length, max(end - time.monotonic(), 0)))
            self.window = None
            stop.set()
            if flooding is not None:
                await flooding
            number += 1

    async def watch(self) -> None:
        while not self.over:
            self.found.sample()
            await asyncio.sleep(0.5)

    async def keep_flooding(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.flood(stop)


async def serve(found: Found, end: float, alone: float) -> None:
    """All clients, until the end."""
    world, long = World(), World(LONG, 1)
    pool = world.model.pool(PACED + SLOW + IMPATIENT + 2)
    gc.collect()
    gc.freeze()  # as a service does after it has loaded: a full collection would stop the loop for 20 ms
    async with Batcher(pool) as batcher:
        clients = Clients(found, batcher, world, long)
        kinds = [clients.paced] * PACED + [clients.slow] * SLOW + [clients.impatient] * IMPATIENT + [clients.watch]
        tasks = [asyncio.ensure_future(kind()) for kind in kinds]
        try:
            await clients.windows(end, alone)
        finally:
            clients.over = True
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(error, BaseException):
                    found.problem(f"a client: {type(error).__name__}: {error}")
        stats = batcher.stats()
    found.counts["ticks"], found.counts["timeouts"] = stats["ticks"], stats["timeouts"]
    if stats["waiting"]:
        found.problem(f"{stats['waiting']} steps still wait")
    found.check_slots(pool)
    for others, when in ((False, "alone"), (True, "beside all other parts")):
        quiet, flooded = clients.waits[False, others], clients.waits[True, others]
        if quiet.any() and flooded.any():
            a, b = ([quantile(w, 0.5), quantile(w, 0.99)] for w in (quiet, flooded))
            found.notes.append(
                f"paced clients, {when}: quiet p50 {a[0]:.2f} p99 {a[1]:.2f} ms, with one that floods "
                f"p50 {b[0]:.2f} p99 {b[1]:.2f} ms: {b[1] / a[1]:.2f} times"
            )


def quantile(waits: np.ndarray, share: float) -> float:
    """The wait in ms below which this share of them lies, right to 2 %."""
    place = int(np.searchsorted(np.cumsum(waits), share * waits.sum()))
    return 2 ** ((place + 0.5) / BINS) / 1e3


def clients(found: Found, end: float, folder: str, alone: float) -> None:
    """A Batcher and its clients. alone : seconds in which no other part runs."""
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(serve(found, end, time.monotonic() + alone))
    found.check_flat()
