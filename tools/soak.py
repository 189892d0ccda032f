"""A service under everything at once, for as long as you like: no stream may get a wrong bit, no slot may leak.

python tools/soak.py [--seconds 1200] [--only PART ...]

Parts, each a process of its own; after a quarter of the time, in which only `clients` runs, all run at once:
    clients   asyncio clients of a Batcher: paced ones, slow ones, ones that cancel or give up, and in every second
              window one that floods it. Prints p50 and p99 of the paced clients beside the quiet windows.
    threads   threads step, chunk, copy, save and restore streams of one pool, which grows; snapshots of the whole pool
              and increments are restored in another pool
    forks     a process with threads in a pool forks children that go on with its streams; some are killed
    handover  processes take over the streams of others from snapshots in files; some are killed while they write
    memory    a process with a limit of memory: calls succeed or raise FastRNNMemoryError, and streams go on

Every stream is one of 64 sequences, and each answer is compared with what a lone stream said to it. The last line says
what was found; the exit code is 1 if that is a wrong bit, a leaked slot or descriptor, a file left behind, memory that
grows, or an error that should not be.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from soak_clients import clients  # noqa: E402
from soak_parts import forks, handover, memory, threads  # noqa: E402
from soak_streams import Found  # noqa: E402

PARTS = {"clients": clients, "threads": threads, "forks": forks, "handover": handover, "memory": memory}


def run_part(name: str, seconds: float, folder: str, alone: float, pipe) -> None:
    """One part in this process; sends what it found."""
    found = Found(name)
    try:
        end = time.monotonic() + seconds
        if name == "clients":
            clients(found, end, folder, alone)
        else:
            PARTS[name](found, end, folder)
    except BaseException as error:
        found.problem(f"{type(error).__name__}: {error}")
        if not isinstance(error, Exception):
            raise
    finally:
        pipe.send(found.as_dict())


def start(name: str, seconds: float, folder: str, alone: float = 0.0):
    """(process, pipe) of a part. alone: seconds in which no other part runs."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_part, args=(name, seconds, folder, alone, sender), name=name)
    process.start()
    sender.close()
    return process, receiver


def result(process, receiver) -> dict:
    """What a part has found, when it has ended."""
    try:
        found = receiver.recv()
    except EOFError:
        found = {"part": process.name, "problems": [f"{process.name} died"], "counts": {}, "notes": []}
    process.join()
    return found


def report(found: dict) -> None:
    """Print one part's results."""
    counts = ", ".join(f"{n} {what}" for what, n in found["counts"].items())
    print(f"{found['part']:9} {counts}", flush=True)
    for line in found["notes"]:
        print(f"          {line}", flush=True)
    for line in found["problems"]:
        print(f"          PROBLEM: {line}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the parts; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), default=sorted(PARTS))
    parser.add_argument("--json", help="file for the results")
    args = parser.parse_args(argv)
    alone = args.seconds / (4 if len(args.only) > 1 else 1) if "clients" in args.only else 0.0
    print(f"{args.seconds:g} s, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        began, running = time.monotonic(), []
        if "clients" in args.only:
            running.append(start("clients", args.seconds, folder, alone))
            time.sleep(alone if len(args.only) > 1 else 0)
        left = args.seconds - (time.monotonic() - began)
        running += [start(name, left, folder) for name in args.only if name != "clients"]
        results = [result(*part) for part in running]
        left_behind = [name for name in os.listdir(folder) if name.endswith(".partial")]
    for found in results:
        report(found)
    problems = [line for found in results for line in found["problems"]]
    if left_behind:
        problems.append(f"files left behind: {left_behind}")
    if args.json:
        Path(args.json).write_text(json.dumps({"results": results, "problems": problems}, indent=1))
    steps = sum(found["counts"].get("steps", 0) for found in results)
    print(f"{steps} steps compared, {len(problems)} problems; load {os.getloadavg()[0]:.1f}")
    for line in problems:
        print(f"PROBLEM: {line}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
