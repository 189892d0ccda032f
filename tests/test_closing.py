"""Models, streams and pools are context managers, and `close` frees their memory at once."""

import gc
import threading
import weakref

import numpy as np
import pytest
from ort_models import switched
from test_model_stream import some, stack

import fastrnn
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
