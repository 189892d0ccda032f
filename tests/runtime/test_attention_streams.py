"""Attention in streams and pools: a bounded context, positions of each row, snapshots."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from graph_builder import GraphBuilder
from test_attention import PLAIN, normal, self_attention

import fastrnn
from fastrnn.graph import reference
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.model import Model
from fastrnn.runtime import snapshots


def chunked(stream, x, seed=0):
    """x [batch, time, ..] pushed in chunks of random lengths."""
    random, out, at = np.random.default_rng(seed), [], 0
    while at < x.shape[1]:
        n = int(random.integers(0, 9))
        out.append(stream.push(x[:, at : at + n]))
        at += n
    return np.concatenate(out, 1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("at_context", ["error", "window"])
def test_a_stream_has_the_bits_of_the_run(threads, at_context):
    model, x = Model(self_attention(), threads=threads), normal(1, 3, 60, 8)
    whole = model(x)
    stream = model.stream(batch_size=3, context=60, at_context=at_context)
    assert chunked(stream, x).tobytes() == whole.tobytes()
    alone = model.stream(context=100, at_context=at_context)
    assert np.stack([alone.step(x[1, t]) for t in range(60)]).tobytes() == np.ascontiguousarray(whole[1]).tobytes()


@pytest.mark.parametrize("context", [1, 2, 7])
def test_a_window_is_the_run_with_a_band(context):
    x = normal(1, 2, 50, 8)
    model, banded = Model(self_attention(), threads=1), Model(self_attention(window=context), threads=1)
    stream = model.stream(batch_size=2, context=context, at_context="window")
    got = chunked(stream, x)
    assert got.tobytes() == banded(x).tobytes()
    assert got[:, :context].tobytes() == np.ascontiguousarray(model(x)[:, :context]).tobytes()
    assert chunked(banded.stream(batch_size=2), x).tobytes() == got.tobytes()
    assert chunked(banded.stream(batch_size=2, context=9), x).tobytes() == got.tobytes()


@pytest.mark.parametrize("hidden", [False, True])
def test_what_all_steps_have_in_common_is_added_in_a_stream_too(hidden):
    """A bias and a mask of each head, without steps of their own."""
    graph = self_attention()
    b = GraphBuilder("heads")
    b.nodes, b.values, b.constants = list(graph.nodes), dict(graph.values), dict(graph.constants)
    bias = b.constant("bias", np.array([[[30.0]], [[-7.0]]], np.float32))
    mask = b.constant("mask", np.array([[[True]], [[not hidden]]]))
    at = next(i for i, n in enumerate(b.nodes) if n.op == "attention")
    b.nodes[at] = replace(b.nodes[at], inputs=(*b.nodes[at].inputs, bias, mask))
    graph = graph.replace(nodes=tuple(b.nodes), values=b.values, constants=b.constants)
    model, x = Model(graph, threads=1), normal(1, 2, 20, 8)
    whole = model(x)
    np.testing.assert_allclose(whole, reference.run(graph, {"x": x})[0], rtol=2e-5, atol=2e-6)
    assert chunked(model.stream(batch_size=2, context=20), x).tobytes() == whole.tobytes()
    assert (np.abs(whole - Model(self_attention(), threads=1)(x)).max() > 0.01) == hidden


def test_a_full_context_is_an_error_that_changes_nothing():
    model, x = Model(self_attention(), threads=1), normal(1, 20, 8)
    stream = model.stream(context=10)
    stream.push(x[:7])
    for chunk in (x[:4], x):
        with pytest.raises(fastrnn.StreamError, match=r"context of 10 steps is full .*; row 0 has taken 7 steps"):
            stream.push(chunk)
    whole = model(x[None, :10])[0]
    assert stream.push(x[7:10]).tobytes() == np.ascontiguousarray(whole[7:]).tobytes()
    before = stream.state
    with pytest.raises(fastrnn.StreamError, match="full"):
        stream.step(x[0])
    assert all(np.array_equal(before[k], v) for k, v in stream.state.items())
    stream.reset()
    assert stream.step(x[0]).tobytes() == whole[0].tobytes()


@pytest.mark.any_isa
def test_what_context_takes():
    model = Model(self_attention(), threads=1)
    assert model.streamable
    stream, x = model.stream(), normal(3, 1024, 8)
    assert stream.push(x).tobytes() == model(x[None]).tobytes()  # the default is 1,024 steps, and then an error
    with pytest.raises(fastrnn.StreamError, match=r"1024 steps is full \(stream\(context=...\)"):
        stream.step(x[0])
    pool = model.pool(2)
    assert pool.step([pool.open()], x[:1]).tobytes() == model(x[None, :1]).tobytes()
    endless = model.stream(at_context="window")
    endless.push(x)
    assert endless.step(x[0]).shape == (8,)
    with pytest.raises(fastrnn.StreamError, match="at_context must be 'error' or 'window', got 'drop'"):
        model.stream(context=4, at_context="drop")
    with pytest.raises(fastrnn.ShapeError, match="context must be an int"):
        model.stream(context=0)
    plain = fastrnn.from_arrays("rnn", W=normal(1, 4, 3), R=normal(2, 4, 4))
    with pytest.raises(fastrnn.StreamError, match="no attention over time"):
        plain.stream(context=4)
    shown = {s.name: s.dims for s in model.states}
    assert shown["node_look.k"] == shown["node_look.v"] == ("batch", 2, "context", 4)
    assert {k: v.shape for k, v in model.stream(context=6).state.items()}["node_look.k"] == (2, 6, 4)


@pytest.mark.any_isa
def test_attention_to_later_steps_is_named():
    model = Model(self_attention(causal=False), threads=1)
    with pytest.raises(fastrnn.StreamError, match=r"node node_look \(attention\): attends to all steps"):
        model.stream(context=5)


def test_attention_within_a_step_and_to_a_memory_streams_as_it_is():
    b = GraphBuilder("within")
    x = b.input("x", "float32", BATCH, TIME, 5, 4)
    memory = b.constant("memory", normal(1, 1, 1, 6, 4))
    within = PLAIN | {"causal": False}
    y = b.add("attention", x, x, x, **within)
    flat = b.add("reshape", b.add("reshape", y, dims=(BATCH, TIME, 20)), dims=(BATCH, 1, 5 * TIME, 4))
    y = b.add("attention", flat, memory, memory, **within)
    graph = b.done(b.add("reshape", y, dims=(BATCH, TIME, 20)))
    model, data = Model(graph, threads=1), normal(2, 2, 9, 5, 4)
    np.testing.assert_allclose(model(data), reference.run(graph, {"x": data})[0], rtol=3e-6, atol=3e-6)
    assert chunked(model.stream(batch_size=2), data).tobytes() == model(data).tobytes()


@pytest.mark.parametrize("how", [{"causal": True}, {"causal": False, "window": 2}])
def test_positions_in_a_memory_that_has_no_steps_do_not_stream(how):
    """Each call would count its queries from the first key again."""
    b = GraphBuilder("positions")
    x = b.input("x", "float32", BATCH, 1, TIME, 4)
    memory = b.constant("memory", normal(1, 1, 1, 6, 4))
    model = Model(b.done(b.add("attention", x, memory, memory, **(PLAIN | how))), threads=1)
    assert not model.streamable
    with pytest.raises(fastrnn.StreamError, match="lets a query see keys by its position"):
        model.stream()
    data = normal(2, 2, 1, 5, 4)
    np.testing.assert_allclose(model(data), reference.run(model.graph, {"x": data})[0], rtol=3e-6, atol=3e-6)


def test_slots_of_a_pool_are_at_positions_of_their_own():
    model, x = Model(self_attention(), threads=1), normal(1, 3, 12, 8)
    whole = model(x)
    pool = model.pool(4, context=12)
    a, b, c = (pool.open() for _ in range(3))
    pool.push([a], [x[0, :7]])
    pool.push([b, a], [x[1, :3], x[0, 7:9]])
    got = pool.step(np.array([c, a, b]), np.stack([x[2, 0], x[0, 9], x[1, 3]]))
    assert got.tobytes() == np.stack([whole[2, 0], whole[0, 9], whole[1, 3]]).tobytes()
    with pytest.raises(fastrnn.StreamError, match="full"):
        pool.push([b, a], [x[1, 4:6], x[0, :3]])
    with pytest.raises(fastrnn.StreamError, match="full"):
        pool.push([b], [x[1]])
    assert pool.step(np.array([b]), x[1, 4:5]).tobytes() == whole[1, 4:5].tobytes()


def test_a_long_stream_with_a_window():
    """10,000 steps: what is kept stays what a run over the last steps alone would see."""
    model, x = Model(self_attention(), threads=1), normal(1, 10_000, 8)
    stream = model.stream(context=16, at_context="window")
    got = np.concatenate([stream.push(x[t : t + 250]) for t in range(0, 10_000, 250)])
    banded = Model(self_attention(window=16), threads=1)
    for t in (5_000, 9_999):
        part = banded(x[None, t - 15 : t + 1])[0, -1]
        assert got[t].tobytes() == part.tobytes()
    assert stream.state["position"] == 10_000


def test_a_nan_leaves_with_its_step():
    model, x = Model(self_attention(), threads=1), normal(1, 30, 8)
    stream, clean = (model.stream(context=4, at_context="window") for _ in range(2))
    dirty = x.copy()
    dirty[10, 0] = np.nan
    got, expected = stream.push(dirty), clean.push(x)
    assert np.isnan(got[10:14]).all()
    assert got[14:].tobytes() == expected[14:].tobytes()


def test_state_snapshot_and_copy_go_on_with_the_same_bits():
    model, x = Model(self_attention(), threads=1), normal(1, 20, 8)
    stream = model.stream(context=6, at_context="window")
    stream.push(x[:9])
    others = [stream.copy(), *(model.stream(context=6, at_context="window") for _ in range(2))]
    others[1].state = stream.state
    others[2].restore(stream.snapshot())
    expected = stream.push(x[9:])
    for other in others:
        assert other.push(x[9:]).tobytes() == expected.tobytes()
    with pytest.raises(fastrnn.FastRNNError):
        model.stream(context=5, at_context="window").restore(stream.snapshot())


def behind_a_window():
    """A convolution that looks a step ahead, then attention: a stream that lags, with a context that fills."""
    b = GraphBuilder("lagging")
    x = b.add("transpose", b.input("x", "float32", BATCH, TIME, 8), perm=(0, 2, 1))
    x = b.add("conv", x, b.constant("K", normal(9, 8, 8, 3) / 3), strides=(1,), dilations=(1,), pads=(1, 1), groups=1)
    x = b.add("transpose", x, perm=(0, 2, 1))
    heads = b.add("transpose", b.add("reshape", x, dims=(BATCH, TIME, 2, 4)), perm=(0, 2, 1, 3))
    y = b.add("transpose", b.add("attention", heads, heads, heads, name="look", **PLAIN), perm=(0, 2, 1, 3))
    return b.done(b.add("reshape", y, dims=(BATCH, TIME, 8)))


def test_a_full_context_of_a_pool_that_lags_is_an_error_that_changes_nothing():
    model, x = Model(behind_a_window(), threads=1), normal(1, 20, 8)
    pool, lone = model.pool(3, context=6), model.stream(context=6)
    a, b = pool.open(), pool.open()
    assert model.delay == 1
    want = lone.push(x[:5])
    assert pool.push([b], [x[:5]])[0].tobytes() == want.tobytes()
    before = pool.slab.copy()
    for call in (
        lambda: pool.push([a, b], [x[:2], x[:3]]),
        lambda: pool.step([a, b], x[:2]) and pool.step([a, b], x[:2]),
    ):
        with pytest.raises(fastrnn.StreamError, match=r"context of 6 steps is full .*; row 1 has taken [56] steps"):
            call()
    assert pool.steps_done(a) == 1
    assert pool.push([b], [x[:0]])[0].shape == (0, 8)
    pool.reset(a)
    assert np.array_equal(pool.slab[[0, 2]], before[[0, 2]])
    lone.step(x[1])
    assert pool.flush(b).tobytes() == lone.flush().tobytes()


@pytest.mark.parametrize("steps", [-1, -(1 << 63), (1 << 63) - 1])
@pytest.mark.parametrize("build", [self_attention, behind_a_window])
def test_a_number_of_steps_that_no_stream_has_is_refused(build, steps):
    """It says where keys and values are kept: a wrong one would be written beside the stream's own memory."""
    model = Model(build(), threads=1)
    pool, stream = model.pool(2, context=6, at_context="window"), model.stream(context=6, at_context="window")
    slot, wrong = pool.open(), np.array(steps)
    before, blob = pool.state(slot), pool.snapshot(slot)
    counts = [name for name, v in before.items() if v.dtype == np.int64]
    assert counts
    for name in counts:
        if (name, steps) == ("steps_done", -1):  # flushed
            continue
        changed = before | {name: np.full_like(before[name], wrong)}
        with pytest.raises(fastrnn.StateError, match="steps"):
            pool.set_state(slot, changed)
        with pytest.raises(fastrnn.StateError, match="steps"):
            stream.state = changed
        if name == "steps_done":
            crafted = with_tensor(blob, "steps", np.full(1, steps, np.int64))
        else:
            rows, at = safetensors.numpy.load(blob)["rows"], place_of(blob, name)
            rows[0, at : at + 2] = np.full(1, steps, np.int64).view(np.float32)
            crafted = with_tensor(blob, "rows", rows)
        for restore in (pool.restore, stream.restore):
            with pytest.raises(fastrnn.StateError, match="steps"):
                restore(crafted)
    assert all(np.array_equal(before[k], v) for k, v in pool.state(slot).items())


