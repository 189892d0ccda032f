"""Arrow columns as rows of NumPy, and back: one row of a column is a whole sequence of a model's input.

A row is a list of steps, each a list of features: `list<list<float>>` for an input [batch, time, features],
`list<float>` for [batch, time]. Fixed-size lists and tensor columns (of Arrow and of Ray Data) are read too. Rows are
views of the column's memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field

import numpy as np
import pyarrow as pa

from ..errors import FastRNNError
from ..records import dataclass

MOST_VALUES = (1 << 31) - 1  # of one list column: Arrow's lists count by int32


@dataclass(frozen=True)
class Side:
    """An input or output as a column.

    name : of the model's input or output; column : of the data
    dtype : of NumPy
    timed : whether it has a time axis, which is the first of a row
    features : sizes of the other axes in the file's order, without batch; None for one that the model leaves open
    """

    name: str
    column: str
    dtype: str
    timed: bool
    features: tuple[int | None, ...]

    @property
    def rank(self) -> int:
        """Axes of a row."""
        return self.timed + len(self.features)

    @property
    def squeezed(self) -> Side:
        """The same without features of size 1, which a column may leave out."""
        return Side(self.name, self.column, self.dtype, self.timed, tuple(f for f in self.features if f != 1))

    @property
    def text(self) -> str:
        """The shape of a row in words."""
        sizes = (["T"] if self.timed else []) + ["?" if f is None else str(f) for f in self.features]
        return f"[{', '.join(sizes)}]" if sizes else "one number"


@dataclass
class Rows:
    """The rows of a column.

    arrays : one per row; what is there for a bad row means nothing
    problems : row -> what is wrong with it
    """

    arrays: list[np.ndarray]
    problems: dict[int, str] = field(default_factory=dict)


class _Marks:
    """The first problem of each bad row."""

    def __init__(self) -> None:
        self.found: dict[int, str] = {}

    def at(self, rows: np.ndarray, text: str) -> None:
        for row in np.unique(rows).tolist():
            self.found.setdefault(row, text)


def rows_of(array: pa.Array, side: Side, cast: bool = False, allow_nan: bool = False) -> Rows:
    """The rows of a column for an input.

    cast : convert float64 and wide integers, which are refused otherwise. allow_nan : let NaN pass.

    Raises
    ------
    FastRNNError : the column as a whole has another type.
    """
    shaped = _tensor(array)
    if shaped is not None:
        return _rows_of_tensor(*shaped, side, cast, allow_nan)
    short = side.squeezed
    if short.rank != side.rank and _depth(array.type) == short.rank:
        found = rows_of(array, short, cast, allow_nan)
        return Rows([_unsqueezed(a, side) for a in found.arrays], found.problems)
    count, marks = len(array), _Marks()
    levels, values = _levels(array, side)
    starts = ends = None
    shapes: list[np.ndarray] = []  # of each axis: its size in each row
    for depth, (offsets, null) in enumerate(levels):
        if starts is None:
            starts, ends = np.arange(count), np.arange(1, count + 1)
        if null is not None:
            what = "is null" if depth == 0 else "holds a null where a list is expected"
            marks.at(_row_at(np.flatnonzero(null), starts, ends), what)
        widths = np.diff(offsets)
        if depth == 0:
            shapes.append(widths)
        else:
            shapes.append(_widths(widths, starts, ends, depth, side, marks))
        starts, ends = offsets[starts], offsets[ends]
    if starts is None:
        starts, ends = np.arange(count), np.arange(1, count + 1)
    null = _nulls(values)
    if null is not None:
        at = _row_at(np.flatnonzero(null), starts, ends)
        marks.at(at, "is null" if not levels else "holds a null where a number is expected")
        values = values.fill_null(False if pa.types.is_boolean(values.type) else 0)
    flat = _typed(_numbers(values), side, cast)
    _check_features(shapes, side, marks)
    if not allow_nan and flat.dtype.kind == "f":
        _mark_nan(flat, starts, ends, marks)
    if side.timed:
        marks.at(np.flatnonzero(shapes[0] == 0), "is empty: a sequence has at least one step")
    return Rows(_views(flat, starts, ends, shapes), marks.found)


def _unsqueezed(array: np.ndarray, side: Side) -> np.ndarray:
    sizes = iter(array.shape)
    lead = (next(sizes),) if side.timed else ()
    return array.reshape(*lead, *(1 if f == 1 else next(sizes) for f in side.features))


def _mark_nan(flat: np.ndarray, starts, ends, marks: _Marks) -> None:
    if not len(starts):
        return
    first = int(starts[0])
    bad = np.isnan(flat[first : int(ends[-1])])
    if bad.any():
        marks.at(_row_at(np.flatnonzero(bad) + first, starts, ends), "holds NaN")


def _check_features(shapes: list[np.ndarray], side: Side, marks: _Marks) -> None:
    """Mark rows whose outermost axis is a feature of the wrong size; inner axes are checked list by list."""
    if side.timed or not shapes or side.features[0] is None:
        return
    wrong = np.flatnonzero(shapes[0] != side.features[0])
    for row in wrong.tolist():
        marks.found.setdefault(row, f"has {shapes[0][row]} numbers where {side.text} is expected")


def _widths(widths, starts, ends, depth: int, side: Side, marks: _Marks) -> np.ndarray:
    """The one width of all lists of each row at this depth; rows with others are marked."""
    want = side.features[depth - side.timed]
    if want is not None:
        wrong = np.flatnonzero(widths != want)
        for position, row in zip(wrong.tolist(), _row_at(wrong, starts, ends, keep=True).tolist(), strict=True):
            if row >= 0:
                where = f"step {position - int(starts[row])}" if depth == 1 and side.timed else "it"
                text = f"{where} has {widths[position]} numbers where {want} are expected"
                marks.found.setdefault(row, text)
        return np.full(len(starts), want, np.int64)
    first = np.minimum(starts, max(len(widths) - 1, 0))
    of_row = np.where(ends > starts, widths[first] if len(widths) else 0, 0)
    expected = np.repeat(of_row, ends - starts)
    used = np.concatenate([np.arange(s, e) for s, e in zip(starts.tolist(), ends.tolist(), strict=True)] or [[]])
    used = used.astype(np.int64)
    marks.at(_row_at(used[widths[used] != expected], starts, ends), "has steps of different sizes")
    return of_row


def _row_at(positions: np.ndarray, starts: np.ndarray, ends: np.ndarray, keep: bool = False) -> np.ndarray:
    """The row that each position belongs to; positions of no row are dropped, or -1 with `keep`."""
    rows = np.searchsorted(starts, positions, side="right") - 1
    # Empty rows share their start with the next one, which is the last of them.
    inside = (rows >= 0) & (positions < ends[np.maximum(rows, 0)]) if len(starts) else np.zeros(len(positions), bool)
    return np.where(inside, rows, -1) if keep else rows[inside]


def _views(flat: np.ndarray, starts, ends, shapes: list[np.ndarray]) -> list[np.ndarray]:
    begins, stops = starts.tolist(), ends.tolist()
    if not shapes:
        return [flat[b] for b in begins]
    if len(shapes) == 1:
        return [flat[b:e] for b, e in zip(begins, stops, strict=True)]
    sizes = np.stack(shapes[1:], 1).tolist()
    found = []
    for b, e, inner in zip(begins, stops, sizes, strict=True):
        each = math.prod(inner)
        steps = (e - b) // each if each else 0
        found.append(flat[b : b + steps * each].reshape(steps, *inner))
    return found


# -- types --


def _levels(array: pa.Array, side: Side) -> tuple[list[tuple[np.ndarray, np.ndarray | None]], pa.Array]:
    """(offsets, which are null or None) of each level of lists, from the outside, and the values of the innermost."""
    found = []
    depth = 0
    while _is_list(array.type):
        found.append(_offsets(array))
        array = array.values
        depth += 1
    _check_depth(depth, side)
    return found, array


def check_type(kind: pa.DataType, side: Side) -> None:
    """FastRNNError if a column of this type has other levels of lists than the rows of an input."""
    if not isinstance(kind, pa.BaseExtensionType) and _depth(kind) != side.squeezed.rank:
        _check_depth(_depth(kind), side)


def _check_depth(depth: int, side: Side) -> None:
    if depth != side.rank:
        raise FastRNNError(
            f"column {side.column!r}: a row of input {side.name} is {side.text}, which is {side.rank} levels of lists; "
            f"the column has {depth}: reshape it"
        )


def _depth(kind: pa.DataType) -> int:
    depth = 0
    while _is_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _offsets(array: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        offsets = (array.offset + np.arange(len(array) + 1, dtype=np.int64)) * size
    else:
        offsets = array.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
    return offsets, _nulls(array)


def _nulls(array: pa.Array) -> np.ndarray | None:
    return array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None


def _numbers(values: pa.Array) -> np.ndarray:
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        if pa.types.is_null(kind):  # a column of nothing but nulls or empty lists
            return np.zeros(len(values), np.bool_)
        raise FastRNNError(f"numbers are expected, got {kind}: convert the column")
    return values.to_numpy(zero_copy_only=False)


def _typed(flat: np.ndarray, side: Side, cast: bool) -> np.ndarray:
    want = np.dtype(side.dtype)
    if flat.dtype == want:
        return flat
    if np.can_cast(flat.dtype, want, "safe"):
        return flat.astype(want)
    if not cast:
        raise FastRNNError(
            f"column {side.column!r}: input {side.name} takes {want}, the column has {flat.dtype}: convert it, or pass "
            "cast (--cast) to round its numbers"
        )
    if want.kind in "iu":
        found = flat.astype(want)
        if flat.dtype.kind not in "iu" or not np.array_equal(found, flat):
            raise FastRNNError(
                f"column {side.column!r}: input {side.name} takes {want}, and numbers of the column don't fit it"
            )
        return found
    if want.kind == "b":
        raise FastRNNError(f"column {side.column!r}: input {side.name} takes bools, the column has {flat.dtype}")
    with np.errstate(over="ignore"):
        return flat.astype(want)


# -- tensor columns --


def _tensor(array: pa.Array):
    """(values, shape of each row, nulls) of a tensor column; None for any other."""
    kind = array.type
    if not isinstance(kind, pa.BaseExtensionType):
        return None
    storage = array.storage
    if pa.types.is_struct(storage.type) and {f.name for f in storage.type} >= {"data", "shape"}:
        data, shapes = storage.field("data"), storage.field("shape")
        (at, null), (at_shape, _) = _offsets(data), _offsets(shapes)
        numbers = shapes.values.to_numpy(zero_copy_only=False).tolist()
        found = [tuple(numbers[a:b]) for a, b in zip(at_shape[:-1].tolist(), at_shape[1:].tolist(), strict=True)]
    elif _is_list(storage.type) and hasattr(kind, "shape"):
        data, (at, null) = storage, _offsets(storage)
        found = [tuple(kind.shape)] * len(array)
    else:
        return None
    nulls = _nulls(array)
    return data.values, at, found, null if nulls is None else nulls


def _rows_of_tensor(values, at, shapes, null, side: Side, cast: bool, allow_nan: bool) -> Rows:
    if values.null_count:
        raise FastRNNError(f"column {side.column!r}: a tensor column holds nulls: drop these rows")
    flat, marks = _typed(_numbers(values), side, cast), _Marks()
    want = [None] * side.timed + list(side.features)
    arrays = []
    for row, shape in enumerate(shapes):
        if null is not None and null[row]:
            marks.found[row] = "is null"
            shape = (0,) * side.rank
        elif len(shape) != len(want) or any(w not in (None, s) for w, s in zip(want, shape, strict=True)):
            marks.found[row] = f"is {list(shape)} where {side.text} is expected"
        elif side.timed and shape[0] == 0:
            marks.found[row] = "is empty: a sequence has at least one step"
        begin = int(at[row])
        arrays.append(flat[begin : begin + math.prod(shape)].reshape(shape))
    if not allow_nan and flat.dtype.kind == "f":
        _mark_nan(flat, at[:-1], at[1:], marks)
    return Rows(arrays, marks.found)


# -- results --


def type_of(side: Side) -> pa.DataType:
    """The type of an output's column: lists in lists."""
    found = pa.from_numpy_dtype(np.dtype(side.dtype))
    for _ in range(side.rank):
        found = pa.list_(found)
    return found


