"""The tables of `fastrnn bench`, as text: what the command prints and docs/performance.md holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastrnn import bench

from .output import size

ENGINE_TITLES = {"ort": "ort run", "ort-iobinding": "ort bound", "fastrnn-2t": "2 threads", "fastrnn-1t": "1 thread"}

KINDS = ("lstm", "gru", "rnn")
ROUNDED = {"bf16", "int8", "int8-a16"}
VERDICTS = {"loses": "LOSES", "wrong": "WRONG ANSWER", "no answer": "NO ANSWER", "alone": "no peer"}


@dataclass(frozen=True)
class Table:
    """Columns and rows of text. name : which of a grid's tables it is, "" for the first; title : above it."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]


def numbers(table: Table) -> list[str]:
    """The columns that hold numbers."""
    return [name for name in table.columns if name not in ("case", "best peer", "bound", "")]


def header(record: Mapping) -> list[tuple[str, str]]:
    """Machine, engines, limits and settings as rows of label and text."""
    machine, settings, roofline = record["machine"], record["settings"], record["roofline"]
    caches = ", ".join(f"{level} {size(n)}" for level, n in machine["caches"].items())
    rows = [("machine", f"{machine['cpu']}; {caches}"), ("", f"{machine['system']}, Python {machine['python']}")]
    if machine["load"] and machine["load"][0] > 0.5:
        rows.append(
            ("busy", f"the machine's load was {machine['load'][0]:.1f} at the start: the figures are less precise")
        )
    rows += [("engines" if i == 0 else "", line) for i, line in enumerate(engine_lines(record["engines"]))]
    if roofline is None:
        rows.append(("limits", "not measured: " + record["engines"].get("roofline", {}).get("text", "no probe")))
    else:
        rates = [f"{level} {rate / 1e9:.0f} GB/s" for level, rate in roofline.items() if level in LEVELS]
        rows.append(("limits", f"{roofline['fma'] / 1e9:.0f} GFLOP/s ({roofline['isa']}), reads {', '.join(rates)}"))
    each = f"{settings['rounds']} rounds of {settings['round_ns'] / 1e6:g} ms"
    rows.append(("run", f"{each}, {settings['threads']} thread(s) per engine, {record['seconds']:.0f} s in all"))
    return rows


LEVELS = ("L1", "L2", "L3", "memory")


def engine_lines(engines: Mapping) -> list[str]:
    """One line per engine or library; those with the same text share a line."""
    by_text: dict[str, list[str]] = {}
    for name, engine in engines.items():
        if name != "roofline":
            by_text.setdefault(engine["text"], []).append(name)
    return [f"{', '.join(names)}: {text}" for text, names in by_text.items()]


def grid_table(cases: Sequence[Mapping]) -> tuple[list[str], list[list[str]]]:
    """Returns (columns, rows): microseconds per call of each engine, p99, best peer, ratio, roofline share."""
    names = list(dict.fromkeys(name for c in cases for name in c["results"]))
    mine = next((n for n in ("fastrnn", "fastrnn-2t") if n in names), None)
    names.sort(key=lambda name: name != mine)
    columns = ["case", *(ENGINE_TITLES.get(n, n) for n in names), "p99", "best peer", "ratio", "roofline", "bound", ""]
    rows = []
    for case in cases:
        own = case["results"].get(mine, {})
        rows.append(
            [
                case["id"].partition("/")[2],
                *(time_of(case["results"].get(name)) for name in names),
                micro(own.get("p99_ns")),
                ENGINE_TITLES.get(case["best_peer"], case["best_peer"] or "-"),
                "-" if case["ratio"] is None else f"{case['ratio']:.2f}x",
                "-" if case["share"] is None else f"{case['share']:.0%}",
                case["bound"] or "-",
                VERDICTS.get(case["verdict"], ""),
            ]
        )
    return columns, rows


def grid_tables(cases: Sequence[Mapping]) -> list[Table]:
    """The tables of a grid: one, or for a grid of precisions times, instruction sets and errors."""
    if all(case.get("same_bits") for case in cases):
        return [bits_table(cases)]
    contests = {short(name) for case in cases for name in case.get("contests", {})}
    if contests & ROUNDED:
        title = "microseconds per call; ratios: the fastest reduced precision of a peer over ours"
        tables = [times_table(cases, title), isas_table(cases), errors_table(cases)]
        return [means_table(cases), *tables] if all(case["kind"] in KINDS for case in cases) else tables
    if contests:
        return [times_table(cases, "microseconds per call; ratios: the peer over ours")]
    tables = [Table("", "", *grid_table(cases))]
    decided = any("decisions" in result for case in cases for result in case["results"].values())
    return [*tables, errors_table(cases)] if decided else tables


