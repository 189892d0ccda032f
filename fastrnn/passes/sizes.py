"""Fixes sizes: replaces symbols of a graph with numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..errors import ModelFormatError, ShapeError
from ..graph import Graph, Node, Value, check_required, validate
from ..graph.dims import Dim, of_rest, substitute, substitute_in, symbol, symbols


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


def without_blocks(graph: Graph, name: str = "time") -> Graph:
    """The graph without its requirement that a size is a multiple of a number, if nothing in it needs that."""
    for dim, number in graph.requires:
        rest = of_rest(dim)
        if number != 0 or rest is None or rest[0] != symbol(name):
            continue
        left = tuple(r for r in graph.requires if r != (dim, number))

        def freed(d, block: int = rest[1]):
            return _freed(d, name, block) if isinstance(d, Dim) else d

        try:
            values = {v.name: Value(v.name, v.dtype, tuple(map(freed, v.dims))) for v in graph.values.values()}
            nodes = tuple(Node(n.op, n.name, n.inputs, n.outputs, _changed(n.attrs, freed)) for n in graph.nodes)
            requires = tuple((freed(d), k) for d, k in left)
        except ShapeError:
            continue
        return without_blocks(validate(graph.replace(values=values, nodes=nodes, requires=requires)), name)
    return graph


def _freed(dim: Dim, name: str, block: int) -> Dim | int:
    """A dim of multiples of a block, as a dim of any size; ShapeError if it counts blocks."""
    blocks = substitute(dim, {name: block * symbol(name)})
    terms = blocks.terms if isinstance(blocks, Dim) else {}
    for monomial, factor in terms.items():
        if factor % block ** monomial.count(name) or any(not isinstance(atom, str) for atom in monomial):
            raise ShapeError(f"{dim} counts blocks of {block}")
    freed: Dim | int = 0 if terms else blocks
    for monomial, factor in terms.items():
        term: Dim | int = factor // block ** monomial.count(name)
        for atom in monomial:
            term = symbol(atom) * term
        freed = term + freed
    return freed


def _changed(attrs: Mapping, change: Callable) -> dict:
    """The attributes with `change` applied to each dim."""
    out = {}
    for key, value in attrs.items():
        if isinstance(value, tuple):
            value = tuple(change(d) if isinstance(d, Dim) else d for d in value)
        out[key] = change(value) if isinstance(value, Dim) else value
    return out
