"""Lowering of step numbers. One count in a stream's slab row serves all nodes of a plan.

An op at the end of the plan advances the count.
"""

from __future__ import annotations

from ...errors import UnsupportedError
from ...graph import Node
from ...graph import dims as D
from .. import bounds
from .base import Lowering, lowers
from .fields import at


@lowers("steps")
def _steps(low: Lowering, node: Node) -> None:
    dims, start = node.attrs["dims"], node.attrs["start"]
    counts = low.mode == "stream" and (low.is_time(dims[-1]) or low.is_step(node, dims[-1]))
    y = low.result(node)
    rows = dims[0] if len(dims) > 1 else 1
    if counts and rows != (D.BATCH if low.has_batch else 1):
        raise UnsupportedError("step numbers that are not a row of each stream's own")
    low.builder.emit(
        "steps", node.name, (), (y,), rows=rows, count=dims[-1], start=start, y_step=y.strides[-1],
        y_row=y.strides[0] if len(dims) > 1 else 0, **at("y", y),
        position=position(low, dims[-1]) if counts else -1,
    )  # fmt: skip


@bounds.touches("steps")
def _steps_touches(plan, f):
    yield from bounds.at(f, "y", (f["rows"], f["y_row"]), (f["count"], f["y_step"]), item=8)
    yield from bounds.counted(plan, f)


def position(low: Lowering, count) -> int:
    """The offset in a slab row of the number of steps that a value has had; `count` is its new steps in a call."""
    if count not in low.positions:
        plain = count == D.TIME or (low.plan.steps_one and count == 1)
        name = "position" if plain else f"position of {count}"
        low.positions[count] = low.builder.keep(name, "count", 1, "int64")
    return low.positions[count]


def limit(low: Lowering, most: int, count, text: str) -> None:
    """A value with `count` new steps per call can have `most` in total; text says why. The plan's room is in input
    steps and includes the padding at the end."""
    table = low.plan.timetable
    if low.plan.paced:
        least, top = 0, 1 << 40
        while least < top:  # the most steps that stay within `most`, padding included
            middle = (least + top + 1) // 2
            sizes = dict(zip(table.names, table.counts(0, middle, True).sizes, strict=True))
            least, top = (middle, top) if D.evaluate(count, sizes) <= most else (least, middle - 1)
        most = least
    elif low.plan.steps_one:
        low.plan.position = position(low, 1)
    else:
        low.plan.position = position(low, D.TIME)
        most //= D.exact_div(count, D.TIME)
    if low.plan.room is None or most < low.plan.room:
        low.plan.room, low.plan.room_text = most, text


def bound_by_table(low: Lowering, node: Node) -> bool:
    """A lookup by step number ends with its table. The limit is known before a step, so no step fails halfway.

    Returns whether every index is certain to be inside the table.
    """
    name, rows = node.inputs[1], low.graph.values[node.inputs[0]].dims[node.attrs["axis"]]
    source = low.producers.get(name)
    while source is not None and source.op in ("reshape", "transpose", "expand"):
        source = low.producers.get(source.inputs[0])
    if source is None or source.op != "steps" or not isinstance(rows, int):
        return False
    start, count = source.attrs["start"], source.attrs["dims"][-1]
    text = f"node {node.name}: its table has {rows} positions"
    counts = low.mode == "stream" and (low.is_time(count) or low.is_step(source, count))
    if counts and isinstance(start, int):
        limit(low, rows - start, count, text)
        return True
    left = rows - start - count
    if isinstance(left, D.Dim):
        low.plan.conditions.append((left, text))
    return isinstance(left, D.Dim) or left >= 0


def advance(low: Lowering) -> None:
    """The last ops of a plan that counts steps."""
    for count, position in low.positions.items():
        rows = D.BATCH if low.has_batch else 1
        low.builder.emit("advance", "position", rows=rows, count=count, position=position)


@bounds.touches("advance")
def _advance_touches(plan, f):
    yield bounds.Access("count", None, 0, ((f["count"], 0),))
    yield from bounds.counted(plan, f)
