"""Benchmark workers, and the command from one end to the other: run, not timed."""

import importlib.util
import json
import os
import pty
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from fastrnn import bench, cli
from fastrnn.bench import process, runner
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
        serving = worker.Worker({}, "a", 1)
        serving.chosen, serving.batch = fake, 1
        reply = serving.round({"ns": 1000})
        assert reply["ns"] == [100] * 10
        assert fake.made == 11


# ---- processes -------------------------------------------------------------------------------------------------------

STUB = """
import sys
import time
import numpy as np

def version():
    return "stub 1.0"

def candidates(job, engine, threads):
    print("libraries print")
    return [Stub(job)]

class Stub:
    name = "stub"
    def __init__(self, job):
        self.job = job
    def calls(self, n):
        time.sleep(1e-5 * n)
    def answer(self, x):
        return np.load(self.job["expected"]) + OFFSET
"""

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


@pytest.fixture
def engine_file(tmp_path):
    """Write an engine's file; its path."""

    def write(text, name="on_stub.py"):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return str(tmp_path / name)

    return write


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
            shadowed = [p for p in sys.path if p.endswith("bench")]
            return repr((ours, shadowed, os.environ["OMP_NUM_THREADS"]))
        """
        worker = start(engine_file(text), threads=3)
        worker.close()
        assert worker.version == "([], [], '3')"

    def test_no_engine_of_a_peer_imports_fastrnn(self):
        for file in set(runner.ENGINES.values()) - {"on_fastrnn.py"}:
            text = (WORKER.parent / "engines" / file).read_text()
            assert "fastrnn" not in text, file


# ---- cases through stub engines --------------------------------------------------------------------------------------


@pytest.fixture
def stubs(monkeypatch, engine_file):
    """ENGINES replaced by stubs that answer with these offsets; None: an engine that is not installed."""

    def install(**offsets):
        files = {}
        for name, offset in offsets.items():
            text = "import no_such_library" if offset is None else STUB + f"\nOFFSET = {offset}\n"
            files[name] = engine_file(text, f"on_{name}.py")
        monkeypatch.setattr(runner, "ENGINES", files)

    return install


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
        Path(runner.ENGINES["ort"]).write_text(STUB + MORTAL)
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


# ---- the command -----------------------------------------------------------------------------------------------------


def program(*argv):
    """`fastrnn bench` as a program; its output goes into pipes."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, "-m", "fastrnn", "bench", *map(str, argv)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=env,
        timeout=600,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(the finished program, its record) of the tiny grid with every engine that is installed."""
    path = tmp_path_factory.mktemp("bench") / "tiny.json"
    done = program(*TINY, "--json", path)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, json.loads(path.read_text()), path


class TestTinyRun:
    def test_nothing_but_the_tables_in_a_pipe(self, tiny):
        done, _, path = tiny
        assert done.stderr == ""
        assert "\x1b" not in done.stdout
        assert f"record written to {path}" in done.stdout

    def test_the_record_has_what_was_promised(self, tiny):
        record = tiny[1]
        assert record["machine"]["cpu"]
        assert set(record["machine"]) >= {"caches", "flags", "isa", "memory_bytes", "system", "python", "load"}
        assert record["engines"]["fastrnn"]["status"] == "ok"
        assert set(record["engines"]) >= set(bench.ENGINES)
        assert record["settings"]["rounds"] == 2
        assert set(record["roofline"]) >= {"isa", "fma", "memory"}
        assert set(record["costs"]) >= {"import_ns", "load_ns"}
        assert [c["id"] for c in record["cases"]] == ["tiny/lstm-8", "tiny/rnn-8-b2", "tiny/gru-8-t3-b2"]
        assert set(record["grids"]) == {"tiny"}
        assert len(record["targets"]) == 18

    def test_every_installed_engine_answered_right(self, tiny):
        record = tiny[1]
        present = {n for n, e in record["engines"].items() if e["status"] == "ok"} & set(bench.ENGINES)
        assert {"fastrnn", "ort", "ort-iobinding", "torch"} <= present  # the test extra brings them
        for case in record["cases"]:
            assert set(case["results"]) == present
            for name, found in case["results"].items():
                assert found["status"] == "ok", (case["id"], name, found)
                assert found["difference"] < 1e-5
                assert found["compared_with"] == "float64 reference"

    def test_figures_of_an_engine(self, tiny):
        for case in tiny[1]["cases"]:
            for found in case["results"].values():
                assert 0 < found["quantiles"]["0.0"] <= found["median_ns"] <= found["quantiles"]["1.0"]
                assert len(found["rounds"]) == 2
                assert found["setup"] in found["trials"]
                assert found["calls"] >= found["batch"] >= 1
                assert found["peak_rss"] is None or found["peak_rss"] > 1 << 20

    def test_ratios_and_shares(self, tiny):
        for case in tiny[1]["cases"]:
            peers = set(case["results"]) - {"fastrnn"}
            assert set(case["ratios"]) == peers
            assert case["best_peer"] == min(peers, key=lambda name: case["results"][name]["median_ns"])
            assert case["ratio"] == case["ratios"][case["best_peer"]]["ratio"] > 0
            assert case["level"] == "L1"
            assert case["bound"] in ("fma", "L1")
            assert case["share"] > 0
            assert case["verdict"] in ("wins", "loses")

    def test_a_sequence_takes_the_better_of_push_and_run(self, tiny):
        trials = tiny[1]["cases"][2]["results"]["fastrnn"]["trials"]
        assert set(trials) == {"push", "run"}

    def test_bytes_of_a_stream(self, tiny):
        lstm = tiny[1]["cases"][0]["results"]
        assert lstm["ort"]["stream_bytes"] == 2 * 4 * 8
        assert lstm["torch"]["stream_bytes"] == 2 * 4 * 8
        assert lstm["fastrnn"]["stream_bytes"] >= 2 * 4 * 8

    def test_the_table(self, tiny):
        text = tiny[0].stdout
        for word in (
            "machine",
            "limits",
            "lstm-8",
            "gru-8-t3-b2",
            "ort bound",
            "best peer",
            "roofline",
            "import fastrnn",
        ):
            assert word in text
        assert "15 of 18 targets belong to grids or cases that did not run" in text

    def test_compared_with_itself(self, tiny, capsys):
        path = tiny[2]
        assert cli.main(["bench", "--compare", str(path), str(path), "--json", "-"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [line["speedup"] for line in found["cases"]] == [1.0, 1.0, 1.0]
        assert found["differences"] == []
        assert cli.main(["bench", "--compare", str(path), str(path)]) == 0
        text = capsys.readouterr().out
        assert "tiny: 3 of 3 cases, speedup 1.00, ratio to the best peer times 1.00" in text

    def test_the_comparison_as_a_file(self, tiny, tmp_path, capsys):
        path = str(tiny[2])
        assert cli.main(["bench", "--compare", path, path, "--json", str(tmp_path / "c.json")]) == 0
        assert json.loads((tmp_path / "c.json").read_text())["grids"]["tiny"]["cases"] == 3

    def test_tables_of_the_documentation(self, tiny, tmp_path):
        page = tmp_path / "page.md"
        page.write_text(
            "# A\n<!-- table: tiny -->\nold\n<!-- end -->\ntext\n<!-- table: step -->\nkept\n<!-- end -->\n"
        )
        tool = runpy.run_path(str(ROOT / "tools" / "bench" / "tables.py"))
        assert tool["main"]([str(tiny[2]), str(page)]) == 0
        text = page.read_text()
        assert "| lstm-8 |" in text
        assert "old" not in text
        assert "\ntext\n<!-- table: step -->\nkept\n<!-- end -->" in text
        with pytest.raises(ValueError, match="has no <!-- table"):
            tool["fill"]("# A", tiny[1])

    def test_every_table_of_the_page_is_one_that_is_made(self):
        page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
        tool = runpy.run_path(str(ROOT / "tools" / "bench" / "tables.py"))
        names = [match["name"] for match in tool["BLOCK"].finditer(page)]
        assert names == ["machine", "targets", "step", "odd", "batch", "sequence", "models", "threads", "pool"]

    def test_picture(self, tiny, tmp_path):
        pytest.importorskip("matplotlib", reason="the plot needs matplotlib, which the tests do not bring")
        done = subprocess.run(
            [sys.executable, str(ROOT / "tools" / "bench" / "plot.py"), str(tiny[2]), str(tmp_path / "p.svg")],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(tmp_path)},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "p.svg").read_text().count("tiny/") >= 3


class TestCommand:
    def test_stdout_for_a_program(self, stubs, capsys):
        stubs(fastrnn=0, ort=0)
        argv = ["bench", *TINY, "--case", "lstm", "--no-costs", "--json", "-", "--engines", "fastrnn,ort"]
        assert cli.main(argv) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)["cases"][0]["id"] == "tiny/lstm-8"
        assert captured.err == ""

    def test_a_wrong_answer_is_loud(self, stubs, capsys):
        stubs(fastrnn=0, ort=1)
        assert cli.main(["bench", *TINY, "--case", "lstm", "--no-costs", "--engines", "fastrnn,ort"]) == 1
        captured = capsys.readouterr()
        assert "WRONG ANSWER" in captured.out
        assert "tiny/lstm-8: ort wrong: wrong answer: largest difference 1" in captured.out
        assert captured.err.strip().endswith("tiny/lstm-8")

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--grid", "nowhere"], "invalid choice"),
            (["--engines", "tract"], "expected names of fastrnn"),
            (["--rounds", "0"], "expected a whole number"),
            (["--round-ms", "-3"], "expected a number above 0"),
        ],
    )
    def test_wrong_usage(self, capsys, argv, message):
        with pytest.raises(SystemExit) as stop:
            cli.main(["bench", *argv])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err

    def test_no_such_case(self, capsys):
        assert cli.main(["bench", "--grid", "tiny", "--case", "zzz"]) == 1
        assert "no cases that match zzz" in capsys.readouterr().err

    def test_an_isa_that_is_not_there(self):
        done = program(*TINY, "--isa", "mmx")
        assert done.returncode == 1
        assert "fastrnn did not start" in done.stderr
        assert "'mmx'" in done.stderr

    def test_a_terminal_shows_a_bar_with_the_time_left(self):
        parent, child = pty.openpty()
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"}
        argv = [*TINY, "--engines", "fastrnn", "--no-costs", "--json", "-"]
        running = subprocess.Popen(
            [sys.executable, "-m", "fastrnn", "bench", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=child,
            env=env,
        )
        os.close(child)
        shown = b""
        while True:
            try:
                data = os.read(parent, 4096)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            shown += data
        out = running.stdout.read()
        running.stdout.close()
        os.close(parent)
        assert running.wait(120) == 0
        assert b"left" in shown
        assert b"%" in shown
        assert len(json.loads(out)["cases"]) == 3


@any_isa
def test_whose_word_is_taken_for_a_model_file(tmp_path):
    """onnxruntime's; where only fastrnn answered, nobody's, and the result says that it was not compared."""
    np.save(tmp_path / "fastrnn.npy", np.array([1.0, 2.0]))
    alone = {"fastrnn": {"status": "ok"}}
    runner.compare_answers(alone, tmp_path, {})
    assert alone["fastrnn"] == {"status": "ok", "difference": None, "compared_with": None}
    np.save(tmp_path / "ort.npy", np.array([1.0, 2.5]))
    both = {"fastrnn": {"status": "ok"}, "ort": {"status": "ok"}}
    runner.compare_answers(both, tmp_path, {})
    assert (both["ort"]["status"], both["fastrnn"]["status"]) == ("ok", "wrong")
    assert "from ort" in both["fastrnn"]["reason"]


def test_a_pool_beside_plain_batches_and_sessions(tmp_path):
    """Every engine of the grid gives the same answers; the plain batch is no peer."""
    options = runner.Options(grids=("tiny-pool",), rounds=2, round_ns=1_000_000, trial_ns=100_000, costs=False)
    (case,) = runner.run(options)["cases"]
    assert (case["slots"], case["batch"]) == (5, 2)
    assert set(case["results"]) == {"fastrnn", "fastrnn-plain", "ort-gather", "ort-sessions"}
    for name, found in case["results"].items():
        assert found["status"] == "ok", (name, found)
        assert found["difference"] < 1e-5
    assert case["best_peer"] in ("ort-gather", "ort-sessions")
    assert case["ratios"]["fastrnn-plain"]["ratio"] > 0
