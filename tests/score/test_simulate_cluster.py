"""tools/simulate_cluster.py in a tiny form: no answer is wrong, and the figures are what they must be."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parent.parent.parent
TINY = "--nodes 10 --streams 120 --days 100 --failures 5 --rate 5 --detect 4 --shards 2".split()


@pytest.fixture(scope="module")
def tool():
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("simulate_cluster", ROOT / "tools" / "simulate_cluster.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def test_failures_lose_time_and_no_step(tool, capsys):
    assert tool.main([*TINY, "--json", "--cut-off", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["failures"] == found["played"] == np.random.default_rng(0).poisson(5)
    assert (found["wrong_answers"], found["lost_steps"]) == (0, 0)
    assert found["interrupted_streams"] == 12 * found["failures"]
    # The virtual clock makes these exact: the silence is 4 s, give or take 30 %, and the rest is recovery.
    stall = found["lost_seconds_per_failure"]
    assert 0.7 * 4 < stall["p50"] <= stall["max"] < 1.3 * 4 + 3
    assert found["lost_seconds_per_stream"] == pytest.approx(found["share_of_time_lost"] * 100 * 86400)
    # At least what came in the silence is sent again, at most that and what two checkpoints hold.
    assert 0.7 * 4 * 5 * 0.5 < found["replayed_steps_per_stream"]["mean"] < (1.3 * 4 + 6) * 5
    assert 120 * tool.STATE_BYTES / 4 < found["checkpoint_bytes_per_second"] < 120 * tool.STATE_BYTES * 3


def test_a_node_that_is_cut_off_changes_no_answer(tool, capsys):
    assert tool.main([*TINY, "--cut-off", "1", "--most", "4"]) == 0
    text = capsys.readouterr().out
    assert "lost steps   0; wrong answers 0" in text


def test_a_wrong_answer_is_noticed(tool, monkeypatch, capsys):
    from simulated import Streams

    real = Streams.step
    monkeypatch.setattr(
        Streams, "step", lambda self, slots, arrays, lengths: [real(self, slots, arrays, lengths)[0] ^ 1]
    )
    assert tool.main([*TINY, "--most", "1"]) == 1
    assert "wrong answers 0" not in capsys.readouterr().out
