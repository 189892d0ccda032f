"""StreamCluster on three nodes: whatever fails, each stream answers the bits of a lone one."""

import asyncio
import contextlib
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import STREAMS, connect, within

import fastrnn
from fastrnn.errors import ShapeError, StateError, StreamError

pytest.importorskip("ray", reason="no ray: pip install 'fastrnn[ray]'")
import ray

from fastrnn.ray import StepsLost, StreamCluster, fence
from fastrnn.ray.actor import ShardActor, lease_of

pytestmark = [pytest.mark.any_isa, pytest.mark.ray, pytest.mark.filterwarnings("default")]
NAMES = (f"t{k}" for k in itertools.count())


@pytest.fixture
def made(nodes, model, tmp_path):
    """made(**options): a cluster of this test's name and store; all end after the test."""
    name, handles = next(NAMES), []

    def make(**options):
        settings = dict(shards=12, store=tmp_path, name=name, checkpoint_seconds=0.3) | options
        handles.append(StreamCluster(settings.pop("model", model), **settings))
        return handles[-1]

    yield make
    names = {n for handle in handles for n in handle._transport.handles}
    for actor in names:
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(actor, namespace="fastrnn"))


async def steps(cluster, x, alone, first, last, columns=None):
    """Step streams, and compare each answer."""
    columns = np.arange(len(STREAMS)) if columns is None else columns
    ids = [STREAMS[i] for i in columns]
    for k in range(first, last):
        y = await asyncio.wait_for(cluster.step(ids, x[k, columns]), 120)
        assert y.dtype == np.float32
        assert np.array_equal(y, alone[k, columns]), f"step {k}: other bits"


def handle_of(name, number=0):
    return ray.get_actor(f"{name}-{number}", namespace="fastrnn")


def test_steps_and_chunks_are_those_of_lone_streams(made, x, alone):
    async def main():
        cluster = made()
        await cluster.open(STREAMS)
        await steps(cluster, x, alone, 0, 5)
        lengths = [k % 4 for k in range(len(STREAMS))]
        answers = await cluster.push(STREAMS, [x[5 : 5 + n, i] for i, n in enumerate(lengths)])
        for i, n in enumerate(lengths):
            assert np.array_equal(answers[i], alone[5 : 5 + n, i])
        assert (await cluster.steps_done(STREAMS)).tolist() == [5 + n for n in lengths]
        ticks = [cluster.step([STREAMS[3]], x[k, 3:4]) for k in range(8, 20)]  # all under way at once
        assert np.array_equal(np.concatenate(await asyncio.gather(*ticks)), alone[8:20, 3])
        stats = await cluster.stats()
        assert len(stats["actors"]) == 3
        assert len({a["node_id"] for a in stats["actors"].values()}) == 3, "one actor on each node"
        assert sum(a["streams"] for a in stats["actors"].values()) == len(STREAMS)
        assert sorted(s for a in stats["actors"].values() for s in a["shards"]) == list(range(12))
        assert stats["epochs"] == dict.fromkeys(range(12), 1)
        assert (stats["replayed_steps"], stats["lost_steps"], stats["fenced"]) == (0, 0, 0)
        assert stats["steps"] == 5 * len(STREAMS) + sum(lengths) + 12
        await cluster.close(STREAMS[:5])
        with pytest.raises(StateError, match="not open"):
            await cluster.step(STREAMS[:1], x[0, :1])
        await cluster.open(STREAMS[:5])
        assert np.array_equal(await cluster.step(STREAMS[:5], x[0, :5]), alone[0, :5])

    asyncio.run(main())


def test_a_node_is_removed_an_actor_exits_and_is_killed(made, nodes, x, alone):
    async def main():
        cluster = made()
        await cluster.open(STREAMS)
        await steps(cluster, x, alone, 0, 30)
        where = (await cluster.stats())["actors"]
        victim = next(n for n in nodes.worker_nodes if n.node_id == where[f"{cluster.name}-0"]["node_id"])
        nodes.remove_node(victim, allow_graceful=False)
        await steps(cluster, x, alone, 30, 60)
        handle_of(cluster.name, 1).exit.remote()
        await steps(cluster, x, alone, 60, 90)
        ray.kill(handle_of(cluster.name, 2), no_restart=False)
        await steps(cluster, x, alone, 90, 120)
        stats = await cluster.stats()
        assert stats["lost_steps"] == 0
        assert max(stats["epochs"].values()) > 1
        assert (await cluster.steps_done(STREAMS)).tolist() == [120] * len(STREAMS)

    try:
        asyncio.run(main())
    finally:
        nodes.add_node(num_cpus=4, object_store_memory=100_000_000)


