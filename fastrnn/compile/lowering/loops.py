"""Lowering of cycles (fastrnn.graph.loops): a `loop` op whose body is lowered like any graph, for one step.

A state has no copy of its own. The value that it remembers is written into memory with n extra steps in front, where n
is the number of chained states. The state is a view of the same memory, n steps earlier.

    h[T+1]:  initial  h(0)  h(1) ..  h(T-1)        h = memory[1:], prev(h) = memory[:-1]

In a stream, the first n steps of the memory are loaded from the slab row, and its last n are stored there.
"""

from __future__ import annotations

import numpy as np

from ...errors import UnsupportedError
from ...graph import Graph, Node, Value
from ...graph import dims as D
from ...graph.loops import Loop
from ...graph.traverse import free_inputs
from ...graph.vocabulary import ROWS
from ...records import dataclass
from ...streaming.follow import Track, follow
from .. import bounds
from ..plan import STEP
from ..tensors import ITEMSIZE, Tensor, collapse, kept_as
from .base import Lowering
from .scans import all_steps, stays_in_place, whole_scan
from .states import in_own_type, state_move


@dataclass
class Chain:
    """States one after the other: `root`, then its value one step ago, two steps ago, ... in `memory` [T+n, ..]."""

    root: str
    states: list[Node]
    memory: Tensor | None = None
    offset: int = -1  # in a stream: where its slab row keeps the last steps

    @property
    def depth(self) -> int:
        return len(self.states)


def chains(loop: Loop) -> list[Chain]:
    """The states of a loop, grouped: a state that remembers the last one of a chain joins the chain."""
    made = {s.outputs[0] for s in loop.states}
    found = [Chain(s.inputs[0], [s]) for s in loop.states if s.inputs[0] not in made]
    left = [s for s in loop.states if s.inputs[0] in made]
    while left:
        for state in left:
            chain = next((c for c in found if c.states[-1].outputs[0] == state.inputs[0]), None)
            if chain is not None:
                chain.states.append(state)
                break
        else:  # two states remember the same value: the second starts its own chain
            state = left[0]
            found.append(Chain(state.inputs[0], [state]))
        left.remove(state)
    return found


def lower_loop(low: Lowering, loop: Loop) -> None:
    """All ops of a cycle: fill its states' memory, run its body at every step, store what a stream keeps."""
    _check_loop(low, loop)
    found = chains(loop)
    scan = whole_scan(low, loop)
    moving = [chain for chain in found if not _stays(low, chain)]
    for chain in moving:
        _open_chain(low, chain)
    if scan is not None and moving:
        low.tensors[scan.root] = _remembered(low, found[0], 0)
        all_steps(low, scan, loop.name, _remembered(low, found[0], 1), low.tensors[scan.root])
    elif scan is not None:
        all_steps(low, scan, loop.name)
    elif loop.nodes:
        _steps(low, loop, moving)
    else:
        for chain in moving:
            low.copy(low.tensor(chain.root), _remembered(low, chain, 0), loop.name)
    for chain in moving:
        if low.mode == "stream":
            _slab_moves(low, chain, "state_load", D.TIME)
        for name in (chain.root, *(s.outputs[0] for s in chain.states)):
            low.tensors[name] = in_own_type(low, low.tensors[name], low.graph.values[name].dtype, loop.name)


def _stays(low: Lowering, chain: Chain) -> bool:
    """Whether a state needs no memory for its steps, as only scans read it: they find it in the slab, or in one matrix
    of the arena. Makes that."""
    state, value = chain.states[0], low.graph.values[chain.root]
    if chain.depth > 1 or not stays_in_place(low, state.outputs[0], chain.root):
        return False
    if low.mode == "stream":
        _place_chain(low, chain, value)
        low.in_slab[state.outputs[0]] = chain.offset
    else:
        low.in_arena[state.outputs[0]] = kept = low.builder.allocate("float32", value.dims[1:])
        _initial(low, state, kept)
    return True


@bounds.touches("loop")
def _loop_touches(plan, f):
    yield bounds.Access("steps", None, 0, ((f["steps"], 0),))  # only a count


def _remembered(low: Lowering, chain: Chain, ago: int) -> Tensor:
    """The chain's root, `ago` steps ago: [T, ..]."""
    return chain.memory.narrow(0, chain.depth - ago, D.TIME)


