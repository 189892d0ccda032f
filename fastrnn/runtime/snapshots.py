"""Snapshots: the states of streams as bytes or a file, from which another process or machine can continue.

Format 1, a safetensors container. Tensors: `steps` int64 [n], the steps that each stream has taken; `state/NAME`
[n, dims...] for each of `Model.states`, without its batch axis, in its own dtype; `ended` bool [n], whether it was
flushed; `input/NAME` [n, dims...], the last inputs without time of streams that look ahead; `known` bool [n], if some
of these streams have taken steps elsewhere (their state was set) and have no such inputs yet; for a whole pool `slots`
int64 [n].

A snapshot of a whole pool is a sequence of such containers, its parts, each with the streams of one slice of the pool:
a pool is stepped while its snapshot is taken, and the file is written without a copy of everything in memory. Their
metadata has `part` (JSON): `snapshot`, the token of the snapshot, the same in all its parts; `number` from 0; `last`;
and `since`, the token of the snapshot before, if only streams that have changed after it are there. Such an increment
may have the tensor `gone` int64 [k], places (slot & 0xFFFFFF) whose streams were closed. Another stream of the same
place replaces that of the snapshot before.

Metadata: `format` ("fastrnn snapshot 1"), `model` and `name` (fingerprint and name of the model), `sizes` (JSON: sizes
that the model leaves open, as the first step fixed them) and `checksum` over all the others and every tensor: SHA-256,
or in a part `crc32:` and 8 digits, which takes a fifth of the time. States are logical: by name, in the model's dims.
They don't depend on instruction set, thread count or slot. On the same instruction set, a restored stream continues
with the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import StateError
from ..machine import container
from .layout import MOST_STEPS

FORMAT = "fastrnn snapshot "
VERSION = 1
STATE, INPUT = "state/", "input/"
MOST_SLOTS = 1 << 24  # places of a pool, which are the low bits of its slots
MOST_BYTES = 1 << 40  # of a file; a larger one is not read


@dataclass(frozen=True)
class Part:
    """Which part of a pool's snapshot a container is; as in the text above."""

    snapshot: str
    number: int
    last: bool
    since: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """The states of n streams.

    steps : int64 [n]. rows : state name -> [n, dims...]. slots : int64 [n], or None unless it is of a whole pool.
    sizes : sizes that the model leaves open. ended : bool [n]. still : input name -> [n, dims...].
    known : bool [n], whether `still` holds those of a stream; None: of all that have taken steps.
    part : of a pool's snapshot. gone : int64 [k], places whose streams were closed since the snapshot before.
    """

    steps: np.ndarray
    rows: dict[str, np.ndarray]
    slots: np.ndarray | None
    sizes: dict[str, int]
    ended: np.ndarray
    still: dict[str, np.ndarray]
    known: np.ndarray | None = None
    part: Part | None = None
    gone: np.ndarray | None = None

    def knows(self, i: int) -> bool:
        """Whether `still` holds the last inputs of stream i."""
        return bool(self.still) and bool(self.steps[i] if self.known is None else self.known[i])

    def only(self, keep: np.ndarray) -> Snapshot:
        """Those of the streams for which `keep`, bool [n], is true."""
        rows, still = ({key: a[keep] for key, a in some.items()} for some in (self.rows, self.still))
        slots, known = (None if a is None else a[keep] for a in (self.slots, self.known))
        return replace(
            self, steps=self.steps[keep], rows=rows, slots=slots, ended=self.ended[keep], still=still, known=known
        )

    def check(self, what: str, sizes: dict[str, int], inputs: list, looks_ahead: bool) -> None:
        """StateError unless these are states of a stream or pool (`what`) that has these sizes and keeps `inputs`."""
        if self.sizes != sizes:
            raise StateError(f"the snapshot has the sizes {self.sizes}, this {what} {sizes}")
        if not looks_ahead and (self.ended.any() or self.still):
            raise StateError("the snapshot is of a stream that looks ahead, which this model's do not")
        for a in inputs if self.still else ():
            got, want = self.still.get(a.name), (len(self.steps), *a.features)
            if got is None or got.shape != want or got.dtype != a.dtype or len(self.still) != len(inputs):
                raise StateError(f"the snapshot's input {a.name} is not {a.dtype}{list(want)}")


def to_bytes(snapshot: Snapshot, fingerprint: str, name: str) -> bytes:
    """The bytes of a snapshot of the model with this fingerprint."""
    return container.join(chunks(snapshot, fingerprint, name))


