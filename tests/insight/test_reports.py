"""The pages of `--report` and the drawings of `--graph`: complete in themselves, drawn in a real browser, never half
written; and the commands that write them, over every model at hand."""

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn import cli
from fastrnn.insight.limits import Limits
from fastrnn.insight.report import drawing, page

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "tone_words.onnx"
PUBLISHED = ROOT.parent / "shared" / "models"
DATA = ROOT / "tests" / "data" / "onnx"
MODELS = {
    "example": (EXAMPLE, []),
    "both ways": (DATA / "bigru_stacked.script.onnx", []),
    "dtln_1": (PUBLISHED / "dtln_1.onnx", []),
    "dtln_2": (PUBLISHED / "dtln_2.onnx", []),
    "gtcrn": (PUBLISHED / "gtcrn_simple.onnx", []),
    "silero": (PUBLISHED / "silero_vad_v5.onnx", ["--bind", "sr=16000", "--sizes", "size=576"]),
}
CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
QUICK = {"profile": ["--seconds", "0.1"], "analyze": ["--steps", "48", "--long-steps", "100", "--seconds", "0.4"]}
LEAST_FIGURES = {"profile": 3, "analyze": 4}
pytest.importorskip("matplotlib", reason="reports are drawn with matplotlib, which is not installed")


@pytest.fixture(scope="module", autouse=True)
def quick_limits(tmp_path_factory):
    """Limits of a made-up machine in a cache of the tests' own: no test measures or touches the user's cache."""
    from fastrnn.insight import limits

    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    made_up = Limits(
        "made up", "avx2", 8, {"L1": 32768, "L2": 1 << 20}, 1e15, ((16384, 2e11), (1 << 26, 2e10)), 1, 4, 90, 5e3, 9e3
    )
    limits.cache_file().parent.mkdir()
    limits.cache_file().write_text(json.dumps(made_up.as_dict()))
    yield
    patch.undo()


class Counter(HTMLParser):
    """What a page holds: how often each tag, every address in it, ids."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.ids, self.labels = {}, [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action", "poster"):
                self.addresses.append(value)
            elif name == "id":
                self.ids.append(value)
            elif name == "aria-label":
                self.labels.append(value)


def model_of(name):
    path, options = MODELS[name]
    if not path.exists():
        pytest.skip("the published models are not beside the repository")
    return path, options


def write_report(command, name, tmp_path, capsys):
    """(page's text, path, stdout) of a command with --report."""
    path, options = model_of(name)
    target = tmp_path / "report.html"
    code = cli.main([command, str(path), *options, *QUICK[command], "--report", str(target)])
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    return target.read_text(), target, captured.out


@pytest.mark.parametrize("command", ["profile", "analyze"])
@pytest.mark.parametrize("name", MODELS)
def test_a_report_of_every_model(command, name, tmp_path, capsys):
    text, path, out = write_report(command, name, tmp_path, capsys)
    assert f"report written to {path}" in out
    found = Counter(text)
    assert found.tags["svg"] >= LEAST_FIGURES[command] - (name == "both ways" and command == "analyze")
    assert found.tags["svg"] == len(found.labels)
    assert all(a.startswith(("#", "data:,")) for a in found.addresses)
    assert "script" not in found.tags
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(found.ids) == len(set(found.ids))
    assert MODELS[name][0].name in text
    for bad in ("nan", "NaN %", ">None<", "inf %"):
        assert bad not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL).replace("finance", "")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian: apt install chromium)")
