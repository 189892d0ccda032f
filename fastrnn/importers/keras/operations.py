"""Single operations between layers: keras.ops of Keras 3 (also used for its masks) and the TensorFlow functions that
Keras 2 wraps. Arithmetic, comparisons and simple shaping are supported; others are refused by name."""

from __future__ import annotations

import numpy as np

from ...graph import Value
from ...graph.dims import Dim
from ..shared.ledger import Finding
from .calls import LayerCall, MaskedTensor, layer

_BINARY = {
    "Add": "add", "Subtract": "sub", "Multiply": "mul", "Divide": "div", "TrueDivide": "div", "Power": "pow",
    "Maximum": "max", "Minimum": "min", "Equal": "equal", "Greater": "greater", "GreaterEqual": "greater_equal",
    "Less": "less", "LessEqual": "less_equal", "LogicalAnd": "and", "LogicalOr": "or", "LogicalXor": "xor",
}  # fmt: skip
_UNARY = {
    "Negative": "neg", "Absolute": "abs", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Sign": "sign",
    "Floor": "floor", "Ceil": "ceil", "Sin": "sin", "Cos": "cos", "Tanh": "tanh", "Sigmoid": "sigmoid",
    "Relu": "relu", "Softplus": "softplus", "Softsign": "softsign", "Silu": "silu", "LogicalNot": "not",
    "Reciprocal": "recip", "Tan": "tan", "Arcsin": "asin", "Arccos": "acos", "Arctan": "atan", "Sinh": "sinh",
    "Cosh": "cosh", "Arcsinh": "asinh", "Arccosh": "acosh", "Arctanh": "atanh",
}  # fmt: skip
_REDUCE = {"Sum": "sum", "Mean": "mean", "Max": "max", "Min": "min", "Amax": "max", "Amin": "min"}
_LOGIC = ("and", "or", "xor")
# Names of TensorFlow's functions in Keras 2 -> those above.
_TENSORFLOW = {
    "__operators__.add": "Add", "math.add": "Add", "math.subtract": "Subtract", "math.multiply": "Multiply",
    "math.divide": "Divide", "math.truediv": "Divide", "math.maximum": "Maximum", "math.minimum": "Minimum",
    "math.pow": "Power", "math.negative": "Negative", "math.abs": "Absolute", "math.exp": "Exp", "math.log": "Log",
    "math.sqrt": "Sqrt", "math.sign": "Sign", "math.sin": "Sin", "math.cos": "Cos", "math.tanh": "Tanh",
    "math.sigmoid": "Sigmoid", "nn.relu": "Relu", "nn.silu": "Silu", "expand_dims": "ExpandDims", "squeeze": "Squeeze",
    "math.reduce_sum": "Sum", "math.reduce_mean": "Mean", "math.reduce_max": "Max", "math.reduce_min": "Min",
    "concat": "Concatenate", "math.greater": "Greater", "math.less": "Less", "cast": "Cast",
}  # fmt: skip


def _arguments(c: LayerCall, *names: str) -> list:
    """The arguments by position, then by any of the names they had in some version."""
    given = list(c.args)
    for name in names:
        if name in c.kwargs:
            given.append(c.kwargs.pop(name))
    c.kwargs.pop("name", None)
    return given


def _value(c: LayerCall, item, like: Value | None = None) -> Value:
    """An argument as a value: a tensor, or a number."""
    if isinstance(item, MaskedTensor):
        return item.value
    if type(item) is bool:
        return c.w.constant(item, "constant")
    if type(item) in (int, float):
        whole = like is not None and like.dtype == "int64" and type(item) is int
        return c.w.constant(np.int64(item) if whole else np.float32(item), "constant")
    raise Finding(f"called with {item!r:.60}")


def _same_type(c: LayerCall, a: Value, b: Value, logic: bool) -> tuple[Value, Value]:
    """Both as bools (for logic), else both as floats if their types differ."""
    want = "bool" if logic else "float32" if a.dtype != b.dtype else a.dtype
    return tuple(v if v.dtype == want else c.add("cast", v, to=want) for v in (a, b))  # type: ignore[return-value]


def _binary(c: LayerCall, fn: str, a, b) -> Value:
    like = next((x.value for x in (a, b) if isinstance(x, MaskedTensor)), None)
    left, right = _same_type(c, _value(c, a, like), _value(c, b, like), fn in _LOGIC)
    return c.binary(fn, left, right)


