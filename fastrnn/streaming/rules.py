"""What each op does to the batch or time axis, if the `Meeting` of its row does not describe it fully.

A rule is a function (walk, node) -> the `Track` of each output, None for one without the symbol, RUNNING for a value of
all steps so far. It raises `Mixed` if the node mixes rows or steps. `walk` is the one of follow.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..graph import Graph, Node
from ..graph import dims as D
from ..graph.registry import Registry
from ..graph.traverse import roots
from ..graph.vocabulary import Meeting
from ..records import dataclass
from .timetable import INPUT, Clock

if TYPE_CHECKING:
    from .follow import Walk

follows = Registry()  # op -> its rule
RUNNING = object()  # the track of a value made of all steps so far


@dataclass(frozen=True)
class Track:
    """The symbol is in axis `axis`; one count of it spans `inner` elements of that axis (an int or dim).

    clock : for time, the number of the clock of its steps; each step of that clock has `inner` elements.
    lead : for time, the steps from before the call that the axis begins with; they come from a cache.
    """

    axis: int
    inner: object = 1
    clock: int = INPUT
    lead: int = 0


MOST_GROUPED = 64  # steps in one group


class Mixed(Exception):
    """This node mixes rows (or steps); the text says how."""


@follows("transpose")
def _transpose(walk: Walk, node: Node):
    track = walk.track(node)
    return [track and replace(track, axis=node.attrs["perm"].index(track.axis))]


@follows("reshape")
def _reshape(walk: Walk, node: Node):
    track = walk.track(node)
    if track is None:
        return [None]
    if track.lead:
        return [_reshaped_lead(walk, node, track)]
    choices = [track]
    clock = walk.timetable.clocks[track.clock]
    if clock.kind == "times":  # its steps may be grouped again
        choices.append(replace(track, inner=track.inner * clock.stride, clock=clock.of[0]))
    for grain in choices:
        inner = D.product(walk.value(node).dims[track.axis + 1 :]) * grain.inner
        for axis in walk.axes(node.attrs["dims"]):
            after = D.product(node.attrs["dims"][axis + 1 :])
            own = 1 if inner == after else D.exact_div(inner, after)
            one = walk.dim_of(replace(grain, inner=1))
            if own is not None and D.exact_div(node.attrs["dims"][axis], own * one) is not None:
                return [replace(grain, axis=axis, inner=own)]
    raise Mixed(f"moves elements from one {walk.words['one']} to another")


def _reshaped_lead(walk: Walk, node: Node, track: Track) -> Track:
    """A reshape that leaves an axis of cached and new steps as it is."""
    old, new = walk.value(node).dims, node.attrs["dims"]
    for axis in walk.axes(new):
        if new[axis] == old[track.axis] and D.product(new[axis + 1 :]) == D.product(old[track.axis + 1 :]):
            return replace(track, axis=axis)
    raise Mixed("moves elements from one step to another")


JOINS = Meeting(lambda attrs, rank: (attrs["axis"],), "joins {joined}")


@follows("concat")
def _concat(walk: Walk, node: Node):
    lead = walk.tails.joints.get(node.name)
    if lead is None:
        return [walk.meeting(node, JOINS)]
    track, axis = walk.track(node, 1), node.attrs["axis"]
    if track != Track(axis):
        raise Mixed("puts cached steps in front of a sequence at another pace than the input's")
    return [replace(track, lead=lead)]


def _slice_of_lead(walk: Walk, track: Track, attrs) -> object:
    """The track of a slice along cached and new steps: a sequence, maybe of earlier steps, or the last steps."""
    start, ends, last = attrs["start"], attrs["stop"] - D.TIME, attrs["start"] - D.TIME
    if attrs["step"] == 1 and isinstance(ends, int):
        if isinstance(start, int) and 0 <= start <= ends:
            return replace(track, lead=ends - start)
        if isinstance(last, int) and 0 <= last:
            return RUNNING
    raise Mixed(f"picks elements [{start}:{attrs['stop']}:{attrs['step']}] of {track.lead} cached steps and a chunk")


@follows("slice")
def _slice(walk: Walk, node: Node):
    track, a = walk.track(node), node.attrs
    if track is None or track.axis != a["axis"]:
        return [track]
    dim = walk.value(node).dims[a["axis"]]
    if a["start"] == 0 and a["stop"] == dim and a["step"] == 1:
        return [track]
    if track.lead:
        return [_slice_of_lead(walk, track, a)]
    if walk.symbol == "time":
        if a["step"] == 1 and a["stop"] == dim == a["start"] + 1:
            walk.sequence(node)
            return [RUNNING]
        if a["step"] > 0 and isinstance(a["start"], int) and isinstance(dim - a["stop"], int):
            cuts = {"begin": -a["start"], "end": a["stop"] - dim}
            return walk.paced(node, "window", track.axis, stride=a["step"], **cuts)
        grouped = a["start"] == 0 and a["step"] == 1 and _whole_groups(walk, track, dim, a["stop"])
        if grouped:
            return [Track(track.axis, 1, grouped)]
        raise Mixed(f"picks steps [{a['start']}:{a['stop']}:{a['step']}] of a sequence")
    raise Mixed(f"picks rows [{a['start']}:{a['stop']}:{a['step']}] of the batch")


def _whole_groups(walk: Walk, track: Track, dim, stop) -> int | None:
    """The clock of a sequence without the last steps that don't fill a group of r, as in x[:, : T // r * r]."""
    r = next((r for r in range(2, MOST_GROUPED) if D.floordiv(dim, r) * r == stop), None)
    if r is None or track.inner != 1 or dim != walk.dim_of(track):
        return None
    walk.within_chunks("cuts off steps that don't fill a group")
    groups = Clock("window", D.floordiv(dim, r), (track.clock,), stride=r, reach=r)
    return walk.timetable.add(Clock("times", stop, (walk.timetable.add(groups),), r))