def place_of(blob, name):
    """Where the rows of a snapshot have a state."""
    metadata = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]
    (at,) = [entry[6] for entry in json.loads(metadata["states"]) if entry[3] == name]
    return at


def with_tensor(blob, name, array):
    """A snapshot with another tensor, and a checksum that fits: anyone can compute one."""
    size = int.from_bytes(blob[:8], "little")
    metadata = json.loads(blob[8 : 8 + size])["__metadata__"]
    tensors = safetensors.numpy.load(blob)
    tensors[name] = array.reshape(tensors[name].shape)
    metadata["checksum"] = snapshots._checksum(metadata, tensors)
    return safetensors.numpy.save(tensors, metadata=metadata)


def test_a_full_context_of_a_pool_names_the_row():
    model, x = Model(self_attention(), threads=1), normal(1, 20, 8)
    pool = model.pool(3, context=6)
    slots = [pool.open() for _ in range(3)]
    pool.push(slots, [x[:3], x[:2], x[:5]])
    before = pool.slab.copy()
    with pytest.raises(fastrnn.StreamError, match="row 2 has taken 5 steps and is given 2 more"):
        pool.push(slots, [x[:3], x[:4], x[:2]])
    with pytest.raises(fastrnn.StreamError, match="row 1 has taken 5 steps and is given 7 more"):
        pool.push([slots[0], slots[2]], [x[:3], x[:7]])
    assert np.array_equal(pool.slab, before)


