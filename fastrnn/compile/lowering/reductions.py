"""Lowering of reductions and norms: contiguous rows, and sums that continue from step to step."""

from __future__ import annotations

import numpy as np

from ...errors import UnsupportedError
from ...graph import INTEGERS, Node
from ...graph import dims as D
from .. import bounds
from ..tensors import Tensor, collapse
from .base import Lowering, lowers
from .fields import FUNCTIONS, INTEGER_FUNCTIONS, TYPE_CODES, at, level_fields

_REDUCE = {"sum": "add", "mean": "add", "max": "max", "min": "min"}


@lowers("reduce")
def _reduce(low: Lowering, node: Node) -> None:
    axes, dtype = list(node.attrs["axes"]), low.graph.values[node.inputs[0]].dtype
    x = low.tensor(node.inputs[0]) if dtype in INTEGERS else low.real(node)
    if low.mode != "stream":
        _need_elements(low, node, D.product(x.dims[a] for a in axes))
    # Rows whose size depends on the length (scores of all steps) never stream, so this is an ordinary sum.
    fixed = not any("time" in D.symbols(d) for i, d in enumerate(x.dims) if i not in axes)
    if len(axes) == 1 and low.is_time(x.dims[axes[0]]) and (low.mode == "stream" or (fixed and dtype not in INTEGERS)):
        return _reduce_over_time(low, node, x, axes[0])
    fn, keep = node.attrs["fn"], [a for a in range(len(x.dims)) if a not in axes]
    order = x.order if node.attrs["keepdims"] else [keep.index(a) for a in x.order if a in keep]  # as x is in memory
    x = x.transpose((*keep, *axes))
    loops = collapse(x.dims[len(keep) :], (x.strides[len(keep) :],), range(len(axes)))
    if len(loops) > 1:
        x = low.contiguous_last(x, node, len(axes))
        loops = collapse(x.dims[len(keep) :], (x.strides[len(keep) :],), range(len(axes)))
    count, (step,) = loops[0] if loops else (1, (1,))
    out = low.real_result(node, order)
    if node.attrs["keepdims"]:
        for axis in reversed(axes):
            out = out.squeeze(axis)
    within = [a for a in x.order if a < len(keep)]
    rows = low.levels(x.dims[: len(keep)], (x.strides[: len(keep)], out.strides), within, node)
    kind, fields = "reduce", {"fn": FUNCTIONS[_REDUCE[fn]]}
    if dtype in INTEGERS:
        kind, fields = "fold", {"fn": INTEGER_FUNCTIONS[_REDUCE[fn]], "type": TYPE_CODES[x.dtype]}
    low.builder.emit(
        kind, node.name, (x,), (out,), D.product(x.dims), count=count, step=step, mean=int(fn == "mean"), **fields,
        **level_fields(rows, ("x", "y")), **at("x", x), **at("y", out),
    )  # fmt: skip


@bounds.touches("fold")
def _fold_touches(plan, f):
    item = bounds.ITEMS[f["type"]]
    yield from bounds.at(f, "x", *bounds.rows(f, "x"), (f["count"], f["step"]), item=item)
    yield from bounds.at(f, "y", *bounds.rows(f, "y"), item=item)


def _need_elements(low: Lowering, node: Node, count) -> None:
    """If a sequence is too short for the windows and they yield no step, PyTorch and onnxruntime reject it. For an
    empty sequence ONNX itself defines a largest element, -inf."""
    fn = node.attrs["fn"]
    if isinstance(count, D.Dim) and fn != "sum" and D.may_be_negative(count):
        low.plan.conditions.append((count - 1, f"node {node.name}: the {fn} of no elements"))


@bounds.touches("reduce")
def _reduce_touches(plan, f):
    yield from bounds.at(f, "x", *bounds.rows(f, "x"), (f["count"], f["step"]))
    yield from bounds.at(f, "y", *bounds.rows(f, "y"))


