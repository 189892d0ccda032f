"""Sizes that a graph requires, and those that a caller fixes."""

import numpy as np
import pytest
from graph_builder import GraphBuilder

from fastrnn import artifact, reference
from fastrnn.dims import BATCH, symbol
from fastrnn.errors import ModelFormatError, ShapeError
from fastrnn.graph import validate
from fastrnn.model import Model
from fastrnn.passes.sizes import fix_sizes
from fastrnn.shapes import windows

SIZE = symbol("size")


def framed():
    """[batch, size] -> the mean of the one window of 8 that fits, with steps of 4."""
    b = GraphBuilder("framed")
    b.input("x", "float32", BATCH, SIZE)
    b.add("reshape", "x", name="row", dims=(BATCH, 1, SIZE))
    b.add("pool", "row", name="p", fn="mean", kernel=(8,), strides=(4,), pads=(0, 0), dilations=(1,), ceil=False,
          count_include_pad=False)  # fmt: skip
    b.add("slice", "p", name="first", axis=2, start=0, stop=1, step=1)
    b.add("reshape", "first", name="y", dims=(BATCH,))
    return validate(b.done("y").replace(requires=((windows(SIZE, 8, 4), 1),)))


def test_a_required_size_is_checked_saved_and_fixed(tmp_path):
    graph = framed()
    assert "where  (size)//4-1 = 1" in str(graph)
    artifact.save(graph, tmp_path / "m.fastrnn")
    assert artifact.load(tmp_path / "m.fastrnn").requires == graph.requires
    x = np.arange(20, dtype=np.float64).reshape(2, 10)
    expected = x[:, :8].mean(1)
    np.testing.assert_array_equal(reference.run(graph, {"x": x})[0], expected)
    with pytest.raises(ShapeError, match=r"size = 12 makes \(size\)//4-1 2"):
        reference.run(graph, {"x": np.zeros((1, 12))})
    fixed = fix_sizes(graph, {"size": 10})
    assert fixed.values["x"].dims == (BATCH, 10)
    assert fixed.requires == ()
    np.testing.assert_array_equal(reference.run(fixed, {"x": x})[0], expected)


def test_sizes_that_can_not_be_fixed():
    with pytest.raises(ShapeError, match="makes"):
        fix_sizes(framed(), {"size": 7})
    with pytest.raises(ShapeError, match="no input has the size 'length'; there are batch, size"):
        fix_sizes(framed(), {"length": 7})
    assert fix_sizes(framed(), {"batch": 3}).requires == framed().requires


def test_what_no_input_tells_can_not_be_required():
    for requires in (((symbol("other"), 1),), ((3, 3),), ((SIZE, "1"),)):
        with pytest.raises(ModelFormatError, match="which no input's size tells"):
            validate(framed().replace(requires=requires))


def test_a_size_at_which_a_node_has_no_meaning_names_it():
    b = GraphBuilder("cut")
    b.input("x", "float32", BATCH, SIZE)
    b.add("slice", "x", name="y", axis=1, start=3, stop=SIZE - 2, step=1)
    model = Model(b.done("y"))
    assert model.run(np.ones((2, 6), np.float32))[0].shape == (2, 1)
    with pytest.raises(ShapeError, match=r"cut: node node_y \(slice\) would make y.*, but size is 4: give others"):
        model.run(np.ones((2, 4), np.float32))
