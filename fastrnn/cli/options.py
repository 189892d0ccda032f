"""Arguments that several commands share, their parsers, and loading a model with them."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

import fastrnn


def add_common(parser: argparse.ArgumentParser) -> None:
    """--json and --debug."""
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_report(parser: argparse.ArgumentParser) -> None:
    """--definitions and --report."""
    parser.add_argument("--definitions", action="store_true", help="explain each figure below the tables")
    parser.add_argument(
        "--report", metavar="FILE.html", help="write an HTML report with figures; needs fastrnn[report]"
    )


def add_binding(parser: argparse.ArgumentParser) -> None:
    """--bind and --states."""
    parser.add_argument(
        "--bind",
        metavar="NAME=VALUE",
        type=binding,
        action="append",
        default=[],
        help="fix an input to a constant, such as --bind sr=16000 or --bind 'mask=[1, 0, 1]'; may be repeated",
    )
    parser.add_argument(
        "--states",
        metavar="INPUT=OUTPUT",
        type=state,
        action="append",
        default=[],
        help="pair an input with the output that feeds it at the next call, such as --states h0=hn, if fastrnn can't "
        "find the pair; may be repeated",
    )


def add_loading(parser: argparse.ArgumentParser) -> None:
    """All options that change how a file is read."""
    add_binding(parser)
    parser.add_argument(
        "--size",
        "--sizes",
        dest="sizes",
        metavar="NAME=SIZE",
        type=fixed_size,
        action="append",
        default=[],
        help="fix a size that the file leaves free, under its name in the file or in fastrnn, or by its axis, such as "
        "--size time=512 or --size 'x[2]=640'; may be repeated",
    )
    parser.add_argument(
        "--float32", action="store_true", help="compute a float64 model in float32; such a model is refused otherwise"
    )
    parser.add_argument(
        "--no-strict",
        action="store_true",
        help="free a length of an ONNX file even if a number in the file may have been computed from it; a warning "
        "names the number",
    )
    parser.add_argument(
        "--no-thaw", action="store_true", help="keep every size that is a number in an ONNX or Keras file"
    )
    parser.add_argument(
        "--precision",
        metavar="FORMAT",
        type=precision,
        help="number format of the weights: float32, bfloat16, int8 or int8-a16; or LAYER=FORMAT pairs, separated by "
        "commas, for some layers only. Smaller formats need less memory and time and cost accuracy. convert also takes "
        "auto",
    )
    add_weights(parser)
    add_config(parser)
    parser.add_argument(
        "--allow-torch",
        action="store_true",
        help="load a PyTorch file that holds a program (a pickled module) through PyTorch, which runs its code",
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """--layers and --key, for files of bare weights."""
    parser.add_argument(
        "--layers",
        metavar="LIST",
        help="the layers of a file of bare weights, such as --layers 'embedding:emb lstm:rnn linear:out softmax'; not "
        "needed if the file is one recurrent stack (docs/guide/pytorch.md lists the words)",
    )
    parser.add_argument(
        "--key", metavar="NAME", help="the name of the weights in a PyTorch checkpoint, such as --key model"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """--config: the architecture for a Keras file of bare weights."""
    parser.add_argument(
        "--config", metavar="FILE", help="the JSON of model.to_json(), for a Keras file that holds only weights"
    )


def binding(text: str) -> tuple[str, Any]:
    """ "sr=16000" -> ("sr", 16000): a number, true, false, or a (nested) list of them."""
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    if not _numeric(parsed):
        raise argparse.ArgumentTypeError(
            f"the value of {name} must be a number, true, false, or a list of them, got {value!r}"
        )
    return name, parsed


def _numeric(value: Any) -> bool:
    if isinstance(value, list):
        return all(_numeric(item) for item in value)
    return isinstance(value, (bool, int, float))


def state(text: str) -> tuple[str, str]:
    """ "h0=hn" -> ("h0", "hn")."""
    name, _, output = text.partition("=")
    if not name or not output:
        raise argparse.ArgumentTypeError(f"expected INPUT=OUTPUT, got {text!r}")
    return name, output


def fixed_size(text: str) -> tuple[str, int]:
    """ "size=576" -> ("size", 576)."""
    name, _, value = text.rpartition("=")  # a name in a file may have any character
    if not name or not value.isdecimal():
        raise argparse.ArgumentTypeError(f"expected NAME=SIZE with a whole number, got {text!r}")
    return name, int(value)


def whole(least: int, most: int = 1 << 20) -> Callable[[str], int]:
    """A parser for a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most:,}, got {text!r}")
        return number

    return parse


def _finite(text: str, expected: str, zero: bool) -> float:
    """A finite number above 0, or 0 if `zero`. ArgumentTypeError says what was expected."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (0 < number < math.inf or (zero and number == 0)):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return number


def positive(text: str) -> float:
    """ "0.5" -> 0.5: a number above 0."""
    return _finite(text, "a number above 0", zero=False)


def seconds(text: str) -> float:
    """ "0.5" -> 0.5: seconds from 0 up."""
    return _finite(text, "seconds from 0 up", zero=True)


def share(text: str) -> float:
    """ "0.01": a number from 0 up."""
    return _finite(text, "a number from 0 up, such as 0.01 for one percent", zero=True)


def precision(text: str) -> str | dict[str, str]:
    """ "int8", or {"rnn": "int8"} of "rnn=int8"."""
    if "=" not in text:
        return text
    found = {}
    for pair in text.split(","):
        name, separator, value = pair.strip().rpartition("=")
        if not separator or not name:
            raise argparse.ArgumentTypeError(f"expected LAYER=FORMAT pairs separated by commas, got {pair!r}")
        found[name] = value
    return found


def load(args: argparse.Namespace, **instead: Any) -> fastrnn.Model:
    """Load the model with the options in the arguments. A model whose branch an input selects is refused by name.

    instead : options of `fastrnn.load` that replace those of the arguments.
    """
    model = fastrnn.load(
        args.model,
        bind=dict(args.bind) or None,
        states=dict(args.states) or None,
        layers=args.layers,
        key=args.key,
        config=args.config,
        allow_torch=args.allow_torch,
        sizes=dict(args.sizes) or None,
        float64_as_float32=args.float32,
        strict=not args.no_strict,
        thaw=not args.no_thaw,
        **{"precision": args.precision, **instead},
    )
    if isinstance(model, fastrnn.SelectedModel):
        model.refuse()
    return model
