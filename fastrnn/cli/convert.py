"""`fastrnn-convert`, `fastrnn convert`: a model file becomes one .fastrnn file, checked if asked.

The new file is written beside its place under a temporary name, read back, and renamed only when all went well.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

import fastrnn

from . import describe, options, verify
from .output import print_json, print_line, print_pairs, size, status

SUFFIX = ".fastrnn"
EXAMPLE = """\
example:
  fastrnn-convert examples/tone_words.onnx --verify
  fastrnn-convert model.onnx -o out.fastrnn --bind sr=16000 --states h0=hn
  fastrnn-convert model.keras --verify
  fastrnn-convert weights.pt --layers 'embedding:emb lstm:rnn linear:out softmax' --verify

OUT.fastrnn is replaced if it is a .fastrnn file already; any other file is left alone unless --force is given.
With --verify nothing is written unless the answers agree.
"""


class OutputError(fastrnn.FastRNNError):
    """The output can't be put where it was asked for."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="the model file to convert")
    parser.add_argument(
        "-o", "--output", metavar="OUT.fastrnn", type=output_name, help="where to write (default: beside MODEL)"
    )
    options.add_loading(parser)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the written file on random inputs with onnxruntime, where MODEL is an ONNX file, or with torch, "
        "where it is one of PyTorch's weights, or with Keras, where it is one of its models; with fastrnn's float64 "
        "reference where that is not installed",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT.fastrnn whatever it holds")
    options.add_common(parser)


def output_name(text: str) -> Path:
    """A path that ends in .fastrnn: `fastrnn.load` goes by the name."""
    path = Path(text)
    if path.suffix != SUFFIX:
        raise argparse.ArgumentTypeError(f"the output's name must end in {SUFFIX}, got {text!r}")
    return path


def run(args: argparse.Namespace) -> int:
    """Convert; 0, or 1 where --verify found a difference."""
    target = args.output if args.output is not None else Path(args.model).with_suffix(SUFFIX)
    check_target(target, Path(args.model), args.force)
    with status(f"reading {args.model}"):
        model = options.load(args)
    told = {"ok": True, "output": str(target), **describe.record(model, args.model), "verify": None}
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{SUFFIX}")
    try:
        with status(f"writing {target}"):
            model.save(temporary)
            saved = fastrnn.load(temporary)
        if saved.fingerprint != model.fingerprint:
            raise OutputError(f"{temporary} does not hold what was written to it: is the disk sound?")
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
    return 0 if told["ok"] else 1


def check_target(target: Path, source: Path, force: bool) -> None:
    """Raise OutputError where writing `target` would destroy something that is not a .fastrnn file of ours."""
    if not target.parent.is_dir():
        raise OutputError(f"the folder {target.parent} for the output does not exist")
    if not target.exists():
        return
    if source.exists() and target.samefile(source):
        raise OutputError(f"{target} is the model itself: name another output with -o")
    if force:
        return
    if not target.is_file():
        raise OutputError(f"{target} exists and is no file")
    try:
        fastrnn.load(target)
    except fastrnn.FastRNNError:
        raise OutputError(
            f"{target} exists and is no .fastrnn file that this version reads; --force replaces it"
        ) from None


def check(saved: fastrnn.Model, args: argparse.Namespace, target: Path) -> tuple[fastrnn.VerifyReport, str | None]:
    """Compare what was written with the best judge at hand; (report, why that is the reference)."""
    judge, why = verify.judge(args.model)
    if judge == "reference":
        return named(fastrnn.verify(saved, against="reference"), target), why
    given: dict[str, Any] = {"bind": dict(args.bind)} if judge == "onnxruntime" else {}
    given |= {"layers": args.layers, "key": args.key} if judge == "torch" else {}
    given |= {"config": args.config} if judge == "keras" else {}
    try:
        return named(fastrnn.verify(saved, judge, source=args.model, **given), target), None
    except fastrnn.UnsupportedError as error:  # what the framework itself can't load, or has no module for
        if judge not in ("torch", "keras"):
            raise
        return named(fastrnn.verify(saved, against="reference"), target), str(error)


def named(report: fastrnn.VerifyReport, target: Path) -> fastrnn.VerifyReport:
    """The report under the name of the file that was asked for, not of the temporary one or of the graph in it."""
    return dataclasses.replace(report, model=str(target))


def show(told: dict, report: fastrnn.VerifyReport | None, why: str | None) -> None:
    """What was done, for a person."""
    if told["ok"]:
        print_line(f"{told['model']} -> {told['output']} ({size(told['bytes'])})", style="bold cyan")
    else:
        print_line(f"{told['model']}: nothing written", style="bold red")
    print_pairs(describe.head(told) + describe.notes(told))
    if report is not None:
        print_line()
        verify.show(report, why)
