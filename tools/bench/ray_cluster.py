"""Steps a second through StreamCluster, beside one process's pool and a bare actor of Ray that steps the same pool.

    python tools/bench/ray_cluster.py                       # 100, 1,000 and 10,000 streams a tick; 1, 2 and 3 actors
    python tools/bench/ray_cluster.py --streams 1000 --seconds 10 --actors 1 --json ray.json

The model is an LSTM of 256 units with 64 inputs. A bare actor has no ids, no step indexes, no answers kept and no
checkpoints: what Ray itself costs. Each is measured with one tick at a time, and with three under way ("ahead"), as a
gateway sends them whose inputs don't depend on the last answer. The actors have one thread each, as the pool does.
Everything runs on this machine, whose cores the driver, Ray's processes and the actors share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

import fastrnn

ROOT = Path(__file__).resolve().parents[2]
INPUTS, UNITS, AHEAD = 64, 256, 3


def made_model():
    """LSTM 256."""
    rng = np.random.default_rng(0)
    W, R = (rng.normal(size=(4 * UNITS, n)).astype(np.float32) * 0.05 for n in (INPUTS, UNITS))
    return fastrnn.from_arrays("lstm", W=W, R=R, order="iofc", threads=1)


class Bare:
    """An actor with a pool, and nothing else."""

    def __init__(self, path: str, n: int):
        self.pool = fastrnn.load(path, threads=1).pool(n)
        self.slots = np.array([self.pool.open() for _ in range(n)])

    def step(self, x):
        """One tick."""
        return self.pool.step(self.slots, x)


def pool_rate(model, x, seconds: float) -> float:
    """Steps a second of one process's pool."""
    pool = model.pool(len(x))
    slots = np.array([pool.open() for _ in range(len(x))])
    pool.step(slots, x)
    ticks, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        pool.step(slots, x)
        ticks += 1
    return ticks * len(x) / (time.perf_counter() - began)


async def rate(step, n: int, seconds: float, ahead: int) -> float:
    """Steps a second of a coroutine function that takes one tick. ahead : ticks under way"""
    for _ in range(5):
        await step()
    waiting: list = []
    ticks, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        waiting.append(asyncio.ensure_future(step()))
        await asyncio.sleep(0)
        if len(waiting) >= ahead:
            await waiting.pop(0)
            ticks += 1
    for task in waiting:
        await task
        ticks += 1
    return ticks * n / (time.perf_counter() - began)


async def measured(ray, model, path: str, n: int, counts: list[int], seconds: float, shards: int) -> dict:
    """All rates of n streams a tick."""
    x = np.random.default_rng(1).normal(size=(n, INPUTS)).astype(np.float32)
    found: dict = {"pool": pool_rate(model, x, seconds)}
    actor = ray.remote(Bare).remote(path, n)

    async def bare():
        return await actor.step.remote(x)

    for name, ahead in (("bare", 1), ("bare, ahead", AHEAD)):
        found[name] = await rate(bare, n, seconds, ahead)
    ray.kill(actor)
    for count in counts:
        with tempfile.TemporaryDirectory() as store:
            cluster = fastrnn.ray.StreamCluster(model, shards, store, name=f"bench-{n}-{count}", actors=count)
            ids = np.arange(1, n + 1)
            await cluster.open(ids)

            async def step(cluster=cluster, ids=ids):
                return await cluster.step(ids, x)

            for name, ahead in ((f"cluster {count}", 1), (f"cluster {count}, ahead", AHEAD)):
                found[name] = await rate(step, n, seconds, ahead)
            about = await cluster.stats()
            found[f"stats {count}"] = {k: v for k, v in about.items() if k not in ("actors", "epochs")}
            await cluster.shutdown()
        found["pool"] = max(found["pool"], pool_rate(model, x, seconds / 2))
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[100, 1000, 10_000], help="streams a tick")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--shards", type=int, default=256, help="each writes a checkpoint a second")
    parser.add_argument("--json", help="file to write the rates to")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    import ray

    model = made_model()
    results = {}
    memory = 500_000_000
    ray.init(num_cpus=8, object_store_memory=memory, include_dashboard=False, log_to_driver=False, namespace="bench")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.fastrnn")
        model.save(path)
        for n in args.streams:
            found = asyncio.run(measured(ray, model, path, n, args.actors, args.seconds, args.shards))
            results[n] = found
            columns = "steps a second   of the pool   of the bare actor   us a tick over the pool"
            print(f"\n{n} streams a tick".ljust(28) + columns)
            for name, value in found.items():
                if isinstance(value, dict):  # replayed steps say that the machine was too busy for the leases
                    print(
                        f"    replayed {value['replayed_steps']} of {value['steps']}, fenced {value['fenced']}, ",
                        end="",
                    )
                    print(f"checkpoints {value['checkpoints']}, kept {value['kept_steps']}")
                    continue
                beside = found["bare, ahead" if "ahead" in name else "bare"]
                over = 1e6 * n * (1 / value - 1 / found["pool"])
                print(f"  {name:24} {value:14,.0f} {value / found['pool']:13.0%} {value / beside:19.0%} {over:25,.0f}")
    ray.shutdown()
    if args.json:
        Path(args.json).write_text(json.dumps({"numpy": np.__version__, "ray": ray.__version__, "rates": results}))


if __name__ == "__main__":
    main()
