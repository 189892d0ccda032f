"""nn.RNN, nn.LSTM, nn.GRU and their Cells as ONNX's recurrent operators, with weights in ONNX's order."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ...graph.cells import TORCH_ORDER, reorder_gates
from .emit import Emitter, Packed, Unknown, V
from .packed import padded

_OPERATORS = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
# A projection can't be inverted in float32 if the singular values of its matrix differ by more than this.
_MAX_CONDITION = 1e3


def layer(b: Emitter, module: nn.RNNBase, x, hx=None) -> tuple:
    """y, h_n (and c_n) of a stack: names, nested like the module's own result."""
    if isinstance(x, Packed):
        return _packed(b, module, x, hx)
    return _stack(b, module, x, hx, module.batch_first, None)


def _packed(b: Emitter, module: nn.RNNBase, x: Packed, hx) -> tuple:
    """A stack over a packed sequence: a `Packed`, and the states after each row's last step."""
    with torch.no_grad():
        out = module(x.value, None if hx is None else torch.utils._pytree.tree_map_only(V, lambda v: v.value, hx))[0]
    lengths = b.name(x.lengths, torch.int32)
    name, last = _stack(b, module, x.steps, hx, x.batch_first, lengths)
    y = Packed(x.steps, x.lengths, x.batch_first, out)
    return Packed(V(name, padded(y)), x.lengths, x.batch_first, out), last


def _stack(b: Emitter, module: nn.RNNBase, x: V, hx, batch_first: bool, lengths: str | None) -> tuple:
    kind = {"LSTM": "lstm", "GRU": "gru"}.get(module.mode, "rnn")
    name, batched = x.name, x.value.ndim == 3
    if not batched:  # [T, I], states [L*D, H]
        name = b.op("Unsqueeze", name, b.ints(1))
    elif batch_first:
        name = b.transpose(name, 1, 0, 2)
    states = [] if hx is None else list(hx) if kind == "lstm" else [hx]
    starts = [b.op("Unsqueeze", s.name, b.ints(1)) if not batched else s.name for s in states]
    ends: list[list[str]] = [[], []]
    D = 2 if module.bidirectional else 1
    for k in range(module.num_layers):
        first = [b.slice(s, 0, k * D, (k + 1) * D) for s in starts]
        name, h, c = _one(b, module, kind, k, name, first, lengths)
        ends[0].append(h)
        ends[1] += [c] if c is not None else []
    if not batched:
        name = b.op("Squeeze", name, b.ints(1))
    elif batch_first:
        name = b.transpose(name, 1, 0, 2)
    last = [b.op("Concat", *e, axis=0) if len(e) > 1 else e[0] for e in ends if e]
    last = last if batched else [b.op("Squeeze", e, b.ints(1)) for e in last]
    return (name, tuple(last)) if kind == "lstm" else (name, last[0])


def _one(b: Emitter, module: nn.RNNBase, kind: str, k: int, x: str, starts: list[str], lengths: str | None) -> tuple:
    """(y [T, B, D*H], h_n [D, B, H], c_n or None) of layer k, x [T, B, I]."""
    D = 2 if module.bidirectional else 1
    ways = [f"_l{k}", f"_l{k}_reverse"][:D]
    W, R, bias = (_stacked(module, part, ways, kind) for part in ("weight_ih", "weight_hh", "bias"))
    hr = None
    if getattr(module, "proj_size", 0):
        hr = np.stack([getattr(module, f"weight_hr{way}").detach().numpy() for way in ways])  # [D, P, H]
        # R (hr h) = (R hr) h: a cell whose state is h before the projection.
        R = (R.astype(np.float64) @ hr.astype(np.float64)).astype(np.float32)
        starts = _before_projection(b, starts, hr)
    outputs = 3 if kind == "lstm" else 2
    relu = {"activations": ["Relu"] * D} if module.mode == "RNN_RELU" else {}
    y, h, *c = b.ops(
        _OPERATORS[kind],
        [x, b.const(W), b.const(R), None if bias is None else b.const(bias), lengths, *starts],
        outputs,
        hidden_size=module.hidden_size,
        direction="bidirectional" if D == 2 else "forward",
        linear_before_reset=1 if kind == "gru" else None,
        **relu,
    )  # y [T, D, B, H]
    if hr is not None:
        weights = b.const(hr.transpose(0, 2, 1))  # [D, H, P]
        y, h = b.op("MatMul", y, weights), b.op("MatMul", h, weights)
    if D == 1:
        return b.op("Squeeze", y, b.ints(1)), h, c[0] if c else None
    return b.op("Reshape", b.transpose(y, 0, 2, 1, 3), b.ints(0, 0, -1)), h, c[0] if c else None


def _before_projection(b: Emitter, starts: list[str], hr: np.ndarray) -> list[str]:
    """A state [D, B, H] whose projection is h0 [D, B, P]. It exists because a projection has more columns than rows."""
    if not starts:
        return starts
    wide = hr.astype(np.float64)
    if np.linalg.cond(wide).max() > _MAX_CONDITION:
        raise Unknown("an initial state behind a projection that can't be undone")
    back = np.linalg.pinv(wide).transpose(0, 2, 1).astype(np.float32)  # [D, P, H]
    return [b.op("MatMul", starts[0], b.const(back)), *starts[1:]]


def _stacked(module: nn.RNNBase, part: str, ways: list[str], kind: str) -> np.ndarray | None:
    """W, R or B of one layer, [D, ...], in ONNX's gate order."""
    if part != "bias":
        return np.stack([_ordered(getattr(module, part + way), kind) for way in ways])
    if not module.bias:
        return None
    both = [[_ordered(getattr(module, f"bias_{side}{way}"), kind) for side in ("ih", "hh")] for way in ways]
    return np.stack([np.concatenate(pair) for pair in both])


def _ordered(tensor: torch.Tensor, kind: str) -> np.ndarray:
    return reorder_gates(tensor.detach().numpy(), kind, TORCH_ORDER[kind])


def cell(b: Emitter, module: nn.RNNCellBase, x: V, hx=None) -> tuple | str:
    """One step of a Cell: h, or (h, c), [B, H] each (or [H])."""
    kind = {nn.LSTMCell: "lstm", nn.GRUCell: "gru", nn.RNNCell: "rnn"}[type(module)]
    states = [] if hx is None else list(hx) if kind == "lstm" else [hx]
    lead = [0] if x.value.ndim == 2 else [0, 1]  # x as [1, B, I]
    name, *starts = (b.op("Unsqueeze", v.name, b.ints(*lead)) for v in (x, *states))
    W, R = (_ordered(w, kind)[None] for w in (module.weight_ih, module.weight_hh))
    bias = None
    if module.bias:
        bias = b.const(np.concatenate([_ordered(w, kind) for w in (module.bias_ih, module.bias_hh)])[None])
    relu = {"activations": ["Relu"]} if getattr(module, "nonlinearity", "") == "relu" else {}
    _, *ends = b.ops(
        _OPERATORS[kind],
        [name, b.const(W), b.const(R), bias, None, *starts],
        3 if kind == "lstm" else 2,
        hidden_size=module.hidden_size,
        linear_before_reset=1 if kind == "gru" else None,
        **relu,
    )
    ends = [b.op("Squeeze", e, b.ints(*lead)) for e in ends]
    return tuple(ends) if kind == "lstm" else ends[0]
