"""MultiHeadAttention, Attention, AdditiveAttention.

As in Keras, a query that sees no key attends to all keys equally: MultiHeadAttention gives masked keys a score of -1e9,
Attention subtracts 1e9. The later steps of a causal layer are masked the same way, so a causal layer that also masks
keys has a single combined mask. (Keras 3 on PyTorch returns other numbers for queries that are masked themselves.)
"""

from __future__ import annotations

import math
from functools import reduce

from ...graph import Value
from ..shared.ledger import Finding
from .calls import LayerCall, MaskedTensor, layer

_FAR = -1e9


@layer("MultiHeadAttention", masks="own")
def _multi_head(c: LayerCall) -> list[MaskedTensor]:
    heads, d = c.size("num_heads"), c.size("key_dim")
    dv = c.size("value_dim") if c.get("value_dim") is not None else d
    inputs = _query_value_key(c)
    query, value, key = (x.value for x in inputs)
    if any(len(x.dims) != 3 for x in (query, value, key)) or c.get("attention_axes") not in (None, 1, [1], (1,)):
        raise Finding("attention over other axes than time")
    for name in ("query_shape", "key_shape", "value_shape"):
        c.get(name)
    q, k, v = (
        _heads(c, x, f"{part}_dense", heads, size)
        for x, part, size in ((query, "query", d), (key, "key", d), (value, "value", dv))
    )
    causal = bool(c.kwargs.pop("use_causal_mask", False))
    mask = _seen(c, inputs, causal)
    returned = c.kwargs.pop("return_attention_scores", False)
    _may_differ(c, inputs[0], inputs[1], causal)
    scores: list[MaskedTensor] = []
    if returned:
        if causal and mask is None:
            mask = c.reshape(_triangle(c, q.dims[2], k.dims[2]), (1, 1, q.dims[2], k.dims[2]))
        weights = _zeroed(c, _weights(c, q, k, 1 / math.sqrt(d), None if mask is None else _added(c, mask)), mask, True)
        y, scores = c.add("matmul", weights, v), [MaskedTensor(weights)]
    else:
        y = c.add(
            "attention", q, k, v, *([] if mask is None else [_added(c, mask), mask]), scale=1 / math.sqrt(d),
            softcap=0.0, causal=causal and mask is None, window=0, offset=0, safe=False,
        )  # fmt: skip
        y = _zeroed(c, y, mask, bool(c.get("dropout")))
    B, T = query.dims[:2]
    y = c.reshape(c.w.transpose(y, 0, 2, 1, 3), (B, T, heads * dv))
    size = c.get("output_shape")
    size = size[0] if isinstance(size, list | tuple) and len(size) == 1 else size if size is not None else query.dims[2]
    if type(size) is not int:
        raise Finding(f"output_shape={c.get('output_shape')!r:.40}")
    W = c.take("kernel", (heads, dv, size), "output_dense").reshape(heads * dv, size)
    parts = [y, c.held(W, "output.W")]
    if c.flag("use_bias", True):
        parts.append(c.held(c.take("bias", (size,), "output_dense"), "output.bias"))
    out = c.add("linear", *parts, activation=None, alpha=0.0, beta=0.0)
    return [MaskedTensor(out, inputs[0].mask), *scores]


def _weights(c: LayerCall, q: Value, k: Value, scale: float, bias: Value | None) -> Value:
    """softmax(scale * q k' + bias), [.., Tq, Tk]."""
    turned = c.w.transpose(k, *range(len(k.dims) - 2), len(k.dims) - 1, len(k.dims) - 2)
    scores = c.unary("affine", c.add("matmul", q, turned), scale, 0.0)
    scores = scores if bias is None else c.binary("add", scores, bias)
    return c.add("softmax", scores, axis=len(scores.dims) - 1, log=False)


def _may_differ(c: LayerCall, query: MaskedTensor, value: MaskedTensor, causal: bool) -> None:
    """A query and another sequence that it attends to: their lengths may differ, as of a decoder and an encoder."""
    if query.value.name != value.value.name and not causal:
        c.work.apart = True


