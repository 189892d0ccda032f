"""States that the caller passes from call to call: which output of one call is which input of the next.

links.py    found by dataflow: outputs whose elements are proved to be an input's next values
names.py    what names tell

What the dataflow does not prove is decided by names (`past_key -> present_key`), among outputs of the same dims and
dtype that depend on the input. What names leave open is decided by order, if only one input and one output have these
dims. An input that looks like a state but could continue from several outputs stays an input. The graph then says so
in `undecided`, and a stream refuses it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import field

import numpy as np

from ....errors import FastRNNError, StateError
from ....graph import DTYPES, INTEGERS, Graph, reference
from ....graph import dims as D
from ....graph.caches import growing
from ....graph.traverse import subgraph
from ....records import dataclass
from .links import dependencies, links, timed
from .names import alike, is_data, is_empty, is_state


def pair(graph: Graph, given: dict | None = None) -> Graph:
    """The graph with `states`. given: the caller's own mapping, which is checked and used instead of the detected one.

    Raises StateError if `given` does not fit the graph, or if one input is proved to continue from several outputs.
    """
    if given is not None:
        return graph.replace(states=_checked(graph, given))
    found = _Pairs(graph)
    found.by_growth()
    found.by_dataflow()
    found.by_name()
    found.by_order()
    states = {source: output for source, (output, _) in found.pairs.items()}
    notes = [f"state {a} -> {b}, found by {how}" for a, (b, how) in found.pairs.items()]
    undecided = found.undecided()
    notes += [
        f"the input {source} may be a state that continues from {' or '.join(outputs)}: name it in states={{...}}"
        for source, outputs in undecided
    ]
    return graph.replace(states=states, undecided=undecided, notes=(*graph.notes, *notes))


def threads(graph: Graph, given: dict | None) -> bool:
    """Whether some state passes through the graph with its batch axis in the same place."""
    try:
        states = pair(graph, given).states
    except StateError:
        return False
    return any(D.BATCH in graph.values[source].dims for source in states)


def _checked(graph: Graph, given: dict) -> dict[str, str]:
    grown = {source: cache.output for source, cache in growing(graph).items()}
    for source, output in given.items():
        if source not in graph.inputs:
            raise StateError(f"states: there is no input {source!r}; the inputs are {', '.join(graph.inputs)}")
        if output not in graph.outputs:
            raise StateError(f"states: there is no output {output!r}; the outputs are {', '.join(graph.outputs)}")
        a, b = graph.values[source], graph.values[output]
        if (a.dtype, a.dims) != (b.dtype, b.dims) and grown.get(source) != output:
            raise StateError(f"states: {a} can't continue from {b}")
    if len(set(given.values())) != len(given):
        raise StateError(f"states: an output is named twice in {dict(given)}")
    needs, ends = dependencies(graph), defaultdict(list)
    for source, output in links(graph)[0]:
        if source in needs[output]:
            ends[output].append(source)
    for source, output in given.items():
        if timed(graph.values[source]) and source not in grown:
            raise StateError(f"states: {graph.values[source]} has a time axis, which no state has")
        if source not in ends.get(output, [source]):
            other = ends[output][0]
            raise StateError(
                f"states: {output!r} is the final state of a cell that starts from {other!r}, so it can't be the next "
                f"{source!r}; expected {{{other!r}: {output!r}}}"
            )
    return dict(given)


@dataclass
class _Pairs:
    """pairs : input -> (output, how it was found), so far. doubtful : inputs whose names and dataflow disagree."""

    graph: Graph
    pairs: dict[str, tuple[str, str]] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)

    def __post_init__(self):
        self.needs = dependencies(self.graph)
        self.repeats: set[tuple[str, str]] = set()
        self.timed = any(timed(v) for v in self.graph.values.values())

    # -- what is left --
    def _inputs(self) -> list[str]:
        return [n for n in self.graph.inputs if n not in self.pairs and not timed(self.graph.values[n])]

    def _outputs(self) -> list[str]:
        used = {output for output, _ in self.pairs.values()}
        return [n for n in self.graph.outputs if n not in used and not timed(self.graph.values[n])]

    def _kind(self, name: str) -> tuple:
        value = self.graph.values[name]
        return value.dtype, value.dims

    def _like(self, source: str) -> list[str]:
        """The outputs left that have the dtype and dims of an input, and may be its next value."""
        return [o for o in self._outputs() if self._kind(o) == self._kind(source) and not self._stands(source, o)]

    def _stands(self, source: str, output: str) -> bool:
        """Whether an output is the length of what an input is the length of, such as `(n - 7) // 4`: computed from that
        integer alone, it is 0 or less where that is 0. As a state it would stay so for ever."""
        value = self.graph.values[source]
        if value.dtype not in INTEGERS or self.needs[output] != {source}:
            return False
        names = {name for v in self.graph.values.values() for d in v.dims for name in D.symbols(d)}
        sizes = dict.fromkeys(names, 2)
        zeros = np.zeros([D.evaluate(d, sizes) for d in value.dims], DTYPES[value.dtype])
        try:
            (found,) = reference.run(subgraph(self.graph, (source,), (output,)), {source: zeros}, sizes=sizes)
        except FastRNNError:
            return False
        return bool((found <= 0).all())

    def _add(self, found: dict[str, str], how: str) -> None:
        """Take these pairs, unless they leave no input for data."""
        if len(self.pairs) + len(found) < len(self.graph.inputs):
            self.pairs |= {source: (output, how) for source, output in found.items()}

    # -- the four ways --
    def by_growth(self) -> None:
        """Caches, which an output holds with the steps of the call behind them, if their names say so too."""
        found = {source: cache.output for source, cache in growing(self.graph).items()}
        self._add({s: o for s, o in found.items() if alike(s, o) or (is_state(s) and not is_data(o))}, "dataflow")

    def by_dataflow(self) -> None:
        found: dict[str, list[str]] = {}
        proved, self.repeats = links(self.graph)
        for source, output in proved:
            if source in self.needs[output]:
                found.setdefault(source, []).append(output)
            else:  # a window: its next value is the end of the data, so only names tell that it is a state
                self.needs[output].add(source)
        for source, outputs in found.items():
            named = [o for o in outputs if alike(source, o)]
            if len(outputs) > 1 and len(named) != 1:
                raise StateError(
                    f"the state {source!r} could continue from any of {', '.join(outputs)}; "
                    f"name it: states={{{source!r}: {outputs[0]!r}}}"
                )
            self.pairs[source] = (named[0] if len(outputs) > 1 else outputs[0], "dataflow")

    def by_name(self) -> None:
        """Names by words first, then by single letters; each output once, each input once."""
        for level in (2, 1):
            said = {s: [o for o in self._like(s) if alike(s, o) == level] for s in self._inputs()}
            back = defaultdict(list)
            for source, outputs in said.items():
                for output in outputs:
                    back[output].append(source)
            found = {s: o[0] for s, o in said.items() if len(o) == 1 and len(back[o[0]]) == 1}
            self.doubtful |= {s for s in found if self._contradicted(s, found)}
            self._add({s: o for s, o in found.items() if s not in self.doubtful}, "name")

    def _contradicted(self, source: str, found: dict[str, str]) -> bool:
        """Whether the output with an input's name does not depend on it, and another that may continue it does."""
        own = {o for s, o in found.items() if s in self.needs[o] or s == source}
        others = [o for o in self._like(source) if o not in own and self._continues(source, o)]
        return source not in self.needs[found[source]] and bool(others)

    def _continues(self, source: str, output: str) -> bool:
        """Whether an output of an input's dims may be its next value, by its dataflow and its own name."""
        return source in self.needs[output] and (source, output) not in self.repeats and not is_data(output)

    def by_order(self) -> None:
        """Inputs and outputs of the same dims, if only one way to pair them agrees with the dataflow, and their names
        don't say no. With one input and one output of these dims their place tells it, else what depends on what."""
        found: dict[str, dict[str, str]] = {"order": {}, "dataflow": {}}
        for kind in dict.fromkeys(map(self._kind, self._inputs())):
            sources = [s for s in self._inputs() if self._kind(s) == kind and not is_data(s)]
            everything = [s for s in self._inputs() if self._kind(s) == kind]
            only = self._only_way(sources, self._like(everything[0]))
            if everything == sources and only and all(self._may(*pair) for pair in only.items()):
                found["order" if len(only) == 1 else "dataflow"] |= only
        if len(self.pairs) + sum(map(len, found.values())) < len(self.graph.outputs):  # data comes out too
            for how, pairs in found.items():
                self._add(pairs, how)

    def _only_way(self, sources: list[str], outputs: list[str]) -> dict[str, str]:
        """The only way to give each of these inputs one of as many outputs that depend on it; {} if there are more."""
        may = {s: {o for o in outputs if self._continues(s, o)} for s in sources}
        found: dict[str, str] = {}
        while may and len(sources) == len(outputs):
            one = next((s for s, left in may.items() if len(left) == 1), None)
            if one is None:
                return {}
            (found[one],) = may.pop(one)
            for left in may.values():
                left.discard(found[one])
        return found if len(found) == len(sources) else {}

    def _may(self, source: str, output: str) -> bool:
        """Whether the names of an input and of the only output that may continue it agree."""
        if source in self.doubtful:
            return False
        if is_state(source):
            return is_state(output) or is_empty(output)
        if self.timed or not (is_empty(source) and (is_empty(output) or is_state(output))):
            return False
        # Names that a tool made up tell nothing. Data come first, or have names, or are made from the new state.
        rest = [o for o in self._outputs() if o != output]
        first = source == self.graph.inputs[0] or output == self.graph.outputs[0]
        named = any(is_data(n) for n in self._inputs()) and any(is_data(n) for n in rest)
        return named or (not first and self._feeds(output, rest))

    def _feeds(self, output: str, others: list[str]) -> bool:
        """Whether one of the other outputs is computed from this one."""
        made = {output}
        for node in self.graph.nodes:
            if node.op == "reshape" and node.outputs[0] == output:  # what the importer adds to name an output
                made |= set(node.inputs)
        for node in self.graph.nodes:
            if any(i in made for i in node.inputs):
                made |= {o for o in node.outputs if o is not None}
        return any(o in made for o in others)

    def undecided(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(input, outputs) of each input that looks like a state, though not which output it continues from."""
        found = []
        for source in self._inputs() if not self.timed else ():
            outputs = [o for o in self._like(source) if self._continues(source, o) or alike(source, o)]
            looks = source in self.doubtful or is_state(source) or (is_empty(source) and self.pairs)
            if outputs and looks and not is_data(source):
                found.append((source, tuple(outputs)))
        return tuple(found)
