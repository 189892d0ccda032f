"""Finds recurrent layers of PyTorch and Keras by their tensors, checks them, and writes them as cells.

PyTorch: weight_ih_l0 [G*H, I], weight_hh_l0 [G*H, H], bias_ih_l0, bias_hh_l0 [G*H], with the suffix _reverse for the
other direction and weight_hr_l0 [P, H] for a projection (weight_hh is then [G*H, P]); a Cell leaves out _l0. The order
of gates is i f g o and r z n, and a GRU's reset comes after the product. Keras: kernel [I, G*H], recurrent_kernel [H,
G*H], bias [G*H], or [2, G*H] if a GRU's reset comes after the product; the order of gates is i f c o and z r h.
"""

from __future__ import annotations

import re

import numpy as np

from ...errors import ModelFormatError
from ...graph import Value
from ...graph.cells import GATES, KERAS_ORDER, TORCH_ORDER, CellSpec, activation, reorder_gates
from ...records import dataclass
from .builder import GraphWriter
from .weights import Tensors

_TORCH = re.compile(
    r"(?P<part>weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)(?:_l(?P<k>\d{1,4}))?(?P<reverse>_reverse)?"
)
_KERAS = ("kernel", "recurrent_kernel", "bias")


@dataclass(frozen=True)
class StackOptions:
    """Options that tensors don't show. activation: of the cell's candidate and output; gates: of its gates; None:
    default."""

    activation: str | None = None
    gates: str | None = None
    reset: str | None = None  # of a GRU: before or after the product; None: the framework's default
    reverse: bool = False  # steps run from the last to the first (one direction only)


@dataclass(frozen=True)
class Direction:
    """One direction of one layer, gates in ONNX order. hr [P, H]: a projection, None if absent."""

    spec: CellSpec
    W: np.ndarray
    R: np.ndarray
    Wb: np.ndarray | None
    Rb: np.ndarray | None
    hr: np.ndarray | None = None


@dataclass(frozen=True)
class Stack:
    """Stacked layers, each a list of one or two directions. first: the name of the tensor that multiplies the input,
    and its axis that has the input's size."""

    layers: list[list[Direction]]
    first: tuple[str, int]


def read(tensors: Tensors, prefix: str | None, kind: str, options: StackOptions) -> Stack:
    """The recurrent stack whose tensors begin with a prefix. Raises ModelFormatError if they don't fit the kind."""
    under = f"{prefix}/" if prefix else ""
    keras = [n for n in tensors.arrays if "/" in n and n.startswith(under)]
    if keras:
        return _keras_layer(tensors, keras, under, kind, options)
    return _torch_layers(tensors, f"{prefix}." if prefix else "", kind, options)


def emit(writer: GraphWriter, x: Value, stack: Stack, label: str, finals: bool) -> tuple[Value, list[Value]]:
    """Write a stack. x [batch, time, I] -> (y [batch, time, D*(P or H)], last h [batch, P or H] per direction of the
    last layer if `finals`)."""
    y, ends = writer.transpose(x, 1, 0, 2), []
    for k, layer in enumerate(stack.layers):
        name = label if len(stack.layers) == 1 else f"{label}.l{k}"
        wanted = (True, finals and k == len(stack.layers) - 1, False)
        parts = []
        for d in layer:
            step = name + (".reverse" if d.spec.reverse and len(layer) == 2 else "")
            part, end, _ = writer.cell(y, d.spec, (d.W, recurrent(d), d.Wb, d.Rb, None), wanted=wanted, label=step)
            if d.hr is not None:
                part = writer.linear(part, d.hr.T, label=f"{step}.projection")
                end = writer.linear(end, d.hr.T, label=f"{step}.projection") if end is not None else None
            parts.append(part)
            ends += [end] if end is not None else []
        y = writer.concat(parts, 2)
    return writer.transpose(y, 1, 0, 2), ends


def recurrent(d: Direction) -> np.ndarray:
    """R over the state before its projection: R (hr h) = (R hr) h, the product taken in float64."""
    return d.R if d.hr is None else d.R.astype(np.float64) @ d.hr.astype(np.float64)


def spec_of(kind: str, sizes: tuple[int, int], options: StackOptions, reverse: bool, after: bool) -> CellSpec:
    """A CellSpec of (input size, hidden size); after: a GRU's reset comes after the product."""
    acts = {
        "rnn": [options.activation or "tanh"],
        "gru": [options.gates or "sigmoid", options.activation or "tanh"],
        "lstm": [options.gates or "sigmoid", options.activation or "tanh", options.activation or "tanh"],
    }[kind]
    if kind == "rnn" and options.gates:
        raise ModelFormatError("an rnn has no gates; activation=")
    if kind != "gru" and options.reset:
        raise ModelFormatError("reset= applies to a gru alone")
    found = tuple(activation(name) for name in acts)
    return CellSpec(kind, *sizes, found, reverse=reverse, linear_before_reset=kind == "gru" and after)


