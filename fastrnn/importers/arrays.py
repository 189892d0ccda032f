"""A recurrent layer given as arrays -> Graph, for weights from an npz, JSON or a paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ModelFormatError, ShapeError
from ..graph import Graph, Value
from ..graph.casts import check_float32, check_list
from ..graph.cells import (
    DEFAULT_ACTIVATIONS,
    GATE_ORDER,
    GATES,
    TORCH_ORDER,
    Activation,
    CellSpec,
    activation,
    reorder_gates,
)
from ..graph.dims import BATCH, TIME
from .shared.builder import GraphWriter

DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
# Common letters for the gates -> those of `GATE_ORDER`.
_LETTERS = {
    "rnn": {"i": "i"},
    "lstm": {"i": "i", "f": "f", "o": "o", "c": "c", "g": "c", "j": "c"},
    "gru": {"z": "z", "u": "z", "r": "r", "h": "h", "n": "h", "g": "h", "c": "h"},
}
_CANDIDATE = {"lstm": "c", "gru": "h"}


def build(
    kind: str,
    *,
    W,
    R,
    Wb=None,
    Rb=None,
    P=None,
    order: str | None = None,
    reset: str = "after",
    z_keeps: str = "old",
    activations: Sequence | None = None,
    clip: float | None = None,
    input_forget: bool = False,
    direction: str = "forward",
    h0=None,
    c0=None,
) -> Graph:
    """The graph of one recurrent layer; `fastrnn.from_arrays` documents the arguments.

    Raises
    ------
    ShapeError : an array does not fit; the text names it. ModelFormatError : an unknown option, or one that does not
    fit the kind.
    """
    kind, activations = _kind(kind, activations)
    if direction not in DIRECTIONS:
        raise ModelFormatError(f"direction={direction!r}; there are {', '.join(DIRECTIONS)}")
    _only_of(kind, reset, z_keeps, input_forget, P is not None, c0 is not None)
    order, reverses = _order(kind, order), DIRECTIONS[direction]
    D, G = len(reverses), GATES[kind]
    R = _array("R", R, D, (None, None), "[G*H, H]")
    H = R.shape[2]
    if R.shape[1] != G * H:
        raise ShapeError(_misfit("R", R, (G * H, H), f"{kind}: G = {G} gates of H = {H}", R.shape[2] == G * R.shape[1]))
    W = _array("W", W, D, (None, None), "[G*H, I]")
    if W.shape[1] != G * H:
        raise ShapeError(_misfit("W", W, (G * H, W.shape[2]), f"R makes H = {H}", W.shape[2] == G * H))
    parts = {"W": W, "R": R, "Wb": _array("Wb", Wb, D, (G * H,)), "Rb": _array("Rb", Rb, D, (G * H,))}
    parts = {name: _in_our_order(a, kind, order) for name, a in parts.items()}
    P = _peepholes(_array("P", P, D, (3 * H,)), order)
    spec = CellSpec(
        kind, W.shape[2], H, activations, False, _clip(clip), bool(input_forget), kind == "gru" and reset == "after"
    )
    if z_keeps == "new":
        _turn_z(parts, spec)
    initial = [_array("h0", h0, D, (H,)), _array("c0", c0, D, (H,))]
    return _emit(kind, spec, reverses, parts, P, initial)


def _emit(kind: str, spec: CellSpec, reverses, parts: dict, P, initial: list) -> Graph:
    writer = GraphWriter(kind)
    x = writer.transpose(writer.input("x", "float32", (BATCH, TIME, spec.input_size)), 1, 0, 2)
    ys = []
    for d, reverse in enumerate(reverses):
        weights = [None if a is None else a[d] for a in (*parts.values(), P)]
        starts = [_start(writer, a, d, name) for a, name in zip(initial, ("h0", "c0"), strict=True)]
        label = f"{kind}.reverse" if reverse and len(reverses) == 2 else kind
        ys.append(writer.cell(x, _reversed(spec, reverse), weights, initial=starts, label=label)[0])
    y = writer.transpose(writer.concat(ys, 2), 1, 0, 2)
    return writer.done(writer.rename(y, "y"))


def _reversed(spec: CellSpec, reverse: bool) -> CellSpec:
    return CellSpec(
        spec.kind, spec.input_size, spec.hidden_size, spec.activations, reverse, spec.clip, spec.input_forget,
        spec.linear_before_reset,
    )  # fmt: skip


def _start(writer: GraphWriter, array, d: int, name: str) -> Value | None:
    """An initial state, equal for every row of a batch."""
    if array is None:
        return None
    row = writer.constant(array[d : d + 1], name)
    return writer.add("expand", row, label=f"{name}.rows", dims=(BATCH, array.shape[1]))


# -- words --


def _kind(kind: str, activations) -> tuple[str, tuple[Activation, ...]]:
    kind = str(kind) if isinstance(kind, str) else kind  # a string of NumPy has another repr, which names have
    if kind == "rnn_relu":
        if activations is not None:
            raise ModelFormatError("rnn_relu is an rnn whose activation is relu: activations= can't change it")
        kind, activations = "rnn", ("relu",)
    if kind not in GATES:
        raise ModelFormatError(
            f"unknown cell {kind!r}; known: {', '.join(GATES)}, rnn_relu; for others use from_equations"
        )
    names = DEFAULT_ACTIVATIONS[kind] if activations is None else activations
    if isinstance(names, str):
        names = (names,)
    if len(names) != len(DEFAULT_ACTIVATIONS[kind]):
        raise ModelFormatError(f"{kind} takes {len(DEFAULT_ACTIVATIONS[kind])} activations, got {len(names)}")
    return kind, tuple(activation(str(n)) if isinstance(n, str) else activation(*n) for n in names)


def _order(kind: str, order: str | None) -> str:
    """The gates in ONNX's letters, in the order in which the arrays hold them."""
    letters = _LETTERS[kind]
    text = TORCH_ORDER[kind] if order is None else order
    ours = "".join(letters.get(letter, "?") for letter in text) if isinstance(text, str) else "?"
    if sorted(ours) != sorted(GATE_ORDER[kind]):
        words = {"rnn": "i", "lstm": "i f o and g (or c)", "gru": "r z and n (or h)"}[kind]
        raise ModelFormatError(f"order={text!r} of a {kind} must name its gates {words} once each")
    return ours


