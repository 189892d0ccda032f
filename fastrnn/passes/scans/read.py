"""Graph nodes -> forms: what each node makes of the forms of its inputs. `Unknown` if it makes none."""

from __future__ import annotations

import math
from dataclasses import replace

from ...errors import ShapeError
from ...graph import Graph, Node
from ...graph import dims as D
from .algebra import Nodes, Unknown
from .forms import ONE, Form, Mask, Part, Total
from .pairs import COMPARED, compared, past, real, segment_sums
from .registry import reads


class Reader:
    """Keeps the forms of values that have one. All other values are read as they are: parts of forms."""

    def __init__(self, graph: Graph):
        self.graph, self.nodes = graph, Nodes(graph)
        self.makers = graph.producers()
        self.forms: dict[str, Form | Mask] = {}

    def visit(self, node: Node) -> Form | Mask | None:
        """The form of the node's output, which is kept; None if it has none."""
        rule = reads.get(node.op)
        if rule is None or len(node.outputs) != 1:
            return None
        try:
            form = rule(self, node)
        except (Unknown, ShapeError):
            return None
        if form is not None:
            self.forms[node.outputs[0]] = form
        return form

    # -- inputs --
    def dims(self, name: str) -> tuple:
        return self.nodes.dims(name)

    def known(self, node: Node) -> bool:
        """Whether an input has a form."""
        return any(i in self.forms for i in node.inputs)

    def form(self, name: str, logs: bool | None = None) -> Form:
        """The form of a value: its own, or the value as it is."""
        form = self.forms.get(name)
        if isinstance(form, Mask):
            raise Unknown
        if form is not None:
            if logs is not None and form.logs != logs and not _plain(form):
                raise Unknown
            return form if logs is None else replace(form, logs=logs)
        value = self.graph.values[name]
        axes = [a for a, d in enumerate(value.dims) if "time" in D.symbols(d)]
        if value.dtype != "float32" or len(axes) != 1 or value.dims[axes[0]] != D.TIME:
            raise Unknown
        axis, rank = axes[0] - len(value.dims), len(value.dims)
        return Form(rank, {axis: Part({}, self.nodes.steps_first(name, axis))}, bool(logs))

    def number(self, name: str) -> float | None:
        """The number that all elements of a constant are, through moves; None for anything else."""
        while name not in self.graph.constants:
            node = self.makers.get(name)
            if node is None or node.op not in ("expand", "reshape", "transpose", "cast"):
                return None
            name = node.inputs[0]
        array = self.graph.constants[name]
        same = array.size and bool((array == array.flat[0]).all())
        return float(array.flat[0]) if same else None

    def still(self, name: str) -> bool:
        """Whether a value has no form and is the same at all steps."""
        return name not in self.forms and not any("time" in D.symbols(d) for d in self.dims(name))

    def spread(self, name: str, axis: int, rank: int) -> str:
        """A value that is the same at all steps as a part [1, ..] of forms of this rank."""
        dims = self.dims(name)
        full = (*(1,) * (rank - len(dims)), *dims)
        if len(full) > rank or full[axis] != 1:
            raise Unknown
        at = axis + rank
        return self.nodes.reshape(name, (1, *full[:at], *full[at + 1 :]))

    def time_axis(self, name: str, axis: int) -> bool:
        return self.dims(name)[axis] == D.TIME


def _plain(form: Form) -> bool:
    """Whether it is plain values only, so that it is not a logarithm of something."""
    parts = all(not p.powers for p in form.parts.values())
    return parts and not (form.totals or form.still or form.pair or form.whole) and form.causal is None


# ---- elementwise -----------------------------------------------------------------------------------------------------


@reads("unary")
def _unary(reader: Reader, node: Node):
    (name,), fn, a = node.inputs, node.attrs["fn"], node.attrs
    if name not in reader.forms:
        raise Unknown
    form = reader.forms[name]
    if isinstance(form, Mask):
        if fn != "not":
            raise Unknown
        return replace(form, not_=not form.not_)
    if fn == "neg":
        return reader.nodes.scaled(reader.form(name, True), -1.0)
    if fn == "affine" and a["beta"] == 0.0:
        return reader.nodes.scaled(reader.form(name, True), a["alpha"])
    if fn == "exp":
        return reader.nodes.raised(reader.form(name, True))
    if fn == "log":
        return _logarithm(form)
    if (fn == "clip" and a["alpha"] == 0.0 and a["beta"] == math.inf) or fn in ("abs", "relu"):
        return past(form)
    raise Unknown


