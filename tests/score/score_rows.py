"""Rows of different lengths for any model, as an Arrow column of each input, and the answers of each row alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from fastrnn.graph import dims as D


def has_time(model):
    return any("time" in str(d) for i in model.inputs for d in i.dims)


def plain_inputs(model):
    return [i for i in model.inputs if i.name not in model.graph.states]


def features_of(info, sizes):
    """Sizes of a row's axes besides time; sizes: those that the model leaves open."""
    free = [d for d in info.dims if not (isinstance(d, str) and ("batch" in d or "time" in d))]
    return [d if isinstance(d, int) else D.evaluate(D.parse(d), sizes) for d in free]


def row(model, steps, rng, sizes=None):
    """One row: input -> array [steps, features...], or [features...] without a time axis."""
    found = {}
    for info in plain_inputs(model):
        timed = not has_time(model) or any("time" in str(d) for d in info.dims)
        shape = [steps] * timed + features_of(info, sizes or {})
        real = np.dtype(info.dtype).kind == "f"
        found[info.name] = (rng.standard_normal(shape) if real else rng.integers(0, 2, shape)).astype(info.dtype)
    return found


def whole(info, array):
    """A row in the file's own axes, with a batch of one."""
    dims = [str(d) for d in info.dims]
    batch = next((k for k, d in enumerate(dims) if "batch" in d), None)
    time = next((k for k, d in enumerate(dims) if "time" in d), None)
    if time is not None:
        array = np.moveaxis(array, 0, time - (batch is not None and batch < time))
    return array if batch is None else np.expand_dims(array, batch)


def alone(model, arrays):
    """The answers to one row by `model(...)`, output -> array as in a column."""
    infos = {i.name: i for i in (*model.inputs, *model.outputs)}
    ends = set(model.graph.states.values())
    names = [o.name for o in model.outputs if o.name not in ends] or [o.name for o in model.outputs]
    if has_time(model):
        found = model(**{n: whole(infos[n], a) for n, a in arrays.items()})
    else:  # a model of one step: a row is a stream
        values = list(arrays.values())
        found = model.stream().push(values[0] if len(values) == 1 else tuple(values))
    named = dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))
    return {n: back(infos[n], a) if has_time(model) else a for n, a in named.items()}


def back(info, array):
    dims = [str(d) for d in info.dims]
    batch = next((k for k, d in enumerate(dims) if "batch" in d), None)
    if batch is not None:
        array = np.take(array, 0, batch)
        del dims[batch]
    time = next((k for k, d in enumerate(dims) if "time" in d), None)
    return array if time is None else np.moveaxis(array, time, 0)


def column(arrays):
    """Rows of any lengths as lists of lists."""
    kind = pa.from_numpy_dtype(arrays[0].dtype)
    for _ in range(arrays[0].ndim):
        kind = pa.list_(kind)
    return pa.array([a.tolist() for a in arrays], kind)


def batch_of(rows, **more):
    """A record batch of rows."""
    return pa.RecordBatch.from_pydict({n: column([r[n] for r in rows]) for n in rows[0]} | more)


def lists(array):
    """A column's rows as NumPy arrays."""
    kind = array.type
    while pa.types.is_list(kind):
        kind = kind.value_type
    return [None if v is None else np.asarray(v, kind.to_pandas_dtype()) for v in array.to_pylist()]


def same(found, want):
    """Whether a cell of a column has the bits of an array; an empty list has lost its inner axes."""
    return np.array_equal(found.reshape(-1).view(np.uint8), np.ascontiguousarray(want).reshape(-1).view(np.uint8))
