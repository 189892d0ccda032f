"""Attention: the op against its float64 meaning, the pass that finds it, streams that keep a bounded past."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from graph_builder import GraphBuilder

import fastrnn
from fastrnn import reference, snapshots
from fastrnn.artifact import load as read_graph
from fastrnn.artifact import to_bytes
from fastrnn.dims import BATCH, TIME
from fastrnn.errors import ModelFormatError
from fastrnn.model import Model
from fastrnn.passes.attention import fuse_attention

PLAIN = {"scale": 0.5, "softcap": 0.0, "causal": True, "window": 0, "offset": 0, "safe": False}
HEADS = (BATCH, 2, TIME, 4)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def attention_graph(q=HEADS, k=HEADS, v=HEADS, bias=None, mask=None, **attrs):
    """A graph of one attention node over inputs of these dims."""
    b = GraphBuilder("attends")
    names = [b.input(n, "float32", *dims) for n, dims in (("q", q), ("k", k), ("v", v))]
    if bias is not None:
        names.append(b.input("bias", "float32", *bias))
    if mask is not None:
        names += [None] * (4 - len(names)) + [b.input("mask", "bool", *mask)]
    return b.done(b.add("attention", *names, **(PLAIN | attrs)))


def self_attention(window=0, **attrs):
    """x [batch, time, 8] -> GRU-less causal attention of two heads of 4, [batch, time, 8]."""
    b = GraphBuilder("self")
    x = b.input("x", "float32", BATCH, TIME, 8)
    parts = []
    for i, name in enumerate("qkv"):
        W = b.constant(f"W{name}", normal(i, 8, 8) / 3)
        y = b.add("linear", x, W, activation=None, alpha=0.0, beta=0.0)
        y = b.add("reshape", y, dims=(BATCH, TIME, 2, 4))
        parts.append(b.add("transpose", y, perm=(0, 2, 1, 3)))
    y = b.add("attention", *parts, name="look", **(PLAIN | {"window": window} | attrs))
    y = b.add("transpose", y, perm=(0, 2, 1, 3))
    return b.done(b.add("reshape", y, dims=(BATCH, TIME, 8)))


def check(graph, *sizes, tolerance=3e-6):
    """The engine's answer is the reference's."""
    feeds = {n: normal(i, *shape) for i, (n, shape) in enumerate(zip(graph.inputs, sizes, strict=True))}
    feeds |= {"mask": feeds["mask"] > 0} if "mask" in feeds else {}
    got = Model(graph, threads=2).run(**feeds)[0]
    (expected,) = reference.run(graph, feeds)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


# ---- the op ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 2, 5, 19, 40])
@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"causal": False},
        {"window": 3},
        {"causal": False, "window": 3},
        {"softcap": 0.7},
        {"scale": -1.5, "safe": True},
        {"offset": 2},
        {"offset": -3},
    ],
    ids=str,
)
def test_it_means_what_the_reference_says(T, attrs):
    check(attention_graph(**attrs), *[(2, 2, T, 4)] * 3)


def test_heads_share_keys_and_values_have_a_width_of_their_own():
    graph = attention_graph((BATCH, 6, TIME, 5), (BATCH, 2, TIME, 5), (BATCH, 2, TIME, 9))
    check(graph, (3, 6, 11, 5), (3, 2, 11, 5), (3, 2, 11, 9))


@pytest.mark.parametrize("bias", [(BATCH, 1, 1, 5), (2, TIME, 5), (TIME, 1), ()], ids=str)
def test_a_bias_broadcasts(bias):
    graph = attention_graph(k=(BATCH, 2, 5, 4), v=(BATCH, 2, 5, 4), bias=bias, causal=False)
    shape = tuple({BATCH: 3, TIME: 7}.get(d, d) for d in bias)
    check(graph, (3, 2, 7, 4), (3, 2, 5, 4), (3, 2, 5, 4), shape)


@pytest.mark.parametrize("bias", [None, (BATCH, 1, 1, 5), (TIME, 1)], ids=str)
@pytest.mark.parametrize("mask", [(BATCH, 1, 1, 5), (2, TIME, 5), (TIME, 1), ()], ids=str)
@pytest.mark.parametrize("attrs", [{}, {"softcap": 0.7, "safe": True}, {"window": 3}], ids=str)
def test_a_mask_makes_scores_0(mask, bias, attrs):
    graph = attention_graph(k=(BATCH, 2, 5, 4), v=(BATCH, 2, 5, 4), bias=bias, mask=mask, **({"causal": False} | attrs))
    shapes = [tuple({BATCH: 3, TIME: 7}.get(d, d) for d in dims) for dims in (bias, mask) if dims is not None]
    check(graph, (3, 2, 7, 4), (3, 2, 5, 4), (3, 2, 5, 4), *shapes)


def test_one_memory_for_all_rows():
    check(attention_graph(k=(1, 2, 6, 4), v=(1, 2, 6, 4), causal=False), (3, 2, 7, 4), (1, 2, 6, 4), (1, 2, 6, 4))


def test_the_reference_is_torch():
    torch = pytest.importorskip("torch")
    q, k, v = (normal(i, 2, 3, 9, 4) for i in range(3))
    attend = torch.nn.functional.scaled_dot_product_attention
    exact = attend(*(torch.from_numpy(a).double() for a in (q, k, v)), is_causal=True, scale=0.5)
    graph = attention_graph(*[(BATCH, 3, TIME, 4)] * 3)
    np.testing.assert_allclose(reference.run(graph, {"q": q, "k": k, "v": v})[0], exact.numpy(), rtol=1e-12, atol=1e-12)


def test_a_key_that_is_not_seen_plays_no_part():
    q, k, v = (normal(i, 1, 2, 6, 4) for i in range(3))
    model = Model(attention_graph(), threads=1)
    (clean,) = model.run(q, k, v)
    k[0, :, 4], v[0, :, 4] = np.nan, np.inf
    (dirty,) = model.run(q, k, v)
    assert dirty[:, :, :4].tobytes() == clean[:, :, :4].tobytes()
    assert not np.isfinite(dirty[:, :, 4:]).any()


@pytest.mark.parametrize("safe", [False, True])
def test_a_query_that_sees_nothing(safe):
    graph = attention_graph(bias=(TIME, TIME), causal=False, safe=safe)
    bias = np.zeros((3, 3), np.float32)
    bias[1] = -np.inf
    q, k, v = (normal(i, 1, 2, 3, 4) for i in range(3))
    got = Model(graph, threads=1).run(q, k, v, bias)[0]
    (expected,) = reference.run(graph, {"q": q, "k": k, "v": v, "bias": bias})
    np.testing.assert_allclose(got, expected, rtol=3e-6, atol=3e-6)
    assert np.isnan(got[:, :, 1]).all() != safe
    assert np.isfinite(got[:, :, [0, 2]]).all()


@pytest.mark.any_isa
@pytest.mark.parametrize(
    ("dims", "attrs", "text"),
    [
        ({"k": (BATCH, 3, TIME, 4), "v": (BATCH, 3, TIME, 4)}, {}, "don't divide"),
        ({"k": (BATCH, 2, TIME, 5)}, {}, "don't fit"),
        ({"v": (BATCH, 2, 7, 4)}, {}, "don't fit"),
        ({"q": (BATCH, TIME, 4)}, {}, "must be"),
        ({"bias": (7, 7)}, {}, "broadcast"),
        ({"mask": (7, 7)}, {}, "broadcast"),
        ({}, {"window": -1}, "must not be below 0"),
        ({}, {"softcap": -1.0}, "must not be below 0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(dims, attrs, text):
    with pytest.raises((fastrnn.ShapeError, ModelFormatError), match=text):
        attention_graph(**dims, **attrs)


@pytest.mark.any_isa
def test_saved_and_loaded():
    graph = attention_graph(window=3, offset=TIME + 1, safe=True)
    assert read_graph(to_bytes(graph)).nodes == graph.nodes
    x = normal(3, 2, 9, 8)
    model = Model(self_attention(), threads=1)
    again = Model(read_graph(to_bytes(model.graph)), threads=1)
    assert again(x).tobytes() == model(x).tobytes()


# ---- the pass --------------------------------------------------------------------------------------------------------


def written_out(mask, length=None):
    """x [batch, 2, time, 4] attending to itself as exporters write it; mask(b, scores) adds what hides keys."""
    b = GraphBuilder("written")
    size = length or TIME
    x = b.input("x", "float32", BATCH, 2, size, 4)
    kt = b.add("transpose", x, perm=(0, 1, 3, 2))
    half = b.constant("half", np.float32(0.7).reshape(()))
    scores = b.add("matmul", b.add("binary", x, half, fn="mul"), b.add("binary", kt, half, fn="mul"))
    weights = b.add("softmax", mask(b, scores), axis=3, log=False)
    return b.done(b.add("matmul", weights, x))


def apart(b):
    """row - column, int64 [time, time]"""
    steps = b.add("steps", dims=(TIME,), start=0)
    return b.add("binary", b.add("reshape", steps, dims=(TIME, 1)), steps, fn="sub")


def number(b, name, value, dtype=np.float32):
    return b.constant(name, np.array(value, dtype))


def at_least(b, x, least, name):
    return b.add("binary", x, number(b, name, least, np.int64), fn="greater_equal")


def causal(b, scores):
    return b.add("where", at_least(b, apart(b), 0, "zero"), scores, number(b, "low", -np.inf))


def band(b, scores):
    gap = apart(b)
    seen = b.add("binary", at_least(b, gap, 0, "zero"), b.add("unary", at_least(b, gap, 70, "w"), fn="not", alpha=0.0,
                 beta=0.0), fn="and")  # fmt: skip
    low = b.add("where", seen, number(b, "none", 0.0), number(b, "low", -1e9))
    return b.add("binary", low, scores, fn="add")


def forward(b, scores):
    """No earlier step: what is hidden is the wrong half."""
    return b.add("where", at_least(b, apart(b), 1, "one"), number(b, "low", -np.inf), scores)


def soft(b, scores):
    """A bias that says more than which steps are seen."""
    return b.add("binary", scores, b.add("cast", apart(b), to="float32"), fn="add")


@pytest.mark.any_isa
@pytest.mark.parametrize(
    ("mask", "seen"),
    [(causal, (True, 0, 3)), (band, (True, 70, 3)), (forward, (False, 0, 5)), (soft, (False, 0, 4))],
    ids=["causal", "band", "forward", "soft"],
)
def test_a_mask_is_read_by_what_it_is(mask, seen):
    graph = written_out(mask)
    fused = fuse_attention(graph)
    (node,) = [n for n in fused.nodes if n.op == "attention"]
    assert (node.attrs["causal"], node.attrs["window"], len(node.inputs)) == seen
    assert node.attrs["scale"] == pytest.approx(0.49)
    x = normal(1, 2, 2, 90, 4)
    np.testing.assert_allclose(*(reference.run(g, {"x": x})[0] for g in (fused, graph)), rtol=1e-9, atol=1e-12)
    model = Model(graph, threads=1)
    np.testing.assert_allclose(model(x), reference.run(graph, {"x": x})[0], rtol=2e-5, atol=2e-6)
    assert model.streamable == seen[0]


@pytest.mark.any_isa
def test_scores_that_someone_else_reads_stay():
    graph = written_out(lambda b, scores: scores, 5)
    weights = next(n.outputs[0] for n in graph.nodes if n.op == "softmax")
    both = graph.replace(outputs=(*graph.outputs, weights))
    assert not any(n.op == "attention" for n in fuse_attention(both).nodes)
    assert any(n.op == "attention" for n in fuse_attention(graph).nodes)


@pytest.mark.any_isa
def test_a_dense_layer_after_a_softmax_is_no_attention():
    b = GraphBuilder("mixture")
    x = b.input("x", "float32", BATCH, TIME, 4)
    y = b.add("matmul", x, b.constant("W", normal(1, 4, 5)))
    y = b.add("matmul", b.add("softmax", y, axis=2, log=False), b.constant("V", normal(2, 5, 3)))
    assert not any(n.op == "attention" for n in fuse_attention(b.done(y)).nodes)


# ---- streams ---------------------------------------------------------------------------------------------------------


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
    assert stream.push(x).tobytes() == model(x[None]).tobytes()  # what nobody chose is 1,024 steps, and then an error
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
        key = "steps" if name == "steps_done" else f"state/{name}"
        crafted = with_tensor(blob, key, np.full(1 if key == "steps" else (1, 1), steps, np.int64))
        for restore in (pool.restore, stream.restore):
            with pytest.raises(fastrnn.StateError, match="steps"):
                restore(crafted)
    assert all(np.array_equal(before[k], v) for k, v in pool.state(slot).items())


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


# ---- positions -------------------------------------------------------------------------------------------------------


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
