"""Differential fuzzing over random PyTorch programs: exported, run at other lengths and batches, judged by PyTorch.

    PYTHONPATH=. python tools/fuzz_programs.py --seconds 600             # both exporters, seeds from the clock
    PYTHONPATH=. python tools/fuzz_programs.py --seconds 600 --seed 1000 --exporter script
    PYTHONPATH=. python tools/fuzz_programs.py --seed 1042 --count 1 --all    # one program again, every answer

`tests/programs/grammar.py` generates the programs and `tests/programs/compare.py` judges them; a wrong result or an
error is a finding. It is minimised (statements are dropped while the finding persists) and printed with its seed and
the text of the program, which can be pasted into a module of tests/programs. Findings that reduce to the same
statements are printed once. Each program runs in its own process, so a crash is a finding too. dynamo's exporter takes
seconds: with `--exporter both` it gets one program in ten.

On a sanitizer build torch would be slow. So write files first, then replay them without torch: every file is run at
sizes drawn from the seed, 0 and 1 among them, and what crashes or raises anything but a FastRNNError is a finding:

    PYTHONPATH=. python tools/fuzz_programs.py --seconds 600 --save build/fuzz
    LD_PRELOAD=... PYTHONPATH=. python tools/fuzz_programs.py --replay build/fuzz --seed 7

Exits 1 if there are findings.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

BAD = ("wrong", "error")


def sound(truths) -> bool:
    """Whether float32 and float64 agree well enough for a difference to be meaningful."""
    from programs.compare import differ

    return len(truths) < 2 or differ(truths[1], truths[0], 1e-5) is None


def findings(draft, kinds, sizes=None) -> list[tuple]:
    """(kind, size, answer) of every answer that is wrong or raises an error."""
    from programs.running import each, run_apart

    try:
        program = draft.program()
    except Exception:  # a smaller draft that is no longer valid Python
        return []
    if sizes is not None:
        sizes = [tuple(map(int, s.split(","))) for s in sizes]
    results = run_apart(program, kinds, None, sizes=sizes, sound=sound)
    return [(kind, size, a) for _, kind, size, a in each({"": results}) if a[0] in BAD]


def minimised(draft, found):
    """The smallest draft that still shows the first finding's kind and verdict, and what it shows."""
    from programs.grammar import smaller

    kind, verdict = found[0][0], found[0][2][0]
    changed = True
    while changed:
        changed = False
        for other in smaller(draft):
            now = [f for f in findings(other, [kind]) if f[2][0] == verdict]
            if now:
                draft, found, changed = other, now, True
                break
    return draft, found


def signature(draft, found) -> tuple:
    """The key that equal findings share: the statements without names and numbers, and the kind."""
    import re

    plain = tuple(re.sub(r"\b[amx]?\d+\b|\b\d+\.\d+\b", "#", s.lines) for s in draft.statements)
    return plain, found[0][0], found[0][2][0]


def fuzz(args) -> int:
    import torch
    from programs.exports import KINDS
    from programs.grammar import draw

    torch.set_num_threads(1)
    seen, count, end = collections.Counter(), 0, time.monotonic() + args.seconds
    seed = args.seed if args.seed is not None else int(time.time())
    while time.monotonic() < end and (args.count is None or count < args.count):
        exporter = args.exporter if args.exporter != "both" else "dynamo" if seed % 10 == 0 else "script"
        kinds = [k for k in KINDS if k.startswith(exporter)]
        draft = draw(seed)
        if args.save:
            save(draft, kinds, args.save)
        elif args.all:
            show_all(draft, kinds)
        else:
            found = findings(draft, kinds)
            if found:
                draft, found = minimised(draft, found)
                key = signature(draft, found)
                seen[key] += 1
                if seen[key] == 1:
                    report(draft, found)
        seed, count = seed + 1, count + 1
    print(f"{count} programs, seeds up to {seed - 1}; {len(seen)} findings, {sum(seen.values())} with repetitions")
    return int(bool(seen))


def report(draft, found) -> None:
    print(f"--- seed {draft.seed}, T={draft.T}, B={draft.B}")
    print(draft.text())
    for kind, size, (verdict, why, difference) in found[:4]:
        print(f"{verdict} {kind} T,B={size} {'' if difference is None else f'differs by {difference:.3g}'} {why[:300]}")
    print(f"({len(found)} answers)\n", flush=True)


def show_all(draft, kinds) -> None:
    from programs.running import each, run_apart

    print(draft.text())
    for _, kind, size, (verdict, why, difference) in each({"": run_apart(draft.program(), kinds, None, sound=sound)}):
        print(f"{verdict:8}{kind:15}T,B={size:7} {'' if difference is None else f'{difference:.3g}'} {why[:300]}")


def save(draft, kinds, folder: Path) -> None:
    from programs.exports import NotExported, export

    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        try:
            (folder / f"{draft.seed}.{kind}.onnx").write_bytes(export(draft.program(), kind))
        except NotExported:
            continue


def replay(args) -> int:
    """Run the files of a folder at drawn sizes, in this process, without torch; 1 if one ends in a foreign error."""
    import random

    import fastrnn

    bad = 0
    rng = random.Random(args.seed or 0)
    end = time.monotonic() + args.seconds
    for path in sorted(args.replay.rglob("*.onnx")):
        if time.monotonic() > end:
            break
        print(path.name, file=sys.stderr, flush=True)  # the last one printed is the one that crashed
        for text in replayed(fastrnn, path, rng):
            bad += 1
            print(f"error {path.name} {text}", flush=True)
    print(f"{bad} findings")
    return int(bool(bad))


def replayed(fastrnn, path, rng):
    """The foreign errors of one file, as texts."""
    import numpy as np

    try:
        model = fastrnn.load(path.read_bytes())
    except fastrnn.FastRNNError:
        return
    except Exception as e:
        yield f"load: {type(e).__name__}: {e}"
        return
    for _ in range(10):
        size = {w: rng.choice((0, 1, 1, 2, 3, 5, 9, 14, 17, 33, 64)) for w in ("time", "batch")}
        feeds = {}
        for info in model.inputs:
            shape = [d if isinstance(d, int) else size.get(d, size["time"]) for d in info.dims]
            noise = np.random.default_rng(rng.randrange(1 << 30)).standard_normal(shape)
            high = max(1, size["time"])
            feeds[info.name] = (
                (np.abs(noise * 3) % high).astype(info.dtype) if "int" in str(info.dtype) else noise.astype(info.dtype)
            )
        try:
            model.run(**feeds)
        except fastrnn.FastRNNError:
            continue
        except Exception as e:
            yield f"{size}: {type(e).__name__}: {e}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--count", type=int)
    parser.add_argument("--exporter", choices=("script", "dynamo", "both"), default="both")
    parser.add_argument("--all", action="store_true", help="print every answer, right ones too")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--replay", type=Path)
    args = parser.parse_args()
    return replay(args) if args.replay else fuzz(args)


if __name__ == "__main__":
    sys.exit(main())