def test_a_torn_checkpoint_is_refused(made, tmp_path, x, alone):
    """An actor dies with half a checkpoint under the newest name; the one before it counts."""

    async def main():
        cluster = made(actors=1)
        await cluster.open(STREAMS)
        await steps(cluster, x, alone, 0, 20)
        await cluster.drain()
        await steps(cluster, x, alone, 20, 40)
        handle_of(cluster.name).exit.remote()
        folders = [f for f in (tmp_path / cluster.name).iterdir() if any(f.glob("*.ckpt"))]
        assert len(folders) > 6
        for folder in folders:
            newest = sorted(folder.glob("*.ckpt"))[-1]
            epoch, number = newest.stem.split("-")
            (folder / f"{epoch}-{int(number) + 900:012d}.ckpt").write_bytes(newest.read_bytes()[:-40])
        await steps(cluster, x, alone, 40, 60)
        reply = await cluster._transport.call(f"{cluster.name}-0", "stats")
        assert reply["counts"]["damaged"] > 0
        assert (await cluster.stats())["lost_steps"] == 0

    asyncio.run(main())


def test_two_gateways(made, x, alone):
    """Each steps streams of its own while an actor dies; then they take turns with all of them."""

    async def main():
        one, two = made(actors=2), made(actors=2)
        half = len(STREAMS) // 2
        await one.open(STREAMS[:half])
        await two.open(STREAMS[half:])
        jobs = [
            asyncio.ensure_future(steps(one, x, alone, 0, 60, np.arange(half))),
            asyncio.ensure_future(steps(two, x, alone, 0, 60, np.arange(half, len(STREAMS)))),
        ]
        await asyncio.sleep(0.2)
        handle_of(one.name).exit.remote()
        await asyncio.gather(*jobs)
        with pytest.raises(StateError, match="open already"):
            await one.open(STREAMS[half : half + 1])
        for k, cluster in enumerate([two, one, one, two, one]):
            await steps(cluster, x, alone, 60 + 5 * k, 65 + 5 * k)
            if k == 2:
                handle_of(one.name, 1).exit.remote()
        last = [84] * len(STREAMS)
        y = await two.step(STREAMS, x[84], step_index=last)
        assert np.array_equal(y, alone[84]), "the last step, through the other gateway, is answered again"
        with pytest.raises(StreamError, match="expects step_index 85, got 83"):
            await one.step(STREAMS, x[84], step_index=[83] * len(STREAMS))

    asyncio.run(main())


def test_a_zombie_with_an_old_epoch_stops(made, tmp_path, x, alone):
    """A second process of an actor's name claims its shards: the first one stops within its lease."""

    async def main():
        cluster = made(actors=1)
        await cluster.open(STREAMS)
        await steps(cluster, x, alone, 0, 20)
        zombie = cluster._transport.handles[f"{cluster.name}-0"]
        of = np.array([0])
        assert (await zombie.steps_done.remote(np.array([[0], [0]]), [], of[:0]))[0] == "done"
        args = (f"{cluster.name}-0", str(tmp_path), cluster.name, 12, 1, 0.3)
        other = ray.remote(ShardActor).options(num_cpus=0).remote(*args)
        await other.stats.remote()

        async def stopped():
            return (await zombie.steps_done.remote(np.array([[0], [0]]), [], of[:0]))[0] == "refused"

        await within(30, stopped)
        await within(30, lambda: counted(zombie, "fenced", 12))
        cluster._transport.handles[f"{cluster.name}-0"] = other
        await steps(cluster, x, alone, 20, 40)
        assert (await cluster.stats())["lost_steps"] == 0
        ray.kill(other)

    async def counted(actor, key, least):
        return (await actor.stats.remote())["counts"][key] >= least

    asyncio.run(main())


def test_fence_stops_a_shard_and_its_owner_takes_it_up_again(made, tmp_path, x, alone):
    async def main():
        cluster = made(actors=1)
        await cluster.open(STREAMS)
        await steps(cluster, x, alone, 0, 20)
        assert fence(str(tmp_path), cluster.name, 3) == 2
        for shard in range(12):
            fence(str(tmp_path), cluster.name, shard)

        async def fenced():
            return (await cluster.stats())["fenced"] == 12

        await within(lease_of(0.3) + 30, fenced)
        await steps(cluster, x, alone, 20, 40)
        epochs = (await cluster.stats())["epochs"]
        assert epochs[3] == 4
        assert epochs[0] == 3

    asyncio.run(main())


