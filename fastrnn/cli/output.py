"""Output: coloured tables for a terminal, plain aligned text for a pipe, JSON for a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import fastrnn

GAP = 2  # characters between two columns of a table
READABLE = 12  # least width of a text column; below that, names are broken into pieces
PIPE_WIDTH = 10_000  # width for a pipe: nothing wraps


def print_json(record: Mapping) -> None:
    """Print one JSON object on one line."""
    sys.stdout.write(json.dumps(record, allow_nan=False) + "\n")


def print_line(text: str = "", style: str | None = None, file: TextIO | None = None) -> None:
    """Print text. `style` is a style of rich and only applies to a terminal."""
    stream = file if file is not None else sys.stdout
    _write(Text(text, style=style or ""), stream)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = (), spare: Sequence[str] = ()
) -> None:
    """Print a table. The columns in `numbers` are right-aligned and never broken. If the terminal is too narrow, the
    columns in `spare` are left out in their order, and a line says so."""
    terminal, width = sys.stdout.isatty(), Console().width
    kept = list(columns)
    least = [_least(name, [row[i] for row in rows], name in numbers) for i, name in enumerate(columns)]
    left_out = []
    for name in spare if terminal else ():
        if sum(least[columns.index(n)] + GAP for n in kept) - GAP <= width:
            break
        kept.remove(name)
        left_out.append(name)
    table = Table(
        box=box.SIMPLE_HEAD if terminal else None, header_style="bold", pad_edge=False, show_edge=False,
        padding=(0, 1, 0, 0) if terminal else (0, 1),
    )  # fmt: skip
    places = [i for i, name in enumerate(columns) if name in kept]
    narrow = sum(max(map(len, (columns[i], *(row[i] for row in rows)))) + GAP for i in places) - GAP > width
    for i in places:
        right = columns[i] in numbers
        # A column of numbers is as narrow as its numbers; its head is broken between words.
        head = columns[i].replace(" ", "\n") if right and terminal and narrow else columns[i]
        table.add_column(head, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*(Text(row[i]) for i in places))
    _write(table, sys.stdout)
    if left_out:
        print_line(f"left out on this narrow terminal: {', '.join(left_out)}", style="dim")


def _least(name: str, cells: Sequence[str], number: bool) -> int:
    """The least width of a column: a number must be whole, text may be broken."""
    whole = max([len(cell) for cell in cells], default=0)
    return max(whole if number else min(whole, READABLE), max(len(word) for word in name.split() or [""]))


def print_pairs(rows: Sequence[tuple[str, str]]) -> None:
    """Print pairs of label and text. An empty label continues the one above."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(Text(label), Text(text))
    _write(table, sys.stdout)


def _write(what, stream: TextIO) -> None:
    if stream.isatty():
        Console(file=stream, highlight=False, soft_wrap=isinstance(what, Text)).print(what)
        return
    plain = StringIO()
    Console(file=plain, width=PIPE_WIDTH, no_color=True, highlight=False, soft_wrap=isinstance(what, Text)).print(what)
    stream.write("".join(line.rstrip() + "\n" for line in plain.getvalue().splitlines()))


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show `text` on stderr while the block runs, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(file=sys.stderr, highlight=False).status(Text(text)):
        yield


def count(number: int) -> str:
    """12345 -> "12,345"."""
    return f"{number:,}"


def size(number: int) -> str:
    """Readable bytes: "812 B", "49.2 KiB", "3.1 MiB"."""
    return fastrnn.report.size(number)
