"""`fastrnn bench`: all engines take turns on the same cases; ratios, roofline shares, targets; or compare two runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import fastrnn
from fastrnn import bench

from .output import print_json, print_line, print_pairs, print_table, size

EXAMPLE = """\
example:
  fastrnn bench                                       the default grids; about ten minutes
  fastrnn bench --grid step --case 'step/lstm-*'      the cases whose name matches
  fastrnn bench --grid step --isa avx2 --json avx2.json
  fastrnn bench --compare before.json after.json

Each engine runs in its own process, and all engines of a case take turns in short rounds, so that anything that slows
down the machine slows down all of them. Engines that are not installed are left out: pip install 'fastrnn[bench]'.
"""
ENGINE_TITLES = {"ort": "ort run", "ort-iobinding": "ort bound", "fastrnn-2t": "2 threads", "fastrnn-1t": "1 thread"}
VERDICTS = {"loses": "LOSES", "wrong": "WRONG ANSWER", "no answer": "NO ANSWER", "alone": "no peer"}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    grids = "; ".join(f"{name}: {text}" for name, text in bench.GRIDS.items())
    parser.add_argument(
        "--grid",
        action="append",
        metavar="NAME",
        choices=[*bench.GRIDS, "all"],
        help=f"the cases to run, may be repeated (default: {' '.join(bench.DEFAULT_GRIDS)}). {grids}; all: all but "
        "tiny*",
    )
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only cases whose name contains or matches this (step/lstm-*); may be repeated",
    )
    parser.add_argument(
        "--engines",
        metavar="LIST",
        type=engine_list,
        help=f"comma-separated, from {', '.join(bench.ENGINES)} (default: all)",
    )
    parser.add_argument("--rounds", type=positive, default=20, help="rounds per case and engine (default: 20)")
    parser.add_argument(
        "--round-ms", type=positive_float, default=20.0, metavar="MS", help="length of a round (default: 20 ms)"
    )
    parser.add_argument("--threads", type=positive, default=1, help="threads per engine (default: 1)")
    parser.add_argument("--isa", help="force this instruction set for fastrnn (FASTRNN_ISA)")
    parser.add_argument(
        "--models",
        action="append",
        metavar="FOLDER",
        help="where the grid `models` looks for files; may be repeated (default: examples and ../shared/models)",
    )
    parser.add_argument("--no-costs", action="store_true", help="don't measure import, load and bytes per stream")
    parser.add_argument(
        "--json", metavar="FILE", help="write the whole record to this file; - prints it to stdout and nothing else"
    )
    parser.add_argument(
        "--compare", nargs=2, metavar=("BEFORE", "AFTER"), help="compare two records of --json instead of running"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def engine_list(text: str) -> tuple[str, ...]:
    """ "fastrnn,ort" -> the names, each a known one."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in bench.ENGINES]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"expected names of {', '.join(bench.ENGINES)}, got {text!r}")
    return names


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    """Run or compare. Returns 0, or 1 if an answer was wrong or fastrnn gave none."""
    if args.compare:
        return compare(args)
    options = bench.Options(
        grids=chosen_grids(args.grid),
        patterns=tuple(args.case),
        engines=args.engines or tuple(bench.ENGINES),
        rounds=args.rounds,
        round_ns=max(1, int(args.round_ms * 1e6)),
        # Short rounds are for trying out the benchmark; batches and trials shrink with them.
        batch_ns=max(1, min(20_000, int(args.round_ms * 1e6 / 10))),
        trial_ns=max(1, min(4_000_000, int(args.round_ms * 1e6))),
        threads=args.threads,
        isa=args.isa,
        folders=tuple(args.models or default_folders()),
        costs=not args.no_costs,
    )
    record = run_with_progress(options)
    if args.json == "-":
        print_json(record)
    else:
        show(record)
        if args.json:
            bench.save(record, args.json)
            print_line(f"record written to {args.json}")
    failed = [c["id"] for c in record["cases"] if c["verdict"] in ("wrong", "no answer")]
    if failed:
        print_line(f"error: {len(failed)} cases have a wrong or missing answer: {', '.join(failed)}", "red", sys.stderr)
        return 1
    return 0


def chosen_grids(names: Sequence[str] | None) -> tuple[str, ...]:
    """The requested grids, each once, in the order of the table of grids."""
    if not names:
        return bench.DEFAULT_GRIDS
    if "all" in names:
        return tuple(name for name in bench.GRIDS if not name.startswith("tiny") or name in names)
    return tuple(name for name in bench.GRIDS if name in names)