class TestBrowser:
    PROBE = """<script>
    window.addEventListener("load", () => {
      const boxes = [...document.querySelectorAll("figure svg")].map(s => s.getBoundingClientRect());
      const shapes = [...document.querySelectorAll("figure svg")].map(s => s.querySelectorAll("path").length);
      document.body.dataset.result = JSON.stringify({
        drawn: boxes.map(b => [b.width, b.height]), shapes,
        fetched: performance.getEntriesByType("resource").map(e => e.name),
        wide: document.documentElement.scrollWidth, window: window.innerWidth });
    });</script>"""

    @pytest.mark.parametrize("command", ["profile", "analyze"])
    @pytest.mark.parametrize(("name", "width"), [("example", 1200), *((name, 390) for name in MODELS)])
    def test_the_figures_draw_and_nothing_is_fetched(self, name, width, command, tmp_path, capsys):
        text, path, _ = write_report(command, name, tmp_path, capsys)
        # The page in a frame of a phone's width: a window of Chromium itself is never narrower than 500 pixels.
        path.write_text(text.replace("</body>", self.PROBE + "</body>"))
        frame = tmp_path / "frame.html"
        frame.write_text(
            f'<body><iframe src="report.html" width="{width}" height="800"></iframe><script>'
            'window.addEventListener("load", () => { const d = document.querySelector("iframe").contentDocument;'
            'document.body.dataset.result = d.body.dataset.result; });</script></body>'
        )  # fmt: skip
        done = browse(
            ["--dump-dom", "--allow-file-access-from-files", "--virtual-time-budget=5000", frame.as_uri()], tmp_path
        )
        match = re.search(r'<body data-result="([^"]*)"', done.stdout)
        assert match, done.stdout[:500] + done.stderr[-1000:]
        seen = json.loads(match[1].replace("&quot;", '"'))
        assert len(seen["drawn"]) == text.count("<svg") >= LEAST_FIGURES[command] - (name == "both ways")
        assert all(w > 250 and h > 100 for w, h in seen["drawn"])
        assert all(count > 10 for count in seen["shapes"])
        assert seen["fetched"] == []
        assert seen["wide"] <= seen["window"]  # tables scroll by themselves, the page does not

    def test_it_prints(self, tmp_path, capsys):
        _, path, _ = write_report("analyze", "example", tmp_path, capsys)
        target = tmp_path / "page.pdf"
        browse(["--no-pdf-header-footer", f"--print-to-pdf={target}", path.as_uri()], tmp_path)
        assert target.read_bytes().startswith(b"%PDF")


def browse(arguments, folder):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               f"--user-data-dir={folder / 'browser'}", *arguments]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, stdin=subprocess.DEVNULL)


class TestWriting:
    def test_a_page_is_whole_or_not_there(self, tmp_path, monkeypatch):
        target = tmp_path / "r.html"
        page.write(page.Page("old", ""), target)

        def broken(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", broken)
        with pytest.raises(KeyboardInterrupt):
            page.write(page.Page("new", ""), target)
        assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
        assert "<h1>old</h1>" in target.read_text()

    def test_a_place_that_is_none(self, tmp_path, capsys):
        code = cli.main(["profile", str(EXAMPLE), *QUICK["profile"], "--report", str(tmp_path / "no" / "r.html")])
        assert code == 1
        assert "No such file" in capsys.readouterr().err

    def test_text_is_not_markup(self):
        made = page.Page("<b>", "a & b")
        made.table(("<i>",), [("<script>",)])
        text = made.html()
        assert "<script>" not in text
        assert "&lt;b&gt;" in text
        assert "a &amp; b" in text

    def test_without_matplotlib_it_says_what_to_install(self, monkeypatch, capsys, tmp_path):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        code = cli.main(["profile", str(EXAMPLE), "--report", str(tmp_path / "r.html")])
        assert code == 1
        assert "pip install 'fastrnn[report]'" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_ctrl_c_leaves_nothing(self, tmp_path):
        target = tmp_path / "out" / "r.html"
        target.parent.mkdir()
        code = (
            "import sys, fastrnn; from fastrnn.cli import main; analyze = fastrnn.analyze\n"
            "def begun(*args, **named): print('begun', flush=True); return analyze(*args, **named)\n"
            "fastrnn.analyze = begun; sys.exit(main(sys.argv[1:]))"
        )
        command = [
            sys.executable,
            "-c",
            code,
            "analyze",
            str(EXAMPLE),
            "--long-steps",
            "100000000",
            "--report",
            str(target),
        ]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.5)  # at any moment of the analysis, which would take hours
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 130, (out, err)
        assert err == "interrupted\n"
        assert list(target.parent.iterdir()) == []


