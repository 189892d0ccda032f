"""Layers that `torch.ao.quantization.quantize_dynamic` made: 8-bit weights, and values rounded in each call.

They are replaced by the layers that they came from, with the weights that their integers mean, and what the integers
are worth is noted (`Graph.integers`), so that the last pass holds them as integers. PyTorch rounds values at a scale of
the whole batch, which is not reproduced.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ...graph.precision import note_steps

_MADE_FROM = "Linear LSTM GRU LSTMCell GRUCell RNNCell".split()  # classes of the same names in torch.nn


def widened(module: nn.Module, integers: dict) -> nn.Module:
    """The module, itself changed, with float layers in place of those with 8-bit weights.

    integers : a `Graph.integers`, to which their weights are added
    """
    made = _float_layer(module, integers)
    if made is not None:
        return made
    for name, child in list(module.named_children()):
        new = widened(child, integers)
        if new is not child:
            setattr(module, name, new)
    return module


def _float_layer(layer: nn.Module, integers: dict) -> nn.Module | None:
    """The layer that a quantised one came from; None for any other."""
    kind = type(layer)
    if not kind.__module__.startswith("torch.ao.nn.quantized.dynamic") or kind.__name__ not in _MADE_FROM:
        return None
    original = getattr(nn, kind.__name__)
    if original is nn.Linear:
        weight, bias = layer.weight(), layer.bias()
        made = nn.Linear(layer.in_features, layer.out_features, bias is not None)
        return _filled(made, {"weight": weight} | ({} if bias is None else {"bias": bias}), integers)
    names = ["bias"] + (["nonlinearity"] if original is nn.RNNCell else [])
    if original in (nn.LSTM, nn.GRU):
        names += ["num_layers", "batch_first", "bidirectional"]
    made = original(layer.input_size, layer.hidden_size, **{name: getattr(layer, name) for name in names})
    return _filled(made, {**layer.get_weight(), **layer.get_bias()}, integers)


def _filled(made: nn.Module, tensors: dict[str, torch.Tensor], integers: dict) -> nn.Module:
    """A layer with these tensors, all of its parameters. Those of 8 bits are widened."""
    state = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        if not tensor.is_quantized:
            state[name] = tensor.float()
            continue
        q = tensor.int_repr().numpy()
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            step, zero = np.float32(tensor.q_scale()), tensor.q_zero_point()
            step, zero = np.full((len(q), 1), step), np.full((len(q), 1), zero, np.float32)
        else:
            step = tensor.q_per_channel_scales().numpy().astype(np.float32)[:, None]
            zero = tensor.q_per_channel_zero_points().numpy().astype(np.float32)[:, None]
        wide = (q.astype(np.float32) - zero) * step
        if q.dtype.itemsize == 1:
            note_steps(integers, wide, step, 1, "int8")
        state[name] = torch.from_numpy(wide)
    made.load_state_dict(state)
    return made
