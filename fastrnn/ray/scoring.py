"""`fastrnn.ray.score`: bulk scoring in Ray Data. Each actor loads the model once and scores whole blocks.

Files go to files as in `fastrnn.score`: each part is made by one actor, and the folder is the same bit for bit. A
dataset that is written has one part per block, named by its place and by the digest of the block, so that a run that
was ended finds the parts it has.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

try:
    import ray
    import ray.data
    from ray.data.dataset import MaterializedDataset
except ImportError:
    raise ImportError("fastrnn.ray needs the ray package: pip install 'fastrnn[ray]'") from None

from ..errors import FastRNNError, FastRNNWarning
from ..model import Model
from ..runtime.arguments import whole_number
from ..scoring import Scorer, ScoreReport, parts
from ..scoring.files import BATCH_ROWS, MOST_ROWS, Job, Progress, check_parts, made_by
from ..scoring.shipping import Shipped
from ..scoring.sources import PART_ROWS, Source, Unit, joined, path_of, sources_of

PART = re.compile(r"part-(\d{8}|new)-[0-9a-f]{32}\.parquet")
NEW = "part-new-"  # parts whose place among the blocks is not known yet


def score(
    dataset: Any,
    model: Model | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    num_cpus: int = 1,
    actors: int | None = None,
    batch_rows: int = BATCH_ROWS,
    part_rows: int = PART_ROWS,
    compression: str = "snappy",
    restart: bool = False,
    progress: Progress = lambda share, text: None,
    **rows: Any,
) -> Any:
    """Run a model over a dataset of whole sequences, on the actors of a Ray cluster.

    Parameters
    ----------
    dataset : ray.data.Dataset, or the path of a data file or folder, or a list of paths, as of `fastrnn.score`
        Rows as of `fastrnn.score`; columns may be tensors.
    model : Model, or the path of a file on the driver; its bytes go to the actors
    out : folder of the answers; None: they are returned as a Dataset. Every node must see it, and paths of data.
    num_cpus : CPUs of an actor, which are its threads
    actors : how many; None: as many as the cluster's CPUs allow, and with a Dataset from 1 up as the work needs
    **rows : inputs, outputs, columns, on_error, cast and allow_nan, as of `fastrnn.Scorer`
    batch_rows, part_rows, compression, restart, progress : as of `fastrnn.score`. part_rows is of files alone: of a
        Dataset, each block is a part.

    Returns
    -------
    Dataset with the answers, lazy, without `out`; else a `ScoreReport`, when all is written.

    Notes
    -----
    With `out`, a run that was ended goes on when it is started again, and the files are the same as of an undisturbed
    run. A Dataset must give the same blocks each time for that: reading and row-wise transforms do, shuffles don't.
    Without `out`, Ray does not keep the order of rows unless `DataContext.execution_options.preserve_order` is set.

    Raises
    ------
    FastRNNError : as of `fastrnn.score`; those of an actor have Ray's text around them.
    """
    num_cpus = whole_number(num_cpus, "num_cpus", 1024)
    batch_rows = whole_number(batch_rows, "batch_rows", MOST_ROWS)
    part_rows = whole_number(part_rows, "part_rows", MOST_ROWS)
    actors = None if actors is None else whole_number(actors, "actors", 1 << 16)
    out = None if out is None else path_of(out)
    scorer = Scorer(model, threads=num_cpus, **rows)
    began = time.perf_counter()
    if isinstance(dataset, ray.data.Dataset):
        _check_cpus(dataset, num_cpus, actors)
        if out is None:
            return _lazy(dataset, scorer, num_cpus, actors, batch_rows)
        return _write_blocks(dataset, scorer, out, num_cpus, actors, batch_rows, compression, restart, progress, began)
    if out is None:
        raise FastRNNError("files are scored into files: name a folder (out), or pass a ray.data.Dataset")
    job = Job(sources_of(dataset, apart_from=out), scorer, compression, batch_rows, part_rows)
    return _write_files(job, out, num_cpus, actors, restart, progress, began)


def _actors(num_cpus: int, actors: int | None, most: int) -> int:
    """How many actors: all that the cluster has CPUs for, unless the caller said."""
    if actors is None:
        actors = max(1, int(ray.cluster_resources().get("CPU", 1) // num_cpus))
    return max(1, min(actors, most))


# -- a dataset to a dataset --


class _Actor:
    """Answers to batches of Ray Data. Without num_cpus, Ray would set OMP_NUM_THREADS to 1; threads are set here."""

    def __init__(self, shipped: Shipped, threads: int):
        self.scorer = shipped.scorer(threads)

    def __call__(self, table: pa.Table) -> pa.Table:
        batch = joined(table)
        return pa.Table.from_batches([self.scorer(batch)])


def _check_cpus(dataset, num_cpus: int, actors: int | None) -> None:
    """Warn if the actors would leave no CPU for the tasks that read: Ray waits for one without an end."""
    total = ray.cluster_resources().get("CPU", 0)
    left = total - num_cpus * (actors or 1)
    if left < (0 if isinstance(dataset, MaterializedDataset) else 1):
        text = (
            f"{actors or 1} actors of {num_cpus} CPUs leave none of the cluster's {total:g} to read the dataset: "
            "unless the cluster grows, Ray waits for ever; pass a smaller num_cpus or fewer actors, or "
            "materialize the dataset"
        )
        warnings.warn(text, FastRNNWarning, stacklevel=3)


def _lazy(dataset, scorer: Scorer, num_cpus: int, actors: int | None, batch_rows: int):
    pool = ray.data.ActorPoolStrategy(size=actors) if actors else ray.data.ActorPoolStrategy(min_size=1)
    return dataset.map_batches(
        _Actor,
        fn_constructor_args=(Shipped(scorer), scorer.threads),
        batch_format="pyarrow",
        batch_size=batch_rows,
        zero_copy_batch=True,
        num_cpus=num_cpus,
        compute=pool,
    )


# -- files to files --


class _Writer:
    """Scores units of files and writes their parts."""

    def __init__(self, shipped: Shipped, threads: int, sources: list[tuple], out: str, job: tuple):
        self.job = Job([Source(*s) for s in sources], shipped.scorer(threads), *job)
        self.folder = parts.Folder.joined(out)

    def write(self, unit: Unit) -> tuple[int, dict[int, str]]:
        """(rows, what is wrong with some)."""
        found: dict[int, str] = {}
        rows = 0

        def tell(_: Unit, count: int, problems: dict[int, str]) -> None:
            nonlocal rows
            rows += count
            found.update(problems)

        self.job.write(self.folder, [unit], tell)
        return rows, found


def _write_files(job: Job, out, num_cpus: int, actors: int | None, restart, progress, began) -> ScoreReport:
    job.scorer.schema(job.given)
    units, total = job.units(), sum(s.rows for s in job.sources)
    with parts.opened(out, job.record(), restart) as folder:
        check_parts(folder, units)
        folder.remove_leftovers()
        missing = [u for u in units if not folder.has(u.name)]
        done = total - sum(u.stop - u.start for u in missing)
        tally = _Tally(total, done, progress, began)
        prints = [s.fingerprint() for s in job.sources]
        if missing:
            count = _actors(num_cpus, actors, len(missing))
            kind = ray.remote(num_cpus=num_cpus, max_restarts=2, max_task_retries=2)(_Writer)
            given = (
                Shipped(job.scorer), job.scorer.threads, [(s.path.absolute(), s.label) for s in job.sources],
                str(folder.path.absolute()), (job.compression, job.batch_rows, job.part_rows),
            )  # fmt: skip
            _spread([kind.remote(*given) for _ in range(count)], missing, lambda unit, rows, problems: tally(
                rows, problems, job.sources[unit.file].label))  # fmt: skip
        folder.remove_leftovers()  # of actors that died
        for source, before in zip(job.sources, prints, strict=True):
            if source.fingerprint() != before:
                raise FastRNNError(f"{source.label} has changed while it was read: begin anew with restart")
    return tally.report(str(folder.path), len(units), len(units) - len(missing))


def _spread(workers: list, units: list[Unit], tell: Callable) -> None:
    """Each worker writes one unit after the other."""
    waiting, running = list(reversed(units)), {}
    try:
        for worker in workers:
            if waiting:
                unit = waiting.pop()
                running[worker.write.remote(unit)] = worker, unit
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            worker, unit = running.pop(ready)
            try:
                found = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, FastRNNError):
                    raise error.cause from None
                raise
            tell(unit, *found)
            if waiting:
                unit = waiting.pop()
                running[worker.write.remote(unit)] = worker, unit
    finally:
        for worker in workers:
            ray.kill(worker)


class _Tally:
    """What was done so far."""

    def __init__(self, total: int, done: int, progress: Progress, began: float):
        self.total, self.done, self.progress, self.began = total, done, progress, began
        self.scored = self.failed = 0
        self.first = ""

    def __call__(self, rows: int, problems: Mapping[int, str], label: str) -> None:
        self.done, self.scored, self.failed = self.done + rows, self.scored + rows, self.failed + len(problems)
        if problems and not self.first:
            row = min(problems)
            self.first = f"{label}, row {row}: {problems[row]}"
        speed = self.scored / max(time.perf_counter() - self.began, 1e-9)
        of = f" of {self.total:,}" if self.total else ""
        self.progress(self.done / self.total if self.total else 0.0, f"{self.done:,}{of} rows, {speed:,.0f} a second")

    def report(self, out: str, count: int, resumed: int) -> ScoreReport:
        """The report, at the end."""
        seconds = time.perf_counter() - self.began
        rows = self.total or self.done
        return ScoreReport(out, rows, self.scored, self.failed, count, resumed, self.first, seconds)


# -- a dataset to files --


class _BlockWriter:
    """Writes the answers to each block under its digest; returns a row about it."""

    def __init__(self, shipped: Shipped, threads: int, out: str, batch_rows: int, compression: str):
        self.scorer, self.folder = shipped.scorer(threads), parts.Folder.joined(out)
        self.batch_rows, self.compression = batch_rows, compression

    def __call__(self, table: pa.Table) -> pa.Table:
        digest = digest_of(table)
        problems: dict[int, str] = {}
        known = list(self.folder.path.glob(f"part-*-{digest}.parquet"))
        if not known:
            schema = self.scorer.schema(table.schema)
            options = parts.writing(schema, self.scorer.options["outputs"].values(), self.compression)
            self.folder.write(f"{NEW}{digest}.parquet", schema, self._answers(table, problems), options)
        first = f"row {min(problems)} of a block: {problems[min(problems)]}" if problems else ""
        about = {
            "digest": digest,
            "rows": table.num_rows,
            "known": bool(known),
            "failed": len(problems),
            "first": first,
        }
        return pa.Table.from_pylist([about])

    def _answers(self, table: pa.Table, problems: dict[int, str]):
        for at in range(0, table.num_rows, self.batch_rows):
            scoring = self.scorer.submit(joined(table.slice(at, self.batch_rows)))
            yield scoring.result()
            problems.update({at + row: text for row, text in scoring.problems.items()})


def digest_of(table: pa.Table) -> str:
    """A name of a block's content."""
    sink = pa.BufferOutputStream()
    batch = joined(table)
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return hashlib.blake2b(sink.getvalue(), digest_size=16).hexdigest()


