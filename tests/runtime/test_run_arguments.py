"""Arguments of whole runs: every form of them means the same, whatever was run before."""

import collections
import gc
import itertools
import os
import pickle
import signal
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from graph_builder import GraphBuilder
from test_model_stream import some
from test_plan import weights

import fastrnn
from fastrnn.graph import reference
from fastrnn.graph.cells import CellSpec
from fastrnn.graph.dims import BATCH, TIME, symbol
from fastrnn.model import Model
from fastrnn.runtime.compiled import Compiled


def tagger():
    """int64 words and float32 features -> GRU with its state passed by hand -> its steps, and the last state."""
    rng, b = np.random.default_rng(3), GraphBuilder("tagger")
    ids, x = b.input("ids", "int64", TIME, BATCH), b.input("x", "float32", TIME, BATCH, 3)
    h0 = b.input("h0", "float32", 1, BATCH, 6)
    both = b.add("concat", b.add("gather", weights(rng, b, "table", 10, 4), ids, axis=0), x, axis=2)
    args = [weights(rng, b, "W", 18, 7), weights(rng, b, "R", 18, 6), None, None, None]
    y, hn = b.add("cell", both, *args, b.add("reshape", h0, dims=(BATCH, 6)), outputs=("y", "hn"),
                  spec=CellSpec("gru", 7, 6))  # fmt: skip
    end = b.add("reshape", hn, dims=(1, BATCH, 6), name="end")
    return b.done(y, end, states={"h0": end})


def feeds(time, batch, seed=0):
    ids = np.random.default_rng(seed).integers(0, 10, (time, batch))
    return [ids, some(time, batch, 3, seed=seed), some(1, batch, 6, seed=seed + 1)]


def same(found, want):
    """Whether arrays have the same bits, dtypes and shapes."""
    return [(a.dtype, a.shape, a.tobytes()) for a in found] == [(a.dtype, a.shape, a.tobytes()) for a in want]


class Mine(np.ndarray):
    """An array of a caller's own class."""


