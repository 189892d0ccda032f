"""States as their users see them: dicts of arrays by name, out of slab rows and back into them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .casts import as_dtype
from .errors import ShapeError, StateError
from .graph import Graph
from .streaming import ShownState, StateLayout


def exported(layout: StateLayout, graph: Graph, slab: np.ndarray, lone: bool) -> dict[str, np.ndarray]:
    """The states of slab rows [batch, size], as copies.

    A state that the file threads through an input has that input's own dims; a cell's own is [batch, hidden_size], or
    [hidden_size] where `lone`: one row of a stream without a batch.
    """
    states = layout.export(slab)
    if lone:
        states = {s.name: states[s.name][0] if _is_own(s, graph) else states[s.name] for s in layout.shown}
    return states


def load(layout: StateLayout, graph: Graph, slab: np.ndarray, states, lone: bool) -> None:
    """Inverse of `exported`: all states at once.

    Raises
    ------
    StateError : no dict, a state that is missing or that the model has not. ShapeError : dtype or shape of one.
    Nothing has changed then.
    """
    if not isinstance(states, Mapping):
        raise StateError(f"a state is a dict of arrays by name, got {type(states).__name__}")
    names = [s.name for s in layout.shown]
    if set(states) != set(names):
        raise StateError(f"states are {sorted(names)}, got {sorted(map(str, states))}")
    full = {}
    for shown in layout.shown:
        array = as_dtype(states[shown.name], shown.dtype, f"state {shown.name}")
        without = lone and _is_own(shown, graph)
        want = tuple(slab.shape[0] if i == shown.batch_axis else d for i, d in enumerate(shown.dims))
        want = want[1:] if without else want
        if array.shape != want:
            raise ShapeError(f"state {shown.name}: shape {want} expected, got {array.shape}")
        full[shown.name] = array[None] if without else array
    layout.load(slab, full)


def _is_own(shown: ShownState, graph: Graph) -> bool:
    """A cell's own state, not one that the file threads through an input."""
    return shown.batch_axis == 0 and shown.name not in graph.states
