"""The arrays that callers pass in and get back: checks of dtype and shape. Errors name the argument."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace

import numpy as np

from ..errors import ShapeError
from ..graph import DTYPES, Value
from ..graph import dims as D
from ..graph.casts import as_dtype
from ..records import dataclass

MOST_AXES = 8  # of an array that goes to a program as it is, including the row axis of a pool
MOST_SIDES = 64  # inputs and outputs of a model whose arrays do; runtime/_forms.pxd has both numbers too


@dataclass(frozen=True)
class Argument:
    """One input or output of a stream: batch first, then time, then features.

    features : ints (dims if the model leaves a size open), in the file's order without batch and time.
    timed : it has a time axis (in a step function every argument has one here: the calls).
    batched : it has a batch axis.
    """

    name: str
    dtype: str
    features: tuple[int, ...]
    timed: bool
    batched: bool
    file_dims: tuple = ()
    bound: np.ndarray | None = field(default=None, compare=False)  # the value of all steps; steps don't pass it then

    @property
    def step_bytes(self) -> int:
        """Bytes of one step of one stream."""
        return int(np.prod(self.features, dtype=np.int64)) * np.dtype(DTYPES[self.dtype]).itemsize

    def step_shape(self, batch: int | None) -> tuple[int, ...]:
        """Shape of one step."""
        return (*self._lead(batch), *self.features)

    def _lead(self, batch: int | None) -> tuple[int, ...]:
        return () if batch is None or not self.batched else (batch,)

    def chunk_shape(self, batch: int | None, span: int) -> tuple[int, ...]:
        """Shape of `span` steps."""
        lead = self._lead(batch)
        return (*lead, span, *self.features) if self.timed else (*lead, *self.features)

    def steps(self, array: np.ndarray, batch: int | None) -> int:
        """How many steps a checked chunk holds."""
        return array.shape[len(self._lead(batch))]

    def bind(self, array: np.ndarray, batch: int | None) -> Argument:
        """This argument with a value for all steps: [features...], also for every row of a batch, or one per row, or
        the file's own shape. ShapeError if it has another one."""
        own = [(batch or 1) if d == D.BATCH else d for d in self.file_dims]
        shapes = {self.features, self.step_shape(batch)}
        if array.shape not in shapes and list(array.shape) == own:
            axis = self.file_dims.index(D.BATCH) if D.BATCH in self.file_dims else 0
            array = np.moveaxis(array, axis, 0).reshape(self.step_shape(batch))
        if array.shape not in shapes:
            text = " or ".join(str(list(s)) for s in sorted(shapes, key=len))
            raise ShapeError(f"bind: the value of {self.name} is {text}, got {list(array.shape)}")
        # A lock-step program reads the steps of all rows at one distance, so such a value is repeated.
        return replace(self, bound=np.asarray(array, order="C"), timed=self.timed and batch not in (None, 1))

    def of_rows(self, batch: int | None, span: int | None = None) -> np.ndarray:
        """The bound value for a call: of `batch` rows, and of `span` steps if it is repeated; None: of one step."""
        value = self.bound  # np.ascontiguousarray would give a scalar an axis
        assert value is not None
        if span is not None and self.timed:
            value = np.expand_dims(value, value.ndim - len(self.features))
            return np.asarray(np.broadcast_to(value, self.chunk_shape(batch, span)), order="C")
        return np.asarray(np.broadcast_to(value, self.step_shape(batch)), order="C")

    def check_step(self, x, batch: int | None) -> np.ndarray:
        """x as a contiguous array of one step, or ShapeError. The file's own shape of one step is accepted too."""
        array = self._typed(x)
        want = self.step_shape(batch)
        if array.shape != want:
            own = tuple((batch or 1) if d == D.BATCH else 1 if not isinstance(d, int) else d for d in self.file_dims)
            if array.shape == own and (batch is None or not self.batched or self.file_dims[0] == D.BATCH):
                return array.reshape(want)
            raise ShapeError(f"input {self.name}: one step is {list(want)}, got {list(array.shape)}")
        return array

    def check_chunk(self, x, batch: int | None) -> np.ndarray:
        """x as a contiguous array of a chunk, or ShapeError."""
        array = self._typed(x)
        want = [*self._lead(batch), *(["T"] if self.timed else []), *self.features]
        if array.ndim != len(want) or any(w not in ("T", s) for w, s in zip(want, array.shape, strict=True)):
            text = ", ".join(map(str, want))
            raise ShapeError(f"input {self.name}: a chunk is [{text}], got {list(array.shape)}")
        return array

    def check_out(self, out, shape: tuple[int, ...]) -> None:
        """Raise ShapeError if the result can't be written directly to `out`."""
        want = np.dtype(DTYPES[self.dtype])
        if not isinstance(out, np.ndarray) or out.dtype != want or out.shape != shape:
            got = f"{out.dtype}{list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
            raise ShapeError(f"out for {self.name}: {want}{list(shape)} expected, got {got}")
        if not out.flags.writeable:
            raise ShapeError(f"out for {self.name} is read-only")

    def open_sizes(self, array: np.ndarray) -> dict[str, int]:
        """The sizes that `features` leaves open, taken from a step or chunk, whose last axes are the features."""
        found: dict[str, int] = {}
        for back, dim in enumerate(reversed(self.features), 1):
            for name in D.symbols(dim):
                if dim != D.symbol(name):
                    raise ShapeError(
                        f"input {self.name}: the size {dim} can't be solved: load the model with "
                        f"sizes={{{name!r}: ...}}"
                    )
                if back > array.ndim:
                    raise ShapeError(
                        f"input {self.name}: a step has {len(self.features)} axes: got {list(array.shape)}"
                    )
                if found.setdefault(name, array.shape[-back]) != array.shape[-back]:
                    raise ShapeError(f"input {self.name}: {name} is both {found[name]} and {array.shape[-back]}")
        return found

    def _typed(self, x) -> np.ndarray:
        return as_dtype(x, self.dtype, f"input {self.name}")


