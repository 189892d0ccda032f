"""The benchmark's arithmetic on numbers made by hand, its cases, targets and files. Running it: test_bench_run.py."""

import json
import math

import numpy as np
import pytest

import fastrnn
from fastrnn import bench
from fastrnn.bench import cases, cells, comparison, figures, machine, runner, targets

any_isa = pytest.mark.any_isa


# ---- hand-made records -----------------------------------------------------------------------------------------------


def result(*medians, status="ok", **more):
    """An engine's result whose rounds had these medians (ns)."""
    rounds = [{"median_ns": float(m), "p99_ns": 2.0 * m} for m in medians]
    middle = sorted(medians)[len(medians) // 2] if medians else None
    return {"status": status, "rounds": rounds, "median_ns": middle, "reason": "", **more}


def case_record(name, **results):
    """A case with these results, judged."""
    grid = name.partition("/")[0]
    record = {"id": name, "grid": grid, "H": 64, "batch": 1, "results": results, "work": None, "roofline": None}
    figures.judge(record)
    return record


def whole_grid(grid, ratio, engines=("ort", "openvino")):
    """Every case of a grid, each peer `ratio` times slower than fastrnn."""
    found = []
    for case in cases.cases_of([grid]):
        mine = "fastrnn-2t" if grid == "threads" else "fastrnn"
        peers = ("fastrnn-1t",) if grid == "threads" else engines
        record = case_record(case.id, **{mine: result(100, 100, 100)}, **{p: result(*[100 * ratio] * 3) for p in peers})
        record.update(H=case.H, batch=case.batch, share=0.9)
        found.append(record)
    return found


def record_of(*found, **more):
    """A whole record around cases."""
    about = {"cpu": "X", "isa": {"active": "avx2"}}
    settings = {"isa": None, "threads": 1}
    base = {"format": 1, "fastrnn": "fastrnn 1", "machine": about, "settings": settings, "engines": {}, "grids": {}}
    return {**base, "targets": [], "cases": list(found), **more}


def lines_of(found, costs=None):
    """The targets' lines by their text."""
    return {line["text"]: line for line in targets.evaluate(record_of(*found, costs=costs))}


# ---- arithmetic ------------------------------------------------------------------------------------------------------


@any_isa
class TestFigures:
    def test_quantiles_lie_between_neighbours(self):
        values = [40.0, 10.0, 30.0, 20.0]
        assert [figures.quantile(values, q) for q in (0, 0.5, 1)] == [10.0, 25.0, 40.0]
        assert figures.quantile(values, 0.9) == pytest.approx(37.0)
        assert figures.quantile([7.0], 0.99) == 7.0

    def test_geometric_mean(self):
        assert figures.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
        assert figures.geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
        assert figures.geometric_mean([]) is None

    def test_summary_is_a_call_and_not_a_batch(self):
        rounds = [
            {"batch": 10, "ns": [1000, 2000, 3000], "cpu_ns": 6000, "wall_ns": 6000},
            {"batch": 10, "ns": [1000, 1000, 9000], "cpu_ns": 3000, "wall_ns": 12000},
        ]
        found = figures.summary(rounds)
        assert [r["median_ns"] for r in found["rounds"]] == [200.0, 100.0]
        assert found["median_ns"] == 150.0
        assert found["calls"] == 60
        assert found["quantiles"]["1.0"] == 900.0
        assert found["quantiles"]["0.5"] == 150.0
        assert found["p99_ns"] == pytest.approx(870.0)
        assert found["cpu_share"] == pytest.approx(0.5)

    def test_a_ratio_is_of_the_same_round(self):
        """The clock halves in the second round: the quotients don't see it, the quotient of medians would."""
        ours, theirs = result(100, 200, 100), result(300, 600, 500)
        assert figures.paired_ratio(ours, theirs) == {"ratio": 3.0, "low": 3.0, "high": 4.0}

    def test_level_of(self):
        caches = {"L1": 1000, "L2": 5000, "L3": 9000}
        got = [figures.level_of(n, caches) for n in (1000, 1001, 5001, 9001)]
        assert got == ["L1", "L2", "L3", "memory"]
        assert figures.level_of(10, {}) == "memory"

    def test_least_time_is_the_larger_bound(self):
        roofline = {"fma": 100e9, "L2": 50e9}
        assert figures.least_ns({"flops": 1000, "bytes": 1000}, "L2", roofline) == (20.0, "L2")
        assert figures.least_ns({"flops": 4000, "bytes": 1000}, "L2", roofline) == (40.0, "fma")
        assert figures.least_ns({"flops": 4000, "bytes": 1000}, "L2", roofline, threads=2) == (20.0, "fma")

    def test_share_of_the_roofline(self):
        record = {"results": {"fastrnn": result(50)}, "work": {"flops": 1000, "bytes": 2000}, "level": "L1"}
        record["roofline"] = {"fma": 100e9, "L1": 100e9}
        figures.judge(record)
        assert (record["share"], record["bound"], record["least_ns"]) == (0.4, "L1", 20.0)

    @pytest.mark.parametrize(
        ("results", "verdict", "best", "ratio"),
        [
            ({"fastrnn": result(100), "ort": result(300), "torch": result(200)}, "wins", "torch", 2.0),
            ({"fastrnn": result(100), "ort": result(50), "torch": result(200)}, "loses", "ort", 0.5),
            ({"fastrnn": result(100), "ort": result(status="refused")}, "alone", None, None),
            ({"fastrnn": result(status="refused"), "ort": result(50)}, "no answer", "ort", None),
            ({"ort": result(50)}, "peers only", "ort", None),
            ({"fastrnn": result(100), "ort": result(status="wrong")}, "wrong", None, None),
            ({"fastrnn": result(status="wrong"), "ort": result(50)}, "wrong", "ort", None),
            ({"fastrnn-2t": result(100), "fastrnn-1t": result(150)}, "wins", "fastrnn-1t", 1.5),
        ],
    )
    def test_verdicts(self, results, verdict, best, ratio):
        record = {"results": results}
        figures.judge(record)
        assert (record["verdict"], record["best_peer"], record["ratio"]) == (verdict, best, ratio)

    def test_a_peer_that_is_wrong_is_never_the_best(self):
        record = {"results": {"fastrnn": result(100), "ort": result(1, status="wrong"), "torch": result(200)}}
        figures.judge(record)
        assert (record["best_peer"], record["verdict"]) == ("torch", "wrong")

    def test_grid_keeps_losing_and_missing_cases(self):
        found = [
            case_record("step/a", fastrnn=result(100), ort=result(400)),
            case_record("step/b", fastrnn=result(100), ort=result(25)),
            case_record("step/c", fastrnn=result(status="refused"), ort=result(25)),
        ]
        grid = figures.grid_figures(found)
        assert (grid["cases"], grid["without"], grid["loses"]) == (3, 1, 1)
        assert grid["geometric_mean"] == pytest.approx(1.0)
        assert grid["least"] == {"ratio": 0.25, "case": "step/b"}
        assert grid["against"] == {"ort": pytest.approx(1.0)}
        assert figures.grid_figures([])["geometric_mean"] is None

    def test_difference(self):
        expected = np.array([[1.0, -3.0]])
        assert figures.difference([1.0, -3.0003], expected, 1e-4) == (pytest.approx(3e-4), True)
        assert figures.difference([1.0003, -3.0], expected, 1e-4)[1] is False
        assert figures.difference([1.0], expected, 1e-4) == (math.inf, False)
        assert figures.difference([np.nan, -3.0], expected, 1e-4) == (math.inf, False)


@any_isa
class TestCases:
    def test_work_of_a_step(self):
        """LSTM, I = H = 2: 8 rows; W with bias 8*3, R 8*2 floats; 2 flops for each of 8*4 products."""
        assert cases.cell_work("lstm", 2, 2, 1, 1) == cases.Work(flops=64, bytes=160, footprint=160)
        assert cases.cell_work("lstm", 2, 2, 1, 16).bytes == 160
        assert cases.cell_work("lstm", 2, 2, 1, 16).flops == 16 * 64

    def test_a_sequence_reads_the_input_weights_once(self):
        assert cases.cell_work("gru", 2, 2, 10, 3) == cases.Work(flops=2 * 6 * 4 * 30, bytes=72 + 10 * 48, footprint=48)

    def test_grids_are_those_of_the_targets(self):
        found = {grid: cases.cases_of([grid]) for grid in bench.GRIDS}
        assert [len(found[g]) for g in ("step", "batch", "sequence", "models")] == [15, 30, 45, 0]
        assert {c.H for c in found["step"]} == {32, 64, 128, 256, 512}
        assert {c.batch for c in found["batch"]} == {16, 128}
        assert {(c.T, c.batch) for c in found["sequence"]} == {(100, 1), (100, 16), (100, 64)}
        names = [c.id for grid in found.values() for c in grid]
        assert len(names) == len(set(names))

    def test_patterns(self):
        def names(*patterns):
            return [c.id for c in cases.cases_of(["step", "batch"], patterns)]

        assert names("step/lstm-*") == [f"step/lstm-{h}" for h in (32, 64, 128, 256, 512)]
        assert names("gru-64-b16") == ["batch/gru-64-b16"]
        assert names("gru-64-b16", "step/rnn-32") == ["step/rnn-32", "batch/gru-64-b16"]
        assert names("nothing") == []

    def test_published_models(self, published_models):
        found = {c.id: c for c in cases.cases_of(["models"], folders=[published_models])}
        assert {"models/silero_vad_v5", "models/silero_vad_v5-b32", "models/dtln_1", "models/gtcrn"} <= set(found)
        assert found["models/silero_vad_v5-b32"].batch == 32

    @pytest.mark.parametrize("stepped", [True, False])
    @pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
    def test_files_are_valid(self, tmp_path, kind, stepped):
        import onnx

        cells.write_cell(tmp_path / "m.onnx", kind, cells.cell_weights(kind, 3, 5, 0), 4, 2, stepped=stepped)
        onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)


