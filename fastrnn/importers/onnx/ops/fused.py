"""Operators that onnxruntime's optimiser writes for several of ONNX's (`optimized_model_filepath`)."""

from __future__ import annotations

import math

from ....errors import ModelFormatError
from ...shared.ledger import Finding
from ..reading.reader import NodeReader
from ..reading.registry import OPERATORS, op
from ..reading.values import Live, Quantized
from .products import _float
from .quantised import CONV, MICROSOFT

# Name of an activation -> (fn of the graph's unary, the defaults of its parameters).
_ACTIVATIONS: dict[str, tuple[str, tuple]] = {
    "Relu": ("relu", ()),
    "Tanh": ("tanh", ()),
    "Sigmoid": ("sigmoid", ()),
    "LeakyRelu": ("leaky_relu", (0.01,)),
    "HardSigmoid": ("hard_sigmoid", (0.2, 0.5)),
    "Elu": ("elu", (1.0,)),
    "Softplus": ("softplus", ()),
    "Softsign": ("softsign", ()),
    "ThresholdedRelu": ("thresholded_relu", (1.0,)),
    "Clip": ("clip", (-math.inf, math.inf)),
}


def _activated(ctx, x, name: str, params: list):
    """An activation by its name in onnxruntime."""
    if name == "HardSwish":
        return ctx.unary("hard_swish", x)
    if name not in _ACTIVATIONS:
        raise Finding(f"activation={name!r}")
    fn, defaults = _ACTIVATIONS[name]
    return ctx.unary(fn, x, *[*params, *defaults[len(params) :]][: len(defaults)])


def _as(ctx, n: NodeReader, kind: str, values: list):
    """The output of the operator `kind` of ONNX with the node's attributes and these inputs."""
    inner = n.within(values)
    inner.node = type(n.node)(kind, "", n.node.label, n.node.inputs[: len(values)], n.node.outputs[:1], n.node.attrs)
    inner.opset = 13
    (out,) = OPERATORS["", kind].handler(ctx, inner)
    inner.finish()
    return out


def _sum(ctx, n: NodeReader, *values):
    """The sum of the values that are not None."""
    total, *rest = [v for v in values if v is not None]
    for value in rest:
        total = ctx.one("binary", *ctx.broadcast([total, value], n.node.op), fn="add")
    return total


@op("FusedConv", attrs=CONV + " activation activation_params", domain=MICROSOFT)
def _fused_conv(ctx, n: NodeReader):
    """activation(Conv(X, W, B) + Z)."""
    name, params = n.attr("activation", "string", ""), n.attr("activation_params", "floats", [])
    out = _as(ctx, n, "Conv", [n.input(0), n.input(1), n.input(2, optional=True)])
    out = _sum(ctx, n, out, n.input(3, optional=True))
    return [_activated(ctx, out, name, params) if name else out]


@op(
    "FusedGemm",
    attrs="alpha beta transA transB activation activation_alpha activation_beta activation_gamma",
    domain=MICROSOFT,
)
def _fused_gemm(ctx, n: NodeReader):
    params = [n.attr(f"activation_{k}", "float") for k in ("alpha", "beta", "gamma")]
    name = n.attr("activation", "string", "")
    given = [p for p in params if p is not None]
    if params[: len(given)] != given:
        raise Finding("activation_beta without activation_alpha")
    out = _as(ctx, n, "Gemm", [n.input(0), n.input(1), n.input(2, optional=True)])
    return [_activated(ctx, out, name, given) if name else out]


@op("FastGelu", domain=MICROSOFT)
def _fast_gelu(ctx, n: NodeReader):
    return [ctx.unary("gelu_tanh", _sum(ctx, n, _float(ctx, n.input(0), n.node.op), n.input(1, optional=True)))]


@op("QuickGelu", attrs="alpha", domain=MICROSOFT)
def _quick_gelu(ctx, n: NodeReader):
    """x * sigmoid(alpha * x)."""
    x = ctx.live(_float(ctx, n.input(0), n.node.op))
    alpha = n.attr("alpha", "float", 1.702)
    return [ctx.one("binary", x, ctx.unary("sigmoid", ctx.unary("affine", x, alpha, 0.0)), fn="mul")]


