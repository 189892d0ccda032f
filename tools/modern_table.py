"""Export models of today's recurrences in every form, try each file, and write the table of docs/guide/modern.md.

    PYTHONPATH=. python tools/modern_table.py                      # everything, and writes the page
    PYTHONPATH=. python tools/modern_table.py --only Mamba --show  # models of this name; prints, writes nothing

Needs torch, onnxscript and onnxruntime. Files are kept in build/modern.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

from modern import cells, chunks, encoders, gated, matrices  # noqa: E402
from modern.forms import exported, forms_of  # noqa: E402
from modern.registry import LISTED, Listed  # noqa: E402
from modern.trials import Trial, try_file  # noqa: E402

PAGE = ROOT / "docs" / "guide" / "modern.md"
BEGIN, END = "<!-- table: tools/modern_table.py -->", "<!-- end of the table -->"
MODULES = (cells, gated, matrices, chunks, encoders)  # that list the models


def tried(listed: Listed, cache: Path) -> list[Trial]:
    """The trials of all files of a model."""
    found = []
    for form, exporter, module in forms_of(listed):
        path = cache / f"{re.sub('[^A-Za-z0-9]+', '_', listed.name)}.{form}.{exporter}.onnx"
        try:
            if not path.exists():
                path.write_bytes(exported(listed, form, exporter, module))
        except Exception as error:  # whatever an exporter raises: it says nothing about fastrnn
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            found.append(Trial(form, exporter, {"exported": lines[0][:120]}))
            continue
        found.append(try_file(listed, form, exporter, path.read_bytes()))
    return found


def cell_of(trials: list[Trial], form: str, notes: list[str], name: str) -> str:
    """What the table says of a form: yes, what failed (with a note below the table), or - if there is none."""
    of_form = [t for t in trials if (t.form.startswith(form) if form == "parallel" else t.form == form)]
    made = [t for t in of_form if "exported" not in t.failed]
    if not made:
        return "not exported" if of_form else "-"
    wrong = [t for t in made if t.verdict != "yes"]
    if not wrong:
        return "yes"
    for t in wrong:
        notes.append(f"* {name}, {t.form.replace('_', ' ')} ({t.exporter}): {t.verdict[:300]}")
    return "no" if len(wrong) == len(made) else "one of two"


def table(results: dict[str, list[Trial]]) -> str:
    """The table and what does not work, in Markdown."""
    notes: list[str] = []
    rows = [
        "| model | step | loop | scan | parallel | step, us | onnxruntime, us | times |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, trials in results.items():
        says = [cell_of(trials, form, notes, name) for form in ("step", "loop", "scan", "parallel")]
        own = min((t.us for t in trials if t.form == "step" and t.us), default=None)
        other = min((t.ort_us for t in trials if t.ort_us), default=None)
        speed = [f"{own:.2f}" if own else "-", f"{other:.1f}" if other else "-"]
        speed.append(f"{other / own:.1f}" if own and other else "-")
        rows.append(f"| {name} | {' | '.join([*says, *speed])} |")
    files = [t for trials in results.values() for t in trials if "exported" not in t.failed]
    good = sum(t.verdict == "yes" for t in files)
    count = f"{len(results)} models, {len(files)} files; {good} of them pass every trial."
    return "\n".join([count, "", *rows, *(["", "What does not work:", "", *notes] if notes else [])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--show", action="store_true", help="print every file; write nothing")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "modern")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, listed in LISTED.items():
        if args.only.lower() in name.lower():
            results[name] = tried(listed, args.cache)
            for t in results[name] if args.show else ():
                print(f"{name:28} {t.form:24} {t.exporter:7} {t.verdict[:400]}", flush=True)
    made = table(results)
    print(made)
    if not args.show and not args.only:
        text = PAGE.read_text()
        before, rest = text.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
