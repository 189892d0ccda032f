"""Recurrent layers: LSTM, GRU, SimpleRNN, their CuDNN forms, RNN over cells, Bidirectional.

Keras's gates are i f c o (LSTM) and z r h (GRU), and its weights are [I, G*H]; both are converted to ONNX's layout
here. A masked step keeps the state and repeats the last output. Outputs before the first step that counts are zero.
"""

from __future__ import annotations

import numpy as np

from ...graph import Value
from ...graph.cells import GATES, KERAS_ORDER, CellSpec, reorder_gates
from ...records import dataclass
from ..shared.ledger import Finding
from ..shared.stacks import from_cudnn
from .activations import cell_activation
from .calls import LayerCall, MaskedTensor, layer
from .config import Layer

_KINDS = {"SimpleRNN": "rnn", "LSTM": "lstm", "GRU": "gru"}


@dataclass
class RecurrentRun:
    """The results of a recurrent layer. y: [B, T, H] in time order (None if not needed). states: the last states, cell
    by cell."""

    y: Value | None
    states: list[Value]


@layer("LSTM", "GRU", "SimpleRNN", "CuDNNLSTM", "CuDNNGRU", "RNN", masks="own")
def _recurrent(c: LayerCall) -> list[MaskedTensor]:
    return _layer(c, c.layer, turned=False)


def _layer(
    c: LayerCall, item: Layer, turned: bool, states: list | None = None, zero: bool | None = None
) -> list[MaskedTensor]:
    """The outputs of one recurrent layer: y, then its states if it returns them.

    turned: y is returned in time order even if the layer runs backwards (in a Bidirectional).
    """
    x, mask, passed = c.inputs[0].value, c.mask, c.passed_mask
    sequences, backwards = c.flag("return_sequences"), c.flag("go_backwards")
    major, returns = c.flag("time_major"), c.flag("return_state")
    c.flag("stateful")
    unrolled = c.flag("unroll")
    zero = c.flag("zero_output_for_mask") if zero is None else zero
    if len(x.dims) != 3:
        raise Finding(f"over {len(x.dims)} axes; expected [batch, time, features]")
    states = _given_states(c) if states is None else states
    cells = _cells(item)
    if mask is not None:
        c.work.masked.append(item.path)
        if mask.dims != x.dims[:2]:
            raise Finding(f"a mask [{', '.join(map(str, mask.dims))}] over [{', '.join(map(str, x.dims))}]")
    steps = x if major else c.w.transpose(x, 1, 0, 2)
    there = mask if mask is None or major else c.w.transpose(mask, 1, 0)
    run = _run_cells(c, cells, steps, there, states, backwards, sequences)
    if sequences:
        # A loop that Keras unrolls reverses inputs and masks, but zeroes its outputs by the original mask.
        odd = there is not None and zero and unrolled and backwards
        y = _masked_output(c, run.y, _flipped(c, there, 0) if odd else there, bool(states), backwards, zero)
        y = y if major else c.w.transpose(y, 1, 0, 2)
        if backwards and not turned:
            y = _flipped(c, y, 0 if major else 1)
    else:
        y = _masked_last(c, _last_output(cells, run), there, bool(states), backwards, zero)
    outputs = [MaskedTensor(y, passed if sequences else None)]
    return outputs + [MaskedTensor(s) for s in run.states] if returns else outputs


def _cells(item: Layer) -> list[Layer]:
    """The cells of a layer, in order."""
    if item.kind != "RNN":
        return [item]
    cell = item.parts["cell"]
    cells = list(cell.parts.values()) if cell.kind == "StackedRNNCells" else [cell]
    for one in cells:
        if one.kind.removesuffix("Cell") not in _KINDS:
            raise Finding(f"a cell of the class {one.kind}")
    if cell.config.get("reverse_state_order"):
        raise Finding("reverse_state_order=True")
    return cells


def _given_states(c: LayerCall) -> list[Value]:
    """Initial states passed to the layer, as values [B, H]; [] if there are none."""
    given = c.kwargs.pop("initial_state", None)
    extra = c.inputs[1:] if len(c.inputs) > 1 else []
    if len(c.args) > 1:
        given = c.args[1]
    given = [given] if isinstance(given, MaskedTensor) else given or extra

    def flat(items):
        return [i for item in items for i in (flat(item) if isinstance(item, list) else [item])]

    found = flat(given) if isinstance(given, list) else None
    if found is None or not all(isinstance(s, MaskedTensor) for s in found) or c.kwargs.get("constants") is not None:
        raise Finding("called with initial states or constants that are not tensors of the model")
    if found:
        c.work.apart = True
    return [s.value for s in found]