def column_of(rows: Sequence[np.ndarray | None], side: Side) -> pa.Array:
    """The column of an output; None becomes null."""
    null = np.array([r is None for r in rows], np.bool_)
    blank = np.zeros((0,) * side.rank, side.dtype)
    arrays = [blank if r is None else r for r in rows]
    if not side.rank:
        numbers = np.array([0 if r is None else r for r in rows], side.dtype)
        return pa.array(numbers, mask=null if null.any() else None)
    if sum(a.size for a in arrays) > MOST_VALUES:
        raise FastRNNError(
            f"output {side.name}: more than {MOST_VALUES:,} numbers in one batch of {len(rows)} rows: pass a smaller "
            "batch_rows (--batch-rows), or leave this output out"
        )
    flat = np.concatenate([a.reshape(-1) for a in arrays]) if arrays else np.zeros(0, side.dtype)
    found = pa.array(flat)
    for depth in reversed(range(side.rank)):
        found = pa.ListArray.from_arrays(_offsets_of(arrays, depth), found, mask=_mask(null) if depth == 0 else None)
    return found.cast(type_of(side)) if found.type != type_of(side) else found


def _mask(null: np.ndarray) -> pa.Array | None:
    return pa.array(null) if null.any() else None


def _offsets_of(arrays: list[np.ndarray], depth: int) -> pa.Array:
    """Where the lists of one level end, over all rows."""
    counts = np.array([math.prod(a.shape[:depth]) for a in arrays], np.int64)
    widths = np.array([a.shape[depth] for a in arrays], np.int64)
    each = np.repeat(widths, counts)
    return pa.array(np.concatenate([[0], np.cumsum(each)]).astype(np.int32))