def _check_loop(low: Lowering, loop: Loop) -> None:
    """Check that every node of the loop keeps the steps separate, so that it can be computed step by step."""
    for state in loop.states:
        value = low.graph.values[state.outputs[0]]
        if value.dims[0] != D.TIME:
            raise UnsupportedError(f"a cycle over {value.dims[0]} steps ({value}): only over all steps of the input")
    if not loop.nodes:
        return
    inside = {n.name for n in (*loop.nodes, *loop.states)}
    nodes = tuple(n for n in low.graph.nodes if n.name in inside)
    inputs = tuple(sorted(set(free_inputs(nodes)) - set(low.graph.constants)))
    part = Graph(low.graph.name, inputs, (), nodes, low.graph.values, low.graph.constants)
    if any(n.op == "cell" for n in loop.nodes):
        raise UnsupportedError("a recurrent layer inside a cycle: its steps and those of the cycle are one axis")
    walked = follow(part, "time")
    if walked.problems:
        raise UnsupportedError(f"in a cycle, {walked.problems[0]}")
    low.tracks = walked.tracks


def _open_chain(low: Lowering, chain: Chain) -> None:
    """The chain's memory. Its first steps hold the initial values of the states."""
    value, n = low.graph.values[chain.root], chain.depth
    order = [0, *([] if (b := _batch_axis(low, value)) is None else [b])]
    order += [a for a in range(len(value.dims)) if a not in order]
    chain.memory = low.builder.allocate(kept_as(value.dtype), (n + value.dims[0], *value.dims[1:]), order)
    for ago, state in enumerate(chain.states, 1):
        low.tensors[state.outputs[0]] = _remembered(low, chain, ago)
    if low.mode == "stream":
        return _keep_chain(low, chain, value)
    for ago, state in enumerate(chain.states, 1):
        _initial(low, state, chain.memory.narrow(0, n - ago, 1).squeeze(0))


def _initial(low: Lowering, state: Node, first: Tensor) -> None:
    """Write the initial value of a state, zero if the file gives none."""
    if len(state.inputs) > 1 and state.inputs[1] is not None:
        return low.copy(low.tensor(state.inputs[1]), first, state.name)
    runs = collapse(first.dims, (first.strides,), first.order)
    if first.dtype == "float32" and (not runs or (len(runs) == 1 and runs[0][1] == (1,))):
        count = D.product(first.dims)
        fields = {"buffer": first.buffer, "offset": first.offset, "count": count}
        low.builder.emit("zero", state.name, (), (first,), **fields)
    else:
        zero = low.builder.constant(np.zeros((1,) * len(first.dims)), "float64")
        low.copy(zero.expand(first.dims), first, state.name)


def _batch_axis(low: Lowering, value: Value) -> int | None:
    axes = [a for a, d in enumerate(value.dims) if "batch" in D.symbols(d)]
    if len(axes) > 1 or (axes and not isinstance(D.exact_div(value.dims[axes[0]], D.BATCH), int)):
        raise UnsupportedError(f"the state {value} has no plain batch axis")
    return axes[0] if axes else None


def _keep_chain(low: Lowering, chain: Chain, value: Value) -> None:
    """Reserve room in the slab row for the n steps that a stream keeps, oldest first, and load them from it."""
    _place_chain(low, chain, value)
    _slab_moves(low, chain, "state_store", 0)


def _place_chain(low: Lowering, chain: Chain, value: Value) -> None:
    name, batch = chain.states[0].name, _batch_axis(low, value)
    size = D.product(d for a, d in enumerate(value.dims) if a not in (0, batch))
    rows = 1 if batch is None else D.exact_div(value.dims[batch], D.BATCH)
    if isinstance(size, D.Dim) or (low.has_batch and batch is None):
        raise UnsupportedError(f"the state {value} has no plain batch axis")
    chain.offset = low.builder.keep(name, "steps", chain.depth * rows * size, kept_as(value.dtype))


def _slab_moves(low: Lowering, chain: Chain, kind: str, first) -> None:
    """Copy steps first .. first + n of the memory to or from the slab."""
    value = low.graph.values[chain.root]
    batch = _batch_axis(low, value)
    size = D.product(d for a, d in enumerate(value.dims) if a not in (0, batch))
    rows = 1 if batch is None else value.dims[batch]
    per_slot = 1 if batch is None else D.exact_div(rows, D.BATCH)
    for k in range(chain.depth):
        step = chain.memory.narrow(0, first + k, 1)
        flat = Tensor(step.buffer, (rows, size), (size, 1), step.offset)
        offset = chain.offset + k * per_slot * size * ITEMSIZE[step.dtype] // 4
        state_move(low, kind, chain.states[0].name, offset, per_slot, flat)