# -- PyTorch --


def _torch_layers(tensors: Tensors, dot: str, kind: str, options: StackOptions) -> Stack:
    names = [n for n in tensors.arrays if n.startswith(dot)]
    found = [m for m in (_TORCH.fullmatch(n[len(dot) :]) for n in names) if m]
    if not found:
        tensors.take(f"{dot}weight_ih_l0", (None, None))  # its error lists what is there
    numbers = {m["k"] for m in found}
    plain = numbers == {None}
    if not plain and numbers != {str(k) for k in range(len(numbers))}:
        shown = ", ".join(sorted(str(n) for n in numbers))
        raise ModelFormatError(f"{dot}weight_ih_l...: layers {shown}, expected 0, 1, 2 without gaps")
    both = any(m["reverse"] for m in found)
    if both and options.reverse:
        raise ModelFormatError("reverse=true of a layer that has both directions")
    layers, size = [], None
    for k in range(len(numbers)):
        suffix = "" if plain else f"_l{k}"
        names_of = [suffix] + ([f"{suffix}_reverse"] if both else [])
        layer = [_torch_direction(tensors, dot, kind, s, options, size, i == 1) for i, s in enumerate(names_of)]
        layers.append(layer)
        size = sum(d.spec.hidden_size if d.hr is None else d.hr.shape[0] for d in layer)
    return Stack(layers, (f"{dot}weight_ih" + ("" if plain else "_l0"), 1))


def _torch_direction(tensors, dot, kind, suffix, options, size, second) -> Direction:
    def name(part: str) -> str:
        return f"{dot}{part}{suffix}"

    gates = GATES[kind]
    R = tensors.take(name("weight_hh"), (None, None))
    hr = tensors.take(name("weight_hr"), (R.shape[1], None), optional=True)
    if hr is not None and kind != "lstm":
        raise ModelFormatError(f"{name('weight_hr')}: only an lstm can have a projection")
    H = R.shape[1] if hr is None else hr.shape[1]
    if R.shape[0] != gates * H:
        known = [word for word, g in GATES.items() if g * H == R.shape[0]]
        hint = f", which a {known[0]} has" if known else ""
        shape = [gates * H, R.shape[1]]
        raise ModelFormatError(f"{name('weight_hh')} is {list(R.shape)}{hint}, expected {shape} of a {kind} of {H}")
    W = tensors.take(name("weight_ih"), (gates * H, size))
    Wb, Rb = (tensors.take(name(part), (gates * H,), optional=True) for part in ("bias_ih", "bias_hh"))
    spec = spec_of(kind, (W.shape[1], H), options, second or options.reverse, options.reset != "before")
    order = TORCH_ORDER[kind]
    W, R, Wb, Rb = (None if a is None else reorder_gates(a, kind, order) for a in (W, R, Wb, Rb))
    return Direction(spec, W, R, Wb, Rb, hr)


# -- Keras --


def _keras_layer(tensors: Tensors, names: list[str], under: str, kind: str, options: StackOptions) -> Stack:
    """The one or two directions of a Keras layer; those of a Bidirectional are under forward... and backward..."""
    ways: dict[bool, dict[str, str]] = {}
    for full in names:
        *path, last = full[len(under) :].split("/")
        if path and path[-1] == "vars" and last.isdecimal() and int(last) < len(_KERAS):
            last = _KERAS[int(last)]  # Keras 3 numbers them
        backward = any(part.startswith("backward_") for part in path)
        if last in _KERAS:
            if last in ways.setdefault(backward, {}):
                raise ModelFormatError(
                    f"{under or 'the file'} has both {ways[backward][last]} and {full}: which layer?"
                )
            ways[backward][last] = full
    if False not in ways or (True in ways and options.reverse):
        raise ModelFormatError(f"no forward layer under {under!r}, or reverse= of one that has both directions")
    layer = [_keras_direction(tensors, ways[b], under, kind, options, b or options.reverse) for b in sorted(ways)]
    return Stack([layer], (ways[False]["kernel"], 0))


