"""`fastrnn profile`: what a model costs on this machine, op by op, and what bounds it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import fastrnn

from . import options
from .output import count, print_json, print_line, print_pairs, print_table, size
from .progress import bar

EXAMPLE = """\
example:
  fastrnn profile examples/tone_words.onnx
  fastrnn profile model.fastrnn --batch 32 --hop-ms 10 --report profile.html
  fastrnn profile silero_vad.onnx --bind sr=16000 --sizes size=576 --json | jq .streams

predicted: the time that the performance model predicts (docs/performance_model.md). roofline: the share of the measured
time that the limits of the machine alone would take. The limits are measured once, in about a second, and kept in the
user's cache. --definitions explains each figure.
"""
SHOWN = 16  # the most expensive ops, shown in the table; --all shows every op


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a model file")
    parser.add_argument("--batch", type=options.whole(1), default=1, help="rows per call (default: 1)")
    parser.add_argument(
        "--steps", type=options.whole(1), default=1, help="steps per call; 1 is a step of a live stream (default: 1)"
    )
    parser.add_argument(
        "--threads", type=options.whole(1, 1024), default=1, help="threads that a call may use (default: 1)"
    )
    parser.add_argument(
        "--hop-ms",
        type=options.positive,
        default=32.0,
        help="time between two steps of a live stream, in ms (default: 32)",
    )
    parser.add_argument(
        "--seconds", type=options.positive, default=1.0, help="approximate time to measure (default: 1)"
    )
    parser.add_argument("--all", action="store_true", help=f"show every op, not only the {SHOWN} most expensive ones")
    options.add_report(parser)
    options.add_loading(parser)
    options.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write the report. Returns 0."""
    if args.report:
        fastrnn.report.require(args.report)
    model = options.load(args)
    with bar(args.json) as progress:
        found = fastrnn.profile(
            model,
            batch=args.batch,
            steps=args.steps,
            threads=args.threads,
            hop_ms=args.hop_ms,
            seconds=args.seconds,
            progress=progress,
        )
    if args.report:
        fastrnn.report.write_profile(found, args.report, Path(args.model).name)
    if args.json:
        print_json({"ok": True, "report": args.report, **found.as_dict()})
        return 0
    show(found, args.model, None if args.all else SHOWN)
    if args.definitions:
        print_line()
        print_pairs(list(found.definitions.items()))
    if args.report:
        print_line()
        print_line(f"report written to {args.report}")
    return 0


def show(found: fastrnn.Profile, path: str, most: int | None) -> None:
    """Print the whole profile for a person."""
    print_line(f"{path}: {call_text(found)}", style="bold cyan")
    print_pairs(summary(found))
    print_line()
    columns = ("op", "node", "FLOPs", "weights", "data", "bound", "predicted", "measured", "roofline")
    common = fastrnn.report.common_path([op.node for op in found.ops])
    rows = op_rows(found, most, len(common))
    print_table(columns, rows, numbers=columns[2:5] + columns[6:], spare=("data", "weights", "FLOPs", "node"))
    if common:
        print_line(f"all node names begin with {common}")
    print_line()
    each = "per row" if found.steps == 1 else "per row and step"
    growth = ("batch", "predicted", f"{each}, predicted", "measured", f"{each}, measured")
    print_table(growth, growth_rows(found), numbers=growth)
    if found.by_size:
        print_line()
        print_table(
            ("cells' size", "predicted"),
            [(f"x {g.scale:g}", microseconds(g.predicted_ns)) for g in found.by_size],
            numbers=("predicted",),
        )


def call_text(found: fastrnn.Profile) -> str:
    """One call in words."""
    steps = "1 step" if found.steps == 1 else f"{count(found.steps)} steps"
    rows = "one stream" if found.batch == 1 else f"{found.batch} streams in lock-step"
    if found.call == "step":
        return f"one step of {rows}"
    if found.call == "push":
        return f"{steps} of {rows} in one call"
    return f"a run of {steps}, batch {found.batch}"


