"""Recurrences that a mixed value may follow: found by trying what each leaf does to it, proved by numbers.

    S[t] = a[t] * S[t-1] + k[t]                     y[t] = sum over n of q[t] * S[t]
    S[t] = a[t] * S[t-1] + k[t] (v[t] - b[t] a[t] S[t-1])       the delta rule

What is tried of each leaf: whether y of other steps depends on it, whether y is linear in it, and which axis of y each
of its axes is. An axis of none of y's is n, which is summed over. Few recurrences are then left, and those are compared
with the file's nodes in float64, at several lengths, with memories of all lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product

import numpy as np

from ...records import dataclass
from .regions import Arrays, End, Region

DECAYS = {
    "exp": np.exp,
    "one": lambda a: a,
    "exp of neg": lambda a: np.exp(-a),
}
_SCALE = 0.4
_TOLERANCE = 1e-9
_LARGEST = 500.0  # sum of the logarithms of decays: float64 holds exp of it


@dataclass(frozen=True)
class Leaf:
    """places: for each axis of the leaf but the steps, the axis of y (without its steps) that it is; -1: n, None: it
    has one element."""

    name: str
    places: tuple[int | None, ...]

    @property
    def summed(self) -> bool:
        return -1 in self.places


@dataclass(frozen=True)
class Law:
    """The recurrence of the value `end.y`; y here is `end.source`.

    read : leaves that multiply the state where it is read. kept : what multiplies the state at each step (None: 1), and
    how. wrote, values : leaves whose product is added. erased : of the delta rule, else None. strict : y reads the
    state of the step before. axes : how many y has besides its steps. size : of n; 0 if nothing is summed.
    """

    end: End
    axes: int
    size: int
    read: tuple[Leaf, ...]
    kept: tuple[Leaf, str] | None
    wrote: tuple[Leaf, ...]
    values: tuple[Leaf, ...]
    erased: tuple[Leaf, ...] | None = None
    strict: bool = False

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        kept = () if self.kept is None else (self.kept[0],)
        return tuple(dict.fromkeys((*self.read, *kept, *self.wrote, *self.values, *(self.erased or ()))))

    def row(self) -> int | None:
        """The axis of y that is a row of the matrix state: values have it alone. None if the state is no matrix."""
        others = {p for leaf in (*self.read, *(() if self.kept is None else (self.kept[0],))) for p in leaf.places}
        others |= {p for leaf in (*self.wrote, *(self.erased or ())) if leaf.summed for p in leaf.places}
        found = [p for leaf in (*self.wrote, *self.values) for p in leaf.places if p is not None and p not in others]
        return max(found, default=None) if self.size else None

    def run(self, given: Arrays, steps: int, shape: tuple[int, ...]) -> np.ndarray:
        """y [steps, ..] in float64. shape: of y without its steps."""
        full = (*shape, max(self.size, 1))

        def one(leaves: tuple[Leaf, ...]) -> np.ndarray:
            made = np.ones((steps, *(1,) * len(full)))
            for leaf in leaves:
                made = made * placed(leaf, given[leaf.name], self.axes)
            return made

        read, wrote, values = one(self.read), one(self.wrote), one(self.values)
        kept = np.ones_like(wrote[:, :1]) if self.kept is None else DECAYS[self.kept[1]](one((self.kept[0],)))
        kept = np.broadcast_to(kept, (steps, *kept.shape[1:]))
        erased = None if self.erased is None else one(self.erased)
        state, out = np.zeros(full), np.empty((steps, *shape))
        for t in range(steps):
            before, state = state, kept[t] * state
            new = values[t] if erased is None else values[t] - (erased[t] * state).sum(-1, keepdims=True)
            state = state + wrote[t] * new
            out[t] = (read[t] * (before if self.strict else state)).sum(-1)
        return out


def placed(leaf: Leaf, array: np.ndarray, axes: int) -> np.ndarray:
    """A leaf [steps, ..] with the axes of y and then n: [steps, *axes, n], of one element each where it has none."""
    order = sorted((p % (axes + 1), k) for k, p in enumerate(leaf.places) if p is not None)
    kept = [k + 1 for _, k in order]
    gone = [k + 1 for k, p in enumerate(leaf.places) if p is None]
    array = array.transpose(0, *kept, *gone)
    shape = [1] * (axes + 1)
    for p, k in order:
        shape[p] = array.shape[1 + kept.index(k + 1)]
    return array.reshape(len(array), *shape)


class Trial:
    """What each leaf of a region does to y, tried at one length."""

    def __init__(self, region: Region, steps: int):
        self.region, self.steps = region, steps
        self.rng = np.random.default_rng(11)
        self.given = {n: _SCALE * self.rng.standard_normal(region.shape(n, steps)) for n in region.leaves}
        self.y = region(self.given, steps)
        self.close = _TOLERANCE * np.abs(self.y).max(initial=0.0)
        if not np.isfinite(self.y).all() or self.y.shape != region.shape(region.y, steps):
            raise ValueError("not finite")

    def changed(self, change: dict[str, np.ndarray]) -> np.ndarray:
        """Which elements of y differ if these leaves are other."""
        made = self.region({**self.given, **change}, self.steps)
        return ~(np.abs(made - self.y) <= self.close)

    def other(self, name: str, key) -> dict[str, np.ndarray]:
        """A leaf with some elements redrawn."""
        array = self.given[name].copy()
        array[key] = _SCALE * self.rng.standard_normal(array[key].shape) + 0.1
        return {name: array}

    def causal(self) -> bool:
        middle = self.steps // 2
        later: dict[str, np.ndarray] = {}
        for name in self.region.leaves:
            later |= self.other(name, slice(middle, None))
        found = self.changed(later)
        return bool(found[middle:].any()) and not found[:middle].any()

    def own(self, name: str) -> bool:
        """Whether only y of the same step depends on the leaf."""
        middle = self.steps // 2 - 1
        found = self.changed(self.other(name, middle))
        return not found[:middle].any() and not found[middle + 1 :].any()

    def linear(self, name: str) -> bool:
        doubled = self.region({**self.given, name: 2.0 * self.given[name]}, self.steps)
        return bool(np.abs(doubled - 2.0 * self.y).max(initial=0.0) <= 4 * self.close)

    def leaf(self, name: str) -> Leaf:
        """Which axis of y each axis of the leaf is."""
        places: list[int | None] = []
        shape = self.given[name].shape
        for axis, size in enumerate(shape[1:], 1):
            if size == 1:
                places.append(None)
                continue
            found = self.changed(self.other(name, (*(slice(None),) * axis, 0)))
            tied = []
            for k, extent in enumerate(self.y.shape[1:], 1):
                over = found.any(tuple(a for a in range(found.ndim) if a != k))
                if extent == size and over[0] and not over[1:].any():
                    tied.append(k - 1)
            if len(tied) > 1:
                raise ValueError("an axis may be one of several")
            places.append(tied[0] if tied else -1)
        if places.count(-1) > 1 or len({p for p in places if p is not None}) != sum(p is not None for p in places):
            raise ValueError("a leaf that is summed over several axes")
        return Leaf(name, tuple(places))


def law_of(region: Region, end: End, lengths: tuple[int, ...]) -> Law | None:
    """The recurrence that the region is, proved at all of these lengths; None if none is."""
    try:
        trial = Trial(region, lengths[0])
        if not trial.causal():
            return None
        tried = [law for law in _laws(trial, end) if _same(law, region, trial.given, trial.y)]
        return next((law for law in tried if proved(law, region, lengths)), None)
    except ValueError:
        return None


def _laws(trial: Trial, end: End) -> Iterator[Law]:
    region = trial.region
    own = {n: trial.own(n) for n in region.leaves}
    linear = {n: trial.linear(n) for n in region.leaves}
    if any(own[n] and not linear[n] for n in region.leaves):
        return
    leaves = {n: trial.leaf(n) for n in region.leaves}
    size = {trial.given[n].shape[1 + leaf.places.index(-1)] for n, leaf in leaves.items() if leaf.summed}
    if len(size) > 1:
        return
    read = tuple(leaves[n] for n in region.leaves if own[n])
    added = tuple(leaves[n] for n in region.leaves if linear[n] and not own[n])
    rest = [leaves[n] for n in region.leaves if not linear[n]]
    met = {p for leaf in leaves.values() for p in leaf.places}
    if any(extent > 1 and p not in met for p, extent in enumerate(trial.y.shape[1:])):
        return
    head = (end, trial.y.ndim - 1, max(size, default=0), read)
    if len(rest) == 1 or (not rest and size):  # a running sum alone is best left as it is
        for strict, how in product((False, True), DECAYS if rest else ("",)):
            yield Law(*head, (rest[0], how) if rest else None, added, (), strict=strict)
    yield from _delta_rules(head, added, rest)


def _delta_rules(head: tuple, added: tuple[Leaf, ...], rest: list[Leaf]) -> Iterator[Law]:
    """Each way in which leaves may be keys that erase, keys that write, a strength of both, and a decay."""
    wide, narrow = [x for x in rest if x.summed], [x for x in rest if not x.summed]
    if not 1 <= len(wide) <= 2 or len(narrow) > 2 or any(leaf.summed for leaf in added):
        return
    keys = [(wide[0], wide[0])] if len(wide) == 1 else list(permutations(wide))
    for (writes, erases), count in product(keys, range(len(narrow) + 1)):
        for chosen in permutations(narrow, count):
            strength, decays = chosen, [x for x in narrow if x not in chosen]
            if len(decays) > 1 or len(strength) > 1:
                continue
            for how in DECAYS if decays else ("",):
                kept = (decays[0], how) if decays else None
                for both in (True, False) if strength else (False,):
                    values = (*added, *(() if both else strength))
                    wrote = (writes, *(strength if both else ()))
                    yield Law(*head, kept, wrote, values, (erases,))


def _same(law: Law, region: Region, given: Arrays, y: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        made = law.run(given, len(y), y.shape[1:])
    largest = np.abs(y).max(initial=0.0)
    return bool(np.isfinite(y).all()) and bool(np.abs(made - y).max(initial=0.0) <= _TOLERANCE * largest)


def proved(law: Law, region: Region, lengths: tuple[int, ...]) -> bool:
    """Whether the law gives what the file's nodes give: for memories that last a step, and ones that never end.

    Strong decays make all but the last steps vanish. They show a small number that is added to a divisor.
    """
    rng = np.random.default_rng(5)
    for steps in lengths:
        for scale, memory in ((1.0, 1.0), (1.0, 1.0 / steps), (8.0, 0.5), (1.0, -_LARGEST / steps), (1e-4, -1.0)):
            given = {n: scale * rng.standard_normal(region.shape(n, steps)) for n in region.leaves}
            for leaf in () if law.erased is None else (*law.wrote, *law.erased):  # states that don't grow
                given[leaf.name] = given[leaf.name] / (scale * max(1.0, np.sqrt(law.size)))
            if law.kept is not None:
                leaf, how = law.kept
                given[leaf.name] = _drawn(rng, how, memory, region.shape(leaf.name, steps))
            if not _same(law, region, given, region(given, steps)):
                return False
    return True


def _drawn(rng: np.random.Generator, how: str, memory: float, shape: tuple[int, ...]) -> np.ndarray:
    """A leaf that keeps the state for about 1 / memory steps, and is a decay alone if memory is negative."""
    drawn = rng.standard_normal(shape)
    decay = memory * np.abs(drawn) if memory < 0 else memory * drawn
    if how == "one":
        return np.exp(decay) * np.where(rng.random(shape) < 0.2, -1.0, 1.0)
    return decay if how == "exp" else -decay