def whole_number(value, name: str, most: int) -> int:
    """value as an int in 1..most (NumPy integers are accepted, bools are not), or ShapeError."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not 1 <= number <= most:
        raise ShapeError(f"{name} must be an int in 1..{most}, got {value!r}")
    return number


def duration(value, name: str) -> float:
    """value as seconds, or ShapeError."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < float("inf"):
        raise ShapeError(f"{name} must be seconds >= 0, got {value!r}")
    return float(value)


def collect(names: list[str], x) -> list:
    """The arrays of all inputs, in order: x itself for one input, else a tuple or list, or a dict by name."""
    if isinstance(x, Mapping):
        if set(x) != set(names):
            raise ShapeError(f"inputs are {names}, got {sorted(x)}")
        return [x[n] for n in names]
    if len(names) == 1:
        return [x]
    if not isinstance(x, tuple | list) or len(x) != len(names):
        got = f"{len(x)} arrays" if isinstance(x, tuple | list) else type(x).__name__
        raise ShapeError(f"the model takes a tuple of {len(names)} inputs {names}, got {got}")
    return list(x)


def step_arrays(parts, x, batch: int | None) -> list[np.ndarray]:
    """The arrays of all inputs of a step, checked. parts : the StreamParts that has the inputs."""
    given = iter(collect(parts.names, x))
    return [a.check_step(next(given), batch) if a.bound is None else a.of_rows(batch) for a in parts.inputs]


def chunk_arrays(parts, chunk, batch: int | None) -> tuple[list[np.ndarray], int]:
    """(checked arrays of all inputs of a chunk, its steps). parts : the StreamParts that has the inputs."""
    given = iter(collect(parts.names, chunk))
    found = [None if a.bound is not None else a.check_chunk(next(given), batch) for a in parts.inputs]
    pairs = list(zip(parts.inputs, found, strict=True))
    lengths = {a.name: a.steps(v, batch) for a, v in pairs if v is not None and a.timed}
    if len(set(lengths.values())) != 1:
        raise ShapeError(f"inputs of a chunk must have the same number of steps, got {lengths}")
    steps = next(iter(lengths.values()))
    return [a.of_rows(batch, steps) if v is None else v for a, v in pairs], steps


def listed(n: int, chunks) -> list:
    """The chunks of n slots of a pool, or ShapeError."""
    if isinstance(chunks, Mapping) or not isinstance(chunks, Iterable):
        raise ShapeError(f"chunks are a sequence with one for each slot, got {type(chunks).__name__}")
    found = list(chunks)
    if len(found) != n:
        raise ShapeError(f"{n} slots take {n} chunks, got {len(found)}")
    return found