def _keras_direction(tensors, names: dict[str, str], under: str, kind: str, options: StackOptions, reverse: bool):
    gates = GATES[kind]
    R = tensors.take(names.get("recurrent_kernel", f"{under}recurrent_kernel"), (None, None))
    H = R.shape[0]
    if R.shape[1] != gates * H:
        known = [word for word, g in GATES.items() if g * H == R.shape[1]]
        hint = f", which a {known[0]} has" if known else ""
        raise ModelFormatError(
            f"{names['recurrent_kernel']} is {list(R.shape)}{hint}, expected {[H, gates * H]} of a {kind} of {H}"
        )
    W = tensors.take(names.get("kernel", f"{under}kernel"), (None, gates * H))
    bias = tensors.take(names["bias"], None) if "bias" in names else None
    after = options.reset != "before"
    if bias is not None:
        if kind != "rnn" and bias.shape == (2 * gates * H,):  # stored by a layer of cuDNN
            W, R, bias = from_cudnn(W, gates), from_cudnn(R, gates, recurrent=True), bias.reshape(2, -1)
        elif bias.shape not in (allowed := [(gates * H,), (2, gates * H)] if kind == "gru" else [(gates * H,)]):
            text = " or ".join(str(list(shape)) for shape in allowed)
            raise ModelFormatError(f"{names['bias']} is {list(bias.shape)}, expected {text}")
        after = bias.ndim == 2
        if kind == "gru" and options.reset is not None and (options.reset == "after") != after:
            raise ModelFormatError(f"reset={options.reset}, but {names['bias']} is {list(bias.shape)}")
    elif kind == "gru" and options.reset is None:
        raise ModelFormatError(
            "a GRU without a bias does not show where it resets: give (reset=after) or (reset=before)"
        )
    spec = spec_of(kind, (W.shape[0], H), options, reverse, after)
    Wb, Rb = (bias[0], bias[1]) if bias is not None and bias.ndim == 2 else (bias, None)
    order = KERAS_ORDER[kind]
    W, R, Wb, Rb = (None if a is None else reorder_gates(a, kind, order) for a in (W.T, R.T, Wb, Rb))
    return Direction(spec, W, R, Wb, Rb)


def from_cudnn(kernel: np.ndarray, gates: int, recurrent: bool = False) -> np.ndarray:
    """Keras's layout of weights stored in cuDNN's: each gate's block transposed (a kernel is read in the other order
    into its own shape)."""
    blocks = np.split(kernel, gates, axis=1)
    turned = [b.T if recurrent else b.T.reshape(b.shape, order="F") for b in blocks]
    return np.concatenate(turned, axis=1)


# -- files without a list of layers --


def alone(tensors: Tensors) -> str:
    """The only list entry for a file whose tensors all belong to one recurrent stack.

    For any other file, raises ModelFormatError with the file's contents and a list to start from.
    """
    groups = _groups(tensors)
    if len(groups) == 1:
        ((prefix, word),) = groups.items()
        if word in GATES:
            return f"{word}:{prefix}" if prefix else word
    entries = [f'"{word}:{prefix}"' if prefix else f'"{word}"' for prefix, word in groups.items() if word]
    if not entries:
        raise ModelFormatError(
            f"{tensors.where}: none of its tensors belongs to a layer that fastrnn knows: {_some(tensors)}"
        )
    raise ModelFormatError(
        f"{tensors.where}: its weights don't say in which order the layers come, or what is between them: give "
        f"layers=, such as layers=[{', '.join(entries)}], with the activations, last and residual of the model"
    )


def _some(tensors: Tensors) -> str:
    names = list(tensors.arrays)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "it is empty"


def _groups(tensors: Tensors) -> dict[str, str]:
    """Prefix -> the word that its tensors match ("" if none), in the file's order."""
    members: dict[str, dict[str, tuple]] = {}
    for name, array in tensors.arrays.items():
        if "/" in name:
            prefix, _, last = name.partition("/")
            last = last.rpartition("/")[2]
        else:
            prefix, _, last = name.rpartition(".")
        members.setdefault(prefix, {})[last] = array.shape
    return {prefix: _looks_like(parts) for prefix, parts in members.items()}


def _looks_like(parts: dict[str, tuple]) -> str:
    stack = [m for m in map(_TORCH.fullmatch, parts) if m]
    if stack and len(stack) == len(parts):
        hr = next((parts[m.string] for m in stack if m["part"] == "weight_hr"), None)
        hh = next((parts[m.string] for m in stack if m["part"] == "weight_hh"), ())
        if len(hh) != 2 or (hr is not None and len(hr) != 2):
            return ""
        return _kind(hh[0], hr[1] if hr else hh[1])
    if "recurrent_kernel" in parts and len(parts["recurrent_kernel"]) == 2:
        return _kind(parts["recurrent_kernel"][1], parts["recurrent_kernel"][0])
    if "running_mean" in parts or "moving_mean" in parts:
        return "batchnorm"
    if "embeddings" in parts:
        return "embedding"
    shape = parts.get("weight", parts.get("kernel", parts.get("gamma")))
    if shape is None:
        return ""
    if len(shape) == 1:
        return "layernorm" if "bias" in parts or "beta" in parts else "prelu"
    return {2: "linear" if "bias" in parts or "kernel" in parts else "embedding", 3: "conv1d"}.get(len(shape), "")


def _kind(rows: int, hidden: int) -> str:
    return next((word for word, gates in GATES.items() if gates * hidden == rows), "")