@follows("expand")
def _expand(walk: Walk, node: Node):
    track, rank = walk.track(node), len(node.attrs["dims"])
    if track is not None:
        return [replace(track, axis=track.axis + rank - len(walk.value(node).dims))]
    return [_of_length(walk, node.attrs["dims"])]


def _of_length(walk: Walk, dims: tuple) -> Track | None:
    """The track of a value that is the same at all steps, or counts them: it matches any clock of this length."""
    for axis in walk.axes(dims)[:1]:
        made = [i for i, c in enumerate(walk.timetable.clocks) if c.dim == dims[axis]]
        if walk.symbol == "time" and made:
            return Track(axis, clock=made[0])
        if dims[axis] == walk.dim:
            return Track(axis)
    return None


@follows("gather")
def _gather(walk: Walk, node: Node):
    table, indices, axis = walk.track(node), walk.track(node, 1), node.attrs["axis"]
    if table is not None and table.axis == axis:
        raise Mixed(f"picks {walk.words['all']} by index")
    if table is not None and indices is not None:
        raise Mixed(f"looks up in a table that has a {walk.symbol} axis itself")
    if indices is not None:
        return [replace(indices, axis=axis + indices.axis)]
    if table is not None and table.axis > axis:
        return [replace(table, axis=table.axis - 1 + len(walk.value(node, 1).dims))]
    return [table]


@follows("matmul")
def _matmul(walk: Walk, node: Node):
    rank, found = len(walk.graph.values[node.outputs[0]].dims), None
    vectors = [len(walk.value(node, i).dims) == 1 for i in (0, 1)]
    for i, summed in ((0, -1), (1, -2)):
        track, dims = walk.track(node, i), walk.value(node, i).dims
        if track is None:
            continue
        from_end = track.axis - len(dims)
        if vectors[i] or from_end == summed:
            raise Mixed(f"multiplies over all {walk.words['all']}")
        here = replace(track, axis=from_end + rank + (from_end < -1 and vectors[1 - i]))
        if found is not None and here != found:
            raise walk.on_two_axes()
        found = here
    return [found]


