"""Random histories of a simulated cluster; each answer is compared with that of a lone stream.

python tests/cluster/histories.py --seconds 600 --first 0     # prints how many histories ran, and the first violation
"""

import argparse
import asyncio
import gc
import logging
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from simulated import World, in_virtual_time, mixed

from fastrnn.errors import StateError, StreamError
from fastrnn.ray.words import StepsLost

SEEN: Counter = Counter()


class Lone:
    """What the streams of one gateway should answer: their inputs, in order."""

    def __init__(self):
        self.state, self.steps = {}, {}
        self.lost = set()  # ids whose caller was told that steps are gone

    def open(self, id):
        self.state[id], self.steps[id] = [np.zeros(1, np.uint64)], 0
        self.lost.discard(id)

    def step(self, id, x):
        self.state[id] = [*self.state[id][: self.steps[id] + 1], mixed(self.state[id][self.steps[id]], x)]
        self.steps[id] += 1
        return self.state[id][-1][0]


async def gateway(world, number, rng, lossless):
    """One caller that opens, steps, pushes and closes streams of its own, several ticks in flight."""
    caller = await world.caller(number + 1)
    lone, serial = Lone(), 0
    for _ in range(rng.randrange(4, 12)):
        what = rng.random()
        if what < 0.25 or not lone.steps:
            ids = [(f"s{number}-{serial + i}" if rng.random() < 0.5 else (number << 32) + serial + i) for i in range(3)]
            serial += 3
            await caller.open(ids)
            for id in ids:
                lone.open(id)
        elif what < 0.35:
            id = rng.choice(list(lone.steps))
            await caller.close([id])
            del lone.steps[id], lone.state[id]
            lone.lost.discard(id)
            if rng.random() < 0.5:  # the same id again
                await caller.open([id])
                lone.open(id)
        elif what < 0.45:
            ids = list(lone.steps)
            done = await caller.steps_done(ids)
            assert lossless <= (done.tolist() == [lone.steps[i] for i in ids]), (done, lone.steps)
        else:
            await ticks(world, caller, lone, rng, lossless)
        await asyncio.sleep(rng.random())
    await caller.settle()
    return caller


async def ticks(world, caller, lone, rng, lossless):
    """Several ticks, sent without waiting for each other's answers. After a loss, one that says where it goes on: those
    that were sent before their caller heard of the loss must not be taken. The ids that lost steps."""
    jobs, knows = [], bool(lone.lost) and rng.random() < 0.7
    for _ in range(1 if knows else rng.randrange(1, 5)):
        ids = rng.sample(list(lone.steps), rng.randrange(1, len(lone.steps) + 1))
        index = np.array([lone.steps[id] for id in ids]) if knows else None
        lengths = None if rng.random() < 0.7 else np.array([rng.randrange(1, 4) for _ in ids])
        x = np.array([rng.getrandbits(64) for _ in range(len(ids) if lengths is None else lengths.sum())], np.uint64)
        jobs.append((ids, lengths, x, asyncio.ensure_future(caller.step(ids, [x], lengths, index))))
        await asyncio.sleep(0)
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() * 0.02)
    told, lost = set() if knows else set(lone.lost), set()
    chain = {}  # id -> what its state was after the calls so far, whatever was lost later
    for ids, lengths, x, task in jobs:
        try:
            (out,) = await task
            missing, refused = {}, False
        except StreamError as error:
            if not isinstance(error, StepsLost):
                _check_behind(error, knows, lone)
                raise Behind from error
            assert not lossless, error
            SEEN["lost"] += 1
            missing, refused, out = error.missing, error.outputs is None, error.outputs[0] if error.outputs else None
            for id, span in missing.items():
                assert 0 <= span.start <= lone.steps[id], (span, lone.steps[id])
        assert refused or told & set(ids) <= set(missing), (
            f"{told} {missing}: taken, but their caller may not know of the loss"
        )
        lost |= set(missing)
        lone.lost = (lone.lost - set(ids if knows else ())) | set(missing)
        at = 0
        for id, n in zip(ids, [1] * len(ids) if lengths is None else lengths.tolist(), strict=True):
            state = chain.setdefault(id, lone.state[id][lone.steps[id]])
            for i in () if refused else range(at, at + n):
                state = chain[id] = mixed(state, x[i : i + 1])
                if id not in missing:  # an answer that came before the loss is right too
                    assert out[i] == (state if id in lost else lone.step(id, x[i : i + 1])), f"{id!r}: another state"
            if id in missing:
                lone.steps[id] = missing[id].start
            at += n
    return lost


class Behind(Exception):
    """A call said an index where a loss had ended, and another caller has brought back steps from there since."""


def _check_behind(error, knows, lone):
    """Raise the error unless it is a refusal of that kind: the index of later steps, which were answered once."""
    told = re.match(r"stream (.+?) expects step_index (\d+), got (\d+)", str(error))
    if not (knows and told):
        raise error
    id = next(id for id in lone.steps if repr(id) == told[1])
    assert lone.steps[id] == int(told[3]) < int(told[2]) < len(lone.state[id]), error


