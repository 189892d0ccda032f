"""`fastrnn verify`: does a model answer here as it does elsewhere."""

from __future__ import annotations

import argparse

import fastrnn

from . import options
from .output import print_json, print_line, print_table

EXAMPLE = """\
example:
  fastrnn verify examples/tone_words.onnx
  fastrnn verify tone_words.fastrnn --source examples/tone_words.onnx
  fastrnn verify tone_words.fastrnn --against reference
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a model file that fastrnn reads")
    parser.add_argument(
        "--against",
        choices=("onnxruntime", "reference"),
        default="onnxruntime",
        help="onnxruntime runs the ONNX file itself; reference is fastrnn's float64 NumPy meaning of the model, "
        "which needs nothing installed (default: onnxruntime)",
    )
    parser.add_argument("--source", metavar="FILE.onnx", help="the ONNX file, where MODEL is a .fastrnn file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random inputs (default: 0)")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="pass where |difference| <= X * (1 + |expected|) (default: 1e-4; 5e-3 for float16 files)",
    )
    options.add_binding(parser)
    options.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and report; 0 where the answers agree, 1 where they don't."""
    report = fastrnn.verify(
        args.model,
        args.against,
        source=args.source,
        seed=args.seed,
        tolerance=args.tolerance,
        bind=dict(args.bind) or None,
        states=dict(args.states) or None,
    )
    if args.json:
        print_json(report.as_dict())
    else:
        show(report)
    return 0 if report.ok else 1


def show(report: fastrnn.VerifyReport) -> None:
    """The report for a person."""
    verdict = f"answers as {report.against} does" if report.ok else f"does NOT answer as {report.against} does"
    print_line(f"{report.model} {verdict}", style="bold green" if report.ok else "bold red")
    rows = [
        (out.name, f"{out.absolute:.2e}", f"{out.relative:.2e}", "ok" if out.ok else "FAIL") for out in report.outputs
    ]
    columns = ("output", "largest absolute difference", "relative", "")
    print_table(columns, rows, numbers=("largest absolute difference", "relative"))
    print_line(f"{len(report.runs)} runs with random inputs, tolerance {report.tolerance:g}, seed {report.seed}")
    for out in report.outputs:
        if not out.ok:
            print_line(f"{out.name}: {out.where}", style="red")
    for line in report.skipped:
        print_line(f"skipped {line}", style="yellow")
    for line in report.notes:
        print_line(f"note: {line}")
