"""Models, streams and pools are context managers, and `close` frees their memory at once."""

import asyncio
import gc
import os
import threading
import weakref

import numpy as np
import pytest
from ort_models import switched
from pool_models import PACED
from test_model_stream import some, stack
from test_pool_memory import rss

import fastrnn
from fastrnn.aio import Batcher
from fastrnn.errors import FastRNNError
from fastrnn.model import Model

pytestmark = pytest.mark.any_isa


@pytest.fixture
def model():
    return Model(stack("lstm"))


@pytest.fixture
def no_cycles():
    """What goes, goes by its last reference: nothing waits for the collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_closed_model_refuses_and_says_what_to_do(model):
    with model as opened:
        assert opened is model
        assert not model.closed
        model(some(1, 2, 5))
    assert model.closed
    model.close()
    calls = [
        lambda: model(some(1, 2, 5)),
        lambda: model.run(some(1, 2, 5), lengths=[1]),
        model.stream,
        model.pool,
        lambda: model.save("m.fastrnn"),
        model.stats,
        model.__enter__,
        lambda: model.graph,
        lambda: model.states,
        lambda: model.memory_bytes,
        lambda: model.fingerprint,
    ]
    for call in calls:
        with pytest.raises(FastRNNError, match="was closed: load it again"):
            call()
    assert repr(model) == f"<Model {model.name}, closed>"
    assert [info.name for info in model.inputs] == ["x"]


def test_closing_a_model_frees_its_weights(model, no_cycles):
    model(some(1, 2, 5))
    model.stats()
    core = weakref.ref(model._core)
    weights = weakref.ref(next(iter(model.graph.constants.values())))
    model.close()
    assert core() is None
    assert weights() is None


def test_streams_go_on_and_own_what_they_need(model, no_cycles):
    twin = Model(stack("lstm"))
    x = some(6, 5)
    want = twin.stream().push(x)
    stream, pool = model.stream(), model.pool(4)
    core = weakref.ref(model._core)
    slot = pool.open()
    model.close()
    assert np.array_equal(stream.push(x), want)
    assert np.array_equal(pool.push([slot], [x])[0], want)
    blob = stream.copy().snapshot()
    twin.stream().restore(blob)
    assert stream.state.keys() == twin.stream().state.keys()
    assert core() is not None
    del stream, pool
    assert core() is None, "the last of them takes the weights along"


def test_a_model_closes_while_threads_run_it(model):
    """A call that has begun ends with its answer; a later one is refused."""
    x = some(4, 50, 5)
    want, found, begun = model(x), [], threading.Barrier(5)

    def calls():
        begun.wait()
        try:
            while True:
                found.append(np.array_equal(model(x), want))
        except FastRNNError as error:
            found.append(str(error))

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    while len(found) < 20:
        pass
    model.close()
    for thread in threads:
        thread.join()
    refused = [f for f in found if f is not True]
    assert len(refused) == 4
    assert all("was closed" in text for text in refused)


def test_a_selected_model_closes_all_its_models(no_cycles):
    with fastrnn.load(switched()) as model:
        assert isinstance(model, fastrnn.SelectedModel)
        x = np.zeros((2, 3), np.float32)
        model(x, rate=8000)
        kept = model.select(rate=8000)
        stream = model.stream(bind={"rate": 16000})
        gone = [weakref.ref(m) for m in model._models.values() if m is not kept]
    assert model.closed
    model.close()
    for call in (lambda: model(x, rate=8000), lambda: model.select(rate=8000), model.pool, lambda: model.states):
        with pytest.raises(FastRNNError, match="was closed: load it again"):
            call()
    with pytest.raises(FastRNNError, match="was closed"):
        model.save("m.fastrnn")
    assert kept(x).shape == (2, 3)
    assert stream.step(x[0]).shape == (3,)
    assert not kept.closed
    assert all(ref() is None or ref() is stream.model for ref in gone)


def test_lengths_may_be_any_ints(model):
    x = some(3, 4, 5)
    want = model(x, lengths=[4, 2, 3])
    for lengths in ((4, 2, 3), np.array([4, 2, 3]), np.array([4, 2, 3], np.uint8), [np.int64(4), 2, 3]):
        assert np.array_equal(model(x, lengths=lengths), want)
    assert model(x[:0], lengths=[]).shape == (0, *want.shape[1:])
    with pytest.raises(fastrnn.ShapeError, match="lengths must be 3 ints, one a row"):
        model(x, lengths=[[1], [2, 3]])


def uses_of_a_stream(stream):
    return [
        lambda: stream.step(some(5)),
        lambda: stream.step(some(5).tolist()),
        lambda: stream.push(some(3, 5)),
        lambda: stream.push([]),
        stream.flush,
        stream.reset,
        stream.copy,
        stream.snapshot,
        lambda: stream.restore(b"blob"),
        lambda: stream.state,
        lambda: setattr(stream, "state", {}),
        lambda: stream.delay,
        stream.__enter__,
    ]


@pytest.mark.parametrize("name", [None, *sorted(PACED)])
def test_a_closed_stream_refuses_and_says_what_to_do(model, name):
    model = PACED[name] if name else model
    with model.stream() as stream:
        stream.reset()
    assert stream.closed
    stream.close()
    for use in uses_of_a_stream(stream):
        with pytest.raises(fastrnn.StreamError, match=r"this stream was closed: open another one with model\.stream"):
            use()
    with pytest.raises(fastrnn.StreamError, match="was closed"):
        stream.__init__(model, model._core, model.stream()._parts)
    if name:
        with pytest.raises(fastrnn.StreamError, match="was closed"):
            stream.phase  # noqa: B018
    assert repr(stream) == f"<Stream of {model.name}, closed>"
    assert stream.slab is None
    assert stream.steps_done == 0


def test_closing_a_stream_frees_its_part_and_keeps_views(model, no_cycles):
    stream, other = model.stream(3), model.stream()
    stream.step(some(3, 5))
    view, want = stream.slab, stream.slab.copy()
    core = weakref.ref(model._core)
    for closed in (model, stream, other):
        closed.close()
    assert core() is None
    assert stream.batch_size == 3
    assert np.array_equal(view, want)


def test_many_closed_streams_take_no_memory_for_states():
    model = Model(stack("lstm", H=2048))
    kept = []
    model.stream().close()
    before = rss()
    for _ in range(3000):
        kept.append(model.stream())
        kept[-1].close()
    assert rss() - before < 3000 * 2048  # the states alone would be 48 MB


def test_a_stream_that_a_thread_steps_stays_open(model):
    """Its states are in use: close refuses as any call does."""
    stream, begun, go = model.stream(), threading.Event(), threading.Event()

    class Slow:
        def __array__(self, dtype=None, copy=None):
            with stream._held():
                begun.set()
                go.wait()
            return some(5)

    thread = threading.Thread(target=stream.step, args=[Slow()])
    thread.start()
    begun.wait()
    with pytest.raises(fastrnn.StreamError, match="in use by another thread"):
        stream.close()
    assert not stream.closed
    go.set()
    thread.join()
    stream.close()


def uses_of_a_pool(pool, slot):
    return [
        pool.open,
        lambda: pool.close(slot),
        lambda: pool.reset(slot),
        lambda: pool.copy(slot),
        lambda: pool.grow(10),
        lambda: pool.slots,
        lambda: list(pool),
        lambda: pool.step([slot], some(1, 5)),
        lambda: pool.step(np.array([slot]), some(1, 5)),
        lambda: pool.step([], some(0, 5)),
        lambda: pool.push([slot], [some(2, 5)]),
        lambda: pool.push([], []),
        lambda: pool.flush(slot),
        lambda: pool.state(slot),
        lambda: pool.set_state(slot, {}),
        lambda: pool.steps_done(slot),
        lambda: pool.snapshot(slot),
        pool.snapshot_all,
        lambda: pool.restore(b"blob"),
        lambda: pool.restore_all(b"blob"),
        pool.__enter__,
    ]


def test_a_closed_pool_refuses_and_says_what_to_do(model, no_cycles):
    with model.pool(8) as pool:
        slot = pool.open()
        pool.step([slot], some(1, 5))
        view, want = pool.slab, pool.slab.copy()
    assert pool.closed
    pool.close()
    for use in uses_of_a_pool(pool, slot):
        with pytest.raises(fastrnn.StreamError, match=r"this pool was closed: make another one with model\.pool"):
            use()
    with pytest.raises(fastrnn.StateError, match="initialized before"):
        pool.__init__(model, model._core, 8)
    with pytest.raises(fastrnn.StreamError, match="this pool was closed"):
        pool._place(slot)  # which a Batcher calls without the lock
    with pytest.raises(fastrnn.StreamError, match="this pool was closed"):
        pool._steps(0)
    assert slot not in pool
    assert (len(pool), pool.capacity, pool.memory_bytes, pool.slab) == (0, 0, 0, None)
    assert pool.stats()["opened"] == 1
    assert repr(pool) == f"<StreamPool of {model.name}, closed>"
    assert np.array_equal(view, want)
    core = weakref.ref(model._core)
    model.close()
    assert core() is None


def test_only_a_missing_slot_is_the_whole_pool(model):
    pool = model.pool(2)
    for wrong in (None, (), "all"):
        with pytest.raises(fastrnn.StateError, match="a slot is an int that"):
            pool.close(wrong)
    assert not pool.closed


def test_closing_a_pool_gives_its_memory_back():
    model = Model(stack("lstm", H=2048))
    before = rss()
    pool = model.pool(3000)
    for _ in range(3000):
        pool.open()
    assert rss() - before > 48 << 20
    pool.close()
    assert rss() - before < 8 << 20


@pytest.mark.parametrize("round", range(5))
def test_a_pool_closes_while_threads_step_it(model, round):
    """It waits for calls that have begun; those that wait for it are refused. Nothing crashes, no bit is wrong."""
    pool = model.pool(64)
    slots = [[pool.open() for _ in range(8)] for _ in range(4)]
    x = some(8, 5)
    want = model.stream(8)
    first = want.step(x).copy()
    found, begun = [], threading.Barrier(5)

    def steps(mine):
        begun.wait()
        try:
            while True:
                pool.push(mine, [x[:1]] * 8)
                pool.steps_done(mine[0])
                mine[0] in pool  # noqa: B015
                for slot in mine:
                    pool.reset(slot)
                found.append(np.array_equal(pool.step(mine, x), first))
        except fastrnn.StreamError as error:
            found.append(str(error))

    threads = [threading.Thread(target=steps, args=[mine]) for mine in slots]
    for thread in threads:
        thread.start()
    begun.wait()
    while len(found) < 20:
        pass
    pool.close()
    for thread in threads:
        thread.join()
    refused = [f for f in found if f is not True]
    assert len(refused) == 4
    assert all("this pool was closed" in text for text in refused)


def test_a_batcher_on_a_closed_pool_answers_each_caller(model):
    async def callers():
        pool = model.pool(4)
        async with Batcher(pool, max_delay=0.05) as batcher:
            slot = await batcher.open()
            await batcher.step(slot, some(5))
            waiting = asyncio.ensure_future(batcher.step(slot, some(5)))
            await asyncio.sleep(0)
            pool.close()
            with pytest.raises(fastrnn.StreamError, match="this pool was closed"):
                await waiting
            for call in (batcher.step(slot, some(5)), batcher.push(slot, some(1, 5)), batcher.close_slot(slot)):
                with pytest.raises(FastRNNError, match="this pool was closed"):
                    await call
            with pytest.raises(FastRNNError, match="this pool was closed"):
                batcher.steps_done(slot)
            with pytest.raises(FastRNNError, match="this pool was closed"):
                await batcher.open()

    asyncio.run(callers())


def test_metrics_leave_out_what_is_closed(model):
    pool = model.pool(2)
    registry = pytest.importorskip("prometheus_client").CollectorRegistry()
    fastrnn.metrics.register(model, pool, registry=registry, names=["m", "p"])
    assert {family.name for family in registry.collect()}
    model.close()
    pool.close()
    assert [family.name for family in registry.collect()] == []


def test_a_fork_outlives_closed_pools(model):
    """The handlers of a fork hold every pool, closed ones too."""
    pool = model.pool(2)
    pool.close()
    child = os.fork()
    if child == 0:
        os._exit(0 if pool.closed else 1)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(fastrnn.StreamError, match="this pool was closed"):
        pool.open()