def _reduce_over_time(low: Lowering, node: Node, x: Tensor, axis: int) -> None:
    """Add step after step to sums in float64 (int64 for integers), whole or streamed. A stream's value is that of the
    run so far."""
    out = low.real_result(node)
    if node.attrs["keepdims"]:
        out = out.squeeze(axis)
    keep = [a for a in range(len(x.dims)) if a != axis]
    x = x.transpose((axis, *keep))
    if low.has_batch and D.BATCH in x.dims:
        first = x.dims.index(D.BATCH)
        x = x.transpose((0, first, *(a for a in range(1, len(x.dims)) if a != first)))
        out = out.transpose((first - 1, *(a for a in range(len(out.dims)) if a != first - 1)))
    else:
        x, out = x.unsqueeze(1), out.unsqueeze(0)
    features = x.dims[2:]
    if not all(isinstance(d, int) for d in features):
        raise UnsupportedError(f"a {node.attrs['fn']} over all steps of values of size {features}")
    x = low.contiguous_last(x, node, len(features))
    size = D.product(features)
    dense = collapse(features, (out.strides[1:],), range(len(features)))
    y = out if dense in ([], [(size, (1,))]) else low.builder.allocate(out.dtype, out.dims)
    fn, whole = node.attrs["fn"], x.dtype in INTEGERS
    kept = "int64" if whole else "float64"
    offset = low.builder.keep(node.name, "sum", size + 1, kept, name=f"{node.name}.{fn}")
    kind, fields = "running", {"fn": FUNCTIONS[_REDUCE[fn]]}
    if whole:
        kind, fields = "running_integers", {"fn": INTEGER_FUNCTIONS[_REDUCE[fn]], "type": TYPE_CODES[x.dtype]}
    low.builder.emit(
        kind, node.name, (x,), (y,), D.product(x.dims), mean=int(fn == "mean"), steps=x.dims[0], rows=x.dims[1],
        size=size, x_time=x.strides[0], x_row=x.strides[1], y_row=y.strides[0], per_slot=1, state=offset, **fields,
        **at("x", x), **at("y", y),
    )  # fmt: skip
    low.copy(y, out, node.name)


@bounds.touches("running", "running_integers")
def _running_touches(plan, f):
    rows, size, item = f["rows"], f["size"], bounds.ITEMS[f.get("type", TYPE_CODES["float32"])]
    yield from bounds.at(f, "x", (f["steps"], f["x_time"]), (rows, f["x_row"]), (size, 1), item=item)
    yield from bounds.at(f, "y", (rows, f["y_row"]), (size, 1), item=item)
    yield from bounds.states(plan, f, ("state",), 2 * size + 2)


@lowers("softmax")
def _softmax(low: Lowering, node: Node) -> None:
    _along_last(low, node, node.attrs["axis"], "softmax", 16, log=int(node.attrs["log"]))


@lowers("layer_norm")
def _layer_norm(low: Lowering, node: Node) -> None:
    axis, dims = node.attrs["axis"], low.graph.values[node.inputs[0]].dims
    inner = dims[axis:]
    extra, present = {}, []
    for i, what in ((1, "scale"), (2, "bias")):
        array = low.array(node, i, what)
        if array is None:
            extra |= {f"{what}_buffer": -1, f"{what}_offset": 0}
            continue
        if array.ndim > len(inner) or any(isinstance(d, D.Dim) for d in inner):
            raise UnsupportedError(f"{what} of shape {array.shape} for normalised axes {inner}")
        t = low.builder.constant(np.broadcast_to(array, inner).astype(np.float32), "float32")
        extra |= at(what, t)
        present.append(t)
    epsilon = low.builder.constant(np.array([node.attrs["epsilon"]], np.float32), "float32")
    _along_last(low, node, axis, "layer_norm", 8, epsilon=epsilon.buffer, **extra)


