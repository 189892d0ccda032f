"""Recurrences in chunks and by doubling: found, whatever their sizes, and near misses are not."""

import numpy as np
import pytest
from graph_builder import GraphBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrnn.graph import Node, reference
from fastrnn.graph.dims import BATCH
from fastrnn.graph.traverse import subgraph
from fastrnn.passes.scans import laws_in


class Writer(GraphBuilder):
    """Short names of the operations that parallel forms are made of."""

    def unary(self, fn, x, alpha=0.0, beta=0.0):
        return self.add("unary", x, fn=fn, alpha=alpha, beta=beta)

    def binary(self, fn, a, b):
        return self.add("binary", a, b, fn=fn)

    def mul(self, a, b):
        return self.binary("mul", a, b)

    def sum(self, a, b):
        return self.binary("add", a, b)

    def const(self, array):
        return self.constant(f"const_{len(self.values)}", np.asarray(array))

    def cut(self, x, axis, start, stop, step=1):
        return self.add("slice", x, axis=axis, start=start, stop=stop, step=step)

    def pad(self, x, axis, begin, end=0, value=0.0):
        rank = len(self.values[x].dims)
        pads = [0] * (2 * rank)
        pads[axis], pads[rank + axis] = begin, end
        return self.add("pad", x, pads=tuple(pads), mode="constant", value=value)

    def join(self, axis, *parts):
        return self.add("concat", *parts, axis=axis)

    def reshape(self, x, *dims):
        return self.add("reshape", x, dims=dims)

    def turn(self, x, *perm):
        return self.add("transpose", x, perm=perm)

    def matmul(self, a, b):
        return self.add("matmul", a, b)

    def cumsum(self, x, axis):
        return self.add("cumsum", x, axis=axis, exclusive=False, reverse=False)

    def masked(self, x, size, least, outside=0.0):
        """x [.., i, j] for i - j >= least, else the number."""
        mask = np.subtract.outer(np.arange(size), np.arange(size)) >= least
        return self.add("where", self.const(mask), x, self.const(np.float32(outside)))


# ---- h[t] = a[t] h[t-1] + b[t] by doubling, [batch, T, D] ------------------------------------------------------------


def by_pads(g, a, b, steps, levels=None):
    shift = 1
    while shift < steps and levels != 0:
        b = g.sum(b, g.mul(a, g.cut(g.pad(b, 1, shift), 1, 0, steps)))
        a = g.mul(a, g.cut(g.pad(a, 1, shift, value=1.0), 1, 0, steps))
        shift, levels = 2 * shift, None if levels is None else levels - 1
    return b


def by_joins(g, a, b, steps, levels=None):
    shift = 1
    while shift < steps and levels != 0:
        early = g.cut(a, 1, 0, shift), g.cut(b, 1, 0, shift)
        late = g.cut(a, 1, shift, steps), g.cut(b, 1, shift, steps)
        left = g.cut(a, 1, 0, steps - shift), g.cut(b, 1, 0, steps - shift)
        b = g.join(1, early[1], g.sum(late[1], g.mul(late[0], left[1])))
        a = g.join(1, early[0], g.mul(late[0], left[0]))
        shift, levels = 2 * shift, None if levels is None else levels - 1
    return b


