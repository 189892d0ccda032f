"""A handle of a cluster and what its users give it, without Ray: ids, indexes, starts that fail, calls that are
cancelled, and the end."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from simulated import World, in_virtual_time, mixed

from fastrnn.errors import ShapeError, StateError, StreamError
from fastrnn.ray.actor import ShardActor
from fastrnn.ray.cluster import StreamCluster
from fastrnn.ray.store import ObjectStore
from fastrnn.ray.words import OtherCluster

pytestmark = pytest.mark.any_isa
SIDES = [("x", np.dtype(np.uint64), ())]


def handle(world):
    """A StreamCluster on simulated actors."""
    made = StreamCluster.__new__(StreamCluster)
    made._caller = made._loop = made._start = None
    made._kind, made._ended, made.shards, made.replay_steps, made._transport = 0, False, world.shards, 100, world
    made.inputs = made.outputs = SIDES
    made.name, world.handles = "words", {}
    return made


def simulated(test):
    """Run test(loop, world) in virtual time, in a world without losses."""

    def run():
        async def main(loop):
            world = World(1, loop, loss=0, duplicates=0, reorders=False)
            try:
                await asyncio.wait_for(test(loop, world), 1000)
            finally:
                world.end()

        in_virtual_time(main)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def ones(n):
    return np.ones(n, np.uint64)


# -- ids --
@simulated
async def test_ids_of_numpy_are_plain_numbers_and_texts(loop, world):
    """A checkpoint holds ids as JSON: with others, no checkpoint could be written any more."""
    cluster = handle(world)
    for ids in ([np.int64(1), np.uint64(2)], [np.str_("a"), np.int8(3)], np.array(["b", 4], object)):
        await cluster.open(ids)
        await cluster.step(ids, ones(2))
    assert (await cluster.steps_done([1, 2, "a", 3, "b", 4])).tolist() == [1] * 6
    held = [id for p in world.processes.values() for own in p.host.owned.values() for id in own.streams]
    assert {type(id) for id in held} == {int, str}
    await asyncio.sleep(10)
    assert all(p.host.counts["checkpoint_failures"] == 0 for p in world.processes.values())
    assert any(p.host.counts["checkpoints"] for p in world.processes.values())


@simulated
async def test_what_is_no_id(loop, world):
    cluster = handle(world)
    for ids in ([1.5], [None], [b"a"], [-1], [1 << 64], [True], [("a",)], np.array([1.0]), np.array([-1]), [[1]]):
        for call in (cluster.open, cluster.close, cluster.steps_done, lambda some: cluster.step(some, ones(1))):
            with pytest.raises(StateError, match=r"an id is an integer from 0 to 2\*\*64 - 1 or a text, got "):
                await call(ids)
    for ids in ("alice", 5, np.int64(5), np.array(5), None):
        for call in (cluster.open, cluster.close, cluster.steps_done, lambda some: cluster.step(some, ones(5))):
            with pytest.raises(StateError, match="ids are a list or an array of ids, got "):
                await call(ids)


@simulated
async def test_arrays_of_objects_are_known_by_their_ids(loop, world):
    """Not by the addresses of the objects, which others have later."""
    cluster = handle(world)
    await cluster.open(["a", "b"])
    box = np.array(["a"], object)
    await cluster.step(box, ones(1))
    again = np.array(["b"], object)
    await cluster.step(same_bytes(again, box.tobytes()), ones(1))
    assert (await cluster.steps_done(["a", "b"])).tolist() == [1, 1]


def same_bytes(array, blob):
    """An array of objects that lie where others lay before."""

    class Same(np.ndarray):
        def tobytes(self, order="C"):
            return blob

    return array.view(Same)


# -- steps --
@simulated
async def test_calls_without_streams(loop, world):
    cluster = handle(world)
    (y,) = [await cluster.step([], ones(0))]
    assert (y.shape, y.dtype) == ((0,), np.uint64)
    assert await cluster.push([], []) == []
    await cluster.open([])
    await cluster.close([])
    assert (await cluster.steps_done([])).tolist() == []


@simulated
async def test_an_index_is_one_whole_number_for_each_stream(loop, world):
    cluster = handle(world)
    await cluster.open([1, 2])
    for bad in (0, [0], [0, 0, 0], [0.5, 0], [[0, 0]], ["0", "0"], [-1, 0]):
        with pytest.raises(ShapeError, match=r"step_index must be whole numbers from 0 up, int64 \[2\], got"):
            await cluster.step([1, 2], ones(2), step_index=bad)
    await cluster.step([1, 2], ones(2), step_index=[0, 0])
    await cluster.step([1, 2], ones(2), step_index=np.array([1, 1], np.uint8))


# -- starts and ends --
@simulated
async def test_a_start_that_fails_is_tried_again(loop, world):
    """Later calls waited for ever for the caller of the first one."""
    cluster, owners, failed = handle(world), world.owners, []

    async def fails():
        await asyncio.sleep(1)
        if len(failed) < 2:
            failed.append(1)
            raise OSError("the store does not answer")
        return await owners()

    world.owners = fails
    both = await asyncio.gather(cluster.open([1]), cluster.open([2]), return_exceptions=True)
    assert [type(e) for e in both] == [OSError, OSError]
    with pytest.raises(OSError, match="does not answer"):
        await cluster.open([1])
    await cluster.open([1])


@simulated
async def test_a_first_call_that_is_cancelled_leaves_the_handle_usable(loop, world):
    cluster, owners = handle(world), world.owners

    async def slow():
        await asyncio.sleep(1)
        return await owners()

    world.owners = slow
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(cluster.open([1]), 0.5)
    await cluster.open([2])


@simulated
async def test_a_handle_that_was_shut_down_makes_no_actors_again(loop, world):
    cluster = handle(world)
    await cluster.open([1])
    world.flush = None
    killed = []
    world.handles = {name: name for name in world.actors}
    cluster._ray = SimpleNamespace(kill=killed.append)

    async def every(method, *args):
        return {}

    cluster._every = every
    await cluster.shutdown()
    assert killed == world.actors
    await cluster.shutdown()
    for call in (cluster.step([1], ones(1)), cluster.open([2]), cluster.stats(), cluster.drain()):
        with pytest.raises(StreamError, match=r"was shut down.*make another StreamCluster"):
            await call


@simulated
async def test_actors_end_although_the_store_does_not_answer(loop, world):
    cluster, killed = handle(world), []

    async def fails():
        raise OSError("the store does not answer")

    world.owners, world.handles = fails, {name: name for name in world.actors}
    cluster._ray = SimpleNamespace(kill=killed.append)
    with pytest.raises(OSError, match="does not answer"):
        await cluster.shutdown()
    assert killed == world.actors


@simulated
async def test_the_actors_of_another_cluster_are_not_ended(loop, world):
    """Of the same name, in another store."""
    cluster, killed = handle(world), []
    await cluster.open([1])
    call = world.call

    def refused(actor, method, *args):
        if method in ("let_go", "stats"):
            future = loop.create_future()
            future.set_exception(OtherCluster(f"actor {actor} belongs to another cluster"))
            return future
        return call(actor, method, *args)

    world.call, world.handles = refused, {name: name for name in world.actors}
    cluster._ray = SimpleNamespace(kill=killed.append)
    with pytest.raises(OtherCluster, match="belongs to another cluster"):
        await cluster._every("stats")  # before `rebalance` does anything
    with pytest.raises(OtherCluster, match="belongs to another cluster"):
        await cluster.shutdown()
    assert killed == []


# -- calls that are cancelled --
@simulated
async def test_a_step_whose_caller_is_cancelled_is_taken_all_the_same(loop, world):
    cluster = handle(world)
    await cluster.open([1, 2])
    for _ in range(3):
        job = asyncio.ensure_future(cluster.step([1, 2], ones(2)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        job.cancel()
    await cluster._caller.settle()
    assert (await cluster.steps_done([1, 2])).tolist() == [3, 3]
    state = np.zeros(1, np.uint64)
    for _ in range(4):
        state = mixed(state, ones(1))
    assert (await cluster.step([1, 2], ones(2))).tolist() == [state[0]] * 2
    assert all(e.outputs is None for e in cluster._caller.log.entries.values())


@pytest.mark.parametrize("crash", [False, True])
def test_a_stream_is_closed_after_its_steps_whose_callers_were_cancelled(crash):
    @simulated
    async def main(loop, world):
        cluster = handle(world)
        await cluster.open([1])
        if crash:
            for name in world.actors:
                world.crash(name)
        job = asyncio.ensure_future(cluster.step([1], ones(1)))
        while not cluster._caller.log.open:
            await asyncio.sleep(0)
        job.cancel()
        (entry,) = cluster._caller.log.open.values()
        await cluster.close([1])
        assert not entry.left, "closed before its step was answered"
        assert not cluster._caller.log.open
        await cluster.open([1])
        assert (await cluster.steps_done([1])).tolist() == [0]
        assert len(await cluster.step([1], ones(1))) == 1

    main()


# -- the store --
def test_where_a_store_is(tmp_path, monkeypatch):
    """Actors have other working directories, and other homes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for url, want in (
        ("a b/ü", f"{tmp_path}/a b/ü"), ("~/x", f"{tmp_path}/home/x"), ("file:///x/y", "/x/y"),
        (f"{tmp_path}/z/", f"{tmp_path}/z"),
    ):  # fmt: skip
        store = ObjectStore(url, "words")
        assert (store.url, store.root) == (want, f"{want}/words")
    with pytest.raises(StateError, match=r"file://x/y.*file:///"):
        ObjectStore("file://x/y", "words")


