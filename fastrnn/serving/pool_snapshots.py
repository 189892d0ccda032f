"""Snapshots of a pool's streams: taken slice by slice while the pool is stepped, and put together again.

A slice holds the pool for as long as its states take to be copied, a quarter of a millisecond; its bytes are made and
written with the pool free. So each stream is there as it was at one moment, but not all at the same.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from ..errors import StateError, StreamError
from ..machine.files import replace_file
from ..runtime import snapshots
from ..runtime.migration import Fitting
from ..runtime.snapshots import MOST_SLOTS, Part, Snapshot

if TYPE_CHECKING:
    from .pool import StreamPool

SLICE_BYTES = 1 << 20  # of states in a slice
SLICE_PLACES = 1 << 16  # that a slice looks at
MOST_TOKENS = 1000  # of snapshots that a later one may follow


def of_one(pool: StreamPool, slot: int) -> Snapshot:
    """The stream of a slot."""
    with pool._alone():
        places = np.array([pool._place(slot)])
        pool._require_sizes()
        parts, rows, notes = pool._parts, pool.slab[places], _notes(pool, places)
        steps = np.array([pool._steps(int(places[0]))], np.int64)
    return _described(pool._core._snapshot_about(parts, pool.bound), steps, rows, notes)


def of_some(pool: StreamPool, slots: np.ndarray) -> Snapshot:
    """Some streams as they are at one moment, in the order of `slots`; `restore_all` opens them in that order."""
    with pool._alone():
        pool._require_sizes()
        pool._find(slots)
        places = slots & (MOST_SLOTS - 1)
        parts, rows, notes = pool._parts, pool.slab[places], _notes(pool, places)
        steps = np.array([pool._steps(p) for p in places.tolist()], np.int64)
    return _described(pool._core._snapshot_about(parts, pool.bound), steps, rows, notes, slots)


def whole(pool: StreamPool, path, since: str | bytes | None) -> bytes | str:
    """`StreamPool.snapshot_all`."""
    before, mark = (None, -1) if since is None else _known(pool, since)
    if path is not None and before is not None:
        _check_keeps(pool, path, before)
    token = secrets.token_hex(16)
    with pool._alone():
        now = pool._now
    chunks = _chunks(pool, token, before, mark)
    if path is None:
        blob = BytesIO()
        for chunk in chunks:
            blob.write(chunk)
        result: bytes | str = blob.getvalue()
    else:
        replace_file(path, chunks, private=True)
        result = token
    with suppress(StreamError), pool._alone():  # closed meanwhile: the snapshot is whole, and none continues it
        pool._tokens[token] = now, before
        while len(pool._tokens) > MOST_TOKENS:
            del pool._tokens[next(iter(pool._tokens))]
    return result


def _known(pool: StreamPool, since) -> tuple[str, int]:
    """(token, `_now` before it) of an earlier snapshot of this pool, which is remembered longer for this use."""
    if isinstance(since, bytes | bytearray | memoryview):
        token = snapshots.token_of(bytes(since))
    elif isinstance(since, str):
        token = since
    else:
        raise StateError(
            f"since= is what snapshot_all returned, a token or bytes, got {type(since).__name__}: pass that, or "
            "nothing for a snapshot of all streams"
        )
    with pool._alone():
        if token is None or token not in pool._tokens:
            raise StateError(
                f"since={token!r:.80} is not one of the last {MOST_TOKENS} snapshots of this pool: take one of all "
                "streams, without since="
            )
        pool._tokens[token] = pool._tokens.pop(token)
        return token, pool._tokens[token][0]


def _check_keeps(pool: StreamPool, path, before: str | None) -> None:
    """StateError if a file holds a snapshot that an increment after `before` needs: it would be replaced."""
    held = snapshots.tokens_in(path)
    while held and before is not None:
        if before in held:
            raise StateError(
                f"{path}: the file holds a snapshot that this increment (since=) is restored with: write the "
                "increment to another file, or a snapshot of all streams, without since=, to this one"
            )
        before = pool._tokens.get(before, (0, None))[1]


def _chunks(pool: StreamPool, token: str, before: str | None, since: int) -> Iterator[bytes | memoryview]:
    """The parts of a snapshot as bytes, each taken when the one before has been written. since : -1: of all streams"""
    with pool._alone():
        pool._require_sizes()
        parts = pool._parts
    about, size = pool._core._snapshot_about(parts, pool.bound), parts.program.state_size
    most = max(1, min(SLICE_PLACES, SLICE_BYTES // max(4 * size, 1)))
    slots, steps, rows = np.empty(most, np.int64), np.empty(most, np.int64), np.empty((most, size), np.float32)
    gone = np.empty(SLICE_PLACES, np.int64)
    start, number = 0, 0
    while start >= 0:
        with pool._alone():
            n, closed, start = pool._slice(start, since, slots, steps, rows, gone)
            notes = _notes(pool, slots[:n] & (MOST_SLOTS - 1))
        if not n and not closed and start >= 0:
            continue
        part = Part(token, number, start < 0, before)
        taken = _described(about, steps[:n], rows[:n], notes, slots[:n], part, gone[:closed])
        number += 1
        yield from snapshots.chunks(taken)


def _notes(pool: StreamPool, places: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], np.ndarray | None]:
    """What a snapshot has of streams besides states and steps: `ended`, `still`, `known`; the pool is held."""
    ended, inputs = np.zeros(len(places), np.bool_), pool._parts.still
    if pool.ended:
        ended[:] = [p in pool.ended for p in places.tolist()]
    known = np.array([p in pool.still for p in places.tolist()] if inputs else [], np.bool_)
    if not known.any():  # no stream has taken a step by itself: its state may have been set from outside
        return ended, [], None
    still = [np.zeros((len(places), *a.features), a.dtype) for a in inputs]
    for i in np.flatnonzero(known):
        for kept, value in zip(still, pool.still[int(places[i])], strict=True):
            kept[i] = value
    return ended, still, known


def _described(about: dict, steps, rows, notes, slots=None, part=None, gone=None) -> Snapshot:
    """A snapshot of streams whose rows of the slab were copied. about : as of `_snapshot_about`, which takes a while at
    first, so the pool is not held meanwhile."""
    ended, still, known = notes
    return Snapshot(steps, rows, slots=slots, ended=ended, still=still, known=known, part=part, gone=gone, **about)


def restored(pool: StreamPool, source, migrate: bool) -> dict[int, int]:
    """`StreamPool.restore_all`."""
    sources = source if isinstance(source, list | tuple) else [source]
    found = [part for s in sources for part in snapshots.read_parts(s)]
    fitting = Fitting(found, pool._core, migrate)
    parts = _latest(found)
    with pool._alone():
        n, free = sum(len(part.steps) for part in parts), pool.capacity - len(pool)
    if n > free:
        raise StateError(f"the snapshot needs {n} slots, {free} of {pool.capacity} are free: grow the pool first")
    slots = [np.zeros(len(part.steps), np.int64) for part in parts]  # there before memory runs out, or a Ctrl-C comes
    try:
        for part, some in zip(parts, slots, strict=True):
            with pool._alone():
                _open(pool, part, fitting, some)
        fitting.warn()
        before = np.concatenate([part.slots for part in parts])
        return dict(zip(before.tolist(), np.concatenate(slots).tolist(), strict=True))
    except BaseException:
        _close(pool, slots)
        raise


def restored_one(pool: StreamPool, source, migrate: bool) -> int:
    """`StreamPool.restore`."""
    taken = snapshots.read(source)
    fitting = Fitting([taken], pool._core, migrate)
    if taken.slots is not None or len(taken.steps) != 1:
        raise StateError(f"the snapshot is of {len(taken.steps)} streams: restore_all takes those of a pool")
    slots = np.zeros(1, np.int64)
    try:
        with pool._alone():
            _open(pool, taken, fitting, slots)
        fitting.warn()
        return int(slots[0])
    except BaseException:
        _close(pool, [slots])
        raise


def _close(pool: StreamPool, slots: list[np.ndarray]) -> None:
    """Close those of these slots that are open."""
    with pool._alone():
        for some in slots:
            pool._close_all(some)


def _open(pool: StreamPool, taken: Snapshot, fitting: Fitting, slots: np.ndarray) -> None:
    """New slots for these streams; the pool is held. slots : int64 [n] of zeros, to which each is written when it is
    opened, so that the caller can close them after an error or a Ctrl-C at any moment."""
    n, free = len(taken.steps), pool.capacity - len(pool)
    if n > free:
        raise StateError(f"the snapshot needs {n} slots, {free} of {pool.capacity} are free: grow the pool first")
    if pool.program is None:
        pool._lay_out(pool._core._sized_as(taken.sizes))
    arrays, rows = fitting.fit(taken, "pool", pool._parts, pool.bound)
    pool._open_with(np.ascontiguousarray(taken.steps), rows, slots)
    for i in range(n) if taken.still or taken.ended.any() else ():
        still = [np.array(a[i]) for a in arrays] if taken.knows(i) else None
        pool._set_steps(int(slots[i]) & (MOST_SLOTS - 1), int(taken.steps[i]), bool(taken.ended[i]), still)


def _latest(parts: list[Snapshot]) -> list[Snapshot]:
    """The streams of a whole snapshot and its increments, each as it was last.

    StateError unless each increment follows the one before, or if a place is there twice in one snapshot.
    """
    if not parts:
        raise StateError("restore_all of no snapshot at all: pass one, then its increments")
    if any(part.slots is None for part in parts):
        raise StateError("the snapshot is of a stream, not of a whole pool: restore takes it")
    _check_order(parts)
    places = [part.slots & (MOST_SLOTS - 1) for part in parts]
    owner = np.full(1 + max(int(p.max(initial=0)) for p in places), -1, np.int32)  # the last part with each place
    first = 0
    for i, part in enumerate(parts):
        if part.part is None or not part.part.number:
            first = i
        if part.gone is not None:
            owner[part.gone[part.gone < len(owner)]] = -1
        if (owner[places[i]] >= first).any():
            raise StateError("the snapshot has a place twice: it is damaged")
        owner[places[i]] = i
    kept = [owner[p] == i for i, p in enumerate(places)]
    return [part if keep.all() else part.only(keep) for part, keep in zip(parts, kept, strict=True)]


def _check_order(parts: list[Snapshot]) -> None:
    before = None
    for i, part in enumerate(parts):
        if part.part is None:
            if len(parts) > 1:
                raise StateError("a snapshot of an older fastrnn has no increments: restore it by itself")
            continue
        if part.part.number:
            continue
        since = part.part.since
        if i == 0 and since is not None:
            raise StateError(
                "the snapshot has only the streams that changed after another one: pass that first, as in "
                "restore_all([base, increment])"
            )
        if i and since != before:
            kind = "a snapshot of all streams" if since is None else f"an increment of the snapshot {since:.40}"
            raise StateError(
                f"the snapshot {before:.40} is followed by {kind}: pass a whole one, then its increments in order"
            )
        before = part.part.snapshot