class Tensor:
    """What only NumPy's protocol reads."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


FORMS = {
    "as they are": lambda a: a,
    "lists": lambda a: a.tolist(),
    "a subclass": lambda a: a.view(Mine),
    "Fortran's order": np.asfortranarray,
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: a[::-1].copy()[::-1],
    "the other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": lambda a: np.frombuffer(b"_" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "long long": lambda a: a.astype(np.longlong) if a.dtype == np.int64 else a,
    "a tensor": Tensor,
}


def calls_of(model, arrays):
    """Every way to pass the inputs of `tagger`."""
    ids, x, h0 = arrays
    return {
        "by place": lambda: model.run(ids, x, h0),
        "by name": lambda: model.run(ids=ids, x=x, h0=h0),
        "by name in another order": lambda: model.run(h0=h0, x=x, ids=ids),
        "one by place": lambda: model.run(ids, h0=h0, x=x),
        "two by place": lambda: model.run(ids, x, h0=h0),
        "of a dict's class": lambda: model.run(**collections.OrderedDict(x=x, h0=h0, ids=ids)),
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_arguments_means_the_same(form):
    graph = tagger()
    model = Model(graph)
    for time, batch in ((3, 2), (1, 1), (3, 2)):
        arrays = feeds(time, batch)
        want = model.run(*[a.copy() for a in arrays])
        exact = reference.run(graph, dict(zip(graph.inputs, arrays, strict=True)))
        for found, right in zip(want, exact, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)
        for name, call in calls_of(model, [FORMS[form](a) for a in arrays]).items():
            assert same(call(), want), name
        y = model(*[FORMS[form](a) for a in arrays[:2]], h0=arrays[2])
        assert same([y], want[:1])


@pytest.mark.parametrize("sizes", [(4, 1), (4, 3), (0, 2), (2, 0), (0, 0)])
def test_a_state_that_is_left_out_starts_at_zero(sizes):
    model = Model(tagger())
    ids, x, h0 = feeds(*sizes)
    for _ in range(2):  # prepared, then known
        y, end = model.run(ids, x, np.zeros_like(h0))
        assert same([model(ids, x), model(x=x, ids=ids), model(ids, x=x)], [y] * 3)
        assert same([model(ids, x, h0=h0)], model.run(ids, x, h0)[:1])
        assert y.shape == (sizes[0], sizes[1], 6)
        assert end.shape == (1, sizes[1], 6)


def test_results_are_new_memory_and_runs_start_afresh():
    model, arrays = Model(tagger()), feeds(5, 2)
    first = model.run(*arrays)
    kept = [a.copy() for a in first]
    model.run(*feeds(5, 2, seed=7))
    second = model.run(*arrays)
    assert same(first, kept)
    assert same(second, kept)
    assert not any(np.shares_memory(a, b) for a in (*first, *arrays) for b in second)
    for batch in (9, 1, 4):  # smaller than the scratch that was used before, and larger
        alone = [model.run(*(a[:, [i]] for a in feeds(5, batch)))[0] for i in range(batch)]
        assert same([model.run(*feeds(5, batch))[0]], [np.concatenate(alone, 1)])


def test_mistakes_are_named_after_good_calls_too():
    model = Model(tagger())
    ids, x, h0 = feeds(3, 2)
    wrong = [
        (lambda: model.run(ids, x), "tagger: input h0 is missing"),
        (lambda: model.run(), "tagger: input ids, x, h0 is missing"),
        (lambda: model.run(ids, x, h0, h0), r"takes 3 inputs \['ids', 'x', 'h0'\], got 4"),
        (lambda: model.run(ids, x, h0, x=x), "input x is given twice"),
        (lambda: model.run(ids, x, z=h0), "has no input 'z'; its inputs are"),
        (lambda: model.run(ids=ids, x=x, h=h0), "has no input 'h'; its inputs are"),
        (lambda: model.run({"ids": ids, "x": x, "h0": h0}), "and got a dict: pass run"),
        (lambda: model.run(ids, {"x": x}, h0), "and got a dict: pass run"),
        (lambda: model.run(x, ids, h0), "input ids: dtype int64 expected, got float32"),
        (lambda: model.run(ids, x.astype(float), h0), "input x: dtype float32 expected, got float64"),
        (lambda: model.run(ids, x, None), "input h0"),
        (lambda: model.run(ids, x[0], h0), r"input x: \[time, batch, 3\] expected, got \[2, 3\]"),
        (lambda: model.run(ids, x[..., :2], h0), "input x: axis 2 of .* must be 3, got 2"),
        (lambda: model.run(ids, x[:2], h0), r"input x: axis 0 \(time\) is 2, but 3 in ids"),
        (lambda: model.run(ids, x, h0[:, :1]), r"input h0: axis 1 \(batch\) is 1, but 2 in ids"),
        (lambda: model(ids), "tagger: input x is missing"),
        (lambda: model(ids, x, h0), "takes 2 inputs besides its states, got 3"),
        (lambda: model(ids, x, x=x), "x"),
        (lambda: model(ids, x, h=h0), "has no input 'h'"),
        (lambda: model.run(ids + 9, x, h0), "index 1[0-9]"),
    ]
    for call, text in wrong * 2:
        good = model.run(ids, x, h0)
        assert same([model(ids, x)], [model(ids, x, h0=h0 * 0)])
        if text == "x":  # the one given by name counts
            assert same([call()], [model(ids, x)])
            continue
        with pytest.raises(fastrnn.ShapeError, match=text):
            call()
        assert same(model.run(ids, x, h0), good)


def test_shapes_and_dtypes_that_change_from_call_to_call():
    model, rng = Model(tagger()), np.random.default_rng(5)
    cases = [(time, batch) for time in (1, 2, 7, 30) for batch in (1, 2, 5)]
    want = {case: Model(tagger()).run(*feeds(*case)) for case in cases}
    for number in range(300):
        case = cases[rng.integers(len(cases))]
        form = FORMS[list(FORMS)[number % len(FORMS)]] if number % 3 == 0 else FORMS["as they are"]
        assert same(model.run(*map(form, feeds(*case))), want[case])


def test_memory_is_flat_over_any_number_of_lengths():
    """What is kept for known shapes is bounded, and so is scratch."""
    model, x = Model(tagger()), feeds(3000, 1)

    def run(lengths):
        for n in lengths:
            model.run(x[0][:n], x[1][:n], x[2])

    run(range(1, 300))
    tracemalloc.start()
    try:
        run(range(300, 600))
        gc.collect()
        before = tracemalloc.get_traced_memory()[0], model.memory_bytes
        run(range(600, 2400))
        gc.collect()
        after = tracemalloc.get_traced_memory()[0], model.memory_bytes
    finally:
        tracemalloc.stop()
    assert after[0] - before[0] < 100_000
    assert after[1] - before[1] < 16 << 20


def test_a_call_with_known_shapes_allocates_its_results_alone():
    model, arrays = Model(tagger()), feeds(4, 2)
    run = model._runs.run_plain
    outs = model.run(*arrays)
    floats = arrays[1:]
    assert floats
    for _ in range(3):
        run(tuple(arrays), {})
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        found = [run(tuple(arrays), {}) for _ in range(100)]
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    a_result = sum(sys.getsizeof(a) for a in outs) + sys.getsizeof(outs)
    assert grown < 100 * (a_result + 100)
    assert same(found[-1], outs)


def test_many_threads_with_shapes_of_their_own():
    model = Model(tagger())
    cases = [(time, batch) for time in (1, 3, 8) for batch in (1, 4)]
    want = {case: Model(tagger()).run(*feeds(*case)) for case in cases}
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(300):
            case = cases[rng.integers(len(cases))]
            ids, x, h0 = feeds(*case)
            found = model.run(ids, h0=h0, x=x) if rng.integers(2) else model.run(ids, x, h0)
            if not same(found, want[case]):
                wrong.append(case)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert not wrong


def test_a_call_within_a_call():
    """A key that runs the model when it is compared, and a tensor that runs it when it is read."""
    model, arrays = Model(tagger()), feeds(3, 2)
    want, other = model.run(*arrays), model.run(*feeds(5, 1))
    inner = []

    class Key(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, name):
            inner.append(model.run(*feeds(5, 1)))
            return str(self) == name

    class Runs(Tensor):
        def __array__(self, dtype=None, copy=None):
            inner.append(model.run(*feeds(5, 1)))
            return self.array

    named = {Key("x"): arrays[1], "ids": arrays[0], Key("h0"): arrays[2]}
    assert same(model._runs.run_plain((), named), want)
    assert same(model.run(arrays[0], Runs(arrays[1]), arrays[2]), want)
    assert len(inner) >= 3
    assert all(same(found, other) for found in inner)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
def test_a_call_in_the_handler_of_a_signal():
    model, arrays = Model(tagger()), feeds(3, 2)
    want, other, inner = model.run(*arrays), model.run(*feeds(5, 1)), []
    old = signal.signal(signal.SIGALRM, lambda *_: inner.append(model.run(*feeds(5, 1))))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        while len(inner) < 10:
            assert same(model.run(*arrays), want)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert all(same(found, other) for found in inner)


def test_models_that_were_pickled_or_forked():
    model, arrays = Model(tagger()), feeds(3, 2)
    want = model.run(*arrays)
    again = pickle.loads(pickle.dumps(model))
    assert same(again.run(*arrays), want)
    assert same([again(*arrays[:2])], [model(*arrays[:2])])
    if hasattr(os, "fork"):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: a fork beside threads
            child = os.fork()
        if not child:
            right = same(model.run(*arrays), want) and same(model.run(*feeds(4, 1)), again.run(*feeds(4, 1)))
            os._exit(0 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_closed_model_forgets_what_it_knew():
    model, arrays = Model(tagger()), feeds(3, 2)
    model.run(*arrays)
    model.close()
    for call in (lambda: model.run(*arrays), lambda: model(*arrays[:2])):
        with pytest.raises(fastrnn.FastRNNError, match="was closed: load it again"):
            call()


def test_a_model_with_more_sides_than_compiled_calls_take():
    b = GraphBuilder("many")
    names = [b.input(f"x{i}", "float32", BATCH, 2) for i in range(70)]
    total = names[0]
    for name in names[1:]:
        total = b.add("binary", total, name, fn="add")
    model, arrays = Model(b.done(total)), [some(3, 2, seed=i) for i in range(70)]
    np.testing.assert_allclose(model.run(*arrays)[0], np.sum(arrays, 0), rtol=1e-4, atol=1e-5)
    assert same([model(*arrays)], model.run(**dict(zip(names[::-1], arrays[::-1], strict=True))))


def test_sizes_that_the_model_leaves_open():
    b = GraphBuilder("open")
    x = b.input("x", "float32", BATCH, TIME, symbol("size"))
    model = Model(b.done(b.add("reduce", x, fn="sum", axes=(2,), keepdims=False)))
    for size in itertools.chain(range(1, 30), (5, 5, 6, 29, 5), range(1, 4)):
        for shape in ((2, 3, size), (1, 1, size), (2, 3, size)):
            found = model.run(some(*shape))[0]
            np.testing.assert_allclose(found, some(*shape).sum(2), rtol=1e-4, atol=1e-5)
    assert len(model._core._fixed) <= 8
    kept = list(model._core._fixed)
    for _ in range(3):  # the one that is used stays, however it is called
        for size in range(40, 46):
            model.run(some(1, 1, size))
            model.run(some(1, 1, 3))
        assert (("size", 3),) in model._core._fixed
    assert kept != list(model._core._fixed)


def test_threads_that_need_other_sizes_at_once_keep_as_few_models():
    """Compiled models of sizes that were dropped meanwhile are not kept by the shapes that were run."""
    b = GraphBuilder("open")
    x = b.input("x", "float32", BATCH, TIME, symbol("size"))
    model = Model(b.done(b.add("reduce", x, fn="sum", axes=(2,), keepdims=False)))
    others = {id(item) for item in gc.get_objects() if type(item) is Compiled}

    def runs(seed):
        rng = np.random.default_rng(seed)
        for size in rng.integers(1, 41, 60):
            model.run(some(1, 1, int(size)))

    threads = [threading.Thread(target=runs, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    found = [item for item in gc.get_objects() if type(item) is Compiled and id(item) not in others]
    assert len(found) <= len(model._core._fixed) + 1  # the last one that was used may be one more


def test_a_call_without_inputs_and_one_with_a_dict_are_named():
    model = Model(tagger())
    with pytest.raises(fastrnn.ShapeError, match="input ids, x is missing"):
        model()
    with pytest.raises(fastrnn.ShapeError, match=r"got a dict: pass run\(\*\*feeds\)"):
        model({"ids": 1, "x": 2})
    with pytest.raises(fastrnn.ShapeError, match="has no input 'y'"):
        model(y=1)
