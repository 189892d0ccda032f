"""`fastrnn-convert` and `fastrnn convert`: convert a model file to one .fastrnn file, and verify it with --verify.

The new file is written next to its target under a temporary name, read back, and renamed only on success.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

import fastrnn

from . import auto, describe, options, verify
from .output import print_json, print_line, print_pairs, size, status

SUFFIX = ".fastrnn"
EXAMPLE = """\
example:
  fastrnn-convert examples/tone_words.onnx --verify
  fastrnn-convert model.onnx -o out.fastrnn --bind sr=16000 --states h0=hn
  fastrnn-convert model.keras --verify
  fastrnn-convert weights.pt --layers 'embedding:emb lstm:rnn linear:out softmax' --verify
  fastrnn-convert model.onnx --precision auto --data frames.npz --tolerance 0.01

If OUT.fastrnn exists, it is replaced only if it is a .fastrnn file; --force replaces any file.
With --verify, nothing is written unless the answers agree.
"""


class OutputError(fastrnn.FastRNNError):
    """The output can't be written to the requested place."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="the model file to convert")
    parser.add_argument(
        "-o", "--output", metavar="OUT.fastrnn", type=output_name, help="the output file (default: next to MODEL)"
    )
    options.add_loading(parser)
    auto.add(parser)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the written file on random inputs with onnxruntime (for an ONNX file), torch (for PyTorch "
        "weights) or Keras (for its models), or with the float64 reference of fastrnn if that is not installed",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT.fastrnn even if it is another kind of file")
    options.add_common(parser)


def output_name(text: str) -> Path:
    """A path that ends in .fastrnn, because `fastrnn.load` needs the suffix."""
    path = Path(text)
    if path.suffix != SUFFIX:
        raise argparse.ArgumentTypeError(f"the output's name must end in {SUFFIX}, got {text!r}")
    return path


def run(args: argparse.Namespace) -> int:
    """Convert. Returns 0, or 1 if --verify finds a difference."""
    target = args.output if args.output is not None else Path(args.model).with_suffix(SUFFIX)
    auto.check(args)
    check_target(target, Path(args.model), args.force)
    with status(f"reading {args.model}"):
        model = options.load(args, **({"precision": "float32"} if auto.wanted(args) else {}))
    choice = auto.choose(model, args) if auto.wanted(args) else None
    model = model if choice is None else choice.model
    told = {"ok": True, "output": str(target), **describe.record(model, args.model), "verify": None}
    told["choice"] = None if choice is None else choice.as_dict()
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{SUFFIX}")
    try:
        with status(f"writing {target}"):
            model.save(temporary)
            saved = fastrnn.load(temporary)
        if saved.fingerprint != model.fingerprint:
            raise OutputError(f"{temporary} does not contain what was written to it: check the disk")
        with status("comparing answers"):
            report, why = check(saved, args, target) if args.verify else (None, None)
        if report is None or report.ok:
            told["bytes"] = temporary.stat().st_size
            os.replace(temporary, target)
        else:
            told.update(ok=False, output=None)
    finally:
        temporary.unlink(missing_ok=True)
    told["verify"] = None if report is None else {**report.as_dict(), "why_reference": why}
    if args.json:
        print_json(told)
    else:
        show(told, report, why)
        if choice is not None:
            auto.show(choice)
    return 0 if told["ok"] else 1


def check_target(target: Path, source: Path, force: bool) -> None:
    """Raise OutputError if writing `target` would destroy anything but a .fastrnn file."""
    if not target.parent.is_dir():
        raise OutputError(f"the output folder {target.parent} does not exist: create it first")
    if not target.exists():
        return
    if source.exists() and target.samefile(source):
        raise OutputError(f"{target} is the model itself: choose another output with -o")
    if force:
        return
    if not target.is_file():
        raise OutputError(f"{target} exists and is not a file: choose another output with -o")
    try:
        fastrnn.load(target)
    except fastrnn.FastRNNError:
        raise OutputError(f"{target} exists and is not a .fastrnn file of this version; --force replaces it") from None


def check(saved: fastrnn.Model, args: argparse.Namespace, target: Path) -> tuple[fastrnn.VerifyReport, str | None]:
    """Compare the written file with the best engine available. Returns (report, why it is the reference)."""
    judge, why = verify.judge(args.model)
    if judge == "reference":
        return named(fastrnn.verify(saved, against="reference"), target), why
    given: dict[str, Any] = {"bind": dict(args.bind)} if judge == "onnxruntime" else {}
    given |= {"layers": args.layers, "key": args.key} if judge == "torch" else {}
    given |= {"config": args.config} if judge == "keras" else {}
    try:
        return named(fastrnn.verify(saved, judge, source=args.model, **given), target), None
    except fastrnn.UnsupportedError as error:  # the framework can't load it, or has no such module
        if judge not in ("torch", "keras"):
            raise
        return named(fastrnn.verify(saved, against="reference"), target), str(error)


def named(report: fastrnn.VerifyReport, target: Path) -> fastrnn.VerifyReport:
    """The report with the name of the target instead of the temporary file or the graph."""
    return dataclasses.replace(report, model=str(target))


def show(told: dict, report: fastrnn.VerifyReport | None, why: str | None) -> None:
    """Print the result for a person."""
    if told["ok"]:
        print_line(f"{told['model']} -> {told['output']} ({size(told['bytes'])})", style="bold cyan")
    else:
        print_line(f"{told['model']}: nothing written", style="bold red")
    print_pairs(fastrnn.Description(told).head + fastrnn.Description(told).notes)
    if report is not None:
        print_line()
        verify.show(report, why)
