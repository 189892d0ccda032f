"""A reshape and the one that undoes it are dropped around elementwise work with constants, and only there."""

import numpy as np
import pytest
from graph_builder import GraphBuilder

from fastrnn.graph import reference, validate
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.passes.reshaped import undo_reshapes


def real(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def norm(b, shape, middle, constants, unary=True):
    """shape -> middle -> shape, with a mul and an add by constants of these shapes in the middle."""
    x = b.input("x", "float32", *shape)
    y = b.add("reshape", x, dims=middle)
    y = b.add("binary", y, b.constant("scale", real(1, *constants[0])), fn="mul")
    if unary:
        y = b.add("unary", y, fn="tanh", alpha=0.0, beta=0.0)
    y = b.add("binary", b.constant("shift", real(2, *constants[1])), y, fn="sub")
    return b.add("reshape", y, dims=shape)


CASES = {
    "bands": ((BATCH, 6, 20, TIME), (BATCH, 24, 5, TIME), ((24, 1, 1), (1, 24, 1, 1))),
    "one number": ((BATCH, 6, 20, TIME), (BATCH, 24, 5, TIME), ((1,), ())),
    "merged": ((BATCH, 3, 4, TIME), (BATCH, 12, TIME), ((12, 1), (1, 1))),
    "split": ((BATCH, 12, TIME), (BATCH, 3, 4, TIME), ((4, 1), (3, 1, 1))),
    "batch and time": ((BATCH, TIME, 8), (BATCH * TIME, 8), ((8,), (1, 8))),
    "ones": ((BATCH, 5, TIME), (BATCH, 1, 5, 1, TIME, 1), ((5, 1, 1, 1), (1, 5, 1, 1, 1))),
}


@pytest.mark.parametrize("name", CASES)
def test_reshapes_are_undone(name):
    shape, middle, constants = CASES[name]
    b = GraphBuilder("norm")
    graph = b.done(norm(b, shape, middle, constants))
    after = validate(undo_reshapes(graph))
    assert [n.op for n in after.nodes] == ["binary", "unary", "binary"]
    assert "undid 1 reshapes around elementwise work with constants" in after.notes
    x = real(3, *(2 if d is BATCH else 7 if d is TIME else d for d in shape))
    for got, want in zip(*(reference.run(g, {"x": x}) for g in (after, graph)), strict=True):
        np.testing.assert_array_equal(got, want)
    assert undo_reshapes(after) is after


def test_a_constant_of_all_elements_alike_stays_small():
    b = GraphBuilder("small")
    shape, middle = (BATCH, 6, 20, TIME), (BATCH, 24, 5, TIME)
    y = b.add("reshape", b.input("x", "float32", *shape), dims=middle)
    c = np.repeat(np.arange(6, dtype=np.float32), 4).reshape(24, 1, 1)  # the same in all bands of a channel
    graph = b.done(b.add("reshape", b.add("binary", y, b.constant("c", c), fn="add"), dims=shape))
    after = validate(undo_reshapes(graph))
    (node,) = after.nodes
    assert after.constants[node.inputs[1]].shape == (1, 6, 1, 1)


def stays(build):
    b = GraphBuilder("stays")
    graph = b.done(*build(b))
    return undo_reshapes(graph) is graph


def test_what_stays():
    shape, middle = (BATCH, 6, 20, TIME), (BATCH, 24, 5, TIME)

    def other_shape(b):
        y = b.add("reshape", b.input("x", "float32", *shape), dims=middle)
        y = b.add("binary", y, b.constant("c", real(1, 24, 1, 1)), fn="mul")
        return [b.add("reshape", y, dims=(BATCH, 20, 6, TIME))]

    def read_twice(b):
        y = b.add("reshape", b.input("x", "float32", *shape), dims=middle)
        z = b.add("binary", y, b.constant("c", real(1, 24, 1, 1)), fn="mul")
        return [b.add("reshape", z, dims=shape), b.add("unary", z, fn="tanh", alpha=0.0, beta=0.0)]

    def an_output(b):
        y = b.add("reshape", b.input("x", "float32", *shape), dims=middle)
        z = b.add("binary", y, b.constant("c", real(1, 24, 1, 1)), fn="mul")
        return [b.add("reshape", z, dims=shape), z]

    def two_values(b):
        y = b.add("reshape", b.input("x", "float32", *shape), dims=middle)
        z = b.add("binary", y, b.input("u", "float32", *middle), fn="mul")
        return [b.add("reshape", z, dims=shape)]

    def across_time(b):  # one number for each element of merged axes of which one has no known size
        y = b.add("reshape", b.input("x", "float32", BATCH, TIME, 4, 6), dims=(BATCH, TIME * 4, 6))
        z = b.add("binary", y, b.constant("c", real(1, 6)), fn="mul")
        return [b.add("reshape", z, dims=(BATCH, TIME * 4, 6))]

    for build in (other_shape, read_twice, an_output, two_values, across_time):
        assert stays(build), build.__name__
