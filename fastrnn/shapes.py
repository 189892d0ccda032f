"""Output dims and dtype of every graph op, from those of its inputs: one function an op, in one table.

Used by builders (to declare a new value) and by `graph.validate` (to check declared ones).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import dims as D
from .errors import ModelFormatError, ShapeError
from .graph import COMPARISONS, Graph, Node, Value

Sig = tuple[str, tuple]  # dtype, dims


def infer(op: str, inputs: Sequence[Value | None], attrs) -> list[Sig]:
    """(dtype, dims) of each possible output of `op`, in order. Raises ShapeError where the inputs don't fit."""
    return _RULES[op](inputs, attrs)


def check_shapes(graph: Graph) -> None:
    """Raise ModelFormatError for the first node whose declared outputs differ from what its inputs imply."""
    for node in graph.nodes:
        if node.op == "state":
            prev, new = graph.values[node.outputs[0]], graph.values[node.inputs[0]]
            if (prev.dtype, prev.dims) != (new.dtype, new.dims):
                raise ModelFormatError(f"node {node.name}: state {prev} is fed by {new}")
            continue
        _check_node(graph, node)


def _check_node(graph: Graph, node: Node) -> None:
    values = [None if i is None else graph.values[i] for i in node.inputs]
    try:
        implied = infer(node.op, values, node.attrs)
    except ShapeError as error:
        raise ModelFormatError(f"node {node.name} ({node.op}): {error}") from None
    for name, (dtype, dims) in zip(node.outputs, implied, strict=False):
        if name is None:
            continue
        value = graph.values[name]
        if value.dtype != dtype or value.dims != dims:
            text = ", ".join(map(str, dims))
            raise ModelFormatError(f"node {node.name} ({node.op}): output is {dtype}[{text}], declared {value}")


def broadcast(*shapes: tuple) -> tuple:
    """NumPy's broadcasting on symbolic dims. A symbolic dim never broadcasts silently: it meets itself or 1."""
    rank = max(map(len, shapes), default=0)
    out = []
    for i in range(rank):
        dim = 1
        for shape in shapes:
            j = i - rank + len(shape)
            d = shape[j] if j >= 0 else 1
            if d == dim or (isinstance(d, int) and d == 1):
                continue
            if isinstance(dim, int) and dim == 1:
                dim = d
            else:
                raise ShapeError(f"can't broadcast {_text(shapes)}: {dim} against {d}")
        out.append(dim)
    return tuple(out)


def _text(shapes) -> str:
    return " with ".join("[" + ", ".join(map(str, s)) + "]" for s in shapes)


def _cell(inputs, attrs):
    spec = attrs["spec"]
    x = inputs[0]
    g, h = spec.gates * spec.hidden_size, spec.hidden_size
    if len(x.dims) != 3 or x.dims[2] != spec.input_size:
        raise ShapeError(f"x must be [time, batch, {spec.input_size}], got {x}")
    time, batch = x.dims[:2]
    names = ("x", "W", "R", "Wb", "Rb", "P", "h0", "c0", "lengths")
    shapes = (x.dims, (g, spec.input_size), (g, h), (g,), (g,), (3 * h,), (batch, h), (batch, h), (batch,))
    for name, value, dims in zip(names, inputs, shapes, strict=False):
        if value is not None and value.dims != dims:
            raise ShapeError(f"{name} must be [{', '.join(map(str, dims))}], got {value}")
    dtype = x.dtype
    return [(dtype, (time, batch, h)), (dtype, (batch, h)), (dtype, (batch, h))]


def _linear(inputs, attrs):
    x, w = inputs[:2]
    if len(w.dims) != 2 or not x.dims or x.dims[-1] != w.dims[0]:
        raise ShapeError(f"x must end in the {w.dims[0]} of W, got {x} and {w}")
    if len(inputs) > 2 and inputs[2] is not None and inputs[2].dims != w.dims[1:]:
        raise ShapeError(f"bias must be [{w.dims[1]}], got {inputs[2]}")
    return [(x.dtype, (*x.dims[:-1], w.dims[1]))]


def _matmul(inputs, attrs):
    a, b = inputs
    if not a.dims or not b.dims:
        raise ShapeError(f"matmul of a scalar: {a}, {b}")
    left = a.dims if len(a.dims) > 1 else (1, *a.dims)
    right = b.dims if len(b.dims) > 1 else (*b.dims, 1)
    if left[-1] != right[-2]:
        raise ShapeError(f"matmul of {a} and {b}: {left[-1]} is not {right[-2]}")
    out = broadcast(left[:-2], right[:-2])
    out += (left[-2],) if len(a.dims) > 1 else ()
    out += (right[-1],) if len(b.dims) > 1 else ()
    return [(a.dtype, out)]


