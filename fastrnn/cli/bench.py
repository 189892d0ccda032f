"""`fastrnn bench`: all engines take turns on the same cases; ratios, roofline shares, targets; or compare two runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import fastrnn
from fastrnn import bench

from .bench_tables import grid_lines, grid_tables, header, micro, numbers, target_rows
from .output import print_json, print_line, print_pairs, print_table

EXAMPLE = """\
example:
  fastrnn bench                                       the default grids; about ten minutes
  fastrnn bench --grid step --case 'step/lstm-*'      the cases whose name matches
  fastrnn bench --grid step --isa avx2 --json avx2.json
  fastrnn bench --grid precision                      reduced precision, with each instruction set of this machine
  fastrnn bench --targets a.json b.json               the targets, from the records of two runs
  fastrnn bench --compare before.json after.json

Each engine runs in its own process, and all engines of a case take turns in short rounds, so that anything that slows
down the machine slows down all of them. Engines that are not installed are left out: pip install 'fastrnn[bench]'.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    grids = "; ".join(f"{name}: {text}" for name, text in bench.GRIDS.items() if name[:4] != "tiny")
    groups = "; ".join(f"{name} runs {', '.join(members)}" for name, members in bench.GROUPS.items())
    parser.add_argument(
        "--grid",
        action="append",
        metavar="NAME",
        choices=[*bench.GRIDS, *(name for name in bench.GROUPS if name not in bench.GRIDS), "all"],
        help=f"the cases to run, may be repeated (default: {' '.join(bench.DEFAULT_GRIDS)}). {grids}. {groups}; "
        "all: all of them",
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
    parser.add_argument(
        "--targets",
        nargs="*",
        metavar="RECORD",
        help="print only the table of targets: of this run, or of these records of --json together instead of running",
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
    if args.targets:
        show_targets(bench.merge([bench.load(path) for path in args.targets]))
        return 0
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
        if args.targets is None:
            show(record)
        else:
            show_targets(record)
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
    names = [grid for name in names for grid in bench.GROUPS.get(name, (name,))]
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
        for table in grid_tables(cases):
            if table.title:
                print_line(table.title, style="bold")
            print_table(table.columns, table.rows, numbers=numbers(table))
        for line in grid_lines(cases, figures):
            print_line(line)
    print_line()
    show_targets(record)


def show_targets(record: Mapping) -> None:
    """Print the table of targets, and what it can't say."""
    print_line("targets", style="bold cyan")
    asked = [line for line in record["targets"] if line["asked"]]
    if asked:
        print_table(("target", "wanted", "reached", "", "note"), target_rows(asked), numbers=("wanted", "reached"))
    ran = {name for case in record["cases"] for name in case["results"]}
    absent = [n for n in bench.PEERS if n not in ran and not any(name.startswith(f"{n}-") for name in ran)]
    if absent and any(case["best_peer"] for case in record["cases"]):
        print_line(f"best peer: among those that ran; {', '.join(absent)} did not run", style="yellow")
    others = len(record["targets"]) - len(asked)
    if others:
        print_line(f"{others} of {len(record['targets'])} targets belong to grids or cases that did not run")


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
