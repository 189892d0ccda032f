"""Can a graph be run step by step, and what does a stream keep? Answers about a graph; nothing is run here.

`problems(graph)` lists, by node, what needs the future. `StateLayout` maps the states that `Model.states` shows to
places in a slab row: a cell's own h and c, or a state that the file threads through an input and an output
(`h0 -> hn`), which may pack several cells' states into one tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import dims as D
from . import reference
from .errors import StateError
from .graph import Graph, Node, Value
from .plan import Plan

_MOVES = frozenset("transpose reshape slice expand concat".split())


def _over_time(dim) -> bool:
    return "time" in D.symbols(dim)


def problems(graph: Graph) -> list[str]:
    """One sentence for each node that can't be run one step at a time; empty where the graph streams."""
    found = []
    for name in graph.inputs:
        value = graph.values[name]
        times = [d for d in value.dims if _over_time(d)]
        if len(times) > 1 or (times and times[0] != D.TIME):
            found.append(f"input {value} has more than one time axis, or one that isn't plain time")
    for node in graph.nodes:
        text = _problem(graph, node)
        if text:
            found.append(f"node {node.name} ({node.op}): {text}")
    for name in graph.outputs:
        value = graph.values[name]
        times = [d for d in value.dims if _over_time(d)]
        if times and times != [D.TIME]:
            found.append(f"output {value} is not one step long for each step of the input")
    return found


def _problem(graph: Graph, node: Node) -> str | None:
    x = graph.values[node.inputs[0]]
    a = node.attrs
    if node.op == "cell" and _over_time(x.dims[0]):
        if a["spec"].reverse:
            return f"{a['spec'].kind} runs from the last step to the first: it needs the future"
        if len(node.inputs) > 8 and node.inputs[8] is not None:
            return "sequence lengths are known only when a sequence ends"
        return _initial_problem(graph, node)
    if node.op == "slice" and _over_time(x.dims[a["axis"]]):
        dim = x.dims[a["axis"]]
        whole = a["start"] == 0 and a["stop"] == dim and a["step"] == 1
        last = a["start"] == dim - 1 and a["stop"] == dim and a["step"] == 1
        return None if whole or last else f"picks steps [{a['start']}:{a['stop']}:{a['step']}] of a sequence"
    if node.op == "reduce" and any(_over_time(x.dims[axis]) for axis in a["axes"]) and not runs_over_time(x, a):
        return f"takes the {a['fn']} over steps and other axes at once"
    if node.op == "softmax" and _over_time(x.dims[a["axis"]]):
        return "normalises over all steps"
    if node.op == "layer_norm" and any(_over_time(d) for d in x.dims[a["axis"] :]):
        return "normalises over all steps"
    if node.op == "concat" and _over_time(x.dims[a["axis"]]):
        return "joins sequences one after the other"
    if node.op == "gather" and _over_time(x.dims[a["axis"]]):
        return "picks steps by index"
    if node.op == "matmul" and (_over_time(x.dims[-1]) or any(map(_over_time, graph.values[node.inputs[1]].dims[-2:]))):
        return "multiplies over all steps"
    return _window_problem(graph, node, x)


def _window_problem(graph: Graph, node: Node, x: Value) -> str | None:
    """Windows, pads, arg max and running sums: along time they would need steps that are gone, or still to come."""
    a = node.attrs
    if node.op in ("conv", "conv_transpose", "pool"):
        kernel = a["kernel"] if node.op == "pool" else graph.values[node.inputs[1]].dims[2:]
        for i, size in enumerate(x.dims[2:]):
            alone = kernel[i] == a["strides"][i] == 1 and a["pads"][i] == a["pads"][len(kernel) + i] == 0
            if _over_time(size) and not (alone and a.get("output_padding", (0, 0))[i] == 0):
                return f"its window covers {kernel[i]} steps with stride {a['strides'][i]}"
    if node.op == "pad":
        rank = len(x.dims)
        for i, size in enumerate(x.dims):
            pads = (a["pads"][i], a["pads"][rank + i])
            if any(_over_time(d) for d in (size, *pads)) and pads != (0, 0):
                return f"pads a sequence by {pads[0]} and {pads[1]} steps"
    if node.op in ("argmax", "cumsum") and _over_time(x.dims[a["axis"]]):
        return f"its {node.op} runs over all steps"
    return None


