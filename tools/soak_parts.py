"""The parts of soak.py without asyncio. Each is a function of (what it found, when to end, a folder)."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import threading
import time

import numpy as np
from soak_streams import SEQUENCES, STEPS, Found, Streams, World

import fastrnn

PLACES = 0xFFFFFF  # of a slot's number
PATIENCE = 60.0  # seconds until a child that does not end is called hanging
GROWTH = 100_000  # times, of a pool's capacity during the warm-up; then it grows by 100 slots at a time
HEADROOM = 96 << 20  # bytes of memory, at most, beyond what the process has


def in_thread(found: Found, stop: threading.Event, work) -> threading.Thread:
    """A thread that calls `work` until it is stopped."""

    def loop():
        try:
            while not stop.is_set():
                work()
        except Exception as error:
            found.problem(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=loop)
    thread.start()
    return thread


def threads(found: Found, end: float, folder: str) -> None:
    """Threads in a pool that is saved and grows."""
    world, names = World(), {}
    pool, other, stop = world.model.pool(40), world.model.pool(100), threading.Event()
    streams = [Streams(world, pool, found, i, 10, names) for i in range(4)]
    began = time.monotonic()
    running = [in_thread(found, stop, s.turn) for s in streams]
    paths = [os.path.join(folder, f"threads.{i}") for i in range(4)]
    try:
        while time.monotonic() < end and not found.problems:
            tokens = [pool.snapshot_all(paths[0])]
            for path in paths[1:]:
                time.sleep(0.02)
                tokens.append(pool.snapshot_all(path, since=tokens[-1]))
            check_restored(found, world, other, other.restore_all(paths), names)
            found.counts["snapshots"] += len(tokens)
            if len(names) > 20_000:
                for slot in list(names)[:10_000]:
                    del names[slot]
            part = min(4 * (time.monotonic() - began) / (end - began), 1)  # of the warm-up
            pool.grow(max(int(40 * GROWTH**part), pool.capacity + 100))
            found.sample()
    finally:
        stop.set()
        for thread in running:
            thread.join()
    for s in streams:
        s.end()
    found.counts["capacity"] = pool.capacity
    found.check_slots(pool)
    found.check_slots(other)
    found.check_flat()


def check_restored(found: Found, world: World, pool, where: dict[int, int], names: dict[int, int]) -> None:
    """One more step of each restored stream; then it is closed."""
    for old, new in where.items():
        steps = pool.steps_done(new)
        if old in names and steps < world.x.shape[1]:
            y = pool.step([new], world.x[names[old], steps][None])
            found.counts["steps"] += 1
            if y.tobytes() != world.y[names[old], steps].tobytes():
                found.problem(f"WRONG BITS: restored slot {old}, sequence {names[old]}, step {steps}")
        pool.close(new)


def forks(found: Found, end: float, folder: str) -> None:
    """Children that go on with the streams of a process with threads."""
    world = World()
    pool, stop = world.model.pool(64), threading.Event()
    mine = Streams(world, pool, found, 9, 10)
    streams = [Streams(world, pool, found, i, 10) for i in range(2)]
    running = [in_thread(found, stop, s.turn) for s in streams]
    try:
        while time.monotonic() < end and not found.problems:
            for _ in range(20):
                mine.turn()
            token = pool.snapshot_all(os.path.join(folder, "forks"))
            child = os.fork()
            if not child:
                os._exit(in_child(mine, found, os.path.join(folder, "forks.child"), token))
            killed = random.random() < 0.3
            if killed:
                time.sleep(random.random() * 0.02)
                os.kill(child, signal.SIGKILL)
            status = ended(child)
            found.counts["children"] += 1
            if status is None or (status != 0 and not killed):
                found.problem(f"a child {'hangs' if status is None else f'ends with {status}'}")
            found.sample()
    finally:
        stop.set()
        for thread in running:
            thread.join()
    for s in (mine, *streams):
        s.end()
    pool.snapshot_all(os.path.join(folder, "forks.child"))  # what a killed child left behind goes
    found.check_slots(pool)
    found.check_flat()


def in_child(streams: Streams, found: Found, path: str, token: str) -> int:
    """Go on with the streams in a forked child; the exit code."""
    try:
        before = len(found.problems)
        for _ in range(30):
            streams.turn()
        streams.pool.grow(streams.pool.capacity + 1000)
        streams.pool.snapshot_all(path, since=token)
        streams.end()
        return 3 if len(found.problems) > before else 0
    except BaseException:
        return 4


def ended(child: int) -> int | None:
    """The status of a child; None if it does not end, then it is killed."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def handover(found: Found, end: float, folder: str) -> None:
    """Process after process takes over all streams. The place of a stream's slot is the number of its sequence."""
    world = World()
    paths = [os.path.join(folder, f"handover.{i}") for i in range(3)]
    pool = world.model.pool(SEQUENCES)
    for _ in range(SEQUENCES):
        pool.open()
    pool.snapshot_all(paths[0])
    while time.monotonic() < end and not found.problems:
        child = os.fork()
        if not child:
            os._exit(take_over(world, paths))
        killed = random.random() < 0.4
        if killed:
            time.sleep(random.random() * 0.05)
            os.kill(child, signal.SIGKILL)
        status = ended(child)
        found.counts["killed" if killed else "handovers"] += 1
        if status is None or (status != 0 and not killed):
            found.problem(
                f"a successor {'hangs' if status is None else f'ends with {os.waitstatus_to_exitcode(status)}'}"
            )
        found.sample()
    for path in paths:  # what a killed one left behind goes
        pool.snapshot_all(path)
    found.check_flat()


