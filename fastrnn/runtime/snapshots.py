"""Snapshots: the states of streams as bytes or a file, from which another process, machine or release can continue.

Format 2, a safetensors container. Tensors, for n streams:
    steps   int64 [n], the steps that each has taken
    ended   bool [n], whether it was flushed
    rows    float32 [n, places], all its states; `states` says what is where
    input/I [n, dims...], the last values of input number I, for streams that look ahead and have inputs without time
    known   bool [n], if some of these streams have taken steps elsewhere (their state was set): whether it has those
    slots   int64 [n], for a whole pool
    gone    int64 [k], in an increment: places (slot & 0xFFFFFF) whose streams were closed
Metadata, texts:
    format  "fastrnn snapshot 2"
    models  JSON, names of the model's meaning (streaming/meaning.py), the first as `Model.fingerprint`
    name    of the model, for people
    sizes   JSON [[name, number]..], sizes that the model leaves open, as the first step fixed them, in the order in
            which the inputs have them
    states  JSON [[key, own, kind, name, dtype, dims, at, places]..] in the order of the dataflow, as `KeptState`
    layers  JSON [[name, meaning]..] of the layers with weights, in the order of the dataflow; [] in a second part
    bound   JSON {number of the input: name of the value}, of inputs that `bind=` fixed
    part    JSON, of a part of a pool's snapshot; see below
    checksum  over all of it: SHA-256, or in a part `crc32:` and 8 digits, which takes a fifth of the time
A reader ignores texts that it does not know, and refuses tensors that it does not know.

A snapshot of a whole pool is a sequence of such containers, its parts, each with the streams of one slice of the pool:
a pool is stepped while its snapshot is taken, and the file is written without a copy of everything in memory. `part`
has `snapshot`, the token of the snapshot, the same in all its parts; `number` from 0; `last`; and `since`, the token of
the snapshot before, if only streams that have changed after it are there. Another stream of the same place replaces
that of the snapshot before.

States have keys that say what is remembered, so that a release whose plan keeps the same states in another order still
reads them, and one that keeps others refuses. They don't depend on instruction set, thread count or slot. On the same
instruction set, a restored stream continues with the same bits.

Format 1 had a tensor per state, by its name in the file, and a fingerprint of the optimised graph; `migrate` reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, astuple, field, replace
from pathlib import Path

import numpy as np

from ..errors import StateError
from ..machine import container
from ..records import dataclass
from .kept import KeptState
from .layout import MOST_STEPS

FORMAT = "fastrnn snapshot "
VERSION = 2
STATE, INPUT = "state/", "input/"
MOST_SLOTS = 1 << 24  # places of a pool, which are the low bits of its slots
MOST_BYTES = 1 << 40  # of a file; a larger one is not read


@dataclass(frozen=True)
class Identity:
    """Which model a snapshot is of.

    models : names of its meaning; models that share one are the same. name : for people
    layers : (name, meaning) of the layers with weights, in the order of the dataflow
    """

    models: tuple[str, ...]
    name: str
    layers: tuple[tuple[str, str], ...] = ()


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

    steps : int64 [n]. rows : float32 [n, places], with the states that `states` lists. slots : int64 [n], or None
    unless it is of a whole pool. sizes : (name, number) of sizes that the model leaves open. ended : bool [n].
    still : arrays [n, dims...]. known : bool [n], whether `still` holds those of a stream; None: of all that have taken
    steps. bound : number of an input -> the name of its value. of : the model.
    part : of a pool's snapshot. gone : int64 [k], places whose streams were closed since the snapshot before.
    named, still_names : of format 1, the states by name in place of `rows`, and the names of `still`. where : the file.
    """

    steps: np.ndarray
    rows: np.ndarray
    states: tuple[KeptState, ...]
    slots: np.ndarray | None
    sizes: tuple[tuple[str, int], ...]
    ended: np.ndarray
    still: list[np.ndarray]
    known: np.ndarray | None = None
    bound: dict[int, str] = field(default_factory=dict)
    of: Identity = Identity((), "")
    named: dict[str, np.ndarray] | None = None
    still_names: tuple[str, ...] = ()
    where: str = "snapshot"
    part: Part | None = None
    gone: np.ndarray | None = None

    def knows(self, i: int) -> bool:
        """Whether `still` holds the last inputs of stream i."""
        return bool(self.still) and bool(self.steps[i] if self.known is None else self.known[i])

    def only(self, keep: np.ndarray) -> Snapshot:
        """Those of the streams for which `keep`, bool [n], is true."""
        named = None if self.named is None else {name: a[keep] for name, a in self.named.items()}
        slots, known = (None if a is None else a[keep] for a in (self.slots, self.known))
        kept = {"steps": self.steps[keep], "rows": self.rows[keep], "ended": self.ended[keep], "named": named}
        return replace(self, **kept, slots=slots, known=known, still=[a[keep] for a in self.still])

    def in_order(self, inputs: list) -> Snapshot:
        """With `still` in the order of these inputs, if they are of format 1, which has them by name."""
        if len(self.still_names) < 2 or [a.name for a in inputs] == list(self.still_names):
            return self
        if {a.name for a in inputs} != set(self.still_names):
            names = f"has the inputs {list(self.still_names)}, this model {[a.name for a in inputs]}"
            raise StateError(f"{self.where}: it {names}: take the snapshot again from a model with these names")
        return replace(self, still=[self.still[self.still_names.index(a.name)] for a in inputs])

    def check(self, what: str, sizes: dict[str, int], inputs: list, looks_ahead: bool) -> None:
        """StateError unless these are states of a stream or pool (`what`) that has these sizes and keeps `inputs`."""
        if [n for _, n in self.sizes] != list(sizes.values()):
            raise StateError(f"{self.where}: it has the sizes {dict(self.sizes)}, this {what} {sizes}")
        if not looks_ahead and (self.ended.any() or self.still):
            raise StateError(f"{self.where}: it is of a stream that looks ahead, which this model's do not")
        if self.still and len(self.still) != len(inputs):
            raise StateError(f"{self.where}: it has {len(self.still)} inputs without time, this {what} {len(inputs)}")
        for got, a in zip(self.still, inputs, strict=False):
            want = (len(self.steps), *a.features)
            if got.shape != want or got.dtype != a.dtype:
                text = f"{a.dtype}{list(want)} expected, got {got.dtype}{list(got.shape)}"
                raise StateError(f"{self.where}: input {a.name}: {text}")


