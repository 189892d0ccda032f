"""Scorer: a batch of rows in, the same rows with the model's outputs out; for files, Ray Data and Spark alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import FastRNNError
from ..loading import load
from ..machine.cpu import MAX_THREADS, thread_info
from ..model import Model
from ..runtime.arguments import whole_number
from .columns import Side, check_type, column_of, rows_of, type_of
from .running import Running, has_time

ERROR = "error"  # the column that says what is wrong with a row
ON_ERROR = ("fail", "null")


class BadRow(FastRNNError):
    """A row that can't be scored.

    row : its number in the batch; why : what is wrong with it
    """

    def __init__(self, row: int, why: str, where: str = ""):
        self.row, self.why, self._where = row, why, where
        advice = "correct or drop it, or pass on_error='null' (--on-error null)"
        super().__init__(f"{where or f'row {row} of the batch'}: {why}: {advice}")

    def __reduce__(self):
        return BadRow, (self.row, self.why, self._where)


class Scorer:
    """Scores batches of rows. Threads may share it, and it can be pickled.

    Parameters
    ----------
    model : Model, or the path of a file that `fastrnn.load` reads
    inputs : dict, optional
        Input -> column. By default an input has the column of its name, or the only column of lists if the model has
        one input. A state that has a column starts with its value, any other one at zero.
    outputs : list of names, or dict of output -> column, optional; by default all outputs besides states
    columns : "rest", "all", "none" or a list; which columns of the data come along. "rest": all but the inputs
    threads : batches are cut into pieces that this many threads run; None: as `cpu_info()` says
    on_error : "fail": a bad row is an error. "null": its outputs are null, and a column "error" says why
    cast : convert float64 and wide integers to what the model takes; otherwise they are refused
    allow_nan : NaN goes to the model; otherwise a row with NaN is a bad one
    """

    def __init__(
        self,
        model: Model | str | os.PathLike[str],
        *,
        inputs: Mapping[str, str] | None = None,
        outputs: Sequence[str] | Mapping[str, str] | None = None,
        columns: str | Sequence[str] = "rest",
        threads: int | None = None,
        on_error: str = "fail",
        cast: bool = False,
        allow_nan: bool = False,
    ):
        if on_error not in ON_ERROR:
            raise FastRNNError(f"on_error must be 'fail' or 'null', got {on_error!r}")
        if isinstance(columns, str) and columns not in ("rest", "all", "none"):
            raise FastRNNError(f"columns must be 'rest', 'all', 'none' or a list of names, got {columns!r}")
        loaded = model if isinstance(model, Model) else load(model, threads=1)
        if not isinstance(loaded, Model):
            loaded.refuse()
        self.threads = thread_info().count if threads is None else whole_number(threads, "threads", MAX_THREADS)
        # Pieces run side by side, so each takes one thread.
        self.model = loaded if loaded.threads == 1 else Model(loaded.graph, 1)
        self.on_error, self.cast, self.allow_nan = on_error, bool(cast), bool(allow_nan)
        self.columns = columns if isinstance(columns, str) else list(columns)
        self._asked = dict(inputs or {})
        self._outputs = _outputs_of(self.model, outputs)
        self._executor: ThreadPoolExecutor | None = None
        self._bound: dict[pa.Schema, _Bound] = {}
        self._settings = {"inputs": self._asked, "outputs": {s.name: s.column for s in self._outputs}}

    @property
    def options(self) -> dict[str, Any]:
        """What determines the answers besides the model and the data, JSON-able."""
        return {
            **self._settings,
            "columns": self.columns,
            "on_error": self.on_error,
            "cast": self.cast,
            "allow_nan": self.allow_nan,
        }

    def schema(self, given: pa.Schema) -> pa.Schema:
        """The schema of the answers for data of this schema. FastRNNError: a column is missing."""
        return self._bind(given).schema

    def needed(self, given: pa.Schema) -> list[str]:
        """The columns of the data that are read."""
        bound = self._bind(given)
        return list(dict.fromkeys([*bound.kept, *(s.column for s in bound.inputs)]))

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The answers to a batch, in its order.

        Raises
        ------
        BadRow : with on_error "fail". FastRNNError : a column is missing or of another type.
        """
        return self.submit(batch).result()

    def submit(self, batch: pa.RecordBatch, where: Callable[[int], str] | None = None) -> Scoring:
        """Begin a batch: `result()` of what is returned waits for the answers. where : names a row in errors."""
        return Scoring(self, self._bind(batch.schema), batch, where)

    def _bind(self, schema: pa.Schema) -> _Bound:
        bound = self._bound.get(schema)
        if bound is None:
            bound = self._bound[schema] = _Bound(self, schema)
        return bound

    def _pool(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.threads, thread_name_prefix="fastrnn-score")
        return self._executor

    def close(self) -> None:
        """End the threads."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self):
        names = {s.name: s.column for s in self._outputs}
        given = (self._asked, names, self.columns, self.threads, self.on_error, self.cast, self.allow_nan)
        return _unpickled, (self.model, *given)


def _unpickled(model, inputs, outputs, columns, threads, on_error, cast, allow_nan) -> Scorer:
    return Scorer(
        model,
        inputs=inputs,
        outputs=outputs,
        columns=columns,
        threads=threads,
        on_error=on_error,
        cast=cast,
        allow_nan=allow_nan,
    )


class _Bound:
    """A scorer for data of one schema."""

    def __init__(self, scorer: Scorer, schema: pa.Schema):
        model = scorer.model
        self.inputs = _inputs_of(model, scorer._asked, schema)
        for side in self.inputs:
            check_type(schema.field(side.column).type, side)
        self.outputs = scorer._outputs
        self.running = Running(model, self.inputs, self.outputs)
        self.kept = _kept(scorer.columns, schema, {s.column for s in self.inputs})
        for name in self.kept:
            _only(name, schema)
        fields = [schema.field(name) for name in self.kept] + [pa.field(s.column, type_of(s)) for s in self.outputs]
        if scorer.on_error == "null":
            fields.append(pa.field(ERROR, pa.string()))
        names = [f.name for f in fields]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise FastRNNError(
                f"the answers would have two columns {', '.join(map(repr, twice))}: {self._another(twice[0])}leave the "
                "column out (columns) or rename it"
            )
        self.schema = pa.schema(fields, metadata=schema.metadata)

    def _another(self, column: str) -> str:
        """How an output that has this column gets another one; empty without such an output."""
        name = next((s.name for s in self.outputs if s.column == column), None)
        if name is None:
            return ""
        return f"give the output another name (outputs={{{name!r}: 'score'}}, --output {name}=score), or "


class Scoring:
    """The answers to one batch, once its pieces are done. pieces : how many"""

    def __init__(self, scorer: Scorer, bound: _Bound, batch: pa.RecordBatch, where: Callable[[int], str] | None):
        self._scorer, self._bound, self._batch, self._where = scorer, bound, batch, where
        self.problems: dict[int, str] = {}
        sides = bound.inputs
        read = [rows_of(batch.column(batch.schema.get_field_index(s.column)), s, scorer.cast, scorer.allow_nan)
                for s in sides]  # fmt: skip
        for side, rows in zip(sides, read, strict=True):
            for row, text in rows.problems.items():
                self.problems.setdefault(row, f"column {side.column!r} {text}")
        if scorer.on_error == "fail":
            self._refuse()
        arrays = [r.arrays for r in read]
        self._rows = [dict(zip([s.name for s in sides], row, strict=True)) for row in zip(*arrays, strict=True)]
        good = [i for i in range(batch.num_rows) if i not in self.problems]
        running = bound.running
        self._pieces = running.pieces(self._rows, good)
        self.pieces = len(self._pieces)
        self._futures: list[Future] = [
            scorer._pool().submit(running.run, [self._rows[i] for i in piece]) for piece in self._pieces
        ]

    def _refuse(self) -> None:
        """Raise BadRow for the first bad row, if there is one."""
        if self.problems:
            row = min(self.problems)
            raise BadRow(row, self.problems[row], self._where(row) if self._where else self._described(row))

    def _described(self, row: int) -> str:
        """A row by its number and its first few plain columns, by which it can be found in a dataset without files."""
        schema = self._batch.schema
        plain = [n for n in self._bound.kept if not pa.types.is_nested(schema.field(n).type)][:3]
        told = [f"{n} {self._batch.column(schema.get_field_index(n))[row].as_py()!r:.60}" for n in plain]
        return f"row {row} of the batch" + (f" ({', '.join(told)})" if told else "")

    def cancel(self) -> None:
        """Don't run the pieces that have not begun."""
        for future in self._futures:
            future.cancel()

    def result(self) -> pa.RecordBatch:
        """Wait for the answers. BadRow: as of `Scorer`."""
        answers: list[dict[str, np.ndarray] | None] = [None] * self._batch.num_rows
        for piece, future in zip(self._pieces, self._futures, strict=True):
            for i, answer in zip(piece, future.result(), strict=True):
                if isinstance(answer, FastRNNError):
                    self.problems[i] = str(answer)
                else:
                    answers[i] = answer
        self._futures, self._rows = [], []
        if self._scorer.on_error == "fail":
            self._refuse()
        bound, batch = self._bound, self._batch
        columns = [batch.column(batch.schema.get_field_index(name)) for name in bound.kept]
        columns += [column_of([None if a is None else a[s.name] for a in answers], s) for s in bound.outputs]
        if self._scorer.on_error == "null":
            columns.append(pa.array([self.problems.get(i) for i in range(batch.num_rows)], pa.string()))
        return pa.RecordBatch.from_arrays(columns, schema=bound.schema)