@layer(*(f"ops.{name}" for name in _BINARY), "ops.NotEqual", masks="drop")
def _binary_operation(c: LayerCall) -> Value:
    name = c.layer.kind.removeprefix("ops.")
    given = _arguments(c, "x1", "x2", "x", "y")
    if len(given) != 2:
        raise Finding(f"called with {len(given)} arguments")
    if name == "NotEqual":
        return c.unary("not", _binary(c, "equal", *given))
    return _binary(c, _BINARY[name], *given)


@layer(*(f"ops.{name}" for name in _UNARY), masks="drop")
def _unary_operation(c: LayerCall) -> Value:
    (given,) = _arguments(c, "x")
    fn = _UNARY[c.layer.kind.removeprefix("ops.")]
    x = _value(c, given)
    return c.unary(fn, c.add("cast", x, to="bool") if fn == "not" and x.dtype != "bool" else x)


@layer("ops.Square", masks="drop")
def _square(c: LayerCall) -> Value:
    (x,) = _arguments(c, "x")
    return c.binary("mul", _value(c, x), _value(c, x))


@layer("ops.Softmax", "ops.LogSoftmax", masks="drop")
def _softmax(c: LayerCall) -> Value:
    axes = _axis(c, len(c.x.dims), c.get("axis", -1))
    if len(axes) != 1 or axes == [0]:
        raise Finding(f"axis={c.get('axis')!r:.40}")
    return c.add("softmax", c.x, axis=axes[0], log=c.layer.kind == "ops.LogSoftmax")


def _axis(c: LayerCall, rank: int, value) -> list[int]:
    axes = list(range(rank)) if value is None else value if isinstance(value, list | tuple) else [value]
    if any(type(a) is not int or not -rank <= a < rank for a in axes):
        raise Finding(f"axis={value!r:.40} of {rank} axes")
    return [a % rank for a in axes]


def _setting(c: LayerCall, name: str, default=None):
    """A setting of Keras 3, or an argument of a TensorFlow function."""
    return c.kwargs.pop(name) if name in c.kwargs else c.get(name, default)


@layer(*(f"ops.{name}" for name in _REDUCE), "ops.Any", "ops.All", masks="drop")
def _reduction(c: LayerCall) -> Value:
    name = c.layer.kind.removeprefix("ops.")
    x = _value(c, _arguments(c, "x", "input_tensor")[0])
    axes, keepdims = _axis(c, len(x.dims), _setting(c, "axis")), bool(_setting(c, "keepdims", False))
    if 0 in axes:
        raise Finding("over the rows of the batch")
    if name not in ("Any", "All"):
        if _setting(c, "initial") is not None or _setting(c, "where") is not None:
            raise Finding("with initial= or where=")
        return c.reduce(_REDUCE[name], x, axes, keepdims)
    flags = c.add("cast", x if x.dtype == "bool" else c.add("cast", x, to="bool"), to="float32")
    found = c.reduce("max" if name == "Any" else "min", flags, axes, keepdims)
    return c.binary("greater", found, c.number(0.0))


@layer("ops.ExpandDims", masks="drop")
def _expand_dims(c: LayerCall) -> Value:
    x, axis = _value(c, _arguments(c, "x", "input")[0]), _setting(c, "axis")
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if type(axis) is not int or not -len(x.dims) - 1 <= axis <= len(x.dims):
        raise Finding(f"axis={axis!r:.40}")
    axis %= len(x.dims) + 1
    return c.reshape(x, (*x.dims[:axis], 1, *x.dims[axis:]))


@layer("ops.Squeeze", masks="drop")
def _squeeze(c: LayerCall) -> Value:
    x = _value(c, _arguments(c, "x", "input")[0])
    axes = _axis(c, len(x.dims), _setting(c, "axis"))
    if any(isinstance(x.dims[a], Dim) or x.dims[a] != 1 for a in axes):
        raise Finding(f"axis={axes} of [{', '.join(map(str, x.dims))}]")
    return c.reshape(x, [d for a, d in enumerate(x.dims) if a not in axes])


@layer("ops.Cast", masks="drop")
def _cast(c: LayerCall) -> Value:
    x, to = _value(c, _arguments(c, "x")[0]), str(_setting(c, "dtype", "float32"))
    kind = {"float": "float32", "int": "int64", "bool": "bool"}.get(to.rstrip("0123456789"))
    if kind is None:
        raise Finding(f"dtype={to!r:.40}")
    return x if x.dtype == kind else c.add("cast", x, to=kind)


@layer("ops.ZerosLike", "ops.OnesLike", masks="drop")
def _filled(c: LayerCall) -> Value:
    x, dtype = c.x, c.get("dtype") or c.kwargs.pop("dtype", None)
    number = c.layer.kind == "ops.OnesLike"
    kind = str(dtype).rstrip("0123456789") if dtype is not None else x.dtype.rstrip("0123456789")
    array = {"bool": np.bool_(number), "int": np.int64(number)}.get(kind, np.float32(number))
    one = c.reshape(c.w.constant(array, "fill"), (1,) * len(x.dims))
    return c.add("expand", one, dims=x.dims)


