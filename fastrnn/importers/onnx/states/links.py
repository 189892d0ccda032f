"""Which output holds the next value of which input, proved element by element.

The elements of every value that is only moved on its way to an output have numbers. Nodes that move data carry them
on; every other value has new ones. A cell, a `state` node and a join of an input with new steps say which number is the
next value of which. An output whose elements are exactly the next values of one input's, in order, continues it. This
handles stacked layers, packed tensors and transposed layouts, caches whose oldest steps are dropped, and windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ....graph import Graph, Node
from ....graph import dims as D

_MAX_ELEMENTS = 1 << 22  # of one numbered value; states are smaller, and sequences need not be followed
_MAX_ALL = 1 << 24  # of all values
_LONG = 67  # a length at which the fixed indices of caches and windows exist


def links(graph: Graph) -> tuple[list[tuple[str, str]], set[tuple[str, str]]]:
    """(input, output) for every output that holds exactly the next value of an input without a time axis, and for
    every output that only repeats the input."""
    names = sorted({n for v in graph.values.values() for d in v.dims for n in D.symbols(d)})
    sizes = {name: 2 + k for k, name in enumerate(names)}
    first = _Numbering(graph, sizes)
    found = first.links()
    if "time" in sizes:
        found |= _Numbering(graph, sizes | {"time": _LONG}).links()
    order = sorted(found, key=lambda pair: (graph.inputs.index(pair[0]), graph.outputs.index(pair[1])))
    return order, first.repeats()


def timed(value) -> bool:
    """Whether a value has a time axis, so that it is a sequence and no state."""
    return any("time" in D.symbols(d) for d in value.dims)


class _Numbering:
    """The numbers of a graph's values at some sizes."""

    def __init__(self, graph: Graph, sizes: dict[str, int]):
        self.graph, self.sizes = graph, sizes
        self.numbers: dict[str, np.ndarray] = {}
        self.at = 0
        self.begun: dict[str, np.ndarray] = {}  # inputs that can start a state -> their numbers
        self.advances: list[tuple[np.ndarray, np.ndarray]] = []  # (numbers, their next values), flat
        self.of_input = 0  # numbers below this are of inputs that can start a state

    def links(self) -> set[tuple[str, str]]:
        graph = self.graph
        ends = {graph.values[name].dims for name in graph.outputs if not timed(graph.values[name])}
        for name in graph.inputs:  # an image that no output is like is not numbered: it may be large
            if graph.values[name].dims in ends and self._renew(name):
                self.begun[name] = self.numbers[name]
        if not self.begun:
            return set()
        self.of_input = self.at
        wanted = self._wanted()
        for name in (*graph.inputs, *graph.constants):
            if name in wanted and name not in self.numbers:
                self._renew(name)
        for node in graph.nodes:
            self._follow(node)
            for name in node.outputs:
                if name in wanted and name not in self.numbers:
                    self._renew(name)
        for node in graph.nodes:  # what a `state` node reads may be made after it
            if node.op == "state" and node.inputs[1:] not in ((), (None,)) and node.inputs[0] in self.numbers:
                self._advance(node.inputs[1], self.numbers[node.inputs[0]][-1])
        return set(self._found())

    def repeats(self) -> set[tuple[str, str]]:
        """(input, output) where all elements of the output are those of the input."""
        ends = {o: self.numbers[o] for o in self.graph.outputs if o in self.numbers and self.numbers[o].size}
        return {
            (source, output)
            for source, own in self.begun.items()
            for output, numbers in ends.items()
            if own.size and own.flat[0] <= numbers.min() and numbers.max() <= own.flat[-1]
        }

    def _wanted(self) -> set[str]:
        """Values that are numbered: those that are moved to an output, or joined with others."""
        graph = self.graph
        moved = set(self.begun)
        for node in graph.nodes:
            if node.op in _MOVES and any(i in moved for i in node.inputs):
                moved.add(node.outputs[0])
        wanted = {o for o in graph.outputs if not timed(graph.values[o])}
        wanted |= {i for n in graph.nodes if n.op == "state" and n.inputs[1:] not in ((), (None,)) for i in n.inputs}
        for node in reversed(graph.nodes):
            joins = node.op == "concat" and (node.inputs[0] in moved or node.inputs[-1] in moved)
            if joins or (node.op in _MOVES and node.outputs[0] in wanted):
                wanted |= {i for i in node.inputs if i is not None}
        return wanted

    def _renew(self, name: str) -> bool:
        """Give the elements of a value new numbers, if there are not too many of them."""
        try:
            shape = tuple(D.evaluate(d, self.sizes) for d in self.graph.values[name].dims)
        except (ValueError, ZeroDivisionError):
            return False
        count = int(np.prod(shape, dtype=object)) if shape else 1
        if any(n < 0 for n in shape) or count > _MAX_ELEMENTS or self.at + count > _MAX_ALL:
            return False
        self.numbers[name] = np.arange(self.at, self.at + count).reshape(shape)
        self.at += count
        return True

    def _follow(self, node: Node) -> None:
        """Carry numbers through a node that only moves them; note what continues what."""
        if node.op == "cell":
            for k, name in zip((6, 7), node.outputs[1:3], strict=False):
                start = node.inputs[k] if k < len(node.inputs) else None
                if start in self.numbers and name is not None and self._renew(name):
                    self._advance(start, self.numbers[name])
        move = _MOVES.get(node.op)
        if move is None or any(i not in self.numbers for i in node.inputs):
            return
        try:
            moved = move([self.numbers[i] for i in node.inputs], node.attrs, lambda d: D.evaluate(d, self.sizes))
        except (ValueError, IndexError):  # these sizes are too small for the file's fixed indices
            return
        if moved.size <= _MAX_ELEMENTS:
            self.numbers[node.outputs[0]] = moved
            if node.op == "concat":
                self._joined(node, moved)

    def _advance(self, start: str, after: np.ndarray) -> None:
        if start in self.numbers and self.numbers[start].size == after.size:
            self.advances.append((self.numbers[start].reshape(-1), after.reshape(-1)))

    def _joined(self, node: Node, whole: np.ndarray) -> None:
        """New steps behind an input, or before it: as many of the newest steps are its next value."""
        axis = node.attrs["axis"]
        for name, behind in ((node.inputs[0], True), (node.inputs[-1], False)):
            old = self.numbers[name]
            if old.size and old.max() < self.of_input:
                size, all_steps = old.shape[axis], whole.shape[axis]
                self._advance(name, whole.take(range(all_steps - size, all_steps) if behind else range(size), axis))

    def _found(self) -> Iterator[tuple[str, str]]:
        none = np.empty(0, np.int64)
        pairs = np.unique(np.concatenate([before * self.at + after for before, after in self.advances] or [none]))
        names = [name for name, numbers in self.begun.items() if numbers.size]
        first = np.array([self.begun[name].flat[0] for name in names], np.int64)  # ascending
        for output in self.graph.outputs:
            new = self.numbers.get(output)
            if new is None or not new.size:
                continue
            # Inputs whose first element continues as the output's, and those of which the output holds elements.
            continues = np.flatnonzero(_within(first * self.at + new.flat[0], pairs))
            holds = np.searchsorted(first, new.reshape(-1), side="right") - 1
            for k in np.unique(np.concatenate([continues, holds[holds >= 0]])):
                old = self.begun[names[k]]
                if self.graph.values[names[k]].dims == self.graph.values[output].dims and old.shape == new.shape:
                    if _within(old.reshape(-1) * self.at + new.reshape(-1), pairs).all() or _shifts(old, new):
                        yield names[k], output


