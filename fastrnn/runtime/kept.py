"""What a stream keeps from step to step, named by what it means: the columns of a slab row, as snapshots have them.

A plan decides which states a stream keeps, and where; both may change from release to release. `kept_states` gives
each a key that doesn't: the name of what is remembered (streaming/meaning.py), such as the h of a cell, or the last
four steps of a value.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from ..compile.plan import Plan, StateSlot
from ..graph import Graph, Node
from ..graph import dims as D
from ..graph.digests import named
from ..passes.positions import spread_positions
from ..records import dataclass
from ..streaming.timetable import INPUT, Timetable

if TYPE_CHECKING:
    from ..streaming.meaning import Meaning

# Part of a slot -> what it is called. The names are part of the format of snapshots.
KINDS = {"h": "h", "c": "c", "tail": "last steps", "k": "keys", "v": "values", "sum": "sum", "steps": "steps ago",
         "value": "state", "count": "count"}  # fmt: skip


@dataclass(frozen=True)
class KeptState:
    """A state in a slab row, or in the rows of a snapshot.

    key : hex text; what it means, in the whole model. own : for a cell, what it means by itself: the name of its layer
    kind : one of `KINDS`, with the kind of the cell; name : for people, as in `Model.states`
    dtype, dims : of its elements; at : the first float32 place of the row that it takes
    """

    key: str
    own: str
    kind: str
    name: str
    dtype: str
    dims: tuple[int, ...]
    at: int
    floats: int

    @property
    def form(self) -> tuple:
        """What must be equal for one state to be taken as another."""
        return self.kind, self.dtype, self.dims

    def __str__(self):
        return f"{self.name} ({self.kind}, {self.dtype}{list(self.dims)})"


class Meanings:
    """What a graph means, found when it is first asked for. Shared by a model and its layouts.

    graph : as streams run it
    """

    def __init__(self, graph: Graph):
        self.graph = graph

    @cached_property
    def whole(self) -> Meaning:
        from ..streaming.meaning import Meaning  # half a megabyte of modules, which only snapshots need

        return Meaning(self.graph)

    @cached_property
    def planned(self) -> Meaning:
        """Of the graph that plans are made of."""
        graph = spread_positions(self.graph)
        from ..streaming.meaning import Meaning

        return self.whole if graph is self.graph else Meaning(graph)


def kept_states(meaning: Meaning, plan: Plan) -> tuple[KeptState, ...]:
    """The states of a plan in the order of the dataflow. meaning: of the graph that the plan was made of."""
    nodes = {n.name: n for n in plan.graph.nodes}
    found: list[tuple] = []
    seen: dict[bytes, int] = {}
    for slot in plan.states:
        rank, key, own, kind = _meaning_of(meaning, plan, nodes, slot)
        found.append((rank, len(found), slot, key, own, kind))
    states = []
    for _, _, slot, key, own, kind in sorted(found, key=lambda entry: entry[:2]):
        again = seen[key] = seen.get(key, -1) + 1  # of two that mean the same, the second
        text = named(key, again).hex()
        dims = tuple(d for d in slot.dims if isinstance(d, int)) if slot.dims else (slot.size,)
        dims = dims if D.product(dims) == slot.size else (slot.size,)
        states.append(KeptState(text, own.hex(), kind, slot.name, slot.dtype, dims, slot.offset, slot.floats))
    return tuple(states)


def _meaning_of(meaning: Meaning, plan: Plan, nodes: dict[str, Node], slot: StateSlot) -> tuple:
    """(place in the dataflow, key, own name, kind) of a slot."""
    kind, end = KINDS[slot.part], len(meaning.rank)
    if slot.part == "count":
        return (end, 0), named("count", _clock_of(plan.timetable, slot.name)), b"", kind
    if slot.part == "value":
        place = end, meaning.numbers.get(slot.node, -1)
        return place, named("state", meaning.states[slot.node]), b"", kind
    node = nodes[slot.node]
    if slot.part == "tail":
        value, waits = _kept_value(meaning.graph, plan, node)
        maker = meaning.makers.get(value)
        rank = -1 if maker is None else meaning.rank[maker.name]
        about = (node.attrs["length"], bool(node.attrs["window"]), waits)
        return (rank, about[0]), named("last steps", meaning.names[value], *about), b"", kind
    if slot.part == "steps":
        value = node.outputs[0]
        place = end, meaning.numbers.get(value, -1)
        return place, named("steps", meaning.states[value], slot.size), b"", kind
    rank, own = (meaning.rank[node.name], "hc".find(slot.part)), b""
    if slot.part in "hc":
        kind = f"{node.attrs['spec'].kind} {kind}"
        own = named(slot.part, meaning.own[node.name])
        return rank, named(slot.part, meaning.made.get(node.name, own)), own, kind
    return rank, named(slot.part, meaning.names[node.outputs[0]]), b"", kind


def _kept_value(graph: Graph, plan: Plan, keep: Node) -> tuple[str, int]:
    """(the value of the graph whose steps a `keep` holds, how often it waits for others before)."""
    value, waits, makers = keep.inputs[0], 0, plan.graph.producers()
    while value not in graph.values:
        node = makers[value]
        value, waits = node.inputs[0], waits + (node.op == "slice")
    return value, waits


def _clock_of(table: Timetable | None, name: str) -> str:
    """Which steps a count counts, as text."""
    number = name.removeprefix("position of ")
    if table is None or not number.startswith("steps") or not number[5:].isdecimal():
        return name
    return _clock_text(table, int(number[5:]))


def _clock_text(table: Timetable, number: int) -> str:
    if number == INPUT:
        return "input"
    clock = table.clocks[number]
    of = ", ".join(_clock_text(table, k) for k in clock.of)
    return f"{clock.kind}({of}; {clock.stride} {clock.reach} {clock.begin} {clock.end} {clock.ceil})"
