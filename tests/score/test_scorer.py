"""Scorer: rows of any lengths get the bits of the model's answer to each row alone; bad rows are named."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import score_rows
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrnn
from fastrnn.scoring import BadRow, Scorer, columns, running

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ROOT / "tests" / "data" / "onnx"
# Models of each way that rows run: pools, equal shapes, streams that lag, ids, several inputs and outputs, time first.
NAMES = (
    "gru_stacked.script",
    "bigru_stacked.dynamo",
    "birnn.script",
    "language_model.dynamo",
    "last_step.script",
    "last_hidden.dynamo",
    "lstm_last_states.script",
    "gru_states.dynamo",
    "feature_mean.script",
    "causal_window.dynamo",
    "keras_bilstm.tf2onnx",
    "learned_start.script",
)


def load(name):
    return fastrnn.load(FILES / f"{name}.onnx", threads=1)


@pytest.fixture(scope="module")
def example():
    return fastrnn.load(ROOT / "examples" / "tone_words.onnx", threads=1)


def check(model, rows, scorer):
    answers = scorer(score_rows.batch_of(rows))
    assert answers.num_rows == len(rows)
    for i, row in enumerate(rows):
        for name, want in score_rows.alone(model, row).items():
            got = score_rows.lists(answers.column(answers.schema.get_field_index(name)).slice(i, 1))[0]
            assert score_rows.same(got, want), (i, name)


@pytest.mark.parametrize("name", NAMES)
def test_rows_have_the_bits_of_each_alone(name):
    model, rng = load(name), np.random.default_rng(3)
    sizes = dict.fromkeys(model._core._open_sizes, 5)
    rows = [score_rows.row(model, steps, rng, sizes) for steps in (9, 6, 19, 12, 9, 7, 30)]
    with Scorer(model, threads=2) as scorer:
        check(model, rows, scorer)


@pytest.mark.parametrize("name", ["gru_stacked.script", "birnn.script"])
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20), threads=st.integers(1, 3), seed=st.integers(0, 99)
)
@settings(max_examples=25, deadline=None)
def test_any_lengths(name, lengths, threads, seed):
    model, rng = load(name), np.random.default_rng(seed)
    with Scorer(model, threads=threads) as scorer:
        check(model, [score_rows.row(model, n, rng) for n in lengths], scorer)


@pytest.mark.parametrize("name", ["gru_stacked.script", "causal_window.dynamo", "last_step.script"])
def test_long_rows_go_in_chunks(name, monkeypatch):
    """Rows that lag, too: what the stream held back comes at its end."""
    monkeypatch.setattr(running, "LONG", 8)
    monkeypatch.setattr(running, "_is_plain", lambda model: False)  # rows run whole, or by a stream
    streamed = []
    stream = running.Running._stream
    monkeypatch.setattr(running.Running, "_stream", lambda self, row: streamed.append(1) or stream(self, row))
    model, rng = load(name), np.random.default_rng(0)
    rows = [score_rows.row(model, steps, rng) for steps in (50, 7, 33, 8)]
    with Scorer(model) as scorer:
        check(model, rows, scorer)
    expected = 3
    assert len(streamed) == expected


def test_a_model_of_one_step_runs_as_a_stream(published_models):
    model = fastrnn.load(published_models / "dtln_1.onnx", threads=1)
    rng = np.random.default_rng(0)
    rows = [score_rows.row(model, n, rng) for n in (5, 1, 12)]
    with Scorer(model) as scorer:
        check(model, rows, scorer)
        flat = pa.RecordBatch.from_pydict(  # without the axes of size 1
            {n: score_rows.column([r[n].reshape(len(r[n]), -1) for r in rows]) for n in rows[0]}
        )
        assert scorer(flat).equals(scorer(score_rows.batch_of(rows)))


def test_columns_of_other_names():
    model = fastrnn.from_equations(
        "h = tanh(W @ x + R @ prev(h) + s); y = h * a",
        W=np.eye(3, dtype=np.float32),
        R=np.eye(3, dtype=np.float32) / 2,
        s=np.ones(3, np.float32),
        a=np.full(3, 2, np.float32),
    )
    rng = np.random.default_rng(0)
    rows = [score_rows.row(model, n, rng) for n in (4, 1, 9)]
    with Scorer(model, inputs={"x": "frames"}, outputs={"y": "score"}) as scorer:
        batch = pa.RecordBatch.from_pydict(
            {"id": pa.array([7, 8, 9]), "frames": score_rows.column([r["x"] for r in rows])}
        )
        found = scorer(batch)
    assert found.schema.names == ["id", "score"]
    for got, row in zip(score_rows.lists(found.column(1)), rows, strict=True):
        assert score_rows.same(got, score_rows.alone(model, row)["y"])


def test_a_state_with_a_column_starts_there():
    model = load("gru_states.dynamo")
    ((name, end),) = model.graph.states.items()
    rng = np.random.default_rng(0)
    rows = [score_rows.row(model, n, rng) for n in (6, 9, 6)]
    info = {i.name: i for i in model.inputs}[name]
    batch_axis = [str(d) for d in info.dims].index("batch")
    starts = [rng.standard_normal([d for d in info.dims if d != "batch"]).astype(np.float32) for _ in rows]
    batch = score_rows.batch_of([{**r, name: s} for r, s in zip(rows, starts, strict=True)])
    outputs = [o.name for o in model.outputs]
    with Scorer(model, inputs={name: name}, outputs=outputs) as scorer:
        found = scorer(batch)
    infos = {i.name: i for i in (*model.inputs, *model.outputs)}
    assert end in outputs
    for i, row in enumerate(rows):
        feeds = {n: score_rows.whole(infos[n], a) for n, a in row.items()}
        feeds[name] = np.expand_dims(starts[i], batch_axis)
        for o, want in zip(outputs, model.run(**feeds), strict=True):
            got = score_rows.lists(found.column(found.schema.get_field_index(o)))[i]
            assert score_rows.same(got, score_rows.back(infos[o], want)), o


# -- bad rows --
BAD = {
    "is null": None,
    "holds NaN": [[0.0] * 19 + [float("nan")]],
    "step 1 has 19 numbers where 20 are expected": [[0.0] * 20, [0.0] * 19],
    "is empty": [],
    "holds a null where a list is expected": [None, [0.0] * 20],
    "holds a null where a number is expected": [[0.0] * 19 + [None]],
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_row_is_named(example, text):
    good = [[0.5] * 20] * 3
    batch = pa.RecordBatch.from_pydict(
        {"bands": pa.array([good, good, BAD[text], good], pa.list_(pa.list_(pa.float32())))}
    )
    for sliced, row in ((batch, 2), (batch.slice(1), 1)):
        with Scorer(example) as scorer, pytest.raises(BadRow, match=f"row {row} of the batch: column 'bands' {text}"):
            scorer(sliced)
        with Scorer(example, on_error="null") as scorer:
            found = scorer(sliced)
        answers, errors = found.column(0).to_pylist(), found.column(1).to_pylist()
        assert [a is None for a in answers] == [i == row for i in range(len(answers))]
        assert [e is not None and text in e for e in errors] == [i == row for i in range(len(answers))]
        want = example(np.full((1, 3, 20), 0.5, np.float32))[0]
        assert np.array_equal(np.asarray(answers[0], np.float32), want)


def test_nan_passes_where_it_is_allowed(example):
    x = np.zeros((3, 20), np.float32)
    x[1, 4] = np.nan
    batch = score_rows.batch_of([{"bands": x}, {"bands": np.zeros((3, 20), np.float32)}])
    with Scorer(example, allow_nan=True) as scorer:
        first, second = score_rows.lists(scorer(batch).column(0))
    assert np.isfinite(first[0]).all()
    assert np.isnan(first[1:]).any()
    assert np.isfinite(second).all()


def test_an_id_outside_of_its_table_is_one_row():
    model = load("language_model.dynamo")
    (info,) = score_rows.plain_inputs(model)
    rows = [np.array([0, 1, 0]), np.array([0, 10**6, 0]), np.array([1, 1])]
    batch = pa.RecordBatch.from_pydict({info.name: score_rows.column(rows)})
    with Scorer(model, on_error="null") as scorer:
        found = scorer(batch)
    errors = found.column("error").to_pylist()
    assert [e is None for e in errors] == [True, False, True]
    with Scorer(model) as scorer, pytest.raises(BadRow, match="row 1 of the batch"):
        scorer(batch)


# -- columns --
def test_types_of_columns(example):
    rng = np.random.default_rng(0)
    rows = rng.integers(-3, 4, (4, 5, 20))
    want = [example(r[None].astype(np.float32))[0] for r in rows]
    flat = {
        "fixed": pa.array(rows.astype(np.float32).tolist(), pa.list_(pa.list_(pa.float32(), 20), 5)),
        "large": pa.array(rows.tolist(), pa.large_list(pa.large_list(pa.int16()))),
        "half": pa.array([[list(map(np.float16, s)) for s in r] for r in rows], pa.list_(pa.list_(pa.float16()))),
        "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(rows.astype(np.float32)),
    }
    with Scorer(example) as scorer:
        for name, array in flat.items():
            found = scorer(pa.RecordBatch.from_pydict({"id": pa.array(range(4)), "bands": array}))
            for got, one in zip(score_rows.lists(found.column(1)), want, strict=True):
                assert np.array_equal(got, one), name
    double = pa.array(rows.astype(np.float64).tolist(), pa.list_(pa.list_(pa.float64())))
    batch = pa.RecordBatch.from_pydict({"bands": double})
    with Scorer(example) as scorer, pytest.raises(fastrnn.FastRNNError, match=r"takes float32, .* float64: .*--cast"):
        scorer(batch)
    with Scorer(example, cast=True) as scorer:
        assert np.array_equal(score_rows.lists(scorer(batch).column(0))[2], want[2])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"inputs": {"nope": "x"}}, "has no input 'nope'; its inputs are"),
        ({"inputs": {"bands": "nope"}}, "input bands: column 'nope' is not in the data, whose columns are"),
        ({"outputs": ["nope"]}, "has no output 'nope'; its outputs are"),
        ({"outputs": "words"}, "outputs must be a list of names"),
        ({"outputs": {"words": "id"}}, "two columns 'id': give the output another name"),
        ({"columns": ["nope"]}, "no column 'nope'; they have"),
        ({"columns": "some"}, "columns must be 'rest', 'all', 'none' or a list"),
        ({"on_error": "skip"}, "on_error must be 'fail' or 'null'"),
        ({"threads": 0}, "threads must be an int in 1"),
    ],
)
def test_what_does_not_fit_is_refused(example, options, text):
    rows = [{"bands": np.zeros((2, 20), np.float32)}]
    with pytest.raises(fastrnn.FastRNNError, match=text), Scorer(example, **options) as scorer:
        scorer(score_rows.batch_of(rows, id=pa.array([1])))


def test_a_column_of_another_depth_is_refused(example):
    batch = pa.RecordBatch.from_pydict({"bands": pa.array([[0.0] * 40], pa.list_(pa.float32()))})
    with Scorer(example) as scorer, pytest.raises(fastrnn.FastRNNError, match=r"\[T, 20\].* 2 levels of lists.* has 1"):
        scorer(batch)
    batch = pa.RecordBatch.from_pydict({"bands": pa.array([[["a"]]])})
    with Scorer(example) as scorer, pytest.raises(fastrnn.FastRNNError, match="numbers are expected, got string"):
        scorer(batch)


def test_which_columns_come_along(example):
    batch = score_rows.batch_of([{"bands": np.zeros((2, 20), np.float32)}], id=pa.array([5]), who=pa.array(["a"]))
    expected = {"rest": ["id", "who", "words"], "all": ["bands", "id", "who", "words"], "none": ["words"]}
    for columns_, names in [*expected.items(), (("who",), ["who", "words"])]:
        with Scorer(example, columns=columns_) as scorer:
            assert scorer(batch).schema.names == names
            assert scorer.schema(batch.schema).names == names


def test_no_rows(example):
    batch = score_rows.batch_of([{"bands": np.zeros((2, 20), np.float32)}]).slice(1)
    with Scorer(example) as scorer:
        found = scorer(batch)
    assert found.num_rows == 0
    assert found.schema.field("words").type == pa.list_(pa.list_(pa.float32()))


def test_too_many_numbers_of_one_batch(example, monkeypatch):
    monkeypatch.setattr(columns, "MOST_VALUES", 10)
    batch = score_rows.batch_of([{"bands": np.zeros((9, 20), np.float32)}])
    with Scorer(example) as scorer, pytest.raises(fastrnn.FastRNNError, match="pass a smaller batch_rows"):
        scorer(batch)


def test_a_scorer_can_be_pickled(example):
    batch = score_rows.batch_of([{"bands": np.ones((4, 20), np.float32)}], id=pa.array([1]))
    scorer = Scorer(example, threads=1, outputs={"words": "y"}, columns=["id"], on_error="null")
    with scorer, pickle.loads(pickle.dumps(scorer)) as other:
        assert other(batch).equals(scorer(batch))
        assert other.options == scorer.options


def test_beside_onnxruntime(example):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(ROOT / "examples" / "tone_words.onnx"))
    rng = np.random.default_rng(5)
    rows = [{"bands": rng.standard_normal((n, 20)).astype(np.float32)} for n in (40, 3, 17)]
    with Scorer(example) as scorer:
        found = score_rows.lists(scorer(score_rows.batch_of(rows)).column(0))
    for got, row in zip(found, rows, strict=True):
        (want,) = session.run(None, {"bands": row["bands"][None]})
        assert np.abs(got - want[0]).max() < 2e-6
