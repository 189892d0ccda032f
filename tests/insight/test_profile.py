"""The performance model and `fastrnn.profile`: costs from a plan, limits and their cache, what a profile holds."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from graph_builder import GraphBuilder

import fastrnn
from fastrnn.bench.models import cell_weights
from fastrnn.graph import dims as D
from fastrnn.graph.cells import CellSpec
from fastrnn.insight import cost_model, limits, profiling
from fastrnn.insight.limits import Limits
from fastrnn.insight.op_costs import costs
from fastrnn.model import Model
from fastrnn.ops import OP_FIELDS

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "tone_words.onnx"
FIGURES = json.loads((ROOT / "tests" / "data" / "bench_figures.json").read_text())
# Of round numbers: 100 GFLOP/s, reads 200, 100, 50 and 20 GB/s.
MACHINE = Limits(
    "made up", "avx2", 8, {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}, 100e9,
    ((16 << 10, 200e9), (64 << 10, 100e9), (1 << 20, 100e9), (4 << 20, 50e9), (64 << 20, 20e9)),
    1.0, 4.0, 100.0, 5000.0, 9000.0,
)  # fmt: skip


def cell_model(kind, H, seed=0):
    """x [time, batch, H] through one cell, weights as the benchmark draws them."""
    build = GraphBuilder(f"{kind}{H}")
    x = build.input("x", "float32", D.TIME, D.BATCH, H)
    names = [build.constant(n, a) for n, a in cell_weights(kind, H, H, seed).items()]
    spec = CellSpec(kind, H, H, linear_before_reset=kind == "gru")
    return Model(build.done(build.add("cell", x, *names, name="cell", outputs=("y",), spec=spec)[0]), threads=1)


@pytest.fixture(scope="module")
def cells():
    """(kind, H) -> model, made once."""
    made = {}
    return lambda kind, H: made.setdefault((kind, H), None) or made.update({(kind, H): cell_model(kind, H)}) or made[
        (kind, H)
    ]  # fmt: skip


class TestLimits:
    def test_rates_between_measured_sizes_follow_the_logarithm_of_the_size(self):
        assert MACHINE.read_rate(1) == 200e9
        assert MACHINE.read_rate(32 << 10) == pytest.approx(150e9)
        assert MACHINE.read_rate(2 << 20) == pytest.approx(75e9)
        assert MACHINE.read_rate(1 << 40) == 20e9

    def test_levels(self):
        sizes = (1, 32 << 10, (32 << 10) + 1, 1 << 20, 32 << 20, 1 << 30)
        assert [MACHINE.level(n) for n in sizes] == ["L1", "L1", "L2", "L2", "L3", "memory"]

    def test_a_record_goes_there_and_back(self):
        assert Limits.from_dict(json.loads(json.dumps(MACHINE.as_dict()))) == MACHINE

    @pytest.mark.parametrize(
        "change", [{"fma": 0}, {"fma": math.nan}, {"read": []}, {"read": [[1, -1]]}, {"lanes": None}]
    )
    def test_a_record_that_makes_no_sense_is_refused(self, change):
        record = {**MACHINE.as_dict(), **change}
        if change == {"lanes": None}:
            del record["lanes"]
        with pytest.raises((ValueError, KeyError)):
            Limits.from_dict(record)

    def test_they_are_measured_once_and_then_read(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        asked = []
        monkeypatch.setattr(limits, "measure", lambda: asked.append(1) or MACHINE)
        monkeypatch.setattr(limits, "_fma_rate", lambda: MACHINE.fma)
        assert limits.measured() == limits.measured() == MACHINE
        assert len(asked) == 1
        assert limits.cache_file().is_relative_to(tmp_path)
        assert [p.name for p in limits.cache_file().parent.iterdir()] == [limits.cache_file().name]
        for damage in ("", "{", "[]", "null", "{}", json.dumps({**MACHINE.as_dict(), "fma": -1})):
            limits.cache_file().write_text(damage)
            assert limits.measured() == MACHINE
        assert len(asked) == 7
        assert limits.measured(again=True) == MACHINE
        assert len(asked) == 8

    def test_limits_of_a_busy_moment_do_not_stay(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        slow = dataclasses.replace(
            MACHINE, fma=50e9, latency_ns=3.0, step_ns=80.0, read=tuple((size, 60e9) for size, _ in MACHINE.read)
        )
        monkeypatch.setattr(limits, "measure", lambda: slow)
        monkeypatch.setattr(limits, "_fma_rate", lambda: MACHINE.fma)
        assert limits.measured() == slow
        monkeypatch.setattr(limits, "measure", lambda: MACHINE)
        found = limits.measured()
        assert (found.fma, found.latency_ns, found.step_ns) == (MACHINE.fma, MACHINE.latency_ns, 80.0)
        assert [rate for _, rate in found.read] == [200e9, 100e9, 100e9, 60e9, 60e9]
        monkeypatch.setattr(limits, "measure", None)
        assert limits.measured() == found

    def test_a_cache_that_cannot_be_written_is_no_error(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        monkeypatch.setattr(limits, "measure", lambda: MACHINE)
        assert limits.measured() == MACHINE

    def test_this_machine_can_be_measured(self, tmp_path, monkeypatch):
        monkeypatch.setattr(limits, "LOOP_NS", 1000)
        found = limits.measure()
        assert found.lanes == fastrnn.cpu_info().isa.lanes
        assert all(rate > 0 for _, rate in found.read)
        assert sorted(found.read) == list(found.read)
        assert min(found.fma, found.latency_ns, found.function_ns, found.step_ns, found.run_ns) > 0


class TestCostModel:
    def test_every_kind_of_op_has_a_cost(self):
        assert set(costs) == set(OP_FIELDS)

    def test_the_least_of_a_step_is_reading_its_weights(self, cells):
        model = cells("lstm", 128)
        (cost,) = cost_model.predict(model._core._program("stream").plan, MACHINE)
        weights = 4 * 4 * 128 * (128 + 128 + 1)
        assert cost.flops == 2 * 4 * 128 * 256
        assert cost.weight_bytes == weights
        assert cost.level == cost.bound == "L2"
        assert cost.least_ns == pytest.approx(weights / 100, rel=0.05)  # 100 bytes a nanosecond
        assert cost.least_ns < cost.ns < 1.5 * cost.least_ns

    def test_the_least_of_many_rows_is_multiplying(self, cells):
        (cost,) = cost_model.predict(cells("lstm", 128)._core._program("stream").plan, MACHINE, batch=64)
        assert cost.bound == "fma"
        assert cost.least_ns == pytest.approx(64 * 2 * 4 * 128 * 256 / 100)

    def test_more_rows_and_steps_cost_more_and_a_row_less(self, cells):
        plan = cells("gru", 64)._core._program("run").plan
        by_batch = [sum(c.ns for c in cost_model.predict(plan, MACHINE, batch=b)) for b in (1, 2, 8, 32)]
        assert by_batch == sorted(by_batch)
        assert by_batch[3] / 32 < by_batch[0]
        by_steps = [sum(c.ns for c in cost_model.predict(plan, MACHINE, time=t)) for t in (1, 10, 100)]
        assert by_steps == sorted(by_steps)

    @pytest.mark.parametrize(("kind", "H", "batch"), [("lstm", 256, 1), ("lstm", 128, 2), ("rnn", 1024, 16)])
    def test_input_halves_are_summed_ahead_where_the_plan_says_so(self, cells, kind, H, batch):
        """W is then read once and not at every step: the model keeps no rule of its own."""
        plan = cells(kind, H)._core._program("run").plan
        (cell,) = [op for op in plan.ops if op.kind == "cell"]

        def weights():
            return sum(cost.weight_bytes for cost in cost_model.predict(plan, MACHINE, batch, 50))

        ahead, most = weights(), cell.fields["hoisted_rows"]
        cell.fields["hoisted_rows"] = 0
        try:
            direct = weights()
        finally:
            cell.fields["hoisted_rows"] = most
        assert direct > 1.8 * ahead

    def test_threads_share_large_work_alone(self, cells):
        plan = cells("lstm", 256)._core._program("run").plan
        one, two = (sum(c.ns for c in cost_model.predict(plan, MACHINE, 16, 20, threads=n)) for n in (1, 2))
        assert 1.5 < one / two < 2
        one, two = (sum(c.ns for c in cost_model.predict(plan, MACHINE, 1, 1, threads=n)) for n in (1, 2))
        assert one == two

    def test_every_op_of_every_committed_model_has_a_cost(self):
        for path in sorted((ROOT / "tests" / "data" / "onnx").glob("*.onnx")):
            try:
                plan = fastrnn.load(path)._core._program("run").plan
            except fastrnn.FastRNNError:
                continue
            for cost in cost_model.predict(plan, MACHINE, 2, 30):
                assert cost.ns > 0, path
                assert cost.least_ns >= 0, path

    def test_it_agrees_with_the_benchmark_of_a_real_machine(self, cells):
        """The committed figures: medians of `fastrnn bench` and the limits of the machine that it ran on, made by
        tools/cost_model.py. 9 of 10 predictions lie within 30 %."""
        machine, outside = Limits.from_dict(FIGURES["limits"]), []
        for case in FIGURES["cases"]:
            mode = "stream" if case["steps"] == 1 else "run"
            plan = cells(case["kind"], case["H"])._core._program(mode).plan
            costs = cost_model.predict(plan, machine, case["batch"], case["steps"])
            overhead = machine.step_ns if case["steps"] == 1 else machine.run_ns
            ratio = (overhead + sum(c.ns for c in costs)) / case["ns"]
            if not 0.7 <= ratio <= 1.3:
                outside.append((case["id"], round(ratio, 2)))
        assert len(FIGURES["cases"]) >= 100
        assert len(outside) <= 0.1 * len(FIGURES["cases"]), outside


class TestProfile:
    def test_of_a_step(self):
        seen = []
        found = fastrnn.profile(
            fastrnn.load(EXAMPLE), seconds=0.02, machine=MACHINE, progress=lambda s, t: seen.append(s)
        )
        assert found.call == "step"
        assert [op.kind for op in found.ops] == ["linear", "cell", "linear"]
        assert all(op.measured_ns > 0 for op in found.ops)
        assert found.measured_ns > 0
        assert found.predicted_ns == pytest.approx(100 + sum(op.cost.ns for op in found.ops))
        assert found.share == pytest.approx(sum(op.cost.least_ns for op in found.ops) / found.measured_ns)
        assert found.flops == sum(op.cost.flops for op in found.ops) == 2 * (20 * 32 + 3 * 56 * (32 + 56) + 56 * 3)
        assert [g.batch for g in found.by_batch] == list(profiling.BATCHES)
        assert [g.batch for g in found.by_batch if g.measured_ns] == [1, 8, 32]
        scales = [g.predicted_ns for g in found.by_size]
        assert scales == sorted(scales)
        assert scales[1] == pytest.approx(found.predicted_ns)
        assert seen == sorted(seen)
        assert seen[-1] == 1.0
        assert fastrnn.Profile is type(found)

    def test_streams_are_what_fits_a_hop(self):
        assert profiling._streams(10.0, 1, [(1, 3e6), (4, 4e6), (8, None)]) == ((1, 3), (4, 8))
        assert profiling._streams(10.0, 2, [(1, 3e6)]) == ((1, 6),)
        assert profiling._streams(10.0, 1, [(8, 1e6)], threads=2) == ((8, 40),)

    @pytest.mark.parametrize("batch", [1, 5])
    def test_a_call_has_one_measured_time(self, batch):
        found = fastrnn.profile(fastrnn.load(EXAMPLE), batch=batch, seconds=0.02, machine=MACHINE)
        assert [g.batch for g in found.by_batch] == sorted({*profiling.BATCHES, batch})
        (own,) = [g for g in found.by_batch if g.batch == batch]
        assert (own.measured_ns, own.predicted_ns) == (found.measured_ns, pytest.approx(found.predicted_ns))
        assert dict(found.streams)[batch] == int(32e6 // found.measured_ns) * batch

    def test_ops_are_timed_in_calls_that_follow_each_other(self, monkeypatch):
        """As those of a service do: what lies between two calls is not in the ops."""
        call = profiling.Call(Model(fastrnn.load(EXAMPLE).graph, 1), 1, 1)
        asked = []
        calls = call.calls
        call.calls = lambda n: asked.append((n, call.program.timer is not None)) or calls(n)
        call.measure(0.02)
        timed = [n for n, with_timer in asked if with_timer]
        assert len(timed) >= profiling.LEAST_CALLS
        assert min(timed) > 1
        ns = call.op_ns(7, 0.0)
        assert ns.shape == (7, 3)
        assert (ns > 0).all()

    def test_ops_of_several_steps_are_those_of_the_whole_call(self):
        model = fastrnn.load(ROOT / "tests" / "data" / "onnx" / "step_function.script.onnx")
        call = profiling.Call(Model(model.graph, 1), 1, 6)
        assert call.kind == "push"
        assert call.op_ns(3, 0.0).shape == (3, len(call.plan.ops))

    def test_of_a_stream_that_ends(self):
        """Attention keeps so many steps, and then the stream must begin anew: it does, as often as it takes."""
        model = fastrnn.load(ROOT / "tests" / "data" / "onnx" / "causal_positions.dynamo.onnx")
        call = profiling.Call(Model(model.graph, 1), 1, 1)
        assert call.plan.room == 24
        call.calls(100)
        assert call.op_ns(50, 0.0).shape[0] == 50
        found = fastrnn.profile(model, seconds=0.05, machine=MACHINE)
        assert found.call == "step"

    def test_every_column_of_its_tables_is_defined(self):
        names = ("FLOPs", "weights", "data", "bound", "predicted", "measured", "roofline", "the call", "cells' size")
        assert set(names) <= set(profiling.DEFINITIONS)

    def test_of_a_run(self):
        found = fastrnn.profile(fastrnn.load(EXAMPLE), batch=2, steps=7, seconds=0.02, machine=MACHINE)
        assert (found.call, found.batch, found.steps) == ("run", 2, 7)
        assert found.predicted_overhead_ns == 5000
        assert found.step_ns == pytest.approx(found.measured_ns / 14)

    def test_of_lookups_and_of_several_outputs(self):
        for name, overhead in (("language_model.script.onnx", 100), ("lstm_last_states.dynamo_frozen.onnx", 9000)):
            model = fastrnn.load(ROOT / "tests" / "data" / "onnx" / name)
            found = fastrnn.profile(model, seconds=0.02, machine=MACHINE)
            assert (found.call, found.predicted_overhead_ns) == ("step", overhead)

    def test_of_a_model_that_leaves_a_size_open(self):
        build = GraphBuilder("open")
        x = build.input("x", "float32", D.BATCH, D.TIME, D.symbol("size"))
        model = Model(build.done(build.add("unary", x, fn="tanh", alpha=0.0, beta=0.0)))
        with pytest.raises(fastrnn.ShapeError, match="load it with sizes="):
            fastrnn.profile(model, machine=MACHINE)
        with pytest.raises(fastrnn.ShapeError, match="load it with sizes="):
            fastrnn.analyze(model)

    def test_of_a_model_that_does_not_stream(self):
        model = fastrnn.load(ROOT / "tests" / "data" / "onnx" / "bigru_stacked.script.onnx")
        found = fastrnn.profile(model, seconds=0.02, machine=MACHINE)
        assert found.call == "run"
        assert found.streams == ()  # a run of one step is no step of a stream

    def test_it_is_a_record(self):
        found = fastrnn.profile(fastrnn.load(EXAMPLE), seconds=0.02, machine=MACHINE)
        record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
        assert record["ops"][1]["cost"]["flops"] == 29568
        assert record["limits"]["isa"] == "avx2"

    def test_the_model_itself_is_left_alone(self):
        model = fastrnn.load(EXAMPLE)
        stream = model.stream()
        x = np.ones((3, 20), np.float32)
        before = stream.push(x)
        stream.reset()
        fastrnn.profile(model, seconds=0.02, machine=MACHINE)
        np.testing.assert_array_equal(stream.push(x), before)
        assert stream.program.timer is None

    @pytest.mark.parametrize(
        "bad", [{"batch": 0}, {"steps": 1.5}, {"threads": -1}, {"hop_ms": 0}, {"seconds": math.inf}, {"batch": 1 << 30}]
    )
    def test_sizes_that_make_no_sense(self, bad):
        with pytest.raises(fastrnn.ShapeError):
            fastrnn.profile(fastrnn.load(EXAMPLE), machine=MACHINE, **bad)

    def test_limits_differ_only_where_said(self):
        slow = dataclasses.replace(MACHINE, fma=50e9)
        plan = cell_model("lstm", 32)._core._program("stream").plan
        fast, slower = (cost_model.predict(plan, m, batch=64)[0] for m in (MACHINE, slow))
        assert slower.least_ns == pytest.approx(2 * fast.least_ns)
