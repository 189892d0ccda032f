"""`fastrnn plan-capacity`: machines, memory, network and checkpoints for live streams."""

from __future__ import annotations

import argparse

import fastrnn

from . import options
from .output import count, print_json, print_line, print_pairs, print_table, size

EXAMPLE = """\
example:
  fastrnn plan-capacity model.fastrnn --streams 100000 --rate 100
  fastrnn plan-capacity model.fastrnn --streams 1e6 --rate 50 --cores 64 --memory 256 --network 25 --precision int8
  fastrnn plan-capacity model.fastrnn --streams 20000 --rate 31.25 --measure --json | jq .machines

Nothing is run for the plan unless you pass --measure: the time of a step is predicted from the limits of this machine,
which are measured once, in about a second, and kept in the user's cache. docs/guide/capacity.md has the formulas.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_number = parser.add_argument
    add_number("model", metavar="MODEL", help="a model file")
    add_number("--streams", metavar="N", type=_whole, required=True, help="live streams")
    add_number("--rate", metavar="HZ", type=options.positive, required=True, help="steps a second of each stream")
    add_number("--cores", metavar="N", type=_whole, default=32, help="cores of a machine (default: 32)")
    add_number("--memory", metavar="GIB", type=options.positive, default=64.0, help="GiB of a machine (default: 64)")
    add_number(
        "--network", metavar="GBIT", type=options.positive, default=10.0, help="Gbit/s of a machine (default: 10)"
    )
    add_number(
        "--headroom", metavar="X", type=options.share, default=0.3,
        help="share of each that stays free, for peaks (default: 0.3)",
    )  # fmt: skip
    add_number(
        "--efficiency", metavar="X", type=options.positive, default=0.8,
        help="share of the pool's own speed that is left behind protocol and network; 1 in a process of your own "
        "(default: 0.8)",
    )  # fmt: skip
    add_number(
        "--checkpoint-seconds", metavar="S", type=options.share, default=1.0,
        help="seconds between two checkpoints; 0: none (default: 1)",
    )  # fmt: skip
    add_number(
        "--spare", metavar="N", type=options.whole(0), default=1,
        help="machines that may be lost without a loss of capacity (default: 1)",
    )  # fmt: skip
    add_number("--measure", action="store_true", help="measure the steps of a pool here, and plan with that")
    options.add_loading(parser)
    options.add_common(parser)


def _whole(text: str) -> int:
    """ "100000" or "1e5"."""
    try:
        number = float(text)
    except ValueError:
        number = 0.5
    if not 1 <= number <= 1e12 or number != int(number):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 1e12, got {text!r}")
    return int(number)


def run(args: argparse.Namespace) -> int:
    """Plan, and print. Returns 0."""
    found = fastrnn.plan_capacity(
        options.load(args),
        args.streams,
        args.rate,
        cores=args.cores,
        memory=args.memory,
        network=args.network,
        headroom=args.headroom,
        efficiency=args.efficiency,
        checkpoint_seconds=args.checkpoint_seconds,
        spare=args.spare,
        measure=args.measure,
    )
    if args.json:
        print_json({"ok": True, **found.as_dict()})
    else:
        show(found, args)
    return 0


def show(found: fastrnn.CapacityPlan, args: argparse.Namespace) -> None:
    """Print the plan for a person."""
    print_line(f"{args.model}: {count(found.streams)} streams, {found.rate:g} steps a second each", style="bold cyan")
    needs = f"cores {found.by_cpu:.2f}, memory {found.by_memory:.2f}, network {found.by_network:.2f}"
    step = f"{found.row_ns / 1e3:.3g} us ({found.source})"
    wire = f"{bits(found.network_in)} in, {bits(found.network_out)} out"
    rows = [
        ("machines", f"{count(found.machines)}, {args.spare} of them spare; {found.bound} bound it"),
        ("", f"for each need alone: {needs}"),
        ("a core", f"{count(found.streams_per_core)} streams; a step takes {step}"),
        ("a machine", f"{size(found.memory_bytes)} of memory; {wire}"),
        ("a stream", f"{size(found.state_bytes)} of state"),
    ]
    if args.checkpoint_seconds:
        text = f"{size(found.checkpoint_bytes)} every {args.checkpoint_seconds:g} s, {bits(found.checkpoint_rate)}"
        rows.append(("checkpoints", f"{text} to the store, of all machines"))
        text = f"{count(found.lost_streams)} streams, {count(found.lost_steps)} steps again"
        if found.recovery_seconds is not None:
            text += f": {found.recovery_seconds:.2g} s on what the others have free"
        rows.append(("a lost machine", text))
    print_pairs(rows)
    print_line()
    measured = any(c.measured_ns for c in found.costs)
    columns = ("rows of a step", "predicted", "measured")[: 2 + measured]
    table = [
        (str(c.rows), f"{c.predicted_ns / 1e3:.3g} us", f"{(c.measured_ns or 0) / 1e3:.3g} us")[: 2 + measured]
        for c in found.costs
    ]
    print_table(columns, table, numbers=columns)


def bits(rate: float) -> str:
    """Bytes a second as "1.2 Gbit/s"."""
    value = 8 * rate
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} Gbit/s"
