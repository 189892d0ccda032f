"""States that grow: each call appends its steps to an input, and hands out the whole as an output.

present[batch, heads, past + steps, features] = concat(past[batch, heads, past, features], new)
"""

from __future__ import annotations

from ..records import dataclass
from . import dims as D
from .stacks import stack
from .types import Graph, Node, Value


@dataclass(frozen=True)
class Cache:
    """One input that grows. output : the input with the new steps behind it; node : what joins them; axis : along
    which; new : the value of the new steps."""

    output: str
    node: Node
    axis: int
    new: str


def growing(graph: Graph) -> dict[str, Cache]:
    """Every input that a single node reads, which appends new steps to it and makes an output of the graph; and inputs
    that hold several of those (stacks.py)."""
    readers = graph.consumers()
    found = {}
    for name in graph.inputs:
        node = readers[name][0] if len(readers.get(name, ())) == 1 else None
        if node is None or node.op != "concat" or len(node.inputs) != 2 or node.inputs[0] != name:
            stacked = stack(graph, name) if name in readers else None
            if stacked is not None:
                found[name] = Cache(stacked.output, stacked.joints[0], stacked.axis, stacked.new)
            continue
        output, axis = node.outputs[0], node.attrs["axis"]
        length, steps = (graph.values[i].dims[axis] for i in node.inputs)
        symbols = D.symbols(length) - {"batch"}
        plain = len(symbols) == 1 and length == D.symbol(*symbols) and not D.symbols(steps) & symbols
        others = {s for k, d in enumerate(graph.values[name].dims) for s in D.symbols(d) if k != axis}
        if plain and output in graph.outputs and not others & symbols:
            found[name] = Cache(output, node, axis, node.inputs[1])
    return found


def grows(before: Value, after: Value) -> int | None:
    """The axis along which a value of the second form is longer than one of the first; None if they differ in another
    way."""
    if before.dtype != after.dtype or len(before.dims) != len(after.dims):
        return None
    axes = [k for k, (a, b) in enumerate(zip(before.dims, after.dims, strict=True)) if a != b]
    if len(axes) != 1:
        return None
    more = after.dims[axes[0]] - before.dims[axes[0]]
    return axes[0] if (more > 0 if isinstance(more, int) else not D.may_be_negative(more)) else None


def caches(graph: Graph) -> dict[str, Cache]:
    """The states of a graph that grow."""
    forms = {a: (graph.values[a].dims, graph.values[b].dims) for a, b in graph.states.items()}
    names = [name for name, (before, after) in forms.items() if before != after]
    return {name: cache for name, cache in growing(graph).items() if name in names} if names else {}


def empty(graph: Graph) -> dict[str, int]:
    """The sizes at which the caches of a graph hold nothing: symbol -> 0."""
    lengths = [graph.values[name].dims[cache.axis] for name, cache in caches(graph).items()]
    return {symbol: 0 for length in lengths for symbol in D.symbols(length)}


def grown(graph: Graph) -> list[str]:
    """The names of the states that are longer after a call than before."""
    return [a for a, b in graph.states.items() if graph.values[a].dims != graph.values[b].dims]
