"""Published models, through the importer and the reference, against what onnxruntime answers on real audio."""

from pathlib import Path

import numpy as np
import pytest

from fastrnn.errors import ShapeError, UnsupportedError
from fastrnn.graph import reference
from fastrnn.graph.dims import BATCH, TIME, symbols
from fastrnn.importers.onnx import import_onnx

MODELS = Path(__file__).resolve().parents[4] / "shared" / "models"
pytestmark = pytest.mark.skipif(not MODELS.is_dir(), reason="the published models are not beside the repository")


def stepped(graph, data, frames):
    """The outputs of each frame, states fed back. data: the k-th frame's feeds; states start at zero."""
    carried, answers = {}, []
    for k in range(frames):
        feeds = data(k)
        for name in graph.states:
            value = graph.values[name]
            rows = next(iter(feeds.values())).shape[0]
            carried.setdefault(name, np.zeros([rows if d == BATCH else d for d in value.dims]))
        outputs = dict(zip(graph.outputs, reference.run(graph, {**feeds, **carried}), strict=True))
        carried = {name: outputs[after] for name, after in graph.states.items()}
        answers.append(outputs)
    return answers


def golden(name):
    return np.load(MODELS / f"{name}.npz")


def frees(graph):
    return {s for name in graph.inputs for d in graph.values[name].dims for s in symbols(d)}


@pytest.mark.parametrize(
    ("stage", "sequence", "state", "cells"), [(1, "input_2", "input_3", 2), (2, "input_4", "input_5", 2)]
)
def test_dtln(stage, sequence, state, cells):
    graph, theirs = import_onnx(MODELS / f"dtln_{stage}.onnx"), golden(f"dtln_{stage}")
    assert graph.values[sequence].dims[:2] == (BATCH, TIME)
    assert list(graph.states) == [state]
    assert sum(n.op == "cell" for n in graph.nodes) == cells
    frames = theirs[sequence].shape[1]
    answers = stepped(graph, lambda k: {sequence: theirs[sequence][:, k : k + 1]}, frames)
    out = np.concatenate([a[graph.outputs[0]] for a in answers], axis=1)
    np.testing.assert_allclose(out, theirs["out"], atol=1e-4)
    np.testing.assert_allclose(answers[-1][graph.outputs[1]], theirs["state_out"], atol=1e-4)
    # All frames at once, and two rows at once, are what the frames one by one are.
    zeros = np.zeros((2, *graph.values[state].dims[1:]))
    both = np.concatenate([theirs[sequence], theirs[sequence][:, ::-1]])
    y, end = reference.run(graph, {sequence: both, state: zeros})
    np.testing.assert_allclose(y[:1], out, atol=1e-10)
    np.testing.assert_allclose(end[:1], answers[-1][graph.outputs[1]], atol=1e-10)


def test_gtcrn():
    graph, theirs = import_onnx(MODELS / "gtcrn_simple.onnx"), golden("gtcrn_simple")
    assert dict(graph.states) == {f"{n}_cache": f"{n}_cache_out" for n in ("conv", "tra", "inter")}
    assert frees(graph) == {"batch"}
    assert graph.values["mix"].dims == (BATCH, 257, 1, 2)
    mix = theirs["mix"]
    frames = mix.shape[2]
    answers = stepped(graph, lambda k: {"mix": mix[:, :, k : k + 1]}, frames)
    enh = np.concatenate([a["enh"] for a in answers], axis=2)
    np.testing.assert_allclose(enh, theirs["enh"], atol=1e-4)
    for name in ("conv", "tra", "inter"):
        np.testing.assert_allclose(answers[-1][f"{name}_cache_out"], theirs[f"{name}_cache_out"], atol=1e-4)
    # Rows of a batch are streams of their own.
    rows = [mix[:, :, k : k + 1] for k in range(8)]
    pair = stepped(graph, lambda k: {"mix": np.concatenate([rows[7 - k], rows[k]])}, 8)
    for k in range(8):
        np.testing.assert_allclose(pair[k]["enh"][1:], answers[k]["enh"], atol=1e-10)


def test_silero():
    with pytest.raises(UnsupportedError, match=r"computed from the input 'sr'; fix that with bind="):
        import_onnx(MODELS / "silero_vad_v5.onnx")
    graph, theirs = import_onnx(MODELS / "silero_vad_v5.onnx", bind={"sr": 16000}), golden("silero_vad_v5")
    assert dict(graph.states) == {"state": "stateN"}
    assert graph.inputs == ("input", "state")
    assert graph.values["input"].dims[0] == BATCH
    x = theirs["input"]
    answers = stepped(graph, lambda k: {"input": x[k]}, len(x))
    out = np.stack([a["output"] for a in answers])
    np.testing.assert_allclose(out, theirs["output"], atol=1e-4)
    np.testing.assert_allclose(answers[-1]["stateN"], theirs["stateN"], atol=1e-4)
    both = stepped(graph, lambda k: {"input": np.concatenate([x[9 - k], x[k]])}, 10)
    np.testing.assert_allclose(np.stack([a["output"][1:] for a in both]), out[:10], atol=1e-10)
    # Inputs that make two frames of the encoder are none that the file can take.
    with pytest.raises(ShapeError, match="the model takes inputs where it is 1"):
        reference.run(graph, {"input": np.zeros((1, 1024)), "state": np.zeros((2, 1, 128))})
    other = import_onnx(MODELS / "silero_vad_v5.onnx", bind={"sr": 8000})
    y, _ = reference.run(other, {"input": x[0][:, :288], "state": np.zeros((2, 1, 128))})
    assert 0 <= y[0, 0] <= 1