def by_halves(g, a, b, steps, levels=None):
    """Pairs of steps are combined, the scan of the pairs gives the odd steps, and those give the even ones."""
    dims = g.values[b].dims

    def combine(left, right):
        return g.mul(right[0], left[0]), g.sum(g.mul(right[0], left[1]), right[1])

    def scan(pair, length):
        if length < 2:
            return pair
        half = length // 2
        even, odd = ([g.cut(x, 1, k, length - (length % 2 and k == 1), 2) for x in pair] for k in (0, 1))
        whole = half * 2 == length
        odd = scan(combine([g.cut(x, 1, 0, half) for x in even], odd), half)
        if (length + 1) // 2 > 1:
            last = [g.cut(x, 1, 1, (length + 1) // 2) for x in even]
            before = [g.cut(x, 1, 0, half - 1) for x in odd] if whole else odd
            joined = [g.join(1, g.cut(x, 1, 0, 1), y) for x, y in zip(even, combine(before, last), strict=True)]
        else:
            joined = even
        out = []
        for x, y in zip(joined, odd, strict=True):
            ends = g.cut(x, 1, half, half + 1) if not whole else None
            x = x if whole else g.cut(x, 1, 0, half)
            both = g.join(2, *(g.reshape(v, dims[0], half, 1, *dims[2:]) for v in (x, y)))
            both = g.reshape(both, dims[0], 2 * half, *dims[2:])
            out.append(both if ends is None else g.join(1, both, ends))
        return out

    return scan([a, b], steps)[1]


DOUBLING = {f.__name__: f for f in (by_pads, by_joins, by_halves)}


def doubled(name, steps, features, levels=None):
    g = Writer(name)
    a, b = (g.input(n, "float32", BATCH, steps, features) for n in "ab")
    return g.done(DOUBLING[name](g, g.unary("sigmoid", a), b, steps, levels))


def follows(graph, laws, seed, batch=2):
    """What the laws give for what their leaves are, and what the graph gives: pairs."""
    rng = np.random.default_rng(seed)
    sizes = {"batch": batch}
    feeds = {n: rng.standard_normal([sizes.get(str(d), d) for d in graph.values[n].dims]) for n in graph.inputs}
    spread, _ = laws_in(graph)
    pairs = []
    for law in laws:
        names = [leaf.name for leaf in law.leaves]
        *arrays, y = reference.run(subgraph(graph, graph.inputs, [*names, law.end.source]), feeds, sizes=sizes)
        flat = {n: _steps_first(x, spread.axes[n]) for n, x in zip(names, arrays, strict=True)}
        y = _steps_first(y, law.end.axes)
        pairs.append((law.run(flat, len(y), y.shape[1:]), y))
    return pairs


def _steps_first(array, axes):
    array = np.moveaxis(array, axes, range(len(axes)))
    return array.reshape(-1, *array.shape[len(axes) :])


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(DOUBLING)), st.integers(4, 19), st.integers(1, 5), st.integers(0, 99))
def test_scans_by_doubling_are_found(name, steps, features, seed):
    graph = doubled(name, steps, features)
    _, laws = laws_in(graph)
    assert [law.end.y for law in laws] == list(graph.outputs)
    assert laws[0].kept is not None
    for got, want in follows(graph, laws, seed):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["by_pads", "by_joins"])
@pytest.mark.parametrize("steps", [9, 16, 40])
def test_a_scan_without_its_last_round_is_not(name, steps):
    """It forgets the steps that are further back."""
    rounds = int(np.ceil(np.log2(steps)))
    assert laws_in(doubled(name, steps, 3, rounds - 1))[1] == []
    assert len(laws_in(doubled(name, steps, 3, rounds))[1]) == 1


# ---- chunks ----------------------------------------------------------------------------------------------------------


def chunked(steps, block, R=3, N=2, wide=False, wrong=None, join=True):
    """S[t] = exp(rate[t]) S[t-1] + k[t] v[t]', y = q S: attention inside chunks, states between them. wide: a rate for
    each of the R keys, which are factors of q and k."""
    g, count = Writer("chunks"), steps // block
    q, k = (g.input(n, "float32", BATCH, steps, R) for n in "qk")
    v, rate = g.input("v", "float32", BATCH, steps, N), g.input("rate", "float32", BATCH, steps, R if wide else 1)
    q, k, v, rate = (g.reshape(x, BATCH, count, block, g.values[x].dims[-1]) for x in (q, k, v, rate))
    if wrong == "clip":
        rate = g.cumsum(rate, 2)
        rate = g.unary("clip", rate, -50.0, 0.0)
    a = g.cumsum(rate, 2) if wrong != "clip" else rate
    last = g.cut(a, 2, block - 1, block)
    e = g.unary("exp", a)
    if wide:
        divisor = g.sum(e, g.const(np.float32(1e-6))) if wrong == "guard" else e
        inside = g.matmul(g.mul(q, e), g.turn(g.binary("div", k, divisor), 0, 1, 3, 2))
        inside = g.masked(inside, block, -1 if wrong == "mask" else 0)
    else:
        away = g.binary("sub", a, g.turn(a, 0, 1, 3, 2))
        away = g.masked(away, block, -1 if wrong == "mask" else 0, -np.inf)
        inside = g.mul(g.matmul(q, g.turn(k, 0, 1, 3, 2)), g.unary("exp", away))
    new = g.matmul(g.turn(g.mul(k, g.unary("exp", g.binary("sub", last, a))), 0, 1, 3, 2), v)  # [batch, count, R, N]
    kept = g.turn(g.unary("exp", last), 0, 1, 3, 2)
    state, before = None, []
    for c in range(count):
        before.append(state)
        own, decay = g.cut(new, 1, c, c + 1), g.cut(kept, 1, c, c + 1)
        if wrong != "no decay between chunks":
            own = own if state is None else g.sum(g.mul(decay, state), own)
        else:
            own = own if state is None else g.sum(state, own)
        state = own
    zero = g.add("expand", g.const(np.float32(0.0)), dims=(BATCH, 1, R, N))
    before = g.join(1, zero, *before[1:])
    factor = q if wrong == "no decay inside" else g.mul(q, e)
    y = g.sum(g.matmul(inside, v), g.matmul(factor, before))
    return g.done(g.reshape(y, BATCH, steps, N) if join else y)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 4), st.integers(2, 5), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 99)
)  # fmt: skip
def test_recurrences_in_chunks_are_found(count, block, R, N, wide, seed):
    graph = chunked(count * block, block, R, N, wide)
    _, laws = laws_in(graph)
    assert [law.end.y for law in laws] == list(graph.outputs)
    for got, want in follows(graph, laws, seed):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


