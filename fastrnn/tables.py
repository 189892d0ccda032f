"""What objects show in notebooks: tables as HTML without colours of their own, so that light and dark pages suit them.

Every text is escaped: names come from files. The functions return parts; `block` puts them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MOST_ROWS = 40  # of a table in a notebook
MOST_LETTERS = 300  # of a cell: a name in a file may have megabytes

_CELL = "padding:0.15em 1.2em 0.15em 0;text-align:{};vertical-align:top;border:0;background:none"
_HEAD = f"{_CELL};font-weight:600;opacity:0.7"


def block(title: str, *parts: str) -> str:
    """A title and the parts below it."""
    head = f'<div style="font-weight:600;margin-bottom:0.3em">{_text(title)}</div>'
    return f'<div class="fastrnn" style="line-height:1.4">{head}{"".join(parts)}</div>'


def pairs(rows: Iterable[tuple[str, object]]) -> str:
    """Labels and texts. An empty label continues the one above."""
    body = "".join(f"<tr>{_cell('th', label, 'left')}{_cell('td', text, 'left')}</tr>" for label, text in rows)
    return f'<table style="border:0;margin:0 0 0.6em">{body}</table>'


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()) -> str:
    """Rows below the names of their columns; those in `numbers` are aligned to the right. A line says what is left out
    beyond 40 rows."""
    if not rows:
        return ""
    sides = ["right" if name in numbers else "left" for name in columns]
    head = "".join(_cell("th", name, side) for name, side in zip(columns, sides, strict=True))
    body = "".join(
        f"<tr>{''.join(_cell('td', cell, side) for cell, side in zip(row, sides, strict=True))}</tr>"
        for row in rows[:MOST_ROWS]
    )
    more = line(f"and {len(rows) - MOST_ROWS:,} more") if len(rows) > MOST_ROWS else ""
    return f'<table style="border:0;margin:0 0 0.6em"><tr>{head}</tr>{body}</table>{more}'


def line(text: str) -> str:
    """A line of text."""
    return f'<div style="margin:0 0 0.6em">{_text(text)}</div>'


def size(number: int) -> str:
    """Readable bytes: "812 B", "49.2 KiB", "3.1 MiB"."""
    if number < 1024:
        return f"{number} B"
    value = float(number)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024 or unit == "GiB":
            break
    return f"{value:.1f} {unit}"


def seconds(value: float | None) -> str:
    """ "0.44 us", "12.3 ms", "1.5 s"; "" for None."""
    if value is None:
        return ""
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if value * factor < 1000:
            return f"{value * factor:.3g} {unit}"
    return f"{value:.3g} s"


def _cell(tag: str, value: object, side: str) -> str:
    style = (_HEAD if tag == "th" else _CELL).format(side)
    return f'<{tag} style="{style}">{_text(value)}</{tag}>'


def _text(value: object) -> str:
    text = str(value)
    from html import escape  # loads 2,000 names of characters, which no call that shows nothing needs

    return escape(text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} ...")
