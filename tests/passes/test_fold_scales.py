"""Scales and shifts of channels become weights of the convolution before them, and only those."""

import numpy as np
import pytest
from graph_builder import GraphBuilder

from fastrnn.graph import reference, validate
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.passes.conv_scale import fold_scales


def real(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv(b, op, rank, groups, bias):
    """[batch, 4, .., time] -> 6 channels."""
    x = b.input("x", "float32", BATCH, 4, *[5] * (rank - 1), TIME)
    shape = (6, 4 // groups) if op == "conv" else (4, 6 // groups)
    W = b.constant("W", real(1, *shape, *[3] * rank))
    attrs = {"strides": (1,) * rank, "dilations": (1,) * rank, "pads": (1,) * 2 * rank, "groups": groups}
    attrs |= {"output_padding": (0,) * rank} if op == "conv_transpose" else {}
    return b.add(op, x, W, *([b.constant("bias", real(2, 6))] if bias else []), name="conv", **attrs)


@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rank", "groups"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_batch_norm_is_folded(op, bias, rank, groups):
    b = GraphBuilder("norm")
    y = conv(b, op, rank, groups, bias)
    ones = (1,) * rank
    y = b.add("binary", b.constant("mean", real(3, 6, *ones)), y, fn="add")
    y = b.add("binary", y, b.constant("scale", real(4, 1, 6, *ones)), fn="mul")
    y = b.add("binary", y, b.constant("half", np.float32([0.5])), fn="mul")
    graph = b.done(b.add("binary", y, b.constant("shift", real(5, 6, *ones)), fn="add"))
    after = validate(fold_scales(graph))
    assert [n.op for n in after.nodes] == [op]
    assert "folded 4 scales and shifts of channels into 1 convolutions" in after.notes
    feeds = {"x": real(6, 2, 4, *[5] * (rank - 1), 7)}
    np.testing.assert_allclose(*(reference.run(g, feeds)[0] for g in (graph, after)), rtol=1e-5, atol=1e-6)
    assert fold_scales(after) is after


def folds(y_of, rank=2):
    """Whether what y_of(builder, convolution) adds after a convolution is folded into it."""
    b = GraphBuilder("others")
    graph = b.done(*y_of(b, conv(b, "conv", rank, 1, True)))
    return fold_scales(graph) is not graph


def test_what_is_no_scale_of_channels_stays():
    def by(fn, *shape):
        return lambda b, y: [b.add("binary", y, b.constant("c", real(3, *shape)), fn=fn)]

    assert folds(by("mul", 6, 1, 1))
    assert not folds(by("sub", 6, 1, 1))
    assert not folds(by("mul", 6, 5, 1))
    assert not folds(by("add", 1, 5, 1))
    assert not folds(lambda b, y: [b.add("binary", y, b.input("live", "float32", 6, 1, 1), fn="mul")])


def test_a_value_that_others_read_stays():
    def scaled(b, y):
        return b.add("binary", y, b.constant("c", real(3, 6, 1, 1)), fn="mul")

    assert not folds(lambda b, y: [y, scaled(b, y)])
    assert not folds(lambda b, y: [b.add("binary", scaled(b, y), y, fn="add")])
    assert not folds(lambda b, y: [b.add("binary", y, y, fn="mul")])