def with_positions(time_major=False):
    """x plus a learned table of 20 positions, and the sines of the step numbers."""
    b = GraphBuilder("placed")
    x = b.input("x", "float32", *((TIME, BATCH) if time_major else (BATCH, TIME)), 4)
    steps = b.add("steps", dims=(TIME,), start=0)
    table = b.add("gather", b.constant("table", normal(1, 20, 4)), steps, axis=0)
    angle = b.add("binary", b.add("reshape", b.add("cast", steps, to="float32"), dims=(TIME, 1)),
                  b.constant("rate", normal(2, 4)), fn="mul")  # fmt: skip
    sine = b.add("unary", angle, fn="sin", alpha=0.0, beta=0.0)
    both = b.add("binary", table, sine, fn="mul")
    if time_major:
        both = b.add("reshape", both, dims=(TIME, 1, 4))
    return b.done(b.add("binary", x, both, fn="add"))


@pytest.mark.parametrize("time_major", [False, True])
def test_a_stream_counts_its_own_steps(time_major):
    graph = with_positions(time_major)
    model, x = Model(graph, threads=1), normal(3, 3, 20, 4)
    turned = x.swapaxes(0, 1) if time_major else x
    whole = model(np.ascontiguousarray(turned))
    np.testing.assert_allclose(whole, reference.run(graph, {"x": turned})[0], rtol=2e-6, atol=2e-6)
    whole = np.ascontiguousarray(whole.swapaxes(0, 1)) if time_major else whole
    assert chunked(model.stream(batch_size=3), x).tobytes() == whole.tobytes()
    pool = model.pool(3)
    a, b = pool.open(), pool.open()
    pool.push([a], [x[0, :5]])
    assert pool.step(np.array([b, a]), np.stack([x[1, 0], x[0, 5]])).tobytes() == (
        np.stack([whole[1, 0], whole[0, 5]]).tobytes()
    )
    with pytest.raises(
        fastrnn.StreamError, match="its table has 20 positions; row 0 has taken 0 steps and is given 21"
    ):
        model.stream().push(normal(1, 21, 4))
    with pytest.raises(fastrnn.ShapeError, match="its table has 20 positions"):
        model(normal(1, 21, 1, 4) if time_major else normal(1, 1, 21, 4))
