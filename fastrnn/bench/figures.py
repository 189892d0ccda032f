"""Arithmetic of the benchmark: quantiles, ratios, means, shares of the roofline. Knows names of engines and no clock.

Everything here works on the plain dicts of the JSON record, so that a file from elsewhere can be judged again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from . import entrants

FASTRNN = "fastrnn"
PLAIN = "fastrnn-plain"  # the rows of a pool's call in lock-step: what a pool is compared with, and no peer
MEASURED = ("fastrnn", "fastrnn-2t")  # whose times are divided into the peers'
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
# Products of an instruction over those of a float32 multiply-add with the same vectors, by the active instruction set.
# AMX has a unit of its own, and AVX2 multiplies bytes in three instructions: no such number bounds them.
_WIDE = {entrants.FLOAT32: 1, entrants.BFLOAT16: 1}
_DOT = {**_WIDE, entrants.INT8: 4, entrants.INT8_A16: 2}
PRODUCTS = {"avx512_vnni": _DOT, "avx_vnni": _DOT, "avx512": _WIDE, "avx2": _WIDE}
LEVELS = ("L1", "L2", "L3", "memory")


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile (0..1) of non-empty values, linear between neighbours."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def geometric_mean(values: Iterable[float]) -> float | None:
    """Geometric mean of positive numbers; None of none."""
    logs = [math.log(v) for v in values]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def summary(rounds: Sequence[Mapping]) -> dict:
    """The figures of one engine on one case, in nanoseconds a call.

    rounds : what a worker sent for each: `batch` calls a sample, `ns` a sample, `cpu_ns` and `wall_ns` of the round.

    Returns median_ns (median of the rounds' medians, so that one bad round counts once), p99_ns and quantiles over all
    samples, the rounds' own medians and 99th percentiles, calls, and cpu_share: CPU time over wall time; one engine
    with one thread on a free core has 1.0, and less where neighbours took the core.
    """
    medians, tails, samples = [], [], []
    for r in rounds:
        each = [ns / r["batch"] for ns in r["ns"]]
        medians.append(statistics.median(each))
        tails.append(quantile(each, 0.99))
        samples += each
    wall = sum(r["wall_ns"] for r in rounds)
    return {
        "median_ns": statistics.median(medians),
        "p99_ns": quantile(samples, 0.99),
        "quantiles": {str(q): quantile(samples, q) for q in QUANTILES},
        "rounds": [{"median_ns": m, "p99_ns": t} for m, t in zip(medians, tails, strict=True)],
        "batch": rounds[0]["batch"],
        "calls": sum(r["batch"] * len(r["ns"]) for r in rounds),
        "cpu_share": sum(r["cpu_ns"] for r in rounds) / wall if wall else None,
    }


def paired_ratio(ours: Mapping, theirs: Mapping) -> dict:
    """How many times faster we are: the median over rounds of their median / ours in the same round, and quartiles.

    Rounds lie milliseconds apart, so a clock that drifts over the run changes both sides of each quotient.
    """
    pairs = zip(ours["rounds"], theirs["rounds"], strict=False)
    quotients = [t["median_ns"] / o["median_ns"] for o, t in pairs]
    low, middle, high = (quantile(quotients, q) for q in (0.25, 0.5, 0.75))
    return {"ratio": middle, "low": low, "high": high}


def level_of(footprint: int, caches: Mapping[str, int]) -> str:
    """The smallest level ("L1" "L2" "L3" "memory") that holds `footprint` bytes; caches: level -> bytes."""
    for level in LEVELS[:-1]:
        if level in caches and footprint <= caches[level]:
            return level
    return "memory"


def least_ns(work: Mapping, level: str, roofline: Mapping, threads: int = 1) -> tuple[float, str]:
    """(least time of the work in ns, what bounds it: "fma" or the level).

    work : flops, bytes; roofline : "fma" flops a second and a level's bytes a second, of one thread.
    """
    compute = 1e9 * work["flops"] / (roofline["fma"] * threads)
    reading = 1e9 * work["bytes"] / (roofline[level] * threads)
    return (compute, "fma") if compute >= reading else (reading, level)


def judge(case: dict) -> None:
    """Add to a case's record what follows from its results: best peer, ratios, roofline share, contests, verdict.

    ratio, ratios, best_peer : of fastrnn in float32, against the peers in float32.
    contests : the same for each reduced precision, forced instruction set and other way to call fastrnn that took part,
    by its name.
    verdict : "wins", "loses" (some peer is faster), "alone" (no peer answered), "no answer" (fastrnn did not run it),
    "peers only" (fastrnn was not asked), or "wrong" (an answer differed, ours or a peer's).
    """
    results = case["results"]
    timed = {name: r for name, r in results.items() if r["status"] == "ok" and "median_ns" in r}
    mine = next((name for name in MEASURED if name in results), None)
    case.update(best_peer=None, ratio=None, ratios={}, share=None, bound=None, least_ns=None)
    rivals = [name for name in timed if name not in (mine, PLAIN) and is_rival(name, entrants.FLOAT32)]
    if rivals:
        case["best_peer"] = fastest(timed, rivals)
    if mine in timed:
        shown = [name for name in timed if name in (*rivals, PLAIN)]
        case["ratios"] = {name: paired_ratio(timed[mine], timed[name]) for name in shown}
        if rivals:
            case["ratio"] = case["ratios"][case["best_peer"]]["ratio"]
        if case.get("work") and case.get("roofline"):
            threads = case.get("threads", 1)
            least, bound = least_ns(case["work"], case["level"], case["roofline"], threads)
            case.update(least_ns=least, bound=bound, share=least / timed[mine]["median_ns"])
    case["contests"] = contests(timed)
    add_shares(case, timed)
    ratios = [case["ratio"], *(c["ratio"] for name, c in case["contests"].items() if entrants.find(name).isa is None)]
    ratios = [ratio for ratio in ratios if ratio is not None]
    if any(r["status"] == "wrong" for r in results.values()):
        case["verdict"] = "wrong"
    elif mine is None:
        case["verdict"] = "peers only"
    elif mine not in timed:
        case["verdict"] = "no answer"
    elif not ratios:
        case["verdict"] = "alone"
    else:
        case["verdict"] = "wins" if min(ratios) >= 1 else "loses"


def add_shares(case: Mapping, timed: Mapping[str, Mapping]) -> None:
    """Add to each contest with the active instruction set its share of what the machine allows, and what bounds it: a
    level of memory, or "dot" for products; None without a measurement.

    The least time is the larger of that to read the weights and, if `PRODUCTS` has the instruction set, that of the
    products. Paced calls have none: their caches are cold.
    """
    roofline, work, levels = (case.get(key) or {} for key in ("roofline", "work", "levels"))
    for name, contest in case["contests"].items():
        who = entrants.find(name)
        contest.update(share=None, bound=None)
        level = levels.get(who.precision)
        if who.isa or not work or level not in roofline or case.get("pause_ms"):
            continue
        rate = PRODUCTS.get(case.get("isa", ""), {}).get(who.precision)
        least = {
            "flops": work["flops"] / rate if rate else 0,
            "bytes": work["bytes"] * entrants.WEIGHT_SHARE[who.precision],
        }
        ns, bound = least_ns(least, level, roofline, case.get("threads", 1))
        contest.update(share=ns / timed[name]["median_ns"], bound="dot" if bound == "fma" else bound)


def is_rival(name: str, precision: str) -> bool:
    """Whether a precision of fastrnn is measured against this entrant: peers in float32 for float32, peers in any
    reduced precision for a reduced one; and a fastrnn with other threads, in the grid `threads`."""
    who = entrants.find(name)
    if who.own:
        return precision == entrants.FLOAT32 and who.threads is not None
    return (who.precision == entrants.FLOAT32) == (precision == entrants.FLOAT32)


def fastest(timed: Mapping[str, Mapping], names: Sequence[str]) -> str:
    """Of these names, the one with the least median."""
    return min(names, key=lambda name: timed[name]["median_ns"])


def contests(timed: Mapping[str, Mapping]) -> dict[str, dict]:
    """name of a fastrnn in reduced precision, with a forced instruction set or called in another way -> best_peer,
    ratio to it (None without a peer), and ratios, which has every other entrant but those of other instruction sets."""
    found = {}
    for name, mine in timed.items():
        who = entrants.find(name)
        if not who.own or not (who.precision != entrants.FLOAT32 or who.isa or who.way):
            continue
        others = [o for o in timed if o != name and (not entrants.find(o).own or entrants.find(o).isa == who.isa)]
        others = [o for o in others if o != PLAIN and entrants.find(o).threads is None]
        rivals = [o for o in others if is_rival(o, who.precision)]
        ratios = {o: paired_ratio(mine, timed[o]) for o in others}
        best = fastest(timed, rivals) if rivals else None
        found[name] = {"best_peer": best, "ratio": ratios[best]["ratio"] if best else None, "ratios": ratios}
    return found


def grid_figures(cases: Sequence[Mapping]) -> dict:
    """What a grid comes to: geometric mean and least of the ratios to the best peer, means over each; least share.

    Cases without a ratio are counted (`without`), so a mean over fewer cases can't pass for the whole. `contests` has
    the same by the name of each reduced precision and forced instruction set.
    """
    shares = [c for c in cases if c["share"] is not None]
    lowest = min(shares, key=lambda c: c["share"], default=None)
    names = dict.fromkeys(name for c in cases for name in c.get("contests", {}))
    found = {
        "cases": len(cases),
        "loses": sum(c["verdict"] == "loses" for c in cases),
        **means([(c["id"], c) for c in cases]),
        "least_share": None if lowest is None else {"share": lowest["share"], "case": lowest["id"]},
    }
    empty = {"ratio": None, "ratios": {}}
    found["contests"] = {n: means([(c["id"], c.get("contests", {}).get(n, empty)) for c in cases]) for n in names}
    return found


def means(contests: Sequence[tuple[str, Mapping]]) -> dict:
    """Of contests with the ids of their cases: geometric mean and least of the ratio, means over each entrant, and how
    many have no ratio."""
    rated = [(name, c) for name, c in contests if c["ratio"] is not None]
    ratios = [c["ratios"] for _, c in contests]
    others = sorted({other for each in ratios for other in each})
    worst = min(rated, key=lambda pair: pair[1]["ratio"], default=None)
    return {
        "without": len(contests) - len(rated),
        "geometric_mean": geometric_mean(c["ratio"] for _, c in rated),
        "least": None if worst is None else {"ratio": worst[1]["ratio"], "case": worst[0]},
        "against": {o: geometric_mean(each[o]["ratio"] for each in ratios if o in each) for o in others},
    }


def difference(got, expected, tolerance: float) -> tuple[float, bool]:
    """(largest |got - expected|, whether every element is within tolerance * (1 + |expected|)).

    Compared as flat arrays of equal size; inf and False where sizes differ or one has a NaN or infinity.
    """
    import numpy as np

    got, expected = np.asarray(got, np.float64).ravel(), np.asarray(expected, np.float64).ravel()
    if got.size != expected.size or not np.all(np.isfinite(got)) or not np.all(np.isfinite(expected)):
        return math.inf, False
    gap = np.abs(got - expected)
    return float(gap.max(initial=0.0)), bool(np.all(gap <= tolerance * (1 + np.abs(expected))))
