"""Models as PyTorch's two exporters and tf2onnx write them: read, run, streamed, saved, verified.

One entry of tests/data/manifest.json is one file; adding an entry tests the file. tests/data/README.md says how the
files are made and what is special about them.
"""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

import fastrnn

DATA = Path(__file__).resolve().parents[2] / "data"
MANIFEST = json.loads((DATA / "manifest.json").read_text())

# The answers were computed in float64 and rounded once. onnxruntime is at most 5.4e-7 away from them on these files,
# where |y| is at most about 4; three times that leaves room for another order of summation, and a wrong gate, bias or
# activation is a thousand times more.
TOLERANCE = 1.5e-6

HOSTILE = [e for e in MANIFEST if "refused" in e]
RUN = [e for e in MANIFEST if "refused" not in e]
STREAMED = [e for e in RUN if e["streamable"]]
TIMED = [e for e in STREAMED if any("time" in axes for axes in e["inputs"].values())]
WHOLE_ONLY = [e for e in RUN if not e["streamable"]]


def each(entries):
    """Parametrise a test over manifest entries."""
    return pytest.mark.parametrize("entry", entries, ids=lambda e: Path(e["file"]).stem)


@functools.lru_cache(maxsize=8)
def model_of(file):
    """The loaded model (tests of one file run one after another)."""
    return fastrnn.load(DATA / file)


@functools.lru_cache(maxsize=8)
def golden_of(file):
    """name -> array, all runs."""
    with np.load(DATA / file) as archive:
        return dict(archive)


def feeds_of(entry, k):
    """Inputs of golden run k, by name."""
    return {n: golden_of(entry["golden"])[f"r{k}.{n}"] for n in entry["inputs"]}


def answers_of(entry, k):
    """Outputs of golden run k, in order."""
    return [golden_of(entry["golden"])[f"r{k}.{n}"] for n in entry["outputs"]]


def axis_of(entry, name, kind):
    """Which axis of an input or output is batch, or time; None where there is none."""
    axes = {**entry["inputs"], **entry["outputs"]}[name]
    return axes.index(kind) if kind in axes else None


def pick_row(entry, name, array, row):
    """One row of the batch, kept as a batch of one, on whatever axis it is."""
    axis = axis_of(entry, name, "batch")
    return array if axis is None else np.take(array, [row], axis)


def as_stream(entry, name, array, row):
    """A row in the form that streams take and give: [time, features...], or [features...] without time."""
    array = np.take(array, row, axis_of(entry, name, "batch"))
    axes = [a for a in {**entry["inputs"], **entry["outputs"]}[name] if a != "batch"]
    return np.moveaxis(array, axes.index("time"), 0) if "time" in axes else array


def plain_names(entry):
    """Inputs and outputs that a stream has: those that are no threaded states."""
    ins = [n for n in entry["inputs"] if n not in entry["states"]]
    return ins, [n for n in entry["outputs"] if n not in entry["states"].values()]


def opened(entry, model, **options):
    """A stream; attention over all steps takes the bound that the manifest says."""
    return model.stream(**options, **({"context": entry["context"]} if "context" in entry else {}))


def one_or_tuple(arrays):
    """As streams take inputs: the array itself where there is one."""
    arrays = tuple(arrays)
    return arrays[0] if len(arrays) == 1 else arrays


def as_tuple(result):
    """As streams give outputs: always a tuple."""
    return result if isinstance(result, tuple) else (result,)


def assert_same_bits(got, expected, what):
    """Equal shapes and bytes."""
    assert got.shape == expected.shape, what
    assert got.tobytes() == expected.tobytes(), f"{what}: differs by up to {np.abs(got - expected).max()}"


def zero_states(entry, feeds):
    """The same feeds with threaded states at zero, where a stream starts."""
    return {n: np.zeros_like(a) if n in entry["states"] else a for n, a in feeds.items()}


@pytest.mark.any_isa
def test_manifest_and_folder_agree():
    files = {f"onnx/{p.name}" for p in (DATA / "onnx").glob("*.onnx")}
    goldens = {f"onnx/{p.name}" for p in (DATA / "onnx").glob("*.npz")}
    assert files == {e["file"] for e in MANIFEST}
    assert goldens == {e["golden"] for e in MANIFEST if "golden" in e}
    assert sum(p.stat().st_size for p in DATA.rglob("*.*")) < 9 << 19  # 4.5 MiB, of which 1 is programs.tar.xz


