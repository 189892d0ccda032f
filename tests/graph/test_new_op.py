"""A new op needs a row and a lowering, nothing else: one is added here and goes through every stage.

docs/extending.md walks through the same op.
"""

import numpy as np
import pytest
from graph_builder import GraphBuilder

import fastrnn
from fastrnn.compile.lowering.base import lowers
from fastrnn.errors import ModelFormatError, ShapeError, UnsupportedError
from fastrnn.graph import OPS, Node, artifact, reference, validate, vocabulary
from fastrnn.graph import dims as D
from fastrnn.graph.cells import CellSpec
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.graph.shapes import check_axis
from fastrnn.graph.vocabulary import BOOL, INT, ROWS, Meeting, graph_op
from fastrnn.model import Model
from fastrnn.streaming.conditions import problems

RNG = np.random.default_rng(13)


def _swap_dims(inputs, attrs):
    (x,) = inputs
    check_axis(x, attrs["axis"])
    if isinstance(x.dims[attrs["axis"]], int) and x.dims[attrs["axis"]] % 2:
        raise ShapeError(f"axis {attrs['axis']} of {x} has no halves")
    return [(x.dtype, x.dims)]


def swap_halves(x, axis, negate):
    """The two halves of `axis`, the second one first; negate: with the other sign."""
    first, second = np.split(x, 2, axis)
    return np.concatenate([second, -first if negate else first], axis)


def _lower_swap(low, node):
    x, axis = low.tensor(node.inputs[0]), node.attrs["axis"]
    y, half = low.result(node), D.exact_div(x.dims[axis], 2)
    if half is None:
        raise UnsupportedError(f"halves of {x.dims[axis]} elements")
    for source, target in ((half, 0), (0, half)):
        low.copy(x.narrow(axis, source, half), y.narrow(axis, target, half), node.name)


@pytest.fixture(autouse=True)
def op():
    """The vocabulary with swap_halves in it."""
    meets = Meeting(lambda attrs, rank: (attrs["axis"],), "swaps halves of all {all}")
    attrs = {"axis": INT, "negate": BOOL.or_lacking(False)}
    graph_op("swap_halves(x)", attrs=attrs, dims=_swap_dims, meets=meets)(swap_halves)
    lowers("swap_halves")(_lower_swap)
    yield
    del ROWS["swap_halves"], lowers["swap_halves"]


def graph_with(axis=2, dims=(TIME, BATCH, 6)):
    """x -> swap_halves -> GRU 6->4 -> relu -> swap_halves"""
    g = GraphBuilder("swapped")
    x = g.input("x", "float32", *dims)
    if dims == (TIME, BATCH, 6):
        W, R = (g.constant(name, RNG.standard_normal((12, n)).astype(np.float32)) for name, n in (("W", 6), ("R", 4)))
        y, _, _ = g.add(
            "cell", g.add("swap_halves", x, axis=axis), W, R, outputs=("y", None, None), spec=CellSpec("gru", 6, 4)
        )
        x = g.add("unary", y, fn="relu", alpha=0.0, beta=0.0)
    return g.done(g.add("swap_halves", x, name="out", axis=axis))


def test_it_is_in_the_vocabulary():
    assert "swap_halves" in OPS
    assert "swap_halves(x; axis, negate) -> y\n    The two halves of `axis`" in vocabulary.describe()


@pytest.mark.parametrize(
    ("inputs", "attrs", "text"),
    [
        (("x", "x"), {"axis": 0}, "swap_halves with 2 inputs"),
        ((None,), {"axis": 0}, "a required input of swap_halves is absent"),
        (("x",), {}, r"has attributes \[\], expected \['axis'\]"),
        (("x",), {"axis": 0, "along": 1}, "has attributes"),
        (("x",), {"axis": 3}, "axis 3 of"),
        (("x",), {"axis": 1}, "has no halves"),
    ],
)
def test_its_form_is_checked(inputs, attrs, text):
    g = GraphBuilder("wrong")
    g.values["y"] = g.values[g.input("x", "float32", 2, 3)]
    g.nodes.append(Node("swap_halves", "n", inputs, ("y",), attrs))
    with pytest.raises((ModelFormatError, ShapeError), match=text):
        g.done("y")


