"""Frozen targets of Reshape, reinterpreted as functions of the sizes they came from.

All rules are consistent with the file's own sizes by construction: substituting the examples gives the file's
constants. If two readings are possible, the sizes concerned stay frozen.
"""

from __future__ import annotations

from itertools import product as choices
from math import prod

from ....errors import ModelFormatError
from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from .evidence import SMALL


def reshape_dims(ctx, dims: tuple, target: list, allowzero: bool) -> tuple:
    """The result dims of Reshape: 0 and -1 resolved, frozen numbers traced back to the dims they came from."""
    out = []
    for i, t in enumerate(target):
        if isinstance(t, int) and t == 0 and not allowzero:
            if i >= len(dims):
                raise ModelFormatError(f"Reshape to {_show(target)} copies axis {i} of rank {len(dims)}")
            t = dims[i]
        out.append(t)
    holes = [i for i, t in enumerate(out) if isinstance(t, int) and t == -1]
    if len(holes) > 1 or any(isinstance(t, int) and t < -1 for t in out):
        raise ModelFormatError(f"Reshape to {_show(target)}")
    if all(isinstance(d, int) for d in (*dims, *out)):
        return _plain(dims, out, holes, target)
    exact = _exact(dims, out, holes)
    if exact is not None and _certain(ctx, dims, out, holes):
        found = exact
    else:
        found = _by_examples(ctx, dims, out, holes, exact)
    _note_merged(ctx, dims, found)
    for t in {t for t in found if isinstance(t, int) and t > SMALL}:
        for d in dims:  # [b, 6, 6] -> [-1, 6]: rows of features, or of steps
            if isinstance(d, Dim) and ctx.table.genuine(d) and ctx.table.example(d) == t and d not in found:
                ctx.table.ledger.count(d, ctx.label, f"has {t} for an axis", weak=True, steps=True)
    return found


def _note_merged(ctx, dims, found) -> None:
    """Record the dims that make up each product in `found`, in order: adjacent ones, or one and a part of the next ([b,
    16] -> [4*b, 4])."""
    joined, ctx.table.joined = ctx.table.joined, set()
    for whole in found:
        if not isinstance(whole, Dim) or whole in dims or whole in joined or ctx.table.single(whole) is not None:
            continue
        for d in dims:
            factor = D.exact_div(whole, d) if isinstance(d, Dim) else None
            if isinstance(factor, int):
                ctx.table.merged[whole] = (d, factor)
        for i in range(len(dims)):
            for j in range(i + 2, len(dims) + 1):
                if D.product(dims[i:j]) == whole:
                    ctx.table.merged[whole] = tuple(d for d in dims[i:j] if not (isinstance(d, int) and d == 1))


def _show(target) -> str:
    return "[" + ", ".join(map(str, target)) + "]"


def _plain(dims, out, holes, target) -> tuple:
    total, rest = prod(dims), prod(t for i, t in enumerate(out) if i not in holes)
    if holes:
        if rest == 0 or total % rest:
            raise ModelFormatError(f"Reshape of {_show(dims)} to {_show(target)}")
        out[holes[0]] = total // rest
    elif total != rest:
        raise ModelFormatError(f"Reshape of {_show(dims)} to {_show(target)}")
    return tuple(out)


def _exact(dims, out, holes) -> tuple | None:
    """The target taken literally, if it is valid for every size; None otherwise."""
    total = D.product(dims)
    rest = D.product(t for i, t in enumerate(out) if i not in holes)
    if not holes:
        return tuple(out) if total == rest else None
    hole = D.exact_div(total, rest) if rest != 0 else None
    return None if hole is None else tuple(hole if i in holes else t for i, t in enumerate(out))


def _certain(ctx, dims, out, holes) -> bool:
    """Whether no int of the target can be a frozen size: every symbol of the input appears in a symbolic part of the
    target, and -1 absorbs no symbol that an int might represent."""
    named = set().union(*(D.symbols(t) for t in out)) if out else set()
    left = set().union(*(D.symbols(d) for d in dims)) - named
    if not left or not holes:
        return True
    syms = [s for d in dims for s in ctx.table.of(d) if (s.final or s.name) in left]
    numbers = [t for i, t in enumerate(out) if isinstance(t, int) and i not in holes]
    return all(not s.genuine or not any(t % s.example == 0 for t in numbers) for s in syms)


