"""Whether a graph can be run step by step. This module only inspects graphs; it runs nothing.

`problems(graph)` lists the nodes that need future steps.
"""

from __future__ import annotations

from ..graph import Graph
from ..graph.traverse import roots
from . import caches
from .follow import follow


def problems(graph: Graph) -> list[str]:
    """One sentence for each node that can't be run one step, or one row, at a time; empty if the graph streams."""
    kept = caches.problems(graph)
    if kept:  # `caches.streamed` left them in the graph
        return kept
    over_time, over_batch = follow(graph, "time"), follow(graph, "batch")
    found = [*over_time.problems, *over_batch.problems, *map(_undecided_problem, graph.undecided)]
    for node in graph.nodes:
        track = over_time.tracks.get(node.inputs[0]) if node.inputs else None
        if node.op == "cell" and track is not None and track.axis == 0:
            text = _initial_problem(graph, node.inputs[6:8])
            found += [f"node {node.name} (cell): {text}"] if text else []
        if node.op == "state" and node.outputs[0] in over_time.tracks:
            text = _initial_problem(graph, node.inputs[1:])
            found += [f"node {node.name} (state): {text}"] if text else []
    return found


def _undecided_problem(undecided: tuple) -> str:
    name, outputs = undecided
    pairs = " or ".join(f"states={{{name!r}: {output!r}}}" for output in outputs)
    return (
        f"the input {name!r} looks like a state, but neither its dataflow nor its name says which output continues it: "
        f"load the model with {pairs} beside its other states, or with states= without it to pass it at each step"
    )


def no_steps(graph: Graph) -> str:
    """Why a graph without time and states has no steps, and which states the caller could name."""
    text = "it has neither a time axis nor a state that is threaded from call to call"
    kind = {n: (graph.values[n].dtype, graph.values[n].dims) for n in (*graph.inputs, *graph.outputs)}
    alike = {i: [o for o in graph.outputs if kind[o] == kind[i]] for i in graph.inputs}
    found = [f"{i!r} from {' or '.join(map(repr, names))}" for i, names in alike.items() if names]
    told = ("dynamic axis", "an example", "be streamed")
    held = [(name, axis, why) for name, axis, why in graph.held if any(text in why for text in told)]
    text += "".join(f"; axis {axis} of input {name!r} has one size alone: {why}" for name, axis, why in held)
    return text + (f"; by their sizes states={{...}} could continue {', '.join(found)}" if found else "")


def _initial_problem(graph: Graph, names: tuple) -> str | None:
    """An initial state must be a constant or a threaded input: a stream begins before any input is seen."""
    for name in names:
        if name is None:
            continue
        live = sorted(roots(graph, name) - set(graph.states))
        if live:
            return f"its initial state is computed from the input {', '.join(live)}"
    return None