@layer("ops.Where", masks="drop")
def _where(c: LayerCall) -> Value:
    given = _arguments(c, "condition", "x1", "x2")
    if len(given) != 3:
        raise Finding(f"called with {len(given)} arguments")
    like = next((x.value for x in given[1:] if isinstance(x, MaskedTensor)), None)
    a, b = _same_type(c, _value(c, given[1], like), _value(c, given[2], like), False)
    return c.where(_value(c, given[0]), a, b)


@layer("ops.Concatenate", masks="drop")
def _concatenate(c: LayerCall) -> Value:
    given = _arguments(c, "xs", "values")[0]
    values = [_value(c, x) for x in given]
    (axis,) = _axis(c, len(values[0].dims), _setting(c, "axis", 0))
    return c.add("concat", *values, axis=axis)


@layer("ops.Transpose", masks="drop")
def _transpose(c: LayerCall) -> Value:
    x, axes = c.x, c.get("axes")
    if not isinstance(axes, list) or sorted(axes) != list(range(len(x.dims))):
        raise Finding(f"axes={axes!r:.40}")
    return c.w.transpose(x, *axes)


@layer("TFOpLambda", masks="drop")
def _tensorflow(c: LayerCall) -> Value:
    """A TensorFlow function by name, as the equivalent operation of Keras 3."""
    from .calls import LAYERS

    name = c.get("function")
    kind = _TENSORFLOW.get(name) if isinstance(name, str) else None
    if kind is None:
        raise Finding(f"the function {name!r:.60} of TensorFlow")
    inner = LayerCall(c.work, c.layer, c.args, c.kwargs)
    inner.layer.kind = f"ops.{kind}"
    try:
        made = LAYERS[f"ops.{kind}"].function(inner)
    finally:
        inner.layer.kind = "TFOpLambda"
    c.kwargs = inner.kwargs
    return made


@layer("ops.GetItem", masks="drop")
def _get_item(c: LayerCall) -> Value:
    """x[..] with numbers, slices of step 1 and an ellipsis. If a sequence is too short for a slice, the run fails;
    NumPy would return fewer elements."""
    given = _arguments(c, "x", "key")
    if len(given) != 2 or not isinstance(given[0], MaskedTensor):
        raise Finding(f"called with {len(given)} arguments")
    y = given[0].value
    key = list(given[1]) if isinstance(given[1], list) else [given[1]]
    if sum(map(_is_ellipsis, key)) == 0:
        key.append({"class_name": "__ellipsis__"})
    at = next(i for i, k in enumerate(key) if _is_ellipsis(k))
    missing = len(y.dims) - (len(key) - 1)
    key[at : at + 1] = [None] * missing
    if missing < 0 or any(map(_is_ellipsis, key)):
        raise Finding(f"an index of {len(key)} entries over {len(y.dims)} axes")
    kept = []
    for axis, part in enumerate(key):
        size = y.dims[axis]
        if part is None:
            kept.append(axis)
            continue
        start, stop = _bounds(part, size)
        if axis == 0 and (start, stop) != (0, size):
            raise Finding("an index of the batch")
        if (start, stop) != (0, size):
            y = c.add("slice", y, axis=axis, start=start, stop=stop, step=1)
        if type(part) is not int:
            kept.append(axis)
    return c.reshape(y, [y.dims[axis] for axis in kept])


def _is_ellipsis(part) -> bool:
    return isinstance(part, dict) and part.get("class_name") == "__ellipsis__"


def _bounds(part, size) -> tuple:
    """(start, stop) of one index entry along an axis of `size`, an int or a dim."""
    if type(part) is int:
        start = part if part >= 0 else size + part
        return start, start + 1
    inner = part.get("config") if isinstance(part, dict) and part.get("class_name") == "__slice__" else None
    if not isinstance(inner, dict) or inner.get("step") not in (None, 1):
        raise Finding(f"[{part!r:.60}]")
    ends = [inner.get("start"), inner.get("stop")]
    if any(type(e) not in (int, type(None)) for e in ends):
        raise Finding(f"[{part!r:.60}]")
    start = 0 if ends[0] is None else ends[0] if ends[0] >= 0 else size + ends[0]
    stop = size if ends[1] is None else ends[1] if ends[1] >= 0 else size + ends[1]
    return (start, min(stop, size)) if isinstance(stop, int) and isinstance(size, int) else (start, stop)
