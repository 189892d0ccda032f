"""Fuzz whole models over sizes: for any batch, length and other free sizes, a result must be correct or a FastRNNError.
Intended for a build with sanitizers (HACKING.md), in which a bad read or write ends the process.

    python tools/fuzz_sizes.py --seconds 60                      the fixtures, the seeds of tests/fuzz, made models
    python tools/fuzz_sizes.py --seconds 60 a.onnx b.fastrnn     these files, and made models
    python tools/fuzz_sizes.py --repeat made:17 --seed 4211      one case again, in this process

Each case is a model and a seed that draws its sizes and inputs. It is run whole and compared with the float64
reference, then by `lengths=`, as streams and in a pool with ragged chunks, and compared with the whole runs, whose
bits they must have. Cases run in child processes, several models each. A crash, a hang or an exception other than
FastRNNError is printed with its model and seed, and ends the run with exit code 1. MemoryError counts as refused.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import size_models
from size_cases import Case, Finding

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = ROOT / "tests" / "data" / "graphs.tar.xz"
PUBLISHED = ROOT.parent / "shared" / "models"
MODELS_A_CHILD = 12
SECONDS_A_CASE = 120  # a sanitizer makes a case ten times slower; more than this is a hang
CASES_A_LOAD = 3  # cases per load of a model


# ---- models --------------------------------------------------------------------------------------------------------


def default_models() -> list[str]:
    """Labels of every model file of the tests, and of the published models if they are here."""
    folders = (ROOT / "tests" / "data" / "onnx", ROOT / "tests" / "data" / "loops", ROOT / "tests" / "fuzz" / "corpus")
    found = [str(p) for folder in folders for p in sorted(folder.glob("*.onnx"))]
    with tarfile.open(ARCHIVE) as archive:
        found += [f"graphs:{n}" for n in sorted(archive.getnames()) if n.endswith((".onnx", ".keras", ".fastrnn"))]
    return found + [str(p) for p in sorted(PUBLISHED.glob("*.onnx"))]


@functools.cache
def _archived() -> dict[str, bytes]:
    with tarfile.open(ARCHIVE) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()}


def load(label: str):
    """The model of a label: `made:SEED`, `graphs:NAME` of the archive of fixtures, or a path."""
    import fastrnn
    from fastrnn.selected import SelectedModel

    kind, _, name = label.partition(":")
    if kind == "made":
        return fastrnn.load(size_models.make(int(name)))
    model = fastrnn.load(_archived()[name] if kind == "graphs" else label)
    return model._example if isinstance(model, SelectedModel) else model  # one branch, as load compiled it


# ---- one case ------------------------------------------------------------------------------------------------------


def run_case(model, seed: int) -> str | None:
    """A description of what is wrong with this case; None if it passes."""
    case = Case(model, seed)
    try:
        case.run()
    except MemoryError:
        return None
    except Finding as error:
        return f"WRONG at {case.sizes}: {error}"
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {case.sizes}: {error} ({Path(at.filename).name}:{at.lineno})"
    return None


# ---- children ------------------------------------------------------------------------------------------------------


def work(jobs: list) -> None:
    """A child process: run each (label, seeds); print progress and findings to stdout, one JSON per line."""
    from fastrnn import FastRNNError

    def say(*what):
        print(json.dumps(what), flush=True)

    for label, seeds in jobs:
        say("start", label, seeds[0])
        try:
            model = load(label)
        except FastRNNError:
            continue
        except Exception as error:
            say("found", label, seeds[0], f"load: {type(error).__name__}: {error}")
            continue
        for seed in seeds:
            say("start", label, seed)
            text = run_case(model, seed)
            if text is not None:
                say("found", label, seed, text)
            say("done", label, seed)


def run_child(jobs: list, deadline: float) -> tuple[list, int, list]:
    """One child over jobs: (findings, cases done, labels left by a crash)."""
    command = [sys.executable, str(Path(__file__).resolve()), "--work"]
    seconds = min(SECONDS_A_CASE * 2, max(deadline - time.monotonic(), 1) + SECONDS_A_CASE)
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            out, _ = child.communicate(json.dumps(jobs), timeout=seconds)
            ended = f"exit {child.returncode}" if child.returncode else ""
        except subprocess.TimeoutExpired:
            child.kill()
            out, _ = child.communicate()
            ended = f"no end after {seconds:.0f} s"
        errors.seek(0)
        trace = errors.read()
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("[")]
    found = [(label, seed, text) for kind, label, seed, *rest in lines if kind == "found" for text in rest]
    done = sum(line[0] == "done" for line in lines)
    if not ended:
        return found, done, []
    last = next((line for line in reversed(lines) if line[0] == "start"), ("start", jobs[0][0], jobs[0][1][0]))
    found.append((last[1], last[2], f"{ended}\n{_summary(trace)}"))
    at = [label for label, _ in jobs].index(last[1])
    return found, done, jobs[at + 1 :]


def _summary(trace: str) -> str:
    """A sanitizer's report without its shadow memory."""
    lines = trace.splitlines()
    first = next((i for i, line in enumerate(lines) if "ERROR:" in line or "runtime error:" in line), None)
    chosen = lines[-15:] if first is None else lines[first : first + 15]
    return "\n".join("    " + line for line in chosen)