def _write_blocks(
    dataset, scorer: Scorer, out, num_cpus, actors, batch_rows, compression, restart, progress, began
) -> ScoreReport:
    scorer_options = {**scorer.options, "compression": compression, "batch_rows": batch_rows}
    record = {
        "model": scorer.model.fingerprint,
        "inputs": [],
        "options": scorer_options,
        "made_by": made_by(scorer.model),
    }
    tally, order, resumed = _Tally(0, 0, progress, began), [], 0
    with parts.opened(out, record, restart, names=PART) as folder:
        folder.remove_leftovers()
        context = dataset.context.execution_options
        before, context.preserve_order = context.preserve_order, True  # parts are numbered by their blocks
        try:
            written = dataset.map_batches(
                _BlockWriter,
                fn_constructor_args=(
                    Shipped(scorer), scorer.threads, str(folder.path.absolute()), batch_rows, compression,
                ),
                batch_format="pyarrow",
                batch_size=None,  # whole blocks: batches of a size would depend on who was first
                zero_copy_batch=True,
                num_cpus=num_cpus,
                compute=ray.data.ActorPoolStrategy(size=actors) if actors else ray.data.ActorPoolStrategy(min_size=1),
            )  # fmt: skip
            for about in written.iter_rows():
                order.append(about["digest"])
                resumed += about["known"]
                tally(about["rows"], {}, "")
                tally.scored -= about["rows"] if about["known"] else 0
                tally.failed += about["failed"]
                tally.first = tally.first or about["first"]
        finally:
            context.preserve_order = before
        folder.remove_leftovers()  # of actors that died
        _number(folder, order)
    return tally.report(str(folder.path), len(order), resumed)


def _number(folder: parts.Folder, order: list[str]) -> None:
    """Give each part the number of its block. FastRNNError if there are parts of other blocks."""
    there: dict[str, list] = {}
    for path in folder.path.glob("part-*-*.parquet"):
        there.setdefault(path.name.rpartition("-")[2].partition(".")[0], []).append(path)
    strange = sorted(set(there) - set(order))
    if strange:
        raise FastRNNError(
            f"{folder.path} holds {len(strange)} parts that were made from other data, such as "
            f"{there[strange[0]][0].name}: use another folder, or begin anew with restart"
        )
    wanted = [(folder.path / f"part-{i:08d}-{digest}.parquet", digest) for i, digest in enumerate(order)]
    names = {path for path, _ in wanted}
    for path, digest in wanted:
        if not path.exists():
            spare = next((p for p in there[digest] if p not in names and p.exists()), None)
            if spare is not None:
                os.replace(spare, path)
            else:  # blocks of equal content
                parts.copy(next(p for p in there[digest] + list(names) if p.exists() and digest in p.name), path)
    for path in folder.path.glob("part-*-*.parquet"):
        if path not in names:
            path.unlink()