async def shared(world, rng):
    """Two callers that step the same streams in turn. One of them may end, with all that it knows, and an actor too."""
    callers = [await world.caller(k + 1) for k in range(2)]
    lone, ids, ends = Lone(), [*range(1, 5), "text"], rng.random() < 0.5
    await callers[0].open(ids)
    for id in ids:
        lone.open(id)
    for _ in range(rng.randrange(5, 20)):
        caller = rng.choice(callers)
        for _ in range(30 if len(world.callers) == 2 else 1):
            if not (gone := list(await caller.find(ids))):
                break
            await asyncio.sleep(world.lease)  # no checkpoint has them yet, and their caller is slow to bring them back
        if gone:
            assert len(world.callers) > 2, f"{gone} are not there, and no caller has ended"
            SEEN["gone"] += 1
            try:
                await caller.open(gone)
            except StateError:  # their caller was slow, and has brought one back meanwhile
                SEEN["back"] += 1
                continue
            for id in gone:
                lone.open(id)
        try:
            lost = await ticks(world, caller, lone, rng, False)
        except Behind:  # of the other streams of the call, steps may have been taken: only their clients would know
            SEEN["behind"] += 1
            return
        for id in lost:
            lone.steps[id] = int((await caller.steps_done([id]))[0])  # the other one may have stepped it since
            answered = len(lone.state[id]) - 1
            assert lone.steps[id] <= answered, f"{id!r} has {lone.steps[id]} steps, of which {answered} were answered"
            if lone.steps[id] == answered:  # nothing is gone, or its caller said the index elsewhere
                lone.lost.discard(id)
        await asyncio.sleep(rng.random() * 0.5)
        if ends and rng.random() < 0.2:
            SEEN["ended"] += 1
            world.leave(callers.pop(rng.randrange(2)))
            callers.append(await world.caller(len(world.callers) + 1))
            if rng.random() < 0.8:
                world.crash(rng.choice(world.actors))


async def trouble(world, rng, kinds, lossless):
    for _ in range(30):
        await asyncio.sleep(rng.random() * 1.5)
        kind = rng.choice(kinds)
        if kind == "tear" and lossless:
            kinds = [k for k in kinds if k != "tear"] or ["crash"]  # two in a row may hit both that are kept
        SEEN[kind] += 1
        if kind == "crash":
            world.crash(rng.choice(world.actors))
        elif kind == "part":
            world.part(rng.choice(world.actors))
        elif kind == "outage":
            world.store_fails = rng.choice([0.3, 1.0])
            world.loop.call_later(rng.random() * 4, setattr, world, "store_fails", 0.0)
        else:
            getattr(world, kind)()


async def history(seed):
    rng = random.Random(seed)
    kinds = rng.sample(["crash", "part", "outage", "tear", "fence", "move"], rng.randrange(1, 6))
    lossless = rng.random() < 0.7
    in_turn = rng.random() < 0.15
    if in_turn:
        lossless = True
        kinds = rng.sample(["crash", "part", "outage", "tear", "fence", "move"], rng.randrange(1, 6))
    world = World(
        seed,
        asyncio.get_running_loop(),
        shards=rng.randrange(1, 9),
        actors=rng.randrange(1, 4),
        loss=rng.choice([0, 0.02, 0.1]),
        duplicates=rng.choice([0, 0.1]),
        checkpoint_seconds=rng.choice([0.2, 1.0]),
        store_seconds=rng.choice([0.001, 0.1]),
        replay_steps=10_000 if lossless else 3,
        lease=3.0,  # a caller that is slower may find its streams taken, and its steps gone
    )
    chaos = asyncio.ensure_future(trouble(world, rng, kinds, lossless))
    try:
        gateways = [gateway(world, k, random.Random(seed * 7 + k), lossless) for k in range(rng.randrange(1, 3))]
        if in_turn:
            for unused in gateways:
                unused.close()
            gateways = [shared(world, rng)]
        await asyncio.wait_for(asyncio.gather(*gateways), 600)
    finally:
        chaos.cancel()
        world.end()
    for caller in world.callers:
        SEEN["steps"] += caller.counts["steps"]
        SEEN["replayed"] += caller.counts["replayed_steps"]
        SEEN["recoveries"] += caller.counts["recoveries"]
    return world


def run(seed):
    """One history. Raises what it violates."""
    in_virtual_time(lambda loop: history(seed))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--most", type=int, default=1 << 60)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    end, seed = time.time() + args.seconds, args.first
    while time.time() < end and seed < args.first + args.most:
        try:
            run(seed)
        except BaseException:
            print(f"seed {seed} violates the protocol", flush=True)
            raise
        seed += 1
        if seed % 1000 == 0:
            gc.collect()
            print(f"{seed - args.first} histories, {dict(SEEN)}", flush=True)
    print(f"{seed - args.first} histories from seed {args.first}, no violation: {dict(SEEN)}")


if __name__ == "__main__":
    main()
