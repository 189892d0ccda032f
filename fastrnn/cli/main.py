"""Parsing, dispatch, and errors: one paragraph on stderr and an exit code.

0: success. 1: the job failed (a bad model, a difference, a file that can't be written). 2: wrong usage.
130: interrupted. --debug or FASTRNN_DEBUG_TRACEBACK=1 shows the traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from types import ModuleType

import fastrnn

from . import analyze, bench, completion, convert, inspect, plan_capacity, profile, score, serve, verify
from .output import print_json, print_line

COMMANDS: dict[str, tuple[ModuleType, str]] = {
    "convert": (convert, "convert a model file to one .fastrnn file"),
    "inspect": (inspect, "show the contents of a model file, and whether it streams"),
    "verify": (verify, "compare the answers of a model with onnxruntime, PyTorch, Keras or a float64 reference"),
    "plan-capacity": (plan_capacity, "plan machines, memory, network and checkpoint traffic for live streams"),
    "profile": (profile, "predict and measure the cost of a model on this machine, op by op"),
    "analyze": (analyze, "measure how a model reacts to noisy input, lost states, long runs and reduced precision"),
    "score": (score, "run a model over files of whole sequences, and go on after an interruption"),
    "serve": (serve, "serve models to many live sequences by HTTP, gRPC and WebSocket"),
    "bench": (bench, "compare steps, batches and sequences with other engines and with the limits of the machine"),
    "completion": (completion, "print a script with which a shell completes the commands, their options and files"),
}


class Help(argparse.RawDescriptionHelpFormatter):
    """Help without line breaks in the names of options."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def parser() -> argparse.ArgumentParser:
    """The parser of `fastrnn`, with that of each command."""
    whole = argparse.ArgumentParser(
        prog="fastrnn",
        description="Run recurrent networks on a CPU.",
        epilog="fastrnn COMMAND --help shows the options of a command, with an example.",
    )
    whole.add_argument("--version", action="version", version=f"fastrnn {fastrnn.__version__}")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=module.EXAMPLE,
            formatter_class=Help,
        )
        module.add(command)
    return whole


def convert_parser() -> argparse.ArgumentParser:
    """The parser of `fastrnn-convert`."""
    whole = argparse.ArgumentParser(
        prog="fastrnn-convert",
        description="Convert a model file to one .fastrnn file.",
        epilog=convert.EXAMPLE,
        formatter_class=Help,
    )
    convert.add(whole)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """The command `fastrnn`. Returns the exit code."""
    _open_closed_streams()
    args = parser().parse_args(argv, argparse.Namespace(parsers={"fastrnn": parser, "fastrnn-convert": convert_parser}))
    return _guarded(COMMANDS[args.command][0], args)


def convert_main(argv: Sequence[str] | None = None) -> int:
    """The command `fastrnn-convert`, which is `fastrnn convert`. Returns the exit code."""
    _open_closed_streams()
    return _guarded(convert, convert_parser().parse_args(argv))


def _open_closed_streams() -> None:
    """Let /dev/null stand for stdin, stdout and stderr that are closed: their numbers would go to the next files and
    sockets, into which libraries then write their messages."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            os.set_inheritable(null, null == number)
            setattr(sys, name, os.fdopen(null, mode))


def _guarded(command: ModuleType, args: argparse.Namespace) -> int:
    try:
        code = command.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print_line("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader closed the pipe. Redirect stdout, so that its last flush does not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.debug or os.environ.get("FASTRNN_DEBUG_TRACEBACK", "") not in ("", "0"):
            traceback.print_exc()
        text = _explain(error)
        if args.json:
            print_json({"ok": False, "error": {"type": type(error).__name__, "message": text}})
        print_line(f"error: {text}", style="red", file=sys.stderr)
        return 1


def _explain(error: Exception) -> str:
    if isinstance(error, fastrnn.FastRNNError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    return f"{type(error).__name__}: {error} (a bug in fastrnn; --debug shows the traceback)"
