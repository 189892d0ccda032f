"""A recurrence that the file writes in parallel -> a cycle over its steps."""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ....graph.dims import Dim
from ....graph.shapes import broadcast
from ....passes.scans import Done, Kernel, Law, Leaf, Read
from ...shared.ledger import Finding
from ..reading.reader import NodeReader
from ..reading.registry import op
from ..reading.values import Const, Live
from ..reroll.parallel import Parallel
from ..reroll.rolled import DOMAIN


@op("Parallel", domain=DOMAIN)
def _parallel(ctx, n: NodeReader):
    """Inputs: what the leaves of the law are made of. Output: y."""
    payload: Parallel = n.node.payload
    law, given = payload.law, {name: n.input(k) for k, name in enumerate(n.node.inputs)}
    made = {leaf: _made(ctx, r, given) for leaf, r in zip(law.leaves, payload.recipes, strict=True)}
    sizes: dict[int | None, object] = {}
    for leaf, x in made.items():
        if len(x.dims) != len(leaf.places) + 1:
            raise ModelFormatError(f"a recurrence over a value of rank {len(x.dims)}")
        for p, size in zip((law.axes, *leaf.places), x.dims, strict=True):
            wanted = sizes.setdefault(p, 1 if p is None else size)
            ctx.equal(wanted, size, "a recurrence in parallel form needs equal sizes")
    if -1 in sizes:
        ctx.number(sizes[-1], "a recurrence in parallel form sums over it")
    cycle = _Filter if isinstance(law, Kernel) else _Cycle
    return [cycle(ctx, law, {leaf.name: _Placed(ctx, law).of(leaf, x) for leaf, x in made.items()}).y()]


def _made(ctx, made, given: dict) -> Live:
    """The value of a recipe, [steps, ..]."""
    if isinstance(made, Read):
        x = ctx.live(given[made.name])
        rank = len(x.dims)
        if made.axis is None:
            gone = {a + rank for a in made.gone}
            return ctx.reshape(x, (1, *(d for a, d in enumerate(x.dims) if a not in gone)))
        axis = made.axis + rank
        return ctx.transpose(x, (axis, *(a for a in range(rank) if a != axis)))
    if isinstance(made, Done):
        inputs = [_made(ctx, i, given) for i in made.inputs]
        rank = max(len(x.dims) for x in inputs)
        inputs = [ctx.reshape(x, (x.dims[0], *(1,) * (rank - len(x.dims)), *x.dims[1:])) for x in inputs]
        return ctx.emit(made.op, inputs, dict(made.attrs))[0]
    x = _made(ctx, made.of, given)
    if len(x.dims) != len(made.perm) + 1:
        raise Finding("a value of another rank than in the file")
    x = ctx.transpose(x, (0, *(p + 1 for p in made.perm)))
    return ctx.reshape(x, (x.dims[0], *(x.dims[1 + int(d)] if isinstance(d, str) else d for d in made.dims)))


class _Placed:
    """Brings leaves to [steps, axes of y.., n, row]; without n if the state is no matrix."""

    def __init__(self, ctx, law: Law):
        self.ctx, self.law, self.row = ctx, law, law.row()
        common = [p for p in range(law.axes) if p != self.row]
        self.common = common
        self.order = [*common, -1, self.row] if law.size else common

    def of(self, leaf: Leaf, x: Live) -> Live:
        """x : the leaf, with its steps first."""
        held = {p: a for a, p in enumerate(leaf.places, 1) if p is not None}
        gone = [a for a, p in enumerate(leaf.places, 1) if p is None]
        kept = [held[p] for p in self.order if p in held]
        moved = self.ctx.transpose(x, (0, *kept, *gone))
        return self.ctx.reshape(moved, (x.dims[0], *(x.dims[held[p]] if p in held else 1 for p in self.order)))


