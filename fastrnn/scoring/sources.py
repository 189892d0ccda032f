"""Data files: parquet, .npy and .npz, alone or in a folder; their parts, and fingerprints by which a change is seen."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import FastRNNError, ModelFormatError
from ..records import dataclass

SUFFIXES = (".parquet", ".pq", ".npy", ".npz")
PART_ROWS = 1 << 16  # of a part at most
PART_BYTES = 128 << 20  # of its input, about
BATCH_BYTES = (
    8 << 20
)  # of a batch's input, about: with 16 MiB, memory is not used again, and new pages cost 6 % of a run
MOST_BYTES = 32 << 20  # of a batch of few rows
FEW_ROWS = 128  # that a model runs together
READ_BYTES = 1 << 20  # of a column that are read at once; without it, a whole row group's
EDGE = 1 << 16  # bytes at the beginning and end of a file that its fingerprint covers
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8}  # bytes of parquet's types
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # of a partition whose rows have no value


_DAMAGE = (pa.ArrowException, OSError)  # Arrow raises both for a damaged file


def _damaged(label: str, error: Exception) -> Exception:
    """What to raise for an error of a file; what the system says of it stays as it is."""
    return error if getattr(error, "errno", None) else ModelFormatError(f"{label}: {error}")


@dataclass(frozen=True)
class Unit:
    """Rows of a file whose answers are one part.

    file : number of the file; start, stop : its rows; batch : rows that are read at once
    """

    file: int
    start: int
    stop: int
    batch: int

    @property
    def name(self) -> str:
        """The name of the part's file: sorted names are the order of the rows."""
        return f"part-{self.file:05d}-{self.start:012d}.parquet"


