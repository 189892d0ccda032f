"""`score`: files of sequences in, files of answers out, on one machine."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any, NamedTuple

import pyarrow as pa

from ..errors import FastRNNError
from ..machine._isa import isa_info
from ..model import Model
from ..records import dataclass
from ..runtime.arguments import whole_number
from . import parts
from .beside import AHEAD, Answers, Behind, ahead
from .scorer import Scorer, Scoring
from .sources import PART_ROWS, Source, Unit, path_of, sources_of

BATCH_ROWS = 1024
MOST_ROWS = 1 << 24
Progress = Callable[[float, str], None]
Tell = Callable[[Unit, int, dict[int, str]], None]
Check = Callable[[Unit], None]


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
        found = [u for i, s in enumerate(self.sources) for u in s.units(i, self.batch_rows, self.part_rows)]
        return found or [Unit(0, 0, 0, 1)]  # data without rows: who reads the answers finds their columns

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

    def write(self, folder: parts.Folder, units: Sequence[Unit], tell: Tell, check: Check = lambda unit: None) -> None:
        """Score units and write their parts. The next batches are read, and the last ones written, while others run.

        tell : called with the unit and the number of rows of each batch, and with what is wrong with some
        check : called with each unit before its file gets its name; if it raises, there is no such file
        """
        schema = self.scorer.schema(self.given)
        options = parts.writing(schema, self.scorer.options["outputs"].values(), self.compression)
        with Behind(folder, schema, options, check) as behind, closing(self._answers(units, tell)) as found:
            for answers in found:
                behind.put(answers)

    def _read(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, int, pa.RecordBatch]]:
        for file, some in itertools.groupby(units, key=lambda u: u.file):
            yield from self.sources[file].batches(list(some), self.given.names)

    def _answers(self, units: Sequence[Unit], tell: Tell) -> Generator[Answers, None, None]:
        pending: deque[_Pending] = deque()
        read = ahead(self._read(units))
        failed: Exception | None = None
        try:
            while failed is None or pending:
                if failed is None and self._idle(pending):
                    try:
                        pending.append(self._begun(*next(read)))
                    except Exception as error:  # raised when the batches before it are done
                        failed = error
                else:
                    yield pending.popleft().finished(tell)
        finally:
            read.close()
            for some in pending:
                some.scoring.cancel()
        if not isinstance(failed, StopIteration):
            raise failed

    def _idle(self, pending: deque[_Pending]) -> bool:
        """Whether threads may have nothing to do while the first of the batches that run ends."""
        if len(pending) <= AHEAD:
            return True
        threads = self.scorer.threads
        return len(pending) <= threads and sum(p.scoring.pieces for p in list(pending)[1:]) < threads

    def _begun(self, unit: Unit, at: int, batch: pa.RecordBatch) -> _Pending:
        label = self.sources[unit.file].label
        scoring = self.scorer.submit(batch, lambda row: f"{label}, row {at + row}")
        return _Pending(unit, at, at + batch.num_rows == unit.stop, scoring)


class _Pending(NamedTuple):
    """A batch that runs: the rows of a unit from `at` on; last : of the unit."""

    unit: Unit
    at: int
    last: bool
    scoring: Scoring

    def finished(self, tell: Tell) -> Answers:
        """Wait for it."""
        found = self.scoring.result()
        tell(self.unit, found.num_rows, {self.at + row: text for row, text in self.scoring.problems.items()})
        return Answers(self.unit, found, self.last)


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
    data : a .parquet, .npy or .npz file, a folder of them, or a list. Folders such as day=2024-05-01 are columns too.
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
        out = path_of(out)
        job = Job(sources_of(data, apart_from=out), scorer, compression, batch_rows, part_rows)
        scorer.schema(job.given)  # raises before the folder is made
        with parts.opened(out, job.record(), restart) as folder:
            return _run(job, folder, began, progress)


def _run(job: Job, folder: parts.Folder, began: float, progress: Progress) -> ScoreReport:
    units, rows = job.units(), sum(s.rows for s in job.sources)
    check_parts(folder, units)
    folder.remove_leftovers()
    prints = [s.fingerprint() for s in job.sources]
    missing = [u for u in units if not folder.has(u.name)]
    done = rows - sum(u.stop - u.start for u in missing)
    scored = failed = 0
    first = ""

    def tell(unit: Unit, count: int, problems: dict[int, str]) -> None:
        nonlocal done, scored, failed, first
        done, scored, failed = done + count, scored + count, failed + len(problems)
        if problems and not first:
            row = min(problems)
            first = f"{job.sources[unit.file].label}, row {row}: {problems[row]}"
        speed = scored / max(time.perf_counter() - began, 1e-9)
        progress(done / max(rows, 1), f"{done:,} of {rows:,} rows, {speed:,.0f} a second")

    def check(unit: Unit) -> None:
        source = job.sources[unit.file]
        if source.fingerprint() != prints[unit.file]:
            raise FastRNNError(f"{source.label} has changed while it was read: begin anew with restart (--restart)")

    job.write(folder, missing, tell, check)
    seconds, resumed = time.perf_counter() - began, len(units) - len(missing)
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
