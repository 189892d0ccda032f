"""What one step of a stream is, in a file whose states the caller passes from call to call.

Usually it is one step of the time axis. A whole call is one step if only that lets the file stream: if it has one step
(several would meet in a cache of keys), takes a window that the caller moves along (several steps in, one out; samples
in, and no value per sample), or takes a chunk whose states are read by other nodes than cells. (If such a state is a
cache of the last steps and nothing sees the chunk as a whole, its steps are taken one by one: graph/tails.py.) An axis
of any length then is no time but a size that a stream's first step fixes, such as the memory that a decoder attends to.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from ...graph import Graph
from ...graph import dims as D
from ...graph.caches import grown
from ...graph.tails import tails
from ...graph.vocabulary import moves
from ...passes.sizes import fix_sizes, rename_size
from . import states as state_pairs

_ONE_STEP = "the length stays as it was: the file is one step, whose states the caller threads"


def one_step(model: onnx.ModelProto, free: Graph, states: dict | None, streams: Callable | None) -> Graph:
    """The graph with its states, where the time axis is one of the stream. streams: whether a graph can be streamed."""
    graph = state_pairs.pair(free, states)
    if streams is None or not any("time" in D.symbols(d) for n in graph.inputs for d in graph.values[n].dims):
        return graph
    if grown(graph) and streams(graph):
        return graph
    length = _length(model, graph)
    ends = [d for name in graph.outputs for d in graph.values[name].dims if D.symbols(d) == {"time"}]
    window = length > 1 and ends and all(D.evaluate(d, {"time": length}) == 1 for d in ends)
    free_of_chunks = tails(graph).states  # the tails of windows, whatever the length of a chunk
    stuck = not streams(graph) or any(_read_by_nodes(graph, n) for n in graph.states if n not in free_of_chunks)
    if (window and graph.states) or (length == 1 and stuck):
        held = state_pairs.pair(fix_sizes(free, {"time": length}), states)
        if held.states and streams(held):
            return held.replace(notes=(*held.notes, _ONE_STEP))
    if (stuck or _takes_samples(graph)) and not _runs_back(graph):
        name = next(n for n in ("size", "size_2", "size_3") if n not in _sizes(graph))
        sized = state_pairs.pair(rename_size(free, "time", name), states)
        if sized.states and streams(sized) and not _starts_anew(sized):
            note = f"a call is one step, whose states the caller threads: its length ({name}) is no time"
            return sized.replace(notes=(*sized.notes, note))
    return graph


def _takes_samples(graph: Graph) -> bool:
    """Whether a call takes a window of bare samples and gives no value per sample: each window is one step."""
    values = [graph.values[name] for name in graph.inputs]
    windows = [v for v in values if any("time" in D.symbols(d) for d in v.dims)]
    bare = all(d in (1, D.TIME) or d == D.BATCH for v in windows for d in v.dims)
    ends = any("time" in D.symbols(d) for name in graph.outputs for d in graph.values[name].dims)
    return bare and not ends and bool(graph.states)


def _length(model: onnx.ModelProto, graph: Graph) -> int:
    """The number that the file gives the time axis of its inputs; 0 if none or several."""
    shapes = {info.name: info.type.tensor_type.shape.dim for info in model.graph.input}
    lengths = {
        declared.dim_value
        for name in graph.inputs
        for d, declared in zip(graph.values[name].dims, shapes[name], strict=True)
        if d == D.TIME
    }
    return lengths.pop() if len(lengths) == 1 else 0


def _sizes(graph: Graph) -> set[str]:
    return {s for v in graph.values.values() for d in v.dims for s in D.symbols(d)}


def _read_by_nodes(graph: Graph, name: str) -> bool:
    """Whether a state does more than start cells."""
    found = {name}
    for node in graph.nodes:
        for i, value in enumerate(node.inputs):
            starts = (node.op == "cell" and i in (6, 7)) or (node.op == "state" and i == 1)
            if value in found and not (moves(node.op) or starts):
                return True
        if moves(node.op) and any(i in found for i in node.inputs):
            found.update(o for o in node.outputs if o is not None)
    return False


def _starts_anew(graph: Graph) -> bool:
    """Whether a cell starts each call from what nodes compute from an input that is no state. Its next value would be
    threaded by hand, beside the states that a stream keeps."""
    reached = {n for n in graph.inputs if n not in graph.states}
    starts = set()
    for node in graph.nodes:
        if node.op == "cell":
            starts.update(node.inputs[6:8])
        elif any(i in reached for i in node.inputs):
            reached.update(o for o in node.outputs if o is not None)
    return bool(starts & reached)


def _runs_back(graph: Graph) -> bool:
    """Whether a cell runs from the last step to the first, and so needs the future, however long a call is; or a cycle
    runs over the steps, which must then be the time."""
    cells = [n for n in graph.nodes if n.op == "cell" and n.attrs["spec"].reverse]
    cycles = [n.outputs[0] for n in graph.nodes if n.op == "state"]
    return any("time" in D.symbols(graph.values[v].dims[0]) for v in (*(n.inputs[0] for n in cells), *cycles))
