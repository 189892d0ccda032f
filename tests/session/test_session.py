"""InferenceSession answers as onnxruntime's does, names and types included, and says clearly what it can't."""

import json
import os
import threading

import numpy as np
import onnx
import pytest
from rnn_cases import BY_ID, make_inputs, make_model, ort_run

import fastrnn
from fastrnn.errors import ShapeError, UnsupportedError

CASE = BY_ID["lstm-bidirectional_lengths_states"]


@pytest.fixture
def session(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(make_model(CASE), path)
    return fastrnn.InferenceSession(path)


def test_it_runs_as_onnxruntime(session):
    inputs = make_inputs(CASE)
    theirs = ort_run(CASE, inputs)
    answers = session.run(None, inputs)
    assert isinstance(answers, list)
    for name, ours in zip(CASE.outputs, answers, strict=True):
        np.testing.assert_allclose(ours, theirs[name], atol=2e-6, err_msg=name)
    swapped = session.run(["Y_c", "Y"], inputs)
    np.testing.assert_array_equal(swapped[0], answers[2])
    np.testing.assert_array_equal(swapped[1], answers[0])
    every = session.run([], inputs)  # no names: all outputs, as onnxruntime takes it
    assert len(every) == len(answers)


def test_it_describes_itself(session):
    assert [(a.name, a.type, a.shape) for a in session.get_inputs()] == [
        ("X", "tensor(float)", ["time", "batch", 7]),
        ("sequence_lens", "tensor(int32)", ["batch"]),
        ("initial_h", "tensor(float)", [2, "batch", 17]),
        ("initial_c", "tensor(float)", [2, "batch", 17]),
    ]
    assert [(a.name, a.type, a.shape) for a in session.get_outputs()] == [
        ("Y", "tensor(float)", ["time", 2, "batch", 17]),
        ("Y_h", "tensor(float)", [2, "batch", 17]),
        ("Y_c", "tensor(float)", [2, "batch", 17]),
    ]
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_names_and_types_are_those_of_onnxruntime(tmp_path, session):
    import onnxruntime

    theirs = onnxruntime.InferenceSession(make_model(CASE).SerializeToString(), providers=["CPUExecutionProvider"])
    for ours, other in (
        (session.get_inputs(), theirs.get_inputs()),
        (session.get_outputs(), theirs.get_outputs()),
    ):
        assert [(a.name, a.type, a.shape) for a in ours] == [(a.name, a.type, a.shape) for a in other]


@pytest.mark.parametrize(
    ("outputs", "change", "text"),
    [
        (["Yh"], {}, r"unknown output 'Yh'; the outputs are Y, Y_h, Y_c; did you mean 'Y_h'\?"),
        (["nothing"], {}, r"unknown output 'nothing'; the outputs are Y, Y_h, Y_c$"),
        (None, {"x": 1}, "unknown input 'x'; the inputs are X, sequence_lens, initial_h, initial_c"),
        (None, {"initial_H": 1}, r"did you mean 'initial_h'\?"),
        (None, {"X": None, "initial_c": None}, "missing input X, initial_c; the inputs are X, sequence_lens"),
        (None, {"X": np.ones((3, 2))}, "X"),
        (None, {"X": np.ones((7, 6, 7), dtype="U1")}, "X"),
    ],
)
def test_errors_say_what_was_wrong(session, outputs, change, text):
    inputs = {name: array for name, array in (make_inputs(CASE) | change).items() if array is not None}
    with pytest.raises(ShapeError, match=text):
        session.run(outputs, inputs)


CPU = "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("providers", "options"),
    [(None, None), ([], None), ([CPU], None), ([(CPU, {"use_arena": "1"})], None), ([CPU], [{"use_arena": 1}])],
)
def test_the_cpu_and_its_options_are_accepted(providers, options):
    data = make_model(CASE).SerializeToString()
    ours = fastrnn.InferenceSession(data, None, providers, options, threads=1)
    assert (ours.get_providers(), ours.get_provider_options()) == ([CPU], {CPU: {}})
    assert ours.model.threads == 1


