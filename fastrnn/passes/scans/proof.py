"""The proof by numbers: what is written gives what the file's nodes give, in float64, at several lengths."""

from __future__ import annotations

import numpy as np

from ...errors import FastRNNError
from ...graph import Graph, reference
from ...graph import dims as D
from ...graph.traverse import free_inputs, needed, subgraph

_LENGTHS = (1, 2, 5, 12)
_OTHERS = 2  # the size of every other symbol
_SCALE = 0.4  # running sums stay within what float64 can raise
_TOLERANCE = 1e-9


def agrees(graph: Graph, made: Graph, old: str, new: str, own: set[str]) -> bool:
    """Whether the value `new` of `made` is the value `old` of `graph`. own: names of the nodes that were written.

    Both are computed from what the written nodes read of the file, as random numbers.
    """
    makers = {o: n for n in made.nodes if n.name in own for o in n.outputs if o is not None}
    ends = free_inputs(needed(made, [new], makers=makers))
    leaves = tuple(n for n in ends if n not in made.constants)
    if not leaves or any(graph.values[n].dtype != "float32" for n in leaves if n in graph.values):
        return False
    before, after = subgraph(graph, leaves, [old]), subgraph(made, leaves, [new])
    if set(free_inputs(before.nodes)) - set(leaves) - set(graph.constants):
        return False  # the file's value depends on more
    positive = {n.inputs[0] for n in before.nodes if n.op == "unary" and n.attrs["fn"] in ("log", "sqrt")}
    rng = np.random.default_rng(7)
    for length in _LENGTHS:
        names = {s for n in leaves for d in made.values[n].dims for s in D.symbols(d)}
        sizes = {**dict.fromkeys(names, _OTHERS), "time": length}
        feeds = {n: _SCALE * rng.standard_normal([D.evaluate(d, sizes) for d in made.values[n].dims]) for n in leaves}
        feeds = {n: np.exp(a) if n in positive else a for n, a in feeds.items()}
        try:
            (a,), (b,) = (reference.run(g, feeds, sizes=sizes) for g in (before, after))
        except FastRNNError:
            return False
        if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
            return False
        if np.abs(a - b).max(initial=0.0) > _TOLERANCE * max(1.0, np.abs(a).max(initial=0.0)):
            return False
    return True
