"""A patch: nodes replaced, dropped and added, in a graph that stays as it was."""

import numpy as np
import pytest
from graph_builder import GraphBuilder

from fastrnn.graph import Node, reference, validate
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.passes.patch import Patch


@pytest.fixture
def graph():
    """y = tanh(-x)"""
    g = GraphBuilder("patched")
    x = g.input("x", "float32", TIME, BATCH, 2)
    n = g.add("unary", x, name="n", fn="neg", alpha=0.0, beta=0.0)
    g.add("unary", n, name="y", fn="tanh", alpha=0.0, beta=0.0)
    return g.done("y")


def test_a_patch_without_changes_is_the_graph(graph):
    assert Patch(graph).done("nothing") is graph


def test_nodes_that_were_added_come_before_those_that_replace(graph):
    patch, (neg, tanh) = Patch(graph), graph.nodes
    two = patch.constant("two", np.array(2, np.float32))
    twice = patch.add("binary", ("n", two), {"fn": "mul"}, "node_n", "n")
    patch.replace(tanh, Node("unary", tanh.name, (twice,), tanh.outputs, tanh.attrs))
    changed = validate(patch.done("doubled"))
    assert [n.name for n in changed.nodes] == [neg.name, "node_n'", tanh.name]
    assert (twice, changed.values[twice].dims) == ("n'", (TIME, BATCH, 2))
    assert changed.notes == (*graph.notes, "doubled")
    x = np.linspace(-1, 1, 6).reshape(3, 1, 2)
    np.testing.assert_array_equal(reference.run(changed, {"x": x})[0], np.tanh(-2 * x))
    assert len(graph.nodes) == 2
    assert not graph.constants


def test_a_node_can_be_dropped(graph):
    patch, (neg, tanh) = Patch(graph), graph.nodes
    patch.replace(neg)
    patch.replace(tanh, Node("unary", tanh.name, ("x",), tanh.outputs, tanh.attrs))
    changed = validate(patch.done())
    assert [n.inputs for n in changed.nodes] == [("x",)]


def test_names_are_made_unique(graph):
    patch = Patch(graph)
    assert patch.declare("y", "float32", (2,)) == "y_"
    assert patch.declare("node_y", "float32", (2,)) == "node_y_"
    assert patch.constant("y", np.zeros(2, np.float32)) == "y'"
    assert patch.add("unary", ("x",), graph.nodes[0].attrs, "new") == "new"
    assert patch.made[-1].name == "new"
