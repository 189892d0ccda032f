"""Snapshots: the states of streams as bytes or a file, from which another process or machine can continue.

Format 1, a safetensors container. Tensors: `steps` int64 [n], the steps that each stream has taken; `state/NAME`
[n, dims...] for each of `Model.states`, without its batch axis, in its own dtype; `ended` bool [n], whether it was
flushed; `input/NAME` [n, dims...], the last inputs without time of streams that look ahead; `known` bool [n], if some
of these streams have taken steps elsewhere (their state was set) and have no such inputs yet; for a whole pool `slots`
int64 [n].
Metadata: `format` ("fastrnn snapshot 1"), `model` and `name` (fingerprint and name of the model), `sizes` (JSON: sizes
that the model leaves open, as the first step fixed them) and `checksum`: SHA-256 over all the others and
every tensor. States are logical: by name, in the model's dims. They don't depend on instruction set, thread count or
slot. On the same instruction set, a restored stream continues with the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import StateError
from ..machine import container
from ..machine.files import replace_file
from .layout import MOST_STEPS

FORMAT = "fastrnn snapshot "
VERSION = 1
STATE, INPUT = "state/", "input/"
MOST_BYTES = 1 << 40  # of a file; a larger one is not read


@dataclass(frozen=True)
class Snapshot:
    """The states of n streams.

    steps : int64 [n]. rows : state name -> [n, dims...]. slots : int64 [n], or None unless it is of a whole pool.
    sizes : sizes that the model leaves open. ended : bool [n]. still : input name -> [n, dims...].
    known : bool [n], whether `still` holds those of a stream; None: of all that have taken steps.
    """

    steps: np.ndarray
    rows: dict[str, np.ndarray]
    slots: np.ndarray | None
    sizes: dict[str, int]
    ended: np.ndarray
    still: dict[str, np.ndarray]
    known: np.ndarray | None = None

    def knows(self, i: int) -> bool:
        """Whether `still` holds the last inputs of stream i."""
        return bool(self.still) and bool(self.steps[i] if self.known is None else self.known[i])

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
    return container.join(_chunks(snapshot, fingerprint, name))


def write(snapshot: Snapshot, fingerprint: str, name: str, path) -> None:
    """Write a snapshot of the model with this fingerprint to a file, atomically. OSError: it can't be written."""
    replace_file(path, _chunks(snapshot, fingerprint, name), private=True)


def _chunks(snapshot: Snapshot, fingerprint: str, name: str) -> Iterator[bytes | memoryview]:
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
    StateError : not a snapshot, or a damaged or truncated one, or one of a later format or another model.
    OSError : the file can't be read.
    """
    blob, where = _bytes_of(source)
    try:
        found = container.parse(blob)
    except container.ContainerError as error:
        raise StateError(f"{where}: not a snapshot, or a truncated or damaged one ({error})") from None
    metadata, tensors = found.metadata, found.tensors
    _check_format(metadata.get("format"), where)
    if metadata.get("checksum") != _checksum(metadata, tensors):
        raise StateError(f"{where}: the checksum does not fit: the snapshot is damaged")
    if metadata.get("model") != fingerprint:
        theirs = f"{metadata.get('name')!r:.80} (fingerprint {metadata.get('model')!s:.12})"
        raise StateError(f"{where}: it belongs to the model {theirs}, not to {name!r} (fingerprint {fingerprint[:12]})")
    return _checked(metadata, tensors, where)


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
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


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
        for array in (steps, slots):
            if array is not None and (array.dtype != np.int64 or array.shape != steps.shape or array.ndim != 1):
                raise ValueError(f"steps and slots of {array.dtype}{list(array.shape)}")
        if steps.size and not (0 <= steps.min() and steps.max() <= MOST_STEPS):
            raise ValueError(f"streams that have taken {steps.min()}..{steps.max()} steps")
        if slots is not None and len(np.unique(slots)) != len(slots):
            raise ValueError("a slot that is there twice")
        strange = [k for k, a in tensors.items() if not k.startswith((STATE, INPUT)) or a.shape[:1] != steps.shape]
        if strange:
            raise ValueError(f"a tensor {strange[0]!r:.80} of another number of streams")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise StateError(f"{where}: malformed: {type(error).__name__} {error}") from None
    rows, still = ({k[len(p) :]: a for k, a in tensors.items() if k.startswith(p)} for p in (STATE, INPUT))
    return Snapshot(steps, rows, slots, sizes, ended, still, known)
