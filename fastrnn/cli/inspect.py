"""`fastrnn inspect`: what is in a model file, and whether it streams."""

from __future__ import annotations

import argparse

from . import describe, options
from .output import print_json

EXAMPLE = """\
example:
  fastrnn inspect examples/tone_words.onnx
  fastrnn inspect model.fastrnn --json | jq .layers
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a model file that fastrnn reads")
    options.add_loading(parser)
    options.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Print what the model is; 0."""
    told = describe.record(options.load(args), args.model)
    if args.json:
        print_json(told)
    else:
        describe.show(told)
    return 0
