"""States as users see them: dicts of arrays by name, read from slab rows and written back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import ShapeError, StateError, memory_for
from ..graph import Graph
from ..graph.casts import as_dtype
from .layout import MOST_STEPS, ShownState

POSITION = "steps_done"  # entry of states with the position, if outputs don't come one per step


@memory_for("a copy of the states")
def exported(parts, graph: Graph, slab: np.ndarray, lone: bool, steps: int, ended: bool) -> dict[str, np.ndarray]:
    """The states of slab rows [batch, size], as copies.

    A state that the file threads through an input has that input's own dims; a cell's own is [batch, hidden_size], or
    [hidden_size] if `lone`: one row of a stream without a batch. parts : the StreamParts of these streams; steps,
    ended : their positions in their sequences, which are part of the states if outputs don't come one per step.
    """
    found = parts.layout.export(slab)
    for s in parts.layout.shown if lone else ():
        if _is_own(s, graph):
            found[s.name] = found[s.name][0]
    if parts.timetable:
        found[POSITION] = np.array(-1 if ended else steps, np.int64)
    return found


@memory_for("new states")
def load(parts, graph: Graph, slab: np.ndarray, states, lone: bool, steps: int) -> tuple[int, bool]:
    """Inverse of `exported`: all states at once. Returns (steps, ended).

    Raises
    ------
    StateError : not a dict; a state is missing or unknown. ShapeError : dtype or shape of one.
    Nothing has changed then.
    """
    layout, ended = parts.layout, False
    if parts.timetable:
        steps, ended, states = _take_position(states, graph.name)
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
    return steps, ended


def _take_position(state, name: str) -> tuple[int, bool, dict]:
    """(steps, ended, the other entries) of a state with `steps_done`; StateError without it."""
    try:
        position = as_dtype(state[POSITION], "int64", f"state {POSITION}")
        rest = {k: v for k, v in state.items() if k != POSITION}
    except (TypeError, KeyError, IndexError, AttributeError):
        raise StateError(f"a state of {name} is a dict that holds {POSITION} too") from None
    if position.shape != () or not -1 <= position <= MOST_STEPS:
        raise StateError(f"{POSITION} must be one number of steps, got {state[POSITION]!r:.80}")
    return max(int(position), 0), position == -1, rest


def _is_own(shown: ShownState, graph: Graph) -> bool:
    """A cell's own state, not one that the file threads through an input."""
    return shown.batch_axis == 0 and shown.name not in graph.states
