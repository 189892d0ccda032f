"""The meaning of a model: a name for what it computes step by step, that no name, order or layout in a file changes.

`Meaning(graph)` names each value by what one step of it is: a function of the model's inputs, made of weights and
operations. Names are hashes, from the inputs to the outputs. These change none of them:
  * names of nodes, values and constants, and the order of nodes;
  * where batch and time are among the axes, axes of one element, reshapes, and any other move of elements (flat.py);
  * the order of the operands of +, *, min, max and the like;
  * whether a product, its bias and its activation are one node, and which of a cell's two biases has the numbers;
  * outputs that only show the last states of cells, and inputs that cells begin with (h0 -> hn).
All else does: each bit of each weight, attributes, activations, the forms of cells, wiring, number and order of inputs
and outputs. What is not understood, such as an axis that the caller leaves open, is named as the file has it, so two
files of one model may get two names, but never two models one name.

Nodes on a cycle are named with numbers for the states of the cycle, in the order in which a walk from the outputs
meets them.
"""

from __future__ import annotations

from math import prod

from ..graph import Graph, Node
from ..graph import dims as D
from ..graph.digests import named
from ..graph.traverse import results
from . import meaning_layers  # noqa: F401  fills the table of rules
from .flat import Atoms, Flat
from .follow import follow
from .meanings import UNORDERED, meaning_of

VERSION = 1  # of the rules: another number gives every model another name


