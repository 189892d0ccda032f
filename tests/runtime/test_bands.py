"""Convolutions in bands: against the reference at odd sizes, with the bits of any row, cut and thread."""

import numpy as np
import pytest
from graph_builder import GraphBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrnn.compile import lowering
from fastrnn.graph import reference
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.model import Model


def real(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv(high, wide, channels, outs, kernel, strides, dilations, pads, groups, act=None):
    b = GraphBuilder("conv")
    x = b.input("x", "float32", BATCH, channels, high, wide)
    W = b.constant("W", real(1, outs, channels // groups, *kernel) / np.float32(np.sqrt(kernel[0] * kernel[1])))
    bias = b.constant("bias", real(2, outs))
    y = b.add("conv", x, W, bias, strides=strides, dilations=dilations, pads=pads, groups=groups)
    return b.done(b.add("unary", y, fn=act, alpha=0.1, beta=0.0) if act else y)


def kinds(graph):
    return [op.kind for op in lowering.lower(graph, "run", lowering.Weights()).ops if op.kind != "copy"]


def check(graph, x):
    model = Model(graph)
    (y,) = model.run(x)
    (want,) = reference.run(graph, {"x": x})
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
    for row in range(len(x)):
        assert model.run(x[row : row + 1])[0].tobytes() == y[row : row + 1].tobytes()
    return y


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_window(data):
    pick = lambda *options: data.draw(st.sampled_from(options))  # noqa: E731
    groups = pick(1, 1, 2, 0)
    channels, outs = pick(1, 3, 8, 16, 20), pick(4, 8, 12, 16, 24, 70)
    if groups == 0:  # depthwise
        groups = outs = channels = pick(2, 8, 12, 16, 20, 33)
    channels, outs = (-(-n // groups) * groups for n in (channels, outs))
    kernel, strides = (pick(1, 2, 3, 5), pick(1, 3, 4)), (pick(1, 2), pick(1, 1, 2))
    dilations, pads = (pick(1, 2), pick(1, 3)), tuple(pick(0, 1, 4) for _ in range(4))
    least = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    high, wide = (n + data.draw(st.integers(0, 40)) for n in least)
    graph = conv(high, wide, channels, outs, kernel, strides, dilations, pads, groups, pick(None, "relu", "tanh"))
    (kind,) = kinds(graph)
    assert kind in ("conv_rows", "depthwise_rows", "depthwise", "conv_tiles")
    check(graph, real(3, data.draw(st.integers(1, 3)), channels, high, wide))


@pytest.mark.parametrize("groups", [1, 4, 24])
@pytest.mark.parametrize(("high", "wide"), [(3, 2000), (700, 3), (150, 160)])
def test_maps_that_need_several_bands(high, wide, groups):
    outs = 24 if groups == 24 else 16
    graph = conv(high, wide, 24, outs, (5, 3), (1, 1), (1, 2), (2, 2, 2, 2), groups)
    assert kinds(graph) == ["depthwise_rows" if groups == 24 else "conv_rows"]
    check(graph, real(4, 2, 24, high, wide))


@pytest.mark.parametrize("op", ["conv", "depthwise", "tiles", "wide", "pool", "pointwise"])
def test_threads_give_the_same_bits(op):
    b = GraphBuilder("shared")
    channels, high, wide = (16, 64, 64) if op != "wide" else (256, 12, 30)
    x = b.input("x", "float32", BATCH, channels, high, wide)
    attrs = {"strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1), "groups": 1}
    if op == "pool":
        attrs.pop("groups")
        y = b.add("pool", x, fn="max", kernel=(3, 3), count_include_pad=False, ceil=False, **attrs)
    else:
        taps = {"conv": (5, 5), "pointwise": (1, 1), "wide": (3, 2)}.get(op, (3, 3))
        groups = channels if op == "depthwise" else 1
        W = b.constant("W", real(5, channels * (2 if op == "wide" else 1), channels // groups, *taps))
        y = b.add("conv", x, W, **attrs | {"groups": groups})
    z = b.add("unary", y, fn="silu", alpha=0.0, beta=0.0)
    graph = b.done(b.add("binary", z, b.constant("c", real(6, 1, 1, 1, 1)), fn="mul"))
    x = real(7, 2, channels, high, wide)
    one, four = (Model(graph, threads=n) for n in (1, 4))
    for _ in range(3):
        assert one.run(x)[0].tobytes() == four.run(x)[0].tobytes()


def test_a_part_of_a_concat_is_written_in_place():
    """Channels of another tensor are between those of the input and of the output."""
    b = GraphBuilder("parts")
    x, u = b.input("x", "float32", BATCH, 8, 9, 20), b.input("u", "float32", BATCH, 8, 9, 20)
    attrs = {"strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1)}
    first = b.add("conv", x, b.constant("W", real(1, 8, 1, 3, 3)), groups=8, **attrs)
    second = b.add("conv", u, b.constant("V", real(2, 8, 8, 3, 3)), groups=1, **attrs)
    both = b.add("concat", first, second, axis=1)
    y = b.add("conv", both, b.constant("U", real(3, 4, 16, 3, 3)), groups=1, **attrs)
    part = b.add("slice", both, axis=1, start=8, stop=16, step=1)
    z = b.add("conv", part, b.constant("T", real(4, 8, 1, 3, 1)), groups=8, **attrs | {"pads": (1, 0, 1, 0)})
    graph = b.done(y, z)
    feeds = {"x": real(5, 3, 8, 9, 20), "u": real(6, 3, 8, 9, 20)}
    for got, want in zip(Model(graph).run(**feeds), reference.run(graph, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("time_axis", [2, 3])
def test_a_stream_has_the_bits_of_the_whole(time_axis):
    b = GraphBuilder("stream")
    x = b.input("x", "float32", BATCH, 3, *((TIME, 17) if time_axis == 2 else (17, TIME)))
    causal = (2, 1, 0, 1) if time_axis == 2 else (1, 2, 1, 0)
    attrs = {"strides": (1, 1), "dilations": (1, 1), "pads": causal}
    y = b.add("conv", x, b.constant("W", real(1, 20, 3, 3, 3)), groups=1, **attrs)
    graph = b.done(b.add("conv", y, b.constant("V", real(2, 20, 1, 3, 3)), groups=20, **attrs))
    assert kinds(graph) == ["conv_rows", "depthwise_rows"]
    model = Model(graph)
    x = real(3, 1, 3, *((29, 17) if time_axis == 2 else (17, 29)))
    y = check(graph, x)
    stream = model.stream()
    steps = np.moveaxis(x[0], time_axis - 1, 0)
    parts = [stream.push(np.ascontiguousarray(steps[a:b])) for a, b in ((0, 1), (1, 2), (2, 15), (15, 29))]
    assert np.concatenate(parts).tobytes() == np.ascontiguousarray(np.moveaxis(y[0], time_axis - 1, 0)).tobytes()


def test_an_infinity_stays_in_the_windows_that_hold_it():
    graph = conv(12, 12, 8, 16, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1)
    x = real(1, 2, 8, 12, 12)
    (clean,) = Model(graph).run(x)
    x[0, 3, 5, 5] = np.inf
    (y,) = Model(graph).run(x)
    same = np.ones((2, 12, 12), bool)
    same[0, 4:7, 4:7] = False
    assert not np.isfinite(y[0, :, 4:7, 4:7]).any()
    assert (np.moveaxis(y, 1, -1)[same] == np.moveaxis(clean, 1, -1)[same]).all()