def test_a_model_is_written_by_the_program_that_founds_the_cluster(tmp_path):
    """Not by one that comes second with another model, and is refused: actors would run that one."""

    class Model:
        def __init__(self, text):
            self.fingerprint = text

        def save(self, path):
            with open(path, "w") as file:
                file.write(self.fingerprint)

    def found(text, **more):
        made = StreamCluster.__new__(StreamCluster)
        made.name, made.shards, made._most, made.cpus, made.checkpoint_seconds = "words", 4, 1, 1, 1.0
        made.model, made._store = Model(text), ObjectStore(str(tmp_path), "words")
        made._ray = SimpleNamespace(nodes=lambda: [{"NodeID": "n", "Alive": True, "Resources": {"CPU": 1}}])
        made._transport = SimpleNamespace(find=lambda: None)
        for name, value in more.items():
            setattr(made._store, name, value)
        made._found()
        return made

    first, real = [], ObjectStore(str(tmp_path), "words")

    def owners():  # the first one comes between this one's look and what it writes
        if not first:
            first.append(found("a"))
            return 0, {}
        return real.owners()

    with pytest.raises(StreamError, match="another model"):
        found("b", owners=owners)
    assert real.model() == b"a"
    real._delete("model.fastrnn")  # of a founder that was killed in between
    found("a")
    assert real.model() == b"a"


