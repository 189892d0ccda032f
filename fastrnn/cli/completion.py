"""`fastrnn completion`: scripts with which a shell completes the commands, their options and files."""

from __future__ import annotations

import argparse
import sys

import fastrnn

from .output import print_json

EXAMPLE = """\
example:
  fastrnn completion bash > ~/.local/share/bash-completion/completions/fastrnn
  fastrnn completion zsh > ~/.zfunc/_fastrnn
  fastrnn completion bash --for fastrnn-convert > ~/.local/share/bash-completion/completions/fastrnn-convert
"""
SHELLS = ("bash", "zsh", "tcsh")
PROGRAMS = ("fastrnn", "fastrnn-convert")
# Arguments whose metavar begins so are files: what each shell calls a completion by them.
FILES = ("MODEL", "FILE", "OUT", "PAGE")
FILE = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")
    parser.add_argument(
        "--for",
        dest="program",
        choices=PROGRAMS,
        default="fastrnn",
        help="the command to complete (default: fastrnn)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run(args: argparse.Namespace) -> int:
    """Print the script. Returns 0. args.parsers: command -> a function that makes its parser."""
    try:
        import shtab
    except ImportError:
        raise fastrnn.FastRNNError("completion needs the shtab package: pip install 'fastrnn[completion]'") from None
    parser = args.parsers[args.program]()
    _mark_files(parser)
    script = shtab.complete(parser, args.shell)
    if args.json:
        print_json({"ok": True, "shell": args.shell, "command": args.program, "script": script})
    else:
        sys.stdout.write(script.rstrip("\n") + "\n")
    return 0


def _mark_files(parser: argparse.ArgumentParser) -> None:
    """Note which arguments are files, in the attribute that shtab reads."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _mark_files(command)
        elif isinstance(action.metavar, str) and action.metavar.startswith(FILES) and not action.choices:
            action.complete = FILE  # type: ignore[attr-defined]