def _only_of(kind: str, reset: str, z_keeps: str, input_forget: bool, peepholes: bool, cell_state: bool) -> None:
    """Refuse options that belong to another kind of cell."""
    if reset not in ("before", "after"):
        raise ModelFormatError(f"reset={reset!r}; there are before and after (the product)")
    if z_keeps not in ("old", "new"):
        raise ModelFormatError(f"z_keeps={z_keeps!r}; there are old and new")
    found = [n for n, v in (("reset='before'", reset == "before"), ("z_keeps='new'", z_keeps == "new")) if v]
    if kind != "gru" and found:
        raise ModelFormatError(f"{', '.join(found)} is a gru's, not a {kind}'s")
    found = [n for n, v in (("input_forget", input_forget), ("P", peepholes), ("c0", cell_state)) if v]
    if kind != "lstm" and found:
        raise ModelFormatError(f"{', '.join(found)} is an lstm's, not a {kind}'s")


def _clip(clip) -> float | None:
    if clip is not None and not (np.isfinite(clip) and clip > 0):
        raise ModelFormatError(f"clip must be positive, got {clip}")
    return None if clip is None else float(clip)


# -- arrays --


def _array(name: str, array, D: int, shape: tuple, text: str | None = None) -> np.ndarray | None:
    """float64 [D, *shape]. Every number fits in float32, rounded or exact (fastrnn.graph.casts).

    The D axis may be left out for one direction. None in `shape` is any size from 1.
    """
    if array is None:
        if name in ("W", "R"):
            raise ShapeError(f"{name} is missing")
        return None
    found = np.asarray(array)
    want = text or "[" + ", ".join(map(str, shape)) + "]"
    if D == 2:
        want += " behind an axis of 2 directions"
    if found.dtype.kind not in "fiu":
        raise ShapeError(f"{name} is {found.dtype}, expected numbers {want}")
    full = found[None] if D == 1 and found.ndim == len(shape) else found
    if full.ndim != len(shape) + 1 or any(n not in (None, m) for n, m in zip((D, *shape), full.shape, strict=True)):
        raise ShapeError(f"{name} is {list(found.shape)}, expected {want}")
    if 0 in full.shape:
        raise ShapeError(f"{name} is {list(found.shape)}, which is empty")
    check_list(array, name, ModelFormatError)
    check_float32(full, name, ModelFormatError)
    return full.astype(np.float64)


def _misfit(name: str, array: np.ndarray, want: tuple, why: str, turned: bool) -> str:
    hint = f"; it looks transposed: give {name}.T" if turned else ""
    return f"{name} is {list(array.shape[1:])}, expected {list(want)} ({why}){hint}"


def _in_our_order(array, kind: str, order: str):
    return None if array is None else reorder_gates(array, kind, order, axis=1)


def _peepholes(P: np.ndarray | None, order: str) -> np.ndarray | None:
    """[D, 3*H] in ONNX's order i o f; given in the order of the gates without the candidate."""
    if P is None:
        return None
    given = order.replace("c", "")
    blocks = np.split(P, 3, axis=1)
    return np.concatenate([blocks[given.index(gate)] for gate in "iof"], axis=1)


def _turn_z(parts: dict, spec: CellSpec) -> None:
    """Negate z: h = z*n + (1-z)*h_old is the usual form with 1-z for z, and 1 - sigmoid(a) = sigmoid(-a)."""
    gate = spec.activations[0]
    if gate.name != "sigmoid" and not (gate.name == "hard_sigmoid" and gate.beta == 0.5):
        raise ModelFormatError(f"z_keeps='new' needs a gate whose 1 - f(a) is f(-a), such as sigmoid, not {gate.name}")
    for array in parts.values():
        if array is not None:
            array[:, : spec.hidden_size] *= -1  # z is the first block in ONNX's order
