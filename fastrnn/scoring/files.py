"""`score`: files of sequences in, files of answers out, on one machine."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from ..errors import FastRNNError
from ..machine._isa import isa_info
from ..model import Model
from ..records import dataclass
from ..runtime.arguments import whole_number
from . import parts
from .scorer import Scorer
from .sources import PART_ROWS, Source, Unit, sources_of

BATCH_ROWS = 1024
MOST_ROWS = 1 << 24
AHEAD = 2  # batches that are read, and that run, before the one that is written
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class ScoreReport:
    """What `score` did.

    rows : all rows of the data; scored : rows of this run; failed : rows whose outputs are null, of this run
    parts : all parts; resumed : those that an earlier run had written
    first_error : file, row and reason of the first failed row; empty if there is none
    seconds : of this run
    """

    out: str
    rows: int
    scored: int
    failed: int
    parts: int
    resumed: int
    first_error: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The same as a dict."""
        return asdict(self)


@dataclass
class Job:
    """Data, scorer and folder of one run, in any process: what `score` and `fastrnn.ray.score` share."""

    sources: list[Source]
    scorer: Scorer
    compression: str
    batch_rows: int
    part_rows: int

    @property
    def given(self) -> pa.Schema:
        """The columns that are read."""
        schema = self.sources[0].schema
        return pa.schema([schema.field(n) for n in self.scorer.needed(schema)], metadata=schema.metadata)

    def units(self) -> list[Unit]:
        """The parts, in the order of the rows."""
        return [u for i, s in enumerate(self.sources) for u in s.units(i, self.batch_rows, self.part_rows)]

    def record(self) -> dict[str, Any]:
        """What determines the answers."""
        return {
            "model": self.scorer.model.fingerprint,
            "inputs": [s.fingerprint() for s in self.sources],
            "options": {
                **self.scorer.options,
                "compression": self.compression,
                "batch_rows": self.batch_rows,
                "part_rows": self.part_rows,
            },
            "made_by": made_by(self.scorer.model),
        }

    def write(self, folder: parts.Folder, unit: Unit, tell: Callable[[int, dict[int, str]], None]) -> None:
        """Score a unit and write its part. tell : called with the rows of each batch, and what is wrong with some."""
        schema = self.scorer.schema(self.given)
        options = parts.writing(schema, self.scorer.options["outputs"].values(), self.compression)
        folder.write(unit.name, schema, self._answers(unit, tell), options)

    def _answers(self, unit: Unit, tell) -> Iterator[pa.RecordBatch]:
        source, columns = self.sources[unit.file], self.given.names
        pending: deque = deque()
        try:
            for at, batch in _ahead(source.batches(unit, columns)):
                pending.append((at, self.scorer.submit(batch, lambda row, at=at: f"{source.label}, row {at + row}")))
                if len(pending) > AHEAD:
                    yield self._finished(*pending.popleft(), tell)
            while pending:
                yield self._finished(*pending.popleft(), tell)
        finally:
            for _, scoring in pending:
                scoring.cancel()

    @staticmethod
    def _finished(at: int, scoring, tell) -> pa.RecordBatch:
        found = scoring.result()
        tell(found.num_rows, {at + row: text for row, text in scoring.problems.items()})
        return found


