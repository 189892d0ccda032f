"""Passes keep the meaning, do what they say, and find nothing more the second time."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_builder import GraphBuilder
from onnx import numpy_helper

from fastrnn import passes
from fastrnn.graph import reference, validate
from fastrnn.importers.onnx import import_onnx
from fastrnn.model import Model
from fastrnn.passes.along_time import cut_runs, step_sums
from fastrnn.passes.dead import remove_dead_nodes
from fastrnn.passes.linear import fuse_linear
from fastrnn.passes.moves import _MoveEditor, simplify_moves

DATA = Path(__file__).resolve().parents[1] / "data"
FILES = [e["file"] for e in json.loads((DATA / "manifest.json").read_text()) if "golden" in e]


def graph_of(signature, body, **constants):
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {signature} {{ {body} }}')
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return import_onnx(made)


def noise(*shape):
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def ops(graph):
    return [n.op for n in graph.nodes]


def same_answers(before, after, **feeds):
    validate(after)
    for a, b in zip(reference.run(before, feeds), reference.run(after, feeds), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FILES[::6])
def test_a_second_run_changes_nothing(name):
    once = passes.run(import_onnx(DATA / name))
    twice = passes.run(once)
    assert twice.nodes == once.nodes
    assert twice.notes == once.notes


@pytest.mark.parametrize("standard", passes.standard_passes, ids=lambda p: p.__name__)
@pytest.mark.parametrize("name", FILES[::12])
def test_each_pass_alone_gives_a_valid_graph(standard, name):
    raw = import_onnx(DATA / name)
    graph = validate(standard(raw))
    assert (graph.inputs, graph.outputs, graph.states) == (raw.inputs, raw.outputs, raw.states)
    assert graph.nodes == raw.nodes or len(graph.notes) > len(raw.notes)


def test_dead_nodes_outputs_and_constants_leave():
    signature = "(float[t,b,3] x) => (float[1,b,2] h)"
    graph = graph_of(
        signature,
        "y, h = RNN <hidden_size = 2> (x, W, R)",
        W=noise(1, 2, 3),
        R=noise(1, 2, 2),
    )
    dead = graph.nodes[0].__class__("unary", "dead", ("x",), ("d",), {"fn": "abs", "alpha": 0.0, "beta": 0.0})
    value = graph.values["x"].__class__("d", "float32", graph.values["x"].dims)
    spare = graph.values["x"].__class__("spare", "float32", (2,))
    fuller = graph.replace(
        nodes=(*graph.nodes, dead),
        values={**graph.values, "d": value, "spare": spare},
        constants={**graph.constants, "spare": np.zeros(2, np.float32)},
    )
    after = remove_dead_nodes(validate(fuller))
    assert [n.name for n in after.nodes] == [n.name for n in graph.nodes]
    assert "spare" not in after.constants
    assert "d" not in after.values
    assert after.notes[-1] == "removed 1 dead nodes"


LINEAR = {
    "with bias and activation": ("m = MatMul(x, W) a = Add(m, b) y = Tanh(a)", ["linear"], "tanh"),
    "bias first": ("m = MatMul(x, W) a = Add(b, m) y = Relu(a)", ["linear"], "relu"),
    "without bias": ("m = MatMul(x, W) y = Sigmoid(m)", ["linear"], "sigmoid"),
    "alone": ("y = MatMul(x, W)", ["linear"], None),
    "a bias of two axes": ("m = MatMul(x, W) y = Add(m, bb)", ["linear"], None),
    "another reader of the product": (
        "m = MatMul(x, W) a = Tanh(m) y = Mul(a, m)",
        ["linear", "unary", "binary"],
        None,
    ),
    "a matrix is no bias": ("m = MatMul(x, W) y = Add(m, full)", ["linear", "binary"], None),
    "a live matrix": ("t = Transpose <perm = [1, 0]> (x) y = MatMul(t, x)", ["transpose", "matmul"], None),
    "Gemm": ("a = Gemm <transB = 1> (x, V, b) y = Elu <alpha = 0.5> (a)", ["linear"], "elu"),
}


@pytest.mark.parametrize("case", LINEAR)
def test_fuse_linear(case):
    body, want, activation = LINEAR[case]
    all_of = {"W": noise(3, 5), "V": noise(5, 3), "b": noise(5), "bb": noise(1, 5), "full": noise(4, 5)}
    used = {k: v for k, v in all_of.items() if f" {k})" in body or f" {k}," in body or f"({k}," in body}
    graph = graph_of("(float[4,3] x) => (float[n,m] y)", body, **used)
    after = remove_dead_nodes(fuse_linear(graph))
    assert ops(after) == want
    if "linear" in want:
        assert after.nodes[0].attrs["activation"] == activation
    if case == "Gemm":
        assert after.nodes[0].attrs["alpha"] == 0.5
    same_answers(graph, after, x=noise(4, 3))


MOVES = {
    "transposes that cancel": (
        "a = Transpose <perm = [1, 0, 2]> (x) r = Relu(x) b = Transpose <perm = [1, 0, 2]> (a) y = Add(b, r)",
        [],
    ),
    "transposes that merge": (
        "a = Transpose <perm = [1, 0, 2]> (x) y = Transpose <perm = [0, 2, 1]> (a)",
        ["transpose"],
    ),
    "reshapes that merge": ("a = Unsqueeze(x, i0) b = Squeeze(a, i0) c = Unsqueeze(b, i1) y = Neg(c)", ["reshape"]),
    "a transpose of ones": ("a = Unsqueeze(x, i1) b = Transpose <perm = [1, 0, 2, 3]> (a) y = Neg(b)", ["reshape"]),
    "a transpose that moves": ("y = Transpose <perm = [2, 0, 1]> (x)", ["transpose"]),
    "rows folded around a product": (
        """a = Reshape(x, rows) m = MatMul(a, W) n = Add(m, bias)
           s = Shape(x) l = Slice(s, i0, i2, i0) k = Concat <axis = 0> (l, five) y = Reshape(n, k)""",
        [],
    ),
    "both directions": (
        """f = Unsqueeze(x, i1) g = Neg(f) c = Concat <axis = 1> (f, g)
           t = Transpose <perm = [0, 2, 1, 3]> (c) y = Reshape(t, merged)""",
        ["reshape", "reshape", "concat"],
    ),
}


@pytest.mark.parametrize("case", MOVES)
def test_simplify_moves(case):
    body, want = MOVES[case]
    constants = {
        "i0": np.int64([0]),
        "i1": np.int64([1]),
        "i2": np.int64([2]),
        "five": np.int64([5]),
        "rows": np.int64([-1, 3]),
        "merged": np.int64([0, 0, -1]),
        "W": noise(3, 5),
        "bias": noise(5),
    }
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    graph = graph_of("(float[t,b,3] x) => (float[n,m,k] y)", body, **{k: v for k, v in constants.items() if k in words})
    after = remove_dead_nodes(simplify_moves(graph))
    moves = [op for op in ops(after) if op in ("transpose", "reshape", "concat")]
    if case == "both directions":
        assert "transpose" not in moves
        assert moves.count("concat") == 1
    else:
        assert moves == want
    same_answers(graph, after, x=noise(4, 2, 3))


def test_bidirectional_outputs_become_one_concat():
    graph = passes.run(import_onnx(DATA / "onnx" / "bigru_stacked.dynamo.onnx"))
    assert ops(graph) == ["cell", "cell", "concat", "cell", "cell", "concat", "linear"]
    assert all(n.attrs["axis"] == 2 for n in graph.nodes if n.op == "concat")


def test_keras_dense_keeps_batch_and_time_apart():
    graph = passes.run(import_onnx(DATA / "onnx" / "keras_gru_before.tf2onnx.onnx"))
    assert ops(graph) == ["transpose", "cell", "transpose", "linear"]


@pytest.mark.parametrize(
    ("signature", "index", "offsets", "cuts"),
    [
        ("(float[b,t,2] x) => (float[b,u,v,2] y)", "Unsqueeze(r, zero)", [[0]], 1),
        ("(float[b,t,2] x) => (float[b,u,v,2] y)", "Unsqueeze(r, zero)", [[0], [1], [2]], 3),
        ("(float[b,t,2] x) => (float[b,u,v,2] y)", "Unsqueeze(r, one)", [[0, 1, 2]], 3),
        ("(float[b,t,2] x) => (float[b,u,v,2] y)", "Unsqueeze(r, zero)", [[0], [4]], 0),  # beyond the padding
    ],
)
def test_lookups_by_step_numbers_are_cuts(signature, index, offsets, cuts):
    """torch's Unfold: x[t + 0], x[t + 1].. for every t, of a sequence with two steps of padding before it."""
    body = f"""s = Shape(x) n = Gather(s, single) r = Range(start, n, single) u = {index} i = Add(u, offsets)
        p = Pad(x, pads) y = Gather <axis = 1> (p, i)"""
    numbers = {"zero": np.int64([0]), "one": np.int64([1]), "single": np.int64(1), "start": np.int64(0)}
    graph = graph_of(signature, body, offsets=np.int64(offsets), pads=np.int64([0, 2, 0, 0, 0, 0]), **numbers)
    after = cut_runs(graph)
    assert ops(after).count("slice") == cuts
    assert (len(ops(graph)) == len(ops(after))) == (cuts == 0)
    if cuts:
        same_answers(graph, after, x=noise(2, 7, 2))
        same_answers(graph, after, x=noise(3, 2, 2))
    assert cut_runs(after) == after


