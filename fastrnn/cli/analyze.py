"""`fastrnn analyze`: how a model copes with noisy input, a restart, a long run and lower precision."""

from __future__ import annotations

import argparse
from pathlib import Path

import fastrnn

from . import options
from .output import count, print_json, print_line, print_pairs, print_table, size
from .progress import bar

EXAMPLE = """\
example:
  fastrnn analyze examples/tone_words.onnx
  fastrnn analyze model.fastrnn --data recording.npy --report robustness.html
  fastrnn analyze silero_vad.onnx --bind sr=16000 --sizes size=576 --data speech.wav --json | jq .forgetting

Data: .npy or .npz (by input name) with [T, features...] or [rows, T, features...]; .csv with one row per step; .wav,
cut into steps of the input's size (needs fastrnn[report]). Without --data, the input is random noise, and the result
says so. --definitions explains each figure.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a model file")
    parser.add_argument("--data", metavar="FILE", help="the input data: .npy, .npz, .wav or .csv")
    parser.add_argument(
        "--steps", type=options.whole(2), default=400, help="use at most this many steps of the data (default: 400)"
    )
    parser.add_argument(
        "--long-steps",
        type=options.whole(2, 10**9),
        default=100_000,
        help="steps of the drift measurement, with repeated data (default: 100,000)",
    )
    parser.add_argument(
        "--seconds",
        type=options.positive,
        default=4.0,
        help="time for forgetting and for drift, about three quarters of it each (default: 4)",
    )
    parser.add_argument("--seed", type=options.whole(0, 2**32 - 1), default=0, help="seed of all noise (default: 0)")
    options.add_report(parser)
    options.add_loading(parser)
    options.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Analyse, print, and write the report. Returns 0."""
    if args.report:
        fastrnn.report.require(args.report)
    data = None if args.data is None else fastrnn.load_data(args.data)
    model = options.load(args)
    with bar(args.json) as progress:
        found = fastrnn.analyze(
            model,
            data,
            steps=args.steps,
            long_steps=args.long_steps,
            seconds=args.seconds,
            seed=args.seed,
            progress=progress,
        )
    if args.report:
        fastrnn.report.write_analysis(found, args.report, Path(args.model).name)
    if args.json:
        print_json({"ok": True, "report": args.report, **found.as_dict()})
        return 0
    show(found, args.model, args.definitions)
    if args.report:
        print_line()
        print_line(f"report written to {args.report}")
    return 0


def show(found: fastrnn.Analysis, path: str, definitions: bool) -> None:
    """Print the whole analysis for a person."""
    print_line(path, style="bold cyan")
    print_pairs(summary(found))
    for columns, rows in (
        (("corrupted input", "strength", "relative error", "largest change", "decisions changed"), dirt_rows(found)),
        (("missing steps: error after, recovery", "zeroed", "held", "skipped"), gap_rows(found)),
        (("weights", "size", "relative error", "largest change", "decisions changed"), rounding_rows(found)),
    ):
        if rows:
            told = [
                i for i, _ in enumerate(columns) if any(row[i] for row in rows)
            ]  # leave out columns without a value
            shown = [columns[i] for i in told]
            print_line()
            print_table(shown, [[row[i] for i in told] for row in rows], numbers=shown[1:])
    if definitions:
        print_line()
        print_pairs(list(found.definitions.items()))


