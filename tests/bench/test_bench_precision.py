"""The grids of reduced precision: who takes part, contests and errors, and one short run with every engine."""

import runpy
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn import bench
from fastrnn.bench import answers, cases, entrants, figures, models, same_bits
from fastrnn.cli import bench_tables

ENGINES = Path(bench.__file__).parent / "engines"
any_isa = pytest.mark.any_isa
fused = pytest.mark.skipif(
    fastrnn.cpu_info().isa.active == "baseline", reason="without a fused multiply-add, reduced precision has other bits"
)


def result(ns, **more):
    """An engine's result whose three rounds all took this long."""
    rounds = [{"median_ns": float(ns), "p99_ns": 2.0 * ns}] * 3
    return {
        "status": "ok",
        "rounds": rounds,
        "median_ns": float(ns),
        "reason": "",
        "trials": {},
        "cpu_share": None,
        **more,
    }


def judged(name="precision/lstm-64-b1", **times):
    """A case with these times (ns) by name, _ for - and AT for @."""
    named = {key.replace("_", "-").replace("AT", "@"): ns for key, ns in times.items()}
    record = {"id": name, "grid": "precision", "results": {key: result(ns) for key, ns in named.items()}}
    figures.judge(record)
    return record


@any_isa
class TestEntrants:
    @pytest.mark.parametrize(
        ("name", "engine", "precision", "isa", "threads"),
        [
            ("fastrnn", "fastrnn", "float32", None, None),
            ("fastrnn-bf16", "fastrnn", "bfloat16", None, None),
            ("fastrnn-int8-a16@avx2", "fastrnn", "int8-a16", "avx2", None),
            ("fastrnn@amx", "fastrnn", "float32", "amx", None),
            ("fastrnn-2t", "fastrnn", "float32", None, 2),
            ("ort-iobinding", "ort-iobinding", "float32", None, None),
            ("ort-int8", "ort", "int8", None, None),
            ("openvino-bf16", "openvino", "bfloat16", None, None),
        ],
    )
    def test_a_name_says_what_it_is(self, name, engine, precision, isa, threads):
        found = entrants.find(name)
        assert (found.name, found.engine, found.precision, found.isa, found.threads) == (
            name,
            engine,
            precision,
            isa,
            threads,
        )
        assert found.own == (engine == "fastrnn")

    def test_every_entrant_of_a_case_has_a_program(self):
        names = {name for case in cases.cases_of(bench.GRIDS) for name in case.engines}
        for name in names:
            assert entrants.find(name).file in (*entrants.ENGINES.values(), *entrants.FILES.values()), name

    def test_forced_instruction_sets_are_those_of_the_machine_that_are_not_active(self, monkeypatch):
        from fastrnn.machine import cpu

        def with_isas(active, *available):
            isa = cpu.IsaInfo(active, active, None, available, available, 16)
            info = type("Info", (), {"isa": isa})()
            monkeypatch.setattr(cpu, "cpu_info", lambda: info)
            return entrants.forced_isas()

        amx = with_isas("amx", "amx", "avx512_vnni", "avx512", "avx_vnni", "avx2", "baseline")
        assert amx == ("avx512_vnni", "avx2")
        assert with_isas("avx512_vnni", "avx512_vnni", "avx512", "avx2", "baseline") == ("avx2",)
        assert with_isas("avx2", "avx2", "baseline") == ()
        assert with_isas("baseline", "neon", "baseline") == ("neon",)


