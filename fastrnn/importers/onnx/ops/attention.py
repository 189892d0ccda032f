"""The operator Attention (opset 23 to 25) as the graph's own op, with its caches as concatenations."""

from __future__ import annotations

import math

import numpy as np

from ....errors import ModelFormatError
from ....graph import dims as D
from ...shared.ledger import Finding
from ..reading.reader import NodeReader
from ..reading.registry import Expand, op
from ..reading.values import Const, Live
from ..sizes import positions
from .products import _float

_HIDDEN = Const(np.float32(-np.inf).reshape(()))
_SHOWN = Const(np.zeros((), np.float32))


@op(
    "Attention",
    attrs="is_causal kv_num_heads q_num_heads qk_matmul_output_mode scale softcap softmax_precision left_window_size "
    "right_window_size",
)
def _attention(ctx, n: NodeReader):
    q, k, v = (_float(ctx, n.input(i), "Attention") for i in range(3))
    heads, key_heads = n.attr("q_num_heads", "int", 0), n.attr("kv_num_heads", "int", 0)
    flat = len(q.dims) == 3
    if flat:
        q = _split_heads(ctx, q, heads, "q_num_heads")
        k, v = (_split_heads(ctx, x, key_heads, "kv_num_heads") for x in (k, v))
    for x, what in ((q, "Q"), (k, "K"), (v, "V")):
        if len(x.dims) != 4:
            raise ModelFormatError(f"{what} of rank {len(x.dims)}; 3 or 4 are")
    if len(n.needed) > 3 and n.needed[3]:
        raise Expand("its output qk_matmul_output", without=("softmax_precision",))
    n.attr("qk_matmul_output_mode", "int", 0)  # affects that output only
    n.only("softmax_precision", "int", 1, (0, 1, 11), "the softmax is computed in float32")
    k, v, offset = _with_past(ctx, n, k, v)
    _tie(ctx, q, k, v)
    left = n.attr("left_window_size", "int", -1) if n.opset >= 25 else -1
    right = n.attr("right_window_size", "int", -1) if n.opset >= 25 else -1
    if left < -1 or right < -1:
        raise ModelFormatError(f"left_window_size {left}, right_window_size {right}: at least -1")
    causal = n.attr("is_causal", "int", 0) != 0 or right == 0
    softcap, scale = n.attr("softcap", "float", 0.0), n.attr("scale", "float")
    if softcap < 0:
        raise ModelFormatError(f"softcap is {softcap}")
    if scale is None:
        scale = 1 / math.sqrt(ctx.number(q.dims[3], "Attention needs a known number of features"))
    inputs, full = [q, k, v], (*q.dims[:3], k.dims[2])
    bias = _bias(ctx, n, full, causal or left >= 0, right if not causal else -1)
    if bias is not None:
        inputs.append(bias)
    attrs = {
        "scale": float(scale), "softcap": float(softcap), "causal": causal, "window": left + 1, "offset": offset,
        "safe": True,
    }  # fmt: skip
    out = ctx.emit("attention", inputs, attrs)[0]
    if flat:
        out = ctx.transpose(out, (0, 2, 1, 3))
        out = ctx.reshape(out, (*out.dims[:2], D.product(out.dims[2:])))
    present = [x if len(n.needed) > i and n.needed[i] else None for i, x in ((1, k), (2, v))]
    return [out, *(None if x is None else ctx.live(x) for x in present), None]


