"""Which values of a system are whole numbers, such as a counter of steps, and how they are written: as int64.

A float32 counter stops at 2**24. An expression is whole if it is made of whole numbers, `+ - * %`, `max`, `min`,
`clip`, `where` and other whole values. It stays in float32 if it could leave int64 within 2**40 steps, as powers do.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

import numpy as np

from ...graph import Value
from .grammar import COMPARISONS, OPERATORS, System, as_array

NEAR, JUMPS, FAR, MOST = 64, 4, 1 << 40, 1 << 62
Bounds = tuple[int, int]


class Integers:
    """The whole values of a system: their names, and `nodes`, the ids of all expressions that are whole."""

    def __init__(self, system: System, initial: Mapping[str, np.ndarray]):
        self.system = system
        self.starts = {name: _whole_bounds(array) for name, array in initial.items()}
        self.names = {e.name for e in system.equations if self.starts.get(e.name, (0, 0)) is not None}
        while True:
            self.nodes = set(self._followed())
            kept = {e.name for e in system.equations if e.name in self.names and id(e.expression) in self.nodes}
            if kept == self.names:
                return
            self.names = kept

    def _followed(self) -> dict[int, Bounds]:
        """id of expression -> its bounds after some steps, and then jumps of 2**40 steps as long as the last one."""
        ago = {name: self.starts.get(name, (0, 0)) for name in self.names}
        found: dict[int, Bounds] = {}
        for times in (1,) * NEAR + (FAR,) * JUMPS + (1,):
            now: dict[str, Bounds] = {}
            found = {}
            for equation in self.system.equations:
                bounds = self._bounds(equation.expression, now, ago, found)
                if equation.name in self.names and bounds is not None:
                    now[equation.name] = bounds
            for name, (low, high) in ago.items():
                least, most = now.get(name, (0, 0))
                ago[name] = (low + min(least - low, 0) * times, high + max(most - high, 0) * times)
        return found

    def _bounds(self, e: ast.expr, now: dict, ago: dict, found: dict[int, Bounds]) -> Bounds | None:
        """The smallest and the largest value of an expression; None if it isn't whole. All parts are visited."""
        parts = [self._bounds(part, now, ago, found) for part in _parts(e)]
        made = None
        if isinstance(e, ast.Name):
            made = now.get(e.id)
        elif isinstance(e, ast.Call) and e.func.id == "prev":
            made = ago.get(e.args[0].id)
        elif None not in parts:
            made = _of(e, parts)
        if made is None or max(-made[0], made[1]) >= MOST:
            return None
        found[id(e)] = made
        return made


def _parts(e: ast.expr) -> Iterator[ast.expr]:
    """The expressions inside one, as far as they may be whole."""
    if isinstance(e, ast.BinOp):
        yield from (e.left, e.right)
    elif isinstance(e, ast.UnaryOp):
        yield e.operand
    elif isinstance(e, ast.Subscript):
        yield e.value
    elif isinstance(e, ast.Call) and e.func.id != "prev":
        for argument in e.args:
            yield from (argument.left, *argument.comparators) if isinstance(argument, ast.Compare) else (argument,)


def _of(e: ast.expr, parts: list[Bounds]) -> Bounds | None:
    """The bounds of an expression of whole parts."""
    if isinstance(e, ast.Constant):
        return (e.value, e.value) if type(e.value) is int else None
    if isinstance(e, ast.UnaryOp):
        (low, high) = parts[0]
        return (-high, -low) if isinstance(e.op, ast.USub) else parts[0]
    if isinstance(e, ast.BinOp):
        (a, b), (c, d) = parts
        if isinstance(e.op, ast.Add):
            return a + c, b + d
        if isinstance(e.op, ast.Sub):
            return a - d, b - c
        if isinstance(e.op, ast.Mult):
            ends = (a * c, a * d, b * c, b * d)
            return min(ends), max(ends)
        if isinstance(e.op, ast.Mod) and c > 0:
            return (a, b) if 0 <= a and b < c else (0, d - 1)
        return None
    name = e.func.id if isinstance(e, ast.Call) else None
    if name == "where":
        return _hull(*parts[2:])
    if name in ("max", "min"):
        pick = max if name == "max" else min
        return pick(parts[0][0], parts[1][0]), pick(parts[0][1], parts[1][1])
    if name == "clip":
        (a, b), (c, d), (low, high) = parts
        return min(max(a, c), low), min(max(b, d), high)
    return None


