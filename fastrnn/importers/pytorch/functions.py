"""Functions and methods of torch as ONNX nodes, one short function each, registered under torch's names.

A function gets the emitter, torch's result on the example, and torch's own arguments with traced values in them. It
returns the names of ONNX values, nested like the result (or `Size`s, or plain Python values).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .emit import Emitter, Size, Unknown, V, onnx_dtype

FUNCTIONS: dict[str, Callable] = {}


def does(*names: str) -> Callable:
    """Register a function under names of torch functions, methods and Python operators."""

    def register(function: Callable) -> Callable:
        FUNCTIONS.update(dict.fromkeys(names, function))
        return function

    return register


# -- elementwise --

_BINARY = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "truediv": "Div", "pow": "Pow", "eq": "Equal", "gt": "Greater",
    "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "logical_and": "And", "logical_or": "Or",
    "maximum": "Max", "minimum": "Min",
}  # fmt: skip
_ALIASES = {"div": "truediv", "multiply": "mul", "subtract": "sub", "divide": "truediv", "and_": "logical_and",
            "or_": "logical_or", "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}  # fmt: skip
_SIZES = {"add": ("Add", int.__add__), "sub": ("Sub", int.__sub__), "mul": ("Mul", int.__mul__),
          "floordiv": ("Div", int.__floordiv__)}  # fmt: skip


def _binary(name: str) -> Callable:
    def emit(b: Emitter, out, input, other, *, alpha=1, rounding_mode=None):
        if alpha != 1 or rounding_mode is not None:
            raise Unknown(f"{name} with alpha or rounding")
        if isinstance(out, int) and not isinstance(out, bool):
            return _of_sizes(b, name, input, other)
        kinds = [v.value if isinstance(v, V) else v for v in (input, other)]
        if any(isinstance(v, Size) for v in kinds):
            raise Unknown(f"{name} of a size and a tensor")
        return b.op(_BINARY[name], *(b.name(v, torch.result_type(*kinds)) for v in (input, other)))

    return emit


def _of_sizes(b: Emitter, name: str, left, right):
    if name not in _SIZES:
        raise Unknown(f"{name} of sizes")
    kind, compute = _SIZES[name]
    numbers = [v.value if isinstance(v, Size) else v for v in (left, right)]
    names = [v.name if isinstance(v, Size) else b.ints(v) for v in (left, right)]
    return Size(b.op(kind, *names), compute(*numbers))


for _name in _BINARY:
    does(_name, *(alias for alias, of in _ALIASES.items() if of == _name))(_binary(_name))
does("floordiv")(_binary("floordiv"))

_PLAIN = {
    "neg": "Neg", "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "sin": "Sin",
    "cos": "Cos", "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softsign": "Softsign", "mish": "Mish",
    "hardswish": "HardSwish", "floor": "Floor", "ceil": "Ceil", "round": "Round", "sign": "Sign", "erf": "Erf",
    "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan", "arctan": "Atan", "sinh": "Sinh", "cosh": "Cosh",
    "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh",
    "logical_not": "Not", "invert": "Not", "absolute": "Abs", "negative": "Neg",
}  # fmt: skip


def _plain(kind: str) -> Callable:
    def emit(b: Emitter, out, input, inplace=False):
        if isinstance(input, Size):
            raise Unknown(f"{kind} of a size")
        _not_in_place(inplace)
        return b.op(kind, b.name(input, out.dtype if kind != "Not" else torch.bool))

    return emit


for _name, _kind in _PLAIN.items():
    does(_name)(_plain(_kind))


def _not_in_place(inplace: bool) -> None:
    if inplace:
        raise Unknown("a function in place")


@does("rsqrt")
def _rsqrt(b, out, input):
    return b.op("Reciprocal", b.op("Sqrt", b.name(input)))


@does("silu")
def _silu(b, out, input, inplace=False):
    _not_in_place(inplace)
    return b.op("Mul", input.name, b.op("Sigmoid", input.name))


@does("gelu")
def _gelu(b, out, input, *, approximate="none"):
    return b.op("Gelu", input.name, approximate=approximate)


@does("leaky_relu")
def _leaky_relu(b, out, input, negative_slope=0.01, inplace=False):
    _not_in_place(inplace)
    return b.op("LeakyRelu", input.name, alpha=float(negative_slope))


@does("elu")
def _elu(b, out, input, alpha=1.0, inplace=False):
    _not_in_place(inplace)
    return b.op("Elu", input.name, alpha=float(alpha))


@does("selu")
def _selu(b, out, input, inplace=False):
    _not_in_place(inplace)
    return b.op("Selu", input.name)


@does("softplus")
def _softplus(b, out, input, beta=1.0, threshold=20.0):
    if beta != 1 or threshold != 20:
        raise Unknown(f"softplus with beta={beta}, threshold={threshold}")
    return b.op("Softplus", input.name)


@does("hardsigmoid")
def _hardsigmoid(b, out, input, inplace=False):
    _not_in_place(inplace)
    return b.op("HardSigmoid", input.name, alpha=1 / 6, beta=0.5)


@does("relu6")
def _relu6(b, out, input, inplace=False):
    return _clamp(b, out, input, 0, 6, inplace)


@does("hardtanh")
def _hardtanh(b, out, input, min_val=-1.0, max_val=1.0, inplace=False):
    return _clamp(b, out, input, min_val, max_val, inplace)


@does("clamp", "clip")
def _clamp(b, out, input, min=None, max=None, inplace=False):
    _not_in_place(inplace)
    ends = [None if end is None else b.name(end, input.value.dtype) for end in (min, max)]
    return b.op("Clip", input.name, *ends)


@does("logsigmoid", "log_sigmoid")
def _logsigmoid(b, out, input):
    return b.op("Neg", b.op("Softplus", b.op("Neg", input.name)))


@does("where")
def _where(b, out, condition, input, other):
    return b.op("Where", b.name(condition), b.name(input, out.dtype), b.name(other, out.dtype))


@does("masked_fill")
def _masked_fill(b, out, input, mask, value):
    return b.op("Where", b.name(mask), b.name(value, out.dtype), input.name)


@does("prelu")
def _prelu(b, out, input, weight):
    slope = weight.value if isinstance(weight, V) else weight
    rank = input.value.ndim
    if slope.numel() > 1 and rank > 2:  # one per channel, which is axis 1
        slope = slope.reshape(-1, *(1,) * (rank - 2))
    return b.op("PRelu", input.name, b.floats(slope))


@does("dropout", "alpha_dropout", "feature_dropout")
def _dropout(b, out, input, p=0.5, training=True, inplace=False):
    if training and p:
        raise Unknown("dropout in training")
    return input.name


@does("contiguous", "clone", "detach", "cpu")
def _same(b, out, input, *, memory_format=None):
    return input.name


@does("float", "to", "type", "type_as", "long", "int", "bool")
def _to(b, out, input, *args, **kwargs):
    if out.dtype == input.value.dtype:
        return input.name
    return b.op("Cast", input.name, to=onnx_dtype(out.dtype))


# -- products and norms --


@does("matmul", "bmm", "mm")
def _matmul(b, out, input, other):
    return b.op("MatMul", b.name(input), b.name(other))


@does("einsum")
def _einsum(b, out, equation, *operands):
    operands = operands[0] if len(operands) == 1 and isinstance(operands[0], tuple | list) else operands
    return b.op("Einsum", *map(b.name, operands), equation=equation)


@does("linear")
def _linear(b, out, input, weight, bias=None):
    held = weight.value if isinstance(weight, V) else weight
    y = b.op("MatMul", input.name, b.floats(held.T))
    return y if bias is None else b.op("Add", y, b.name(bias))


@does("embedding")
def _embedding(b, out, input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False,
               sparse=False):  # fmt: skip
    if max_norm is not None:
        raise Unknown("an embedding with max_norm")
    return b.lookup(b.name(weight), input.name, 0)


@does("softmax", "log_softmax")
def _softmax(b, out, input, dim=None, _stacklevel=3, dtype=None, *, log=False):
    if dim is None or dtype is not None:
        raise Unknown("softmax without dim, or with a dtype")
    return b.op("LogSoftmax" if log else "Softmax", input.name, axis=dim)


does("log_softmax")(lambda b, out, *args, **kwargs: _softmax(b, out, *args, **kwargs, log=True))


@does("layer_norm")
def _layer_norm(b, out, input, normalized_shape, weight=None, bias=None, eps=1e-5):
    size = tuple(normalized_shape)
    scale = b.const(np.ones(size, np.float32)) if weight is None else b.name(weight)
    more = [] if bias is None else [b.name(bias)]
    return b.op("LayerNormalization", input.name, scale, *more, axis=-len(size), epsilon=float(eps))


# -- reductions --

_REDUCE = {"mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin"}


def _reduce(kind: str) -> Callable:
    def emit(b: Emitter, out, input, dim=None, keepdim=False, *, dtype=None):
        if dtype is not None or out.dtype != input.value.dtype:
            raise Unknown(f"{kind} with another dtype")
        axes = range(input.value.ndim) if dim is None or dim == () else (dim,) if isinstance(dim, int) else dim
        return b.op(kind, input.name, b.ints(*axes), keepdims=int(keepdim))

    return emit


for _name, _kind in _REDUCE.items():
    does(_name)(_reduce(_kind))


@does("max", "min")
def _extreme(b, out, input, dim=None, keepdim=False, *, least=False):
    if isinstance(dim, V):
        raise Unknown("max of two tensors by that name")
    value = _reduce("ReduceMin" if least else "ReduceMax")
    if dim is None:
        return value(b, out, input)
    index = b.op("ArgMin" if least else "ArgMax", input.name, axis=dim, keepdims=int(keepdim))
    return value(b, out[0], input, dim, keepdim), index


does("min")(lambda b, out, *args, **kwargs: _extreme(b, out, *args, **kwargs, least=True))


@does("argmax")
def _argmax(b, out, input, dim=None, keepdim=False):
    if dim is None:
        raise Unknown("argmax over all axes")
    return b.op("ArgMax", input.name, axis=dim, keepdims=int(keepdim))


@does("cumsum")
def _cumsum(b, out, input, dim):
    return b.op("CumSum", input.name, b.const(np.int64(dim)))
