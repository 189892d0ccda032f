"""Zeros before a convolution become its pads, and only those."""

import numpy as np
import pytest
from graph_builder import GraphBuilder

from fastrnn.compile import lowering
from fastrnn.errors import UnsupportedError
from fastrnn.graph import reference, validate
from fastrnn.graph.dims import BATCH, TIME, symbol
from fastrnn.model import Model
from fastrnn.passes.conv_pads import fold_cuts, fold_pads
from fastrnn.runtime._executor import Program


def real(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def padded(pads, mode="constant", value=0.0, twice=False):
    """x [batch, 4, time] -> pad -> conv of 3 steps, itself padded by (1, 0)."""
    b = GraphBuilder("padded")
    x = b.add("pad", b.input("x", "float32", BATCH, 4, TIME), pads=pads, mode=mode, value=value)
    W = b.constant("W", real(1, 5, 4 + pads[1] + pads[4], 3))
    y = b.add("conv", x, W, strides=(2,), dilations=(1,), pads=(1, 0), groups=1)
    return b.done(y, *([b.add("unary", x, fn="tanh", alpha=0.0, beta=0.0)] if twice else []))


def run(graph, x):
    y = np.empty(reference.run(graph, {"x": x})[0].shape, np.float32)
    Program(lowering.lower(graph, "run", lowering.Weights())).run([x], [y], x.shape[0], x.shape[2])
    return y


@pytest.mark.parametrize("pads", [(0, 0, 2, 0, 0, 0), (0, 0, 1, 0, 0, 3)])
def test_zeros_are_folded_with_the_same_bits(pads):
    graph = padded(pads)
    after = validate(fold_pads(graph))
    assert [n.op for n in after.nodes] == ["conv"]
    assert after.nodes[0].attrs["pads"] == (1 + pads[2], pads[5])
    for length in (1, 2, 9, 40):
        x = real(length, 2, 4, length)
        assert np.array_equal(reference.run(graph, {"x": x})[0], reference.run(after, {"x": x})[0])
        assert run(graph, x).tobytes() == run(after, x).tobytes()
    assert fold_pads(after) is after


@pytest.mark.parametrize(
    "graph",
    [
        padded((0, 0, 2, 0, 0, 0), value=1.0),
        padded((0, 0, 2, 0, 0, 0), mode="edge"),
        padded((0, 0, -1, 0, 0, 0)),
        padded((0, 1, 2, 0, 0, 0)),
        padded((0, 0, 2, 0, 0, 0), twice=True),
    ],
    ids=["ones", "edge", "cut", "channels", "read twice"],
)
def test_other_pads_stay(graph):
    assert fold_pads(graph) is graph


def test_a_cut_beyond_the_end_is_no_padding():
    """The first 20 of a size that is only known at a run: not 20 with zeros behind those that are there."""
    b = GraphBuilder("cut")
    x = b.input("x", "float32", BATCH, 4, TIME, symbol("wide"))
    attrs = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 2), "groups": 1}
    y = b.add("conv", x, b.constant("W", real(1, 5, 4, 1, 3)), **attrs)
    model = Model(b.done(b.add("slice", y, axis=3, start=0, stop=20, step=1)))
    assert model.run(real(2, 1, 4, 2, 20))[0].shape == (1, 5, 2, 20)
    with pytest.raises(UnsupportedError, match=r"a slice \[0:20:1\] needs an axis that long, not 19"):
        model.run(real(2, 1, 4, 2, 19))
    with pytest.raises(UnsupportedError, match="needs an axis that long"):
        model.run(real(2, 1, 4, 2, 5))


def test_what_padding_added_is_cut_off_by_less_of_it():
    b = GraphBuilder("causal")
    x = b.input("x", "float32", BATCH, 4, 9)
    y = b.add("conv", x, b.constant("W", real(1, 5, 4, 3)), strides=(1,), dilations=(1,), pads=(2, 2), groups=1)
    graph = b.done(b.add("slice", y, axis=2, start=0, stop=9, step=1))
    (node,) = fold_cuts(graph).nodes
    assert node.attrs["pads"] == (2, 0)
