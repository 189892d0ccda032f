"""`fastrnn bench` as a command: what it prints and writes, and wrong usage."""

import json
import os
import pty
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastrnn import bench, cli
from fastrnn.bench import answers, runner

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "fastrnn" / "bench" / "worker.py"
any_isa = pytest.mark.any_isa
TINY = ["--grid", "tiny", "--rounds", "2", "--round-ms", "1"]


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
        assert sum(line["asked"] for line in record["targets"]) == 3  # what an import, a load and a stream cost

    def test_every_installed_engine_answered_right(self, tiny):
        record = tiny[1]
        present = {n for n, e in record["engines"].items() if e["status"] == "ok"} & set(bench.ENGINES)
        assert {"fastrnn", "ort", "ort-iobinding", "torch"} <= present  # the test extra installs them
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
        total = len(tiny[1]["targets"])
        assert f"{total - 3} of {total} targets belong to grids or cases that did not run" in text

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
        others = {"summary", "threads", "machine", "targets", "precision-means", "paced-means", "modern"}
        assert sorted(names) == sorted({*tool["SUMMARY"], *others} - {"wide"})

    def test_the_page_of_reduced_precision_has_every_table_of_its_grids(self):
        """And each was filled from a record, so that none says nothing."""
        page = (ROOT / "docs" / "performance_precision.md").read_text(encoding="utf-8")
        tool = runpy.run_path(str(ROOT / "tools" / "bench" / "tables.py"))
        bodies = {match["name"]: match["body"] for match in tool["BLOCK"].finditer(page)}
        further = {"precision": ("means", "isas", "errors"), "published": ("isas", "errors")}
        further |= {"paced": ("means",), "quantized": ("errors",), "bits": (), "calls": (), "wide": ()}
        wanted = {f"{grid}-{table}" for grid, tables in further.items() for table in tables}
        float32 = set(tool["SUMMARY"]) - {"pool"}
        assert set(bodies) == {*wanted, *further, *float32, "machine", "targets", "summary"}
        for name, body in bodies.items():
            assert body.count("\n| ") > 2, name

    def test_tables_of_several_records_and_some_tables_alone(self, tiny, tmp_path):
        page, other = tmp_path / "page.md", tmp_path / "other.json"
        page.write_text("<!-- table: tiny -->\n<!-- end -->\n<!-- table: targets -->\nkept\n<!-- end -->\n")
        record = json.loads(tiny[2].read_text())
        other.write_text(json.dumps(record | {"cases": record["cases"][:1], "grids": {}}))
        tool = runpy.run_path(str(ROOT / "tools" / "bench" / "tables.py"))
        assert tool["main"]([str(tiny[2]), str(other), str(page), "--only", "tiny"]) == 0
        text = page.read_text()
        assert "| gru-8-t3-b2 |" in text
        assert "<!-- table: targets -->\nkept\n<!-- end -->" in text

    @pytest.mark.parametrize("name", ["performance.md", "performance_precision.md", "performance_avx2.md"])
    def test_the_summary_says_what_the_tables_say(self, name):
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        tool = runpy.run_path(str(ROOT / "tools" / "bench" / "tables.py"))
        bodies = {match["name"]: match["body"] for match in tool["BLOCK"].finditer(page)}
        grids = [grid for grid in tool["SUMMARY"] if grid in bodies]
        assert bodies["summary"].count("\n| ") == len(grids) + 1
        for grid in grids:
            said = re.search(
                r"geometric mean (\S+) over.*(?:ort run|ort-gather) ([\d.]+x).*; least (\S+), \w+/(\S+); (\d+ of \d+)",
                bodies[grid],
            )
            mean, theirs, least, case, loses = said.groups()
            title = tool["SUMMARY"][grid]
            assert f"| {title} | {mean} | {theirs} | {least}, {case} | {loses} |\n" in bodies["summary"]

    def test_a_row_of_the_summary(self, tiny):
        tool = runpy.run_path(str(ROOT / "tools" / "bench" / "tables.py"))
        (figures,) = tiny[1]["grids"].values()
        title, mean, theirs, least, loses = tool["summary_row"]("step", figures)
        assert title == "one step of one stream, 32 to 512 units"
        assert (mean, theirs) == (f"{figures['geometric_mean']:.2f}x", f"{figures['against']['ort']:.2f}x")
        assert least == f"{figures['least']['ratio']:.2f}x, {figures['least']['case'].split('/')[1]}"
        assert loses == f"{figures['loses']} of {figures['cases']}"

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
    """onnxruntime's. If only fastrnn answered, the result says that it was not compared."""
    np.save(tmp_path / "fastrnn.npy", np.array([1.0, 2.0]))
    alone = {"fastrnn": {"status": "ok"}}
    answers.compare(alone, tmp_path, {"T": 1, "precision": "float32"})
    digest = alone["fastrnn"].pop("digest")
    assert len(digest) == 16
    assert alone["fastrnn"] == {"status": "ok", "difference": None, "compared_with": None}
    np.save(tmp_path / "ort.npy", np.array([1.0, 2.5]))
    both = {"fastrnn": {"status": "ok"}, "ort": {"status": "ok"}}
    answers.compare(both, tmp_path, {"T": 1, "precision": "float32"})
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
