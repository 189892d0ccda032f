"""Two records side by side: what became faster or slower, in time and against the best peer."""

from __future__ import annotations

from collections.abc import Mapping

from .figures import MEASURED, geometric_mean

# A change of the ratio to the best peer that is worth a look. Both records' ratios were measured side by side with
# their peers, so a different machine or clock moves them little; the times themselves move with both.
NOTEWORTHY = 0.05


def compare(before: Mapping, after: Mapping) -> dict:
    """What changed from one record to another.

    Returns
    -------
    dict: cases, a list of dicts (id, grid, before_ns, after_ns: fastrnn's median a call; speedup: before / after;
    before_ratio, after_ratio: to the best peer of the same record; change: after_ratio / before_ratio; verdict:
    "better", "worse", "same", "only before", "only after", "no answer"); grids, the means of speedup and change
    a grid; differences, what of machine and settings is not the same.
    """
    old, new = ({c["id"]: c for c in record["cases"]} for record in (before, after))
    lines = [_line(name, old.get(name), new.get(name)) for name in dict.fromkeys([*old, *new])]
    grids = {}
    for grid in dict.fromkeys(line["grid"] for line in lines):
        mine = [line for line in lines if line["grid"] == grid]
        grids[grid] = {
            "speedup": geometric_mean(x["speedup"] for x in mine if x["speedup"] is not None),
            "change": geometric_mean(x["change"] for x in mine if x["change"] is not None),
            "compared": sum(x["speedup"] is not None for x in mine),
            "cases": len(mine),
        }
    return {"cases": lines, "grids": grids, "differences": _differences(before, after)}


def _line(name: str, old: Mapping | None, new: Mapping | None) -> dict:
    present = new if new is not None else old
    assert present is not None
    line = {"id": name, "grid": present["grid"], "speedup": None, "change": None}
    for key, case in (("before", old), ("after", new)):
        line[f"{key}_ns"] = None if case is None else _own_time(case)
        line[f"{key}_ratio"] = None if case is None else case["ratio"]
    if line["before_ns"] is not None and line["after_ns"] is not None:
        line["speedup"] = line["before_ns"] / line["after_ns"]
    if line["before_ratio"] is not None and line["after_ratio"] is not None:
        line["change"] = line["after_ratio"] / line["before_ratio"]
    line["verdict"] = _verdict(line, old, new)
    return line


def _verdict(line: Mapping, old: Mapping | None, new: Mapping | None) -> str:
    if old is None or new is None:
        return "only after" if old is None else "only before"
    measure = line["change"] if line["change"] is not None else line["speedup"]
    if measure is None:
        return "no answer"
    if measure >= 1 + NOTEWORTHY:
        return "better"
    return "worse" if measure <= 1 - NOTEWORTHY else "same"


def _own_time(case: Mapping) -> float | None:
    for name in MEASURED:
        result = case["results"].get(name)
        if result is not None and result["status"] == "ok":
            return result["median_ns"]
    return None


def _differences(before: Mapping, after: Mapping) -> list[str]:
    """Lines such as "cpu: A -> B" for all that makes times hard to compare."""
    pairs = {
        "cpu": (before["machine"]["cpu"], after["machine"]["cpu"]),
        "isa": (before["machine"]["isa"]["active"], after["machine"]["isa"]["active"]),
        "forced isa": (before["settings"]["isa"], after["settings"]["isa"]),
        "threads": (before["settings"]["threads"], after["settings"]["threads"]),
    }
    names = dict.fromkeys([*before["engines"], *after["engines"]])
    for name in names:
        pairs[name] = tuple(record["engines"].get(name, {}).get("text", "not run") for record in (before, after))
    return [f"{what}: {a} -> {b}" for what, (a, b) in pairs.items() if a != b]
