"""Feeds, names of outputs and bound memory of a session: every form of a call gives the same bits."""

import collections
import sys
import threading

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from ort_models import both, identity

import fastrnn

RNG = np.random.default_rng(1)
ARRAYS = {
    name: (RNG.standard_normal(shape) / 2).astype(np.float32)
    for name, shape in (("W", (1, 16, 3)), ("R", (1, 16, 4)), ("B", (1, 32)))
}
STATES = ("h", "c")


def stepped():
    """An LSTM whose states go in and out: X [time, batch, 3], h, c -> Y, hn, cn; bytes of the file."""
    info = helper.make_tensor_value_info
    ends = [info("X", TensorProto.FLOAT, ["time", "batch", 3])]
    ends += [info(name, TensorProto.FLOAT, [1, "batch", 4]) for name in STATES]
    outs = [info("Y", TensorProto.FLOAT, ["time", 1, "batch", 4])]
    outs += [info(f"{name}n", TensorProto.FLOAT, [1, "batch", 4]) for name in STATES]
    cell = helper.make_node("LSTM", ["X", "W", "R", "B", "", "h", "c"], ["Y", "hn", "cn"], "cell", hidden_size=4)
    tensors = [numpy_helper.from_array(a, n) for n, a in ARRAYS.items()]
    graph = helper.make_graph([cell], "stepped", ends, outs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def feed(time=5, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"X": (time, batch, 3), "h": (1, batch, 4), "c": (1, batch, 4)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def same(found, want):
    return [(a.dtype, a.shape, a.tobytes()) for a in found] == [(a.dtype, a.shape, a.tobytes()) for a in want]


@pytest.fixture(scope="module")
def session():
    return fastrnn.InferenceSession(stepped())


def test_every_form_of_a_feed_means_the_same(session):
    for time, batch in ((5, 2), (1, 1), (5, 2), (0, 3)):
        given = feed(time, batch)
        want = session.model.run(*given.values())
        if time:
            for ours, theirs in zip(want, both(stepped())[1].run(None, given), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        forms = {
            "a dict": given,
            "another order": dict(reversed(given.items())),
            "a dict of a class of its own": collections.OrderedDict(given),
            "OrtValues": {n: fastrnn.onnxruntime.OrtValue(a) for n, a in given.items()},
            "one OrtValue": given | {"h": fastrnn.onnxruntime.OrtValue(given["h"])},
            "strided": {n: np.repeat(a, 2, -1)[..., ::2] for n, a in given.items()},
        }
        if time:
            forms["lists"] = {n: a.tolist() for n, a in given.items()}
        for name, form in forms.items():
            assert same(session.run(None, form), want), name
        with_values = session.run_with_ort_values(None, forms["OrtValues"])
        assert same([v.numpy() for v in with_values], want)


@pytest.mark.parametrize(
    "names", [None, [], ["Y", "hn", "cn"], ("Y", "hn", "cn"), ["cn"], ["hn", "Y"], ["Y", "Y"], np.array(["Y", "cn"])]
)
def test_outputs_come_as_they_are_named(session, names):
    want = dict(zip(["Y", "hn", "cn"], session.model.run(*feed().values()), strict=True))
    for _ in range(2):
        if isinstance(names, np.ndarray):  # its truth has two values, for onnxruntime too
            with pytest.raises(ValueError, match="ambiguous"):
                session.run(names, feed())
            continue
        found = session.run(names, feed())
        assert type(found) is list
        assert same(found, [want[name] for name in names or want])
        found.append(None)  # the caller's own list


def test_mistakes_are_named_after_good_calls_too(session):
    invalid = fastrnn.onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    given = feed()
    wrong = [
        (None, {n: given[n] for n in "hc"}, ValueError, "missing input X; the inputs are X, h, c"),
        (None, given | {"z": given["h"]}, invalid, "unknown input 'z'"),
        (None, {"X": given["X"], "h": given["h"], "C": given["c"]}, ValueError, "missing input c"),
        (None, list(given.values()), TypeError, "input_feed must be a dict"),
        (["y"], given, invalid, "unknown output 'y'; the outputs are Y, hn, cn"),
        (None, given | {"X": given["X"].astype(float)}, invalid, "input X: dtype float32 expected, got float64"),
        (None, given | {"X": given["X"][0]}, invalid, r"input X: \[time, batch, 3\] expected, got \[2, 3\]"),
        (None, given | {"X": given["X"][..., :2]}, invalid, "input X: axis 2 of .* must be 3, got 2"),
        (None, given | {"h": given["h"][:, :1]}, invalid, r"input h: axis 1 \(batch\) is 1, but 2 in X"),
        (None, given | {"h": None}, invalid, "input h"),
    ]
    for names, arrays, error, text in wrong * 2:
        good = session.run(None, given)
        with pytest.raises(error, match=text) as found:
            session.run(names, arrays)
        assert isinstance(found.value, fastrnn.FastRNNError)
        assert same(session.run(None, given), good)


def test_a_float16_file_takes_float16_alone():
    """The model computes in float32; a float32 feed, which it could take as it is, is not what the file declares."""
    session, _ = both(identity(TensorProto.FLOAT16))
    x = np.ones((2, 3), np.float16)
    for _ in range(2):
        (y,) = session.run(None, {"x": x})
        assert y.dtype == np.float16
        with pytest.raises(fastrnn.ShapeError, match="float16 expected, got float32"):
            session.run(None, {"x": x.astype(np.float32)})


def test_a_closed_model_is_closed_for_its_session_too():
    session = fastrnn.InferenceSession(stepped())
    session.run(None, feed())
    session.model.close()
    with pytest.raises(fastrnn.FastRNNError, match="was closed"):
        session.run(None, feed())


def bound(session, given, **outputs):
    binding = session.io_binding()
    for name, array in given.items():
        binding.bind_cpu_input(name, array)
    for name, array in outputs.items():
        if array is None:
            binding.bind_output(name)
        else:
            binding.bind_ortvalue_output(name, fastrnn.onnxruntime.OrtValue(array))
    return binding


def test_bound_memory_is_written_in_place(session):
    given = feed()
    y, cn = np.full((5, 1, 2, 4), 7, np.float32), np.full((1, 2, 4), 7, np.float32)
    binding = bound(session, given, cn=cn, Y=y)
    for seed in (0, 1, 0):
        given["X"][...] = feed(seed=seed)["X"]
        want = dict(zip(["Y", "hn", "cn"], session.run(None, given), strict=True))
        session.run_with_iobinding(binding)
        found = [value.numpy() for value in binding.get_outputs()]
        assert np.shares_memory(found[0], cn)
        assert np.shares_memory(found[1], y)
        assert same([cn, y], [want["cn"], want["Y"]])
    mixed = bound(session, given, Y=None, hn=cn)
    session.run_with_iobinding(mixed)
    first = mixed.get_outputs()[0].numpy()
    session.run_with_iobinding(mixed)
    assert not np.shares_memory(first, mixed.get_outputs()[0].numpy())
    assert same([first, cn], [want["Y"], want["hn"]])


def test_bound_memory_may_be_that_of_inputs():
    """A loop that keeps its states in place, and exchanged: outputs are not written while inputs are read."""
    session = fastrnn.InferenceSession(stepped())
    for outputs in (("h", "c"), ("c", "h")):
        states, given = {n: feed()[n].copy() for n in STATES}, feed()
        binding = bound(session, {"X": given["X"], **states}, hn=states[outputs[0]], cn=states[outputs[1]])
        for _ in range(4):
            want = session.run(["hn", "cn"], given)
            session.run_with_iobinding(binding)
            assert same([states[n] for n in outputs], want)
            given |= {n: a.copy() for n, a in states.items()}


def test_bound_memory_that_does_not_fit_is_refused(session):
    for array in (np.empty((5, 1, 2, 5), np.float32), np.empty((5, 1, 2, 4)), np.empty(40, np.float32)):
        with pytest.raises(RuntimeError, match=r"output Y is .*, but is bound to memory of"):
            session.run_with_iobinding(bound(session, feed(), Y=array))
    with pytest.raises(RuntimeError, match="unknown output 'q'"):
        session.run_with_iobinding(bound(session, feed(), q=None))
    with pytest.raises(RuntimeError, match="input h: axis 1"):
        session.run_with_iobinding(bound(session, feed() | {"h": feed(batch=1)["h"]}, Y=None))


def test_threads_share_a_session(session):
    cases = [(time, batch) for time in (1, 3, 8) for batch in (1, 4)]
    want, wrong = {case: session.run(None, feed(*case)) for case in cases}, []

    def work(seed):
        rng = np.random.default_rng(seed)
        binding = bound(session, feed(3, 4), Y=None, hn=np.empty((1, 4, 4), np.float32), cn=None)
        for _ in range(200):
            case = cases[rng.integers(len(cases))]
            if not same(session.run(None, feed(*case)), want[case]):
                wrong.append(case)
            session.run_with_iobinding(binding)
            if not same([v.numpy() for v in binding.get_outputs()], want[3, 4]):
                wrong.append("bound")

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert not wrong
