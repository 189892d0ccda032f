"""Figures as SVG text: matplotlib without a screen, legible on a phone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO

import matplotlib
from matplotlib import ticker
from matplotlib.figure import Figure

SIZE = (4.6, 3.3)  # inches: at a phone's width (about 390 px) its letters are nearly as large as the text's
# Distinct for most colour-blind readers, and in grey (Okabe and Ito's set).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e0e4e9",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "fastrnn",  # the same figure has the same text
}


class Drawing:
    """A figure with one pair of axes: `with Drawing("what it shows") as axes: ...`, then `svg`."""

    def __init__(self, what: str, size: tuple[float, float] = SIZE):
        self.what, self.size, self.svg = what, size, ""

    def __enter__(self):
        self._context = matplotlib.rc_context(SETTINGS)
        self._context.__enter__()
        self.figure = Figure(figsize=self.size, layout="constrained")
        return self.figure.add_subplot()

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self.svg = _inline(self.figure, self.what)
        finally:
            self._context.__exit__(kind, error, trace)


_count = 0


def _inline(figure: Figure, what: str) -> str:
    """Only the <svg> element, with a label for screen readers and ids unlike those of other figures."""
    global _count
    _count += 1
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>f{_count}-", svg)
    label = what.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def roofline(
    peak: float, levels: Sequence[tuple[str, float]], points: Sequence[tuple[str, float, float, float]]
) -> str:
    """peak: FLOP/s; levels: (name, bytes/s); points: (name, FLOP a byte, FLOP/s measured, share of time)."""
    drawing = Drawing("Roofline: operations a second of each op against operations a byte of weights")
    with drawing as axes:
        marks = [p[1] for p in points] or [1.0]
        low, high = min(0.1, min(marks) / 2), max(100.0, 3 * max(marks))
        for (name, rate), colour in zip(levels, COLOURS, strict=False):
            knee = peak / rate
            axes.plot([low, knee, high], [low * rate / 1e9, peak / 1e9, peak / 1e9], color=colour, lw=1.2, label=name)
        for _, x, y, weight in points:
            axes.scatter([x], [y / 1e9], s=20 + 180 * weight, color="#000000", alpha=0.55, lw=0)
        axes.set(xscale="log", yscale="log", xlabel="FLOP a byte of weights", ylabel="GFLOP/s", xlim=(low, high))
        # Below the axes, because a dot can be in any corner.
        axes.figure.legend(fontsize=8, loc="outside lower center", ncols=4, title="read from", title_fontsize=8)
    return drawing.svg


def paired_bars(labels: Sequence[str], first: Sequence[float], second: Sequence[float], names, unit: str) -> str:
    """Two horizontal bars per label."""
    drawing = Drawing(f"{names[0]} and {names[1]} of each op", (SIZE[0], max(1.6, 0.36 * len(labels) + 0.9)))
    with drawing as axes:
        places = range(len(labels))
        axes.barh([p - 0.2 for p in places], first, 0.38, color=COLOURS[4], label=names[0])
        axes.barh([p + 0.2 for p in places], second, 0.38, color=COLOURS[0], label=names[1])
        axes.set_yticks(list(places), labels, fontsize=7.5)
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.grid(axis="y", visible=False)
        axes.legend(fontsize=8, loc="lower right")
    return drawing.svg


def _plain_ticks(axes, low: float, high: float) -> None:
    """As few numbers as a reader needs, without powers if they are short: 0.2 0.5 1 2."""
    narrow = high / low < 60
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=20 if narrow else 8))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _plain(value)))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def _plain(value: float) -> str:
    """A number as tick text: 0.002, 500, 2·10⁻⁵."""
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    digits, _, power = f"{value:.0e}".partition("e")
    return rf"$10^{{{int(power)}}}$" if digits == "1" else rf"${digits}\cdot10^{{{int(power)}}}$"


def curves(
    what: str, series: Sequence[tuple[str, Sequence[float], Sequence[float]]], xlabel: str, ylabel: str,
    xscale: str = "linear", yscale: str = "log", marks: bool = True, invert: bool = False, ticks=None,
) -> str:  # fmt: skip
    """Lines: (name, x, y) each. invert: x falls from left to right, as signal-to-noise ratios are read."""
    drawing = Drawing(what)
    with drawing as axes:
        for i, (name, x, y) in enumerate(series):
            style = {"color": COLOURS[i % len(COLOURS)], "label": name, "lw": 1.6}
            axes.plot(x, y, marker="osD^v"[i % 5] if marks else None, ms=4, **style)
        if xscale == "log":
            axes.set_xscale("log", base=2)
        values = [v for _, _, y in series for v in y]
        if yscale == "log" and all(v > 0 for v in values):
            axes.set_yscale("log")
            _plain_ticks(axes, min(values), max(values))
        else:
            axes.set_ylim(bottom=0)
        if ticks is not None:
            axes.set_xticks(list(ticks), [f"{t:g}" for t in ticks])
            axes.minorticks_off()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if invert:
            axes.invert_xaxis()
        if len(series) > 1:
            axes.legend(fontsize=8)
    return drawing.svg
