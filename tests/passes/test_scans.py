"""Recurrences in parallel form are taken step by step: right, without a largest length, streamed; near misses stay."""

import numpy as np
import pytest
from graph_builder import GraphBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrnn.graph import reference
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.model import Model
from fastrnn.passes import standard_passes
from fastrnn.passes.scans import recurrences_of_parallel_forms

NOTE = "recurrences in parallel form step by step"


class Writer(GraphBuilder):
    """Short names of the operations that parallel forms are made of."""

    def unary(self, fn, x):
        return self.add("unary", x, fn=fn, alpha=0.0, beta=0.0)

    def binary(self, fn, a, b):
        return self.add("binary", a, b, fn=fn)

    def number(self, value, dtype=np.float32):
        return self.constant(f"number_{len(self.values)}", np.array(value, dtype))

    def cumsum(self, x, axis, exclusive=False, reverse=False):
        return self.add("cumsum", x, axis=axis, exclusive=exclusive, reverse=reverse)

    def flip(self, x, axis):
        return self.add("slice", x, axis=axis, start=TIME - 1, stop=-1, step=-1)

    def cut(self, x, axis, start, stop):
        return self.add("slice", x, axis=axis, start=start, stop=stop, step=1)

    def pad(self, x, axis, begin, end):
        rank = len(self.values[x].dims)
        pads = [0] * (2 * rank)
        pads[axis], pads[rank + axis] = begin, end
        return self.add("pad", x, pads=tuple(pads), mode="constant", value=0.0)

    def matmul(self, a, b):
        return self.add("matmul", a, b)


# ---- h[t] = exp(rate[t]) * h[t-1] + u[t], written as sums over all steps ---------------------------------------------


def by_a_product(g, rate, u, axis):
    a = g.cumsum(rate, axis)
    return g.binary("mul", g.unary("exp", a), g.cumsum(g.binary("mul", u, g.unary("exp", g.unary("neg", a))), axis))


def by_a_division(g, rate, u, axis):
    e = g.unary("exp", g.cumsum(rate, axis))
    return g.binary("mul", g.cumsum(g.binary("div", u, e), axis), e)


def by_logarithms(g, rate, u, axis):
    """Of positive u only, with the largest exponent taken out."""
    a, w = g.cumsum(rate, axis), g.unary("log", g.binary("mul", u, u))
    d = g.binary("sub", w, a)
    most = g.add("reduce", d, fn="max", axes=(axis,), keepdims=True)
    c = g.unary("log", g.cumsum(g.unary("exp", g.binary("sub", d, most)), axis))
    return g.unary("exp", g.binary("add", g.binary("add", c, most), a))


def by_flips(g, rate, u, axis):
    """exp of the sums from the next step to the last one."""
    later = g.pad(g.cut(rate, axis, 1, TIME), axis, 0, 1)
    e = g.flip(g.unary("exp", g.cumsum(g.flip(later, axis), axis)), axis)
    return g.binary("div", g.cumsum(g.binary("mul", u, e), axis), e)


def by_sums_from_the_end(g, rate, u, axis):
    e = g.unary("exp", g.cumsum(rate, axis, exclusive=True, reverse=True))
    return g.binary("div", g.cumsum(g.binary("mul", e, u), axis), e)


def by_sums_of_earlier_steps(g, rate, u, axis):
    """The state as of the step before, decayed, plus the step's own value."""
    a = g.cumsum(rate, axis)
    c = g.cumsum(g.binary("mul", u, g.unary("exp", g.unary("neg", a))), axis, exclusive=True)
    return g.binary("add", g.binary("mul", g.unary("exp", a), c), u)


