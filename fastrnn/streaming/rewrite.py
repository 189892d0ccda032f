"""The streaming rewrite: turns a graph over TIME into one whose dims are the numbers of new steps in one stream call.

`rewrite(graph)` inserts a `keep` before every node that looks along time. It prepends the last steps of earlier calls
to the new ones. The node also learns where its first window of this call begins. Each such number is a symbol of the
timetable. Padding stays with its node: it applies at the start of the sequence, and at the end once that is known. If
the inputs of a node have different paces, it reads those that are ahead through a `keep` too.

    keep    (x,) -> x with `length` more steps at the front of `axis`: the last ones, or zeros before the first call;
            attrs: axis, length, window (bool: a window reads it, so its channels should be the fastest axis)

The result is only for lowering: a `keep` has no meaning without a stream, and pads and slices contain symbols.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Graph, Node, Value
from ..graph import dims as D
from ..graph.windows import WINDOWS, phases_of
from .follow import Followed, Track, follow
from .timetable import Timetable


def rewrite(graph: Graph, ends: tuple[str, ...]) -> tuple[Graph, Timetable]:
    """What a stream of a graph without `problems` runs in one call, and when its values arrive.

    ends : the outputs of a stream, in order (those that are not states).
    """
    followed = follow(graph, "time")
    table = followed.timetable
    for name in ends:
        table.add_output(*_pace_of(graph.values[name], followed))
    work = _Rewrite(graph, followed)
    for node in graph.nodes:
        work.visit(node)
    table.freeze()
    return graph.replace(nodes=tuple(work.nodes), values=work.values), table


def _pace_of(value: Value, followed: Followed) -> tuple:
    """(clock or None, steps per step of the clock, whether it is a value of all steps so far) of an output."""
    if value.name in followed.running:
        return followed.running[value.name], 1, True
    track = followed.tracks.get(value.name)
    return (None, 1, False) if track is None else (track.clock, track.inner, False)


class _Rewrite:
    def __init__(self, graph: Graph, followed: Followed):
        self.graph, self.followed, self.table = graph, followed, followed.timetable
        self.nodes: list[Node] = []
        self.values = dict(graph.values)
        self.queued: dict[tuple, str] = {}
        self.table.plain = self.table.uniform and not any(self._begins_apart(n) for n in graph.nodes)
        for name, track in followed.tracks.items():
            self.values[name] = self._counted(graph.values[name], track)

    # -- values --
    def _counted(self, value: Value, track: Track) -> Value:
        """The value with the steps of one call along its time axis."""
        if track.lead:
            return self._resized(value, track.axis, D.TIME + track.lead)
        times = D.exact_div(value.dims[track.axis], self.table.clocks[track.clock].dim)
        return self._resized(value, track.axis, self.table.steps(track.clock) * times)

    def _resized(self, value: Value, axis: int, size, name: str | None = None) -> Value:
        return Value(name or value.name, value.dtype, (*value.dims[:axis], size, *value.dims[axis + 1 :]))

    def _add(self, op: str, name: str, x: str, size, **attrs) -> str:
        """A new node whose output is x with another size along its attribute `axis`; returns the output's name."""
        self.values[name] = self._resized(self.values[x], attrs["axis"], size, name)
        self.nodes.append(Node(op, name, (x,), (name,), attrs))
        return name

    def _keep(self, x: str, axis: int, length: int, name: str, window: bool = False) -> str:
        """x with the last `length` steps before this call in front; x itself if `length` is 0."""
        if length == 0:
            return x
        size = self.values[x].dims[axis] + length
        return self._add("keep", name, x, size, axis=axis, length=length, window=window)

    def _number(self, name: str, clock: int, function) -> object:
        """A symbol for function(before, after) in calls in which `clock` yields steps. It is 0 in other calls, where it
        does not matter, so that all such calls are alike. A plain number if all calls have the same value."""
        if self.table.plain:
            return function(*self.table.sample())
        return self.table.number(lambda b, a: function(b, a) if a[clock] > b[clock] else 0, name)

    def _wait(self, name: str, clock: int) -> str:
        """The value `name` at the pace of a slower clock."""
        track = self.followed.tracks[name]
        length = self.table.lag(track.clock, clock)
        if (name, clock) not in self.queued:
            kept = self._keep(name, track.axis, length * track.inner, f"{name}.wait{clock}.tail")
            own, text = track.clock, f"{name}.wait{clock}"
            start = self._number(f"{text}.start", clock, lambda b, a: b[clock] - b[own] + length) * track.inner
            size = self.table.steps(clock) * track.inner
            self.queued[name, clock] = self._cut(kept, track.axis, start, size, 1, text)
        return self.queued[name, clock]

    def _cut(self, x: str, axis: int, start, size, step: int, name: str) -> str:
        attrs = {"axis": axis, "start": start, "stop": start + size * step, "step": step}
        return self._add("slice", name, x, size, **attrs)

    # -- nodes --
    def visit(self, node: Node) -> None:
        clock = self.followed.waits.get(node.name)
        if clock is not None:
            tracks = self.followed.tracks
            late = [n is not None and n in tracks and tracks[n].clock != clock for n in node.inputs]
            inputs = tuple(self._wait(n, clock) if w else n for n, w in zip(node.inputs, late, strict=True))
            node = replace(node, inputs=inputs)
        if "dims" in node.attrs:  # of reshape and expand
            node = replace(node, attrs=dict(node.attrs) | {"dims": self.values[node.outputs[0]].dims})
        track = self.followed.tracks.get(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
        done = self._along_time(node, track) if track is not None else None
        if done is None:
            self.nodes.append(node)

    def _along_time(self, node: Node, track: Track) -> bool | None:
        """Rewrite a node that reads steps other than its own; None if it does not."""
        a, out = node.attrs, node.outputs[0]
        if track.lead:  # what it reads from before the call is in front of the call's own steps
            return None
        if node.op in WINDOWS and track.axis > 1 and self._has_window(node, track.axis - 2):
            self._window(node, track)
        elif node.op == "slice" and a["axis"] == track.axis and out in self.followed.running:
            if self.table.plain:  # every call has a last step
                return None
            kept = self._keep(node.inputs[0], track.axis, 1, f"{node.name}.tail")
            end = self.values[kept].dims[track.axis]
            self.nodes.append(replace(node, inputs=(kept,), attrs=dict(a) | {"start": end - 1, "stop": end}))
        elif node.op == "slice" and a["axis"] == track.axis and self._moves(node, track):
            self._slice(node, track)
        elif node.op == "pad" and self._moves(node, track):
            self._pad(node, track)
        else:
            return None
        return True

    def _has_window(self, node: Node, i: int) -> bool:
        kernel = node.attrs["kernel"] if node.op == "pool" else self.graph.values[node.inputs[1]].dims[2:]
        pads, n = node.attrs["pads"], len(kernel)
        extra = node.attrs.get("output_padding", (0,) * n)[i]
        return (kernel[i], node.attrs["strides"][i], pads[i], pads[n + i], extra) != (1, 1, 0, 0, 0)

    def _begins_apart(self, node: Node) -> bool:
        """Whether a node behaves differently at its first steps (a pool sees fewer of them, a pad adds constants), or
        its outputs differ from each other (those of a transposed convolution)."""
        track = self.followed.tracks.get(node.inputs[0]) if node.op in ("pool", "conv_transpose", "pad") else None
        if track is None or track.lead:
            return False
        if node.op != "pad":
            return track.axis > 1 and self._has_window(node, track.axis - 2)
        return self._moves(node, track)

    def _moves(self, node: Node, track: Track) -> bool:
        """Whether the node removes or adds steps."""
        if node.op == "pad":
            pads = node.attrs["pads"]
            return (pads[track.axis], pads[len(pads) // 2 + track.axis]) != (0, 0)
        size = self.graph.values[node.inputs[0]].dims[track.axis]
        return (node.attrs["start"], node.attrs["stop"], node.attrs["step"]) != (0, size, 1)

    def _window(self, node: Node, track: Track) -> None:
        """A window over kept and new steps. A convolution reads the zeros before the first step as padding. A pool must
        not see them: only `real` of the kept steps count."""
        axis, i, name = track.axis, track.axis - 2, node.name
        x, y = track.clock, self.followed.tracks[node.outputs[0]].clock
        attrs, pads = dict(node.attrs), list(node.attrs["pads"])
        stride, begin = attrs["strides"][i], pads[i]
        if node.op == "conv_transpose":
            reach = attrs["dilations"][i] * (self.graph.values[node.inputs[1]].dims[2 + i] - 1) + 1
            length = self.table.held_spread(x, y, stride, begin, reach)
        else:
            length = self.table.held(x, y, stride, begin)
        source = self._keep(node.inputs[0], axis, length, f"{name}.tail", window=True)
        if node.op == "pool" and length:
            self.table.steady_from(x, length)
            real = self.table.number(lambda b, a: min(length, b[x]), f"{name}.real")
            size = real + self.table.steps(x)
            source = self._cut(source, axis, length - real, size, 1, f"{name}.real")

        def base(before):  # the first step that the window reads
            return before[x] - (min(length, before[x]) if node.op == "pool" else length)

        if node.op == "conv_transpose":
            attrs["spread"] = {i: self._spread(node, i, y, base)}
        else:
            pads[i] = self._number(f"{name}.begin", y, lambda b, a: base(b) - b[y] * stride + begin)
            attrs["pads"] = tuple(pads)
        self.nodes.append(replace(node, inputs=(source, *node.inputs[1:]), attrs=attrs))

    def _spread(self, node: Node, i: int, y: int, base) -> dict[int, tuple]:
        """For each phase of a transposed convolution (by its first output), the dims of this call's outputs: how many,
        the index of the first one among all new outputs, and the index of its first input."""
        a, taps = node.attrs, self.graph.values[node.inputs[1]].dims[2 + i]
        stride, found = a["strides"][i], {}
        for first, axis, _ in phases_of(taps, stride, a["dilations"][i], a["pads"][i]):
            found[first] = self._phase(f"{node.name}.{first}", y, stride, first, -axis.pad, base)
        return found

    def _phase(self, name: str, y: int, stride: int, first: int, start: int, base) -> tuple:
        def whole(come):  # outputs of this phase among the first `come` ones
            return max(0, -((first - come) // stride))

        def when_some(function):
            return lambda b, a: function(b) if whole(a[y]) > whole(b[y]) else 0

        count = self.table.number(lambda b, a: whole(a[y]) - whole(b[y]), f"{name}.count")
        at = self.table.number(when_some(lambda b: first + whole(b[y]) * stride - b[y]), f"{name}.at")
        begin = self.table.number(when_some(lambda b: base(b) - whole(b[y]) - start), f"{name}.begin")
        return count, at, begin

    def _slice(self, node: Node, track: Track) -> None:
        """Steps from a fixed one on, up to a fixed number before the end."""
        x, y = track.clock, self.followed.tracks[node.outputs[0]].clock
        step, first = node.attrs["step"], node.attrs["start"]
        length = self.table.held(x, y, step, -first)
        kept = self._keep(node.inputs[0], track.axis, length, f"{node.name}.tail")
        start = self._number(f"{node.name}.start", y, lambda b, a: b[y] * step + first - b[x] + length)
        attrs = dict(node.attrs) | {"start": start, "stop": start + self.table.steps(y) * step}
        self.nodes.append(replace(node, inputs=(kept,), attrs=attrs))

    def _pad(self, node: Node, track: Track) -> None:
        """Constants before the first step and after the last; negative pads cut as a slice does."""
        axis, pads, name = track.axis, list(node.attrs["pads"]), node.name
        x, y = track.clock, self.followed.tracks[node.outputs[0]].clock
        rank = len(pads) // 2
        begin, end = pads[axis], pads[rank + axis]
        self.table.steady_from(y, begin)

        def before_first(b, a):
            return min(max(begin, 0), a[y]) - min(max(begin, 0), b[y])

        def after_last(b, a):
            return max(0, a[y] - max(b[y], begin + a[x]))

        def inside(b, a):
            return a[y] - b[y] - before_first(b, a) - after_last(b, a)

        pads[axis] = self.table.number(before_first, f"{name}.before")
        pads[rank + axis] = self.table.number(after_last, f"{name}.after")
        source = node.inputs[0]
        if begin < 0 or end < 0:
            length = self.table.held(x, y, 1, begin)
            source = self._keep(source, axis, length, f"{name}.tail")
            start = self.table.number(
                lambda b, a: max(b[y] - begin, 0) - b[x] + length if inside(b, a) else 0, f"{name}.start"
            )
            source = self._cut(source, axis, start, self.table.number(inside, f"{name}.inside"), 1, f"{name}.inside")
        self.nodes.append(replace(node, inputs=(source,), attrs=dict(node.attrs) | {"pads": tuple(pads)}))
