"""A line of the table of targets, and what decides whether its cases are all here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..records import dataclass
from .cases import cases_of
from .figures import geometric_mean


@dataclass(frozen=True)
class Line:
    """One target. wanted: "at least" (or "at most") `limit`; got: the figure, None if it was not measured.

    ok : True, False, or None if it is not judged; note : the worst case, the bound that explains it, or why it is
    not judged.
    asked : whether this run had any of the target's cases.
    """

    text: str
    limit: float
    got: float | None
    ok: bool | None
    unit: str
    note: str
    at_most: bool = False
    asked: bool = True


def at_least(text: str, limit: float, got: float | None, note: str, unit: str = "x", asked: bool = True) -> Line:
    """The line of a figure that has to reach a limit."""
    return Line(text, limit, got, None if got is None else got >= limit, unit, note, asked=asked)


def at_most(text: str, limit: float, got: float | None, note: str, unit: str = "x", asked: bool = True) -> Line:
    """The line of a figure that must not pass a limit."""
    return Line(text, limit, got, None if got is None else got <= limit, unit, note, True, asked)


def of_grid(cases: Sequence[Mapping], grid: str) -> list[Mapping]:
    """The grid's cases in a record."""
    return [case for case in cases if case["grid"] == grid]


def absent(grid: str, cases: Sequence[Mapping]) -> str | None:
    """Which cases of a grid were not run, or None if all were."""
    have = {c["id"] for c in of_grid(cases, grid)}
    wanted = [c.id for c in cases_of([grid])]
    left = sum(name not in have for name in wanted)
    return f"grid {grid}: {left} of {len(wanted)} cases were not run" if left else None


def missing(grid: str, cases: Sequence[Mapping]) -> str | None:
    """Why a grid's targets can't be judged, or None: every case of it must be here, with a ratio."""
    why = absent(grid, cases)
    bare = [c["id"] for c in of_grid(cases, grid) if c["ratio"] is None]
    return why or (f"no ratio in {len(bare)} cases, such as {bare[0]}" if bare else None)


def mean_line(text: str, limit: float, rated: Sequence[tuple[float, str]], note: str, asked: bool) -> Line:
    """The geometric mean of ratios with the notes of their cases; note: why there are none."""
    return at_least(text, limit, geometric_mean(r for r, _ in rated), note if not rated else "", asked=asked)


def least_line(text: str, limit: float, rated: Iterable[tuple[float, str]], note: str, asked: bool) -> Line:
    """The least of ratios, with the note of its case."""
    worst = min(rated, default=None)
    if worst is None:
        return at_least(text, limit, None, note, asked=asked)
    return at_least(text, limit, worst[0], worst[1], asked=asked)


def why_slow(case: Mapping, contest: Mapping | None = None) -> str:
    """The case, the peer that came nearest, and how much of the machine's limit was reached: what explains a ratio."""
    what = contest or case
    against = f" against {what['best_peer']}" if what.get("best_peer") else ""
    share = f"; {what['share']:.0%} of what {what['bound']} allows" if what.get("share") else ""
    return f"{case['id']}{against}{share}"