@any_isa
class TestCases:
    def test_sizes_of_the_acceptance_table(self):
        found = cases.cases_of(["precision"])
        assert {(c.kind, c.H, c.batch) for c in found} == {
            (k, h, b) for k in ("lstm", "gru") for h in (64, 128, 256, 512) for b in (1, 4, 16, 128)
        }
        assert {c.check_steps for c in found if c.batch <= 4} == {1000}
        assert all(c.pause_ms == 0 for c in found)
        paced = cases.cases_of(["paced"])
        assert {c.pause_ms for c in paced} == {1, 10}
        assert "paced/gru-128-b16-every-10ms" in {c.id for c in paced}

    def test_peers_of_a_cell(self):
        lstm, gru = cases.rounded_engines("lstm"), cases.rounded_engines("gru")
        assert {"fastrnn", "fastrnn-bf16", "fastrnn-int8", "fastrnn-int8-a16"} <= set(lstm) & set(gru)
        assert set(lstm) - set(gru) == {"ort-int8", "openvino-int8"}

    def test_sizes_beyond_the_other_grids(self):
        found = cases.cases_of(["wide"])
        assert {c.H for c in found} >= {96, 200, 300, 768, 1024, 2048}
        assert {c.batch for c in found} >= {4, 8, 32, 64}
        assert {c.T for c in found} == {1, 10, 100}
        others = {(c.kind, c.H, c.T, c.batch) for c in cases.cases_of(["step", "odd", "batch", "sequence"])}
        assert not others & {(c.kind, c.H, c.T, c.batch) for c in found}
        assert "wide" not in bench.DEFAULT_GRIDS

    def test_calls_of_run_are_those_of_the_acceptance_table(self):
        *found, two = cases.cases_of(["calls"])
        assert {(c.kind, c.H, c.T) for c in found} == {
            (k, h, t) for k in ("lstm", "gru", "rnn") for h in (16, 32, 64, 128) for t in (1, 10)
        }
        assert (two.id, two.inputs) == ("calls/lstm-16-two", 2)


@any_isa
class TestContests:
    def test_each_precision_is_measured_against_peers_in_reduced_precision(self):
        case = judged(fastrnn=100, fastrnn_bf16=50, fastrnn_int8=25, ort_int8=75, openvino_bf16=60, torch_int8=400)
        assert (case["ratio"], case["best_peer"], case["verdict"]) == (None, None, "wins")
        bf16, int8 = case["contests"]["fastrnn-bf16"], case["contests"]["fastrnn-int8"]
        assert (bf16["best_peer"], bf16["ratio"]) == ("openvino-bf16", 1.2)
        assert (int8["best_peer"], int8["ratio"]) == ("openvino-bf16", 2.4)
        assert int8["ratios"]["fastrnn"]["ratio"] == 4.0
        assert int8["ratios"]["ort-int8"]["ratio"] == 3.0

    def test_a_precision_that_is_slower_than_a_peer_loses(self):
        assert judged(fastrnn=100, fastrnn_int8=80, ort_int8=60)["verdict"] == "loses"

    def test_a_forced_instruction_set_is_compared_with_its_own_float32(self):
        times = {"fastrnn": 100, "fastrnn_int8": 20, "fastrnnATavx2": 160, "fastrnn_int8ATavx2": 40, "ort_int8": 30}
        case = judged(**times)
        forced = case["contests"]["fastrnn-int8@avx2"]
        assert forced["ratios"]["fastrnn@avx2"]["ratio"] == 4.0
        assert "fastrnn" not in forced["ratios"]
        assert case["verdict"] == "wins"  # a loss with a forced older instruction set is not a loss of this machine

    def test_means_of_a_grid(self):
        first = judged(fastrnn=100, fastrnn_int8=50, ort_int8=100)
        second = judged("precision/lstm-64-b4", fastrnn=100, fastrnn_int8=25, ort_int8=200)
        bare = judged("precision/gru-64-b4", fastrnn=100, fastrnn_int8=25)
        found = figures.grid_figures([first, second, bare])["contests"]["fastrnn-int8"]
        assert found["geometric_mean"] == pytest.approx(4.0)
        assert found["least"] == {"ratio": 2.0, "case": "precision/lstm-64-b1"}
        assert found["without"] == 1
        assert found["against"]["fastrnn"] == pytest.approx((2 * 4 * 4) ** (1 / 3))

    def test_tables(self):
        case = judged(fastrnn=1000, fastrnn_int8=250, fastrnnATavx2=900, fastrnn_int8ATavx2=300, ort_int8=500)
        case["results"]["fastrnn-int8"].update(rms=1.2e-3, difference=9.8e-3, steps=1000, size=0.15, note="")
        case["results"]["fastrnn-int8@avx2"]["note"] = "held in float32"
        case |= {"kind": "lstm", "batch": 1, "pause_ms": 0}
        means, times, isas, errors = bench_tables.grid_tables([case])
        assert means.columns == ["cells", "int8 over float32", "int8 over the best peer"]
        assert means.rows == [["LSTM, 1 row", "4.00x", "2.00x"]]
        assert times.columns == ["case", "fastrnn", "fastrnn-int8", "ort-int8", "best peer", "int8 ratio", ""]
        assert times.rows == [["lstm-64-b1", "1.00", "0.250", "0.500", "ort-int8", "2.00x", ""]]
        assert (isas.columns, isas.rows) == (["case", "int8", "int8 avx2"], [["lstm-64-b1", "4.00x", "3.00x*"]])
        assert errors.rows == [["lstm-64-b1", "1000", "0.15", "-", "1.2e-03, 9.8e-03", "-"]]
        lines = bench_tables.grid_lines([case], figures.grid_figures([case]))
        assert any("fastrnn-int8: geometric mean 2.00x over the best peer" in line for line in lines)


