"""A form whose powers cancel -> the nodes of the recurrence that it is."""

from __future__ import annotations

from ...errors import ShapeError
from ...graph import Node
from ...graph import dims as D
from ...graph.shapes import broadcast
from .algebra import Nodes, Unknown
from .forms import ONE, Form, Part, Powers, scaled, summed
from .read import Reader


def elementwise(reader: Reader, form: Form) -> str:
    """The value of a form with running sums as factors; its powers and what is the same at all steps must cancel."""
    nodes = reader.nodes
    if form.logs or form.flipped or form.ahead or form.causal is not None or form.needs or len(form.parts) != 1:
        raise Unknown
    ((axis, part),) = form.parts.items()
    powers, still = dict(part.powers), dict(form.still)
    for total, sign in form.totals:
        powers, still = summed(powers, total.powers, sign), summed(still, total.still, sign)
    if powers or still or not any(t.powers for t, _ in form.totals):
        raise Unknown
    made = part.local
    for total, sign in form.totals:
        kept, ran = scan(nodes, scaled(total.powers, -1.0), total.local, form.rank)
        value = kept if total.before else ran
        if made is None:
            made = value if sign > 0 else nodes.unary("recip", value)
        else:
            made = nodes.binary("mul" if sign > 0 else "div", made, value)
    assert made is not None
    return nodes.steps_back(made, axis)


def scan(nodes: Nodes, decay: Powers, local: str | None, rank: int) -> tuple[str, str]:
    """(a * h one step ago, h) of h[t] = a[t] * h[t-1] + local[t] with a = exp(sum of coefficient * value)."""
    local = nodes.reshape(nodes.number(1.0), (1,) * rank) if local is None else local
    a = _decay(nodes, decay, rank) if decay else None
    dims = nodes.dims(local) if a is None else broadcast(nodes.dims(local), nodes.dims(a))
    if dims[0] == 1:
        dims = (D.TIME, *dims[1:])
    if any("time" in D.symbols(d) for d in dims[1:]):
        raise Unknown
    patch = nodes.patch
    key = ("scan", a, local)
    if key not in nodes.known:
        name = local if local not in patch.constants else a
        before = patch.declare(f"{name}.before", "float32", dims)
        kept, total = before, patch.declare(f"{name}.total", "float32", dims)
        patch.made.append(Node("state", before, (total,), (before,), {}))
        if a is not None:
            kept = patch.declare(f"{name}.kept", "float32", dims)
            patch.made.append(Node("binary", kept, (a, before), (kept,), {"fn": "mul"}))
        patch.made.append(Node("binary", total, (kept, local), (total,), {"fn": "add"}))
        nodes.known[key] = (kept, total)
    return nodes.known[key]


def _decay(nodes: Nodes, powers: Powers, rank: int) -> str:
    total, number = None, powers.get(ONE, 0.0)
    for name, k in sorted(powers.items()):
        if name == ONE:
            continue
        term = nodes.times(name, k)
        total = term if total is None else nodes.binary("add", total, term)
    if total is None:
        return nodes.reshape(nodes.power(number), (1,) * rank)
    if number:
        total = nodes.binary("add", total, nodes.number(number))
    plain = nodes.without("log", total)
    return nodes.unary("exp", total) if plain is None else plain


def product(reader: Reader, form: Form, other: Form | None) -> str:
    """The sums over j of a value for each pair of steps, alone or times a value of step j [.., time, N]."""
    nodes, rank = reader.nodes, form.rank
    if (
        form.logs
        or form.flipped
        or form.causal not in (0, 1)
        or form.still
        or form.totals
        or set(form.parts) != {-1, -2}
    ):
        raise Unknown
    i, j = form.parts[-2], form.parts[-1]
    assert form.causal is not None
    if other is not None:
        rank = max(rank, other.rank)
        if set(other.parts) != {-2} or other.totals or other.still or other.flipped or other.ahead or other.pair:
            raise Unknown
        if rank != form.rank or other.needs or other.causal is not None:
            raise Unknown
        j = nodes.joined(j, nodes.at_rank(other, rank).parts[-2], False, 1)
    if summed(i.powers, j.powers):
        raise Unknown
    made = _of_pair(nodes, form, j, rank) if form.pair else scan(nodes, i.powers, j.local, rank)[1 - form.causal]
    if i.local is not None:
        made = nodes.binary("mul", made, i.local)
    return made


def _of_pair(nodes: Nodes, form: Form, j: Part, rank: int) -> str:
    """q[t] S[t] with S[t] = decay[t] * S[t-1] + k[t] v[t]'. q, k [time, .., R]; v [time, .., N] is j's own value."""
    assert form.pair is not None
    q, k = form.pair.q, form.pair.k
    if summed(q.powers, k.powers) or q.local is None or k.local is None:
        raise Unknown

    def column(name: str) -> str:
        return nodes.reshape(name, (*nodes.dims(name), 1))

    def row(name: str) -> str:
        return nodes.reshape(name, (*nodes.dims(name)[:-1], 1, nodes.dims(name)[-1]))

    decay: dict[str, float] = {}
    for powers in (scaled(j.powers, -1.0), q.powers):
        for name, factor in powers.items():
            decay = summed(decay, {name if name == ONE else column(name): factor})
    update = column(k.local) if j.local is None else nodes.binary("mul", column(k.local), row(j.local))
    state = scan(nodes, decay, update, rank + 1)[1 - int(form.causal or 0)]
    made = nodes.add("matmul", row(q.local), state)
    dims = nodes.dims(made)
    return nodes.reshape(made, (*dims[:-2], dims[-1]))


def resolved(reader: Reader, node: Node) -> str | None:
    """The recurrence that gives the value of this node; None if it is not one."""
    try:
        if node.op == "matmul" and _pairs(reader, node.inputs[0]):
            value = reader.form(node.inputs[1], False)
            made = product(reader, reader.form(node.inputs[0], False), value)
            return reader.nodes.steps_back(made, -2)
        if node.op == "reduce" and _pairs(reader, node.inputs[0]) and node.attrs["fn"] == "sum":
            form = reader.form(node.inputs[0], False)
            if node.attrs["axes"] != (form.rank - 1,):
                return None
            made = reader.nodes.steps_back(product(reader, form, None), -2)
            return reader.nodes.reshape(made, reader.dims(node.outputs[0]))
        form = reader.forms.get(node.outputs[0])
        if isinstance(form, Form) and form.totals and not form.logs:
            return elementwise(reader, form)
    except (Unknown, ShapeError):
        pass
    return None


def _pairs(reader: Reader, name: str) -> bool:
    form = reader.forms.get(name)
    return isinstance(form, Form) and form.causal is not None
