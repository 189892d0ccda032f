"""fastrnn.verify: agreement with onnxruntime and the reference, and that a difference is seen and reported."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import fastrnn
from fastrnn.graph import Graph, Node, Value
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.importers.shared.builder import GraphWriter
from fastrnn.insight.verification import SIZES, comparison, engines, inputs
from fastrnn.model import Model

DATA = Path(__file__).resolve().parents[1] / "data" / "onnx"


def difference(got, want, tolerance=1e-4):
    return comparison.difference("y", np.array(got, np.float32), np.array(want, np.float32), tolerance, "x [1]")


class TestDifference:
    def test_figures(self):
        found = difference([1.0, -4.0], [1.0, -2.0])
        assert (found.absolute, found.relative, found.ok) == (2.0, 1.0, False)
        assert found.where == "at x [1], element [1]: -4, expected -2"

    def test_equal_arrays_differ_by_nothing(self):
        found = difference([0.0, np.inf, np.nan], [0.0, np.inf, np.nan])
        assert (found.absolute, found.relative, found.ok) == (0.0, 0.0, True)

    @pytest.mark.parametrize(
        ("got", "want"), [(np.nan, 0.0), (0.0, np.nan), (np.inf, 1.0), (1.0, -np.inf), (np.inf, -np.inf)]
    )
    def test_a_nan_or_infinity_on_one_side_never_passes(self, got, want):
        found = difference([got, 1.0], [want, 1.0], tolerance=1e9)
        assert found.absolute == np.inf
        assert not found.ok

    @pytest.mark.parametrize(
        ("want", "gap", "ok"), [(0.0, 0.9e-4, True), (0.0, 1.1e-4, False), (9.0, 9e-4, True), (9.0, 11e-4, False)]
    )
    def test_tolerance_grows_with_the_expected_value(self, want, gap, ok):
        assert comparison.difference("y", np.array([want + gap]), np.array([want]), 1e-4, "").ok is ok

    def test_shapes_must_be_equal(self):
        found = difference([[1.0]], [1.0])
        assert not found.ok
        assert "shape [1, 1], expected [1]" in found.where

    def test_empty_arrays_agree(self):
        assert difference(np.zeros((0, 3)), np.zeros((0, 3))).ok

    def test_zero_expected_has_an_infinite_relative_difference(self):
        assert difference([1e-6], [0.0]).relative == np.inf

    def test_the_worst_of_several_runs_is_kept(self):
        small, large = difference([1.5], [1.0]), difference([3.0], [100.0])
        worst = comparison._worse(comparison._worse(None, small), large)
        assert (worst.absolute, worst.relative, worst.ok) == (97.0, 0.97, False)
        assert comparison._worse(large, small).absolute == 97.0


def graph(inputs, nodes=(), outputs=(), constants=None):
    values = {v.name: v for v in (*inputs, *outputs)}
    constants = constants or {}
    for name, array in constants.items():
        values[name] = Value(name, str(array.dtype), array.shape)
    return Graph("g", tuple(v.name for v in inputs), tuple(v.name for v in outputs), tuple(nodes), values, constants)


class TestRandomInputs:
    def test_dtypes_and_dims(self):
        g = graph([Value("x", "float32", (BATCH, TIME, 3)), Value("m", "bool", (2 * TIME,)), Value("n", "int64", ())])
        feeds = inputs.random_inputs(g, {"batch": 2, "time": 5}, np.random.default_rng(0))
        assert {k: (v.dtype.name, v.shape) for k, v in feeds.items()} == {
            "x": ("float32", (2, 5, 3)),
            "m": ("bool", (10,)),
            "n": ("int64", ()),
        }

    def test_the_same_seed_gives_the_same_inputs(self):
        g = graph([Value("x", "float32", (TIME,))])
        a, b, c = (inputs.random_inputs(g, {"time": 9}, np.random.default_rng(s))["x"] for s in (0, 0, 1))
        assert (a == b).all()
        assert (a != c).any()

    def test_integers_lie_within_the_table_that_they_index(self):
        """Also where they are cast and reshaped on their way, and where two tables differ in size."""
        ids = Value("ids", "int32", (BATCH, TIME))
        wide, flat = Value("wide", "int64", (BATCH, TIME)), Value("flat", "int64", (BATCH * TIME,))
        a, b = Value("a", "float32", (BATCH * TIME, 4)), Value("b", "float32", (BATCH, TIME, 4))
        nodes = [
            Node("cast", "n1", ("ids",), ("wide",), {"to": "int64"}),
            Node("reshape", "n2", ("wide",), ("flat",), {"dims": (BATCH * TIME,)}),
            Node("gather", "n3", ("small", "flat"), ("a",), {"axis": 0}),
            Node("gather", "n4", ("large", "wide"), ("b",), {"axis": 0}),
        ]
        tables = {"small": np.zeros((7, 4), np.float32), "large": np.zeros((50, 4), np.float32)}
        g = graph([ids], nodes, [wide, flat, a, b], tables)
        drawn = inputs.random_inputs(g, {"batch": 20, "time": 50}, np.random.default_rng(0))["ids"]
        assert set(np.unique(drawn)) == set(range(7))

    def test_unlimited_integers_are_small(self):
        drawn = inputs.random_inputs(graph([Value("n", "int64", (TIME,))]), {"time": 99}, np.random.default_rng(0))["n"]
        assert set(np.unique(drawn)) == {0, 1, 2, 3}


class TestSizes:
    class Other:
        title = "other"

        def __init__(self, **shapes):
            self.shapes = shapes

        def dims(self, name):
            return self.shapes.get(name)

    class Engine:
        def __init__(self, *inputs):
            self.graph = graph(inputs)

    def test_free_sizes_take_all(self):
        model = self.Engine(Value("x", "float32", (BATCH, TIME, 3)))
        found = comparison._environments(model, self.Other(x=("n", None, 3)), SIZES)
        assert [(e["batch"], e["time"]) for e in found] == list(SIZES)

    def test_a_frozen_length_is_kept(self):
        model = self.Engine(Value("x", "float32", (BATCH, TIME, 3)))
        found = comparison._environments(model, self.Other(x=("n", 19, 3)), SIZES)
        assert [(e["batch"], e["time"]) for e in found] == [(1, 19), (2, 19), (5, 19)]

    def test_a_frozen_file_runs_at_its_own_sizes_alone(self):
        model = self.Engine(Value("x", "float32", (BATCH, 2 * TIME + 1)))
        assert comparison._environments(model, self.Other(x=(1, 39)), SIZES) == [{"batch": 1, "time": 19}]

    def test_an_impossible_size_is_an_error(self):
        model = self.Engine(Value("x", "float32", (2 * TIME,)))
        with pytest.raises(fastrnn.ShapeError, match=r"input x: no size up to 4096 makes 2\*time the 3 of the file"):
            comparison._environments(model, self.Other(x=(3,)), SIZES)

    @pytest.mark.parametrize("theirs", [(2, 3), (2, 4, 4)])
    def test_disagreement_about_an_input_is_an_error(self, theirs):
        model = self.Engine(Value("x", "float32", (BATCH, 4, 5)))
        with pytest.raises(fastrnn.ShapeError, match="input x: other takes"):
            comparison._environments(model, self.Other(x=theirs), SIZES)


NAMES = ["gru_states.script", "language_model.script", "bigru_stacked.dynamo_frozen", "last_step.dynamo"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("against", ["onnxruntime", "reference"])
def test_models_answer_alike(name, against):
    report = fastrnn.verify(DATA / f"{name}.onnx", against)
    assert report.ok, str(report)
    assert report.runs
    assert not report.skipped
    assert all(0 <= out.absolute < 1e-5 for out in report.outputs)
    assert "answers like" in str(report)
    assert json.loads(report.to_json())["ok"] is True


def test_a_size_that_onnxruntime_refuses_is_skipped_and_told():
    """This file calls its time free, but the exporter has written 7 steps into a Reshape."""
    report = fastrnn.verify(DATA / "gru_states.dynamo.onnx", sizes=[(1, 7), (1, 4)])
    assert report.ok
    assert len(report.runs) == 1
    assert "x [7, 1, 6]" in report.runs[0]
    assert "x [4, 1, 6]" in report.skipped[0]
    assert "refused it" in str(report)


def test_a_length_that_onnxruntime_does_not_follow_is_skipped_and_told():
    """This nn.RNN was unrolled for 7 steps: onnxruntime answers 7 of them to 19, and refuses 3."""
    report = fastrnn.verify(DATA / "rnn_relu.dynamo.onnx", sizes=[(1, 7), (1, 19), (1, 3)])
    assert report.ok, str(report)
    assert len(report.runs) == 1
    assert any("answers as if axis 0 of y were 7 long, which the file has written into it" in s for s in report.skipped)


def searched(path, body, **constants):
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {body}')
    arrays = {"W": np.ones((1, 2, 3)), "R": np.eye(2)[None]}
    arrays = {k: v.astype(np.float32) for k, v in arrays.items()} | constants
    made.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    onnx.save(made, path)
    return path


def test_lengths_are_searched_where_windows_need_more_steps(tmp_path):
    """A front end of 400 samples; before, all four sizes were refused and that was an error."""
    body = """(float[b,1,t] x) => (float[n,1,b,2] y)
        { c = Conv <strides = [160]> (x, K) s = Transpose <perm = [2, 0, 1]> (c)
          y = RNN <hidden_size = 2> (s, W, R) }"""
    path = searched(tmp_path / "m.onnx", body, K=np.full((3, 1, 400), 0.01, np.float32))
    report = fastrnn.verify(path)
    assert report.ok, str(report)
    assert len(report.runs) == len(SIZES)
    assert not report.notes


def test_the_one_length_of_a_file_is_searched(tmp_path):
    """Open by its name, and 12 by its Reshape and its output."""
    body = """(float[t,b,3] x) => (float[12,b,2] z)
        { y = RNN <hidden_size = 2> (x, W, R) z = Reshape(y, to) }"""
    report = fastrnn.verify(searched(tmp_path / "m.onnx", body, to=np.int64([12, -1, 2])))
    assert report.ok, str(report)
    assert all(run.startswith("x [12, ") for run in report.runs)
    assert any("only time 12 was compared" in note for note in report.notes)


def of_six_steps(path):
    """A recurrence over x [6, b, 3], and nothing that says whether the 6 is meant."""
    made = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[6,b,3] x) => (float[6,1,b,2] y)
        { y, h = RNN <hidden_size = 2> (x, W, R) }"""
    )
    rng = np.random.default_rng(0)
    arrays = {"W": rng.standard_normal((1, 2, 3)), "R": rng.standard_normal((1, 2, 2))}
    made.graph.initializer.extend(onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items())
    onnx.save(made, path)
    return path


