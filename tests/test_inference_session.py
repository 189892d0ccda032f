"""InferenceSession answers as onnxruntime's does, names and types included, and says clearly what it can't."""

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


def test_providers():
    data = make_model(CASE).SerializeToString()
    providers = ["CUDAExecutionProvider", ("CPUExecutionProvider", {})]
    assert fastrnn.InferenceSession(data, providers=providers, threads=1).model.threads == 1
    assert fastrnn.InferenceSession(data, None, []).get_providers() == ["CPUExecutionProvider"]
    assert fastrnn.InferenceSession(data, None, ["CPUExecutionProvider"], [{}]).model.threads >= 1
    with pytest.raises(UnsupportedError, match=r"providers .*CUDA.* are not supported: add CPUExecutionProvider"):
        fastrnn.InferenceSession(data, providers=["CUDAExecutionProvider"])


@pytest.mark.parametrize(
    ("providers", "options"),
    [([("CPUExecutionProvider", {"use_arena": "1"})], None), (["CPUExecutionProvider"], [{"use_arena": "1"}])],
)
def test_options_of_a_provider_are_refused(providers, options):
    with pytest.raises(UnsupportedError, match=r"CPUExecutionProvider takes no options in fastrnn, got .*arena"):
        fastrnn.InferenceSession(b"", providers=providers, provider_options=options)
    with pytest.raises(UnsupportedError, match="one dict per provider, got 2 for 1"):
        fastrnn.InferenceSession(b"", None, ["CPUExecutionProvider"], [{}, {}])


def test_threads_of_session_options():
    import onnxruntime

    data = make_model(CASE).SerializeToString()
    options = onnxruntime.SessionOptions()
    free = fastrnn.load(data).threads
    assert fastrnn.InferenceSession(data, options).model.threads == free
    options.intra_op_num_threads = free + 1
    assert fastrnn.InferenceSession(data, options).model.threads == free + 1
    assert fastrnn.InferenceSession(data, sess_options=options, threads=1).model.threads == 1
    with pytest.raises(UnsupportedError, match=r"sess_options must be an onnxruntime\.SessionOptions, got \['CPU"):
        fastrnn.InferenceSession(data, ["CPUExecutionProvider"])


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


def test_run_options_are_refused(session):
    with pytest.raises(UnsupportedError, match="run_options must be None, got 5"):
        session.run(None, make_inputs(CASE), 5)
