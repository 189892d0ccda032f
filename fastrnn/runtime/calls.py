"""Calls on whole sequences, with inputs by position and by name as callers pass them.

`RunCore` (_runs.pyx) answers calls of plain arrays. These functions take all others: they convert, or raise an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..graph import DTYPES, traverse
from ..graph.casts import as_dtype
from .arguments import solve_sizes
from .compiled import Compiled
from .shapes import shape_of


def run(model: Compiled, arrays: tuple, named: Mapping[str, Any], lengths: Any) -> tuple[np.ndarray, ...]:
    """`Model.run`."""
    if lengths is not None and "lengths" in model.graph.inputs:
        named, lengths = {**named, "lengths": lengths}, None
    feeds = _collect(model, arrays, named)
    return model.run(feeds) if lengths is None else model.run_ragged(feeds, lengths)


def call(model: Compiled, arrays: tuple, named: Mapping[str, Any], lengths: Any) -> Any:
    """`Model.__call__`."""
    graph = model.graph
    plain = [n for n in graph.inputs if n not in graph.states]
    if len(arrays) > len(plain):
        raise ShapeError(f"{model.name} takes {len(plain)} inputs besides its states, got {len(arrays)}")
    _refuse_dicts(model, arrays)
    feeds = {**dict(zip(plain, arrays, strict=False)), **named}
    _refuse_unknown(model, named)
    lacking = [n for n in plain if n not in feeds and not (n == "lengths" and lengths is not None)]
    if lacking:
        raise ShapeError(f"{model.name}: input {', '.join(lacking)} is missing")
    missing = [n for n in graph.states if n not in feeds]
    if missing:
        known = [n for n in graph.inputs if n in feeds]
        typed = [as_dtype(feeds[n], graph.values[n].dtype, f"input {n}") for n in known]
        empty = model._empty_caches
        sizes = empty | solve_sizes([graph.values[n] for n in known], typed, graph.held, empty)
        for name in missing:
            value = graph.values[name]
            feeds[name] = np.zeros(shape_of(value, sizes), DTYPES[value.dtype])
    found, wanted = run(model, (), feeds, lengths), traverse.results(graph)
    kept = [r for n, r in zip(graph.outputs, found, strict=True) if n in wanted]
    return kept[0] if len(kept) == 1 else tuple(kept)


def _collect(model: Compiled, arrays: tuple, named: Mapping[str, Any]) -> list[np.ndarray]:
    """The arrays of all inputs, in the file's order and of their dtypes."""
    names = list(model.graph.inputs)
    _refuse_dicts(model, arrays)
    if len(arrays) > len(names):
        raise ShapeError(f"{model.name} takes {len(names)} inputs {names}, got {len(arrays)}")
    feeds = dict(zip(names, arrays, strict=False))
    _refuse_unknown(model, named)
    for name, array in named.items():
        if name in feeds:
            raise ShapeError(f"input {name} is given twice")
        feeds[name] = array
    missing = [n for n in names if n not in feeds]
    if missing:
        raise ShapeError(f"{model.name}: input {', '.join(missing)} is missing")
    return [as_dtype(feeds[n], model.graph.values[n].dtype, f"input {n}") for n in names]


def _refuse_dicts(model: Compiled, arrays: tuple) -> None:
    if any(isinstance(array, Mapping) for array in arrays):
        raise ShapeError(f"{model.name} takes arrays, by position or by name, and got a dict: pass run(**feeds)")


def _refuse_unknown(model: Compiled, named: Mapping[str, Any]) -> None:
    for name in named:
        if name not in model.graph.inputs:
            raise ShapeError(f"{model.name} has no input {name!r}; its inputs are {list(model.graph.inputs)}")
