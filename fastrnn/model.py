"""Model: the facade, made by `loading.py`. Immutable, shared by threads; what changes lives in `Stream` and scratch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from . import passes, tables
from .description import Description, described
from .errors import FastRNNError, ModelFormatError, memory_for
from .graph import Graph, artifact
from .infos import LayerInfo, TensorInfo, info_of, layers_of, parameters_of, states_of
from .machine import threadpools
from .machine.cpu import MAX_THREADS, thread_info
from .runtime import calls
from .runtime._meter import merged
from .runtime._runs import RunCore
from .runtime.arguments import whole_number
from .runtime.compiled import Compiled
from .serving.stream import PacedStream, Stream
from .typing import Array, Input, Integers, Outputs, Precision, StrPath

__all__ = ["LayerInfo", "Model", "TensorInfo"]

if TYPE_CHECKING:
    from .machine.packed_files import Store
    from .serving.pool import StreamPool

MOST_STREAMS = 1 << 24  # in lock-step; more is a typing error


class Model:
    """A loaded model. Make one with `fastrnn.load` or a `fastrnn.from_...` function.

    All methods may be called from several threads at once. A model computes in float32, or with weights in a smaller
    number format (`precision`).

    A model's memory is freed when the model, its streams and its pools are gone. `close`, or the end of a `with` block,
    gives up the model's own part at once: its methods and most attributes raise a FastRNNError from then on, and its
    streams and pools go on.

    Attributes
    ----------
    name : str
    threads : the most threads that a call uses
    """

    def __init__(
        self,
        graph: Graph,
        threads: int | None = None,
        precision: Precision | None = None,
        store: Store | None = None,
    ):
        threads = thread_info().count if threads is None else whole_number(threads, "threads", MAX_THREADS)
        threadpools.note(threads)
        made = passes.run(graph)
        held = passes.set_precision(made, precision)
        # In another precision, a model means something else than the graph of its file.
        same = passes.precision_of(held) == passes.precision_of(made)
        self._set_up(Compiled(held, threads, graph if same else None, store), threads)

    def _set_up(self, compiled: Compiled, threads: int) -> None:
        graph = compiled.graph
        self._compiled: Compiled | None = compiled  # None: closed
        self._runs: RunCore | None = compiled  # what answers calls of plain arrays; None: nothing does
        self.name: str = graph.name
        self.threads: int = threads
        self._inputs = tuple(info_of(graph.values[n]) for n in graph.inputs)
        self._outputs = tuple(info_of(graph.values[n]) for n in graph.outputs)

    @property
    def _core(self) -> Compiled:
        """What computes; FastRNNError if the model is closed."""
        found = self._compiled
        if found is None:
            self._refuse_closed()
        return found

    def _refuse_closed(self) -> NoReturn:
        raise FastRNNError(f"the model {self.name} was closed: load it again, or close it later")

    # -- the end --
    def close(self) -> None:
        """Give up the model's memory: constants, packed weights and scratch. It may be called again.

        Calls that other threads have begun end as usual. Streams and pools share this memory and go on: it is freed
        when the last of them is closed too.
        """
        self._compiled = self._runs = None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._compiled is None

    def __enter__(self) -> Model:
        if self.closed:
            self._refuse_closed()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- description --
    @property
    def graph(self) -> Graph:
        """The graph after all passes, which `print` shows; immutable."""
        return self._core.graph

    @property
    def fingerprint(self) -> str:
        """Hex text: the name of what the model means, in any file. Weights, cells and wiring change it; names, the
        format and the order of nodes don't. Snapshots belong to it."""
        return self._core.fingerprint

    @property
    def precision(self) -> str | dict[str, str]:
        """The number format of the weights: one name if all layers that could have another one share it, else a dict
        from layer names to them. docs/guide/precision.md explains them."""
        found = passes.precision_of(self._core.graph)
        names = set(found.values()) or {"float32"}
        return names.pop() if len(names) == 1 else found

    @property
    def delay(self) -> int:
        """Input steps that a stream must see beyond step t before it returns step t of its outputs; 0 if the model
        can't be streamed at all."""
        return self._core.delay

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
        return states_of(self._core)

    @property
    def notes(self) -> tuple[str, ...]:
        """What import and passes did, one line each: sizes that were freed or kept, what was assumed or folded."""
        return self.graph.notes

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says of itself: the `metadata_props` of an ONNX file, which .fastrnn files keep; else empty."""
        return dict(self.graph.metadata)

    @property
    def parameters(self) -> int:
        """How many numbers the model was trained with (its constants that are not indices)."""
        return parameters_of(self.graph)

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """Nodes with parameters, in order."""
        return layers_of(self.graph)

    @property
    def memory_bytes(self) -> int:
        """Bytes that this model holds: constants, packed weights, and the scratch kept for reuse. If it leaves sizes
        open, also those of the sizes that it was run with."""
        return self._core.memory_bytes

    def stats(self) -> dict[str, Any]:
        """What the model's calls cost so far, JSON-able; counted without locks.

        Returns
        -------
        dict: `memory_bytes`; `run` (calls of `run`) and `stream` (calls by streams and pools), each with `calls`,
        `rows`, `steps`, and of every 64th call the histograms `seconds` and `batch_size` as in `StreamPool.stats`. A
        chunk of many steps is one call, or several if the rows end at different steps.
        """
        core = self._core
        return {
            "memory_bytes": core.memory_bytes,
            "run": merged(core.meters(of_runs=True)).as_dict(),
            "stream": merged(core.meters(of_runs=False)).as_dict(),
        }

    @property
    def streamable(self) -> bool:
        """Whether the model can be run one step at a time; if not, `stream()` says which node needs the future."""
        return not self._core._problems

    def describe(self) -> Description:
        """What the model contains, as `fastrnn inspect` shows it; `print` shows it as text, a notebook as tables."""
        return described(self)

    def _repr_html_(self) -> str:
        if self.closed:
            return tables.block(repr(self))
        return self.describe()._repr_html_()

    def __repr__(self) -> str:
        if self.closed:
            return f"<Model {self.name}, closed>"
        ins, outs = (", ".join(map(str, side)) for side in (self.inputs, self.outputs))
        return f"<Model {self.name}: {ins} -> {outs}>"

    # -- whole sequences --
    def run(self, /, *arrays: Input, lengths: Integers | None = None, **named: Input) -> tuple[Array, ...]:
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
        runs = self._runs
        found = runs.run_plain(arrays, named) if runs is not None and lengths is None else None
        return found if found is not None else calls.run(self._core, arrays, named, lengths)

    def __call__(self, /, *arrays: Input, lengths: Integers | None = None, **named: Input) -> Outputs:
        """`run` without the states that a caller would thread: they start at zero (or as the file says).

        Takes and raises what `run` does. Returns one array for a model with one output that isn't a state, else a
        tuple; new memory.
        """
        runs = self._runs
        found = runs.call_plain(arrays, named) if runs is not None and lengths is None else None
        return found if found is not None else calls.call(self._core, arrays, named, lengths)

    # -- streams --
    def stream(
        self,
        batch_size: int | None = None,
        *,
        bind: Mapping[str, Input] | None = None,
        context: int | None = None,
        at_context: Literal["error", "window"] = "error",
    ) -> Stream:
        """A live stream; with batch_size, that many in lock-step.

        If the model leaves a size open (samples per step), the stream's first step fixes it.

        Parameters
        ----------
        batch_size : int, optional
        bind : dict, optional
            Input name -> value of all steps: an encoder's output, a speaker, a setting. Steps don't pass these inputs.
            A value is [features...], for every row of a batch too, or one per row. The stream keeps a copy. It is not
            part of its state. Snapshots have its digest: `restore` refuses those of a stream with another value.
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
        core = self._core
        horizon = core._context(context, at_context)
        if batch_size is not None:
            batch_size = whole_number(batch_size, "batch_size", MOST_STREAMS)
        bound = core._bound(bind) or None
        parts = core._stream_parts(batch_size, horizon, bound)
        return (Stream if core._timetable.plain else PacedStream)(self, core, parts, bound)

    def pool(
        self,
        capacity: int = 1024,
        *,
        bind: Mapping[str, Input] | None = None,
        context: int | None = None,
        at_context: Literal["error", "window"] = "error",
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
        core = self._core
        horizon = core._context(context, at_context)
        from .serving.pool import PacedPool, StreamPool  # a service of single streams does without

        kind = StreamPool if core._timetable.plain else PacedPool
        return kind(self, core, capacity, horizon, core._bound(bind) or None)

    # -- files --
    def save(self, path: StrPath) -> None:
        """Write the model as one .fastrnn file; loading it gives the same bits. The write is atomic.

        Raises
        ------
        ModelFormatError : another suffix, by which `load` would not know the file again. OSError : the file can't be
            written; an old one is unchanged.
        """
        if Path(path).suffix.lower() != ".fastrnn":
            raise ModelFormatError(f"save writes .fastrnn files, got {path}")
        with memory_for(f"save {path}"):
            artifact.save(self.graph, path)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (artifact.to_bytes(self.graph), self.threads)

    def __copy__(self) -> Model:
        return self  # immutable

    def __deepcopy__(self, memo: object) -> Model:
        return self


def _unpickled(blob: bytes, threads: int) -> Model:
    return Model(artifact.load(blob), threads)
