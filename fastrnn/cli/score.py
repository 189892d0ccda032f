"""`fastrnn score`: a model over files of whole sequences, into parquet files."""

from __future__ import annotations

import argparse

import fastrnn

from . import options
from .output import count, print_json, print_pairs
from .progress import bar

EXAMPLE = """\
example:
  fastrnn score calls.parquet model.fastrnn --out scores
  fastrnn score features/ model.onnx --out scores --input x=frames --output y=score --columns id,label
  fastrnn score batch.npz model.fastrnn --out scores --threads 4 --on-error null

Data: .parquet, .npy or .npz files, or a folder of them. A row is a whole sequence, as lists of steps: list<list<float>>
for an input [batch, time, features]. Sequences may have different lengths. Needs fastrnn[score].

The answers are parquet files in OUT, in the order of the rows. A run that was ended, by a crash too, goes on when it is
started again, and the files are then the same as without the interruption.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("data", metavar="DATA", help="a .parquet, .npy or .npz file, or a folder of them")
    parser.add_argument("model", metavar="MODEL", help="a model file")
    parser.add_argument("-o", "--out", metavar="DIR", required=True, help="folder of the answers; made if it is absent")
    add_rows(parser)
    parser.add_argument(
        "--threads", type=options.whole(1, 1024), help="threads that run the model (default: as many as may run here)"
    )
    many = options.whole(1, 1 << 24)
    parser.add_argument(
        "--batch-rows", metavar="N", type=many, default=1024, help="most rows that are read at once (default: 1,024)"
    )
    parser.add_argument(
        "--part-rows",
        metavar="N",
        type=many,
        default=1 << 16,
        help="most rows of a file in DIR; an interruption loses at most the work of one (default: 65,536)",
    )
    parser.add_argument(
        "--compression", choices=("snappy", "zstd", "none"), default="snappy", help="of the answers (default: snappy)"
    )
    parser.add_argument("--restart", action="store_true", help="remove the answers in DIR and begin anew")
    options.add_loading(parser)
    options.add_common(parser)


def add_rows(parser: argparse.ArgumentParser) -> None:
    """The options that say what a row is."""
    parser.add_argument(
        "--input",
        metavar="NAME=COLUMN",
        type=_pair,
        action="append",
        default=[],
        help="the column of an input, if it is not that of its name; may be repeated",
    )
    parser.add_argument(
        "--output",
        metavar="NAME[=COLUMN]",
        type=_output,
        action="append",
        default=[],
        help="an output to write, and its column; may be repeated (default: all outputs besides states)",
    )
    parser.add_argument(
        "--columns",
        metavar="LIST",
        default="rest",
        help="columns of the data that are written too: all, none, or names separated by commas (default: all but the "
        "model's inputs)",
    )
    parser.add_argument(
        "--on-error",
        choices=("fail", "null"),
        default="fail",
        help="what happens at a row with nulls, NaN, no steps or a wrong width. fail: the command ends and names file "
        "and row. null: its outputs are null, and the column `error` says why (default: fail)",
    )
    parser.add_argument(
        "--cast", action="store_true", help="round float64 and wide integers to the model's type; refused otherwise"
    )
    parser.add_argument("--allow-nan", action="store_true", help="let the model see NaN; such rows are bad otherwise")


def _pair(text: str) -> tuple[str, str]:
    name, sign, column = text.rpartition("=")
    if not name or not sign or not column:
        raise argparse.ArgumentTypeError(f"expected NAME=COLUMN, got {text!r}")
    return name, column


def _output(text: str) -> tuple[str, str]:
    name, sign, column = text.partition("=")
    if not name or (sign and not column):
        raise argparse.ArgumentTypeError(f"expected NAME or NAME=COLUMN, got {text!r}")
    return name, column or name


def run(args: argparse.Namespace) -> int:
    """Score, and say what was done. Returns 0."""
    try:
        score = fastrnn.score
    except ImportError as error:  # pyarrow is missing
        raise fastrnn.FastRNNError(str(error)) from None
    model = options.load(args)
    columns = args.columns if args.columns in ("rest", "all", "none") else args.columns.split(",")
    with bar(args.json) as progress:
        found = score(
            args.data,
            model,
            args.out,
            inputs=dict(args.input),
            outputs=dict(args.output) or None,
            columns=columns,
            threads=args.threads,
            on_error=args.on_error,
            cast=args.cast,
            allow_nan=args.allow_nan,
            batch_rows=args.batch_rows,
            part_rows=args.part_rows,
            compression=args.compression,
            restart=args.restart,
            progress=progress,
        )
    if args.json:
        print_json({"ok": True, **found.as_dict()})
    else:
        show(found)
    return 0


def show(found: fastrnn.ScoreReport) -> None:
    """Print what was done, for a person."""
    rows = [("answers", f"{found.out}: {count(found.rows)} rows in {count(found.parts)} files")]
    if found.resumed:
        rows.append(("", f"{count(found.resumed)} files were there already"))
    if found.failed:
        rows.append(("bad rows", f"{count(found.failed)}; the first is {found.first_error}"))
    if found.scored:
        speed = found.scored / found.seconds
        rows.append(("time", f"{found.seconds:.2f} s for {count(found.scored)} rows, {speed:,.0f} a second"))
    print_pairs(rows)