@follows("attention")
def _attention(walk: Walk, node: Node):
    """Along batch and heads each row attends separately; along q's length each query does. Along the keys' length
    steps stay separate only if q has the same steps and sees none after its own."""
    q, k, v = (walk.track(node, i) for i in range(3))
    added = [(i, walk.track(node, i)) for i in (3, 4)]  # bias and mask
    added = [(i, t) for i, t in added if t is not None]
    if any(t is not None and t.axis == 3 for t in (q, k, v)):
        raise Mixed(f"sums over {walk.symbol}")
    keys = [t for t in (k, v) if t is not None]
    if any(t.axis == 2 for t in keys):
        if walk.symbol != "time" or q is None or any(t != q for t in keys) or len(keys) < 2:
            raise Mixed(f"attends to all {walk.words['all']}")
        if not streams_causally(walk.graph, node):
            raise Mixed("attends to all steps: it needs the future")
        if added:
            what = "adds a bias" if added[0][0] == 3 else "masks by a value"
            raise Mixed(f"{what} that has a time axis to the scores of a sequence")
        walk.sequence(node)
        walk.within_chunks("attends to earlier steps", node)
        return [q]
    if walk.symbol == "time" and q is not None and q.axis == 2 and not keys:
        if node.attrs["causal"] or node.attrs["window"]:
            raise Mixed("lets a query see keys by its position, and has the same keys at all steps")
    if any(t != q for t in keys) or any(t != _bias_track(walk, node, q, i) for i, t in added):
        raise walk.on_two_axes()
    return [q]


def _bias_track(walk: Walk, node: Node, q: Track | None, i: int) -> Track | None:
    """The place of q's symbol in input i, a bias or mask that broadcasts to [B, H, Tq, Tk]."""
    return None if q is None else replace(q, axis=q.axis - 4 + len(walk.value(node, i).dims))


def streams_causally(graph: Graph, node: Node) -> bool:
    """Whether the queries of an attention node are the same steps as its keys, and see no later step."""
    a, q, k = node.attrs, graph.values[node.inputs[0]], graph.values[node.inputs[1]]
    timed = "time" in D.symbols(q.dims[2]) or (a.get("grows") and q.dims[2] == 1)
    return timed and a["causal"] and a["offset"] == 0 and q.dims[2] == k.dims[2]


@follows("steps")
def _steps(walk: Walk, node: Node):
    dims, start = node.attrs["dims"], node.attrs["start"]
    axes, track = walk.axes(dims), _of_length(walk, dims)
    if walk.symbol in D.symbols(start):
        raise Mixed(f"counts from {start}")
    if axes and track is None:
        raise Mixed(f"counts {dims[axes[0]]} steps")
    if axes and walk.symbol == "time":
        walk.within_chunks("counts steps", node)
    return [track]


@follows("reduce")
def _reduce(walk: Walk, node: Node):
    track, axes = walk.track(node), node.attrs["axes"]
    if track is None:
        return [None]
    if track.axis in axes:
        if walk.symbol == "time" and len(axes) == 1:
            walk.sequence(node)
            walk.within_chunks(f"takes the {node.attrs['fn']} of the steps so far")
            return [RUNNING]
        over = "steps and other axes at once" if walk.symbol == "time" else "the rows of the batch"
        raise Mixed(f"takes the {node.attrs['fn']} over {over}")
    gone = 0 if node.attrs["keepdims"] else sum(a < track.axis for a in axes)
    return [replace(track, axis=track.axis - gone)]


def _threaded(walk: Walk, node: Node, at: int) -> bool:
    """Whether an input is there and begins with a state that the caller threads."""
    name = node.inputs[at] if at < len(node.inputs) else None
    return name is not None and bool(roots(walk.graph, name) & set(walk.graph.states))


@follows("cell")
def _cell(walk: Walk, node: Node):
    track, dims, spec = walk.track(node), walk.value(node).dims, node.attrs["spec"]
    mask = walk.track(node, 9)
    if mask is not None and mask != track:
        raise Mixed(f"its mask has {walk.symbol} in another place than its input")
    states = [walk.track(node, i) for i in (6, 7, 8)]
    if track is None or track.axis == 1:
        if any(s is not None and (s.axis, s.inner) != (0, track.inner if track else 1) for s in states):
            raise Mixed(f"its initial state has {walk.symbol} in another place than its input")
        kept = walk.symbol == "batch" and D.symbols(dims[0]) == {"time"}
        if track is not None and kept and dims[1] != track.inner * walk.dim:
            raise Mixed("its rows are not those of the batch, one after the other")
        last = track and replace(track, axis=0)
        return [track, last, last]
    if walk.symbol == "batch" or track.axis == 2:
        raise Mixed(f"runs over the {walk.symbol} axis as if it were {'steps' if track.axis == 0 else 'features'}")
    clock = walk.sequence(node)
    if not all(_threaded(walk, node, at) for at in ((6, 7) if spec.kind == "lstm" else (6,))):
        walk.within_chunks("starts from a constant")
    if spec.reverse:  # later nodes are judged as well, so each such node is reported
        walk.problem(node, f"{spec.kind} runs from the last step to the first: it needs the future")
    elif len(node.inputs) > 8 and node.inputs[8] is not None:
        walk.problem(node, "sequence lengths are known only when a sequence ends")
    return [Track(0, 1, clock), RUNNING, RUNNING]