def _query_value_key(c: LayerCall) -> list[MaskedTensor]:
    """The three inputs with the call's masks, in whichever way they are given."""
    given = list(c.inputs) if len(c.args) == 1 else list(c.args)
    for name in ("query", "value", "key"):
        x = c.kwargs.pop(name, None)
        if x is not None:
            given.append(x)
    if len(given) == 2:
        given.append(MaskedTensor(given[1].value if isinstance(given[1], MaskedTensor) else None, None))
    if len(given) != 3 or not all(isinstance(x, MaskedTensor) for x in given):
        raise Finding(f"called with {len(given)} inputs")
    found = []
    for x, name in zip(given, ("query", "value", "key"), strict=True):
        mask = c.kwargs.pop(f"{name}_mask", None)
        found.append(MaskedTensor(x.value, mask.value if isinstance(mask, MaskedTensor) else x.mask))
    if isinstance(c.explicit_mask, MaskedTensor):
        found[0] = MaskedTensor(found[0].value, c.explicit_mask.value)
    return found


def _heads(c: LayerCall, x: Value, part: str, heads: int, size: int) -> Value:
    """x W + b as [B, heads, T, size]."""
    features = c.fixed(x.dims[2], "the features of a step must be a fixed number")
    W = c.take("kernel", (features, heads, size), part).reshape(features, heads * size)
    inputs = [x, c.held(W, f"{part}.W")]
    if c.flag("use_bias", True):
        inputs.append(c.held(c.take("bias", (heads, size), part).reshape(-1), f"{part}.bias"))
    y = c.add("linear", *inputs, activation=None, alpha=0.0, beta=0.0)
    return c.w.transpose(c.reshape(y, (*x.dims[:2], heads, size)), 0, 2, 1, 3)


def _seen(c: LayerCall, inputs: list[MaskedTensor], causal: bool) -> Value | None:
    """All masks of the scores combined, bool [B or 1, 1, Tq or 1, Tk]; None if absent or `causal` only.

    The query's own mask is left out: it affects only masked queries.
    """
    parts = []
    for x in inputs[1:]:
        if x.mask is not None and all(x.mask.name != m.name for m in parts):
            parts.append(x.mask)
    masks = [c.reshape(m, (m.dims[0], 1, 1, m.dims[1])) for m in parts]
    given = c.kwargs.pop("attention_mask", None)
    if given is None and len(c.args) > 3:
        given = c.args[3]
    if isinstance(given, MaskedTensor):
        m = given.value if given.value.dtype == "bool" else c.add("cast", given.value, to="bool")
        if len(m.dims) not in (3, 4):
            raise Finding(f"an attention mask of {len(m.dims)} axes")
        masks.append(m if len(m.dims) == 4 else c.reshape(m, (m.dims[0], 1, *m.dims[1:])))
    elif given is not None:
        raise Finding("an attention mask that is not a tensor")
    if not masks:
        return None
    c.work.masked.append(c.label)
    if causal:
        masks.append(_triangle(c, inputs[0].value.dims[1], inputs[1].value.dims[1]))
    return reduce(lambda a, b: c.binary("and", a, b), masks)


def _triangle(c: LayerCall, rows, columns) -> Value:
    """bool [rows, columns]: column <= row."""
    first, second = (c.add("steps", dims=(n,), start=0) for n in (columns, rows))
    return c.binary("less_equal", first, c.reshape(second, (rows, 1)))


def _zeroed(c: LayerCall, y: Value, mask: Value | None, other: bool) -> Value:
    """y [B, H, Tq, ..] with 0 for a query that sees no key, in the other function that Keras 3 uses if the layer has
    dropout or returns its scores."""
    c.get("dropout")
    if mask is None or c.version.major < 3 or not other:
        return y
    seen = c.reduce("max", c.add("cast", mask, to="float32"), (3,), keepdims=True)
    return c.where(c.add("cast", seen, to="bool"), y, c.number(0.0))


