"""Model: the facade, made by `loading.py`. Immutable, shared by threads; what changes lives in `Stream` and scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from . import artifact, forks, lowering, passes, streaming, threadpools
from . import dims as D
from ._executor import Program, StreamParts
from .arguments import Argument, argument_of, collect, plain_forms, solve_sizes, whole_number
from .casts import as_dtype
from .cpu import MAX_THREADS, thread_info
from .errors import ModelFormatError, ShapeError, StateError, StreamError, UnsupportedError
from .follow import follow
from .graph import DTYPES, Graph
from .lowering_attention import Context, over_time, unbounded
from .passes.positions import spread_positions
from .passes.sizes import fix_sizes
from .plan import has_time
from .pool import StreamPool
from .pool_paced import PacedPool
from .stream import Stream
from .stream_graph import rewrite
from .stream_paced import POSITION, PacedStream
from .timetable import Timetable

DEFAULT_CONTEXT = 1024  # steps of attention that a stream keeps where its opener doesn't say
KEPT_SIZES = 8  # of other free sizes, each a model of its own
KEPT_CONTEXTS = 8  # programs of other bounds of attention; streams hold their own
MOST_CONTEXT = 1 << 24  # steps; more is a typing error
KEPT_PARTS = 16  # of streams of other batch sizes and bounds; streams hold their own
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


class Model:
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
        self.threads = thread_info().count if threads is None else whole_number(threads, "threads", MAX_THREADS)
        threadpools.note(self.threads)
        self.graph = passes.run(graph)
        self.name = graph.name
        self._open_sizes = _open_sizes(self.graph)
        self._given_sizes: dict[str, int] = {}  # of a model made by `_with_sizes`
        self._fixed: dict[tuple, Model] = {}
        self._ends = tuple(self.graph.values[n] for n in self.graph.outputs)
        self._sizes: dict[tuple, tuple] = {}  # shapes of the inputs -> `_sizes_of` them
        self._weights = lowering.Weights()
        self._lock = forks.Lock()
        self._programs: dict[tuple, Program] = {}
        self._layouts: dict[Context | None, streaming.StateLayout] = {}
        self._parts: dict[tuple[int | None, Context | None], StreamParts] = {}
        self._problems: list[str] | None = None
        self._fingerprint: str | None = None
        self._inputs = tuple(_info(self.graph.values[n]) for n in self.graph.inputs)
        self._outputs = tuple(_info(self.graph.values[n]) for n in self.graph.outputs)
        if not self._open_sizes:
            self._program("run")  # what can't be run is refused at load, not at three in the morning

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
        """What a stream keeps between steps; empty where the model can't be streamed."""
        if self._streaming_problems():
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
        """What import and passes did, a line each: sizes that were freed or stay, what was assumed or folded."""
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
        """Bytes that this model holds: constants, packed weights, and the scratch kept for reuse; where it leaves sizes
        open, also of those that it was run with."""
        models = [self, *self._fixed.values()]
        constants = {id(a): a.nbytes for m in models for a in m.graph.constants.values()}  # the most are shared
        packed = sum(m._weights.nbytes for m in models)
        scratch = sum(p.scratch_bytes for m in models for p in list(m._programs.values()))
        return sum(constants.values()) + packed + scratch

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over graph and weights."""
        if self._fingerprint is None:
            self._fingerprint = artifact.fingerprint(self.graph)
        return self._fingerprint

    @property
    def streamable(self) -> bool:
        """True where the model can be run one step at a time; `stream()` says which node needs the future otherwise."""
        return not self._streaming_problems()

    def __repr__(self):
        ins, outs = (", ".join(map(str, side)) for side in (self.inputs, self.outputs))
        return f"<Model {self.name}: {ins} -> {outs}>"

    # -- whole sequences --
    def run(self, /, *arrays, lengths: Sequence[int] | None = None, **named) -> tuple[np.ndarray, ...]:
        """Whole sequences: the file's own inputs and outputs, in its own axis order.

        Parameters
        ----------
        *arrays, **named : the inputs, by position in the file's order and by name
            Arrays or tensors of the dtype that `inputs` says, or of one whose values all fit it exactly (float16 into
            float32); or numbers and lists of numbers that fit.
        lengths : ints, one a row of the batch, optional
            Row i ends after lengths[i] steps: its outputs are those of a run of that row alone, cut to that length, and
            zero from there on. A file's own input of this name is that input.

        Returns
        -------
        tuple of arrays, one an output; new memory.

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
        ends = set(self.graph.states.values())
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
        results = self._run_named((), named, lengths)
        kept = [r for n, r in zip(self.graph.outputs, results, strict=True) if n not in ends]
        return kept[0] if len(kept) == 1 else tuple(kept)

    def _collect(self, arrays: tuple, named: dict) -> list[np.ndarray]:
        names = list(self.graph.inputs)
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
            return self._with_sizes({n: sizes[n] for n in self._open_sizes})._run(feeds)
        outputs = tuple(_empty(value, shape) for value, shape in zip(self._ends, out_shapes, strict=True))
        self._program("run").run(feeds, outputs, sizes["batch"], sizes["time"])
        return outputs

    def _sizes_of(self, feeds: list[np.ndarray]) -> tuple[dict[str, int], list[list[int]]]:
        """The sizes that these inputs mean, and the shapes of the outputs at them (none where sizes are left open)."""
        values = [self.graph.values[n] for n in self.graph.inputs]
        sizes = {"batch": 1, "time": 1} | solve_sizes(values, feeds, self.graph.held)
        if self._open_sizes:
            return sizes, []
        self._program("run").plan.check_sizes(sizes["batch"], sizes["time"])  # names the node
        return sizes, [_shape(value, sizes) for value in self._ends]

    def _with_sizes(self, sizes: dict[str, int]) -> Model:
        """This model compiled for fixed free sizes; the last few are kept."""
        key = tuple(sizes.items())
        with self._lock:
            model = self._fixed.pop(key, None)
        if model is None:
            model = Model(fix_sizes(self.graph, sizes), self.threads)
            model._given_sizes = dict(sizes)
        with self._lock:
            self._fixed[key] = model
            while len(self._fixed) > KEPT_SIZES:
                del self._fixed[next(iter(self._fixed))]
        return model

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
    def stream(self, batch_size: int | None = None, *, context: int | None = None, at_context: str = "error") -> Stream:
        """A live stream; with batch_size, that many in lock-step.

        Where the model leaves a size open (samples a step), the stream's first step fixes it.

        Parameters
        ----------
        batch_size : int, optional
        context : int, optional
            How many steps causal attention looks back on, the current one counted; the keys and values of as many are
            kept. None: 1,024 where attention sees all steps before. Models without attention over time refuse it.
        at_context : "error" or "window"
            What happens at step context + 1: a StreamError that leaves the stream as it is, or the oldest step is
            dropped, as if the model's mask were a band of that width.

        Raises
        ------
        StreamError : the model can't be streamed; the text names each node and why. A context that
            has nothing to bound.
        """
        paced = not self._streaming_problems() and not self._timetable.plain
        bound = self._context(context, at_context)
        if batch_size is not None:
            batch_size = whole_number(batch_size, "batch_size", MOST_STREAMS)
        parts = self._stream_parts(batch_size, bound)
        return PacedStream(self, parts) if paced else Stream(self, parts)

    @property
    def delay(self) -> int:
        """Steps of input that a stream must see beyond step t before step t of its outputs comes; 0 where it can't be
        streamed at all."""
        return 0 if self._streaming_problems() else self._timetable.delay

    def _context(self, context: int | None, at_context: str) -> Context | None:
        """The bound of a stream's attention, checked; None where it needs none."""
        if at_context not in ("error", "window"):
            raise StreamError(f"at_context must be 'error' or 'window', got {at_context!r:.60}")
        self._check_streamable()
        if context is not None:
            if not over_time(self.graph):
                raise StreamError(f"{self.name} has no attention over time that context= could bound")
            return Context(whole_number(context, "context", MOST_CONTEXT), at_context == "window")
        if unbounded(self.graph):
            return Context(DEFAULT_CONTEXT, at_context == "window")
        return None

    def pool(self, capacity: int = 1024, *, context: int | None = None, at_context: str = "error") -> StreamPool:
        """A pool of independent streams, each with a slot, stepped together in any subset and order.

        Parameters
        ----------
        capacity : how many streams there is room for; memory is taken as they are opened
        context, at_context : as of `stream`, for each of its streams

        Raises
        ------
        StreamError : the model can't be streamed; the text names each node and why. A context as in `stream`.
        ShapeError : capacity is no int in 1..2^24. StateError : no memory holds it.
        """
        paced = not self._streaming_problems() and not self._timetable.plain
        bound = self._context(context, at_context)
        return PacedPool(self, capacity, bound) if paced else StreamPool(self, capacity, bound)

    def _stream_parts(self, batch_size: int | None, context: Context | None = None) -> StreamParts:
        """What all such streams share; pools take those without a batch size. context: as `_context` gives it."""
        key = batch_size, context
        found = self._parts.get(key)
        if found is None:
            found = self._make_parts(batch_size, context)
            with self._lock:
                self._parts[key] = found
                while len(self._parts) > KEPT_PARTS:
                    del self._parts[next(iter(self._parts))]
        return found

    def _make_parts(self, batch_size: int | None, context: Context | None) -> StreamParts:
        self._check_streamable()
        if self._open_sizes:
            return StreamParts(batch_size, context)
        program, layout = self._program("stream", context), self._stream_layout(context)
        has_batch, inputs, outputs = self._stream_arguments
        if batch_size not in (None, 1) and not has_batch:
            raise StreamError(f"{self.name} has no batch axis: open one stream each, not batch_size={batch_size}")
        forms = plain_forms(inputs, outputs, batch_size)
        return StreamParts(batch_size, context, self._given_sizes, program, layout, inputs, outputs, forms)

    def _check_streamable(self) -> None:
        found = self._streaming_problems()
        if found:
            raise StreamError(f"{self.name} can't be streamed: " + "; ".join(found))

    def _sized_like(self, x) -> Model:
        """This model with the sizes that it leaves open as in x, the argument of a stream's step or push.

        Raises ShapeError where x doesn't tell them.
        """
        names = [n for n in self.graph.inputs if n not in self.graph.states]
        sizes: dict[str, int] = {}
        for argument, given in zip(self._stream_arguments[1], collect(names, x), strict=True):
            sizes |= argument.open_sizes(as_dtype(given, argument.dtype, f"input {argument.name}"))
        missing = [n for n in self._open_sizes if n not in sizes]
        if missing:
            raise ShapeError(f"{self.name}: the inputs of a step don't tell {', '.join(missing)}: load it with sizes=")
        return self._with_sizes({n: sizes[n] for n in self._open_sizes})

    def _sized_as(self, sizes: dict[str, int]) -> Model:
        """This model with the sizes that a snapshot tells; StateError where they are not those that it leaves open."""
        if set(sizes) != set(self._open_sizes):
            raise StateError(f"a snapshot of {self.name} tells {sorted(self._open_sizes)}, this one {sorted(sizes)}")
        return self._with_sizes({n: sizes[n] for n in self._open_sizes}) if sizes else self

    @cached_property  # once for all streams: they share what they are told of their arguments
    def _stream_arguments(self) -> tuple[bool, list[Argument], list[Argument]]:
        """Has some value a batch axis? And what a stream takes and returns: the file's ends that aren't states."""
        graph, steps_one = self.graph, not has_time(self.graph)
        has_batch = any("batch" in D.symbols(d) for v in graph.values.values() for d in v.dims)
        ends = set(graph.states.values())
        inputs = [n for n in graph.inputs if n not in graph.states]
        outputs = [n for n in graph.outputs if n not in ends]
        known = {n: argument_of(graph.values[n], steps_one, has_batch) for n in (*inputs, *outputs)}
        return has_batch, [known[n] for n in inputs], [known[n] for n in outputs]

    def _streaming_problems(self) -> list[str]:
        if self._problems is None:
            found = streaming.problems(self.graph)
            try:  # what only shows when the stream is planned: a state that is read elsewhere too
                if not found and self._open_sizes:  # planning waits for a stream's first step
                    if not self._timetable.plain:
                        names = ", ".join(f"{n!r}: ..." for n in self._open_sizes)
                        found = [f"its outputs come at another pace than its inputs: load it with sizes={{{names}}}"]
                elif found:
                    pass
                elif self._program("stream").plan.steps_one and not self._stream_layout().size:
                    found = [streaming.no_steps(self.graph)]
                else:
                    self._stream_layout()
            except (StateError, UnsupportedError) as error:
                found = [str(error)]
            self._problems = found
        return self._problems

    @cached_property
    def _timetable(self) -> Timetable:
        """When the outputs of a stream come."""
        if not self._open_sizes:
            found = self._program("stream").plan.timetable
            assert found is not None
            return found
        ends = set(self.graph.states.values())
        return rewrite(self.graph, tuple(n for n in self.graph.outputs if n not in ends))[1]

    def _stream_layout(self, context: Context | None = None) -> streaming.StateLayout:
        plan = self._program("stream", context).plan
        with self._lock:
            if context not in self._layouts:
                self._layouts[context] = streaming.StateLayout(self.graph, plan)
                _keep_last(self._layouts, KEPT_CONTEXTS)
            return self._layouts[context]

    def _program(self, mode: str, context: Context | None = None) -> Program:
        with self._lock:
            key = (mode, context)
            if key not in self._programs:
                graph = self.graph if mode == "run" else spread_positions(self.graph)
                plan = lowering.lower(graph, mode, self._weights, context)
                self._programs[key] = Program(plan, self.threads)
                _keep_last(self._programs, KEPT_CONTEXTS)
            return self._programs[key]

    # -- files --
    def save(self, path) -> None:
        """Write the model as one .fastrnn file; loading it gives the same bits. The write is atomic.

        Raises
        ------
        ModelFormatError : another suffix, by which `load` would not know the file again.
        """
        if Path(path).suffix.lower() != ".fastrnn":
            raise ModelFormatError(f"save writes .fastrnn files, got {path}")
        artifact.save(self.graph, path)

    def __reduce__(self):
        return _unpickled, (artifact.to_bytes(self.graph), self.threads)

    def __copy__(self) -> Model:
        return self  # immutable

    def __deepcopy__(self, memo) -> Model:
        return self


def _keep_last(kept: dict, most: int) -> None:
    """Drop the bounded ones that were made first, while there are more than `most` of them."""
    bounded = [key for key in kept if key not in (None, ("run", None), ("stream", None))]
    for key in bounded[: max(len(bounded) - most, 0)]:
        del kept[key]


def _unpickled(blob: bytes, threads: int) -> Model:
    return Model(artifact.load(blob), threads)


def _open_sizes(graph: Graph) -> tuple[str, ...]:
    """Names of the sizes that the inputs leave free besides batch and time."""
    return tuple(
        sorted({s for n in graph.inputs for d in graph.values[n].dims for s in D.symbols(d)} - {"batch", "time"})
    )


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
    """A new array for a value. Raises ShapeError where no memory holds it: its size may be a file's bare claim."""
    try:
        return np.empty(shape, DTYPES[value.dtype])
    except (MemoryError, ValueError):  # numpy: not available; more than an index can count
        raise ShapeError(f"no memory for {value}, of shape {shape}") from None


def _index(value, rows: np.ndarray, length: int, shape) -> tuple:
    """Where `rows`, cut to `length` steps, lie in a whole array of this value."""
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