def _hull(a: Bounds, b: Bounds) -> Bounds:
    return min(a[0], b[0]), max(a[1], b[1])


def exact(where: str, value) -> np.ndarray:
    """An array of integers as int64, of other numbers as `as_array` has it."""
    array = np.asarray(value) if not isinstance(value, list | tuple) else as_array(where, value)
    if array.dtype.kind == "i" or (array.dtype.kind == "u" and array.size and array.max() < MOST):
        return array.astype(np.int64)
    return as_array(where, value)


def _whole_bounds(array: np.ndarray) -> Bounds | None:
    """The bounds of initial values; None if they aren't whole."""
    if array.size == 0 or not np.all(np.isfinite(array)) or not np.all(array == np.rint(array)):
        return None
    least, most = int(array.min()), int(array.max())
    return (min(0, least), max(0, most)) if max(-least, most) < MOST else None


class IntegerWriter:
    """Writes whole expressions. An operand is a whole number or an int64 Value."""

    def __init__(self, writer):
        self.writer, self.w = writer, writer.w

    def of(self, e: ast.expr):
        if isinstance(e, ast.Constant):
            return e.value
        if isinstance(e, ast.Name):
            known = self.writer.known[e.id]
            return known if isinstance(known, Value) else int(known)
        if isinstance(e, ast.UnaryOp):
            x = self.of(e.operand)
            if isinstance(e.op, ast.UAdd):
                return x
            return self.w.unary("neg", x, label=f"{self.writer.target}.neg") if isinstance(x, Value) else -x
        if isinstance(e, ast.BinOp):
            return self.binary(OPERATORS[type(e.op)], self.of(e.left), self.of(e.right))
        name = e.func.id
        if name == "prev":
            return self.writer.ago[e.args[0].id, e.args[1].value if len(e.args) > 1 else 1]
        if name == "where":
            test = self.compared(e.args[0])
            x, y = (self.value(self.of(v)) for v in e.args[1:])
            return self.w.add("where", self.test(test), x, y, label=f"{self.writer.target}.where")
        x, y, *rest = (self.of(a) for a in e.args)
        if name == "clip":
            return self.binary("min", self.binary("max", x, y), rest[0])
        return self.binary(name, x, y)

    def compared(self, e: ast.Compare):
        """A comparison of whole values: a bool Value, or True or False."""
        return self.binary(COMPARISONS[type(e.ops[0])], self.of(e.left), self.of(e.comparators[0]))

    def test(self, x) -> Value:
        return x if isinstance(x, Value) else self.w.constant(np.array(x), f"{self.writer.target}.test")

    def binary(self, fn: str, a, b):
        if not isinstance(a, Value) and not isinstance(b, Value):
            return _FIXED[fn](a, b)
        rank = max(len(v.dims) - 2 for v in (a, b) if isinstance(v, Value))
        a, b = (self.writer.live(v, rank) if isinstance(v, Value) else self.value(v) for v in (a, b))
        return self.w.binary(fn, a, b, label=f"{self.writer.target}.{fn}")

    def value(self, x) -> Value:
        return x if isinstance(x, Value) else self.w.constant(np.array(x, np.int64), f"{self.writer.target}.constant")


_FIXED = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "mod": lambda a, b: a % b,
    "max": max,
    "min": min,
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "equal": lambda a, b: a == b,
}