def runs_over_time(x: Value, attrs) -> bool:
    """A reduce over time alone: a stream answers it with the value so far."""
    return len(attrs["axes"]) == 1 and x.dims[attrs["axes"][0]] == D.TIME


def _initial_problem(graph: Graph, node: Node) -> str | None:
    """An initial state must be a constant or a threaded input: a stream begins before any input is seen."""
    for name in node.inputs[6:8]:
        if name is None:
            continue
        roots = _roots(graph, name)
        live = [r for r in roots if r in graph.inputs and r not in graph.states]
        if live:
            return f"its initial state is computed from the input {', '.join(live)}"
    return None


def _roots(graph: Graph, name: str) -> set[str]:
    """The inputs on which a value depends."""
    producers, seen, stack = graph.producers(), set(), [name]
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in producers:
            stack += [i for i in producers[value].inputs if i is not None]
    return {v for v in seen if v in graph.inputs}


@dataclass(frozen=True)
class StatePart:
    """Elements `places` (flat indices, for one stream) of a shown state lie in a slab row from float32 `offset` on."""

    offset: int
    places: np.ndarray

    def of(self, slab: np.ndarray, dtype: str) -> np.ndarray:
        """These elements of slab rows, [batch, places]: a view where they are float32, else a copy."""
        floats = self.places.size * np.dtype(dtype).itemsize // 4
        part = slab[:, self.offset : self.offset + floats]
        return part if dtype == "float32" else np.ascontiguousarray(part).view(dtype)


@dataclass(frozen=True)
class ShownState:
    """One entry of `Model.states`. dims: with "batch" on `batch_axis`; parts: where its elements lie in a slab row."""

    name: str
    dims: tuple
    batch_axis: int
    parts: tuple[StatePart, ...]
    dtype: str = "float32"


class StateLayout:
    """How a slab row is made up, and what it holds when a stream begins.

    Raises StateError where a threaded state isn't just cells' states, moved about.
    """

    def __init__(self, graph: Graph, plan: Plan):
        self.size = plan.state_size
        self.initial_row = np.zeros(self.size, np.float32)
        self.shown: list[ShownState] = []
        slots = {(s.node, s.part): s for s in plan.states}
        cells = [n for n in graph.nodes if n.op == "cell" and (n.name, "h") in slots]
        threaded: dict[str, list[StatePart]] = {}
        covered: set = set()
        located: dict[str, tuple[str, np.ndarray]] = {}
        for node in cells:
            for i, part in enumerate("hc"):
                slot = slots.get((node.name, part))
                name = node.inputs[6 + i] if len(node.inputs) > 6 + i else None
                if slot is None or name is None:
                    continue
                roots = _roots(graph, name) & set(graph.states)
                if not roots:
                    self._set_initial(graph, name, slot)
                    continue
                if len(roots) > 1:
                    raise StateError(
                        f"node {node.name}: its initial {part} mixes the states {', '.join(sorted(roots))}"
                    )
                root = roots.pop()
                places = _places(graph, root, name, f"node {node.name}")
                threaded.setdefault(root, []).append(StatePart(slot.offset, places))
                located[node.outputs[1 + i]] = (root, places)
                covered.add((node.name, part))
        for name, parts in threaded.items():
            self._show_threaded(graph, name, parts)
            _check_return(graph, name, {key: p for key, p in located.items() if p[0] == name})
        for slot in plan.states:
            if slot.part == "value":
                threaded[slot.name] = [StatePart(slot.offset, np.arange(slot.size))]
                self._show_threaded(graph, slot.name, threaded[slot.name])
            elif (slot.node, slot.part) not in covered:
                part = StatePart(slot.offset, np.arange(slot.size))
                self.shown.append(ShownState(slot.name, ("batch", slot.size), 0, (part,), slot.dtype))
        unused = set(graph.states) - set(threaded)
        if unused:
            raise StateError(f"state {', '.join(sorted(unused))} does not start any cell of a stream")

    def _set_initial(self, graph: Graph, name: str, slot) -> None:
        sub = _subgraph(graph, [], [name])
        (value,) = reference.run(sub, {}, sizes={"batch": 1, "time": 1})
        self.initial_row[slot.offset : slot.offset + slot.size] = value.reshape(-1)

    def _show_threaded(self, graph: Graph, name: str, parts: list[StatePart]) -> None:
        value = graph.values[name]
        batch_axis = next((i for i, d in enumerate(value.dims) if "batch" in D.symbols(d)), None)
        if batch_axis is not None and value.dims[batch_axis] != D.BATCH:
            raise StateError(f"state {value}: its batch axis is not plain batch")
        count = sum(p.places.size for p in parts)
        total = D.evaluate(D.product(value.dims), {"batch": 1, "time": 1})
        if count != total:
            raise StateError(f"state {value}: {count} of its {total} elements start cells; the rest is not understood")
        dims = tuple("batch" if i == batch_axis else d for i, d in enumerate(value.dims))
        self.shown.append(ShownState(name, dims, -1 if batch_axis is None else batch_axis, tuple(parts)))

    def export(self, slab: np.ndarray) -> dict[str, np.ndarray]:
        """The shown states of slab rows [batch, size], as copies, in their own dims."""
        out = {}
        for state in self.shown:
            dims = [d for i, d in enumerate(state.dims) if i != state.batch_axis]
            flat = np.empty((slab.shape[0], int(np.prod(dims))), state.dtype)
            for part in state.parts:
                flat[:, part.places] = part.of(slab, state.dtype)
            array = flat.reshape(slab.shape[0], *dims)
            out[state.name] = np.moveaxis(array, 0, state.batch_axis) if state.batch_axis >= 0 else array[0]
        return out

    def load(self, slab: np.ndarray, states: dict[str, np.ndarray]) -> None:
        """Inverse of `export` into slab rows; the arrays' shapes were checked by the caller."""
        for state in self.shown:
            array = states[state.name]
            array = np.moveaxis(array, state.batch_axis, 0) if state.batch_axis >= 0 else array[None]
            flat = array.reshape(slab.shape[0], -1)
            for part in state.parts:
                values = np.ascontiguousarray(flat[:, part.places], state.dtype).view(np.float32)
                slab[:, part.offset : part.offset + values.shape[1]] = values