def test_that_only_the_own_length_was_compared_is_told(tmp_path):
    path = of_six_steps(tmp_path / "m.onnx")
    report = fastrnn.verify(path)
    assert report.ok
    only, assumed = report.notes
    assert only.startswith("only time 6 was compared: onnxruntime ")
    assert only.endswith("takes no other of this file")
    assert assumed.startswith(
        "that other sizes of time are right is an assumption, which this comparison can't prove: "
    )
    assert "the file has 6 written into it. An export with time as a dynamic axis could, and so could" in assumed
    assert all(text in str(report) for text in report.notes)
    assert "compared at batch 1, 2, 5; time 6" in str(report)
    assert report.as_dict()["compared"] == {"batch": (1, 2, 5), "time": (6,)}
    (assumed,) = fastrnn.verify(path, sizes=[(3, 6)]).notes
    assert "assumption" in assumed


def test_the_reference_proves_no_freed_length(tmp_path):
    """It runs what was read, at every length that this says is free."""
    path = of_six_steps(tmp_path / "m.onnx")
    report = fastrnn.verify(path, "reference")
    assert report.compared["time"] == (1, 3, 7, 19)
    (assumed,) = report.notes
    assert "can't prove: fastrnn's float64 reference runs fastrnn's own reading of the file" in assumed


