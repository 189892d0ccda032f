"""Layers that work on features, and those that make or carry masks: Dense, Embedding, Masking, norms,
TimeDistributed."""

from __future__ import annotations

import numpy as np

from ...graph import Value
from ...graph import dims as D
from ..shared.ledger import Finding
from .activations import activate
from .calls import LayerCall, MaskedTensor, layer
from .quantised import weights_of


@layer("Dense")
def _dense(c: LayerCall) -> Value:
    x, units = c.x, c.size("units", "output_dim")
    features = c.fixed(x.dims[-1], "the features of a step must be a fixed number")
    inputs = [x, c.held(weights_of(c, "kernel", (features, units), lambda shape: shape[1:], lambda s: s[None]), "W")]
    if c.get("use_bias", c.get("bias", True)):
        inputs.append(c.held(c.take("bias", (units,)), "bias"))
    y = c.add("linear", *inputs, activation=None, alpha=0.0, beta=0.0)
    return activate(c, y, c.get("activation"))


@layer("Embedding", masks="own")
def _embedding(c: LayerCall) -> MaskedTensor:
    x, rows, size = c.x, c.size("input_dim"), c.size("output_dim")
    c.get("batch_input_shape")
    weights = weights_of(c, "embeddings", (rows, size), lambda shape: shape[:1], lambda s: s[:, None])
    table = c.held(weights, "embeddings")
    mask = None
    if c.flag("mask_zero"):
        zero = c.w.constant(np.int64(0), "zero") if x.dtype == "int64" else c.number(0.0)
        mask = c.unary("not", c.binary("equal", x, zero))
    indices = x if x.dtype == "int64" else c.add("cast", x, to="int64")
    return MaskedTensor(c.add("gather", table, indices, axis=0), mask)


@layer("Masking", masks="own")
def _masking(c: LayerCall) -> MaskedTensor:
    """A step counts unless all its features equal mask_value. Steps that don't count become zeros."""
    x, value = c.x, c.get("mask_value", 0.0)
    if isinstance(value, dict):
        value = value.get("value", value.get("config"))
    if type(value) not in (int, float):
        raise Finding(f"mask_value={value!r:.40}")
    if len(x.dims) < 2:
        raise Finding("on a value with one axis")
    # The number of features equal to the value, as a float: all of them if a step is masked.
    same = c.add("cast", c.binary("equal", x, c.number(np.float32(value))), to="float32")
    all_same = c.reduce("min", same, (len(x.dims) - 1,))
    mask = c.binary("equal", all_same, c.number(0.0))
    c.work.masked.append(c.label)
    return MaskedTensor(c.where(c.like(mask, len(x.dims)), x, c.number(0.0)), mask)


# ---- norms -----------------------------------------------------------------------------------------------------------


def _axes(c: LayerCall, value, rank: int) -> list[int]:
    """Axes of a value, sorted; the batch is not allowed."""
    axes = value if isinstance(value, list | tuple) else [value]
    if any(type(a) is not int or not -rank <= a < rank or a % rank == 0 for a in axes) or not axes:
        raise Finding(f"axis={value!r:.40}")
    return sorted(a % rank for a in axes)


@layer("BatchNormalization")
def _batch_norm(c: LayerCall) -> Value:
    """gamma*(x - mean)/sqrt(variance + epsilon) + beta, folded to one product and one sum."""
    x = c.x
    if c.get("mode", 0) != 0:
        raise Finding(f"mode={c.get('mode')!r}")
    (axis,) = _axes(c, c.get("axis", -1), len(x.dims))
    size = c.fixed(x.dims[axis], "it has a mean for each place of that axis")
    mean, variance = (c.take(n, (size,)).astype(np.float64) for n in ("moving_mean", "moving_variance"))
    scale = 1 / np.sqrt(variance + _epsilon(c, 1e-3))
    if c.flag("scale", True):
        scale = scale * c.take("gamma", (size,))
    shift = -mean * scale
    if c.flag("center", True):
        shift = shift + c.take("beta", (size,))
    dims = (size,) + (1,) * (len(x.dims) - 1 - axis)
    scaled = c.binary("mul", x, c.held(scale.reshape(dims), "scale"))
    return c.binary("add", scaled, c.held(shift.reshape(dims), "shift"))


