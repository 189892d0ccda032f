"""Recurrences written in parallel that are not taken as such, and that float32 fails after some steps: noted, kept as
they are, told by `verify`. test_scans.py has those that are taken step by step.
"""

import json

import numpy as np
import onnx
import onnx.parser
import pytest

import fastrnn
from fastrnn import cli
from fastrnn.graph import reference
from fastrnn.passes.parallel_forms import MARK

ort = pytest.importorskip("onnxruntime", reason="answers are compared with onnxruntime, which is not installed")

STEPS = """s = Shape(x) one = Constant<value = int64 {1}>() zero = Constant<value = int64 {0}>()
    n = Gather<axis = 0>(s, one) i = Range(zero, n, one) f = Cast<to = 1>(i) a1 = Constant<value = int64[1] {1}>()
    at = Unsqueeze(f, a1)"""
GATE = """axis = Constant<value = int64 {1}>() unit = Constant<value = float {1.0}>()
    keep = Sigmoid(x) other = Sub(unit, keep) v = Mul(other, x) l = Log(keep) a = CumSum(l, axis)"""
TENTH = "tenth = Constant<value = float {0.9}>() axis = Constant<value = int64 {1}>()"
TINY = "tiny = Constant<value = float {1e-30}>()"  # added to a divisor or a factor: what is left is no recurrence
FAILING = {
    "by sums": f"{GATE} {TINY} m = Neg(a) e = Exp(m) u = Mul(v, e) c = CumSum(u, axis) g = Exp(a) p = Add(g, tiny) "
    "y = Mul(p, c)",
    "by a division": f"{GATE} {TINY} g = Exp(a) u = Div(v, g) c = CumSum(u, axis) p = Add(g, tiny) y = Mul(p, c)",
    "by logarithms": f"""{GATE} {TINY} w = Log(other) d = Sub(w, a) e = Exp(d) c = CumSum(e, axis) q = Add(c, tiny)
        z = Log(q) p = Add(z, a) y = Exp(p)""",
    "a product": f"""{GATE} {TINY} m = Neg(a) e = Exp(m) g = Exp(a) p = Add(g, tiny) q = Mul(x, p) k = Mul(x, e)
        t = Transpose<perm = [0, 2, 1]>(k) r = MatMul(q, t) h = Trilu<upper = 0>(r) y = MatMul(h, x)""",
}
# These fail beyond 256 steps only.
SLOW = {
    "powers of steps": f"{STEPS} {TENTH} {TINY} w = Pow(tenth, at) u = Div(x, w) c = CumSum(u, axis) p = Add(w, tiny) "
    "y = Mul(c, p)"
}
SOUND = {
    "a mean": f"""{STEPS} {TENTH} c = CumSum(x, axis) u = Constant<value = float {{1.0}}>() d = Add(at, u)
        y = Div(c, d)""",
    "a cumulative decay": f"{GATE} e = Exp(a) y = Mul(e, x)",
    "a softmax so far": f"{TENTH} e = Exp(x) c = CumSum(e, axis) y = Div(e, c)",
    "differences of sums": f"""{GATE} u1 = Constant<value = int64[1] {{1}}>() u2 = Constant<value = int64[1] {{2}}>()
        p = Unsqueeze(a, u1) q = Unsqueeze(a, u2) d = Sub(q, p) nought = Constant<value = float {{0.0}}>()
        b = Min(d, nought) e = Exp(b) k = Unsqueeze(x, u1) w = Mul(e, k) y = ReduceSum<keepdims = 0>(w, u2)""",
    "a bounded sum": f"{GATE} m = Tanh(a) e = Exp(m) c = CumSum(e, axis) y = Tanh(c)",
    "sums over features": "f = Constant<value = int64 {2}>() c = CumSum(x, f) e = Exp(c) y = Neg(e)",
}


def written(tmp_path, nodes, length="time"):
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[batch, {length}, 4] x) => (y) {{ {nodes} }}'
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def said(model):
    return [note for note in model.notes if MARK in note]


