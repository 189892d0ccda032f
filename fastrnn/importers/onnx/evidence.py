"""What in a file says that a frozen size is meant: the evidence that holds a size at the file's own number.

A file exported at one length, T0, holds numbers that the exporter may have computed from T0: a position in the middle
(`y[:, T // 2]`), a divisor (`x / x.shape[1]`), the copies of a loop. They look like numbers that were written in the
program. While the nodes are walked, the ledger records each number that acts on an axis; once a walk has settled which
sizes would be freed, `Ledger.verdicts` says which of them stay, and why.

* Strong evidence is a position or a count: a slice, an index, `topk`, a pad, windows as long as the axis, the steps of
  a loop, a literal number of repeats. It holds time and batch.
* Weak evidence is a bare scalar such as T0, T0 - 1, T0 // 2, sqrt(T0) or 1 / T0. It holds the time, unless the caller
  overrules it with strict=False. Where such a scalar is explained otherwise (1 / sqrt(K) beside a product over K), it
  is no evidence.

What is not recorded is *explained*: a start at 0, the last step, "to the end", distances from the end, a lag (`x[k:]`
beside `x[:-k]`), a crop that restores a length, and whatever positions.py, thaw.py and the roll-up prove.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isclose, log, sqrt
from typing import TYPE_CHECKING

import numpy as np

from ... import dims as D
from ...dims import Dim
from .values import Const, Fill, Live, uniform

if TYPE_CHECKING:
    from .symbols import Symbol, SymbolTable

REMEDY = "export the model with a dynamic axis to free it"
OVERRULE = "strict=False (--no-strict) frees it nevertheless"

_LARGEST = 1 << 16  # elements of a constant that is looked at for one number everywhere
_SMALL = 4  # up to this length every file has numbers such as T0 and T0 // 2
_COMMON = (0.5, 1.0, 2.0, 3.0)  # in every file too, whatever its length
_PLAIN_SHIFT = 8  # from this length on, a shift by one step is a shift by one step: T // k is 1 for odd k alone
# Operators whose inputs may be bare scalars of the program.
_SCALAR_OPS = frozenset(
    "Add Sub Mul Div Pow Min Max Mod Sum Mean Where Concat Clip Equal Greater GreaterOrEqual Less LessOrEqual".split()
)
# Ops through which a value that is summed or counted over time stays one.
_THROUGH = frozenset("unary binary reshape transpose cast slice expand concat where pad".split())


@dataclass(frozen=True)
class Policy:
    """What the caller allows. thaw: frozen sizes may be freed at all. strict: weak evidence holds a size too.
    compared: the caller compares the model with its source at other sizes, so that no evidence is looked at."""

    thaw: bool = True
    strict: bool = True
    compared: bool = False


@dataclass(frozen=True)
class _Scalar:
    """A bare number that meets live values: node label and operator, the number, names of those values."""

    label: str
    op: str
    number: float
    others: tuple[str, ...]


@dataclass
class Ledger:
    """The evidence of one walk. kept: notes on weak evidence that was overruled, of the last verdicts."""

    policy: Policy
    counts: list[tuple] = field(default_factory=list)  # (size, label, text)
    shifts: list[tuple] = field(default_factory=list)  # (source, axis, start, size, label, text)
    cuts: set[tuple] = field(default_factory=set)  # (source, axis, -end) of slices from 0 to before the end
    singles: dict[tuple, set[int]] = field(default_factory=dict)  # (source, axis, size) -> positions of single steps
    brought: list[tuple] = field(default_factory=list)  # (length, label, names of the other values)
    scalars: dict[tuple, _Scalar] = field(default_factory=dict)
    overruled: list[str] = field(default_factory=list)  # survives walks: the last verdicts are final

    def clear(self) -> None:
        """Begin a walk: only what the last walk saw counts."""
        for part in (self.counts, self.shifts, self.cuts, self.singles, self.brought, self.scalars):
            part.clear()

    # --- recording, by the handlers of operators -----------------------------------------------------------------

    def count(self, size, label: str, text: str, weak: bool = False) -> None:
        """A number acts as a position or a count on an axis of `size`. text: what it does, for people. weak: the
        number is the length, or the last step's: that is most likely what the program asked for."""
        if isinstance(size, Dim):
            self.counts.append((size, label, text, weak))

    @staticmethod
    def part(steps: int, length: int) -> bool:
        """Whether a distance from the end may be a part of the length: a half, a third, a quarter, or more than half;
        one step, and two of many, are taken as they stand."""
        halves = {length // 2, -(-length // 2)}
        return steps > 1 and (steps in halves or steps > length // 2 or (steps > 2 and length // steps in (3, 4)))

    def shift(self, source: str, axis: int, start: int, size, label: str) -> None:
        """The slice of `source` along `axis` starts at the number `start` and runs to the end."""
        self.shifts.append((source, axis, start, size, label, f"takes steps from {start} on"))

    def cut(self, source: str, axis: int, left: int) -> None:
        """The slice of `source` along `axis` starts at 0 and ends `left` steps before the end."""
        self.cuts.add((source, axis, left))

    def single(self, source: str, axis: int, size, index: int) -> None:
        """One step of `source` is taken at the number `index`."""
        if isinstance(size, Dim) and index >= 0:
            self.singles.setdefault((source, axis, size), set()).add(index)

    def bring(self, length: int, label: str, values: list) -> None:
        """A constant of `length` along an axis meets values that are one long there."""
        self.brought.append((length, label, tuple(v.name for v in values if isinstance(v, Live))))

    def scalar(self, node, values: list) -> None:
        """The bare scalars among the inputs of a node of the file."""
        if node.op not in _SCALAR_OPS or node.domain:
            return
        others = tuple(v.name for v in values if isinstance(v, Live))
        for value in values if others else ():
            small = isinstance(value, Fill) or (isinstance(value, Const) and value.array.size <= _LARGEST)
            number = uniform(value) if small else None
            if number is not None and not isinstance(number, Dim) and np.asarray(number).dtype.kind in "iuf":
                self.scalars[node.label, float(number)] = _Scalar(node.label, node.op, float(number), others)

    def explain(self, label: str) -> None:
        """What the scalars of a node mean is proved: they are no evidence."""
        for key in [k for k in self.scalars if k[0] == label]:
            del self.scalars[key]

    # --- judging -------------------------------------------------------------------------------------------------

    def verdicts(self, table: SymbolTable, ctx) -> list[tuple[Symbol, str]]:
        """(symbol, reason) of each size that would be freed and stays at the file's number."""
        self.overruled.clear()
        if self.policy.compared:
            return []
        free = [s for s in table.roots() if s.genuine and s.final is None and s.axis >= 0]
        found: dict[int, tuple[Symbol, str]] = {}
        derived = [*self._shifts(table), *self._loops(table), *_pads(ctx, table), *_copies(ctx, table, free)]
        for size, label, text, weak in [*self.counts, *derived]:
            for sym in table.of(size):
                if any(sym is s for s in free) and id(sym) not in found:
                    if not weak or self.policy.strict:
                        found[id(sym)] = (sym, _strong(sym, label, text) + (f", or {OVERRULE}" if weak else ""))
                    else:
                        self._overrule(sym, f"node {label} {text}")
        for length, label, names in self.brought:
            for sym in free:
                apart = all(sym not in table.of(D.product(ctx.values[name].dims)) for name in names)
                if sym.example == length and apart:
                    found.setdefault(id(sym), (sym, _strong(sym, label, f"has a constant of {length} steps")))
        for sym in free:
            if id(sym) not in found and sym.role == "time":
                for scalar, what in self._meant(ctx, table, sym):
                    text = (
                        f"node {scalar.label} ({scalar.op}) has the number {scalar.number:.9g}, {what} of {sym.example}"
                    )
                    if self.policy.strict:
                        found[id(sym)] = (sym, f"{text}; {REMEDY}, or {OVERRULE}")
                        break
                    self._overrule(sym, text)
        return list(found.values())

    def _overrule(self, sym: Symbol, text: str) -> None:
        """Note weak evidence that the caller had passed over."""
        self.overruled.append(f"{sym.label} is freed from {sym.example}, although {text}")

    def _shifts(self, table: SymbolTable) -> Iterator[tuple]:
        """Starts of slices that no lag explains: `x[k:]` beside `x[:-k]`, for k of at most a quarter of the length."""
        for source, axis, start, size, label, text in self.shifts:
            example = table.example(size)
            lag = (source, axis, start) in self.cuts and start <= example // 4
            if not lag and not (start == 1 and example >= _PLAIN_SHIFT):
                yield size, label, text, False

    def _loops(self, table: SymbolTable) -> Iterator[tuple]:
        """Axes of which each single step is taken: a loop that was written out."""
        for (source, _, size), taken in self.singles.items():
            example = table.example(size)
            if example > 1 and taken >= set(range(example)):
                yield size, source, f"is taken apart into its {example} steps", False

    def _meant(self, ctx, table: SymbolTable, sym: Symbol) -> Iterator[tuple[_Scalar, str]]:
        """Scalars that may be computed from the example of a size, with how."""
        numbers, counted = _numbers(sym.example), None
        for scalar in self.scalars.values():
            what = next((text for n, text in numbers if isclose(abs(scalar.number), n, rel_tol=1e-6)), None)
            if what is None or _scales_a_product(ctx, scalar):
                continue
            if sym.example <= _SMALL or abs(scalar.number) in _COMMON:
                counted = _counted(ctx, table, sym) if counted is None else counted
                if not counted & set(scalar.others):
                    continue
            yield scalar, what


def _pads(ctx, table: SymbolTable) -> Iterator[tuple]:
    """Steps that are added by number: up to a fixed length, if no window over them says how many it needs."""
    for op, label, inputs, outputs, attrs in ctx.nodes:
        added: list[tuple] = []
        if op == "pad":
            rank, dims = len(attrs["pads"]) // 2, ctx.values[inputs[0]].dims
            added = [(dims[a], p) for a in range(rank) for p in (attrs["pads"][a], attrs["pads"][rank + a])]
        elif op == "concat":
            parts = [(ctx.values[i].dims[attrs["axis"]], i in ctx.constants) for i in inputs]
            whole = [size for size, _ in parts if isinstance(size, Dim)]
            added = [(whole[0], size) for size, constant in parts if constant] if whole else []
        for size, steps in added:
            plain = steps == 1 and isinstance(size, Dim) and table.example(size) >= _PLAIN_SHIFT
            if isinstance(size, Dim) and isinstance(steps, int) and steps > 0 and not plain:
                if not _windowed(ctx, outputs[0], steps):
                    yield size, label, f"adds {steps} steps", False


def _copies(ctx, table: SymbolTable, free: list[Symbol]) -> Iterator[tuple]:
    """Weights that are used as often as there are steps: a loop over them was written out, and reads no step of them."""
    uses: dict[str, list[str]] = {}
    for op, label, inputs, _, _ in ctx.nodes:
        for name in inputs[1:] if op in ("linear", "matmul", "conv") else inputs[1:2] if op == "cell" else ():
            if name in ctx.constants and ctx.constants[name].ndim > 1:
                uses.setdefault(name, []).append(label)
    for labels in uses.values():
        for sym in free:
            n = sym.example
            if len(labels) > 1 and len(labels) in (n - 1, n, n + 1, n // 2, -(-n // 2)) and _hangs(ctx, *labels):
                yield table.dim(sym), labels[0], f"and {len(labels) - 1} others use the same weights in turn", False


def _hangs(ctx, first: str, *others: str) -> bool:
    """Whether the last of some nodes depends on the first of them."""
    reached: set[str] = set()
    for _, label, inputs, outputs, _ in ctx.nodes:
        if label == first or reached & set(inputs):
            if label == others[-1]:
                return True
            reached |= {o for o in outputs if o is not None}
    return False


def _windowed(ctx, name: str, steps: int) -> bool:
    """Whether all that reads a value are windows that reach over `steps` more, or slices, which are judged apart."""
    readers = [entry for entry in ctx.nodes if name in entry[2]]
    for op, _, _, outputs, attrs in readers:
        if op in ("conv", "conv_transpose", "pool"):
            kernel = attrs["kernel"] if op == "pool" else ctx.values[_weights(ctx, outputs[0])].dims[2:]
            if max(d * (k - 1) for d, k in zip(attrs["dilations"], kernel, strict=True)) < steps:
                return False
        elif op in ("unary", "transpose", "reshape", "cast", "pad", "gather"):
            if not _windowed(ctx, outputs[0], steps):
                return False
        elif op != "slice":
            return False
    return bool(readers)


def _weights(ctx, name: str) -> str:
    """The weights of the convolution that makes a value."""
    return next(entry[2][1] for entry in ctx.nodes if name in entry[3])


def _strong(sym: Symbol, label: str, text: str) -> str:
    return f"node {label} {text}, a number that may have been computed from {sym.example}; {REMEDY}"


def _numbers(n: int) -> list[tuple[float, str]]:
    """What programs compute from a length n, and in which words."""
    if n < 2:
        return []
    plain = [(n, "the length"), (n - 1, "one less than the length"), (n + 1, "one more than the length")]
    plain += [(n // 2, "half of the length"), (n / 2, "half of the length"), (sqrt(n), "the square root")]
    plain += [(2 * n, "twice the length"), (n * n, "the square"), (log(n), "the logarithm")]
    return [*plain, *((1 / v, f"the reciprocal of {text}") for v, text in plain)]


def _maker(ctx, name: str):
    """The entry of Builder.nodes that made a value, behind moves of data."""
    for entry in reversed(ctx.nodes):
        if name in entry[3]:
            if entry[0] not in ("reshape", "transpose", "cast"):
                return entry
            name = entry[2][0]
    return None


def _scales_a_product(ctx, scalar: _Scalar) -> bool:
    """Whether a scale is sqrt(K), its reciprocal, or the root of one, beside a fixed size K of what it scales."""
    if scalar.op not in ("Mul", "Div"):
        return False
    sizes = set()
    for name in scalar.others:
        maker = _maker(ctx, name)
        made_of = [ctx.values[i] for i in maker[2] if i in ctx.values] if maker is not None else []
        sizes |= {d for v in (ctx.values[name], *made_of) for d in v.dims if isinstance(d, int) and d > 1}
    return any(isclose(scalar.number, k**p, rel_tol=1e-6) for k in sizes for p in (0.5, -0.5, 0.25, -0.25))


def _counted(ctx, table: SymbolTable, sym: Symbol) -> set[str]:
    """Names of the values that are summed or counted over a size, and of those that hang on them."""
    found: set[str] = set()
    for op, _, inputs, outputs, attrs in ctx.nodes:
        given = [ctx.values[i] for i in inputs if i is not None]
        if op in ("reduce", "cumsum", "argmax"):
            axes = attrs["axes"] if op == "reduce" else (attrs["axis"],)
            hit = any(sym in table.of(given[0].dims[a]) for a in axes)
        elif op == "matmul":
            hit = sym in table.of(given[0].dims[-1])
        else:
            hit = op == "steps" or (op in _THROUGH and any(v.name in found for v in given))
        if hit:
            found |= {o for o in outputs if o is not None}
    return found
