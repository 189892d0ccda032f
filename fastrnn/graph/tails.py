"""Caches in front of a chunk: states that hold the last steps of a sequence, which the caller hands on.

An encoder joins a cache and its chunk along time, convolves over both, and gives the last steps of the joint as the
next cache. That is the tail that a stream keeps for a window, with a beginning that the caller gives. So such a file
takes chunks of any length, if each answer depends on the steps before it alone.

`tails(graph)` proves it element by element. The elements of the states, and of all values that are only moved, have
numbers. A concat of state elements and a sequence is a cache if the next value of each of these elements is the element
that is as many steps later in the joint as the chunk has. This handles caches that are parts of one state, and any
arrangement of axes.
"""

from __future__ import annotations

import numpy as np

from ..records import dataclass
from . import dims as D
from .types import Graph, Node

_LENGTHS = (3, 11)  # of the chunk; bounds are linear in it, so two lengths tell
_OTHERS = 2  # any other size
_MOST = 1 << 22  # elements of all numbered values
_MOVES = frozenset(("reshape", "transpose", "slice", "concat"))


@dataclass(frozen=True)
class Tails:
    """joints : name of a concat -> the cached steps in front of its sequence. states : those that are caches and
    nothing else."""

    joints: dict[str, int]
    states: frozenset[str]


def tails(graph: Graph) -> Tails:
    """The caches of a graph that takes sequences."""
    timed = any(D.TIME in graph.values[name].dims for name in graph.inputs)
    joints = [n for n in graph.nodes if _may_join(graph, n)] if timed and graph.states else []
    if not joints:
        return Tails({}, frozenset())
    found = [_Numbers(graph, length).tails(joints) for length in _LENGTHS]
    if found[0] is None or found[1] is None or found[0].joints != found[1].joints:
        return Tails({}, frozenset())
    return Tails(found[0].joints, found[0].states & found[1].states)


def _may_join(graph: Graph, node: Node) -> bool:
    """Whether a concat puts a fixed number of steps in front of a sequence."""
    if node.op != "concat" or len(node.inputs) != 2:
        return False
    first, second = (graph.values[i].dims[node.attrs["axis"]] for i in node.inputs)
    return isinstance(first, int) and first > 0 and second == D.TIME


class _Numbers:
    """The numbers of a graph's values at one length."""

    def __init__(self, graph: Graph, length: int):
        self.graph, self.length, self.at = graph, length, 0
        names = {s for v in graph.values.values() for d in v.dims for s in D.symbols(d)}
        self.sizes = dict.fromkeys(names, _OTHERS) | {"time": length}
        self.numbers: dict[str, np.ndarray] = {}

    def tails(self, joints: list[Node]) -> Tails | None:
        """The caches at this length; None if there is too much to number."""
        graph = self.graph
        try:
            begun = [(name, self._renew(name)) for name in graph.states]
            self.of_states = self.at
            for node in graph.nodes:
                self._follow(node)
        except _TooMuch:
            return None
        after = np.full(self.of_states, -1, np.int64)
        for name, own in begun:
            new = self.numbers.get(graph.states[name])
            if new is not None and new.shape == own.shape:
                after[own.reshape(-1)] = new.reshape(-1)
        proved = {node.name: self._steps(node) for node in joints if self._continues(node, after)}
        return Tails(proved, frozenset(graph.states) - self._read(begun, proved))

    def _read(self, begun: list, proved: dict[str, int]) -> set[str]:
        """The states that something else than a cache reads."""
        owners, found = np.repeat(np.arange(len(begun)), [own.size for _, own in begun]), set()
        before = {name for name, _ in begun}  # values that are elements of states, as they were before the call
        for node in self.graph.nodes:
            mine = [i for i in node.inputs if i in before]
            if not mine or node.name in proved:
                continue
            if node.op in _MOVES and len(mine) == len(node.inputs) and node.outputs[0] in self.numbers:
                before.add(node.outputs[0])
            else:
                found |= {begun[k][0] for i in mine for k in np.unique(owners[self.numbers[i]])}
        return found

    def _steps(self, node: Node) -> int:
        return self.graph.values[node.inputs[0]].dims[node.attrs["axis"]]

    def _renew(self, name: str) -> np.ndarray:
        """Numbers of its own for a value."""
        shape = tuple(D.evaluate(d, self.sizes) for d in self.graph.values[name].dims)
        count = int(np.prod(shape, dtype=object)) if shape else 1
        if any(n < 0 for n in shape) or self.at + count > _MOST:
            raise _TooMuch
        self.numbers[name] = np.arange(self.at, self.at + count).reshape(shape)
        self.at += count
        return self.numbers[name]

    def _follow(self, node: Node) -> None:
        """Carry numbers through a node that only moves them."""
        if node.op not in _MOVES or not any(i in self.numbers for i in node.inputs):
            return
        xs = [self.numbers[i] if i in self.numbers else self._renew(i) for i in node.inputs if i is not None]
        moved = self._moved(node, xs)
        if moved is not None:
            self.numbers[node.outputs[0] or ""] = moved

    def _moved(self, node: Node, xs: list[np.ndarray]) -> np.ndarray | None:
        def size(d):
            return D.evaluate(d, self.sizes)

        a = node.attrs
        if node.op == "concat":
            return np.concatenate(xs, axis=a["axis"])
        if node.op == "transpose":
            return xs[0].transpose(a["perm"])
        if node.op == "reshape":
            return xs[0].reshape([size(d) for d in a["dims"]])
        start, stop, step = size(a["start"]), size(a["stop"]), a["step"]
        if step < 1 or not 0 <= start <= stop <= xs[0].shape[a["axis"]]:
            return None
        return xs[0].take(range(start, stop, step), a["axis"])

    def _continues(self, node: Node, after: np.ndarray) -> bool:
        """Whether what a concat puts in front are elements of states, whose next values are as far from its end."""
        old, whole = self.numbers.get(node.inputs[0] or ""), self.numbers.get(node.outputs[0] or "")
        if old is None or whole is None or not old.size or int(old.max()) >= self.of_states:
            return False
        axis = node.attrs["axis"]
        return bool((after[old] == whole.take(range(self.length, self.length + old.shape[axis]), axis)).all())


class _TooMuch(Exception):
    """More elements than are worth numbering."""