def test_a_sequence_looked_up_by_step_numbers_streams():
    """Before, this was refused: it picks steps by index."""
    body = """s = Shape(x) n = Gather(s, single) r = Range(start, n, single) u = Unsqueeze(r, zero) i = Add(u, offsets)
        p = Pad(x, pads) w = Gather <axis = 1> (p, i) y = ReduceSum <keepdims = 0> (w, one)"""
    numbers = {"zero": np.int64([0]), "one": np.int64([1]), "single": np.int64(1), "start": np.int64(0)}
    offsets = {"offsets": np.int64([[0], [1], [2]]), "pads": np.int64([0, 2, 0, 0, 0, 0])}
    model = Model(graph_of("(float[b,t,2] x) => (float[b,t,2] y)", body, **offsets, **numbers))
    x, stream = noise(1, 9, 2), model.stream()
    assert np.stack([stream.step(row) for row in x[0]]).tobytes() == model(x)[0].tobytes()


@pytest.mark.parametrize(("axis", "exclusive"), [(1, 0), (1, 1), (-2, 0), (2, 0)])
def test_running_sums_over_time_stream(axis, exclusive):
    """A cumulative norm's sums; over features they are left as they are. Before, they were refused."""
    body = f"y = CumSum <exclusive = {exclusive}> (x, axis)"
    graph = graph_of("(float[b,t,3] x) => (float[b,t,3] y)", body, axis=np.int64(axis))
    after = step_sums(graph)
    assert ("state" in ops(after)) == (axis != 2)
    same_answers(graph, after, x=noise(2, 7, 3))
    model, x = Model(graph), noise(2, 70, 3)
    want = x if axis == 2 else x.swapaxes(1, 2)
    want = np.cumsum(want, -1, dtype=np.float32).astype(np.float32)
    want = want if axis == 2 else want.swapaxes(1, 2)
    if exclusive:
        want = np.concatenate([np.zeros_like(want[:, :1]), want[:, :-1]], 1)
    np.testing.assert_allclose(model(x), want, rtol=1e-5, atol=1e-5)
    stream = model.stream(batch_size=2)
    parts = [stream.push(x[:, a:b]) for a, b in ((0, 1), (1, 1), (1, 40), (40, 70))]
    assert np.concatenate(parts, 1).tobytes() == model(x).tobytes()