def summary(found: fastrnn.Profile) -> list[tuple[str, str]]:
    """Rows of label and text: time, roofline, streams, memory, machine."""
    limits = found.limits
    gap = found.predicted_ns / found.measured_ns - 1
    rows = [
        (
            "measured",
            f"{microseconds(found.measured_ns)} per call (median); p99 {microseconds(found.p99_ns)}"
            + ("" if found.steps * found.batch == 1 else f", {microseconds(found.step_ns)} per step and row"),
        ),
        ("predicted", f"{microseconds(found.predicted_ns)} ({gap:+.0%})"),
        (
            "roofline",
            (
                f"{found.share:.0%}: the limits of the machine alone allow {microseconds(found.least_ns)} "
                f"for {quantity(found.flops)}FLOP and {size(found.weight_bytes)} of weights, read from {found.level}"
            ),
        ),
        ("the call", f"{microseconds(found.overhead_ns)} outside the ops: Python, checks, binding"),
    ]
    for batch, streams in found.streams:
        what = "one at a time" if batch == 1 else f"{batch} rows per call"
        first = batch == found.streams[0][0]
        hop = f"; one step every {found.hop_ms:g} ms" if first else ""
        rows.append(("streams" if first else "", f"{count(streams)} per core, {what}{hop}"))
    if not found.streams:
        rows.append(("streams", "none: this model only runs whole sequences (fastrnn inspect says why)"))
    rows.append(("threads", str(found.threads)))
    rates = ", ".join(f"{size(b)} {rate / 1e9:.0f}" for b, rate in spread(limits.read))
    rows.append(
        ("machine", f"{limits.cpu}, {limits.isa}: {limits.fma / 1e9:.0f} GFLOP/s; reads GB/s by working set: {rates}")
    )
    return rows


def spread(read: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A few of the measured reading rates: the first, the last, and three in between."""
    chosen = sorted({round(i * (len(read) - 1) / 4) for i in range(5)})
    return [read[i] for i in chosen]


def op_rows(found: fastrnn.Profile, most: int | None, skip: int = 0) -> list[tuple[str, ...]]:
    """One row per op in the order of the plan; beyond `most`, the most expensive ones and one row for the rest.
    skip: number of leading characters of every node name that are not shown."""
    ops = list(found.ops)
    kept = set(sorted(range(len(ops)), key=lambda i: -ops[i].measured_ns)[: most or len(ops)])
    rows: list[tuple[str, ...]] = [
        (
            op.kind,
            fastrnn.report.shortened(op.node[skip:], 36),
            quantity(op.cost.flops) if op.cost.flops else "",
            size(op.cost.weight_bytes) if op.cost.weight_bytes else "",
            size(op.cost.data_bytes),
            op.cost.bound,
            microseconds(op.cost.ns),
            microseconds(op.measured_ns),
            f"{op.share:.0%}" if op.share and op.cost.least_ns else "",
        )
        for i, op in enumerate(ops)
        if i in kept
    ]
    rest = [op for i, op in enumerate(ops) if i not in kept]
    if rest:
        rows.append(
            (
                f"{len(rest)} others", "", quantity(sum(o.cost.flops for o in rest)),
                size(sum(o.cost.weight_bytes for o in rest)), size(sum(o.cost.data_bytes for o in rest)), "",
                microseconds(sum(o.cost.ns for o in rest)), microseconds(sum(o.measured_ns for o in rest)), "",
            )
        )  # fmt: skip
    rows.append(
        ("the call", "", "", "", "", "overhead", microseconds(found.predicted_overhead_ns),
         microseconds(found.overhead_ns), "")
    )  # fmt: skip
    return rows


def growth_rows(found: fastrnn.Profile) -> list[tuple[str, ...]]:
    """One row per batch: predicted, measured if it was, and both per row."""

    def both(ns: float | None, rows: int) -> tuple[str, str]:
        return ("", "") if ns is None else (microseconds(ns), microseconds(ns / rows))

    return [
        (
            str(g.batch),
            *both(g.predicted_ns, g.batch * found.steps),
            *both(g.measured_ns, g.batch * found.steps),
        )
        for g in found.by_batch
    ]


def microseconds(ns: float) -> str:
    """ "0.44 us", "12.3 us", "1,234 us"."""
    value = ns / 1000
    return f"{value:.2f} us" if value < 10 else f"{value:.1f} us" if value < 100 else f"{value:,.0f} us"


def quantity(number: float) -> str:
    """ "812 ", "49.2 k", "3.1 M", with a space before the unit that follows."""
    for unit in ("", "k", "M", "G", "T"):
        text = f"{number:.0f}" if number >= 99.95 else f"{number:.3g}"
        if float(text) < 1000 or unit == "T":
            return f"{text} {unit}"
        number /= 1000
    raise AssertionError(number)
