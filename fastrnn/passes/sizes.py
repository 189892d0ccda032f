"""Fixes sizes: replaces symbols of a graph with numbers."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ModelFormatError, ShapeError
from ..graph import Graph, Node, Value, check_required, validate
from ..graph.dims import substitute, substitute_in, symbol, symbols


def fix_sizes(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """The graph with the symbols in `sizes` (name -> number) replaced everywhere.

    A requirement of the graph is checked as soon as all its symbols are numbers, and then dropped. This is how a model
    whose input has a free `size` is compiled for one size. Raises ShapeError for a symbol that no input has, for a size
    that violates a requirement of the graph, and for a size at which a node is invalid.
    """
    if not sizes:
        return graph
    known = {s for name in graph.inputs for d in graph.values[name].dims for s in symbols(d)}
    unknown = sorted(set(sizes) - known)
    if unknown:
        raise ShapeError(f"{graph.name}: no input has the size {unknown[0]!r}; there are {', '.join(sorted(known))}")
    done = tuple((dim, number) for dim, number in graph.requires if symbols(dim) <= set(sizes))
    check_required(graph.replace(requires=done), sizes)
    left = tuple((substitute(dim, sizes), number) for dim, number in graph.requires if (dim, number) not in done)
    values = {
        v.name: Value(v.name, v.dtype, tuple(substitute(d, sizes) for d in v.dims)) for v in graph.values.values()
    }
    nodes = tuple(Node(n.op, n.name, n.inputs, n.outputs, substitute_in(n.attrs, sizes)) for n in graph.nodes)
    shown = ", ".join(f"{name} is {sizes[name]}" for name in sorted(sizes))
    notes = (*graph.notes, f"fixed: {shown}")
    for node in nodes:
        for made in (values[name] for name in node.outputs if name is not None):
            if any(isinstance(d, int) and d < 0 for d in made.dims):
                text = f"node {node.name} ({node.op}) would make {made}"
                raise ShapeError(f"{graph.name}: {text}, but {shown}: give others")
    try:
        return validate(graph.replace(values=values, nodes=nodes, requires=left, notes=notes))
    except ModelFormatError as error:  # the graph was valid, so only the sizes can be wrong
        raise ShapeError(f"{error}, where {shown}: give others") from None


def rename_size(graph: Graph, old: str, new: str) -> Graph:
    """The graph with another name for a size, which no size of the graph has."""
    name = {old: symbol(new)}
    values = {v.name: Value(v.name, v.dtype, tuple(substitute(d, name) for d in v.dims)) for v in graph.values.values()}
    nodes = tuple(Node(n.op, n.name, n.inputs, n.outputs, substitute_in(n.attrs, name)) for n in graph.nodes)
    requires = tuple((substitute(dim, name), number) for dim, number in graph.requires)
    return validate(graph.replace(values=values, nodes=nodes, requires=requires))
