"""Lowering of attention: over the keys of a call, or over those that a stream keeps.

For causal attention, a stream keeps keys and values in its slab row. A `Context` says how many: the caller's bound, or
the window of the node itself.
"""

from __future__ import annotations

import numpy as np

from ...errors import UnsupportedError
from ...graph import Graph, Node
from ...graph import dims as D
from ...ops import attention_scratch
from ...records import dataclass
from ...streaming.rules import streams_causally
from .. import bounds
from ..tensors import Buffer, Tensor
from .base import Lowering, lowers
from .fields import at
from .positions import limit, position

HEADS_ORDER = (0, 2, 1, 3)  # of a fresh result: [batch, length, heads, features], since heads are joined next


@dataclass(frozen=True)
class Context:
    """How many steps a stream's attention looks back. drop: older keys are dropped; else the stream ends there."""

    steps: int
    drop: bool


def unbounded(graph: Graph) -> list[Node]:
    """The nodes that attend to all earlier steps. A stream can keep those only up to a bound from the caller."""
    return [n for n in over_time(graph) if not n.attrs["window"]]


def over_time(graph: Graph) -> list[Node]:
    """The attention nodes for which a stream keeps keys and values."""
    return [n for n in graph.nodes if n.op == "attention" and streams_causally(graph, n)]


@lowers("attention")
def _attention(low: Lowering, node: Node) -> None:
    a, kept = node.attrs, _is_kept(low, node)
    q, k, v = (low.contiguous_last(low.real(node, i), node) for i in range(3))
    y = low.result(node, order=HEADS_ORDER, rows=True)
    batch, heads = q.dims[0], k.dims[1]
    sizes = {"batch": batch, "heads": heads, "rows": q.dims[2], "keys": k.dims[2]}
    sizes |= {"group": 1 if q.dims[1] == heads else D.exact_div(q.dims[1], heads), "d": k.dims[3], "dv": v.dims[3]}
    fields = sizes | _strided("q", q, "row", batch) | _strided("k", k, "step", batch)
    fields |= _strided("v", v, "step", batch) | _strided("y", y, "row", batch)
    if not isinstance(sizes["d"], int) or not isinstance(sizes["dv"], int):
        raise UnsupportedError(f"keys of {sizes['d']} and values of {sizes['dv']} features: both must be fixed")
    reads = [q, k, v]
    for what, i in (("bias", 3), ("mask", 4)):
        added = _of_scores(low, node, i, (batch, q.dims[1], q.dims[2], k.dims[2]))
        if added is None:
            fields |= {f"{what}_buffer": -1, f"{what}_offset": 0}
            continue
        if kept and any(added.strides[2:]):
            raise UnsupportedError(f"a {what} of single steps, {low.graph.values[node.inputs[i]]}, in a stream")
        reads.append(added)
        axes = (f"{what}_{axis}" for axis in ("batch", "head", "row", "step"))
        fields |= at(what, added) | dict(zip(axes, added.strides, strict=True))
    how = low.builder.constant(np.array([a["scale"], a["softcap"]], np.float32), "float32")
    fields |= {"causal": int(a["causal"]), "window": a["window"], "offset": a["offset"], "safe": int(a["safe"])}
    room = k.dims[2]
    if kept:
        states = _kept(low, node, sizes)
        room = states["capacity"]
        fields |= states
    scratch = low.builder.scratch(attention_scratch(room))
    work = D.product((batch, q.dims[1], q.dims[2], room)) * (2 * (sizes["d"] + sizes["dv"]))
    low.builder.emit(
        "attention", node.name, reads, (y, scratch), work, **fields, how=how.buffer, scratch=scratch, room=room
    )


