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
    names = ("x", "W", "R", "Wb", "Rb", "P", "h0", "c0", "lengths", "mask")
    state = (batch, h)
    shapes = (x.dims, (g, spec.input_size), (g, h), (g,), (g,), (3 * h,), state, state, (batch,), (time, batch))
    for name, value, dims in zip(names, inputs, shapes, strict=False):
        if value is not None and value.dims != dims:
            raise ShapeError(f"{name} must be [{', '.join(map(str, dims))}], got {value}")
        if name == "mask" and value is not None and value.dtype != "bool":
            raise ShapeError(f"mask must be bool, got {value}")
    dtype = x.dtype
    return [(dtype, (time, batch, h)), (dtype, (batch, h)), (dtype, (batch, h))]


def _state(inputs, attrs):
    x, initial = inputs[0], inputs[1] if len(inputs) > 1 else None
    if not x.dims:
        raise ShapeError(f"{x} has no axis of steps")
    if initial is not None and (initial.dtype, initial.dims) != (x.dtype, x.dims[1:]):
        raise ShapeError(f"the initial value {initial} does not fit a step of {x}")
    return [(x.dtype, x.dims)]


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


def _attention(inputs, attrs):
    q, k, v = inputs[:3]
    if any(len(x.dims) != 4 for x in (q, k, v)):
        raise ShapeError(f"q, k and v must be [batch, heads, length, features], got {q}, {k}, {v}")
    if any(x is not None and x.dtype != ("bool" if i == 4 else "float32") for i, x in enumerate(inputs)):
        given = ", ".join(str(x) for x in inputs if x is not None)
        raise ShapeError(f"attention of {given}: float32 is computed, under a mask of bool")
    batch, heads, rows = q.dims[:3]
    one = [x.dims[0] == batch or _is_one(x.dims[0]) for x in (k, v)]
    if k.dims[:3] != v.dims[:3] or q.dims[3] != k.dims[3] or not all(one):
        raise ShapeError(f"q, k and v don't fit: {q}, {k}, {v}")
    groups = 1 if heads == k.dims[1] else D.exact_div(heads, k.dims[1])
    if groups is None:
        raise ShapeError(f"the {k.dims[1]} heads of {k} don't divide the {heads} of {q}")
    full = (batch, heads, rows, k.dims[2])
    for what, x in zip(("bias", "mask"), inputs[3:], strict=False):
        if x is not None and broadcast(x.dims, full) != full:
            raise ShapeError(f"the {what} {x} does not broadcast to [{', '.join(map(str, full))}]")
    if attrs["window"] < 0 or attrs["softcap"] < 0:
        raise ShapeError(f"window {attrs['window']} and softcap {attrs['softcap']} must not be below 0")
    return [("float32", (batch, heads, rows, v.dims[3]))]


def _steps(inputs, attrs):
    if len(attrs["dims"]) not in (1, 2):
        raise ShapeError(f"steps of dims [{', '.join(map(str, attrs['dims']))}]: one axis, or rows and one axis")
    return [("int64", tuple(attrs["dims"]))]


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


def _pad(inputs, attrs):
    (x,), pads = inputs, attrs["pads"]
    rank = len(x.dims)
    if len(pads) != 2 * rank:
        raise ShapeError(f"{len(pads)} pads for {x}: a beginning and an end an axis")
    return [(x.dtype, tuple(d + b + e for d, b, e in zip(x.dims, pads[:rank], pads[rank:], strict=True)))]


def _windows(x: Value, kernel: tuple, attrs) -> int:
    """The number of spatial axes, after checking that strides, dilations and pads are given for each."""
    rank = len(x.dims) - 2
    if rank not in (1, 2) or len(kernel) != rank:
        raise ShapeError(f"windows of {len(kernel)} axes over {x}: [batch, channels] and one or two spatial axes")
    if x.dtype != "float32":
        raise ShapeError(f"windows over {x}: only float32 is computed")
    for name, length, least in (("strides", rank, 1), ("dilations", rank, 1), ("pads", 2 * rank, 0)):
        if len(attrs[name]) != length or min(attrs[name]) < least:
            raise ShapeError(f"{name} must be {length} numbers of at least {least}, got {list(attrs[name])}")
    if any(isinstance(k, int) and k < 1 for k in kernel):
        raise ShapeError(f"a kernel of {list(kernel)}")
    return rank


def windows(size, kernel: int, stride: int = 1, dilation: int = 1, begin: int = 0, end: int = 0, ceil: bool = False):
    """How many windows fit on a padded axis of `size` (an int or a dim): the L' of conv and pool."""
    reach = dilation * (kernel - 1) + 1
    if ceil:
        # ceil((size + begin + end - reach)/stride) + 1, without a last window that begins beyond size + begin. As
        # ceil(a) + 1 = ceil((a*stride + stride)/stride), both bounds are one expression.
        return D.floordiv(size + begin + min(end - reach + stride, 0) + stride - 1, stride)
    return D.floordiv(size + (begin + end - reach), stride) + 1