def chunks(snapshot: Snapshot, fingerprint: str, name: str) -> Iterator[bytes | memoryview]:
    """The same in pieces, without a copy of the states."""
    steps, ended = np.ascontiguousarray(snapshot.steps, np.int64), np.ascontiguousarray(snapshot.ended, np.bool_)
    tensors = {"steps": steps, "ended": ended}
    tensors |= {INPUT + key: np.ascontiguousarray(rows) for key, rows in snapshot.still.items()}
    tensors |= {STATE + key: np.ascontiguousarray(rows) for key, rows in snapshot.rows.items()}
    if snapshot.known is not None and (snapshot.known != (steps > 0)).any():
        tensors["known"] = np.ascontiguousarray(snapshot.known, np.bool_)
    if snapshot.slots is not None:
        tensors["slots"] = np.ascontiguousarray(snapshot.slots, np.int64)
    metadata = {
        "format": f"{FORMAT}{VERSION}",
        "model": fingerprint,
        "name": name,
        "sizes": json.dumps(snapshot.sizes, sort_keys=True),
    }
    if snapshot.part is not None:
        metadata["part"] = json.dumps(asdict(snapshot.part))
        if snapshot.gone is not None and len(snapshot.gone):
            tensors["gone"] = np.ascontiguousarray(snapshot.gone, np.int64)
    metadata["checksum"] = _checksum(metadata, tensors)
    return container.chunks(tensors, metadata)


def read(source, fingerprint: str, name: str) -> Snapshot:
    """Inverse of `to_bytes`.

    Parameters
    ----------
    source : bytes, or the path of a file
    fingerprint, name : of the model that the snapshot must belong to

    Raises
    ------
    StateError : not a snapshot, or a damaged or truncated one, or one of a later format or another model; or a whole
    pool's in several parts.
    OSError : the file can't be read.
    """
    parts = read_parts(source, fingerprint, name)
    if len(parts) > 1:
        n = sum(len(part.steps) for part in parts)
        raise StateError(f"the snapshot is of a whole pool, {n} streams: restore_all of a pool takes it")
    return parts[0]


def read_parts(source, fingerprint: str, name: str) -> list[Snapshot]:
    """The parts of the snapshots in a source, in their order: one of a stream, or those of any number of snapshots of a
    pool. Parameters and errors as in `read`."""
    blob, where = _bytes_of(source)
    found = []
    view = memoryview(blob)
    while True:
        try:
            part, end = container.parse_first(view)
        except container.ContainerError as error:
            raise StateError(f"{where}: not a snapshot, or a truncated or damaged one ({error})") from None
        found.append(_read_one(part, fingerprint, name, where))
        view = view[end:]
        if not len(view):
            break
        if found[-1].part is None:
            raise StateError(f"{where}: not a snapshot, or a truncated or damaged one ({len(view)} bytes follow it)")
    _check_sequence(found, where)
    return found


def _read_one(found: container.Container, fingerprint: str, name: str, where: str) -> Snapshot:
    metadata, tensors = found.metadata, found.tensors
    _check_format(metadata.get("format"), where)
    if metadata.get("checksum") != _checksum(metadata, tensors):
        raise StateError(f"{where}: the checksum does not fit: the snapshot is damaged")
    if metadata.get("model") != fingerprint:
        theirs = f"{metadata.get('name')!r:.80} (fingerprint {metadata.get('model')!s:.12})"
        raise StateError(f"{where}: it belongs to the model {theirs}, not to {name!r} (fingerprint {fingerprint[:12]})")
    return _checked(metadata, tensors, where)


def _check_sequence(parts: list[Snapshot], where: str) -> None:
    """StateError unless each snapshot is complete, its parts in their order."""
    expected = 0
    for i, part in enumerate(parts):
        if part.part is None:
            continue
        if part.part.number != expected or (expected and part.part.snapshot != parts[i - 1].part.snapshot):
            raise StateError(
                f"{where}: part {expected} of a snapshot is missing, part {part.part.number} is there: it "
                "is damaged; take another snapshot"
            )
        expected = 0 if part.part.last else expected + 1
    if expected:
        raise StateError(f"{where}: truncated: the snapshot has more than the {expected} parts that are there")


