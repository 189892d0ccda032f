"""Steps and chunks of models with several inputs and outputs: every form of their arguments means the same."""

import collections
import itertools
import sys
import threading
import tracemalloc
import types

import numpy as np
import pytest
from graph_builder import GraphBuilder
from test_model_stream import some
from test_plan import weights

import fastrnn
from fastrnn.graph.cells import CellSpec
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.model import Model


def tagger():
    """int64 words and float32 features -> GRU -> its steps, and the place of the largest in each (int64)."""
    rng, b = np.random.default_rng(3), GraphBuilder("tagger")
    ids, x = b.input("ids", "int64", TIME, BATCH), b.input("x", "float32", TIME, BATCH, 3)
    both = b.add("concat", b.add("gather", weights(rng, b, "table", 10, 4), ids, axis=0), x, axis=2)
    y, _ = b.add("cell", both, weights(rng, b, "W", 18, 7), weights(rng, b, "R", 18, 6), outputs=("y", None),
                 spec=CellSpec("gru", 7, 6))  # fmt: skip
    return Model(b.done(y, b.add("binary", y, y, fn="add", name="z")))


def floats():
    """Two float32 inputs, GRU, two outputs."""
    rng, b = np.random.default_rng(5), GraphBuilder("floats")
    a, c = b.input("a", "float32", TIME, BATCH, 6), b.input("c", "float32", TIME, BATCH, 6)
    y, _ = b.add("cell", a, weights(rng, b, "W", 18, 6), weights(rng, b, "R", 18, 6), outputs=("y", None),
                 spec=CellSpec("gru", 6, 6))  # fmt: skip
    return Model(b.done(y, b.add("binary", y, c, fn="add", name="z")))


def looking_ahead():
    """Two inputs that meet, then a window that sees one step ahead, and two outputs of it."""
    rng, b = np.random.default_rng(4), GraphBuilder("looking ahead")
    x = b.add("concat", b.input("a", "float32", BATCH, 2, TIME), b.input("c", "float32", BATCH, 1, TIME), axis=1)
    y = b.add("conv", x, weights(rng, b, "W", 4, 3, 3), strides=(1,), dilations=(1,), pads=(1, 1), groups=1)
    return Model(b.done(y, b.add("binary", y, y, fn="add", name="z")))


class Mine(np.ndarray):
    """An array of a caller's own class."""


def step(i=0, batch=None):
    lead = () if batch is None else (batch,)
    return np.arange(i, i + (batch or 1)).reshape(lead) % 10, some(*lead, 3, seed=i)


def strided(array):
    wide = np.zeros((*array.shape, 2), array.dtype)
    wide[..., 0] = array
    return wide[..., 0]


FORMS = {
    "a tuple": lambda ids, x: (ids, x),
    "a list": lambda ids, x: [ids, x],
    "a dict": lambda ids, x: {"ids": ids, "x": x},
    "a dict in another order": lambda ids, x: {"x": x, "ids": ids},
    "a mapping": lambda ids, x: types.MappingProxyType({"ids": ids, "x": x}),
    "a dict of a class of its own": lambda ids, x: collections.OrderedDict(x=x, ids=ids),
    "keys of a class of str": lambda ids, x: {type("Key", (str,), {})("ids"): ids, "x": x},
    "numbers": lambda ids, x: (ids.tolist(), x.tolist()),
    "one list, one array": lambda ids, x: (ids.tolist(), x),
    "a subclass": lambda ids, x: (ids, x.view(Mine)),
    "strided": lambda ids, x: (strided(ids), strided(x)),
    "the other byte order": lambda ids, x: (ids.astype(">i8"), x.astype(">f4")),
    "unaligned": lambda ids, x: (ids, np.frombuffer(b"_" + x.tobytes(), np.float32, offset=1).reshape(x.shape)),
    "read-only": lambda ids, x: (ids, np.frombuffer(x.tobytes(), np.float32).reshape(x.shape)),
    "narrower": lambda ids, x: (ids.astype(np.int32), x),
    "long long": lambda ids, x: (ids.astype(np.longlong), x),
}


def same(found, want):
    """Whether arrays have the same bits."""
    return [a.tobytes() for a in found] == [a.tobytes() for a in want]