@pytest.mark.parametrize("against", ["onnxruntime", "reference"])
def test_a_length_that_the_file_leaves_free_is_no_assumption(against):
    report = fastrnn.verify(DATA / "last_step.script.onnx", against)
    assert report.compared == {"batch": (1, 2, 5), "time": (1, 3, 7, 19)}
    assert not report.notes
    assert "compared at batch 1, 2, 5; time 1, 3, 7, 19" in str(report)


def test_a_model_of_one_size_is_compared_at_that(tmp_path):
    path = of_six_steps(tmp_path / "m.onnx")
    report = fastrnn.verify(fastrnn.load(path, sizes={"batch": 2, "time": 6}), source=path)
    assert report.compared == {}
    assert "compared at the one size that the model takes" in str(report)


def test_a_default_that_onnxruntime_takes_otherwise_is_told(tmp_path):
    """onnxruntime's Affine without alpha is 0 * x: the report differs, and says why it may."""
    made = onnx.load(of_six_steps(tmp_path / "m.onnx"))
    node = next(n for n in made.graph.node if n.op_type == "RNN")
    node.attribute.append(onnx.helper.make_attribute("activations", ["Affine"]))
    onnx.save(made, tmp_path / "m.onnx")
    report = fastrnn.verify(tmp_path / "m.onnx")
    assert not report.ok
    assert any("Affine without alpha, which is 1 as ONNX has it; onnxruntime takes 0" in n for n in report.notes)


