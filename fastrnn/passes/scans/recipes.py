"""How a leaf is made, step by step, of values that have their steps on one axis.

A file may compute on chunks before it mixes steps. The same is then done to the whole sequence. In a recipe, values
have their steps first: [steps, ..].
"""

from __future__ import annotations

from collections.abc import Collection

from ...graph import dims as D
from ...records import dataclass
from .spread import Spread


class NoRecipe(Exception):
    """The leaf is made in a way that has no recipe."""


@dataclass(frozen=True)
class Read:
    """A value of the file. axis: of its steps, from the end; None if it is the same at all steps. Then `gone` are its
    axes, from the end, where the values that it meets have their steps."""

    name: str
    axis: int | None
    gone: tuple[int, ...] = ()


@dataclass(frozen=True)
class Done:
    """A node of the graph ("unary" or "binary") applied to recipes."""

    op: str
    attrs: tuple[tuple[str, object], ...]
    inputs: tuple


@dataclass(frozen=True)
class Moved:
    """perm: of the axes but the steps. dims: of those axes then; a symbolic one is the axis of that number before."""

    of: object
    perm: tuple[int, ...]
    dims: tuple[int | str, ...]


def recipe(spread: Spread, name: str, named: Collection[str], depth: int = 0):
    """What makes the value from values that have a name in the file. Raises NoRecipe if it has no recipe."""
    axes, node = spread.axes.get(name), spread.makers.get(name)
    if axes is not None and len(axes) == 1 and name in named:
        return Read(name, axes[0])
    if axes is None or node is None or depth > 20:
        raise NoRecipe
    if node.op in ("unary", "binary"):
        inputs = tuple(_operand(spread, i, name, named, depth) for i in node.inputs if i is not None)
        return Done(node.op, tuple(sorted(node.attrs.items())), inputs)
    if node.op not in ("reshape", "transpose", "slice"):
        raise NoRecipe
    source = node.inputs[0]
    inner = recipe(spread, source, named, depth + 1)
    before, after = _others(spread, source), _others(spread, name)
    if node.op == "slice":
        if before != after:
            raise NoRecipe
        return inner
    if node.op == "transpose":
        rank, own = len(node.attrs["perm"]), spread.axes[source]
        left = [a for a in range(rank) if a - rank not in own]
        return Moved(
            inner, tuple(left.index(p) for p in node.attrs["perm"] if p - rank not in own), _named(after, after)
        )
    return Moved(inner, tuple(range(len(before))), _named(before, after))


def _operand(spread: Spread, name: str, like: str, named: Collection[str], depth: int):
    """An operand of a node whose result is `like`."""
    if name in spread.axes:
        inner = recipe(spread, name, named, depth + 1)
        missing = len(spread.dims(like)) - len(spread.dims(name))
        others = _others(spread, name)
        if missing == 0:
            return inner
        return Moved(inner, tuple(range(len(others))), (*(1,) * missing, *_named(others, others)))
    if name not in named and name not in spread.graph.constants:
        raise NoRecipe
    rank = len(spread.dims(name))
    return Read(name, None, tuple(a for a in spread.axes[like] if -a <= rank))


def _others(spread: Spread, name: str) -> tuple:
    dims = spread.dims(name)
    return tuple(d for a, d in enumerate(dims) if a - len(dims) not in spread.axes[name])


def _named(before: tuple, after: tuple) -> tuple[int | str, ...]:
    """The dims `after`, with the places of symbolic ones in `before`."""
    made: list[int | str] = []
    for d in after:
        if D.symbols(d) and before.count(d) != 1:
            raise NoRecipe
        made.append(f"{before.index(d)}" if D.symbols(d) else d)
    return tuple(made)
