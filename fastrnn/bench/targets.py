"""The project's targets, and whether a record reaches them. Each line says what was wanted and what was reached.

A target is judged only if all its cases were run; otherwise it is "not measured", with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from ..records import dataclass
from .cases import GRIDS, cases_of
from .figures import geometric_mean

SHARE_GRIDS = ("step", "batch", "sequence")
SHARE_FROM = 64  # H: below, activations and the call weigh more than the weights


@dataclass(frozen=True)
class Line:
    """One target. wanted: "at least" (or "at most") `limit`; got: the figure, None if it was not measured.

    ok : True, False, or None where not measured; note : the worst case, or why it was not measured.
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


def evaluate(record: Mapping) -> list[dict]:
    """Every target, in the order of the table of targets, as dicts."""
    cases = record["cases"]
    lines = [
        *_grid_lines(cases, "step", 5.0, 1.2, "ort", 8.0),
        *_grid_lines(cases, "batch", 1.6, 1.05),
        *_grid_lines(cases, "sequence", 1.5, 1.05),
        _share_line(cases),
        *_model_lines(cases),
        *_thread_lines(cases),
        *_cost_lines(record.get("costs") or {}),
    ]
    return [asdict(line) for line in lines]


def _at_least(text: str, limit: float, got: float | None, note: str, unit: str = "x", asked: bool = True) -> Line:
    return Line(text, limit, got, None if got is None else got >= limit, unit, note, asked=asked)


def _missing(grid: str, cases: Sequence[Mapping]) -> str | None:
    """Why a grid's targets can't be judged, or None: every case of it must be here, with a ratio."""
    have = {c["id"]: c for c in cases if c["grid"] == grid}
    wanted = [c.id for c in cases_of([grid])]
    absent = [name for name in wanted if name not in have]
    if absent:
        return f"grid {grid}: {len(absent)} of {len(wanted)} cases were not run"
    bare = [name for name in wanted if have[name]["ratio"] is None]
    return f"no ratio in {len(bare)} cases, such as {bare[0]}" if bare else None


def _grid_lines(cases, grid: str, mean: float, least: float, other: str = "", other_mean: float = 0.0) -> list[Line]:
    what = GRIDS[grid]
    why = _missing(grid, cases)
    mine = [c for c in cases if c["grid"] == grid]
    if why is None:
        worst = min(mine, key=lambda c: c["ratio"])
        got_mean, got_least = geometric_mean(c["ratio"] for c in mine), worst["ratio"]
        note = f"{worst['id']} against {worst['best_peer']}"
    else:
        got_mean, got_least, note = None, None, why
    asked = bool(mine)
    lines = [_at_least(f"{what}: geometric mean over the best peer", mean, got_mean, why or "", asked=asked)]
    if other:
        ratios = [c["ratios"][other]["ratio"] for c in mine if other in c["ratios"]] if why is None else []
        complete = why is None and len(ratios) == len(mine)
        got = geometric_mean(ratios) if complete else None
        said = "" if complete else why or f"{other} did not answer everywhere"
        lines.append(_at_least(f"{what}: over {other} run", other_mean, got, said, asked=asked))
    lines.append(_at_least(f"{what}: least over the best peer", least, got_least, note, asked=asked))
    return lines


def _share_line(cases) -> Line:
    text = f"share of the roofline, H >= {SHARE_FROM}: least"
    wanted = {c.id for c in cases_of(SHARE_GRIDS) if c.H >= SHARE_FROM}
    mine = [c for c in cases if c["id"] in wanted and c["share"] is not None]
    if len(mine) < len(wanted):
        asked = any(c["id"] in wanted for c in cases)
        return _at_least(text, 0.8, None, f"{len(wanted) - len(mine)} of {len(wanted)} cases have no share", "", asked)
    worst = min(mine, key=lambda c: c["share"])
    low = sum(c["share"] < 0.8 for c in mine)
    return _at_least(text, 0.8, worst["share"], f"{worst['id']}; {low} of {len(mine)} are below", "")


def _model_lines(cases) -> list[Line]:
    ort = ("ort", "ort-iobinding")
    wanted = [
        ("Silero VAD, one stream, over onnxruntime", "models/silero_vad_v5", 3.5, ort),
        ("Silero VAD, 32 streams, over onnxruntime", "models/silero_vad_v5-b32", 2.5, ort),
        ("GTCRN, one frame, over the best peer", "models/gtcrn", 5.0, None),
        ("DTLN stage 1, one frame, over the best peer", "models/dtln_1", 1.5, None),
        ("DTLN stage 2, one frame, over the best peer", "models/dtln_2", 1.5, None),
    ]
    found = {c["id"]: c for c in cases}
    lines = []
    for text, name, limit, engines in wanted:
        case = found.get(name)
        ratios = (
            {} if case is None else {k: v["ratio"] for k, v in case["ratios"].items() if not engines or k in engines}
        )
        if ratios:
            nearest = min(ratios, key=lambda k: ratios[k])
            lines.append(_at_least(text, limit, ratios[nearest], f"against {nearest}"))
        else:
            why = "not run" if case is None else case["verdict"]
            lines.append(_at_least(text, limit, None, why, asked=case is not None))
    return lines


def _thread_lines(cases) -> list[Line]:
    texts = ("two threads over one: least", "two threads over one, LSTM 512 from batch 16 up: least")
    why = _missing("threads", cases)
    if why is not None:
        asked = any(c["grid"] == "threads" for c in cases)
        return [_at_least(text, limit, None, why, asked=asked) for text, limit in zip(texts, (1.0, 1.7), strict=True)]
    mine = [c for c in cases if c["grid"] == "threads"]
    large = [c for c in mine if c["H"] >= 512 and c["batch"] >= 16]
    lines = []
    for text, limit, chosen in zip(texts, (1.0, 1.7), (mine, large), strict=True):
        worst = min(chosen, key=lambda c: c["ratio"])
        lines.append(_at_least(text, limit, worst["ratio"], worst["id"]))
    return lines


def _cost_lines(costs: Mapping) -> list[Line]:
    def at_most(text: str, limit: float, key: str, unit: str, scale: float = 1.0, note: Callable = lambda _: ""):
        found = costs.get(key)
        if found is None:
            return Line(text, limit, None, None, unit, costs.get("why", "not run"), True, bool(costs))
        return Line(text, limit, found * scale, found * scale <= limit, unit, note(costs), True)

    over = "bytes a stream over the state's own size"
    return [
        at_most("import fastrnn", 80.0, "import_ns", "ms", 1e-6),
        at_most("load a 2 MiB artifact", 20.0, "load_ns", "ms", 1e-6),
        at_most(over, 1.1, "stream_ratio", "x", note=lambda c: f"{c['stream_bytes']} B for {c['state_bytes']} B"),
    ]
