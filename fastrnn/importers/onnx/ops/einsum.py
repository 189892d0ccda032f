"""Einsum: operands are contracted in pairs, each as transposes, one product and a transpose."""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ....graph import dims as D
from ...shared.ledger import Finding
from ..reading.reader import NodeReader
from ..reading.registry import op
from ..reading.values import Const
from .products import _float, matmul

_ZERO = np.zeros((), np.float32)
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@op("Einsum", attrs="equation")
def _einsum(ctx, n: NodeReader):
    text = n.attr("equation", "string", "").replace(" ", "")
    values = [_float(ctx, n.input(i), "Einsum") for i in range(len(n.values))]
    terms, out = _terms(text, values)
    sizes: dict = {}
    for k, (term, value) in enumerate(zip(terms, values, strict=True)):
        for letter, d in zip(term, value.dims, strict=True):
            ctx.equal(sizes.setdefault(letter, d), d, f"the sizes named {letter!r} in Einsum must be equal")
        terms[k], values[k] = _diagonal(ctx, term, value)
    while len(terms) > 1:
        kept = set(out).union(*terms[2:])
        head = out if len(terms) == 2 else "".join(dict.fromkeys(c for c in terms[0] + terms[1] if c in kept))
        values[:2] = [_product(ctx, terms[:2], values[:2], head, sizes)]
        terms[:2] = [head]
    if terms[0] != out:
        values = [_single(ctx, terms[0], values[0], out)]
    return values


def _terms(text: str, values: list) -> tuple[list[str], str]:
    """(letters of each operand, letters of the result); an ellipsis becomes letters that the text does not use."""
    left, arrow, out = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(values) or not all(
        t.replace("...", "", 1).isalpha() or t in ("", "...") for t in (*terms, out)
    ):
        raise ModelFormatError(f"equation={text!r} for {len(values)} operands")
    spare = [c for c in _LETTERS if c not in text][::-1]
    more = [len(v.dims) - len(t.replace("...", "")) for t, v in zip(terms, values, strict=True)]
    for term, count, value in zip(terms, more, values, strict=True):
        if count < 0 or (count > 0 and "..." not in term):
            raise ModelFormatError(f"equation {text!r} with a value of rank {len(value.dims)}")
    widest = max((c for t, c in zip(terms, more, strict=True) if "..." in t), default=0)
    if len(spare) < widest:
        raise Finding(f"equation={text!r}")
    dots = "".join(spare[:widest])
    terms = [t.replace("...", dots[widest - c :]) for t, c in zip(terms, more, strict=True)]
    if not arrow:
        joined = "".join(terms)
        out = dots + "".join(sorted(c for c in set(joined) if joined.count(c) == 1 and c not in dots))
    out = out.replace("...", dots)
    if len(set(out)) != len(out) or not set(out) <= set("".join(terms)):
        raise ModelFormatError(f"equation {text!r}: its result names an axis twice, or one that no operand has")
    return terms, out


def _diagonal(ctx, term: str, value):
    """For a letter that occurs twice in an operand: the elements where both axes have the same index."""
    while len(set(term)) != len(term):
        letter = next(c for c in term if term.count(c) > 1)
        i, rank = term.index(letter), len(term)
        j = term.index(letter, i + 1)
        value = ctx.live(value)
        places = [
            ctx.reshape(ctx.positions(value.dims[a]), tuple(value.dims[a] if b == a else 1 for b in range(rank)))
            for a in (i, j)
        ]
        same = ctx.one("binary", *places, fn="equal")
        value = ctx.one("where", same, value, Const(_ZERO))
        value = ctx.one("reduce", value, fn="sum", axes=(j,), keepdims=False)
        term = term[:j] + term[j + 1 :]
    return term, value


def _single(ctx, term: str, value, out: str):
    """One operand: sum over axes that the result lacks, then transpose."""
    alone = tuple(i for i, c in enumerate(term) if c not in out)
    if alone:
        value = ctx.one("reduce", value, fn="sum", axes=alone, keepdims=False)
        term = "".join(c for c in term if c in out)
    return ctx.transpose(value, [term.index(c) for c in out])


def _product(ctx, terms: list[str], values: list, out: str, sizes: dict):
    """Two operands as one batched matrix product."""
    terms, values = list(terms), list(values)
    for k, term in enumerate(terms):  # axes of only one operand that the result lacks are summed first
        others = set(out) | set(terms[1 - k])
        kept = "".join(c for c in term if c in others)
        if kept != term:
            values[k], terms[k] = _single(ctx, term, values[k], kept), kept
    a, b = terms
    batch = [c for c in out if c in a and c in b]
    rows, columns = ([c for c in out if c in s and c not in o] for s, o in ((a, b), (b, a)))
    inner = [c for c in a if c in b and c not in out]
    flat = []
    for value, term, order, head, tail in ((values[0], a, batch + rows + inner, rows, inner),
                                           (values[1], b, batch + inner + columns, inner, columns)):  # fmt: skip
        value = ctx.transpose(value, [term.index(c) for c in order])
        shape = [sizes[c] for c in batch] + [D.product(sizes[c] for c in part) for part in (head, tail)]
        flat.append(ctx.reshape(value, shape))
    product = matmul(ctx, *flat)
    spread = ctx.reshape(product, [sizes[c] for c in batch + rows + columns])
    return ctx.transpose(spread, [(batch + rows + columns).index(c) for c in out])
