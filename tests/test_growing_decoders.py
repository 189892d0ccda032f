"""Decoders with growing caches as both of PyTorch's exporters write them: streams ask for the tokens, and answer as
onnxruntime."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the models are PyTorch's")
pytest.importorskip("onnxscript", reason="PyTorch's exporters need it")
pytest.importorskip("onnxruntime", reason="it is what the answers are compared with")
ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

from modern import decoders  # noqa: E402
from modern.speech.files import seeded  # noqa: E402
from modern.speech.trials import by_onnxruntime  # noqa: E402

PAGE = (ROOT / "docs" / "guide" / "modern.md").read_text()
CASES = {case.name: case for case in decoders.CASES}


@pytest.mark.parametrize("name", CASES)
def test_every_trial_passes(name):
    case = CASES[name]
    assert decoders.tried(case, decoders.exported(seeded(case.make), "script")) == {}


def test_the_newer_exporter_too():
    case = CASES["Llama"]
    assert decoders.tried(case, decoders.exported(seeded(case.make), "dynamo")) == {}


@pytest.mark.any_isa
def test_the_page_has_a_row_for_each_decoder():
    table = PAGE.split("<!-- table of decoders: tools/speech_table.py -->")[1].split("<!-- end")[0]
    rows = {row.split("|")[1].strip() for row in table.splitlines() if row.endswith("| yes | yes |")}
    assert rows == set(CASES)


def test_the_trials_can_fail(monkeypatch):
    case = CASES["OPT"]
    content = decoders.exported(seeded(case.make), "script")
    other = decoders.Case("another", case.make, ("input_ids", "position_ids"))
    assert decoders.tried(other, content) == {"asks": "for input_ids"}
    step = decoders._step
    monkeypatch.setattr(decoders, "_step", lambda data, row, t: step(data, row, max(t, 1)))
    assert decoders.tried(case, content) == {"bits": "of the lone stream 0 differ"}
    monkeypatch.setattr(decoders, "by_onnxruntime", lambda content: _other(content))
    assert "in calls of (1, 1" in decoders.tried(case, content)["answers"]


def _other(content):
    """A call that sees one step less in the mask, as a caller might hand it by mistake."""
    run = by_onnxruntime(content)

    def call(feeds):
        mask = feeds["attention_mask"].copy()
        mask[:, :1] = mask.shape[1] == 1
        return run({**feeds, "attention_mask": mask})

    return call
