"""A few cases of tools/fuzz_sizes.py, and that it sees what it is there to see."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn.runtime.compiled import Compiled

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
import fuzz_sizes  # noqa: E402
import size_models  # noqa: E402

pytestmark = pytest.mark.any_isa


@pytest.mark.parametrize("block", sorted({b.__name__ for b in size_models.BLOCKS}))
def test_made_models_are_right_or_refused_at_any_size(block, monkeypatch):
    monkeypatch.setattr(size_models, "BLOCKS", (getattr(size_models, block), size_models.dense))
    answered = 0
    for seed in range(8):
        try:
            model = fastrnn.load(size_models.make(seed))
        except fastrnn.FastRNNError:
            continue
        for case in range(4):
            assert fuzz_sizes.run_case(model, case) is None
            answered += 1
    assert answered >= 8


@pytest.mark.parametrize("seed", [557103708, 97368533])
def test_made_models_that_once_failed_to_load(seed):
    """Pads beside running sums that depend on the batch or the length: their truth was asked for."""
    model = fastrnn.load(size_models.make(seed))
    for case in range(4):
        assert fuzz_sizes.run_case(model, case) is None


@pytest.mark.parametrize("wrong", ["run", "crash", "lengths"])
def test_what_is_wrong_is_found(wrong, monkeypatch):
    model = fastrnn.load(fuzz_sizes.ROOT / "tests" / "data" / "onnx" / "gru_stacked.dynamo.onnx")
    whole, ragged = Compiled.run_plain, Compiled.run_ragged

    def spoilt(self, arrays, named):
        if wrong == "crash":
            raise ZeroDivisionError("here")
        return tuple(y + np.float32(0.1) for y in whole(self, arrays, named))

    if wrong == "lengths":
        monkeypatch.setattr(Compiled, "run_ragged", lambda *a: tuple(np.nextafter(y, 9) for y in ragged(*a)))
    else:
        monkeypatch.setattr(Compiled, "run_plain", spoilt)
    text = {"run": "WRONG at .*: run, ", "crash": "ZeroDivisionError at .*: here", "lengths": "WRONG at .*: lengths="}
    found = [t for t in (fuzz_sizes.run_case(model, seed) for seed in range(12)) if t is not None]
    assert any(re.match(text[wrong], t) for t in found)


def test_a_child_that_dies_is_named(monkeypatch, tmp_path):
    killer = tmp_path / "child.py"
    killer.write_text(
        "import json, os, sys\njobs = json.load(sys.stdin)\n"
        "print(json.dumps(['start', jobs[0][0], 5]), flush=True)\nos.abort()\n"
    )
    monkeypatch.setattr(fuzz_sizes, "__file__", str(killer))
    jobs = [("made:1", [5, 6]), ("made:2", [7])]
    found, done, left = fuzz_sizes.run_child(jobs, deadline=0)
    assert [(label, seed) for label, seed, _ in found] == [("made:1", 5)]
    assert found[0][2].startswith("exit -6")
    assert (done, left) == (0, jobs[1:])


def test_every_model_of_the_tests_is_fuzzed():
    models = fuzz_sizes.default_models()
    assert len(models) > 200
    assert any(label.startswith("graphs:") for label in models)
    assert any("loops" in label for label in models)
    assert any("corpus" in label for label in models)
