"""What in a file says that a frozen size is meant: the evidence that holds a size at the file's own number.

A file exported at one length, T0, holds numbers that the exporter may have computed from T0: a position in the middle
(`y[:, T // 2]`), a divisor (`x / x.shape[1]`), the copies of a loop. They look like numbers that were written in the
program. While the nodes are walked, a `Ledger` records each number that acts on an axis; once a walk has settled which
sizes would be freed, `judge.verdicts` says which of them stay, and why.

* Strong evidence is a position or a count: a slice, an index, `topk`, a pad, windows as long as the axis, the steps of
  a loop, a literal number of repeats. It holds time and batch.
* Weak evidence is a number that has a likely other reading: a bare scalar such as T0, T0 - 1, T0 // 2, sqrt(T0) or
  1 / T0, and a slice that ends at T0. It holds a size unless the caller overrules it with strict=False.

What is not recorded is *explained*: a start at 0, "to the end", small distances from the end, a crop that restores a
length, and whatever positions.py, thaw.py and the roll-up prove. judge.py explains more: a lag, the scale of a product.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ....graph.dims import Dim
from ..reading.values import Const, Fill, Live, uniform

SMALL = 4  # up to this length every file has numbers such as T0 and T0 // 2
PLAIN_SHIFT = 8  # from this length on, a shift by one step is a shift by one step: T // k is 1 for odd k alone
_LISTED = 64  # numbers of a small constant that are looked at one by one
_LARGEST = 1 << 16  # elements of a constant that is looked at for one number everywhere
# Operators whose inputs may be bare scalars of the program.
_SCALAR_OPS = frozenset(
    "Add Sub Mul Div Pow Min Max Mod Sum Mean Where Concat Clip Equal Greater GreaterOrEqual Less LessOrEqual".split()
)


@dataclass(frozen=True)
class Policy:
    """What the caller allows. thaw: frozen sizes may be freed at all. strict: weak evidence holds a size too.
    compared: the caller compares the model with its source at other sizes, so that no evidence is looked at. remedy,
    overrule: what the caller can do about a size that stays; overrule: "" if nothing passes weak evidence over."""

    thaw: bool = True
    strict: bool = True
    compared: bool = False
    remedy: str = "export the model with a dynamic axis to free it"
    overrule: str = "strict=False (--no-strict) frees it nevertheless"


@dataclass(frozen=True)
class Count:
    """A number acts as a position or a count on an axis of `size`. text: what the node does with it, for people.
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
    """A constant of `length` along some axis meets values, by name, that are one long there."""

    length: int
    label: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Scalar:
    """A bare number meets live values, by name, in a node of the file."""

    label: str
    op: str
    number: float
    others: tuple[str, ...]


@dataclass
class Ledger:
    """What one walk saw. overruled: weak evidence that the caller had passed over, for people; it survives walks."""

    policy: Policy
    counts: list[Count] = field(default_factory=list)
    shifts: list[Shift] = field(default_factory=list)
    cuts: set[tuple] = field(default_factory=set)  # (source, axis, k) of slices that leave out the last k steps alone
    singles: dict[tuple, set[int]] = field(default_factory=dict)  # (source, axis, size) -> positions of single steps
    tables: list[Table] = field(default_factory=list)
    vectors: list[tuple] = field(default_factory=list)  # (label, operator, numbers) of small constants
    widths: list[tuple[int, str]] = field(default_factory=list)
    scalars: dict[tuple, Scalar] = field(default_factory=dict)
    overruled: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """Begin a walk: only what the last walk saw counts."""
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
        """A node adds steps by number to an axis of `example`."""
        if steps > 0 and not (steps == 1 and example >= PLAIN_SHIFT):
            self.count(size, label, f"adds {steps} steps")

    def single(self, source: str, axis: int, size, index: int) -> None:
        """One step of `source` is taken at the number `index`."""
        if isinstance(size, Dim) and index >= 0:
            self.singles.setdefault((source, axis, size), set()).add(index)

    def width(self, length: int, label: str) -> None:
        """A node makes an axis of `length` elements, which the program may have computed from the steps."""
        self.widths.append((length, label))

    def table(self, length: int, label: str, values: list) -> None:
        """Record a `Table` of the walk's values."""
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
        """Record a scalar that a node has as a setting."""
        others = tuple(v.name for v in values if isinstance(v, Live))
        self.scalars[node.label, number] = Scalar(node.label, node.op, number, others)

    def output(self, name: str, value) -> None:
        """An output that does not depend on the input may hold or have the length: positions, a count."""
        if isinstance(value, Const | Fill):
            label = f"output {name}"
            self.tables += [Table(d, label, ()) for d in value.dims if isinstance(d, int)]
            numbers = value.array.reshape(-1)[:_LISTED].tolist() if isinstance(value, Const) else [value.value]
            for number in [float(n) for n in numbers if not isinstance(n, Dim)]:
                self.scalars[label, number] = Scalar(label, "output", number, ())

    def explain(self, label: str) -> None:
        """What the scalars of a node mean is proved: they are not evidence."""
        for key in [k for k in self.scalars if k[0] == label]:
            del self.scalars[key]


def _number(value) -> float | None:
    """The one number that a constant holds everywhere; None for anything else."""
    small = isinstance(value, Fill) or (isinstance(value, Const) and value.array.size <= _LARGEST)
    number = uniform(value) if small else None
    known = number is not None and not isinstance(number, Dim) and np.asarray(number).dtype.kind in "iuf"
    return float(number) if known else None


def part_of(steps: int, length: int) -> bool:
    """Whether a distance from the end may be a part of the length: a half, a third, a quarter, or more than half; one
    step, and two of many, are taken as they stand."""
    halves = {length // 2, -(-length // 2)}
    return steps > 1 and (steps in halves or steps > length // 2 or (steps > 2 and length // steps in (3, 4)))
