"""A mixed value as a function of its leaves, in float64. All arrays here have their steps first: [steps, ..]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ...errors import FastRNNError
from ...graph import Graph, Node, reference
from ...graph import dims as D
from ...graph.traverse import free_inputs, subgraph
from ...records import dataclass
from .spread import Axes, Spread

Arrays = Mapping[str, np.ndarray]
MOST_ELEMENTS = 1 << 24  # of all values of one evaluation
_OTHERS = 2  # the size of every symbol but the length


@dataclass(frozen=True)
class End:
    """A value y whose axis `axis` (from the end) has the steps again, made of `leaves`.

    source, axes : the value before chunks and features are joined, and its axes of steps; y itself if they are not
    groups : how many axes of the source each axis of y but the steps joins
    """

    y: str
    axis: int
    source: str
    axes: Axes
    groups: tuple[int, ...]
    leaves: tuple[str, ...]


class Region:
    """The part of a graph that makes the value `y`, whose steps are at these axes, from leaves.

    budget : elements that may still be computed, in a list
    Raises ValueError if it depends on more, or on values that are not float32, or is too large to evaluate.
    """

    def __init__(self, spread: Spread, end: End, steps: int, budget: list[int]):
        graph, y, leaves = spread.graph, end.source, end.leaves
        self.graph, self.y, self.leaves, self.budget = graph, y, leaves, budget
        self.axes = {name: spread.axes[name] for name in leaves} | {y: end.axes}
        self.part = subgraph(graph, leaves, [y])
        known = set(leaves) | set(graph.constants)
        if set(free_inputs(self.part.nodes)) - known or any(graph.values[n].dtype != "float32" for n in (*leaves, y)):
            raise ValueError("it depends on other values than its leaves")
        made = [graph.values[o].dims for n in self.part.nodes for o in n.outputs if o is not None]
        names = {s for n in (*leaves, y) for d in graph.values[n].dims for s in D.symbols(d)}
        self.others = dict.fromkeys(names, _OTHERS)
        self.cost = sum(int(D.product(D.evaluate(d, self.sizes(steps)) for d in dims)) for dims in made)
        if self.cost > MOST_ELEMENTS:
            raise ValueError("it is too large to be proved")

    def sizes(self, steps: int) -> dict[str, int]:
        return {**self.others, "time": steps}

    def shape(self, name: str, steps: int) -> tuple[int, ...]:
        """The shape of a leaf, or of y, with its steps first."""
        dims = [D.evaluate(d, self.sizes(steps)) for d in self.graph.values[name].dims]
        axes = [a + len(dims) for a in self.axes[name]]
        return (int(np.prod([dims[a] for a in axes])), *(d for a, d in enumerate(dims) if a not in axes))

    def __call__(self, given: Arrays, steps: int) -> np.ndarray:
        """y [steps, ..] for leaves [steps, ..]."""
        self.budget[0] -= self.cost
        if self.budget[0] < 0:
            raise ValueError("too much was tried")
        sizes, feeds = self.sizes(steps), {}
        for name in self.leaves:
            dims = [D.evaluate(d, sizes) for d in self.graph.values[name].dims]
            axes = [a + len(dims) for a in self.axes[name]]
            array = given[name].reshape(*(dims[a] for a in axes), *given[name].shape[1:])
            feeds[name] = np.moveaxis(array, range(len(axes)), axes)
        try:
            with np.errstate(all="ignore"):
                (made,) = reference.run(self.part, feeds, sizes=sizes)
        except FastRNNError as error:
            raise ValueError(str(error)) from None
        axes = [a + made.ndim for a in self.axes[self.y]]
        made = np.moveaxis(made, axes, range(len(axes)))
        return made.reshape(steps, *made.shape[len(axes) :])


def ends(graph: Graph, spread: Spread, most_leaves: int) -> Iterator[End]:
    """Each mixed value that is as long as the sequence again, in the graph's order."""
    for node in graph.nodes:
        if not spread.visit(node):
            continue
        (y,) = node.outputs
        leaves = tuple(sorted(spread.mixed[y]))
        for axis in spread.places(y) if len(leaves) <= most_leaves else ():
            joined = _before(spread, node, axis) if node.op == "reshape" else None
            yield joined or End(y, axis, y, (axis,), (1,) * (len(spread.dims(y)) - 1), leaves)
            if y in spread.axes:
                break


def _before(spread: Spread, node: Node, axis: int) -> End | None:
    """The end before a reshape that joins its axes: chunks with their steps, features with others."""
    (source,), (y,), dims = node.inputs, node.outputs, spread.dims(node.outputs[0])
    if source not in spread.mixed:
        return None
    before, place = spread.dims(source), axis + len(dims)
    ahead = D.product(dims[:place])
    for k in range(len(before)):
        for count in (1, 2):
            if D.product(before[:k]) == ahead and D.product(before[k : k + count]) == dims[place]:
                parts = [_groups(before[:k], dims[:place]), _groups(before[k + count :], dims[place + 1 :])]
                if k + count > len(before) or None in parts or 1 in before[k : k + count]:
                    continue
                axes = tuple(a - len(before) for a in range(k, k + count))
                return End(y, axis, source, axes, (*parts[0], *parts[1]), tuple(sorted(spread.mixed[y])))
    return None


def _groups(before: tuple, after: tuple) -> tuple[int, ...] | None:
    """How many axes of `before` each axis of `after` joins; None if it joins none."""
    groups, k = [], 0
    for size in after:
        counts = (*range(1, len(before) - k + 1), 0)
        count = next((c for c in counts if D.product(before[k : k + c]) == size), None)
        if count is None:
            return None
        groups.append(count)
        k += count
    return tuple(groups) if k == len(before) else None
