"""Guesses for a batch frozen at one, which is often ambiguous: [1, 16] -> [1, 1, 1, 16] may put it anywhere.

A reading is chosen, and changed if the batch then meets itself or a fixed size. The result is kept only if it is
verified: a state that passes through the file must keep its batch axis in the same place, and the reference
must give two rows the same results as each row alone. Otherwise the batch stays fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ....errors import FastRNNError
from ....graph import Graph, reference
from ....graph.dims import BATCH, evaluate, symbols
from ...shared.ledger import Finding
from .evidence import Policy
from .symbols import SymbolTable

_TOLERANCE = 1e-9  # in float64; a misplaced row differs in the first digit
_MAX_WORK = 1 << 26  # weights times steps that verification may take: about a second


def thawed(
    build: Callable[[SymbolTable], Graph],
    threads: Callable[[Graph], bool],
    policy: Policy,
    given: Mapping[tuple[str, int], int],
) -> Graph:
    """The graph that `build` makes with guesses, if it made any and they are verified; otherwise the graph without
    them.

    threads: whether a state is threaded through a graph. Without a threaded state, the place of an output's batch is
    unknown. given: (input, axis) -> the caller's number.
    """
    table = SymbolTable(policy, policy.thaw, given)
    try:
        graph = build(table)
        if not table.guessed or (has_batch(graph) and threads(graph) and rows_stand_alone(graph)):
            return graph
    except (FastRNNError, Finding):
        if not table.guessed:
            raise
    return build(SymbolTable(policy, False, given))


def has_batch(graph: Graph) -> bool:
    """Whether some input has a free batch axis."""
    return any(BATCH in graph.values[name].dims for name in graph.inputs)


def rows_stand_alone(graph: Graph) -> bool:
    """Whether the reference gives a batch of two rows the same results as each row alone."""
    if sum(a.size for a in graph.constants.values()) > _MAX_WORK:
        return False
    rng = np.random.default_rng(7)
    names = {s for v in graph.values.values() for d in v.dims for s in symbols(d)}
    env = dict.fromkeys(names, 1) | {"batch": 2}
    feeds, axes = {}, {}
    for name in (*graph.inputs, *graph.outputs):
        dims = graph.values[name].dims
        if any("batch" in symbols(d) and d != BATCH for d in dims) or dims.count(BATCH) > 1:
            return False
        axes[name] = dims.index(BATCH) if BATCH in dims else None
    for name in graph.inputs:
        value = graph.values[name]
        shape = [evaluate(d, env) for d in value.dims]
        feeds[name] = rng.normal(size=shape) if value.dtype == "float32" else np.zeros(shape, value.dtype)
    try:
        both = reference.run(graph, feeds, sizes=env)
        for row in range(2):
            single = {n: a if axes[n] is None else a.take([row], axes[n]) for n, a in feeds.items()}
            alone = reference.run(graph, single, sizes=env | {"batch": 1})
            for name, a, b in zip(graph.outputs, both, alone, strict=True):
                part = a if axes[name] is None else a.take([row], axes[name])
                if not np.allclose(part, b, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
                    return False
    except FastRNNError:
        return False
    return True
