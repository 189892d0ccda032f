"""How long files take to load, stage by stage, next to onnxruntime.

    PYTHONPATH=. python tools/load_time.py                # generated encoders of about 500, 1000, 2000 and 5000 nodes
    PYTHONPATH=. python tools/load_time.py a.onnx b.onnx  # files
    PYTHONPATH=. python tools/load_time.py --profile 30 a.onnx

Prints a table in Markdown. walks: how often the importer went over the file. read, import, passes, compile: seconds
until the ONNX is parsed, the graph is made, the passes have run, and the plan of one step or sequence is made. growth:
the exponent of the whole time between a file and the one before it; 1 is linear. Each time is the least of --repeat.
Generated encoders (tools/load_models.py) need torch. Times mean something on an idle machine only.
"""

from __future__ import annotations

import argparse
import cProfile
import math
import pstats
import sys
import tempfile
import time
import warnings
from pathlib import Path

import onnx

from fastrnn import model as models
from fastrnn import onnx_files, passes
from fastrnn.importers import onnx as importer
from fastrnn.importers.onnx.reading.files import read_model

LAYERS = (1, 2, 4, 11)  # of a generated encoder: about 470 nodes each
HEAD = "| file | nodes | walks | read | import | passes | compile | all | onnxruntime | ratio | growth |"


class Clock:
    """Seconds per stage and the number of walks of one load."""

    def __init__(self):
        self.seconds = {}
        self.walks = 0

    def timed(self, stage: str, function, *args):
        start = time.perf_counter()
        try:
            return function(*args)
        finally:
            self.seconds[stage] = time.perf_counter() - start


def load(path: Path) -> Clock:
    """Load a file once."""
    clock, walk, run = Clock(), importer.walk, passes.run

    def counted(*args):
        clock.walks += 1
        return walk(*args)

    importer.walk, models.passes.run = counted, lambda *args: clock.timed("passes", run, *args)
    try:
        read = clock.timed("read", read_model, path)
        graph = clock.timed("import", onnx_files.read_graph, read)
        clock.timed("compile", models.Model, graph, 1)
    finally:
        importer.walk, models.passes.run = walk, run
    clock.seconds["compile"] -= clock.seconds.setdefault("passes", 0.0)
    return clock


def peer(path: Path) -> float | None:
    """Seconds in which onnxruntime loads a file with one thread; None if it is not installed or refuses it."""
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        start = time.perf_counter()
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return time.perf_counter() - start
    except Exception:
        return None


def rows(paths: list[Path], repeat: int) -> list[str]:
    """A line of the table for each file."""
    lines, before = [], None
    for path in paths:
        nodes = len(onnx.load(path, load_external_data=False).graph.node)
        clock = min((load(path) for _ in range(repeat)), key=lambda c: sum(c.seconds.values()))
        others = [s for s in (peer(path) for _ in range(repeat)) if s is not None]
        whole = sum(clock.seconds.values())
        other = min(others) if others else None
        growth = ""
        if before is not None and nodes > before[0]:
            growth = f"{math.log(whole / before[1]) / math.log(nodes / before[0]):.2f}"
        before = (nodes, whole)
        cells = [path.stem, nodes, clock.walks, *(f"{clock.seconds[s]:.2f}" for s in _STAGES), f"{whole:.2f}"]
        cells += [f"{other:.2f}", f"{whole / other:.1f}"] if other else ["", ""]
        lines.append("| " + " | ".join(map(str, [*cells, growth])) + " |")
    return lines


_STAGES = ("read", "import", "passes", "compile")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--profile", type=int, metavar="LINES", help="print the slowest functions of each file instead")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        paths = args.files
        if not paths:
            from load_models import save

            paths = [Path(folder) / f"encoder_{layers}.onnx" for layers in LAYERS]
            for path, layers in zip(paths, LAYERS, strict=True):
                save(path, layers)
        if args.profile:
            for path in paths:
                profile = cProfile.Profile()
                profile.runcall(load, path)
                pstats.Stats(profile).sort_stats("tottime").print_stats(args.profile)
            return 0
        print(HEAD)
        print("|" + "---|" * (HEAD.count("|") - 1))
        print("\n".join(rows(paths, args.repeat)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