def summary(found: fastrnn.Analysis) -> list[tuple[str, str]]:
    """The summary as rows of label and text."""
    rows = [
        (
            "data",
            f"{found.data}; {found.rows} rows of {found.steps} steps"
            + (", streamed" if found.streamed else ", run whole"),
        ),
    ]
    if found.synthetic:
        rows.append(("", "noise is not your signal: pass --data for figures that apply to your service"))
    for level in found.levels:
        decides = f", decides by {level.decides}" if level.decides else ""
        rows.append(("outputs" if level is found.levels[0] else "", f"{level.output}: rms {level.rms:.3g}{decides}"))
    memory = found.forgetting
    if memory is not None:
        rows.append(("forgetting", forgetting_text(memory)))
        rows.append(("warm-up", warm_up_text(memory)))
    if found.touch is not None:
        touch = found.touch
        rows.append(
            ("sensitivity", (f"{touch.response[0]:.3g} in the touched step, {touch.total:.3g} in total; half within "
             f"{touch.half + 1} steps"))
        )  # fmt: skip
    if found.drift is not None:
        rows.append(("drift", drift_text(found.drift)))
    rows += [("left out" if i == 0 else "", text) for i, text in enumerate(found.skipped)]
    return rows


def forgetting_text(memory) -> str:
    """When a push of the state has decayed."""
    decay = "" if memory.decay is None else f"; a factor of {memory.decay:.4g} per step"
    if memory.steps is None:
        return f"a push of the state does not fall to 1 % within {count(memory.followed)} steps{decay}"
    worst = "one did not fall in the measured steps" if memory.worst is None else f"{count(memory.worst)} at worst"
    return f"a push of the state falls to 1 % within {memory.steps:g} steps ({worst}){decay}"


def warm_up_text(memory) -> str:
    """How long a fresh stream gives different answers."""
    if not memory.warm_up_data:
        return "not measured: outputs lag behind inputs, or have fewer steps"
    if memory.warm_up is None:
        return f"a fresh stream still differs by more than 1 % after {count(memory.warm_up_data)} steps"
    return f"a fresh stream is within 1 % of a running one after {count(memory.warm_up)} steps"


def drift_text(drift) -> str:
    """The error of float32 against float64 over time."""
    first, last = drift.spans[0][1], drift.spans[-1][1]
    text = (
        f"relative error against float64 {first:.2g} at first, {last:.2g} at the end of {count(drift.compared)} steps"
    )
    if drift.compared < drift.steps:
        text += (
            f" (float64 is slow here); all {count(drift.steps)} steps are {'finite' if drift.finite else 'NOT finite'}"
        )
    elif not drift.finite:
        text += "; NOT finite"
    return text


def dirt_rows(found: fastrnn.Analysis) -> list[tuple[str, ...]]:
    """One row per kind and strength."""
    rows: list[tuple[str, ...]] = []
    before = None
    for c in found.corruptions:
        strength = f"{c.strength:g} dB" if c.unit == "dB" else share(c.strength)
        rows.append(
            ("" if c.kind == before else c.kind, strength, share(c.relative_error), f"{c.largest_change:.3g}",
             share(c.decisions_changed))
        )  # fmt: skip
        before = c.kind
    return rows


def gap_rows(found: fastrnn.Analysis) -> list[tuple[str, ...]]:
    """One row per length, one column per fill."""
    fills = {(g.steps, g.fill): g for g in found.gaps}
    rows = []
    for length in dict.fromkeys(g.steps for g in found.gaps):
        cells = []
        for fill in ("zeroed", "held", "skipped"):
            gap = fills.get((length, fill))
            steps = "" if gap is None else f"{gap.recovery} steps" if gap.recovery is not None else "not recovered"
            cells.append("" if gap is None else f"{share(gap.error_after)}, {steps}")
        rows.append((str(length), *cells))
    return rows


def rounding_rows(found: fastrnn.Analysis) -> list[tuple[str, ...]]:
    """One row per format."""
    return [
        (r.to, f"{size(r.bytes_before)} -> {size(r.bytes_after)}", share(r.relative_error), f"{r.largest_change:.3g}",
         share(r.decisions_changed))
        for r in found.roundings
    ]  # fmt: skip


def share(value: float | None) -> str:
    """ "12 %", "0.031 %"; nothing for None or NaN."""
    if value is None or value != value:
        return ""
    return f"{100 * value:,.0f} %" if value >= 1 else f"{100 * value:.3g} %"
