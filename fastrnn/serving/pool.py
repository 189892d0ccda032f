"""StreamPool: many independent streams of one model, each with a slot, stepped together in any subset and order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, overload

import numpy as np
from numpy.typing import NDArray

from .. import tables
from ..errors import ShapeError, StateError, StreamError, memory_for, out_of_memory
from ..machine import forks
from ..machine.files import replace_file
from ..runtime import snapshots, states
from ..runtime.arguments import check_out, chunk_arrays, deliver, listed, step_arrays, whole_number
from ..runtime.compiled import Compiled, Context
from ..runtime.snapshots import MOST_SLOTS
from ..typing import Array, Blob, Input, Inputs, Slots, StepOutputs, StrPath
from . import pool_snapshots, shown
from ._pool import PoolCore

if TYPE_CHECKING:
    from ..model import Model


WHOLE = object()  # instead of a slot: the pool itself


class StreamPool(PoolCore):
    """Many independent streams of one model in one slab of states; made by `Model.pool(capacity=...)`.

    A stream is opened and closed by its slot, an int. A closed slot stays invalid, even after its place has been opened
    for another stream. A call steps any of the open slots, in any order. Each stream's outputs have the same bits as
    those of a lone `Stream` with the same data, whatever its neighbours are.

    Threads may share a pool: calls take turns. Calls of different pools run side by side.

    Attributes
    ----------
    model : the Model
    capacity : how many streams fit; `grow` increases it
    bound : the values of inputs that `pool(bind=...)` fixed for all streams, by name; None if there are none
    slab : float32 [capacity, state_size], the states by place; for reading only
    """

    def __init__(
        self,
        model: Model,
        core: Compiled,
        capacity: int,
        context: Context | None = None,
        bound: dict[str, Array] | None = None,
    ):
        capacity = whole_number(capacity, "capacity", MOST_SLOTS)
        if self.capacity or self.closed:
            raise StateError("this pool was initialized before: make another one with model.pool()")
        self.model = model
        self._compiled: Any = core  # a Compiled; None after `close`
        self._context, self.bound = context, bound
        self._tokens: dict[str, tuple] = {}  # of snapshots -> (`_now` before it, its since); least used first
        core._check_streamable()
        with memory_for(f"pool of {capacity} streams of {model.name}"):
            self._resize(capacity)
        if not core._stream_sizes:
            self._lay_out(core)
        forks.register(self)

    def _lay_out(self, core: Compiled) -> None:
        """Make the slab. If the model leaves sizes open, this is called at the first step, with its sizes."""
        parts = core._stream_parts(None, self._context, self.bound)
        if parts.timetable and not all(a.batched for a in (*parts.inputs, *parts.outputs)):
            raise StreamError(f"{core.name}: an input or output has no batch axis, and its streams look ahead")
        with memory_for(f"pool of {self.capacity} streams of {core.name}"):
            self._begin(parts)

    # -- slots --
    def open(self) -> int:
        """A slot for a new stream, in the model's initial state.

        Raises
        ------
        StateError : all slots are open.
        """
        with self._alone():
            return self._open()

    @overload
    def close(self) -> None: ...

    @overload
    def close(self, slot: int) -> None: ...

    def close(self, slot: object = WHOLE) -> None:
        """End a stream and free its place for another one; without a slot, end the pool and free its memory at once.

        A slot is invalid from then on. Closing the pool waits for calls of other threads; threads that wait for the
        pool themselves, and all later calls, get a StreamError. The end of a `with` block closes the pool too. It may
        be closed again. Arrays of `slab` keep their memory.

        Parameters
        ----------
        slot : int that `open` returned; left out for the whole pool (None is an error, not the pool)

        Raises
        ------
        StateError : the slot is not open. StreamError : the pool is closed, and a slot is given.
        """
        if slot is WHOLE:
            self._shut()
            self._compiled = None
            return
        with self._alone():
            self._close(self._place(slot))

    @property
    def closed(self) -> bool:
        """Whether the pool was closed."""
        return self._is_shut

    @property
    def _core(self) -> Compiled:
        """What runs the streams; StreamError if the pool is closed."""
        self._check_open()
        return self._compiled

    def __enter__(self) -> StreamPool:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset(self, slot: int) -> None:
        """Reset to the initial state, as after opening. Raises StateError if the slot is not open."""
        with self._alone():
            self._reset(self._place(slot))

    def copy(self, slot: int) -> int:
        """A new slot with a copy of the stream. Raises StateError if the slot is closed, or none is free."""
        with self._alone():
            return self._copy(self._place(slot))

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` streams; open slots stay as they are. A smaller number is a StateError.

        Other threads step the pool meanwhile and wait for about a millisecond: the system moves the memory of large
        pools, nothing is copied. Only while an array of `slab` is still in use, the slab is.
        """
        capacity = whole_number(capacity, "capacity", MOST_SLOTS)
        with self._alone():
            if capacity < self.capacity:
                raise StateError(f"grow({capacity}): the pool has room for {self.capacity} already, and never shrinks")
            with memory_for(f"pool of {capacity} streams of {self._core.name}"):
                self._resize(capacity)

    @property
    @memory_for("the open slots")
    def slots(self) -> NDArray[np.int64]:
        """The open slots, int64 [open], in the order of their places."""
        with self._alone():
            return self._open_slots()

    def __len__(self) -> int:
        """The number of open slots."""
        return self._n_open

    def __contains__(self, slot: object) -> bool:
        """Whether a slot is open."""
        try:
            self._place(slot)
        except (StateError, StreamError):  # StreamError: the pool is closed
            return False
        return True

    def _size_like(self, x) -> None:
        """Lay out the slab for the sizes of x, the argument of a step, if the model leaves them open."""
        if self.program is None:
            with self._alone():
                if self.program is None:
                    self._lay_out(self._core._sized_like(x, self.bound))

    def __iter__(self) -> Iterator[int]:
        return iter(self.slots.tolist())

    # -- steps --
    def _step_general(self, n: int, x, out):
        """`step` of the n slots found, if x is not a plain array or the model has several inputs or outputs."""
        if self.program is None:
            self._lay_out(self._core._sized_like(x, self.bound))
        parts = self._parts
        if parts.timetable:
            if out is not None:
                text = "what a step returns differs from slot to slot, so it takes no out"
                raise StreamError(f"{self._core.name}: {text}")
            rows = self._take(n, np.ones(n, np.int64), step_arrays(parts, x, n), one=True)
            return [deliver(row, None) for row in rows]
        outs = check_out(parts.outputs, out, n)
        arrays = step_arrays(parts, x, n)
        results = [np.empty(o.step_shape(n), o.dtype) for o in parts.outputs]
        self._advance(n, [*arrays, *results])
        return deliver(results, outs)

    def push(self, slots: Slots, chunks: Iterable[Inputs]) -> list[StepOutputs]:
        """Advance each stream in `slots` by a chunk of its own length.

        At each step as many rows run as streams have data: the longest chunks go first, nothing is padded.

        Parameters
        ----------
        slots : ints that `open` returned, an array or sequence of shape [n]; any of them, in any order, none twice
        chunks : sequence of n; chunks[i] is [T_i, features...], T_i >= 0; dtypes as in `Model.run`
            For a model with several inputs each is a tuple or dict; an input without a time axis has none here.

        Returns
        -------
        list of n arrays [T_i, features...]: the step outputs, new memory. If the model looks ahead or changes the
        rate, these are the outputs that come with these steps. For an output that the model reduces over time:
        [features...], the value as if the sequence ended here, and None if T_i is 0. For several outputs each is a
        tuple.

        Raises
        ------
        StateError, ShapeError : as `step`. After an error, and after Ctrl-C, no state has changed.
        """
        try:
            with self._alone():
                n = self._find(slots)
                return self._push_found(n, listed(n, chunks))
        except MemoryError as error:
            raise out_of_memory(error, "push of chunks") from None

    def _push_found(self, n: int, chunks: list) -> list[StepOutputs]:
        """`push` of the n slots found."""
        if n == 0:
            return []
        if self.program is None:
            self._lay_out(self._core._sized_like(chunks[0], self.bound))
        plain = self._push_plain(n, chunks)
        if plain is not None:
            return plain
        given = [self._check_chunk(i, c) for i, c in enumerate(chunks)]
        lengths = np.array([length for _, length in given], np.int64)
        rows = self._take(n, lengths, [list(column) for column in zip(*(a for a, _ in given), strict=True)])
        return [deliver(row, None) for row in rows]

    def _check_chunk(self, i: int, chunk) -> tuple[list[np.ndarray], int]:
        """(the arrays of all inputs, steps) of chunk number i."""
        try:
            return chunk_arrays(self._parts, chunk, None)
        except ShapeError as error:
            raise ShapeError(f"chunk {i}: {error}") from None

    @memory_for("flush")
    def flush(self, slot: int) -> StepOutputs:
        """The outputs that a stream held back, and the final value of outputs reduced over time, as `Stream.flush`. If
        the model looks ahead, its sequence has ended then: `reset` begins another."""
        with self._alone():
            place = self._place(slot)
            self._require_sizes()
            self._find([slot])
            last = self._parts.last_inputs(None, self.still.get(place))
            results = self._take(1, np.zeros(1, np.int64), [[v] for v in last], final=True)
        return deliver(results[0], None)

    # -- states --
    def state(self, slot: int) -> dict[str, Array]:
        """Every state of a stream by name, as in `Stream.state`; copies. StateError: the slot is not open."""
        with self._alone():
            place = self._place(slot)
            self._require_sizes()
            row, ended = self.slab[place : place + 1], place in self.ended
            return states.exported(self._parts, self._core.graph, row, True, self._steps(place), ended)

    def set_state(self, slot: int, state: Mapping[str, Input]) -> None:
        """Replace every state of a stream by a dict of the form that `state` returns.

        Raises
        ------
        StateError : the slot is not open; a state is missing or unknown. ShapeError : dtype or shape of one.
        Nothing has changed then.
        """
        with self._alone():
            place = self._place(slot)
            self._require_sizes()
            row, steps = self.slab[place : place + 1], self._steps(place)
            self._set_steps(place, *states.load(self._parts, self._core.graph, row, state, True, steps))

    def steps_done(self, slot: int) -> int:
        """Steps that a stream has taken since it was opened, reset or restored. StateError: the slot is not open."""
        with self._alone():
            return self._steps(self._place(slot))

    # -- snapshots --
    def snapshot(self, slot: int, path: StrPath | None = None) -> bytes:
        """A stream's state and step count as bytes, for `restore` here, in another pool or process, or in a `Stream`.

        Parameters
        ----------
        path : optional file to write them to as well; an existing file is replaced atomically

        Raises
        ------
        StateError : the slot is not open. OSError : the file can't be written.
        """
        with memory_for("snapshot"):
            blob = snapshots.to_bytes(pool_snapshots.of_one(self, slot))
            if path is not None:
                replace_file(path, blob, private=True)
            return blob

    @overload
    def snapshot_all(self, path: None = None, *, since: str | bytes | None = None) -> bytes: ...

    @overload
    def snapshot_all(self, path: StrPath, *, since: str | bytes | None = None) -> str: ...

    def snapshot_all(self, path: StrPath | None = None, *, since: str | bytes | None = None) -> bytes | str:
        """`snapshot` of every open slot, for `restore_all`.

        It is taken in slices, and other threads step the pool in between. Each stream is there as it was at one moment
        during the call, but not all at the same: for one moment of all, don't call the pool meanwhile.

        Parameters
        ----------
        path : file to write the snapshot to, atomically; None: it is returned instead
        since : what an earlier `snapshot_all` of this pool returned (its token, or the bytes): only what has changed
            after that is there, in streams that were stepped, opened, closed or set. Such an increment is restored
            together with the snapshots before it.

        Returns
        -------
        With a path the snapshot's token, a str to pass as `since` later; else the snapshot as bytes.

        Raises
        ------
        StateError : since is not of a snapshot that this pool remembers, which are the last 1000 that were taken or
        passed as since; or the file holds a snapshot that the increment needs.
        OSError : the file can't be written; an old one is unchanged.
        FastRNNMemoryError : there is no memory for the snapshot; with a path it needs about 2 MB.
        """
        with memory_for(f"snapshot of {len(self)} streams"):
            return pool_snapshots.whole(self, path, since)

    def restore(self, source: Blob | StrPath, *, migrate: bool = False) -> int:
        """A new slot that continues from a snapshot, with the same bits on the same instruction set.

        Parameters
        ----------
        source : bytes of `snapshot` of a slot or of a lone `Stream`, or the path of a file
        migrate : as of `Stream.restore`

        Raises
        ------
        StateError : a damaged, truncated or later snapshot, one of another model or of several streams; no free slot.
        """
        self._check_open()
        try:  # nothing follows the opening of the slot, so no Ctrl-C loses it
            return pool_snapshots.restored_one(self, source, migrate)
        except MemoryError as error:
            raise out_of_memory(error, "restore") from None

    def restore_all(
        self, source: Blob | StrPath | Sequence[Blob | StrPath], *, migrate: bool = False
    ) -> dict[int, int]:
        """New slots for all streams of a `snapshot_all`: {slot when it was taken: slot here}.

        Parameters
        ----------
        source : bytes of a `snapshot_all` or the path of a file; or a list of them, a snapshot of all streams and then
            its increments (`since=`), in order. One file may hold them all, one after the other.
        migrate : as of `Stream.restore`

        Raises
        ------
        StateError : as `restore`; an increment does not follow the snapshot before it; or not as many slots are free.
        Then none is opened.
        """
        self._check_open()
        try:
            return pool_snapshots.restored(self, source, migrate)
        except MemoryError as error:
            raise out_of_memory(error, "restore_all") from None

    def _require_sizes(self) -> None:
        if self.program is None:
            raise StateError(self._core._sizes_come_later)

    def stats(self) -> dict[str, Any]:
        """What the pool has done so far, JSON-able; counted without locks.

        Returns
        -------
        dict: `capacity`, `open`, `opened` and `closed` (streams so far), `memory_bytes`, and `step`: `calls`, `rows`,
        `steps` (rows stepped), and of every 64th call the histograms `seconds` and `batch_size`, each with `count`,
        `sum`, `p50`, `p99` and `buckets` ([upper bound, counts up to it]). Chunks are counted in `Model.stats`.
        """
        return {
            "capacity": self.capacity,
            "open": len(self),
            "opened": self.opened,
            "closed": self.opened - len(self),
            "memory_bytes": self.memory_bytes,
            "step": self.meter.as_dict(),
        }

    @property
    def memory_bytes(self) -> int:
        """Bytes of the slab and the slots' tables at full use, and of the inputs that `flush` needs again. The model's
        weights, and the scratch that all its pools and streams share, are `model.memory_bytes`. The system gives a
        place's memory only when it is first opened."""
        still = sum(a.nbytes for arrays in list(self.still.values()) for a in arrays)
        return self._table_bytes + still + (0 if self.program is None else self.slab.nbytes)

    # -- the rest --
    def __copy__(self) -> NoReturn:
        raise TypeError("a pool can't be copied: open another one, and restore snapshots into it")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a pool can't be pickled: keep snapshots of its streams, and the model as a .fastrnn file")

    def _repr_html_(self) -> str:
        return tables.block(repr(self)) if self.closed else shown.pool(self)

    def __repr__(self) -> str:
        if self.closed:
            return f"<StreamPool of {self.model.name}, closed>"
        return f"<StreamPool of {self._core.name}, {len(self)} of {self.capacity} slots open>"


class PacedPool(StreamPool):
    """Many independent streams of a model whose outputs don't come one per step; made by `Model.pool(capacity=...)`.

    Slots at different positions of their sequences may return different numbers of output steps, so `step` and `push`
    return a list with what a lone stream's `step` and `push` return: for `step`, None if nothing came. `step` takes no
    `out`. Slots of equal phase share calls.
    """
