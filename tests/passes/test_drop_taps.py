"""Taps that meet only padding leave a convolution; what it answers stays, bit for bit."""

import numpy as np
import pytest
from graph_builder import GraphBuilder

from fastrnn.compile import lowering
from fastrnn.graph import reference, validate
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.passes.conv_taps import drop_idle_taps
from fastrnn.runtime._executor import Program


def conv(size, taps, stride=1, dilation=1, pads=(0, 0)):
    """x [batch, 3, size] -> conv of `taps` taps."""
    b = GraphBuilder("conv")
    x = b.input("x", "float32", BATCH, 3, size)
    W = b.constant("W", np.random.default_rng(taps).standard_normal((5, 3, taps)).astype(np.float32))
    y = b.add("conv", x, W, strides=(stride,), dilations=(dilation,), pads=pads, groups=1)
    return b.done(y)


def answers(graph, x):
    (want,) = reference.run(graph, {"x": x})
    y = np.empty(want.shape, np.float32)
    Program(lowering.lower(graph, "run", lowering.Weights())).run([x], [y], len(x), 1)
    return want, y


def left(graph):
    node = graph.nodes[0]
    return graph.values[node.inputs[1]].dims[2], node.attrs["pads"]


@pytest.mark.parametrize(
    ("settings", "taps", "pads"),
    [
        (dict(size=1, taps=3, pads=(1, 1)), 1, (0, 0)),
        (dict(size=2, taps=3, stride=2, pads=(1, 1)), 2, (0, 1)),
        (dict(size=2, taps=7, dilation=2, pads=(6, 6)), 1, (0, 0)),
        (dict(size=1, taps=7, dilation=2, pads=(6, 6)), 1, (0, 0)),
        (dict(size=4, taps=5, pads=(4, 0)), 4, (3, 0)),
        (dict(size=1, taps=4, pads=(3, 0)), 1, (0, 0)),
        (dict(size=1, taps=4, pads=(0, 3)), 1, (0, 0)),
        (dict(size=5, taps=3, pads=(0, 0)), 3, (0, 0)),
    ],
)
def test_idle_taps_leave(settings, taps, pads):
    graph = conv(**settings)
    after = drop_idle_taps(graph)
    assert left(validate(after)) == (taps, pads)
    assert (after is graph) == (left(graph) == (taps, pads))
    x = np.random.default_rng(3).standard_normal((2, 3, settings["size"])).astype(np.float32)
    (want, y), (again, now) = answers(graph, x), answers(after, x)
    assert np.abs(want - again).max() < 1e-13
    assert np.array_equal(y, now)


def test_every_small_convolution_answers_as_before():
    rng = np.random.default_rng(11)
    changed = 0
    for _ in range(300):
        size, taps, stride, dilation = (int(rng.integers(1, n)) for n in (6, 6, 4, 4))
        pads = tuple(int(p) for p in rng.integers(0, 9, 2))
        if size + sum(pads) < dilation * (taps - 1) + 1:
            continue
        graph = conv(size, taps, stride, dilation, pads)
        after = drop_idle_taps(graph)
        changed += after is not graph
        x = rng.standard_normal((1, 3, size)).astype(np.float32)
        (before,), (now,) = (reference.run(g, {"x": x}) for g in (graph, validate(after)))
        assert before.shape == now.shape
        assert np.abs(before - now).max() < 1e-13  # another order of summation
    assert changed > 50


def test_an_axis_of_free_size_keeps_its_taps():
    graph = conv(TIME, 3, pads=(1, 1))
    assert drop_idle_taps(graph) is graph
