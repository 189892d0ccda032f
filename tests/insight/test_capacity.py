"""`plan_capacity`: the formulas of docs/guide/capacity.md, and the model beside a pool's steps."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from test_profile import MACHINE

import fastrnn
from fastrnn.cli import main
from fastrnn.insight import capacity, limits

pytestmark = pytest.mark.any_isa
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "tone_words.onnx"


def layer(kind, size, gates):
    rng = np.random.default_rng(0)
    W, R = (rng.standard_normal((gates * size, size)).astype(np.float32) * size**-0.5 for _ in "WR")
    return fastrnn.from_arrays(kind, W=W, R=R, threads=1)


@pytest.fixture(scope="module")
def lstm():
    return layer("lstm", 64, 4)


def plan(model, streams=100_000, rate=100.0, **options):
    return fastrnn.plan_capacity(model, streams, rate, machine=MACHINE, **options)


def test_a_plan_follows_the_formulas(lstm):
    found = plan(lstm, headroom=0.25, efficiency=0.5, cores=10, memory=32, network=25, spare=2)
    assert found.source == "predicted"
    assert found.row_ns == found.costs[-1].predicted_ns
    assert found.streams_per_core == math.floor(0.75 * 0.5 * 1e9 / (100 * found.row_ns))
    assert found.by_cpu == 100_000 / (10 * found.streams_per_core)
    assert found.state_bytes == 4 * 64 * 2
    rate_in, rate_out = 1e7 * (64 * 4 + 16), 1e7 * 64 * 4
    checkpoint = 100_000 * (512 + 256 + capacity.RECORD)
    assert found.checkpoint_bytes == found.checkpoint_rate == checkpoint
    assert found.by_network == 8 * max(rate_in, rate_out + checkpoint) / (0.75 * 25e9)
    needs = {"cores": found.by_cpu, "memory": found.by_memory, "network": found.by_network}
    assert found.bound == max(needs, key=needs.get)
    assert found.machines == math.ceil(max(needs.values())) + 2
    assert found.network_in == rate_in / found.machines
    assert found.lost_streams == math.ceil(100_000 / found.machines)
    assert found.lost_steps == found.lost_streams * 100 * 2
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["machines"] == found.machines


def test_what_grows_with_what(lstm):
    base = plan(lstm, network=1e6)  # bound by cores
    assert base.bound == "cores"
    twice = plan(lstm, streams=200_000, network=1e6)
    assert twice.by_cpu == pytest.approx(2 * base.by_cpu)
    assert plan(lstm, cores=64, network=1e6).by_cpu == pytest.approx(base.by_cpu / 2)
    assert plan(lstm, network=0.1).bound == "network"
    assert plan(lstm, streams=10**9, rate=0.001, memory=8.0).bound == "memory"
    assert plan(lstm, checkpoint_seconds=0).checkpoint_rate == 0
    assert plan(lstm, checkpoint_seconds=5).checkpoint_rate == base.checkpoint_rate / 5
    # A stream that steps once in ten seconds is in every tenth checkpoint.
    assert plan(lstm, rate=0.1).checkpoint_rate == pytest.approx(base.checkpoint_rate / 10)
    assert plan(lstm, headroom=0).recovery_seconds is None
    small = fastrnn.Model(lstm.graph, 1, "int8")
    assert plan(small).memory_bytes < base.memory_bytes


def test_the_state_is_what_a_snapshot_holds(lstm):
    pool = lstm.pool(4)
    slot = pool.open()
    sizes = capacity.stream_sizes(lstm)
    assert sizes.state == sum(np.asarray(v).nbytes for v in pool.state(slot).values())
    assert (sizes.input, sizes.output) == (256, 256)


@pytest.mark.parametrize(("kind", "size", "gates"), [("gru", 64, 3), ("lstm", 128, 4), ("lstm", 256, 4)])
def test_the_model_agrees_with_a_pool_on_this_machine(kind, size, gates, tmp_path, monkeypatch):
    """Within a factor of three, which a busy machine keeps; on a quiet one it is within a third."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(5):  # the machine may be busier during one of the two measurements
        found = fastrnn.plan_capacity(layer(kind, size, gates), 1000, 10.0, measure=True, machine=limits.measure())
        assert found.source == "measured"
        assert found.row_ns == found.costs[-1].measured_ns
        if all(cost.measured_ns / 3 < cost.predicted_ns < 3 * cost.measured_ns for cost in found.costs):
            return
    raise AssertionError(found.costs)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"streams": 0}, "streams must be a number above 0"),
        ({"streams": 1.5}, "streams must be a whole number"),
        ({"rate": math.nan}, "rate must be a number above 0"),
        ({"headroom": 1.0}, "headroom must be a number from 0 to 0.95"),
        ({"efficiency": 1.1}, "efficiency must be a number above 0 to 1"),
        ({"spare": -1}, "spare must be a number from 0"),
        ({"rate": 1e9}, "one core does not carry one stream"),
        ({"memory": 0.1}, "raise memory"),
    ],
)
def test_numbers_out_of_their_range(lstm, options, text):
    with pytest.raises(fastrnn.FastRNNError, match=text):
        plan(lstm, **options)


def test_a_model_that_does_not_stream():
    model = fastrnn.load(EXAMPLE.parents[1] / "tests" / "data" / "onnx" / "birnn.script.onnx")
    with pytest.raises(fastrnn.StreamError, match="can't be streamed"):
        plan(model)


def test_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "measured", lambda: MACHINE)
    command = ["plan-capacity", str(EXAMPLE), "--streams", "1e5", "--rate", "100"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "100,000 streams, 100 steps a second each" in text
    assert "streams; a step takes" in text
    assert main([*command, "--json", "--spare", "0"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"]
    assert told["machines"] == math.ceil(max(told["by_cpu"], told["by_memory"], told["by_network"]))
    assert main([*command, "--rate", "1e9"]) == 1
    assert "one core does not carry one stream" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--streams", "1.5"])


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1.5", "0", "2e12", "many"])
def test_streams_that_are_no_number(number, capsys):
    with pytest.raises(SystemExit):
        main(["plan-capacity", "model.onnx", f"--streams={number}", "--rate=1"])
    assert f"expected a whole number from 1 to 1e12, got '{number}'" in capsys.readouterr().err
