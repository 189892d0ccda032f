"""Caches that a caller hands on, in front of a chunk: streams in chunks of any length, step by step and in pools, with
the bits of the file run in the same chunks. What sees a whole chunk is refused."""

from itertools import pairwise

import numpy as np
import pytest
from graph_builder import GraphBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrnn.errors import StreamError
from fastrnn.graph import reference
from fastrnn.graph.cells import CellSpec
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.graph.tails import tails
from fastrnn.model import Model
from fastrnn.streaming.conditions import problems

C, K = 3, 4  # channels; cached steps


def real(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Chunk:
    """A graph over a chunk [batch, C, time] and a cache [batch, C, K]."""

    def __init__(self, *caches_of):
        self.b = GraphBuilder("chunk")
        self.x = self.b.input("x", "float32", BATCH, C, TIME)
        self.caches = [self.b.input(f"cache{k}", "float32", BATCH, C, n) for k, n in enumerate(caches_of or (K,))]

    def joined(self, cache=None, x=None):
        return self.b.add("concat", cache or self.caches[0], x or self.x, axis=2)

    def last(self, joint, n=K, before=0):
        """Its last n steps, or those `before` steps earlier."""
        end = self.b.values[joint].dims[2] - before
        return self.b.add("slice", joint, axis=2, start=end - n, stop=end, step=1)

    def cut(self, joint, start, stop=None):
        stop = self.b.values[joint].dims[2] if stop is None else stop
        return self.b.add("slice", joint, axis=2, start=start, stop=stop, step=1)

    def conv(self, x, taps, dilation=1, stride=1, pads=(0, 0), seed=1):
        W, bias = self.b.constant(f"W{seed}", real(seed, C, C, taps)), self.b.constant(f"b{seed}", real(seed, C))
        attrs = {"strides": (stride,), "dilations": (dilation,), "pads": pads, "groups": 1}
        return self.b.add("unary", self.b.add("conv", x, W, bias, **attrs), fn="tanh", alpha=0.0, beta=0.0)

    def add(self, a, b):
        return self.b.add("binary", a, b, fn="add")

    def done(self, y, *new):
        return self.b.done(y, *new, states=dict(zip(self.caches, new, strict=True)))


def convolved(taps=3, dilation=2):
    g = Chunk()
    joint = g.joined()
    return g.done(g.add(g.x, g.conv(joint, taps, dilation)), g.last(joint))


def narrow():
    """The window is narrower than the cache."""
    g = Chunk()
    joint = g.joined()
    return g.done(g.cut(g.conv(joint, 2), 3), g.last(joint))


def taps_as_slices():
    g = Chunk()
    joint = g.joined()
    parts = []
    for k in (0, 2, 4):
        w = g.b.constant(f"w{k}", real(k, C, 1))
        parts.append(g.b.add("binary", g.cut(joint, k, k + TIME), w, fn="mul"))
    return g.done(g.add(parts[0], g.add(parts[1], parts[2])), g.last(joint))


def late():
    """What was there two steps ago."""
    g = Chunk()
    joint = g.joined()
    return g.done(g.add(g.x, g.cut(joint, 2, 2 + TIME)), g.last(joint))


def two_layers():
    """The cache of the second is between two convolutions; one is pooled."""
    g = Chunk(K, 2)
    first = g.joined()
    y = g.conv(first, 5)
    second = g.joined(g.caches[1], y)
    z = g.b.add("pool", second, fn="max", kernel=(3,), strides=(1,), pads=(0, 0), dilations=(1,), ceil=False,
                count_include_pad=False)  # fmt: skip
    return g.done(g.add(y, z), g.last(first), g.last(second, 2))


def parts_of_one():
    """One state holds the caches of both layers."""
    g = Chunk(6)
    at = (g.b.add("slice", g.caches[0], axis=2, start=a, stop=b, step=1) for a, b in ((0, 4), (4, 6)))
    first = g.joined(next(at))
    y = g.conv(first, 3, 2)
    second = g.joined(next(at), y)
    return g.done(g.conv(second, 3, seed=2), g.b.add("concat", g.last(first), g.last(second, 2), axis=2))


def turned():
    """Time is the first axis of the joint, and there is an axis of one."""
    g = Chunk()
    cache = g.b.add("reshape", g.b.add("transpose", g.caches[0], perm=(2, 0, 1)), dims=(K, BATCH, C, 1))
    x = g.b.add("reshape", g.b.add("transpose", g.x, perm=(2, 0, 1)), dims=(TIME, BATCH, C, 1))
    joint = g.b.add("concat", cache, x, axis=0)
    flat = g.b.add("reshape", joint, dims=(K + TIME, BATCH, C))
    y = g.b.add("transpose", flat, perm=(1, 2, 0))
    end = g.b.add("slice", joint, axis=0, start=TIME, stop=TIME + K, step=1)
    new = g.b.add("transpose", g.b.add("reshape", end, dims=(K, BATCH, C)), perm=(1, 2, 0))
    return g.done(g.conv(y, K + 1), new)


def before_a_cell():
    g = Chunk()
    g.caches.append(g.b.input("h", "float32", BATCH, 2))
    joint = g.joined()
    spec = CellSpec("gru", C, 2)
    x = g.b.add("transpose", g.conv(joint, K + 1), perm=(2, 0, 1))
    W, R, bias = g.b.constant("W", real(1, 6, C)), g.b.constant("R", real(2, 6, 2)), g.b.constant("B", real(3, 6))
    y, hn, _ = g.b.add("cell", x, W, R, bias, bias, None, "h", None, outputs=("y", "hn", None), spec=spec)
    return g.done(y, g.last(joint), hn)


MODELS = {m.__name__: m for m in (convolved, narrow, taps_as_slices, late, two_layers, parts_of_one, turned)}
MODELS["before a cell"] = before_a_cell


def in_chunks(graph, model, x, cuts, batch):
    """The outputs of `model.run` for these chunks, the states handed on."""
    states = {}
    for name in graph.states:
        states[name] = np.zeros([batch if d == BATCH else d for d in graph.values[name].dims], np.float32)
    found, wide = [], []
    for a, b in pairwise(cuts):
        chunk = np.ascontiguousarray(x[:, :, a:b])
        want = reference.run(graph, {"x": chunk, **states})
        made = model.run(chunk, **states)
        found.append(made[0])
        wide.append(want[0])
        states = dict(zip(graph.states, made[1:], strict=True))
    axis = graph.values[graph.outputs[0]].dims.index(TIME)
    return np.concatenate(found, axis), np.concatenate(wide, axis), states


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_any_chunks_give_the_same_bits(name, data):
    graph = MODELS[name]()
    assert problems(graph) == []
    model, steps, batch = Model(graph), 23, 2
    x = real(data.draw(st.integers(0, 99)), batch, C, steps)
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, steps - 1), max_size=5))), steps]
    got, want, states = in_chunks(graph, model, x, cuts, batch)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    dims = graph.values[graph.outputs[0]].dims
    rows = np.ascontiguousarray(np.moveaxis(got, (dims.index(BATCH), dims.index(TIME)), (0, 1)))
    stream, chunked = model.stream(), model.stream(batch_size=batch)
    one = np.stack([stream.step(row) for row in np.ascontiguousarray(x[0].T)])
    assert rows[0].tobytes() == one.tobytes()
    given = np.ascontiguousarray(np.moveaxis(x, 2, 1))  # [batch, time, C]
    parts = [chunked.push(np.ascontiguousarray(given[:, a:b])) for a, b in pairwise(cuts)]
    assert np.concatenate(parts, 1).tobytes() == rows.tobytes()
    pool = model.pool(capacity=2)
    pushed = pool.push([pool.open(), pool.open()], [given[0], given[1, :7]])
    assert pushed[0].tobytes() == one.tobytes()
    assert pushed[1].tobytes() == rows[1, :7].tobytes()
    for state, value in states.items():
        assert np.array_equal(chunked.state[state], value)


