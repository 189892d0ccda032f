"""Values for each pair of steps: masks, decays by the distance of two steps, products of all queries and keys.

i is the step along axis -2, that of the query and of the result; j is the one along axis -1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ...graph import Node
from ...graph import dims as D
from .algebra import Unknown
from .forms import ONE, Form, Mask, Part
from .registry import reads

if TYPE_CHECKING:
    from .read import Reader

COMPARED = {"greater_equal": (1, 0), "greater": (1, 1), "less_equal": (-1, 0), "less": (-1, 1)}


def past(form: Form) -> Form:
    """|i - j| or max(i - j, 0), which are i - j for steps i >= j."""
    if form.offset or _difference(form) != 1:
        raise Unknown
    return replace(form, needs=True)


def _difference(form: Form) -> int:
    """1 for i - j, -1 for j - i, 0 for anything else. i: the steps along axis -2, j: those along axis -1."""
    powers = {axis: dict(p.powers) for axis, p in form.parts.items() if p.local is None}
    for sign in (1, -1):
        if powers == {-2: {ONE: float(sign)}, -1: {ONE: float(-sign)}} and form.logs and not form.needs:
            return sign
    return 0


def compared(reader: Reader, fn: str, a: str, b: str) -> Mask:
    number = reader.number(b)
    if number is not None:
        form = reader.form(a, True)
    elif (number := reader.number(a)) is not None:
        form, number = reader.nodes.scaled(reader.form(b, True), -1.0), -number
    else:
        form, number = reader.nodes.combined(reader.form(a, True), reader.form(b, True), -1), 0.0
    sign = _difference(form)  # sign * (i - j) + offset, compared with the number
    direction, strict = COMPARED[fn]
    if sign == 0 or not float(number - form.offset).is_integer():
        raise Unknown
    bound = int(number - form.offset)
    if sign * direction > 0:  # i - j >= least
        return Mask(sign * bound + strict)
    return Mask(sign * bound + 1 - strict, not_=True)  # i - j < least


@reads("where")
def _where(reader: Reader, node: Node):
    mask, a, b = node.inputs
    mask = reader.forms.get(mask)
    if not isinstance(mask, Mask):
        raise Unknown
    inside, outside = (b, a) if mask.not_ else (a, b)
    number = reader.number(outside)
    if number not in (0.0, -math.inf):
        raise Unknown
    logs = number == -math.inf
    if reader.number(inside) == (0.0 if logs else 1.0):
        return Form(2, {-2: Part(), -1: Part()}, logs, causal=mask.least)
    form = reader.form(inside, logs)
    if form.rank < 2 or not set(form.parts) <= {-1, -2} or form.flipped or form.ahead or form.totals:
        raise Unknown
    parts = {-2: Part(), -1: Part(), **form.parts}
    return replace(form, parts=parts, causal=mask.least if form.causal is None else max(mask.least, form.causal))


@reads("cast")
def _cast(reader: Reader, node: Node):
    form = reader.forms.get(node.inputs[0])
    if isinstance(form, Mask) and node.attrs["to"] == "float32" and not form.not_:
        return Form(2, {-2: Part(), -1: Part()}, False, causal=form.least)
    if not isinstance(form, Form) or not form.whole:
        raise Unknown
    return form if node.attrs["to"].startswith("int") else real(reader, form)


def real(reader: Reader, form: Form) -> Form:
    """Step numbers as real numbers."""
    if not form.whole or not form.offset:
        return replace(form, whole=False)
    number = reader.nodes.reshape(reader.nodes.number(form.offset), (1,) * form.rank)
    other = Form(form.rank, {min(form.parts): Part({}, number)}, True)
    return reader.nodes.combined(replace(form, whole=False, offset=0.0), other, 1)


@reads("steps")
def _steps(reader: Reader, node: Node):
    if node.attrs["dims"] != (D.TIME,) or not isinstance(node.attrs["start"], int):
        raise Unknown
    return Form(1, {-1: Part({ONE: 1.0})}, True, whole=True, offset=float(node.attrs["start"]))


def segment_sums(form: Form, axis: int, attrs) -> Form:
    """Running sums along i of l[i] for i > j: the sum of l from j + 1 to i."""
    i, j = form.parts[-2], form.parts[-1]
    plain = not (i.powers or j.powers or j.local or form.pair or form.still or form.needs)
    if axis != -2 or not plain or i.local is None or attrs["exclusive"] or attrs["reverse"]:
        raise Unknown
    return Form(form.rank, {-2: Part({i.local: 1.0}), -1: Part({i.local: -1.0})}, True, needs=True)


@reads("matmul")
def _matmul(reader: Reader, node: Node):
    a, b = node.inputs
    if len(reader.dims(a)) < 2 or len(reader.dims(b)) < 2:
        raise Unknown
    if reader.dims(a)[-2] != D.TIME or reader.dims(b)[-1] != D.TIME:
        raise Unknown
    return reader.nodes.matmul(reader.form(a, False), reader.form(b, False))
