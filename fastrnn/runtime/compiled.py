"""Compiled: a graph and its programs, what runs whole sequences, and what streams and pools know of their model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .. import passes
from ..compile import lowering
from ..compile.lowering.attention import Context, over_time, unbounded
from ..compile.plan import has_time
from ..errors import FastRNNError, ShapeError, StateError, StreamError, UnsupportedError, memory_for, out_of_memory
from ..graph import DTYPES, Graph, artifact, caches
from ..graph import dims as D
from ..graph.casts import as_dtype
from ..graph.digests import array_name
from ..graph.traverse import results
from ..machine import forks
from ..machine.pages import mapping_of
from ..passes.positions import spread_positions
from ..passes.sizes import fix_sizes
from ..streaming import conditions
from ..streaming.caches import streamed
from ..streaming.follow import follow
from ..streaming.rewrite import rewrite
from ..streaming.timetable import Timetable
from ._executor import Program
from ._meter import Meter
from ._parts import StreamParts
from ._runs import Prepared, RunCore
from .arguments import Argument, argument_of, collect, plain_forms, solve_sizes, whole_number
from .kept import Meanings
from .layout import StateLayout
from .shapes import cut, empty, index_of, open_sizes, shape_of
from .snapshots import Identity

if TYPE_CHECKING:
    from ..machine.packed_files import Store

DEFAULT_CONTEXT = 1024  # steps of attention that a stream keeps by default
KEPT_SIZES = 8  # models for other free sizes
KEPT_CONTEXTS = 8  # programs for other bounds of attention; streams hold their own
MOST_CONTEXT = 1 << 24  # steps; more is a typing error
KEPT_PARTS = 16  # StreamParts for other batch sizes and bounds; streams hold their own


class Compiled(RunCore):
    """A graph after all passes, its programs, and what its streams share. Threads share it.

    A `Model`, its streams and its pools hold one together: it lives until the last of them is closed.
    """

    def __init__(self, graph: Graph, threads: int, imported: Graph | None = None, store: Store | None = None):
        """imported: the graph before the passes, if they changed it. store: where processes share packed weights."""
        self.graph, self.threads, self.name = graph, threads, graph.name
        self._imported = None if imported is graph else imported
        self._open_sizes, self._empty_caches = open_sizes(graph), caches.empty(graph)
        self._given_sizes: dict[str, int] = {}  # of a model made by `_with_sizes`
        self._fixed: dict[tuple, Compiled] = {}
        self._weights = lowering.Weights(store=store)
        self._lock = forks.Lock()
        self._programs: dict[tuple, Program] = {}
        self._layouts: dict[Context | None, StateLayout] = {}
        self._parts: dict[tuple[int | None, Context | None], StreamParts] = {}
        self._ends = tuple(graph.values[n] for n in graph.outputs)
        self._begin_runs(*_arguments_of(graph))
        if not self._open_sizes:
            self._program("run")  # a model that can't run is rejected at load, not in production

    @property
    def fingerprint(self) -> str:
        """Hex text: the name of what the model means. Weights, cells and wiring change it; names in the file, its
        format and the order of its nodes don't (streaming/meaning.py). Snapshots belong to it."""
        return self.identity.models[0]

    @cached_property
    def identity(self) -> Identity:
        """Which model snapshots of its streams are of. A model has two names: the second one is of the graph before
        all passes, which a release may change."""
        models, imported = [self._meanings.whole.name], self._imported
        if imported is not None:
            from ..streaming.meaning import Meaning

            self._imported = None
            with suppress(FastRNNError):  # some graphs can only be followed after the passes
                models.append(Meaning(streamed(imported)).name)
        layers = tuple((name, own.hex()) for name, own in self._meanings.whole.layers)
        return Identity(tuple(dict.fromkeys(models)), self.name, layers)

    def _snapshot_about(self, parts: StreamParts, bound: dict[str, np.ndarray] | None) -> dict:
        """What a snapshot of such streams says besides their states."""
        sizes = tuple((name, parts.sizes[name]) for name in self._stream_sizes)
        return {"of": self.identity, "states": parts.layout.kept, "sizes": sizes, "bound": self._bound_names(bound)}

    @property
    def former_fingerprint(self) -> str:
        """As snapshots of format 1 have it: SHA-256 over the graph after all passes, with its names."""
        return artifact.fingerprint(self.graph)

    @cached_property
    def _meanings(self) -> Meanings:
        return Meanings(self._stream_graph)

    @property
    def delay(self) -> int:
        """Input steps that a stream must see beyond step t before it returns step t of its outputs; 0 if the model
        can't be streamed at all."""
        return 0 if self._problems else self._timetable.delay

    def _program(self, mode: str, context: Context | None = None) -> Program:
        with self._lock:
            key = (mode, context)
            if key not in self._programs:
                graph = self.graph if mode == "run" else spread_positions(self._stream_graph)
                plan = lowering.lower(graph, mode, self._weights, context)
                self._programs[key] = Program(plan, self.threads)
                _keep_last(self._programs, KEPT_CONTEXTS)
            return self._programs[key]

    def _with_sizes(self, sizes: dict[str, int]) -> Compiled:
        """This model compiled for other free sizes, by name; the last few are kept."""
        sizes = {n: sizes[n] for n in self._open_sizes if n in sizes}
        key = tuple(sizes.items())
        model = self._fixed.get(key)
        if model is None:
            model = Compiled(passes.run(fix_sizes(self.graph, sizes)), self.threads, store=self._weights.store)
            model._given_sizes = sizes
        with self._lock:
            model = self._fixed.pop(key, model)  # that of another thread, if it was first
            self._fixed[key] = model
            while len(self._fixed) > KEPT_SIZES:
                self._forget(self._fixed.pop(next(iter(self._fixed))))
        return model

    def _is_kept(self, fixed: Compiled) -> bool:
        """Whether this model of other free sizes is still one of the last few."""
        return self._fixed.get(tuple(fixed._given_sizes.items())) is fixed

    def _use(self, fixed: Compiled) -> None:
        """Note that this model of other free sizes is the last one used."""
        with self._lock:
            key = tuple(fixed._given_sizes.items())
            if key in self._fixed:
                self._fixed[key] = self._fixed.pop(key)

    @property
    def memory_bytes(self) -> int:
        """Bytes of constants, packed weights, and the scratch kept for reuse, also of other free sizes. Constants in a
        mapped file count if programs read them there: those that were packed are not in memory."""
        models = [self, *self._fixed.values()]
        programs = [p for m in models for p in list(m._programs.values())]
        arrays = [a for m in models for a in m.graph.constants.values() if mapping_of(a) is None]
        arrays += [a for p in programs for a in p.plan.constants]
        constants = {a.ctypes.data: a.nbytes for a in arrays}  # models and programs share the most
        packed = sum(m._weights.nbytes for m in models)
        scratch = sum(p.scratch_bytes for p in programs)
        return sum(constants.values()) + packed + scratch

    def meters(self, of_runs: bool) -> list[Meter]:
        """The counters of the programs of whole runs, or of streams, also of other free sizes."""
        programs = [item for m in (self, *self._fixed.values()) for item in list(m._programs.items())]
        return [program.meter for (mode, _), program in programs if (mode == "run") == of_runs]

    # -- whole sequences --
    def run(self, feeds: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The outputs for these inputs, in the file's order; C-contiguous arrays of the inputs' dtypes."""
        found = self.run_plain(tuple(feeds), {})
        if found is not None:
            return found
        program, batch, time, forms, _ = self._run_of(feeds)  # of many or unaligned arrays, or with many axes
        try:
            outputs = tuple(self._empty(k, shape) for k, (_, shape) in enumerate(forms[len(feeds) :]))
            program.run(feeds, outputs, batch, time)
        except MemoryError as error:
            raise out_of_memory(error, f"run of {self.name} with batch {batch} and time {time}") from None
        return outputs

    def _prepare(self, feeds: list[np.ndarray | None]) -> Prepared:
        """What a run needs at the shapes of these inputs; None: a state that starts at zero. ShapeError if they don't
        fit."""
        absent = [array is None for array in feeds]
        program, batch, time, forms, fixed = self._run_of(self._with_zeros(feeds))
        return Prepared(program, batch, time, forms, absent, fixed)

    def _with_zeros(self, feeds: list[np.ndarray | None]) -> list[np.ndarray]:
        """These inputs, with zeros for each state that is None."""
        values = [self.graph.values[n] for n in self.graph.inputs]
        pairs = list(zip(values, feeds, strict=True))
        known = [(value, array) for value, array in pairs if array is not None]
        if len(known) == len(pairs):
            return [array for _, array in known]
        empty = self._empty_caches
        sizes = solve_sizes([value for value, _ in known], [array for _, array in known], self.graph.held, empty)
        sizes = empty | sizes
        return [np.zeros(shape_of(v, sizes), DTYPES[v.dtype]) if a is None else a for v, a in pairs]

    def _run_of(self, feeds: list[np.ndarray]) -> tuple[Program, int, int, list[tuple], Compiled | None]:
        """(program, batch, time, (NumPy type number, shape) of each input and output, the model of these sizes if this
        one leaves some open)."""
        values = [self.graph.values[n] for n in self.graph.inputs]
        sizes = {"batch": 1, "time": 1} | solve_sizes(values, feeds, self.graph.held)
        if self._open_sizes:
            fixed = self._with_sizes(sizes)
            return (*fixed._run_of(feeds)[:-1], fixed)
        program, batch, time = self._program("run"), sizes["batch"], sizes["time"]
        program.plan.check_sizes(batch, time)  # names the node
        forms = [(array.dtype.num, array.shape) for array in feeds]
        forms += [(np.dtype(DTYPES[v.dtype]).num, tuple(shape_of(v, sizes))) for v in self._ends]
        return program, batch, time, forms, None

    def _empty(self, k: int, shape: Sequence[int]) -> np.ndarray:
        """A new array for an output; ShapeError or MemoryError says why there is none."""
        return empty(self._ends[k], list(shape))

    def run_ragged(self, feeds: list[np.ndarray], lengths) -> tuple[np.ndarray, ...]:
        """Rows of one length are run together: bits don't depend on neighbours, so each row's are those of it alone."""
        values = [self.graph.values[n] for n in self.graph.inputs]
        sizes = solve_sizes(values, feeds, self.graph.held)
        if "batch" not in sizes or "time" not in sizes:
            raise ShapeError(f"{self.name} has no batch and time axes: lengths don't apply")
        mixed = follow(self.graph, "batch").problems
        if mixed:
            raise ShapeError(f"{self.name}: lengths don't apply where rows of a batch meet: " + "; ".join(mixed))
        lengths = _checked_lengths(lengths, sizes["batch"], sizes["time"])
        results: list[np.ndarray] = [np.zeros(shape_of(v, sizes), DTYPES[v.dtype]) for v in self._ends]
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            part = [cut(a, v, rows, int(length)) for a, v in zip(feeds, values, strict=True)]
            try:
                pieces = self.run(part)
            except ShapeError as error:
                raise ShapeError(f"row {rows[0]}, of length {length}: {error}") from None
            for whole, value, piece in zip(results, self._ends, pieces, strict=True):
                if any(p > w for p, w in zip(piece.shape, whole.shape, strict=True)):  # a pad up to a fixed length
                    text = f"of length {length} is {list(piece.shape)}, which does not fit into {list(whole.shape)}"
                    raise ShapeError(f"output {value}: that of rows {text}; shorter rows give more")
                whole[index_of(value, rows, int(length), piece.shape)] = piece
        return tuple(results)

    # -- streams --
    @cached_property
    def _stream_graph(self) -> Graph:
        """The graph as a stream runs it: every step is live, so it has no lengths; caches are kept."""
        return streamed(self.graph)

    @cached_property
    def _stream_sizes(self) -> tuple[str, ...]:
        """The sizes that a stream's first step fixes: `_open_sizes` without the lengths of caches."""
        return open_sizes(self._stream_graph)

    @cached_property
    def _problems(self) -> list[str]:
        """Why the model can't be streamed: node and reason; [] if it can."""
        found = conditions.problems(self._stream_graph)
        if found:
            return found
        try:  # some problems appear only in planning, such as a state that is also read elsewhere
            if self._stream_sizes:  # planning waits for a stream's first step
                if self._timetable.plain:
                    return []
                names = ", ".join(f"{n!r}: ..." for n in self._stream_sizes)
                return [f"its outputs come at another pace than its inputs: load it with sizes={{{names}}}"]
            layout = self._stream_layout()
            if self._program("stream").plan.steps_one and not layout.size:
                return [conditions.no_steps(self._stream_graph)]
        except (StateError, UnsupportedError) as error:
            return [str(error)]
        return []

    def _check_streamable(self) -> None:
        try:
            problems = self._problems
        except MemoryError as error:  # the plan is made when it is first asked for
            raise out_of_memory(error, f"streams of {self.name}") from None
        if problems:
            raise StreamError(f"{self.name} can't be streamed: " + "; ".join(problems))

    @cached_property
    def _timetable(self) -> Timetable:
        """When the outputs of a stream come."""
        if not self._stream_sizes:
            found = self._program("stream").plan.timetable
            assert found is not None
            return found
        return rewrite(self._stream_graph, results(self._stream_graph))[1]

    def _stream_layout(self, context: Context | None = None) -> StateLayout:
        plan = self._program("stream", context).plan
        with self._lock:
            if context not in self._layouts:
                self._layouts[context] = StateLayout(self._stream_graph, plan, self._meanings)
                _keep_last(self._layouts, KEPT_CONTEXTS)
            return self._layouts[context]

    def _context(self, context: int | None, at_context: str) -> Context | None:
        """The bound of a stream's attention, checked; None if it needs none."""
        if at_context not in ("error", "window"):
            raise StreamError(f"at_context must be 'error' or 'window', got {at_context!r:.60}")
        self._check_streamable()
        if context is not None:
            if not over_time(self._stream_graph):
                raise StreamError(f"{self.name} has no attention over time that context= could bound")
            return Context(whole_number(context, "context", MOST_CONTEXT), at_context == "window")
        if unbounded(self._stream_graph):
            return Context(DEFAULT_CONTEXT, at_context == "window")
        return None

    def _stream_parts(
        self, batch_size: int | None, context: Context | None = None, bound: dict[str, np.ndarray] | None = None
    ) -> StreamParts:
        """The shared parts of all such streams; pools use those without a batch size. context: as from `_context`.
        bound: as from `_bound`; parts with bound values are not shared."""
        if bound:
            return self._make_parts(batch_size, context, bound)
        key = batch_size, context
        found = self._parts.get(key)
        if found is None:
            found = self._make_parts(batch_size, context, {})
            with self._lock:
                self._parts[key] = found
                while len(self._parts) > KEPT_PARTS:
                    del self._parts[next(iter(self._parts))]
        return found

    @memory_for("the plan of a stream")
    def _make_parts(self, batch_size: int | None, context: Context | None, bound: dict[str, np.ndarray]) -> StreamParts:
        self._check_streamable()
        if self._stream_sizes:
            return StreamParts(batch_size, context)
        program, layout = self._program("stream", context), self._stream_layout(context)
        has_batch, inputs, outputs = self._stream_arguments
        if batch_size not in (None, 1) and not has_batch:
            raise StreamError(f"{self.name} has no batch axis: open one stream each, not batch_size={batch_size}")
        inputs = [a.bind(bound[a.name], batch_size) if a.name in bound else a for a in inputs]
        forms = plain_forms(inputs, outputs, batch_size)
        return StreamParts(batch_size, context, self._given_sizes, program, layout, inputs, outputs, forms)

    @cached_property  # once for all streams: they share what is computed for their arguments
    def _stream_arguments(self) -> tuple[bool, list[Argument], list[Argument]]:
        """Whether some value has a batch axis, and the arguments of a stream: the file's, without states."""
        graph, steps_one = self._stream_graph, not has_time(self._stream_graph)
        has_batch = any("batch" in D.symbols(d) for v in graph.values.values() for d in v.dims)
        inputs = [n for n in graph.inputs if n not in graph.states]
        outputs = results(graph)
        known = {n: argument_of(graph.values[n], steps_one, has_batch) for n in (*inputs, *outputs)}
        return has_batch, [known[n] for n in inputs], [known[n] for n in outputs]

    @property
    def _sizes_come_later(self) -> str:
        """Why a stream has no states before its first step."""
        names = ", ".join(f"{n!r}: ..." for n in self._stream_sizes)
        text = f"is known from the first step on: take one, or load the model with sizes={{{names}}}"
        return f"{', '.join(self._stream_sizes)} {text}"

    def _bound(self, bind: Mapping | None) -> dict[str, np.ndarray]:
        """The values of inputs that are bound for a stream's life: copies of the inputs' dtypes.

        Raises ShapeError for an input that is unknown, a state, or changes from step to step.
        """
        if not bind:
            return {}
        if not isinstance(bind, Mapping):
            raise ShapeError(f"bind must map inputs to values, such as {{'memory': array}}, got {bind!r:.60}")
        free = {a.name: a for a in self._stream_arguments[1]}
        for name in bind:
            if name not in free:
                known = "is a state, which a stream keeps itself" if name in self.graph.states else "is no input"
                lengths = name in self.graph.inputs and name not in self.graph.states
                what = "holds lengths, which a stream does not take" if lengths else known
                raise ShapeError(f"bind: {name!r} {what}; a stream of {self.name} takes {', '.join(free)}")
            if any("time" in D.symbols(d) for d in self.graph.values[name].dims):
                raise ShapeError(f"bind: the input {name} has a time axis: its steps are passed to step or push")
        if len(bind) == len(free):
            raise ShapeError(f"bind: no input is left for the steps of {self.name}; leave out the one that changes")
        bound = {name: np.array(as_dtype(bind[name], free[name].dtype, f"bind: {name}")) for name in bind}
        for array in bound.values():
            array.flags.writeable = False
        return bound

    def _bound_names(self, bound: dict[str, np.ndarray] | None) -> dict[int, str]:
        """Number of the input -> the name of the value that is bound to it."""
        places = {a.name: i for i, a in enumerate(self._stream_arguments[1])}
        return {places[name]: array_name(array).hex() for name, array in (bound or {}).items()}

    def _sized_like(self, x, bound: dict[str, np.ndarray] | None = None) -> Compiled:
        """This model with its open sizes taken from x, the argument of a stream's step or push, and from bound values.

        Raises ShapeError if they don't determine them.
        """
        bound = bound or {}
        arguments = {a.name: a for a in self._stream_arguments[1]}
        names = [name for name in arguments if name not in bound]
        given = dict(zip(names, collect(names, x), strict=True)) | bound
        sizes: dict[str, int] = {}
        for name, argument in arguments.items():
            found = argument.open_sizes(as_dtype(given[name], argument.dtype, f"input {name}"))
            other = next((n for n in found if sizes.setdefault(n, found[n]) != found[n]), None)
            if other is not None:
                raise ShapeError(f"input {name}: {other} is both {sizes[other]} and {found[other]}")
        missing = [n for n in self._stream_sizes if n not in sizes]
        if missing:
            hint = ", ".join(f"{n!r}: ..." for n in missing)
            text = f"the inputs of a step don't determine {', '.join(missing)}: load it with sizes={{{hint}}}"
            raise ShapeError(f"{self.name}: {text}")
        return self._with_sizes(sizes)

    def _sized_as(self, sizes: tuple[tuple[str, int], ...]) -> Compiled:
        """This model with the sizes of a snapshot, in their order; StateError if it leaves open another number."""
        if len(sizes) != len(self._stream_sizes):
            text = f"has the sizes {sorted(self._stream_sizes)}, this one {sorted(name for name, _ in sizes)}"
            raise StateError(f"a snapshot of {self.name} {text}")
        numbers = dict(zip(self._stream_sizes, (n for _, n in sizes), strict=True))
        return self._with_sizes(numbers) if sizes else self


def _checked_lengths(lengths, batch: int, time: int) -> np.ndarray:
    """lengths as ints [batch] in 0..time, or ShapeError."""
    try:
        array = np.asarray(lengths)
    except (ValueError, TypeError) as error:
        raise ShapeError(f"lengths must be {batch} ints, one a row: {error}") from None
    if array.size == 0:  # NumPy takes an empty list for floats
        array = array.astype(np.int64)
    if array.shape != (batch,) or array.dtype.kind not in "iu":
        raise ShapeError(f"lengths must be {batch} ints, one a row, got {array.dtype}{list(array.shape)}")
    if array.size and not (0 <= array.min() and array.max() <= time):
        raise ShapeError(f"lengths must lie in 0..{time}, got {array.min()}..{array.max()}")
    return array


def _arguments_of(graph: Graph) -> tuple[list[tuple[str, int]], list[int], list[str], list[int]]:
    """The arguments of `RunCore._begin_runs`."""
    values = [graph.values[n] for n in (*graph.inputs, *graph.outputs)]
    inputs = [(n, int(np.dtype(DTYPES[graph.values[n].dtype]).num)) for n in graph.inputs]
    plain, wanted = [n for n in graph.inputs if n not in graph.states], results(graph)
    return inputs, [len(v.dims) for v in values], plain, [k for k, n in enumerate(graph.outputs) if n in wanted]


def _keep_last(kept: dict, most: int) -> None:
    """Drop the oldest bounded ones while there are more than `most`."""
    bounded = [key for key in kept if key not in (None, ("run", None), ("stream", None))]
    for key in bounded[: max(len(bounded) - most, 0)]:
        del kept[key]