_PLACES = ("mask", "no decay between chunks", "no decay inside", "clip")


@pytest.mark.parametrize(("wide", "wrong"), [(True, "guard"), *((w, p) for w in (False, True) for p in _PLACES)])
def test_chunks_that_differ_in_one_place_are_not(wide, wrong):
    assert laws_in(chunked(12, 3, wide=wide, wrong=wrong))[1] == []


# ---- the delta rule --------------------------------------------------------------------------------------------------


def delta(steps, R=3, N=2, wrong=None):
    """S[t] = S[t-1] + k[t] (v[t] - e[t] S[t-1]): the inverse of a triangle by doubling its powers."""
    g = Writer("delta")
    q, k, e = (g.input(n, "float32", BATCH, steps, R) for n in "qke")
    v = g.input("v", "float32", BATCH, steps, N)
    turned = g.turn(k, 0, 2, 1)
    power = g.unary("neg", g.masked(g.matmul(e, turned), steps, 0 if wrong == "mask" else 1))
    inverse, done = g.sum(power, g.const(np.eye(steps, dtype=np.float32))), 2
    while done < (steps // 2 if wrong == "short" else steps):
        power = g.matmul(power, power)
        inverse, done = g.sum(inverse, g.matmul(inverse, power)), 2 * done
    return g.done(g.matmul(g.matmul(g.masked(g.matmul(q, turned), steps, 0), inverse), v))


@settings(max_examples=15, deadline=None)
@given(st.integers(4, 17), st.integers(2, 4), st.integers(1, 4), st.integers(0, 99))
def test_the_delta_rule_is_found(steps, R, N, seed):
    graph = delta(steps, R, N)
    _, laws = laws_in(graph)
    assert [law.end.y for law in laws] == list(graph.outputs)
    assert laws[0].erased is not None
    for got, want in follows(graph, laws, seed):
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("wrong", ["mask", "short"])
def test_what_is_not_the_delta_rule_is_not(wrong):
    assert laws_in(delta(16, wrong=wrong))[1] == []


# ---- one change anywhere ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_one_change_anywhere_is_not_overlooked(seed):
    """A member of a family with one operation changed: what is still found gives what the graph gives."""
    rng = np.random.default_rng(seed)
    raw = [
        lambda: doubled(str(rng.choice(sorted(DOUBLING))), int(rng.integers(4, 12)), 2),
        lambda: chunked(3 * (block := int(rng.integers(2, 5))), block, wide=bool(rng.integers(2))),
        lambda: delta(int(rng.integers(4, 10))),
    ][rng.integers(3)]()
    nodes, k = list(raw.nodes), int(rng.integers(len(raw.nodes)))
    node, attrs = nodes[k], dict(nodes[k].attrs)
    swaps = {"neg": "tanh", "exp": "sigmoid", "sigmoid": "exp", "mul": "add", "add": "sub", "sub": "add", "div": "mul"}
    if node.op in ("unary", "binary"):
        attrs["fn"] = swaps[attrs["fn"]]
    elif node.op == "cumsum":
        attrs["exclusive"] = True
    elif node.op == "pad":
        attrs["value"] = 0.5
    else:
        return
    nodes[k] = Node(node.op, node.name, node.inputs, node.outputs, attrs)
    changed = raw.replace(nodes=tuple(nodes))
    for got, want in follows(changed, laws_in(changed)[1], seed):
        real = np.isfinite(want)
        np.testing.assert_allclose(got[real], want[real], rtol=1e-7, atol=1e-7)