def _by_examples(ctx, dims, out, holes, exact) -> tuple:
    table = ctx.table
    total = table.example(D.product(dims))
    rest = prod(table.example(t) for i, t in enumerate(out) if i not in holes)
    if holes:
        if rest == 0 or total % rest:
            raise _misfit(ctx, dims, out)
        out[holes[0]] = total // rest
    elif total != rest:
        raise _misfit(ctx, dims, out)
    blamed: list = []
    found = _match(ctx, dims, out, blamed)
    found = None if found is not None and _misplaced(ctx, dims, out, found, blamed) else found
    if found is None or D.product(found) != D.product(dims):
        if exact is not None and not any(table.genuine(d) for d in dims if isinstance(d, Dim)):
            return exact
        # Only the sizes of the ambiguous group freeze; if no group is to blame, all do.
        culprits = [d for d in blamed if isinstance(d, Dim)] or [d for d in (*dims, *out) if isinstance(d, Dim)]
        table.freeze(culprits, f"Reshape to {_show(out)} can be read in two ways")
    for d in found:
        if isinstance(d, Dim):
            table.notes.setdefault(
                f"reshape {ctx.label}", f"{ctx.label}: Reshape to {_show(out)} follows {_show(found)}"
            )
    return found


def _misfit(ctx, dims, out):
    """What to raise if even the examples don't fit.

    PyTorch's exporters may leave an input's length open and still write the example's length into a Reshape. Such a
    number becomes the example of the axis at its place if it makes all sizes of the Reshape match, or if a hole (-1)
    absorbs the rest and an output of the file is declared with that length. Any other number is intended, for example
    blocks of frames, which a sequence may have any number of.
    """
    # A product that a Reshape made is split the way it was joined: [t*b, N] -> [12, -1, N]. Ones are not sizes.
    apart = [part for d in dims for part in (ctx.table.merged.get(d, (d,)) if len(dims) < len(out) else (d,))]
    sides = [[v for v in side if not (isinstance(v, int) and v == 1)] for side in (apart, out)]
    holes = [t for t in out if isinstance(t, int) and t == -1]
    for d, t in zip(*sides, strict=False):
        sym = ctx.table.single(d)
        meant = sym is not None and not sym.genuine and isinstance(t, int) and t > 0
        steps = meant and (sym.role == "time" or (sym.role is None and sym.axis > 0))
        taken_up = steps and t in ctx.table.declared and _fills(ctx, dims, out, d, t)
        if taken_up or (meant and not holes and _comes_out_even(ctx, dims, out, d, t)):
            ctx.table.hint(sym, t, f"{ctx.label} (Reshape to {_show(out)})")
        if not (isinstance(t, int) and t == -1) and not (isinstance(d, Dim) and d == t):
            break
    opened = [d for d in dims if isinstance(d, Dim) and not ctx.table.genuine(d)]
    if opened:
        return Finding(f"Reshape of {_show(dims)} to {_show(out)}, which fixes a size that the file leaves open")
    return ModelFormatError(f"Reshape of {_show([ctx.table.example(d) for d in dims])} to {_show(out)}")


def _fills(ctx, dims, out, free: Dim, size: int) -> bool:
    """Whether the hole of [b, s, 12] -> [-1, 7, 3, 4] is another free size, b, exactly if the free s is 7."""
    (name,) = D.symbols(free)
    known = {(s.final or s.name): s.example for d in dims for s in ctx.table.of(d) if s.genuine and s.role is None}
    rest = D.product(t for t in out if not (isinstance(t, int) and t == -1))
    hole = D.exact_div(D.substitute(D.product(dims), known | {name: size}), rest)
    return (
        -1 in [t for t in out if isinstance(t, int)]
        and ctx.table.single(hole) is not None
        and name not in D.symbols(rest)
    )


def _comes_out_even(ctx, dims, out, free: Dim, size: int) -> bool:
    """Whether [s, b, 8] -> [12, 2*b, 4] keeps its elements for any b exactly if the free s is 12. The file then runs at
    no other length. False if the target itself depends on s."""
    (name,) = D.symbols(free)
    if any(name in D.symbols(t) for t in out):
        return False
    symbols = [s for d in (*dims, *out) for s in ctx.table.of(d) if s.genuine]
    known = {(s.final or s.name): s.example for s in symbols}
    return D.substitute(D.product(dims), known | {name: size}) == D.substitute(D.product(out), known)


