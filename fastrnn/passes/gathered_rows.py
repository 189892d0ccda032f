"""Elements that are picked from every row of a batch at the same places.

Exporters write `gather(x, 1, places)` as one flat list of elements, whose numbers are computed from the batch: the
relative positions of a Transformer are rows of `2 * steps - 1` scores, of which each query takes its own. As written,
nothing says that the rows of the batch stay apart.
"""

from __future__ import annotations

import numpy as np

from ..errors import FastRNNError
from ..graph import Graph, Node, reference
from ..graph import dims as D
from ..graph.traverse import free_inputs, needed, subgraph
from .dead import remove_dead_nodes
from .patch import Patch

_BATCHES = (1, 2, 3, 5)  # at which the places are computed
_MOST = 1 << 20  # of them


def gathers_of_rows(graph: Graph) -> Graph:
    """Where a flat gather takes the same places of every row, let it gather along an axis of its own.

    The numbers of the elements must depend on the batch alone. They are computed at several batches: each row must take
    the same places within itself, at all of them.
    """
    patch = Patch(graph)
    for node in graph.nodes:
        if node.op == "gather" and node.attrs["axis"] == 0 and (found := _rows_of(graph, node)) is not None:
            groups, places = found
            (total,) = graph.values[node.inputs[0]].dims
            rows = (D.BATCH * groups, D.exact_div(total, D.BATCH * groups))
            x = patch.add("reshape", (node.inputs[0],), {"dims": rows}, f"{node.name}.rows")
            picked = patch.constant(f"{node.name}.places", places)
            x = patch.add("gather", (x, picked), {"axis": 1}, f"{node.name}.picked")
            dims = {"dims": graph.values[node.outputs[0]].dims}
            patch.replace(node, Node("reshape", node.name, (x,), node.outputs, dims))
    if not patch.instead:
        return graph
    return remove_dead_nodes(patch.done(f"{len(patch.instead)} gathers take the same places of each row"))


def _rows_of(graph: Graph, node: Node) -> tuple[int, np.ndarray] | None:
    """(rows for one of the batch, the places that each of them takes); None if there is no such form."""
    table, out = graph.values[node.inputs[0]], graph.values[node.outputs[0]]
    index = node.inputs[1]
    if len(table.dims) != 1:
        return None
    size, count = D.exact_div(table.dims[0], D.BATCH), D.exact_div(D.product(out.dims), D.BATCH)
    if not (isinstance(size, int) and isinstance(count, int)) or not 0 < size * max(_BATCHES) < _MOST:
        return None
    if not 0 < count * max(_BATCHES) < _MOST or set(free_inputs(needed(graph, [index]))) & set(graph.inputs):
        return None
    part = subgraph(graph, (), (index,))
    try:
        found = [reference.run(part, {}, sizes={"batch": n})[0].reshape(-1) for n in _BATCHES]
    except (FastRNNError, KeyError):  # it depends on other sizes
        return None
    for groups in range(int(np.gcd(size, count)), 0, -1):
        if size % groups == count % groups == 0:
            places = found[0][: count // groups]
            if all(_repeats(one, places, groups * n, size // groups) for one, n in zip(found, _BATCHES, strict=True)):
                return groups, places.astype(np.int64)
    return None


def _repeats(found: np.ndarray, places: np.ndarray, rows: int, width: int) -> bool:
    """Whether the numbers are these places of each row in turn."""
    if len(found) != rows * len(places) or places.min() < 0 or places.max() >= width:
        return False
    return bool((found.reshape(rows, -1) == np.arange(rows)[:, None] * width + places).all())
