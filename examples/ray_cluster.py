"""Streams on three "nodes" of Ray on this machine, one of which is lost on the way.

    pip install 'fastrnn[ray]'
    python examples/ray_cluster.py

24 streams are stepped together. After a while a node goes away with the states of a third of them. The steps go on, and
at the end each stream has answered the bits of a lone one.
"""

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

import numpy as np

import fastrnn

MODEL = Path(__file__).with_name("tone_words.onnx")
STREAMS = 24


async def main(nodes, store: str, steps: int) -> None:
    """Step all streams, and lose a node half-way."""
    model = fastrnn.load(MODEL)
    x = np.random.default_rng(0).normal(size=(steps, STREAMS, *model.inputs[0].dims[2:])).astype(np.float32)
    cluster = fastrnn.ray.StreamCluster(model, shards=12, store=store, name="example", checkpoint_seconds=0.5)
    ids = [f"call-{k}" for k in range(STREAMS)]
    await cluster.open(ids)
    answers, slowest = [], 0.0
    for k in range(steps):
        if k == steps // 2:
            print("a node is lost, with its streams")
            nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)
        began = time.perf_counter()
        answers.append(await cluster.step(ids, x[k]))
        slowest = max(slowest, time.perf_counter() - began)
    stats = await cluster.stats()
    print(f"{stats['steps']} steps, {stats['replayed_steps']} taken again; the slowest tick took {slowest:.1f} s")
    same = all(
        np.array_equal(np.stack([a[i] for a in answers]), model.stream().push(x[:, i]))
        for i in range(STREAMS)
    )  # fmt: skip
    print("the same bits as lone streams" if same else "OTHER BITS")
    await cluster.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"  # if fastrnn is not installed
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(main(cluster, folder, args.steps))
    finally:
        ray.shutdown()
        cluster.shutdown()
