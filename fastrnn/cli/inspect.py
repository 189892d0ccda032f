"""`fastrnn inspect`: the contents of a model file, and whether it streams."""

from __future__ import annotations

import argparse

import fastrnn

from . import describe, options
from .output import print_json, print_line

EXAMPLE = """\
example:
  fastrnn inspect examples/tone_words.onnx
  fastrnn inspect model.fastrnn --json | jq .layers
  fastrnn inspect model.fastrnn --nodes
  fastrnn inspect model.fastrnn --graph model.svg
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a model file")
    parser.add_argument(
        "--graph",
        metavar="FILE",
        help="draw the graph to a .dot file (text) or .svg file (picture); needs fastrnn[report]",
    )
    parser.add_argument(
        "--nodes", action="store_true", help="list every node of the graph, with the dims of its outputs"
    )
    options.add_loading(parser)
    options.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Describe the model. Returns 0."""
    model = options.load(args)
    if args.graph:
        fastrnn.report.draw(model.graph, args.graph)
    told = describe.record(model, args.model)
    if args.json:
        print_json(told)
        return 0
    describe.show(told, args.nodes)
    if args.graph:
        print_line()
        print_line(f"graph drawn to {args.graph}")
    return 0
