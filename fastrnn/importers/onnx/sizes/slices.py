"""Bounds of slices that an exporter wrote as numbers, reinterpreted as functions of the size that they cut."""

from __future__ import annotations

from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from .evidence import Shift, part_of

FAR = 2**31 - 1  # exporters write a number at least this large for "to the end"


def slice_bounds(ctx, x, axis: int, start, end, step: int) -> tuple:
    """(start, stop) of x[start:end:step] on an axis, resolved as graph/types.py requires.

    An end at or beyond the example length means "to the end"; a start at the last element means the last element. Other
    numbers are evidence that the length is meant (evidence.py).
    """
    table, size = ctx.table, x.dims[axis]
    if step == 1 and _is_open(table, size, start):
        stop = size if isinstance(end, int) and end >= FAR else end
        if isinstance(stop, Dim) and not D.may_be_negative(stop):
            table.shortfalls += [D.shortfall(d, 0) for d in (size - stop, stop - start) if D.may_be_negative(d)]
            return start, stop
    if not isinstance(size, Dim) and isinstance(start, int) and isinstance(end, int):
        found = range(*slice(start, end if abs(end) < 2**62 else (FAR if end > 0 else -FAR), step).indices(size))
        stop = found.start + len(found) * step if len(found) == 0 else found.stop
        return found.start, stop
    example = table.example(size)

    def place(v, lowest: int):
        if isinstance(v, Dim):
            if isinstance(size + v, int) and size + v >= 0:  # minus a length that is shorter by a fixed number
                if size + v > 0:  # the number is negative: from the end
                    table.shortfalls.append(D.shortfall(size, size + v + 1))
                return size + v, size + v
            if not D.may_be_negative(-v) and isinstance(size + v, Dim):  # -(T // 2): from the end, if it is not 0
                table.shortfalls += [D.shortfall(-v, 1), D.shortfall(size + v, 0)]
                return size + v, table.example(size + v)
            over = v - size - lowest
            beyond = over > 0 if isinstance(over, int) else not D.may_be_negative(over - 1)
            return (size + lowest, example + lowest) if beyond else (v, table.example(v))
        if v < 0:
            return (size + v, example + v) if example + v >= lowest else (lowest, lowest)
        if v >= example + lowest:
            return size + lowest, example + lowest
        return v, v

    if step > 0:
        (low, low_ex), (high, high_ex) = place(start, 0), place(end, 0)
        if isinstance(low, int) and low and low == example - 1 and high == size:
            low = size - 1
        if low == 0 and step == 1 and isinstance(high, int):
            high = _before_padding(table, size, high)
    else:
        (low, low_ex), (high, high_ex) = place(start, -1), place(end, -1)
        if isinstance(low, int) and low == example - 1:
            low = size - 1
        _not_before(table, size, low, high if isinstance(end, Dim) and high == end else 0)
    if (high_ex <= low_ex) if step > 0 else (low_ex <= high_ex):
        if table.genuine(size):
            table.freeze([size], "Slice takes no element of it")
        raise Finding(f"Slice [{start}:{end}:{step}] of an axis of the size {size}")
    if isinstance(low, Dim) or isinstance(high, Dim):
        _check_order(ctx, size, low, high, step)
    _note_numbers(ctx, x, axis, (start, end, step), (low, high))
    return low, high


def _before_padding(table, size, high: int):
    """The length that padding made longer, if the number written is that length: conv(pad(x))[:9] of 9 steps."""
    added = table.example(size) - high
    length = table.single(size - added) if added > 0 else None
    return size - added if length is not None and length.genuine and length.example == high else high


def _is_open(table, size, start) -> bool:
    """Whether a slice of an open size begins at another open size, such as the steps of a call in the mask of all
    steps. Their examples are made up, so they don't tell which one is larger."""
    both = isinstance(size, Dim) and isinstance(start, Dim) and isinstance(size - start, Dim)
    return both and all(table.single(d) is not None and not table.genuine(d) for d in (size, start))


def _not_before(table, size, low, high) -> None:
    """A slice backwards: a start or a computed end before the first element counts from the end in ONNX, or is moved
    to the first element. Sequences that are so short are refused."""
    for bound in (low, high):
        if isinstance(bound, Dim) and bound != size - 1 and D.may_be_negative(bound):
            table.shortfalls.append(D.shortfall(bound, 0))


def _note_numbers(ctx, x, axis: int, written: tuple, resolved: tuple) -> None:
    """Record in the ledger which numbers of a slice act as positions on an axis of a free size."""
    (start, end, step), (low, high), ledger = written, resolved, ctx.table.ledger
    size, source = x.dims[axis], getattr(x, "name", "")
    if not isinstance(size, Dim) or isinstance(start, Dim) or isinstance(end, Dim):
        return
    example, label = ctx.table.example(size), ctx.label
    if abs(step) > 2 and (abs(step) >= example // 8 or example <= 8):
        ledger.count(size, label, f"takes each {abs(step)}th step")
    if step < 0:
        if (0 <= start < example - 1) or end >= 0:
            ledger.count(size, label, f"takes steps from {start} back to {end}")
        return
    if start >= 0 and end == start + 1:  # one step
        ledger.single(source, axis, size, start)
        if start:
            ledger.count(size, label, f"takes step {start} by its number", weak=start == example - 1)
        return
    restored = ctx.table.single(high - low) is not None and ctx.table.single(size) is None
    if 0 <= end < FAR and not (restored and start == 0):
        ledger.count(size, label, f"takes steps up to {end}", weak=end == example)
    elif start == 0 and end < 0:
        ledger.cuts.add((source, axis, -end))
    for place in [p for p in (start, end) if p < 0 and not restored]:
        if part_of(-place, example):
            ledger.count(size, label, f"takes a step {-place} before the end, a part of {example}", weak=True)
    both_ends = start == -end and start <= max(1, example // 8)
    if start > 0 and not restored and not both_ends:
        ledger.shifts.append(Shift(source, axis, start, size, label))


def _check_order(ctx, size, low, high, step: int) -> None:
    """Check that the bounds are in order. Two symbolic bounds of different kinds can't be clamped before sizes are
    known, but the common cases are safe. A table is assumed to have as many rows as there are steps; a longer sequence
    is refused at run time."""
    if not isinstance(size, Dim):
        return
    for bound in (low, high):
        rest = size - bound
        if isinstance(rest, Dim) and isinstance(bound, Dim) and D.symbols(rest) - D.symbols(size):
            ctx.equal(size, bound + ctx.table.example(rest), "Slice takes as many elements as another size says")
