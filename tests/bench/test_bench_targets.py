"""Targets of reduced precision, of calls and of the wider grids, judged on records made by hand."""

import pytest

from fastrnn import bench
from fastrnn.bench import cases, entrants, figures, precision_targets, targets

pytestmark = pytest.mark.any_isa
PEERS = {"ort-int8": 5.5, "openvino-bf16": 5.5, "openvino-int8": 9.0, "torch-bf16": 9.0, "torch-int8": 9.0}
SPEED = {"float32": 1.0, "bfloat16": 2.0, "int8": 7.0, "int8-a16": 6.0}  # over float32


@pytest.fixture(autouse=True)
def avx512_machine(monkeypatch):
    """A machine with VNNI and AVX2 beside it, whatever this one has."""
    monkeypatch.setattr(entrants, "forced_isas", lambda: ("avx2",))


def result(ns, rms=1e-3, **more):
    rounds = [{"median_ns": float(ns), "p99_ns": 2.0 * ns}] * 3
    return {"status": "ok", "rounds": rounds, "median_ns": float(ns), "rms": rms, "note": "", **more}


def precision_cases(change=lambda case, results: None):
    """Every case of the grid: fastrnn as fast as SPEED says, peers as much slower than its int8 as PEERS says."""
    found = []
    for case in cases.cases_of(["precision"]):
        results = {}
        for name in case.engines:
            who = entrants.find(name)
            own = 7000 / SPEED[who.precision]
            rms = {"float32": 1e-8, "bfloat16": 3e-4, "int8": 1e-3, "int8-a16": 6e-4}[who.precision]
            results[name] = result(own if who.own else 1000 * PEERS[name], rms if who.own else 1.5e-3)
        change(case, results)
        record = {**case.as_dict(), "results": results, "work": None, "roofline": None}
        figures.judge(record)
        found.append(record)
    return found


def record_of(found, active="avx512_vnni", **more):
    """A record around these cases, on a machine with this instruction set."""
    return {"cases": found, "settings": {"isa": None}, "machine": {"isa": {"active": active}}, "costs": {}, **more}


def lines_of(found, **more):
    """The lines by their text."""
    return {line["text"]: line for line in targets.evaluate(record_of(found, **more))}