@each(RUN)
@pytest.mark.any_isa
def test_batch_and_time_are_free(entry):
    """Whatever the file wrote down, batch and time of inputs and outputs are symbols."""
    model = model_of(entry["file"])
    for info in model.inputs + model.outputs:
        axes = {**entry["inputs"], **entry["outputs"]}[info.name]
        assert list(info.dims) == axes, info.name


@each(RUN)
@pytest.mark.parametrize("k", [0, 1, 2], ids=["exported", "other", "one"])
def test_equals_framework(entry, k):
    """As the framework answers: at the exported length and batch, at another, and at one step of one row."""
    outputs = model_of(entry["file"]).run(**feeds_of(entry, k))
    for name, got, expected in zip(entry["outputs"], outputs, answers_of(entry, k), strict=True):
        np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


@each(RUN)
def test_rows_alone_have_the_bits_of_the_batch(entry):
    model, feeds = model_of(entry["file"]), feeds_of(entry, 1)
    together = model.run(**feeds)
    for row in range(3):
        alone = model.run(**{n: pick_row(entry, n, a, row) for n, a in feeds.items()})
        for name, a, b in zip(entry["outputs"], alone, together, strict=True):
            assert_same_bits(a, pick_row(entry, name, b, row), f"{name}, row {row}")


@each(TIMED)
def test_rows_that_end_early(entry):
    """lengths: each row as if it were run alone, cut."""
    model, feeds = model_of(entry["file"]), feeds_of(entry, 1)
    lengths = [4, 11, 1]
    ragged = model.run(**feeds, lengths=lengths)
    for row, length in enumerate(lengths):
        alone = {n: pick_row(entry, n, a, row) for n, a in feeds.items()}
        for name in alone:
            if (axis := axis_of(entry, name, "time")) is not None:
                alone[name] = np.take(alone[name], range(length), axis)
        for name, whole, expected in zip(entry["outputs"], ragged, model.run(**alone), strict=True):
            got = pick_row(entry, name, whole, row)
            if (axis := axis_of(entry, name, "time")) is not None:
                assert not np.take(got, range(length, 11), axis).any(), f"{name}, row {row}: not zero after its end"
                got = np.take(got, range(length), axis)
            assert_same_bits(got, expected, f"{name}, row {row}")


def cuts(steps, random):
    """Random chunk lengths, zeros among them, that add up to `steps`."""
    inner = np.sort(random.integers(0, steps + 1, 4))
    return np.diff([0, *inner, steps])


@each(TIMED)
def test_stream_has_the_bits_of_the_run(entry):
    """Step by step, and in random chunks, one stream at a time: the bits of the whole run's row."""
    model = model_of(entry["file"])
    feeds = zero_states(entry, feeds_of(entry, 1))
    whole = dict(zip(entry["outputs"], model.run(**feeds), strict=True))
    ins, outs = plain_names(entry)
    random = np.random.default_rng(7)
    for row in range(3):
        xs = [as_stream(entry, n, feeds[n], row) for n in ins]
        ys = [as_stream(entry, n, whole[n], row) for n in outs]
        check_steps(entry, opened(entry, model), xs, ys, outs)
        check_chunks(entry, opened(entry, model), xs, ys, outs, cuts(11, random))


def check_steps(entry, stream, xs, ys, outs):
    """Feed one step at a time; every step's output has the run's bits, an untimed one the run's at the end."""
    for t in range(11):
        answers = as_tuple(stream.step(one_or_tuple(x[t] for x in xs)))
        for name, got, expected in zip(outs, answers, ys, strict=True):
            if axis_of(entry, name, "time") is not None:
                assert_same_bits(got, expected[t], f"{name}, step {t}")
            elif t == 10:
                assert_same_bits(got, expected, f"{name} after the last step")


def check_chunks(entry, stream, xs, ys, outs, lengths):
    """Feed chunks of the given lengths."""
    start = 0
    last = [None] * len(outs)
    for length in lengths:
        answers = as_tuple(stream.push(one_or_tuple(x[start : start + length] for x in xs)))
        for i, (name, got, expected) in enumerate(zip(outs, answers, ys, strict=True)):
            if axis_of(entry, name, "time") is not None:
                assert_same_bits(got, expected[start : start + length], f"{name}, steps {start}..{start + length}")
            elif length:
                last[i] = got
        start += length
    for name, got, expected in zip(outs, last, ys, strict=True):
        if axis_of(entry, name, "time") is None:
            assert_same_bits(got, expected, f"{name} after the last chunk")


