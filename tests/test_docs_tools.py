"""The scripts that fill pages and draw pictures of the documentation."""

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import fastrnn

ROOT = Path(__file__).resolve().parent.parent


def tool(path):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "tools" / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def streams(monkeypatch):
    module = tool("streams_per_core.py")
    monkeypatch.setattr(module, "LONE", 4)
    monkeypatch.setattr(module, "CAPACITY", 64)
    example = fastrnn.load(ROOT / "examples" / "tone_words.onnx", threads=1)
    monkeypatch.setattr(module, "models", lambda folder: [("example", example, 10.0)])
    return module


def test_streams_per_core_fills_the_page(streams, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: streams -->\nold\n<!-- end -->\nafter\n")
    assert streams.main([str(page), "--seconds", "0.01"]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- table: streams -->\n| model |")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    assert "\n| example | 10 ms | " in text
    assert "| 0.2 |\n" in text  # 56 floats
    (tmp_path / "other.md").write_text("no table\n")
    with pytest.raises(SystemExit, match="has no <!-- table: streams -->"):
        streams.main([str(tmp_path / "other.md"), "--seconds", "0.01"])


def test_streams_per_core_counts_what_fits(streams):
    (row,) = [line for line in streams.table([("m", 10.0, 1e-6, 2.5e-7, 1024)]).splitlines() if line.startswith("| m ")]
    assert row == "| m | 10 ms | 1.00 us | 7,000 | 0.25 us | 28,000 | 1.0 |"  # 70 % of 10 ms over the step


def test_the_page_has_the_tools_table(streams):
    text = (ROOT / "docs" / "guide" / "deployment.md").read_text()
    (body,) = (m[0] for m in [streams.BLOCK.search(text)])
    assert streams.table([("m", 10.0, 1e-6, 2.5e-7, 1024)]).splitlines()[0] in body
    assert body.count("\n| ") >= 7


def test_the_picture_shows_the_tables():
    """docs/speed.svg is what tools/readme_picture.py draws from docs/performance.md."""
    picture = tool("readme_picture.py")
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    drawn = (ROOT / "docs" / "speed.svg").read_text(encoding="utf-8")
    date = re.search(r"with [\w-]+, ([^.]*)\.", drawn)[1]
    assert picture.draw(page, date) == drawn
    ElementTree.fromstring(drawn)
    assert "prefers-color-scheme: dark" in drawn


def test_the_picture_takes_the_faster_set_up_of_onnxruntime():
    picture = tool("readme_picture.py")
    head = "| case | fastrnn | ort run | ort bound |\n| --- | --- | --- | --- |\n"
    rows = "".join(f"| {case} | 1.0 | 2,000 | {3 + i} |\n" for i, (case, _, _) in enumerate(picture.ROWS))
    page = f"<!-- table: step -->\n{head}{rows}<!-- end -->\n<!-- table: models -->\n{head}<!-- end -->\n"
    assert [(ours, theirs) for _, _, ours, theirs in picture.times(page)] == [
        (1.0, 3.0 + i) for i in range(len(picture.ROWS))
    ]


def test_readme_says_the_ratios_of_the_picture():
    picture = tool("readme_picture.py")
    ratios = [b / a for _, _, a, b in picture.times((ROOT / "docs" / "performance.md").read_text(encoding="utf-8"))]
    said = re.search(r"from ([\d.]+) to ([\d.]+) times as fast", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert said.groups() == (f"{min(ratios):.1f}", f"{max(ratios):.1f}")


def test_the_first_figures_of_the_performance_page_are_those_of_its_tables():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    step = tool("readme_picture.py").tables(page)["step"]
    sizes = re.search(r"^\| units \(and inputs\) \|(.*)\|$", page, re.MULTILINE)[1].split("|")
    for kind in ("LSTM", "GRU", "RNN"):
        cells = re.search(rf"^\| {kind} \|(.*)\|$", page, re.MULTILINE)[1].split("|")
        for size, cell in zip(sizes, cells, strict=True):
            assert float(cell) == pytest.approx(float(step[f"{kind.lower()}-{size.strip()}"][0]), rel=0.01)
    lone, pooled = re.search(r"([\d,]+) LSTMs of 128 units stepped one by one, and ([\d,]+) in a pool", page).groups()
    deployment = (ROOT / "docs" / "guide" / "deployment.md").read_text(encoding="utf-8")
    cells = [c.strip() for c in re.search(r"^\| LSTM of 128 units \|(.*)\|$", deployment, re.MULTILINE)[1].split("|")]
    for said, cell in ((lone, cells[2]), (pooled, cells[4])):
        assert float(said.replace(",", "")) == pytest.approx(float(cell.replace(",", "")), rel=0.02)