def test_a_flush_waits_for_the_checkpoint_that_is_being_written():
    """It may lack the last steps. `drain` and `shutdown` must write another one, or these steps would be lost."""
    actor = ShardActor.__new__(ShardActor)  # without Ray
    actor.name, actor.lock = "a-0", threading.RLock()
    own, jobs, looks = SimpleNamespace(writing=True, dirty=True, owed=False), [], []

    def capture(shard):
        if own.writing:
            return None
        jobs.append(shard)
        return object()

    def write_one(shard, job):
        if job is None:
            looks.append(shard)

    actor.host, actor._write_one = SimpleNamespace(owned={3: own}, capture=capture), write_one
    timer = threading.Timer(0.2, setattr, (own, "writing", False))
    timer.start()
    with ThreadPoolExecutor(1) as actor._writers:
        assert actor.flush(twice=False) == ("done",)
    timer.join()
    assert (jobs, looks) == ([3], [])


def test_an_actor_of_another_cluster_takes_no_call():
    actor = ShardActor.__new__(ShardActor)  # without Ray
    actor.name, actor.store, actor._whose = "words-0", SimpleNamespace(url="/a", name="words"), "1"
    actor.let_go = lambda: ("done",)
    assert actor.call("1", "let_go") == ("done",)
    with pytest.raises(StreamError, match=r"actor words-0 belongs to the cluster 'words' in /a.*another name"):
        actor.call("2", "let_go")


def test_checkpoints_go_on_after_one_that_failed(caplog):
    """Its thread renews the leases as well: an actor without it would answer nothing any more."""
    actor = ShardActor.__new__(ShardActor)  # without Ray
    actor.name, actor.checkpoint_seconds, actor.lock, actor._end = "a-0", 0.001, threading.RLock(), threading.Event()
    rounds, written = [], []

    def capture_all(shards):
        rounds.append(shards)
        if len(rounds) == 1:
            raise MemoryError
        return {}

    def write_one(shard, job):
        written.append(shard)
        actor._end.set()

    actor.host, actor._write_one = SimpleNamespace(owned={3: None}, capture_all=capture_all), write_one
    with ThreadPoolExecutor(1) as actor._writers:
        actor._keep()
    assert (rounds, written) == ([[3], [3]], [3])
    assert "a-0: no checkpoints of 1 shards" in caplog.text