@any_isa
class TestAnswers:
    def compare(self, folder, job=None, **found):
        """Results by name (_ for -) of these answers, beside an expected answer of ones."""
        np.save(folder / "expected.npy", np.ones(4))
        results = {name.replace("_", "-"): {"status": "ok"} for name in found}
        for name, answer in found.items():
            np.save(folder / f"{name.replace('_', '-')}.npy", 1 + np.array(answer, np.float32))
        about = {"expected": str(folder / "expected.npy"), "T": 1, "precision": "float32", **(job or {})}
        answers.compare(results, folder, about)
        return results

    def test_errors(self, tmp_path):
        found = self.compare(tmp_path, fastrnn_int8=[3e-3, 0, 0, -4e-3])["fastrnn-int8"]
        assert found["difference"] == pytest.approx(4e-3, rel=1e-3)
        assert found["rms"] == pytest.approx(2.5e-3, rel=1e-3)
        assert (found["size"], found["steps"], found["status"]) == (1.0, 4, "ok")
        assert found["compared_with"] == "float64 reference"
        assert "decisions" not in found

    def test_float32_is_held_to_each_element_and_other_precisions_to_the_rms(self, tmp_path):
        found = self.compare(
            tmp_path,
            fastrnn=[2.5e-4, 0, 0, 0],
            ort=[1e-4, 0, 0, 0],
            fastrnn_bf16=[0.15, 0.15, 0, 0],
            fastrnn_int8=[0.3, 0.3, 0.1, 0],
            openvino_int8=[0.6, 0, 0, 0],
        )
        assert [r["status"] for r in found.values()] == ["wrong", "ok", "wrong", "ok", "wrong"]
        assert "largest difference 0.00025 from float64 reference (tolerance 0.0001)" in found["fastrnn"]["reason"]
        assert "rms difference 0.106" in found["fastrnn-bf16"]["reason"]
        assert "(limit 10%)" in found["fastrnn-bf16"]["reason"]

    def test_a_quantised_file_is_held_to_the_precision_of_the_file(self, tmp_path):
        off = [0.05, -0.05, 0, 0]
        assert self.compare(tmp_path, fastrnn=off)["fastrnn"]["status"] == "wrong"
        assert self.compare(tmp_path, {"precision": "int8"}, fastrnn=off)["fastrnn"]["status"] == "ok"

    def test_an_answer_that_is_not_finite_is_wrong(self, tmp_path):
        found = self.compare(tmp_path, fastrnn_int8=[np.nan, 0, 0, 0], ort_int8=[0, 0])
        assert [(r["status"], r["difference"]) for r in found.values()] == [("wrong", "inf")] * 2
        assert all("rms" not in r for r in found.values())

    def test_decisions_are_the_largest_class_of_each_row(self):
        expected = np.array([[1, 2, 3], [3, 2, 1], [1, 3, 2], [0, 0, 1]])
        got = np.array([[1, 2, 9], [3, 4, 1], [0, 3, 2], [0, 0, 1]])
        assert answers.agreement(got, expected.ravel(), 3) == 0.75

    def test_equal_bits_have_equal_digests(self, tmp_path):
        found = self.compare(tmp_path, fastrnn_int8=[1e-3, 0, 0, 0], fastrnn=[0] * 4, ort_int8=[1e-3, 0, 0, 0])
        digests = [r["digest"] for r in found.values()]
        assert digests[0] == digests[2] != digests[1]


