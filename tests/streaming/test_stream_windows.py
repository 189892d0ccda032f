"""Streams through windows: every cut of a sequence, and the flush at its end, give the bits of the whole run."""

import numpy as np
import pytest
from graph_builder import GraphBuilder
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastrnn.errors import ShapeError
from fastrnn.graph import dims as D
from fastrnn.graph import reference
from fastrnn.graph.cells import CellSpec
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.model import Model


def real(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Stack:
    """A graph over [batch, channels, steps], layer on layer."""

    def __init__(self, C=3):
        self.b, self.C, self.n = GraphBuilder("stack"), C, 0
        self.x = self.start = self.b.input("x", "float32", BATCH, C, TIME)

    def weights(self, *shape):
        self.n += 1
        return self.b.constant(f"w{self.n}", real(self.n, *shape) / np.float32(np.sqrt(shape[-1] * shape[-2])))

    def conv(self, M=4, k=3, stride=1, dilation=1, pads=(0, 0), groups=1):
        W, bias = self.weights(M, self.C // groups, k), self.b.constant(f"b{self.n}", real(self.n, M))
        self.C = M
        self.x = self.b.add("conv", self.x, W, bias, strides=(stride,), dilations=(dilation,), pads=pads, groups=groups)
        return self

    def conv_transpose(self, M=4, k=3, stride=2, dilation=1, pads=(0, 0), extra=0):
        W = self.weights(self.C, M, k)
        self.C = M
        self.x = self.b.add(
            "conv_transpose", self.x, W, strides=(stride,), dilations=(dilation,), pads=pads, groups=1,
            output_padding=(extra,),
        )  # fmt: skip
        return self

    def pool(self, fn="max", k=2, stride=2, pads=(0, 0), ceil=False, include=False, dilation=1):
        self.x = self.b.add(
            "pool", self.x, fn=fn, kernel=(k,), strides=(stride,), pads=pads, dilations=(dilation,), ceil=ceil,
            count_include_pad=include,
        )  # fmt: skip
        return self

    def pad(self, begin, end, value=0.5):
        self.x = self.b.add("pad", self.x, pads=(0, 0, begin, 0, 0, end), mode="constant", value=value)
        return self

    def cut(self, begin=0, end=0, step=1):
        size = self.b.values[self.x].dims[2]
        self.x = self.b.add("slice", self.x, axis=2, start=begin, stop=size - end, step=step)
        return self

    def repeat(self, times):
        B, C, T = self.b.values[self.x].dims
        x = self.b.add("reshape", self.x, dims=(B, C, T, 1))
        x = self.b.add("expand", x, dims=(B, C, T, times))
        self.x = self.b.add("reshape", x, dims=(B, C, T * times))
        return self

    def relu(self):
        self.x = self.b.add("unary", self.x, fn="tanh", alpha=0.0, beta=0.0)
        return self

    def add(self, other, fn="add"):
        self.x = self.b.add("binary", self.x, other, fn=fn)
        return self

    def join(self, other, C):
        self.x = self.b.add("concat", self.x, other, axis=1)
        self.C += C
        return self

    def cell(self, kind="gru", H=5):
        x = self.b.add("transpose", self.x, perm=(2, 0, 1))
        spec = CellSpec(kind, self.C, H)
        W, R = self.weights(spec.gates * H, self.C), self.weights(spec.gates * H, H)
        (x,) = self.b.add("cell", x, W, R, outputs=(f"y{self.n}",), spec=spec, name=f"cell{self.n}")
        self.x, self.C = self.b.add("transpose", x, perm=(1, 2, 0)), H
        return self

    def norm(self):
        x = self.b.add("transpose", self.x, perm=(0, 2, 1))
        x = self.b.add("layer_norm", x, axis=2, epsilon=1e-5)
        self.x = self.b.add("transpose", x, perm=(0, 2, 1))
        return self

    def last(self):
        size = self.b.values[self.x].dims[2]
        self.x = self.b.add("slice", self.x, axis=2, start=size - 1, stop=size, step=1)
        return self

    def reduce(self, fn="mean"):
        self.x = self.b.add("reduce", self.x, fn=fn, axes=(2,), keepdims=False)
        return self

    def done(self, *others):
        return self.b.done(self.x, *others)


def in_steps(x):
    """[batch, C, T] as a stream takes it: [batch, T, C]."""
    return np.ascontiguousarray(x.transpose(0, 2, 1))


def streamed(model, x, cuts, batch):
    """All that a stream brings, [batch, T', ..], its value over time last, fed in chunks of `cuts` and one by one."""
    s = model.stream(batch_size=batch)
    axis = 0 if batch is None else 1
    outputs = [[] for _ in model.outputs]

    def note(ys):
        for all_, y in zip(outputs, ys if isinstance(ys, tuple) else (ys,), strict=True):
            all_.append(y)

    at, T = 0, x.shape[axis]
    for n in cuts:
        note(s.push(x[at : at + n] if batch is None else x[:, at : at + n]))
        at = min(at + n, T)
    while at < T:
        note(s.push(x[at : at + 7] if batch is None else x[:, at : at + 7]))
        at = min(at + 7, T)
    note(s.flush())
    timed = [o.timed for o in s._parts.outputs]
    return [
        np.concatenate(o, axis) if t else [y for y in o if y is not None][-1]
        for o, t in zip(outputs, timed, strict=True)
    ], s


def same_as_whole(model, x, i, y):
    """y is output i of a whole run of x [T, C]; None where such a run has no value."""
    try:
        want = model.run(np.ascontiguousarray(x.T[None]))[i][0]
    except ShapeError:
        want = None
    if y is None:  # the mean or the largest of no steps is no number
        assert want is None or not np.isfinite(want).all()
    else:
        assert y.tobytes() == want.tobytes()


def by_steps(model, x):
    """The same one step at a time, of x [T, C]."""
    s = model.stream()
    outputs = [[] for _ in model.outputs]
    many = s._parts.timetable.many if s._parts.timetable else [False] * len(outputs)
    for t, row in enumerate(x):
        ys = s.step(row)
        for i, (all_, y, m) in enumerate(zip(outputs, ys if isinstance(ys, tuple) else (ys,), many, strict=True)):
            if y is not None:
                all_.append(y if m else y[None])
            if not s._parts.outputs[i].timed and t % 3 == 2:  # as if the sequence ended here
                same_as_whole(model, x[: t + 1], i, y)
    last = s.flush()
    for all_, y, o in zip(outputs, last if isinstance(last, tuple) else (last,), s._parts.outputs, strict=True):
        if y is not None:
            all_.append(y if o.timed else y[None])
    return [np.concatenate(o) if a.timed else o[-1][0] for o, a in zip(outputs, s._parts.outputs, strict=True)]


def check(graph, T=29, cuts=(1, 5, 0, 2, 13), seed=3, tolerance=3e-5):
    """Whole run against the reference, streams against the whole run; returns the model."""
    model = Model(graph)
    x = real(seed, 3, graph.values["x"].dims[1], T)
    whole = model.run(x)
    for ours, exact in zip(whole, reference.run(graph, {"x": x}), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=tolerance, atol=tolerance)
    flat = [
        in_steps(y) if y.ndim == 3 and "time" in str(o.dims) else y for y, o in zip(whole, model.outputs, strict=True)
    ]
    fed = in_steps(x)
    for ours, want in zip(streamed(model, fed, cuts, 3)[0], flat, strict=True):
        assert ours.shape == want.shape or ours.size == want.size
        assert ours.tobytes() == want.tobytes()
    for ours, want in zip(streamed(model, fed[1], cuts, None)[0], flat, strict=True):
        assert ours.tobytes() == want[1].tobytes()
    for ours, want in zip(by_steps(model, fed[2]), flat, strict=True):
        assert ours.tobytes() == want[2].tobytes()
    return model


CASES = {
    "causal": (lambda: Stack().conv(pads=(2, 0)), 0),
    "causal, dilated": (lambda: Stack().conv(pads=(8, 0), dilation=4).relu().conv(pads=(16, 0), dilation=8), 0),
    "same": (lambda: Stack().conv(k=5, pads=(2, 2)), 2),
    "same twice": (lambda: Stack().conv(k=5, pads=(2, 2)).relu().conv(pads=(1, 1)), 3),
    "valid": (lambda: Stack().conv(k=4), 3),
    "cut at the end": (lambda: Stack().conv(pads=(2, 2)).cut(0, 2), 0),
    "strided": (lambda: Stack().conv(k=3, stride=2), 2),
    "stride beyond the kernel": (lambda: Stack().conv(k=2, stride=5), 1),
    "grouped": (lambda: Stack(4).conv(M=6, groups=2, pads=(1, 1)), 1),
    "depthwise": (lambda: Stack(4).conv(M=4, groups=4, pads=(1, 1), dilation=1), 1),
    "one tap, padded": (lambda: Stack().conv(k=1, pads=(1, 2)), 0),
    "max pool": (lambda: Stack().pool("max", 3, 2, (1, 1)), 1),
    "max pool, ceil": (lambda: Stack().pool("max", 3, 3, (0, 1), ceil=True), 2),
    "mean pool": (lambda: Stack().pool("mean", 4, 2, (1, 2)), 2),
    "mean pool with padding, ceil": (lambda: Stack().pool("mean", 4, 3, (2, 1), ceil=True, include=True), 1),
    "repeated": (lambda: Stack().repeat(3), 0),
    "repeated and smoothed": (lambda: Stack().repeat(2).conv(pads=(1, 1)), 1),
    "repeated to a length that another value has": (
        lambda: (
            Stack()
            .conv(k=1, stride=2, pads=(0, 1))
            .conv(k=2)
            .conv_transpose(k=1, stride=3, pads=(2, 2))
            .pool("max", 2, 3, (1, 0))
            .repeat(3)
        ),
        5,
    ),
    "spread": (lambda: Stack().conv_transpose(), 0),
    "spread, cut": (lambda: Stack().conv_transpose(k=5, stride=3, pads=(2, 1), extra=1), 1),
    "spread, cut beyond its reach": (lambda: Stack().conv_transpose(k=2, stride=4, pads=(1, 3)), 2),
    "spread, dilated": (lambda: Stack().conv_transpose(k=3, stride=2, dilation=3, pads=(1, 2)), 1),
    "pad": (lambda: Stack().pad(3, 2), 0),
    "pad less": (lambda: Stack().pad(-3, 2), 3),
    "pad and cut": (lambda: Stack().pad(2, -3), 1),
    "every third": (lambda: Stack().cut(1, 2, 3), 3),
    "cells between": (lambda: Stack().conv(pads=(1, 1)).cell().pool().cell("lstm").norm(), 2),
    "last": (lambda: Stack().conv(pads=(1, 1)).cell().last(), 1),
    "mean": (lambda: Stack().conv(pads=(1, 1), stride=3).reduce(), 1),
    "largest": (lambda: Stack().conv(pads=(2, 0)).reduce("max"), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_stream_has_the_bits_of_the_whole_run(name):
    build, delay = CASES[name]
    assert check(build().done()).delay == delay


@pytest.mark.parametrize("name", CASES)
def test_a_step_comes_as_soon_as_no_later_input_can_change_it(name):
    """What is still to come is NaN: outputs before the first NaN, and that there are if nothing more comes, are those
    that a stream must have given."""
    model = Model(CASES[name][0]().done())
    s, x = model.stream(), real(4, 1, model.inputs[0].dims[1], 12)
    if not s._parts.outputs[0].timed:
        pytest.skip("a value over time")
    told = 0
    for n in range(1, 12):
        told += s.push(in_steps(x)[0, n - 1 : n]).shape[0]
        unknown = np.full((1, x.shape[1], 40), np.nan)
        (whole,) = reference.run(model.graph, {"x": np.concatenate([x[:, :, :n], unknown], 2)})
        known = ~np.isnan(whole).any((0, 1))
        ended = max(0, D.evaluate(model.graph.values[model.graph.outputs[0]].dims[2], {"time": n}))
        assert told == min(ended, len(known) if known.all() else int(np.argmin(known)))


# ---- stacks at random ------------------------------------------------------------------------------------------------


def small(low, high):
    return st.integers(low, high)


@st.composite
def layers(draw):
    """One layer: a function of a Stack."""
    kind = draw(
        st.sampled_from("conv conv causal strided depthwise pool pad cut repeat spread cell norm residual join".split())
    )
    k, d = draw(small(1, 4)), draw(small(1, 3))
    reach = d * (k - 1) + 1
    if kind == "conv":
        pads = (draw(small(0, reach)), draw(small(0, reach)))
        return lambda s: s.conv(k=k, dilation=d, pads=pads)
    if kind == "causal":
        return lambda s: s.conv(k=k, dilation=d, pads=(reach - 1, reach - 1)).cut(0, reach - 1).relu()
    if kind == "strided":
        stride, pads = draw(small(1, 4)), (draw(small(0, 2)), draw(small(0, 2)))
        return lambda s: s.conv(k=k, stride=stride, pads=pads)
    if kind == "depthwise":
        return lambda s: s.conv(M=s.C, groups=s.C, k=k, dilation=d, pads=(reach - 1, 0))
    if kind == "pool":
        pads = (draw(small(0, k - 1)), draw(small(0, k - 1)))
        fn, ceil, include, stride = draw(
            st.tuples(st.sampled_from(["max", "mean"]), st.booleans(), st.booleans(), small(1, 3))
        )
        return lambda s: s.pool(fn, k, stride, pads, ceil, include)
    if kind == "pad":
        begin, end = draw(small(-3, 3)), draw(small(-3, 3))
        return lambda s: s.pad(begin, end)
    if kind == "cut":
        begin, end, step = draw(small(0, 3)), draw(small(0, 3)), draw(small(1, 3))
        return lambda s: s.cut(begin, end, step)
    if kind == "repeat":
        return lambda s: s.repeat(d)
    if kind == "spread":
        stride = draw(small(1, 3))
        pads, extra = (draw(small(0, 2)), draw(small(0, 2))), draw(small(0, max(stride, d) - 1))
        return lambda s: s.conv_transpose(k=k, stride=stride, dilation=d, pads=pads, extra=extra)
    if kind == "cell":
        cell = draw(st.sampled_from(["rnn", "gru", "lstm"]))
        return lambda s: s.cell(cell)
    if kind == "norm":
        return lambda s: s.norm()
    split = draw(small(0, reach - 1))
    if kind == "residual":  # what goes round waits for what goes through
        return lambda s: _round(
            s, lambda: s.conv(M=s.C, k=k, dilation=d, pads=(reach - 1 - split, split)).relu(), s.add
        )
    return lambda s: _round(s, lambda: s.conv(k=k, dilation=d, pads=(split, reach - 1 - split)), s.join, s.C)


def _round(stack, layer, join, *args):
    before = stack.x
    layer()
    join(before, *args)
    return stack


@settings(max_examples=60, deadline=None)
@given(
    st.lists(layers(), min_size=1, max_size=5),
    st.sampled_from(["steps", "last", "mean", "max", "both"]),
    st.lists(small(0, 9), max_size=6),
    small(20, 50),
)
def test_any_stack_cut_anyhow(layers, end, cuts, T):
    stack = Stack()
    try:
        for layer in layers:
            layer(stack)
        lengths = [D.evaluate(d, {"batch": 1, "time": T}) for v in stack.b.values.values() for d in v.dims]
    except ShapeError:
        assume(False)
    assume(min(lengths) > 0 and max(lengths) < 300)
    steps = stack.x
    if end == "last":
        stack.last()
    elif end != "steps":
        stack.reduce("mean" if end == "both" else end)
    check(stack.done(*([steps] if end == "both" else [])), T, tuple(cuts), tolerance=1e-4)