def _logarithm(form: Form) -> Form:
    if form.logs or any(p.local is not None for p in form.parts.values()) or form.pair or form.ahead:
        raise Unknown
    return replace(form, logs=True)


@reads("binary")
def _binary(reader: Reader, node: Node):
    if not reader.known(node):
        raise Unknown
    fn, (a, b) = node.attrs["fn"], node.inputs
    if fn in ("add", "sub"):
        return _sum(reader, a, b, 1 if fn == "add" else -1)
    if fn in ("mul", "div"):
        return _product(reader, a, b, fn)
    if fn in COMPARED:
        return compared(reader, fn, a, b)
    if fn == "and":
        mask, other = (a, b) if isinstance(reader.forms.get(a), Mask) else (b, a)
        if isinstance(reader.forms.get(mask), Mask) and reader.number(other) == 1.0:
            return reader.forms[mask]
    if fn == "max":
        for name, bound in ((a, b), (b, a)):
            if name in reader.forms and reader.number(bound) == 0.0:
                return past(reader.form(name))
    if fn == "pow" and reader.still(a) and reader.graph.values[a].dtype == "float32":
        return _power(reader, a, b)
    raise Unknown


def _sum(reader: Reader, a: str, b: str, sign: int) -> Form:
    for name, other, first in ((a, b, False), (b, a, True)):
        number = reader.number(other)
        if number is None or name not in reader.forms:
            continue
        form = reader.form(name, True)
        form = reader.nodes.scaled(form, -1.0) if first and sign < 0 else form
        number = number if first else sign * number
        if form.whole:
            return replace(form, offset=form.offset + number)
        if number == 0.0:
            return form
    if reader.still(a) or reader.still(b):
        name, other = (a, b) if reader.still(b) else (b, a)
        form = reader.form(name, True)
        if not form.parts or form.whole or reader.graph.values[other].dtype != "float32":
            raise Unknown
        form = reader.nodes.scaled(form, -1.0) if name == b and sign < 0 else form
        return _with(reader, form, other, sign if name == a else 1)
    return reader.nodes.combined(reader.form(a, True), reader.form(b, True), sign)


def _with(reader: Reader, form: Form, name: str, sign: int) -> Form:
    """A form times (divided by; with logs: plus, minus) a value that is the same at all steps."""
    rank = max(form.rank, len(reader.dims(name)))
    form = reader.nodes.at_rank(form, rank)
    axis = min(form.parts)
    other = Form(rank, {axis: Part({}, reader.spread(name, axis, rank))}, form.logs, flipped=form.flipped)
    return reader.nodes.combined(form, other, sign)


def _product(reader: Reader, a: str, b: str, fn: str) -> Form:
    sign = 1 if fn == "mul" else -1
    for name, other in ((a, b), (b, a)):
        form = reader.forms.get(name)
        if isinstance(form, Mask) or (name == b and sign < 0) or not reader.still(other):
            continue
        if form is not None and form.logs:
            return _multiple(reader, reader.form(name, True), other, sign)
        form = reader.form(name, False)
        if not form.parts or reader.graph.values[other].dtype != "float32":
            raise Unknown
        return _with(reader, form, other, sign)
    if reader.still(a):  # still / form
        form = reader.form(b, False)
        axis = min(form.parts, default=-1)
        rank = max(form.rank, len(reader.dims(a)))
        top = Form(rank, {axis: Part({}, reader.spread(a, axis, rank))}, False, flipped=form.flipped)
        return reader.nodes.combined(top, form, sign)
    return reader.nodes.combined(reader.form(a, False), reader.form(b, False), sign)