def _within(numbers: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Which of the numbers are in an ascending array."""
    if not ordered.size:
        return np.zeros(numbers.shape, bool)
    return ordered[np.minimum(np.searchsorted(ordered, numbers), ordered.size - 1)] == numbers


def _shifts(old: np.ndarray, new: np.ndarray) -> bool:
    """Whether `new` is `old` moved along one axis, with other values where it was moved away from."""
    for axis in range(old.ndim):
        a, b = np.moveaxis(old, axis, 0), np.moveaxis(new, axis, 0)
        for one, other, onwards in ((a, b, False), (b, a, True)):  # the oldest go at the front, or at the end
            heads = one.reshape(len(one), -1)[:, 0]
            for n in np.flatnonzero(heads == other.flat[0]):
                if n and np.array_equal(other[:-n], one[n:]):
                    return not np.isin(b[:n] if onwards else b[-n:], old).any()
    return False


def _slice(xs, attrs, size):
    start, stop, step = size(attrs["start"]), size(attrs["stop"]), attrs["step"]
    key = [slice(None)] * xs[0].ndim
    if start < 0 or (step > 0 and stop > xs[0].shape[attrs["axis"]]):
        raise ValueError("outside")
    key[attrs["axis"]] = slice(start, None if stop < 0 else stop, step)
    return xs[0][tuple(key)]


_MOVES: dict[str, Callable] = {
    "reshape": lambda xs, attrs, size: xs[0].reshape([size(d) for d in attrs["dims"]]),
    "transpose": lambda xs, attrs, size: xs[0].transpose(attrs["perm"]),
    "concat": lambda xs, attrs, size: np.concatenate(xs, axis=attrs["axis"]),
    "slice": _slice,
}


def dependencies(graph: Graph) -> dict[str, set[str]]:
    """Output -> the inputs that it depends on."""
    bit = {name: 1 << k for k, name in enumerate(graph.inputs)}
    reached = dict(bit)
    changed = True
    while changed:  # more than once only for cycles
        changed = False
        for node in graph.nodes:
            mask = 0
            for name in node.inputs:
                mask |= reached.get(name, 0)
            for name in node.outputs:
                if name is not None and reached.get(name, 0) | mask != reached.get(name, 0):
                    reached[name] = reached.get(name, 0) | mask
                    changed = True
        changed = changed and any(n.op == "state" for n in graph.nodes)
    return {o: {name for name in graph.inputs if reached.get(o, 0) & bit[name]} for o in graph.outputs}