def to_bytes(snapshot: Snapshot) -> bytes:
    """The bytes of a snapshot."""
    return container.join(chunks(snapshot))


def chunks(snapshot: Snapshot) -> Iterator[bytes | memoryview]:
    """The same in pieces, without a copy of the states."""
    steps, ended = np.ascontiguousarray(snapshot.steps, np.int64), np.ascontiguousarray(snapshot.ended, np.bool_)
    tensors = {"steps": steps, "ended": ended, "rows": np.ascontiguousarray(snapshot.rows, np.float32)}
    tensors |= {f"{INPUT}{i}": np.ascontiguousarray(rows) for i, rows in enumerate(snapshot.still)}
    if snapshot.known is not None and (snapshot.known != (steps > 0)).any():
        tensors["known"] = np.ascontiguousarray(snapshot.known, np.bool_)
    if snapshot.slots is not None:
        tensors["slots"] = np.ascontiguousarray(snapshot.slots, np.int64)
    metadata = {
        "format": f"{FORMAT}{VERSION}",
        "models": _json(snapshot.of.models),
        "name": snapshot.of.name,
        "sizes": _json(snapshot.sizes),
        "states": _states_text(snapshot.states),
        "layers": _json(() if snapshot.part is not None and snapshot.part.number else snapshot.of.layers),
        "bound": _json(snapshot.bound),
    }
    if snapshot.part is not None:
        metadata["part"] = _json(asdict(snapshot.part))
        if snapshot.gone is not None and len(snapshot.gone):
            tensors["gone"] = np.ascontiguousarray(snapshot.gone, np.int64)
    metadata["checksum"] = _checksum(metadata, tensors)
    return container.chunks(tensors, metadata)


_last_states: tuple = ((), "[]")  # states, and their text: a server writes thousands of snapshots of the same model


def _states_text(states: tuple[KeptState, ...]) -> str:
    global _last_states
    known, text = _last_states
    if known is not states:
        text = _json([astuple(state) for state in states])
        _last_states = states, text
    return text