def wanted(model, batch):
    """Both outputs of six steps, [6, batch, ...], of whole runs."""
    steps = [step(i, batch) for i in range(6)]
    return model.run(np.stack([ids for ids, _ in steps]), np.stack([x for _, x in steps]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_every_form_of_the_arguments_means_the_same(form, batch):
    model = tagger()
    want = wanted(model, batch or 1)
    stream, outs = model.stream(batch), model.stream(batch)
    for i in range(6):
        y, z = stream.step(FORMS[form](*step(i, batch)))
        assert same((y, z), [w[i] for w in want])
        targets = np.empty_like(y), np.empty_like(z)
        found = outs.step(FORMS[form](*step(i, batch)), out=targets)
        assert type(found) is tuple
        assert all(f is t for f, t in zip(found, targets, strict=True))
        assert same(targets, (y, z))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [1, 3])
def test_and_so_in_a_pool(form, n):
    model = tagger()
    want, pool = wanted(model, n), model.pool(4)
    slots = np.array([pool.open() for _ in range(n)])
    for i in range(6):
        targets = [np.empty((n, 6), np.float32), np.empty((n, 6), np.float32)] if i % 2 else None
        found = pool.step(slots, FORMS[form](*step(i, n)), out=targets)
        assert same(found, [w[i] for w in want])
        assert targets is None or all(f is t for f, t in zip(found, targets, strict=True))


@pytest.mark.parametrize("form", [f for f in FORMS if f not in ("unaligned", "read-only")])
@pytest.mark.parametrize("batch", [None, 3])
def test_and_so_for_chunks(form, batch):
    model, axis = tagger(), 0 if batch is None else 1
    want = wanted(model, batch or 1)
    steps = [step(i, batch) for i in range(6)]
    stream = model.stream(batch)
    for first, last in ((0, 1), (1, 6)) if "list" in form or form == "numbers" else ((0, 1), (1, 1), (1, 6)):
        chunk = [np.stack([s[k] for s in steps], axis).take(range(first, last), axis) for k in range(2)]
        for w, got in zip(want, stream.push(FORMS[form](*chunk)), strict=True):
            part = w[first:last] if batch is not None else w[first:last, 0]
            assert got.tobytes() == (part.swapaxes(0, 1) if batch is not None else part).tobytes()
    with pytest.raises(fastrnn.ShapeError, match=r"same number of steps, got \{'ids': 2, 'x': 3\}"):
        stream.push((np.zeros((*chunk[0].shape[:axis], 2), np.int64), np.zeros((*chunk[1].shape[:axis], 3, 3), "f4")))


@pytest.mark.parametrize("batch", [None, 2])
def test_a_model_that_looks_ahead(batch):
    model, lead = looking_ahead(), () if batch is None else (batch,)
    stream, named, outs, chunked = (model.stream(batch) for _ in range(4))
    found = []
    for i in range(5):
        x = some(*lead, 2, seed=i), some(*lead, 1, seed=9 + i)
        targets = np.full((*lead, 4), 7, np.float32), np.full((*lead, 4), 7, np.float32)
        y = stream.step(x)
        again = named.step(dict(zip("ca", x[::-1], strict=True)))
        written = outs.step(x, out=targets)
        axis = len(lead)
        chunk = chunked.push([np.expand_dims(v, axis) for v in x])
        if i == 0:  # no step comes
            assert y == (None, None) == again == written
            assert all((t == 7).all() for t in targets)
            assert all(c.size == 0 for c in chunk)
            continue
        assert all(same(y, other) for other in (again, written, chunk))
        assert all(w is t for w, t in zip(written, targets, strict=True))
        found.append(y)
    whole = model.run(*(np.stack([some(*lead, n, seed=s + i) for i in range(5)], -1).reshape(batch or 1, n, 5)
                        for n, s in ((2, 0), (1, 9))))  # fmt: skip
    for k, w in enumerate(whole):
        assert np.stack([y[k] for y in found], -1).reshape(batch or 1, 4, 4).tobytes() == w[..., :4].tobytes()


@pytest.mark.parametrize("form", [f for f in FORMS if f not in ("unaligned", "read-only")])
def test_and_so_for_chunks_of_a_pool(form):
    model = tagger()
    pool, lone = model.pool(4), [model.stream() for _ in range(3)]
    slots = [pool.open() for _ in lone]
    steps = [step(i) for i in range(9)]
    for spans in ((2, 3, 1), (1, 1, 1), (3, 1, 5)):
        chunks = [[np.stack([s[k] for s in steps[i : i + n]]) for k in range(2)] for i, n in enumerate(spans)]
        found = pool.push(slots, [FORMS[form](*chunk) for chunk in chunks])
        for stream, chunk, got in zip(lone, chunks, found, strict=True):
            assert type(got) is tuple
            assert same(got, stream.push(chunk))
    before = [pool.snapshot(slot) for slot in slots]
    with pytest.raises(fastrnn.ShapeError, match=r"chunk 1: inputs are \['ids', 'x'\], got \['ids'\]"):
        pool.push(slots, [chunks[0], {"ids": chunks[1][0]}, chunks[2]])
    with pytest.raises(fastrnn.ShapeError, match="index 11"):
        pool.push(slots, [chunks[0], (chunks[1][0] + 10, chunks[1][1]), chunks[2]])
    assert [pool.snapshot(slot) for slot in slots] == before


def test_mistakes_are_named():
    model = tagger()
    stream, (ids, x) = model.stream(), step()
    wrong = [
        ((ids,), r"a tuple of 2 inputs \['ids', 'x'\], got 1 arrays"),
        (x, r"a tuple of 2 inputs \['ids', 'x'\], got ndarray"),
        ({"ids": ids}, r"inputs are \['ids', 'x'\], got \['ids'\]"),
        ({"ids": ids, "y": x}, r"inputs are \['ids', 'x'\], got \['ids', 'y'\]"),
        ({"ids": ids, "x": x, "y": x}, r"inputs are \['ids', 'x'\], got \['ids', 'x', 'y'\]"),
        ((x, ids), r"input ids: dtype int64 expected, got float32"),
        ((ids, x.astype(np.float64)), r"input x: dtype float32 expected, got float64"),
        ((ids, x[:2]), r"input x: one step is \[3\], got \[2\]"),
        ((np.int64(10), x), r"index 10"),
    ]
    before = stream.state
    for given, text in wrong:
        with pytest.raises(fastrnn.ShapeError, match=text):
            stream.step(given)
        if given is not wrong[-1][0]:
            with pytest.raises(fastrnn.ShapeError, match=text):
                stream.step(given, out=(np.empty(6, np.float32), np.empty(6, np.float32)))
    assert stream.steps_done == 0
    assert all(before[k].tobytes() == v.tobytes() for k, v in stream.state.items())


def test_targets_that_do_not_fit():
    stream, y, z = tagger().stream(), np.empty(6, np.float32), np.empty(6, np.float32)
    fixed, base = np.empty(6, np.float32), np.empty(8, np.float32)
    fixed.flags.writeable = False
    for out, text in [
        ((y,), "out has 1 arrays, the model has 2 outputs"),
        (y, "out has 1 arrays, the model has 2 outputs"),
        ((y, z, z), "out has 3 arrays, the model has 2 outputs"),
        ((y, np.empty(5, np.float32)), r"out for z: float32\[6\] expected, got float32\[5\]"),
        ((y, np.empty(6)), r"out for z: float32\[6\] expected, got float64\[6\]"),
        ((y, fixed), "out for z is read-only"),
        ((y, y), "out for z shares memory with another output's"),
        ((base[:6], base[2:]), "out for z shares memory with another output's"),
    ]:
        with pytest.raises(fastrnn.ShapeError, match=text):
            stream.step(step(), out=out)
    assert stream.steps_done == 0


def test_a_target_may_be_an_input_or_have_gaps():
    model = floats()
    base = some(12)
    given = base[:6].copy(), base[6:].copy()
    want = model.stream().step(given)
    targets = {
        "the inputs": (base[:6], base[6:]),
        "the inputs, exchanged": (base[6:], base[:6]),
        "across an input": (base[3:9], some(6)),
        "gaps": (strided(some(6)), some(6)),
        "a subclass": (some(6).view(Mine), some(6)),
    }
    for name, out in targets.items():
        base[:] = np.concatenate(given)
        found = model.stream().step((base[:6], base[6:]), out=out)
        assert same(found, want), name
        assert all(f is o for f, o in zip(found, out, strict=True)), name


@pytest.mark.parametrize("form", [tuple, list, lambda given: dict(zip("ac", given, strict=True))])
@pytest.mark.parametrize("rows", [None, 3])
def test_a_step_into_targets_allocates_nothing(form, rows):
    model, lead = floats(), () if rows is None else (rows,)
    given, out = form((some(*lead, 6), some(*lead, 6, seed=1))), (some(*lead, 6), some(*lead, 6))
    stream, pool = model.stream(rows), model.pool(4)
    slots = np.array([pool.open() for _ in range(rows or 0)], np.int64)
    calls = [lambda: stream.step(given, out), lambda: rows and pool.step(slots, given, out)]
    calls += [lambda: None]
    grown = []
    for call in calls:
        for _ in range(100):
            call()
        tracemalloc.start()
        try:
            call()
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            for _ in itertools.repeat(None, 100):
                call()
            grown.append(tracemalloc.get_traced_memory()[1] - before)
        finally:
            tracemalloc.stop()
    assert max(grown[:2]) <= grown[2] + 32  # an empty call costs the same


def test_threads_with_a_stream_each_get_the_same_bits():
    model, want = tagger(), wanted(tagger(), 1)
    wrong = []

    def work(form):
        for _ in range(40):
            stream, out = model.stream(), (np.empty(6, np.float32), np.empty(6, np.float32))
            for i in range(6):
                found = stream.step(FORMS[form](*step(i)), out=out if i % 2 else None)
                if not same(found, [w[i] for w in want]):
                    wrong.append((form, i))

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(form,)) for form in FORMS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert not wrong


def test_a_list_that_another_thread_empties_keeps_its_arrays_for_the_call():
    """A call of many rows runs without the GIL; the caller's list may change meanwhile, its arrays stay alive."""
    model, rows = floats(), 4000
    stream, given = model.stream(rows), [some(rows, 6), some(rows, 6, seed=1)]
    want = model.stream(rows).step(given)
    stop, box = threading.Event(), []

    def empties():
        while not stop.is_set():
            if box:
                box[0][:] = [None, None]
                box.clear()

    thread = threading.Thread(target=empties)
    thread.start()
    try:
        for _ in range(50):
            stream.reset()
            mine = [given[0].copy(), given[1].copy()]
            box.append(mine)
            try:
                found = stream.step(mine)
            except fastrnn.ShapeError:  # emptied before the call
                continue
            assert same(found, want)
    finally:
        stop.set()
        thread.join()