def _subgraph(graph: Graph, inputs: list[str], outputs: list[str]) -> Graph:
    """The part of a graph that computes `outputs` from `inputs` and constants."""
    producers, wanted, stack = graph.producers(), set(), list(outputs)
    while stack:
        name = stack.pop()
        node = producers.get(name)
        if node is None or name in inputs or node.name in wanted:
            continue
        wanted.add(node.name)
        stack += [i for i in node.inputs if i is not None]
    nodes = tuple(n for n in graph.nodes if n.name in wanted)
    return graph.replace(inputs=tuple(inputs), outputs=tuple(outputs), nodes=nodes, states={})


def _check_return(graph: Graph, name: str, ends: dict) -> None:
    """The output that a state becomes must put each cell's last state where the input had its first one."""
    sub = _subgraph(graph, list(ends), [graph.states[name]])
    shapes = {e: [D.evaluate(d, {"batch": 1, "time": 1}) for d in graph.values[e].dims] for e in ends}
    feeds = {end: places.astype(np.float64).reshape(shapes[end]) for end, (_, places) in ends.items()}
    (back,) = reference.run(sub, feeds, sizes={"batch": 1, "time": 1})
    if not np.array_equal(back.reshape(-1), np.arange(back.size)):
        raise StateError(f"state {name} -> {graph.states[name]}: the output holds the cells' states in another order")


def _places(graph: Graph, root: str, name: str, where: str) -> np.ndarray:
    """Which flat elements of the input `root` (batch 1) arrive in `name`: found by sending their numbers through."""
    sub = _subgraph(graph, [root], [name])
    for node in sub.nodes:
        if node.op not in _MOVES:
            raise StateError(f"{where}: its initial state is the input {root} after a {node.op} (node {node.name})")
    shape = [D.evaluate(d, {"batch": 1, "time": 1}) for d in graph.values[root].dims]
    numbers = np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape)
    (moved,) = reference.run(sub, {root: numbers}, sizes={"batch": 1, "time": 1})
    return np.asarray(moved, np.int64).reshape(-1)