def _run_cells(
    c: LayerCall, cells, steps: Value, there, states: list[Value], backwards: bool, sequences: bool
) -> RecurrentRun:
    """Run all cells of a layer, each on the outputs of the previous one. steps [T, B, I], there [T, B] or None."""
    ends: list[Value] = []
    wanted = sum(2 if _kind(cell) == "lstm" else 1 for cell in cells)
    if states and len(states) != wanted:
        raise Finding(f"{len(states)} initial states, its cells have {wanted}")
    left, y = list(states), steps
    for cell in cells:
        spec, arrays = _cell(c, cell, y.dims[2], backwards)
        lstm = spec.kind == "lstm"
        initial = [left.pop(0) if left else None, left.pop(0) if left and lstm else None]
        last = cell is cells[-1]
        names = ("W", "R", "Wb", "Rb")
        held = [None if a is None else _held(c, cell, a, n) for a, n in zip(arrays, names, strict=True)]
        inputs = [y, *held, None, *initial, None, there]
        label = c.label if len(cells) == 1 else cell.path
        out = c.w.many("cell", inputs, {"spec": spec}, (sequences or not last, True, lstm), label)
        y = out[0] if out[0] is not None else y
        ends += [out[1], out[2]] if lstm else [out[1]]
    return RecurrentRun(y if sequences else None, ends)


def _held(c: LayerCall, cell: Layer, array: np.ndarray, name: str) -> Value:
    key = (id(cell), name, array.shape)
    if key not in c.work.constants:
        c.work.constants[key] = c.w.constant(array, f"{cell.path}.{name}")
    return c.work.constants[key]


def _kind(cell: Layer) -> str:
    return _KINDS[cell.kind.removesuffix("Cell").removeprefix("CuDNN")]


def _cell(c: LayerCall, cell: Layer, size, backwards: bool) -> tuple[CellSpec, list]:
    """(spec, [W, R, Wb, Rb] in ONNX's order) of one cell over `size` features."""
    at = c if cell is c.layer else LayerCall(c.work, cell, [], {})
    part = "" if cell.kind.endswith("Cell") else "cell"
    kind, H = _kind(cell), at.size("units", "output_dim")
    I = c.fixed(size, "the features of a step must be a fixed number")  # noqa: E741
    G = GATES[kind]
    acts, after, cudnn = _activations(at, kind, cell.kind.startswith("CuDNN")), False, False
    kernel = at.take("kernel", (I, G * H), part)
    recurrent = at.take("recurrent_kernel", (H, G * H), part)
    bias = None
    if "bias" in at.layer.config or at.get("use_bias", True):
        # The class that stored the weights shows in the bias, whatever class the config names.
        cudnn = kind != "rnn" and at.work.tensors.shape(at.layer, "bias", part) == (2 * G * H,)
        after = kind == "gru" and _reset_after(at, part, cudnn)
        bias = _bias(at, part, cudnn, after, G * H)
    elif kind == "gru":
        after = at.flag("reset_after")
    if cudnn:
        kernel, recurrent = from_cudnn(kernel, G), from_cudnn(recurrent, G, recurrent=True)
    order = KERAS_ORDER[kind]
    arrays = [reorder_gates(a.T, kind, order) for a in (kernel, recurrent)]
    arrays += [None if b is None else reorder_gates(b, kind, order) for b in (bias or (None, None))]
    spec = CellSpec(kind, I, H, acts, reverse=backwards, linear_before_reset=after)
    if at is not c:
        at.finish()
    return spec, arrays


def _activations(at: LayerCall, kind: str, cudnn: bool) -> tuple:
    if cudnn:
        return ()
    act = cell_activation(at, at.get("activation", "tanh"))
    if kind == "rnn":
        return (act,)
    older = "inner_activation" if "inner_activation" in at.layer.config else "recurrent_activation"
    gate = cell_activation(at, at.get(older, "sigmoid" if at.version.tf else "hard_sigmoid"))
    return (gate, act, act) if kind == "lstm" else (gate, act)


def _reset_after(at: LayerCall, part: str, cudnn: bool) -> bool:
    """Whether the reset gate comes after the product: from the config, else from the shape of the bias."""
    after = "reset_after" not in at.layer.config or at.flag("reset_after")
    if cudnn and not after:
        raise Finding("reset_after=False with weights of cuDNN, whose reset gate comes after the product")
    if cudnn or at.layer.kind.startswith("CuDNN") or "reset_after" in at.layer.config:
        return after
    return len(at.work.tensors.shape(at.layer, "bias", part)) == 2