class TestPrecision:
    def test_reached(self):
        lines = lines_of(precision_cases())
        int8 = {text: line for text, line in lines.items() if text.startswith("int8 over onnxruntime int8")}
        assert len(int8) == 5
        assert all(line["ok"] for line in int8.values())
        assert [line["got"] for line in int8.values()] == pytest.approx([5.5] * 5)
        vnni = lines["int8 over float32, VNNI without AMX, B 16, H >= 128: geometric mean"]
        assert (vnni["ok"], vnni["got"], vnni["limit"]) == (True, pytest.approx(7.0), 2.5)
        assert lines["int8 over float32, AVX2 only, B 1, H >= 128: geometric mean"]["ok"] is True
        bf16 = lines["bf16 over float32, one row, H >= 256: geometric mean with the slowest instruction set"]
        assert (bf16["ok"], bf16["got"]) == (True, pytest.approx(2.0))
        assert lines["rms error, int8-a16 over our int8: largest ratio"]["got"] == pytest.approx(0.6)

    def test_amx_is_not_measured_where_there_is_none(self):
        lines = lines_of(precision_cases())
        amx = lines["int8 over float32, AMX, B 1, H >= 128: geometric mean"]
        assert (amx["ok"], amx["got"]) == (None, None)
        assert amx["note"] == "not measured here: fastrnn bench --grid precision on a machine with AMX"
        bf16 = lines["bf16 over OpenVINO bf16, B 4: geometric mean"]
        assert (bf16["ok"], bf16["got"]) == (None, pytest.approx(11 / 7))
        assert bf16["note"] == "wanted on AMX, which is not measured here"

    def test_amx_fills_its_columns_with_the_same_grid(self, monkeypatch):
        monkeypatch.setattr(entrants, "forced_isas", lambda: ("avx512_vnni", "avx2"))
        lines = lines_of(precision_cases(), active="amx")
        for column in precision_targets.OVER_FLOAT32:
            line = lines[f"int8 over float32, {column}, B 128, H >= 128: geometric mean"]
            assert (line["ok"], line["got"]) == (True, pytest.approx(7.0))
        assert lines["bf16 over OpenVINO bf16, B 4: geometric mean"]["ok"] is False
        assert lines["bf16 over OpenVINO bf16, B 128: geometric mean"]["ok"] is False

    def test_one_slow_case_fails_the_least_and_is_named(self):
        def change(case, results):
            if case.id == "precision/lstm-512-b128":
                results["ort-int8"] = result(1500)

        line = lines_of(precision_cases(change))["int8 over onnxruntime int8 (GRU: best peer): least"]
        assert (line["ok"], line["got"]) == (False, 1.5)
        assert line["note"] == "precision/lstm-512-b128 against ort-int8"

    def test_a_missing_peer_leaves_the_target_open(self):
        def change(case, results):
            results.pop("ort-int8", None)

        lines = lines_of(precision_cases(change))
        line = lines["int8 over onnxruntime int8 (GRU: best peer), B 1: geometric mean"]
        assert (line["ok"], line["got"]) == (None, None)
        assert line["note"].startswith("not every case has an answer of both sides")
        assert lines["rms error, int8 LSTM over onnxruntime's: largest ratio"]["ok"] is None
        assert lines["rms error, int8 GRU over PyTorch's dynamic int8: largest ratio"]["ok"] is True

    def test_a_case_that_was_not_run_leaves_the_target_open(self):
        lines = lines_of(precision_cases()[1:])
        line = lines["int8 over float32, AVX2 only, B 128, H >= 128: geometric mean"]
        assert (line["ok"], line["note"]) == (None, "grid precision: 1 of 32 cases were not run")

    def test_an_error_above_the_peers_fails_with_both_figures(self):
        def change(case, results):
            if case.id == "precision/gru-64-b4":
                results["torch-int8"] = result(9000, rms=5e-4)

        line = lines_of(precision_cases(change))["rms error, int8 GRU over PyTorch's dynamic int8: largest ratio"]
        assert (line["ok"], line["got"]) == (False, pytest.approx(2.0))
        assert line["note"] == "precision/gru-64-b4: 1.0e-03 and 5.0e-04"

    def test_errors_of_short_comparisons_do_not_count(self):
        def change(case, results):
            if case.batch == 128:
                results["ort-int8"] = result(5000, rms=1e-5)

        assert lines_of(precision_cases(change))["rms error, int8 LSTM over onnxruntime's: largest ratio"]["ok"] is True

    def test_precisions_that_are_slower_than_float32_are_counted(self):
        def change(case, results):
            if case.id == "precision/gru-64-b16":
                results["fastrnn-bf16"] = result(14000)
            if case.id == "precision/gru-64-b128":  # the default rules hold it in float32, so it is not counted
                results["fastrnn-bf16"] = result(21000, note="held in float32")

        text = "cases in which a precision that the layer is held in is over 5 % slower than float32"
        line = lines_of(precision_cases(change))[text]
        assert (line["ok"], line["got"], line["at_most"]) == (False, 1, True)
        assert "slowest 0.50x: precision/gru-64-b16" in line["note"]


def test_quantised_files():
    found = []
    for case in cases.cases_of(["quantized"]):
        ns = 95 if case.kind == "gru" else 50
        right = 0.97 if case.id == "quantized/gru-128-b16" else 0.99
        results = {"fastrnn": result(ns, decisions=right), "ort": result(100, decisions=0.98)}
        record = {**case.as_dict(), "results": results, "work": None, "roofline": None}
        figures.judge(record)
        found.append(record)
    lines = lines_of(found)
    assert lines["quantised files over onnxruntime, the faster of run and IOBinding: least LSTM file"]["got"] == 2.0
    assert lines["quantised files over onnxruntime, the faster of run and IOBinding: least GRU file"]["ok"] is True
    decided = lines["decisions like the float net's, over onnxruntime's: least"]
    assert (decided["ok"], decided["note"]) == (False, "quantized/gru-128-b16: 97.0% and 98.0%")


