"""Modules of torch.nn as ONNX nodes, one short function each, by the module's exact class.

A function gets the emitter, the module, its result on the example, and its arguments with traced values in them. A
subclass may compute something else, so it is traced instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from . import recurrent
from .emit import Emitter, Unknown, V
from .functions import FUNCTIONS

MODULES: dict[type, Callable] = {}


def of(*classes: type) -> Callable:
    """Register a function for classes."""

    def register(function: Callable) -> Callable:
        MODULES.update(dict.fromkeys(classes, function))
        return function

    return register


@of(nn.RNN, nn.LSTM, nn.GRU)
def _recurrent(b, module, out, input, hx=None):
    return recurrent.layer(b, module, input, hx)


@of(nn.RNNCell, nn.LSTMCell, nn.GRUCell)
def _cell(b, module, out, input, hx=None):
    return recurrent.cell(b, module, input, hx)


@of(nn.Linear)
def _linear(b, module, out, input):
    return FUNCTIONS["linear"](b, out, input, module.weight, module.bias)


@of(nn.Embedding)
def _embedding(b, module, out, input):
    return FUNCTIONS["embedding"](b, out, input, module.weight, max_norm=module.max_norm)


@of(nn.Conv1d, nn.Conv2d)
def _conv(b: Emitter, module, out, input: V):
    if input.value.ndim != out.ndim or input.value.ndim != module.weight.ndim:
        raise Unknown("a convolution without a batch")
    if module.padding_mode != "zeros":
        raise Unknown(f"a convolution with padding_mode={module.padding_mode}")
    count = module.weight.ndim - 2
    if module.padding == "same":
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        pads = [r // 2 for r in reach] + [r - r // 2 for r in reach]
    else:
        pads = [0] * (2 * count) if module.padding == "valid" else [*module.padding, *module.padding]
    return b.op(
        "Conv", *_with_bias(b, module, input), strides=list(module.stride), dilations=list(module.dilation), pads=pads,
        group=module.groups,
    )  # fmt: skip


@of(nn.ConvTranspose1d, nn.ConvTranspose2d)
def _conv_transpose(b: Emitter, module, out, input: V):
    if input.value.ndim != module.weight.ndim:
        raise Unknown("a convolution without a batch")
    return b.op(
        "ConvTranspose", *_with_bias(b, module, input), strides=list(module.stride), dilations=list(module.dilation),
        pads=[*module.padding, *module.padding], output_padding=list(module.output_padding), group=module.groups,
    )  # fmt: skip


def _with_bias(b: Emitter, module, input: V) -> list[str]:
    return [input.name, b.floats(module.weight)] + ([] if module.bias is None else [b.floats(module.bias)])


@of(nn.BatchNorm1d, nn.BatchNorm2d)
def _batch_norm(b: Emitter, module, out, input):
    if module.running_mean is None:
        raise Unknown("a BatchNorm without running statistics")
    ones = torch.ones_like(module.running_mean)
    scale, bias = (ones, 0 * ones) if module.weight is None else (module.weight, module.bias)
    parts = (b.floats(t) for t in (scale, bias, module.running_mean, module.running_var))
    return b.op("BatchNormalization", input.name, *parts, epsilon=float(module.eps))


@of(nn.LayerNorm)
def _layer_norm(b, module, out, input):
    return FUNCTIONS["layer_norm"](b, out, input, module.normalized_shape, module.weight, module.bias, module.eps)


@of(nn.PReLU)
def _prelu(b, module, out, input):
    return FUNCTIONS["prelu"](b, out, input, module.weight)


@of(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.Identity)
def _same(b, module, out, input):
    return input.name


@of(nn.Flatten)
def _flatten(b, module, out, input):
    return FUNCTIONS["flatten"](b, out, input, module.start_dim, module.end_dim)


@of(nn.Unflatten)
def _unflatten(b, module, out, input):
    return FUNCTIONS["unflatten"](b, out, input, module.dim, module.unflattened_size)


@of(nn.ConstantPad1d, nn.ZeroPad1d, nn.ConstantPad2d, nn.ZeroPad2d)
def _pad(b, module, out, input):
    return FUNCTIONS["pad"](b, out, input, list(module.padding), "constant", float(module.value))


@of(nn.ReflectionPad1d, nn.ReplicationPad1d)
def _pad_like(b, module, out, input):
    mode = "reflect" if isinstance(module, nn.ReflectionPad1d) else "replicate"
    return FUNCTIONS["pad"](b, out, input, list(module.padding), mode)


@of(nn.MaxPool1d, nn.AvgPool1d)
def _pool(b: Emitter, module, out, input):
    def number(value):
        return value[0] if isinstance(value, tuple) else value

    mean = isinstance(module, nn.AvgPool1d)
    kernel, stride, padding = (number(v) for v in (module.kernel_size, module.stride, module.padding))
    if not mean and module.return_indices:
        raise Unknown("MaxPool1d with return_indices")
    more = {"count_include_pad": int(module.count_include_pad)} if mean else {"dilations": [number(module.dilation)]}
    return b.op(
        "AveragePool" if mean else "MaxPool", input.name, kernel_shape=[kernel], strides=[stride],
        pads=[padding, padding], ceil_mode=int(module.ceil_mode), **more,
    )  # fmt: skip


@of(nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d)
def _adaptive(b: Emitter, module, out, input):
    size = module.output_size[0] if isinstance(module.output_size, tuple) else module.output_size
    if size != 1 or getattr(module, "return_indices", False):
        raise Unknown(f"an adaptive pool to {size} values")
    kind = "ReduceMean" if isinstance(module, nn.AdaptiveAvgPool1d) else "ReduceMax"
    return b.op(kind, input.name, b.ints(input.value.ndim - 1), keepdims=1)


@of(nn.Softmax, nn.LogSoftmax)
def _softmax(b, module, out, input):
    return FUNCTIONS["softmax" if isinstance(module, nn.Softmax) else "log_softmax"](b, out, input, module.dim)


@of(nn.LeakyReLU)
def _leaky_relu(b, module, out, input):
    return FUNCTIONS["leaky_relu"](b, out, input, module.negative_slope)


@of(nn.ELU)
def _elu(b, module, out, input):
    return FUNCTIONS["elu"](b, out, input, module.alpha)


@of(nn.GELU)
def _gelu(b, module, out, input):
    return FUNCTIONS["gelu"](b, out, input, approximate=module.approximate)


@of(nn.Softplus)
def _softplus(b, module, out, input):
    return FUNCTIONS["softplus"](b, out, input, module.beta, module.threshold)


@of(nn.Hardtanh)
def _hardtanh(b, module, out, input):
    return FUNCTIONS["clamp"](b, out, input, module.min_val, module.max_val)


_NAMED = {
    nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SiLU: "silu", nn.Mish: "mish", nn.SELU: "selu",
    nn.Softsign: "softsign", nn.Hardswish: "hardswish", nn.Hardsigmoid: "hardsigmoid", nn.ReLU6: "relu6",
    nn.LogSigmoid: "logsigmoid",
}  # fmt: skip


def _named(name: str) -> Callable:
    return lambda b, module, out, input: FUNCTIONS[name](b, out, input)


for _class, _name in _NAMED.items():
    of(_class)(_named(_name))
