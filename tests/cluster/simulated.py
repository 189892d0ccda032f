"""A cluster without Ray, time or files: a virtual clock, a network and a store that fail as a seed says.

The callers and hosts are those of the package. A stream's state is a number that each step mixes with its input, so an
answer that misses a step, or has one twice, differs from that of a lone stream.
"""

import asyncio
import heapq
import random

import numpy as np

from fastrnn.ray.caller import Caller
from fastrnn.ray.host import Host
from fastrnn.ray.words import Fenced, Unreachable


class Clock(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time, and which asks no selector: there are no files."""

    def __init__(self):
        super().__init__()
        self._now = 0.0

    def time(self):
        return self._now

    def _run_once(self):
        ready, scheduled = self._ready, self._scheduled
        while scheduled and (scheduled[0]._cancelled or scheduled[0]._when <= self._now or not ready):
            timer = heapq.heappop(scheduled)
            timer._scheduled = False
            if not timer._cancelled:
                self._now = max(self._now, timer._when)
                ready.append(timer)
        if not ready:
            raise RuntimeError("every task waits: the protocol is stuck")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()


def in_virtual_time(test):
    """The result of the coroutine test(loop) in a Clock of its own, which ends with its tasks."""
    loop = Clock()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(test(loop))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        asyncio.set_event_loop(None)


def mixed(state, x):
    """The next state, and the answer, of streams; uint64 [n]."""
    with np.errstate(over="ignore"):
        z = (state ^ x) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
        return z ^ (z >> np.uint64(29))


class Streams:
    """An engine whose states are numbers."""

    def __init__(self):
        self.state, self.serial = np.zeros(0, np.uint64), 0
        self.free, self.open_slots = [], {}

    def open(self, n):
        slots = []
        for _ in range(n):
            self.serial += 1
            place = self.free.pop() if self.free else len(self.state)
            if place == len(self.state):
                self.state = np.append(self.state, np.uint64(0))
            self.state[place] = 0
            slots.append(self.serial << 24 | place)
            self.open_slots[place] = slots[-1]
        return np.array(slots, np.int64)

    def _places(self, slots):
        places = slots & 0xFFFFFF
        assert all(self.open_slots.get(p) == s for p, s in zip(places.tolist(), slots.tolist(), strict=True))
        return places

    def close(self, slots):
        for place in self._places(slots).tolist():
            del self.open_slots[place]
            self.free.append(place)

    def step(self, slots, arrays, lengths):
        places, (x,) = self._places(slots), arrays
        if lengths is None:
            self.state[places] = mixed(self.state[places], x)
            return [self.state[places].copy()]
        out, at = np.empty_like(x), 0
        for place, n in zip(places.tolist(), lengths.tolist(), strict=True):
            for i in range(at, at + n):
                out[i] = self.state[place] = mixed(self.state[place : place + 1], x[i : i + 1])[0]
            at += n
        return [out]

    def capture(self, groups):
        return [self.state[self._places(slots)].copy() for slots in groups]

    def encode(self, captured):
        return captured.tobytes()

    def restore(self, blob):
        states = np.frombuffer(blob, np.uint64)
        slots = self.open(len(states))
        self.state[slots & 0xFFFFFF] = states
        return slots


class Memory:
    """A store. fails(): whether an access raises. A write may be torn, as that of a process that dies."""

    def __init__(self, fails=lambda: False):
        self.files, self.epochs, self.fails = {}, {}, fails

    def _access(self):
        if self.fails():
            raise OSError("the store does not answer")

    def claim(self, shard):
        self._access()
        self.epochs[shard] = self.epochs.get(shard, 0) + 1
        return self.epochs[shard]

    def epoch(self, shard, known=0):
        self._access()
        return self.epochs.get(shard, 0)

    def names(self, shard):
        self._access()
        return sorted(name for s, name in self.files if s == shard)

    def read(self, shard, name):
        self._access()
        if (shard, name) not in self.files:
            raise FileNotFoundError(name)
        return self.files[shard, name]

    def write(self, shard, name, blob):
        self._access()
        self.files[shard, name] = blob

    def delete(self, shard, name):
        self._access()
        self.files.pop((shard, name), None)


class Process:
    """An actor's process: a host, its checkpoints, and a name under which callers reach it."""

    def __init__(self, world, name):
        self.world, self.name, self.alive, self.reachable = world, name, True, True
        self.host = Host(world.shards, world.engine(), world.store, world.loop.time, world.lease)
        self.taking, self.writing = set(), set()
        self.task = world.loop.create_task(self._checkpoints())

    def kill(self):
        self.alive = False
        self.task.cancel()

    async def run(self, steps):
        """A generator of the host, with time between its accesses; torn if the process dies."""
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
            await asyncio.sleep(self.world.rng.random() * self.world.store_seconds)
            if not self.alive:
                steps.close()
                raise asyncio.CancelledError

    async def take(self, shards):
        """Take shards that this process owns and does not have; OSError is for the next attempt."""
        world = self.world
        for shard in shards:
            late = self.host._until[shard] <= world.loop.time()
            if shard in self.taking or (shard in self.host.owned and not late):
                continue
            if world.actors[world.owner[shard]] != self.name or world.processes[self.name] is not self:
                continue
            self.taking.add(shard)
            try:
                if late and shard in self.host.owned:
                    await self.run(self.host.look(shard))
                else:
                    await self.run(self.host.acquire(shard))
            except (OSError, Fenced):
                pass
            finally:
                self.taking.discard(shard)

    async def flush(self, shards):
        for shard in list(shards):
            if shard in self.writing:
                continue
            self.writing.add(shard)
            try:
                job = self.host.capture(shard)
                await self.run(self.host.write(job) if job else self.host.look(shard))
            except (OSError, Fenced):
                pass
            finally:
                self.writing.discard(shard)

    async def _checkpoints(self):
        while True:
            await asyncio.sleep(self.world.checkpoint_seconds * (0.5 + self.world.rng.random()))
            await self.flush(list(self.host.owned))

    async def answer(self, method, args):
        if method == "flush":
            for _ in range(2):
                await self.flush(args[0][0].tolist())
            return ("refused" if self.host.owing(args[0]) else "done",)
        if method == "attach":
            await self.take(args[2].tolist())
        elif method == "close":
            await self.take(args[0].tolist())
        elif method == "steps_done":
            await self.take(args[0][0].tolist())
        return getattr(self.host, method)(*args)


class World:
    """Actors, their store, the network between them and callers, and the moments at which they fail.

    rng : random.Random. loss, duplicates : probabilities of a message. delay : seconds at most; messages overtake each
    other if `reorders`. engine : makes the streams of a process.
    """

    def __init__(
        self, seed, loop, shards=8, actors=3, loss=0.02, duplicates=0.02, delay=0.01, reorders=True, store_fails=0.0,
        checkpoint_seconds=1.0, lease=3.0, store_seconds=0.01, replay_steps=10_000, engine=Streams,
    ):  # fmt: skip
        self.rng, self.loop, self.shards, self.seed = random.Random(seed), loop, shards, seed
        self.loss, self.duplicates, self.delay, self.reorders = loss, duplicates, delay, reorders
        self.checkpoint_seconds, self.lease, self.store_seconds = checkpoint_seconds, lease, store_seconds
        self.store_fails, self.replay_steps, self.engine = store_fails, replay_steps, engine
        self.store = Memory(lambda: self.rng.random() < self.store_fails)
        self.actors = [f"a-{k}" for k in range(actors)]
        self.owner = np.arange(shards) % actors
        self.processes = {name: Process(self, name) for name in self.actors}
        self.zombies, self.callers, self.tasks, self.gens = [], [], set(), 0

    # -- transport --
    def call(self, actor, method, *args):
        future = self.loop.create_future()
        task = self.loop.create_task(self._carry(actor, method, _copied(args), future))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return future

    async def _carry(self, actor, method, args, future):
        rng = self.rng
        process = self.processes[actor]
        if self.zombies and rng.random() < 0.3:
            old = [z for z in self.zombies if z.name == actor and z.alive]
            process = rng.choice(old) if old else process
        if self.reorders:
            await asyncio.sleep(rng.random() * self.delay)
        if not process.alive or not process.reachable or rng.random() < self.loss:
            await asyncio.sleep(0.05)
            return self._failed(future)
        if rng.random() < self.duplicates:
            again = self.loop.create_task(self._late(process, method, args))
            self.tasks.add(again)
            again.add_done_callback(self.tasks.discard)
        try:
            reply = await process.answer(method, args)
        except asyncio.CancelledError:
            return self._failed(future)
        if self.reorders:
            await asyncio.sleep(rng.random() * self.delay)
        if not process.alive or rng.random() < self.loss:
            return self._failed(future)
        if not future.done():
            future.set_result(_copied(reply))

    async def _late(self, process, method, args):
        await asyncio.sleep(self.rng.random() * 10 * self.delay)
        if process.alive:
            await process.answer(method, args)

    @staticmethod
    def _failed(future):
        if not future.done():
            future.set_exception(Unreachable())

    async def owners(self):
        if self.rng.random() < self.store_fails:
            raise OSError("no map")
        return list(self.actors), self.owner.copy()

    def now(self):
        self.gens += 1000  # nanoseconds: no caller opens more streams than pass
        return self.gens

    # -- what happens to it --
    async def caller(self, id):
        found = Caller(id, self.shards, self, replay_steps=self.replay_steps, beat_seconds=min(1.5, self.lease / 2))
        while True:
            try:
                await found.start()
                break
            except OSError:
                await asyncio.sleep(found.backoff)
        self.callers.append(found)
        return found

    @staticmethod
    def leave(caller):
        """A caller ends, with all that it knows."""
        for task in [*caller._tasks, *([caller._mending] if caller._mending else [])]:
            task.cancel()

    def crash(self, name):
        """The process dies; another takes its name."""
        self.processes[name].kill()
        self.processes[name] = Process(self, name)

    def part(self, name):
        """The process is cut off from the rest of the cluster, and some callers still reach it."""
        old = self.processes[name]
        self.zombies.append(old)
        self.processes[name] = Process(self, name)
        self.loop.call_later(self.rng.random() * 2 * self.lease, old.kill)

    def tear(self):
        """The newest checkpoint of a shard is half a file, as of a disk that lost its power."""
        if self.store.files:
            shard = self.rng.choice(sorted({s for s, _ in self.store.files}))
            names = sorted(name for s, name in self.store.files if s == shard)
            blob = self.store.files[shard, names[-1]]
            self.store.files[shard, names[-1]] = blob[: self.rng.randrange(len(blob))]

    def fence(self):
        """Somebody raises an epoch."""
        shard = self.rng.randrange(self.shards)
        self.store.epochs[shard] = self.store.epochs.get(shard, 0) + 1

    def move(self):
        """A shard gets another owner."""
        shard = self.rng.randrange(self.shards)
        self.owner = self.owner.copy()
        before = self.processes[self.actors[self.owner[shard]]]
        self.owner[shard] = self.rng.randrange(len(self.actors))
        task = self.loop.create_task(self._hand_over(before, shard))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _hand_over(self, process, shard):
        if self.rng.random() < 0.7 and self.actors[self.owner[shard]] != process.name:
            await process.flush([shard])
            process.host.release(shard)

    def end(self):
        for caller in self.callers:
            for task in caller._tasks:
                task.cancel()
        for process in [*self.processes.values(), *self.zombies]:
            process.kill()


def _copied(item):
    """As a message: nothing is shared."""
    if isinstance(item, np.ndarray):
        return item.copy()
    if isinstance(item, (tuple, list)):
        return type(item)(_copied(v) for v in item)
    return item
