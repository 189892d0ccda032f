"""`fastrnn-convert --precision auto`: choose the number format of each layer by the caller's data."""

from __future__ import annotations

import argparse

import fastrnn

from . import options
from .output import print_line, print_pairs, print_table
from .progress import bar

TOLERANCE, SECONDS = 0.01, 2.0
NAMES = ("data", "tolerance", "batch", "steps", "seconds")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the choice."""
    group = parser.add_argument_group(
        "--precision auto",
        "For each layer, the fastest format is used that keeps all outputs within the tolerance on your data. Times "
        "are those of this machine.",
    )
    group.add_argument("--data", metavar="FILE", help="the input data: .npy, .npz (by input name), .wav or .csv")
    group.add_argument(
        "--tolerance",
        metavar="X",
        type=options.share,
        help="the largest error of each output, as a share of its largest element, and the largest share of decisions "
        f"that may change (default: {TOLERANCE})",
    )
    group.add_argument("--batch", type=options.whole(1), help="rows of the call that is timed (default: 1)")
    group.add_argument(
        "--steps", type=options.whole(1), help="steps of the call that is timed; 1 is a step of a stream (default: 1)"
    )
    group.add_argument(
        "--seconds", type=options.positive, help=f"approximate time to measure times (default: {SECONDS:g})"
    )


def wanted(args: argparse.Namespace) -> bool:
    """Whether the formats are to be chosen."""
    return args.precision == "auto"


def check(args: argparse.Namespace) -> None:
    """Raise FastRNNError if the data are missing, or if there are options of a choice that was not asked for."""
    if wanted(args) and args.data is None:
        raise fastrnn.FastRNNError(
            "--precision auto judges by your data: pass --data FILE with inputs as the model gets them in service"
        )
    given = [f"--{name}" for name in NAMES if getattr(args, name) is not None]
    if given and not wanted(args):
        raise fastrnn.FastRNNError(f"{', '.join(given)} only with --precision auto: add it, or leave them out")


def choose(model: fastrnn.Model, args: argparse.Namespace) -> fastrnn.PrecisionChoice:
    """The choice for a model, with a progress bar."""
    data = fastrnn.load_data(args.data)
    tolerance = TOLERANCE if args.tolerance is None else args.tolerance
    with bar(args.json) as progress:
        return fastrnn.choose_precision(
            model,
            data,
            tolerance=tolerance,
            batch=args.batch or 1,
            steps=args.steps or 1,
            seconds=args.seconds or SECONDS,
            progress=progress,
        )


def show(choice: fastrnn.PrecisionChoice) -> None:
    """Print what each layer gained and cost, for a person."""
    print_line()
    print_line("precision", style="bold cyan")
    print_pairs(choice.summary)
    rows = choice.table
    if not rows:
        return
    common = fastrnn.report.common_path([row[0] for row in rows])
    told = [i for i, name in enumerate(choice.columns) if name == "layer" or any(row[i] for row in rows)]
    print_line()
    print_table(
        [choice.columns[i] for i in told],
        [[row[i][len(common) :] if i == 0 else row[i] for i in told] for row in rows],
        numbers=[choice.columns[i] for i in told if choice.columns[i] in choice.numbers],
        spare=["bytes", "why"],
    )
    if common:
        print_line(f"all names begin with {common}")
