"""Evidence that a frozen size is intended, which holds the size at the file's own number.

A file exported at one length, T0, holds numbers that the exporter may have computed from T0: a position in the middle
(`y[:, T // 2]`), a divisor (`x / x.shape[1]`), the copies of a loop. They look like numbers written in the program.
During the walk, a `Ledger` records each number that acts on an axis. Once a walk has settled which sizes would be
freed, `judge.verdicts` says which of them stay, and why.

* Strong evidence is a position or a count: a slice, an index, `topk`, a pad, windows as long as the axis, the steps of
  a loop, or a literal number of repeats. It holds time and batch.
* Weak evidence is a number with another likely reading: a bare scalar such as T0, T0 - 1, T0 // 2, sqrt(T0) or
  1 / T0, and a slice that ends at T0. It holds a size unless the caller overrules it with strict=False.

Numbers that are *explained* are not recorded: a start at 0, "to the end", small distances from the end, a crop that
restores a length, and whatever positions.py, thaw.py and the roll-up prove. judge.py explains more: a lag, the scale of
a product.
"""

from __future__ import annotations

from dataclasses import field

import numpy as np

from ....graph.dims import Dim
from ....records import dataclass
from ..reading.values import Const, Fill, Live, uniform

SMALL = 4  # up to this length every file has numbers such as T0 and T0 // 2
PLAIN_SHIFT = 8  # from this length on, a shift by one is taken literally: T // k is 1 only if k > T / 2
_LISTED = 64  # numbers of a small constant that are examined one by one
_LARGEST = 1 << 16  # elements of a constant that is checked for being uniform
# Operators whose inputs may be bare scalars of the program.
_SCALAR_OPS = frozenset(
    "Add Sub Mul Div Pow Min Max Mod Sum Mean Where Concat Clip Equal Greater GreaterOrEqual Less LessOrEqual".split()
)


@dataclass(frozen=True)
class Policy:
    """What the caller allows. thaw: frozen sizes may be freed at all. strict: weak evidence also holds a size.
    compared: the caller compares the model with its source at other sizes, so evidence is ignored. remedy, overrule:
    what the caller can do about a size that stays; overrule is "" if weak evidence can't be overruled."""

    thaw: bool = True
    strict: bool = True
    compared: bool = False
    remedy: str = "export the model with a dynamic axis to free it"
    overrule: str = "strict=False (--no-strict) frees it nevertheless"


@dataclass(frozen=True)
class Count:
    """A number acts as a position or a count on an axis of `size`. text: what the node does with it, for messages.
    steps: it counts only if the size is the time."""

    size: Dim
    label: str
    text: str
    weak: bool = False
    steps: bool = False


@dataclass(frozen=True)
class Shift:
    """The slice of `source` along `axis` starts at the number `start` and runs to the end."""

    source: str
    axis: int
    start: int
    size: Dim
    label: str


@dataclass(frozen=True)
class Table:
    """A constant of `length` along some axis meets values (by name) of length one there."""

    length: int
    label: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Scalar:
    """A bare number meets live values (by name) in a node of the file."""

    label: str
    op: str
    number: float
    others: tuple[str, ...]