class Source:
    """A data file.

    Attributes
    ----------
    path, label : the label is its name in errors and records, with the folders between it and the folder of the data
    rows, schema : of its rows
    partition : column -> text, of folders such as day=2024-05-01
    """

    def __init__(self, path: Path, label: str):
        self.path, self.label = path, label
        self.partition = _partition_of(label)
        self.is_parquet = path.suffix.lower() in (".parquet", ".pq")
        try:
            if self.is_parquet:
                meta = pq.read_metadata(path)
                self.rows, self.schema = meta.num_rows, pq.read_schema(path)
                size = sum(_bytes_of(meta.row_group(i)) for i in range(meta.num_row_groups))
            else:
                arrays = self._arrays()
                self.rows = len(next(iter(arrays.values())))
                self.schema = self._numpy_batch(arrays, 0, 0).schema
                size = sum(a.nbytes for a in arrays.values())
        except (*_DAMAGE, ValueError, EOFError, BadZipFile) as error:
            raise _damaged(label, error) from None
        for name in set(self.partition) & set(self.schema.names):
            del self.partition[name]  # the file itself says it
        for name in self.partition:
            self.schema = self.schema.append(pa.field(name, pa.string()))
        self.row_bytes = max(1, size // max(self.rows, 1))

    def fingerprint(self) -> list:
        """[name, bytes, time of modification, digest of its edges]; a changed file has another one."""
        stat = os.stat(self.path)
        digest = hashlib.blake2b(digest_size=16)
        with open(self.path, "rb") as file:
            digest.update(file.read(EDGE))
            file.seek(max(0, stat.st_size - EDGE))
            digest.update(file.read(EDGE))
        return [self.label, stat.st_size, stat.st_mtime_ns, digest.hexdigest()]

    def units(self, number: int, batch_rows: int, part_rows: int) -> list[Unit]:
        """The parts of the file."""
        few = min(FEW_ROWS, MOST_BYTES // self.row_bytes)
        batch = max(1, min(batch_rows, max(few, BATCH_BYTES // self.row_bytes)))
        most = min(part_rows, max(batch, PART_BYTES // self.row_bytes // batch * batch))
        return [Unit(number, at, min(at + most, self.rows), batch) for at in range(0, self.rows, most)]

    def batches(self, units: Sequence[Unit], columns: Sequence[str]) -> Iterator[tuple[Unit, int, pa.RecordBatch]]:
        """(unit, number of the first row, rows) of units of this file, in order.

        Where a batch begins and ends depends on its unit alone.
        """
        own = [n for n in columns if n not in self.partition]
        for unit, start, batch in self._own_batches(units, own):
            arrays = [
                pa.array([self.partition[n]] * batch.num_rows, pa.string()) if n in self.partition else batch[n]
                for n in columns
            ]
            fields = [self.schema.field(n) for n in columns]
            yield unit, start, pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, batch.schema.metadata))

    def _own_batches(self, units: Sequence[Unit], columns: list[str]) -> Iterator[tuple[Unit, int, pa.RecordBatch]]:
        """The same, of the columns that the file has."""
        if not self.rows:
            fields = [self.schema.field(n) for n in columns]
            yield from ((u, 0, pa.RecordBatch.from_pylist([], pa.schema(fields, self.schema.metadata))) for u in units)
            return
        if not self.is_parquet:
            arrays = {n: a for n, a in self._arrays().items() if n in columns or n == "lengths"}
            for unit, start, stop in _spans(units):
                yield unit, start, self._numpy_batch(arrays, start, stop).select(columns)
            return
        try:
            yield from self._parquet_batches(units, columns)
        except _DAMAGE as error:
            raise _damaged(self.label, error) from None

    def _parquet_batches(self, units: Sequence[Unit], columns: list[str]) -> Iterator[tuple[Unit, int, pa.RecordBatch]]:
        with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=READ_BYTES) as file:
            for some in _runs(units):
                first, groups = self._groups(file.metadata, some[0].start, some[-1].stop)
                read = file.iter_batches(some[0].batch, row_groups=groups, columns=columns)
                rows = _Rows(read, first)
                for unit, start, stop in _spans(some):
                    batch = rows.take(start, stop)
                    if batch is None:
                        raise FastRNNError(f"{self.label}: has fewer rows than its footer says")
                    yield unit, start, batch.select(columns)

    @staticmethod
    def _groups(meta, start: int, stop: int) -> tuple[int, list[int]]:
        """(first row, row groups) that hold rows."""
        at, first, found = 0, 0, []
        for i in range(meta.num_row_groups):
            rows = meta.row_group(i).num_rows
            if at < stop and at + rows > start:
                first = at if not found else first
                found.append(i)
            at += rows
        return first, found

    # -- NumPy --
    def _arrays(self) -> dict[str, np.ndarray]:
        if self.path.suffix.lower() == ".npy":
            found = {"x": np.load(self.path, mmap_mode="r", allow_pickle=False)}
        else:
            with np.load(self.path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        if not found:
            raise ModelFormatError(f"{self.label}: holds no arrays")
        if any(a.ndim == 0 for a in found.values()):
            raise ModelFormatError(f"{self.label}: an array has no axis of rows, which is the first one")
        counts = {n: len(a) for n, a in found.items()}
        if len(set(counts.values())) > 1:
            raise ModelFormatError(f"{self.label}: its arrays must have as many rows, got {counts}")
        lengths = found.get("lengths")
        if lengths is not None and len(found) > 1 and (lengths.ndim != 1 or lengths.dtype.kind not in "iu"):
            got = f"{lengths.dtype} {list(lengths.shape)}"
            raise ModelFormatError(f"{self.label}: lengths must be one whole number a row, int64 [rows], got {got}")
        return found

    def _numpy_batch(self, arrays: dict[str, np.ndarray], start: int, stop: int) -> pa.RecordBatch:
        """Rows as lists. An array `lengths` says how many steps of each row of arrays with steps count."""
        lengths = arrays.get("lengths")
        columns = {}
        for name, array in arrays.items():
            # A copy keeps a batch that waits from holding the whole array; a mapped one takes no memory.
            rows = np.ascontiguousarray(array[start:stop]) if isinstance(array, np.memmap) else array[start:stop].copy()
            ragged = lengths is not None and name != "lengths" and array.ndim > 1
            columns[name] = _cut(rows, lengths[start:stop], self.label, start) if ragged else _lists(rows)
        return pa.RecordBatch.from_pydict(columns)


def _spans(units: Sequence[Unit]) -> Iterator[tuple[Unit, int, int]]:
    """(unit, first row, end) of each batch."""
    for unit in units:
        for at in range(unit.start, unit.stop, unit.batch):
            yield unit, at, min(at + unit.batch, unit.stop)


def _runs(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """Units that follow each other without a gap: their rows are read in one go, and each row group once."""
    some: list[Unit] = []
    for unit in units:
        if some and some[-1].stop != unit.start:
            yield some
            some = []
        some.append(unit)
    if some:
        yield some


class _Rows:
    """Consecutive rows, cut anew. begin : number of the first one"""

    def __init__(self, batches: Iterator[pa.RecordBatch], begin: int):
        self._batches, self._begin, self._end = batches, begin, begin
        self._batch: pa.RecordBatch | None = None  # rows begin..end

    def take(self, start: int, stop: int) -> pa.RecordBatch | None:
        """Rows; None if there are not so many. `start` must not be below the last `stop`."""
        pieces: list[pa.RecordBatch] = []
        while start < stop:
            while self._end <= start:
                self._batch = next(self._batches, None)
                if self._batch is None:
                    return None
                self._begin, self._end = self._end, self._end + self._batch.num_rows
            piece = self._batch.slice(start - self._begin, min(stop, self._end) - start)
            pieces.append(piece)
            start += piece.num_rows
        return pieces[0] if len(pieces) == 1 else joined(pa.Table.from_batches(pieces))


def joined(table: pa.Table) -> pa.RecordBatch:
    """A table as one batch. FastRNNError: one can't hold it."""
    batches = table.combine_chunks().to_batches()
    if len(batches) > 1:
        raise FastRNNError(
            f"{table.num_rows} rows have more than 2 GiB of text, which is more than one batch of Arrow holds: pass a "
            "smaller batch_rows (--batch-rows), or leave the column out (columns, --columns)"
        )
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _lists(rows: np.ndarray) -> pa.Array:
    found = pa.array(rows.reshape(-1))
    for axis in reversed(range(1, rows.ndim)):
        count, size = math.prod(rows.shape[:axis]), rows.shape[axis]
        found = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int64) * size, pa.int32()), found)
    return found


def _cut(rows: np.ndarray, lengths: np.ndarray, label: str, start: int) -> pa.Array:
    """Rows cut to their lengths."""
    most = rows.shape[1]
    wrong = np.flatnonzero((lengths < 0) | (lengths > most))
    if len(wrong):
        raise FastRNNError(
            f"{label}, row {start + wrong[0]}: its length is {lengths[wrong[0]]}, and its array has {most} steps: "
            "lengths lie in 0 to the steps of the array"
        )
    flat = rows[np.arange(most) < lengths[:, None]]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), _lists(flat))


def sources_of(data, apart_from=None) -> list[Source]:
    """The data files at a path, or at each of several, in their order; those of a folder by name.

    apart_from : a folder that must not be inside a folder of data: what is written there would be read the next time

    Raises
    ------
    FileNotFoundError, FastRNNError : none, or files that don't fit together.
    """
    paths = [data] if isinstance(data, str | os.PathLike) else list(data)
    if not paths:
        raise FastRNNError("no data: name a file, a folder, or several of them")
    found = []
    for path in map(path_of, paths):
        if path.is_dir():
            if apart_from is not None and Path(apart_from).resolve().is_relative_to(path.resolve()):
                raise FastRNNError(f"the answers can't go to {apart_from}, inside of the data in {path}: name another")
            inside = sorted(p for p in _files(path) if _is_data(p, path))
            if not inside:
                raise FileNotFoundError(f"{path}: no file that ends in {', '.join(SUFFIXES)}")
            found += [(p, p.relative_to(path).as_posix()) for p in inside]
        elif not path.exists():
            raise FileNotFoundError(f"no data file {path}")
        elif path.suffix.lower() not in SUFFIXES:
            raise ModelFormatError(f"{path}: data come from {', '.join(SUFFIXES)} files, or a folder of them")
        else:
            found.append((path, path.name))
    sources = [Source(path, label) for path, label in found]
    for source in sources[1:]:
        if not source.schema.equals(sources[0].schema):
            raise FastRNNError(
                f"{source.label}: its columns {_text(source.schema)} differ from those of {sources[0].label}, "
                f"{_text(sources[0].schema)}: score them apart, or make them alike"
            )
    return sources


def path_of(place: str | os.PathLike[str]) -> Path:
    """A path, or that of a URL file:///... FastRNNError for any other URL."""
    text = os.fspath(place)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", text)
    if scheme is None:
        return Path(place)
    if scheme[1] == "file":
        return Path(unquote(re.sub(r"^file:(//(localhost)?(?=/))?", "", text)))
    raise FastRNNError(
        f"{text}: scoring reads and writes files of this machine: copy or mount them, or read and write by Ray Data "
        "(ray.data.read_parquet, fastrnn.ray.score)"
    )


def _bytes_of(group: pq.RowGroupMetaData) -> int:
    """What a row group takes in memory, about: values that repeat themselves take hardly any room in the file."""
    columns = [group.column(i) for i in range(group.num_columns)]
    return sum(max(c.total_uncompressed_size, c.num_values * WIDTHS.get(c.physical_type, 0)) for c in columns)


def _partition_of(label: str) -> dict[str, str | None]:
    pairs = [folder.partition("=") for folder in label.split("/")[:-1]]
    found = {unquote(name): unquote(value) for name, sign, value in pairs if name and sign}
    return {name: None if value == NO_VALUE else value for name, value in found.items()}


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, also behind symbolic links to folders. FastRNNError: a folder would count twice.
    OSError: one can't be read."""

    def fails(error: OSError) -> None:
        raise error

    seen: dict[str, str] = {}
    for here, folders, names in os.walk(folder, onerror=fails, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            raise FastRNNError(f"{here} is {seen[real]} again, by a symbolic link: its rows would count twice")
        seen[real] = here
        folders[:] = [name for name in folders if name[0] not in "._"]
        yield from (Path(here, name) for name in names)


def _is_data(path: Path, folder: Path) -> bool:
    """Whether a file of a folder counts: names that begin with . or _ are of other programs."""
    parts = path.relative_to(folder).parts
    return path.suffix.lower() in SUFFIXES and path.is_file() and not any(p[0] in "._" for p in parts)


def _text(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name}: {f.type}" for f in schema)
