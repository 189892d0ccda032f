"""Lowering of products: `linear` by packed weights, `matmul` of two live values."""

from __future__ import annotations

from ...graph import Node
from ...graph import dims as D
from ...machine import _isa
from .. import bounds
from ..tensors import Tensor, collapse
from .base import Lowering, lowers
from .fields import at, instruction, level_fields

ROUNDED_FLOATS = 65536  # of rows that are rounded together: 256 KiB stay in L2 beside the weights
ROUNDED_ROWS = 96  # at least as many: half of that is worth the while of two threads
MOST_LANES = 16  # float32 in the widest vector: the upper bound of the padding of columns


@lowers("linear")
def _linear(low: Lowering, node: Node) -> None:
    W, bias, scale = (low.array(node, i, name) for i, name in enumerate(("W", "bias", "scale"), 1))
    precision = node.attrs.get("precision", "float32")
    packed = low.weights.linear(W, bias, precision, scale, ("linear", precision, *node.inputs[1:]))
    x = low.contiguous_last(low.real(node), node)
    out = low.result(node, order=_rows_order(x), rows=True)
    loops = low.levels(x.dims[:-1], (x.strides[:-1], out.strides[:-1]), _without_last(x.order), node)
    k, n = W.shape
    act = instruction(node.attrs["activation"] or "identity", (0,), node.attrs["alpha"], node.attrs["beta"])
    rounded, rounded_rows = room_for_rounded(low, packed, D.product(x.dims[:-1]))
    fields = {"packed": len(low.plan.linears), **level_fields(loops, ("x", "y"))}
    fields |= {"rounded": rounded, "rounded_rows": rounded_rows}
    low.plan.linears.append((packed, act))
    flops = D.product(x.dims[:-1]) * (2 * k * n)
    writes = (out,) if rounded == -1 else (out, rounded)
    low.builder.emit("linear", node.name, (x,), writes, flops, **fields, **at("x", x), **at("y", out))


def room_for_rounded(low: Lowering, packed, rows) -> tuple:
    """Room for the rows that a product of reduced precision rounds, and how many it holds at once."""
    if packed.weights == "float32":
        return -1, 0
    size = max(packed.rounded_size, 1)  # a product may sum over nothing
    most = max(ROUNDED_ROWS, ROUNDED_FLOATS // size)
    return low.builder.scratch(rows * size, cap=most * size), most


@bounds.touches("linear")
def _linear_touches(plan, f):
    packed = plan.linears[f["packed"]][0]
    yield from bounds.at(f, "x", *bounds.rows(f, "x"), (packed.K, 1))
    yield from bounds.at(f, "y", *bounds.rows(f, "y"), (packed.N, 1))


@lowers("matmul")
def _matmul(low: Lowering, node: Node) -> None:
    """Neither side is constant: b is packed at run time, once for each matrix of the batch."""
    a, b = low.real(node, 0), low.real(node, 1)
    dims = low.graph.values[node.outputs[0]].dims
    vector_a, vector_b = len(a.dims) == 1, len(b.dims) == 1
    a = a.unsqueeze(0) if vector_a else a
    b = b.unsqueeze(1) if vector_b else b
    a = low.contiguous_last(a, node)
    m, k, n = a.dims[-2], a.dims[-1], b.dims[-1]
    full = (*dims[: len(dims) - (not vector_a) - (not vector_b)], m, n)
    out = low.builder.allocate("float32", full) if vector_a or vector_b else low.result(node, rows=True)
    lead = full[:-2]
    a, b = a.expand((*lead, m, k)), b.expand((*lead, k, n))
    strides = tuple(t.strides[:-2] for t in (a, b, out))
    if len(collapse(lead, strides, tuple(range(len(lead))))) > 2:  # in row-major order they merge into one
        a, b = low.dense(a, node), low.dense(b, node)
        out = low.result(node, fresh=True) if not (vector_a or vector_b) else out
        strides = tuple(t.strides[:-2] for t in (a, b, out))
    loops = low.levels(lead, strides, tuple(range(len(lead))), node, levels=2)
    if isinstance(k, D.Dim) or isinstance(n, D.Dim):
        packed_size = (n + MOST_LANES) * (k + 1)  # an upper bound of linear_pack_size for any length
    else:
        packed_size = _isa.linear_pack_size(k, n, isa=low.weights.isa)
    scratch = low.builder.scratch(packed_size)
    flops = D.product(full) * (2 * k)
    low.builder.emit(
        "matmul", node.name, (a, b), (out, scratch), flops, m=m, k=k, n=n,
        **level_fields(loops, ("a", "b", "y"), 2),
        a_row=a.strides[-2], b_row=b.strides[-2], b_column=b.strides[-1], y_row=out.strides[-2],
        scratch=scratch, **at("a", a), **at("b", b), **at("y", out),
    )  # fmt: skip
    if vector_a or vector_b:
        low.tensors[node.outputs[0]] = out.reshape(dims)


@bounds.touches("matmul")
def _matmul_touches(plan, f):
    m, k, n = f["m"], f["k"], f["n"]
    yield from bounds.at(f, "a", *bounds.rows(f, "a", 2), (m, f["a_row"]), (k, 1))
    yield from bounds.at(f, "b", *bounds.rows(f, "b", 2), (k, f["b_row"]), (n, f["b_column"]))
    yield from bounds.at(f, "y", *bounds.rows(f, "y", 2), (m, f["y_row"]), (n, 1))


def _rows_order(t: Tensor) -> list[int]:
    """t's memory order with the last axis fastest: the order of a result whose rows follow those of t."""
    return [*_without_last(t.order), len(t.dims) - 1]


def _without_last(order: tuple) -> list[int]:
    return [a for a in order if a != len(order) - 1]