def _multiple(reader: Reader, form: Form, other: str, sign: int) -> Form:
    """A sum of logarithms times a value that is the same at all steps."""
    number = reader.number(other)
    if number is not None:
        if number == 0.0:
            raise Unknown
        return reader.nodes.scaled(form, number if sign > 0 else 1.0 / number)
    if sign < 0 or form.totals or form.causal is not None or form.whole or form.ahead:
        raise Unknown
    rank = max(form.rank, len(reader.dims(other)))
    form, nodes = reader.nodes.at_rank(form, rank), reader.nodes
    parts = {}
    for axis, part in form.parts.items():
        factor = reader.spread(other, axis, rank)
        powers: dict[str, float] = {}
        for name, k in part.powers.items():
            powers[factor if name == ONE else nodes.binary("mul", name, factor)] = k
        parts[axis] = Part(powers, None if part.local is None else nodes.binary("mul", part.local, factor))
    still = {f"{key} * {other}": k for key, k in form.still.items()}
    return replace(form, parts=parts, still=still)


def _power(reader: Reader, base: str, exponent: str) -> Form:
    """base ** steps as exp(log(base) * steps)."""
    form = real(reader, reader.form(exponent, True))
    array = reader.graph.constants.get(base)
    if array is not None and not (array > 0).all():
        raise Unknown
    number = reader.number(base)
    if number is not None:
        return reader.nodes.raised(reader.nodes.scaled(form, math.log(number)))
    if array is None:
        raise Unknown
    logs = reader.nodes.unary("log", base)
    return reader.nodes.raised(_multiple(reader, form, logs, 1))


# ---- positions, moves ------------------------------------------------------------------------------------------------


@reads("transpose")
def _transpose(reader: Reader, node: Node):
    form = reader.forms.get(node.inputs[0])
    if not isinstance(form, Form):
        raise Unknown
    return reader.nodes.moved(form, tuple(node.attrs["perm"]))


@reads("reshape")
def _reshape(reader: Reader, node: Node):
    form, before, after = reader.forms.get(node.inputs[0]), reader.dims(node.inputs[0]), tuple(node.attrs["dims"])
    if form is None:
        raise Unknown
    if after == (*(1,) * (len(after) - len(before)), *before):
        return form if isinstance(form, Mask) else reader.nodes.at_rank(form, len(after))
    if isinstance(form, Mask):
        raise Unknown
    return reader.nodes.reshaped(form, before, after)


@reads("expand")
def _expand(reader: Reader, node: Node):
    (name,), dims = node.inputs, node.attrs["dims"]
    form = reader.forms.get(name)
    if isinstance(form, Mask):
        return form
    if form is None and (dims.count(D.TIME) != 2 or reader.still(name)):
        raise Unknown
    return reader.nodes.at_rank(reader.form(name), len(dims))


@reads("slice")
def _slice(reader: Reader, node: Node):
    name, a = node.inputs[0], node.attrs
    axis, dims = a["axis"] - len(reader.dims(name)), reader.dims(name)
    if dims[axis] == D.TIME and (a["start"], a["stop"], a["step"]) == (D.TIME - 1, -1, -1):
        form = reader.form(name)
        if set(form.parts) != {axis} or form.causal is not None:
            raise Unknown
        return replace(form, flipped=not form.flipped)
    shifted = reader.makers.get(name)
    if shifted is not None and shifted.op == "pad" and dims[axis] == D.TIME + 1 and a["step"] == 1:
        if (a["start"], a["stop"]) == (0, D.TIME) and _pads(shifted, axis) == (1, 0):
            return _shifted(reader, shifted.inputs[0], axis, -1)
        if (a["start"], a["stop"]) == (1, D.TIME + 1) and _pads(shifted, axis) == (0, 1):
            return _shifted(reader, shifted.inputs[0], axis, 1)
    raise Unknown


@reads("pad")
def _pad(reader: Reader, node: Node):
    name, rank = node.inputs[0], len(reader.dims(node.inputs[0]))
    for axis in range(-rank, 0):
        around, dims = _pads(node, axis), reader.dims(name)
        if around in ((1, -1), (-1, 1)) and dims[axis] == D.TIME:
            return _shifted(reader, name, axis, -around[0])
        cut = reader.makers.get(name)
        if cut is None or cut.op != "slice" or dims[axis] != D.TIME - 1:
            continue
        a = cut.attrs
        kept = (a["start"], a["stop"], a["step"])
        if a["axis"] - rank == axis and reader.dims(cut.inputs[0])[axis] == D.TIME:
            if around == (1, 0) and kept == (0, D.TIME - 1, 1):
                return _shifted(reader, cut.inputs[0], axis, -1)
            if around == (0, 1) and kept == (1, D.TIME, 1):
                return _shifted(reader, cut.inputs[0], axis, 1)
    raise Unknown


