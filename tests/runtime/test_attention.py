"""Attention: the op against its float64 meaning, the pass that finds it, streams that keep a bounded past."""

import numpy as np
import pytest
from graph_builder import GraphBuilder

import fastrnn
from fastrnn.errors import ModelFormatError
from fastrnn.graph import reference
from fastrnn.graph.artifact import load as read_graph
from fastrnn.graph.artifact import to_bytes
from fastrnn.graph.dims import BATCH, TIME
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