def _steps(low: Lowering, loop: Loop, found: list[Chain]) -> None:
    """The loop op. A value of the body is one step of the declared value; kept values are whole sequences.

    found: the states that have memory of their own.
    """
    kept = {c.root: _remembered(low, c, 0) for c in reversed(found)}
    for name in _seen_outside(low, loop):
        if name not in kept:
            kept[name] = low.destinations.get(name) or _sequence(low, name)
    outer, whole, aims = low.tensors, low.graph, low.destinations
    low.graph = _one_step(whole, loop)
    low.tensors = _step_tensors(low, loop, outer)
    low.destinations = {name: _step_of(low, t, name) for name, t in kept.items() if name not in low.tensors}
    targets = dict(low.destinations)
    low.aim_nodes(loop.nodes)
    mark = low.builder.begin_loop(loop.name, D.TIME)
    try:
        for state in (s for chain in found for s in chain.states):
            name = state.outputs[0]
            low.tensors[name] = in_own_type(low, low.tensors[name], whole.values[name].dtype, loop.name)
        low.lower_nodes(n for n in low.graph.nodes if n.op != "state")
        for name, target in targets.items():
            low.copy(low.tensor(name), target, loop.name)
        for chain in found:
            own = _step_of(low, _remembered(low, chain, 0), chain.root)
            low.copy(low.tensor(chain.root), own, loop.name)
    finally:
        low.builder.end_loop(mark, [*kept.values(), *(c.memory for c in found), *low.in_arena.values()])
        shared = {n: t for n, t in low.tensors.items() if n in whole.constants}
        low.graph, low.tensors, low.destinations = whole, {**shared, **outer}, aims
        low.tensors |= {name: t for name, t in kept.items() if name not in outer}


def _seen_outside(low: Lowering, loop: Loop) -> list[str]:
    """Values of the body that are read by other nodes or returned to the caller."""
    inside = {n.name for n in (*loop.nodes, *loop.states)}
    outputs = {*low.output_names, *low.states.values()}
    made = [o for n in loop.nodes for o in n.outputs if o is not None]
    return [o for o in made if o in outputs or any(r.name not in inside for r in low.consumers.get(o, ()))]


def _sequence(low: Lowering, name: str) -> Tensor:
    """Memory for all steps of a value, steps slowest."""
    value, axis = low.graph.values[name], low.tracks[name].axis
    return low.builder.allocate(value.dtype, value.dims, [axis, *(a for a in range(len(value.dims)) if a != axis)])


def _step_tensors(low: Lowering, loop: Loop, outer: dict) -> dict:
    """What the body reads from outside, at the current step; a state as of the previous step."""
    read = (*free_inputs(loop.nodes), *(s.outputs[0] for s in loop.states))
    return {name: _step_of(low, outer[name], name) for name in read if name in outer}


def _step_of(low: Lowering, whole: Tensor, name: str) -> Tensor:
    """A value at the current step of the loop; the value itself if it has no steps."""
    track: Track | None = low.tracks.get(name)
    if track is None:
        return whole
    dim = D.exact_div(whole.dims[track.axis], D.TIME * track.inner)
    if dim != 1:
        raise UnsupportedError(f"in a cycle, {low.graph.values[name]}: its steps don't lie one after the other")
    return whole.narrow(track.axis, STEP * track.inner, track.inner)


def _one_step(graph: Graph, loop: Loop) -> Graph:
    """The graph with the loop's values and nodes reduced to a single step."""

    def at_one(dim):
        return D.substitute(dim, {"time": 1})

    values, nodes = dict(graph.values), []
    for node in (*loop.nodes, *loop.states):
        for name in (*node.inputs, *node.outputs):
            if name is not None:
                value = graph.values[name]
                values[name] = Value(name, value.dtype, tuple(map(at_one, value.dims)))
        known = ROWS[node.op].attrs
        attrs = {key: known[key].number(value, at_one) for key, value in node.attrs.items()}
        nodes.append(Node(node.op, node.name, node.inputs, node.outputs, attrs))
    return graph.replace(values=values, nodes=tuple(nodes))