@pytest.mark.parametrize(
    ("providers", "options", "text"),
    [
        (["CUDAExecutionProvider"], None, "'CUDAExecutionProvider' is not in available provider names"),
        (["CUDAExecutionProvider", (CPU, {})], None, "'CUDAExecutionProvider' is not in available provider names"),
        (["CUDAExecutionProvider"], [{"device_id": 0}], "'CUDAExecutionProvider' is not in available provider names"),
        ([CPU, CPU], None, "Duplicate provider 'CPUExecutionProvider' encountered, ignoring"),
        ([CPU], [{}, {}], "'provider_options' should be one dict for each name"),
        ([(CPU, {})], [{}], "'provider_options' should be one dict for each name"),
        ({CPU}, None, "'providers' should be a sequence of names, got"),
        (CPU, None, "'providers' should be a sequence of names, got 'CPU"),
        ([5], None, r"'providers' values should be names or \(name, dict\), got 5"),
    ],
)
def test_other_providers_warn_and_the_cpu_runs_the_model(session, providers, options, text):
    """onnxruntime prints its fallback; a warning is the same without the print."""
    data = make_model(CASE).SerializeToString()
    with pytest.warns(UserWarning, match=text):
        ours = fastrnn.InferenceSession(data, None, providers, options)
    assert ours.get_providers() == [CPU]
    with pytest.warns(UserWarning, match=text):
        session.set_providers(providers, options)
    assert session.get_providers() == [CPU]


def test_threads_of_session_options():
    import onnxruntime

    data = make_model(CASE).SerializeToString()
    free = fastrnn.load(data).threads
    for options in (onnxruntime.SessionOptions(), fastrnn.onnxruntime.SessionOptions()):
        assert fastrnn.InferenceSession(data, options).model.threads == free
        options.intra_op_num_threads = free + 1
        session = fastrnn.InferenceSession(data, options)
        assert session.model.threads == free + 1
        assert session.get_session_options() is options
        assert fastrnn.InferenceSession(data, sess_options=options, threads=1).model.threads == 1
    for wrong in ([CPU], 5):
        with pytest.raises(TypeError, match=r"sess_options must be a SessionOptions, got") as found:
            fastrnn.InferenceSession(data, wrong)
        assert isinstance(found.value, fastrnn.FastRNNError)


def test_options_of_the_session_are_those_of_load(session):
    data = make_model(CASE).SerializeToString()
    with pytest.warns(UserWarning, match="a session has no option 'thread', so it has no effect"):
        assert fastrnn.InferenceSession(data, thread=1).get_inputs()
    assert fastrnn.InferenceSession(data, enable_fallback=0, disabled_optimizers=["X"]).get_inputs()
    session.disable_fallback()
    session.enable_fallback()


FIELDS = "graph_name producer_name domain description graph_description version custom_metadata_map".split()


@pytest.mark.parametrize("filled", [False, True])
def test_metadata_is_that_of_onnxruntime(tmp_path, filled):
    import onnxruntime

    made = make_model(CASE)
    if filled:
        made.producer_name, made.domain, made.doc_string, made.model_version = "someone", "here", "a text", 3
        made.graph.doc_string = "of the graph"
        onnx.helper.set_model_props(made, {"rate": "16000"})
    onnx.save(made, tmp_path / "m.onnx")
    data = made.SerializeToString()
    theirs = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).get_modelmeta()
    for source in (data, tmp_path / "m.onnx"):
        ours = fastrnn.InferenceSession(source).get_modelmeta()
        assert {f: getattr(ours, f) for f in FIELDS} == {f: getattr(theirs, f) for f in FIELDS}


def test_metadata_of_a_fastrnn_file_is_its_name(tmp_path):
    fastrnn.from_onnx(make_model(CASE)).save(tmp_path / "m.fastrnn")
    for source in (tmp_path / "m.fastrnn", (tmp_path / "m.fastrnn").read_bytes()):
        found = fastrnn.InferenceSession(source).get_modelmeta()
        assert (found.graph_name, found.producer_name, found.custom_metadata_map) == (CASE.id, "", {})