def take_over(world: World, paths: list[str]) -> int:
    """Restore all streams, step them, save them; the exit code."""
    try:
        old, pool = world.model.pool(SEQUENCES), world.model.pool(SEQUENCES)
        where: dict[int, int] = {}
        for n in (3, 2, 1):  # an increment of another base is refused; the base is always whole
            with contextlib.suppress(fastrnn.StateError, FileNotFoundError):
                where = old.restore_all(paths[:n])
                break
        if len(where) != SEQUENCES or len(old) != SEQUENCES:
            return 5
        places = {slot & PLACES: new for slot, new in where.items()}
        slots = [pool.restore(old.snapshot(places[i])) for i in range(SEQUENCES)]
        if [slot & PLACES for slot in slots] != list(range(SEQUENCES)):
            return 6
        found = Found("successor")
        streams = Streams(world, pool, found, time.monotonic_ns(), SEQUENCES)
        for slot in slots:
            streams.add(slot, slot & PLACES, pool.steps_done(slot))
        token = None
        for path in paths:
            for _ in range(5):
                streams.push()
                streams.step()
                for slot, (_, steps) in streams.at.items():
                    if steps >= STEPS:
                        pool.reset(slot)
                        streams.at[slot][1] = 0
            token = pool.snapshot_all(path, since=token)
        return 3 if found.problems else 0
    except BaseException:
        return 4


def memory(found: Found, end: float, folder: str) -> None:
    """Calls with too little memory, and streams that go on after each."""
    world = World()
    pool, other = world.model.pool(4000), world.model.pool(4000)
    streams, rng = Streams(world, pool, found, 1, 30), random.Random(2)
    many = [pool.open() for _ in range(3000)]
    path = os.path.join(folder, "memory")
    pool.snapshot_all(path)
    model_path = os.path.join(folder, "memory.fastrnn")
    world.model.save(model_path)
    long = np.zeros((20_000, world.x.shape[2]), np.float32)
    calls = {
        "snapshot_all": lambda: pool.snapshot_all(),
        "snapshot_all to a file": lambda: pool.snapshot_all(path),
        "restore_all": lambda: [other.close(s) for s in other.restore_all(path).values()],
        "pool": lambda: world.model.pool(500_000).open(),
        "grow": lambda: world.model.pool(10).grow(500_000),
        "push": lambda: pool.push(many[:4], [long] * 4) and None,
        "run": lambda: world.model(long[None]) is None,
        "load": lambda: fastrnn.load(model_path).stream().step(long[0]) is None,
    }
    for call in calls.values():
        call()
    while time.monotonic() < end and not found.problems:
        name = rng.choice(list(calls))
        with limit(rng.randrange(HEADROOM)):
            try:
                calls[name]()
                found.counts["done"] += 1
            except fastrnn.FastRNNMemoryError:
                found.counts["refused"] += 1
            except BaseException as error:
                found.problem(f"{name}: {type(error).__name__}: {error}")
        for _ in range(20):
            streams.turn()
        if len(other):
            found.problem(f"{name}: {len(other)} slots are open after it")
        found.sample()
    streams.end()
    for slot in many:
        pool.close(slot)
    pool.snapshot_all(path)
    found.check_slots(pool)
    found.check_slots(other)
    found.check_flat()


@contextlib.contextmanager
def limit(headroom: int):
    """A limit of the process's address space."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + headroom, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
