"""Arithmetic on forms. What it needs of plain values is added to a `Patch` as nodes; equal nodes are added once."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ...graph import Graph, Node
from ...graph import dims as D
from ..patch import Patch
from .forms import ONE, Form, Pair, Part, Total, scaled, summed


class Unknown(Exception):
    """The value has no form here."""


class Nodes:
    """Nodes made on the way. The same operation on the same values is one node."""

    def __init__(self, graph: Graph):
        self.patch, self.makers = Patch(graph), graph.producers()
        self.known: dict = {}
        self.roots: dict[str, str] = {}  # a value made here -> the value of the file that its name begins with

    @property
    def values(self):
        return self.patch.values

    def dims(self, name: str) -> tuple:
        return self.patch.values[name].dims

    def add(self, op: str, *inputs: str, **attrs) -> str:
        key = (op, inputs, tuple(sorted(attrs.items())))
        if key not in self.known:
            root = self.roots.get(inputs[0], inputs[0])
            self.known[key] = self.patch.add(op, inputs, attrs, f"{root}.{attrs.get('fn', op)}")
            self.roots[self.known[key]] = root
        return self.known[key]

    def number(self, value: float) -> str:
        key = ("number", value)
        if key not in self.known:
            self.known[key] = self.patch.constant("number", np.array(value, np.float32))
        return self.known[key]

    def power(self, exponent: float) -> str:
        """exp(exponent), exact in float64 if either number is one of float32."""
        value = math.exp(exponent)
        if abs(np.float32(value) - value) > 1e-14 * value and np.float32(exponent) == exponent:
            return self.unary("exp", self.number(exponent))
        return self.number(value)

    def unary(self, fn: str, x: str, alpha: float = 0.0, beta: float = 0.0) -> str:
        return self.add("unary", x, fn=fn, alpha=float(alpha), beta=float(beta))

    def binary(self, fn: str, a: str, b: str) -> str:
        return self.add("binary", a, b, fn=fn)

    def reshape(self, x: str, dims: tuple) -> str:
        return x if self.dims(x) == tuple(dims) else self.add("reshape", x, dims=tuple(dims))

    def transpose(self, x: str, perm: tuple) -> str:
        return x if perm == tuple(range(len(perm))) else self.add("transpose", x, perm=perm)

    def times(self, x: str, factor: float) -> str:
        return x if factor == 1.0 else self.unary("affine", x, factor, 0.0)

    def steps_first(self, x: str, axis: int) -> str:
        """x with the axis (from the end) of its steps in front."""
        rank = len(self.dims(x))
        axis += rank
        return self.transpose(x, (axis, *(a for a in range(rank) if a != axis)))

    def steps_back(self, x: str, axis: int) -> str:
        """The inverse of `steps_first`."""
        rank = len(self.dims(x))
        others = iter(range(1, rank))
        return self.transpose(x, tuple(0 if a == axis + rank else next(others) for a in range(rank)))

    def lifted(self, x: str, rank: int) -> str:
        """A part [time, ..] with axes of one element behind its steps, up to this rank."""
        dims = self.dims(x)
        return self.reshape(x, (dims[0], *(1,) * (rank - len(dims)), *dims[1:]))

    def without(self, fn: str, x: str) -> str | None:
        """The argument of the function that x is, with the same moves; None if x is another function."""
        moves: list[Node] = []
        while True:
            node = self.makers.get(x) or next((n for n in self.patch.made if n.outputs == (x,)), None)
            if node is None or node.op not in ("transpose", "reshape", "expand", "unary"):
                return None
            x = node.inputs[0]
            if node.op == "unary":
                break
            moves.append(node)
        if node.attrs["fn"] != fn:
            return None
        for move in reversed(moves):
            x = self.add(move.op, x, **move.attrs)
        return x

    # -- forms --
    def part(self, part: Part, change) -> Part:
        """The part with `change` applied to each of its values."""
        powers: dict[str, float] = {}
        for name, factor in part.powers.items():
            powers = summed(powers, {name if name == ONE else change(name): factor})
        return Part(powers, None if part.local is None else change(part.local))

    def changed(self, form: Form, change, **more) -> Form:
        """The form with `change(value, axis)` applied to each value of each of its parts."""
        parts = {axis: self.part(p, lambda v, axis=axis: change(v, axis)) for axis, p in form.parts.items()}
        totals = []
        for total, sign in form.totals:
            (only,) = form.parts
            moved = self.part(Part(total.powers, total.local), lambda v, axis=only: change(v, axis))
            totals.append((Total(moved.powers, moved.local, total.still, total.before), sign))
        pair = form.pair
        if pair is not None:
            pair = Pair(self.part(pair.q, lambda v: change(v, -2)), self.part(pair.k, lambda v: change(v, -1)))
        return replace(form, parts=parts, totals=tuple(totals), pair=pair, **more)

    def at_rank(self, form: Form, rank: int) -> Form:
        """The form of the value broadcast to a higher rank."""
        if form.rank == rank:
            return form
        if form.rank > rank:
            raise Unknown
        return self.changed(form, lambda v, axis: self.lifted(v, rank), rank=rank)

    def joined(self, a: Part, b: Part, logs: bool, sign: int) -> Part:
        """a times b (sign -1: divided by it); the sum or difference with logs."""
        local = a.local
        if b.local is not None:
            if local is None:
                one = "neg" if logs else "recip"
                local = b.local if sign > 0 else self.unary(one, b.local)
            else:
                fn = {(True, 1): "add", (True, -1): "sub", (False, 1): "mul", (False, -1): "div"}[logs, sign]
                local = self.binary(fn, local, b.local)
        return Part(summed(a.powers, b.powers, sign), local)

    def combined(self, a: Form, b: Form, sign: int) -> Form:
        """The product (with logs: the sum) of two forms, or their quotient (difference)."""
        if a.logs != b.logs or a.flipped != b.flipped or a.ahead or b.ahead or a.whole != b.whole:
            raise Unknown
        rank = max(a.rank, b.rank)
        a, b = self.at_rank(a, rank), self.at_rank(b, rank)
        if (b.pair is not None and (a.pair is not None or sign < 0)) or (b.causal is not None and sign < 0):
            raise Unknown
        parts = dict(a.parts)
        for axis, part in b.parts.items():
            parts[axis] = self.joined(parts.get(axis, Part()), part, a.logs, sign)
        totals = (*a.totals, *((t, s * sign) for t, s in b.totals))
        if len(parts) > 2 or (len(parts) > 1 and (totals or set(parts) != {-1, -2})):
            raise Unknown
        return replace(
            a, parts=parts, totals=totals, still=summed(a.still, b.still, sign), pair=a.pair or b.pair,
            causal=_later(a.causal, b.causal), needs=a.needs or b.needs, offset=a.offset + sign * b.offset,
        )  # fmt: skip

    def scaled(self, form: Form, factor: float) -> Form:
        """A sum of logarithms, times a number."""
        if (
            not form.logs
            or factor == 0.0
            or form.causal is not None
            or (form.totals and abs(factor) != 1.0)
            or form.ahead
        ):
            raise Unknown
        parts = {
            axis: Part(scaled(p.powers, factor), None if p.local is None else self.times(p.local, factor))
            for axis, p in form.parts.items()
        }
        totals = tuple((t, int(s * factor)) for t, s in form.totals)
        return replace(form, parts=parts, totals=totals, still=scaled(form.still, factor), offset=form.offset * factor)

    def raised(self, form: Form) -> Form:
        """The exponential of a sum of logarithms."""
        if not form.logs or form.ahead or form.whole:
            raise Unknown

        def one(part: Part) -> Part:
            if part.local is None:
                return part
            return Part(part.powers, self.without("log", part.local) or self.unary("exp", part.local))

        return replace(form, logs=False, parts={a: one(p) for a, p in form.parts.items()})

    def moved(self, form: Form, perm: tuple[int, ...]) -> Form:
        """The form of the transposed value."""
        rank = form.rank
        if form.pair is not None or form.causal is not None or form.needs:
            raise Unknown
        place = {axis: perm.index(axis + rank) - rank for axis in form.parts}

        def change(value: str, axis: int) -> str:
            order = [a for a in perm if a != axis + rank]  # the other axes, by their old numbers
            old = [a for a in range(rank) if a != axis + rank]
            return self.transpose(value, (0, *(1 + old.index(a) for a in order)))

        moved = self.changed(form, change)
        return replace(moved, parts={place[axis]: p for axis, p in moved.parts.items()})

    def reshaped(self, form: Form, before: tuple, after: tuple) -> Form:
        """The form of the value [before] in the dims `after`, in which the steps keep an axis of their own."""
        if not form.parts and not form.totals:  # the same at all steps
            return replace(form, rank=len(after))
        if set(form.parts) == {-1, -2}:
            return self.pairs_reshaped(form, before, after)
        if len(form.parts) != 1 or form.pair is not None:
            raise Unknown
        ((axis, _),) = form.parts.items()
        where = axis + len(before)
        ahead = D.product(before[:where])
        found = [k for k, d in enumerate(after) if d == D.TIME and D.product(after[:k]) == ahead]
        if len(found) != 1 or after.count(D.TIME) != 1:
            raise Unknown
        others, new = (*before[:where], *before[where + 1 :]), (*after[: found[0]], *after[found[0] + 1 :])

        def change(value: str, _) -> str:
            dims = self.dims(value)
            if dims[1:] != others:  # it broadcasts
                value = self.add("expand", value, dims=(dims[0], *others))
            return self.reshape(value, (dims[0], *new))

        made = self.changed(form, change, rank=len(after))
        return replace(made, parts={found[0] - len(after): made.parts[axis]})

    def pairs_reshaped(self, form: Form, before: tuple, after: tuple) -> Form:
        """The form of a value for each pair of steps if other axes are reshaped, such as one that is put between."""
        if before[-2:] != after[-2:] or D.product(before[:-2]) != D.product(after[:-2]):
            raise Unknown

        def change(value: str, _) -> str:
            first, *lead, last = self.dims(value)
            if all(d == 1 for d in lead):
                return self.reshape(value, (first, *(1,) * (len(after) - 2), last))
            if tuple(lead) != before[:-2]:
                raise Unknown
            return self.reshape(value, (first, *after[:-2], last))

        return self.changed(form, change, rank=len(after))

    def matmul(self, q: Form, k: Form) -> Form:
        """The form of q @ k': q [.., time, R] and k' [.., R, time] are products without running sums as factors."""
        for f in (q, k):
            if f.logs or f.totals or f.still or f.flipped or f.pair or f.needs or f.ahead or f.causal is not None:
                raise Unknown
        if set(q.parts) != {-2} or set(k.parts) != {-1} or q.rank != k.rank:
            raise Unknown
        return Form(q.rank, {-2: Part(), -1: Part()}, False, pair=Pair(q.parts[-2], k.parts[-1]))


def _later(a: int | None, b: int | None) -> int | None:
    """The stricter of two masks."""
    return b if a is None else a if b is None else max(a, b)