@reads("concat")
def _concat(reader: Reader, node: Node):
    """A step of zeros before all steps but the last, or after all but the first."""
    if len(node.inputs) != 2:
        raise Unknown
    rank = len(reader.dims(node.inputs[0]))
    axis = node.attrs["axis"] - rank
    for zeros, name, kept, ahead in (
        (*node.inputs, (0, D.TIME - 1, 1), -1),
        (*reversed(node.inputs), (1, D.TIME, 1), 1),
    ):
        cut = reader.makers.get(name)
        if cut is None or cut.op != "slice" or reader.number(zeros) != 0.0 or reader.dims(zeros)[axis] != 1:
            continue
        a = cut.attrs
        if a["axis"] - rank == axis and (a["start"], a["stop"], a["step"]) == kept:
            return _shifted(reader, cut.inputs[0], axis, ahead)
    raise Unknown


def _pads(node: Node, axis: int) -> tuple | None:
    """The zeros before and after an axis; None if there are other pads."""
    pads, rank = node.attrs["pads"], len(node.attrs["pads"]) // 2
    at = axis + rank
    others = [p != 0 for k, p in enumerate(pads) if k not in (at, rank + at)]  # a pad may be a symbolic dim
    zeros = node.attrs["mode"] == "constant" and node.attrs["value"] == 0.0 and len(node.inputs) == 1
    return (pads[at], pads[rank + at]) if zeros and not any(others) else None


def _shifted(reader: Reader, name: str, axis: int, ahead: int) -> Form:
    """A value of the next step (ahead 1) or of the one before (-1); zero if there is no such step."""
    form = reader.form(name, None)
    part = form.parts.get(axis)
    if part is None or len(form.parts) > 1 or form.still or form.totals or form.flipped or form.ahead or form.whole:
        raise Unknown
    if not part.powers:
        return replace(form, ahead=ahead)
    if ahead > 0 or not form.logs or part.local is not None or ONE in part.powers:
        raise Unknown
    local = None  # a running sum without the step's own value
    for value, k in part.powers.items():
        less = reader.nodes.times(value, -k)
        local = less if local is None else reader.nodes.binary("add", local, less)
    return replace(form, parts={axis: Part(part.powers, local)})


# ---- sums ------------------------------------------------------------------------------------------------------------


@reads("cumsum")
def _cumsum(reader: Reader, node: Node):
    name, a = node.inputs[0], node.attrs
    axis = a["axis"] - len(reader.dims(name))
    if reader.dims(name)[axis] != D.TIME or reader.graph.values[name].dtype != "float32":
        raise Unknown
    form = reader.form(name)
    if form.causal == 1:
        return segment_sums(form, axis, a)
    if set(form.parts) != {axis} or form.causal is not None or form.needs or form.pair or form.totals:
        raise Unknown
    part, backwards = form.parts[axis], a["reverse"] != form.flipped
    if part.powers or form.still:
        if form.logs or backwards or form.ahead:
            raise Unknown
        total = Total(part.powers, part.local, form.still, a["exclusive"])
        return Form(form.rank, {axis: Part()}, False, totals=((total, 1),))
    if part.local is None:
        raise Unknown
    own = {0: not a["exclusive"], 1: False, -1: False}[form.ahead]  # whether the step's own value is in the sum
    if form.ahead and (a["exclusive"] or (form.ahead > 0) != backwards):
        raise Unknown
    value = part.local
    made = Part({value: -1.0 if backwards else 1.0}, None)
    if own == backwards:  # the running sum counts it, and this one does not, or the other way round
        made = replace(made, local=value if own else reader.nodes.unary("neg", value))
    still = {f"sum of {value}": 1.0} if backwards else {}
    return Form(form.rank, {axis: made}, True, still=still, flipped=form.flipped)


@reads("reduce")
def _reduce(reader: Reader, node: Node):
    name, a = node.inputs[0], node.attrs
    form = reader.forms.get(name)
    timed = len(a["axes"]) == 1 and a["keepdims"] and a["fn"] in ("max", "min", "mean")
    if not isinstance(form, Form) or not timed or {a["axes"][0] - form.rank} != set(form.parts):
        raise Unknown
    return Form(form.rank, {}, True, still={f"{a['fn']} of {name}": 1.0}, flipped=form.flipped)