def by_a_shifted_sum(g, rate, u, axis):
    """Decays of the step before: the sums inside leave out the step's own decay, and so does the factor outside."""
    a = g.cumsum(rate, axis)
    before = g.cut(g.pad(a, axis, 1, 0), axis, 0, TIME)
    c = g.cumsum(g.binary("mul", u, g.unary("exp", g.unary("neg", before))), axis)
    return g.binary("mul", g.binary("mul", g.unary("exp", a), c), g.unary("exp", g.unary("neg", rate)))


SUMS = {f.__name__: f for f in (
    by_a_product, by_a_division, by_logarithms, by_flips, by_sums_from_the_end, by_sums_of_earlier_steps,
    by_a_shifted_sum,
)}  # fmt: skip


def steps(rate, u, axis):
    """The recurrence in float64."""
    rate, u = np.moveaxis(rate.astype(np.float64), axis, 0), np.moveaxis(u.astype(np.float64), axis, 0)
    h, out = np.zeros(np.broadcast_shapes(rate.shape[1:], u.shape[1:])), []
    for decay, new in zip(rate, u, strict=True):
        h = np.exp(decay) * h + new
        out.append(h)
    return np.moveaxis(np.array(out), 0, axis)


def expected(name, rate, u, axis):
    if name == "by_logarithms":
        return steps(rate, u.astype(np.float64) ** 2, axis)
    if name == "by_a_shifted_sum":
        earlier = np.delete(rate, -1, axis)
        rate = np.concatenate([np.zeros_like(np.take(rate, [0], axis)), earlier], axis)
    return steps(rate, u, axis)


@st.composite
def elementwise(draw):
    """(graph, axis of time, rate per feature) of a random member of the family; inputs rate and u."""
    name = draw(st.sampled_from(sorted(SUMS)))
    axis, features = draw(st.sampled_from((0, 1))), draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
    front = (TIME, BATCH) if axis == 0 else (BATCH, TIME)
    narrow = len(features) == 2 and name != "by_logarithms" and draw(st.booleans())
    g = Writer(name)
    rate = g.input("rate", "float32", *front, *((*features[:-1], 1) if narrow else features))
    u = g.input("u", "float32", *front, *features)
    return name, g.done(SUMS[name](g, rate, u, axis)), axis


def drawn(graph, batch, length, seed, decay=0.7):
    """rate below 0 on the whole, as decays are, and u."""
    rng = np.random.default_rng(seed)
    sizes = {BATCH: batch, TIME: length}
    shapes = {n: [sizes.get(d, d) for d in graph.values[n].dims] for n in graph.inputs}
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    return {n: (-decay * np.abs(a)).astype(np.float32) if n == "rate" else a for n, a in arrays.items()}


def streams_alike(model, arrays, axis, got):
    """Streams of single steps and of chunks, and a pool, answer with the bits of the whole run."""
    rows = {n: np.moveaxis(arrays[n], axis, 1) for n in (i.name for i in model.inputs)}
    got = np.moveaxis(got, axis, 1)
    batch, length = got.shape[:2]
    streams, pool = [model.stream() for _ in range(batch)], model.pool(capacity=batch)
    slots = [pool.open() for _ in range(batch)]
    for t in range(5):
        now = {n: np.ascontiguousarray(a[:, t]) for n, a in rows.items()}
        assert np.array_equal(pool.step(slots, now), got[:, t])
        for b, stream in enumerate(streams):
            assert np.array_equal(stream.step({n: np.ascontiguousarray(a[b]) for n, a in now.items()}), got[b, t])
    for part in (range(5, 6), range(6, 13), range(13, length)):
        for b, stream in enumerate(streams):
            chunk = {n: np.ascontiguousarray(a[b, part.start : part.stop]) for n, a in rows.items()}
            assert np.array_equal(stream.push(chunk), got[b, part.start : part.stop])