def score(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    model: Model | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    inputs: Mapping[str, str] | None = None,
    outputs: Sequence[str] | Mapping[str, str] | None = None,
    columns: str | Sequence[str] = "rest",
    threads: int | None = None,
    on_error: str = "fail",
    cast: bool = False,
    allow_nan: bool = False,
    batch_rows: int = BATCH_ROWS,
    part_rows: int = PART_ROWS,
    compression: str = "snappy",
    restart: bool = False,
    progress: Progress = lambda share, text: None,
) -> ScoreReport:
    """Run a model over files of whole sequences and write the answers as parquet files, in the order of the rows.

    A run that was ended at any moment, by SIGKILL too, goes on when it is started again, and the files are the same bit
    for bit as those of an undisturbed run. A row's answers have the bits of `model(...)` of that row alone.

    Parameters
    ----------
    data : a .parquet, .npy or .npz file, a folder of them, or a list
        A row is a whole sequence: `list<list<float>>` for [time, features], the time first. Sequences may have
        different lengths. An array of .npy and .npz has its rows on the first axis, and an array `lengths` of a .npz
        says how many steps of each row count.
    model : Model, or the path of a file
    out : folder of the answers
    inputs, outputs, columns, threads, on_error, cast, allow_nan : as of `Scorer`
    batch_rows : most rows that are read and scored together; fewer if they are large
    part_rows : most rows of a part, which is the work that an interruption may lose; fewer if they are large
    compression : "snappy", "zstd" or "none"
    restart : remove the answers that the folder holds, of whatever they were made
    progress : called with (share done 0..1, what is being done)

    Raises
    ------
    FastRNNError : the data don't fit the model; a bad row, named by file and number (from 0); the folder holds answers
    of other data, of another model or of other options. OSError : a file can't be read or written.
    """
    began = time.perf_counter()
    batch_rows, part_rows = (
        whole_number(v, n, MOST_ROWS) for v, n in ((batch_rows, "batch_rows"), (part_rows, "part_rows"))
    )
    with Scorer(
        model, inputs=inputs, outputs=outputs, columns=columns, threads=threads, on_error=on_error, cast=cast,
        allow_nan=allow_nan,
    ) as scorer:  # fmt: skip
        job = Job(sources_of(data, apart_from=out), scorer, compression, batch_rows, part_rows)
        scorer.schema(job.given)  # raises before the folder is made
        folder = parts.Folder(out, job.record(), restart)
        with parts.alone(folder.path):
            return _run(job, folder, began, progress)


def _run(job: Job, folder: parts.Folder, began: float, progress: Progress) -> ScoreReport:
    units, rows = job.units(), sum(s.rows for s in job.sources)
    check_parts(folder, units)
    folder.remove_leftovers()
    prints = [s.fingerprint() for s in job.sources]
    done = scored = resumed = failed = 0
    first = ""

    def tell(count: int, problems: dict[int, str]) -> None:
        nonlocal done, scored, failed, first
        done, scored, failed = done + count, scored + count, failed + len(problems)
        if problems and not first:
            row = min(problems)
            first = f"{source.label}, row {row}: {problems[row]}"
        speed = scored / max(time.perf_counter() - began, 1e-9)
        progress(done / max(rows, 1), f"{done:,} of {rows:,} rows, {speed:,.0f} a second")

    for unit in units:
        source = job.sources[unit.file]
        if folder.has(unit.name):
            done, resumed = done + unit.stop - unit.start, resumed + 1
            continue
        job.write(folder, unit, tell)
        if source.fingerprint() != prints[unit.file]:
            (folder.path / unit.name).unlink()
            raise FastRNNError(f"{source.label} has changed while it was read: begin anew with restart (--restart)")
    seconds = time.perf_counter() - began
    return ScoreReport(str(folder.path), rows, scored, failed, len(units), resumed, first, seconds)


def check_parts(folder: parts.Folder, units: Sequence[Unit]) -> None:
    """FastRNNError if the folder holds parts that are none of these."""
    strange = folder.names() - {u.name for u in units}
    if strange:
        raise FastRNNError(f"{folder.path} holds {min(strange)}, which is no part of these data: remove it")


def made_by(model: Model) -> dict[str, str]:
    """What else determines the bits of the files: a resumed run needs the same."""
    from fastrnn import __version__

    return {"fastrnn": __version__, "isa": str(isa_info()["active"]), "pyarrow": pa.__version__}


def _ahead(items: Iterator) -> Iterator:
    """The items, of which the next ones are read by a thread meanwhile."""
    ready: queue.Queue = queue.Queue(AHEAD)
    stop = threading.Event()

    def put(item) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, None))
        except BaseException as error:
            put((None, error))

    reader = threading.Thread(target=read, name="fastrnn-read", daemon=True)
    reader.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        reader.join()