def entrants_of(cases: Sequence[Mapping]) -> list[str]:
    """Everyone that takes part with the active instruction set, in the order of the cases."""
    names = dict.fromkeys(name for case in cases for name in case["results"])
    return [name for name in names if "@" not in name]


def means_table(cases: Sequence[Mapping]) -> Table:
    """Geometric means over the sizes, by cell, rows and pause: each precision over float32 and over its best peer."""
    own = dict.fromkeys(name for c in cases for name in c["contests"] if "@" not in name)
    groups: dict[str, list[Mapping]] = {}
    for case in cases:
        pause = f", every {case['pause_ms']} ms" if case.get("pause_ms") else ""
        groups.setdefault(f"{case['kind'].upper()}, {case['batch']} rows{pause}", []).append(case)
    columns = ["cells", *(f"{short(n)} over float32" for n in own), *(f"{short(n)} over the best peer" for n in own)]
    rows = []
    for title, members in groups.items():
        cells = [title.replace(" 1 rows", " 1 row")]
        for against in ("fastrnn", None):
            for name in own:
                contests = [case["contests"][name] for case in members if name in case["contests"]]
                ratios = [c["ratios"].get(against or c["best_peer"], {}).get("ratio") for c in contests]
                cells.append(times(None if None in ratios else bench.geometric_mean(ratios)))
        rows.append(cells)
    return Table("means", "geometric means over the sizes", columns, rows)


def times_table(cases: Sequence[Mapping], title: str) -> Table:
    """Microseconds per call of each fastrnn and each peer, and how many times as fast as its best peer each is."""
    names = entrants_of(cases)
    own = [name for name in names if any(name in c["contests"] for c in cases)]
    columns = ["case", *(ENGINE_TITLES.get(n, n) for n in names), "best peer", *(f"{short(n)} ratio" for n in own), ""]
    rows = []
    for case in cases:
        contests = case["contests"]
        best = next((c["best_peer"] for c in contests.values() if c["best_peer"]), None)
        ratios = [contests[name]["ratio"] if name in contests else None for name in own]
        rows.append(
            [
                case["id"].partition("/")[2],
                *(time_of(case["results"].get(name)) for name in names),
                ENGINE_TITLES.get(best, best) if best else "-",
                *(times(ratio) for ratio in ratios),
                VERDICTS.get(case["verdict"], ""),
            ]
        )
    return Table("", title, columns, rows)


def isas_table(cases: Sequence[Mapping]) -> Table:
    """How many times as fast as fastrnn's own float32 each precision is, with each instruction set."""
    names = dict.fromkeys(name for case in cases for name in case["contests"] if short(name) != "fastrnn")
    isas = dict.fromkeys(name.partition("@")[2] for name in names)
    columns = ["case"]
    for isa in isas:
        columns += [f"{short(name)} {isa}".strip() for name in names if name.partition("@")[2] == isa]
    rows = []
    for case in cases:
        cells = []
        for isa in isas:
            base = f"fastrnn@{isa}" if isa else "fastrnn"
            for name in (n for n in names if n.partition("@")[2] == isa):
                ratio = case["contests"].get(name, {"ratios": {}})["ratios"].get(base, {}).get("ratio")
                cells.append(times(ratio) + noted(case["results"].get(name)))
        rows.append([case["id"].partition("/")[2], *cells])
    title = "times as fast as float32 with the same instruction set; *: held in float32"
    return Table("isas", title, columns, rows)


def errors_table(cases: Sequence[Mapping]) -> Table:
    """rms and largest error of everyone against the true answer."""
    names = entrants_of(cases)
    rows = []
    for case in cases:
        results = [case["results"].get(name) for name in names]
        compared: Mapping = next((r for r in results if r and r.get("steps")), {})
        size = f"{compared['size']:.2g}" if compared else "-"
        rows.append([case["id"].partition("/")[2], f"{compared.get('steps', 0)}", size, *map(error_of, results)])
    columns = ["case", "steps", "rms of the answer", *(ENGINE_TITLES.get(n, n) for n in names)]
    title = "error: rms, largest; of a classifier, how often it decides like the float net"
    return Table("errors", title, columns, rows)


def bits_table(cases: Sequence[Mapping]) -> Table:
    """Of each precision and instruction set, whether all ways to compute gave the same bits."""
    names = list(dict.fromkeys(name for case in cases for name in case["results"]))
    words = {"ok": "same", "wrong": "DIFFER", "refused": "refused"}
    rows = []
    for case in cases:
        cells = (words[case["results"][name]["status"]] if name in case["results"] else "-" for name in names)
        rows.append([case["id"].partition("/")[2], *cells])
    ways = {len(result.get("ways", ())) for case in cases for result in case["results"].values()}
    title = f"bits of {max(ways, default=0)} ways to compute; in reduced precision also of all instruction sets"
    return Table("", title, ["case", *names], rows)


