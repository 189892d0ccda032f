"""Draw docs/speed.svg, the picture of README.md, from the tables of docs/performance.md.

    python tools/readme_picture.py [docs/performance.md] [docs/speed.svg] --date '21 November 2026'

The tables are those of a record of `fastrnn bench` (tools/bench/tables.py). A row shows the time of a call of fastrnn
and of onnxruntime, whichever of its two set-ups is faster, on a scale of its own. The picture has its own background,
so that it reads on light and on dark pages.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
# case in the tables, what it is
ROWS = (
    ("lstm-64", "LSTM, 64 units", "one step"),
    ("gru-128", "GRU, 128 units", "one step"),
    ("lstm-256", "LSTM, 256 units", "one step"),
    ("lstm-512", "LSTM, 512 units", "one step"),
    ("silero_vad_v5", "Silero VAD", "one stream"),
    ("silero_vad_v5-b32", "Silero VAD", "32 streams"),
    ("dtln_1", "DTLN, stage 1", "one frame"),
    ("gtcrn", "GTCRN", "one frame"),
)
WIDTH, LEFT, BAR, TOP, ROW = 760, 190, 420, 74, 42
STYLE = """\
    .card { fill: #ffffff; stroke: #d0d7de; }
    text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #1f2328; }
    .title { font-size: 16px; font-weight: 600; }
    .muted { fill: #59636e; font-size: 12px; }
    .ours { fill: #0969da; }
    .theirs { fill: #afb8c1; }
    .ratio { font-weight: 600; }
    @media (prefers-color-scheme: dark) {
      .card { fill: #0d1117; stroke: #3d444d; }
      text { fill: #e6edf3; }
      .muted { fill: #9198a1; }
      .ours { fill: #4493f8; }
      .theirs { fill: #59636e; }
    }
"""


def tables(page: str) -> dict[str, dict[str, list[str]]]:
    """Name of a table -> (first cell -> the others, with the head under "")."""
    found = {}
    for name, body in re.findall(r"<!-- table: ([\w-]+) -->\n(.*?)<!-- end -->", page, re.DOTALL):
        rows = [[c.strip() for c in line.strip("| ").split(" | ")] for line in body.splitlines() if line[:2] == "| "]
        found[name] = {(r[0] if i else ""): r[1:] for i, r in enumerate(rows) if not r[0].startswith("---")}
    return found


def times(page: str) -> list[tuple[str, str, float, float]]:
    """(what, which, microseconds of fastrnn, of onnxruntime at its best) for each row of the picture."""
    found = tables(page)
    made = []
    for case, what, which in ROWS:
        table = found["models" if case in found["models"] else "step"]
        cells = dict(zip(table[""], table[case], strict=False))
        theirs = min(float(cells[name].replace(",", "")) for name in ("ort run", "ort bound"))
        made.append((what, which, float(cells["fastrnn"].replace(",", "")), theirs))
    return made


def shown(us: float) -> str:
    """Microseconds or milliseconds, three digits."""
    return f"{us / 1000:.2f} ms" if us >= 1000 else f"{us:.3g} µs"


def draw(page: str, date: str) -> str:
    """The picture as SVG."""
    rows = times(page)
    height = TOP + ROW * len(rows) + 46
    machine = re.search(r"\| machine \| ([^|;]*)", page)[1].strip()
    isa = re.search(r": fastrnn \S+, (\w+)", page)[1].replace("avx", "AVX").replace("AVX512", "AVX-512")
    version = re.search(r"onnxruntime (\d[\d.]*)", page)[1]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        "  <title>Time of one call: fastrnn beside onnxruntime</title>",
        f"  <style>\n{STYLE}  </style>",
        f'  <rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        '  <text class="title" x="20" y="32">Time of one call, one thread (shorter is better)</text>',
        '  <rect class="ours" x="20" y="46" width="12" height="12" rx="2"/><text x="38" y="57">fastrnn</text>',
        '  <rect class="theirs" x="104" y="46" width="12" height="12" rx="2"/>',
        f'  <text x="122" y="57">onnxruntime {version}, the faster of run and IOBinding</text>',
    ]
    for i, (what, which, ours, theirs) in enumerate(rows):
        y = TOP + ROW * i
        most = max(ours, theirs)
        for kind, us, dy in (("ours", ours, 4), ("theirs", theirs, 19)):
            length = BAR * us / most
            ratio = f'  <tspan class="ratio">{theirs / ours:.1f}×</tspan>' if kind == "ours" else ""
            parts.append(f'  <rect class="{kind}" x="{LEFT}" y="{y + dy}" width="{length:.1f}" height="13" rx="2"/>')
            parts.append(
                f'  <text class="muted" x="{LEFT + length + 6:.1f}" y="{y + dy + 11}">{shown(us)}{ratio}</text>'
            )
        parts.append(f'  <text x="20" y="{y + 16}">{escape(what)}</text>')
        parts.append(f'  <text class="muted" x="20" y="{y + 31}">{escape(which)}</text>')
    foot = f"fastrnn bench on {machine} with {isa}, {date}. All cases and all engines: docs/performance.md"
    parts += [f'  <text class="muted" x="20" y="{height - 16}">{escape(foot)}</text>', "</svg>", ""]
    return "\n".join(parts)


def main(argv: list[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Draw the picture of README.md from the tables of docs/performance.md."
    )
    parser.add_argument("page", nargs="?", type=Path, default=ROOT / "docs" / "performance.md")
    parser.add_argument("picture", nargs="?", type=Path, default=ROOT / "docs" / "speed.svg")
    parser.add_argument("--date", required=True, help="when the record was made, such as '21 November 2026'")
    args = parser.parse_args(argv)
    args.picture.write_text(draw(args.page.read_text(encoding="utf-8"), args.date), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
