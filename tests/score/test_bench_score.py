"""tools/bench/score.py: its pipelines give the same answers, and it says when a target is missed."""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn.scoring import Scorer
from fastrnn.scoring.shipping import Shipped

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("bench_score", ROOT / "tools" / "bench" / "score.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_engines_answer_alike(tool, tmp_path):
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((n, tool.FEATURES)).astype(np.float32) for n in (9, 3, 7)]
    path, table = tool.onnx_file(tmp_path), tool.table_of(rows)
    theirs = tool.OnnxruntimeActor(str(path))(table)
    ours = Shipped(Scorer(fastrnn.load(path, threads=1), threads=1)).scorer(1)(table.to_batches()[0])
    assert theirs.column_names == ["id", "y", "began", "ended"]
    for a, b in zip(theirs["y"].to_pylist(), ours.column("y").to_pylist(), strict=True):
        assert np.abs(np.array(a) - np.array(b)).max() < 1e-5


def with_ray(ours, theirs, difference=0.0):
    """Figures of one round with Ray."""
    rates = {"run": [1e6], "score": [1e6], "run beside ray": [1e6], "ray": [ours], "onnxruntime": [theirs]}
    return {**rates, "difference": difference, "compared": 9}


@pytest.mark.parametrize(
    ("found", "missed"),
    [
        ({"run": [1e6], "score": [0.91e6]}, 0),
        ({"run": [1e6], "score": [0.89e6]}, 1),
        ({"run": [1e6, 3e6, 2e6], "score": [0.91e6, 1e6, 1.84e6]}, 0),  # the median of the shares
        (with_ray(0.8e6, 0.5e6), 1),
        (with_ray(0.95e6, 0.6e6), 0),
        (with_ray(0.95e6, 0.7e6), 1),
        (with_ray(0.95e6, 0.5e6, float("nan")), 1),
    ],
)
def test_a_missed_target_is_told(tool, found, missed, capsys):
    assert tool.report(found, argparse.Namespace(rows=1, cores=1, json=None)) == missed
    assert "of model.run (target 90 %)" in capsys.readouterr().out