def test_a_stream_begins_with_what_the_caller_gives():
    graph = convolved()
    model, x, cache = Model(graph), real(5, 1, C, 9), real(6, 1, C, K)
    want = model.run(x, cache)[0]
    stream = model.stream()
    stream.state = stream.state | {"cache0": cache.reshape(stream.state["cache0"].shape)}
    got = np.stack([stream.step(row) for row in np.ascontiguousarray(x[0].T)])
    assert got.tobytes() == np.ascontiguousarray(want[0].T).tobytes()
    again = model.stream()
    again.restore(stream.snapshot())
    row = np.ascontiguousarray(x[0, :, 0])
    assert again.step(row).tobytes() == stream.step(row).tobytes()


# ---- what is no cache, or sees its chunk ----


def of_the_first_steps():
    g = Chunk()
    joint = g.joined()
    return g.done(g.conv(joint, K + 1), g.cut(joint, 0, K))


def one_step_late():
    g = Chunk(K)
    joint = g.joined()
    return g.done(g.conv(joint, K + 1), g.last(joint, K, before=1))


def of_other_steps():
    g = Chunk()
    joint, other = g.joined(), g.joined(x=g.conv(g.x, 1, seed=2))
    return g.done(g.conv(joint, K + 1), g.last(other))


def swapped():
    g = Chunk(K, K)
    a, b = g.joined(), g.joined(g.caches[1])
    return g.done(g.add(g.conv(a, K + 1), g.conv(b, K + 1, seed=2)), g.last(b), g.last(a))