def test_calls_of_run_and_of_a_session():
    """Every way to call a cell gives the same bits, with states in and out, over a sequence, and with two inputs."""
    options = bench.Options(
        grids=("tiny-calls",), engines=("fastrnn", "ort"), rounds=2, round_ns=200_000, trial_ns=50_000, costs=False
    )
    *cells, two = bench.run(options)["cases"]
    assert [(case["kind"], case["T"]) for case in cells] == [("lstm", 1), ("gru", 1), ("rnn", 3)]
    for case in cells:
        results = case["results"]
        assert set(results) == {"fastrnn", "fastrnn-run", "fastrnn-session", "ort"}
        assert {r["status"] for r in results.values()} == {"ok"}, results
        assert len({results[n]["digest"] for n in ("fastrnn", "fastrnn-run", "fastrnn-session")}) == 1
        for way in ("fastrnn-run", "fastrnn-session"):
            assert case["contests"][way]["best_peer"] == "ort"
            assert set(case["contests"][way]["ratios"]) == {"ort", "fastrnn", "fastrnn-run", "fastrnn-session"} - {way}
    (mine,) = two["results"].values()
    assert (two["inputs"], mine["status"], two["verdict"]) == (2, "ok", "alone")
    assert mine["difference"] < 1e-6
    (table,) = bench_tables.grid_tables([*cells, two])
    assert [name for name in table.columns if name.endswith("ratio")] == ["run ratio", "session ratio"]


@fused
def test_bits_of_every_way_and_instruction_set():
    """Tiles are emulated, so one instruction set more than the machine's own takes part anywhere."""
    record = bench.run(bench.Options(grids=("tiny-bits",), engines=("fastrnn",), costs=False))
    (case,) = record["cases"]
    assert (case["verdict"], case["contests"], case["ratio"]) == ("same", {}, None)
    assert {"fastrnn", "fastrnn-int8", "fastrnn-int8@amx_emulated", "fastrnn-bf16@amx_emulated"} <= set(case["results"])
    assert {len(found["ways"]) for found in case["results"].values()} == {11}
    (table,) = bench_tables.grid_tables(record["cases"])
    assert set(table.rows[0][1:]) == {"same"}
    assert bench_tables.grid_lines(record["cases"], record["grids"]["tiny-bits"]) == []


@any_isa
class TestSameBits:
    def compared(self, **digests):
        """Results by name (_ for -, AT for @) of these digests of two ways."""
        named = {name.replace("_", "-").replace("AT", "@"): ways for name, ways in digests.items()}
        results = {n: {"status": "ok", "ways": dict(zip(("rows", "run"), w, strict=True))} for n, w in named.items()}
        same_bits.compare(results)
        return results

    def test_ways_must_agree(self):
        found = self.compared(fastrnn=("a", "b"), fastrnn_int8=("c", "c"))
        assert found["fastrnn"]["reason"] == "run: other bits than rows"
        assert (found["fastrnn-int8"]["status"], same_bits.verdict(found)) == ("ok", "wrong")

    def test_instruction_sets_must_agree_in_reduced_precision_alone(self):
        found = self.compared(fastrnn="aa", fastrnnATavx2="bb", fastrnn_int8="cc", fastrnn_int8ATavx2="dd")
        assert [r["status"] for r in found.values()] == ["ok", "ok", "ok", "wrong"]
        assert found["fastrnn-int8@avx2"]["reason"] == "other bits than fastrnn-int8"

    def test_a_precision_without_an_answer_is_no_agreement(self):
        assert same_bits.verdict({"fastrnn": {"status": "ok"}, "fastrnn-int8": {"status": "refused"}}) == "wrong"
        assert same_bits.verdict({}) == "no answer"