def test_steps_go_on_while_the_store_fails_and_those_beyond_the_log_are_named(made, tmp_path, x, alone):
    """Without a store there are no checkpoints; what the log does not hold is lost with the actor, and named."""

    async def main():
        cluster = made(actors=1, replay_steps=20)
        await cluster.open(STREAMS)
        await steps(cluster, x, alone, 0, 10)
        folder, away = tmp_path / cluster.name, tmp_path / "away"

        async def durable():
            await cluster.drain()
            return (await cluster.stats())["checkpoint_failures"] == 0

        await within(30, durable)
        folder.rename(away)

        await asyncio.sleep(lease_of(0.3) + 1)  # the lease is renewed by Ray's word alone
        await steps(cluster, x, alone, 10, 25)
        away.rename(folder)
        handle_of(cluster.name).exit.remote()
        await steps(cluster, x, alone, 25, 40)  # the log reached back to the last checkpoint
        assert (await cluster.stats())["lost_steps"] == 0
        await within(30, durable)
        folder.rename(away)
        await steps(cluster, x, alone, 40, 70)
        assert (await cluster.stats())["unprotected_steps"] > 0
        away.rename(folder)
        handle_of(cluster.name).exit.remote()
        with pytest.raises(StepsLost) as caught:
            await steps(cluster, x, alone, 70, 71)
        missing = caught.value.missing
        done = await cluster.steps_done(list(missing))
        assert list(missing.values()) == [range(d, 70) for d in done.tolist()]
        for id, d in zip(missing, done.tolist(), strict=True):
            i = STREAMS.index(id)
            assert 40 <= d < 50
            with pytest.raises(StepsLost):
                await cluster.push([id], [x[d:71, i]])  # no word about the index: it may not know of the loss
            (answers,) = await cluster.push([id], [x[d:71, i]], step_index=[d])
            assert np.array_equal(answers, alone[d:71, i]), "what is sent again gives the same bits"

    asyncio.run(main())


def test_a_handle_and_an_actor_that_end_together_leave_streams_in_doubt(made, x, alone):
    """Nobody knows whether the first handle was answered more than the checkpoint has, so the second one is told."""

    async def main():
        first, second = made(actors=1), made(actors=1)
        await first.open(STREAMS[:2])
        await steps(first, x, alone, 0, 10, np.arange(2))
        await first.drain()
        await steps(first, x, alone, 10, 13, np.arange(2))
        await first._caller.end()
        handle_of(first.name).exit.remote()
        with pytest.raises(StepsLost) as caught:
            await asyncio.wait_for(second.step(STREAMS[:2], x[13, :2]), 120)
        assert {span.stop for span in caught.value.missing.values()} == {sys.maxsize}
        done = await second.steps_done(STREAMS[:2])
        for i, d in enumerate(done.tolist()):
            assert caught.value.missing[STREAMS[i]].start == d
            assert 10 <= d <= 13
            (answers,) = await second.push(STREAMS[i : i + 1], [x[d:15, i]], step_index=[d])
            assert np.array_equal(answers, alone[d:15, i])
        await steps(second, x, alone, 15, 20, np.arange(2))

    asyncio.run(main())


def test_streams_outlive_the_driver(made, nodes, x, alone):
    async def first():
        cluster = made(actors=2)
        await cluster.open(STREAMS)
        await steps(cluster, x, alone, 0, 20)
        return {a["pid"] for a in (await cluster.stats())["actors"].values()}

    async def second(pids):
        cluster = made(actors=2)
        assert {a["pid"] for a in (await cluster.stats())["actors"].values()} == pids
        assert (await cluster.steps_done(STREAMS)).tolist() == [20] * len(STREAMS)
        await steps(cluster, x, alone, 20, 30)
        await cluster.shutdown()

    async def third(pids):
        cluster = made(actors=2)  # the store has all streams, and other processes take them
        await steps(cluster, x, alone, 30, 40)
        assert {a["pid"] for a in (await cluster.stats())["actors"].values()}.isdisjoint(pids)

    pids = asyncio.run(first())
    ray.shutdown()
    connect(nodes)
    asyncio.run(second(pids))
    asyncio.run(third(pids))


