"""The folder of answers: parts that are there as a whole or not at all, and the record that a later run is held to.

    OUT/part-00000-000000000000.parquet    file 0 of the data, from its row 0 on
    OUT/_fastrnn_score.json                what the answers were made from

A run that was ended at any moment goes on with the parts that are missing. The record has no times and no names of
folders, so that it and the parts are the same after any number of interruptions.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import FastRNNError
from ..machine.files import replace_file

RECORD = "_fastrnn_score.json"
FORMAT = 1
PART = re.compile(r"part-\d+-\d+\.parquet")
COMPRESSIONS = ("snappy", "zstd", "none")


class Folder:
    """A folder of answers.

    Parameters
    ----------
    path : it is there, and this process is `alone` in it
    record : what determines the answers; a folder with another record is refused
    restart : remove the parts and the record that are there
    names : what the names of parts look like
    """

    def __init__(self, path, record: dict[str, Any], restart: bool = False, names: re.Pattern[str] = PART):
        self.path, self._pattern = Path(path), names
        record = json.loads(json.dumps({"format": FORMAT, **record}))  # as it will be read
        if restart:
            self._clear()
        known = self._known()
        if known is None:
            other = sorted(p.name for p in self.path.iterdir() if p.name[:1] not in "._")
            if other:
                raise FastRNNError(
                    f"{self.path} holds {other[0]} and no {RECORD}, so it is not a folder of answers: name an empty or "
                    "new one"
                )
            replace_file(self.path / RECORD, json.dumps(record, indent=1, sort_keys=True).encode() + b"\n")
        elif known != record:
            raise FastRNNError(
                f"{self.path} holds answers that were made from something else: {_difference(known, record)}. Use "
                "another folder, bring back what was there, or begin anew with restart (--restart), which removes them"
            )

    @classmethod
    def joined(cls, path) -> Folder:
        """A folder that another process has opened, for writing parts."""
        self = cls.__new__(cls)
        self.path, self._pattern = Path(path), PART
        return self

    def remove_leftovers(self) -> None:
        """Remove the unfinished parts of runs that were killed. The caller is `alone`."""
        for leftover in self.path.glob(".part-*.partial"):
            leftover.unlink(missing_ok=True)

    def _known(self) -> dict[str, Any] | None:
        try:
            known = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            known = None
        if not isinstance(known, dict):
            raise FastRNNError(f"{self.path / RECORD} is damaged: begin anew with restart (--restart)")
        return known

    def _clear(self) -> None:
        """Remove what an earlier run wrote. Without its record, what is there is somebody else's."""
        if (self.path / RECORD).exists():
            for name in self.names():
                (self.path / name).unlink()
            (self.path / RECORD).unlink()

    def has(self, name: str) -> bool:
        """Whether a part is there."""
        return (self.path / name).exists()

    def names(self) -> set[str]:
        """The parts that are there."""
        return {p.name for p in self.path.iterdir() if self._pattern.fullmatch(p.name)}

    def write(self, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], options: dict[str, Any]) -> None:
        """Write a part; no reader ever sees half of it."""
        partial = _partial(self.path / name)
        try:
            with pq.ParquetWriter(partial, schema, **options) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            _finish(partial, self.path / name)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def copy(part: Path, name: Path) -> None:
    """Copy a part; no reader ever sees half of it."""
    partial = _partial(name)
    shutil.copyfile(part, partial)
    _finish(partial, name)


def _partial(name: Path) -> Path:
    """Where a part is written first: no other writer of it, in whatever process, has the same file."""
    return name.with_name(f".{name.name}.{os.urandom(6).hex()}.partial")


def _finish(partial: Path, name: Path) -> None:
    """Give a file its name once it is on the disk: without that, a power failure could leave an empty one."""
    _sync(partial)
    os.replace(partial, name)
    with contextlib.suppress(OSError):
        _sync(name.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def writing(schema: pa.Schema, outputs: Iterable[str], compression: str) -> dict[str, Any]:
    """The options of the writer. Outputs are numbers that hardly repeat, so they get no dictionaries."""
    if compression not in COMPRESSIONS:
        raise FastRNNError(f"compression must be one of {', '.join(COMPRESSIONS)}, got {compression!r}")
    made = set(outputs)
    kept = [f.name for f in schema if f.name not in made and not pa.types.is_nested(f.type)]
    return {"compression": compression, "use_dictionary": kept or False, "write_statistics": kept or False}


@contextlib.contextmanager
def opened(path, record: dict[str, Any], restart: bool = False, names: re.Pattern[str] = PART) -> Iterator[Folder]:
    """A folder of answers, as of `Folder`, made if it is absent. No other run has it from before anything in it is
    removed."""
    Path(path).mkdir(parents=True, exist_ok=True)
    with alone(path):
        yield Folder(path, record, restart, names)


@contextlib.contextmanager
def alone(path) -> Iterator[None]:
    """Hold a folder against a second run; FastRNNError if another one has it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FastRNNError(f"another run writes to {path}: wait for its end, or name another folder") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def _difference(known: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first thing that differs between two records, in words."""
    if known.get("format") != wanted.get("format"):
        return "the record is of another release"
    if known.get("model") != wanted.get("model"):
        return f"the model had the fingerprint {str(known.get('model'))[:16]}, now it has {wanted['model'][:16]}"
    old, new = ({f[0]: f for f in side.get("inputs", [])} for side in (known, wanted))
    gone, more = [n for n in old if n not in new], [n for n in new if n not in old]
    changed = [n for n in old if n in new and old[n] != new[n]]
    if gone or more or changed:
        found = ((changed, "has changed since"), (gone, "is gone"), (more, "is new"))
        return "; ".join(f"{names[0]} {what}" for names, what in found if names)
    for part in ("options", "made_by"):
        before, after = known.get(part) or {}, wanted.get(part) or {}
        for name in {**before, **after}:
            if before.get(name) != after.get(name):
                return f"{name} was {before.get(name)!r}, now it is {after.get(name)!r}"
    return "the files come in another order"
