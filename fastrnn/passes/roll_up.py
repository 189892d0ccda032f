"""Replaces cycles that compute an RNN, an LSTM or a GRU with that cell, which has its own kernel.

How a cycle is written doesn't matter: weights per gate or all in one, terms in any order, `1 - z` for `z`. Each
activation of the cycle is read as a function of a sum of products (`Sum`). The few ways in which these could be the
gates of a cell are tried. One is taken only if a step of that cell gives the same numbers as a step of the cycle, in
float64, on random inputs. The cycle may contain only sums, products and as many activations as the cell has, so equal
numbers are not an accident.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import numpy as np

from ..graph import Graph, Node, Value, reference
from ..graph.cells import ACTIVATIONS, Activation, CellSpec, activation
from ..graph.dims import TIME, evaluate, symbols
from ..graph.loops import Loop, loops, schedule
from ..graph.traverse import fresh, subgraph
from ..records import dataclass
from .patch import Patch
from .sums import Sum, Sums

_ALLOWED = frozenset("linear matmul binary unary slice concat".split())
_ARITHMETIC = frozenset(("add", "sub", "mul"))
_ROWS = 5  # random rows per scale; a cell of one unit has 3 to 16 weights, and the comparison covers all of them
_SCALES = (0.3, 3.0)
_TOLERANCE = 1e-10  # relative; float64 sums of a thousand terms in a different order agree to 1e-13


def roll_up(graph: Graph) -> Graph:
    """Replace each cycle that is a known cell with one `cell` node, and rewire its inputs and readers."""
    for loop in loops(graph):
        found = _Cycle(graph, loop).cell() if _candidate(graph, loop) else None
        if found is not None:
            graph = _replaced(graph, loop, found)
    return graph


@dataclass(frozen=True)
class Found:
    """A cell that computes a cycle.

    arrays: W R Wb Rb P, float64 (P may be None). bases: the values that x is made of. states: the states whose inputs
    are its h (and c).
    """

    spec: CellSpec
    arrays: tuple
    bases: tuple[str, ...]
    states: tuple[Node, ...]


@dataclass(frozen=True)
class Gate:
    """An activation of the cycle, and the sum that it is applied to."""

    act: Activation
    sum: Sum


def _candidate(graph: Graph, loop: Loop) -> bool:
    """A quick check: one or two states, each of h units, over nodes that a cell may be made of."""
    dims = {graph.values[s.outputs[0]].dims for s in loop.states}
    roots, made = {s.inputs[0] for s in loop.states}, {o for n in loop.nodes for o in n.outputs}
    if len(loop.states) > 2 or len(dims) != 1 or len(roots) != len(loop.states) or not roots <= made:
        return False
    (shape,) = dims
    if len(shape) != 3 or shape[0] != TIME or not isinstance(shape[2], int):
        return False
    return all(
        n.op in _ALLOWED and (n.op != "binary" or n.attrs["fn"] in _ARITHMETIC) and _plain(n) for n in loop.nodes
    )


def _plain(node: Node) -> bool:
    fn = node.attrs.get("fn") if node.op == "unary" else node.attrs.get("activation")
    return node.op not in ("unary", "linear") or fn is None or fn == "neg" or fn in ACTIVATIONS


class _Cycle:
    def __init__(self, graph: Graph, loop: Loop):
        self.graph, self.loop = graph, loop
        self.steps, self.batch, self.hidden = graph.values[loop.states[0].outputs[0]].dims
        self.roots = [s.inputs[0] for s in loop.states]
        self.prevs = [s.outputs[0] for s in loop.states]
        self.sums = Sums(graph, {*self.roots, *self.prevs})
        self.gates: dict[str, Gate] = {}

    def cell(self) -> Found | None:
        """The cell that this cycle computes, or None."""
        for node in self.loop.nodes:
            fn = node.attrs.get("fn") if node.op == "unary" else node.attrs.get("activation")
            if fn is None or fn == "neg":
                continue
            act = activation(fn, node.attrs["alpha"], node.attrs["beta"])
            self.gates[node.outputs[0]] = Gate(act, self.sums.before(node))
        bases = self._bases()
        if not bases:
            return None
        self.trials = list(self._run(bases))
        tries = {(1, 1): self._rnn, (1, 3): self._gru, (2, 5): self._lstm, (2, 4): self._lstm}
        ways = tries.get((len(self.roots), len(self.gates)))
        for found in ways(bases) if ways else ():
            if self._agrees(found):
                return found
        return None

    def _bases(self) -> tuple[str, ...] | None:
        """The outside values that make up x: sequences multiplied by weights. None if there are others."""
        inside = {o for n in (*self.loop.nodes, *self.loop.states) for o in n.outputs}
        found = dict.fromkeys(b for gate in self.gates.values() for b in gate.sum.terms if b not in inside)
        for name in found:
            dims = self.graph.values[name].dims
            if dims[:-1] != (self.steps, self.batch) or len(dims) != 3 or not isinstance(dims[2], int):
                return None
            weights = [g.sum.terms[name] for g in self.gates.values() if name in g.sum.terms]
            if all(w is None or w.ndim == 1 for w in weights):  # summed elsewhere: products with ones only cost time
                return None
        return tuple(found)

    # -- ways to read the activations as gates --
    def _rnn(self, bases) -> Iterator[Found]:
        ((name, gate),) = self.gates.items()
        rows = self._rows(gate, bases, self.prevs[0])
        if rows is not None and name == self.roots[0]:
            W, R, b, _ = rows
            yield self._found("rnn", (gate.act,), (W, R, b, np.zeros_like(b), None), bases, self.loop.states)

    def _gru(self, bases) -> Iterator[Found]:
        prev = self.prevs[0]
        rows = {name: self._rows(gate, bases, prev) for name, gate in self.gates.items()}
        for z, r, n in permutations(self.gates):
            act = self.gates[z].act
            if rows[z] is None or rows[r] is None or rows[n] is not None or self.gates[r].act != act:
                continue
            signs = (1, -1) if act.name == "sigmoid" else (1,)  # 1 - sigmoid(a) = sigmoid(-a)
            updates = {1: lambda t, z=z, n=n: t[z] * t[prev] + (1 - t[z]) * t[n],
                       -1: lambda t, z=z, n=n: (1 - t[z]) * t[prev] + t[z] * t[n]}  # fmt: skip
            for last, after in self._candidates(self.gates[n], bases, prev):
                for z_sign in (s for s in signs if self._close(self.roots[0], updates[s])):
                    for r_sign in signs:
                        gates = [_signed(rows[z], z_sign), _signed(rows[r], r_sign), last]
                        W, R, Wb = (np.concatenate([g[k] for g in gates]) for k in range(3))
                        Rb = np.concatenate([np.zeros(2 * self.hidden), last[3]])
                        acts = (act, self.gates[n].act)
                        found = self._found("gru", acts, (W, R, Wb, Rb, None), bases, self.loop.states)
                        yield replace(found, spec=replace(found.spec, linear_before_reset=after))

    def _candidates(self, gate: Gate, bases, prev: str) -> Iterator[tuple]:
        """Ways to read n's sum as a part of x and a gated part: (W, R, Wb, Rb), whether r comes after the product."""
        gated = [b for b in gate.sum.terms if b not in bases]
        maker = self.sums.makers.get(gated[0]) if len(gated) == 1 else None
        if maker is None or maker.op != "binary" or maker.attrs["fn"] != "mul":
            return
        W = self._weights(gate.sum, bases)
        U, bias, zero = gate.sum.terms[gated[0]], gate.sum.bias, np.zeros(self.hidden)
        full = gate.sum.matrix(gated[0])
        if full is not None:
            yield (W, full.T, bias, zero), False
        for side in maker.inputs:
            inner = self.sums.of(side)
            if U is None and set(inner.terms) == {prev}:
                yield (W, inner.matrix(prev).T, bias, inner.bias), True

    def _lstm(self, bases) -> Iterator[Found]:
        coupled = len(self.gates) == 4
        for h, c in ((0, 1), (1, 0)):
            squash = [n for n, g in self.gates.items() if g.sum.terms == {self.roots[c]: None} and not g.sum.bias.any()]
            rest = [n for n in self.gates if n not in squash]
            if len(squash) != 1:
                continue
            states = (self.loop.states[h], self.loop.states[c])
            for order in permutations(rest):
                if not self._is_update(order, squash[0], h, c):
                    continue
                found = self._lstm_of(order, self.gates[squash[0]].act, bases, h, c, coupled)
                if found is not None:
                    yield self._found("lstm", *found, bases, states, input_forget=coupled)

    def _is_update(self, order, squash: str, h: int, c: int) -> bool:
        """c = f * c + i * g and h = o * act(c), with the gates in this order."""
        i, o, *f, g = order

        def cell_state(t):
            return (t[f[0]] if f else 1 - t[i]) * t[self.prevs[c]] + t[i] * t[g]

        return self._close(self.roots[h], lambda t: t[o] * t[squash]) and self._close(self.roots[c], cell_state)

    def _lstm_of(self, order, h_act: Activation, bases, h: int, c: int, coupled: bool) -> tuple | None:
        """(activations, arrays) with the gates in the order i o f c (i o c if f = 1 - i), or None."""
        gates = [self.gates[name] for name in order]
        acts = [g.act for g in gates]
        if any(a != acts[0] for a in acts[:-1]):
            return None
        sees = [self.prevs[c], self.roots[c], self.prevs[c], None]
        sees = sees[:2] + sees[3:] if coupled else sees
        rows = [self._rows(g, bases, self.prevs[h], s) for g, s in zip(gates, sees, strict=True)]
        if any(r is None for r in rows):
            return None
        if coupled:
            rows.insert(2, tuple(np.zeros_like(part) for part in rows[0]))
        W, R, b, _ = (np.concatenate([r[k] for r in rows]) for k in range(4))
        P = np.concatenate([r[3] for r in rows[:3]])
        return (acts[0], acts[-1], h_act), (W, R, b, np.zeros_like(b), P if P.any() else None)

    # -- one gate as rows of weights --
    def _rows(self, gate: Gate, bases, prev: str, sees: str | None = None) -> tuple | None:
        """(W [H, I], R [H, H], bias [H], P [H]) of a gate of x, prev and, elementwise, `sees`, or None."""
        others = set(gate.sum.terms) - {*bases, prev, sees}
        peephole = gate.sum.terms.get(sees, np.zeros(self.hidden)) if sees else np.zeros(self.hidden)
        if others or gate.sum.size != self.hidden or (peephole is not None and peephole.ndim == 2):
            return None
        R = gate.sum.matrix(prev)
        R = np.zeros((self.hidden, self.hidden)) if R is None else R.T
        P = np.ones(self.hidden) if peephole is None else peephole
        return self._weights(gate.sum, bases), R, gate.sum.bias, P

    def _weights(self, sum_: Sum, bases) -> np.ndarray:
        parts = []
        for name in bases:
            matrix = sum_.matrix(name)
            parts.append(np.zeros((self.graph.values[name].dims[2], sum_.size)) if matrix is None else matrix)
        return np.concatenate(parts).T if parts else np.zeros((sum_.size, 0))

    def _found(self, kind: str, acts, arrays, bases, states, **flags) -> Found:
        spec = CellSpec(kind, arrays[0].shape[1], self.hidden, tuple(acts), **flags)
        return Found(spec, arrays, bases, tuple(states))

    # -- the proof --
    def _run(self, bases) -> Iterator[dict]:
        """Run steps of the cycle on random values: name -> float64 [rows, ..] of inputs, gates and results."""
        ends, results = [*bases, *self.prevs], [*dict.fromkeys((*self.roots, *self.gates))]
        step = subgraph(self.graph, ends, results)
        sizes = dict.fromkeys((s for v in step.values.values() for d in v.dims for s in symbols(d)), _ROWS) | {
            "time": 1
        }
        rows = evaluate(self.batch, sizes)
        rng = np.random.default_rng(20)
        for scale in _SCALES * -(-_ROWS // max(rows, 1)):  # a cycle of one row needs several runs
            feeds = {n: scale * rng.standard_normal((1, rows, self.graph.values[n].dims[2])) for n in ends}
            made = reference.run(step, feeds, sizes=sizes)
            yield {n: a[0] for n, a in (*feeds.items(), *zip(results, made, strict=True))}

    def _close(self, name: str, formula) -> bool:
        """Whether `name` equals the formula's result in every trial."""
        return all(np.allclose(formula(t), t[name], rtol=_TOLERANCE, atol=_TOLERANCE) for t in self.trials)

    def _agrees(self, found: Found) -> bool:
        """Whether a step of the cell gives the same result as a step of the cycle."""
        for trial in self.trials:
            x = np.concatenate([trial[n] for n in found.bases], 1)
            h0, *c0 = (trial[s.outputs[0]] for s in found.states)
            y, _, c = reference.cell(found.spec, x[None], *found.arrays, h0=h0, c0=c0[0] if c0 else None)
            for mine, state in zip((y[0], c), found.states, strict=False):
                if not np.allclose(mine, trial[state.inputs[0]], rtol=_TOLERANCE, atol=_TOLERANCE):
                    return False
        return True


def _signed(rows: tuple, sign: int) -> tuple:
    return tuple(sign * part for part in rows)


def _replaced(graph: Graph, loop: Loop, found: Found) -> Graph:
    """The graph with the cell in place of the cycle; unchanged if other nodes read values that only the cycle has."""
    patch = Patch(graph)
    h, *rest = (s.inputs[0] for s in found.states)
    gone, own = {n.name for n in loop.nodes}, {s.name for s in loop.states}
    outside = {i for n in graph.nodes if n.name not in gone | own for i in n.inputs} | set(graph.outputs)
    # For c only the last step is available; for h the last step too.
    ends = {name: [n for n in graph.nodes if n.name not in gone and _is_end(graph, n, name)] for name in (h, *rest)}
    outside -= {
        c for c in rest if {n.name for n in ends[c]} >= _readers(graph, c, gone | own) and c not in graph.outputs
    }
    within = {o for n in loop.nodes for o in n.outputs} | {s.outputs[0] for s in loop.states if s.inputs[0] != h}
    if within & outside - {h}:
        return graph

    def add(text: str, dims) -> str:
        name = fresh(text, patch.values)
        patch.values[name] = Value(name, "float32", tuple(dims))
        return name

    label, nodes, inputs = fresh(loop.name, patch.labels - own), [], []
    for text, array in zip(("W", "R", "Wb", "Rb", "P"), found.arrays, strict=True):
        array = None if array is None else np.ascontiguousarray(array, np.float32)
        inputs.append(None if array is None else patch.constant(f"{label}.{text}", array))
    x = found.bases[0]
    steps, batch, hidden = graph.values[h].dims
    if len(found.bases) > 1:
        x = add(f"{label}.x", (steps, batch, found.spec.input_size))
        nodes.append(Node("concat", fresh(f"{label}.x", patch.labels), found.bases, (x,), {"axis": 2}))
    starts = [s.inputs[1] if len(s.inputs) > 1 else None for s in found.states]
    last = {name: add(f"{name}.last", (batch, hidden)) for name in ends if ends[name]}
    nodes.append(Node("cell", label, (x, *inputs, *starts, *(None,) * (2 - len(starts)), None),
                      (h, *(last.get(name) for name in (h, *rest))), {"spec": found.spec}))  # fmt: skip
    for name in last:
        for n in ends[name]:
            patch.replace(n, Node("reshape", n.name, (last[name],), n.outputs, {"dims": (1, batch, hidden)}))
    for node in loop.nodes:
        patch.replace(node)
    # A state with other readers stays, as a delay of the cell's output. It is renamed to free the name for the cell.
    for state in loop.states:
        keep = state.outputs[0] in outside and state.inputs[0] == h
        patch.replace(state, *([replace(state, name=fresh(f"{state.name}.delay", patch.labels))] if keep else []))
    done = patch.done(f"rolled the cycle of {loop.name} up into one {found.spec.kind} cell")
    return done.replace(nodes=tuple(_flat(done.replace(nodes=(*nodes, *done.nodes)))))


def _is_end(graph: Graph, node: Node, name: str) -> bool:
    """Whether the node takes the last step of the value `name`."""
    a = node.attrs
    if node.op != "slice" or node.inputs[0] != name or graph.values[name].dims[0] != TIME:
        return False
    return (a["axis"], a["start"], a["stop"], a["step"]) == (0, TIME - 1, TIME, 1)


def _readers(graph: Graph, name: str, gone: set[str]) -> set[str]:
    return {n.name for n in graph.nodes if name in n.inputs and n.name not in gone}


def _flat(graph: Graph) -> Iterator[Node]:
    """The nodes in an order in which each comes after what it reads."""
    for item in schedule(graph, mixed=True):
        yield from (*item.states, *item.nodes) if isinstance(item, Loop) else (item,)
