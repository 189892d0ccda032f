"""Run the exported programs of tests/programs through fastrnn at other lengths and batches, and count the answers.

    PYTHONPATH=. python tools/run_programs.py               # everything; exports once, which takes long
    PYTHONPATH=. python tools/run_programs.py --only flip   # names that contain "flip"
    PYTHONPATH=. python tools/run_programs.py --json now.json --compare before.json

Needs torch, onnxscript and onnxruntime. Each program is run in its own process, so that a crash counts as an "error"
answer; `--no-fork` uses this process. A program is exported by both exporters, with nothing, time, or batch and time
free, and run at its own size and up to nine others; `tests/programs/compare.py` says what counts as right.

    --cache FOLDER    where exported files are kept (default: build/programs)
    --list            names, inputs and sizes; runs nothing
    --family loops    one module of tests/programs
    --kind script     exporters or forms of files: script, dynamo, frozen, time, both, or script.frozen and the like
    --show wrong      print every answer of this verdict (default: wrong and error; none, all, refused, right)
    --export          only fill the cache

Exits 1 if an answer is wrong or an error, or if --compare finds one that was right and is not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from programs.exports import KINDS, NotExported, applies, exported  # noqa: E402
from programs.registry import Program, all_programs  # noqa: E402
from programs.running import each, run, run_apart  # noqa: E402

VERDICTS = ("right", "refused", "twin", "noted", "wrong", "error")


def is_own(program: Program, size: str) -> bool:
    return size == f"{program.T},{program.B}"


def table(programs, results) -> str:
    """Counts by kind, at the file's own sizes and at others."""
    rows = [
        f"{'':16}{'files':>6}   own size: "
        + "".join(f"{v:>9}" for v in VERDICTS)
        + "   other sizes: "
        + "".join(f"{v:>9}" for v in VERDICTS)
    ]
    total, files = {True: Counter(), False: Counter()}, 0
    for kind in KINDS:
        count, n = {True: Counter(), False: Counter()}, 0
        for name, kinds in results.items():
            answers = kinds.get(kind, {})
            n += bool(answers) and "not exported" not in answers
            for size, a in answers.items():
                if size != "not exported":
                    count[is_own(programs[name], size)][a[0]] += 1
        files += n
        total = {k: total[k] + count[k] for k in total}
        rows.append(_row(kind, n, count))
    rows.append(_row("all", files, total))
    for own, text in ((True, "own size"), (False, "other sizes")):
        n = max(1, sum(total[own].values()))
        rows.append(f"{text}: {n} answers, " + ", ".join(f"{100 * total[own][v] / n:.1f} % {v}" for v in VERDICTS))
    return "\n".join(rows)


def _row(title, files, count) -> str:
    own, other = ("".join(f"{count[k][v]:>9}" for v in VERDICTS) for k in (True, False))
    return f"{title:16}{files:>6}             {own}                {other}"


def shown(results, verdicts) -> list[str]:
    lines = []
    for name, kind, size, (verdict, why, difference) in each(results):
        if verdict in verdicts:
            what = f"differs by {difference:.3g}" if difference is not None else ""
            lines.append(f"{verdict:8}{name:40}{kind:15}T,B={size:7} {what}{why[:240] if verdict != 'right' else why}")
    return lines


def lost(results, before: dict) -> list[str]:
    """Answers that were right before and no longer are."""
    lines = []
    for name, kind, size, (verdict, why, _) in each(results):
        old = before.get(name, {}).get(kind, {}).get(size)
        if old and old[0] == "right" and verdict != "right":
            lines.append(f"was right, is {verdict:8}{name:40}{kind:15}T,B={size:7} {why[:240]}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "programs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--family", default="")
    parser.add_argument("--kind", default="")
    parser.add_argument("--show", default="wrong,error")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--no-fork", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    programs = {
        n: p for n, p in all_programs().items() if args.only in n and (not args.family or p.family == args.family)
    }
    kinds = [k for k in KINDS if args.kind in ("", k, *k.split("."))]
    if args.list:
        for p in programs.values():
            print(f"{p.family:14}{p.name:40}T={p.T:<3} B={p.B} ", *(f"{i.name}[{' '.join(i.axes)}]" for i in p.inputs))
        print(len(programs), "programs")
        return 0
    args.cache.mkdir(parents=True, exist_ok=True)
    if args.export:
        fill(programs, kinds, args.cache)
        return 0
    one = run if args.no_fork else run_apart
    results = {name: one(p, kinds, args.cache) for name, p in programs.items()}
    verdicts = VERDICTS if args.show == "all" else args.show.split(",")
    print(*shown(results, verdicts), sep="\n")
    print(table(programs, results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=0))
    gone = lost(results, json.loads(args.compare.read_text())) if args.compare else []
    if args.compare:
        print(*gone, f"{len(gone)} answers were right before and are not now", sep="\n")
    return int(bool(gone) or any(a[0] in ("wrong", "error") for *_, a in each(results)))


def fill(programs, kinds, cache) -> None:
    for n, program in enumerate(programs.values()):
        for kind in kinds:
            if applies(program, kind):
                try:
                    exported(program, kind, cache)
                except NotExported as e:
                    print(f"{program.name} {kind}: {str(e)[:160]!r}")
        if n % 10 == 9:
            print(f"{n + 1} of {len(programs)} programs", flush=True)


if __name__ == "__main__":
    sys.exit(main())
