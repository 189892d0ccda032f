"""One way to run any model on sequences: arrays are [rows, T, features...], streamed or run whole."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...errors import ShapeError
from ...graph import DTYPES, caches
from ...graph import dims as D
from ...graph.casts import as_float32
from ...graph.traverse import results
from ...model import Model
from ...runtime.arguments import Argument, argument_of
from ...serving.stream import Stream
from ..profiling import opens

Arrays = dict[str, np.ndarray]  # by input
NO_END = 1 << 62


class Runner:
    """Feeds a model whole sequences of some rows, through a stream if it has one.

    inputs, outputs : the model's, without the states that a caller would thread. streams, why_not : as the model says.
    """

    def __init__(self, model: Model):
        self.model, graph = model, model.graph
        grown = caches.grown(graph)
        if grown:
            text = f"the cache {grown[0]} grows from call to call, which an analysis of whole sequences can't follow"
            raise ShapeError(f"{model.name}: {text}: analyze an export without caches, or verify this one")
        if model._core._open_sizes:
            text = ", ".join(f"{name!r}: ..." for name in model._core._open_sizes)
            raise ShapeError(f"{model.name} leaves a size open: load it with sizes={{{text}}}")
        self.why_not = opens(model) or ""
        asked = [a.name for a in model._core._stream_arguments[1]]
        dropped = [n for n in graph.inputs if n not in graph.states and n not in asked]
        if dropped and not self.why_not:  # its streams don't take the inputs that its runs take
            self.why_not = f"a stream does not ask for {', '.join(dropped)}, the lengths of the rows"
        self.streams = not self.why_not
        # Steps after which a stream ends: those that its attention keeps, or has positions for.
        room = model.stream().program.plan.room if self.streams else None
        self.horizon = NO_END if room is None else room
        has_batch = any("batch" in D.symbols(d) for v in graph.values.values() for d in v.dims)
        has_time = any("time" in D.symbols(d) for n in graph.inputs for d in graph.values[n].dims)
        self.has_batch = has_batch
        names = [n for n in graph.inputs if n not in graph.states]
        self.inputs = [argument_of(graph.values[n], not has_time, has_batch) for n in names]
        self.outputs = [argument_of(graph.values[n], not has_time, has_batch) for n in results(graph)]
        self.output_names = [o.name for o in self.outputs]
        if not has_time and not self.streams:
            raise ShapeError(f"{model.name} has no time axis and no state: there is no sequence to look at")

    # -- data --
    def real(self) -> list[Argument]:
        """Inputs that noise can be added to."""
        return [a for a in self.inputs if a.dtype in ("float32", "float64") and a.timed]

    def fit(self, arrays, steps: int, rows: int) -> Arrays:
        """Data for the model, cut to `steps` and `rows`: an array for its one input, or a dict by name.

        Raises ShapeError if they don't fit. A 1-d array (sound) is cut into steps of the input's size.
        """
        steps = min(steps, self.horizon)
        if not isinstance(arrays, Mapping):
            if len(self.inputs) != 1:
                names = [a.name for a in self.inputs]
                raise ShapeError(f"the model has the inputs {names}: give data for each, as a dict or an .npz file")
            arrays = {self.inputs[0].name: arrays}
        missing = [a.name for a in self.inputs if a.name not in arrays]
        extra = [n for n in arrays if n not in {a.name for a in self.inputs}]
        if len(self.inputs) == len(arrays) == 1:
            arrays = {self.inputs[0].name: next(iter(arrays.values()))}
        elif missing or extra:
            raise ShapeError(f"the data lack {missing or 'nothing'} and have {extra or 'nothing'} that is not an input")
        found = {a.name: self._fit_one(a, np.asarray(arrays[a.name]), steps, rows) for a in self.inputs}
        timed = {n: v.shape[1] for n, v in found.items() if self._argument(n).timed}
        if len(set(timed.values())) != 1:
            raise ShapeError(f"inputs have different numbers of steps: {timed}")
        if min(timed.values()) < 2:
            raise ShapeError(f"the data are {min(timed.values())} steps long; at least 2 are needed")
        if len({v.shape[0] for v in found.values()}) != 1:
            raise ShapeError(f"inputs have different numbers of rows: { ({n: v.shape[0] for n, v in found.items()}) }")
        return found

    def _argument(self, name: str) -> Argument:
        return next(a for a in self.inputs if a.name == name)

    def _fit_one(self, a: Argument, array: np.ndarray, steps: int, rows: int) -> np.ndarray:
        features, given = a.features, list(array.shape)
        size = int(np.prod(features, dtype=np.int64))
        whole = (("T",) if a.timed else ()) + features
        if a.timed and array.ndim == 1 and array.shape[0] >= size > 0 and features != ():  # sound: steps in a row
            array = array[: array.shape[0] // size * size].reshape(-1, *features)
        if array.ndim == len(whole):
            array = array[None]
        if array.ndim != len(whole) + 1 or tuple(array.shape[1 + len(whole) - len(features) :]) != features:
            text = ", ".join(map(str, whole))
            raise ShapeError(f"input {a.name} takes data [{text}] or [rows, {text}], got {given}")
        want = np.dtype(DTYPES[a.dtype])
        if array.dtype.kind not in "fiub" or (want.kind in "ib" and array.dtype.kind == "f"):
            raise ShapeError(f"input {a.name} takes {want}, the data are {array.dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ShapeError(f"the data for {a.name} hold NaN or infinity")
        array = array[: rows if self.has_batch else 1]
        array = array[:, :steps] if a.timed else array
        return (
            as_float32(array, f"the data for {a.name}") if a.dtype == "float32" else np.ascontiguousarray(array, want)
        )

    def steps_of(self, x: Arrays) -> int:
        return next(x[a.name].shape[1] for a in self.inputs if a.timed)

    def rows_of(self, x: Arrays) -> int:
        return next(iter(x.values())).shape[0]

    # -- running --
    def run(self, x: Arrays, model: Model | None = None) -> list[np.ndarray]:
        """Every output, [rows, T', features...] float64 (or [rows, features...] if it has no time axis)."""
        model = model or self.model
        if self.streams:
            stream = self.open(self.rows_of(x), model)
            return self.answers(stream, x, last=True)
        feeds = {a.name: self._into_file(a, x[a.name]) for a in self.inputs}
        results = model(**feeds)
        results = results if isinstance(results, tuple) else (results,)
        return [self._out_of_file(a, y).astype(np.float64) for a, y in zip(self.outputs, results, strict=True)]

    def open(self, rows: int, model: Model | None = None) -> Stream:
        """A stream with that many rows."""
        return (model or self.model).stream(batch_size=rows if self.has_batch else None)

    def answers(self, stream: Stream, x: Arrays, last: bool = False) -> list[np.ndarray]:
        """The outputs of a stream for a chunk [rows, T, ...], as from `run`; last: with those still held back."""
        given = [x[a.name] if self.has_batch else x[a.name][0] for a in self.inputs]
        ys = _tuple(stream.push(given[0] if len(given) == 1 else tuple(given)))
        if last and stream.delay:
            rest = _tuple(stream.flush())
            axis = 1 if self.has_batch else 0
            ys = tuple(
                np.concatenate([y, r], axis) if o.timed else y for o, y, r in zip(self.outputs, ys, rest, strict=True)
            )
        return [np.asarray(y if self.has_batch else y[None], np.float64) for y in ys]

    def cut(self, x: Arrays, first: int, last: int) -> Arrays:
        """Steps first <= t < last."""
        return {a.name: np.ascontiguousarray(x[a.name][:, first:last]) if a.timed else x[a.name] for a in self.inputs}

    def _into_file(self, a: Argument, array: np.ndarray) -> np.ndarray:
        """[rows, T, features...] in the file's own axis order."""
        dims = a.file_dims
        order, at = [], 2 if a.timed else 1
        for dim in dims:
            names = D.symbols(dim)
            if "time" in names:
                order.append(1)
            elif "batch" in names:
                order.append(0)
            else:
                order.append(at)
                at += 1
        if not any("batch" in D.symbols(d) for d in dims):
            array = array[0]
            order = [i - 1 for i in order]
        return np.ascontiguousarray(np.transpose(array, order))

    def _out_of_file(self, a: Argument, array: np.ndarray) -> np.ndarray:
        """The inverse, for an output."""
        batch = next((i for i, d in enumerate(a.file_dims) if "batch" in D.symbols(d)), None)
        time = next((i for i, d in enumerate(a.file_dims) if "time" in D.symbols(d)), None)
        if batch is None:
            array, batch = array[None], 0
            time = None if time is None else time + 1
        lead = [batch] + ([] if time is None else [time])
        return np.transpose(array, [*lead, *(i for i in range(array.ndim) if i not in lead)])

    # -- states --
    def states(self, stream: Stream) -> dict[str, np.ndarray]:
        """The float32 states, rows first: those that decay. Excludes counts and sums that never forget."""
        shown = {s.name: s for s in stream._parts.layout.shown if s.dtype == "float32"}
        found = {}
        for name, array in stream.state.items():
            if name not in shown:
                continue
            axis = shown[name].batch_axis
            rows = np.moveaxis(array, axis, 0) if axis >= 0 and self.has_batch else array[None]
            found[name] = np.asarray(rows, np.float64).reshape(rows.shape[0], -1)
        return found

    def flat_state(self, stream: Stream) -> np.ndarray:
        """All of them concatenated, float64 [rows, size]."""
        parts = list(self.states(stream).values())
        return np.concatenate(parts, axis=1) if parts else np.zeros((1, 0))


def _tuple(y) -> tuple:
    return y if isinstance(y, tuple) else (y,)