def _json(value) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def read(source) -> Snapshot:
    """Inverse of `to_bytes`. source: bytes, or the path of a file.

    Raises
    ------
    StateError : not a snapshot, or a damaged or truncated one, or one of a later format; or a whole pool's in several
    parts.
    OSError : the file can't be read.
    """
    parts = read_parts(source)
    if len(parts) > 1:
        n = sum(len(part.steps) for part in parts)
        raise StateError(f"the snapshot is of a whole pool, {n} streams: restore_all of a pool takes it")
    return parts[0]


def read_parts(source) -> list[Snapshot]:
    """The parts of the snapshots in a source, in their order: one of a stream, or those of any number of snapshots of a
    pool. Errors as of `read`."""
    blob, where = _bytes_of(source)
    found: list[Snapshot] = []
    view = memoryview(blob)
    while True:
        try:
            part, end = container.parse_first(view)
        except container.ContainerError as error:
            raise StateError(f"{where}: not a snapshot, or a truncated or damaged one ({error})") from None
        found.append(_read_one(part, where))
        view = view[end:]
        if not len(view):
            break
        if found[-1].part is None:
            raise StateError(f"{where}: not a snapshot, or a truncated or damaged one ({len(view)} bytes follow it)")
    _check_sequence(found, where)
    return found


def _read_one(found: container.Container, where: str) -> Snapshot:
    metadata, tensors = found.metadata, found.tensors
    version = _check_format(metadata.get("format"), where)
    if metadata.get("checksum") != _checksum(metadata, tensors):
        raise StateError(f"{where}: the checksum does not fit: the snapshot is damaged")
    try:
        return (_read_first if version == 1 else _read)(metadata, tensors, where)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise StateError(f"{where}: malformed: {type(error).__name__} {error}") from None


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


def tokens_in(path) -> set[str]:
    """The tokens of the pool's snapshots that a file holds, of which only the headers are read. None if there is no
    such file, or it is no snapshot."""
    found: set[str] = set()
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        if not Path(path).is_file():  # reading a pipe would wait
            return found
        with open(path, "rb") as file:
            while size := file.read(8):
                header = json.loads(file.read(min(int.from_bytes(size, "little"), container.MOST_HEADER)))
                found.add(json.loads(header.pop("__metadata__")["part"])["snapshot"])
                file.seek(max(entry["data_offsets"][1] for entry in header.values()), os.SEEK_CUR)
    return found


def _bytes_of(source) -> tuple[bytes, str]:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), "snapshot"
    if not isinstance(source, str | os.PathLike):
        raise StateError(f"a snapshot is bytes or the path of a file, got {type(source).__name__}")
    path = Path(source)
    if path.stat().st_size > MOST_BYTES:
        raise StateError(f"{path}: {path.stat().st_size} bytes are no snapshot")
    return path.read_bytes(), str(path)


def _check_format(text, where: str) -> int:
    if not isinstance(text, str) or not text.startswith(FORMAT) or not text[len(FORMAT) :].isdecimal():
        kind = f"its format is {text!r:.40}" if text else "it has no format of ours"
        raise StateError(f"{where}: not a snapshot: {kind}")
    version = int(text[len(FORMAT) :][:9])
    if not 1 <= version <= VERSION:
        later = " by a later fastrnn" if version > VERSION else ""
        raise StateError(f"{where}: written{later} in format {version}; this version reads formats 1 to {VERSION}")
    return version


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


# What follows reads parts with a valid checksum. They are still untrusted: anyone can compute a checksum.


