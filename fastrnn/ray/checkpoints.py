"""Checkpoints of shards, as bytes and in a store that fsspec opens.

STORE/NAME/SHARD/ holds `EPOCH-NUMBER.ckpt`, the last two, and `EPOCH.epoch`, an empty object for each epoch that was
claimed lately. STORE/NAME/ holds `map-VERSION.json`, which actor has which shard, and `model.fastrnn`.

A checkpoint is a container of tensors (that of safetensors) with texts: `format` "fastrnn checkpoint 1", `shard`,
`epoch`, `number`, `ids` (JSON), `answers` (JSON [[caller, number]..]) and `checksum`, SHA-256 over everything else. Its
texts also have `handed`, JSON {position: {caller: index}}, which callers stepped a stream before its present one. Its
tensors are `steps`, `gens`, `writers`, `since` and `doubt`, int64 [n]; `states`, the bytes of a snapshot of the
streams, in the order of `ids`; and for answer i, which its caller may not have, `answer/i/rows`, `/first`, `/offsets`
and `/output/k`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from ..errors import StateError
from ..machine import container
from ..records import dataclass
from .answers import Answered

FORMAT = "fastrnn checkpoint 1"


class DamagedCheckpoint(StateError):
    """A checkpoint is torn, changed, or not one of this shard."""


@dataclass(eq=False)
class Checkpoint:
    """What a checkpoint holds, as `Host` has it. answers : slots are positions in `ids`. states : of a snapshot."""

    shard: int
    epoch: int
    number: int
    ids: list
    gens: np.ndarray
    steps: np.ndarray
    writers: np.ndarray
    since: np.ndarray
    doubt: np.ndarray
    answers: list[Answered]
    handed: dict[int, dict[int, int]]
    states: bytes


def encode(c: Checkpoint) -> bytes:
    """The bytes of a checkpoint."""
    tensors: dict[str, np.ndarray] = {
        "steps": np.ascontiguousarray(c.steps, np.int64),
        "gens": np.ascontiguousarray(c.gens, np.int64),
        "writers": np.ascontiguousarray(c.writers, np.int64),
        "since": np.ascontiguousarray(c.since, np.int64),
        "doubt": np.ascontiguousarray(c.doubt, np.int64),
        "states": np.frombuffer(c.states, np.uint8),
    }
    for i, answer in enumerate(c.answers):
        tensors[f"answer/{i}/rows"] = np.ascontiguousarray(answer.slots, np.int64)
        tensors[f"answer/{i}/first"] = np.ascontiguousarray(answer.first, np.int64)
        tensors[f"answer/{i}/offsets"] = np.ascontiguousarray(answer.offsets, np.int64)
        for k, out in enumerate(answer.outputs):
            tensors[f"answer/{i}/output/{k}"] = np.ascontiguousarray(out)
    metadata = {
        "format": FORMAT,
        "shard": str(c.shard),
        "epoch": str(c.epoch),
        "number": str(c.number),
        "ids": json.dumps(c.ids, separators=(",", ":")),
        "answers": json.dumps([[a.caller, a.number] for a in c.answers]),
        "handed": json.dumps(c.handed),
    }
    metadata["checksum"] = _checksum(metadata, tensors)
    return container.join(container.chunks(tensors, metadata))


def decode(blob: bytes, shard: int) -> Checkpoint:
    """The inverse. DamagedCheckpoint: the bytes are torn or changed, or are of another shard."""
    try:
        found = container.parse(blob)
        data, t = found.metadata, found.tensors
        if data.get("format") != FORMAT or data.get("checksum") != _checksum(data, t):
            raise ValueError("the checksum or the format does not fit")
        if int(data["shard"]) != shard:
            raise ValueError(f"it is of shard {data['shard']}")
        ids = json.loads(data["ids"])
        answers = []
        for i, (caller, number) in enumerate(json.loads(data["answers"])):
            outputs = []
            while f"answer/{i}/output/{len(outputs)}" in t:
                outputs.append(t[f"answer/{i}/output/{len(outputs)}"])
            parts = (t[f"answer/{i}/{name}"] for name in ("rows", "first", "offsets"))
            answers.append(Answered(int(caller), int(number), *parts, outputs))
        n = len(ids)
        arrays = [t[name] for name in ("gens", "steps", "writers", "since", "doubt")]
        if not all(a.shape == (n,) and a.dtype == np.int64 for a in arrays):
            raise ValueError(f"it has {n} ids and {t['steps'].shape} steps")
        handed = {int(i): {int(c): at for c, at in ends.items()} for i, ends in json.loads(data["handed"]).items()}
        states = t["states"].tobytes()
    except (container.ContainerError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise DamagedCheckpoint(f"checkpoint of shard {shard}: torn or damaged ({error})") from None
    return Checkpoint(shard, int(data["epoch"]), int(data["number"]), ids, *arrays, answers, handed, states)


def _checksum(metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    texts = {k: v for k, v in metadata.items() if k != "checksum"}
    digest.update(json.dumps(texts, sort_keys=True).encode())
    for name in sorted(tensors):
        array: Any = np.ascontiguousarray(tensors[name])
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
