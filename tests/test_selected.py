"""Inputs that select a branch of an If stay inputs: each value's branch is compiled when it is first seen."""

import copy
import pickle
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from ort_models import both, switched

import fastrnn
from fastrnn.errors import ShapeError, UnsupportedError

X, H = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 3), np.float32)


@pytest.fixture
def model():
    return fastrnn.load(switched())


def test_the_selector_stays_an_input(model):
    assert isinstance(model, fastrnn.SelectedModel)
    assert isinstance(model, fastrnn.Model)
    assert [str(info) for info in model.inputs] == ["x: float32[batch, 3]", "rate: int64[]", "h: float32[batch, 3]"]
    assert [info.name for info in model.outputs] == ["y", "hn"]
    assert [info.name for info in model.states] == ["h"]
    assert [info.name for info in model.selectors] == ["rate"]
    assert model.streamable
    assert model.delay == 0
    assert "rate" in repr(model)
    assert model.notes[-1] == "the input 'rate' selects a branch, which is compiled when first seen"


@pytest.mark.parametrize("rate", [16000, 8000, 44100, np.int64(16000), np.array(16000), np.array([8000])])
def test_each_value_takes_its_branch(model, rate):
    factor = 2 if int(np.ravel(rate)[0]) == 16000 else 3
    for y, hn in (model.run(X, rate, H), model.run(X, h=H, rate=rate), model.run(rate=rate, x=X, h=H)):
        np.testing.assert_array_equal(hn, X * factor + 1)
        np.testing.assert_array_equal(y, X * factor + 1)
    np.testing.assert_array_equal(model(X, rate), X * factor)  # the state starts at zero
    np.testing.assert_array_equal(model(X, rate=rate), X * factor)
    np.testing.assert_array_equal(model.select(rate=rate).run(X, H)[0], X * factor + 1)


def test_values_that_change_from_call_to_call(model):
    """Each call runs the branch of its own value, whatever was called before, and whichever models are still kept."""
    rates = [np.array(r) for r in (16000, 8000, 16000, 1, 2, 3, 4, 5, 6, 7, 9, 10, 16000, 8000)]

    def in_turn():
        for rate in rates * 2:
            factor = 2 if rate == 16000 else 3
            for x in (X, X[:1], X):
                h = np.full_like(x, 5)
                for y in (model.run(x, rate, h)[1], model.run(h=h, x=x, rate=rate)[0], model(x, rate, h=h)):
                    np.testing.assert_array_equal(y, x * factor + 5)
                np.testing.assert_array_equal(model(x, rate), x * factor)
                np.testing.assert_array_equal(model(rate=rate, x=x), x * factor)

    with pytest.warns(fastrnn.FastRNNWarning, match="more than 8 values"):
        in_turn()
    assert len(model._models) <= 8
    assert len(model._branches._known_values) <= 8
    rate = rates[0]
    for call, text in [
        (lambda: model.run(X, rate), "input h is missing"),
        (lambda: model.run(X, rate, H, H), "takes 3 inputs"),
        (lambda: model.run(X, rate, H, x=X), "given twice"),
        (lambda: model.run(X, rate[None, None].repeat(2, 0), H), r"input rate: \[\] expected, got \[2, 1\]"),
        (lambda: model.run(X, rate.astype(float), H), "input rate: dtype int64 expected, got float64"),
        (lambda: model.run(X, rate, H[:1]), r"input h: axis 0 \(batch\) is 1, but 2 in x"),
        (lambda: model.run(X, rate, H.astype(float)), "input h: dtype float32 expected"),
        (lambda: model(X, rate, H), "takes 2 inputs besides its states"),
    ]:
        model.run(X, rate, H)
        with pytest.raises(ShapeError, match=text):
            call()