def test_what_a_converted_file_has_built_in_is_not_given_again(tmp_path):
    fastrnn.load(DATA / "last_step.script.onnx").save(tmp_path / "m.fastrnn")
    with pytest.raises(fastrnn.ModelFormatError, match="settled when a model is converted"):
        fastrnn.verify(tmp_path / "m.fastrnn", "reference", bind={"x": 1})


def test_a_wrong_shape_is_no_frozen_length(monkeypatch):
    """One that follows the input, or that fastrnn never has, is a difference."""
    real = engines.OnnxRuntimeEngine.run
    monkeypatch.setattr(engines.OnnxRuntimeEngine, "run", lambda *args: [a[1:] for a in real(*args)])
    assert not fastrnn.verify(DATA / "gru_states.script.onnx", sizes=[(1, 7), (1, 4)]).ok
    monkeypatch.setattr(engines.OnnxRuntimeEngine, "run", lambda *args: [a[:2] for a in real(*args)])
    assert not fastrnn.verify(DATA / "gru_states.script.onnx", sizes=[(1, 7), (1, 4)]).ok


def changed(path: Path, out: Path) -> Path:
    """The model at `path` with one recurrent weight matrix negated."""
    proto = onnx.load(path)
    cell = next(node for node in proto.graph.node if node.op_type in ("GRU", "LSTM", "RNN"))
    tensor = next(t for t in proto.graph.initializer if t.name == cell.input[2])
    tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(proto, out)
    return out


def test_a_changed_weight_is_found(tmp_path):
    source = DATA / "gru_states.script.onnx"
    report = fastrnn.verify(fastrnn.load(source), source=changed(source, tmp_path / "changed.onnx"))
    assert not report.ok
    assert any(out.absolute > 1e-2 and not out.ok for out in report.outputs)
    assert "does NOT answer like onnxruntime" in str(report)
    assert "FAIL" in str(report)
    assert json.loads(report.to_json())["ok"] is False


def test_a_saved_file_is_compared_with_its_source(tmp_path):
    source = DATA / "last_step.script.onnx"
    fastrnn.load(source).save(tmp_path / "m.fastrnn")
    assert fastrnn.verify(tmp_path / "m.fastrnn", source=source).ok
    with pytest.raises(fastrnn.UnsupportedError, match=r'm\.fastrnn is not an ONNX file.*source="model\.onnx"'):
        fastrnn.verify(tmp_path / "m.fastrnn")
    with pytest.raises(fastrnn.UnsupportedError, match="onnxruntime needs the ONNX file"):
        fastrnn.verify(fastrnn.load(source))


