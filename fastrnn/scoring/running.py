"""Whole sequences of different lengths through a model: a lone row's bits, at the speed of a batch.

A model that streams step by step runs in a pool: rows of one batch run together while they have data, the longest
first, and nothing is padded. Any other model runs rows of equal shapes together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import FastRNNError, ShapeError
from ..model import Model
from .columns import Side

ROWS = 128  # that run together; the pool's weights are read once for all of them
STEPS = 1 << 16  # rows times steps of one run
LONG = 1 << 14  # steps of a row from which on it goes through a stream in chunks, if it can


class Running:
    """What runs the rows of a model; threads may share it.

    Parameters
    ----------
    model : Model, with one thread
    inputs : those that rows have; states that are not among them start at zero
    outputs : those that are wanted
    """

    def __init__(self, model: Model, inputs: Sequence[Side], outputs: Sequence[Side]):
        self.model, self.inputs, self.outputs = model, list(inputs), list(outputs)
        states = model.graph.states
        results = [o.name for o in model.outputs if o.name not in states.values()] or [o.name for o in model.outputs]
        self._results = results
        plain = not any(i.name in states for i in inputs) and all(o.name in results for o in outputs)
        step_function = not has_time(model)
        self.pooled = plain and model.streamable and _is_plain(model)
        if not self.pooled and step_function and model.streamable:
            raise FastRNNError(
                f"{model.name} is a model of one step: its rows are sequences of steps, which run through streams. "
                + _why_not_pooled(model, plain)
            )
        self._axes = {t.name: _axes(t) for t in (*model.inputs, *model.outputs)}
        sides = [*inputs, *outputs]
        self._joint = all(self._axes[s.name][0] is not None for s in sides) and _rows_are_apart(model)
        self._pools: deque = deque()

    # -- pieces --
    def pieces(self, rows: Sequence[Mapping[str, np.ndarray]], among: Sequence[int]) -> list[list[int]]:
        """The rows (numbers in `among`) that run together, the longest first."""
        lengths = {i: self._steps(rows[i]) for i in among}
        ordered = sorted(among, key=lambda i: -lengths[i])
        if not self.pooled:
            return self._equal(rows, ordered, lengths)
        return [ordered[i : i + ROWS] for i in range(0, len(ordered), ROWS)]

    def _equal(self, rows, ordered, lengths) -> list[list[int]]:
        found: dict[Any, list[list[int]]] = {}
        for i in ordered:
            key = tuple(a.shape for a in rows[i].values()) if self._joint else i
            most = max(1, min(ROWS, STEPS // max(lengths[i], 1)))
            groups = found.setdefault(key, [[]])
            if len(groups[-1]) >= most:
                groups.append([])
            groups[-1].append(i)
        return [group for groups in found.values() for group in groups if group]

    def _steps(self, row: Mapping[str, np.ndarray]) -> int:
        return next((len(row[s.name]) for s in self.inputs if s.timed), 1)

    # -- runs --
    def run(self, rows: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray] | FastRNNError]:
        """The outputs of rows that run together, by name; an error for a row that the model refuses."""
        try:
            return self._together(rows)
        except FastRNNError as error:
            if len(rows) == 1:
                return [error]
        return [self.run([row])[0] for row in rows]

    def _together(self, rows) -> list:
        for row in rows:
            lengths = {s.name: len(row[s.name]) for s in self.inputs if s.timed}
            if len(set(lengths.values())) > 1:
                raise ShapeError(f"its inputs must have the same number of steps, got {lengths}")
        if self.pooled:
            return self._push(rows)
        if len(rows) == 1 and self._steps(rows[0]) >= LONG and self._chunks():
            return [self._stream(rows[0])]
        return self._whole(rows)

    def _push(self, rows) -> list:
        """Rows of any lengths through a pool."""
        names = [s.name for s in self.inputs]
        if len({self._steps(r) for r in rows}) == 1 and self._joint and self._steps(rows[0]) * len(rows) <= STEPS:
            if any(s.timed for s in self.inputs) and has_time(self.model):
                return self._whole(rows)
        pool, slots = self._take_pool()
        try:
            some = slots[: len(rows)]
            for slot in some.tolist():
                pool.reset(slot)
            one = len(names) == 1
            found = pool.push(some, [r[names[0]] if one else tuple(r[n] for n in names) for r in rows])
        finally:
            self._pools.append((pool, slots))
        pairs = ((y,) if len(self._results) == 1 else y for y in found)
        return [dict(zip(self._results, y, strict=True)) for y in pairs]

    def _take_pool(self):
        try:
            return self._pools.pop()
        except IndexError:
            pool = self.model.pool(ROWS)
            return pool, np.array([pool.open() for _ in range(ROWS)])

    def _whole(self, rows) -> list:
        """Rows of equal shapes in one run."""
        feeds: dict[str, Any] = {}
        for side in self.inputs:
            batch, time = self._axes[side.name]
            if batch is None:
                feeds[side.name] = _moved(rows[0][side.name], None, time)
            else:
                feeds[side.name] = _moved(np.stack([r[side.name] for r in rows]), batch, time)
        if "lengths" in self.model.graph.inputs and "lengths" not in feeds:
            feeds["lengths"] = np.full(len(rows), self._steps(rows[0]))
            feeds["lengths"] = feeds["lengths"].astype(self.model.graph.values["lengths"].dtype)
        wanted = {s.name for s in self.outputs}
        if wanted <= set(self._results):
            found = self.model(**feeds)
            named = dict(zip(self._results, found if isinstance(found, tuple) else (found,), strict=True))
        else:
            named = dict(zip((o.name for o in self.model.outputs), self._run_all(feeds), strict=True))
        whole = {}
        for side in self.outputs:
            batch, time = self._axes[side.name]
            whole[side.name] = _back(named[side.name], batch, time)
        return [{n: a[i] for n, a in whole.items()} for i in range(len(rows))]

    def _run_all(self, feeds: dict[str, Any]):
        """`run` with zeros for the states that have no column."""
        missing = [i for i in self.model.inputs if i.name not in feeds]
        batch = next((a.shape[self._axes[n][0]] for n, a in feeds.items() if self._axes[n][0] is not None), 1)
        for info in missing:
            shape = [batch if d == "batch" else d for d in info.dims]
            if not all(isinstance(d, int) for d in shape):
                raise FastRNNError(f"state {info.name} has the shape {info.dims}: give it a column of its own")
            feeds[info.name] = np.zeros(shape, info.dtype)
        return self.model.run(**feeds)

    def _chunks(self) -> bool:
        """Whether a long row may go through a stream: its outputs don't depend on a bound of attention."""
        model, states = self.model, self.model.graph.states
        names = {s.name for s in self.inputs}
        plain = not names & set(states) and {s.name for s in self.outputs} <= set(self._results)
        takes = names == {i.name for i in model.inputs if i.name not in states}
        return plain and takes and model.streamable and _is_unbounded(model) and all(s.timed for s in self.inputs)

    def _stream(self, row) -> dict[str, np.ndarray]:
        """One long row in chunks."""
        steps, pieces = self._steps(row), []
        with self.model.stream() as stream:
            for at in range(0, steps, LONG):
                chunk = tuple(row[s.name][at : at + LONG] for s in self.inputs)
                pieces.append(stream.push(chunk[0] if len(chunk) == 1 else chunk))
            pieces.append(stream.flush())
        pieces = [p if isinstance(p, tuple) else (p,) for p in pieces]
        found = {}
        for name, parts in zip(self._results, zip(*pieces, strict=True), strict=True):
            there = [p for p in parts if p is not None]
            timed = self._axes[name][1] is not None
            found[name] = np.concatenate(there) if timed else there[-1]
        return found