def _added(c: LayerCall, mask: Value) -> Value:
    return c.where(mask, c.number(0.0), c.number(_FAR))


@layer("Attention", "AdditiveAttention", masks="own")
def _attention(c: LayerCall) -> list[MaskedTensor]:
    """softmax(score(q, k)) v. The score is a product, or scale * sum(tanh(q + k)) (additive, or score_mode concat)."""
    inputs, masks = c.inputs, c.masks()
    if len(inputs) not in (2, 3) or any(len(x.dims) != 3 for x in inputs):
        raise Finding(f"of {len(inputs)} inputs of {[len(x.dims) for x in inputs]} axes")
    q, v = inputs[0].value, inputs[1].value
    k = inputs[2].value if len(inputs) > 2 else v
    causal = bool(c.kwargs.pop("use_causal_mask", False)) or c.flag("causal")
    returned = c.kwargs.pop("return_attention_scores", False)
    _may_differ(c, inputs[0], inputs[1], causal)
    mode = c.option("score_mode", "dot", ("dot", "concat"))
    additive = c.layer.kind == "AdditiveAttention" or mode == "concat"
    bias = None
    if masks[1] is not None:
        c.work.masked.append(c.label)
        mask = c.reshape(masks[1], (masks[1].dims[0], 1, masks[1].dims[1]))
        if causal and not additive:
            mask, causal = c.binary("and", mask, _triangle(c, q.dims[1], k.dims[1])), False
        bias = _added(c, mask)
    weights = None
    if additive:
        weights = _additive(c, q, k, bias, causal)
        y = c.add("matmul", weights, v)
    elif returned:
        if causal:
            triangle = c.reshape(_triangle(c, q.dims[1], k.dims[1]), (1, q.dims[1], k.dims[1]))
            bias = _added(c, triangle)
        weights = _weights(c, q, k, float(c.take("scale", ())) if c.get("use_scale") else 1.0, bias)
        y = c.add("matmul", weights, v)
    else:
        scale = float(c.take("scale", ())) if c.get("use_scale") else 1.0
        parts = [c.reshape(x, (x.dims[0], 1, *x.dims[1:])) for x in (q, k, v)]
        if bias is not None:
            parts.append(c.reshape(bias, (bias.dims[0], 1, *bias.dims[1:])))
        y = c.add("attention", *parts, scale=scale, softcap=0.0, causal=causal, window=0, offset=0, safe=False)
        y = c.reshape(y, (*q.dims[:2], v.dims[2]))
    if masks[0] is not None:
        y = c.where(c.like(masks[0], 3), y, c.number(0.0))
    return [MaskedTensor(y, masks[0])] + ([MaskedTensor(weights)] if returned and weights is not None else [])


def _additive(c: LayerCall, q: Value, k: Value, bias: Value | None, causal: bool) -> Value:
    """The weights of additive attention, [B, Tq, Tk]."""
    if causal:
        raise Finding("additive attention with a causal mask")
    size = c.fixed(q.dims[2], "the features of a step must be a fixed number")
    both = c.binary("add", c.reshape(q, (*q.dims[:2], 1, size)), c.reshape(k, (k.dims[0], 1, *k.dims[1:])))
    if c.layer.kind == "AdditiveAttention":
        scores = c.unary("tanh", both)
        if c.get("use_scale", True):
            scores = c.binary("mul", scores, c.held(c.take("scale", (size,)), "scale"))
        scores = c.reduce("sum", scores, (3,))
    else:
        inner = c.unary("affine", both, float(c.take("scale", ())), 0.0) if c.get("use_scale") else both
        scores = c.reduce("sum", c.unary("tanh", inner), (3,))
        scores = c.unary("affine", scores, float(c.take("concat_score_weight", ())), 0.0)
    if bias is not None:
        scores = c.binary("add", scores, bias)
    return c.add("softmax", scores, axis=2, log=False)