def test_a_tighter_tolerance_fails():
    report = fastrnn.verify(DATA / "gru_states.script.onnx", tolerance=0.0)
    assert report.tolerance == 0.0
    assert report.ok is all(out.absolute == 0 for out in report.outputs)


def test_sizes_of_the_runs_are_told():
    report = fastrnn.verify(DATA / "last_step.script.onnx", sizes=[(3, 4)])
    assert len(report.runs) == 1
    assert "[3, 4," in report.runs[0] or "[4, 3," in report.runs[0]


def test_without_onnxruntime_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(fastrnn.UnsupportedError, match=r'not installed: pip install "fastrnn\[verify\]"'):
        fastrnn.verify(DATA / "last_step.script.onnx")
    assert fastrnn.verify(DATA / "last_step.script.onnx", "reference").ok


def test_an_unknown_judge_is_refused():
    with pytest.raises(fastrnn.UnsupportedError, match="can't verify against 'tvm'; known: onnxruntime, torch"):
        fastrnn.verify(DATA / "last_step.script.onnx", "tvm")
    with pytest.raises(fastrnn.UnsupportedError, match=r"torch needs the file of weights .* got .*last_step"):
        fastrnn.verify(DATA / "last_step.script.onnx", "torch")


def test_what_onnxruntime_refuses_at_every_size_is_an_error(monkeypatch):
    monkeypatch.setattr(engines.OnnxRuntimeEngine, "run", lambda *args: (_ for _ in ()).throw(RuntimeError("no\nmore")))
    with pytest.raises(fastrnn.UnsupportedError, match=r"refused it: no") as caught:
        fastrnn.verify(DATA / "last_step.script.onnx")
    assert "more" not in str(caught.value)


def test_bound_inputs_are_fed_to_onnxruntime(tmp_path):
    """y = LSTM-free: x * k with k bound; onnxruntime needs k, fastrnn no longer has it."""
    x = onnx.helper.make_tensor_value_info("x", 1, ["batch", "time", 2])
    k = onnx.helper.make_tensor_value_info("k", 1, [])
    y = onnx.helper.make_tensor_value_info("y", 1, ["batch", "time", 2])
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([onnx.helper.make_node("Mul", ["x", "k"], ["y"])], "g", [x, k], [y]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(proto, tmp_path / "m.onnx")
    report = fastrnn.verify(tmp_path / "m.onnx", bind={"k": 2.5})
    assert report.ok
    assert report.notes == ("k is bound to 2.5",)
    fastrnn.load(tmp_path / "m.onnx", bind={"k": 2.5}).save(tmp_path / "m.fastrnn")
    assert fastrnn.verify(tmp_path / "m.fastrnn", source=tmp_path / "m.onnx", bind={"k": 2.5}).ok
    with pytest.raises(fastrnn.ShapeError, match="the ONNX file has no input q; it has x, k"):
        fastrnn.verify(fastrnn.load(tmp_path / "m.onnx", bind={"k": 2.5}), source=tmp_path / "m.onnx", bind={"q": 1})


def test_runs_are_long_enough_for_the_windows():
    w = GraphWriter("pooled")
    x = w.input("x", "float32", (BATCH, 2, TIME))
    how = {"fn": "mean", "dilations": (1,), "count_include_pad": False, "ceil": False, "pads": (0, 0)}
    y = w.add("pool", x, kernel=(3,), strides=(1,), **how)
    graph = w.done(w.add("pool", y, kernel=(3,), strides=(3,), **how))
    report = fastrnn.verify(Model(graph), "reference")
    assert report.ok
    assert report.runs == tuple(f"x [{batch}, 2, {steps + 4}]" for batch, steps in SIZES)
