"""What is done to the scores of an attention before their softmax, and which of it only says what steps are seen.

A mask that depends on nothing but positions is not matched by how it is written (exporters write triangles, ranges,
comparisons, slices of a stored table) but by what it is: it is computed, at a length beyond every number that it is
made of, and compared with "no later step" and "no later step, and of the earlier ones the last w".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import FastRNNError
from ..graph import Graph, Node, reference
from ..graph import dims as D
from ..graph.traverse import free_inputs, needed

LARGEST_PROOF = 2048  # steps at which a mask is computed at most: 4 Mi elements
LEAST_PROOF = 16
HIDING = -1e4  # e to the power of it is 0 in float32: what is added to a score that shall not count
WEAK = -1e6  # a mask above that is told of: inputs of a few hundreds, not scaled, may have such scores
ORDINARY = 1e3  # what else is added may be as large, and HIDING still hides


@dataclass
class Bias:
    """Something that is added to the scores, as their node sees them: `dims`, and [.., Tk, Tq] where they are turned.

    fn : "add"; "sub" (it is taken off); "show" and "hide" (name is a mask: `low` is added where it is False, or True)
    """

    name: str
    fn: str
    dims: tuple
    turned: bool
    low: float = 0.0


def seen_alone(positions: Positions, chain: Sequence[Bias]) -> tuple[list[Bias], list[Band]]:
    """The biases of a chain (the outermost first) without those that only say which steps are seen, and what those say.

    A step that is not seen has no weight at all only if some seen one has more than the number that hides it. So a
    finite number hides alone, or beside what is known to be ordinary at the query's own step; a query of which all seen
    steps are hidden as well, by padding, has weights for the later ones too, and keeps both masks. -inf hides under
    all that is added, and under masks that fill in -inf as well.
    """
    tables = [positions.table(bias) for bias in chain]
    bands = [None if table is None else _band(table) for table in tables]
    kept, found = [], []
    for k, (bias, band) in enumerate(zip(chain, bands, strict=True)):
        if band is None:
            kept.append(bias)
            continue
        others = [i for i in range(len(chain)) if i != k]
        if band.low == -np.inf:
            hides = all(chain[i].fn in ("add", "sub") or chain[i].low == -np.inf for i in range(k))
        else:
            hides = all(bands[i] is not None or _is_ordinary(chain[i], tables[i]) for i in others)
        if hides:
            found.append(band)
        else:
            kept.append(bias)
    return kept, found


def _is_ordinary(bias: Bias, table: np.ndarray | None) -> bool:
    """Whether what is added lifts no score by much, and lowers none of a query with its own step by much."""
    if table is None or bias.fn not in ("add", "sub"):
        return False
    return bool(table.max() <= ORDINARY and np.diagonal(table).min() >= -ORDINARY)


@dataclass(frozen=True)
class Band:
    """width : how many steps back a query sees, itself counted, 0 for all; low : the largest number that hides one."""

    width: int
    low: float


def _band(table: np.ndarray) -> Band | None:
    """What a table [length, length] of biases shows; None if it says more than which steps are seen."""
    length = len(table)
    seen = table == 0
    if not (table[~seen] <= HIDING).all():
        return None
    apart = np.arange(length)[:, None] - np.arange(length)
    width = int(seen[:, 0].sum())
    if not (seen == ((apart >= 0) & (apart < width))).all() or not width:
        return None
    return Band(0 if width == length else width, float(table[~seen].max(initial=-np.inf)))


class Positions:
    """Values of a graph that depend on nothing but positions, computed."""

    def __init__(self, graph: Graph):
        self.graph, self.makers = graph, graph.producers()

    def table(self, bias: Bias) -> np.ndarray | None:
        """What a bias adds to the scores of each query (or fills in), float64 [length, length]; None if that depends on
        an input, or the queries are not the keys."""
        nodes, size = self._made_of(bias.name), bias.dims[-1]
        if nodes is None or size != bias.dims[-2] or isinstance(size, int):
            return None
        numbers = [abs(self.graph.constants[i]).max() for n in nodes for i in n.inputs if self._is_count(i)]
        tables = [self.graph.values[n.inputs[0]].dims[n.attrs["axis"]] for n in nodes if n.op == "gather"]
        length = max([LEAST_PROOF, *(2 * int(n) + 3 for n in numbers if n < LARGEST_PROOF)])
        time = _time_for(size, min([length, LARGEST_PROOF, *(t for t in tables if isinstance(t, int))]))
        try:
            table, length = self._computed(bias.name, nodes, time), D.evaluate(size, {"time": time})
        except FastRNNError:
            return None
        if bias.fn in ("show", "hide"):
            table = np.where(table == (bias.fn == "show"), 0.0, bias.low)
        table = -table if bias.fn == "sub" else table
        table = np.swapaxes(table, -1, -2) if bias.turned and table.ndim > 1 else table
        if table.ndim < 2 or table.shape[-2:] != (length, length) or table.size != length * length:
            return None
        return table.reshape(length, length)

    def _made_of(self, name: str) -> list[Node] | None:
        """The nodes that make a value of positions alone, in order; None if an input has a part in it."""
        nodes = needed(self.graph, [name], makers=self.makers)
        ends = free_inputs(nodes) if nodes else (name,)
        known = all(i in self.graph.constants for i in ends)
        return nodes if known and not any(n.op in ("cell", "state") for n in nodes) else None

    def _is_count(self, name: str | None) -> bool:
        array = self.graph.constants.get(name)
        return array is not None and array.size == 1 and array.dtype.kind in "if" and bool(np.isfinite(array).all())

    def _computed(self, name: str, nodes: list[Node], time: int) -> np.ndarray:
        """The mask of an input of `time` steps."""
        part = self.graph.replace(inputs=(), outputs=(name,), nodes=tuple(nodes), states={}, requires=())
        names = {s for n in nodes for o in n.outputs if o for d in self.graph.values[o].dims for s in D.symbols(d)}
        (table,) = reference.run(part, {}, sizes=dict.fromkeys(names, 1) | {"time": time})
        return table


def _time_for(dim, length: int) -> int:
    """An input's steps for which a sequence of `dim` steps is at least `length` long (or nearly, where it is slow)."""
    time = length
    for _ in range(32):
        left = length - D.evaluate(dim, {"time": time}) if D.symbols(dim) == {"time"} else 0
        if left <= 0:
            break
        time += left
    return time