@follows("state")
def _state(walk: Walk, node: Node):
    """Its input may be made later, so the place of the symbol is taken from the dims. `close` checks it."""
    value = walk.graph.values[node.outputs[0]]
    axes = walk.axes(value.dims)
    if walk.symbol == "time":
        if axes and (axes != [0] or value.dims[0] != walk.dim):
            raise Mixed(f"keeps {value} from one step to the next")
        if axes and not _threaded(walk, node, 1):
            walk.within_chunks("starts from a constant")
    elif 0 in axes:
        raise Mixed("goes from one row of the batch to the next")
    if len(axes) > 1 or (axes and value.dims[axes[0]] != walk.dim):
        raise Mixed(f"keeps {value}, whose {walk.symbol} axis isn't plain {walk.symbol}")
    found = Track(axes[0]) if axes else None
    start = walk.track(node, 1)
    if start is not None and found != Track(start.axis + 1, start.inner):
        raise Mixed(f"its initial value has {walk.symbol} in another place than its steps")
    return [found]


@follows("conv", "conv_transpose", "pool")
def _window(walk: Walk, node: Node):
    """Rows are axis 0; channels are summed; along a spatial axis windows slide."""
    track = walk.track(node)
    if track is not None and track.axis == 1 and node.op != "pool":
        raise Mixed(f"sums over {walk.symbol}")
    if track is not None and track.axis > 1:
        i, a = track.axis - 2, node.attrs
        kernel = a["kernel"] if node.op == "pool" else walk.value(node, 1).dims[2:]
        begin, end = a["pads"][i], a["pads"][len(kernel) + i]
        alone = kernel[i] == a["strides"][i] == 1 and begin == end == 0
        if alone and a.get("output_padding", (0, 0))[i] == 0:
            return [track]
        if track.lead:
            return [_window_of_lead(track, kernel[i], a, i)]
        if walk.symbol == "batch":
            raise Mixed(f"its window covers {kernel[i]} rows of the batch with stride {a['strides'][i]}")
        fields = {"stride": a["strides"][i], "reach": a["dilations"][i] * (kernel[i] - 1) + 1, "begin": begin}
        if node.op == "conv_transpose":
            return walk.paced(node, "spread", track.axis, **fields, end=end - a["output_padding"][i])
        return walk.paced(node, "window", track.axis, **fields, end=end, ceil=a.get("ceil", False))
    return [track]


def _window_of_lead(track: Track, taps: int, a, i: int) -> Track:
    """A window over cached and new steps: each of its outputs reads as many steps before its own."""
    reach, pads = a.get("dilations", (1,) * (i + 1))[i] * (taps - 1), a["pads"]
    plain = a["strides"][i] == 1 and pads[i] == pads[len(pads) // 2 + i] == 0 and "output_padding" not in a
    if not plain:
        raise Mixed(f"its windows over {track.lead} cached steps and a chunk have pads or strides")
    if reach > track.lead:
        raise Mixed(f"its windows of {reach + 1} steps see more than the {track.lead} cached steps and their own")
    return replace(track, lead=track.lead - reach)


@follows("pad")
def _pad(walk: Walk, node: Node):
    track, pads = walk.track(node), node.attrs["pads"]
    begin, end = (0, 0) if track is None else (pads[track.axis], pads[len(pads) // 2 + track.axis])
    if (begin, end) == (0, 0):
        return [track]
    if walk.symbol == "batch":
        raise Mixed(f"pads the batch by {begin} and {end}")
    if not (isinstance(begin, int) and isinstance(end, int)):
        raise Mixed(f"pads a sequence by {begin} and {end}")
    if node.attrs["mode"] != "constant":
        raise Mixed(f"pads a sequence with a mirror of it ({node.attrs['mode']}), not with a constant")
    return walk.paced(node, "window", track.axis, begin=begin, end=end)