def _bias(at: LayerCall, part: str, cudnn: bool, after: bool, size: int) -> tuple:
    """(Wb, Rb); Rb may be None."""
    if cudnn:
        return tuple(np.split(at.take("bias", (2 * size,), part), 2))
    if after:
        both = at.take("bias", (2, size), part)
        return both[0], both[1]
    return at.take("bias", (size,), part), None


# ---- how a mask changes outputs --------------------------------------------------------------------------------------


def _masked_output(c: LayerCall, y: Value, there, started: bool, backwards: bool, zero: bool) -> Value:
    """y [T, B, H] as in Keras at masked steps: zero if `zero`, else the last output, which is zero (not the state)
    before the first step that counts."""
    if there is None:
        return y
    if zero:
        return c.where(c.like(there, 3), y, c.number(0.0))
    if not started:
        return y
    count = c.add("cumsum", c.add("cast", there, to="float32"), axis=0, exclusive=False, reverse=backwards)
    begun = c.binary("greater", count, c.number(0.0))
    return c.where(c.like(begun, 3), y, c.number(0.0))


def _last_output(cells: list[Layer], run: RecurrentRun) -> Value:
    return run.states[-2] if _kind(cells[-1]) == "lstm" else run.states[-1]


def _masked_last(c: LayerCall, h: Value, there, started: bool, backwards: bool, zero: bool) -> Value:
    """The last output [B, H]: the last h, but zero if the last step is masked and `zero` is set, or if no step
    counts."""
    if there is None or not (zero or started):
        return h
    if zero:
        start, stop = (0, 1) if backwards else (there.dims[0] - 1, there.dims[0])
        end = c.add("slice", there, axis=0, start=start, stop=stop, step=1)
        return c.where(c.reshape(end, (there.dims[1], 1)), h, c.number(0.0))
    some = c.reduce("max", there, (0,))
    return c.where(c.like(some, 2), h, c.number(0.0))


def _flipped(c: LayerCall, y: Value, axis: int) -> Value:
    return c.add("slice", y, axis=axis, start=y.dims[axis] - 1, stop=-1, step=-1)


# ---- both directions -------------------------------------------------------------------------------------------------


@layer("Bidirectional", masks="own")
def _bidirectional(c: LayerCall) -> list[MaskedTensor]:
    merge = c.option("merge_mode", "concat", ("concat", "sum", "mul", "ave", None))
    c.get("return_sequences"), c.get("stateful"), c.get("return_state"), c.get("go_backwards")
    mask, passed = c.mask, c.passed_mask
    states = _given_states(c)
    made = []
    for k, item in enumerate(c.layer.parts.values()):
        if item.kind not in (*_KINDS, "CuDNNLSTM", "CuDNNGRU", "RNN"):
            raise Finding(f"around a {item.kind}")
        given = None if mask is None else MaskedTensor(mask)
        part = LayerCall(c.work, item, [[MaskedTensor(c.inputs[0].value)]], {"mask": given})
        half = states[k * len(states) // 2 : (k + 1) * len(states) // 2]
        sequences = bool(item.config.get("return_sequences"))
        # Since TensorFlow's Keras 2, masked steps of sequences are zeros here, regardless of the layers' settings.
        part.get("zero_output_for_mask")
        made.append(_layer(part, item, turned=True, states=half, zero=sequences if c.version.tf else None))
        part.finish()
    forward, backward = made
    y, back = forward[0].value, backward[0].value
    first, second = c.layer.parts.values()
    if bool(first.config.get("go_backwards")) == bool(second.config.get("go_backwards")):
        raise Finding("both of its layers run in the same direction")
    if first.config.get("go_backwards") and first.config.get("return_sequences"):
        # Keras reverses the output of the second layer, no matter which of the two runs backwards.
        axis = 0 if first.config.get("time_major") else 1
        y, back = _flipped(c, y, axis), _flipped(c, back, axis)
    mask = passed if first.config.get("return_sequences") else None
    rest = forward[1:] + backward[1:]
    if merge is None:
        return [MaskedTensor(y, mask), MaskedTensor(back, mask), *rest]
    if merge == "concat":
        joined = c.w.concat([y, back], len(y.dims) - 1)
    elif merge == "mul":
        joined = c.binary("mul", y, back)
    else:
        joined = c.binary("add", y, back)
        joined = c.unary("affine", joined, 0.5, 0.0) if merge == "ave" else joined
    return [MaskedTensor(joined, mask), *rest]
