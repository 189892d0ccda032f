"""Follows the axis of batch, or of time, through a graph: does each row (each step) stay by itself?

`follow(graph, "batch")` lists the nodes that let rows of a batch meet; `follow(graph, "time")` those that need steps
which have not come yet. A graph with neither can be run row by row and step by step, with the bits of the whole run.

An axis may be merged with others: a `Track` says in which axis of a value the symbol is, and how many elements of that
axis one count of it spans (`inner`: 1 in [time, batch, 6]; time in [batch*time, 6] seen from batch).

For time a value may also be *running*: made of all steps so far (the last step, a mean over time, a cell's last
state). A stream has such a value at each step as if the sequence ended there; so it may flow to outputs, but meet
no step again.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import dims as D
from .graph import Graph, Node, Value


@dataclass(frozen=True)
class Track:
    """The symbol is in axis `axis`; the elements of that axis that one count of it spans: `inner`, an int or dim."""

    axis: int
    inner: object = 1


class Mixed(Exception):
    """This node lets rows (or steps) meet; the text says how."""


@dataclass(frozen=True)
class Followed:
    """problems: one sentence a node; tracks: value -> Track, of values that have the symbol; running: as above."""

    problems: tuple[str, ...]
    tracks: dict[str, Track]
    running: frozenset[str]


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
    return Followed(tuple(walk.problems), walk.tracks, frozenset(walk.running))


class _Walk:
    def __init__(self, graph: Graph, symbol: str):
        self.graph, self.symbol, self.dim = graph, symbol, D.symbol(symbol)
        self.tracks: dict[str, Track] = {}
        self.running: set[str] = set()
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
        axes = self.axes(value.dims)
        if value.name not in self.lost and axes and (len(axes) > 1 or value.dims[axes[0]] != self.dim):
            what = "a step for each step" if self.symbol == "time" else "a row for each row"
            self.problems.append(f"output {value} is not {what} of the input")

    def visit(self, node: Node) -> None:
        names = [n for n in node.inputs if n is not None]
        if any(n in self.lost for n in names):
            self.lost.update(o for o in node.outputs if o is not None)
            return
        running = any(n in self.running for n in names)
        try:
            made = getattr(self, f"_{node.op}")(node)
            self._keep(node, made, running)
        except Mixed as error:
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
                self.running.add(name)
            elif axes != ([] if track is None else [track.axis]):
                raise Mixed(f"spreads {self.symbol} over the axes {axes} of {self.graph.values[name]}")
            elif track is not None:
                self.tracks[name] = track

    # -- helpers --
    def problem(self, node: Node, text: str) -> None:
        self.problems.append(f"node {node.name} ({node.op}): {text}")

    def value(self, node: Node, i: int = 0) -> Value:
        return self.graph.values[node.inputs[i]]

    def track(self, node: Node, i: int = 0) -> Track | None:
        name = node.inputs[i] if i < len(node.inputs) else None
        return None if name is None else self.tracks.get(name)

    def _aligned(self, node: Node, rank: int) -> list[Track | None]:
        """Inputs that broadcast to `rank` axes: their tracks must agree."""
        found: Track | None = None
        for i, name in enumerate(node.inputs):
            track = self.track(node, i)
            if name is None or track is None:
                continue
            here = Track(track.axis + rank - len(self.graph.values[name].dims), track.inner)
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
        return [track and Track(node.attrs["perm"].index(track.axis), track.inner)]

    def _reshape(self, node):
        track = self.track(node)
        if track is None:
            return [None]
        inner = D.product(self.value(node).dims[track.axis + 1 :]) * track.inner
        for axis in self.axes(node.attrs["dims"]):
            after = D.product(node.attrs["dims"][axis + 1 :])
            own = 1 if inner == after else D.exact_div(inner, after)
            if own is not None and D.exact_div(node.attrs["dims"][axis], self.dim * own) is not None:
                return [Track(axis, own)]
        raise Mixed(f"moves elements from one {'step' if self.symbol == 'time' else 'row'} to another")

    def _slice(self, node):
        track, a = self.track(node), node.attrs
        if track is None or track.axis != a["axis"]:
            return [track]
        dim = self.value(node).dims[a["axis"]]
        if a["start"] == 0 and a["stop"] == dim and a["step"] == 1:
            return [track]
        if self.symbol == "time":
            if (a["start"], a["stop"], a["step"], dim) == (D.TIME - 1, D.TIME, 1, D.TIME):
                return [RUNNING]
            raise Mixed(f"picks steps [{a['start']}:{a['stop']}:{a['step']}] of a sequence")
        raise Mixed(f"picks rows [{a['start']}:{a['stop']}:{a['step']}] of the batch")

    def _expand(self, node):
        track, rank = self.track(node), len(node.attrs["dims"])
        if track is not None:
            return [Track(track.axis + rank - len(self.value(node).dims), track.inner)]
        axes = self.axes(node.attrs["dims"])
        return [Track(axes[0]) if axes and node.attrs["dims"][axes[0]] == self.dim else None]

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
            return [Track(axis + indices.axis, indices.inner)]
        if table is not None and table.axis > axis:
            return [Track(table.axis - 1 + len(self.value(node, 1).dims), table.inner)]
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
            here = Track(from_end + rank + (from_end < -1 and vectors[1 - i]), track.inner)
            if found is not None and here != found:
                raise Mixed(f"brings {self.symbol} along one axis together with {self.symbol} along another")
            found = here
        return [found]

    def _reduce(self, node):
        track, axes = self.track(node), node.attrs["axes"]
        if track is None:
            return [None]
        if track.axis in axes:
            if self.symbol == "time" and runs_over_time(self.value(node), node.attrs):
                return [RUNNING]
            over = "steps and other axes at once" if self.symbol == "time" else "the rows of the batch"
            raise Mixed(f"takes the {node.attrs['fn']} over {over}")
        gone = 0 if node.attrs["keepdims"] else sum(a < track.axis for a in axes)
        return [Track(track.axis - gone, track.inner)]

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
            if any(s is not None and s != Track(0, track.inner if track else 1) for s in states):
                raise Mixed(f"its initial state has {self.symbol} in another place than its input")
            kept = self.symbol == "batch" and D.symbols(dims[0]) == {"time"}
            if track is not None and kept and dims[1] != track.inner * self.dim:
                raise Mixed("its rows are not those of the batch, one after the other")
            last = track and Track(0, track.inner)
            return [track, last, last]
        if self.symbol == "batch" or track.axis == 2:
            raise Mixed(f"runs over the {self.symbol} axis as if it were {'steps' if track.axis == 0 else 'features'}")
        if dims[0] != D.TIME:
            raise Mixed(f"runs over {dims[0]} steps")
        if spec.reverse:  # what follows is judged as well: each such node is named
            self.problem(node, f"{spec.kind} runs from the last step to the first: it needs the future")
        elif len(node.inputs) > 8 and node.inputs[8] is not None:
            self.problem(node, "sequence lengths are known only when a sequence ends")
        return [track, RUNNING, RUNNING]

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
            self.problem(node, f"{self.symbol} is in another place than one step before")

    def _conv(self, node):
        """Rows are axis 0; channels are summed; along a spatial axis only a window of one step keeps steps apart."""
        track = self.track(node)
        if track is not None and track.axis == 1 and node.op != "pool":
            raise Mixed(f"sums over {self.symbol}")
        if track is not None and track.axis > 1:
            i, a = track.axis - 2, node.attrs
            kernel = a["kernel"] if node.op == "pool" else self.value(node, 1).dims[2:]
            alone = kernel[i] == a["strides"][i] == 1 and a["pads"][i] == a["pads"][len(kernel) + i] == 0
            if not alone or a.get("output_padding", (0, 0))[i] != 0:
                what = "steps" if self.symbol == "time" else "rows of the batch"
                raise Mixed(f"its window covers {kernel[i]} {what} with stride {a['strides'][i]}")
        return [track]

    _conv_transpose = _conv
    _pool = _conv

    def _pad(self, node):
        track, pads = self.track(node), node.attrs["pads"]
        if track is not None and (pads[track.axis], pads[len(pads) // 2 + track.axis]) != (0, 0):
            what = "a sequence" if self.symbol == "time" else "the batch"
            raise Mixed(f"pads {what} by {pads[track.axis]} and {pads[len(pads) // 2 + track.axis]}")
        return [track]

    def _argmax(self, node):
        track, axis = self.track(node), node.attrs["axis"]
        if track is not None and track.axis == axis:
            raise Mixed(f"its {node.op} runs over all {'steps' if self.symbol == 'time' else 'rows of the batch'}")
        gone = track is not None and node.op == "argmax" and not node.attrs["keepdims"] and axis < track.axis
        return [Track(track.axis - 1, track.inner) if gone else track]

    _cumsum = _argmax


RUNNING = object()  # the track of a value that is made of all steps so far


def runs_over_time(x: Value, attrs) -> bool:
    """A reduction over time alone: a stream answers it with the value so far."""
    return len(attrs["axes"]) == 1 and x.dims[attrs["axes"][0]] == D.TIME
