"""Files as PyTorch's two exporters and tf2onnx write them: imported, evaluated by the reference, held against goldens.

The manifest says which dims must come out free (also where the file froze them) and which states must be paired.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from fastrnn import passes
from fastrnn.errors import FastRNNError
from fastrnn.graph import reference
from fastrnn.importers.onnx import import_onnx

DATA = Path(__file__).resolve().parents[3] / "data"
ENTRIES = json.loads((DATA / "manifest.json").read_text())


def shown(graph, names):
    return {n: [d if isinstance(d, int) else str(d) for d in graph.values[n].dims] for n in names}


def rounds(golden):
    return sorted({key.split(".")[0] for key in golden})


@pytest.mark.parametrize("entry", [e for e in ENTRIES if "golden" in e], ids=lambda e: Path(e["file"]).stem)
def test_file_is_its_framework(entry):
    """At the exported length and batch and at others, before and after the passes."""
    raw = import_onnx(DATA / entry["file"])
    with np.load(DATA / entry["golden"]) as file:
        golden = dict(file)
    assert shown(raw, raw.inputs) == entry["inputs"]
    assert shown(raw, raw.outputs) == entry["outputs"]
    assert dict(raw.states) == entry["states"]
    for graph in (raw, passes.run(raw)):
        for k in rounds(golden):
            answers = reference.run(graph, {n: golden[f"{k}.{n}"] for n in graph.inputs})
            for name, got in zip(graph.outputs, answers, strict=True):
                want = golden[f"{k}.{name}"]
                assert got.shape == want.shape
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5, err_msg=f"{k} {name}")


@pytest.mark.parametrize("entry", [e for e in ENTRIES if "refused" in e], ids=lambda e: Path(e["file"]).stem)
def test_refused_file(entry):
    with pytest.raises(FastRNNError, match=entry["refused"]):
        import_onnx(DATA / entry["file"])


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.get("frozen")], ids=lambda e: Path(e["file"]).stem)
def test_every_thaw_is_noted(entry):
    notes = import_onnx(DATA / entry["file"]).notes
    for name in entry["frozen"]:
        assert any(n.startswith(f"thawed {name}:") for n in notes), notes


def test_recurrences_are_cells():
    """Whatever form the file has (an operator, one copy a step, a Loop), what is left is cells, not steps."""
    for entry in ENTRIES:
        if "golden" in entry and entry["model"] != "step_function":
            graph = passes.run(import_onnx(DATA / entry["file"]))
            cells = sum(node.op == "cell" for node in graph.nodes)
            has = any(op in entry["ops"] for op in ("RNN", "LSTM", "GRU", "Loop", "SequenceAt"))
            assert bool(cells) >= has, entry["file"]
            assert len(graph.nodes) <= 50, entry["file"]


def test_dtln_packs_its_states_in_one_tensor(published_models):
    graph = import_onnx(published_models / "dtln_1.onnx")
    assert dict(graph.states) == {"input_3": "tf_op_layer_stack_2"}
    with np.load(published_models / "dtln_1.npz") as file:
        golden = dict(file)
    x, state = golden["input_2"], np.zeros((1, 2, 128, 2), np.float32)
    outs = []
    for t in range(5):
        y, state = reference.run(graph, {"input_2": x[:, t : t + 1], "input_3": state})
        outs.append(y)
    np.testing.assert_allclose(np.concatenate(outs, axis=1), golden["out"][:, :5], atol=1e-4)