class _Cycle:
    def __init__(self, ctx, law: Law, leaves: dict[str, Live]):
        self.ctx, self.law, self.leaves = ctx, law, leaves
        self.place = _Placed(ctx, law)

    def product(self, leaves) -> Live | None:
        made = None
        for leaf in leaves:
            value = self.leaves[leaf.name]
            made = value if made is None else self.ctx.one("binary", made, value, fn="mul")
        return made

    def decay(self) -> Live | None:
        if self.law.kept is None:
            return None
        leaf, how = self.law.kept
        x = self.leaves[leaf.name]
        if how == "one":
            return x
        return self.ctx.unary("exp", self.ctx.unary("neg", x) if how == "exp of neg" else x)

    def _binary(self, fn: str, a, b):
        return b if a is None else a if b is None else self.ctx.one("binary", a, b, fn=fn)

    def state(self) -> tuple[Live, Live]:
        """(the state one step ago, the state)."""
        ctx, law = self.ctx, self.law
        kept, wrote, values = self.decay(), self.product(law.wrote), self.product(law.values)
        erases = None if law.erased is None else self.product(law.erased)
        parts = [p for p in (kept, wrote, values) if p is not None] + [p for p in (erases,) if p is not None]
        if erases is not None:  # [steps, .., n, 1] as a row
            turned = (*range(len(erases.dims) - 2), len(erases.dims) - 1, len(erases.dims) - 2)
            erases = ctx.transpose(erases, turned)
        dims = parts[0].dims
        for part in parts[1:]:
            dims = broadcast(dims, part.dims)
        before, entry = self.declared(dims)
        aged = before if kept is None else ctx.one("binary", kept, before, fn="mul")
        if erases is None:
            new = self._binary("mul", wrote, values)
        else:
            found = ctx.one("matmul", erases, aged)
            new = ctx.one("binary", wrote, ctx.one("binary", values, found, fn="sub"), fn="mul")
        after = ctx.one("binary", aged, new, fn="add")
        entry[2] = (after.name, None)
        rows = next((d for d in dims[1:] if isinstance(d, Dim)), 1)
        ctx.table.cell(ctx.label, dims[0], rows, forward=True)
        return before, after

    def y(self) -> Live:
        ctx, law = self.ctx, self.law
        before, after = self.state()
        state, read = before if law.strict else after, self.product(law.read)
        if law.size and read is not None:
            turned = (*range(len(read.dims) - 2), len(read.dims) - 1, len(read.dims) - 2)
            made = ctx.one("matmul", ctx.transpose(read, turned), state)
            made = ctx.reshape(made, (*made.dims[:-2], made.dims[-1]))
        elif law.size:
            made = ctx.one("reduce", state, fn="sum", axes=(len(state.dims) - 2,), keepdims=False)
        else:
            made = self._binary("mul", read, state)
        order = [*self.place.common, self.place.row] if law.size else self.place.common
        if law.size and self.place.row is None:
            made, order = ctx.reshape(made, made.dims[:-1]), self.place.common
        return self._joined(made, order)

    def declared(self, dims: tuple, kind: str = "state") -> tuple[Live, list]:
        """The state one step ago, and its node, which gets its input later."""
        ctx, k = self.ctx, 2
        before = ctx.declare(ctx.fresh(f"{ctx.label}:before"), "float32", dims)
        name = f"{ctx.label}.{kind}"
        while name in ctx.labels:
            name, k = f"{ctx.label}.{kind}.{k}", k + 1
        ctx.labels.add(name)
        entry = ["state", name, ("", None), [before.name], {}]
        ctx.nodes.append(entry)
        ctx.cells += 1
        return before, entry

    def _joined(self, made: Live, order: list) -> Live:
        """y as the file has it: the steps at their axis, and axes joined."""
        ctx, end = self.ctx, self.law.end
        at = end.axis + len(end.groups) + 1
        ahead = sum(end.groups[:at])
        perm = [1 + order.index(p) for p in range(self.law.axes)]
        made = ctx.transpose(made, (*perm[:ahead], 0, *perm[ahead:]))
        rest = [*made.dims[:ahead], *made.dims[ahead + 1 :]]
        dims, k = [], 0
        for count in end.groups:
            size = 1
            for d in rest[k : k + count]:
                size = d * size
            dims.append(size)
            k += count
        steps = made.dims[ahead]
        ctx.table.notes.setdefault(f"parallel {ctx.label}", f"{ctx.label}: {WORDS}")
        return ctx.reshape(made, (*dims[:at], steps, *dims[at:]))


class _Filter(_Cycle):
    """h[t] = pole * h[t-1] + u[t] of complex numbers, y[t] = direct * u[t] + sum of Re(weight * h[t])."""

    def y(self) -> Live:
        ctx, law = self.ctx, self.law
        (u,) = self.leaves.values()
        poles, weights = law.poles, law.weights
        for size, wanted in zip(u.dims[1:], poles.shape, strict=False):
            if wanted > 1:
                ctx.equal(size, wanted, "a convolution has a kernel for each")
        dims = (*u.dims, poles.shape[-1])
        x = ctx.reshape(u, (*u.dims, 1))
        turning = bool(np.abs(poles.imag).max() > 0)
        re, real = self.declared(dims)
        im, imaginary = self.declared(dims) if turning else (None, None)
        new_re = self._times(re, poles.real)
        if turning:
            new_re = ctx.one("binary", new_re, self._times(im, poles.imag), fn="sub")
        new_re = ctx.one("binary", new_re, x, fn="add")
        real[2] = (new_re.name, None)
        seen = self._times(new_re, weights.real)
        if turning:
            new_im = ctx.one("binary", self._times(im, poles.real), self._times(re, poles.imag), fn="add")
            imaginary[2] = (new_im.name, None)
            seen = ctx.one("binary", seen, self._times(new_im, weights.imag), fn="sub")
        made = ctx.one("reduce", seen, fn="sum", axes=(len(dims) - 1,), keepdims=False)
        if law.direct.any():
            made = ctx.one("binary", made, self._times(u, law.direct), fn="add")
        rows = next((d for d in dims[1:] if isinstance(d, Dim)), 1)
        ctx.table.cell(ctx.label, dims[0], rows, forward=True)
        text = f"a kernel of {law.steps} steps is a recurrence of {dims[-1]} states, and goes on as that after them"
        ctx.table.notes.setdefault(
            f"kernel {ctx.label}", f"{ctx.label}: {text} (off by {law.error:.1e} of its largest)"
        )
        return self._joined(made, list(range(law.axes)))

    def _times(self, x: Live, constant: np.ndarray) -> Live:
        return self.ctx.one("binary", x, Const(constant.astype(np.float32)), fn="mul")


WORDS = "took a recurrence in parallel form step by step"