def _rms(ctx, n: NodeReader, x, gamma, epsilon: float, axis: int):
    """x / sqrt(mean(x * x) + epsilon) * gamma over the axes from `axis` on."""
    axes = tuple(range(axis, len(x.dims)))
    mean = ctx.one("reduce", ctx.one("binary", x, x, fn="mul"), fn="mean", axes=axes, keepdims=True)
    size = ctx.unary("sqrt", ctx.unary("affine", mean, 1.0, epsilon))
    return ctx.one("binary", *ctx.broadcast([ctx.one("binary", x, size, fn="div"), gamma], n.node.op), fn="mul")


@op("SimplifiedLayerNormalization", attrs="axis epsilon stash_type")
def _simplified(ctx, n: NodeReader):
    x = ctx.live(_float(ctx, n.input(0), n.node.op))
    if len(n.needed) > 1 and n.needed[1]:
        raise Finding("its output inv_std_var")
    n.only("stash_type", "int", 1, (1,))
    axis = n.attr("axis", "int", -1) % len(x.dims)
    return [_rms(ctx, n, x, n.input(1), n.attr("epsilon", "float", 1e-5), axis)]


@op("SkipSimplifiedLayerNormalization", attrs="epsilon", domain=MICROSOFT)
def _skip_simplified(ctx, n: NodeReader):
    """Inputs: x, skip, gamma, bias. Output 3 is the sum."""
    if any(k < len(n.needed) and n.needed[k] for k in (1, 2)):
        raise Finding("its outputs mean and inv_std_var")
    gamma, bias = n.input(2), n.input(3, optional=True)
    total = _sum(ctx, n, _float(ctx, n.input(0), n.node.op), _float(ctx, n.input(1), n.node.op), bias)
    out = _rms(ctx, n, total, gamma, n.attr("epsilon", "float", 1e-5), len(total.dims) - 1)
    return [out, None, None, total]


@op("EmbedLayerNormalization", attrs="epsilon mask_index_type", domain=MICROSOFT)
def _embed(ctx, n: NodeReader):
    """LayerNormalization of the sum of word, position and segment embeddings. Outputs: it, a mask index, the sum."""
    ids, segments = ctx.live(n.input(0)), n.input(1, optional=True)
    if n.input(7, optional=True) is not None or (len(n.needed) > 1 and n.needed[1]):
        raise Finding("its mask")
    n.attr("mask_index_type", "int", 0)
    tables = [n.input(2), n.input(3), n.input(4, optional=True)]
    places = n.input(8, optional=True)
    if len(ids.dims) != 2 or any(t is not None and len(t.dims) != 2 for t in tables):
        raise ModelFormatError("EmbedLayerNormalization of ids that are not [batch, steps]")
    places = ctx.positions(ids.dims[1]) if places is None else places
    parts = [ctx.one("gather", t, _index(ctx, i), axis=0) for t, i in ((tables[0], ids), (tables[1], places))]
    if segments is not None:
        if tables[2] is None:
            raise ModelFormatError("EmbedLayerNormalization with segments, but without their embedding")
        parts.append(ctx.one("gather", tables[2], _index(ctx, segments), axis=0))
    total = _sum(ctx, n, *parts)
    attrs = {"axis": 2, "epsilon": n.attr("epsilon", "float", 1e-12)}
    return [ctx.emit("layer_norm", [total, n.input(5), n.input(6)], attrs)[0], None, total]


def _index(ctx, value) -> Live:
    live = ctx.live(value)
    return live if live.dtype == "int64" else ctx.one("cast", live, to="int64")


@op(
    "NhwcMaxPool",
    attrs="auto_pad ceil_mode dilations kernel_shape pads storage_order strides",
    domain=MICROSOFT,
)
def _nhwc_pool(ctx, n: NodeReader):
    """MaxPool of 8-bit integers, channels last."""
    x = n.input(0)
    if not isinstance(x, Quantized):
        raise Finding("of integers that no QuantizeLinear made")
    rank = len(x.dims)
    moved = ctx.transpose(x.value, (0, rank - 1, *range(1, rank - 1)))
    out = ctx.live(_as(ctx, n, "MaxPool", [moved]))
    return [Quantized(ctx.transpose(out, (0, *range(2, rank), 1)), x.dtype, x.rounded)]