def jobs_of(models: list[str], rng: random.Random):
    """Endless jobs of several models each: the given ones in a new order every round, mixed with as many made ones."""
    while True:
        order = rng.sample(models, len(models))
        mixed = [label for given in order for label in (given, f"made:{rng.randrange(1 << 30)}")]
        if not mixed:
            mixed = [f"made:{rng.randrange(1 << 30)}" for _ in range(MODELS_A_CHILD)]
        for start in range(0, len(mixed), MODELS_A_CHILD):
            yield [(n, [rng.randrange(1 << 30) for _ in range(CASES_A_LOAD)])
                   for n in mixed[start : start + MODELS_A_CHILD]]  # fmt: skip


def fuzz(models: list[str], seconds: float, seed: int, processes: int) -> int:
    """Run cases until the time is up, in `processes` children; prints findings and returns their number."""
    deadline, source = time.monotonic() + seconds, jobs_of(models, random.Random(seed))
    found, cases = 0, 0
    print(f"seed {seed}, {len(models)} files and made models, {seconds:.0f} s, {_package()}", flush=True)

    def several(jobs):
        results, done = [], 0
        while jobs and time.monotonic() < deadline:
            some, n, jobs = run_child(jobs, deadline)
            results, done = results + some, done + n
        return results, done

    with ThreadPoolExecutor(processes) as pool:
        while time.monotonic() < deadline:
            for results, done in pool.map(several, [next(source) for _ in range(processes)]):
                cases += done
                for label, case, text in results:
                    found += 1
                    print(f"FOUND {label} --seed {case}: {text}", flush=True)
    print(f"{cases} cases, {found} findings", flush=True)
    return found


def _package() -> str:
    """Which package is tested, and with which sanitizers."""
    import fastrnn

    folder = Path(fastrnn.__file__).parent / "ops"
    (ops,) = (p for p in folder.glob("_rows.*") if p.suffix in (".so", ".pyd"))
    code = ops.read_bytes()
    found = [name for name, mark in (("address", b"__asan_init"), ("undefined", b"__ubsan_handle")) if mark in code]
    return f"{folder}, sanitizers: {' and '.join(found) or 'none'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("models", nargs="*", help="model files; default: all of the tests")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="default: from the clock; printed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--made-only", action="store_true", help="no files, made models alone")
    parser.add_argument("--repeat", metavar="MODEL", help="run one case, that of --seed, in this process")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("FASTRNN_THREADS", "2")
    if args.work:
        work(json.load(sys.stdin))
        return 0
    seed = int(time.time()) if args.seed is None else args.seed
    if args.repeat:
        text = run_case(load(args.repeat), seed)
        print(text or "nothing found")
        return int(text is not None)
    models = [] if args.made_only else args.models or default_models()
    return int(fuzz(models, args.seconds, seed, args.processes) > 0)


if __name__ == "__main__":
    sys.exit(main())
