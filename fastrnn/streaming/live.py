"""Lengths of sequences in a stream: every step is live, so a stream does not ask for them.

At each step a stream's values are those of a run of the steps so far. In that run the length of every row is the number
of steps, so what the graph makes of lengths is known: a cell's lengths cut off nothing, a mask of positions below the
lengths is true everywhere, and the step at `lengths - 1` is the last one. `live` replaces all that and removes the
input. It computes what the input becomes at many sizes, for rows of all steps and of one step less, and leaves it alone
if any use of it is something else, such as a division by the lengths or a comparison with a number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from ..errors import FastRNNError
from ..graph import DTYPES, Graph, Node, Value, validate
from ..graph import dims as D
from ..graph.traverse import fresh, needed, subgraph
from ..graph.vocabulary import moves

_BATCHES, _LENGTHS, _OTHER = (1, 2, 3), (1, 2, 3, 5, 8, 13, 70), 4
_MOST_ELEMENTS = 1 << 20  # of a value that is computed


def live(graph: Graph) -> Graph:
    """The graph without the inputs that hold lengths of its rows, as a stream runs it; the graph itself if it has
    none."""
    for name in graph.inputs:
        value = graph.values[name]
        whole = value.dtype.startswith(("int", "uint")) and name not in graph.states
        if whole and D.BATCH in value.dims and all(d in (1, D.BATCH) for d in value.dims):
            graph = _Lengths(graph, name).gone() or graph
    return graph


def lengths_of(graph: Graph) -> tuple[str, ...]:
    """The inputs that a stream does not ask for."""
    kept = live(graph).inputs
    return tuple(name for name in graph.inputs if name not in kept)


class _Lengths:
    """One input, and the values that depend on it and on no other input."""

    def __init__(self, graph: Graph, name: str):
        self.graph, self.name = graph, name
        self.only = {name}
        free = set(graph.constants)  # values that depend on sizes alone
        for node in graph.nodes:
            read = [i for i in node.inputs if i is not None]
            made = {o for o in node.outputs if o is not None}
            if node.op == "state":
                continue
            if all(i in free for i in read):
                free |= made
            elif all(i in free or i in self.only for i in read):
                self.only |= made

    def gone(self) -> Graph | None:
        """The graph without this input; None if it is used in another way."""
        graph, nodes, values, constants = self.graph, [], dict(self.graph.values), dict(self.graph.constants)
        if any(o in self.only for o in graph.outputs):
            return None
        for node in graph.nodes:
            uses = [i for i, read in enumerate(node.inputs) if read in self.only]
            if not uses or node.outputs[0] in self.only:
                nodes.append(node)
            elif node.op == "cell" and uses == [8] and self._is_time(node.inputs[8]):
                inputs = tuple(None if i == 8 else read for i, read in enumerate(node.inputs))
                nodes.append(Node(node.op, node.name, inputs, node.outputs, node.attrs))
            elif node.op == "gather" and uses == [1] and (last := self._last(node)) is not None:
                source, axis = last
                name = fresh(f"{node.outputs[0]}.last", values)
                dim, dims = values[source].dims[axis], values[source].dims
                values[name] = Value(name, values[source].dtype, (*dims[:axis], 1, *dims[axis + 1 :]))
                cut = {"axis": axis, "start": dim - 1, "stop": dim, "step": 1}
                nodes.append(Node("slice", f"{node.name}.last", (source,), (name,), cut))
                attrs = {"dims": values[node.outputs[0]].dims}
                nodes.append(Node("reshape", node.name, (name,), node.outputs, attrs))
            else:
                inputs = list(node.inputs)
                for i in uses:
                    read = node.inputs[i]
                    number = self._uniform(read)
                    if number is None:
                        return None
                    one, all_of = fresh(f"{read}.live", values), fresh(f"{read}.all", values)
                    values[one] = Value(one, values[read].dtype, ())
                    values[all_of] = Value(all_of, values[read].dtype, values[read].dims)
                    constants[one] = np.array(number, DTYPES[values[read].dtype])
                    attrs = {"dims": values[read].dims}
                    nodes.append(Node("expand", f"{node.name}.live{i}", (one,), (all_of,), attrs))
                    inputs[i] = all_of
                nodes.append(Node(node.op, node.name, tuple(inputs), node.outputs, node.attrs))
        inputs = tuple(n for n in graph.inputs if n != self.name)
        changed = graph.replace(inputs=inputs, nodes=tuple(nodes), values=values, constants=constants)
        ends = (*changed.outputs, *(n.inputs[0] for n in nodes if n.op == "state"))
        return validate(_pruned(changed, ends))

    # -- what the lengths become --
    def _sizes(self, names: set[str]) -> Iterator[dict[str, int]]:
        for batch, time in itertools.product(_BATCHES, _LENGTHS):
            yield dict.fromkeys(names, _OTHER) | {"batch": batch, "time": time}

    def _at_all_sizes(self, inputs: tuple, output: str, less: int = 0) -> Iterator[tuple]:
        """(sizes, arrays of `inputs`, the output) at each size: each row is as long as there are steps, or `less`."""
        from ..graph import reference  # most graphs have no lengths

        part = subgraph(self.graph, (*inputs, self.name), (output,))
        names = {s for n in (*inputs, self.name, output) for d in part.values[n].dims for s in D.symbols(d)}
        names |= {s for n in part.nodes for o in n.outputs if o for d in part.values[o].dims for s in D.symbols(d)}
        for sizes in self._sizes(names):
            shapes = {n: [D.evaluate(d, sizes) for d in part.values[n].dims] for n in (*inputs, self.name)}
            if any(np.prod(shape, dtype=object) > _MOST_ELEMENTS for shape in shapes.values()):
                continue
            feeds = {n: np.arange(np.prod(shapes[n]), dtype=np.float64).reshape(shapes[n]) for n in inputs}
            feeds[self.name] = np.full(shapes[self.name], sizes["time"] - less, np.int64)
            (found,) = reference.run(part, feeds, sizes=sizes)
            yield sizes, [feeds[n] for n in inputs], found

    def _is_time(self, name: str) -> bool:
        """Whether a value is the number of steps."""
        try:
            return all((found == sizes["time"]).all() for sizes, _, found in self._at_all_sizes((), name))
        except FastRNNError:
            return False

    def _uniform(self, name: str):
        """The number that a mask over time is everywhere, and with lengths of one step less everywhere but at the last
        step; None if the value is no such mask."""
        axes = [k for k, d in enumerate(self.graph.values[name].dims) if d == D.TIME]
        if len(axes) != 1:
            return None
        numbers = set()
        try:
            pairs = zip(self._at_all_sizes((), name), self._at_all_sizes((), name, less=1), strict=True)
            for (_, _, whole), (_, _, shorter) in pairs:
                numbers |= set(np.unique(whole).tolist())
                before, last = np.split(shorter, [-1], axes[0])
                if len(numbers) != 1 or (before != min(numbers)).any() or (last == min(numbers)).any():
                    return None
        except FastRNNError:
            return None
        return numbers.pop() if numbers else None

    def _last(self, node: Node) -> tuple[str, int] | None:
        """(value, its time axis) if a gather picks the last step of that value in every row."""
        graph, source = self.graph, node.inputs[0]
        makers = graph.producers()
        while source in makers and moves(makers[source].op) and len(makers[source].inputs) == 1:
            source = makers[source].inputs[0]
        axes = [k for k, d in enumerate(graph.values[source].dims) if "time" in D.symbols(d)]
        if len(axes) != 1 or graph.values[source].dims[axes[0]] != D.TIME or source in self.only:
            return None
        return (source, axes[0]) if all(self._picks(node, source, axes[0], back) for back in (0, 1)) else None

    def _picks(self, node: Node, source: str, axis: int, back: int) -> bool:
        """Whether a gather picks the step `back` before the last, with lengths of as many steps less."""
        tried = 0
        try:
            for sizes, (numbers,), found in self._at_all_sizes((source,), node.outputs[0], less=back):
                if sizes["time"] <= back:
                    continue
                want, tried = numbers.take([-1 - back], axis), tried + 1
                if want.size != found.size or not np.array_equal(want.reshape(found.shape), found):
                    return False
        except FastRNNError:
            return False
        return tried > len(_LENGTHS)


def _pruned(graph: Graph, ends: tuple) -> Graph:
    """Without the nodes, values and constants that nothing reads any more."""
    nodes = tuple(needed(graph, ends))
    read = {*graph.inputs, *graph.outputs, *(n for node in nodes for n in (*node.inputs, *node.outputs))}
    values = {n: v for n, v in graph.values.items() if n in read}
    return graph.replace(nodes=nodes, values=values, constants={n: a for n, a in graph.constants.items() if n in read})