class TestCommands:
    def test_profile_tells_a_person(self, capsys):
        assert cli.main(["profile", str(EXAMPLE), "--seconds", "0.05"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        for words in ("one step of one stream", "node_gru__1", "29.6 k", "roofline", "streams", "one step every 32 ms"):
            assert words in out

    def test_profile_tells_a_program(self, capsys):
        command = [
            "profile",
            str(EXAMPLE),
            "--seconds",
            "0.05",
            "--batch",
            "4",
            "--steps",
            "3",
            "--hop-ms",
            "8",
            "--json",
        ]
        assert cli.main(command) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["ok"]
        assert (record["batch"], record["steps"], record["hop_ms"], record["call"]) == (4, 3, 8.0, "run")
        assert record["ops"][1]["kind"] == "cell"

    def test_a_long_table_names_what_it_leaves_out(self):
        from fastrnn.cli import profile as command

        found = fastrnn.profile(fastrnn.load(EXAMPLE), seconds=0.05)
        short, whole = command.op_rows(found, 1), command.op_rows(found, None)
        dearest = max(found.ops, key=lambda op: op.measured_ns)
        assert [row[0] for row in short] == [dearest.kind, "2 others", "the call"]
        assert [row[0] for row in whole] == ["linear", "cell", "linear", "the call"]

    def test_analyze_tells_a_person(self, capsys, tmp_path):
        np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32))
        command = ["analyze", str(EXAMPLE), "--data", str(tmp_path / "x.npy"), "--long-steps", "200", "--definitions"]
        assert cli.main(command) == 0
        out, err = capsys.readouterr()
        assert err == ""
        for words in (
            "x.npy; 1 rows of 50 steps",
            "forgetting",
            "impulses",
            "bfloat16",
            "drift",
            "rms of (dirty output",
        ):
            assert words in out
        assert "not your signal" not in out

    def test_analyze_tells_a_program(self, capsys):
        assert cli.main(["analyze", str(EXAMPLE), *QUICK["analyze"], "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["ok"]
        assert record["synthetic"]
        assert record["definitions"]["drift"]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["profile", "MODEL", "--batch", "10000", "--steps", "10000"], "more than"),
            (["analyze", "MODEL", "--data", "nothing.npy"], "no data file"),
            (["profile", "nothing.onnx"], "nothing.onnx"),
        ],
    )
    def test_mistakes_are_said_in_a_line(self, arguments, words, capsys):
        code = cli.main([str(EXAMPLE) if a == "MODEL" else a for a in arguments])
        out, err = capsys.readouterr()
        assert (code, out) == (1, "")
        assert words in err
        assert len(err.splitlines()) == 1

    def test_a_bar_on_a_terminal_and_nothing_in_a_pipe(self):
        code = "import sys; from fastrnn.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "analyze", str(EXAMPLE), *QUICK["analyze"], "--json"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, stdin=subprocess.DEVNULL)
        assert (done.returncode, done.stderr) == (0, "")
        screen, ours = pty.openpty()
        command.remove("--json")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=ours, env=env, stdin=subprocess.DEVNULL)
        os.close(ours)
        drawn, end = b"", time.monotonic() + 300
        with contextlib.suppress(OSError):  # EIO: the command has ended
            # Read at once: a terminal takes 64 KB, and then the command would wait for ever.
            while time.monotonic() < end:
                if select.select([screen], [], [], 1)[0]:
                    drawn += os.read(screen, 65536)
        os.close(screen)
        assert process.wait(60) == 0
        assert b"left, " in drawn