@any_isa
@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_pytorch_in_reduced_precision(tmp_path, kind, precision):
    """As a layer and as a cell, it answers nearly what float64 does."""
    pytest.importorskip("torch")
    engine = runpy.run_path(str(ENGINES / "on_torch.py"))
    job = models.prepare(cases.rounded_case("x", kind, 32, 2, error_steps=30), tmp_path) | {"precision": precision}
    for module in engine["modules"](job):
        candidate = engine["Torch"](job, "x", engine["in_precision"](module, precision), False, True)
        error = candidate.answer(np.load(job["x"])).ravel() - np.load(job["expected"]).ravel()
        assert 1e-4 < np.sqrt(np.mean(error**2)) < 1e-2


def test_quantised_files():
    """Every form of file answers in both engines; the float net says how right they are."""
    options = bench.Options(grids=("tiny-quantized",), rounds=2, round_ns=200_000, trial_ns=50_000, costs=False)
    record = bench.run(options)
    assert [case["quantized"] for case in record["cases"]] == ["dynamic"] * 3 + ["qdq", "qoperator"]
    for case in record["cases"]:
        assert set(case["results"]) == {"fastrnn", "ort", "ort-iobinding"}
        for name, found in case["results"].items():
            assert found["status"] == "ok", (case["id"], name, found)
            assert 0 < found["rms"] < 0.2 * found["size"]
            assert 0.5 < found["decisions"] <= 1
        assert case["ratio"] > 0
    decided = bench_tables.grid_tables(record["cases"])[1]
    assert decided.name == "errors"
    assert decided.columns[:4] == ["case", "steps", "rms of the answer", "fastrnn"]
    assert "%" in decided.rows[0][3]


def test_published_models_on_recorded_audio(published_models):
    """What the authors' runtime answered is what every precision is compared with."""
    options = bench.Options(
        grids=("published",),
        patterns=("dtln_2",),
        engines=("fastrnn", "ort"),
        rounds=1,
        round_ns=100_000,
        trial_ns=10_000,
        costs=False,
        folders=(str(published_models),),
    )
    (dtln,) = bench.run(options)["cases"]
    assert {r["compared_with"] for r in dtln["results"].values()} == {"published answer"}
    assert {r["steps"] for r in dtln["results"].values()} == {60}
    assert dtln["results"]["fastrnn"]["difference"] < 1e-6
    assert 1e-6 < dtln["results"]["fastrnn-int8"]["rms"] < dtln["results"]["ort-int8"]["rms"]


@fused
def test_every_engine_in_reduced_precision():
    """One small LSTM in a row and one GRU paced: answered within tolerances, timed and judged."""
    options = bench.Options(
        grids=("tiny-precision",),
        engines=("fastrnn", "ort", "openvino"),
        rounds=2,
        round_ns=500_000,
        trial_ns=100_000,
        batch_ns=10_000,
        costs=False,
    )
    record = bench.run(options)
    present = {n for n, e in record["engines"].items() if e["status"] == "ok"}
    assert {"fastrnn-int8", "ort-int8"} <= present
    for case in record["cases"]:
        assert set(case["results"]) == set(cases.rounded_engines(case["kind"])) & present
        for name, found in case["results"].items():
            assert found["status"] == "ok", (case["id"], name, found)
            assert found["rms"] > 0
            assert found["steps"] == case["check_steps"]
        assert case["contests"]["fastrnn-int8"]["ratios"]["fastrnn"]["ratio"] > 0
        digests = {r["digest"] for name, r in case["results"].items() if name.startswith("fastrnn-int8-a16")}
        assert len(digests) == 1, "int8-a16 has other bits with another instruction set"
        for name, found in case["results"].items():
            exact = entrants.find(name).precision == "float32" or "held in float32" in found["note"]
            assert (found["rms"] < 1e-6) == exact, (name, found)
            assert found["rms"] < 1e-2
    assert record["cases"][0]["contests"]["fastrnn-int8"]["ratio"] > 0
    paced = record["cases"][1]
    assert paced["pause_ms"] == 1
    assert all(found["batch"] == 1 and found["calls"] == 4 for found in paced["results"].values())
