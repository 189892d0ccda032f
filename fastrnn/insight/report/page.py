"""A self-contained HTML page, legible on a phone and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from html import escape

from ...machine.files import replace_file
from ...records import dataclass

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 0 auto; max-width: 1080px;
  padding: 1rem; }
h1, p, dd, .tile { overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.4rem; border-top: 1px solid #d4d9e0; padding-top: 1rem; }
p { margin: 0.4rem 0 0.8rem; max-width: 70ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 0.6rem; margin: 1rem 0; }
.tile { border: 1px solid #d4d9e0; border-radius: 6px; padding: 0.6rem 0.8rem; }
.tile b { display: block; font-size: 1.3rem; line-height: 1.3; }
.tile span { color: #4d5763; font-size: 0.9rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; max-width: 34rem; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { color: #4d5763; font-size: 0.9rem; }
/* A shadow at an edge behind which there is more of a table: the white covers move with it, the shadows do not. */
.wide { overflow-x: auto; background:
  linear-gradient(to right, #fff 40%, #fff0) left / 3rem 100% no-repeat local,
  linear-gradient(to left, #fff 40%, #fff0) right / 3rem 100% no-repeat local,
  linear-gradient(to right, #8a94a066, #8a94a000) left / 0.8rem 100% no-repeat scroll,
  linear-gradient(to left, #8a94a066, #8a94a000) right / 0.8rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem 0.25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e7eaee; }
th { border-bottom: 2px solid #9aa4b0; }
.number { text-align: right; }
th { vertical-align: bottom; }
td { white-space: nowrap; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 10rem; }
@media (min-width: 40rem) { th { white-space: nowrap; } }
summary { cursor: pointer; margin: 0.6rem 0; }
.note { border-left: 4px solid #d08700; padding: 0.3rem 0.8rem; background: #fff8e8; }
dt { font-weight: 600; } dd { margin: 0 0 0.6rem; max-width: 80ch; }
footer { color: #4d5763; font-size: 0.85rem; margin-top: 2rem; }
@media print {
  body { max-width: none; font-size: 10.5pt; padding: 0; }
  figure, .tile, tr, dt { break-inside: avoid; } h2, h2 + p, dt { break-after: avoid; }
  /* Paper does not scroll: a table that is wider gets smaller letters, and long names are broken. */
  .wide { overflow: visible; background: none; } table { font-size: 8.5pt; max-width: 100%; }
  th { white-space: normal; } td.long { min-width: 6rem; }
  .figures { grid-template-columns: 1fr 1fr; }
}
"""


@dataclass
class Page:
    """What a page holds, in order. title: its heading; lead: a sentence below it; parts: HTML."""

    title: str
    lead: str
    parts: list[str] = field(default_factory=list)

    def tiles(self, pairs: Sequence[tuple[str, str]]) -> None:
        """The most important numbers: (number, what it is)."""
        inner = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(t)}</span></div>' for v, t in pairs)
        self.parts.append(f'<div class="tiles">{inner}</div>')

    def section(self, title: str, text: str = "") -> None:
        """A heading and a paragraph."""
        self.parts.append(f"<h2>{escape(title)}</h2>" + (f"<p>{escape(text)}</p>" if text else ""))

    def text(self, text: str) -> None:
        """A paragraph."""
        self.parts.append(f"<p>{escape(text)}</p>")

    def note(self, text: str) -> None:
        """Something that a reader must not miss."""
        self.parts.append(f'<p class="note">{escape(text)}</p>')

    def figures(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Figures side by side if there is room: (SVG text, caption)."""
        inner = "".join(f"<figure>{svg}<figcaption>{escape(text)}</figcaption></figure>" for svg, text in pairs)
        self.parts.append(f'<div class="figures">{inner}</div>')

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = (), folded: str = ""
    ) -> None:
        """A table that scrolls separately if it is wider than the page; folded: hidden until this text is clicked."""
        kinds = [' class="number"' if c in numbers else "" for c in columns]
        head = _row("th", kinds, columns)
        body = "".join(_row("td", kinds, row) for row in rows)
        table = f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'
        self.parts.append(f"<details><summary>{escape(folded)}</summary>{table}</details>" if folded else table)

    def definitions(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Words and what they mean."""
        inner = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs)
        self.parts.append(f"<dl>{inner}</dl>")

    def html(self) -> str:
        """The whole page."""
        body = "\n".join(self.parts)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            # An empty icon, or a browser would ask the page's host for one.
            '<link rel="icon" href="data:,">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{escape(self.title)}</h1>\n<p>{escape(self.lead)}</p>\n{body}\n"
            "<footer>Written by fastrnn. The page is complete in itself: it loads nothing.</footer>\n</body>\n</html>\n"
        )


LONG = 24  # letters; a longer text in a table may be broken
_LONG = ' class="long"'


def _row(tag: str, kinds: Sequence[str], cells: Sequence[str]) -> str:
    made = (
        f"<{tag}{kind or (_LONG if len(v) > LONG else '')}>{escape(v)}</{tag}>"
        for kind, v in zip(kinds, cells, strict=True)
    )
    return f"<tr>{''.join(made)}</tr>"


def write(page: Page, path) -> None:
    """Write a page atomically."""
    replace_file(path, page.html().encode())
