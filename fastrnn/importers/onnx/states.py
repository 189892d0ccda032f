"""States that the caller passes from call to call: which output of one call is which input of the next.

They are found by dataflow. The elements of every input are numbered and followed through nodes that only move data into
the initial states of cells. A cell passes the numbers of its h0 and c0 on to h_n and c_n. An output whose elements then
carry exactly the numbers of one input, in order, is that input's next value. This handles stacked layers, packed
tensors and transposed layouts. Caches are found the same way: new steps are appended to an input, and as many of the
last steps as it has are an output. States that match neither (a single written-out step) are then paired by name and
shape.
"""

from __future__ import annotations

import re

import numpy as np

from ...errors import StateError
from ...graph import Graph, Node
from ...graph import dims as D

_MAX_ELEMENTS = 1 << 24  # of one numbered input; states are far smaller, and sequences need not be followed


def pair(graph: Graph, given: dict | None = None) -> Graph:
    """The graph with `states`. given: the caller's own mapping, which is checked and used instead of the detected one.

    Raises StateError if `given` does not fit the graph, or if one input matches several outputs.
    """
    if given is not None:
        return graph.replace(states=_checked(graph, given))
    found: dict[str, list[str]] = {}
    for source, output in _links(graph):
        found.setdefault(source, []).append(output)
    for source, outputs in found.items():
        if len(outputs) > 1:
            raise StateError(
                f"the state {source!r} could continue from any of {', '.join(outputs)}; "
                f"name it: states={{{source!r}: {outputs[0]!r}}}"
            )
    states = {source: outputs[0] for source, outputs in found.items()}
    states |= _by_name(graph, states)
    notes = (*graph.notes, *(f"state {a} -> {b}" for a, b in states.items()))
    return graph.replace(states=states, notes=notes)


def threads(graph: Graph, given: dict | None) -> bool:
    """Whether some state passes through the graph with its batch axis in the same place."""
    try:
        states = pair(graph, given).states
    except StateError:
        return False
    return any(D.BATCH in graph.values[source].dims for source in states)


def _checked(graph: Graph, given: dict) -> dict[str, str]:
    for source, output in given.items():
        if source not in graph.inputs:
            raise StateError(f"states: there is no input {source!r}; the inputs are {', '.join(graph.inputs)}")
        if output not in graph.outputs:
            raise StateError(f"states: there is no output {output!r}; the outputs are {', '.join(graph.outputs)}")
        a, b = graph.values[source], graph.values[output]
        if (a.dtype, a.dims) != (b.dtype, b.dims):
            raise StateError(f"states: {a} can't continue from {b}")
    if len(set(given.values())) != len(given):
        raise StateError(f"states: an output is named twice in {dict(given)}")
    ends = {}
    for source, output in _links(graph):
        ends.setdefault(output, []).append(source)
    for source, output in given.items():
        if any("time" in D.symbols(d) for d in graph.values[source].dims):
            raise StateError(f"states: {graph.values[source]} has a time axis, which no state has")
        if source not in ends.get(output, [source]):
            other = ends[output][0]
            raise StateError(
                f"states: {output!r} is the final state of a cell that starts from {other!r}, so it can't be the next "
                f"{source!r}; expected {{{other!r}: {output!r}}}"
            )
    return dict(given)


def _links(graph: Graph) -> list[tuple[str, str]]:
    """(input, output) for every output that holds exactly the next value of an input."""
    names = {n for v in graph.values.values() for d in v.dims for n in D.symbols(d)}
    sizes = {name: 2 + k for k, name in enumerate(sorted(names))}
    numbers: dict[str, np.ndarray] = {}
    first: dict[str, int] = {}
    at = 0
    # Only inputs that can start a state are followed: those without a time axis.
    for name in graph.inputs:
        value = graph.values[name]
        shape = tuple(D.evaluate(d, sizes) for d in value.dims)
        count = int(np.prod(shape, dtype=np.int64))
        if "time" in {s for d in value.dims for s in D.symbols(d)} or count > _MAX_ELEMENTS or value.dtype != "float32":
            continue
        numbers[name] = np.arange(at, at + count).reshape(shape)
        first[name] = at
        at += count
    through: set[str] = set()  # values that a cell has updated: an input that goes straight to an output is not a state
    queues: dict[str, tuple] = {}  # values with new steps appended to an input -> (the input's numbers, the axis)
    for node in graph.nodes:
        _follow(graph, node, numbers, through, sizes)
        _queued(graph, node, numbers, through, queues, first)
    links = []
    for output in graph.outputs:
        got = numbers.get(output)
        if got is None or output not in through or not got.size:
            continue
        for source, start in first.items():
            same = graph.values[source].dims == graph.values[output].dims
            if same and np.array_equal(got, np.arange(start, start + got.size).reshape(got.shape)):
                links.append((source, output))
    return links