def _binary(inputs, attrs):
    a, b = inputs
    if a.dtype != b.dtype:
        raise ShapeError(f"{attrs['fn']} of {a.dtype} and {b.dtype}")
    return [("bool" if attrs["fn"] in COMPARISONS else a.dtype, broadcast(a.dims, b.dims))]


def _where(inputs, attrs):
    condition, a, b = inputs
    if condition.dtype != "bool" or a.dtype != b.dtype:
        raise ShapeError(f"where of {condition.dtype}, {a.dtype}, {b.dtype}")
    return [(a.dtype, broadcast(condition.dims, a.dims, b.dims))]


def _transpose(inputs, attrs):
    (x,), perm = inputs, attrs["perm"]
    if sorted(perm) != list(range(len(x.dims))):
        raise ShapeError(f"perm {list(perm)} does not fit {x}")
    return [(x.dtype, tuple(x.dims[p] for p in perm))]


def _reshape(inputs, attrs):
    (x,), dims = inputs, tuple(attrs["dims"])
    if D.product(x.dims) != D.product(dims):
        raise ShapeError(f"{x} has {D.product(x.dims)} elements, not {D.product(dims)}")
    return [(x.dtype, dims)]


def _slice(inputs, attrs):
    (x,) = inputs
    axis, start, stop, step = (attrs[k] for k in ("axis", "start", "stop", "step"))
    _axis(x, axis)
    if step == 0:
        raise ShapeError("slice with step 0")
    span = stop - start if step > 0 else start - stop
    size = D.floordiv(span + abs(step) - 1, abs(step))
    if isinstance(size, int) and size < 0:
        raise ShapeError(f"slice [{start}:{stop}:{step}] of axis {axis} of {x}")
    return [(x.dtype, (*x.dims[:axis], size, *x.dims[axis + 1 :]))]


def _concat(inputs, attrs):
    axis, first = attrs["axis"], inputs[0]
    _axis(first, axis)
    total = 0
    for x in inputs:
        same = len(x.dims) == len(first.dims) and x.dtype == first.dtype
        if not same or any(a != b for i, (a, b) in enumerate(zip(x.dims, first.dims, strict=True)) if i != axis):
            raise ShapeError(f"can't concat {x} to {first} along axis {axis}")
        total = x.dims[axis] + total
    return [(first.dtype, (*first.dims[:axis], total, *first.dims[axis + 1 :]))]


def _expand(inputs, attrs):
    (x,), dims = inputs, tuple(attrs["dims"])
    if broadcast(x.dims, dims) != dims:
        raise ShapeError(f"{x} does not expand to [{', '.join(map(str, dims))}]")
    return [(x.dtype, dims)]


def _gather(inputs, attrs):
    x, indices = inputs
    _axis(x, attrs["axis"])
    if indices.dtype not in ("int64", "int32"):
        raise ShapeError(f"indices must be integers, got {indices}")
    return [(x.dtype, x.dims[: attrs["axis"]] + indices.dims + x.dims[attrs["axis"] + 1 :])]


def _reduce(inputs, attrs):
    (x,), axes = inputs, attrs["axes"]
    for axis in axes:
        _axis(x, axis)
    if attrs["keepdims"]:
        return [(x.dtype, tuple(1 if i in axes else d for i, d in enumerate(x.dims)))]
    return [(x.dtype, tuple(d for i, d in enumerate(x.dims) if i not in axes))]


def _same(inputs, attrs):
    if "axis" in attrs:
        _axis(inputs[0], attrs["axis"])
    for extra in inputs[1:]:
        if extra is not None and broadcast(inputs[0].dims, extra.dims) != inputs[0].dims:
            raise ShapeError(f"{extra} does not broadcast to {inputs[0]}")
    return [(inputs[0].dtype, inputs[0].dims)]


def _axis(x: Value, axis: int) -> None:
    if not 0 <= axis < len(x.dims):
        raise ShapeError(f"axis {axis} of {x}")


_RULES: dict[str, Callable] = {
    "cell": _cell,
    "linear": _linear,
    "matmul": _matmul,
    "unary": _same,
    "binary": _binary,
    "where": _where,
    "cast": lambda inputs, attrs: [(attrs["to"], inputs[0].dims)],
    "transpose": _transpose,
    "reshape": _reshape,
    "slice": _slice,
    "concat": _concat,
    "expand": _expand,
    "gather": _gather,
    "reduce": _reduce,
    "softmax": _same,
    "layer_norm": _same,
}
