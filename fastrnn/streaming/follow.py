"""Follows the batch or time axis through a graph: does each row (each step) stay separate?

`follow(graph, "batch")` lists the nodes that mix rows of a batch; `follow(graph, "time")` those that need future
steps. A graph with neither can be run row by row and step by step, with the bits of the whole run.

An axis may be merged with others: a `Track` says in which axis of a value the symbol is, and how many elements of that
axis one count of it spans (`inner`: 1 in [time, batch, 6]; time in [batch*time, 6] seen from batch).

For time, a value may also be *running*: made of all steps so far (the last step, a mean over time, a cell's last
state). A stream has such a value at each step as if the sequence ended there. So it may flow to outputs, but must not
be combined with steps again.

An op that slides windows along time, pads it or crops it has its own pace: its track has another clock (see
timetable.py). If a node combines values of different clocks, they wait for the slowest one (`Followed.waits`).

A cache that the caller hands on puts earlier steps in front of a sequence (graph/tails.py): the track then has a
`lead`. Each element must depend on the steps before it alone, not on where a chunk begins. In such a file nothing else
may look along time: it would see its own chunk in the file, and all steps so far in a stream.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import UnsupportedError
from ..graph import Graph, Node, Value
from ..graph import dims as D
from ..graph.tails import Tails, tails
from ..graph.vocabulary import ROWS, Meeting
from ..records import dataclass
from .rules import RUNNING, Mixed, Track, follows
from .timetable import INPUT, Clock, Timetable

WORDS = {
    "time": {"one": "step", "all": "steps", "joined": "sequences one after the other"},
    "batch": {"one": "row", "all": "rows of the batch", "joined": "batches"},
}


@dataclass(frozen=True)
class Followed:
    """problems: one sentence per node; tracks: value -> Track, for values that have the symbol.

    running : value -> the clock of its source. waits : node name -> the clock that its inputs wait for.
    """

    problems: tuple[str, ...]
    tracks: dict[str, Track]
    running: dict[str, int]
    waits: dict[str, int]
    timetable: Timetable


def follow(graph: Graph, symbol: str) -> Followed:
    """Follow "batch" or "time" from the inputs to the outputs of a validated graph."""
    walk = Walk(graph, symbol)
    for name in graph.inputs:
        walk.enter(graph.values[name])
    for node in graph.nodes:
        walk.visit(node)
    for node in graph.nodes:
        if node.op == "state":
            walk.close(node)
    for name in graph.outputs:
        walk.leave(graph.values[name])
    return Followed(tuple(walk.problems), walk.tracks, walk.running, walk.waits, walk.timetable)


class Walk:
    def __init__(self, graph: Graph, symbol: str):
        self.graph, self.symbol, self.dim = graph, symbol, D.symbol(symbol)
        self.words = {"symbol": symbol, **WORDS[symbol]}  # for the text of a problem
        self.timetable = Timetable()
        self.tracks: dict[str, Track] = {}
        self.running: dict[str, int] = {}
        self.waits: dict[str, int] = {}
        self.waiting: int | None = None  # the clock that the inputs of the current node wait for
        self.lost: set[str] = set()  # made by a node with a problem: not judged again
        self.problems: list[str] = []
        self.tails = tails(graph) if symbol == "time" else Tails({}, frozenset())

    def on_two_axes(self) -> Mixed:
        """The error for inputs that have the symbol on axes that don't meet."""
        return Mixed(f"combines {self.symbol} along one axis with {self.symbol} along another")

    def axes(self, dims) -> list[int]:
        """Axes whose dim depends on the symbol."""
        return [i for i, d in enumerate(dims) if self.symbol in D.symbols(d)]

    def enter(self, value: Value) -> None:
        axes = self.axes(value.dims)
        if len(axes) > 1 or (axes and value.dims[axes[0]] != self.dim):
            self.problems.append(
                f"input {value} has more than one {self.symbol} axis, or one that isn't plain {self.symbol}"
            )
            self.lost.add(value.name)
        elif axes:
            self.tracks[value.name] = Track(axes[0])

    def leave(self, value: Value) -> None:
        axes, track = self.axes(value.dims), self.tracks.get(value.name)
        if value.name in self.lost or not axes:
            return
        if track is None or not isinstance(track.inner, int) or value.dims[axes[0]] != self.dim_of(track):
            what = "a step for each step" if self.symbol == "time" else "a row for each row"
            self.problems.append(f"output {value} is not {what} of the input")

    def visit(self, node: Node) -> None:
        names = [n for n in node.inputs if n is not None]
        if any(n in self.lost for n in names):
            self.lost.update(o for o in node.outputs if o is not None)
            return
        running = any(n in self.running for n in names)
        try:
            self._wait(node)
            rule = follows.get(node.op)
            self._keep(node, rule(self, node) if rule else [self.meeting(node, ROWS[node.op].meets)], running)
        except (Mixed, UnsupportedError) as error:
            self.problem(node, str(error))
            self.lost.update(o for o in node.outputs if o is not None)

    def _keep(self, node: Node, made, running: bool) -> None:
        """Record the tracks of a node's outputs; RUNNING marks a value of all steps so far."""
        for name, track in zip(node.outputs, made, strict=False):
            if name is None:
                continue
            axes = self.axes(self.graph.values[name].dims)
            if running and axes:
                raise Mixed("brings a value of the whole sequence together with its single steps")
            if track is RUNNING or running:
                self.running[name] = self._clock_of_all(node)
            elif axes != ([] if track is None else [track.axis]):
                raise Mixed(f"spreads {self.symbol} over the axes {axes} of {self.graph.values[name]}")
            elif track is not None:
                dim = self.graph.values[name].dims[track.axis]
                if track.lead and dim != D.TIME + track.lead:
                    raise Mixed(f"makes {dim} steps of the {track.lead} cached ones and a chunk")
                self.tracks[name] = self.own_clock(track, dim)

    # -- clocks --
    def dim_of(self, track: Track):
        """The length of a track's axis if it contains only the symbol."""
        return track.inner * (self.dim if self.symbol == "batch" else self.timetable.clocks[track.clock].dim)

    def _wait(self, node: Node) -> None:
        """Inputs have several clocks: all wait for the slowest."""
        self.waiting = None
        tracks = {n: self.tracks[n] for n in node.inputs if n in self.tracks}
        found = sorted({t.clock for t in tracks.values()})
        if len(found) < 2 or (node.op == "cell" and node.inputs[0] not in tracks):
            return
        clocks = [self.timetable.clocks[i] for i in found]
        if any(c.dim != clocks[0].dim for c in clocks):
            raise Mixed(f"brings sequences of {' and '.join(str(c.dim) for c in clocks)} steps together")
        for name, track in tracks.items():
            if not isinstance(track.inner, int) or self.graph.values[name].dims[track.axis] != self.dim_of(track):
                raise Mixed(
                    "brings sequences together that lag by different numbers of steps, in axes merged with others"
                )
        self.waiting = self.timetable.add(Clock("least", clocks[0].dim, tuple(found)))
        self.waits[node.name] = self.waiting

    def _clock_of_all(self, node: Node) -> int:
        """The clock of a value that is made of all steps of a node's inputs."""
        names = [n for n in node.inputs if n is not None]
        found = {self.tracks[n].clock for n in names if n in self.tracks}
        found |= {self.running[n] for n in names if n in self.running}
        return max(sorted(found), key=self.timetable.first, default=INPUT)  # a value exists once all have begun

    def sequence(self, node: Node) -> int:
        """The clock of input 0 at which one step is one element of its axis, as windows need it."""
        track, dim = self.track(node), self.value(node).dims[self.track(node).axis]
        if track.lead:
            raise Mixed(f"sees a whole chunk and the {track.lead} cached steps before it")
        if track.inner != 1 or dim != self.dim_of(track):
            raise Mixed(f"slides along an axis of {dim}, in which steps are merged with others")
        return track.clock

    def own_clock(self, track: Track, dim) -> Track:
        """If an axis holds several elements per step and nothing else, they are the steps of a faster clock."""
        if self.symbol == "batch" or not isinstance(track.inner, int) or track.inner < 2 or dim != self.dim_of(track):
            return track
        return Track(track.axis, 1, self.timetable.add(Clock("times", dim, (track.clock,), track.inner)))

    def paced(self, node: Node, kind: str, axis: int, **fields) -> list[Track]:
        """The track of an output with its own clock, along the time axis of input 0."""
        dim = self.graph.values[node.outputs[0]].dims[axis]
        self.within_chunks("looks along time without a cache")
        if "time" not in D.symbols(dim):
            raise Mixed(f"makes {dim} steps of a sequence of any length")
        return [Track(axis, 1, self.timetable.add(Clock(kind, dim, (self.sequence(node),), **fields)))]

    def within_chunks(self, what: str, node: Node | None = None) -> None:
        """Refuse a node that, in a file with caches, sees only the steps of its own chunk: in a stream it would go on
        from chunk to chunk, which the file does not. node: one that may say that it does so in the file (`grows`)."""
        if self.tails.joints and not (node and node.attrs.get("grows")):
            raise Mixed(f"{what}: the file begins anew with each chunk, beside states that are caches")

    # -- helpers --
    def problem(self, node: Node, text: str) -> None:
        self.problems.append(f"node {node.name} ({node.op}): {text}")

    def value(self, node: Node, i: int = 0) -> Value:
        return self.graph.values[node.inputs[i]]

    def track(self, node: Node, i: int = 0) -> Track | None:
        name = node.inputs[i] if i < len(node.inputs) else None
        track = None if name is None else self.tracks.get(name)
        return track if track is None or self.waiting is None else replace(track, clock=self.waiting)

    def aligned(self, node: Node, rank: int) -> Track | None:
        """Inputs that broadcast to `rank` axes: their tracks must agree."""
        found: Track | None = None
        for i, name in enumerate(node.inputs):
            track = self.track(node, i)
            if name is None or track is None:
                continue
            here = replace(track, axis=track.axis + rank - len(self.graph.values[name].dims))
            if found is not None and here != found:
                raise self.on_two_axes()
            found = here
        return found

    def meeting(self, node: Node, meets: Meeting) -> Track | None:
        """The track of the output of an op whose row says along which axes it mixes elements."""
        rank = max(len(self.graph.values[i].dims) for i in node.inputs if i is not None)
        track, along = self.aligned(node, rank), meets.along(node.attrs, rank)
        if track is not None and track.axis in along:
            raise Mixed(meets.text.format(**self.words))
        gone = len(self.graph.values[node.outputs[0]].dims) < rank
        return replace(track, axis=track.axis - sum(a < track.axis for a in along)) if track and gone else track

    def close(self, node: Node) -> None:
        """Check that a state's input has the symbol in the same place as its output was assumed to have it."""
        name, out = node.inputs[0], node.outputs[0]
        if name not in self.lost and out not in self.lost and self.tracks.get(name) != self.tracks.get(out):
            text = f"{self.symbol} is in another place than one step before"
            if self.symbol == "time" and (after := self.tracks.get(name)) is not None and after.clock != INPUT:
                text = "its cycle runs behind windows or cuts along time, at another pace than the input"
            self.problem(node, text)
