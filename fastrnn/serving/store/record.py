"""The record of a sequence: everything that another server needs to go on with it, as bytes.

    FRNNSEQ1 | length of the JSON, 8 bytes, little-endian | JSON | snapshot | elements of the last answer | BLAKE2b-128

The last 16 bytes are over all before them. The JSON has the sequence and the model, and says how long the parts are.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import replace
from typing import Any

import numpy as np

from ...records import dataclass
from .base import StoreError

MAGIC = b"FRNNSEQ1"
LENGTH = struct.Struct("<8sQ")
DIGEST = 16
MOST_LAST_BYTES = 8 << 20  # of an answer that is kept; a longer one is not answered again elsewhere
STATES = ("live", "moved", "ended")
DTYPES = ("|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8")


@dataclass(frozen=True)
class Record:
    """A sequence at one moment.

    Parameters
    ----------
    model, id : which sequence it is
    version : of the model
    names : fingerprints of the model, any of which is enough
    steps : that the sequence has taken
    snapshot : what `StreamPool.restore` takes; empty: it is as it was at its START
    state : "live": a server has it, and may have taken more steps since; "moved": no step was taken since, and the
        next server that is asked goes on; "ended": it is over
    reason : of its end, as `fastrnn_sequence_ends_total` counts them; text : the same as a sentence without its subject
    time : of the last step, in seconds since 1970
    last : (step_index, steps, outputs) of the last request that came with a step_index
    """

    model: str
    id: int | str
    version: int
    names: tuple[str, ...]
    steps: int
    snapshot: bytes
    state: str
    time: float
    reason: str = ""
    text: str = ""
    last: tuple[int, int, list[np.ndarray]] | None = None

    def to_bytes(self) -> bytes:
        """The record as a store keeps it."""
        last, arrays = self.last, []
        if last is not None and sum(v.nbytes for v in last[2]) > MOST_LAST_BYTES:
            last = None
        if last is not None:
            arrays = [np.asarray(v, order="C") for v in last[2]]
        about = {
            "model": self.model,
            "id": self.id,
            "version": self.version,
            "names": list(self.names),
            "steps": self.steps,
            "snapshot": len(self.snapshot),
            "state": self.state,
            "reason": self.reason,
            "text": self.text,
            "time": self.time,
            "last": None if last is None else [last[0], last[1], [[v.dtype.str, list(v.shape)] for v in arrays]],
        }
        text = json.dumps(about, separators=(",", ":")).encode("ascii")
        parts = [LENGTH.pack(MAGIC, len(text)), text, self.snapshot, *(v.tobytes() for v in arrays)]
        body = b"".join(parts)
        return body + _digest(body)

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """A record that a store kept. StoreError: it is torn, damaged or of something else."""
        if len(data) < LENGTH.size + DIGEST or data[:8] != MAGIC:
            raise StoreError(f"{len(data)} bytes that begin with {data[:8]!r} are no record of a sequence")
        body = data[:-DIGEST]
        if _digest(body) != data[-DIGEST:]:
            raise StoreError("its checksum is wrong: the record is torn or damaged")
        try:
            length = LENGTH.unpack_from(body)[1]
            about = json.loads(body[LENGTH.size : LENGTH.size + length])
            return _record(about, body[LENGTH.size + length :])
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
            raise StoreError(f"the record is of another form: {type(error).__name__}: {error}") from None

    def ended(self, reason: str, text: str) -> Record:
        """The mark of its end, without its state. The last answer stays if its client ended it, and may ask again."""
        last = self.last if reason == "client" else None
        return replace(self, state="ended", reason=reason, text=text, snapshot=b"", last=last)


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=DIGEST).digest()


def _record(about: dict[str, Any], rest: bytes) -> Record:
    """The record of its JSON and what follows it; errors of any kind if they don't fit."""
    size = _whole(about["snapshot"])
    snapshot, rest = rest[:size], rest[size:]
    last = about["last"]
    if last is not None:
        index, steps, shapes = last
        arrays = []
        for dtype, shape in shapes:
            if dtype not in DTYPES:
                raise ValueError(f"dtype {dtype!r:.20}")
            count = math.prod(_whole(n) for n in shape)
            used = count * np.dtype(dtype).itemsize
            arrays.append(np.frombuffer(rest[:used], dtype, count).reshape(shape).copy())
            rest = rest[used:]
        last = (_whole(index), _whole(steps + 1) - 1, arrays)  # -1: a request that only ended it
    if rest or len(snapshot) != size or about["state"] not in STATES or type(about["id"]) not in (int, str):
        raise ValueError("its parts don't fit together")
    texts = {name: str(about[name]) for name in ("model", "reason", "text", "state")}
    names = tuple(str(n) for n in about["names"])
    version, steps, moment = _whole(about["version"]), _whole(about["steps"]), float(about["time"])
    return Record(
        id=about["id"], version=version, names=names, steps=steps, snapshot=snapshot, time=moment, last=last, **texts
    )


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a number of something")
    return value