@pytest.mark.parametrize("make", [of_the_first_steps, one_step_late, of_other_steps, swapped])
def test_states_that_hold_something_else_are_no_caches(make):
    graph = make()
    assert tails(graph).states == frozenset()
    assert problems(graph)
    with pytest.raises(StreamError):
        Model(graph).stream()


def padded():
    g = Chunk()
    joint = g.joined()
    return g.done(g.cut(g.conv(joint, 3, pads=(0, 2)), K), g.last(joint))


def wider_than_the_cache():
    g = Chunk()
    joint = g.joined()
    return g.done(
        g.b.add("pad", g.conv(joint, K + 3), pads=(0, 0, 0, 0, 0, 2), mode="constant", value=0.0), g.last(joint)
    )


def softmaxed():
    g = Chunk()
    joint = g.joined()
    return g.done(g.cut(g.b.add("softmax", joint, axis=2, log=False), K), g.last(joint))


def meant():
    g = Chunk()
    joint = g.joined()
    return g.done(g.add(g.x, g.b.add("reduce", joint, fn="mean", axes=(2,), keepdims=True)), g.last(joint))


def attended():
    g = Chunk()
    joint = g.joined()
    scores = g.b.add("matmul", g.b.add("transpose", g.x, perm=(0, 2, 1)), joint)
    y = g.b.add("matmul", scores, g.b.add("transpose", joint, perm=(0, 2, 1)))
    return g.done(g.b.add("transpose", y, perm=(0, 2, 1)), g.last(joint))


def backwards():
    g = Chunk()
    joint = g.joined()
    size = K + TIME
    return g.done(g.b.add("slice", joint, axis=2, start=size - 1, stop=K - 1, step=-1), g.last(joint))


def beside(op):
    """A node that sees its own chunk alone, where nothing joins it to a cache."""

    def make():
        g = Chunk()
        joint = g.joined()
        y, b = g.conv(joint, K + 1), g.b
        if op == "same":
            y = g.conv(y, 3, pads=(1, 1), seed=2)
        elif op == "causal":
            y = g.conv(y, 3, pads=(2, 0), seed=2)
        elif op == "pad":
            y = g.cut(b.add("pad", y, pads=(0, 0, 1, 0, 0, 0), mode="constant", value=0.0), 0, TIME)
        elif op == "halved":
            y = g.conv(y, 2, stride=2, seed=2)
        elif op == "mean":
            y = g.add(y, b.constant("zero", real(0, 1)))
            return g.done(b.add("reduce", y, fn="mean", axes=(2,), keepdims=False), g.last(joint))
        elif op == "positions":
            y = g.add(y, b.add("cast", b.add("steps", dims=(TIME,), start=0), to="float32"))
        elif op == "cell":
            spec = CellSpec("gru", C, 2)
            W, R, bias = b.constant("W", real(1, 6, C)), b.constant("R", real(2, 6, 2)), b.constant("B", real(3, 6))
            x = b.add("transpose", y, perm=(2, 0, 1))
            y, _, _ = b.add("cell", x, W, R, bias, bias, None, None, None, outputs=("y", "h", None), spec=spec)
        return g.done(y, g.last(joint))

    return make


@pytest.mark.parametrize("op", ["same", "causal", "pad", "halved", "mean", "positions", "cell"])
def test_what_begins_anew_with_each_chunk_of_the_file_is_refused(op):
    """A stream would go on from chunk to chunk, which calls of the file do not."""
    found = problems(beside(op)())
    assert len(found) == 1
    assert found[0].startswith("node node_")
    assert "begins anew with each chunk" in found[0]


@pytest.mark.parametrize("make", [padded, wider_than_the_cache, softmaxed, meant, attended, backwards])
def test_what_sees_its_chunk_is_refused_by_name(make):
    graph = make()
    assert tails(graph).joints
    found = problems(graph)
    assert len(found) == 1
    assert found[0].startswith("node node_")
    with pytest.raises(StreamError, match="can't be streamed: node"):
        Model(graph).stream()


def test_a_cache_that_something_else_reads_is_not_free_of_its_chunk():
    """Its mean is that of the steps before the chunk, so it depends on where a chunk begins."""
    g = Chunk()
    joint = g.joined()
    mean = g.b.add("reduce", g.caches[0], fn="mean", axes=(2,), keepdims=True)
    graph = g.done(g.add(g.conv(joint, K + 1), mean), g.last(joint))
    assert tails(graph).states == frozenset()
    with pytest.raises(StreamError, match="feeds other nodes than cells"):
        Model(graph).stream()