# -- which columns --


def _side(info, column: str, timed: bool) -> Side:
    features = tuple(d if isinstance(d, int) else None for d in info.dims if not _is_lead(d))
    return Side(info.name, column, info.dtype, timed or any("time" in str(d) for d in info.dims), features)


def _is_lead(dim: int | str) -> bool:
    return isinstance(dim, str) and ("batch" in dim or "time" in dim)


def _outputs_of(model: Model, asked: Sequence[str] | Mapping[str, str] | None) -> list[Side]:
    infos = {o.name: o for o in model.outputs}
    ends = set(model.graph.states.values())
    if asked is None:
        names = {n: n for n in infos if n not in ends} or {n: n for n in infos}
    elif isinstance(asked, str):
        raise FastRNNError(f"outputs must be a list of names, or a dict from names to columns, got {asked!r}")
    else:
        names = dict(asked) if isinstance(asked, Mapping) else {n: n for n in asked}
    unknown = [n for n in names if n not in infos]
    if unknown or not names:
        raise FastRNNError(f"{model.name} has no output {', '.join(map(repr, unknown))}; its outputs are {list(infos)}")
    timed = not has_time(model)
    return [_side(infos[n], column, timed) for n, column in names.items()]


def _inputs_of(model: Model, asked: Mapping[str, str], schema: pa.Schema) -> list[Side]:
    infos = {i.name: i for i in model.inputs}
    unknown = [n for n in asked if n not in infos]
    if unknown:
        raise FastRNNError(f"{model.name} has no input {', '.join(map(repr, unknown))}; its inputs are {list(infos)}")
    wanted = [n for n in infos if n in asked or n not in model.graph.states]
    if "lengths" in wanted and "lengths" not in asked and "lengths" not in schema.names:
        wanted.remove("lengths")  # every row is as long as it is
    timed, found = not has_time(model), []
    for name in wanted:
        column = asked.get(name) or (name if name in schema.names else _only_lists(schema, wanted))
        if column is None or column not in schema.names:
            what = f"input {name}" if column is None or column == name else f"input {name}: column {column!r}"
            raise FastRNNError(
                f"{what} is not in the data, whose columns are {schema.names}: name its column "
                f"(inputs={{{name!r}: 'COLUMN'}}, --input {name}=COLUMN), or fix it to a constant when the model is "
                f"loaded (bind, --bind {name}=...)"
            )
        _only(column, schema)
        found.append(_side(infos[name], column, timed))
    return found


def _only(column: str, schema: pa.Schema) -> None:
    """FastRNNError if two columns have this name."""
    if schema.names.count(column) > 1:
        raise FastRNNError(f"the data have two columns {column!r}: rename one")


def _only_lists(schema: pa.Schema, wanted: list[str]) -> str | None:
    """The only column that holds lists or tensors, for the only input."""
    nested = [f.name for f in schema if pa.types.is_nested(f.type) or isinstance(f.type, pa.BaseExtensionType)]
    return nested[0] if len(nested) == len(wanted) == 1 else None


def _kept(columns: str | list[str], schema: pa.Schema, inputs: set[str]) -> list[str]:
    if columns == "none":
        return []
    if isinstance(columns, str):
        return [n for n in schema.names if columns == "all" or n not in inputs]
    unknown = [n for n in columns if n not in schema.names]
    if unknown:
        raise FastRNNError(f"the data have no column {', '.join(map(repr, unknown))}; they have {schema.names}")
    return columns