def _split_heads(ctx, x, heads: int, what: str):
    """[batch, length, heads * features] -> [batch, heads, length, features]"""
    if len(x.dims) != 3:
        raise ModelFormatError(f"Q, K and V of different ranks: one has {len(x.dims)} axes")
    size = ctx.number(x.dims[2], "Attention needs a known number of features")
    if heads < 1 or size % heads:
        raise ModelFormatError(f"{what} is {heads} for {size} features")
    return ctx.transpose(ctx.reshape(x, (*x.dims[:2], heads, size // heads)), (0, 2, 1, 3))


def _with_past(ctx, n: NodeReader, k, v) -> tuple:
    """Keys and values with those of earlier calls prepended, and the number of earlier ones."""
    past = [n.input(i, optional=True) for i in (4, 5)]
    if past == [None, None]:
        return k, v, 0
    if None in past:
        raise ModelFormatError("past_key and past_value come together")
    joined = []
    for old, new in zip(past, (k, v), strict=True):
        old = ctx.live(_float(ctx, old, "Attention"))
        if len(old.dims) != 4:
            raise ModelFormatError(f"a cache of rank {len(old.dims)}; 4 is")
        for axis in (0, 1, 3):
            ctx.equal(old.dims[axis], new.dims[axis], f"a cache must fit what is added to it along axis {axis}")
        joined.append(ctx.one("concat", old, new, axis=2))
    ctx.equal(past[0].dims[2], past[1].dims[2], "the caches must be equally long")
    return *joined, past[0].dims[2]


def _tie(ctx, q, k, v) -> None:
    for axis in (0, 1, 2):
        ctx.equal(k.dims[axis], v.dims[axis], f"K and V must be equally long along axis {axis}")
    ctx.equal(q.dims[0], k.dims[0], "Q and K must have equal batches")
    ctx.equal(q.dims[3], k.dims[3], "Q and K must have equally many features")
    heads, key_heads = (ctx.number(x.dims[1], "Attention needs a known number of heads") for x in (q, k))
    if key_heads < 1 or heads % key_heads:
        raise ModelFormatError(f"{heads} heads of Q over {key_heads} of K")


def _bias(ctx, n: NodeReader, full: tuple, bounded: bool, right: int):
    """The bias added to the scores besides causal and window: the mask, the keys' lengths, steps far ahead."""
    parts = []
    mask, lengths = n.input(3, optional=True), n.input(6, optional=True) if n.opset >= 24 else None
    if mask is not None:
        parts.append(_mask(ctx, mask, full))
    if lengths is not None:
        if bounded:
            why = "nonpad_kv_seqlen with a causal mask or a window: each row would have its own offset"
            raise Expand(why, without=("softmax_precision",))
        lengths = ctx.live(lengths)
        ctx.equal(lengths.dims[0], full[0], "nonpad_kv_seqlen must have an entry for each row")
        if lengths.dtype != "int64":
            lengths = ctx.one("cast", lengths, to="int64")
        numbers = ctx.reshape(ctx.positions(full[3]), (1, 1, 1, full[3]))
        parts.append(_hide(ctx, ctx.one("binary", numbers, ctx.reshape(lengths, (full[0], 1, 1, 1)), fn="less")))
    if right >= 0:
        parts.append(_hide(ctx, positions.triangle(ctx, full[2:], right, False)))
    total = None
    for part in parts:
        total = part if total is None else ctx.one("binary", total, part, fn="add")
    return total


def _hide(ctx, shown):
    return ctx.one("where", shown, _SHOWN, _HIDDEN)


def _mask(ctx, mask, full: tuple):
    """attn_mask as a bias; axes that broadcast stay 1. Keys beyond the end of the mask are not seen."""
    if not 1 <= len(mask.dims) <= 4:
        raise ModelFormatError(f"attn_mask of rank {len(mask.dims)}")
    given, size, left = mask.dims[-1], full[3], 0
    if ctx.table.example(given) < ctx.table.example(size):
        given = ctx.number(given, "attn_mask is shorter than the keys")
        left = ctx.number(size, "attn_mask is shorter than the keys") - given
        full = (*full[:3], given)
    mask, _ = ctx.broadcast([mask, Live("scores", "float32", full)], "attn_mask")
    kind = ctx.kind(mask)
    if kind.startswith(("int", "uint")):  # added to the scores as it is
        if left:
            raise Finding(f"an attn_mask of {kind} that is shorter than the keys")
        mask = ctx.one("cast", mask, to="float32")
    mask = _hide(ctx, ctx.live(mask)) if kind == "bool" else ctx.live(_float(ctx, mask, "attn_mask"))
    if left:
        pads = (0,) * (2 * len(mask.dims) - 1) + (left,)
        mask = ctx.one("pad", mask, pads=pads, mode="constant", value=-np.inf)
    return mask