def _read(metadata: dict, tensors: dict[str, np.ndarray], where: str) -> Snapshot:
    models, layers, bound = (json.loads(metadata[k]) for k in ("models", "layers", "bound"))
    name, sizes = str(metadata["name"]), _sizes(json.loads(metadata["sizes"]))
    if not (isinstance(models, list) and models and isinstance(layers, list)):
        raise ValueError("models and layers that are no lists")
    of = Identity(tuple(map(str, models)), name, tuple((str(a), str(b)) for a, b in layers))
    states = tuple(_state(entry) for entry in json.loads(metadata["states"]))
    steps, slots, ended, known = _counted(tensors)
    part, gone = _part(metadata, tensors, slots)
    rows, count = tensors.pop("rows"), len([k for k in tensors if k.startswith(INPUT)])
    still = [tensors.pop(f"{INPUT}{i}") for i in range(count)]
    _no_others(tensors, [rows, *still], steps)
    if len({s.key for s in states}) != len(states):
        raise ValueError("a state that is there twice")
    spans = sorted((s.at, s.at + s.floats) for s in states)
    ends = [0, *(end for _, end in spans)]
    if rows.dtype != np.float32 or rows.ndim != 2 or [begin for begin, _ in spans] != ends[:-1]:
        raise ValueError("states that overlap, or leave a gap")
    if rows.shape[1] != ends[-1]:
        raise ValueError(f"rows of {rows.shape[1]} places, of which the states take {ends[-1]}")
    about = {int(k): str(v) for k, v in bound.items()}
    return Snapshot(
        steps, rows, states, slots, sizes, ended, still, known, about, of, where=where, part=part, gone=gone
    )


def _part_of(text: str | None) -> Part | None:
    """ValueError, KeyError or TypeError: not such a text."""
    if text is None:
        return None
    part = Part(**json.loads(text))
    numbers = type(part.number) is int and part.number >= 0 and isinstance(part.last, bool)
    if not numbers or not isinstance(part.snapshot, str) or not isinstance(part.since, str | None):
        raise ValueError(f"part {text:.120}")
    return part


def _state(entry) -> KeptState:
    key, own, kind, name, dtype, dims, at, floats = entry
    texts, whole = (key, own, kind, name, dtype), (*dims, at, floats)
    if not all(isinstance(t, str) for t in texts) or any(type(n) is not int or n < 0 for n in whole):
        raise ValueError(f"state {entry!r:.80}")
    return KeptState(key, own, kind, name, dtype, tuple(dims), at, floats)


def _sizes(pairs) -> tuple[tuple[str, int], ...]:
    if not isinstance(pairs, list) or any(len(p) != 2 or type(p[1]) is not int or p[1] < 1 for p in pairs):
        raise ValueError(f"sizes {pairs!r:.80}")
    return tuple((str(name), n) for name, n in pairs)


def _counted(tensors: dict[str, np.ndarray]) -> tuple:
    """(steps, slots, ended, known), taken out of the tensors."""
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
    if slots is not None and len(np.unique(slots & (MOST_SLOTS - 1))) != len(slots):
        raise ValueError("a place that is there twice")
    return steps, slots, ended, known


def _part(metadata: dict, tensors: dict[str, np.ndarray], slots: np.ndarray | None) -> tuple:
    """(part, gone), taken out of the tensors."""
    gone, part = tensors.pop("gone", None), _part_of(metadata.get("part"))
    if gone is not None and (gone.dtype != np.int64 or gone.ndim != 1 or (gone < 0).any()):
        raise ValueError(f"gone of {gone.dtype}{list(gone.shape)}, or before the first place")
    if part is not None and (slots is None or (slots < 0).any()):
        raise ValueError("a part of a pool without its slots")
    return part, gone


def _no_others(tensors: dict[str, np.ndarray], rows: list[np.ndarray], steps: np.ndarray) -> None:
    if tensors:
        raise ValueError(f"a tensor {min(tensors)!r:.80} that is not known")
    if any(a.shape[:1] != steps.shape for a in rows):
        raise ValueError("a tensor of another number of streams")


def _read_first(metadata: dict, tensors: dict[str, np.ndarray], where: str) -> Snapshot:
    """A snapshot of format 1."""
    of = Identity((str(metadata["model"]),), str(metadata["name"]))
    sizes = _sizes([list(p) for p in sorted(json.loads(metadata["sizes"]).items())])
    steps, slots, ended, known = _counted(tensors)
    names = sorted(k for k in tensors if k.startswith(INPUT))
    still = [tensors.pop(k) for k in names]
    part, gone = _part(metadata, tensors, slots)
    named = {k[len(STATE) :]: tensors.pop(k) for k in sorted(tensors) if k.startswith(STATE)}
    _no_others(tensors, [*still, *named.values()], steps)
    rows = np.zeros((len(steps), 0), np.float32)
    inputs = tuple(k[len(INPUT) :] for k in names)
    return Snapshot(steps, rows, (), slots, sizes, ended, still, known, {}, of, named, inputs, where, part, gone)