def test_threads_with_values_of_their_own(model):
    wrong = []

    def work(rate):
        for _ in range(300):
            found = model.run(X, np.array(rate), H)[0]
            if not np.array_equal(found, X * (2 if rate == 16000 else 3) + 1):
                wrong.append(rate)

    threads = [threading.Thread(target=work, args=(rate,)) for rate in (16000, 8000, 16000, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_was_closed_is_closed_after_good_calls_too(model):
    rate = np.array(16000)
    model.run(X, rate, H)
    model.select(rate=rate).close()
    for call in (lambda: model.run(X, rate, H), lambda: model(X, rate)):
        with pytest.raises(fastrnn.FastRNNError, match="was closed"):
            call()
    model.run(X, np.array(8000), H)
    assert model.memory_bytes > 0
    model.close()
    for value in (rate, np.array(8000)):
        with pytest.raises(fastrnn.FastRNNError, match="was closed"):
            model.run(X, value, H)


def test_streams_and_pools_fix_it(model):
    stream = model.stream(bind={"rate": 8000})
    assert [stream.step(X[0]).tolist() for _ in range(2)] == [[0, 3, 6], [0, 6, 12]]
    pool = model.pool(4, bind={"rate": 16000})
    slots = [pool.open(), pool.open()]
    np.testing.assert_array_equal(pool.step(slots, X), X * 2)


def test_a_branch_is_compiled_once_and_the_last_are_kept(model):
    first = model.select(rate=16000)
    assert model.select(rate=16000) is first
    for rate in range(7):
        model.run(X, rate, H)
    with pytest.warns(fastrnn.FastRNNWarning, match="the input 'rate' had more than 8 values; each compiles a model"):
        model.run(X, 7, H)
    for rate in range(8, 20):  # it is said once
        model.run(X, rate, H)
    assert len(model._models) == 8
    assert model.memory_bytes < 100_000
    np.testing.assert_array_equal(model.run(X, 16000, H)[1], X * 2 + 1)


def test_many_threads_compile_it_once(model, monkeypatch):
    compiled, read = [], model._read
    monkeypatch.setattr(model, "_read", lambda values: compiled.append(values) or read(values))
    found = []
    threads = [threading.Thread(target=lambda: found.append(model.run(X, 8000, H)[1])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiled) == 1
    assert all(np.array_equal(hn, X * 3 + 1) for hn in found)
    assert len(found) == 8


def test_it_can_be_copied_and_pickled(model):
    assert copy.copy(model) is copy.deepcopy(model) is model
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.run(X, 8000, H)[1], X * 3 + 1)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda m: m.run(X, H), ShapeError, r"input rate: \[\] expected, got \[2, 3\]|dtype int64 expected"),
        (lambda m: m.run(x=X, h=H), ShapeError, "input rate is missing"),
        (lambda m: m.run(X, 8000), ShapeError, "input h is missing"),
        (lambda m: m.run(X, 8000, H, 1), ShapeError, "takes 3 inputs"),
        (lambda m: m.run(X, 8000, H, rate=1), ShapeError, "input rate is given twice"),
        (lambda m: m.run(X, 8000, H, q=1), ShapeError, "has no input 'q'; its inputs are"),
        (lambda m: m.run({"x": X}), ShapeError, r"got a dict: pass run\(\*\*feeds\)"),
        (lambda m: m.run(X, 16000.5, H), ShapeError, "input rate: int64 expected, got 16000.5"),
        (lambda m: m.run(X, [8000, 16000], H), ShapeError, r"input rate: \[\] expected, got \[2\]"),
        (lambda m: m(X, 1, H, 4), ShapeError, "takes 2 inputs besides its states"),
        (lambda m: m.stream(), ShapeError, r"the input 'rate' selects a branch: pass bind=\{'rate': 16000\}, got \[\]"),
        (lambda m: m.stream(bind={"sr": 1}), ShapeError, r"pass bind=\{'rate': 16000\}, got \['sr'\]"),
        (lambda m: m.stream(bind=5), ShapeError, r"pass bind=\{'rate': 16000\}, got 5"),
        (lambda m: m.pool(4), ShapeError, "selects a branch: pass bind="),
        (lambda m: m.select(), ShapeError, "selects a branch: pass bind="),
        (
            lambda m: m.graph,
            UnsupportedError,
            r"no single graph; load it with bind=\{'rate': 16000\}, or --bind rate=16000",
        ),
        (lambda m: m.save("m.fastrnn"), UnsupportedError, "no single graph"),
        (lambda m: m.layers, UnsupportedError, "no single graph"),
        (lambda m: m.parameters, UnsupportedError, "no single graph"),
        (lambda m: m.fingerprint, UnsupportedError, "no single graph"),
    ],
)
def test_errors_say_what_to_do(model, call, kind, text):
    with pytest.raises(kind, match=text):
        call(model)


