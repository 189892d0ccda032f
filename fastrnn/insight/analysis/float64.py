"""A graph in float64, chunk by chunk: the meaning of reference.py, with carried cell states.

reference.py runs whole sequences. A hundred thousand steps would need gigabytes, and half a minute per cell. Here a
chunk goes through its nodes at once. A cell's input half is one product per chunk, and only the rest of a step is in
the loop. Callers check the result against reference.py with `chunkable` first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ...graph import Graph, Node, reference
from ...graph import dims as D
from ...graph.cells import CellSpec
from ...graph.loops import Loop, schedule
from ..formats import widened
from .runner import Arrays, Runner

MOST_WHOLE = 2048  # steps in one run: attention over all of them takes quadratic memory


class Float64:
    """One stream of a graph in float64.

    timed : the graph has a time axis. Then chunks are correct if every other op works step by step (`chunkable`).
    """

    def __init__(self, graph: Graph):
        graph = widened(graph)  # weights of reduced precision, to 24 bits; nothing else is rounded
        self.graph = graph
        self.timed = any("time" in D.symbols(d) for n in graph.inputs for d in graph.values[n].dims)
        self.states: dict[str, tuple] = {}
        self.carried: dict[str, np.ndarray] = {}  # for a graph without a time axis: states that a caller would thread
        self.kept: dict[str, np.ndarray] = {}  # outputs of `state` nodes at the next step
        self.loops = any(node.op == "state" for node in graph.nodes)  # then steps go one by one
        self.constants = {n: np.asarray(a, reference.WIDE[graph.values[n].dtype]) for n, a in graph.constants.items()}
        self.order = list(schedule(graph))

    def push(self, chunk: Arrays, runner: Runner) -> list[np.ndarray]:
        """The outputs of the runner for a chunk [1, T, ...] of each input, [1, T, ...] float64."""
        if not self.timed:
            return self._stepped(chunk, runner)
        steps = runner.steps_of(chunk)
        if self.loops and steps > 1:
            parts = [self.push(runner.cut(chunk, t, t + 1), runner) for t in range(steps)]
            return [
                np.concatenate(ys, axis=1) if o.timed else ys[-1]
                for o, ys in zip(runner.outputs, zip(*parts, strict=True), strict=True)
            ]
        sizes = {"batch": 1, "time": steps}
        known = {a.name: runner._into_file(a, chunk[a.name]) for a in runner.inputs}
        known = {n: v.astype(reference.WIDE[self.graph.values[n].dtype]) for n, v in known.items()}
        for name in self.graph.states:
            value = self.graph.values[name]
            known[name] = np.zeros([D.evaluate(d, sizes) for d in value.dims], reference.WIDE[value.dtype])
        self._run(known, sizes)
        return [runner._out_of_file(o, known[o.name]) for o in runner.outputs]

    def _stepped(self, chunk: Arrays, runner: Runner) -> list[np.ndarray]:
        """A graph without a time axis is itself one step."""
        graph, rows, sizes = self.graph, [], {"batch": 1, "time": 1}
        if not self.carried:
            for name in graph.states:
                value = graph.values[name]
                shape = [D.evaluate(d, sizes) for d in value.dims]
                self.carried[name] = np.zeros(shape, reference.WIDE[value.dtype])
        for t in range(runner.steps_of(chunk)):
            known = {
                a.name: chunk[a.name][:, t]
                .reshape([d if isinstance(d, int) else 1 for d in a.file_dims])
                .astype(reference.WIDE[graph.values[a.name].dtype])
                for a in runner.inputs
            }
            known |= self.carried
            self._run(known, sizes)
            self.carried = {name: known[after] for name, after in graph.states.items()}
            rows.append([known[o.name].reshape(1, 1, *o.features) for o in runner.outputs])
        return [np.concatenate(parts, axis=1) for parts in zip(*rows, strict=True)]

    def _run(self, known: dict, sizes: dict[str, int]) -> None:
        """Compute every node once. `known` holds the inputs, and afterwards all values."""
        known |= self.constants

        def size(dim):
            return D.evaluate(dim, sizes)

        with np.errstate(all="ignore"):
            for item in self.order:
                if isinstance(item, Loop):
                    self._loop(item, known, size)
                elif item.op == "cell":
                    self._cell(item, known)
                else:
                    reference.run_node(self.graph, item, known, size)

    def _loop(self, loop: Loop, known: dict, size) -> None:
        """One step of a cycle."""
        for node in loop.states:
            value = self.graph.values[node.outputs[0]]
            start = known[node.inputs[1]] if len(node.inputs) > 1 and node.inputs[1] is not None else None
            if start is None:
                start = np.zeros([size(d) for d in value.dims], reference.WIDE[value.dtype])
            known[node.outputs[0]] = self.kept.get(node.name, start)
        for node in loop.nodes:
            reference.run_node(self.graph, node, known, size)
        for node in loop.states:
            self.kept[node.name] = known[node.inputs[0]]

    def _cell(self, node: Node, known: dict) -> None:
        given = [None if n is None else known[n] for n in node.inputs]
        given += [None] * (10 - len(given))
        x, W, R, Wb, Rb, P, h0, c0, lengths, mask = given
        spec = node.attrs["spec"]
        over_time = "time" in D.symbols(self.graph.values[str(node.inputs[0])].dims[0])  # or over its own axis
        carried = over_time and not spec.reverse and lengths is None
        if carried:
            h0, c0 = self.states.get(node.name, (h0, c0))
        if lengths is not None or mask is not None or (spec.reverse and over_time):
            y, h, c = reference.cell(spec, x, W, R, Wb, Rb, P, h0, c0, lengths, mask)
        else:
            turn = slice(None, None, -1 if spec.reverse else 1)
            y, h, c = cell(spec, x[turn], W, R, Wb, Rb, P, h0, c0)
            y = y[turn]
        if carried:
            self.states[node.name] = (h, c)
        for name, value in zip(node.outputs, (y, h, c), strict=False):
            if name is not None:
                known[name] = value


def cell(spec: CellSpec, x, W, R, Wb=None, Rb=None, P=None, h0=None, c0=None):
    """`reference.cell` without lengths, always forward: x float64 [T, B, I] -> y [T, B, H], h_n, c_n."""
    T, B, _ = x.shape
    H, G = spec.hidden_size, spec.gates
    zeros = np.zeros(G * H)
    Wb, Rb = zeros if Wb is None else Wb, zeros if Rb is None else Rb
    h = np.zeros((B, H)) if h0 is None else np.array(h0, np.float64)
    c = np.zeros((B, H)) if c0 is None else np.array(c0, np.float64)
    Rt, y = np.ascontiguousarray(R.T), np.empty((T, B, H))
    if spec.kind != "gru" and P is None:  # the biases add up, and all gates are one product
        pre, acts = x @ W.T + (Wb + Rb), _activations(spec)
        for t in range(T):
            a = pre[t] + h @ Rt
            if spec.kind == "rnn":
                h = acts[0](a)
            else:
                gates = acts[0](a[:, : 3 * H])
                i, o = gates[:, :H], gates[:, H : 2 * H]
                f = 1 - i if spec.input_forget else gates[:, 2 * H :]
                c = f * c + i * acts[1](a[:, 3 * H :])
                h = o * acts[2](c)
            y[t] = h
        return y, h, c
    if spec.kind == "gru" and spec.linear_before_reset:
        pre = x @ W.T + Wb
        pre[:, :, : 2 * H] += Rb[: 2 * H]
        gate, new = _activations(spec)
        for t in range(T):
            a = h @ Rt
            gates = gate(pre[t, :, : 2 * H] + a[:, : 2 * H])
            z, r = gates[:, :H], gates[:, H:]
            n = new(pre[t, :, 2 * H :] + r * (a[:, 2 * H :] + Rb[2 * H :]))
            h = n + z * (h - n)
            y[t] = h
        return y, h, c
    return reference.cell(replace(spec, reverse=False), x, W, R, Wb, Rb, P, h, c)


def _activations(spec: CellSpec) -> list[Callable]:
    """The functions of the reference, the usual ones in few sweeps: on a few hundred numbers, calls dominate."""
    if spec.clip is not None:
        return reference.activations_of(spec)
    usual = {"tanh": np.tanh, "sigmoid": lambda v: 0.5 * np.tanh(0.5 * v) + 0.5}
    exact = reference.activations_of(spec)
    return [usual.get(act.name, fn) for act, fn in zip(spec.activations, exact, strict=True)]


class Whole:
    """A graph whose ops look beyond their own step: reference.py runs the first steps at once, `push` hands them out.

    Half of the available time is used to find out how many steps fit in the other half, at most MOST_WHOLE.
    """

    def __init__(self, runner: Runner, steps: int, seconds: float, data: Callable[[int, int], Arrays]):
        self.runner, self.data, self.at, self.steps = runner, data, 0, 0
        size, first = min(8, steps), time.monotonic()
        while True:
            begin = time.monotonic()
            self.outputs, self.steps = self._run(size), size
            took, left = time.monotonic() - begin, seconds - (time.monotonic() - first)
            if size >= min(steps, MOST_WHOLE) or 5 * took > left:  # twice the steps may take four times as long
                return
            size = min(2 * size, steps, MOST_WHOLE)

    def _run(self, steps: int) -> list[np.ndarray]:
        graph, runner, sizes = self.runner.model.graph, self.runner, {"batch": 1, "time": steps}
        x = self.data(0, steps)
        feeds = {a.name: runner._into_file(a, x[a.name]) for a in runner.inputs}
        for name in graph.states:
            feeds[name] = np.zeros([D.evaluate(d, sizes) for d in graph.values[name].dims])
        found = dict(zip(graph.outputs, reference.run(graph, feeds, sizes=sizes), strict=True))
        return [runner._out_of_file(o, found[o.name]) for o in runner.outputs]

    def push(self, chunk: Arrays, runner: Runner) -> list[np.ndarray]:
        """The next steps, as many as the chunk has; for an output without steps, its value after all of them."""
        first, self.at = self.at, self.at + runner.steps_of(chunk)
        return [y[:, first : self.at] if o.timed else y for o, y in zip(runner.outputs, self.outputs, strict=True)]


def chunkable(runner: Runner, x: Arrays, steps: int = 12) -> bool:
    """Whether two chunks of the data yield the same as one run of reference.py over all of it."""
    x = runner.cut(x, 0, min(steps, runner.steps_of(x)))
    T = runner.steps_of(x)
    exact = Float64(runner.model.graph)
    graph = exact.graph
    feeds = {a.name: runner._into_file(a, x[a.name]) for a in runner.inputs}
    sizes = {"batch": 1, "time": T}
    for name in graph.states:
        value = graph.values[name]
        feeds[name] = np.zeros([D.evaluate(d, sizes) for d in value.dims])
    whole = dict(zip(graph.outputs, reference.run(graph, feeds, sizes=sizes), strict=True))
    try:
        parts = [exact.push(runner.cut(x, a, b), runner) for a, b in ((0, T // 2), (T // 2, T))]
    except (ValueError, IndexError, KeyError, FloatingPointError):
        return False
    for i, o in enumerate(runner.outputs):
        if not o.timed:
            continue
        got = np.concatenate([p[i] for p in parts], axis=1)
        want = runner._out_of_file(o, whole[o.name])
        if got.shape != want.shape or not np.allclose(got, want, rtol=1e-9, atol=1e-12):
            return False
    return True
