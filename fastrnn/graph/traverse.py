"""Walks over a graph that every stage needs: dependencies, and free names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from .types import Graph, Node


def fresh(name: str, *taken: Collection[str], mark: str = "'") -> str:
    """The name, with as many marks appended as it takes to be in none of `taken`."""
    while any(name in names for names in taken):
        name += mark
    return name


def needed(
    graph: Graph,
    names: Iterable[str],
    given: Collection[str] = (),
    makers: Mapping[str, Node] | None = None,
    reads: Callable[[Node], Iterable] = lambda node: node.inputs,
) -> list[Node]:
    """The nodes on which the values `names` depend, in the order of the graph.

    given : known values, so the nodes that make them are not needed
    makers : `graph.producers()`, if the caller has it
    reads : which inputs of a node matter
    """
    makers = graph.producers() if makers is None else makers
    wanted: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        node = None if name in given else makers.get(name)
        if node is not None and node.name not in wanted:
            wanted.add(node.name)
            stack += [i for i in reads(node) if i is not None]
    return [n for n in graph.nodes if n.name in wanted]


def free_inputs(nodes: Iterable[Node]) -> tuple[str, ...]:
    """Values that these nodes read but none of them makes, each once, in the order of first use."""
    nodes = tuple(nodes)
    made = {o for n in nodes for o in n.outputs}
    return tuple(dict.fromkeys(i for n in nodes for i in n.inputs if i is not None and i not in made))


def results(graph: Graph) -> tuple[str, ...]:
    """The outputs that are results: not the next values of states that a caller threads, unless all of them are, as in
    a step cell that gives nothing but its new state."""
    ends = set(graph.states.values())
    return tuple(n for n in graph.outputs if n not in ends) or graph.outputs


def roots(graph: Graph, name: str) -> set[str]:
    """The inputs of the graph on which a value depends."""
    return {name, *free_inputs(needed(graph, [name]))} & set(graph.inputs)


def subgraph(graph: Graph, inputs: Iterable[str], outputs: Iterable[str]) -> Graph:
    """The part of a graph that computes `outputs` from `inputs` and constants."""
    inputs, outputs = tuple(inputs), tuple(outputs)
    nodes = tuple(needed(graph, outputs, given=inputs))
    read = {*outputs, *free_inputs(nodes)}
    constants = {k: v for k, v in graph.constants.items() if k in read}
    return Graph(graph.name, inputs, outputs, nodes, graph.values, constants)
