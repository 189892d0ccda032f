"""Pack exported files of tests/programs, and their expected results, into tests/data/programs.tar.xz.

Run by hand, the results are committed; needs torch, onnxscript and onnxruntime:

    PYTHONPATH=. python tools/make_program_fixtures.py                 # exports what --cache lacks, and packs
    PYTHONPATH=. python tools/make_program_fixtures.py --expectations  # rewrites programs.json: review its diff

The archive holds up to three `.onnx` of a program (by both exporters with nothing free, by one of them with batch and
time free) and `programs.json`: a program's inputs, sizes, and the digests of the answers that count at each, see
tests/programs/digests.py and compare.py. The test generates the inputs again. The expected result of each file with
this tree is in tests/data/programs.json, see tests/test_programs.py.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

LARGEST = 60_000  # bytes of a file; longer ones are loops unrolled 64 times, and their like at 12 is there


def kinds_of(name: str) -> tuple[str, ...]:
    return "script.frozen", "dynamo.frozen", ("script.both", "dynamo.both")[zlib.crc32(name.encode()) % 2]


def pack(cache: Path, archive: Path) -> None:
    import torch
    from programs.registry import all_programs
    from programs.running import in_a_child

    torch.set_num_threads(1)
    cache.mkdir(parents=True, exist_ok=True)
    entries, files = {}, []
    for program in all_programs().values():
        ended, made = in_a_child(lambda program=program: entry_of(program, cache))
        if ended != 0:  # onnxruntime aborts at some sizes
            print(f"{program.name}: left out, the process ended with {ended}")
        elif made[1]:
            entries[program.name] = made[0]
            files += made[1]
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        add(tar, "programs.json", json.dumps(entries, separators=(",", ":")).encode())
        for name, content in files:
            add(tar, name, content)
    print(f"{archive}: {len(entries)} programs, {len(files)} files, {archive.stat().st_size} bytes")


def entry_of(program, cache: Path):
    """What the archive says of a program, and its files as (name, content)."""
    from programs.compare import File, expected, other_sizes
    from programs.digests import alike, digest
    from programs.exports import NotExported, applies, exported

    net, files, others = program.net(), [], {}
    sizes = [(program.T, program.B), *other_sizes(program)]
    truths = {s: [[digest(a) for a in t] for t in expected(program, net, s)] for s in sizes}
    truths = {s: t[: 1 if len(t) == 2 and alike(t[0], t[1], 1e-5) else 2] for s, t in truths.items() if t}
    for kind in kinds_of(program.name):
        try:
            content = exported(program, kind, cache) if applies(program, kind) else None
        except NotExported:
            continue
        if content is None or len(content) > LARGEST:
            continue
        files.append((f"{program.name}.{kind}.onnx", content))
        file = File(program, content, net, exported(program.its_twin(), kind, cache) if program.twin else None)
        for s, found in truths.items():
            also = [[digest(a) for a in answer] for answer in file.others(s)]
            also = [a for a in also if not any(alike(a, t, program.tolerance) for t in found)]
            if also:
                others.setdefault(kind, {})[f"{s[0]},{s[1]}"] = also
    inputs = "; ".join(f"{i.name}: {' '.join(i.axes)} {i.content}".strip() for i in program.inputs)
    answers = {f"{s[0]},{s[1]}": t for s, t in truths.items()}
    entry = {"inputs": inputs, "own": f"{program.T},{program.B}", "tolerance": program.tolerance, "answers": answers}
    return {**entry, "others": others}, files


def add(tar, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def expectations(path: Path) -> None:
    import test_programs

    found: dict[str, dict] = {}
    for name, kind in test_programs.FILES:
        found.setdefault(name, {})[kind] = test_programs.summary(test_programs.verdicts(name, kind))
    path.write_text("{\n" + ",\n".join(f"{json.dumps(n)}: {json.dumps(v)}" for n, v in sorted(found.items())) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "programs")
    parser.add_argument("--expectations", action="store_true")
    args = parser.parse_args()
    data = ROOT / "tests" / "data"
    if args.expectations:
        expectations(data / "programs.json")
    else:
        pack(args.cache, data / "programs.tar.xz")


if __name__ == "__main__":
    main()
