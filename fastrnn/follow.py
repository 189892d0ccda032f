"""Follows the axis of batch, or of time, through a graph: does each row (each step) stay by itself?

`follow(graph, "batch")` lists the nodes that let rows of a batch meet; `follow(graph, "time")` those that need steps
which have not come yet. A graph with neither can be run row by row and step by step, with the bits of the whole run.

An axis may be merged with others: a `Track` says in which axis of a value the symbol is, and how many elements of that
axis one count of it spans (`inner`: 1 in [time, batch, 6]; time in [batch*time, 6] seen from batch).

For time a value may also be *running*: made of all steps so far (the last step, a mean over time, a cell's last
state). A stream has such a value at each step as if the sequence ended there; so it may flow to outputs, but meet
no step again.

What slides windows along time, pads it or cuts steps off has a pace of its own: its track has another clock (see
fastrnn.timetable). Values of different clocks that meet wait for the slowest of them (`Followed.waits`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import dims as D
from .errors import UnsupportedError
from .graph import Graph, Node, Value
from .timetable import INPUT, Clock, Timetable


@dataclass(frozen=True)
class Track:
    """The symbol is in axis `axis`; the elements of that axis that one count of it spans: `inner`, an int or dim.

    clock : of time, the number of the clock by which its steps come; `inner` elements at a step of that clock.
    """

    axis: int
    inner: object = 1
    clock: int = INPUT


MOST_GROUPED = 64  # steps that are taken together


class Mixed(Exception):
    """This node lets rows (or steps) meet; the text says how."""


@dataclass(frozen=True)
class Followed:
    """problems: one sentence a node; tracks: value -> Track, of values that have the symbol.

    running : value -> the clock of what it is made of. waits : node name -> the clock that its inputs wait for.
    """

    problems: tuple[str, ...]
    tracks: dict[str, Track]
    running: dict[str, int]
    waits: dict[str, int]
    timetable: Timetable


def follow(graph: Graph, symbol: str) -> Followed:
    """Follow "batch" or "time" from the inputs to the outputs of a validated graph."""
    walk = _Walk(graph, symbol)
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


class _Walk:
    def __init__(self, graph: Graph, symbol: str):
        self.graph, self.symbol, self.dim = graph, symbol, D.symbol(symbol)
        self.timetable = Timetable()
        self.tracks: dict[str, Track] = {}
        self.running: dict[str, int] = {}
        self.waits: dict[str, int] = {}
        self.waiting: int | None = None  # the clock that the inputs of the node at hand wait for
        self.lost: set[str] = set()  # made of a node that is a problem: not judged again
        self.problems: list[str] = []

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
            made = getattr(self, f"_{node.op}")(node)
            self._keep(node, made, running)
        except (Mixed, UnsupportedError) as error:
            self.problem(node, str(error))
            self.lost.update(o for o in node.outputs if o is not None)

    def _keep(self, node: Node, made, running: bool) -> None:
        """Note the tracks of a node's outputs; RUNNING stands for a value of all steps so far."""
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
                self.tracks[name] = self._own_clock(track, self.graph.values[name].dims[track.axis])

    # -- clocks --
    def dim_of(self, track: Track):
        """How long the axis of a track is, where nothing but the symbol is in it."""
        return track.inner * (self.dim if self.symbol == "batch" else self.timetable.clocks[track.clock].dim)

    def _wait(self, node: Node) -> None:
        """Inputs of several clocks: all wait for the slowest."""
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
        return max(sorted(found), key=self.timetable.first, default=INPUT)  # there is a value when all have begun

    def _sequence(self, node: Node) -> int:
        """The clock of input 0, of which one step is one element of its axis: what windows need."""
        track, dim = self.track(node), self.value(node).dims[self.track(node).axis]
        if track.inner != 1 or dim != self.dim_of(track):
            raise Mixed(f"slides along an axis of {dim}, in which steps are merged with others")
        return track.clock

    def _own_clock(self, track: Track, dim) -> Track:
        """Several elements at each step, and nothing else in the axis, are the steps of a faster clock."""
        if self.symbol == "batch" or not isinstance(track.inner, int) or track.inner < 2 or dim != self.dim_of(track):
            return track
        return Track(track.axis, 1, self.timetable.add(Clock("times", dim, (track.clock,), track.inner)))

    def _paced(self, node: Node, kind: str, axis: int, **fields) -> list[Track]:
        """The track of a node's output that has its own clock, along the axis on which input 0 has time."""
        dim = self.graph.values[node.outputs[0]].dims[axis]
        if "time" not in D.symbols(dim):
            raise Mixed(f"makes {dim} steps of a sequence of any length")
        return [Track(axis, 1, self.timetable.add(Clock(kind, dim, (self._sequence(node),), **fields)))]

    # -- helpers --
    def problem(self, node: Node, text: str) -> None:
        self.problems.append(f"node {node.name} ({node.op}): {text}")

    def value(self, node: Node, i: int = 0) -> Value:
        return self.graph.values[node.inputs[i]]

    def track(self, node: Node, i: int = 0) -> Track | None:
        name = node.inputs[i] if i < len(node.inputs) else None
        track = None if name is None else self.tracks.get(name)
        return track if track is None or self.waiting is None else replace(track, clock=self.waiting)

    def _aligned(self, node: Node, rank: int) -> list[Track | None]:
        """Inputs that broadcast to `rank` axes: their tracks must agree."""
        found: Track | None = None
        for i, name in enumerate(node.inputs):
            track = self.track(node, i)
            if name is None or track is None:
                continue
            here = replace(track, axis=track.axis + rank - len(self.graph.values[name].dims))
            if found is not None and here != found:
                raise Mixed(f"brings {self.symbol} along one axis together with {self.symbol} along another")
            found = here
        return [found]

    # -- one method an op: the tracks of its outputs --
    def _unary(self, node):
        return [self.track(node)]

    _cast = _unary

    def _binary(self, node):
        return self._aligned(node, len(self.graph.values[node.outputs[0]].dims))

    _where = _binary

    def _transpose(self, node):
        track = self.track(node)
        return [track and replace(track, axis=node.attrs["perm"].index(track.axis))]

    def _reshape(self, node):
        track = self.track(node)
        if track is None:
            return [None]
        choices = [track]
        clock = self.timetable.clocks[track.clock]
        if clock.kind == "times":  # its steps may be taken together again
            choices.append(replace(track, inner=track.inner * clock.stride, clock=clock.of[0]))
        for grain in choices:
            inner = D.product(self.value(node).dims[track.axis + 1 :]) * grain.inner
            for axis in self.axes(node.attrs["dims"]):
                after = D.product(node.attrs["dims"][axis + 1 :])
                own = 1 if inner == after else D.exact_div(inner, after)
                one = self.dim_of(replace(grain, inner=1))
                if own is not None and D.exact_div(node.attrs["dims"][axis], own * one) is not None:
                    return [replace(grain, axis=axis, inner=own)]
        raise Mixed(f"moves elements from one {'step' if self.symbol == 'time' else 'row'} to another")

    def _slice(self, node):
        track, a = self.track(node), node.attrs
        if track is None or track.axis != a["axis"]:
            return [track]
        dim = self.value(node).dims[a["axis"]]
        if a["start"] == 0 and a["stop"] == dim and a["step"] == 1:
            return [track]
        if self.symbol == "time":
            if a["step"] == 1 and a["stop"] == dim == a["start"] + 1:
                self._sequence(node)
                return [RUNNING]
            if a["step"] > 0 and isinstance(a["start"], int) and isinstance(dim - a["stop"], int):
                cuts = {"begin": -a["start"], "end": a["stop"] - dim}
                return self._paced(node, "window", track.axis, stride=a["step"], **cuts)
            grouped = a["start"] == 0 and a["step"] == 1 and self._whole_groups(track, dim, a["stop"])
            if grouped:
                return [Track(track.axis, 1, grouped)]
            raise Mixed(f"picks steps [{a['start']}:{a['stop']}:{a['step']}] of a sequence")
        raise Mixed(f"picks rows [{a['start']}:{a['stop']}:{a['step']}] of the batch")

    def _whole_groups(self, track: Track, dim, stop) -> int | None:
        """The clock of a sequence without the steps that fill no group of r, as x[:, : T // r * r] has it."""
        r = next((r for r in range(2, MOST_GROUPED) if D.floordiv(dim, r) * r == stop), None)
        if r is None or track.inner != 1 or dim != self.dim_of(track):
            return None
        groups = Clock("window", D.floordiv(dim, r), (track.clock,), stride=r, reach=r)
        return self.timetable.add(Clock("times", stop, (self.timetable.add(groups),), r))

    def _expand(self, node):
        track, rank = self.track(node), len(node.attrs["dims"])
        if track is not None:
            return [replace(track, axis=track.axis + rank - len(self.value(node).dims))]
        axes = self.axes(node.attrs["dims"])
        if not axes:
            return [None]
        made = [i for i, c in enumerate(self.timetable.clocks) if c.dim == node.attrs["dims"][axes[0]]]
        if self.symbol == "time" and made:  # the same at all steps: it comes with any clock of this length
            return [Track(axes[0], clock=made[0])]
        return [Track(axes[0]) if node.attrs["dims"][axes[0]] == self.dim else None]

    def _concat(self, node):
        (track,) = self._aligned(node, len(self.value(node).dims))
        if track is not None and track.axis == node.attrs["axis"]:
            raise Mixed("joins " + ("sequences one after the other" if self.symbol == "time" else "batches"))
        return [track]

    def _gather(self, node):
        table, indices, axis = self.track(node), self.track(node, 1), node.attrs["axis"]
        if table is not None and table.axis == axis:
            raise Mixed(f"picks {'steps' if self.symbol == 'time' else 'rows of the batch'} by index")
        if table is not None and indices is not None:
            raise Mixed(f"looks up in a table that has a {self.symbol} axis itself")
        if indices is not None:
            return [replace(indices, axis=axis + indices.axis)]
        if table is not None and table.axis > axis:
            return [replace(table, axis=table.axis - 1 + len(self.value(node, 1).dims))]
        return [table]

    def _linear(self, node):
        track = self.track(node)
        if track is not None and track.axis == len(self.value(node).dims) - 1:
            raise Mixed(f"sums over {self.symbol}")
        return [track]

    def _matmul(self, node):
        rank, found = len(self.graph.values[node.outputs[0]].dims), None
        vectors = [len(self.value(node, i).dims) == 1 for i in (0, 1)]
        for i, summed in ((0, -1), (1, -2)):
            track, dims = self.track(node, i), self.value(node, i).dims
            if track is None:
                continue
            from_end = track.axis - len(dims)
            if vectors[i] or from_end == summed:
                raise Mixed(f"multiplies over all {'steps' if self.symbol == 'time' else 'rows of the batch'}")
            here = replace(track, axis=from_end + rank + (from_end < -1 and vectors[1 - i]))
            if found is not None and here != found:
                raise Mixed(f"brings {self.symbol} along one axis together with {self.symbol} along another")
            found = here
        return [found]

    def _attention(self, node):
        """Along batch and heads each row attends by itself; along q's length each query does; along the keys' length
        steps stay apart only where q has the same steps and sees none that comes after its own."""
        q, k, v = (self.track(node, i) for i in range(3))
        added = [(i, self.track(node, i)) for i in (3, 4)]  # bias and mask
        added = [(i, t) for i, t in added if t is not None]
        what = "steps" if self.symbol == "time" else "rows of the batch"
        if any(t is not None and t.axis == 3 for t in (q, k, v)):
            raise Mixed(f"sums over {self.symbol}")
        keys = [t for t in (k, v) if t is not None]
        if any(t.axis == 2 for t in keys):
            if self.symbol != "time" or q is None or any(t != q for t in keys) or len(keys) < 2:
                raise Mixed(f"attends to all {what}")
            if not streams_causally(self.graph, node):
                raise Mixed("attends to all steps: it needs the future")
            if added:
                what = "adds a bias" if added[0][0] == 3 else "masks by a value"
                raise Mixed(f"{what} that has a time axis to the scores of a sequence")
            self._sequence(node)
            return [q]
        if any(t != q for t in keys) or any(t != self._bias_track(node, q, i) for i, t in added):
            raise Mixed(f"brings {self.symbol} along one axis together with {self.symbol} along another")
        return [q]

    def _bias_track(self, node: Node, q: Track | None, i: int) -> Track | None:
        """Where the symbol of q is in input i, a bias or mask that broadcasts to [B, H, Tq, Tk]."""
        return None if q is None else replace(q, axis=q.axis - 4 + len(self.value(node, i).dims))

    def _steps(self, node):
        dims, start = node.attrs["dims"], node.attrs["start"]
        axes = self.axes(dims)
        if self.symbol in D.symbols(start):
            raise Mixed(f"counts from {start}")
        if not axes:
            return [None]
        made = [i for i, c in enumerate(self.timetable.clocks) if c.dim == dims[axes[0]]]
        if self.symbol == "time" and made:  # as many as any clock of this length has brought
            return [Track(axes[0], clock=made[0])]
        if dims[axes[0]] != self.dim:
            raise Mixed(f"counts {dims[axes[0]]} steps")
        return [Track(axes[0])]

    def _reduce(self, node):
        track, axes = self.track(node), node.attrs["axes"]
        if track is None:
            return [None]
        if track.axis in axes:
            if self.symbol == "time" and len(axes) == 1:
                self._sequence(node)
                return [RUNNING]
            over = "steps and other axes at once" if self.symbol == "time" else "the rows of the batch"
            raise Mixed(f"takes the {node.attrs['fn']} over {over}")
        gone = 0 if node.attrs["keepdims"] else sum(a < track.axis for a in axes)
        return [replace(track, axis=track.axis - gone)]

    def _softmax(self, node):
        track = self.track(node)
        if track is not None and track.axis == node.attrs["axis"]:
            raise Mixed(f"normalises over all {'steps' if self.symbol == 'time' else 'rows of the batch'}")
        return [track]

    def _layer_norm(self, node):
        (track,) = self._aligned(node, len(self.value(node).dims))
        if track is not None and track.axis >= node.attrs["axis"]:
            raise Mixed(f"normalises over all {'steps' if self.symbol == 'time' else 'rows of the batch'}")
        return [track]

    def _cell(self, node):
        track, dims, spec = self.track(node), self.value(node).dims, node.attrs["spec"]
        mask = self.track(node, 9)
        if mask is not None and mask != track:
            raise Mixed(f"its mask has {self.symbol} in another place than its input")
        states = [self.track(node, i) for i in (6, 7, 8)]
        if track is None or track.axis == 1:
            if any(s is not None and (s.axis, s.inner) != (0, track.inner if track else 1) for s in states):
                raise Mixed(f"its initial state has {self.symbol} in another place than its input")
            kept = self.symbol == "batch" and D.symbols(dims[0]) == {"time"}
            if track is not None and kept and dims[1] != track.inner * self.dim:
                raise Mixed("its rows are not those of the batch, one after the other")
            last = track and replace(track, axis=0)
            return [track, last, last]
        if self.symbol == "batch" or track.axis == 2:
            raise Mixed(f"runs over the {self.symbol} axis as if it were {'steps' if track.axis == 0 else 'features'}")
        clock = self._sequence(node)
        if spec.reverse:  # what follows is judged as well: each such node is named
            self.problem(node, f"{spec.kind} runs from the last step to the first: it needs the future")
        elif len(node.inputs) > 8 and node.inputs[8] is not None:
            self.problem(node, "sequence lengths are known only when a sequence ends")
        return [Track(0, 1, clock), RUNNING, RUNNING]

    def _state(self, node):
        """Its input may come later: the place of the symbol is read off the dims, and `close` checks it."""
        value = self.graph.values[node.outputs[0]]
        axes = self.axes(value.dims)
        if self.symbol == "time":
            if axes and (axes != [0] or value.dims[0] != self.dim):
                raise Mixed(f"keeps {value} from one step to the next")
        elif 0 in axes:
            raise Mixed("goes from one row of the batch to the next")
        if len(axes) > 1 or (axes and value.dims[axes[0]] != self.dim):
            raise Mixed(f"keeps {value}, whose {self.symbol} axis isn't plain {self.symbol}")
        found = Track(axes[0]) if axes else None
        start = self.track(node, 1)
        if start is not None and found != Track(start.axis + 1, start.inner):
            raise Mixed(f"its initial value has {self.symbol} in another place than its steps")
        return [found]

    def close(self, node: Node) -> None:
        """What a state's input turned out to be has the symbol where its output was said to have it."""
        name, out = node.inputs[0], node.outputs[0]
        if name not in self.lost and out not in self.lost and self.tracks.get(name) != self.tracks.get(out):
            text = f"{self.symbol} is in another place than one step before"
            if self.symbol == "time" and (after := self.tracks.get(name)) is not None and after.clock != INPUT:
                text = "its cycle runs behind windows or cuts along time, at another pace than the input"
            self.problem(node, text)

    def _conv(self, node):
        """Rows are axis 0; channels are summed; along a spatial axis windows slide."""
        track = self.track(node)
        if track is not None and track.axis == 1 and node.op != "pool":
            raise Mixed(f"sums over {self.symbol}")
        if track is not None and track.axis > 1:
            i, a = track.axis - 2, node.attrs
            kernel = a["kernel"] if node.op == "pool" else self.value(node, 1).dims[2:]
            begin, end = a["pads"][i], a["pads"][len(kernel) + i]
            alone = kernel[i] == a["strides"][i] == 1 and begin == end == 0
            if alone and a.get("output_padding", (0, 0))[i] == 0:
                return [track]
            if self.symbol == "batch":
                raise Mixed(f"its window covers {kernel[i]} rows of the batch with stride {a['strides'][i]}")
            fields = {"stride": a["strides"][i], "reach": a["dilations"][i] * (kernel[i] - 1) + 1, "begin": begin}
            if node.op == "conv_transpose":
                return self._paced(node, "spread", track.axis, **fields, end=end - a["output_padding"][i])
            return self._paced(node, "window", track.axis, **fields, end=end, ceil=a.get("ceil", False))
        return [track]

    _conv_transpose = _conv
    _pool = _conv

    def _pad(self, node):
        track, pads = self.track(node), node.attrs["pads"]
        begin, end = (0, 0) if track is None else (pads[track.axis], pads[len(pads) // 2 + track.axis])
        if (begin, end) == (0, 0):
            return [track]
        if self.symbol == "batch":
            raise Mixed(f"pads the batch by {begin} and {end}")
        if not (isinstance(begin, int) and isinstance(end, int)):
            raise Mixed(f"pads a sequence by {begin} and {end}")
        if node.attrs["mode"] != "constant":
            raise Mixed(f"pads a sequence with a mirror of it ({node.attrs['mode']}), not with a constant")
        return self._paced(node, "window", track.axis, begin=begin, end=end)

    def _argmax(self, node):
        track, axis = self.track(node), node.attrs["axis"]
        if track is not None and track.axis == axis:
            raise Mixed(f"its {node.op} runs over all {'steps' if self.symbol == 'time' else 'rows of the batch'}")
        gone = track is not None and node.op == "argmax" and not node.attrs["keepdims"] and axis < track.axis
        return [replace(track, axis=track.axis - 1) if gone else track]

    _cumsum = _argmax


RUNNING = object()  # the track of a value that is made of all steps so far


def streams_causally(graph: Graph, node: Node) -> bool:
    """An attention node whose queries are the steps that are its keys, and see no later one."""
    a, q, k = node.attrs, graph.values[node.inputs[0]], graph.values[node.inputs[1]]
    timed = "time" in D.symbols(q.dims[2])
    return timed and a["causal"] and a["offset"] == 0 and q.dims[2] == k.dims[2]
