"""Where the steps of each value are, and which values mix steps.

A value is spread over the steps if each of its steps depends on the same step of what it is made of: an axis has the
length of the sequence, or two axes are chunks and the steps inside them. A value that is made of several steps is
mixed: it is a function of the values that entered the mixing, its leaves.
"""

from __future__ import annotations

import math

from ...graph import Graph, Node
from ...graph import dims as D

Axes = tuple[int, ...]  # counted from the end: one axis of steps, or those of chunks and of the steps in a chunk
_SUMS = frozenset(("add", "sub", "mul", "div"))
_SMOOTH = frozenset(("neg", "exp", "affine", "log", "recip", "sqrt", "square"))
_MOVES = frozenset("slice concat reshape transpose expand matmul cumsum".split())
_ALONG = frozenset("slice cumsum softmax".split())  # work along `axis`, and row by row otherwise


class Spread:
    """Follows an axis of steps through a graph.

    length : of the sequence, a number or a dim. whole : the same cut to whole chunks, as the file writes it
    axes : value -> its axes of steps. mixed : value -> its leaves. Values in neither are lost, or the same at all steps
    """

    def __init__(self, graph: Graph, length, whole=None):
        self.graph, self.length = graph, length
        self.lengths = [length] if whole is None else [length, whole]
        self.axes: dict[str, Axes] = {}
        self.mixed: dict[str, frozenset[str]] = {}
        self.lost: set[str] = set()
        self.makers = graph.producers()

    def dims(self, name: str) -> tuple:
        return self.graph.values[name].dims

    def start(self, name: str, axis: int) -> None:
        self.axes[name] = (axis - len(self.dims(name)),)

    def places(self, name: str) -> list[int]:
        """The axes of a value that are as long as the sequence, from the end."""
        dims = self.dims(name)
        return [a - len(dims) for a, d in enumerate(dims) if d in self.lengths]

    def base(self, name: str) -> str:
        """The value that this one is, up to moves that keep its axes apart."""
        while name in self.axes:
            node = self.makers.get(name)
            if node is None or node.op not in ("reshape", "transpose", "expand", "slice"):
                return name
            source = node.inputs[0]
            if source not in self.axes or (node.op == "slice" and not self._cut(node)):
                return name
            if node.op != "expand" and self._apart(source) != self._apart(name):
                return name
            name = source
        return name

    def _apart(self, name: str) -> list[str]:
        """The sizes of the axes of a value but those of its steps, without those of one element."""
        dims, axes = self.dims(name), self.axes[name]
        return sorted(str(d) for a, d in enumerate(dims) if a - len(dims) not in axes and d != 1)

    def visit(self, node: Node) -> bool:
        """Follow the steps through a node; True if its output is mixed."""
        read = [i for i in node.inputs if i is not None]
        if not any(i in self.axes or i in self.mixed or i in self.lost for i in read):
            return False
        outputs = [o for o in node.outputs if o is not None]
        mixed = [i for i in read if i in self.mixed]
        if not any(i in self.lost for i in read) and len(outputs) == 1:
            found = None if mixed else self._followed(node)
            if found is not None:
                self.axes[outputs[0]] = found
                return False
            if _mixes(node) and not any(self._live(i) for i in self._choices(node)):
                leaves = [self.mixed[i] if i in self.mixed else {self.base(i)} for i in read if self._live(i)]
                self.mixed[outputs[0]] = frozenset().union(*leaves)
                return True
        self._opaque(node, outputs, mixed)
        return False

    def _choices(self, node: Node) -> tuple:
        """What says which elements are taken: numbers do not tell what it does."""
        return node.inputs[:1] if node.op == "where" else node.inputs[1:] if node.op == "gather" else ()

    def _live(self, name: str) -> bool:
        return name in self.axes or name in self.mixed

    def _opaque(self, node: Node, outputs: list[str], mixed: list[str]) -> None:
        """An operation that is not looked into gives values of their own, if they still have an axis of the length."""
        first = next((self.axes[i] for i in node.inputs if i in self.axes), None)
        if node.op == "slice" and node.inputs[0] in self.lost:  # a convolution whose padding is cut off
            places = self.places(outputs[0])
            first = tuple(places) if len(places) == 1 else None
        for o in outputs:
            rank = len(self.dims(o))
            if mixed or first is None or len(first) > 1 or rank < -first[0] or first[0] not in self.places(o):
                self.lost.add(o)
            else:
                self.axes[o] = first

    def _cut(self, node: Node) -> bool:
        """Whether a slice only cuts a sequence to whole chunks, which the file requires to be all of it."""
        a = node.attrs
        size = self.dims(node.inputs[0])[a["axis"]]
        return size == self.length and (a["start"], a["step"]) == (0, 1) and a["stop"] in self.lengths

    def _followed(self, node: Node) -> Axes | None:
        """The axes of steps of the node's output if it works step by step, else None."""
        rule = getattr(self, f"_{node.op}", None)
        return rule(node) if rule is not None else None

    def _unary(self, node: Node) -> Axes | None:
        return self.axes[node.inputs[0]]

    _cast = _unary

    def _binary(self, node: Node) -> Axes | None:
        """Values that broadcast: all have their steps at the same axes, or none there."""
        found = {self.axes[i] for i in node.inputs if i in self.axes}
        if len(found) != 1:
            return None
        (axes,) = found
        for name in node.inputs:
            dims = self.dims(name)
            if name not in self.axes and any(-a <= len(dims) and dims[a] != 1 for a in axes):
                return None
        return axes

    _where = _binary

    def _transpose(self, node: Node) -> Axes | None:
        perm = node.attrs["perm"]
        return tuple(perm.index(a + len(perm)) - len(perm) for a in self.axes[node.inputs[0]])

    def _expand(self, node: Node) -> Axes | None:
        (name,) = node.inputs
        axes, after = self.axes[name], node.attrs["dims"]
        return axes if all(self.dims(name)[a] == after[a] for a in axes) else None

    def _reshape(self, node: Node) -> Axes | None:
        (name,), after = node.inputs, node.attrs["dims"]
        before, axes = self.dims(name), self.axes[name]
        places = [a + len(before) for a in axes]
        kept = [_same(before, after, p) for p in places]
        if all(k is not None for k in kept):
            return tuple(k - len(after) for k in kept)
        if len(places) == 1:
            k = _where_from(before, after, places[0], 2)
            return None if k is None else (k - len(after), k + 1 - len(after))
        if places[1] == places[0] + 1:
            ahead, size = D.product(before[: places[0]]), before[places[0]] * before[places[1]]
            for k, d in enumerate(after):
                if d == size and D.product(after[:k]) == ahead:
                    return (k - len(after),)
        return None

    def _matmul(self, node: Node) -> Axes | None:
        a, b = node.inputs
        if len(self.dims(a)) < 2 or len(self.dims(b)) < 2:
            return None
        if a in self.axes and b in self.axes:
            axes = self.axes[a]
            return axes if axes == self.axes[b] and max(axes) < -2 else None
        name, other, inner = (a, b, -1) if a in self.axes else (b, a, -2)
        axes, dims = self.axes[name], self.dims(other)
        if inner in axes or any(x < -2 and -x <= len(dims) and dims[x] != 1 for x in axes):
            return None
        return axes

    def _linear(self, node: Node) -> Axes | None:
        axes = self.axes.get(node.inputs[0])
        others = any(self._live(i) for i in node.inputs[1:] if i is not None)
        return None if axes is None or others or -1 in axes else axes

    def _reduce(self, node: Node) -> Axes | None:
        (name,), a = node.inputs, node.attrs
        rank, axes = len(self.dims(name)), self.axes[name]
        gone = {x % rank - rank for x in a["axes"]}
        if gone & set(axes):
            return None
        return axes if a["keepdims"] else tuple(x + sum(g > x for g in gone) for x in axes)

    def _rows(self, node: Node) -> Axes | None:
        name, axes = node.inputs[0], self.axes[node.inputs[0]]
        if node.op == "slice" and self._cut(node):
            return axes
        return None if node.attrs["axis"] % len(self.dims(name)) - len(self.dims(name)) in axes else axes

    _slice = _cumsum = _softmax = _rows

    def _gather(self, node: Node) -> Axes | None:
        """Rows of a table that is the same at all steps, one for each step."""
        table, indices = node.inputs[:2]
        rank = len(self.dims(table))
        if table in self.axes or node.attrs["axis"] % rank != 0:
            return None
        return tuple(a - (rank - 1) for a in self.axes[indices])

    def _concat(self, node: Node) -> Axes | None:
        found = {self.axes.get(i) for i in node.inputs}
        if len(found) != 1 or None in found:
            return None
        (axes,) = found
        return None if node.attrs["axis"] - len(self.dims(node.inputs[0])) in axes else axes

    def _pad(self, node: Node) -> Axes | None:
        axes, pads = self.axes[node.inputs[0]], node.attrs["pads"]
        rank = len(pads) // 2
        padded = any(pads[a + rank] != 0 or pads[a + 2 * rank] != 0 for a in axes)
        return None if padded or len(node.inputs) > 1 else axes


def _mixes(node: Node) -> bool:
    """Whether what the node does with several steps is smooth in all of them: numbers then tell what it is."""
    a = node.attrs
    if node.op == "binary":
        return a["fn"] in _SUMS
    if node.op == "unary":
        return a["fn"] in _SMOOTH
    if node.op == "reduce":
        return a["fn"] == "sum"
    if node.op == "pad":
        return a["mode"] == "constant" and math.isfinite(a["value"]) and len(node.inputs) == 1
    return node.op in _MOVES or node.op in ("where", "gather")


def _same(before: tuple, after: tuple, place: int) -> int | None:
    """The axis of `after` that is the axis `place` of `before`."""
    ahead = D.product(before[:place])
    return next((k for k, d in enumerate(after) if d == before[place] and D.product(after[:k]) == ahead), None)


def _where_from(before: tuple, after: tuple, place: int, count: int) -> int | None:
    """The first of `count` axes of `after` that an axis of `before` is split into."""
    ahead, size = D.product(before[:place]), before[place]
    for k in range(len(after) - count + 1):
        if D.product(after[:k]) == ahead and D.product(after[k : k + count]) == size and 1 not in after[k : k + count]:
            return k
    return None