def short(name: str) -> str:
    """fastrnn's column without its name: "int8" for "fastrnn-int8@avx2"."""
    return name.partition("@")[0].removeprefix("fastrnn-")


def times(ratio: float | None) -> str:
    """A ratio as 1.25x."""
    return "-" if ratio is None else f"{ratio:.2f}x"


def noted(result: Mapping | None) -> str:
    """A star if the model was held in another precision than was asked for."""
    return "*" if result is not None and result.get("note") else ""


def error_of(result: Mapping | None) -> str:
    """rms and largest error with two digits, and the share of right decisions; - without an answer."""
    if result is None or result.get("rms") is None:
        return "-"
    decisions = f", {result['decisions']:.1%}" if "decisions" in result else ""
    return f"{result['rms']:.1e}, {result['difference']:.1e}{decisions}"


def time_of(result: Mapping | None) -> str:
    """Microseconds, or one word that says why there are none."""
    if result is None:
        return "-"
    return micro(result["median_ns"]) if result["status"] == "ok" else result["status"]


def micro(ns: float | None) -> str:
    """Nanoseconds as microseconds with three significant digits."""
    if ns is None:
        return "-"
    us = ns / 1000
    return f"{us:.3f}" if us < 1 else f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:,.0f}"


def grid_lines(cases: Sequence[Mapping], figures: Mapping) -> list[str]:
    """The summary of a grid, and every missing or wrong answer with the reason."""
    timed = "microseconds per call, median of round medians; ratio: best peer / fastrnn, median of rounds"
    lines = [] if all(case.get("same_bits") for case in cases) else [timed]
    if figures["geometric_mean"] is not None:
        over = ", ".join(f"{ENGINE_TITLES.get(n, n)} {mean:.2f}x" for n, mean in figures["against"].items())
        least = figures["least"]
        lines.append(
            f"geometric mean {figures['geometric_mean']:.2f}x over the best peer ({over}); "
            f"least {least['ratio']:.2f}x, {least['case']}; {figures['loses']} of {figures['cases']} cases lose"
        )
    own = {name: found for name, found in figures["contests"].items() if found["least"] and "@" not in name}
    lines += [contest_line(name, found) for name, found in own.items()]
    if figures["without"] and not figures["contests"] and lines:
        lines.append(f"{figures['without']} of {figures['cases']} cases have no ratio")
    setups: dict[str, dict[str, None]] = {}
    for case in cases:
        for name, result in case["results"].items():
            if result["status"] != "ok":
                lines.append(f"{case['id']}: {name} {result['status']}: {shortened(result['reason'])}")
            elif len(result["trials"]) > 1:
                setups.setdefault(name, {})[result["setup"]] = None
    lines += [f"{name}: fastest set-up used: {' / '.join(found)}" for name, found in setups.items()]
    busy = [r["cpu_share"] for c in cases for r in c["results"].values() if r["status"] == "ok" and r["cpu_share"]]
    if busy and min(busy) < 0.9:
        lines.append(f"other processes used the core at times: in one case an engine got only {min(busy):.0%} of it")
    return lines


def contest_line(name: str, found: Mapping) -> str:
    """A precision of fastrnn in one line: means over each peer and over float32, and the least ratio."""
    others = ", ".join(f"{ENGINE_TITLES.get(n, n)} {times(mean)}" for n, mean in found["against"].items())
    least = found["least"]
    return (
        f"{name}: geometric mean {times(found['geometric_mean'])} over the best peer; "
        f"least {times(least['ratio'])}, {least['case']}; over {others}"
    )


def shortened(text: str, limit: int = 160) -> str:
    """The text on one line, cut if it is long; the record holds all of it."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[:limit].rstrip() + " ..."


def target_rows(targets: Sequence[Mapping]) -> list[list[str]]:
    """Target, wanted, reached, pass or FAIL, note."""
    rows = []
    for line in targets:
        sign = "<=" if line["at_most"] else ">="
        passed = {True: "pass", False: "FAIL", None: "not measured"}[line["ok"]]
        rows.append(
            [
                line["text"],
                f"{sign} {amount(line['limit'], line['unit'])}",
                "-" if line["got"] is None else amount(line["got"], line["unit"]),
                passed,
                line["note"],
            ]
        )
    return rows


def amount(value: float, unit: str) -> str:
    """A ratio as 1.25x, a share as 80%, a count, or a number with its unit."""
    if unit == "":
        return f"{value:.0%}"
    if unit == "cases":
        return f"{value:.0f}"
    return f"{value:.2f}x" if unit == "x" else f"{value:.1f} {unit}"
