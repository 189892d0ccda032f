"""Fill the tables of docs/performance.md from records of `fastrnn bench --json`.

    python tools/bench/tables.py RECORD.json ... [docs/performance.md] [--only NAME ...]

The page keeps its text; the part between `<!-- table: NAME -->` and `<!-- end -->` is replaced. NAME is `machine`,
`targets`, `summary`, a grid, or a grid and one of its further tables (`precision-errors`). A table that is not in the
records is left unchanged, and so is one that --only does not name. Several records count as one run of one machine.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fastrnn.bench import load, merge
from fastrnn.cli import bench_tables as command

# Grid -> what a reader of the summary calls it
SUMMARY = {
    "step": "one step of one stream, 32 to 512 units",
    "odd": "one step of one stream, 8 to 130 units",
    "batch": "one step of 16 and of 128 streams",
    "sequence": "100 steps in one call, 1 to 64 rows",
    "models": "Silero VAD, DTLN, GTCRN, the example",
    "pool": "pools of 1 to 10,000 streams",
    "wide": "more sizes (96 to 2048), rows and lengths",
}
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def summary_row(grid: str, figures: dict) -> list[str]:
    """A grid in one line: geometric means, the least ratio and its case, and how many cases lose."""
    against = [figures["against"].get(name) for name in ("ort", "ort-gather")]
    theirs = next((f"{mean:.2f}x" for mean in against if mean), "-")
    least, mean = figures["least"], figures["geometric_mean"]
    if mean is None:
        return [SUMMARY[grid], "-", theirs, "-", f"of {figures['cases']}"]
    shown = f"{least['ratio']:.2f}x, {least['case'].partition('/')[2]}"
    return [SUMMARY[grid], f"{mean:.2f}x", theirs, shown, f"{figures['loses']} of {figures['cases']}"]


def blocks(record: dict) -> dict[str, str]:
    """Every table that the record can give, by name."""
    made = {
        "machine": table(("", ""), command.header(record)),
        "targets": table(("target", "wanted", "reached", "", "note"), command.target_rows(record["targets"])),
    }
    summary = [summary_row(grid, figures) for grid, figures in record["grids"].items() if grid in SUMMARY]
    if summary:
        made["summary"] = table(("", "over the best peer", "over onnxruntime", "least", "behind a peer"), summary)
    for grid, figures in record["grids"].items():
        cases = [c for c in record["cases"] if c["grid"] == grid]
        text = "".join(f"\n{line}\n" for line in command.grid_lines(cases, figures))
        for found in command.grid_tables(cases):
            end = text if not found.name else ""  # what is said of the whole grid is said once
            made[f"{grid}-{found.name}".rstrip("-")] = table(found.columns, found.rows) + end + "\n"
    return made


def fill(page: str, record: dict, only: Sequence[str] = ()) -> str:
    """The page with its tables replaced, or those that `only` names; raises ValueError if it has no table at all."""
    made = {name: body for name, body in blocks(record).items() if not only or name in only}
    if not BLOCK.search(page):
        raise ValueError("the page has no <!-- table: NAME --> ... <!-- end -->")
    return BLOCK.sub(lambda m: m[1] + made.get(m["name"], m["body"]) + m[4], page)


def main(argv: list[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description="Fill the tables of docs/performance.md from a benchmark's records.")
    parser.add_argument("files", nargs="+", help="JSON files, then the page (default: docs/performance.md)")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="replace these tables alone")
    args = parser.parse_args(argv)
    page = Path(args.files.pop() if args.files[-1].endswith(".md") else "docs/performance.md")
    record = merge([load(path) for path in args.files])
    page.write_text(fill(page.read_text(encoding="utf-8"), record, args.only), encoding="utf-8")
    print(f"{page} filled")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