def test_run_options(session):
    inputs, options = make_inputs(CASE), fastrnn.onnxruntime.RunOptions()
    assert len(session.run(None, inputs, options)) == len(CASE.outputs)
    options.terminate = True
    with pytest.raises(fastrnn.onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="terminate is set"):
        session.run(None, inputs, options)
    with pytest.raises(TypeError, match="run_options must be a RunOptions or None, got 5"):
        session.run(None, inputs, 5)
    with pytest.raises(TypeError, match="output_names must be a list of names, got 'Y'"):
        session.run("Y", inputs)


def test_run_async_calls_back_with_results_or_the_text_of_the_error(session):
    inputs, found, done = make_inputs(CASE), [], threading.Event()

    def callback(results, user_data, error):
        found.append((results, user_data, error))
        done.set()

    def wait():
        assert done.wait(20)
        done.clear()
        return found.pop()

    session.run_async(["Y"], inputs, callback, "mine")
    results, user_data, error = wait()
    np.testing.assert_array_equal(results[0], session.run(["Y"], inputs)[0])
    assert (user_data, error) == ("mine", "")
    for names, feeds, text in (
        (None, inputs | {"z": 1}, "unknown input 'z'"),
        (["q"], inputs, "unknown output 'q'"),
        (None, inputs | {"X": np.zeros(3, np.float32)}, "input X: "),
    ):
        session.run_async(names, feeds, callback, None)
        results, _, error = wait()
        assert results == []
        assert text in error
    with pytest.raises(ValueError, match="missing input X, sequence_lens, initial_h, initial_c"):
        session.run_async(None, {}, callback, None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_run_async_after_a_fork(session):
    inputs, done = make_inputs(CASE), threading.Event()
    session.run_async(None, inputs, lambda *_: done.set(), None)
    assert done.wait(20)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: a fork beside threads
        child = os.fork()
    if not child:
        done.clear()
        session.run_async(None, inputs, lambda *_: done.set(), None)
        os._exit(0 if done.wait(20) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_profiling_writes_a_file_that_chrome_reads(tmp_path):
    options = fastrnn.onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = fastrnn.InferenceSession(make_model(CASE).SerializeToString(), options)
    assert session.get_profiling_start_time_ns() > 0
    session.run(None, make_inputs(CASE))
    path = session.end_profiling()
    assert path.startswith(str(tmp_path / "profile"))
    events = json.loads((tmp_path / path).read_text(encoding="utf-8"))
    assert [(e["name"], e["ph"]) for e in events] == [("session_initialization", "X"), ("model_run", "X")]
    assert session.end_profiling() == ""
    assert fastrnn.InferenceSession(make_model(CASE).SerializeToString()).end_profiling() == ""


def test_what_is_refused_by_name(tmp_path, session):
    options = fastrnn.onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "out.onnx")
    with pytest.raises(
        UnsupportedError, match=r"optimized_model_filepath: fastrnn writes no ONNX files; leave it empty"
    ):
        fastrnn.InferenceSession(make_model(CASE).SerializeToString(), options)
    for call in (session.get_input_epdevices, session.get_provider_graph_assignment_info):
        with pytest.raises(UnsupportedError, match=f"InferenceSession.{call.__name__}: "):
            call()


def test_a_path_needs_no_suffix_of_onnx(tmp_path):
    for name in ("model", "model.v2", "weights.pb"):
        onnx.save(make_model(CASE), tmp_path / name)
        assert len(fastrnn.InferenceSession(str(tmp_path / name)).get_inputs()) == 4


def test_threads_may_run_and_ask_at_once():
    session, inputs = fastrnn.InferenceSession(make_model(CASE).SerializeToString()), make_inputs(CASE)
    alone, found = session.run(None, inputs), []

    def work():
        found.append((str(session.get_outputs()), session.run(None, inputs)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert {described for described, _ in found} == {str(session.get_outputs())}
    for _, answers in found:
        for a, b in zip(answers, alone, strict=True):
            np.testing.assert_array_equal(a, b)