@dataclass
class Ledger:
    """The record of one walk. overruled: weak evidence that the caller overruled, for messages; it is kept between
    walks."""

    policy: Policy
    counts: list[Count] = field(default_factory=list)
    shifts: list[Shift] = field(default_factory=list)
    cuts: set[tuple] = field(default_factory=set)  # (source, axis, k) of slices that drop only the last k steps
    singles: dict[tuple, set[int]] = field(default_factory=dict)  # (source, axis, size) -> positions of single steps
    tables: list[Table] = field(default_factory=list)
    vectors: list[tuple] = field(default_factory=list)  # (label, operator, numbers) of small constants
    widths: list[tuple[int, str]] = field(default_factory=list)
    scalars: dict[tuple, Scalar] = field(default_factory=dict)
    overruled: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """Start a new walk: only the last walk counts."""
        for part in (
            self.counts,
            self.shifts,
            self.cuts,
            self.singles,
            self.tables,
            self.widths,
            self.vectors,
            self.scalars,
        ):
            part.clear()

    def count(self, size, label: str, text: str, **how: bool) -> None:
        """Record a `Count`, if the size is free."""
        if isinstance(size, Dim):
            self.counts.append(Count(size, label, text, **how))

    def added(self, size, label: str, steps: int, example: int) -> None:
        """Record that a node adds a fixed number of steps to an axis of length `example`."""
        if steps > 0 and not (steps == 1 and example >= PLAIN_SHIFT):
            self.count(size, label, f"adds {steps} steps")

    def single(self, source: str, axis: int, size, index: int) -> None:
        """Record that one step of `source` is taken at the fixed `index`."""
        if isinstance(size, Dim) and index >= 0:
            self.singles.setdefault((source, axis, size), set()).add(index)

    def width(self, length: int, label: str) -> None:
        """Record that a node makes an axis of `length` elements, which the program may have computed from the steps."""
        self.widths.append((length, label))

    def table(self, length: int, label: str, values: list) -> None:
        """Record a `Table`: a constant of this length that meets values of the walk."""
        self.tables.append(Table(length, label, tuple(v.name for v in values if isinstance(v, Live))))

    def scalar(self, node, values: list) -> None:
        """Record the bare scalars among the inputs of a node of the file."""
        if node.op not in _SCALAR_OPS or node.domain:
            return
        others = tuple(v.name for v in values if isinstance(v, Live))
        sized = any(isinstance(v, Fill) and any(isinstance(d, Dim) for d in v.dims) for v in values)
        for value in values if others or sized else ():
            number = _number(value)
            if number is not None:
                self.scalars[node.label, number] = Scalar(node.label, node.op, number, others)
            elif isinstance(value, Const) and 1 < value.array.size <= _LISTED and value.array.dtype.kind in "iuf":
                self.vectors.append((node.label, node.op, tuple(value.array.reshape(-1).tolist())))

    def number(self, number: float, node, values: list) -> None:
        """Record a scalar that is an attribute of a node."""
        others = tuple(v.name for v in values if isinstance(v, Live))
        self.scalars[node.label, number] = Scalar(node.label, node.op, number, others)

    def output(self, name: str, value) -> None:
        """Record an output that does not depend on the input; it may contain the length or have it: positions, a
        count."""
        if isinstance(value, Const | Fill):
            label = f"output {name}"
            self.tables += [Table(d, label, ()) for d in value.dims if isinstance(d, int)]
            numbers = value.array.reshape(-1)[:_LISTED].tolist() if isinstance(value, Const) else [value.value]
            for number in [float(n) for n in numbers if not isinstance(n, Dim)]:
                self.scalars[label, number] = Scalar(label, "output", number, ())

    def explain(self, label: str) -> None:
        """Mark a node's scalars as explained: their meaning is proved, so they are not evidence."""
        for key in [k for k in self.scalars if k[0] == label]:
            del self.scalars[key]


def _number(value) -> float | None:
    """The number that a constant holds everywhere; None for anything else."""
    small = isinstance(value, Fill) or (isinstance(value, Const) and value.array.size <= _LARGEST)
    number = uniform(value) if small else None
    known = number is not None and not isinstance(number, Dim) and np.asarray(number).dtype.kind in "iuf"
    return float(number) if known else None


def part_of(steps: int, length: int) -> bool:
    """Whether a distance from the end may be a fraction of the length: a half, a third, a quarter, or more than half.
    One step, and two of many, are taken literally."""
    halves = {length // 2, -(-length // 2)}
    return steps > 1 and (steps in halves or steps > length // 2 or (steps > 2 and length // steps in (3, 4)))