@settings(max_examples=40, deadline=None)
@given(elementwise(), st.integers(1, 3), st.integers(1, 14), st.integers(0, 99))
def test_any_way_of_writing_it_is_the_recurrence(member, batch, length, seed):
    name, raw, axis = member
    graph = recurrences_of_parallel_forms(raw)
    assert any(NOTE in note for note in graph.notes), str(raw)
    assert any(n.op == "state" for n in graph.nodes)
    assert not any(n.op == "cumsum" for n in graph.nodes)
    arrays = drawn(raw, batch, length, seed)
    (before,), (after,) = (reference.run(g, arrays) for g in (raw, graph))
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(after, expected(name, arrays["rate"], arrays["u"], axis), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("axis", [0, 1])
def test_it_has_no_largest_length_and_streams(name, axis):
    """Where the file's arithmetic is NaN or inf, the recurrence keeps six digits; chunks give the bits of the whole."""
    g = Writer(name)
    front = (TIME, BATCH) if axis == 0 else (BATCH, TIME)
    rate, u = g.input("rate", "float32", *front, 3), g.input("u", "float32", *front, 3)
    raw = g.done(SUMS[name](g, rate, u, axis))
    arrays = drawn(raw, 2, 600, 5)
    model = Model(raw)
    (got,) = model.run(**arrays)
    want = expected(name, arrays["rate"], arrays["u"], axis)
    scale = np.abs(want).max()
    assert np.abs(got - want).max() < 3e-6 * scale
    streams_alike(model, arrays, axis, got)


# ---- y = (mask * decay * (q k')) v -----------------------------------------------------------------------------------


def mask_of(g, least=0):
    """bool [time, time]: i - j >= least."""
    at = g.add("steps", dims=(TIME,), start=0)
    away = g.binary("sub", g.add("reshape", at, dims=(TIME, 1)), at)
    return g.binary("greater_equal", away, g.number(least, np.int64)), away


def scores(g, q, k):
    return g.matmul(q, g.add("transpose", k, perm=(0, 2, 1)))


def masked(g, x, least=0):
    mask, _ = mask_of(g, least)
    return g.add("where", mask, x, g.number(0.0))


def plain_attention(g, q, k, v, rate):
    return g.matmul(masked(g, scores(g, q, k)), v)


def strict_attention(g, q, k, v, rate):
    return g.matmul(masked(g, scores(g, q, k), 1), v)


def decay_of_heads(g, q, k, v, rate):
    """Powers of one decay, as in RetNet."""
    mask, away = mask_of(g)
    away = g.add("cast", g.binary("max", away, g.number(0, np.int64)), to="float32")
    decay = g.add("where", mask, g.binary("pow", g.number(0.9), away), g.number(0.0))
    return g.matmul(g.binary("mul", scores(g, q, k), decay), v)


def _away_sum(g, rate):
    a = g.cumsum(g.add("reshape", g.cut(rate, 2, 0, 1), dims=(BATCH, TIME)), 1)
    rows, columns = g.add("reshape", a, dims=(BATCH, TIME, 1)), g.add("reshape", a, dims=(BATCH, 1, TIME))
    return g.binary("sub", rows, columns)


def decay_of_steps(g, q, k, v, rate):
    """exp of differences of running sums, masked by -inf, as in Mamba-2."""
    mask, _ = mask_of(g)
    decay = g.unary("exp", g.add("where", mask, _away_sum(g, rate), g.number(-np.inf)))
    return g.matmul(g.binary("mul", scores(g, q, k), decay), v)


def segment_sums(g, q, k, v, rate):
    rows = g.add("expand", g.cut(rate, 2, 0, 1), dims=(BATCH, TIME, TIME))
    sums = g.cumsum(masked(g, rows, 1), 1)
    mask, _ = mask_of(g)
    decay = g.unary("exp", g.add("where", mask, sums, g.number(-np.inf)))
    return g.matmul(g.binary("mul", scores(g, q, k), decay), v)


def decay_of_channels(g, q, k, v, rate):
    """As gated linear attention: the decays are factors of q and of k."""
    e = g.unary("exp", g.cumsum(rate, 1))
    return g.matmul(masked(g, scores(g, g.binary("mul", q, e), g.binary("div", k, e))), v)


def normalised(g, q, k, v, rate):
    weights = masked(g, scores(g, g.unary("exp", q), g.unary("exp", k)))
    return g.binary("div", g.matmul(weights, v), g.add("reduce", weights, fn="sum", axes=(2,), keepdims=True))


def shared_by_heads(g, q, k, v, rate):
    """Queries and keys without heads, decays and values of two of them, as Mamba-2's."""
    size = g.values[v].dims[2]
    both = g.add("concat", v, g.binary("mul", v, v), axis=2)
    values = g.add("transpose", g.add("reshape", both, dims=(BATCH, TIME, 2, size)), perm=(0, 2, 1, 3))
    one = g.cut(rate, 2, 0, 1)
    rates = g.add("transpose", g.add("concat", one, g.binary("mul", one, g.number(0.5)), axis=2), perm=(0, 2, 1))
    a = g.cumsum(rates, 2)
    rows, columns = (g.add("reshape", a, dims=(BATCH, 2, *d)) for d in ((TIME, 1), (1, TIME)))
    mask, _ = mask_of(g)
    decay = g.unary("exp", g.add("where", mask, g.binary("sub", rows, columns), g.number(-np.inf)))
    between = g.add("reshape", scores(g, q, k), dims=(BATCH, 1, TIME, TIME))
    y = g.matmul(g.binary("mul", between, decay), values)
    return g.add("reshape", g.add("transpose", y, perm=(0, 2, 1, 3)), dims=(BATCH, TIME, 2 * size))


PAIRS = {f.__name__: f for f in (
    plain_attention, strict_attention, decay_of_heads, decay_of_steps, segment_sums, decay_of_channels, normalised,
    shared_by_heads,
)}  # fmt: skip


def attention(name, R=3, N=2):
    g = Writer(name)
    q, k = (g.input(n, "float32", BATCH, TIME, R) for n in "qk")
    v, rate = g.input("v", "float32", BATCH, TIME, N), g.input("rate", "float32", BATCH, TIME, R)
    return g.done(PAIRS[name](g, q, k, v, rate))


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=6, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 12), st.integers(0, 99))
def test_masked_products_are_recurrences_of_a_matrix(name, R, N, batch, length, seed):
    raw = attention(name, R, N)
    graph = recurrences_of_parallel_forms(raw)
    assert any(NOTE in note for note in graph.notes)
    assert not any(v.dims.count(TIME) > 1 for v in graph.values.values())
    arrays = drawn(raw, batch, length, seed)
    (before,), (after,) = (reference.run(g, arrays) for g in (raw, graph))
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PAIRS)
def test_masked_products_stream_with_the_bits_of_the_whole(name):
    raw = attention(name, 8, 8)
    model, arrays = Model(raw), drawn(raw, 3, 300, 2)
    (got,) = model.run(**arrays)
    (want,) = reference.run(model.graph, arrays)
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())
    streams_alike(model, arrays, 1, got)


