"""Activations by Keras's names, for whole values and for cells.

`hard_sigmoid` is max(0, min(1, 0.2x + 0.5)) in Keras 1 and 2 and relu6(x + 3)/6 in Keras 3.
"""

from __future__ import annotations

from collections.abc import Callable

from ...graph import Value
from ...graph.cells import ACTIVATIONS, Activation, activation
from ..shared.ledger import Finding
from .calls import LAYERS, LayerCall, MaskedTensor, layer
from .config import layer_of

_SELU = (1.6732632423543772, 1.0507009873554805)
# name -> (function of graph.UNARY, alpha, beta)
_PLAIN: dict[str, tuple[str, float, float]] = {
    "linear": ("affine", 1.0, 0.0), "relu": ("relu", 0.0, 0.0), "relu6": ("clip", 0.0, 6.0),
    "leaky_relu": ("leaky_relu", 0.2, 0.0), "elu": ("elu", 1.0, 0.0), "celu": ("elu", 1.0, 0.0),
    "selu": ("selu", *_SELU), "softplus": ("softplus", 0.0, 0.0), "softsign": ("softsign", 0.0, 0.0),
    "silu": ("silu", 0.0, 0.0), "swish": ("silu", 0.0, 0.0), "gelu": ("gelu", 0.0, 0.0), "tanh": ("tanh", 0.0, 0.0),
    "sigmoid": ("sigmoid", 0.0, 0.0), "exponential": ("exp", 0.0, 0.0), "hard_silu": ("hard_swish", 0.0, 0.0),
    "hard_swish": ("hard_swish", 0.0, 0.0), "mish": ("mish", 0.0, 0.0), "hard_tanh": ("clip", -1.0, 1.0),
    "sparse_sigmoid": ("hard_sigmoid", 0.5, 0.5),
}  # fmt: skip


def _soft_shrink(c: LayerCall, x: Value) -> Value:
    return c.binary("sub", x, c.unary("clip", x, -0.5, 0.5))


def _hard_shrink(c: LayerCall, x: Value) -> Value:
    small = c.binary("less_equal", c.unary("abs", x), c.number(0.5))
    return c.where(small, c.number(0.0), x)


def _squareplus(c: LayerCall, x: Value) -> Value:
    root = c.unary("sqrt", c.unary("affine", c.binary("mul", x, x), 1.0, 4.0))
    return c.unary("affine", c.binary("add", x, root), 0.5, 0.0)


def _sparse_plus(c: LayerCall, x: Value) -> Value:
    """0 below -1, x above 1, (x + 1)^2 / 4 between: the square of a clipped half-sum, and the rest of x."""
    half = c.unary("hard_sigmoid", x, 0.5, 0.5)
    over = c.unary("relu", c.unary("affine", x, 1.0, -1.0))
    return c.binary("add", c.binary("mul", half, half), over)


def _log_sigmoid(c: LayerCall, x: Value) -> Value:
    return c.unary("neg", c.unary("softplus", c.unary("neg", x)))


def _softmax(log: bool) -> Callable:
    return lambda c, x: c.add("softmax", x, axis=len(x.dims) - 1, log=log)


_COMPOSED: dict[str, Callable[[LayerCall, Value], Value]] = {
    "softmax": _softmax(False),
    "log_softmax": _softmax(True),
    "log_sigmoid": _log_sigmoid,
    "soft_shrink": _soft_shrink,
    "hard_shrink": _hard_shrink,
    "tanh_shrink": lambda c, x: c.binary("sub", x, c.unary("tanh", x)),
    "squareplus": _squareplus,
    "sparse_plus": _sparse_plus,
}


def _name(call: LayerCall, value) -> str | dict:
    """The name of a built-in activation, or the config of a layer used as one."""
    if value is None:
        return "linear"
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        kind, inner = value.get("class_name"), value.get("config")
        if kind == "function" and isinstance(inner, str):
            registered = value.get("registered_name")
            builtin = value.get("module") in (None, "builtins") and registered in (None, "function", inner)
            if (inner in _PLAIN or inner in _COMPOSED or inner == "hard_sigmoid") and builtin and registered != inner:
                return inner
            raise Finding(f"activation {inner!r:.60}, a custom function, whose code the file doesn't contain")
        if isinstance(kind, str) and isinstance(inner, dict):
            return value
    raise Finding(f"activation {value!r:.60}")


def _form(call: LayerCall, name: str) -> tuple[str, float, float] | None:
    if name == "hard_sigmoid":
        return ("hard_sigmoid", 1 / 6, 0.5) if call.version.major >= 3 else ("hard_sigmoid", 0.2, 0.5)
    return _PLAIN.get(name)


def cell_activation(call: LayerCall, value) -> Activation:
    """The activation that a cell's config names. Raises Finding if it is not elementwise."""
    name = _name(call, value)
    form = _form(call, name) if isinstance(name, str) else _layer_form(name)
    if form is None or form[0] not in ACTIVATIONS:
        raise Finding(f"activation {name if isinstance(name, str) else name.get('class_name')!r:.60} within a cell")
    return activation(form[0], form[1], form[2])


