"""Sphinx extension: the directive `commands`, which shows the help of every command as argparse prints it."""

import argparse
import os

from docutils import nodes
from docutils.parsers.rst import Directive

from fastrnn.cli.main import COMMANDS, convert_parser, parser

WIDTH = 88  # of a line of help


def helps():
    """(name, summary, help text) of each command."""
    os.environ["COLUMNS"] = str(WIDTH)
    whole = parser()
    (action,) = (a for a in whole._actions if isinstance(a, argparse._SubParsersAction))
    for name, (_, summary) in COMMANDS.items():
        yield f"fastrnn {name}", summary, action.choices[name].format_help()
    yield "fastrnn-convert", "the same as fastrnn convert", convert_parser().format_help()


class Commands(Directive):
    """One section per command: its summary and its help."""

    def run(self):
        made = []
        for name, summary, text in helps():
            section = nodes.section(ids=[nodes.make_id(name)], names=[name])
            section += nodes.title(text=name)
            section += nodes.paragraph(text=summary[0].upper() + summary[1:] + ".")
            section += nodes.literal_block(text, text, language="text")
            made.append(section)
        return made


def setup(app):
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