class Meaning:
    """What the values, states and layers of a graph mean.

    Attributes
    ----------
    name : hex text; of the whole model
    names : value -> its name; states : value that is a state of a cycle, or that a caller threads -> the state's name
    made : cell -> its name; own : node with weights -> the name of the layer alone, wherever it is
    layers : (node, own name) of those, in the order of the dataflow
    rank : node -> its place in a walk from the outputs, inputs first: the order of the dataflow
    """

    def __init__(self, graph: Graph):
        self.graph, self.atoms = graph, Atoms()
        self.batch, self.time = follow(graph, "batch"), follow(graph, "time")
        self.free = _free_sizes(graph)
        self.makers = graph.producers()
        self.numbers: dict[str, int] = {}
        self.rank: dict[str, int] = {}
        self._read()
        if any(n.op == "state" for n in graph.nodes) or graph.states:
            self._order()  # by names that tell no state from another
            self._read()
        self._order()
        self.name = self._whole()
        self.names = {name: self.name_of(flat) for name, flat in self.values.items() if name not in graph.constants}
        delayed = [n.outputs[0] for n in graph.nodes if n.op == "state"]
        self.states = {name: self._state(name) for name in (*graph.states, *delayed) if name is not None}
        nodes = sorted((n.name for n in graph.nodes if n.name in self.own), key=self.rank.__getitem__)
        self.layers = tuple((name, self.own[name]) for name in nodes)
        del self.values, self.atoms, self.batch, self.time, self._seen  # elements of every value

    def _read(self) -> None:
        """Name every value; states by their numbers so far."""
        self.values: dict[str, Flat] = {}
        self.made: dict[str, bytes] = {}
        self.own: dict[str, bytes] = {}
        self._seen: dict[bytes, int] = {}
        self.atoms = Atoms()
        given = [n for n in self.graph.inputs if n not in self.graph.states]
        for place, name in enumerate(given):
            self.values[name] = self.make(name, "input", place)
        for name in self.graph.states:
            self.values[name] = self.make(name, "state", self.numbers.get(name, -1), threaded=True)
        for name, array in self.graph.constants.items():
            self.values[name] = Flat(str(array.dtype), array=array)
        for node in self.graph.nodes:
            made = meaning_of(self, node)
            for name, flat in zip(node.outputs, made, strict=False):
                if name is not None:
                    self.values[name] = flat

    # -- values --
    def flat(self, node: Node, i: int = 0) -> Flat | None:
        """Input i of a node; None if it is absent."""
        name = node.inputs[i] if i < len(node.inputs) else None
        return None if name is None else self.values[name]

    def unit(self, name: str) -> tuple | None:
        """The dims of a value at one step of one row; None if they are not known."""
        sizes = []
        for axis, dim in enumerate(self.graph.values[name].dims):
            if not isinstance(dim, int):
                base: D.Dim | int = 1
                rows, steps = self.batch.tracks.get(name), self.time.tracks.get(name)
                if rows is not None and rows.axis == axis:
                    base = D.BATCH
                if steps is not None and steps.axis == axis:
                    base = base * self.time.timetable.clocks[steps.clock].dim
                if "time" in D.symbols(dim) and (steps is None or steps.axis != axis):
                    return None
                dim = None if isinstance(base, int) else D.exact_div(dim, base)
            if not isinstance(dim, int):
                return None
            sizes.append(dim)
        return tuple(sizes)

    def time_axis(self, name: str | None) -> int | None:
        """The axis of the steps of a value."""
        track = None if name is None else self.time.tracks.get(name)
        return None if track is None else track.axis

    def make(self, value: str, *parts, threaded: bool = False, last: bool = False) -> Flat:
        """A value that no move makes, named by these parts."""
        about, dims = self.graph.values[value], self.unit(value)
        if dims is None:
            return Flat(about.dtype, name=named(*parts, about.dtype, self.text(about.dims)))
        made = named(*parts, about.dtype, prod(dims))
        return self.atoms.make(made, dims, about.dtype, threaded=threaded, last=last)

    def name_of(self, flat: Flat | None) -> bytes:
        return b"" if flat is None else self.atoms.name(flat)

    def text(self, dims) -> tuple:
        """Dims as text, open sizes by number."""
        return tuple(d if isinstance(d, int) else str(D.substitute(d, self.free)) for d in dims)

    def again(self, name: bytes) -> int:
        """How often a node of this name was met before."""
        self._seen[name] = self._seen.get(name, -1) + 1
        return self._seen[name]

    # -- the order of the dataflow --
    def _order(self) -> None:
        """Set `rank`, and `numbers`: value -> the number of the state that it is."""
        self.rank, self.numbers = {}, {}
        for name in results(self.graph):
            self._visit(name)
        followed = 0
        while followed < len(self.numbers):
            name = list(self.numbers)[followed]
            self._visit(self._next(name))
            followed += 1
        for node in self.graph.nodes:  # kept, though no output depends on it
            self.rank.setdefault(node.name, len(self.rank))

    def _visit(self, end: str) -> None:
        """Rank the nodes on which a value depends, inputs first; meet its states."""
        stack: list[tuple[str, Node | None]] = [(end, None)]
        entered = set()
        while stack:
            name, leaving = stack.pop()
            if leaving is not None:
                self.rank.setdefault(leaving.name, len(self.rank))
                continue
            node = self.makers.get(name)
            if name in self.graph.states or (node is not None and node.op == "state"):
                self.numbers.setdefault(name, len(self.numbers))
            if node is None or node.op == "state" or node.name in self.rank or node.name in entered:
                continue
            entered.add(node.name)
            stack.append((name, node))
            stack += [(i, None) for i in reversed(self._operands(node))]

    def _operands(self, node: Node) -> list[str]:
        """What a node computes with, not what it begins with; by their names if their own order has no meaning."""
        inputs = [i for k, i in enumerate(node.inputs) if i is not None and not (node.op == "cell" and k in (6, 7))]
        if node.op == "binary" and node.attrs["fn"] in UNORDERED:
            inputs.sort(key=lambda i: self.name_of(self.values[i]))
        return inputs

    def _next(self, state: str) -> str:
        """The value that a state has one step later."""
        if state in self.graph.states:
            return self.graph.states[state]
        name = self.makers[state].inputs[0]
        assert name is not None
        return name

    # -- states --
    def initial(self, flat: Flat | None) -> bytes:
        """The name of what a state begins with; empty for zeros and for what a caller passes."""
        if flat is None or (flat.array is not None and not flat.array.any()):
            return b""
        if flat.elements is not None and all(atom.threaded for atom in self.atoms.of(flat.elements)):
            return b""
        return self.name_of(flat)

    def _state(self, value: str) -> bytes:
        """The name of a state on a cycle: its number, what it begins with and what comes next."""
        begin = self.flat(self.makers[value], 1) if value in self.makers else None
        after = self.name_of(self.values[self._next(value)])
        return named("state", self.numbers.get(value, -1), self.initial(begin), after)

    def _whole(self) -> str:
        ends = [self.values[name] for name in results(self.graph)]
        told = [flat for flat in ends if not self._is_last(flat, ends)] or ends
        states, cells = [self._state(name) for name in self.numbers], sorted(self.made.values())
        return named("model", VERSION, *map(self.name_of, told), "states", *states, "cells", *cells).hex()

    def _is_last(self, flat: Flat, ends: list[Flat]) -> bool:
        """Whether an output only shows the last states of cells, or the last step of another output."""
        if flat.elements is None:
            return False
        whole = self.atoms.before_end(flat)
        shown = {id(a) for end in ends if end.elements is not None for a in self.atoms.of(end.elements)}
        if whole is not None and whole.elements is not None:
            if all(id(a) in shown for a in self.atoms.of(whole.elements)):
                return True
        return all(atom.last for atom in self.atoms.of(flat.elements))


def _free_sizes(graph: Graph) -> dict:
    """Open sizes by name -> one named by its place among them, in the order of the inputs' axes."""
    found: dict = {}
    for name in graph.inputs:
        for dim in graph.values[name].dims:
            for symbol in sorted(D.symbols(dim) - {"batch", "time"}):
                found.setdefault(symbol, D.symbol(f"size{len(found)}"))
    return found