def _axes(info) -> tuple[int | None, int | None]:
    """(axis of the batch, axis of the time) of an input or output; None if it has none."""
    batch = [k for k, d in enumerate(info.dims) if "batch" in str(d)]
    time = [k for k, d in enumerate(info.dims) if "time" in str(d)]
    if len(batch) > 1 or len(time) > 1:
        raise FastRNNError(
            f"{info} has several axes of batch or time, so it can't be a column: bind it, or leave it out"
        )
    if batch and info.dims[batch[0]] != "batch":
        raise FastRNNError(f"{info}: an axis of {info.dims[batch[0]]} rows can't be cut into rows: leave it out")
    return batch[0] if batch else None, time[0] if time else None


def _moved(array: np.ndarray, batch: int | None, time: int | None) -> np.ndarray:
    """[batch, time, features...] -> the file's own order of axes."""
    rest = iter(range((batch is not None) + (time is not None), array.ndim))
    order = []
    for axis in range(array.ndim):
        order.append(0 if axis == batch else int(batch is not None) if axis == time else next(rest))
    return np.ascontiguousarray(array.transpose(order)) if order != sorted(order) else np.ascontiguousarray(array)


def _back(array: np.ndarray, batch: int | None, time: int | None) -> np.ndarray:
    """The file's own order of axes -> [batch, time, features...], with a batch of one if it has none."""
    first = [a for a in (batch, time) if a is not None]
    order = first + [a for a in range(array.ndim) if a not in first]
    moved = array.transpose(order)
    return moved if batch is not None else moved[None]


def has_time(model: Model) -> bool:
    """Whether the model has a time axis; one without is a step function."""
    return any("time" in str(d) for i in model.inputs for d in i.dims)


def _is_plain(model: Model) -> bool:
    """Whether a stream gives one step of each output for each step, from the first one on, for sequences of any
    length."""
    core = model._core
    return not core._open_sizes and core._timetable.plain and _is_unbounded(model)


def _is_unbounded(model: Model) -> bool:
    return model._core._context(None, "error") is None


def _rows_are_apart(model: Model) -> bool:
    from ..streaming.follow import follow

    return not follow(model.graph, "batch").problems


def _why_not_pooled(model: Model, plain: bool) -> str:
    if model._core._open_sizes:
        names = ", ".join(f"{n}=..." for n in model._core._open_sizes)
        return f"Load it with the size that its inputs leave open: sizes ({names})"
    if not plain:
        return "Their states start at zero and are kept inside: give them no columns"
    return "Its streams are bounded or lag, which scoring does not support"
