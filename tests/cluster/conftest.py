"""A cluster of Ray with three nodes on this machine, a small model, and what its lone streams answer."""

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest

import fastrnn

MEMORY = 100_000_000
STREAMS = [*range(1, 13), *(f"s{k}" for k in range(12))]


@pytest.fixture(scope="session")
def model():
    rng = np.random.default_rng(7)
    W, R = (rng.normal(size=(24, n)).astype(np.float32) * 0.4 for n in (5, 8))
    return fastrnn.from_arrays("gru", W=W, R=R, order="zrh", threads=1)


@pytest.fixture(scope="session")
def x():
    """float32 [400, streams, 5]."""
    return np.random.default_rng(8).normal(size=(400, len(STREAMS), 5)).astype(np.float32)


@pytest.fixture(scope="session")
def alone(model, x):
    """What a lone stream answers to each column, [400, streams, 8]."""
    return np.stack([model.stream().push(x[:, i]) for i in range(len(STREAMS))], axis=1)


@pytest.fixture(scope="session")
def nodes():
    """ray.cluster_utils.Cluster with three nodes besides the head, and a connection to it."""
    ray = pytest.importorskip("ray", reason="no ray: pip install 'fastrnn[ray]'")
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    root = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = root if not before else f"{root}{os.pathsep}{before}"  # for the workers
    cluster = Cluster(
        initialize_head=True, head_node_args=dict(num_cpus=0, object_store_memory=MEMORY, include_dashboard=False)
    )
    for _ in range(3):
        cluster.add_node(num_cpus=4, object_store_memory=MEMORY)
    connect(cluster)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def connect(cluster):
    """Connect this process, as a driver, to the cluster."""
    import ray

    ray.init(address=cluster.address, namespace="tests", log_to_driver=False)


async def within(seconds, condition):
    """Wait until condition() is true: a coroutine function, or a function. An assertion if it takes longer."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert loop.time() < end, f"not within {seconds} s"
        await asyncio.sleep(0.05)