@any_isa
class TestTargets:
    def test_reached(self):
        found = whole_grid("step", 9.0) + whole_grid("batch", 2.0) + whole_grid("sequence", 2.0)
        costs = {"import_ns": 50e6, "load_ns": 30e6, "stream_ratio": 1.05, "stream_bytes": 2150, "state_bytes": 2048}
        lines = lines_of(found, costs)
        beginnings = ("one step of one stream", "one step of 16", "100 steps in one call")
        grids = [line for text, line in lines.items() if text.startswith(beginnings)]
        assert len(grids) == 7
        assert all(line["ok"] for line in grids)
        assert lines["share of the roofline, H >= 64: least"]["got"] == 0.9
        assert lines["import fastrnn"]["ok"] is True
        assert lines["load a 2 MiB artifact"]["ok"] is False
        assert lines["load a 2 MiB artifact"]["got"] == pytest.approx(30.0)
        assert lines["bytes a stream over the state's own size"]["note"] == "2150 B for 2048 B"

    def test_one_slow_case_fails_the_least(self):
        found = whole_grid("batch", 4.0)
        found[7] = case_record(found[7]["id"], fastrnn=result(100), ort=result(101), openvino=result(900))
        line = lines_of(found)["one step of 16 and of 128 streams: least over the best peer"]
        assert (line["ok"], line["got"], line["note"]) == (False, 1.01, f"{found[7]['id']} against ort")

    def test_a_case_that_was_not_run_leaves_the_target_open(self):
        line = lines_of(whole_grid("step", 9.0)[1:])[
            "one step of one stream, H = I = 32 to 512: least over the best peer"
        ]
        assert (line["ok"], line["got"], line["note"]) == (None, None, "grid step: 1 of 15 cases were not run")
        assert line["asked"] is True

    def test_a_case_without_an_answer_leaves_the_target_open(self):
        found = whole_grid("step", 9.0)
        found[3] = case_record(found[3]["id"], fastrnn=result(status="refused"), ort=result(50))
        line = lines_of(found)["one step of one stream, H = I = 32 to 512: geometric mean over the best peer"]
        assert (line["ok"], line["note"]) == (None, f"no ratio in 1 cases, such as {found[3]['id']}")

    def test_over_ort_run_needs_ort_everywhere(self):
        found = whole_grid("step", 9.0)
        del found[0]["ratios"]["ort"]
        line = lines_of(found)["one step of one stream, H = I = 32 to 512: over ort run"]
        assert (line["ok"], line["note"]) == (None, "ort did not answer everywhere")

    def test_models_are_measured_against_the_best_peer(self):
        silero = case_record("models/silero_vad_v5", fastrnn=result(10), ort=result(40), openvino=result(20))
        gtcrn = case_record("models/gtcrn", fastrnn=result(10), ort=result(80), openvino=result(40))
        lines = lines_of([silero, gtcrn])
        silero = lines["Silero VAD, one stream, over the best peer"]
        assert (silero["got"], silero["ok"], silero["note"]) == (2.0, False, "against openvino")
        assert lines["GTCRN, one frame, over the best peer"]["ok"] is False
        assert lines["DTLN stage 1, one frame, over the best peer"]["asked"] is False

    def test_threads(self):
        lines = lines_of(whole_grid("threads", 1.5))
        assert lines["two threads over one: least"]["ok"] is True
        assert lines["two threads over one, LSTM 512 from batch 16 up: least"]["ok"] is False

    def test_nothing_asked_for(self):
        assert {line["asked"] for line in targets.evaluate(record_of(costs={}))} == {False}