def _layer_form(config: dict) -> tuple[str, float, float] | None:
    """LeakyReLU, ELU and ReLU given as the activation of a cell."""
    kind, inner = config["class_name"], config["config"]
    names = {"LeakyReLU": ("negative_slope", "alpha"), "ELU": ("alpha",), "ReLU": ("negative_slope", "max_value")}
    given = {name: _plain(inner[name]) for name in names.get(kind, ()) if inner.get(name) is not None}
    if kind not in names or any(type(value) not in (int, float) for value in given.values()):
        return None
    if kind == "ELU":
        return "elu", float(given.get("alpha", 1.0)), 0.0
    slope = float(given.get("negative_slope", given.get("alpha", 0.3 if kind == "LeakyReLU" else 0.0)))
    if kind == "LeakyReLU" or (not inner.get("threshold") and "max_value" not in given):
        return "leaky_relu", slope, 0.0
    return None if slope or inner.get("threshold") else ("clip", 0.0, float(given["max_value"]))


def _plain(value):
    """A number. Keras 2 wrote NumPy numbers as a dict."""
    return value.get("value", value.get("config")) if isinstance(value, dict) else value


_AS_ACTIVATIONS = ("LeakyReLU", "ELU", "ReLU", "ThresholdedReLU", "Softmax", "Activation")


def activate(call: LayerCall, x: Value, value) -> Value:
    """The activation that a config names, on a whole value."""
    name = _name(call, value)
    if isinstance(name, dict):
        return _as_layer(call, x, name)
    form = _form(call, name)
    if form is not None:
        return x if form == ("affine", 1.0, 0.0) else call.unary(form[0], x, form[1], form[2])
    if name in _COMPOSED:
        return _COMPOSED[name](call, x)
    raise Finding(f"activation {name!r:.60}")


def _as_layer(call: LayerCall, x: Value, data: dict) -> Value:
    """A layer without weights used as the activation of another."""
    item = layer_of(data, call.label)
    if item.problem is not None or item.kind not in _AS_ACTIVATIONS:
        raise Finding(f"activation {item.kind!r:.60}")
    inner = LayerCall(call.work, item, [MaskedTensor(x)], {})
    made = LAYERS[item.kind].function(inner)
    inner.finish()
    return made


# ---- layers ----------------------------------------------------------------------------------------------------------


@layer("Activation")
def _activation(c: LayerCall) -> Value:
    return activate(c, c.x, c.get("activation"))


def _number(c: LayerCall, name: str, default: float) -> float:
    value = _plain(c.get(name, default))
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if type(value) not in (int, float):
        raise Finding(f"{name}={value!r:.60}")
    return float(value)


@layer("LeakyReLU")
def _leaky_relu(c: LayerCall) -> Value:
    name = "negative_slope" if "negative_slope" in c.layer.config else "alpha"
    return c.unary("leaky_relu", c.x, _number(c, name, 0.3))


@layer("ELU")
def _elu(c: LayerCall) -> Value:
    return c.unary("elu", c.x, _number(c, "alpha", 1.0))


@layer("ThresholdedReLU")
def _thresholded_relu(c: LayerCall) -> Value:
    """x where x > theta, else 0. At theta itself Keras gives 0, but the graph's own function gives x."""
    theta = c.number(_number(c, "theta", 1.0))
    return c.where(c.binary("greater", c.x, theta), c.x, c.number(0.0))


@layer("ReLU")
def _relu(c: LayerCall) -> Value:
    """slope*(x - threshold) below the threshold, x above it up to max_value."""
    x, most = c.x, c.get("max_value")
    slope, threshold = _number(c, "negative_slope", 0.0), _number(c, "threshold", 0.0)
    if threshold == 0.0:
        y = c.unary("leaky_relu", x, slope) if slope else c.unary("relu", x)
    else:
        below = c.unary("affine", x, slope, -slope * threshold)
        y = c.where(c.binary("less", x, c.number(threshold)), below, x)
    if most is None:
        return y
    return c.binary("min", y, c.number(_number(c, "max_value", 0.0)))


@layer("PReLU")
def _prelu(c: LayerCall) -> Value:
    x, shared = c.x, c.get("shared_axes") or []
    dims = []
    for axis, dim in enumerate(x.dims[1:], start=1):
        dims.append(1 if axis in shared else c.fixed(dim, "its slopes have an entry a step"))
    return c.binary("prelu", x, c.held(c.take("alpha", tuple(dims)), "alpha"))


@layer("Softmax")
def _softmax_layer(c: LayerCall) -> Value:
    """Softmax over one axis. Masked elements are left out; Keras 2 subtracts 1e9 instead, which is equivalent."""
    x, axis, mask = c.x, c.get("axis", -1), c.mask
    axes = axis if isinstance(axis, list | tuple) else [axis]
    if len(axes) != 1 or type(axes[0]) is not int or not -len(x.dims) <= axes[0] < len(x.dims):
        raise Finding(f"axis={axis!r:.40}")
    at = axes[0] % len(x.dims)
    if mask is None:
        return c.add("softmax", x, axis=at, log=False)
    if len(mask.dims) != len(x.dims):
        raise Finding(f"a mask [{', '.join(map(str, mask.dims))}] over [{', '.join(map(str, x.dims))}]")
    y = c.add("softmax", c.where(mask, x, c.number(-1e9)), axis=at, log=False)
    return c.where(mask, y, c.number(0.0)) if c.version.major >= 3 else y


@layer(
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "AlphaDropout",
    "ActivityRegularization",
)  # fmt: skip
@layer("Identity", masks="keep from 3")
def _nothing(c: LayerCall) -> Value:
    """Layers that only act in training."""
    for name in ("l1", "l2", "data_format", "alpha", "rank", "p", "sigma"):
        c.get(name)
    return c.x
