"""Model: the facade, made by `loading.py`. Immutable, shared by threads; what changes lives in `Stream` and scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import passes
from .errors import ModelFormatError, ShapeError, claims_too_much, memory_for, out_of_memory
from .graph import DTYPES, Graph, artifact, traverse
from .graph import dims as D
from .graph.casts import as_dtype
from .machine import threadpools
from .machine.cpu import MAX_THREADS, thread_info
from .runtime._meter import merged
from .runtime.arguments import solve_sizes, whole_number
from .runtime.compiled import Compiled
from .runtime.states import POSITION
from .serving.pool import PacedPool, StreamPool
from .serving.stream import PacedStream, Stream
from .streaming.follow import follow

MOST_STREAMS = 1 << 24  # in lock-step; more is a typing error
KEPT_SHAPES = 64  # of inputs, whose sizes are known: solving them takes 10 us


@dataclass(frozen=True)
class TensorInfo:
    """An input, output or state. dims: ints, "batch", "time", or text such as "2*time+1"."""

    name: str
    dtype: str
    dims: tuple

    def __str__(self):
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class LayerInfo:
    """A node that holds parameters. bytes: as the file holds them."""

    name: str
    kind: str
    text: str
    parameters: int
    bytes: int


def _info(value) -> TensorInfo:
    return TensorInfo(value.name, value.dtype, tuple(d if isinstance(d, int) else str(d) for d in value.dims))


class Model(Compiled):
    """A loaded model. Make one with `fastrnn.load` or a `fastrnn.from_...` function.

    All methods may be called from several threads at once. A model computes in float32.

    Attributes
    ----------
    name : str
    graph : fastrnn.graph.Graph, after all passes
    inputs, outputs, states : tuples of `TensorInfo`, in the file's order; states are what a stream keeps
    fingerprint : hex text that changes with any weight or node
    """

    def __init__(self, graph: Graph, threads: int | None = None):
        threads = thread_info().count if threads is None else whole_number(threads, "threads", MAX_THREADS)
        threadpools.note(threads)
        super().__init__(passes.run(graph), threads)
        self._ends = tuple(self.graph.values[n] for n in self.graph.outputs)
        self._sizes: dict[tuple, tuple] = {}  # shapes of the inputs -> `_sizes_of` them
        self._inputs = tuple(_info(self.graph.values[n]) for n in self.graph.inputs)
        self._outputs = tuple(_info(self.graph.values[n]) for n in self.graph.outputs)

    # -- description --
    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The file's inputs, in its order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The file's outputs, in its order."""
        return self._outputs

    @property
    def states(self) -> tuple[TensorInfo, ...]:
        """What a stream keeps between steps; empty if the model can't be streamed."""
        if self._problems:
            return ()
        if self._open_sizes:  # what a stream keeps besides, such as a cell's own state, is known with the sizes
            return tuple(_info(self.graph.values[n]) for n in self.graph.states)
        shown = self._stream_layout().shown
        found = [TensorInfo(s.name, s.dtype, tuple(map(_plain, s.dims))) for s in shown]
        if not self._timetable.plain:
            found.append(TensorInfo(POSITION, "int64", ()))
        return tuple(found)

    @property
    def notes(self) -> tuple[str, ...]:
        """What import and passes did, one line each: sizes that were freed or kept, what was assumed or folded."""
        return self.graph.notes

    @property
    def parameters(self) -> int:
        """How many numbers the model was trained with (its constants that are not indices)."""
        return sum(a.size for a in self.graph.constants.values() if a.dtype.kind == "f")

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """Nodes with parameters, in order."""
        found = []
        for node in self.graph.nodes:
            arrays = [self.graph.constants[i] for i in node.inputs if i is not None and i in self.graph.constants]
            count = sum(a.size for a in arrays if a.dtype.kind == "f")
            if count:
                kind, text = _describe(node, arrays[0].shape)
                found.append(LayerInfo(node.name, kind, text, count, sum(a.nbytes for a in arrays)))
        return tuple(found)

    @property
    def memory_bytes(self) -> int:
        """Bytes that this model holds: constants, packed weights, and the scratch kept for reuse. If it leaves sizes
        open, also those of the sizes that it was run with."""
        models = [self, *self._fixed.values()]
        constants = {id(a): a.nbytes for m in models for a in m.graph.constants.values()}  # the most are shared
        packed = sum(m._weights.nbytes for m in models)
        scratch = sum(p.scratch_bytes for m in models for p in list(m._programs.values()))
        return sum(constants.values()) + packed + scratch

    def stats(self) -> dict[str, Any]:
        """What the model's calls cost so far, JSON-able; counted without locks.

        Returns
        -------
        dict: `memory_bytes`; `run` (calls of `run`) and `stream` (calls by streams and pools), each with `calls`,
        `rows`, `steps`, and of every 64th call the histograms `seconds` and `batch_size` as in `StreamPool.stats`. A
        chunk of many steps is one call, or several if the rows end at different steps.
        """
        programs = [item for m in (self, *self._fixed.values()) for item in list(m._programs.items())]
        runs = [program.meter for (mode, _), program in programs if mode == "run"]
        streams = [program.meter for (mode, _), program in programs if mode != "run"]
        return {
            "memory_bytes": self.memory_bytes,
            "run": merged(runs).as_dict(),
            "stream": merged(streams).as_dict(),
        }

    @property
    def streamable(self) -> bool:
        """Whether the model can be run one step at a time; if not, `stream()` says which node needs the future."""
        return not self._problems

    def __repr__(self):
        ins, outs = (", ".join(map(str, side)) for side in (self.inputs, self.outputs))
        return f"<Model {self.name}: {ins} -> {outs}>"

    # -- whole sequences --
    def run(self, /, *arrays, lengths: Sequence[int] | None = None, **named) -> tuple[np.ndarray, ...]:
        """Whole sequences: the file's own inputs and outputs, in its own axis order.

        Parameters
        ----------
        *arrays, **named : the inputs, by position in the file's order and by name
            Arrays or tensors of the dtype in `inputs`, or of one whose values all fit it exactly (float16 into
            float32); or numbers and lists of numbers that fit.
        lengths : ints, one per row of the batch, optional
            Row i ends after lengths[i] steps: its outputs are those of a run of that row alone, cut to that length, and
            zero from there on. A file's own input of this name is that input.

        Returns
        -------
        tuple of arrays, one per output; new memory.

        Raises
        ------
        ShapeError : a missing or unknown input, a wrong dtype or shape, a number that does not fit the dtype, a length
            outside 0..time.
        """
        return self._run_named(arrays, named, lengths)

    def _run_named(self, arrays: tuple, named: dict, lengths) -> tuple[np.ndarray, ...]:
        if lengths is not None and "lengths" in self.graph.inputs:
            named, lengths = {**named, "lengths": lengths}, None
        feeds = self._collect(arrays, named)
        return self._run(feeds) if lengths is None else self._run_ragged(feeds, lengths)

    def __call__(self, /, *arrays, lengths=None, **named):
        """`run` without the states that a caller would thread: they start at zero (or as the file says).

        Returns one array for a model with one output that isn't a state, else a tuple.
        """
        given = list(arrays)
        plain = [n for n in self.graph.inputs if n not in self.graph.states]
        if len(given) > len(plain):
            raise ShapeError(f"{self.name} takes {len(plain)} inputs besides its states, got {len(given)}")
        named = dict(zip(plain, given, strict=False)) | named
        missing = [n for n in self.graph.states if n not in named]
        if missing:
            known = [n for n in self.graph.inputs if n in named]
            typed = [as_dtype(named[n], self.graph.values[n].dtype, f"input {n}") for n in known]
            sizes = solve_sizes([self.graph.values[n] for n in known], typed, self.graph.held)
            for name in missing:
                value = self.graph.values[name]
                named[name] = np.zeros(_shape(value, sizes), DTYPES[value.dtype])
        found, wanted = self._run_named((), named, lengths), traverse.results(self.graph)
        kept = [r for n, r in zip(self.graph.outputs, found, strict=True) if n in wanted]
        return kept[0] if len(kept) == 1 else tuple(kept)

    def _collect(self, arrays: tuple, named: dict) -> list[np.ndarray]:
        names = list(self.graph.inputs)
        if any(isinstance(array, Mapping) for array in arrays):
            raise ShapeError(f"{self.name} takes arrays, by position or by name, and got a dict: pass run(**feeds)")
        if len(arrays) > len(names):
            raise ShapeError(f"{self.name} takes {len(names)} inputs {names}, got {len(arrays)}")
        feeds = dict(zip(names, arrays, strict=False))
        for name, array in named.items():
            if name not in names:
                raise ShapeError(f"{self.name} has no input {name!r}; its inputs are {names}")
            if name in feeds:
                raise ShapeError(f"input {name} is given twice")
            feeds[name] = array
        missing = [n for n in names if n not in feeds]
        if missing:
            raise ShapeError(f"{self.name}: input {', '.join(missing)} is missing")
        return [as_dtype(feeds[n], self.graph.values[n].dtype, f"input {n}") for n in names]

    def _run(self, feeds: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        shapes = tuple(a.shape for a in feeds)
        known = self._sizes.get(shapes)
        if known is None:
            known = self._sizes_of(feeds)
            if len(self._sizes) >= KEPT_SHAPES:  # no order worth keeping: a service has few shapes, or all of them
                self._sizes.clear()
            self._sizes[shapes] = known
        sizes, out_shapes = known
        if self._open_sizes:
            return self._with_sizes(sizes)._run(feeds)
        try:
            outputs = tuple(_empty(value, shape) for value, shape in zip(self._ends, out_shapes, strict=True))
            self._program("run").run(feeds, outputs, sizes["batch"], sizes["time"])
        except MemoryError as error:
            at = f"batch {sizes['batch']} and time {sizes['time']}"
            raise out_of_memory(error, f"run of {self.name} with {at}") from None
        return outputs

    def _sizes_of(self, feeds: list[np.ndarray]) -> tuple[dict[str, int], list[list[int]]]:
        """The sizes that these inputs mean, and the shapes of the outputs at them ([] if sizes are left open)."""
        values = [self.graph.values[n] for n in self.graph.inputs]
        sizes = {"batch": 1, "time": 1} | solve_sizes(values, feeds, self.graph.held)
        if self._open_sizes:
            return sizes, []
        self._program("run").plan.check_sizes(sizes["batch"], sizes["time"])  # names the node
        return sizes, [_shape(value, sizes) for value in self._ends]

    def _run_ragged(self, feeds: list[np.ndarray], lengths) -> tuple[np.ndarray, ...]:
        """Rows of one length are run together: bits don't depend on neighbours, so each row's are those of it alone."""
        values = [self.graph.values[n] for n in self.graph.inputs]
        sizes = solve_sizes(values, feeds, self.graph.held)
        if "batch" not in sizes or "time" not in sizes:
            raise ShapeError(f"{self.name} has no batch and time axes: lengths don't apply")
        mixed = follow(self.graph, "batch").problems
        if mixed:
            raise ShapeError(f"{self.name}: lengths don't apply where rows of a batch meet: " + "; ".join(mixed))
        lengths = np.asarray(lengths)
        if lengths.shape != (sizes["batch"],) or lengths.dtype.kind not in "iu":
            raise ShapeError(
                f"lengths must be {sizes['batch']} ints, one a row, got {lengths.dtype}{list(lengths.shape)}"
            )
        if lengths.size and not (0 <= lengths.min() and lengths.max() <= sizes["time"]):
            raise ShapeError(f"lengths must lie in 0..{sizes['time']}, got {lengths.min()}..{lengths.max()}")
        outs = [self.graph.values[n] for n in self.graph.outputs]
        results: list[np.ndarray] = [np.zeros(_shape(v, sizes), DTYPES[v.dtype]) for v in outs]
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            part = [_cut(a, v, rows, int(length)) for a, v in zip(feeds, values, strict=True)]
            try:
                pieces = self._run(part)
            except ShapeError as error:
                raise ShapeError(f"row {rows[0]}, of length {length}: {error}") from None
            for whole, value, piece in zip(results, outs, pieces, strict=True):
                if any(p > w for p, w in zip(piece.shape, whole.shape, strict=True)):  # a pad up to a fixed length
                    text = f"of length {length} is {list(piece.shape)}, which is no part of {list(whole.shape)}"
                    raise ShapeError(f"output {value}: that of rows {text}; shorter rows give more")
                whole[_index(value, rows, int(length), piece.shape)] = piece
        return tuple(results)

    # -- streams --
    def stream(
        self,
        batch_size: int | None = None,
        *,
        bind: Mapping | None = None,
        context: int | None = None,
        at_context: str = "error",
    ) -> Stream:
        """A live stream; with batch_size, that many in lock-step.

        If the model leaves a size open (samples per step), the stream's first step fixes it.

        Parameters
        ----------
        batch_size : int, optional
        bind : dict, optional
            Input name -> value of all steps: an encoder's output, a speaker, a setting. Steps don't pass these inputs.
            A value is [features...], for every row of a batch too, or one per row. The stream keeps a copy. It is not
            part of its state or of snapshots: `restore` into a stream with the same values.
        context : int, optional
            How many steps causal attention looks back on, the current one included; keys and values of that many are
            kept. None: 1,024 if attention sees all earlier steps. Models without attention over time refuse it.
        at_context : "error" or "window"
            What happens at step context + 1: a StreamError that leaves the stream as it is, or the oldest step is
            dropped, as if the model's mask were a band of that width.

        Raises
        ------
        StreamError : the model can't be streamed; the text names each node and why. A context that
            has nothing to bound. ShapeError : bind does not fit.
        """
        horizon = self._context(context, at_context)
        if batch_size is not None:
            batch_size = whole_number(batch_size, "batch_size", MOST_STREAMS)
        bound = self._bound(bind) or None
        parts = self._stream_parts(batch_size, horizon, bound)
        return (Stream if self._timetable.plain else PacedStream)(self, parts, bound)

    def pool(
        self,
        capacity: int = 1024,
        *,
        bind: Mapping | None = None,
        context: int | None = None,
        at_context: str = "error",
    ) -> StreamPool:
        """A pool of independent streams, each with a slot, stepped together in any subset and order.

        Parameters
        ----------
        capacity : how many streams there is room for; memory is taken as they are opened
        bind : as of `stream`, one value for all streams of the pool. What differs from slot to slot is an input of
            each step.
        context, at_context : as of `stream`, for each of its streams

        Raises
        ------
        StreamError : the model can't be streamed; the text names each node and why. A context as in `stream`.
        ShapeError : capacity is not an int in 1..2^24. StateError : there is not enough memory.
        """
        horizon = self._context(context, at_context)
        kind = StreamPool if self._timetable.plain else PacedPool
        return kind(self, capacity, horizon, self._bound(bind) or None)

    # -- files --
    def save(self, path) -> None:
        """Write the model as one .fastrnn file; loading it gives the same bits. The write is atomic.

        Raises
        ------
        ModelFormatError : another suffix, by which `load` would not know the file again.
        """
        if Path(path).suffix.lower() != ".fastrnn":
            raise ModelFormatError(f"save writes .fastrnn files, got {path}")
        with memory_for(f"save {path}"):
            artifact.save(self.graph, path)

    def __reduce__(self):
        return _unpickled, (artifact.to_bytes(self.graph), self.threads)

    def __copy__(self) -> Model:
        return self  # immutable

    def __deepcopy__(self, memo) -> Model:
        return self


def _unpickled(blob: bytes, threads: int) -> Model:
    return Model(artifact.load(blob), threads)


def _plain(dim):
    return dim if isinstance(dim, int) else str(dim)


def _describe(node, weights: tuple) -> tuple[str, str]:
    """The kind of a layer, and in a few words which; weights: the shape of its first constant."""
    if node.op == "cell":
        spec = node.attrs["spec"]
        return spec.kind, f"{spec.input_size} -> {spec.hidden_size}" + (" reverse" if spec.reverse else "")
    if node.op == "linear":
        act = f" {node.attrs['activation']}" if node.attrs["activation"] else ""
        return "linear", f"{weights[0]} -> {weights[1]}{act}"
    if node.op in ("conv", "conv_transpose"):
        groups = node.attrs["groups"]
        ends = (weights[1] * groups, weights[0]) if node.op == "conv" else (weights[0], weights[1] * groups)
        shown = f"{ends[0]} -> {ends[1]}, {' x '.join(map(str, weights[2:]))}"
        for name, value in (("stride", node.attrs["strides"]), ("dilation", node.attrs["dilations"])):
            shown += f" {name} {' x '.join(map(str, value))}" if any(v != 1 for v in value) else ""
        return node.op, shown + (f" in {groups} groups" if groups > 1 else "")
    if node.op == "gather":
        return node.op, " x ".join(map(str, weights))
    return node.op, str(node.attrs.get("fn", ""))


def _shape(value, sizes: dict[str, int]) -> list[int]:
    """The shape of a value at these sizes. Raises ShapeError if an axis has none."""
    shape = [D.evaluate(d, sizes) for d in value.dims]
    if any(s < 0 for s in shape):
        given = " and ".join(f"{name} {size}" for name, size in sizes.items())
        raise ShapeError(f"{value} has no size at {given}: its axes would be {shape}; give other sizes")
    return shape


def _empty(value, shape: list[int]) -> np.ndarray:
    """A new array for a value. Raises ShapeError if no memory could hold it: its size may be a file's bare claim."""
    try:
        return np.empty(shape, DTYPES[value.dtype])
    except (MemoryError, ValueError) as error:  # NumPy: not available; more than an index can count
        if isinstance(error, MemoryError) and not claims_too_much(error):
            raise
        raise ShapeError(f"no memory for {value}, of shape {shape}") from None


def _index(value, rows: np.ndarray, length: int, shape) -> tuple:
    """The index of `rows`, cut to `length` steps, in a whole array of this value."""
    index = []
    for axis, dim in enumerate(value.dims):
        if dim == D.BATCH:
            index.append(rows)
        elif isinstance(dim, int):
            index.append(np.arange(dim))
        elif "batch" in D.symbols(dim):
            raise ShapeError(f"{value}: with lengths, axis {axis} must be plain batch")
        else:
            index.append(np.arange(shape[axis]))
    return np.ix_(*index)


def _cut(array: np.ndarray, value, rows: np.ndarray, length: int) -> np.ndarray:
    shape = [length if d == D.TIME else s for d, s in zip(value.dims, array.shape, strict=True)]
    return np.ascontiguousarray(array[_index(value, rows, length, shape)])