_BEFORE = re.compile(
    r"^(prev|previous|past|old|in|input|init|initial|start)_|_?(0|_prev|_previous|_past|_old|_in|_input|_init|_initial|_start)$"
)
_AFTER = re.compile(
    r"^(new|next|present|out|output|final|last|updated)_|"
    r"_?(n|N|2|_new|_next|_present|_out|_output|_final|_last|_updated)$"
)
# Names of data, not states, even if they match as a pair: frame_in -> frame_out.
_SIGNAL = re.compile(
    r"\d*|(audio|data|feat|feature|frame|image|input|mag|magnitude|mask|mic|noisy|output|sample|signal|spec|spectrum|"
    r"speech|stft|wav|waveform|x|y)(s|es)?_?\d*"
)


def _by_name(graph: Graph, states: dict[str, str]) -> dict[str, str]:
    """Pairs such as h0 -> hn, state -> stateN, past_key -> present_key, r1i -> r1o, h_prev -> h. A pair has the same
    stem, dtype and dims, no time axis, and an output that depends on the input. Pairs must be unambiguous and leave at
    least one input for data."""
    found: dict[str, str] = {}
    for source in graph.inputs:
        value = graph.values[source]
        if source in states or any("time" in D.symbols(d) for d in value.dims) or value.dtype != "float32":
            continue
        same = [
            o
            for o in graph.outputs
            if o not in states.values()
            and (graph.values[o].dtype, graph.values[o].dims) == (value.dtype, value.dims)
            and _alike(source, o)
            and source in _needs(graph, o)
        ]
        if len(same) == 1 and same[0] not in found.values():
            found[source] = same[0]
    return found if len(states) + len(found) < len(graph.inputs) else {}


def _alike(source: str, output: str) -> bool:
    """Whether the two names denote one state before and after a step."""
    stem = _BEFORE.sub("", source)
    if _SIGNAL.fullmatch(stem.lower()):
        return False
    after = _AFTER.sub("", output) if _AFTER.search(output) else None
    marked = output == stem != source
    return after in (stem, source) or marked or (source[-1:] == "i" and output == source[:-1] + "o")


def _needs(graph: Graph, output: str) -> set[str]:
    """Every value that an output depends on."""
    needed = {output}
    for node in reversed(graph.nodes):
        if any(o in needed for o in node.outputs):
            needed |= {i for i in node.inputs if i is not None}
    return needed


def _follow(graph: Graph, node: Node, numbers: dict, through: set[str], sizes: dict) -> None:
    """Carry the numbers from the node's inputs to its outputs, if it only moves them."""
    if node.op == "cell":
        starts = [node.inputs[k] if k < len(node.inputs) else None for k in (6, 7)]
        for start, end in zip(starts, (*node.outputs, None, None)[1:3], strict=True):
            if start in numbers and end is not None:
                numbers[end] = numbers[start]
                through.add(end)
        return
    if node.op == "state":  # its value at the last step is always the next initial value
        start = node.inputs[1] if len(node.inputs) > 1 else None
        if start in numbers:
            steps = sizes.get("time", 1)
            numbers[node.inputs[0]] = np.broadcast_to(numbers[start], (steps, *numbers[start].shape))
            through.add(node.inputs[0])
        return
    if node.op not in _MOVES or any(i not in numbers for i in node.inputs):
        return
    try:
        moved = _MOVES[node.op]([numbers[i] for i in node.inputs], node.attrs, lambda d: D.evaluate(d, sizes))
    except ValueError:  # these sizes are too small for the file's fixed indices: stop following it
        return
    numbers[node.outputs[0]] = moved
    if any(i in through for i in node.inputs):
        through.add(node.outputs[0])


def _queued(graph: Graph, node: Node, numbers: dict, through: set[str], queues: dict, first: dict) -> None:
    """Follow a cache: the steps of an input, new ones appended, and the last ones of the result."""
    a, source = node.attrs, node.inputs[0] if node.inputs else None
    if node.op == "concat" and source in numbers:
        queues[node.outputs[0]] = (numbers[source], a["axis"])
    if source not in queues:
        return
    (held, axis), out = queues[source], node.outputs[0]
    if node.op == "transpose":
        queues[out] = (held.transpose(a["perm"]), a["perm"].index(axis))
    elif node.op == "slice" and a["axis"] == axis and a["step"] == 1:
        size = graph.values[source].dims[axis]
        whole = out in numbers and numbers[out].size and numbers[out].flat[0] in first.values()  # of packed inputs
        if a["stop"] == size and size - a["start"] == held.shape[axis] and not whole:
            numbers[out] = held
            through.add(out)


def _slice(xs, attrs, size):
    start, stop, step = size(attrs["start"]), size(attrs["stop"]), attrs["step"]
    key = [slice(None)] * xs[0].ndim
    key[attrs["axis"]] = slice(start, None if stop < 0 else stop, step)
    return xs[0][tuple(key)]


_MOVES = {
    "reshape": lambda xs, attrs, size: xs[0].reshape([size(d) for d in attrs["dims"]]),
    "transpose": lambda xs, attrs, size: xs[0].transpose(attrs["perm"]),
    "concat": lambda xs, attrs, size: np.concatenate(xs, axis=attrs["axis"]),
    "slice": _slice,
}
