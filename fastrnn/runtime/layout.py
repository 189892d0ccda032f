"""The states of a stream: `StateLayout` maps the states in `Model.states` to places in a slab row.

Such a state is a cell's own h or c, or a state that the file threads through an input and an output (`h0 -> hn`). The
latter may pack the states of several cells into one tensor.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from ..compile.lowering.loops import chains
from ..compile.plan import Plan
from ..compile.tensors import ITEMSIZE, kept_as
from ..errors import StateError
from ..graph import Graph
from ..graph import dims as D
from ..graph.loops import loops
from ..graph.traverse import roots as roots_of
from ..graph.traverse import subgraph
from ..graph.vocabulary import moves
from ..records import dataclass
from .kept import KeptState, Meanings, kept_states

MOST_STEPS = 1 << 60  # of a stream; no real stream counts further


@dataclass(frozen=True)
class StatePart:
    """Elements `places` (flat indices, for one stream) of a shown state, in a slab row from float32 `offset` on."""

    offset: int
    places: np.ndarray

    def of(self, slab: np.ndarray, kept: str) -> np.ndarray:
        """These elements of slab rows, [batch, places], in the dtype `kept` in which the row has them: a view if they
        are float32, else a copy."""
        floats = self.places.size * ITEMSIZE[kept] // 4
        part = slab[:, self.offset : self.offset + floats]
        return part if kept == "float32" else np.ascontiguousarray(part).view(kept)


@dataclass(frozen=True)
class ShownState:
    """One entry of `Model.states`. dims: with "batch" on `batch_axis`; parts: where a slab row stores its elements;
    counts: it is a number of steps, which decides where other states are stored."""

    name: str
    dims: tuple
    batch_axis: int
    parts: tuple[StatePart, ...]
    dtype: str = "float32"
    counts: bool = False

    @property
    def kept(self) -> str:
        """The dtype in which a slab row has its elements."""
        return kept_as(self.dtype)


class StateLayout:
    """The layout of a slab row, and its contents when a stream begins.

    kept : every state in the row by what it means, for snapshots; found when it is first asked for

    Raises StateError if a threaded state is not just cell states in another order.
    """

    def __init__(self, graph: Graph, plan: Plan, meanings: Meanings | None = None):
        self.size, self._plan, self._meanings = plan.state_size, plan, meanings or Meanings(graph)
        self.initial_row = np.zeros(self.size, np.float32)
        self.shown: list[ShownState] = []
        slots = {(s.node, s.part): s for s in plan.states}
        threaded: dict[str, list[StatePart]] = {}
        covered: set = set()
        located: dict[str, tuple[str, np.ndarray]] = {}
        for slot, begin, end, node, mixed, depth in (*_cells(graph, slots), *_chains(graph, slots)):
            roots = roots_of(graph, begin) & set(graph.states)
            if not roots:
                self._set_initial(graph, begin, slot)
                continue
            if len(roots) > 1 or depth > 1:
                raise StateError(f"node {node}: {mixed.format(', '.join(sorted(roots)))}")
            root = roots.pop()
            places = _places(graph, root, begin, f"node {node}")
            threaded.setdefault(root, []).append(StatePart(slot.offset, places))
            located[end] = (root, places)
            covered.add((slot.node, slot.part))
        for name, parts in threaded.items():
            self._show_threaded(graph, name, parts)
            _check_return(graph, name, {key: p for key, p in located.items() if p[0] == name})
        for slot in plan.states:
            if slot.part == "value":
                threaded[slot.name] = [StatePart(slot.offset, np.arange(slot.size))]
                self._show_threaded(graph, slot.name, threaded[slot.name])
            elif (slot.node, slot.part) not in covered:
                part = StatePart(slot.offset, np.arange(slot.size))
                dims = slot.dims or (slot.size,)
                counts = slot.part == "count"
                self.shown.append(ShownState(slot.name, ("batch", *dims), 0, (part,), _shown(graph, slot), counts))
        unused = set(graph.states) - set(threaded)
        if unused:
            raise StateError(f"state {', '.join(sorted(unused))} does not start any cell of a stream")

    @cached_property
    def kept(self) -> tuple[KeptState, ...]:
        return kept_states(self._meanings.planned, self._plan)

    def _set_initial(self, graph: Graph, name: str, slot) -> None:
        sub = subgraph(graph, [], [name])
        (value,) = _run(sub, {})
        self.initial_row[slot.offset : slot.offset + slot.floats] = (
            value.reshape(-1).astype(slot.dtype).view(np.float32)
        )

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
        axis = -1 if batch_axis is None else batch_axis
        self.shown.append(ShownState(name, dims, axis, tuple(parts), value.dtype))

    def rows(self, slab: np.ndarray) -> dict[str, np.ndarray]:
        """The shown states of slab rows [batch, size], as copies [batch, dims...]: their dims without batch."""
        out = {}
        for state in self.shown:
            dims = self.row_dims(state)
            flat = np.empty((slab.shape[0], int(np.prod(dims))), state.dtype)
            for part in state.parts:
                flat[:, part.places] = part.of(slab, state.kept)
            out[state.name] = flat.reshape(slab.shape[0], *dims)
        return out

    def load_rows(self, slab: np.ndarray, rows: dict[str, np.ndarray]) -> None:
        """Inverse of `rows`. StateError, with nothing changed, if one is missing or unknown, has the wrong shape,
        or is not a number of steps."""
        names = [s.name for s in self.shown]
        if set(rows) != set(names):
            raise StateError(f"states are {sorted(names)}, got {sorted(rows)}")
        for state in self.shown:
            got, want = rows[state.name], (slab.shape[0], *self.row_dims(state))
            if got.shape != want or got.dtype != state.dtype:
                text = f"{state.dtype}{list(want)} expected, got {got.dtype}{list(got.shape)}"
                raise StateError(f"state {state.name}: {text}")
            if state.counts and got.size and not (0 <= got.min() and got.max() <= MOST_STEPS):
                raise StateError(f"state {state.name}: it counts steps, got {got.min()}..{got.max()}")
        for state in self.shown:
            flat = rows[state.name].reshape(slab.shape[0], int(np.prod(self.row_dims(state))))
            for part in state.parts:
                values = np.ascontiguousarray(flat[:, part.places], state.kept).view(np.float32)
                slab[:, part.offset : part.offset + values.shape[1]] = values

    def row_dims(self, state: ShownState) -> list[int]:
        """The dims of a state of one stream, without its batch axis."""
        return [d for i, d in enumerate(state.dims) if i != state.batch_axis]

    def export(self, slab: np.ndarray) -> dict[str, np.ndarray]:
        """The shown states of slab rows [batch, size], as copies, in their own dims."""
        rows = self.rows(slab)
        axes = {s.name: s.batch_axis for s in self.shown}
        return {k: np.moveaxis(r, 0, axes[k]) if axes[k] >= 0 else r[0] for k, r in rows.items()}

    def load(self, slab: np.ndarray, states: dict[str, np.ndarray]) -> None:
        """Inverse of `export` into slab rows; the arrays' shapes were checked by the caller."""
        axes = {s.name: s.batch_axis for s in self.shown}
        self.load_rows(slab, {k: np.moveaxis(a, axes[k], 0) if axes[k] >= 0 else a[None] for k, a in states.items()})