@each(TIMED)
def test_lock_step_streams_have_the_bits_of_the_run(entry):
    model = model_of(entry["file"])
    feeds = zero_states(entry, feeds_of(entry, 1))
    whole = dict(zip(entry["outputs"], model.run(**feeds), strict=True))
    ins, outs = plain_names(entry)
    stream = opened(entry, model, batch_size=3)
    for t in range(11):
        rows = [[as_stream(entry, n, feeds[n], row)[t] for row in range(3)] for n in ins]
        answers = as_tuple(stream.step(one_or_tuple(np.stack(r) for r in rows)))
        for name, got in zip(outs, answers, strict=True):
            expected = np.stack([as_stream(entry, name, whole[name], row) for row in range(3)])
            if axis_of(entry, name, "time") is not None:
                assert_same_bits(got, expected[:, t], f"{name}, step {t}")
            elif t == 10:
                assert_same_bits(got, expected, name)


@each([e for e in STREAMED if e["states"]])
def test_threaded_states_are_paired(entry):
    """A stream keeps what the caller threads through `run` by hand."""
    model = model_of(entry["file"])
    assert dict(model.graph.states) == entry["states"]
    feeds = zero_states(entry, feeds_of(entry, 2))
    ins, outs = plain_names(entry)
    stream = opened(entry, model, batch_size=1)
    for _ in range(3):
        results = dict(zip(entry["outputs"], model.run(**feeds), strict=True))
        x = [np.squeeze(feeds[n], axis_of(entry, n, "time")) if "time" in entry["inputs"][n] else feeds[n] for n in ins]
        for name, got in zip(outs, as_tuple(stream.step(one_or_tuple(x))), strict=True):
            assert_same_bits(got.ravel(), results[name].ravel(), name)
        feeds |= {a: results[b] for a, b in entry["states"].items()}


@each(WHOLE_ONLY)
def test_needs_the_future(entry):
    """What needs the whole sequence can't stream: the error names each such node, and no other."""
    model = model_of(entry["file"])
    assert not model.streamable
    with pytest.raises(fastrnn.StreamError) as caught:
        model.stream()
    named = {n.name for n in model.graph.nodes if f"node {n.name} (" in str(caught.value)}
    assert named == {n.name for n in model.graph.nodes if needs_all_steps(model.graph, n)}
    assert named


def needs_all_steps(graph, node) -> bool:
    """A reverse cell, or a slice that turns the steps around."""
    if node.op == "cell":
        return node.attrs["spec"].reverse
    turned = node.op == "slice" and node.attrs["step"] < 0
    return turned and not isinstance(graph.values[node.inputs[0]].dims[node.attrs["axis"]], int)


@each(RUN)
def test_saved_model_has_the_same_bits(entry, tmp_path):
    model = model_of(entry["file"])
    model.save(tmp_path / "m.fastrnn")
    again = fastrnn.load(tmp_path / "m.fastrnn")
    assert again.fingerprint == model.fingerprint
    for a, b in zip(model.run(**feeds_of(entry, 1)), again.run(**feeds_of(entry, 1)), strict=True):
        assert_same_bits(b, a, "after saving")


@each(RUN)
def test_verify(entry):
    """fastrnn.verify finds that the file is answered as onnxruntime does."""
    pytest.importorskip("onnxruntime", reason="verify compares with onnxruntime, which is not installed")
    # An nn.RNN that was unrolled into a sequence of 7 steps answers 7 steps elsewhere, whatever it is given.
    sizes = {"sizes": [(2, 7), (5, 7)]} if "SequenceAt" in entry["ops"] else {}
    report = fastrnn.verify(DATA / entry["file"], **sizes)
    assert report.ok, str(report)
    assert report.runs


@each(HOSTILE)
@pytest.mark.any_isa
def test_a_spoilt_file_is_refused(entry):
    """What no other engine runs either: an error that names the part, never an answer."""
    with pytest.raises(fastrnn.FastRNNError, match=entry["refused"]) as caught:
        fastrnn.load(DATA / entry["file"])
    assert Path(entry["file"]).name in str(caught.value)


@pytest.mark.any_isa
def test_files_hold_no_traces_of_the_exporting_machine():
    """Exporters write stack traces into node metadata: paths, and three times the size."""
    for path in [*(DATA / "onnx").glob("*.onnx"), *(DATA.parent.parent / "examples").glob("*.onnx")]:
        content = path.read_bytes()
        assert b"site-packages" not in content, path.name
        assert b'File "' not in content, path.name