@bounds.touches("attention")
def _attention_touches(plan, f):
    batch, rows, keys, heads = f["batch"], f["rows"], f["keys"], f["heads"]
    asking = heads * f["group"]
    yield from bounds.at(f, "q", (batch, f["q_batch"]), (asking, f["q_head"]), (rows, f["q_row"]), (f["d"], 1))
    yield from bounds.at(f, "y", (batch, f["y_batch"]), (asking, f["y_head"]), (rows, f["y_row"]), (f["dv"], 1))
    yield from bounds.at(f, "k", (batch, f["k_batch"]), (heads, f["k_head"]), (keys, f["k_step"]), (f["d"], 1))
    yield from bounds.at(f, "v", (batch, f["v_batch"]), (heads, f["v_head"]), (keys, f["v_step"]), (f["dv"], 1))
    if isinstance(f["bias_buffer"], Buffer):
        inner = ((rows, f["bias_row"]), (keys, f["bias_step"]))
        yield from bounds.at(f, "bias", (batch, f["bias_batch"]), (asking, f["bias_head"]), *inner)
    if f.get("capacity"):
        yield from bounds.counted(plan, {"position": f["position"], "rows": D.exact_div(batch, f["per_slot"])})
        for part, size in (("k_state", f["d"]), ("v_state", f["dv"])):
            kept = {"rows": batch, "per_slot": f["per_slot"], part: f[part]}
            yield from bounds.states(plan, kept, (part,), heads * f["capacity"] * size)


def _is_kept(low: Lowering, node: Node) -> bool:
    """A stream's keys come one after the other, each with its queries."""
    a, q, k = node.attrs, low.graph.values[node.inputs[0]], low.graph.values[node.inputs[1]]
    timed = low.mode == "stream" and a["causal"] and a["offset"] == 0
    return timed and q.dims[2] == k.dims[2] and (low.is_time(q.dims[2]) or low.is_step(node, q.dims[2]))


def _of_scores(low: Lowering, node: Node, i: int, full: tuple) -> Tensor | None:
    """Input i, a bias or mask, as one of [batch, heads, Tq, Tk]; None if absent."""
    return None if low.tensor_or_none(node, i) is None else low.real(node, i).expand(full)


def _kept(low: Lowering, node: Node, sizes: dict) -> dict:
    """The keys and values of one node in the slab, and the fields that say where they are."""
    per_slot = D.exact_div(sizes["batch"], D.BATCH) if low.has_batch else sizes["batch"]
    if not isinstance(per_slot, int) or not isinstance(sizes["heads"], int):
        raise UnsupportedError(
            f"keys of {sizes['batch']} rows and {sizes['heads']} heads are not those of single streams"
        )
    capacity = _capacity(low, node, sizes["rows"])
    fields = {"capacity": capacity, "per_slot": per_slot, "position": position(low, sizes["rows"])}
    shown = "context" if low.context is None and not node.attrs["window"] else capacity
    for part, features in (("k", sizes["d"]), ("v", sizes["dv"])):
        count = per_slot * sizes["heads"]
        dims = (count, shown, features)
        size = count * capacity * features
        fields[f"{part}_state"] = low.builder.keep(node.name, part, size, dims=dims, name=f"{node.name}.{part}")
    return fields


def _capacity(low: Lowering, node: Node, count) -> int:
    """How many keys a stream keeps. If the stream ends at the bound, the plan records it. count: keys per call."""
    window, context = node.attrs["window"], low.context
    if context is None:
        return window or 1  # a plan without a bound is only inspected, never run
    if window and window <= context.steps:
        return window
    if not context.drop:
        text = f"its context of {context.steps} steps is full (stream(context=...) gives another)"
        limit(low, context.steps, count, text)
    return context.steps


def _strided(name: str, t: Tensor, length: str, batch) -> dict:
    """Start and strides of a [batch, heads, length, features] tensor; a batch of 1 is shared by all rows."""
    rows = 0 if t.dims[0] != batch else t.strides[0]
    return at(name, t) | {f"{name}_batch": rows, f"{name}_head": t.strides[1], f"{name}_{length}": t.strides[2]}
