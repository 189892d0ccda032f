"""`fastrnn verify`: compare the answers of a model with another engine."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import fastrnn

from . import options
from .output import print_json, print_line, print_table

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")
EXAMPLE = """\
example:
  fastrnn verify examples/tone_words.onnx
  fastrnn verify tone_words.fastrnn --source examples/tone_words.onnx
  fastrnn verify tone_words.fastrnn --against reference
  fastrnn verify silero_vad.onnx --bind sr=16000 --sizes size=576
  fastrnn verify weights.pt --layers 'lstm:rnn last linear:out'
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a model file")
    parser.add_argument(
        "--against",
        choices=("onnxruntime", "torch", "keras", "reference"),
        help="the engine to compare with. onnxruntime runs an ONNX file; torch reads a file of its weights and runs "
        "its own modules with them; keras loads and runs its own file; reference is fastrnn's float64 NumPy code, "
        "which needs no other package (default: the engine for the file if it is installed, else reference)",
    )
    parser.add_argument(
        "--source", metavar="FILE", help="the original ONNX file or file of weights, if MODEL is a .fastrnn file"
    )
    parser.add_argument(
        "--seed", type=options.whole(0, 2**32 - 1), default=0, help="seed of the random inputs (default: 0)"
    )
    parser.add_argument(
        "--tolerance",
        type=options.positive,
        metavar="X",
        help="pass if |difference| <= X * (1 + |expected|) (default: 1e-4; 5e-3 for float16 files)",
    )
    options.add_loading(parser)
    options.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and report. Returns 0 if the answers agree, 1 if they differ or if float32 fails long sequences."""
    found, why = judge(args.source or args.model)
    if args.against is not None:
        found, why = args.against, why_not_onnxruntime(args.source or args.model)
        why = why if found == "onnxruntime" else None
    if why and args.source and Path(args.source).suffix.lower() not in (".onnx", *TORCH_SUFFIXES, *KERAS_SUFFIXES):
        raise fastrnn.UnsupportedError(f"--source: {why}")
    if why and args.against:
        raise fastrnn.UnsupportedError(f"{why}: pass the ONNX file with --source, or use --against reference")
    given = {
        "source": args.source, "seed": args.seed, "tolerance": args.tolerance, "bind": dict(args.bind) or None,
        "states": dict(args.states) or None, "layers": args.layers, "key": args.key, "config": args.config,
        "allow_torch": args.allow_torch, "float64_as_float32": args.float32, "fixed_sizes": dict(args.sizes) or None,
        "precision": args.precision,
    }  # fmt: skip
    try:
        report = fastrnn.verify(args.model, found, **given)
    except fastrnn.UnsupportedError as error:
        # The framework can't load it, or has no such module. Unless it was requested, use the reference.
        if args.against is not None or found not in ("torch", "keras"):
            raise
        report, why = fastrnn.verify(args.model, "reference", **given | {"source": None}), str(error)
    if args.json:
        print_json({**report.as_dict(), "why_reference": why})
    else:
        show(report, why)
    return 0 if report.ok else 1


def judge(path: str) -> tuple[str, str | None]:
    """The engine to compare a file with and, if that is the reference, the reason."""
    if Path(path).suffix.lower() in KERAS_SUFFIXES:
        if importlib.util.find_spec("keras") is None:
            return "reference", "Keras is not installed"
        return "keras", None
    if Path(path).suffix.lower() not in TORCH_SUFFIXES:
        why = why_not_onnxruntime(path)
        return "reference" if why else "onnxruntime", why
    if importlib.util.find_spec("torch") is None:
        return "reference", "torch is not installed"
    return "torch", None


def why_not_onnxruntime(path: str) -> str | None:
    """Why onnxruntime can't run the file, or None."""
    if Path(path).suffix.lower() != ".onnx":
        return f"{path} is not an ONNX file"
    if importlib.util.find_spec("onnxruntime") is None:
        return 'onnxruntime is not installed (pip install "fastrnn[verify]")'
    return None


def error_row(error) -> tuple[str, ...]:
    """The errors of an output; nothing for an engine that did not run."""
    found = (error.reduced, error.float32, error.onnxruntime_int8)
    return (error.name, *("" if value is None else f"{value:.2e}" for value in found))


def show(report: fastrnn.VerifyReport, why: str | None = None) -> None:
    """Print the report for a person. why: why it was compared with the reference."""
    if why:
        print_line(f"compared with the float64 reference: {why}", style="yellow")
    verdict = f"answers like {report.against}" if report.agrees else f"does NOT answer like {report.against}"
    print_line(f"{report.model} {verdict}", style="bold green" if report.agrees else "bold red")
    rows = [
        (out.name, f"{out.absolute:.2e}", f"{out.relative:.2e}", "ok" if out.ok else "FAIL") for out in report.outputs
    ]
    columns = ("output", "largest absolute difference", "relative", "")
    print_table(columns, rows, numbers=("largest absolute difference", "relative"))
    runs = "1 run" if len(report.runs) == 1 else f"{len(report.runs)} runs"
    print_line(f"{runs} with random inputs, tolerance {report.tolerance:g}, seed {report.seed}")
    print_line(report.sizes)
    if report.long is not None:
        print_line(
            f"{'' if report.long.ok else 'FAIL: '}{report.long}", style="green" if report.long.ok else "bold red"
        )
    if report.reduced:
        print_line()
        columns = ("error against float64", "as loaded", "float32", "onnxruntime int8")
        print_table(columns, [error_row(e) for e in report.reduced], numbers=columns[1:])
    for out in report.outputs:
        if not out.ok:
            print_line(f"{out.name}: {out.where}", style="red")
    for line in report.skipped:
        print_line(f"skipped {line}", style="yellow")
    for line in report.notes:
        print_line(f"note: {line}")