class TestDrawing:
    def test_every_node_and_end_is_there(self, tmp_path):
        graph = fastrnn.load(EXAMPLE).graph
        fastrnn.report.draw(graph, tmp_path / "g.dot")
        text = (tmp_path / "g.dot").read_text()
        for node in graph.nodes:
            assert node.name in text
        for words in ("gru 32 → 56", "bands", "words", "[batch, time, 20]", "parameters"):
            assert words in text

    def test_threaded_states_close_a_circle(self):
        text = drawing.digraph(fastrnn.load(DATA / "gru_states.script.onnx").graph).source
        graph = fastrnn.load(DATA / "gru_states.script.onnx").graph
        for before, after in graph.states.items():
            place = f"out{graph.outputs.index(after)} -> in{graph.inputs.index(before)}"
            assert f"{place} [constraint=false style=dashed]" in text
            assert f"the last step's {after}" in text

    def test_no_arrow_has_a_label(self):
        """dot takes each for a node of its own: GTCRN's graph took half a minute, and takes two seconds."""
        for name in ("gru_states.script.onnx", "causal_block.dynamo_frozen.onnx"):
            arrows = [a for a in drawing.digraph(fastrnn.load(DATA / name).graph).source.splitlines() if " -> " in a]
            assert arrows
            assert not any("label" in a for a in arrows)

    def test_what_all_names_share_is_said_once(self):
        from graph_builder import GraphBuilder

        build = GraphBuilder("deep")
        x = build.input("x", "float32", 2)
        for name in ("root/a/tanh", "root/b/relu"):
            x = build.add("unary", x, name=name, fn=name[-4:], alpha=0.0, beta=0.0)
        text = drawing.digraph(build.done(x)).source
        assert "names of nodes begin with node_root/" in text
        assert "\na/tanh\n[2]" in text


class TestNames:
    def test_common_path(self):
        common = fastrnn.report.common_path
        assert common(["a/b/c", "a/b/d/e"]) == "a/b/"
        assert common(["a/b", "ab/c"]) == ""
        assert common(["a/b"]) == common([]) == ""
        assert common(["a/b", "a/b"]) == "a/"

    def test_shortened(self):
        assert fastrnn.report.shortened("abc", 4) == "abc"
        assert fastrnn.report.shortened("abcdefghij", 6) == "ab…hij"

    def test_ticks_are_short(self):
        from fastrnn.insight.report.figures import _plain

        assert [_plain(v) for v in (0.002, 0.5, 1, 500, 20_000)] == ["0.002", "0.5", "1", "500", "20000"]
        assert [_plain(v) for v in (1e-6, 2e-5)] == ["$10^{-6}$", r"$2\cdot10^{-5}$"]

    def test_long_words_of_a_table_may_break_and_numbers_never(self):
        table = page.Page("p", "")
        table.table(("name", "n"), [("x" * 60, "1,000,000,000,000,000,000,000 us")], ("n",))
        assert f'<td class="long">{"x" * 60}</td><td class="number">1,000' in table.html()

    @pytest.mark.skipif(shutil.which("dot") is None, reason="no dot (Debian: apt install graphviz)")
    def test_a_picture(self, tmp_path, capsys):
        target = tmp_path / "g.svg"
        assert cli.main(["inspect", str(EXAMPLE), "--graph", str(target)]) == 0
        assert f"graph drawn to {target}" in capsys.readouterr().out
        text = target.read_text()
        assert text.rstrip().endswith("</svg>")
        assert "gru 32 → 56" in text

    def test_a_picture_without_the_program_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(fastrnn.FastRNNError, match=r"apt install graphviz"):
            fastrnn.report.draw(fastrnn.load(EXAMPLE).graph, tmp_path / "g.svg")
        assert list(tmp_path.iterdir()) == []

    def test_other_suffixes_are_refused(self, tmp_path):
        with pytest.raises(fastrnn.FastRNNError, match=r"\.dot or \.svg"):
            fastrnn.report.draw(fastrnn.load(EXAMPLE).graph, tmp_path / "g.png")

    def test_names_are_not_markup(self):
        from graph_builder import GraphBuilder

        build = GraphBuilder("<b>")
        x = build.input("<x>", "float32", 2)
        text = drawing.digraph(build.done(build.add("unary", x, name="a\\nb", fn="tanh", alpha=0.0, beta=0.0))).source
        assert "a\\\\nb" in text
        assert 'label="<x>' in text  # quoted: not dot's <html>