def _along_last(low: Lowering, node: Node, axis: int, kind: str, cost: int, **fields) -> None:
    """softmax and layer_norm over contiguous rows. A softmax axis that is not the last one is moved there."""
    x = low.real(node)
    rank = len(x.dims)
    count = rank - axis if kind == "layer_norm" else 1
    perm = [a for a in range(rank) if not axis <= a < axis + count] + list(range(axis, axis + count))
    x = low.contiguous_last(x.transpose(perm), node, count)
    y, back = low.result(node).transpose(perm), [perm.index(a) for a in range(rank)]
    dense = collapse(y.dims[rank - count :], (y.strides[rank - count :],), range(count))
    if len(dense) > 1 or (dense and dense[0][1] != (1,)):
        y = low.builder.allocate(
            "float32", y.dims, [*[a for a in x.order if a < rank - count], *range(rank - count, rank)]
        )
        low.tensors[node.outputs[0]] = y.transpose(back)
    keep = rank - count
    order = [a for a in x.order if a < keep]
    loops = low.levels(x.dims[:keep], (x.strides[:keep], y.strides[:keep]), order, node)
    n = D.product(x.dims[keep:])
    low.builder.emit(
        kind, node.name, (x,), (y,), D.product(x.dims) * cost, n=n, **fields, **level_fields(loops, ("x", "y")),
        **at("x", x), **at("y", y),
    )  # fmt: skip


@bounds.touches("softmax", "layer_norm")
def _softmax_touches(plan, f):
    for name in ("x", "y"):
        yield from bounds.at(f, name, *bounds.rows(f, name), (f["n"], 1))
    for name in ("scale", "bias"):  # of layer_norm
        yield from bounds.at(f, name, (f["n"], 1))


@lowers("argmax")
def _argmax(low: Lowering, node: Node) -> None:
    whole = low.graph.values[node.inputs[0]].dtype in INTEGERS
    x, a = low.tensor(node.inputs[0]) if whole else low.real(node), node.attrs
    axis, y = a["axis"], low.result(node)
    if a["keepdims"]:
        y = y.squeeze(axis)
    rows = x.transpose([*(i for i in range(len(x.dims)) if i != axis), axis])
    loops = low.levels(rows.dims[:-1], (rows.strides[:-1], y.strides), range(len(rows.dims) - 1), node)
    if isinstance(rows.dims[-1], D.Dim):
        low.plan.conditions.append((rows.dims[-1] - 1, f"node {node.name}: the largest of no elements"))
    low.builder.emit(
        "argmax", node.name, (x,), (y,), D.product(x.dims), type=TYPE_CODES[x.dtype], count=rows.dims[-1],
        step=rows.strides[-1], largest=int(a["largest"]), last=int(a["last"]), **level_fields(loops, ("x", "y")),
        **at("x", x), **at("y", y),
    )  # fmt: skip


@bounds.touches("argmax")
def _argmax_touches(plan, f):
    yield from bounds.at(f, "x", *bounds.rows(f, "x"), (f["count"], f["step"]), item=bounds.ITEMS[f["type"]])
    yield from bounds.at(f, "y", *bounds.rows(f, "y"), item=8)


@lowers("cumsum")
def _cumsum(low: Lowering, node: Node) -> None:
    whole = low.graph.values[node.inputs[0]].dtype in INTEGERS
    x, a = low.tensor(node.inputs[0]) if whole else low.real(node), node.attrs
    axis, y = a["axis"], low.result(node, order=x.order)
    keep = [i for i in range(len(x.dims)) if i != axis]
    strides = [[t.strides[i] for i in keep] for t in (x, y)]
    order = [keep.index(i) for i in x.order if i != axis]
    loops = low.levels([x.dims[i] for i in keep], strides, order, node)
    low.builder.emit(
        "cumsum", node.name, (x,), (y,), D.product(x.dims), type=TYPE_CODES[x.dtype], count=x.dims[axis],
        x_step=x.strides[axis], y_step=y.strides[axis], exclusive=int(a["exclusive"]), reverse=int(a["reverse"]),
        **level_fields(loops, ("x", "y")), **at("x", x), **at("y", y),
    )  # fmt: skip


@bounds.touches("cumsum")
def _cumsum_touches(plan, f):
    for name in ("x", "y"):
        yield from bounds.at(
            f, name, *bounds.rows(f, name), (f["count"], f[f"{name}_step"]), item=bounds.ITEMS[f["type"]]
        )
