"""Gathers that take the same places of each row of a batch gather along an axis of their own, and only those."""

import numpy as np
import pytest
from graph_builder import GraphBuilder

from fastrnn.compile import lowering
from fastrnn.graph import reference, validate
from fastrnn.graph.dims import BATCH
from fastrnn.passes.gathered_rows import gathers_of_rows
from fastrnn.runtime._executor import Program
from fastrnn.streaming.conditions import problems

HEADS, QUERIES, PLACES, KEYS = 2, 3, 5, 4


def flat(places, groups=HEADS, of_row=1, spoil=None):
    """x [heads, batch, queries, places], whose element `places` [queries, keys] of each row is taken as exporters write
    it: by numbers of a flat list. of_row: how far the rows are apart, in rows. spoil: changes the number of the row."""
    b = GraphBuilder("gathered")
    x = b.input("x", "float32", groups, BATCH, QUERIES, PLACES)
    rows = b.add("steps", dims=(groups * BATCH,), start=0)
    if spoil is not None:
        rows = spoil(b, rows)
    width = b.constant("width", np.array(QUERIES * PLACES * of_row))
    first = b.add("reshape", b.add("binary", rows, width, fn="mul"), dims=(groups * BATCH, 1, 1))
    within = np.arange(QUERIES)[:, None] * PLACES + places
    index = b.add("binary", first, b.constant("within", within), fn="add")
    total = groups * BATCH * QUERIES * PLACES
    y = b.add("gather", b.add("reshape", x, dims=(total,)), index, axis=0)
    return b.done(b.add("reshape", y, dims=(groups, BATCH, QUERIES, places.shape[1])))


RELATIVE = np.arange(QUERIES - 1, -1, -1)[:, None] + np.arange(KEYS - 1)[None]  # each query sees its own distances


def run(graph, x):
    y = np.empty(reference.run(graph, {"x": x})[0].shape, np.float32)
    Program(lowering.lower(graph, "run", lowering.Weights())).run([x], [y], x.shape[1], 0)
    return y


@pytest.mark.parametrize("places", [RELATIVE, np.zeros((QUERIES, 1), int), np.array([[4, 0], [0, 0], [2, 4]])])
def test_places_within_rows_keep_the_rows_apart(places):
    graph = flat(places)
    assert any("batch" in p for p in problems(graph))
    after = validate(gathers_of_rows(graph))
    assert not any("batch" in p for p in problems(after))
    assert not any(n.op == "steps" for n in after.nodes)
    for batch in (1, 2, 7):
        x = np.random.default_rng(batch).standard_normal((HEADS, batch, QUERIES, PLACES)).astype(np.float32)
        assert np.array_equal(reference.run(graph, {"x": x})[0], reference.run(after, {"x": x})[0])
        assert run(graph, x).tobytes() == run(after, x).tobytes()
    assert gathers_of_rows(after) is after


def backwards(b, rows):
    last = b.add("reduce", rows, fn="max", axes=(0,), keepdims=False)
    return b.add("binary", last, rows, fn="sub")


def halved(b, rows):
    return b.add("binary", rows, b.constant("two", np.array(2)), fn="mod")


@pytest.mark.parametrize("spoil", [backwards, halved], ids=["rows in another order", "rows of the first two alone"])
def test_rows_that_meet_stay_as_they_are(spoil):
    graph = flat(RELATIVE, spoil=spoil)
    assert gathers_of_rows(graph) is graph


def test_places_that_an_input_names_stay():
    b = GraphBuilder("named")
    x, at = b.input("x", "float32", BATCH, 4), b.input("at", "int64", BATCH, 2)
    y = b.add("gather", b.add("reshape", x, dims=(4 * BATCH,)), at, axis=0)
    graph = b.done(y)
    assert gathers_of_rows(graph) is graph


def test_places_beyond_a_row_stay():
    graph = flat(np.full((QUERIES, 1), PLACES))  # the first of the next query's, and of the next row's
    assert gathers_of_rows(graph) is graph