def token_of(source: bytes) -> str | None:
    """The token of the last snapshot in such bytes; None if they are not a pool's. StateError: not a snapshot."""
    view, token = memoryview(source), None
    while len(view):
        try:
            found, end = container.parse_first(view)
            token = json.loads(found.metadata.get("part", "{}")).get("snapshot")
        except (container.ContainerError, ValueError, AttributeError) as error:
            raise StateError(f"since: not a snapshot, or a damaged one ({error})") from None
        view = view[end:]
    return token


def _bytes_of(source) -> tuple[bytes, str]:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), "snapshot"
    if not isinstance(source, str | os.PathLike):
        raise StateError(f"a snapshot is bytes or the path of a file, got {type(source).__name__}")
    path = Path(source)
    if path.stat().st_size > MOST_BYTES:
        raise StateError(f"{path}: {path.stat().st_size} bytes are no snapshot")
    return path.read_bytes(), str(path)


def _check_format(text, where: str) -> None:
    if not isinstance(text, str) or not text.startswith(FORMAT) or not text[len(FORMAT) :].isdecimal():
        kind = f"its format is {text!r:.40}" if text else "it has no format of ours"
        raise StateError(f"{where}: not a snapshot: {kind}")
    version = int(text[len(FORMAT) :][:9])
    if version != VERSION:
        later = " by a later fastrnn" if version > VERSION else ""
        raise StateError(f"{where}: written{later} in format {version}; this version reads format {VERSION}")


def _checksum(metadata: dict, tensors: dict[str, np.ndarray]) -> str:
    known = {k: v for k, v in metadata.items() if k != "checksum"}
    text = json.dumps(known, sort_keys=True).encode()
    pieces: list = [text]
    for name in sorted(tensors):
        array = tensors[name]
        pieces.append(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        pieces.append(array.reshape(-1).view(np.uint8))
    if "part" in metadata:
        value = 0
        for piece in pieces:
            value = zlib.crc32(piece, value)
        return f"crc32:{value:08x}"
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _part_of(text: str | None) -> Part | None:
    """ValueError, KeyError or TypeError: not such a text."""
    if text is None:
        return None
    part = Part(**json.loads(text))
    numbers = type(part.number) is int and part.number >= 0 and isinstance(part.last, bool)
    if not numbers or not isinstance(part.snapshot, str) or not isinstance(part.since, str | None):
        raise ValueError(f"part {text:.120}")
    return part


def _checked(metadata: dict, tensors: dict[str, np.ndarray], where: str) -> Snapshot:
    """The parts of a snapshot with a valid checksum. They are still untrusted: anyone can compute a checksum."""
    try:
        sizes = json.loads(metadata["sizes"])
        if not isinstance(sizes, dict) or any(type(v) is not int or v < 1 for v in sizes.values()):
            raise ValueError(f"sizes {metadata['sizes']:.80}")
        steps, slots, ended = tensors.pop("steps"), tensors.pop("slots", None), tensors.pop("ended")
        known = tensors.pop("known", None)
        for name, array in (("ended", ended), ("known", known)):
            if array is not None and (array.dtype != np.bool_ or array.shape != steps.shape):
                raise ValueError(f"{name} of {array.dtype}{list(array.shape)}")
        gone, part = tensors.pop("gone", None), _part_of(metadata.get("part"))
        if gone is not None and (gone.dtype != np.int64 or gone.ndim != 1):
            raise ValueError(f"gone of {gone.dtype}{list(gone.shape)}")
        if part is not None and (slots is None or (slots < 0).any()):
            raise ValueError("a part of a pool without its slots")
        for array in (steps, slots):
            if array is not None and (array.dtype != np.int64 or array.shape != steps.shape or array.ndim != 1):
                raise ValueError(f"steps and slots of {array.dtype}{list(array.shape)}")
        if steps.size and not (0 <= steps.min() and steps.max() <= MOST_STEPS):
            raise ValueError(f"streams that have taken {steps.min()}..{steps.max()} steps")
        if slots is not None and len(np.unique(slots & (MOST_SLOTS - 1))) != len(slots):
            raise ValueError("a place that is there twice")
        strange = [k for k, a in tensors.items() if not k.startswith((STATE, INPUT)) or a.shape[:1] != steps.shape]
        if strange:
            raise ValueError(f"a tensor {strange[0]!r:.80} of another number of streams")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise StateError(f"{where}: malformed: {type(error).__name__} {error}") from None
    rows, still = ({k[len(p) :]: a for k, a in tensors.items() if k.startswith(p)} for p in (STATE, INPUT))
    return Snapshot(steps, rows, slots, sizes, ended, still, known, part, gone)
