"""Output dims and dtype of a graph op, from those of its inputs, and the helpers that the rules of the ops share.

Used by builders (to declare a new value) and by `graph.validate` (to check declared ones).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import ModelFormatError, ShapeError
from . import dims as D
from .precision import DTYPE
from .types import Graph, Node, Value
from .vocabulary import ROWS

Sig = tuple[str, tuple]  # dtype, dims


def infer(op: str, inputs: Sequence[Value | None], attrs) -> list[Sig]:
    """(dtype, dims) of each possible output of `op`, in order. Raises ShapeError if the inputs don't fit."""
    return ROWS[op].dims(inputs, attrs)


def check_shapes(graph: Graph) -> None:
    """Raise ModelFormatError for the first node whose declared outputs differ from those that its inputs imply."""
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
    """NumPy's broadcasting on symbolic dims. A symbolic dim never broadcasts silently: it matches only itself or 1."""
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


def same_dims(inputs, attrs):
    """The rule of an op whose output has the form of its first input. All other inputs broadcast to it."""
    if "axis" in attrs:
        check_axis(inputs[0], attrs["axis"])
    for extra in inputs[1:]:
        if extra is not None and broadcast(inputs[0].dims, extra.dims) != inputs[0].dims:
            raise ShapeError(f"{extra} does not broadcast to {inputs[0]}")
    return [(inputs[0].dtype, inputs[0].dims)]


def windows(size, kernel: int, stride: int = 1, dilation: int = 1, begin: int = 0, end: int = 0, ceil: bool = False):
    """How many windows fit on a padded axis of `size` (an int or a dim): the L' of conv and pool."""
    reach = dilation * (kernel - 1) + 1
    if ceil:
        # ceil((size + begin + end - reach)/stride) + 1, without a last window that begins beyond size + begin. As
        # ceil(a) + 1 = ceil((a*stride + stride)/stride), both bounds are one expression.
        return D.floordiv(size + begin + min(end - reach + stride, 0) + stride - 1, stride)
    return D.floordiv(size + (begin + end - reach), stride) + 1


def check_axis(x: Value, axis: int) -> None:
    """Raise ShapeError if x has no such axis."""
    if not 0 <= axis < len(x.dims):
        raise ShapeError(f"axis {axis} of {x}")


def check_precision(attrs: Mapping, weights: Sequence, scales: Sequence) -> None:
    """Raise ShapeError unless the weights of a product, and the scales of their columns, are held as `precision` says.
    An absent scale is None or missing."""
    precision = attrs.get("precision", "float32")
    given = [*scales, *(None,) * (len(weights) - len(scales))]
    for value, scale in zip(weights, given, strict=True):
        expected = value.dtype if precision == "float32" else DTYPE[precision]
        if value.dtype != expected:
            raise ShapeError(f"weights in {precision} must be {expected}, got {value}")
        if (scale is not None) != precision.startswith("int8"):
            raise ShapeError(
                f"weights in {precision} {'have no' if scale else 'need a'} scale for each column: {value}"
            )
