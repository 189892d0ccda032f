"""The page of an analysis."""

from __future__ import annotations

from ..analysis import Analysis
from . import figures
from .costs import data
from .page import Page


def page_of(found: Analysis, name: str | None = None) -> Page:
    """How the model reacts to dirty input, restarts, long runs and reduced precision."""
    how = "streamed" if found.streamed else "run whole"
    page = Page(
        f"How robust {name or found.model} is",
        f"Data: {found.data}; {found.rows} rows of {found.steps} steps, {how}.",
    )
    if found.synthetic:
        page.note(
            "No data were given, so noise was made up. The figures show how the model reacts; how it does on your "
            "signal only your data can show."
        )
    page.tiles(_tiles(found))
    for text in found.skipped:
        page.note(f"Left out: {text}")
    _dirt(page, found)
    _gaps(page, found)
    _memory(page, found)
    _precision(page, found)
    page.section("What each figure means")
    page.definitions(list(found.definitions.items()))
    return page


def _tiles(found: Analysis) -> list[tuple[str, str]]:
    tiles = []
    at20 = next((c for c in found.corruptions if c.kind == "noise" and c.strength == 20), None)
    if at20 is not None:
        tiles.append((percent(at20.relative_error), "relative error under noise at 20 dB"))
        if at20.decisions_changed is not None:
            tiles.append((percent(at20.decisions_changed), "of decisions changed by noise at 20 dB"))
    memory = found.forgetting
    if memory is not None:
        tiles.append(
            (f"{memory.steps:g} steps" if memory.steps is not None else f"over {memory.followed:,} steps",
             "until a push of the state has died out to 1 %")
        )  # fmt: skip
        if memory.warm_up_data:
            text = f"{memory.warm_up} steps" if memory.warm_up is not None else f"over {memory.warm_up_data:,} steps"
            tiles.append((text, "of warm-up until a fresh stream is right to 1 %"))
    for r in found.roundings:
        tiles.append((percent(r.relative_error), f"relative error with weights in {r.to}"))
    if found.drift is not None:
        tiles.append(
            (f"{found.drift.spans[-1][1]:.2g}", f"relative error against float64 after {found.drift.compared:,} steps")
        )
    return tiles


def _dirt(page: Page, found: Analysis) -> None:
    if not found.corruptions:
        return
    page.section("Dirty input", "What noise, lost steps and features, and saturation do to the outputs.")
    pairs = []
    noisy = [(k, [c for c in found.corruptions if c.kind == k]) for k in ("noise", "impulses")]
    pairs.append(
        (
            figures.curves(
                "Relative error against signal-to-noise ratio",
                [(k, [c.strength for c in cs], [100 * c.relative_error for c in cs]) for k, cs in noisy],
                "signal-to-noise ratio, dB", "relative error, %", invert=True,
            ),
            "From clean (left) to as much noise as signal (right).",
        )
    )  # fmt: skip
    lost = [
        (k, [c for c in found.corruptions if c.kind == k]) for k in ("dropped steps", "dropped features", "saturation")
    ]
    pairs.append(
        (
            figures.curves(
                "Relative error against share lost",
                [(k, [100 * (c.strength if k != "saturation" else 1 - c.strength) for c in cs],
                  [100 * c.relative_error for c in cs]) for k, cs in lost],
                "steps or features dropped, range cut off, %", "relative error, %",
            ),
            "Steps or features that are zero; and how much of the inputs' range is cut off.",
        )
    )  # fmt: skip
    page.figures(pairs)
    columns = ("dirt", "strength", "relative error", "largest change", "decisions changed")
    rows = [
        (
            c.kind, f"{c.strength:g} dB" if c.unit == "dB" else percent(c.strength), percent(c.relative_error),
            f"{c.largest_change:.3g}", percent(c.decisions_changed),
        )
        for c in found.corruptions
    ]  # fmt: skip
    page.table(columns, rows, columns[1:])