def test_rebalance_under_load(made, nodes, x, alone):
    async def main():
        cluster = made(actors=1)
        await cluster.open(STREAMS)
        load = asyncio.ensure_future(steps(cluster, x, alone, 0, 200))
        await asyncio.sleep(0.2)
        alive = [n.node_id for n in nodes.worker_nodes]
        cluster._most = 3
        await cluster.rebalance(alive)
        stats = await cluster.stats()
        assert {a["node_id"] for a in stats["actors"].values()} == set(alive)
        assert [len(a["shards"]) for a in stats["actors"].values()] == [4, 4, 4]
        await cluster.rebalance(alive[:1])
        await load
        stats = await cluster.stats()
        assert {a["node_id"] for a in stats["actors"].values()} == {alive[0]}
        assert stats["lost_steps"] == 0
        with pytest.raises(StreamError, match="not alive"):
            await cluster.rebalance(["a node"])

    asyncio.run(main())


def test_several_inputs_and_outputs(made, nodes):
    W, V, R = (np.eye(4, dtype=np.float32) * k for k in (0.5, 0.3, 0.2))
    text = "h = tanh(W @ x + V @ z + R @ prev(h))\ns = x + z"
    model = fastrnn.from_equations(text, inputs={"x": 4, "z": 4}, outputs=["h", "s"], W=W, V=V, R=R)
    a, b = np.random.default_rng(1).normal(size=(2, 10, 3, 4)).astype(np.float32)

    async def main():
        cluster = made(model=model, actors=2)
        await cluster.open([1, 2, 3])
        lone = [model.stream() for _ in range(3)]
        for k in range(5):
            h, s = await cluster.step([1, 2, 3], (a[k], b[k]))
            for i in range(3):
                want = lone[i].step((a[k, i], b[k, i]))
                assert np.array_equal(h[i], want[0])
                assert np.array_equal(s[i], want[1])
        rows = await cluster.push([3, 1], [{"x": a[5:8, 2], "z": b[5:8, 2]}, {"x": a[5:6, 0], "z": b[5:6, 0]}])
        want = lone[2].push((a[5:8, 2], b[5:8, 2]))
        assert all(np.array_equal(got, w) for got, w in zip(rows[0], want, strict=True))
        with pytest.raises(ShapeError, match="2 inputs"):
            await cluster.step([1], a[0, :1])

    asyncio.run(main())


def test_what_is_refused(made, model, tmp_path, x):
    with pytest.raises(ShapeError, match="store="):
        StreamCluster(model)
    with pytest.raises(ShapeError, match="shards"):
        made(shards=0)
    with pytest.raises(StateError, match="can't create"):
        made(store="http://example.com/x")

    async def main():
        cluster = made(actors=1)
        with pytest.raises(StreamError, match="another shards"):
            made(shards=13)
        other = np.ones((8, 4), np.float32)
        with pytest.raises(StreamError, match="another model"):
            made(model=fastrnn.from_arrays("rnn", W=other, R=np.ones((8, 8), np.float32)))
        await cluster.open(["a"])
        for bad in (x[0, :2], x[0, :1].astype(np.float64), x[0, :1, :3]):
            with pytest.raises(ShapeError, match="expected"):
                await cluster.step(["a"], bad)
        with pytest.raises(StateError, match="twice"):
            await cluster.step(["a", "a"], x[0, :2])
        with pytest.raises(ShapeError, match="one chunk per stream"):
            await cluster.push(["a"], [])

    asyncio.run(main())


def test_a_cluster_of_the_same_name_in_another_store_is_refused(made, tmp_path, x, alone):
    """Its actors have the same names: its streams would have been those of the first one."""

    async def main():
        cluster = made(actors=1)
        await cluster.open(STREAMS)
        other = made(actors=1, store=tmp_path / "other")
        with pytest.raises(StreamError, match=f"belongs to the cluster .* in {tmp_path}: .*another name"):
            await asyncio.wait_for(other.open(["a"]), 60)
        await steps(cluster, x, alone, 0, 5)
        with pytest.raises(StateError, match="memory of one process"):
            made(store="memory://streams")

    asyncio.run(main())


def test_the_example(nodes):
    """examples/ray_cluster.py loses a node of its own cluster."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "examples/ray_cluster.py", "--steps", "60"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    assert "the same bits as lone streams" in done.stdout, done.stdout + done.stderr
