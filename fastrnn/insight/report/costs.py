"""The page of a profile."""

from __future__ import annotations

from ..profiling import OpProfile, Profile
from . import figures
from .names import common_path, shortened
from .page import Page

SHOWN = 12  # ops in a figure; the table lists all


def page_of(found: Profile, name: str | None = None) -> Page:
    """What the model costs, what bounds it, how it grows."""
    page = Page(f"What {name or found.model} costs", _lead(found))
    gap = found.predicted_ns / found.measured_ns - 1
    most = max(found.streams, key=lambda pair: pair[1], default=None)
    tiles = [
        (micro(found.measured_ns), "per call, measured (median)"),
        (f"{micro(found.predicted_ns)} ({gap:+.0%})", "predicted by the performance model"),
        (f"{found.share:.0%}", f"of the roofline, which allows {micro(found.least_ns)}"),
    ]
    if most is not None:
        tiles.append(
            (
                f"{most[1]:,}",
                f"real-time streams per core at one step every {found.hop_ms:g} ms, {most[0]} rows per call",
            )
        )
    tiles.append((data(found.weight_bytes), f"of weights, read from {found.level}"))
    page.tiles(tiles)
    _ops(page, found)
    _growth(page, found)
    _machine(page, found)
    page.section("What each figure means")
    page.definitions(list(found.definitions.items()))
    return page


def _lead(found: Profile) -> str:
    steps = "1 step" if found.steps == 1 else f"{found.steps:,} steps"
    what = {
        "step": f"One step of {_rows(found.batch)}, called from Python.",
        "push": f"{steps} of {_rows(found.batch)} in one call.",
        "run": f"A run of {steps}, batch {found.batch}.",
    }[found.call]
    return f"{what} {found.threads} thread{'s' if found.threads > 1 else ''}, {found.limits.isa}, float32."


def _rows(batch: int) -> str:
    return "one stream" if batch == 1 else f"{batch} streams in lock-step"


def _slowest(found: Profile) -> list[OpProfile]:
    return sorted(found.ops, key=lambda op: -op.measured_ns)[:SHOWN]


def _ops(page: Page, found: Profile) -> None:
    page.section(
        "Where the time goes",
        "Each op of the plan: floating point operations, bytes of weights and of other data that it touches, what "
        "bounds it most, predicted and measured time, and the share of the measured time that the machine's limits "
        "alone would take.",
    )
    path = common_path([op.node for op in found.ops])
    names = {id(op): op.node[len(path) :] for op in found.ops}
    _ops_drawn(page, found, names)
    if path:
        page.text(f"Names of nodes begin with {path}")
    _ops_listed(page, found, names)


def _ops_drawn(page: Page, found: Profile, names: dict[int, str]) -> None:
    """The slowest ops beside their predictions, and all with weights under the roofline."""
    limits, ops = found.limits, _slowest(found)
    total = sum(op.measured_ns for op in found.ops) or 1.0
    heavy = [op for op in found.ops if op.cost.flops and op.cost.weight_bytes and op.measured_ns > 0]
    sizes = dict(limits.caches)
    levels = [(n, limits.read_rate(sizes[n] / 2)) for n in ("L1", "L2") if n in sizes]
    levels += [("L3", limits.read_rate(4 * sizes.get("L2", 1 << 20)))] if "L3" in sizes else []
    levels.append(("memory", limits.read[-1][1]))
    points = [
        (op.node, op.cost.flops / op.cost.weight_bytes, 1e9 * op.cost.flops / op.measured_ns, op.measured_ns / total)
        for op in heavy
    ]
    labels = [f"{op.kind}  {shortened(names[id(op)], 22)}" for op in ops]
    pairs = [
        (
            figures.paired_bars(
                labels, [op.cost.ns / 1e3 for op in ops], [op.measured_ns / 1e3 for op in ops],
                ("predicted", "measured"), "microseconds per call",
            ),
            f"The {len(ops)} slowest of {len(found.ops)} ops.",
        )
    ]  # fmt: skip
    if points:
        pairs.append(
            (
                figures.roofline(limits.fma, levels, points),
                (
                    "Each dot is an op with weights; a larger one takes more of the time. The slanted lines are how "
                    "fast weights can be read, the flat one how fast multiply-adds can be done."
                ),
            )
        )
    page.figures(pairs)


