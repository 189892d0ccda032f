"""The models of docs/guide/modern.md: the page has a row for each, and files of some pass every trial."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the models are PyTorch's")
pytest.importorskip("onnxscript", reason="PyTorch's exporters need it")
ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

import modern_table  # noqa: E402
from modern.forms import exported, forms_of  # noqa: E402
from modern.registry import LISTED  # noqa: E402
from modern.trials import try_file  # noqa: E402

PAGE = (ROOT / "docs" / "guide" / "modern.md").read_text()


@pytest.mark.any_isa
def test_the_page_has_a_row_for_each_model():
    rows = {line.split("|")[1].strip(): line for line in PAGE.splitlines() if line.startswith("| ")}
    assert len(LISTED) >= 40
    assert set(LISTED) <= set(rows)


@pytest.mark.parametrize(
    "name",
    [
        "minGRU",
        "Mamba-1 by flips",
        "RetNet",
        "Mamba-2 by segsum",
        "Mamba-2 in chunks",
        "DeltaNet in chunks",
        "FSMN-VAD",
    ],
)
def test_every_trial_passes(name):
    """Of the files by the older exporter, which is quick."""
    verdicts = {}
    for form, exporter, module in forms_of(LISTED[name]):
        if exporter == "script" and (form, name) != ("loop", "FSMN-VAD"):
            verdicts[form] = try_file(LISTED[name], form, exporter, exported(LISTED[name], form, exporter, module))
    assert "step" in verdicts
    assert {form: trial.verdict for form, trial in verdicts.items()} == dict.fromkeys(verdicts, "yes")


@pytest.mark.any_isa
def test_the_table_names_what_fails():
    """A form of which one file fails is not called yes, and the reason is below the table."""
    good, bad = (modern_table.Trial("parallel", e) for e in ("script", "dynamo"))
    bad.failed["streams"] = "node a (softmax): needs the future"
    text = modern_table.table({"A model": [good, bad]})
    assert "| A model | - | - | - | one of two |" in text
    assert "* A model, parallel (dynamo): streams: node a (softmax): needs the future" in text
    assert "1 models, 2 files; 1 of them pass every trial." in text