def _shown(graph: Graph, slot) -> str:
    """The dtype of a state as users see it: that of the value that the state of a cycle is."""
    node = next((n for n in graph.nodes if n.name == slot.node), None)
    return graph.values[node.outputs[0]].dtype if node is not None and slot.part == "steps" else slot.dtype


def _cells(graph: Graph, slots: dict):
    """(slot, initial value, last value, node, why it can't begin with several states, steps that it holds) of each cell
    state with an initial value."""
    for node in graph.nodes:
        for i, part in enumerate("hc" if node.op == "cell" and (node.name, "h") in slots else ""):
            begin = node.inputs[6 + i] if len(node.inputs) > 6 + i else None
            if begin is not None and (node.name, part) in slots:
                text = f"its initial {part} mixes the states {{}}"
                yield slots[node.name, part], begin, node.outputs[1 + i], node.name, text, 1


def _chains(graph: Graph, slots: dict):
    """The same for `state` nodes: a chain of n of them keeps the last n steps, the oldest first."""
    for chain in (c for loop in loops(graph) for c in chains(loop)):
        slot = slots.get((chain.states[0].name, "steps"))
        for ago, state in enumerate(chain.states, 1):
            begin = state.inputs[1] if len(state.inputs) > 1 else None
            if begin is not None and slot is not None:
                size = slot.size // chain.depth
                place = replace(slot, size=size)
                place = replace(place, offset=slot.offset + (chain.depth - ago) * place.floats)
                text = "it mixes the states {} of several steps"
                yield place, begin, state.inputs[0], state.name, text, chain.depth


def _numbered(graph: Graph, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The output of a small graph that moves numbered elements, which narrow integers can't hold."""
    if any(graph.values[name].dtype != "float32" for name in feeds):
        graph = graph.replace(values={n: replace(v, dtype="int64") for n, v in graph.values.items()})
    return _run(graph, feeds)[0]


def _run(graph: Graph, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a small graph for one stream and one step, in float64 or integers."""
    from ..graph import reference  # the import takes 15 ms; a model without initial states does not need it

    return reference.run(graph, feeds, sizes={"batch": 1, "time": 1})


def _check_return(graph: Graph, name: str, ends: dict) -> None:
    """StateError unless each cell's last state has the same place in the output as its first state in the input."""
    sub = subgraph(graph, list(ends), [graph.states[name]])
    shapes = {e: [D.evaluate(d, {"batch": 1, "time": 1}) for d in graph.values[e].dims] for e in ends}
    back = _numbered(sub, {end: places.reshape(shapes[end]) for end, (_, places) in ends.items()})
    if not np.array_equal(back.reshape(-1), np.arange(back.size)):
        raise StateError(f"state {name} -> {graph.states[name]}: the output holds the cells' states in another order")


def _places(graph: Graph, root: str, name: str, where: str) -> np.ndarray:
    """Which flat elements of the input `root` (batch 1) arrive in `name`, found by propagating their numbers."""
    sub = subgraph(graph, [root], [name])
    for node in sub.nodes:
        if not moves(node.op):
            raise StateError(f"{where}: its initial state is the input {root} after a {node.op} (node {node.name})")
    shape = [D.evaluate(d, {"batch": 1, "time": 1}) for d in graph.values[root].dims]
    moved = _numbered(sub, {root: np.arange(int(np.prod(shape))).reshape(shape)})
    return np.asarray(moved, np.int64).reshape(-1)