def _epsilon(c: LayerCall, default: float) -> float:
    value = c.get("epsilon", default)
    if type(value) not in (int, float) or not value >= 0:
        raise Finding(f"epsilon={value!r:.40}")
    return float(value)


@layer("LayerNormalization")
def _layer_norm(c: LayerCall) -> Value:
    x = c.x
    rank = len(x.dims)
    axes, epsilon = _axes(c, c.get("axis", -1), rank), _epsilon(c, 1e-3)
    dims = tuple(c.fixed(x.dims[a], "it normalises over that axis") for a in axes)
    gamma = c.take("gamma", dims) if c.flag("scale", True) else None
    beta = c.take("beta", dims) if c.flag("center", True) else None
    if axes == list(range(axes[0], rank)):
        parts = [None if a is None else c.held(a, n) for a, n in ((gamma, "gamma"), (beta, "beta"))]
        return c.add("layer_norm", x, *parts, axis=axes[0], epsilon=epsilon)
    centred = c.binary("sub", x, c.reduce("mean", x, axes, keepdims=True))
    variance = c.reduce("mean", c.binary("mul", centred, centred), axes, keepdims=True)
    y = c.binary("div", centred, c.unary("sqrt", c.unary("affine", variance, 1.0, epsilon)))
    wide = [x.dims[a] if a in axes else 1 for a in range(axes[0], rank)]
    y = y if gamma is None else c.binary("mul", y, c.held(gamma.reshape(wide), "gamma"))
    return y if beta is None else c.binary("add", y, c.held(beta.reshape(wide), "beta"))


