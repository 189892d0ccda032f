"""Benchmark workers, and the command from one end to the other: run, not timed."""

import importlib.util
from pathlib import Path

import pytest

from fastrnn import bench
from fastrnn.bench import entrants, process, runner
from fastrnn.bench.cases import cell_case

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "fastrnn" / "bench" / "worker.py"
any_isa = pytest.mark.any_isa
TINY = ["--grid", "tiny", "--rounds", "2", "--round-ms", "1"]


# ---- the worker's program --------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only as calls say."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now


class Fake:
    """A candidate whose call takes `ns` on the clock."""

    def __init__(self, name, ns, clock):
        self.name, self.ns, self.clock, self.made = name, ns, clock, 0

    def calls(self, n):
        self.made += n
        self.clock.now += n * self.ns


@pytest.fixture
def worker():
    """worker.py as a module of its own, on a clock of ours."""
    spec = importlib.util.spec_from_file_location("bench_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.clock = Clock()
    return module


@any_isa
class TestTiming:
    def test_batches_fill_the_time(self, worker):
        fake = Fake("a", 30, worker.clock)
        assert worker.time_batches(fake.calls, 2, 150) == [60, 60, 60]
        assert worker.time_batches(fake.calls, 2, 0) == [60]

    @pytest.mark.parametrize(("ns", "least"), [(5, 20_000), (300, 20_000), (19_999, 20_000), (50_000, 20_000)])
    def test_a_batch_is_long_against_the_clock(self, worker, ns, least):
        batch = worker.batch_for(Fake("a", ns, worker.clock).calls, least)
        assert batch * ns >= least
        assert batch == 1 or batch * ns < 3 * least

    def test_the_fastest_candidate_stands_for_the_engine(self, worker):
        found = [Fake("slow", 900, worker.clock), Fake("fast", 300, worker.clock), Fake("medium", 500, worker.clock)]
        chosen, batch, medians = worker.choose(found, 100_000, 20_000)
        assert chosen.name == "fast"
        assert batch * 300 >= 20_000
        assert medians == {"slow": 900.0, "fast": 300.0, "medium": 500.0}

    def test_a_round_warms_up_first(self, worker):
        fake = Fake("a", 100, worker.clock)
        serving = worker.WorkerLoop({}, 1)
        serving.opened["a"] = {}, fake, 1
        reply = serving.round({"entrant": "a", "ns": 1000})
        assert reply["ns"] == [100] * 10
        assert fake.made == 11

    def test_paced_calls_come_after_a_pause_and_are_timed_alone(self, worker, monkeypatch):
        fake = Fake("a", 100, worker.clock)
        monkeypatch.setattr(
            worker.time, "sleep", lambda s: setattr(worker.clock, "now", worker.clock.now + int(1e9 * s))
        )
        serving = worker.WorkerLoop({}, 1)
        serving.opened["a"] = {}, fake, 7
        reply = serving.round({"entrant": "a", "ns": 5_000_000, "pause_ns": 1_000_000})
        assert reply == {"batch": 1, "ns": [100] * 5, "cpu_ns": 0, "wall_ns": 0}
        assert (fake.made, worker.clock.now) == (6, 6_000_600)

    def test_entrants_that_share_a_process_have_a_case_each(self, worker):
        made = {}

        def candidates(job, name, threads):
            made[name] = Fake(name, 100 if job["precision"] == "int8" else 400, worker.clock)
            return [made[name]]

        serving = worker.WorkerLoop({"candidates": candidates}, 1)
        for name, precision in (("a", "float32"), ("b", "int8")):
            job = {"precision": precision}
            serving.open({"entrant": name, "job": job, "trial_ns": 1000, "batch_ns": 1})
        assert serving.round({"entrant": "a", "ns": 1000})["ns"] == [400] * 3
        assert serving.round({"entrant": "b", "ns": 1000})["ns"] == [100] * 10
        assert serving.close({"entrant": "a"}) == {"peak_rss": None}
        with pytest.raises(RuntimeError, match="a has no case open"):
            serving.round({"entrant": "a", "ns": 1000})


# ---- processes -------------------------------------------------------------------------------------------------------

# The same, but the process ends when an LSTM is timed.
MORTAL = """
OFFSET = 0

class Mortal(Stub):
    answered = False
    def answer(self, x):
        self.answered = True
        return super().answer(x)
    def calls(self, n):
        if self.answered and self.job["kind"] == "lstm":
            sys.exit(9)
        super().calls(n)

def candidates(job, engine, threads):
    return [Mortal(job)]
"""


def start(file, threads=1):
    return process.Worker("stub", file, threads, runner.environment("stub", threads, None))


@any_isa
class TestProcess:
    def test_a_missing_library_is_a_missing_engine(self, engine_file):
        with pytest.raises(process.MissingEngine, match="no_such_library"):
            start(engine_file("import no_such_library"))

    def test_an_engine_that_dies_says_why(self, engine_file):
        with pytest.raises(process.WorkerError, match="ended with 1: RuntimeError: out of luck"):
            start(engine_file("raise RuntimeError('out of luck')"))

    def test_a_silent_engine_is_ended(self, engine_file):
        worker = start(engine_file("import time\ndef version(): return ''\ndef probe(message): time.sleep(60)"))
        with pytest.raises(process.WorkerError, match=r"did not answer within 0\.2 s"):
            worker.ask("probe", 0.2)
        assert not worker.alive
        worker.close()

    def test_an_error_leaves_the_worker_serving(self, engine_file):
        text = "def version(): return ''\ndef probe(message): return {'twice': 2 * message['n']}"
        worker = start(engine_file(text))
        try:
            with pytest.raises(process.WorkerError, match="KeyError"):
                worker.ask("probe", 30)
            assert worker.ask("probe", 30, n=21) == {"twice": 42}
        finally:
            worker.close()
        assert not worker.alive

    def test_a_peer_has_its_process_for_itself(self, engine_file):
        """Nothing of fastrnn is loaded, our modules don't pass for others, the environment limits threads."""
        text = """
        import os, sys
        def version():
            ours = [m for m in sys.modules if m.partition(".")[0] == "fastrnn"]
            shadowed = [p for p in sys.path if os.path.basename(p) == "bench"]
            return repr((ours, shadowed, os.environ["OMP_NUM_THREADS"]))
        """
        worker = start(engine_file(text), threads=3)
        worker.close()
        assert worker.version == "([], [], '3')"

    def test_no_engine_of_a_peer_imports_fastrnn(self):
        for file in set(entrants.ENGINES.values()) - {"on_fastrnn.py"}:
            text = (WORKER.parent / "engines" / file).read_text()
            assert "fastrnn" not in text, file


# ---- cases through stub engines --------------------------------------------------------------------------------------


def options(**more):
    short = {"rounds": 2, "round_ns": 1000, "batch_ns": 1000, "trial_ns": 1000, "costs": False}
    return bench.Options(**{"grids": ("tiny",), "patterns": ("tiny/lstm-8",), **short, **more})


class TestCases:
    def test_a_wrong_answer_fails_the_case_and_is_not_timed(self, stubs):
        stubs(fastrnn=0, ort=1e-3, torch=0)
        record = bench.run(options(engines=("fastrnn", "ort", "torch")))
        (case,) = record["cases"]
        assert case["verdict"] == "wrong"
        assert case["results"]["ort"]["status"] == "wrong"
        assert "largest difference 0.001 from float64 reference" in case["results"]["ort"]["reason"]
        assert "median_ns" not in case["results"]["ort"]
        assert case["best_peer"] == "torch"
        assert case["ratio"] > 0

    def test_a_wrong_answer_of_ours(self, stubs):
        stubs(fastrnn="np.nan", ort=0)
        (case,) = bench.run(options(engines=("fastrnn", "ort")))["cases"]
        assert (case["verdict"], case["ratio"]) == ("wrong", None)
        assert case["results"]["fastrnn"]["difference"] == "inf"

    def test_a_missing_peer_is_told_once_and_not_fatal(self, stubs):
        stubs(fastrnn=0, ort=None, torch=0)
        record = bench.run(options(engines=("fastrnn", "ort", "torch")))
        assert record["engines"]["ort"]["status"] == "missing"
        assert "no_such_library" in record["engines"]["ort"]["text"]
        assert set(record["cases"][0]["results"]) == {"fastrnn", "torch"}
        assert record["cases"][0]["verdict"] in ("wins", "loses")

    def test_fastrnn_missing_is_fatal(self, stubs):
        stubs(fastrnn=None, ort=0)
        with pytest.raises(bench.BenchError, match="fastrnn not installed"):
            bench.run(options(engines=("fastrnn", "ort")))

    def test_a_worker_that_dies_is_started_again_for_the_next_case(self, stubs):
        stubs(fastrnn=0, ort=0)
        ort = Path(entrants.ENGINES["ort"])
        ort.write_text(ort.read_text() + MORTAL)
        first, second = bench.run(options(engines=("fastrnn", "ort"), patterns=("lstm", "rnn")))["cases"]
        assert first["results"]["ort"]["status"] == "refused"
        assert "while timed: ort ended with 9" in first["results"]["ort"]["reason"]
        assert first["verdict"] == "alone"
        assert second["results"]["ort"]["status"] == "ok"

    def test_progress_reaches_its_end(self, stubs):
        stubs(fastrnn=0, ort=0, torch=None)
        told = []
        bench.run(
            options(engines=("fastrnn", "ort", "torch")), lambda done, total, text: told.append((done, total, text))
        )
        assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
        assert told[-1][0] == told[-1][1]
        assert any("tiny/lstm-8" in text for _, _, text in told)

    def test_rounds_begin_with_another_engine_each(self, stubs):
        stubs(fastrnn=0, ort=0, torch=0)
        told = []
        names = ("fastrnn", "ort", "torch")
        bench.run(options(engines=names, rounds=3), lambda done, total, text: told.append(text))
        turns = [text.partition(": ")[2] for text in told if text.endswith(names)]
        assert turns[-9:] == ["fastrnn", "ort", "torch", "ort", "torch", "fastrnn", "torch", "fastrnn", "ort"]

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"grids": ("steps",)}, "unknown grid steps; known: step"),
            ({"engines": ("tract",)}, "unknown engine tract; known: fastrnn"),
            ({"patterns": ("zzz",)}, "have no cases that match zzz"),
            ({"rounds": 0}, "must be at least 1"),
        ],
    )
    def test_what_can_not_be_run(self, more, message):
        with pytest.raises(bench.BenchError, match=message):
            runner.select(options(**more))

    def test_a_forced_isa_reaches_our_worker(self):
        assert runner.environment("fastrnn", 1, "avx2")["FASTRNN_ISA"] == "avx2"
        assert runner.environment("fastrnn", 2, None)["OMP_NUM_THREADS"] == "2"

    def test_who_takes_part(self):
        everyone = options()
        assert runner.engines_of(cell_case("step", "lstm", 8), everyone) == list(bench.ENGINES)
        threads = cell_case("threads", "lstm", 8, engines=("fastrnn-2t", "fastrnn-1t"))
        assert runner.engines_of(threads, everyone) == ["fastrnn-2t", "fastrnn-1t"]
        assert runner.engines_of(threads, options(engines=("ort",))) == []
