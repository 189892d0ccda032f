"""Operators that work element by element, and casts."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from onnx import TensorProto

from ....errors import ModelFormatError, ShapeError
from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading import files
from ..reading.reader import NodeReader
from ..reading.registry import op
from ..reading.values import Const, Fill, Ints, Live, simplest, uniform
from . import integers

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
    # The defaults are the float32 numbers that the ONNX text gives.
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
    """A Fill through an elementwise function of NumPy arrays; None where x is not a fill of a number."""
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
    return [ctx.unary(_PLAIN[name], x)]


def _rounded_size(ctx, x, name: str):
    """Floor or Ceil of a size times a number: of float values that stand for sizes again (lengths times a scale)."""
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
    x = n.input(0)  # nothing else differs from itself
    return [ctx.unary("not", ctx.one("binary", x, x, fn="equal"))]


@op("IsInf", attrs="detect_negative detect_positive")
def _is_inf(ctx, n: NodeReader):
    x, signs = n.input(0), [n.attr(f"detect_{sign}", "int", 1) for sign in ("positive", "negative")]
    if not any(signs):
        return [ctx.one("binary", x, x, fn="less")]  # False of every number
    bounds = [v for v, wanted in zip((np.inf, -np.inf), signs, strict=True) if wanted]
    found = [ctx.one("binary", x, Const(np.array(v, np.float32)), fn="equal") for v in bounds]
    return [found[0] if len(found) == 1 else ctx.one("binary", *found, fn="or")]


@op(*_SHAPED, attrs="alpha beta gamma")
def _shaped(ctx, n: NodeReader):
    fn, alpha, beta = _SHAPED[n.node.op]
    a = n.attr(alpha[0], "float", alpha[1])
    b = n.attr(beta[0], "float", beta[1]) if beta else 0.0
    if fn == "thresholded_relu":
        # The operator keeps x > alpha, the activation of cells x >= alpha: the next float32 makes them the same.
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
    n.only("alpha", "float", 1.0, (1.0,))
    return [ctx.unary("silu", n.input(0))]


@op("Clip", attrs="min max")
def _clip(ctx, n: NodeReader):
    bounds = [n.input(i, optional=True) for i in (1, 2)] if n.opset >= 11 else []
    if n.opset < 11:
        low, high = n.attr("min", "float", -_FLOAT_MAX), n.attr("max", "float", _FLOAT_MAX)
    elif not all(isinstance(v, Const) or v is None for v in bounds) or ctx.kind(n.input(0)) in integers.INTEGERS:
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
    """Integers within bounds, or any value within computed ones; either bound may be None."""
    if any(isinstance(v, Ints) for v in (x, low, high)):
        _hold(ctx, n, [v for v in (x, low, high) if v is not None])
    for bound, fn in ((low, "max"), (high, "min")):
        if bound is not None:
            x = ctx.one("binary", *ctx.broadcast([x, bound], "Clip"), fn=fn)
    return x


def _scalar(array, name: str, default: float) -> float:
    if array is None:
        return default
    if array.size != 1:
        raise ModelFormatError(f"{name} must be one number, got {list(array.shape)}")
    return float(array.reshape(-1)[0])


def _on_sizes(ctx, fn: str, a, b):
    """Arithmetic where one side is made of sizes; None where it is not known symbolically."""
    if fn not in ("add", "sub", "mul", "div", "equal") or not all(isinstance(v, (Ints, Const)) for v in (a, b)):
        return None
    if any(isinstance(v, Const) and v.array.dtype.kind not in "iu" for v in (a, b)):
        return None
    left, right = (v.array.astype(object) for v in (a, b))
    if fn == "equal":
        return _sizes_equal(left, right)
    if fn == "div":
        try:
            return simplest(np.frompyfunc(lambda p, q: _quotient(ctx, p, q), 2, 1)(left, right))
        except ShapeError:
            return None  # one size by another, of which only the example's quotient is known
    return simplest({"add": np.add, "sub": np.subtract, "mul": np.multiply}[fn](left, right))


def _quotient(ctx, p, q):
    """p / q of integers, which ONNX rounds towards zero. Sizes are floored: they must not be negative."""
    if isinstance(p, Dim) and isinstance(q, int) and D.exact_div(p, q) is None and D.may_be_negative(p):
        if ctx.table.example(p) < 0:
            raise ShapeError(f"{p} is below zero")
        ctx.table.shortfalls.append(D.shortfall(p, 0))
    if isinstance(p, Dim) or isinstance(q, Dim):
        return p // q
    return abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1)


def _assumed(ctx, fn: str, a, b):
    """Whether windows over a size that the file leaves open come out as just one: squeeze() asks so before it removes
    an axis. It is taken to be so, and the graph then requires it of every input; None for any other question."""
    sides = [v.array.flat[0] for v in (a, b) if v.dims in ((), (1,)) and isinstance(v, (Ints, Const))]
    dims = [v for v in sides if isinstance(v, Dim)]
    if (
        fn != "equal"
        or len(sides) != 2
        or len(dims) != 1
        or not any(isinstance(v, (int, np.integer)) and v == 1 for v in sides)
    ):
        return None
    syms = ctx.table.of(dims[0])
    if any(s.genuine for s in syms) or ctx.table.single(dims[0]) is not None:
        return None
    ctx.table.assumed[dims[0]] = 1
    ctx.table.notes.setdefault(f"assumed {ctx.label}", f"{ctx.label}: {dims[0]} is taken to be 1")
    return Const(np.full(max((a.dims, b.dims), key=len), True))


def _sizes_equal(left, right):
    """Equality of sizes where it is certain: the same dim, two ints, or a size (>= 0) against a negative int."""
    flags = []
    left, right = np.broadcast_arrays(left, right)
    for p, q in zip(left.flat, right.flat, strict=True):
        same = p == q
        certain = same or (isinstance(p, int) and isinstance(q, int))
        plain = [v for v in (p, q) if isinstance(v, Dim) and len(v.terms) == 1 and min(v.terms.values()) > 0]
        certain = certain or (plain and any(isinstance(v, int) and v < 0 for v in (p, q)))
        if not certain:
            return None
        flags.append(bool(same))
    return Const(np.array(flags, dtype=bool).reshape(left.shape))


@op(*_BINARY)
def _binary(ctx, n: NodeReader):
    fn, a, b = _BINARY[n.node.op], n.input(0), n.input(1)
    if isinstance(a, Ints) or isinstance(b, Ints):
        known = _on_sizes(ctx, fn, a, b)
        known = _assumed(ctx, fn, a, b) if known is None else known
        if known is not None:
            return [known]
        _hold(ctx, n, (a, b))
    a, b = ctx.broadcast([a, b], n.node.op)
    if fn == "pow" and ctx.kind(a) != ctx.kind(b):
        b = _as_dtype(ctx, b, ctx.kind(a))  # the only operator whose inputs may differ in dtype
    if fn == "div":
        a, b = _of_all_steps(ctx, a, b)
    out = ctx.one("binary", a, b, fn=fn)
    if fn in ("mul", "div"):
        _scale_size(ctx, fn, a, b, out)
    return [out]


def _of_all_steps(ctx, a, b) -> tuple:
    """The sides of a Div. A mean over N steps times N, divided by N - 1, is what PyTorch's exporter makes of var and
    std, with the N of its example: here it is as many as there are."""
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
    """The entry of Builder.nodes that made a value, if it is this op."""
    name = value.name if isinstance(value, Live) else value
    entry = next((e for e in reversed(ctx.nodes) if name in e[3]), None) if isinstance(name, str) else None
    return entry if entry is not None and entry[0] == op and entry[4].get("fn") == fn else None


def _scale_size(ctx, fn: str, a, b, out) -> None:
    """Note that `out` is a size times a number, where it is."""
    sides = [(a, b)] if fn == "div" else [(a, b), (b, a)]
    for size, number in sides:
        if isinstance(size, Live) and size.name in ctx.sizes and isinstance(number, Const) and number.array.size == 1:
            value = float(number.array.reshape(-1)[0])
            if value > 0 and np.isfinite(value):
                dim, factor = ctx.sizes[size.name]
                exact = Fraction(value).limit_denominator(1 << 20)
                ctx.sizes[out.name] = (dim, factor / exact if fn == "div" else factor * exact)


def _hold(ctx, n: NodeReader, values) -> None:
    """Sizes that the file gives stay what they are where they meet numbers alone: the file may decide by them. Those
    that it leaves open, and those that meet live values, are computed with as values."""
    sizes = [d for v in values if isinstance(v, Ints) for d in v.array.flat]
    if all(isinstance(v, (Ints, Const)) for v in values) and all(ctx.table.genuine(d) for d in sizes):
        ctx.table.freeze(sizes, f"{n.node.op} is computed from it")


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


def _as_dtype(ctx, value, dtype: str):
    if isinstance(value, Const):
        return Const(value.array.astype(dtype))
    return ctx.one("cast", value, to=dtype)


@op("Mod", attrs="fmod")
def _mod(ctx, n: NodeReader):
    a, b = n.input(0), n.input(1)
    fmod = n.attr("fmod", "int", 0)
    if isinstance(a, Ints) or isinstance(b, Ints):
        _hold(ctx, n, (a, b))
    a, b = ctx.broadcast([a, b], "Mod")
    if fmod or ctx.live(a).dtype == "float32":
        raise Finding("fmod=1: the remainder with the dividend's sign")
    return [ctx.one("binary", a, b, fn="mod")]


@op("Min", "Max", "Sum", "Mean")
def _many(ctx, n: NodeReader):
    values = [n.input(i) for i in range(len(n.values))]
    if any(isinstance(v, Ints) for v in values):
        known = _largest_size(ctx, values) if n.node.op == "Max" else None
        if known is not None:
            return [known]
        _hold(ctx, n, values)
    if not values:
        raise ModelFormatError(f"{n.node.op} without inputs")
    values = ctx.broadcast(values, n.node.op)
    fn, total = {"Min": "min", "Max": "max"}.get(n.node.op, "add"), values[0]
    for v in values[1:]:
        total = ctx.one("binary", total, v, fn=fn)
    if n.node.op == "Mean" and len(values) > 1:
        total = ctx.one("binary", total, Const(np.array(len(values), dtype=np.float32)), fn="div")
    return [total]


def _largest_size(ctx, values: list):
    """The larger of sizes that are one size, or one and 1, as where an Einsum is written out; None otherwise."""
    if not all(isinstance(v, (Ints, Const)) for v in values):
        return None
    arrays = np.broadcast_arrays(*(v.array.astype(object) for v in values))
    out = np.empty(arrays[0].shape, dtype=object)
    for place in np.ndindex(out.shape):
        larger = {repr(a[place]): a[place] for a in arrays if isinstance(a[place], Dim) or a[place] != 1}
        if len(larger) > 1 and any(isinstance(v, Dim) for v in larger.values()):
            return None
        for size in larger.values():
            if isinstance(size, Dim) and ctx.table.single(size) is None:  # max(T - 1, 1) is T - 1 if that is 1 or more
                ctx.table.shortfalls.append(D.shortfall(size, 1))
        out[place] = max(larger.values()) if len(larger) > 1 else next(iter(larger.values()), 1)
    return simplest(out)


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
    return [ctx.one("where", *ctx.broadcast(values, "Where"))]


@op("Cast", attrs="to saturate round_mode")
def _cast(ctx, n: NodeReader):
    x, to = n.input(0), n.attr("to", "int")
    n.attr("saturate", "int", 1)  # speaks of float8 targets only, which are refused below
    n.attr("round_mode", "string", "up")
    if to not in files.NUMERIC:
        raise Finding(f"to={files.dtype_name(to or 0)}")
    target = np.dtype(np.float16) if to == TensorProto.BFLOAT16 else files.NUMERIC[to]
    return [cast(ctx, x, target)]


@op("CastLike", attrs="saturate round_mode")
def _cast_like(ctx, n: NodeReader):
    n.attr("saturate", "int", 1)
    n.attr("round_mode", "string", "up")
    like = n.input(1)
    if isinstance(like, Live):
        return [cast(ctx, n.input(0), np.dtype(like.dtype))]
    return [cast(ctx, n.input(0), like.dtype if isinstance(like, Fill) else like.array.dtype)]


def cast(ctx, x, target: np.dtype):
    """x in another dtype of the file."""
    if isinstance(x, Ints):
        if target.kind in "iu":
            return x
        if target.kind == "f" and x.array.size == 1:
            number = ctx.number_of(x.array.flat[0], ctx.dtype(target))
            return ctx.reshape(number, x.dims)
        if target.kind == "b":
            ctx.table.freeze(list(x.array.flat), "it is cast to bool")
        x = ctx.live(x)
    if isinstance(x, Fill):
        if isinstance(x.value, Dim):
            if target.kind in "iu":
                return Fill(x.value, target, x.dims)
            return ctx.one("expand", ctx.number_of(x.value, ctx.dtype(target)), dims=x.dims)
        return Fill(target.type(x.value), target, x.dims)
    if isinstance(x, Const):
        return Const(x.array.astype(target))
    name = ctx.dtype(target)
    if x.name in ctx.sizes and target.kind in "iu":
        dim, factor = ctx.sizes[x.name]
        box = np.empty(x.dims, dtype=object)
        box[...] = D.floordiv(dim * factor.numerator, factor.denominator)
        return simplest(box)
    if name == "bool" and x.dtype in integers.INTEGERS:
        return ctx.unary("not", ctx.one("binary", x, Const(np.zeros((), x.dtype)), fn="equal"))
    return x if x.dtype == name else ctx.one("cast", x, to=name)


@op("Identity")
def _identity(ctx, n: NodeReader):
    return [n.input(0)]


@op("Dropout", attrs="ratio seed is_test")
def _dropout(ctx, n: NodeReader):
    n.attr("ratio", "float", 0.5)
    n.attr("seed", "int", 0)
    if n.opset >= 12:
        n.input(1, optional=True)
        training = n.const(2, "training_mode", optional=True)
        if training is not None and training.any():
            raise Finding("training_mode: Dropout that drops; export the model for inference")
    if len(n.needed) > 1 and n.needed[1]:
        raise Finding("its mask output is used")
    return [n.input(0)]