@layer("GroupNormalization")
def _group_norm(c: LayerCall) -> Value:
    """Features in groups, each normalised over all other axes except the batch (including steps)."""
    x, groups = c.x, c.get("groups", 32)
    rank = len(x.dims)
    (axis,) = _axes(c, c.get("axis", -1), rank)
    size = c.fixed(x.dims[axis], "its groups are of a fixed number of features")
    groups = size if groups == -1 else groups
    if axis != rank - 1 or type(groups) is not int or groups < 1 or size % groups:
        raise Finding(f"axis={axis}, groups={groups!r:.40} over {size} features")
    for dim in x.dims[1:]:
        c.fixed(dim, "it normalises over all steps at once")
    apart = c.reshape(x, (*x.dims[:-1], groups, size // groups))
    moved = c.w.transpose(apart, 0, rank - 1, *range(1, rank - 1), rank)
    y = c.add("layer_norm", moved, None, None, axis=2, epsilon=_epsilon(c, 1e-3))
    y = c.reshape(c.w.transpose(y, 0, *range(2, rank), 1, rank), x.dims)
    if c.flag("scale", True):
        y = c.binary("mul", y, c.held(c.take("gamma", (size,)), "gamma"))
    return c.binary("add", y, c.held(c.take("beta", (size,)), "beta")) if c.flag("center", True) else y


@layer("RMSNormalization", masks="drop")
def _rms_norm(c: LayerCall) -> Value:
    x = c.x
    axes = _axes(c, c.get("axis", -1), len(x.dims))
    dims = tuple(c.fixed(x.dims[a], "it normalises over that axis") for a in axes)
    square = c.reduce("mean", c.binary("mul", x, x), axes, keepdims=True)
    root = c.unary("sqrt", c.unary("affine", square, 1.0, _epsilon(c, 1e-6)))
    wide = [x.dims[a] if a in axes else 1 for a in range(axes[0], len(x.dims))]
    return c.binary("mul", c.binary("div", x, root), c.held(c.take("scale", dims).reshape(wide), "scale"))


@layer("UnitNormalization")
def _unit_norm(c: LayerCall) -> Value:
    """x / its length. Keras 2 bounds the squared length by 1e-12 from below, Keras 3 the length."""
    x = c.x
    axes = _axes(c, c.get("axis", -1), len(x.dims))
    for a in axes:
        c.fixed(x.dims[a], "it normalises over that axis")
    return unit_length(c, x, axes, 1e-12 if c.version.major < 3 else 1e-24)


def unit_length(c: LayerCall, x: Value, axes: list[int], least: float) -> Value:
    """x scaled to length 1 along axes; its squared length counts as at least `least`."""
    square = c.reduce("sum", c.binary("mul", x, x), axes, keepdims=True)
    return c.binary("div", x, c.unary("sqrt", c.binary("max", square, c.number(least))))


@layer("Normalization", masks="keep from 3")
def _normalization(c: LayerCall) -> Value:
    """(x - mean)/sqrt(variance), the variance at least 1e-7 squared; the inverse with invert."""
    x, axis = c.x, c.get("axis", -1)
    mean, variance = c.get("mean"), c.get("variance")
    axes = _axes(c, axis, len(x.dims)) if axis not in (None, []) else []  # Keras 3 writes None as []
    dims = tuple(c.fixed(x.dims[a], "it has a mean for each place of that axis") for a in axes)
    if mean is None:
        mean, variance = c.take("mean", dims), c.take("variance", dims)
    mean, variance = np.asarray(mean, np.float64), np.asarray(variance, np.float64)
    wide = [x.dims[a] if a in axes else 1 for a in range(axes[0], len(x.dims))] if axes else []
    if axes:
        mean, variance = (
            np.broadcast_to(a.reshape(-1) if a.size > 1 else a.reshape(()), (int(np.prod(dims)),))
            for a in (mean, variance)
        )
        mean, variance = mean.reshape(wide), variance.reshape(wide)
    else:
        mean, variance = mean.reshape(()), variance.reshape(())
    deviation = np.maximum(np.sqrt(variance), 1e-7)
    if c.flag("invert"):
        return c.binary("add", c.held(mean, "mean"), c.binary("mul", x, c.held(deviation, "deviation")))
    return c.binary("div", c.binary("sub", x, c.held(mean, "mean")), c.held(deviation, "deviation"))


@layer("Rescaling", masks="keep from 3")
def _rescaling(c: LayerCall) -> Value:
    scale, offset = np.asarray(c.get("scale", 1.0), np.float64), np.asarray(c.get("offset", 0.0), np.float64)
    y = c.binary("mul", c.x, c.held(scale, "scale"))
    return c.binary("add", y, c.held(offset, "offset"))


# ---- a layer at each step --------------------------------------------------------------------------------------------

_READS_MASKS = ("SimpleRNN", "LSTM", "GRU", "RNN", "Bidirectional", "GlobalAveragePooling1D", "Softmax", "Attention")


@layer("TimeDistributed", masks="own")
def _time_distributed(c: LayerCall) -> list[MaskedTensor]:
    """Apply the inner layer to each step: steps are rows of its batch."""
    from .walk import UNKNOWN, apply

    x, inner, mask = c.x, c.layer.parts["layer"], c.mask
    if len(x.dims) < 3:
        raise Finding(f"over {len(x.dims)} axes; expected steps with at least one axis")
    if mask is not None and any(item.kind in _READS_MASKS for item in inner.walk()):
        raise Finding(f"a mask for a {inner.kind}, which would read it step by step")
    rows = D.product(x.dims[:2])
    made = apply(inner, c.work, [MaskedTensor(c.reshape(x, (rows, *x.dims[2:])))], {})
    if made[0] is UNKNOWN:
        return made
    outputs = []
    for y in made:
        if y.dims[0] != rows:
            raise Finding(f"around a {inner.kind}, which gives other rows")
        own = None if c.version.major >= 3 or y.mask is None else c.reshape(y.mask, (*x.dims[:2], *y.mask.dims[1:]))
        outputs.append(MaskedTensor(c.reshape(y.value, (*x.dims[:2], *y.dims[1:])), mask if own is None else own))
    return outputs