@pytest.mark.parametrize("name", [*FAILING, *SLOW])
def test_it_is_noted_by_the_name_of_its_node(tmp_path, name):
    model = fastrnn.load(written(tmp_path, (FAILING | SLOW)[name]))
    (note,) = said(model)
    assert note.split(":")[0] in {f"{n.op_type}({n.output[0]})" for n in onnx.load(tmp_path / "m.onnx").graph.node}
    model.save(tmp_path / "m.fastrnn")
    assert said(fastrnn.load(tmp_path / "m.fastrnn")) == [note]


@pytest.mark.parametrize("name", SOUND)
def test_what_float32_bears_is_not_noted(tmp_path, name):
    path = written(tmp_path, SOUND[name])
    assert not said(fastrnn.load(path))
    report = fastrnn.verify(path)
    assert report.ok, str(report)
    assert report.long is None


@pytest.mark.parametrize("name", FAILING)
def test_the_answer_is_that_of_the_file(tmp_path, name):
    """NaN where onnxruntime has NaN, since the arithmetic is the file's own."""
    path = written(tmp_path, FAILING[name])
    session, model = ort.InferenceSession(path), fastrnn.load(path)
    for steps in (1, 12, 40, 300):
        x = np.random.default_rng(steps).standard_normal((2, steps, 4)).astype(np.float32)
        (want,), got = session.run(None, {"x": x}), model(x)
        assert np.isfinite(want).all() == np.isfinite(got).all() == (steps < 100)
        if steps < 100:
            np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", FAILING)
def test_verify_says_from_how_many_steps_on_it_is_off(tmp_path, name):
    path = written(tmp_path, FAILING[name])
    report = fastrnn.verify(path)
    assert report.agrees
    assert not report.ok
    assert report.long.difference == np.inf
    assert 16 < report.long.fails_from < 256
    assert report.long.fails_from - 1 in report.long.steps
    assert f"wrong from {report.long.fails_from} steps on, NaN or infinite at" in str(report)
    record = json.loads(report.to_json())
    assert record["long"]["fails_from"] == report.long.fails_from
    assert record["long"]["difference"] == "inf"
    model = fastrnn.load(path)
    x = np.random.default_rng(0).standard_normal((1, 256, 4)).astype(np.float32)
    for steps, right in ((report.long.fails_from - 1, True), (report.long.fails_from, False)):
        part = np.ascontiguousarray(x[:, :steps])
        (want,) = reference.run(model.graph, {"x": part})
        assert np.allclose(model(part), want, rtol=1e-4, atol=1e-4) == right
    assert not fastrnn.verify(path, "reference").ok


def test_verify_says_that_it_is_right_as_far_as_it_looked(tmp_path):
    report = fastrnn.verify(written(tmp_path, SLOW["powers of steps"]))
    assert report.ok
    assert report.long.steps[-1] == 256
    assert "right up to 256 steps" in str(report)


def test_a_model_of_one_length_is_tested_at_that(tmp_path):
    report = fastrnn.verify(written(tmp_path, FAILING["by sums"], 200))
    assert not report.ok
    assert (report.long.steps, report.long.fails_from, report.long.difference) == ((200,), 200, np.inf)


def test_the_commands_say_so(tmp_path, capsys):
    path = written(tmp_path, FAILING["by sums"])
    assert cli.main(["verify", str(path)]) == 1
    assert "FAIL: recurrence in parallel form" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["verify", str(path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert told["compared"] == {"batch": [1, 2, 5], "time": [1, 3, 7, 19]}
    assert cli.main(["inspect", str(path)]) == 0
    assert MARK in " ".join(capsys.readouterr().out.split())
    assert cli.main(["convert", str(path), "--verify"]) == 1
    assert not (tmp_path / "m.fastrnn").exists()
    assert cli.main(["convert", str(path)]) == 0
    assert (tmp_path / "m.fastrnn").exists()