# ---- near misses -----------------------------------------------------------------------------------------------------


def _sums(g, axis, wrong):
    rate, u, w = (g.input(n, "float32", BATCH, TIME, 3) for n in ("rate", "u", "w"))
    a = g.cumsum(rate, axis)
    inside, outside = g.unary("neg", a), a
    if wrong == "other rate":
        outside = g.binary("mul", a, g.number(0.5))
    if wrong == "decay of its own":
        inside = g.unary("neg", g.binary("mul", a, w))
    if wrong == "other decay":
        outside = g.cumsum(w, axis)
    if wrong == "guard":
        e = g.unary("exp", g.cumsum(rate, axis, exclusive=True, reverse=True))
        c = g.cumsum(g.binary("mul", u, e), axis)
        return g.binary("mul", g.binary("div", c, g.binary("add", e, g.number(1e-3))), g.unary("tanh", w))
    if wrong == "needs the future":
        c = g.cumsum(g.binary("mul", u, g.unary("exp", inside)), axis, reverse=True)
        return g.binary("mul", g.binary("mul", g.unary("exp", a), c), w)
    return g.binary("mul", g.unary("exp", outside), _summed(g, u, inside, axis, w))


def _summed(g, u, exponent, axis, w):
    return g.binary("mul", g.cumsum(g.binary("mul", u, g.unary("exp", exponent)), axis), w)


