"""Inputs that a stream with growing caches supplies itself, because their values follow from how much the caches hold.

    a mask of steps       [batch, held + steps] of ones, or [.., steps, held + steps] of those that a step may see
    numbers of steps      [steps] from `held` on
    lengths               `held`, or `held + steps`

A caller's array can't have the size or the value that it needs in a stream, whose caches the caller does not see. So
`supplied` computes such an input in the graph, after a proof:

* An input is a mask only if hiding a step in it hides that step's key from the attention over the caches, in that row
  alone, and changes nothing else there.
* Numbers and lengths that a mask of attention reads are tried, and the mask is then proved to be causal
  (cache_masks.py), which fails for other values. Without such a mask they are supplied if the input has no batch axis
  and is named as a position, or is named as the length of the caches: streams in lock-step have no one value for them.

Other numbers of steps, such as `position_ids` with a value for each row, remain inputs of each step.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

import numpy as np

from ..errors import FastRNNError
from ..graph import DTYPES, Graph, Node, Value
from ..graph import dims as D
from ..graph.bands import HIDING
from ..graph.caches import Cache
from ..graph.traverse import free_inputs, fresh, needed, roots
from .parts import computed, resized, resized_node

_HELD, _BATCH = 6, 2  # sizes at which a mask is tried
_MOST_LENGTHS = 3  # inputs with two possible values each
_NUMBER = re.compile(r"pos|past|cache|offset|step|len|seq|start|index|idx", re.IGNORECASE)
_TOKEN = re.compile(r"token|input_ids|label", re.IGNORECASE)
_POSITION = re.compile(r"pos(ition)?s?(_|$)|position", re.IGNORECASE)
_LENGTH = re.compile(r"(past|cache|kv).*len|len.*(past|cache|kv)", re.IGNORECASE)


def supplied(graph: Graph, caches: Mapping[str, Cache]) -> Iterator[Graph]:
    """The graph with such inputs computed; several if one may be of two kinds, the likeliest first."""
    rows = {graph.values[c.new].dims[c.axis] for c in caches.values()}
    held = [graph.values[name].dims[c.axis] for name, c in caches.items()]
    if len(rows) != 1 or not rows <= {1, D.TIME} or D.symbols(held[0]) & D.symbols(next(iter(rows))):
        yield graph  # which is refused
        return
    yield from _Supplied(graph, {s for d in held for s in D.symbols(d)}, held[0], rows.pop()).graphs()


class _Supplied:
    """past : the symbols that say how much the caches hold; held : the length of one. rows : the steps of a call."""

    def __init__(self, graph: Graph, past: set[str], held, rows):
        self.graph, self.past, self.held, self.rows = graph, past, held, rows
        self.total = held + rows
        keys = {n.name: graph.values[n.inputs[1]].dims[2] for n in graph.nodes if n.op == "attention"}
        self.over_caches = {name for name, dim in keys.items() if self._depends(dim)}

    def graphs(self) -> Iterator[Graph]:
        graph = self.graph
        read = {i for node in self._attentions(graph) for v in node.inputs[3:] if v for i in roots(graph, v)}
        numbers = [name for name in graph.inputs if self._is_number(name, read) and not self._is_length(name)]
        lengths = [name for name in graph.inputs if self._is_number(name, read) and self._is_length(name)]
        for starts in itertools.product((self.held, self.total), repeat=len(lengths[:_MOST_LENGTHS])):
            made = graph
            for name in numbers:
                made = self._counted(made, name, self.rows, self.held)
            for name, start in zip(lengths, starts, strict=False):
                made = self._counted(made, name, 1, start)
            for name in graph.inputs:
                made = self._without_mask(made, name)
            yield made

    def _attentions(self, graph: Graph) -> list[Node]:
        return [n for n in graph.nodes if n.name in self.over_caches]

    def _depends(self, dim) -> bool:
        return bool(D.symbols(dim) & self.past)

    # -- numbers --
    def _is_number(self, name: str, read: set[str]) -> bool:
        value = self.graph.values[name]
        small = all(d in (1, D.BATCH, self.rows) for d in value.dims) and D.TIME not in value.dims[:-1]
        if name in self.graph.states or not small or value.dtype not in ("int32", "int64"):
            return False
        if name in read:
            return bool(_NUMBER.search(name)) and not _TOKEN.search(name)
        shared = D.BATCH not in value.dims and bool(_POSITION.search(name)) and self._is_step(name)
        return shared or (bool(_LENGTH.search(name)) and not self._is_step(name))

    def _is_step(self, name: str) -> bool:
        """Whether an input has a value for each step of a call."""
        dims = self.graph.values[name].dims
        return bool(dims) and dims[-1] == self.rows

    def _is_length(self, name: str) -> bool:
        return not self._is_step(name) or (self.rows == 1 and not _POSITION.search(name))

    def _counted(self, graph: Graph, name: str, count, start) -> Graph:
        """The graph in which an input holds `count` numbers from `start` on."""
        value = graph.values[name]
        make = _Maker(graph, name)
        steps = make("steps", (), "int64", (count,), {"dims": (count,), "start": start})
        if value.dtype != "int64":
            steps = make("cast", (steps,), value.dtype, (count,), {"to": value.dtype})
        return make.done(steps, value)

    # -- masks --
    def _without_mask(self, graph: Graph, name: str) -> Graph:
        """The graph in which an input is the mask of the steps of a stream, if it is proved to be a mask."""
        dims = graph.values[name].dims if name in graph.inputs and name not in graph.states else ()
        if not dims or not isinstance(dims[-1], D.Dim):
            return graph
        sized = graph
        if not self._depends(dims[-1]):  # a size of its own: as many as there are keys?
            symbol = next(iter(D.symbols(dims[-1])))
            known = {s for n in graph.states for d in graph.values[n].dims for s in D.symbols(d)}
            known |= {"batch", *D.symbols(self.rows)}
            if dims[-1] != D.symbol(symbol) or symbol in known:
                return graph
            sizes = {symbol: self.total}
            sized = resized(graph, sizes).replace(nodes=tuple(resized_node(n, sizes) for n in graph.nodes))
        value = sized.values[name]
        rows = len(dims) > 2 and dims[-2] == self.rows != 1
        lead = value.dims[: -2 if rows else -1]
        if value.dims[-1] != self.total or any(d not in (1, D.BATCH) for d in lead):
            return graph
        unread = name not in free_inputs(needed(sized, sized.outputs))
        for show, hide in _pairs(value):
            if unread or self._hides(sized, value, rows, show, hide):
                return self._masked(sized, value, rows, show, hide)
        return graph

    def _hides(self, graph: Graph, value: Value, rows: bool, show, hide) -> bool:
        """Whether a step that this input hides is hidden from the attention over the caches, and nothing else is."""
        readers = [n for n in self._attentions(graph) if any(v and value.name in roots(graph, v) for v in n.inputs[3:])]
        if not readers or any((roots(graph, v) - {value.name}) for n in readers for v in n.inputs[3:] if v):
            return False
        sizes = dict.fromkeys(self.past, _HELD) | {"batch": _BATCH} | ({} if self.rows == 1 else {"time": 3})
        full = np.full([D.evaluate(d, sizes) for d in value.dims], show, DTYPES[value.dtype])
        if rows:
            full[...] = np.where(np.tri(3, _HELD + 3, _HELD, dtype=bool), full, np.array(hide, full.dtype))
        row = slice(_BATCH - 1, None) if D.BATCH in value.dims else slice(None)
        try:
            return all(self._hides_one(graph, node, value.name, sizes, full, row, hide) for node in readers)
        except (FastRNNError, ValueError):
            return False

    def _hides_one(self, graph, node: Node, name: str, sizes: dict, full: np.ndarray, row: slice, hide) -> bool:
        before, seen = self._scores(graph, node, sizes, {name: full}), False
        for key in (0, 2, _HELD):
            hidden = full.copy()
            at = (row, ...) if D.BATCH in graph.values[name].dims else (...,)
            axis = graph.values[name].dims.index(D.BATCH) if D.BATCH in graph.values[name].dims else 0
            np.moveaxis(hidden, axis, 0)[(*at, key)] = hide
            after = self._scores(graph, node, sizes, {name: hidden})
            want = [a.copy() for a in before]
            if not (after[0][row, ..., key] <= HIDING).all():
                return False
            seen = seen or bool((before[0][row, ..., key] > HIDING).any())
            for a, b in zip(want, after, strict=True):
                a[row, ..., key] = b[row, ..., key]
            if not all(map(np.array_equal, want, after)):
                return False
        return seen

    def _scores(self, graph: Graph, node: Node, sizes: dict, feeds: dict) -> list[np.ndarray]:
        """The bias and the mask of an attention at these sizes, [batch, heads, steps, keys]."""
        q, keys = graph.values[node.inputs[0]], graph.values[node.inputs[1]].dims[2]
        shape = [D.evaluate(d, sizes) for d in (*q.dims[:3], keys)]
        found = []
        for name, none in zip((*node.inputs[3:], None)[:2], (0.0, True), strict=False):
            array = np.asarray(none) if name is None else computed(graph, name, sizes, feeds)
            found.append(np.broadcast_to(array, shape))
        return found

    def _masked(self, graph: Graph, value: Value, rows: bool, show, hide) -> Graph:
        """The graph in which an input shows every step, or with `rows` each step those up to itself."""
        make = _Maker(graph, value.name)
        shown = make.constant(np.array(show, DTYPES[value.dtype]))
        if not rows:
            return make.done(shown, value)
        keys = make("steps", (), "int64", (self.total,), {"dims": (self.total,), "start": 0})
        own = make("steps", (), "int64", (self.rows,), {"dims": (self.rows,), "start": self.held})
        own = make("reshape", (own,), "int64", (self.rows, 1), {"dims": (self.rows, 1)})
        seen = make("binary", (keys, own), "bool", (self.rows, self.total), {"fn": "less_equal"})
        if value.dtype != "bool":
            hidden = make.constant(np.array(hide, DTYPES[value.dtype]))
            seen = make("where", (seen, shown, hidden), value.dtype, (self.rows, self.total), {})
        return make.done(seen, value)


def _pairs(value: Value) -> list[tuple]:
    """What a mask may hold for a step that is seen, and for one that is not. What is added to scores may be any bias,
    so such a mask must be named as one."""
    if value.dtype != "float32":
        return [(True, False)] if value.dtype == "bool" else [(1, 0)]
    added = [(0.0, float(np.finfo(np.float32).min))] if "mask" in value.name.lower() else []
    return [(1.0, 0.0), *added]


class _Maker:
    """Writes the nodes that make a value which was an input."""

    def __init__(self, graph: Graph, name: str):
        self.graph, self.name = graph, name
        self.values, self.constants = dict(graph.values), dict(graph.constants)
        self.nodes: list[Node] = []

    def constant(self, array: np.ndarray) -> str:
        name = fresh(f"{self.name}.shown", self.values)
        self.values[name] = Value(name, array.dtype.name, array.shape)
        self.constants[name] = array
        return name

    def __call__(self, op: str, inputs: tuple, dtype: str, dims: tuple, attrs: dict, output: str = "") -> str:
        name = output or fresh(f"{self.name}.{op}", self.values)
        self.values[name] = Value(name, dtype, dims)
        label = fresh(f"{self.name}.{op}", {n.name for n in (*self.graph.nodes, *self.nodes)})
        self.nodes.append(Node(op, label, inputs, (name,), attrs))
        return name

    def done(self, made: str, value: Value) -> Graph:
        """The graph in which the input `value` is what was made, repeated along the axes that it lacks."""
        dims = self.values[made].dims
        flat = (*(1,) * (len(value.dims) - len(dims)), *dims)[max(len(dims) - len(value.dims), 0) :]
        if flat != dims:
            made = self("reshape", (made,), value.dtype, flat, {"dims": flat})
        self("expand", (made,), value.dtype, value.dims, {"dims": value.dims}, output=value.name)
        inputs = tuple(n for n in self.graph.inputs if n != value.name)
        nodes = (*self.nodes, *self.graph.nodes)
        return self.graph.replace(inputs=inputs, nodes=nodes, values=self.values, constants=self.constants)
