"""Stream: the state of one live sequence, or of several in lock-step, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import snapshots, states
from ._executor import StreamCore, StreamParts
from .arguments import check_out, collect, deliver
from .errors import ShapeError, StateError, StreamError

if TYPE_CHECKING:
    from .model import Model


class Stream(StreamCore):
    """One live sequence; made by `Model.stream()`.

    Streams of one model are independent and may run in different threads at the same time; one stream may be used
    by one thread at a time (a second one gets a `StreamError`). Outputs have the same bits, however the input is
    cut into steps and chunks, and whatever the batch size.

    Attributes
    ----------
    model : the Model
    batch_size : None, or how many rows are in lock-step
    steps_done : steps taken since opening, `reset` or `restore`
    """

    __slots__ = ("__weakref__", "model")  # and no dict: thousands of streams cost their states

    def __init__(self, model: Model, parts: StreamParts):
        self.model = model
        self._take_parts(parts)

    def _take_parts(self, parts: StreamParts) -> None:
        try:
            self._begin(parts)
        except MemoryError:
            rows = f"{parts.batch} streams in lock-step" if parts.batch_size else "a stream"
            raise StateError(f"no memory for {rows} of {self.model.name}") from None

    def _size_like(self, x) -> None:
        """Lay out the state for the sizes of x, the argument of a first step or push, where the model leaves them
        open."""
        with self._held():
            if self.program is None:
                self._begin_sized(self.model._sized_like(x))

    def _begin_sized(self, sized: Model) -> None:
        self._take_parts(sized._stream_parts(self.batch_size, self._parts.context))

    def _step_general(self, x, out):
        """`step` where x is not a plain array of the exact form, or the model has several inputs or outputs."""
        if self.program is None:
            self._size_like(x)
            return self.step(x, out)
        inputs, outputs, batch = self._parts.inputs, self._parts.outputs, self.batch_size
        outs = check_out(outputs, out, batch)
        arrays = [a.check_step(v, batch) for a, v in zip(inputs, collect(self._parts.names, x), strict=True)]
        results = [np.empty(o.step_shape(batch), o.stored) for o in outputs]
        self._advance(arrays, results, [0] * len(arrays), [0] * len(results), 1)
        return deliver(results, outs)

    def push(self, chunk):
        """Advance by all steps of a chunk, of any length.

        Parameters
        ----------
        chunk : array or list, shape [T, features...], or [batch_size, T, features...]; T >= 0; dtypes as in `Model.run`
            A model with several inputs takes a tuple or dict; an input without a time axis has none here.

        Returns
        -------
        array [T, features...] or [batch_size, T, features...]: the step outputs. Of a model that looks ahead or
        changes the rate, those that come with these steps, which may be fewer, none or more. For an output that the
        model reduces over time: [features...] or [batch_size, features...], the value as if the sequence ended here,
        and None where T is 0. A tuple for several outputs.

        Raises
        ------
        ShapeError, StreamError : as `step`.
        """
        if self.program is None:
            self._size_like(chunk)
        inputs, outputs, batch = self._parts.inputs, self._parts.outputs, self.batch_size
        if self._is_plain(chunk):
            span = chunk.shape[self._parts.time_axis]
            result = np.empty(outputs[0].chunk_shape(batch, span), np.float32)
            self._advance([chunk], [result], [inputs[0].step_bytes], [outputs[0].step_bytes], span)
            return result
        arrays, span = self._checked_chunk(chunk)
        results = [np.empty(o.chunk_shape(batch, span), o.stored) for o in outputs]
        strides = [[a.step_bytes if a.timed else 0 for a in side] for side in (inputs, outputs)]
        self._advance(arrays, results, *strides, span)
        if span == 0:
            results = [r if o.timed else None for o, r in zip(outputs, results, strict=True)]
        return deliver(results, None)

    def _checked_chunk(self, chunk) -> tuple[list[np.ndarray], int]:
        """The arrays of all inputs of a chunk, and its steps."""
        inputs, batch = self._parts.inputs, self.batch_size
        arrays = [a.check_chunk(v, batch) for a, v in zip(inputs, collect(self._parts.names, chunk), strict=True)]
        lengths = {a.name: a.steps(v, batch) for a, v in zip(inputs, arrays, strict=True) if a.timed}
        if len(set(lengths.values())) != 1:
            raise ShapeError(f"inputs of a chunk must have the same number of steps, got {lengths}")
        return arrays, next(iter(lengths.values()))

    def _is_plain(self, chunk) -> bool:
        """A chunk that needs no check besides this one, in a model of one input and one output: 2 us instead of 14."""
        plain = self._parts.plain_shape
        if type(chunk) is not np.ndarray or plain is None or chunk.dtype != np.float32:
            return False
        axis, shape, flags = self._parts.time_axis, chunk.shape, chunk.flags
        return shape[:axis] + shape[axis + 1 :] == plain and flags.c_contiguous and flags.aligned

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Every state by name, as in `Model.states`; copies. Assign a dict of the same form to replace it.

        A state that the file threads through an input has that input's own dims; a cell's own is [hidden_size], or
        [batch_size, hidden_size].
        """
        with self._alone():
            return self._states()

    @state.setter
    def state(self, new):
        with self._alone():
            self._set_states(new)

    def _states(self) -> dict[str, np.ndarray]:
        """`state`, of a stream that is held."""
        return states.exported(self._parts.layout, self.model.graph, self.slab, self.batch_size is None)

    def _set_states(self, new) -> None:
        """Inverse of `_states`."""
        states.load(self._parts.layout, self.model.graph, self.slab, new, self.batch_size is None)

    def reset(self) -> None:
        """Back to the initial state, as after opening; sizes that the first step fixed stay."""
        with self._held():
            if self.program is not None:
                self.slab[:] = self._parts.layout.initial_row
            self.steps_done = 0
            self._set_tail(False, [])

    def copy(self) -> Stream:
        """An independent stream in the same state."""
        with self._held():
            other = type(self)(self.model, self._parts)
            if self.program is not None:
                other.slab[:] = self.slab
            other.steps_done = self.steps_done
            other._set_tail(*self._own_tail())
        return other

    __copy__ = copy

    def __deepcopy__(self, memo) -> Stream:
        return self.copy()

    def __reduce__(self):
        raise TypeError("a stream can't be pickled: keep a `snapshot`, and the model as a .fastrnn file")

    def _alone(self):
        """Hold the stream, a context manager: a thread that uses it meanwhile gets a StreamError."""
        if self.program is None:
            text = ", ".join(self.model._open_sizes)
            raise StreamError(f"{text} is known from the first step on: take one, or load the model with sizes=")
        return self._held()

    def snapshot(self, path=None) -> bytes:
        """The stream's state and step count as bytes, for `restore` here or in another process; see `snapshots.py`.

        Parameters
        ----------
        path : where they are written too, optional; the file there is replaced as a whole or not at all

        Raises
        ------
        StreamError : another thread is using this stream. OSError : the file can't be written.
        """
        with self._alone():
            n, (ended, still) = self.batch, self._tail()
            rows, steps = self._parts.layout.rows(self.slab), np.full(n, self.steps_done)
            taken = snapshots.Snapshot(steps, rows, None, self._parts.sizes, np.full(n, ended), still)
        return snapshots.to_bytes(taken, self.model.fingerprint, self.model.name, path)

    def restore(self, source) -> None:
        """Go on where a snapshot was taken, with the same bits on the same instruction set.

        Parameters
        ----------
        source : bytes of `snapshot`, or the path of a file; of a stream of as many rows, or of a pool's slot

        Raises
        ------
        StateError : a damaged, truncated or later snapshot, one of another model or of another number of streams.
        StreamError : another thread is using this stream. Nothing has changed then.
        """
        taken = snapshots.read(source, self.model.fingerprint, self.model.name)
        n = self.batch_size or 1
        if len(taken.steps) != n or taken.slots is not None:
            kind = f"{len(taken.steps)} streams" if taken.slots is None else "a whole pool"
            raise StateError(f"the snapshot is of {kind}, this stream has {n} row{'s' * (n > 1)}")
        if (taken.steps != taken.steps[0]).any() or (taken.ended != taken.ended[0]).any():
            raise StateError("the snapshot's streams have taken different numbers of steps, rows in lock-step have not")
        with self._held():
            if self.program is None:
                self._begin_sized(self.model._sized_as(taken.sizes))
            elif taken.sizes != self._parts.sizes:
                raise StateError(f"the snapshot has the sizes {taken.sizes}, this stream {self._parts.sizes}")
            tail = self._checked_tail(bool(taken.ended[0]), taken.still)
            self._parts.layout.load_rows(self.slab, taken.rows)
            self.steps_done = int(taken.steps[0])
            self._set_tail(*tail)

    def _tail(self) -> tuple[bool, dict[str, np.ndarray]]:
        """What a stream knows besides its states and steps: whether it was flushed, and its last inputs without time,
        [batch, ...]. Only one that looks ahead has any of it."""
        return False, {}

    def _checked_tail(self, ended: bool, still: dict[str, np.ndarray]):
        """Inverse of `_tail`, first half: StateError where a snapshot's is not one of this stream."""
        if ended or still:
            raise StateError("the snapshot is of a stream that looks ahead, which this model's do not")
        return ended, []

    def _own_tail(self) -> tuple[bool, list]:
        """What `_set_tail` takes."""
        return False, []

    def _set_tail(self, ended: bool, still: list) -> None:
        """Inverse of `_tail`, second half."""

    @property
    def delay(self) -> int:
        """Steps of input that must be seen beyond step t before step t of the outputs comes; of an output at another
        rate, the step that belongs to input step t. 0 where nothing looks ahead."""
        return self.model.delay

    def flush(self):
        """End the sequence: the outputs still held back by `delay`, as `push` returns them.

        A model that looks ahead has now seen the padding at the end, and all outputs together are those of the whole
        run; its stream takes no more steps until `reset`. Where nothing looks ahead, nothing is held back: a chunk of
        no steps is returned (None for an output that is reduced over time), and the stream may go on.
        """
        with self._alone():
            outs = self._parts.outputs
        return deliver([np.empty(o.chunk_shape(self.batch_size, 0), o.stored) if o.timed else None for o in outs], None)

    def __repr__(self):
        size = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        delay = f", delay {self.delay}" if self.delay else ""
        return f"<Stream of {self.model.name}{size}, {self.steps_done} steps{delay}>"
