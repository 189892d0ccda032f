"""StreamPool: many independent streams of one model, each with a slot, stepped together in any subset and order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from . import dims as D
from . import forks, snapshots, states
from ._pool import PoolCore
from .arguments import check_out, collect, deliver, plain_forms, whole_number
from .errors import ShapeError, StateError

if TYPE_CHECKING:
    from .lowering_attention import Context
    from .model import Model

MOST_SLOTS = 1 << 24  # places that a slot's number has room for


class StreamPool(PoolCore):
    """Many independent streams of one model in one slab of states; made by `Model.pool(capacity=...)`.

    A stream is opened and closed by its slot, an int. A slot that was closed is refused for good, also after its place
    has been opened for another stream. A call steps any of the open slots, in any order; each stream's outputs have the
    bits that a lone `Stream` fed the same data has, whatever its neighbours are.

    Threads may share a pool: calls take turns. Calls of different pools run side by side.

    Attributes
    ----------
    model : the Model
    capacity : how many streams there is room for; `grow` makes more
    slab : float32 [capacity, state_size], the states by place; to look at, not to write to
    """

    def __init__(self, model: Model, capacity: int, context: Context | None = None):
        capacity = whole_number(capacity, "capacity", MOST_SLOTS)
        self.model, self._context = model, context
        model._check_streamable()
        with _memory_for(model, capacity):
            self._resize(capacity)
        if not model._open_sizes:
            self._lay_out(model)
        forks.register(self)

    def _lay_out(self, model: Model) -> None:
        """Make the slab. A model that leaves sizes open comes here at the first step, with those of that step."""
        parts = model._stream_parts(None, self._context)
        program, inputs, outputs = parts.program, parts.inputs, parts.outputs
        plan, sides = program.plan, (*inputs, *outputs)
        shared = not all(a.batched for a in sides)
        batch = plan.has_batch
        steady, sizes = 1, {"time": 1, "span": 1}
        if (
            plan.paced and plan.timetable is not None
        ):  # what `Program` has in the place of the time: the number of a step's counts
            counts = plan.timetable.counts(plan.timetable.start, 1)
            steady, sizes = counts.number, plan.timetable.sizes(counts.number)
        row_bytes = program.arena_bytes(2, steady) - program.arena_bytes(1, steady) if batch else 0
        row_flops = float(D.evaluate(plan.flops, sizes | {"batch": 1}))
        forms, timed = [] if shared else plain_forms(inputs, outputs), all(a.timed for a in sides)
        with _memory_for(model, self.capacity):
            self._begin(program, parts.layout.initial_row, batch, shared, row_bytes, row_flops, forms, timed)
        self._parts, self._layout, self._inputs, self._outputs = parts, parts.layout, inputs, outputs
        self._names = parts.names

    # -- slots --
    def open(self) -> int:
        """A slot for a new stream, in the model's initial state.

        Raises
        ------
        StateError : all slots are open.
        """
        with self._alone():
            return self._open()

    def close(self, slot: int) -> None:
        """End a stream; its place is free for another one. The slot is refused from here on.

        Raises
        ------
        StateError : the slot is not open.
        """
        with self._alone():
            self._close(self._place(slot))

    def reset(self, slot: int) -> None:
        """Back to the initial state, as after opening. Raises StateError where the slot is not open."""
        with self._alone():
            self._reset(self._place(slot))

    def copy(self, slot: int) -> int:
        """A new slot whose stream is in the same state. Raises StateError where the slot is closed, or none is free."""
        with self._alone():
            return self._copy(self._place(slot))

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` streams; open slots stay as they are. A smaller number is a StateError.

        The slab is copied, so for a moment both are there.
        """
        capacity = whole_number(capacity, "capacity", MOST_SLOTS)
        with self._alone():
            if capacity < self.capacity:
                raise StateError(f"grow({capacity}): the pool has room for {self.capacity} already, and never shrinks")
            with _memory_for(self.model, capacity):
                self._resize(capacity)

    @property
    def slots(self) -> np.ndarray:
        """The open slots, int64 [open], in the order of their places."""
        with self._alone():
            return self._open_slots()

    def __len__(self) -> int:
        """How many slots are open."""
        return self._n_open

    def __contains__(self, slot) -> bool:
        """Whether a slot is open."""
        try:
            self._place(slot)
        except StateError:
            return False
        return True

    def _require_open(self, slot) -> None:
        """StateError where a slot is not open; without waiting for a call of another thread."""
        self._place(slot)

    def _size_like(self, x) -> None:
        """Lay out the slab for the sizes of x, the argument of a step, where the model leaves them open."""
        if self.program is None:
            with self._alone():
                if self.program is None:
                    self._lay_out(self.model._sized_like(x))

    def __iter__(self) -> Iterator[int]:
        return iter(self.slots.tolist())

    # -- steps --
    def _step_general(self, n: int, x, out):
        """`step` of the n slots found, where x is not a plain array or the model has several inputs or outputs."""
        if self.program is None:
            self._lay_out(self.model._sized_like(x))
        outs = check_out(self._outputs, out, n)
        arrays = [a.check_step(v, n) for a, v in zip(self._inputs, collect(self._names, x), strict=True)]
        results = [np.empty(o.step_shape(n), o.stored) for o in self._outputs]
        moves = [a.step_bytes if a.batched else 0 for a in (*self._inputs, *self._outputs)]
        self._advance(n, [*arrays, *results], moves)
        return deliver(results, outs)

    def push(self, slots, chunks) -> list:
        """Advance each stream in `slots` by a chunk of its own length.

        At each step as many rows are run as streams have it: the longest chunks go first, nothing is padded.

        Parameters
        ----------
        slots : ints that `open` returned, an array or sequence of shape [n]; any of them, in any order, none twice
        chunks : sequence of n; chunks[i] is [T_i, features...], T_i >= 0; dtypes as in `Model.run`
            For a model with several inputs each is a tuple or dict; an input without a time axis has none here.

        Returns
        -------
        list of n arrays [T_i, features...]: the step outputs, new memory. For an output that the model reduces over
        time: [features...], the value as if the sequence ended here, and None where T_i is 0. For several outputs each
        is a tuple.

        Raises
        ------
        StateError, ShapeError : as `step`. After an error, and after Ctrl-C, no state has changed.
        """
        with self._alone():
            n = self._find(slots)
            chunks = self._listed(n, chunks)
            if n == 0:
                return []
            if self.program is None:
                self._lay_out(self.model._sized_like(chunks[0]))
            plain = self._push_plain(n, chunks)
            if plain is not None:
                return plain
            given = [self._check_chunk(i, c) for i, c in enumerate(chunks)]
            lengths = np.array([length for length, _ in given], np.int64)
            results = [[np.empty(o.chunk_shape(None, t), o.stored) for o in self._outputs] for t in lengths.tolist()]
            sides = (*self._inputs, *self._outputs)
            rows = [[*arrays, *made] for (_, arrays), made in zip(given, results, strict=True)]
            columns = [[row[i] for row in rows] for i in range(len(sides))]
            moves, timed = [a.step_bytes for a in sides], [a.timed for a in sides]
            self._push(n, lengths, columns, moves, timed, len(self._inputs))
        return [deliver(self._seen(t, made), None) for t, made in zip(lengths.tolist(), results, strict=True)]

    @staticmethod
    def _listed(n: int, chunks) -> list:
        """The chunks of n slots."""
        if isinstance(chunks, Mapping) or not isinstance(chunks, Iterable):
            raise ShapeError(f"chunks are a sequence with one for each slot, got {type(chunks).__name__}")
        found = list(chunks)
        if len(found) != n:
            raise ShapeError(f"{n} slots take {n} chunks, got {len(found)}")
        return found

    def _seen(self, steps: int, made: list) -> list:
        """None for what a chunk of no steps has no value of."""
        return made if steps else [r if o.timed else None for o, r in zip(self._outputs, made, strict=True)]

    def _check_chunk(self, i: int, chunk) -> tuple[int, list[np.ndarray]]:
        """(steps, the arrays of all inputs) of chunk number i."""
        try:
            given = collect(self._names, chunk)
            arrays = [a.check_chunk(v, None) for a, v in zip(self._inputs, given, strict=True)]
            lengths = {a.name: a.steps(v, None) for a, v in zip(self._inputs, arrays, strict=True) if a.timed}
            if len(set(lengths.values())) != 1:
                raise ShapeError(f"inputs of a chunk must have the same number of steps, got {lengths}")
        except ShapeError as error:
            raise ShapeError(f"chunk {i}: {error}") from None
        return next(iter(lengths.values())), arrays

    def flush(self, slot: int):
        """The outputs of a stream that were held back: of a model that does not look ahead none, as `Stream.flush`."""
        with self._alone():
            self._place(slot)
            self._require_sizes()
            empty = [np.empty(o.chunk_shape(None, 0), o.stored) if o.timed else None for o in self._outputs]
        return deliver(empty, None)

    # -- states --
    def state(self, slot: int) -> dict[str, np.ndarray]:
        """Every state of a stream by name, as `Stream.state` has it; copies. StateError: the slot is not open."""
        with self._alone():
            place = self._place(slot)
            self._require_sizes()
            return self._states(place)

    def set_state(self, slot: int, state: dict[str, Any]) -> None:
        """Replace every state of a stream by a dict of the form that `state` returns.

        Raises
        ------
        StateError : the slot is not open; a state is missing or unknown. ShapeError : dtype or shape of one.
        Nothing has changed then.
        """
        with self._alone():
            place = self._place(slot)
            self._require_sizes()
            self._set_states(place, state)

    def _states(self, place: int) -> dict[str, np.ndarray]:
        """`state` of the stream in a place."""
        return states.exported(self._layout, self.model.graph, self.slab[place : place + 1], True)

    def _set_states(self, place: int, state) -> None:
        """Inverse of `_states`."""
        states.load(self._layout, self.model.graph, self.slab[place : place + 1], state, True)

    def steps_done(self, slot: int) -> int:
        """Steps that a stream has taken since it was opened, reset or restored. StateError: the slot is not open."""
        with self._alone():
            return self._steps(self._place(slot))

    # -- snapshots --
    def snapshot(self, slot: int, path=None) -> bytes:
        """A stream's state and step count as bytes, for `restore` here, in another pool or process, or in a `Stream`.

        Parameters
        ----------
        path : where they are written too, optional; the file there is replaced as a whole or not at all

        Raises
        ------
        StateError : the slot is not open. OSError : the file can't be written.
        """
        with self._alone():
            taken = self._take_snapshot([self._place(slot)], None)
        return snapshots.to_bytes(taken, self.model.fingerprint, self.model.name, path)

    def snapshot_all(self, path=None) -> bytes:
        """`snapshot` of every open slot, for `restore_all`."""
        with self._alone():
            slots = self._open_slots()
            taken = self._take_snapshot(slots & (MOST_SLOTS - 1), slots)
        return snapshots.to_bytes(taken, self.model.fingerprint, self.model.name, path)

    def _take_snapshot(self, places, slots) -> snapshots.Snapshot:
        self._require_sizes()
        steps = np.array([self._steps(int(p)) for p in places], np.int64)
        rows, ended = self._layout.rows(self.slab[places]), np.zeros(len(steps), np.bool_)
        return snapshots.Snapshot(steps, rows, slots, self._parts.sizes, ended, {})

    def restore(self, source) -> int:
        """A new slot that goes on where a snapshot was taken, with the same bits on the same instruction set.

        Parameters
        ----------
        source : bytes of `snapshot` of a slot or of a lone `Stream`, or the path of a file

        Raises
        ------
        StateError : a damaged, truncated or later snapshot, one of another model or of several streams; no free slot.
        """
        taken = snapshots.read(source, self.model.fingerprint, self.model.name)
        if taken.slots is not None or len(taken.steps) != 1:
            raise StateError(f"the snapshot is of {len(taken.steps)} streams: restore_all takes those of a pool")
        with self._alone():
            return self._open_from(taken)[0]

    def restore_all(self, source) -> dict[int, int]:
        """New slots for all streams of a `snapshot_all`: {slot when it was taken: slot here}.

        Raises
        ------
        StateError : as `restore`; or not as many slots are free, then none is opened.
        """
        taken = snapshots.read(source, self.model.fingerprint, self.model.name)
        if taken.slots is None:
            raise StateError("the snapshot is of a stream, not of a whole pool: restore takes it")
        with self._alone():
            return dict(zip(taken.slots.tolist(), self._open_from(taken), strict=True))

    def _open_from(self, taken: snapshots.Snapshot) -> list[int]:
        if taken.ended.any() or taken.still:
            raise StateError("the snapshot is of a stream that looks ahead, which this model's do not")
        n, free = len(taken.steps), self.capacity - self._n_open
        if n > free:
            raise StateError(f"the snapshot needs {n} slots, {free} of {self.capacity} are free: grow the pool first")
        if self.program is None:
            self._lay_out(self.model._sized_as(taken.sizes))
        elif taken.sizes != self._parts.sizes:
            raise StateError(f"the snapshot has the sizes {taken.sizes}, this pool {self._parts.sizes}")
        rows = np.empty((n, self.slab.shape[1]), np.float32)
        self._layout.load_rows(rows, taken.rows)
        slots = [self._open() for _ in range(n)]
        places = np.array(slots, np.int64) & (MOST_SLOTS - 1)
        self.slab[places] = rows
        for place, steps in zip(places.tolist(), taken.steps.tolist(), strict=True):
            self._set_steps(place, steps)
        return slots

    def _require_sizes(self) -> None:
        if self.program is None:
            text = ", ".join(self.model._open_sizes)
            raise StateError(f"{text} is known from the first step on: take one, or load the model with sizes=")

    @property
    def memory_bytes(self) -> int:
        """Bytes of the slab and the slots' tables at full use. The model's weights, and the scratch that all its pools
        and streams share, are `model.memory_bytes`. The system gives a place's memory only when it is first opened."""
        return self._table_bytes + (0 if self.program is None else self.slab.nbytes)

    # -- the rest --
    def __copy__(self):
        raise TypeError("a pool can't be copied: open another one, and restore snapshots into it")

    def __deepcopy__(self, memo):
        return self.__copy__()

    def __reduce__(self):
        raise TypeError("a pool can't be pickled: keep snapshots of its streams, and the model as a .fastrnn file")

    def __repr__(self):
        return f"<StreamPool of {self.model.name}, {len(self)} of {self.capacity} slots open>"


@contextmanager
def _memory_for(model: Model, capacity: int):
    """StateError instead of NumPy's MemoryError."""
    try:
        yield
    except MemoryError:
        raise StateError(f"no memory for a pool of {capacity} streams of {model.name}") from None
