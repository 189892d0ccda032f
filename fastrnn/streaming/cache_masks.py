"""Which keys of a cache a query sees, proved by the values of masks.

A query at position p of a sequence must see the keys up to p, or the last few of those, however the sequence is cut
into calls. The masks of a file are computed for calls that start at several positions. They are compared with one
table: that of a call with all steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import FastRNNError
from ..graph import Graph, Node
from ..graph import dims as D
from ..graph.bands import HIDING, band
from ..graph.traverse import free_inputs, needed, roots
from .parts import computed

_LEAST, _MOST = 16, 512  # steps of a table
_FAR = 1 << 18  # masks are computed beyond each number up to this one


class Refused(Exception):
    """A stream can't keep these caches; the text says where and why."""


def _band(held: int, rows: int, width: int) -> np.ndarray:
    """Which keys each of the last `rows` steps sees: none after itself, and with a width only the last ones."""
    apart = np.arange(held, held + rows)[:, None] - np.arange(held + rows)
    return (apart >= 0) & ((apart < width) if width else True)


class Masks:
    """past : the symbols that say how much the caches hold. rows : the steps of a call, 1 or TIME.

    counted_anew : step numbers that start at the same number in each call, by value. over_caches : attention nodes.
    """

    def __init__(self, graph: Graph, past: set[str], rows):
        self.graph, self.past, self.rows = graph, past, rows
        self.makers = graph.producers()
        self.counted_anew: dict[str, str] = {}
        self.over_caches: set[str] = set()

    def seen(self, node: Node, touched: set[str]) -> tuple[int, set[str]]:
        """(how many steps a query sees, 0 for all; the biases and masks that stay) of an attention over caches."""
        self.over_caches.add(node.name)
        added = [i for i in node.inputs[3:] if i is not None]
        timed = [i for i in added if i in touched or any("time" in D.symbols(d) for d in self._dims(i)[-2:])]
        kept = {i for i in added if i not in timed}
        largest, numbers = _LEAST, self._numbers(timed, node)
        if numbers:
            largest = min(max(largest, *(2 * n + 3 for n in numbers if 2 * n + 3 <= _MOST), _LEAST), _MOST)
        table = self._table(node, timed, largest)
        found = band(table)
        if found is None:
            raise Refused(self._text(node, timed))
        if kept and found.low > -np.inf:
            raise Refused(f"node {node.name} (attention): its mask hides steps by {found.low:g}, beside another bias")
        widths = [found.width] if found.width else [0, *(n + d for n in numbers for d in (0, 1, -1) if n + d > largest)]
        for held, rows in self._calls(largest, numbers):
            seen = self._scores(node, timed, held, rows) == 0
            widths = [w for w in widths if (seen == _band(held, rows, w)).all()]
        if not widths:
            raise Refused(self._text(node, timed))
        return widths[0], kept

    def counted(self, name: str) -> int | None:
        """c of a value, made of positions alone, whose element i is held + i + c, for each step i of a call, in each
        row."""
        value, found = self.graph.values[name], set()
        dims = tuple(d for d in value.dims if d != 1)
        own = () if self.rows == 1 else (self.rows,)
        if dims not in (own, (D.BATCH, *own)) or value.dtype == "bool" or not self._of_positions(name):
            return None
        for held, rows in ((0, 1), (5, 1), (900, 1)) if self.rows == 1 else ((0, 3), (5, 4), (900, 1)):
            env = dict.fromkeys(self.past, held) | {"batch": 2} | ({} if self.rows == 1 else {"time": rows})
            try:
                numbers = np.asarray(computed(self.graph, name, env)).reshape(-1, rows) - held - np.arange(rows)
            except (FastRNNError, ValueError):
                return None
            found.update(numbers.reshape(-1).tolist())
        start = found.pop()
        return int(start) if not found and start == int(start) else None

    def _of_positions(self, name: str) -> bool:
        nodes = needed(self.graph, [name], makers=self.makers)
        return all(i in self.graph.constants for i in free_inputs(nodes)) and all(n.op != "gather" for n in nodes)

    def _text(self, node: Node, timed: list[str]) -> str:
        if not timed and not node.attrs["causal"] and self.rows != 1:
            text = (
                "a query sees all steps of its call, also later ones, so answers depend on how calls cut the steps: "
                "load the model with sizes={'time': 1}, for calls of one step"
            )
            return f"node {node.name} (attention): {text}"
        text = "which keys a query sees depends on more than their order, so a stream can't keep the cache"
        return f"node {node.name} (attention): {text}"

    def _dims(self, name: str) -> tuple:
        return self.graph.values[name].dims

    def _numbers(self, names: list[str], node: Node) -> list[int]:
        """Whole numbers from which masks are made, such as the width of a window."""
        nodes = needed(self.graph, names, makers=self.makers) if names else []
        arrays = [self.graph.constants[i] for n in nodes for i in n.inputs if i in self.graph.constants]
        found = [abs(float(a.reshape(-1)[0])) for a in arrays if a.size == 1 and np.isfinite(a).all()]
        found += [abs(d) for n in nodes for d in (n.attrs.get("start", 0),) if isinstance(d, int)]
        return sorted({int(n) for n in (*found, node.attrs["window"]) if 1 <= n <= _FAR})

    def _calls(self, largest: int, numbers: list[int]) -> Iterator[tuple[int, int]]:
        """(steps that the caches hold, steps of the call) at which masks are compared."""
        if self.rows != 1:
            yield from ((largest // 2, largest - largest // 2), (largest - 1, 1), (1, largest - 1))
        for n in numbers:
            yield from ((max(n + d, 0), 1) for d in (-2, -1, 0, 1, n))

    def _table(self, node: Node, timed: list[str], size: int) -> np.ndarray:
        """What is added to the scores of `size` steps, [query, key]; -inf for keys that are not there."""
        if self.rows != 1:
            return self._scores(node, timed, 0, size)
        table = np.full((size, size), -np.inf)
        for held in range(size):
            table[held, : held + 1] = self._scores(node, timed, held, 1)[0]
        return table

    def _scores(self, node: Node, timed: list[str], held: int, rows: int) -> np.ndarray:
        """What a call of `rows` steps adds to the scores of its queries, [rows, held + rows]."""
        a, keys = node.attrs, held + rows
        sizes = dict.fromkeys(self.past, held) | ({} if self.rows == 1 else {"time": rows})
        at = np.arange(rows)[:, None] + D.evaluate(a["offset"], sizes | {"batch": 1})
        hidden = (a["causal"] & (np.arange(keys) > at)) | ((a["window"] > 0) & (np.arange(keys) <= at - a["window"]))
        scores = np.where(hidden, -np.inf, 0.0)
        inputs = dict(zip(("bias", "mask"), (*node.inputs[3:], None, None), strict=False))
        if inputs["bias"] in timed:
            scores = scores + self._computed(node, inputs["bias"], sizes, (rows, keys))
        if inputs["mask"] in timed:
            mask = self._computed(node, inputs["mask"], sizes, (rows, keys)).astype(bool)
            if (scores[~mask] > HIDING).any():  # a masked score is 0: only the bias hides it
                raise Refused(self._text(node, timed))
        return scores

    def _computed(self, node: Node, name: str, sizes: dict, shape: tuple[int, int]) -> np.ndarray:
        """The values of a mask, the same for all rows and heads, [queries, keys]."""
        other = roots(self.graph, name)
        if other:
            text = f"which keys a query sees depends on the input {', '.join(sorted(other))}"
            raise Refused(f"node {node.name} (attention): {text}")
        try:
            table = computed(self.graph, name, sizes | {"batch": 2})
            table = np.broadcast_to(table, np.broadcast_shapes(table.shape, shape)).reshape(-1, *shape)
        except (FastRNNError, ValueError) as error:
            raise Refused(f"node {node.name} (attention): its mask can't be computed: {error}") from None
        if not len(table) or (table != table[0]).any():
            raise Refused(f"node {node.name} (attention): what is added to its scores differs between heads or rows")
        return table[0]
