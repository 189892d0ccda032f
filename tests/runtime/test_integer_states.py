"""Integers that streams keep: states that the caller threads, states of cycles, sums over time, earlier steps."""

import numpy as np
import onnx
import pytest
from graph_builder import GraphBuilder

import fastrnn
from fastrnn.errors import StreamError
from fastrnn.graph import INTEGERS, reference
from fastrnn.graph.dims import BATCH, TIME

TYPES = sorted(INTEGERS)


def file_of(text: str) -> bytes:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> {text}').SerializeToString()


def counter(dtype: str) -> bytes:
    """A step function: y = x + the second of two counters, which grow by 100 and wrap around."""
    return file_of(
        f"g (float[batch,3] x, {dtype}[batch,2] n) => (float[batch,3] y, {dtype}[batch,2] new_n)"
        f"<{dtype} c = {{100}}, int64[1] one = {{1}}>"
        "{ new_n = Add(n, c) f = Cast<to = 1>(n) second = Gather<axis = 1>(f, one) y = Add(x, second) }"
    )


def counts(dtype: str, steps: int) -> np.ndarray:
    """The counters after each number of steps."""
    return (100 * np.arange(steps + 1)).astype(dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_counter_of_any_type(dtype):
    model, n = fastrnn.load(counter(dtype), threads=1), counts(dtype, 9)
    (info,) = model.states
    assert (info.name, info.dtype, info.dims) == ("n", dtype, ("batch", 2))
    stream, x = model.stream(batch_size=2), np.ones((2, 3), np.float32)
    for t in range(4):
        np.testing.assert_array_equal(stream.step(x), x + n[t].astype(np.float32))
        assert stream.state["n"].dtype == dtype
        np.testing.assert_array_equal(stream.state["n"], np.full((2, 2), n[t + 1]))
    kept, taken = stream.state, stream.snapshot()
    stream.reset()
    np.testing.assert_array_equal(stream.step(x), x)  # begins at zero
    stream.state = kept
    other = model.stream(batch_size=2)
    other.restore(taken)
    for again in (stream, other):
        np.testing.assert_array_equal(again.step(x), x + n[4].astype(np.float32))
    with pytest.raises(fastrnn.ShapeError, match=f"{dtype} expected"):
        stream.state = {"n": np.zeros((2, 2), np.float64)}


@pytest.mark.parametrize("dtype", TYPES)
def test_counters_in_a_pool(dtype):
    """Each slot counts for itself, whatever the slots that step together."""
    model, n = fastrnn.load(counter(dtype), threads=1), counts(dtype, 9)
    pool, x = model.pool(3), np.ones((1, 3), np.float32)
    a, b = pool.open(), pool.open()
    for t in range(3):
        np.testing.assert_array_equal(pool.step(np.array([a]), x), x + n[t].astype(np.float32))
    both = pool.step(np.array([b, a]), np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(both[:, 0], 1 + n[[0, 3]].astype(np.float32))
    again = model.pool(2)
    places = again.restore_all(pool.snapshot_all())
    both = again.step(np.array([places[a], places[b]]), np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(both[:, 0], 1 + n[[4, 1]].astype(np.float32))


def test_a_count_may_be_anything_but_a_position():
    """Only a number of steps that says where states are stored has limits."""
    model = fastrnn.load(counter("int64"), threads=1)
    stream = model.stream()
    stream.state = {"n": np.array([[-5, 2**62]])}
    np.testing.assert_array_equal(stream.step(np.zeros(3, np.float32)), np.full(3, 2.0**62, np.float32))
    assert stream.state["n"].tolist() == [[95, 2**62 + 100]]


def test_a_counter_for_the_whole_batch():
    """Rows of a pool would need one each: the error says which size helps."""
    data = file_of(
        "g (float[batch,3] x, int64[1] n) => (float[batch,3] y, int64[1] new_n)"
        "<int64 c = {1}> { new_n = Add(n, c) f = Cast<to = 1>(n) y = Add(x, f) }"
    )
    with pytest.raises(StreamError, match=r"state n: int64\[1\] has no batch axis.*sizes={'batch': 1}"):
        fastrnn.load(data, threads=1).stream()
    stream = fastrnn.load(data, threads=1, sizes={"batch": 1}).stream()
    x = np.zeros((1, 3), np.float32)
    assert [stream.step(x)[0, 0] for _ in range(4)] == [0, 1, 2, 3]


def test_a_flag_is_a_state():
    """bool: whether a step above 1 has been seen."""
    model = fastrnn.load(
        file_of(
            "g (float[batch,1] x, bool[batch,1] seen) => (float[batch,1] y, bool[batch,1] new_seen)"
            "<float one = {1}> { above = Greater(x, one) new_seen = Or(above, seen) y = Cast<to = 1>(new_seen) }"
        ),
        threads=1,
    )
    stream = model.stream(batch_size=3)
    x = np.array([[0, 2, 0], [0, 0, 2], [0, 0, 0]], np.float32)
    found = [stream.step(column[:, None])[:, 0].tolist() for column in x]
    assert found == [[0, 1, 0], [0, 1, 1], [0, 1, 1]]
    assert stream.state["seen"].tolist() == [[False], [True], [True]]
    assert stream.state["seen"].dtype == np.bool_


def streamed(model, x: np.ndarray, chunks) -> np.ndarray:
    """The outputs of chunks of these lengths, one after the other."""
    stream, at, made = model.stream(batch_size=len(x)), 0, []
    for count in chunks:
        made.append(stream.push(x[:, at : at + count]))
        at += count
    return np.concatenate(made, 1)


def whole_range(dtype: str, *shape: int) -> np.ndarray:
    ends = np.iinfo(dtype)
    x = np.random.default_rng(8).integers(ends.min, ends.max, shape, dtype=dtype, endpoint=True)
    x.flat[:2] = ends.min, ends.max
    return x


@pytest.mark.parametrize("dtype", TYPES)
def test_a_cycle_of_integers(dtype):
    """s = 3 * s one step ago + s two steps ago + x, which wraps around at almost every step."""
    b = GraphBuilder("fibonacci")
    x = b.add("transpose", b.input("x", dtype, BATCH, TIME, 3), perm=(1, 0, 2))
    b.values["s"] = b.values[x].__class__("s", dtype, (TIME, BATCH, 3))
    one = b.add("state", "s", name="one")
    two = b.add("state", one, name="two")
    three = b.constant("three", np.array(3, dtype))
    more = b.add("binary", b.add("binary", one, three, fn="mul"), two, fn="add")
    b.add("binary", more, x, name="s", fn="add")
    graph = b.done(b.add("transpose", "s", name="y", perm=(1, 0, 2)))
    x = whole_range(dtype, 2, 9, 3)
    want, before, last = [], np.zeros((2, 3), dtype), np.zeros((2, 3), dtype)
    for t in range(9):
        before, last = last, last * np.array(3, dtype) + before + x[:, t]
        want.append(last)
    want, model = np.stack(want, 1), fastrnn.Model(graph, threads=1)
    for got in (
        reference.run(graph, {"x": x})[0],
        model.run(x)[0],
        *(streamed(model, x, c) for c in ([9], [1] * 9, [2, 7])),
    ):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("fn", ["sum", "max", "min", "mean"])
def test_all_steps_so_far(fn, dtype):
    b = GraphBuilder("running")
    x = b.input("x", dtype, BATCH, TIME, 3)
    graph = b.done(b.add("reduce", x, fn=fn, axes=(1,), keepdims=False))
    model, x = fastrnn.Model(graph, threads=1), whole_range(dtype, 2, 7, 3)
    stream = model.stream(batch_size=2)
    for t in range(7):
        (want,) = reference.run(graph, {"x": x[:, : t + 1]})
        assert want.dtype == dtype
        np.testing.assert_array_equal(stream.step(x[:, t]), want)
        np.testing.assert_array_equal(model.run(x[:, : t + 1])[0], want)
    pushed = model.stream(batch_size=2)
    pushed.push(x[:, :3])
    np.testing.assert_array_equal(pushed.push(x[:, 3:]), want)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_step_before(dtype):
    """y = x - the step before it: the stream keeps one step."""
    data = file_of(
        f"g ({dtype}[batch,time,3] x) => ({dtype}[batch,time,3] y)"
        f"<int64[6] pads = {{0,1,0,0,0,0}}, int64[1] zero = {{0}}, int64[1] last = {{-1}}, int64[1] axis = {{1}}>"
        "{ p = Pad(x, pads) before = Slice(p, zero, last, axis) y = Sub(x, before) }"
    )
    model, x = fastrnn.load(data, threads=1), whole_range(dtype, 2, 8, 3)
    want = x - np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], 1)
    for got in (model.run(x)[0], *(streamed(model, x, lengths) for lengths in ([8], [1] * 8, [3, 5]))):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, want)
