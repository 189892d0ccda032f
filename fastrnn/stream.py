"""Stream: the state of one live sequence, or of several in lock-step, and nothing else."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from . import snapshots, states
from ._executor import StreamCore
from .arguments import check_out, collect, deliver, plain_forms, whole_number
from .errors import ShapeError, StateError, StreamError

if TYPE_CHECKING:
    from .lowering_attention import Context
    from .model import Model


MOST_STREAMS = 1 << 24  # in lock-step; more is a typing error


class Stream(StreamCore):
    """One live sequence; made by `Model.stream()`.

    Streams of one model are independent and may run in different threads at the same time; one stream may be used
    by one thread at a time (a second one gets a `StreamError`). Outputs have the same bits, however the input is
    cut into steps and chunks, and whatever the batch size.
    """

    def __init__(self, model: Model, batch_size: int | None, context: Context | None = None):
        if batch_size is not None:
            batch_size = whole_number(batch_size, "batch_size", MOST_STREAMS)
        self.model = model
        self.batch_size = batch_size
        self._context = context
        model._check_streamable()
        if not model._open_sizes:
            self._begin(model)

    def _begin(self, model: Model) -> None:
        """Lay out the state. A model that leaves sizes open comes here at its first step, with those of that step."""
        batch_size, self._sized = self.batch_size, model
        program, layout, inputs, outputs = model._stream_parts(batch_size, self._context)
        self._names = [a.name for a in inputs]
        self._layout, self._inputs, self._outputs = layout, inputs, outputs
        slab = np.empty((batch_size or 1, layout.size), np.float32)
        slab[:] = layout.initial_row
        sides = (*inputs, *outputs)
        forms = plain_forms(inputs, outputs, batch_size)
        self._open(program, batch_size or 1, slab, bool(forms), *(forms or (None, None)))
        self._time_axis = len(inputs[0]._lead(batch_size)) if inputs else 0
        self._plain_shape = inputs[0].step_shape(batch_size) if forms and all(a.timed for a in sides) else None

    def _step_general(self, x, out):
        """`step` where x is not a plain array of the exact form, or the model has several inputs or outputs."""
        if self.program is None:
            self._begin(self.model._sized_like(x))
            return self.step(x, out)
        outs = check_out(self._outputs, out, self.batch_size)
        arrays = [a.check_step(v, self.batch_size) for a, v in zip(self._inputs, collect(self._names, x), strict=True)]
        results = [np.empty(o.step_shape(self.batch_size), o.stored) for o in self._outputs]
        self._advance(arrays, results, [0] * len(arrays), [0] * len(results), 1)
        return deliver(results, outs)

    def push(self, chunk):
        """Advance by all steps of a chunk, of any length.

        Parameters
        ----------
        chunk : array, shape [T, features...], or [batch_size, T, features...]; T >= 0
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
            self._begin(self.model._sized_like(chunk))
        batch = self.batch_size
        if self._is_plain(chunk):
            span = chunk.shape[self._time_axis]
            result = np.empty(self._outputs[0].chunk_shape(batch, span), np.float32)
            self._advance([chunk], [result], [self._inputs[0].step_bytes], [self._outputs[0].step_bytes], span)
            return result
        given = collect(self._names, chunk)
        arrays = [a.check_chunk(v, batch) for a, v in zip(self._inputs, given, strict=True)]
        lengths = {a.name: a.steps(v, batch) for a, v in zip(self._inputs, arrays, strict=True) if a.timed}
        if len(set(lengths.values())) != 1:
            raise ShapeError(f"inputs of a chunk must have the same number of steps, got {lengths}")
        span = next(iter(lengths.values()))
        results = [np.empty(o.chunk_shape(batch, span), o.stored) for o in self._outputs]
        strides = [[a.step_bytes if a.timed else 0 for a in side] for side in (self._inputs, self._outputs)]
        self._advance(arrays, results, *strides, span)
        if span == 0:
            results = [r if o.timed else None for o, r in zip(self._outputs, results, strict=True)]
        return deliver(results, None)

    def _is_plain(self, chunk) -> bool:
        """A chunk that needs no check besides this one, in a model of one input and one output: 2 us instead of 14."""
        if type(chunk) is not np.ndarray or self._plain_shape is None or chunk.dtype != np.float32:
            return False
        axis, shape, flags = self._time_axis, chunk.shape, chunk.flags
        return shape[:axis] + shape[axis + 1 :] == self._plain_shape and flags.c_contiguous and flags.aligned

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Every state by name, as in `Model.states`; copies. Assign a dict of the same form to replace it.

        A state that the file threads through an input has that input's own dims; a cell's own is [hidden_size], or
        [batch_size, hidden_size].
        """
        with self._alone():
            return states.exported(self._layout, self.model.graph, self.slab, self.batch_size is None)

    @state.setter
    def state(self, new):
        with self._alone():
            states.load(self._layout, self.model.graph, self.slab, new, self.batch_size is None)

    def reset(self) -> None:
        """Back to the initial state, as after opening; sizes that the first step fixed stay."""
        if self.program is None:
            return
        with self._alone():
            self.slab[:] = self._layout.initial_row
            self.steps_done = 0

    def copy(self) -> Stream:
        """An independent stream in the same state."""
        other = type(self)(self.model, self.batch_size, self._context)
        if self.program is None:
            return other
        if other.program is None:
            other._begin(self._sized)
        with self._alone():
            other.slab[:] = self.slab
            other.steps_done = self.steps_done
        return other

    __copy__ = copy

    def __deepcopy__(self, memo) -> Stream:
        return self.copy()

    def __reduce__(self):
        raise TypeError("a stream can't be pickled: keep a `snapshot`, and the model as a .fastrnn file")

    @contextmanager
    def _alone(self):
        """Hold the stream: a thread that uses it meanwhile gets a StreamError."""
        if self.program is None:
            text = ", ".join(self.model._open_sizes)
            raise StreamError(f"{text} is known from the first step on: take one, or load the model with sizes=")
        self._hold()
        try:
            yield
        finally:
            self._release()

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
            rows, n, (ended, still) = self._layout.rows(self.slab), self.slab.shape[0], self._tail()
            steps, sizes = np.full(n, self.steps_done), self._sized._given_sizes
            taken = snapshots.Snapshot(steps, rows, None, sizes, np.full(n, ended), still)
        return snapshots.to_bytes(taken, self.model.fingerprint, self.model.name, path)

    def restore(self, source) -> None:
        """Go on where a snapshot was taken, with the same bits on the same instruction set.

        Parameters
        ----------
        source : bytes of `snapshot`, or the path of a file; of a stream of as many rows, or of a pool's slot

        Raises
        ------
        StateError : a damaged, truncated or later snapshot, one of another model or of another number of streams.
        Nothing has changed then.
        """
        taken = snapshots.read(source, self.model.fingerprint, self.model.name)
        n = self.batch_size or 1
        if len(taken.steps) != n or taken.slots is not None:
            kind = f"{len(taken.steps)} streams" if taken.slots is None else "a whole pool"
            raise StateError(f"the snapshot is of {kind}, this stream has {n} row{'s' * (n > 1)}")
        if (taken.steps != taken.steps[0]).any() or (taken.ended != taken.ended[0]).any():
            raise StateError("the snapshot's streams have taken different numbers of steps, rows in lock-step have not")
        if self.program is None:
            self._begin(self.model._sized_as(taken.sizes))
        elif taken.sizes != self._sized._given_sizes:
            raise StateError(f"the snapshot has the sizes {taken.sizes}, this stream {self._sized._given_sizes}")
        with self._alone():
            tail = self._checked_tail(bool(taken.ended[0]), taken.still)
            self._layout.load_rows(self.slab, taken.rows)
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
        outputs = [np.empty(o.chunk_shape(self.batch_size, 0), o.dtype) if o.timed else None for o in self._outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def __repr__(self):
        size = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        delay = f", delay {self.delay}" if self.delay else ""
        return f"<Stream of {self.model.name}{size}, {self.steps_done} steps{delay}>"
