"""Attention."""

from __future__ import annotations

import numpy as np

from ...errors import ShapeError
from .. import dims as D
from ..shapes import broadcast
from ..vocabulary import BOOL, DIM, FLOAT, GROWS, INT, graph_op
from .reductions import softmax


def _attention_dims(inputs, attrs):
    q, k, v = inputs[:3]
    if any(len(x.dims) != 4 for x in (q, k, v)):
        raise ShapeError(f"q, k and v must be [batch, heads, length, features], got {q}, {k}, {v}")
    if any(x is not None and x.dtype != ("bool" if i == 4 else "float32") for i, x in enumerate(inputs)):
        given = ", ".join(str(x) for x in inputs if x is not None)
        raise ShapeError(f"attention of {given}: float32 is computed, under a mask of bool")
    batch, heads, rows = q.dims[:3]
    one = [x.dims[0] == batch or x.dims[0] == 1 for x in (k, v)]
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


@graph_op(
    "attention(q, k, v, bias?, mask?)",
    attrs={"scale": FLOAT, "softcap": FLOAT, "causal": BOOL, "window": INT, "offset": DIM, "safe": BOOL}
    | {"grows": GROWS},
    dims=_attention_dims,
    keeps=True,
)
def _attention(q, k, v, bias, mask, scale, softcap, causal, window, offset, safe, grows):
    """q[B,Hq,Tq,d], k[B,Hk,Tk,d], v[B,Hk,Tk,dv] -> [B,Hq,Tq,dv]: softmax(score + bias) v, over the keys that a query
    sees. k and v may have 1 for B; Hk divides Hq, and query head h reads key head h // (Hq // Hk).
    score = scale * q.k, and with softcap c > 0 c * tanh(score / c). If the bool mask is False, the score is 0, so
    only the bias counts: where(mask, score, fill) is mask and a bias of where(mask, 0, fill). bias and mask broadcast
    to [B,Hq,Tq,Tk].
    Query i is at key p = i + offset. causal: it sees only keys j <= p; window (0 for none): only keys j > p - window.
    A query that sees no key yields 0. An unseen key has no effect, whatever it contains.
    safe: if the weights of a query are NaN (for example if each score is -inf), they become zeros.
    grows: a stream's keys and values come behind those of the calls before, also if a call is one step, or the model
    has caches in front of its chunks.
    """
    heads, rows, keys = q.shape[1], q.shape[2], k.shape[2]
    k, v = (np.broadcast_to(np.repeat(x, heads // x.shape[1], 1), (len(q), heads, *x.shape[2:])) for x in (k, v))
    bias = np.broadcast_to(0.0 if bias is None else bias, (*q.shape[:3], keys))
    mask = np.broadcast_to(True if mask is None else mask, (*q.shape[:3], keys))
    y = np.zeros((*q.shape[:3], v.shape[3]))
    for i in range(rows):
        position = i + offset
        first = max(position - window + 1, 0) if window else 0
        end = min(position + 1, keys) if causal else keys
        if end <= first:
            continue
        score = scale * np.einsum("bhd,bhjd->bhj", q[:, :, i], k[:, :, first:end])
        if softcap > 0:
            score = softcap * np.tanh(score / softcap)
        score = np.where(mask[:, :, i, first:end], score, 0.0)
        weight = softmax(score + bias[:, :, i, first:end], 2, False)
        if safe:
            weight = np.where(np.isnan(weight), 0, weight)
        y[:, :, i] = np.einsum("bhj,bhjd->bhd", weight, v[:, :, first:end])
    return y