def test_it_is_computed_as_the_reference_says():
    graph = graph_with(axis=0, dims=(4, 3))
    x = RNG.standard_normal((4, 3)).astype(np.float32)
    expected = x[[2, 3, 0, 1]]
    np.testing.assert_array_equal(reference.run(graph, {"x": x})[0], expected)
    np.testing.assert_array_equal(Model(graph).run(x)[0], expected)


def test_a_model_with_it_runs_and_streams_with_the_same_bits():
    graph = graph_with()
    model = Model(graph)
    x = RNG.standard_normal((9, 2, 6)).astype(np.float32)
    (whole,) = model.run(x)
    (exact,) = reference.run(graph, {"x": x})
    np.testing.assert_allclose(whole, exact, rtol=1e-5, atol=1e-6)
    stream = model.stream(batch_size=2)
    steps = [stream.step(np.ascontiguousarray(x[t])) for t in range(3)]
    chunk = stream.push(np.ascontiguousarray(x[3:].transpose(1, 0, 2)))
    np.testing.assert_array_equal(np.stack(steps), whole[:3])
    np.testing.assert_array_equal(chunk.transpose(1, 0, 2), whole[3:])
    np.testing.assert_array_equal(model.run(x, lengths=[9, 4])[0][:4], whole[:4])


def test_it_is_on_a_cycle():
    g = GraphBuilder("cycle")
    x = g.input("x", "float32", TIME, BATCH, 4)
    g.values["sum"] = g.values[x]
    turned = g.add("swap_halves", g.add("state", "sum", name="before"), axis=2)
    g.add("binary", turned, x, name="sum", fn="add")
    model = Model(g.done("sum"))
    x = RNG.standard_normal((5, 1, 4)).astype(np.float32)
    (whole,) = model.run(x)
    np.testing.assert_allclose(whole, reference.run(model.graph, {"x": x})[0], rtol=1e-6, atol=1e-6)
    stream = model.stream()
    np.testing.assert_array_equal([stream.step(x[t, 0]) for t in range(5)], whole[:, 0])


def test_halves_of_time_need_the_future():
    timed = graph_with(axis=1, dims=(BATCH, TIME, 6))
    assert problems(timed) == ["node node_out (swap_halves): swaps halves of all steps"]
    mixed = graph_with(axis=0, dims=(BATCH, TIME, 6))
    assert problems(mixed) == ["node node_out (swap_halves): swaps halves of all rows of the batch"]
    with pytest.raises(UnsupportedError, match=r"node node_out \(swap_halves\): halves of time elements"):
        Model(timed)


def test_it_is_saved_and_loaded(tmp_path):
    graph = graph_with()
    model = Model(graph)
    path = tmp_path / "swapped.fastrnn"
    artifact.save(model.graph, path)
    again = fastrnn.load(path)
    assert str(again.graph) == str(model.graph)
    x = RNG.standard_normal((4, 1, 6)).astype(np.float32)
    np.testing.assert_array_equal(again.run(x)[0], model.run(x)[0])
    text = artifact.graph_to_json(model.graph).replace('{"axis":2}', '{"axis":"2"}')
    with pytest.raises(ModelFormatError, match="swap_halves: attribute axis is '2'"):
        artifact._graph_from_json(text, dict(model.graph.constants))
    row = ROWS.pop("swap_halves")
    try:
        with pytest.raises(ModelFormatError, match="unknown op 'swap_halves'"):
            fastrnn.load(path)
    finally:
        ROWS["swap_halves"] = row
    validate(model.graph)
