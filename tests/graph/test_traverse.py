"""Walks over a graph: what values depend on, parts of a graph, names that are free."""

import numpy as np
import pytest
from graph_builder import GraphBuilder

from fastrnn.graph import reference, validate
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.graph.traverse import free_inputs, fresh, needed, roots, subgraph


@pytest.fixture(scope="module")
def graph():
    """a, b -> s = a + b -> y = -s; z = w * b; the running sum of s by a state."""
    g = GraphBuilder("walks")
    a, b = (g.input(name, "float32", TIME, BATCH, 2) for name in "ab")
    w = g.constant("w", np.full((2,), 3, np.float32))
    s = g.add("binary", a, b, name="s", fn="add")
    g.add("unary", s, name="y", fn="neg", alpha=0.0, beta=0.0)
    g.add("binary", w, b, name="z", fn="mul")
    g.values["sum"] = g.values[s]
    g.add("state", "sum", name="before")
    g.add("binary", "before", s, name="sum", fn="add")
    return g.done("y", "z", "sum")


def made(nodes):
    return [n.outputs[0] for n in nodes]


def test_needed_nodes_come_in_the_order_of_the_graph(graph):
    assert made(needed(graph, ["y"])) == ["s", "y"]
    assert made(needed(graph, ["z", "y"])) == ["s", "y", "z"]
    assert made(needed(graph, ["a", "w"])) == []


def test_a_cycle_is_needed_as_a_whole(graph):
    assert made(needed(graph, ["before"])) == ["s", "before", "sum"]


def test_needed_nodes_end_at_values_that_are_given(graph):
    assert made(needed(graph, ["y"], given=["s"])) == ["y"]
    assert made(needed(graph, ["s"], given=["s"])) == []


def test_only_the_inputs_that_matter_are_followed(graph):
    found = needed(graph, ["sum"], makers=graph.producers(), reads=lambda node: node.inputs[:1])
    assert made(found) == ["before", "sum"]


def test_free_inputs_are_what_nodes_read_and_do_not_make(graph):
    assert free_inputs(graph.nodes) == ("a", "b", "w")
    assert free_inputs(needed(graph, ["y"], given=["s"])) == ("s",)
    assert free_inputs(()) == ()


@pytest.mark.parametrize(("name", "expected"), [("y", "ab"), ("z", "b"), ("a", "a"), ("w", ""), ("before", "ab")])
def test_roots_are_the_inputs_that_a_value_depends_on(graph, name, expected):
    assert roots(graph, name) == set(expected)


def test_a_subgraph_is_a_graph_of_its_own(graph):
    part = validate(subgraph(graph, ["s"], ["y"]))
    assert made(part.nodes) == ["y"]
    assert not part.constants
    (y,) = reference.run(part, {"s": np.ones((2, 1, 2))})
    np.testing.assert_array_equal(y, -np.ones((2, 1, 2)))
    assert set(subgraph(graph, ["b"], ["z"]).constants) == {"w"}
    assert set(subgraph(graph, [], ["w"]).constants) == {"w"}


def test_a_fresh_name_is_in_none_of_the_collections():
    assert fresh("a", {"b"}) == "a"
    assert fresh("a", {"a", "a'"}) == "a''"
    assert fresh("a", {"a"}, {"a_": 1}, mark="_") == "a__"
