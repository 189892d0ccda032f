"""How many live streams one core of this machine carries: measures steps and fills the table of a page.

    python tools/streams_per_core.py [--models FOLDER] [--seconds 1] [docs/guide/deployment.md]

Two ways of stepping are measured. "alone": each stream is stepped by a call of its own, 256 streams in turn. "pool":
one call steps 32 slots of a pool of 1,024. The time is the CPU time of this thread, the median of the least tenth of
short slices, so that other processes disturb it little. The table goes between `<!-- table: streams -->` and
`<!-- end -->`.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
import time
from pathlib import Path

import numpy as np

import fastrnn

ROOT = Path(__file__).resolve().parent.parent
LONE, CAPACITY, ROWS = 256, 1024, 32
SLICE = 0.002  # seconds of calls between two readings of the clock
SHARE = 0.7  # of a core that streams may take: what is left is for Python, the network and peaks
BLOCK = re.compile(r"(<!-- table: streams -->\n).*?(<!-- end -->)", re.DOTALL)
# name, file in the folder of published models, options of load, milliseconds between two steps of a stream
PUBLISHED = (
    ("Silero VAD, 16 kHz", "silero_vad_v5.onnx", {"bind": {"sr": 16000}, "sizes": {"size": 576}}, 32.0),
    ("DTLN, first stage", "dtln_1.onnx", {}, 8.0),
    ("GTCRN", "gtcrn_simple.onnx", {}, 16.0),
)


def layer(kind: str, size: int) -> fastrnn.Model:
    """One recurrent layer with random weights, input and state of this size."""
    rng, gates = np.random.default_rng(0), {"gru": 3, "lstm": 4}[kind]
    W, R = (rng.standard_normal((gates * size, size)).astype(np.float32) * size**-0.5 for _ in "WR")
    return fastrnn.from_arrays(kind, W=W, R=R, threads=1)


def models(folder: Path):
    """(name, model, milliseconds between two steps) for each row."""
    yield "the example, `tone_words.onnx`", fastrnn.load(ROOT / "examples" / "tone_words.onnx", threads=1), 10.0
    for kind, size in (("gru", 64), ("gru", 256), ("lstm", 128), ("lstm", 512)):
        yield f"{kind.upper()} of {size} units", layer(kind, size), 10.0
    for name, file, options, hop in PUBLISHED:
        if (folder / file).is_file():
            yield name, fastrnn.load(folder / file, threads=1, **options), hop


def frames(model: fastrnn.Model, n: int) -> list[np.ndarray]:
    """A step's inputs for n rows: [n, features...] each."""
    (info,) = [i for i in model.inputs if i.name not in model.graph.states]
    shape = model.stream()._parts.inputs[0].step_shape(n)
    return [np.random.default_rng(i).standard_normal(shape).astype(info.dtype) for i in range(8)]


def seconds_per_call(call, seconds: float) -> float:
    """CPU seconds of one call."""
    call()
    begin = time.thread_time()
    call()
    repeats = max(1, int(SLICE / max(time.thread_time() - begin, 1e-7)))
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end or len(found) < 3:
        begin = time.thread_time()
        for _ in range(repeats):
            call()
        found.append((time.thread_time() - begin) / repeats)
    return float(np.median(sorted(found)[: max(1, len(found) // 10)]))


def measure(model: fastrnn.Model, seconds: float) -> tuple[float, float, int]:
    """(seconds of a step of one stream alone, of one row of a pool's step, bytes of a stream)."""
    streams = [model.stream() for _ in range(LONE)]
    xs = [x[0] for x in frames(model, 1)]

    def alone():
        for i, stream in enumerate(streams):
            stream.step(xs[i & 7])

    pool = model.pool(CAPACITY)
    slots = np.array([pool.open() for _ in range(CAPACITY)]).reshape(-1, ROWS)
    rows = frames(model, ROWS)

    def together():
        for i, some in enumerate(slots):
            pool.step(some, rows[i & 7])

    lone = seconds_per_call(alone, seconds) / LONE
    return lone, seconds_per_call(together, seconds) / CAPACITY, 4 * pool.slab.shape[1]


def table(rows) -> str:
    """The table in Markdown; rows: (name, milliseconds between steps, seconds alone, seconds in a pool, bytes)."""
    lines = [
        "| model | a step every | step alone | streams per core | row of a pool's step | streams per core | KiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, hop, lone, row, size in rows:
        many = [f"{int(SHARE * hop * 1e-3 / s):,}" for s in (lone, row)]
        us = [f"{1e6 * s:.2f} us" if s < 1e-5 else f"{1e6 * s:.0f} us" for s in (lone, row)]
        lines.append(f"| {name} | {hop:g} ms | {us[0]} | {many[0]} | {us[1]} | {many[1]} | {size / 1024:.1f} |")
    info = fastrnn.cpu_info()
    lines.append(
        f"\n{info.name}, {info.isa.active}, fastrnn {fastrnn.__version__}, {datetime.date.today():%d %B %Y}.\n"
    )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description="Measure the streams that a core carries, and fill a page's table.")
    parser.add_argument("page", nargs="?", type=Path, help="the page to fill (default: print the table)")
    parser.add_argument("--models", type=Path, default=ROOT.parent / "shared" / "models", help="the published models")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement (default: %(default)s)")
    args = parser.parse_args(argv)
    rows = []
    for name, model, hop in models(args.models):
        rows.append((name, hop, *measure(model, args.seconds)))
        print(f"{name}: done", file=sys.stderr)
    made = table(rows)
    if args.page is None:
        print(made)
        return 0
    text = args.page.read_text(encoding="utf-8")
    if not BLOCK.search(text):
        raise SystemExit(f"{args.page} has no <!-- table: streams --> ... <!-- end -->")
    args.page.write_text(BLOCK.sub(lambda m: m[1] + made + m[2], text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