@pytest.mark.parametrize(
    ("element", "dims", "good", "other"),
    [
        (TensorProto.INT32, (1,), np.array([16000], np.int32), np.array([5], np.int32)),
        (TensorProto.BOOL, (), np.array(True), np.array(False)),
        (TensorProto.INT64, (1,), np.array([16000]), np.array([8000])),
    ],
)
def test_selectors_of_other_types(element, dims, good, other):
    data = switched(element, dims, 16000 if element != TensorProto.BOOL else 1)
    ours, theirs = both(data)
    for value in (good, other, good):
        feed = {"x": X, "rate": value, "h": H}
        for a, b in zip(ours.run(None, feed), theirs.run(None, feed), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_number_that_is_data_chooses_between_both_branches():
    ours, theirs = both(switched(TensorProto.FLOAT, ()))
    for value in (16000.0, 8000.0, 16000.0):
        feed = {"x": X, "rate": np.array(value, np.float32), "h": H}
        for a, b in zip(ours.run(None, feed), theirs.run(None, feed), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("element", "dims"), [(TensorProto.INT64, (9,)), (TensorProto.INT64, ("n",))])
def test_data_does_not_select(element, dims):
    data = switched(element, dims)
    with pytest.raises(UnsupportedError, match="its condition is computed from the input 'rate'; fix that with bind="):
        fastrnn.load(data)


def test_a_branch_that_is_refused_is_named_at_load_or_when_it_is_taken():
    bad = helper.make_graph(
        [helper.make_node("Det", ["x"], ["b"])],
        "bad",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    good = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["g"])],
        "good",
        [],
        [helper.make_tensor_value_info("g", TensorProto.FLOAT, None)],
    )
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 3]) for n in "xy"]
    switch = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    for then, other in ((bad, good), (bad, bad)):
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
        graph = helper.make_graph(nodes, "g", [ends[0], switch], ends[1:])
        data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
        if other is good:
            model = fastrnn.load(data)
            np.testing.assert_array_equal(model.run(-X, False)[0], X * 0)
            with pytest.raises(UnsupportedError, match="Det needs matrices of a known size"):
                model.run(X, True)
        else:
            with pytest.raises(UnsupportedError, match="Det needs matrices of a known size"):
                fastrnn.load(data)


def test_external_data_may_change_later(tmp_path):
    """Weights beside the file are read when the model is loaded, also those of a branch that no call has selected."""
    proto = onnx.load_from_string(switched())
    for attr in proto.graph.node[1].attribute:
        weight = attr.g.initializer[0]
        data = np.array(weight.float_data, "<f4").tobytes()
        (tmp_path / weight.name).write_bytes(data)
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=weight.name)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    model = fastrnn.load(tmp_path / "m.onnx")
    for name in ("w16", "w8"):
        (tmp_path / name).unlink()
    for rate, factor in ((16000, 2), (8000, 3)):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).run(X, rate, H)[1], X * factor + 1)


def test_a_session_takes_it_in_the_feed():
    ours, theirs = both(switched())
    assert [(a.name, a.type, a.shape) for a in ours.get_inputs()] == [
        (a.name, a.type, a.shape) for a in theirs.get_inputs()
    ]
    for rate in (16000, 8000):
        feed = {"x": X, "rate": np.array(rate), "h": H}
        for a, b in zip(ours.run(None, feed), theirs.run(None, feed), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="missing input rate"):
        ours.run(None, {"x": X, "h": H})


def test_what_was_bound_at_load_is_taken_if_it_is_equal():
    session = fastrnn.InferenceSession(switched(), bind={"rate": 8000})
    assert [a.name for a in session.get_inputs()] == ["x", "h"]
    feed = {"x": X, "h": H}
    for rate in (8000, np.array(8000), [8000]):
        np.testing.assert_array_equal(session.run(["hn"], feed | {"rate": rate})[0], X * 3 + 1)
    np.testing.assert_array_equal(session.run(["hn"], feed)[0], X * 3 + 1)
    with pytest.raises(ShapeError, match="input rate was bound to 8000 when the model was loaded, got 16000"):
        session.run(None, feed | {"rate": 16000})


@pytest.mark.parametrize("command", ["inspect", "profile", "verify", "convert"])
def test_commands_say_what_to_bind(command, tmp_path, capsys):
    from fastrnn import cli

    path = tmp_path / "switched.onnx"
    path.write_bytes(switched())
    assert cli.main([command, str(path)]) == 1
    assert "--bind rate=16000 in a command" in capsys.readouterr().err


def test_from_onnx_takes_them_too():
    proto = onnx.load_from_string(switched())
    model = fastrnn.from_onnx(proto)
    proto.graph.node.pop()  # the model has a copy
    np.testing.assert_array_equal(model.run(X, 8000, H)[1], X * 3 + 1)
    assert fastrnn.from_onnx(onnx.load_from_string(switched()), bind={"rate": 8000}).graph.nodes
