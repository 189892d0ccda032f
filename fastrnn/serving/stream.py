"""Stream: the state of one live sequence, or of several in lock-step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from .. import tables
from ..errors import StateError, StreamError, memory_for
from ..machine.files import replace_file
from ..runtime import snapshots, states
from ..runtime._parts import StreamParts
from ..runtime.arguments import check_out, chunk_arrays, deliver, step_arrays
from ..runtime.compiled import Compiled
from ..runtime.migration import Fitting
from ..streaming.timetable import Timetable
from ..typing import Array, Blob, Input, StepOutputs, StrPath
from . import shown
from ._stream import StreamCore

if TYPE_CHECKING:
    from ..model import Model


class Stream(StreamCore):
    """One live sequence; made by `Model.stream()`.

    Streams of one model are independent and may run in different threads at the same time; one stream may be used
    by one thread at a time (a second one gets a `StreamError`). Outputs have the same bits for every division of the
    input into steps and chunks, and for every batch size. `close`, or the end of a `with` block, frees the states.

    Attributes
    ----------
    model : the Model
    batch_size : the number of rows in lock-step, or None
    bound : the values of inputs that `stream(bind=...)` fixed, by name; None if there are none
    steps_done : steps taken since opening, `reset` or `restore`
    """

    __slots__ = (
        "__weakref__",
        "bound",
        "model",
    )  # and no dict, so that thousands of streams take little more than their states

    model: Model
    bound: dict[str, Array] | None

    def __init__(self, model: Model, core: Compiled, parts: StreamParts, bound: dict[str, Array] | None = None):
        self.model, self._compiled, self.bound = model, core, bound
        self._take_parts(parts)

    def _take_parts(self, parts: StreamParts) -> None:
        rows = f"{parts.batch} streams in lock-step" if parts.batch_size else "a stream"
        with memory_for(f"{rows} of {self._core.name}"):
            self._begin(parts)

    @property
    def _core(self) -> Compiled:
        """What runs the stream; StreamError if it is closed."""
        self._check_open()
        return self._compiled

    def __enter__(self) -> Stream:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _size_like(self, x) -> None:
        """Lay out the state for the sizes of x, the argument of a first step or push, if the model leaves them open."""
        with self._held():
            if self.program is None:
                self._begin_sized(self._core._sized_like(x, self.bound))

    def _begin_sized(self, sized: Compiled) -> None:
        self._take_parts(sized._stream_parts(self.batch_size, self._parts.context, self.bound))

    # -- calls --
    def _step_general(self, x, out):
        """`step` if x is not a plain array of the exact form, or the model has several inputs or outputs."""
        if self.program is None:
            self._size_like(x)
            return self.step(x, out)
        parts, batch = self._parts, self.batch_size
        self._check_room(1)
        if out is not None and any(parts.many):
            raise StreamError(f"{self._core.name}: a step may bring several steps of an output, so it takes no out")
        outs = check_out(parts.outputs, out, batch)
        return deliver(self._take(step_arrays(parts, x, batch), 1, one=True), outs)

    def _push_general(self, chunk):
        """`push`, under the same conditions."""
        if self.program is None:
            self._size_like(chunk)
            return self.push(chunk)
        self._check_room(0)
        return deliver(self._take(*chunk_arrays(self._parts, chunk, self.batch_size)), None)

    @property
    def delay(self) -> int:
        """Input steps that must be seen beyond step t before step t of the outputs is returned (at another rate: the
        output step that belongs to input step t). 0 if nothing looks ahead."""
        return self._core.delay

    def flush(self) -> StepOutputs:
        """End the sequence. Returns the outputs still held back by `delay`, in the form of `push`.

        A model that looks ahead has now seen the padding at the end, and all outputs together are those of the whole
        run. Its stream takes no more steps until `reset`. If the sequence is too short for a window of the model (a
        whole run rejects it), nothing more is returned. If nothing looks ahead, nothing is held back: an empty chunk is
        returned (None for an output that is reduced over time), and the stream may continue.
        """
        self._require_sizes()
        return deliver(self._take(None, 0, final=True), None)

    # -- state --
    @property
    def state(self) -> dict[str, Array]:
        """Every state by name, as in `Model.states`; copies. Assign a dict of the same form to replace it.

        A state that the file threads through an input has that input's own dims; a cell's own is [hidden_size], or
        [batch_size, hidden_size].
        """
        self._require_sizes()
        with self._held():
            lone, steps = self.batch_size is None, self.steps_done
            return states.exported(self._parts, self._core.graph, self._rows(), lone, steps, self.ended)

    @state.setter
    def state(self, new: Mapping[str, Input]) -> None:
        self._require_sizes()
        with self._held():
            lone, steps = self.batch_size is None, self.steps_done
            self.steps_done, self.ended = states.load(self._parts, self._core.graph, self._rows(), new, lone, steps)

    def reset(self) -> None:
        """Reset to the initial state, as after opening. Sizes fixed by the first step stay.

        Raises
        ------
        StreamError : another thread is using this stream, or it is closed.
        """
        with self._held():
            if self.program is not None:
                self._rows()[:] = self._parts.layout.initial_row
            self.steps_done, self.ended, self.still = 0, False, None

    def copy(self) -> Stream:
        """An independent stream with the same state. StreamError: another thread is using this one."""
        with self._held():
            other = type(self)(self.model, self._core, self._parts, self.bound)
            if self.program is not None:
                other._rows()[:] = self._rows()
            other.steps_done, other.ended, other.still = self.steps_done, self.ended, self.still
        return other

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> Stream:
        return self.copy()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream can't be pickled: keep a `snapshot`, and the model as a .fastrnn file")

    def _require_sizes(self) -> None:
        if self.program is None:
            raise StreamError(self._core._sizes_come_later)

    @memory_for("snapshot")
    def snapshot(self, path: StrPath | None = None) -> bytes:
        """The stream's state and step count as bytes, for `restore` here or in another process; see `snapshots.py`.

        Parameters
        ----------
        path : optional file to write them to as well; an existing file is replaced atomically

        Raises
        ------
        StreamError : another thread is using this stream. OSError : the file can't be written.
        """
        self._require_sizes()
        with self._held():
            parts, n, still = self._parts, self.batch, []
            for a, v in zip(parts.still, self.still or (), strict=False):
                still.append(np.broadcast_to(v if a._lead(self.batch_size) else v[None], (n, *a.features)))
            steps, ended = np.full(n, self.steps_done), np.full(n, self.ended)
            about = self._core._snapshot_about(parts, self.bound)
            taken = snapshots.Snapshot(steps, self._rows().copy(), slots=None, ended=ended, still=still, **about)
        blob = snapshots.to_bytes(taken)
        if path is not None:
            replace_file(path, blob, private=True)
        return blob

    @memory_for("restore")
    def restore(self, source: Blob | StrPath, *, migrate: bool = False) -> None:
        """Continue from a snapshot, with the same bits on the same instruction set.

        The snapshot may come from a model of another file, format or release if it means the same: names, the order of
        nodes and what the passes made of it don't matter.

        Parameters
        ----------
        source : bytes of `snapshot`, or the path of a file; of a stream of as many rows, or of a pool's slot
        migrate : also take a snapshot of a model with other weights and the same states: as many of the same kinds and
            shapes, in the order of the dataflow; or one of format 1. A `FastRNNWarning` says what differs.

        Raises
        ------
        StateError : a damaged, truncated or later snapshot, one of another model or of another number of streams.
        StreamError : another thread is using this stream. Nothing has changed then.
        """
        self._check_open()
        taken = snapshots.read(source)
        fitting = Fitting([taken], self._core, migrate)
        n = self.batch_size or 1
        if len(taken.steps) != n or taken.slots is not None:
            kind = f"{len(taken.steps)} streams" if taken.slots is None else "a whole pool"
            raise StateError(f"the snapshot is of {kind}, this stream has {n} row{'s' * (n > 1)}")
        if (taken.steps != taken.steps[0]).any() or (taken.ended != taken.ended[0]).any():
            raise StateError("the snapshot's streams have taken different numbers of steps, rows in lock-step have not")
        with self._held():
            if self.program is None:
                self._begin_sized(self._core._sized_as(taken.sizes))
            parts = self._parts
            arrays, rows = fitting.fit(taken, "stream", parts, self.bound)
            lead = [bool(a._lead(self.batch_size)) for a in parts.still]
            known = zip(arrays, lead, strict=True) if taken.knows(0) else ()
            self._rows()[:] = rows
            still = [np.array(v if batched else v[0]) for v, batched in known]
            self.steps_done, self.ended, self.still = int(taken.steps[0]), bool(taken.ended[0]), still
        fitting.warn()

    def _repr_html_(self) -> str:
        return tables.block(repr(self)) if self.closed else shown.stream(self)

    def __repr__(self) -> str:
        if self.closed:
            return f"<Stream of {self.model.name}, closed>"
        size = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        delay = f", delay {self.delay}" if self.delay else ""
        return f"<Stream of {self._core.name}{size}, {self.steps_done} steps{delay}>"


class PacedStream(Stream):
    """One live sequence of a model whose outputs don't come one per step; made by `Model.stream()`.

    The outputs of a model that looks ahead lag (`delay`). A stride returns one every few steps, a transposed
    convolution several at once. `step` returns None if there is no output, and then leaves `out` untouched. If one step
    may return several steps of an output, it has a first axis (after the batch's) for them in `step` too, and takes no
    `out`. A value over all steps (the last one, a mean) is that of a whole run of the steps so far. If the model looks
    ahead, each call computes it by a second call, on the padding that the end would add. It is None if that run has no
    steps.
    """

    __slots__ = ()

    @property
    def _timetable(self) -> Timetable:
        self._check_open()
        return self._parts.timetable

    @property
    def phase(self) -> int:
        """A number: streams of one model with equal phases take and return the same steps in a call."""
        return self._timetable.phase(self.steps_done)
