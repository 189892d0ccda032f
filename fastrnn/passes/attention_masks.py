"""What is done to attention scores before the softmax, and which parts of it only say what steps are seen.

A mask that depends only on positions is matched by its values, not by how it is written: exporters write triangles,
ranges, comparisons and slices of a stored table. The mask is computed at a length beyond every number in its formula,
and compared with "no later step" and "no later step, and only the last w earlier ones".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import FastRNNError
from ..graph import Graph, Node, reference
from ..graph import dims as D
from ..graph.bands import Band, band
from ..graph.traverse import free_inputs, needed
from ..records import dataclass

LARGEST_PROOF = 2048  # a mask is computed for at most this many steps: 4 Mi elements
LEAST_PROOF = 16
WEAK = -1e6  # a mask above this gets a note: unscaled inputs of a few hundred may have such scores
ORDINARY = 1e3  # other additions may be this large and HIDING still hides


@dataclass
class Bias:
    """Something added to the scores. dims: as the scores' node sees them, [.., Tk, Tq] if they are transposed.

    fn : "add"; "sub" (subtracted); "show" and "hide" (name is a mask: `low` is added where it is False, or True)
    """

    name: str
    fn: str
    dims: tuple
    turned: bool
    low: float = 0.0


def seen_alone(positions: Positions, chain: Sequence[Bias]) -> tuple[list[Bias], list[Band]]:
    """Split a chain of biases (outermost first) into general ones and the bands of those that only say what is seen.

    An unseen step has exactly zero weight only if some seen step scores above the number that hides it. A finite number
    therefore hides alone, or beside biases known to be ordinary at the query's own step. If padding hides all seen
    steps of a query as well, that query gives weight to later steps too, so both masks stay. -inf hides under anything
    that is added, and under masks that also fill in -inf.
    """
    tables = [positions.table(bias) for bias in chain]
    bands = [None if table is None else band(table) for table in tables]
    kept, found = [], []
    for k, (bias, own) in enumerate(zip(chain, bands, strict=True)):
        if own is None:
            kept.append(bias)
            continue
        others = [i for i in range(len(chain)) if i != k]
        if own.low == -np.inf:
            hides = all(chain[i].fn in ("add", "sub") or chain[i].low == -np.inf for i in range(k))
        else:
            hides = all(bands[i] is not None or _is_ordinary(chain[i], tables[i]) for i in others)
        if hides:
            found.append(own)
        else:
            kept.append(bias)
    return kept, found


def _is_ordinary(bias: Bias, table: np.ndarray | None) -> bool:
    """Whether the bias raises no score by much, and lowers no query's score with its own step by much."""
    if table is None or bias.fn not in ("add", "sub"):
        return False
    return bool(table.max() <= ORDINARY and np.diagonal(table).min() >= -ORDINARY)


class Positions:
    """Computes values of a graph that depend only on positions."""

    def __init__(self, graph: Graph):
        self.graph, self.makers = graph, graph.producers()

    def table(self, bias: Bias) -> np.ndarray | None:
        """What a bias adds to the scores of each query (or fills in), float64 [length, length]. None if it depends on
        an input, or if queries and keys differ."""
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
        """The nodes, in order, that make a value from positions alone; None if it depends on an input."""
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
    """How many input steps make a sequence of `dim` steps at least `length` long (or nearly, if it grows slowly)."""
    time = length
    for _ in range(32):
        left = length - D.evaluate(dim, {"time": time}) if D.symbols(dim) == {"time"} else 0
        if left <= 0:
            break
        time += left
    return time