def check_out(outputs: list[Argument], out, batch: int | None):
    """The arrays that the outputs of a step are written to, as a list; None if `out` is None. ShapeError otherwise."""
    if out is None:
        return None
    outs = out if isinstance(out, tuple | list) else (out,)
    if len(outs) != len(outputs):
        raise ShapeError(f"out has {len(outs)} arrays, the model has {len(outputs)} outputs")
    for argument, array in zip(outputs, outs, strict=True):
        argument.check_out(array, argument.step_shape(batch))
    for i, array in enumerate(outs):
        if any(np.may_share_memory(array, other) for other in outs[:i]):
            raise ShapeError(f"out for {outputs[i].name} shares memory with another output's")
    return outs


def deliver(results: list, outs):
    """One array for one output, else a tuple; copied into `outs` if given. For None, its out stays unchanged."""
    for i, target in enumerate(outs or ()):
        if results[i] is not None:
            np.copyto(target, results[i])
            results[i] = target
    return results[0] if len(results) == 1 else tuple(results)


def plain_forms(inputs: list[Argument], outputs: list[Argument], batch: int | None = None) -> list[tuple]:
    """(NumPy type number, shape of a step) of each input, then of each output, for calls in compiled code; [] if one
    has many axes, or if they are many."""
    sides = (*inputs, *outputs)
    shapes = [a.step_shape(batch) for a in sides]
    if len(sides) > MOST_SIDES or any(len(s) >= MOST_AXES for s in shapes):
        return []
    return [(np.dtype(DTYPES[a.dtype]).num, shape) for a, shape in zip(sides, shapes, strict=True)]


def argument_of(value: Value, steps_one: bool, has_batch: bool) -> Argument:
    """The stream's view of a graph input or output. has_batch: some value of the graph has a batch axis."""
    features, timed, batched = [], steps_one, not has_batch
    for dim in value.dims:
        names = D.symbols(dim)
        if "time" in names:
            timed = True
        elif "batch" in names:
            batched = True
        else:
            features.append(dim)
    return Argument(value.name, value.dtype, tuple(features), timed, batched, value.dims)


def solve_sizes(
    values: list[Value], arrays: list[np.ndarray], held: Sequence[tuple] = (), empty: Mapping[str, int] | None = None
) -> dict[str, int]:
    """batch, time and other free sizes from whole-run inputs. ShapeErrors name input, axis, actual and expected size.

    held : (input, axis, why) of axes that keep the file's number, as in `Graph.held`. empty : sizes of states that are
    not given, on which those of other inputs may depend.
    """
    sizes: dict[str, int] = {}
    source: dict[str, str] = {}
    sums: list[tuple] = []  # sizes that are made of others
    for value, array in zip(values, arrays, strict=True):
        text = "[" + ", ".join(map(str, value.dims)) + "]"
        if array.ndim != len(value.dims):
            raise ShapeError(f"input {value.name}: {text} expected, got {list(array.shape)}")
        for axis, (dim, size) in enumerate(zip(value.dims, array.shape, strict=True)):
            if isinstance(dim, int):
                if dim != size:
                    why = "".join(f": {w}" for name, a, w in held if (name, a) == (value.name, axis))
                    raise ShapeError(f"input {value.name}: axis {axis} of {text} must be {dim}, got {size}{why}")
                continue
            name = next(iter(D.symbols(dim)))
            if dim != D.symbol(name):
                sums.append((value.name, axis, dim, size))
                continue
            if sizes.setdefault(name, size) != size:
                raise ShapeError(
                    f"input {value.name}: axis {axis} ({name}) is {size}, but {sizes[name]} in {source[name]}"
                )
            source.setdefault(name, value.name)
    for name, axis, dim, size in sums:
        known = {**(empty or {}), **sizes}
        if D.symbols(dim) - known.keys():
            raise ShapeError(f"input {name}: axis {axis} has the size {dim}, which can't be solved")
        if D.evaluate(dim, known) != size:
            raise ShapeError(f"input {name}: axis {axis} must be {D.evaluate(dim, known)} ({dim}), got {size}")
    return sizes