def _ops_listed(page: Page, found: Profile, names: dict[int, str]) -> None:
    """A table of the slowest ops, and one of all if that is much longer."""
    columns = ("op", "node", "FLOP", "weights", "data", "bound", "predicted", "measured", "roofline")
    rows = [
        (
            op.kind, names[id(op)], f"{op.cost.flops:,}" if op.cost.flops else "",
            data(op.cost.weight_bytes) if op.cost.weight_bytes else "", data(op.cost.data_bytes), op.cost.bound,
            micro(op.cost.ns), micro(op.measured_ns),
            f"{op.share:.0%}" if op.share and op.cost.least_ns else "",
        )
        for op in found.ops
    ]  # fmt: skip
    call = ("the call", "", "", "", "", "overhead", micro(found.predicted_overhead_ns), micro(found.overhead_ns), "")
    if len(rows) <= 2 * SHOWN:
        page.table(columns, [*rows, call], columns[2:5] + columns[6:])
        return
    kept = {id(op) for op in _slowest(found)}
    few = [row for op, row in zip(found.ops, rows, strict=True) if id(op) in kept]
    page.table(columns, [*few, call], columns[2:5] + columns[6:])
    page.table(columns, rows, columns[2:5] + columns[6:], folded=f"all {len(rows)} ops, in the order in which they run")


def _growth(page: Page, found: Profile) -> None:
    page.section(
        "How it grows",
        "With more rows per call, each weight is read once for all of them: a row gets cheaper until multiply-adds are "
        "the limit. The cost of a cell grows with the square of its size, and faster once its weights leave a cache.",
    )
    rows = [g.batch for g in found.by_batch]
    measured = [g for g in found.by_batch if g.measured_ns is not None]
    each = found.steps * 1e3
    series = [("predicted", rows, [g.predicted_ns / (g.batch * each) for g in found.by_batch])]
    if measured:
        series.append(("measured", [g.batch for g in measured], [g.measured_ns / (g.batch * each) for g in measured]))
    pairs = []
    if len(rows) > 1:
        pairs.append(
            (
                figures.curves("Microseconds per step and row against rows per call", series, "rows per call",
                               "microseconds per step and row", xscale="log", ticks=rows),
                "Cost of one step of one row, by how many rows a call steps.",
            )
        )  # fmt: skip
    if found.by_size:
        scales = [g.scale for g in found.by_size]
        pairs.append(
            (
                figures.curves("Microseconds per call against the cells' size",
                               [("predicted", scales, [g.predicted_ns / 1e3 for g in found.by_size])],
                               "cells' input and hidden size, times", "microseconds per call", xscale="log",
                               ticks=scales),
                "Predicted, with the input and hidden size of every cell scaled and everything else unchanged.",
            )
        )  # fmt: skip
    page.figures(pairs)
    columns = ["rows per call", "predicted", "measured"]
    streams = dict(found.streams)
    if streams:
        columns.append(f"streams per core at {found.hop_ms:g} ms")
    page.table(
        columns,
        [
            [
                str(g.batch), micro(g.predicted_ns), micro(g.measured_ns) if g.measured_ns else "",
                f"{streams[g.batch]:,}" if g.batch in streams else "",
            ][: len(columns)]
            for g in found.by_batch
        ],
        columns,
    )  # fmt: skip


def _machine(page: Page, found: Profile) -> None:
    limits = found.limits
    page.section(
        "The machine",
        f"{limits.cpu}, {limits.isa}. One thread: {limits.fma / 1e9:.0f} GFLOP/s of independent multiply-adds, "
        f"{limits.latency_ns:.2f} ns for one that waits for the one before, {limits.function_ns:.1f} ns for tanh of "
        f"{limits.lanes} numbers. A call costs {micro(limits.step_ns)} (a step of a stream) or {micro(limits.run_ns)} "
        "(a run) in addition to its ops.",
    )
    page.table(
        ("working set", "read at"),
        [(data(size), f"{rate / 1e9:.0f} GB/s") for size, rate in limits.read],
        ("working set", "read at"),
    )


def micro(ns: float) -> str:
    """Nanoseconds as microseconds with three digits."""
    value = ns / 1000
    return f"{value:.2f} µs" if value < 10 else f"{value:.1f} µs" if value < 100 else f"{value:,.0f} µs"


def data(number: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
