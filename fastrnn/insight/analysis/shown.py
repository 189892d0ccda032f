"""An `Analysis` as a notebook shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import tables

if TYPE_CHECKING:
    from . import Analysis


def shown(found: Analysis) -> str:
    """HTML: what was analyzed, then one table for each kind of figures."""
    rows = [("data", found.data), ("used", f"{found.rows} rows of {found.steps} steps")]
    rows += [("output", f"{level.output}: rms {level.rms:.3g}") for level in found.levels]
    if found.forgetting is not None and found.forgetting.steps is not None:
        rows.append(("forgetting", f"a push of the state falls to 1 % within {found.forgetting.steps:g} steps"))
    if found.touch is not None:
        rows.append(("sensitivity", f"half of the response within {found.touch.half + 1} steps"))
    if found.drift is not None:
        last = f"{found.drift.spans[-1][1]:.2g} after {found.drift.compared:,} steps"
        rows.append(("drift", f"relative error against float64 {last}"))
    rows += [("left out", text) for text in found.skipped]
    errors = ("relative error", "largest change", "decisions changed")
    dirt = [
        (c.kind, f"{c.strength:g} dB" if c.unit == "dB" else _share(c.strength), *_errors(c)) for c in found.corruptions
    ]
    gaps = [
        (g.fill, g.steps, _share(g.error_after), "not within the data" if g.recovery is None else g.recovery)
        for g in found.gaps
    ]
    rounded = [(r.to, tables.size(r.bytes_after), *_errors(r)) for r in found.roundings]
    return tables.block(
        f"Analysis of {found.model}",
        tables.pairs(rows),
        tables.table(("corrupted input", "strength", *errors), dirt, numbers=("strength", *errors)),
        tables.table(
            ("missing steps", "steps", "error after", "recovery"), gaps, numbers=("steps", "error after", "recovery")
        ),
        tables.table(("weights", "bytes", *errors), rounded, numbers=("bytes", *errors)),
    )


def _errors(figures) -> tuple[str, str, str]:
    return _share(figures.relative_error), f"{figures.largest_change:.3g}", _share(figures.decisions_changed)


def _share(value: float | None) -> str:
    """ "12 %"; nothing for None or NaN."""
    return "" if value is None or value != value else f"{100 * value:.3g} %"