NEAR = ("other rate", "decay of its own", "other decay", "guard", "needs the future")


@pytest.mark.parametrize("wrong", NEAR)
def test_what_is_not_such_a_recurrence_stays(wrong):
    g = Writer(wrong)
    raw = g.done(_sums(g, 1, wrong))
    assert recurrences_of_parallel_forms(raw) is raw
    model = Model(raw)
    assert not any(NOTE in note for note in model.notes)


@pytest.mark.parametrize("least", [-1, 2])
@pytest.mark.parametrize("kind", ["mask", "no mask", "upper", "other decay", "not decayed by step"])
def test_products_that_see_other_steps_stay(kind, least):
    g = Writer(kind)
    q, k = (g.input(n, "float32", BATCH, TIME, 3) for n in "qk")
    v, rate = g.input("v", "float32", BATCH, TIME, 2), g.input("rate", "float32", BATCH, TIME, 3)
    s = scores(g, q, k)
    if kind == "mask":
        s = masked(g, s, least)
    elif kind == "upper":
        mask, _ = mask_of(g)
        s = g.add("where", mask, g.number(0.0), s)
    elif kind == "other decay":  # a decay by the step of the query alone does not cancel
        e = g.unary("exp", g.cumsum(rate, 1))
        s = masked(g, scores(g, g.binary("mul", q, e), g.binary("mul", k, e)))
    elif kind == "not decayed by step":  # the distance of two steps, squared
        mask, away = mask_of(g)
        away = g.add("cast", away, to="float32")
        s = g.binary("mul", masked(g, s), g.binary("pow", g.number(0.9), g.binary("mul", away, away)))
    y = g.matmul(s, v) if kind == "other decay" else g.binary("add", g.matmul(s, v), g.cut(rate, 2, 0, 2))
    raw = g.done(y)
    assert recurrences_of_parallel_forms(raw) is raw


@settings(max_examples=25, deadline=None)
@given(elementwise(), st.integers(0, 10**6))
def test_one_change_anywhere_is_not_overlooked(member, seed):
    """A member of the family with one operation changed: what is then replaced still gives what the graph gives."""
    _, raw, _ = member
    rng = np.random.default_rng(seed)
    nodes = list(raw.nodes)
    k = int(rng.integers(len(nodes)))
    node, attrs = nodes[k], dict(nodes[k].attrs)
    swaps = {"neg": "tanh", "exp": "sigmoid", "log": "neg", "mul": "add", "add": "sub", "sub": "add", "div": "mul"}
    if node.op in ("unary", "binary"):
        attrs["fn"] = swaps[attrs["fn"]]
    elif node.op == "cumsum":
        attrs["exclusive"] = not attrs["exclusive"]
    else:
        return
    nodes[k] = type(node)(node.op, node.name, node.inputs, node.outputs, attrs)
    changed = raw.replace(nodes=tuple(nodes))
    arrays = drawn(raw, 2, 7, seed)
    (before,), (after,) = (reference.run(g, arrays) for g in (changed, recurrences_of_parallel_forms(changed)))
    real = np.isfinite(before)  # of a negative number's logarithm, the file gives NaN
    np.testing.assert_allclose(after[real], before[real], rtol=1e-7, atol=1e-7)


def test_it_is_the_first_of_the_passes():
    """So that a running sum is not taken step by step before."""
    assert standard_passes[0] is recurrences_of_parallel_forms
