"""Elementwise operators."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from ....errors import ModelFormatError
from ....graph import INTEGERS
from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading.reader import NodeReader, axis_of
from ..reading.registry import op
from ..reading.values import Const, Fill, Ints, Live, simplest, uniform
from ..sizes.arithmetic import assumed_one, hold, largest_size, on_sizes, smallest_size
from .casts import as_dtype
from .integers import of_one_type

_FLOAT_MAX = float(np.finfo(np.float32).max)

# ONNX operator -> fn of the graph's unary, for those without attributes.
_PLAIN = {
    "Neg": "neg",
    "Abs": "abs",
    "Exp": "exp",
    "Log": "log",
    "Sqrt": "sqrt",
    "Reciprocal": "recip",
    "Sign": "sign",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "round",
    "Erf": "erf",
    "Sin": "sin",
    "Cos": "cos",
    "Tan": "tan",
    "Asin": "asin",
    "Acos": "acos",
    "Atan": "atan",
    "Sinh": "sinh",
    "Cosh": "cosh",
    "Asinh": "asinh",
    "Acosh": "acosh",
    "Atanh": "atanh",
    "Not": "not",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Relu": "relu",
    "Softsign": "softsign",
    "Softplus": "softplus",
    "HardSwish": "hard_swish",
    "Mish": "mish",
}
# ONNX operator -> fn, attributes that give alpha and beta, with their defaults.
_SHAPED = {
    "LeakyRelu": ("leaky_relu", ("alpha", 0.01), None),
    "Elu": ("elu", ("alpha", 1.0), None),
    "ThresholdedRelu": ("thresholded_relu", ("alpha", 1.0), None),
    "HardSigmoid": ("hard_sigmoid", ("alpha", 0.2), ("beta", 0.5)),
    # The defaults are the float32 numbers in the ONNX specification.
    "Selu": ("selu", ("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875)),
}
_BINARY = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Div": "div",
    "Pow": "pow",
    "Equal": "equal",
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
    "Less": "less",
    "LessOrEqual": "less_equal",
    "And": "and",
    "Or": "or",
    "Xor": "xor",
}


def _fill_map(x, array_fn):
    """Apply an elementwise NumPy function to a Fill; None if x is not a fill of a number."""
    if isinstance(x, Fill) and not isinstance(x.value, Dim):
        out = array_fn(np.array(x.value, dtype=x.dtype))
        return Fill(out.dtype.type(out), out.dtype, x.dims)
    return None


@op(*_PLAIN)
def _plain(ctx, n: NodeReader):
    x, name = n.input(0), n.node.op
    if isinstance(x, Ints):
        if name == "Neg":
            return [simplest(-x.array)]
    scaled = _rounded_size(ctx, x, name)
    if scaled is not None:
        return [scaled]
    if name == "Neg":
        negated = _fill_map(x, lambda a: -a)
        if negated is not None:
            return [negated]
    if name == "Relu" and ctx.kind(x) in INTEGERS:
        return [ctx.one("binary", x, Const(np.zeros((), ctx.kind(x))), fn="max")]
    return [ctx.unary(_PLAIN[name], x)]


def _rounded_size(ctx, x, name: str):
    """Floor or Ceil of a float value that is a size times a number; the result is a size (a length times a scale)."""
    if name not in ("Floor", "Ceil") or not isinstance(x, Live) or x.name not in ctx.sizes:
        return None
    dim, factor = ctx.sizes[x.name]
    up = factor.denominator - 1 if name == "Ceil" else 0
    whole = D.floordiv(dim * factor.numerator + up, factor.denominator)
    if not isinstance(whole, Dim):
        return None
    out = ctx.number_of(whole, x.dtype)
    return ctx.reshape(out, x.dims)


@op("IsNaN")
def _is_nan(ctx, n: NodeReader):
    x = n.input(0)  # only NaN differs from itself
    return [ctx.unary("not", ctx.one("binary", x, x, fn="equal"))]


@op("IsInf", attrs="detect_negative detect_positive")
def _is_inf(ctx, n: NodeReader):
    x, signs = n.input(0), [n.attr(f"detect_{sign}", "int", 1) for sign in ("positive", "negative")]
    if not any(signs):
        return [ctx.one("binary", x, x, fn="less")]  # False for every number
    bounds = [v for v, wanted in zip((np.inf, -np.inf), signs, strict=True) if wanted]
    found = [ctx.one("binary", x, Const(np.array(v, np.float32)), fn="equal") for v in bounds]
    return [found[0] if len(found) == 1 else ctx.one("binary", *found, fn="or")]


@op(*_SHAPED, attrs="alpha beta gamma")
def _shaped(ctx, n: NodeReader):
    fn, alpha, beta = _SHAPED[n.node.op]
    a = n.attr(alpha[0], "float", alpha[1])
    b = n.attr(beta[0], "float", beta[1]) if beta else 0.0
    if fn == "thresholded_relu":
        # The operator keeps x > alpha, the activation of cells x >= alpha. Using the next float32 makes them equal.
        a = float(np.nextafter(np.float32(a), np.float32(np.inf)))
    return [ctx.unary(fn, n.input(0), a, b)]


@op("Celu", attrs="alpha")
def _celu(ctx, n: NodeReader):
    """alpha * elu(x / alpha)"""
    alpha = n.attr("alpha", "float", 1.0)
    if alpha == 0:
        raise ModelFormatError("alpha=0")
    x = n.input(0)
    if alpha == 1:
        return [ctx.unary("elu", x, 1.0)]
    scale = Const(np.float32(alpha))
    return [ctx.one("binary", ctx.unary("elu", ctx.one("binary", x, scale, fn="div"), 1.0), scale, fn="mul")]


@op("Shrink", attrs="bias lambd")
def _shrink(ctx, n: NodeReader):
    x, bias, limit = ctx.live(n.input(0)), n.attr("bias", "float", 0.0), n.attr("lambd", "float", 0.5)
    if x.dtype != "float32":
        raise Finding(f"of {x.dtype}")
    low = ctx.one("binary", x, Const(np.float32(-limit)), fn="less")
    high = ctx.one("binary", x, Const(np.float32(limit)), fn="greater")
    raised = ctx.one("binary", x, Const(np.float32(bias)), fn="add")
    lowered = ctx.one("binary", x, Const(np.float32(bias)), fn="sub")
    return [ctx.one("where", low, raised, ctx.one("where", high, lowered, Const(np.float32(0))))]


@op("Gelu", attrs="approximate")
def _gelu(ctx, n: NodeReader):
    how = n.attr("approximate", "string", "none")
    if how not in ("none", "tanh"):
        raise ModelFormatError(f"approximate={how!r}; there are none and tanh")
    return [ctx.unary("gelu" if how == "none" else "gelu_tanh", n.input(0))]


@op("Swish", attrs="alpha")
def _swish(ctx, n: NodeReader):
    x, alpha = n.input(0), n.attr("alpha", "float", 1.0)
    if alpha == 1:
        return [ctx.unary("silu", x)]
    gate = ctx.unary("sigmoid", ctx.one("binary", x, Const(np.array(alpha, np.float32)), fn="mul"))
    return [ctx.one("binary", x, gate, fn="mul")]


@op("Clip", attrs="min max")
def _clip(ctx, n: NodeReader):
    bounds = [n.input(i, optional=True) for i in (1, 2)] if n.opset >= 11 else []
    if n.opset < 11:
        low, high = n.attr("min", "float", -_FLOAT_MAX), n.attr("max", "float", _FLOAT_MAX)
    elif not all(isinstance(v, Const) or v is None for v in bounds) or ctx.kind(n.input(0)) in INTEGERS:
        return [_bounded(ctx, n, n.input(0), *bounds)]
    else:
        low = _scalar(n.const(1, "min", optional=True), "min", -np.inf)
        high = _scalar(n.const(2, "max", optional=True), "max", np.inf)
    x = ctx.live(n.input(0))
    if x.dtype != "float32":
        raise Finding(f"Clip of {x.dtype}")
    if np.isnan(low) or np.isnan(high):
        raise ModelFormatError(f"Clip to [{low}, {high}]")
    return [ctx.unary("clip", x, low, high)]


def _bounded(ctx, n: NodeReader, x, low, high):
    """Clip integers, or any value with computed bounds; either bound may be None."""
    if any(isinstance(v, Ints) for v in (x, low, high)):
        hold(ctx, n, [v for v in (x, low, high) if v is not None])
    x, *bounds = of_one_type(ctx, [x, *(v for v in (low, high) if v is not None)])
    fns = [fn for v, fn in ((low, "max"), (high, "min")) if v is not None]
    for bound, fn in zip(bounds, fns, strict=True):
        x = ctx.one("binary", *ctx.broadcast([x, bound], "Clip"), fn=fn)
    return x


def _scalar(array, name: str, default: float) -> float:
    if array is None:
        return default
    if array.size != 1:
        raise ModelFormatError(f"{name} must be one number, got {list(array.shape)}")
    return float(array.reshape(-1)[0])


@op(*_BINARY, attrs="axis broadcast")
def _binary(ctx, n: NodeReader):
    fn, a, b = _BINARY[n.node.op], n.input(0), n.input(1)
    if n.opset < 7:
        b = _along_axis(ctx, n, a, b)
    if isinstance(a, Ints) or isinstance(b, Ints):
        known = on_sizes(ctx, fn, a, b)
        known = assumed_one(ctx, fn, a, b) if known is None else known
        if known is not None:
            return [known]
        hold(ctx, n, (a, b))
    a, b = ctx.broadcast(of_one_type(ctx, [a, b]), n.node.op)
    if fn == "pow" and ctx.kind(a) != ctx.kind(b):
        b = as_dtype(ctx, b, ctx.kind(a))  # the only operator whose inputs may differ in dtype
    if fn == "div":
        a, b = _of_all_steps(ctx, a, b)
    out = ctx.one("binary", a, b, fn=fn)
    if fn in ("mul", "div"):
        _scale_size(ctx, fn, a, b, out)
    return [out]


def _along_axis(ctx, n: NodeReader, a, b):
    """The second operand of opsets 1 to 6: with `broadcast`, it lies along axes of the first from `axis` on."""
    axis, spread = n.attr("axis", "int"), n.attr("broadcast", "int", 0)
    if not spread and a.dims != b.dims:
        for d, e in zip(a.dims, b.dims, strict=True):
            ctx.equal(d, e, f"{n.node.op} without broadcast needs equal sizes")
    if axis is None or not spread:
        return b
    behind = len(a.dims) - axis_of(axis, len(a.dims)) - len(b.dims)
    if behind < 0:
        raise ModelFormatError(f"axis {axis} of {len(a.dims)} for an operand of rank {len(b.dims)}")
    return ctx.reshape(b, (*b.dims, *[1] * behind))


def _of_all_steps(ctx, a, b) -> tuple:
    """The operands of a Div. PyTorch's exporter writes var and std as a mean over N steps times N, divided by N - 1,
    with the N of its example. Here N becomes the actual number of steps."""
    less = float(b.array.reshape(-1)[0]) if isinstance(b, Const) and b.array.size == 1 else None
    if less is None or not any(s.genuine and s.example == less + 1 for s in ctx.table.roots()):
        return a, b
    factor = _maker(ctx, a, "binary", "mul")
    mean = next((m for i in (factor[2] if factor else ()) if (m := _maker(ctx, i, "reduce", "mean"))), None)
    if mean is None:
        return a, b
    out, source = ctx.values[mean[3][0]], ctx.values[mean[2][0]]
    count = D.product(source.dims[axis] for axis in mean[4]["axes"])
    times = [float(ctx.constants[i].reshape(-1)[0]) for i in factor[2] if i in ctx.constants]
    sure = isinstance(count, Dim) and ctx.table.genuine(count) and ctx.table.example(count) == less + 1
    if not sure or times != [less + 1]:
        return a, b
    for label in (factor[1], ctx.label):
        ctx.table.ledger.explain(label)
    steps = ctx.number_of(count, "float32")
    total = ctx.one("binary", Live(out.name, out.dtype, out.dims), steps, fn="mul")
    return total, ctx.one("binary", steps, Const(np.ones((), np.float32)), fn="sub")


def _maker(ctx, value, op: str, fn: str) -> tuple | None:
    """The entry of GraphDraft.nodes that made a value, if it is this op."""
    name = value.name if isinstance(value, Live) else value
    entry = next((e for e in reversed(ctx.nodes) if name in e[3]), None) if isinstance(name, str) else None
    return entry if entry is not None and entry[0] == op and entry[4].get("fn") == fn else None


def _scale_size(ctx, fn: str, a, b, out) -> None:
    """Record that `out` is a size times a number, if it is."""
    sides = [(a, b)] if fn == "div" else [(a, b), (b, a)]
    for size, number in sides:
        if isinstance(size, Live) and size.name in ctx.sizes and isinstance(number, Const) and number.array.size == 1:
            value = float(number.array.reshape(-1)[0])
            if value != 0 and np.isfinite(value):
                dim, factor = ctx.sizes[size.name]
                exact = Fraction(value).limit_denominator(1 << 20)
                ctx.sizes[out.name] = (dim, factor / exact if fn == "div" else factor * exact)


@op("PRelu")
def _prelu(ctx, n: NodeReader):
    x, slope = ctx.live(n.input(0)), n.input(1)
    if x.dtype != "float32":
        raise Finding(f"PRelu of {x.dtype}")
    x, slope = ctx.broadcast([x, slope], "PRelu")
    out = ctx.one("binary", x, slope, fn="prelu")
    if out.dims != x.dims:
        raise ModelFormatError(f"a slope with dims {list(map(str, slope.dims))} does not broadcast to the input's")
    return [out]


@op("Mod", attrs="fmod")
def _mod(ctx, n: NodeReader):
    a, b = n.input(0), n.input(1)
    fmod = n.attr("fmod", "int", 0)
    if isinstance(a, Ints) or isinstance(b, Ints):
        hold(ctx, n, (a, b))
        made = None if fmod else on_sizes(ctx, "mod", a, b)
        if made is not None:
            return [made]
    a, b = ctx.broadcast(of_one_type(ctx, [a, b]), "Mod")
    kind = ctx.kind(a)
    if kind not in ("float32", *INTEGERS):
        raise Finding(f"of {kind}")
    if not fmod or kind in INTEGERS:
        return [ctx.one("binary", a, b, fn="fmod" if fmod else "mod")]
    # The remainder with the dividend's sign, exactly: from the one with the divisor's sign, which is exact.
    below = ctx.one("binary", a, Const(np.zeros((), kind)), fn="less")
    rest = ctx.one("binary", ctx.unary("abs", a), ctx.unary("abs", b), fn="mod")
    return [ctx.one("where", below, ctx.unary("neg", rest), rest)]


@op("Min", "Max", "Sum", "Mean")
def _many(ctx, n: NodeReader):
    values = [n.input(i) for i in range(len(n.values))]
    if any(isinstance(v, Ints) for v in values):
        known = largest_size(ctx, values) if n.node.op == "Max" else None
        known = smallest_size(values) if n.node.op == "Min" else known
        if known is not None:
            return [known]
        hold(ctx, n, values)
    if not values:
        raise ModelFormatError(f"{n.node.op} without inputs")
    values = ctx.broadcast(of_one_type(ctx, values), n.node.op)
    fn, total = {"Min": "min", "Max": "max"}.get(n.node.op, "add"), values[0]
    for v in values[1:]:
        total = ctx.one("binary", total, v, fn=fn)
    if n.node.op == "Mean" and len(values) > 1:
        total = ctx.one("binary", total, Const(np.array(len(values), dtype=np.float32)), fn="div")
    return [total]


@op("Where")
def _where(ctx, n: NodeReader):
    values = [n.input(i) for i in range(3)]
    condition = values[0]
    if isinstance(condition, Const) and any(isinstance(v, Ints) for v in values[1:]):
        a, b = (v.array.astype(object) for v in values[1:])
        return [simplest(np.where(condition.array, a, b))]
    if uniform(condition) is not None and not isinstance(uniform(condition), Dim):
        chosen = values[1] if uniform(condition) else values[2]
        if chosen.dims == ctx.broadcast(values, "Where")[1 if uniform(condition) else 2].dims and not any(
            len(v.dims) > len(chosen.dims) or v.dims not in ((), chosen.dims) for v in values
        ):
            return [chosen]
    values[1:] = of_one_type(ctx, values[1:])
    return [ctx.one("where", *ctx.broadcast(values, "Where"))]
