"""The float64 reference: evaluates a graph by the meanings of its ops (fastrnn.graph.ops). The oracle of the tests.

    run(graph, feeds)            the whole graph, at any length
    cell(spec, x, W, R, ...)     one direction of one recurrent layer
    StreamReference(graph)       what a stream must answer, step by step
    unary(fn, x, alpha, beta), binary(fn, a, b)     the elementwise functions

Reals are always float64, whatever the graph declares. Integers are of the declared type.
float32 weights are converted exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import ShapeError, StreamError
from . import dims as D
from .loops import Loop, schedule
from .ops.elementwise import binary, unary
from .ops.recurrence import activations_of, cell
from .types import WIDE, Graph, Node, Value
from .validation import check_required
from .vocabulary import ROWS

__all__ = ["WIDE", "StreamReference", "activations_of", "binary", "bind_sizes", "cell", "run", "run_node", "unary"]


def run(graph: Graph, feeds: Mapping[str, np.ndarray], *, sizes: Mapping[str, int] | None = None) -> list[np.ndarray]:
    """Evaluate a graph.

    Parameters
    ----------
    graph : a valid Graph
    feeds : input name -> array of the declared dims; integers for declared integers, bools for declared bools
    sizes : values of symbols that the inputs' shapes don't determine

    A `state` node starts from its initial value.

    Returns
    -------
    One array per output, in the graph's order: float64, bool or the declared integer type; new, or views of the feeds
    and constants.

    Raises
    ------
    ShapeError with the input, axis, actual and expected size; or with the node whose sizes do not fit.
    """
    env = bind_sizes(graph, feeds, sizes)

    def size(dim):
        return D.evaluate(dim, env)

    known = {name: _wide(graph.values[name], array) for name, array in graph.constants.items()}
    known |= {name: _wide(graph.values[name], feeds[name]) for name in graph.inputs}
    with np.errstate(all="ignore"):
        for item in schedule(graph):
            if isinstance(item, Loop):
                _run_loop(graph, item, known, size)
            else:
                run_node(graph, item, known, size)
    return [known[name] for name in graph.outputs]


def bind_sizes(graph: Graph, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Symbol -> size, solved from the shapes of the feeds. Then every axis is checked against its dim.

    Raises ShapeError for an axis that contradicts, a missing or unknown input, and a dim that can't be solved.
    """
    unknown = sorted(set(feeds) - set(graph.inputs))
    missing = [name for name in graph.inputs if name not in feeds]
    if unknown or missing:
        what = f"no input is named {unknown[0]!r}" if unknown else f"the input {missing[0]!r} is missing"
        raise ShapeError(f"{graph.name}: {what}; inputs are {', '.join(graph.inputs)}")
    env = dict(sizes or {})
    axes = []
    for name in graph.inputs:
        value, shape = graph.values[name], np.shape(feeds[name])
        if len(shape) != len(value.dims):
            raise ShapeError(f"input {name}: got {len(shape)} axes {list(shape)}, expected {value}")
        axes += [(value, axis, dim, got) for axis, (dim, got) in enumerate(zip(value.dims, shape, strict=True))]
    while any(_solve(dim, got, env) for _, _, dim, got in axes):
        pass  # solving one axis may leave another axis with a single unknown
    for value, axis, dim, got in axes:
        expected = D.substitute(dim, env)
        if isinstance(expected, D.Dim):
            raise ShapeError(f"input {value.name}, axis {axis}: can't tell {dim} from the size {got}; give sizes=")
        if got != expected:
            text = f"{dim} = {expected}" if isinstance(dim, D.Dim) else f"{expected}"
            raise ShapeError(f"input {value.name}, axis {axis}: got {got}, expected {text} ({value})")
    check_required(graph, env)
    return env


def _solve(dim, got: int, env: dict[str, int]) -> bool:
    """Bind the one unknown symbol of a dim a*s + b (a, b ints; solution a whole number >= 0). True on success."""
    dim = D.substitute(dim, env)
    names = D.symbols(dim)
    if len(names) != 1:
        return False
    (name,) = names
    if not set(dim.terms) <= {(name,), ()}:
        return False
    solution, rest = divmod(got - dim.terms.get((), 0), dim.terms[(name,)])
    if rest or solution < 0:
        raise ShapeError(f"a size of {got} is not {dim} for any {name}")
    env[name] = solution
    return True


def _wide(value: Value, array) -> np.ndarray:
    """The fed array in the dtype of the computation; ShapeError if its kind is not the declared one."""
    array = np.asarray(array)
    allowed = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}[np.dtype(WIDE[value.dtype]).kind]
    if array.dtype.kind not in allowed:
        raise ShapeError(f"input {value.name}: got {array.dtype}, expected {value.dtype}")
    return array.astype(WIDE[value.dtype])