def _slid(x: Value, kernel: tuple, attrs, ceil: bool = False) -> tuple:
    rank = _windows(x, kernel, attrs)
    spatial = []
    for i in range(rank):
        stride, dilation, begin, end = (
            attrs["strides"][i], attrs["dilations"][i], attrs["pads"][i], attrs["pads"][rank + i]
        )  # fmt: skip
        size = windows(x.dims[2 + i], kernel[i], stride, dilation, begin, end, ceil)
        if isinstance(size, int) and size < 0:
            raise ShapeError(f"a kernel of {kernel[i]} with dilation {dilation} over the {x.dims[2 + i]} of {x}")
        spatial.append(size)
    return tuple(spatial)


def _weights(inputs, attrs, maps: int, per_group: int) -> tuple:
    """(x, W) of a convolution, after checking its channels; W's axis `per_group` is shared out over the groups."""
    x, w = inputs[:2]
    groups = attrs["groups"]
    if len(w.dims) != len(x.dims) or len(x.dims) < 3 or not all(isinstance(d, int) for d in w.dims) or groups < 1:
        raise ShapeError(f"weights {w} in {groups} groups over {x}")
    channels = w.dims[1] * groups if per_group == 1 else w.dims[0]
    if x.dims[1] != channels or w.dims[0] % groups:
        raise ShapeError(f"weights {w} in {groups} groups over the channels of {x}")
    if len(inputs) > 2 and inputs[2] is not None and inputs[2].dims != (maps,):
        raise ShapeError(f"bias must be [{maps}], got {inputs[2]}")
    return x, w


def _conv(inputs, attrs):
    x, w = _weights(inputs, attrs, inputs[1].dims[0] if inputs[1].dims else 0, 1)
    return [(x.dtype, (x.dims[0], w.dims[0], *_slid(x, w.dims[2:], attrs)))]


def _conv_transpose(inputs, attrs):
    maps = inputs[1].dims[1] * attrs["groups"] if len(inputs[1].dims) > 1 else 0
    x, w = _weights(inputs, attrs, maps, 0)
    rank = _windows(x, w.dims[2:], attrs)
    extra, spatial = attrs["output_padding"], []
    if len(extra) != rank or min(extra) < 0:
        raise ShapeError(f"output_padding must be {rank} numbers of at least 0, got {list(extra)}")
    for i in range(rank):
        stride, dilation, pads = attrs["strides"][i], attrs["dilations"][i], attrs["pads"][i] + attrs["pads"][rank + i]
        if extra[i] >= max(stride, dilation):
            raise ShapeError(f"output_padding {extra[i]} is not below stride {stride} or dilation {dilation}")
        size = (x.dims[2 + i] - 1) * stride + (dilation * (w.dims[2 + i] - 1) + 1 + extra[i] - pads)
        if isinstance(size, int) and size < 0:
            raise ShapeError(f"pads {list(attrs['pads'])} take off more than there is of {x}")
        spatial.append(size)
    return [(x.dtype, (x.dims[0], maps, *spatial))]


def _pool(inputs, attrs):
    (x,), kernel = inputs, attrs["kernel"]
    spatial = _slid(x, kernel, attrs, attrs["ceil"])
    for i, k in enumerate(kernel):
        reach = attrs["dilations"][i] * (k - 1) + 1
        if attrs["pads"][i] >= reach or attrs["pads"][len(kernel) + i] >= reach:
            raise ShapeError(f"pads {list(attrs['pads'])} leave windows of {list(kernel)} with padding alone")
    return [(x.dtype, (*x.dims[:2], *spatial))]


def _argmax(inputs, attrs):
    (x,), axis = inputs, attrs["axis"]
    _axis(x, axis)
    return [("int64", x.dims[:axis] + ((1,) if attrs["keepdims"] else ()) + x.dims[axis + 1 :])]


def _is_one(dim) -> bool:
    return isinstance(dim, int) and dim == 1


def _axis(x: Value, axis: int) -> None:
    if not 0 <= axis < len(x.dims):
        raise ShapeError(f"axis {axis} of {x}")


_RULES: dict[str, Callable] = {
    "cell": _cell,
    "state": _state,
    "linear": _linear,
    "matmul": _matmul,
    "attention": _attention,
    "steps": _steps,
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
    "pad": _pad,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "pool": _pool,
    "argmax": _argmax,
    "cumsum": _same,
}