def default_folders() -> list[str]:
    """The folders with model files: examples of the source tree, the models next to it, and examples in this folder."""
    root = Path(fastrnn.__file__).resolve().parent.parent
    places = [root / "examples", root.parent / "shared" / "models", Path("examples")]
    found = dict.fromkeys(place.resolve() for place in places if place.is_dir())
    return [str(place) for place in found]


def run_with_progress(options) -> dict:
    """Run, with a progress bar on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        return bench.run(options)
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.BarColumn(30),
        bars.TaskProgressColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        # The speed over a minute, because cases differ and opening one takes longer than a round.
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.description}"),
    )
    console = Console(stderr=True)
    # Twice per second: drawing takes time from the core that is measured.
    with bars.Progress(
        *columns, console=console, transient=True, speed_estimate_period=60, refresh_per_second=2
    ) as progress:
        task = progress.add_task("starting", total=None)
        return bench.run(
            options, lambda done, total, text: progress.update(task, completed=done, total=total, description=text)
        )


def show(record: Mapping) -> None:
    """Print the whole record for a person: machine, one table per grid, targets."""
    print_pairs(header(record))
    for grid, figures in record["grids"].items():
        cases = [c for c in record["cases"] if c["grid"] == grid]
        print_line()
        print_line(f"{grid}: {bench.GRIDS[grid]}", style="bold cyan")
        columns, rows = grid_table(cases)
        print_table(columns, rows, numbers=[name for name in columns if name not in ("case", "best peer", "bound", "")])
        for line in grid_lines(cases, figures):
            print_line(line)
    print_line()
    print_line("targets", style="bold cyan")
    asked = [line for line in record["targets"] if line["asked"]]
    if asked:
        print_table(("target", "wanted", "reached", "", "note"), target_rows(asked), numbers=("wanted", "reached"))
    absent = [n for n in bench.PEERS if record["engines"].get(n, {}).get("status") != "ok"]
    if absent and asked:
        print_line(f"best peer: among those that ran; {', '.join(absent)} did not run", style="yellow")
    others = len(record["targets"]) - len(asked)
    if others:
        print_line(f"{others} of {len(record['targets'])} targets belong to grids or cases that did not run")


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
    lines = ["microseconds per call, median of round medians; ratio: best peer / fastrnn, median of rounds"]
    if figures["geometric_mean"] is not None:
        over = ", ".join(f"{ENGINE_TITLES.get(n, n)} {mean:.2f}x" for n, mean in figures["against"].items())
        least = figures["least"]
        lines.append(
            f"geometric mean {figures['geometric_mean']:.2f}x over the best peer ({over}); "
            f"least {least['ratio']:.2f}x, {least['case']}; {figures['loses']} of {figures['cases']} cases lose"
        )
    if figures["without"]:
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
    """A ratio as 1.25x, a share as 80%, or a number with its unit."""
    if unit == "":
        return f"{value:.0%}"
    return f"{value:.2f}x" if unit == "x" else f"{value:.1f} {unit}"


def compare(args: argparse.Namespace) -> int:
    """Print two records side by side. Returns 0."""
    found = bench.compare(*(bench.load(path) for path in args.compare))
    if args.json == "-":
        print_json(found)
        return 0
    print_pairs([("differs" if i == 0 else "", line) for i, line in enumerate(found["differences"])])
    rows = []
    for line in found["cases"]:
        ratios = ("-" if line[key] is None else f"{line[key]:.2f}x" for key in ("before_ratio", "after_ratio"))
        factors = ("-" if line[key] is None else f"{line[key]:.2f}" for key in ("speedup", "change"))
        times = (micro(line["before_ns"]), micro(line["after_ns"]))
        rows.append([line["id"], *times, next(factors), *ratios, next(factors), line["verdict"]])
    columns = ("case", "before us", "after us", "speedup", "ratio before", "ratio after", "change", "")
    print_table(columns, rows, numbers=columns[1:-1])
    for grid, figures in found["grids"].items():
        if figures["speedup"] is not None:
            change = "" if figures["change"] is None else f", ratio to the best peer times {figures['change']:.2f}"
            text = (
                f"{grid}: {figures['compared']} of {figures['cases']} cases, speedup {figures['speedup']:.2f}{change}"
            )
            print_line(text)
    if args.json:
        bench.save(found, args.json)
        print_line(f"comparison written to {args.json}")
    return 0