def _run_loop(graph: Graph, loop: Loop, known: dict[str, np.ndarray], size) -> None:
    """Add all values of a cycle to `known`: a definition, not a method, so quadratic in the number of steps.

    If the states are right up to step t before a sweep over whole sequences, they are right up to t + 1 after it,
    because no node mixes steps. So as many sweeps as there are steps make all of them right.
    """
    steps = 0
    for node in loop.states:
        value = graph.values[node.outputs[0]]
        prev = known[node.outputs[0]] = np.zeros([size(d) for d in value.dims], WIDE[value.dtype])
        steps = max(steps, len(prev))
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            prev[:1] = known[node.inputs[1]]
    for _ in range(max(steps, 1)):  # at least once: values without steps are made too
        for node in loop.nodes:
            run_node(graph, node, known, size)
        for node in loop.states:
            known[node.outputs[0]][1:] = known[node.inputs[0]][:-1]


def run_node(graph: Graph, node: Node, known: dict[str, np.ndarray], size) -> None:
    """Add the node's outputs to `known`."""
    try:
        results = ROWS[node.op].compute([None if i is None else known[i] for i in node.inputs], node.attrs, size)
    except (ShapeError, ValueError) as error:
        raise ShapeError(f"node {node.name} ({node.op}): {error}") from None
    for name, result in zip(node.outputs, results, strict=False):
        if name is None:
            continue
        value = graph.values[name]
        known[name] = np.asarray(result, WIDE[value.dtype])
        expected = tuple(size(d) for d in value.dims)
        if known[name].shape != expected:
            raise ShapeError(f"node {node.name} ({node.op}): made {list(known[name].shape)}, expected {list(expected)}")


class StreamReference:
    """What a stream of a graph must return: a definition, not a method, so quadratic in the number of steps.

    A graph whose inputs have a TIME axis is run on everything fed so far. For an output with a TIME axis, a step
    returns the newest step; for another output, its value as if the sequence ended here. A graph without TIME is
    itself one step: it carries the inputs that `graph.states` pairs with outputs.

    Parameters
    ----------
    graph : a valid Graph whose TIME axes are exactly `time` long
    initial : values of the inputs that `graph.states` names; zeros if absent
    sizes : symbols that feeds don't determine, and those of zero initial states
    """

    def __init__(self, graph: Graph, *, initial: Mapping[str, np.ndarray] | None = None, sizes=None):
        for node in graph.nodes:
            if node.op == "cell" and node.attrs["spec"].reverse:
                raise StreamError(f"node {node.name}: a reverse {node.attrs['spec'].kind} needs the whole sequence")
        self.graph, self.sizes = graph, dict(sizes or {})
        self.carried = dict(initial or {})
        self.seen: dict[str, np.ndarray] = {}
        self.time_axis = {
            name: graph.values[name].dims.index(D.TIME)
            for name in (*graph.inputs, *graph.outputs)
            if D.TIME in graph.values[name].dims
        }
        self.timed = any(name in self.time_axis for name in graph.inputs)

    def step(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """One step: each input without its TIME axis; returns the outputs without theirs."""
        if not self.timed:
            return self._step_function(feeds)
        axes = self.time_axis
        answers = self.push({n: np.expand_dims(a, axes[n]) if n in axes else a for n, a in feeds.items()})
        return [np.squeeze(y, axes[n]) if n in axes else y for n, y in zip(self.graph.outputs, answers, strict=True)]

    def push(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """A chunk: inputs with their TIME axis, n steps long, n >= 0; returns the outputs' newest n steps."""
        if not self.timed:
            raise StreamError(f"{self.graph.name}: it has no time axis to push along; use step")
        steps = 0
        for name, array in feeds.items():
            if name in self.time_axis:
                axis = self.time_axis[name]
                steps = np.shape(array)[axis]
                array = np.concatenate([self.seen[name], array], axis) if name in self.seen else array
            self.seen[name] = np.asarray(array)
        outputs = run(self.graph, {**self._threaded(self.seen), **self.seen}, sizes=self.sizes)
        newest = []
        for name, y in zip(self.graph.outputs, outputs, strict=True):
            if name in self.time_axis:
                axis = self.time_axis[name]
                y = np.take(y, np.arange(y.shape[axis] - steps, y.shape[axis]), axis)
            newest.append(y)
        return newest

    def _step_function(self, feeds) -> list[np.ndarray]:
        feeds = {**self._threaded(feeds), **feeds}
        outputs = run(self.graph, feeds, sizes=self.sizes)
        answers = dict(zip(self.graph.outputs, outputs, strict=True))
        self.carried = {name: answers[after] for name, after in self.graph.states.items()}
        return outputs

    def _threaded(self, feeds) -> dict[str, np.ndarray]:
        """The state inputs that the caller does not feed: carried values, or zeros."""
        values = {}
        for name in self.graph.states:
            if name not in feeds:
                value = self.graph.values[name]
                zeros = np.zeros([D.evaluate(d, self._sizes_of(feeds)) for d in value.dims], WIDE[value.dtype])
                values[name] = self.carried.get(name, zeros)
        return values

    def _sizes_of(self, feeds) -> dict[str, int]:
        env = dict(self.sizes)
        axes = [
            (d, n) for name, a in feeds.items() for d, n in zip(self.graph.values[name].dims, np.shape(a), strict=True)
        ]
        while any(_solve(dim, got, env) for dim, got in axes):
            pass
        return env
