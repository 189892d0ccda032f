"""Weighs the ledger's evidence: which of the sizes that a walk would free stay at the file's number.

`verdicts` examines what the walk recorded (evidence.py) and the graph it made: a number is judged by where it acts. A
scale of 1/8 at 64 steps is not evidence next to a product over 64 features, but is evidence anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isclose, log, sqrt

from ....graph import dims as D
from ....graph.dims import Dim
from .evidence import PLAIN_SHIFT, SMALL, Count, Ledger, Scalar
from .symbols import Symbol, SymbolTable

_COMMON = (0.5, 1.0, 2.0, 3.0)  # also common in files of any length
_MOVES = ("reshape", "transpose", "cast")
# Ops after which a value summed or counted over time still counts as one.
_THROUGH = frozenset((*_MOVES, "unary", "binary", "slice", "expand", "concat", "where", "pad"))


def verdicts(table: SymbolTable, ctx) -> list[tuple[Symbol, str]]:
    """(symbol, reason) of each size that would be freed but stays at the file's number. Weak evidence that the caller
    overrules is recorded in `table.ledger.overruled`."""
    ledger = table.ledger
    ledger.overruled.clear()
    if ledger.policy.compared:
        return []
    free = [s for s in table.roots() if s.genuine and s.final is None and s.axis >= 0]
    found: dict[str, tuple[Symbol, str]] = {}

    overrule = ledger.policy.overrule

    def holds(sym: Symbol, text: str, weak: bool) -> None:
        if weak and not ledger.policy.strict:
            ledger.overruled.append(f"{sym.label} is freed from {sym.example}, although {text}")
        else:
            more = f", or {overrule}" if weak and overrule else ""
            found.setdefault(sym.name, (sym, f"{text}; {ledger.policy.remedy}{more}"))

    for count in _counts(ledger, table, ctx, free):
        for sym in table.of(count.size):
            if any(sym is s for s in free) and (sym.role == "time" or not count.steps):
                meant = "" if count.weak else f", a number that may have been computed from {sym.example}"
                holds(sym, f"node {count.label} {count.text}{meant}", count.weak)
    for sym in free:
        if sym.name not in found:
            for scalar, what in _scalars(ledger, table, ctx, sym):
                holds(sym, f"node {scalar.label} ({scalar.op}) has the number {scalar.number:.9g}, {what}", True)
    return list(found.values())


# --- positions and counts --------------------------------------------------------------------------------------------


def _counts(ledger: Ledger, table: SymbolTable, ctx, free: list[Symbol]) -> Iterator[Count]:
    """Every unexplained position and count; strong evidence first."""
    yield from sorted(ledger.counts, key=lambda count: count.weak)
    yield from _shifts(ledger, table)
    yield from _loops(ledger, table)
    yield from _pads(table, ctx)
    for sym in free:
        yield from _constant_outputs(ledger, table, sym)
    yield from _loops_of_open_axes(ledger, table, ctx, free)
    for sym in [s for s in free if s.role == "time"]:
        yield from _tables(ledger, table, ctx, sym)
        yield from _copies(table, ctx, sym)


def _shifts(ledger: Ledger, table: SymbolTable) -> Iterator[Count]:
    """Slice starts not explained by a lag, which is `x[k:]` next to `x[:-k]` with k at most a quarter of the length."""
    for shift in ledger.shifts:
        example = table.example(shift.size)
        lag = (shift.source, shift.axis, shift.start) in ledger.cuts and shift.start <= example // 4
        if not lag and not (shift.start == 1 and example >= PLAIN_SHIFT):
            yield Count(shift.size, shift.label, f"takes steps from {shift.start} on")


def _loops(ledger: Ledger, table: SymbolTable) -> Iterator[Count]:
    """Axes whose steps are all taken one by one: a written-out loop."""
    for (source, _, size), taken in ledger.singles.items():
        example = table.example(size)
        if example > 1 and taken >= set(range(example)):
            yield Count(size, source, f"is taken apart into its {example} steps")


def _constant_outputs(ledger: Ledger, table: SymbolTable, sym: Symbol) -> Iterator[Count]:
    """Outputs that depend on no input and have an axis as long as a size: zeros for the batch, positions of the steps.
    A batch of one may be any axis of one."""
    for constant in ledger.tables:
        if not constant.others and constant.length == sym.example and (sym.example > 1 or sym.role == "batch"):
            yield Count(table.dim(sym), constant.label, f"is a constant with an axis of {constant.length}")


def _loops_of_open_axes(ledger: Ledger, table: SymbolTable, ctx, free: list[Symbol]) -> Iterator[Count]:
    """Written-out loops over an open axis. They read only its first steps, whatever the program did. That is what the
    file means at its own batch; at another batch there is no evidence for it."""
    found: list[tuple[str, str]] = []
    for (source, _, size), taken in ledger.singles.items():
        if not table.genuine(size) and len(taken) > 1 and taken >= set(range(len(taken))):
            text = f"is read by its first {len(taken)} steps alone, although the file leaves its length open"
            found.append((source, text))
    if any(not s.genuine and s.role == "time" for s in table.roots()):
        for labels in _repeated(ctx):
            if len(labels) > 2:
                found.append((labels[0], f"{_ALIKE.format(len(labels) - 1)}, although the file leaves its length open"))
    for sym in free:
        for label, text in found:
            yield Count(table.dim(sym), label, text)


def _tables(ledger: Ledger, table: SymbolTable, ctx, sym: Symbol) -> Iterator[Count]:
    """Constants as long as a size that no value they meet has: a table of the steps meets a sum over the steps."""
    for length, label in ledger.widths:
        if length in (sym.example - 1, sym.example, sym.example + 1, 2 * sym.example) and length > SMALL:
            yield Count(table.dim(sym), label, f"makes an axis of {length}")
    for constant in [c for c in ledger.tables if c.others]:
        apart = all(sym not in table.of(D.product(ctx.values[name].dims)) for name in constant.others)
        if sym.example == constant.length and apart:
            yield Count(table.dim(sym), constant.label, f"has a constant of {constant.length} steps")


def _pads(table: SymbolTable, ctx) -> Iterator[Count]:
    """Fixed numbers of added steps: padding to a fixed length, unless a window over them explains the number."""
    for op, label, inputs, outputs, attrs in ctx.nodes:
        added: list[tuple] = []
        if op == "pad":
            pads, dims = attrs["pads"], ctx.values[inputs[0]].dims
            added = [(d, p) for k, d in enumerate(dims) for p in (pads[k], pads[len(dims) + k])]
        elif op == "concat":
            parts = [(ctx.values[i].dims[attrs["axis"]], i in ctx.constants) for i in inputs]
            whole = [size for size, _ in parts if isinstance(size, Dim)]
            added = [(whole[0], size) for size, constant in parts if constant] if whole else []
        for size, steps in added:
            if isinstance(size, Dim) and isinstance(steps, int) and steps > 0:
                example = table.example(size)
                if not (steps == 1 and example >= PLAIN_SHIFT) and not _windowed(ctx, outputs[0], example, steps):
                    yield Count(size, label, f"adds {steps} steps")


def _windowed(ctx, name: str, length: int, steps: int) -> bool:
    """Whether all readers of a value are windows that reach over `steps` more, or slices, which are judged separately.
    Steps that round a length up to a multiple of the stride are computed from the length."""
    readers = [entry for entry in ctx.nodes if name in entry[2]]
    for op, _, inputs, outputs, attrs in readers:
        if op in ("conv", "conv_transpose", "pool"):
            kernel = attrs["kernel"] if op == "pool" else ctx.values[inputs[1]].dims[2:]
            reach = max(d * (k - 1) for d, k in zip(attrs["dilations"], kernel, strict=True))
            if reach < steps or any(steps < s and (length + steps) % s == 0 for s in attrs["strides"]):
                return False
        elif op in (*_MOVES, "unary", "pad", "gather"):
            if not _windowed(ctx, outputs[0], length, steps):
                return False
        elif op != "slice":
            return False
    return bool(readers)


def _copies(table: SymbolTable, ctx, sym: Symbol) -> Iterator[Count]:
    """Weights used repeatedly, as often as there are steps: a written-out loop that reads no step of the input."""
    n = sym.example
    for labels in _repeated(ctx):
        times = len(labels)
        if times in (n - 1, n, n + 1) or (times > 2 and times in (n // 2, -(-n // 2))):
            yield Count(table.dim(sym), labels[0], _ALIKE.format(times - 1))


_ALIKE = "and {} others use the same weights in turn"


def _repeated(ctx) -> list[list[str]]:
    """Labels of at least two nodes that use the same weights, if the last depends on the first."""
    uses: dict[str, list[str]] = {}
    for op, label, inputs, _, _ in ctx.nodes:
        for name in inputs[1:] if op in ("linear", "matmul", "conv") else inputs[1:2] if op == "cell" else ():
            if name in ctx.constants and ctx.constants[name].ndim > 1:
                uses.setdefault(name, []).append(label)
    return [labels for labels in uses.values() if len(labels) > 1 and _hangs(ctx, labels[0], labels[-1])]


def _hangs(ctx, first: str, last: str) -> bool:
    """Whether node `last` depends on node `first`, by label."""
    reached: set[str] = set()
    for _, label, inputs, outputs, _ in ctx.nodes:
        if label == first or reached & set(inputs):
            if label == last:
                return True
            reached |= {o for o in outputs if o is not None}
    return False


# --- scalars ---------------------------------------------------------------------------------------------------------


def _scalars(ledger: Ledger, table: SymbolTable, ctx, sym: Symbol) -> Iterator[tuple[Scalar, str]]:
    """Scalars that may be computed from the example of a size, each with the formula. For the batch, only those that
    divide a sum over it."""
    for label, op, numbers in ledger.vectors if sym.role == "time" and sym.example > SMALL else ():
        if _multiples(numbers, sym.example):
            yield (
                Scalar(label, op, max(numbers, key=abs), ()),
                f"of numbers that are multiples of 1/{sym.example} or it",
            )
    sums, counted = _summed(table, ctx, sym)
    for scalar in ledger.scalars.values():
        others, number = set(scalar.others), abs(scalar.number)
        if scalar.op in ("Mul", "Div") and others & sums and number > 0:
            whole = number if scalar.op == "Div" else 1 / number
            if whole > 1.5 and isclose(whole, round(whole), rel_tol=1e-6):
                yield scalar, f"by which a sum over {sym.example} is divided"
                continue
        if sym.role != "time" or number == 1 or _scales_a_product(ctx, scalar):
            continue
        if scalar.op == "Concat" and number not in (0.0, 1.0):
            yield scalar, "a feature that no step changes"
            continue
        usual = scalar.op != "output" and (sym.example <= SMALL or number in _COMMON)
        what = _computed(number, _lengths(table, ctx, sym, scalar))
        if what is not None and (not usual or counted & others):
            yield scalar, what


def _multiples(numbers: tuple, n: int) -> bool:
    """Whether numbers are 0, n, 2*n.. or 0, 1/n, 2/n.., such as arange(6) / n. Eighths are rounded weights."""
    for unit in (n,) if n & (n - 1) == 0 else (1 / n, n):
        times = [number / unit for number in numbers]
        if all(isclose(t, round(t), rel_tol=1e-5, abs_tol=1e-6) for t in times) and max(map(abs, times)) < 1e6:
            if any(abs(round(t)) == 1 for t in times) and not all(float(number).is_integer() for number in numbers):
                return True
            if unit == n and any(round(t) for t in times):
                return True
    return False


def _lengths(table: SymbolTable, ctx, sym: Symbol, scalar: Scalar) -> list[int]:
    """The example of a size, and of lengths derived from it in the values that the scalar meets."""
    dims = {d for name in scalar.others for d in ctx.values[name].dims if isinstance(d, Dim)}
    return sorted({sym.example} | {table.example(d) for d in dims if table.of(d) == [sym]})


def _computed(number: float, lengths: list[int]) -> str | None:
    """The formula by which a number is computed from one of the lengths; None if it is not."""
    for n in lengths:
        for known, text in _numbers(n):
            if isclose(number, known, rel_tol=1e-6):
                return f"{text} {n}"
    return None


def _numbers(n: int) -> list[tuple[float, str]]:
    """Numbers that programs compute from a length n, each with its formula."""
    if n < 2:
        return []
    plain = [(n, "the length"), (n - 1, "one less than"), (n + 1, "one more than"), (n // 2, "half of")]
    plain += [(n / 2, "half of"), (2 * n, "twice"), (n * n, "the square of")]
    for m, text in ((n, ""), (n - 1, " one less than"), (n + 1, " one more than")):
        plain += [(sqrt(m), f"the square root of{text}"), (log(m), f"the logarithm of{text}")]
    if n > 10 and n % 5:  # 0.7 and 0.2 are more likely a setting than a length in other units
        plain += [(n / k, f"1/{k} of") for k in (10, 100, 1000)]
    return [*plain, *((1 / v, f"the reciprocal of {text}") for v, text in plain if v)]


def _scales_a_product(ctx, scalar: Scalar) -> bool:
    """Whether a scale is sqrt(K), its reciprocal, or the root of one of these, for a fixed size K of what it scales."""
    if scalar.op not in ("Mul", "Div"):
        return False
    sizes = set()
    for name in scalar.others:
        made_of = [ctx.values[i] for i in _made_of(ctx, name) if i in ctx.values]
        sizes |= {d for v in (ctx.values[name], *made_of) for d in v.dims if isinstance(d, int) and d > 1}
    return any(isclose(scalar.number, k**p, rel_tol=1e-6) for k in sizes for p in (0.5, -0.5, 0.25, -0.25))


def _made_of(ctx, name: str) -> tuple:
    """The inputs of the node that made a value, traced back through moves of data."""
    for op, _, inputs, outputs, _ in reversed(ctx.nodes):
        if name in outputs:
            if op not in _MOVES:
                return inputs
            name = inputs[0]
    return ()


def _summed(table: SymbolTable, ctx, sym: Symbol) -> tuple[set[str], set[str]]:
    """(names of the values that are sums over a size, possibly moved; names of all values that depend on one summed or
    counted over it)."""
    sums: set[str] = set()
    counted: set[str] = set()
    for op, _, inputs, outputs, attrs in ctx.nodes:
        made = {o for o in outputs if o is not None}
        dims = ctx.values[inputs[0]].dims if inputs else ()
        if op in ("reduce", "cumsum", "argmax"):
            axes = attrs["axes"] if op == "reduce" else (attrs["axis"],)
            over = any(sym in table.of(dims[a]) for a in axes)
            sums |= made if over and attrs.get("fn") == "sum" else set()
        else:
            over = op == "steps" or (op == "matmul" and sym in table.of(dims[-1]))
        if op in _MOVES and inputs[0] in sums:
            sums |= made
        if over or (op in _THROUGH and counted & set(inputs)):
            counted |= made
    return sums, counted
