"""A month of a large cluster of streams: node failures at realistic rates, with the protocol's own code in the loop.

    python tools/simulate_cluster.py                        # 1,000 nodes, 10^6 streams, 30 days: some minutes
    python tools/simulate_cluster.py --days 2 --rate 10     # quicker

Failures of nodes are drawn at the rate of `FAILURES`. Each is played in full by the code of `fastrnn.ray` (its `Caller`
and `Host`) under a virtual clock: all streams of the lost node, their checkpoints, the silence until the node is given
up, the host that takes its shards over, and the steps that the caller replays. Steps go on meanwhile at their rate, as
live signals do. Every answer is compared with that of a lone stream. Nodes share nothing but the store, so those that
don't fail are counted and not played: a million streams would be 10^8 Python calls a second.

Reported: lost time (how long the answer to a step took beyond its due time), steps replayed, steps lost, and the bytes
of checkpoints.

Where the defaults come from:

* 6.5 failures per 1,000 node-days: Kokolis et al., "Revisiting Reliability in Large-Scale Machine Learning Research
  Clusters", 2024 (arXiv 2410.21680), the cluster RSC-1; RSC-2 has 2.34. --failures takes any other rate.
* 15 s from the loss of a node to its actor on another one: measured with Ray on three nodes of one machine.
* one of ten failures cuts a node off instead of ending it, so that it goes on answering some callers: an assumption.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cluster"))

from simulated import Clock, World, in_virtual_time, mixed  # noqa: E402 - the clock, store and network of the protocol's tests

FAILURES = 6.5  # per 1,000 node-days
STATE_BYTES = 4096  # of a stream: two layers of LSTM 256; the simulated engine's own is 8
QUIET = 3.5  # checkpoint intervals before a failure, so that both kept checkpoints are there


class Incident:
    """One failure of a node with all its streams. Results are set by `play`."""

    def __init__(self, seed: int, args: argparse.Namespace, loop: Clock):
        self.args, self.rng = args, random.Random(seed)
        self.streams = args.streams // args.nodes
        self.world = World(
            seed, loop, shards=args.shards, actors=1, loss=0.0, duplicates=0.0, delay=0.001, reorders=False,
            checkpoint_seconds=args.checkpoint_seconds, lease=args.lease, store_seconds=args.store_seconds,
        )  # fmt: skip
        self.bytes = self.wrong = self.replayed = self.lost = 0
        self.seconds = 0.0
        self.waits = np.zeros(0)
        write = self.world.store.write

        def counted(shard, name, blob):
            self.bytes += len(blob) + self.streams // args.shards * (STATE_BYTES - 8)
            write(shard, name, blob)

        self.world.store.write = counted

    async def play(self) -> None:
        """The steps before, during and after the failure."""
        args, world, loop = self.args, self.world, self.world.loop
        caller = await world.caller(1)
        ids = [f"s{i}" for i in range(self.streams)]
        await caller.open(ids)
        began, self.bytes = loop.time(), 0
        quiet = QUIET * args.checkpoint_seconds
        silence = args.detect * self.rng.uniform(0.7, 1.3)
        ticks = int((quiet + silence + 2 * args.checkpoint_seconds + 2) * args.rate)
        inputs = np.random.default_rng(self.rng.randrange(1 << 30)).integers(
            0, 1 << 60, (ticks, self.streams), np.uint64
        )
        cut = self.rng.random() < args.cut_off
        loop.call_later(quiet * self.rng.uniform(1.0, 1.0 + 1 / QUIET), self._fail, cut, silence)
        tasks, latencies = [], np.zeros(ticks)
        for k in range(ticks):
            await asyncio.sleep(max(0.0, began + k / args.rate - loop.time()))
            tasks.append(loop.create_task(self._step(caller, ids, inputs[k], k, latencies)))
        answers = await asyncio.gather(*tasks)
        self.seconds = loop.time() - began - (0.0 if cut else silence)  # in which there was a host to write
        state = np.zeros(self.streams, np.uint64)
        for x, answer in zip(inputs, answers, strict=True):
            state = mixed(state, x)
            self.wrong += int((answer != state).sum())
        self.waits = latencies
        self.replayed, self.lost = caller.counts["replayed_steps"], caller.counts["lost_steps"]
        await caller.end()
        for process in [*world.processes.values(), *world.zombies]:
            process.kill()

    def _fail(self, cut: bool, silence: float) -> None:
        world = self.world
        if cut:
            world.part("a-0")
            return
        world.processes["a-0"].kill()
        world.loop.call_later(silence, world.crash, "a-0")

    async def _step(self, caller, ids, x, k: int, latencies: np.ndarray) -> np.ndarray:
        due = self.world.loop.time()
        (answer,) = await caller.step(ids, [x])
        latencies[k] = self.world.loop.time() - due
        return answer


def play(seed: int, args: argparse.Namespace) -> Incident:
    """One incident, in a loop of its own."""

    async def played(loop: Clock) -> Incident:
        incident = Incident(seed, args, loop)
        await asyncio.wait_for(incident.play(), 3600)
        return incident

    return in_virtual_time(played)


def simulate(args: argparse.Namespace) -> dict:
    """All failures of the time; the report."""
    rng, began = np.random.default_rng(args.seed), time.monotonic()
    failures = int(rng.poisson(args.failures / 1000 * args.nodes * args.days))
    played = min(failures, args.most) if args.most else failures
    stalls, replays, bytes_, seconds, wrong, lost = [], [], 0, 0.0, 0, 0
    for i in range(played):
        found = play(int(rng.integers(1 << 31)), args)
        stalls.append(float(found.waits.max()))
        replays.append(found.replayed / found.streams)
        bytes_, seconds = bytes_ + found.bytes, seconds + found.seconds
        wrong, lost = wrong + found.wrong, lost + found.lost
        if sys.stderr.isatty():
            print(f"\r{i + 1} of {played} failures", end="", file=sys.stderr)
    each = args.streams // args.nodes
    traffic = bytes_ / max(seconds, 1e-9) * args.nodes
    stall = np.array(stalls or [0.0])
    total = args.streams * args.days * 86400
    return {
        "nodes": args.nodes, "streams": args.streams, "days": args.days, "rate": args.rate,
        "failures": failures, "played": played, "interrupted_streams": failures * each,
        "lost_seconds_per_failure": {"p50": float(np.median(stall)), "p99": float(np.quantile(stall, 0.99)),
                                     "max": float(stall.max())},
        "lost_seconds_per_stream": float(stall.mean() * failures * each / args.streams),
        "share_of_time_lost": float(stall.mean() * failures * each / total),
        "replayed_steps_per_stream": {"mean": float(np.mean(replays or [0])), "max": float(np.max(replays or [0]))},
        "lost_steps": lost, "wrong_answers": wrong,
        "checkpoint_bytes_per_second": traffic, "wall_seconds": time.monotonic() - began,
    }  # fmt: skip


def show(found: dict) -> str:
    """The report as text."""
    stall, replay = found["lost_seconds_per_failure"], found["replayed_steps_per_stream"]
    rows = [
        ("cluster", f"{found['nodes']:,} nodes, {found['streams']:,} streams at {found['rate']:g} steps a second"),
        ("time", f"{found['days']:g} days: {found['failures']:,} nodes failed, {found['played']:,} of them played"),
        ("interrupted", f"{found['interrupted_streams']:,} streams"),
        ("lost time", f"{stall['p50']:.2f} s a failure (p99 {stall['p99']:.2f}, most {stall['max']:.2f})"),
        ("", f"{found['lost_seconds_per_stream']:.3f} s a stream, {found['share_of_time_lost']:.2e} of the time"),
        ("replayed", f"{replay['mean']:.1f} steps a stream and failure (most {replay['max']:.1f})"),
        ("lost steps", f"{found['lost_steps']:,}; wrong answers {found['wrong_answers']:,}"),
        ("checkpoints", f"{8 * found['checkpoint_bytes_per_second'] / 1e9:.2f} Gbit/s to the store, of all nodes"),
        ("", f"played in {found['wall_seconds']:.0f} s"),
    ]
    return "\n".join(f"{label:<12} {text}" for label, text in rows)


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = argparse.ArgumentParser(description="Simulate node failures of a cluster of streams.")
    for name, kind, default, text in (
        ("nodes", int, 1000, "nodes"),
        ("streams", int, 1_000_000, "live streams"),
        ("days", float, 30.0, "days"),
        ("rate", float, 20.0, "steps a second of a stream"),
        ("shards", int, 4, "shards of a node"),
        ("failures", float, FAILURES, "failures per 1,000 node-days"),
        ("cut-off", float, 0.1, "share of failures that cut a node off instead of ending it"),
        ("detect", float, 15.0, "seconds from the loss of a node to its actor on another one"),
        ("checkpoint-seconds", float, 1.0, "seconds between two checkpoints"),
        ("lease", float, 3.0, "seconds that a host answers after its last look at the store"),
        ("store-seconds", float, 0.05, "seconds of an access of the store, at most"),
        ("most", int, 0, "failures to play at most, a sample of them; 0: all"),
        ("seed", int, 0, "seed"),
    ):
        made.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: %(default)s)")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def main(argv: list[str]) -> int:
    """The command; returns 1 if an answer was wrong or a step lost."""
    args = parser().parse_args(argv)
    found = simulate(args)
    print(json.dumps(found) if args.json else show(found))
    return 1 if found["wrong_answers"] or found["lost_steps"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
