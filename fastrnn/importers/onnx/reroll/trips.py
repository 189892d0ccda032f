"""How many steps a Loop takes: from its trip count, and from the condition that its body computes.

A condition is read as parts that must all hold. A part that compares step numbers (start + stride * step) with
constants and sizes gives the number of steps. Any other part depends on data, and may end the loop earlier.
"""

from __future__ import annotations

from dataclasses import field

from ....graph import dims as D
from ....graph.dims import Dim
from ....records import dataclass
from ...shared.ledger import Finding
from ..reading.values import Const, Fill, Ints, Live, uniform

# Comparison of integers a and b -> (sign, number): it holds if sign * (a - b) - number is negative.
_NEGATIVE = {"less": (1, 0), "less_equal": (1, 1), "greater": (-1, 0), "greater_equal": (-1, 1)}
_OPPOSITE = {"less": "greater_equal", "less_equal": "greater", "greater": "less_equal", "greater_equal": "less"}


@dataclass
class Condition:
    """What must hold for another step. falling: (p, q) of each part p + q * step < 0; p may be a Dim. data: (value,
    whether its opposite must hold) of all other parts. never: a part is false."""

    falling: list[tuple] = field(default_factory=list)
    data: list[tuple] = field(default_factory=list)
    never: bool = False


class Affine:
    """Reads step numbers and conditions in the nodes recorded so far. counters: value -> (start, stride)."""

    def __init__(self, ctx, counters: dict[str, tuple]):
        self.ctx, self.counters = ctx, dict(counters)
        self.maker = {o: entry for entry in ctx.nodes for o in entry[3] if o is not None}
        self.numbers = {v.name: dim for (dim, dtype), v in ctx.known_numbers() if dtype != "float32"}

    def of(self, name: str) -> tuple | None:
        """(start, stride) of a value that is start + stride * step; None for any other value."""
        if name in self.counters:
            return self.counters[name]
        if name in self.numbers:
            return self.numbers[name], 0
        array = self.ctx.constants.get(name)
        if array is not None:
            return (int(array.reshape(-1)[0]), 0) if array.size == 1 and array.dtype.kind == "i" else None
        entry = self.maker.get(name)
        if entry is None or not self.ctx.values[name].dtype.startswith("int"):
            return None
        found = self.made(entry)
        if found is not None:
            self.counters[name] = found
        return found

    def made(self, entry) -> tuple | None:
        """(start, stride) of the output of a node on step numbers, as `of`."""
        op, _, inputs, _, attrs = entry
        if op in ("cast", "reshape") and self.ctx.values[inputs[0]].dtype.startswith("int"):
            return self.of(inputs[0])
        if op != "binary" or attrs["fn"] not in ("add", "sub", "mul"):
            return None
        a, b = (self.of(i) for i in inputs)
        if a is None or b is None:
            return None
        if attrs["fn"] == "mul":
            a, b = (a, b) if b[1] == 0 else (b, a)
            plain = b[1] == 0 and not (isinstance(b[0], Dim) and a[1] != 0)
            return (a[0] * b[0], a[1] * b[0]) if plain else None
        sign = 1 if attrs["fn"] == "add" else -1
        return a[0] + sign * b[0], a[1] + sign * b[1]

    def condition(self, value) -> Condition:
        """The parts of a condition, which is an abstract value."""
        found = Condition()
        if isinstance(value, Const | Fill):
            found.never = not uniform(value)
        elif isinstance(value, Ints):
            self.ctx.table.freeze(list(value.array.flat), "a Loop depends on it")
            return self.condition(self.ctx.live(value))
        elif isinstance(value, Live):
            self._parts(value.name, found)
        else:
            raise Finding("a Loop whose condition is not a tensor")
        return found

    def _parts(self, name: str, found: Condition, opposite: bool = False) -> None:
        array = self.ctx.constants.get(name)
        if array is not None:
            found.never |= array.size == 1 and bool(array.reshape(-1)[0]) == opposite
            return
        op, _, inputs, _, attrs = self.maker.get(name, (None, None, (), (), {}))
        fn = attrs.get("fn")
        if op == "reshape":
            self._parts(inputs[0], found, opposite)
        elif op == "unary" and fn == "not":
            self._parts(inputs[0], found, not opposite)
        elif op == "binary" and fn == "and" and not opposite:
            for side in inputs:
                self._parts(side, found)
        elif op == "where" and not opposite and self._is(inputs[2], False):
            for side in inputs[:2]:
                self._parts(side, found)
        elif op == "binary" and fn in _NEGATIVE:
            if not self._comparison(inputs, _OPPOSITE[fn] if opposite else fn, found):
                found.data.append((name, opposite))
        else:
            found.data.append((name, opposite))

    def _is(self, name: str, flag: bool) -> bool:
        array = self.ctx.constants.get(name)
        return array is not None and array.size == 1 and array.dtype == bool and bool(array.reshape(-1)[0]) == flag

    def _comparison(self, inputs, fn: str, found: Condition) -> bool:
        a, b = (self.of(i) for i in inputs)
        if a is None or b is None:
            return False
        sign, number = _NEGATIVE[fn]
        found.falling.append((sign * (a[0] - b[0]) - number, sign * (a[1] - b[1])))
        return True


def least(counts: list):
    """The smallest of several numbers of steps; None for none."""
    known = list(dict.fromkeys(counts))
    if len(known) > 1 and any(isinstance(v, Dim) for v in known):
        raise Finding(f"a Loop that takes the lesser of {' and '.join(map(str, known))} steps")
    return min(known) if known else None


def steps_of(ctx, condition: Condition):
    """How many steps the parts of a condition allow, as an int or a Dim; None for any number.

    The condition is computed at the end of each step, so there is at least one.
    """
    counts: list = [1] if condition.never else []
    for p, q in condition.falling:
        if q <= 0 and isinstance(p, Dim):
            raise Finding(f"a Loop whose condition compares the size {p} in each step")
        if q <= 0:
            counts += [1] if p >= 0 else []
            continue
        if isinstance(p, Dim):
            if D.may_be_negative(-p):
                ctx.table.shortfalls.append(D.shortfall(-p, 0))
            counts.append(D.floordiv(-p + q - 1, q) + 1)
        else:
            counts.append(max(0, -(p // q)) + 1)
    return least(counts)


def require(ctx, condition: Condition, steps) -> None:
    """Require of the sizes that the condition before the first step holds, where there are steps at all."""
    for p, _ in condition.falling:
        if not isinstance(p, Dim):
            if p >= 0:
                raise Finding("a Loop whose condition is false before the first step")
        elif steps is None or (D.may_be_negative(-p - steps) and D.may_be_negative(-p - 1)):
            ctx.table.shortfalls.append(D.shortfall(-p, 1))
