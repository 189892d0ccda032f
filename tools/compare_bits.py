"""Check that two trees give bit-identical results, for a change that should change nothing.

    PYTHONPATH=OLD python tools/compare_bits.py --record before.json     the old tree, built in place
    PYTHONPATH=. python tools/compare_bits.py --compare before.json      this one; exits 1 if anything differs

Every model of the tests, and of ../shared/models, is run whole at three sizes, pushed through a stream in two chunks
and saved. A record holds a digest of the outputs and of the saved file for each, or the error's class.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from fuzz_sizes import default_models, load
from size_cases import Case

MADE = 60  # models that tools/size_models.py makes, in addition to those from files
SEEDS = 3


def digest(arrays) -> str:
    """Of dtypes, shapes and bits."""
    found = hashlib.sha256()
    for array in arrays:
        array = np.asarray(array)
        found.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def outcome(call) -> str:
    """The digest that `call` returns, or the error's class."""
    import fastrnn

    try:
        return call()
    except (fastrnn.FastRNNError, MemoryError) as error:
        return type(error).__name__


def pushed(case: Case) -> str:
    """A stream's outputs for two chunks."""
    if not case.model.streamable or case.axis(case.plain[0], "time") is None:
        return "does not stream"
    feeds = case.feeds(case.plain, case.sizes | {"batch": 1})
    stream, half = case.model.stream(), case.sizes["time"] // 2
    parts = []
    for start, stop in ((0, half), (half, case.sizes["time"])):
        got = stream.push({n: case.as_stream(n, case.cut(n, a, start, stop), False) for n, a in feeds.items()})
        parts += [a for a in (got if isinstance(got, tuple) else (got,)) if a is not None]
    return digest(parts)


def record_of(label: str) -> dict[str, str]:
    """The results of one model: way -> digest or error."""
    model = load(label)
    found = {}
    for seed in range(SEEDS):
        case = Case(model, seed)
        feeds = case.feeds(case.graph.inputs, case.sizes)
        if feeds is not None:
            found[f"run {seed}"] = outcome(lambda feeds=feeds: digest(model.run(**feeds)))
            found[f"push {seed}"] = outcome(lambda case=case: pushed(case))
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "m.fastrnn")
        found["file"] = file_digest((Path(folder) / "m.fastrnn").read_bytes())
    return found


def file_digest(data: bytes) -> str:
    """The digest of a .fastrnn file. The keys of its header are in any order: safetensors keeps them in a hash map."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True)
    return hashlib.sha256(header.encode() + data[end:]).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", metavar="FILE")
    parser.add_argument("--compare", metavar="FILE")
    args = parser.parse_args()
    if (args.record is None) == (args.compare is None):
        parser.error("give --record FILE or --compare FILE")
    labels = [Path(label).name if Path(label).is_absolute() else label for label in default_models()]
    pairs = [*zip(labels, default_models(), strict=True), *((f"made:{k}", f"made:{k}") for k in range(MADE))]
    found = {}
    for name, label in pairs:
        try:
            found[name] = record_of(label)
        except Exception as error:  # a hostile file; the error's class is the result
            found[name] = {"load": type(error).__name__}
    if args.record is not None:
        Path(args.record).write_text(json.dumps(found, indent=1))
        print(f"{len(found)} models recorded")
        return 0
    before = json.loads(Path(args.compare).read_text())
    unlike = [
        f"{name}: {way} was {before.get(name, {}).get(way)}, is {found.get(name, {}).get(way)}"
        for name in sorted({*before, *found})
        for way in sorted({*before.get(name, {}), *found.get(name, {})})
        if before.get(name, {}).get(way) != found.get(name, {}).get(way)
    ]
    print("\n".join(unlike))
    answers = sum(len(ways) for ways in found.values())
    print(f"{len(found)} models, {answers} answers and files, {len(unlike)} differ")
    return 1 if unlike else 0


if __name__ == "__main__":
    sys.exit(main())
