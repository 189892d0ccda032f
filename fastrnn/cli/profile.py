"""`fastrnn profile`: what a model costs here, op by op, and what bounds it."""

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

predicted: what the performance model says (docs/performance_model.md); roofline: the share that the machine's limits
alone would take of the measured time. The limits are measured once, in about a second, and kept in the user's cache.
--definitions tells what each figure means.
"""
SHOWN = 16  # ops in the table, the dearest ones; --all shows every one


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a model file that fastrnn reads")
    parser.add_argument("--batch", type=options.whole(1), default=1, help="rows a call (default: 1)")
    parser.add_argument(
        "--steps", type=options.whole(1), default=1, help="steps a call; 1 is a live stream's step (default: 1)"
    )
    parser.add_argument("--threads", type=options.whole(1, 1024), default=1, help="threads a call may use (default: 1)")
    parser.add_argument(
        "--hop-ms",
        type=options.positive,
        default=32.0,
        help="how often a live stream makes a step, in ms (default: 32)",
    )
    parser.add_argument("--seconds", type=options.positive, default=1.0, help="how long to measure, about (default: 1)")
    parser.add_argument("--all", action="store_true", help=f"show every op, not the {SHOWN} dearest")
    parser.add_argument("--definitions", action="store_true", help="print what each figure means, below the tables")
    parser.add_argument("--report", metavar="FILE.html", help="write a page with figures; needs fastrnn[report]")
    options.add_loading(parser)
    options.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write the report; 0."""
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
    """The whole profile for a person."""
    print_line(f"{path}: {call_text(found)}", style="bold cyan")
    print_pairs(summary(found))
    print_line()
    columns = ("op", "node", "FLOPs", "weights", "data", "bound", "predicted", "measured", "roofline")
    common = fastrnn.report.common_path([op.node for op in found.ops])
    rows = op_rows(found, most, len(common))
    print_table(columns, rows, numbers=columns[2:5] + columns[6:], spare=("data", "weights", "FLOPs", "node"))
    if common:
        print_line(f"names of nodes begin with {common}")
    print_line()
    each = "a row" if found.steps == 1 else "a row and step"
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
    """What one call is, in words."""
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
            f"{microseconds(found.measured_ns)} a call, the median; p99 {microseconds(found.p99_ns)}"
            + ("" if found.steps * found.batch == 1 else f", {microseconds(found.step_ns)} a step and row"),
        ),
        ("predicted", f"{microseconds(found.predicted_ns)} ({gap:+.0%})"),
        (
            "roofline",
            (
                f"{found.share:.0%}: the machine's limits alone allow {microseconds(found.least_ns)} "
                f"for {quantity(found.flops)}FLOP and {size(found.weight_bytes)} of weights, read from {found.level}"
            ),
        ),
        ("the call", f"{microseconds(found.overhead_ns)} of it is not in an op: Python, checks, binding"),
    ]
    for batch, streams in found.streams:
        what = "one at a time" if batch == 1 else f"{batch} rows a call"
        first = batch == found.streams[0][0]
        hop = f"; a step every {found.hop_ms:g} ms" if first else ""
        rows.append(("streams" if first else "", f"{count(streams)} a core, {what}{hop}"))
    if not found.streams:
        rows.append(("streams", "none: this model is run on whole sequences (fastrnn inspect says why)"))
    rows.append(("threads", str(found.threads)))
    rates = ", ".join(f"{size(b)} {rate / 1e9:.0f}" for b, rate in spread(limits.read))
    rows.append(
        ("machine", f"{limits.cpu}, {limits.isa}: {limits.fma / 1e9:.0f} GFLOP/s; reads GB/s by working set: {rates}")
    )
    return rows


def spread(read: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A few of the measured reading rates: first, last, and some between."""
    chosen = sorted({round(i * (len(read) - 1) / 4) for i in range(5)})
    return [read[i] for i in chosen]


def op_rows(found: fastrnn.Profile, most: int | None, skip: int = 0) -> list[tuple[str, ...]]:
    """A row an op in the plan's order; where there are more than `most`, the dearest ones and one row for the rest.
    skip: letters at the beginning of every node's name that are not shown."""
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
    """A row a batch: predicted, measured where it was, and of both what one row of it costs."""

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
    """ "812 ", "49.2 k", "3.1 M", with a blank before the unit that follows."""
    for unit in ("", "k", "M", "G", "T"):
        text = f"{number:.0f}" if number >= 99.95 else f"{number:.3g}"
        if float(text) < 1000 or unit == "T":
            return f"{text} {unit}"
        number /= 1000
    raise AssertionError(number)