@any_isa
class TestComparison:
    def test_both_sides(self):
        before = record_of(
            case_record("step/a", fastrnn=result(100), ort=result(200)),
            case_record("step/b", fastrnn=result(100), ort=result(200)),
            case_record("step/c", fastrnn=result(100)),
            case_record("step/d", fastrnn=result(100)),
        )
        after = record_of(
            case_record("step/a", fastrnn=result(50), ort=result(200)),
            case_record("step/b", fastrnn=result(200), ort=result(200)),
            case_record("step/c", fastrnn=result(102)),
            case_record("step/e", fastrnn=result(status="refused")),
            engines={"ort": {"text": "onnxruntime 2"}},
        )
        found = comparison.compare(before, after)
        lines = {line["id"]: line for line in found["cases"]}
        assert [lines[f"step/{n}"]["verdict"] for n in "abcde"] == [
            "better",
            "worse",
            "same",
            "only before",
            "only after",
        ]
        assert (lines["step/a"]["speedup"], lines["step/a"]["change"]) == (2.0, 2.0)
        assert (lines["step/b"]["speedup"], lines["step/b"]["change"]) == (0.5, 0.5)
        assert found["grids"]["step"]["compared"] == 3
        assert found["grids"]["step"]["speedup"] == pytest.approx((100 / 102) ** (1 / 3))
        assert found["differences"] == ["ort: not run -> onnxruntime 2"]

    def test_a_slower_machine_is_no_regression(self):
        """Times doubled for us and for the peer: the ratio to it decides."""
        before = record_of(case_record("step/a", fastrnn=result(100), ort=result(200)))
        after = record_of(case_record("step/a", fastrnn=result(200), ort=result(400)))
        assert comparison.compare(before, after)["cases"][0]["verdict"] == "same"

    def test_files(self, tmp_path):
        bench.save(record_of(), tmp_path / "a.json")
        assert bench.load(tmp_path / "a.json") == record_of()
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "is no JSON file"),
            ("[]", "it has no format, fastrnn"),
            (json.dumps({**record_of(), "format": 99}), "has format 99; this version reads format 1"),
        ],
    )
    def test_bad_files(self, tmp_path, text, message):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(bench.BenchError, match=message):
            bench.load(tmp_path / "a.json")

    def test_an_interrupted_save_leaves_the_old_file(self, tmp_path):
        bench.save(record_of(), tmp_path / "a.json")
        with pytest.raises(ValueError, match="JSON"):
            bench.save(record_of(seconds=math.nan), tmp_path / "a.json")
        assert bench.load(tmp_path / "a.json") == record_of()
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@any_isa
class TestMachine:
    def test_each_buffer_fits_its_level_and_none_nearer(self):
        sizes = machine.probe_sizes({"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20})
        assert sizes == {"L1": 16 << 10, "L2": 512 << 10, "L3": 8 << 20, "memory": 128 << 20}

    def test_a_case_is_measured_against_a_buffer_of_its_size(self):
        caches = {"L1": 32 << 10, "L2": 1 << 20}
        assert runner.probe_size("L2", 100_000, caches) == 100_000
        assert runner.probe_size("L1", 100, caches) == 16 << 10
        assert runner.probe_size("L1", 30_000, caches) == 30_000

    def test_unknown_caches(self):
        assert machine.caches({}) == machine.DEFAULT_CACHES
        assert machine.caches({"L1d": 1, "L2": 2, "L4": 3}) == {"L1": 1, "L2": 2}
        assert set(machine.probe_sizes({"L1": 32 << 10})) == {"L1", "memory"}


# ---- the probe -------------------------------------------------------------------------------------------------------


@any_isa
class TestRoofline:
    def test_every_instruction_set(self):
        from fastrnn.machine import _roofline

        for isa in fastrnn.cpu_info().isa.available:
            assert 0 < _roofline.fma_rate(isa, 100) < math.inf
            reader = _roofline.Reader(isa, 1025)
            assert reader.bytes == 2048
            # A wrong byte read, or one left out, raises inside.
            assert all(0 < reader.rate(3, ahead) < math.inf for ahead in (0, 2048))

    def test_unknown_instruction_set(self):
        from fastrnn.machine import _roofline

        with pytest.raises(ValueError, match="'mmx'"):
            _roofline.fma_rate("mmx", 1)
        with pytest.raises(ValueError, match="'mmx'"):
            _roofline.Reader("mmx", 1024)
