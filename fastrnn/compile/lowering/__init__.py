"""Graph -> Plan: one function per graph op, each choosing views if it can and kernels if it must.

`lower(graph, mode, weights)` walks the nodes once. A value becomes a `Tensor`. Ops that only move data become views.
If a value is a part of a concat or an output, the op that makes it writes it in place (`destinations`).

base.py    what the functions share: `Lowering`, and the table `lowers`
states.py  what a stream keeps from call to call
loops.py   cycles
scans.py   the recurrences of matrix states
fields.py  the fields that describe loops of rows
Each other file lowers one family of ops, as in graph/ops/. Beside each kind of plan op, a function says which memory
it touches (`@bounds.touches`, see compile/bounds.py).
"""

from __future__ import annotations

from ...errors import FastRNNError, UnsupportedError
from ...graph import Graph, Node
from ...graph.loops import Loop
from ...graph.tails import tails
from ...graph.traverse import needed, results
from ...graph.vocabulary import ROWS
from ...streaming.rewrite import rewrite
from ..plan import Plan
from ..weights import Weights
from . import cells, elementwise, moves, products, reductions, windows  # noqa: F401  each fills the tables
from .attention import Context
from .base import Lowering
from .loops import lower_loop
from .positions import advance
from .scans import in_place
from .states import close_state, open_state, separate_threaded


def lower(graph: Graph, mode: str, weights: Weights, context: Context | None = None) -> Plan:
    """The plan of a validated graph; context: how far its attention looks back in a stream.

    Raises an UnsupportedError that lists every node without a kernel.
    """
    if mode not in ("run", "stream"):
        raise FastRNNError(f"unknown plan mode {mode!r}")
    if mode == "run":
        return _walk(Lowering(graph, mode, weights))
    graph, timetable = rewrite(graph, results(graph))
    return _walk(Lowering(graph, mode, weights, timetable, context))


def _walk(low: Lowering) -> Plan:
    plan, graph, builder = low.plan, low.graph, low.builder
    free_states = separate_threaded(low)
    for i, name in enumerate(low.input_names):
        low.tensors[name] = builder.argument("input", i, graph.values[name])
        plan.inputs.append(low.tensors[name])
    for i, name in enumerate(low.output_names):
        tensor = builder.argument("output", i, graph.values[name])
        plan.outputs.append(tensor)
        low.aim(name, tensor)
    low.aim_nodes([n for n in graph.nodes if n.name not in low.region])
    ends = tails(graph).states if free_states and not plan.steps_one else frozenset()
    places = {name: open_state(low, name, ends, in_place(low, name)) for name in free_states}
    wanted = _wanted_nodes(low, free_states)
    for item in low.items:
        if item.name in wanted:
            _lower_loop(low, item) if isinstance(item, Loop) else low.lower_nodes((item,))
    if low.problems:
        raise UnsupportedError(low.problems, graph.name)
    for name, tensor in zip(low.output_names, plan.outputs, strict=True):
        low.copy(low.tensor(name), tensor, name)
    for name, place in places.items():
        if name not in low.in_slab:
            close_state(low, name, *place)
    advance(low)
    return builder.finish()


def _lower_loop(low: Lowering, loop: Loop) -> None:
    try:
        lower_loop(low, loop)
    except UnsupportedError as error:
        low.note(loop.states[0], error)
        for node in (*loop.nodes, *loop.states):
            low.stand_in(node)


def _wanted_nodes(low: Lowering, free_states: list[str]) -> set[str]:
    """Names of the nodes on which an output of this mode depends."""
    ends = list(low.output_names)
    if low.mode == "stream":  # a state must be computed even if no output depends on it
        ends += [low.states[name] for name in free_states]
        keepers = [n for n in low.graph.nodes if n.op in ROWS and ROWS[n.op].keeps]
        ends += [o for n in keepers for o in n.outputs if o is not None]

    def reads(node: Node):
        if node.op == "state" and low.mode == "stream":
            return node.inputs[:1]  # its initial value is in the slab row
        return [i for i in node.inputs if node.op != "cell" or i not in low.fed_by_state]

    wanted = {node.name for node in needed(low.graph, ends, makers=low.producers, reads=reads)}
    for last, scan in low.scans.items():  # it computes all that it can, and needs all that it reads
        if last not in wanted and scan.names & wanted:
            wanted |= {
                n.name for n in needed(low.graph, [v.name for v in scan.leaves], makers=low.producers, reads=reads)
            }
            wanted.add(last)
    return wanted