def _match(ctx, dims, out, blamed: list) -> tuple | None:
    """Row-major reshape by groups: runs of input and output dims with equal products belong together.

    None unless exactly one way is possible; `blamed` then gets the dims of the group that failed.
    """
    size = [ctx.table.example(d) for d in dims]
    goal = [ctx.table.example(t) for t in out]
    if 0 in size:
        return None
    result: list = list(out)
    i = j = 0
    while i < len(dims) or j < len(out):
        i0, j0 = i, j
        while i < len(dims) and size[i] == 1:
            i += 1
        while j < len(out) and goal[j] == 1:
            j += 1
        ones = _ones(ctx, dims[i0:i], list(range(j0, j)))
        if ones is None:
            blamed += dims[i0:i]
            return None
        carried, placed = ones
        for where, d in placed.items():
            result[where] = d
        if carried and 0 < j0 == j < len(out) and i < len(dims) and size[i] <= goal[j]:
            # [t, 1, N] -> [t, N]: rows join steps; they would not join a features axis alone.
            result[j - 1] = _joined(ctx, result[j - 1], carried)
            carried = []
        i1, j1 = i, j
        if i == len(dims) or j == len(out):
            if i != len(dims) or j != len(out):
                return None
            return tuple(result) if not carried else _carry_back(result, goal, carried)
        left, right = size[i], goal[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right and i < len(dims):
                left, i = left * size[i], i + 1
            elif right < left and j < len(out):
                right, j = right * goal[j], j + 1
            else:
                return None
        inner, end = list(dims[i1:i]), j
        if not carried and len(inner) > 1 and end == j1 + 1 and j1 > 0:
            ones, inner[0] = _leading_ones(ctx, inner[0])
            result[j1 - 1] = _joined(ctx, result[j1 - 1], ones)
        if not carried and len(inner) == 1:
            *ones, (_, inner[0]) = _apart(ctx, inner[0], [k for k in range(j0, j1) if isinstance(result[k], int)])
            for where, d in ones:
                result[where] = d
        if not carried and len(inner) == 1 and end == j1 + 1:
            inner[0], ones = _trailing_ones(ctx, inner[0], goal[j:])
            result[j : j + len(ones)], j = ones, j + len(ones)
        part = _group(ctx, [*carried, *inner], out[j1:end], goal[j1:end])
        if part is None:
            blamed += [*carried, *dims[i1:i]]
            return None
        result[j1:end] = part
    return tuple(result)


def _joined(ctx, size, ones: list):
    """A size joined with the free ones after it; the factors are recorded."""
    whole = D.product(ones) * size
    if ones:
        ctx.table.merged[whole] = (*ctx.table.merged.get(size, (size,)), *ones)
        ctx.table.joined.add(whole)
    return whole


def _misplaced(ctx, dims, out, found, blamed: list) -> bool:
    """Whether a free one was joined to its neighbours although the target has an unfilled place of one: [1, 8, 6] ->
    [8, 1, 6] either swaps rows and steps or puts them in one row, which can't be decided. `blamed` gets the free
    ones."""
    ones = [d for d in dims if isinstance(d, Dim) and ctx.table.single(d) is not None and ctx.table.example(d) == 1]
    joined = [d for d in ones if d not in found]
    spare = sum(f == 1 for f in found if isinstance(f, int)) - sum(d == 1 for d in dims if isinstance(d, int))
    written = [t for t in out if isinstance(t, Dim)]
    if joined and spare > 0 and not any(d in written for d in joined):
        blamed += joined
        return True
    return False


def _ones(ctx, dims, places) -> tuple | None:
    """Ones between two groups: (symbolic ones that join the next group, place -> dim); None if it is ambiguous.

    Several ones for one place become a product, and such a product is later split the way it was joined. This is how a
    product over the last axis is written ([b, t, K] -> [b*t, K] -> [b*t, N] -> [b, t, N]).
    """
    symbolic = [d for d in dims if isinstance(d, Dim)]
    if not symbolic:
        return [], dict.fromkeys(places, 1)
    if len(dims) == len(places):
        return [], dict(zip(places, dims, strict=True))
    if len(symbolic) == len(places):
        return [], dict(zip(places, symbolic, strict=True))
    if not places:
        return symbolic, {}
    if len(places) == 1:
        whole = D.product(symbolic)
        ctx.table.merged[whole] = tuple(symbolic)
        return [], {places[0]: whole}
    parts = ctx.table.merged.get(symbolic[0], ()) if len(symbolic) == 1 else ()
    if len(parts) == len(places):
        ctx.table.guessed = True
        return [], dict(zip(places, parts, strict=True))
    if len(dims) < len(places) and ctx.table.guess:
        spare = [1] * (len(places) - len(dims))
        right = ctx.table.choose(ctx.label, dims) == "right"
        dims = [*spare, *dims] if right else [*dims, *spare]
        return [], dict(zip(places, dims, strict=True))
    return None


def _apart(ctx, dim, places) -> list:
    """[(place, free one).., (None, rest)]: split a product that contains free ones if places of one directly precede
    it. places: those places, in order."""
    parts = ctx.table.merged.get(dim, ())
    ones = [d for d in parts if isinstance(d, Dim) and ctx.table.example(d) == 1]
    rest = parts[len(ones) :]
    if not ones or len(rest) != 1 or list(parts[: len(ones)]) != ones or len(ones) > len(places):
        return [(None, dim)]
    ctx.table.guessed = True
    return [*zip(places[-len(ones) :], ones, strict=True), (None, rest[0])]


def _leading_ones(ctx, dim) -> tuple:
    """(free ones, rest): in [t, 4*b, 4] -> [t, 16], the b that 4*b begins with, which joins the steps."""
    parts = ctx.table.merged.get(dim, ())
    ones = [d for d in parts[:1] if isinstance(d, Dim) and ctx.table.example(d) == 1]
    return ones, D.product(parts[1:]) if ones else dim


def _trailing_ones(ctx, dim, goal) -> tuple:
    """(rest, free ones): in [t*b, N] -> [12, 1, N], the b that has a place of one directly after t."""
    parts = ctx.table.merged.get(dim, ())
    if len(parts) == 2 and goal[:1] == [1] and isinstance(parts[1], Dim) and ctx.table.example(parts[1]) == 1:
        return parts[0], [parts[1]]
    return dim, []


def _carry_back(result, goal, carried) -> tuple | None:
    """Multiply trailing symbolic ones without their own place into the last dim that is longer than one."""
    where = [k for k, g in enumerate(goal) if g != 1]
    if not where:
        return None
    for d in carried:
        result[where[-1]] = d * result[where[-1]]
    return tuple(result)


def _group(ctx, dims, out, goal) -> list | None:
    """One group: distribute the symbols of `dims` over `out` so that examples give `goal`; None unless exactly one
    way."""
    if all(isinstance(d, int) for d in dims):
        return list(out)
    if len(out) == 1:
        whole = D.product(dims)
        if len(dims) > 1:
            ctx.table.merged[whole] = tuple(dims)
        return [whole]
    if len(dims) == len(out) and list(map(ctx.table.example, dims)) == goal:
        return list(dims)
    parts = ctx.table.merged.get(dims[0], ()) if len(dims) == 1 else ()
    if list(map(ctx.table.example, parts)) == goal:  # joined by another Reshape, and now split again
        return list(parts)
    whole = D.product(dims)
    if not isinstance(whole, Dim) or len(whole.terms) != 1:
        return None
    ((mono, _coef),) = whole.terms.items()
    atoms = [Dim({(a,): 1}) for a in mono]
    found = []
    for places in choices(range(len(out)), repeat=len(atoms)) if len(out) ** len(atoms) <= 4096 else ():
        parts: list = [1] * len(out)
        for atom, place in zip(atoms, places, strict=True):
            parts[place] = atom * parts[place]
        examples = [ctx.table.example(p) for p in parts]
        if all(g % e == 0 for g, e in zip(goal, examples, strict=True)):
            parts = [(g // e) * p for g, e, p in zip(goal, examples, parts, strict=True)]
            literal = all(p == t for p, t in zip(parts, out, strict=True) if isinstance(t, Dim))
            if D.product(parts) == whole and literal and parts not in [f[1] for f in found]:
                exactly = sum(g == e for g, e in zip(goal, examples, strict=True))
                found.append((exactly, parts))
    found = [f for f in found if _stays_an_axis(ctx, dims, f[1])]
    best = max((f[0] for f in found), default=0)
    top = [f[1] for f in found if f[0] == best]
    return top[0] if len(top) == 1 else None


def _stays_an_axis(ctx, dims, parts) -> bool:
    """Whether each size that is its own axis in `dims` stays one in `parts`, alone or as the outer or inner part of a
    product. The stride of its elements shows it: [b, 16] -> [4*b, 4] keeps rows, [b, 16] -> [4, 4*b] mixes them."""
    example = ctx.table.example
    for i, d in enumerate(dims):
        sym = ctx.table.single(d)
        if sym is None:
            continue
        apart = prod(map(example, dims[i + 1 :]))
        places = [j for j, part in enumerate(parts) if isinstance(part, Dim) and sym in ctx.table.of(part)]
        for j in places:
            inner = prod(map(example, parts[j + 1 :]))
            if apart % inner or example(parts[j]) % (apart // inner * example(d)):
                return False
    return True