def test_calls():
    found = []
    for case in cases.cases_of(["calls"]):
        results = {name: result({"ort": 6000, "fastrnn": 400}.get(name, 1000)) for name in case.engines}
        if case.inputs > 1:
            results = {"fastrnn": result(850)}
        record = {**case.as_dict(), "results": results, "work": None, "roofline": None}
        figures.judge(record)
        found.append(record)
    lines = lines_of(found)
    run = "run, LSTM, GRU, RNN of 16 to 128, one step, over onnxruntime's run"
    assert (lines[run]["got"], lines[run]["ok"]) == (pytest.approx(6.0), True)
    assert lines["the session's run, LSTM, GRU, RNN of 16 to 128, 10 steps, over onnxruntime's run"]["limit"] == 1.9
    two = lines["a step with two inputs and two outputs (LSTM 16) over one of each, or at most 0.8 us"]
    assert (two["got"], two["ok"], two["note"]) == (2.125, True, "0.85 us")


def test_a_bound_is_said_beside_a_slow_case():
    case = {"id": "precision/lstm-512-b1", "results": {"fastrnn": result(120), "fastrnn-int8": result(50)}}
    case["results"]["ort-int8"] = result(80)
    case.update(work={"flops": 1, "bytes": 4000}, roofline={"fma": 1e9, "L2": 50e9, "L3": 40e9})
    case.update(levels={"float32": "L3", "int8": "L2"}, level="L3")
    figures.judge(case)
    contest = case["contests"]["fastrnn-int8"]
    assert (contest["share"], contest["bound"]) == (pytest.approx(0.4), "L2")
    assert targets.why_slow(case, contest) == "precision/lstm-512-b1 against ort-int8; 40% of what L2 allows"


@pytest.mark.parametrize(
    ("isa", "share", "bound"), [("avx512_vnni", 0.5, "dot"), ("avx2", 0.2, "L2"), ("amx", 0.2, "L2")]
)
def test_products_bound_many_rows(isa, share, bound):
    """100 ns for what takes float32 200 ns, or VNNI 50; reading the small weights takes 20."""
    case = {"id": "precision/lstm-64-b128", "results": {"fastrnn": result(300), "fastrnn-int8": result(100)}}
    case.update(work={"flops": 20000, "bytes": 4000}, roofline={"fma": 100e9, "L2": 50e9}, isa=isa)
    case.update(levels={"float32": "L2", "int8": "L2"}, level="L2")
    figures.judge(case)
    contest = case["contests"]["fastrnn-int8"]
    assert (contest["share"], contest["bound"]) == (pytest.approx(share), bound)
    paced = case | {"pause_ms": 1}
    figures.judge(paced)
    assert paced["contests"]["fastrnn-int8"]["share"] is None


@pytest.mark.parametrize(("different", "ok"), [(0, True), (2, False)])
def test_bits(different, ok):
    found = []
    for i, case in enumerate(cases.cases_of(["bits"])):
        status = "wrong" if i < different else "ok"
        record = {**case.as_dict(), "results": {"fastrnn-int8@avx2": {"status": status}}, "contests": {}}
        found.append({**record, "verdict": "wrong" if i < different else "same", "ratio": None, "share": None})
    line = lines_of(found)[
        "same bits for rows, batch, place, chunk, threads, pause, instruction set: cases that differ"
    ]
    assert (line["ok"], line["got"], line["at_most"]) == (ok, different, True)
    assert line["note"] == ("instruction sets: avx2" if ok else "such as bits/lstm-33")


class TestMerge:
    def record(self, cpu, *names, **more):
        found = [{"id": name, "grid": "tiny", "ratio": 1.0} for name in names]
        base = {"settings": {"isa": None, "threads": 1}, "engines": {}, "grids": {}, "seconds": 1.0}
        return {**record_of(found), **base, "machine": {"cpu": cpu, "isa": {"active": "avx2"}}, **more}

    def test_cases_of_all_and_the_last_of_each(self):
        first, second = self.record("X", "tiny/a", "tiny/b"), self.record("X", "tiny/b", "tiny/c")
        second["cases"][0]["ratio"] = 2.0
        merged = bench.merge([first, second])
        assert [(c["id"], c["ratio"]) for c in merged["cases"]] == [("tiny/a", 1.0), ("tiny/b", 2.0), ("tiny/c", 1.0)]
        assert merged["seconds"] == 2.0
        assert len(merged["targets"]) == len(targets.evaluate(record_of([])))

    def test_another_machine_is_refused(self):
        with pytest.raises(bench.BenchError, match="cpu 'X' and 'Y'; show each by itself"):
            bench.merge([self.record("X"), self.record("Y")])