def test_running_sums_from_the_end_need_the_future():
    body = "y = CumSum <reverse = 1> (x, axis)"
    graph = graph_of("(float[b,t,3] x) => (float[b,t,3] y)", body, axis=np.int64(1))
    assert step_sums(graph) == graph
    assert not Model(graph).streamable


def test_moves_are_tried_again_only_where_something_changed(monkeypatch):
    tried = []
    rule = _MoveEditor._rule
    monkeypatch.setattr(_MoveEditor, "_rule", lambda self, node: tried.append(node) or rule(self, node))
    counts = []
    for layers in (20, 80):
        make, x = GraphBuilder("moves"), "x"
        make.input("x", "float32", 2, 3, 5)
        for _ in range(layers):
            x = make.add("transpose", x, perm=(0, 2, 1))
            x = make.add("unary", make.add("reshape", x, dims=(2, 5, 3)), fn="neg", alpha=0.0, beta=0.0)
            x = make.add("reshape", make.add("transpose", x, perm=(0, 2, 1)), dims=(2, 3, 5))
        graph = make.done(x)
        tried.clear()
        after = simplify_moves(graph)
        counts.append(len(tried))
        assert ops(after) == ["transpose", *["unary"] * layers, "transpose"]
        same_answers(graph, after, x=noise(2, 3, 5))
    assert counts[1] < 5 * counts[0]
