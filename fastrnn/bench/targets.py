"""The project's targets, and whether a record reaches them. Each line says what was wanted and what was reached.

A target is judged only if all its cases were run; otherwise it is "not measured", with the reason. `precision_targets`
has those of reduced precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

from . import precision_targets
from .cases import GRIDS, cases_of
from .figures import geometric_mean
from .target_lines import Line, at_least, least_line, missing, of_grid, why_slow

SHARE_GRIDS = ("step", "batch", "sequence")
SHARE_FROM = 64  # H: below, activations and the call weigh more than the weights
CALLS = {"fastrnn-run": "run", "fastrnn-session": "the session's run"}
FLOAT32_GRIDS = ("step", "odd", "batch", "sequence", "wide")


def evaluate(record: Mapping) -> list[dict]:
    """Every target, in the order of the table of targets, as dicts."""
    cases = record["cases"]
    lines = [
        *precision_targets.lines(record),
        *_grid_lines(cases, "step", 5.0, 1.2, "ort", 8.0),
        *_grid_lines(cases, "batch", 1.7, 1.05),
        *_grid_lines(cases, "sequence", 1.5, 1.05),
        _behind_line(cases),
        _share_line(cases),
        *_call_lines(cases),
        *_model_lines(cases),
        *_thread_lines(cases),
        *_cost_lines(record.get("costs") or {}),
    ]
    return [asdict(line) for line in lines]


def _grid_lines(cases, grid: str, mean: float, least: float, other: str = "", other_mean: float = 0.0) -> list[Line]:
    what = GRIDS[grid]
    why = missing(grid, cases)
    mine = of_grid(cases, grid)
    got = geometric_mean(c["ratio"] for c in mine) if why is None else None
    asked = bool(mine)
    lines = [at_least(f"{what}: geometric mean over the best peer", mean, got, why or "", asked=asked)]
    if other:
        ratios = [c["ratios"][other]["ratio"] for c in mine if other in c["ratios"]] if why is None else []
        complete = why is None and len(ratios) == len(mine)
        got = geometric_mean(ratios) if complete else None
        said = "" if complete else why or f"{other} did not answer everywhere"
        lines.append(at_least(f"{what}: over {other} run", other_mean, got, said, asked=asked))
    rated = [(c["ratio"], why_slow(c)) for c in mine] if why is None else []
    lines.append(least_line(f"{what}: least over the best peer", least, rated, why or "", asked))
    return lines


def _behind_line(cases) -> Line:
    """No case of float32 behind a peer, in the grids that have all of their sizes."""
    whys = [missing(grid, cases) for grid in FLOAT32_GRIDS]
    mine = [c for c in cases if c["grid"] in FLOAT32_GRIDS]
    rated = [] if any(whys) else [(c["ratio"], why_slow(c)) for c in mine]
    text = f"no case behind a peer in {', '.join(FLOAT32_GRIDS)}: least"
    return least_line(text, 1.0, rated, next((why for why in whys if why), ""), any(of_grid(cases, "wide")))


def _call_lines(cases) -> list[Line]:
    """`run` and the session's `run` over onnxruntime's, and the step with two inputs and two outputs."""
    mine = of_grid(cases, "calls")
    lines = []
    for T, limits in ((1, (5.0, 4.0)), (10, (2.0, 1.9))):
        chosen = [c for c in mine if c["T"] == T and c["inputs"] == 1]
        for (name, what), limit in zip(CALLS.items(), limits, strict=True):
            ratios = [c["contests"][name]["ratio"] for c in chosen if name in c["contests"]]
            whole = [c for c in cases_of(["calls"]) if c.T == T and c.inputs == 1]
            complete = len(ratios) == len(whole) and None not in ratios
            steps = "one step" if T == 1 else f"{T} steps"
            text = f"{what}, LSTM, GRU, RNN of 16 to 128, {steps}, over onnxruntime's run"
            why = "" if complete else f"{len(whole) - len(ratios)} of {len(whole)} cases were not measured"
            lines.append(at_least(text, limit, geometric_mean(ratios) if complete else None, why, asked=bool(chosen)))
    return [*lines, _two_line(mine)]


def _two_line(cases) -> Line:
    """At most 2.2 times the step of one input and one output, or 0.8 us."""
    text = "a step with two inputs and two outputs (LSTM 16) over one of each, or at most 0.8 us"
    times = {c["id"]: c["results"].get("fastrnn", {}).get("median_ns") for c in cases}
    one, two = times.get("calls/lstm-16"), times.get("calls/lstm-16-two")
    if one is None or two is None:
        return Line(text, 2.2, None, None, "x", "not run", True, bool(cases))
    return Line(text, 2.2, two / one, two <= 800 or two <= 2.2 * one, "x", f"{two / 1000:.2f} us", True)


def _share_line(cases) -> Line:
    text = f"share of the roofline, H >= {SHARE_FROM}: least"
    wanted = {c.id for c in cases_of(SHARE_GRIDS) if c.H >= SHARE_FROM}
    mine = [c for c in cases if c["id"] in wanted and c["share"] is not None]
    if len(mine) < len(wanted):
        asked = any(c["id"] in wanted for c in cases)
        return at_least(text, 0.8, None, f"{len(wanted) - len(mine)} of {len(wanted)} cases have no share", "", asked)
    worst = min(mine, key=lambda c: c["share"])
    low = sum(c["share"] < 0.8 for c in mine)
    return at_least(text, 0.8, worst["share"], f"{worst['id']}; {low} of {len(mine)} are below", "")


def _model_lines(cases) -> list[Line]:
    wanted = [
        ("Silero VAD, one stream", "models/silero_vad_v5", 4.0),
        ("Silero VAD, 32 streams", "models/silero_vad_v5-b32", 4.5),
        ("GTCRN, one frame", "models/gtcrn", 6.0),
        ("DTLN stage 1, one frame", "models/dtln_1", 1.6),
        ("DTLN stage 2, one frame", "models/dtln_2", 1.5),
    ]
    found = {c["id"]: c for c in cases}
    lines = []
    for what, name, limit in wanted:
        case = found.get(name)
        text = f"{what}, over the best peer"
        if case is None or case["ratio"] is None:
            why = "not run" if case is None else case["verdict"]
            lines.append(at_least(text, limit, None, why, asked=case is not None))
        else:
            lines.append(at_least(text, limit, case["ratio"], f"against {case['best_peer']}"))
    return lines


def _thread_lines(cases) -> list[Line]:
    texts = ("two threads over one: least", "two threads over one, LSTM 512 from batch 16 up: least")
    why = missing("threads", cases)
    if why is not None:
        asked = any(c["grid"] == "threads" for c in cases)
        return [at_least(text, limit, None, why, asked=asked) for text, limit in zip(texts, (1.0, 1.7), strict=True)]
    mine = [c for c in cases if c["grid"] == "threads"]
    large = [c for c in mine if c["H"] >= 512 and c["batch"] >= 16]
    lines = []
    for text, limit, chosen in zip(texts, (1.0, 1.7), (mine, large), strict=True):
        worst = min(chosen, key=lambda c: c["ratio"])
        lines.append(at_least(text, limit, worst["ratio"], worst["id"]))
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