def _gaps(page: Page, found: Analysis) -> None:
    if not found.gaps:
        return
    page.section(
        "Missing steps",
        "Some steps in a row never arrive. They can be fed as zeros, as repeats of the last one, or not at all, so "
        "that the stream waits. The error is of the steps after the gap.",
    )
    fills = list(dict.fromkeys(g.fill for g in found.gaps))
    lengths = list(dict.fromkeys(g.steps for g in found.gaps))
    if len(lengths) > 1:
        series = [
            (f, [g.steps for g in found.gaps if g.fill == f], [100 * g.error_after for g in found.gaps if g.fill == f])
            for f in fills
        ]
        page.figures(
            [
                (
                    figures.curves("Error after a gap against its length", series, "missing steps",
                                   "relative error after, %", xscale="log", ticks=lengths),
                    "Relative error after the gap, by its length and how it is filled.",
                )
            ]
        )  # fmt: skip
    columns = ("missing steps", "fed", "error within", "error after", "steps to recover")
    rows = [
        (str(g.steps), g.fill, percent(g.error_within), percent(g.error_after),
         "not in the data" if g.recovery is None else str(g.recovery))
        for g in found.gaps
    ]  # fmt: skip
    page.table(columns, rows, ("missing steps", *columns[2:]))


def _memory(page: Page, found: Analysis) -> None:
    memory, touch = found.forgetting, found.touch
    if memory is None and touch is None:
        return
    page.section(
        "Memory", "How long the past matters: a stream that lost its state needs that many steps to be right again."
    )
    pairs = []
    if memory is not None:
        curve = [max(100 * v, 1e-7) for v in memory.curve]
        how = "shrinks" if memory.decay is not None and memory.decay < 1 else "does not shrink: it changes"
        decay = "" if memory.decay is None else f" It {how} by a factor of {memory.decay:.4g} a step."
        pairs.append(
            (
                figures.curves("Distance of a pushed state over steps", [("distance", range(len(curve)), curve)],
                               "steps after the push", "distance left, %", marks=False),
                f"What is left of a push of the state by 1 % of its norm (median).{decay}",
            )
        )  # fmt: skip
    if touch is not None:
        pairs.append(
            (
                figures.curves("Change of outputs after one touched step",
                               [("change", range(len(touch.response)), touch.response)], "steps after the touch",
                               "change of outputs / touch", marks=False),
                (f"How far outputs move when one step of the input is touched; half of it has come within "
                f"{touch.half + 1} steps."),
            )
        )  # fmt: skip
    page.figures(pairs)


def _precision(page: Page, found: Analysis) -> None:
    if not found.roundings and found.drift is None:
        return
    page.section(
        "Precision", "What fewer bits would cost, and whether answers drift from those of float64 in a long stream."
    )
    if found.drift is not None:
        d = found.drift
        finite = "Everything stayed finite." if d.finite else "Something became NaN or infinite!"
        text = f"{d.compared:,} steps were compared with float64"
        text += f", {d.steps:,} were streamed. {finite}" if d.compared < d.steps else f". {finite}"
        spans = [(first, error) for first, error in d.spans if error == error and error > 0]
        if spans:
            page.figures(
                [
                    (
                        figures.curves("Relative error against float64 over a long stream",
                                       [("error", [s for s, _ in spans], [e for _, e in spans])], "step",
                                       "relative error"),
                        text,
                    )
                ]
            )  # fmt: skip
    columns = ("weights in", "layers", "before", "after", "relative error", "largest change", "decisions changed")
    rows = [
        (r.to, str(r.layers), data(r.bytes_before), data(r.bytes_after), percent(r.relative_error),
         f"{r.largest_change:.3g}", percent(r.decisions_changed))
        for r in found.roundings
    ]  # fmt: skip
    if rows:
        page.table(columns, rows, columns[1:])


def percent(value: float | None) -> str:
    """A share with three digits; nothing for None or NaN."""
    if value is None or value != value:
        return ""
    return f"{100 * value:,.0f} %" if value >= 1 else f"{100 * value:.3g} %"
