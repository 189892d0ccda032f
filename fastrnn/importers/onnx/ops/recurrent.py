"""RNN, LSTM, GRU: each direction becomes one `cell`. Layout, biases and states are prepared for it here."""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError
from ....graph.cells import DEFAULT_ACTIVATIONS, GATES, CellSpec, activation
from ....graph.precision import note_steps
from ...shared.ledger import Finding
from ..reading.reader import NodeReader
from ..reading.registry import op
from ..reading.values import Const, Fill, Ints, Live, uniform

_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}

# ONNX's names of activations, in lower case without underscores -> ours.
_NAMES = {
    n.replace("_", ""): n
    for n in (
        "relu tanh sigmoid affine leaky_relu thresholded_relu scaled_tanh hard_sigmoid elu softsign softplus".split()
    )
}
_COMMON = "activation_alpha activation_beta activations clip direction hidden_size layout"


# Functions whose parameters default to 0 in onnxruntime (1.31, measured); ONNX says 1.
_ZERO_ELSEWHERE = {"affine": ("alpha",), "thresholded_relu": ("alpha",), "scaled_tanh": ("alpha", "beta")}


def _specs(ctx, n: NodeReader, kind: str) -> tuple[str, tuple, dict, int]:
    """(direction, activations per direction, keywords of CellSpec, layout) from the attributes alone."""
    direction = n.attr("direction", "string", "forward").lower()
    if direction not in _DIRECTIONS:
        raise ModelFormatError(f"direction {direction!r}; there are forward, reverse and bidirectional")
    keywords = {"clip": n.attr("clip", "float")}
    if keywords["clip"] is not None and not keywords["clip"] > 0:
        raise ModelFormatError(f"clip must be positive, got {keywords['clip']}")
    if kind == "lstm":
        keywords["input_forget"] = _flag(n, "input_forget")
    if kind == "gru":
        keywords["linear_before_reset"] = _flag(n, "linear_before_reset")
    layout = int(_flag(n, "layout"))
    return direction, _activations(ctx, n, kind, len(_DIRECTIONS[direction])), keywords, layout


def _flag(n: NodeReader, name: str) -> bool:
    """An attribute that is 0 (the default) or 1; other numbers are invalid."""
    value = n.attr(name, "int", 0)
    if value not in (0, 1):
        raise ModelFormatError(f"{name} {value}; there are 0 and 1")
    return bool(value)


def _activations(ctx, n: NodeReader, kind: str, directions: int) -> list[tuple]:
    """The activations per direction. As in onnxruntime, alpha and beta go in order to the functions that take one. A
    list that is too short leaves defaults; one that is too long is refused."""
    count = len(DEFAULT_ACTIVATIONS[kind])
    names = n.attr("activations", "strings")
    alphas, betas = n.attr("activation_alpha", "floats", []), n.attr("activation_beta", "floats", [])
    if not names:
        names = list(DEFAULT_ACTIVATIONS[kind]) * directions
    if len(names) != count * directions:
        raise ModelFormatError(f"activations {names}: {kind} needs {count} a direction, {count * directions} in all")
    alphas, betas, found = list(alphas), list(betas), []
    for name in names:
        ours = _NAMES.get(name.lower().replace("_", ""))
        if ours is None:
            raise Finding(f"activations: {name!r}")
        plain = activation(ours)
        takes_alpha = activation(ours, alpha=plain.alpha + 1.0) != plain
        takes_beta = activation(ours, beta=plain.beta + 1.0) != plain
        alpha = alphas.pop(0) if takes_alpha and alphas else None
        beta = betas.pop(0) if takes_beta and betas else None
        found.append(activation(ours, alpha, beta))
        absent = [p for p, v in (("alpha", alpha), ("beta", beta)) if v is None and p in _ZERO_ELSEWHERE.get(ours, ())]
        if absent:
            ctx.table.notes[f"default {ctx.label} {name} {absent}"] = (
                f"{ctx.label}: {name} without {' and '.join(absent)}, which is 1 as ONNX has it; onnxruntime takes 0"
            )
    if alphas or betas:
        raise Finding(f"activation_alpha/activation_beta: {len(alphas) + len(betas)} values that no activation takes")
    return [tuple(found[d * count : (d + 1) * count]) for d in range(directions)]


def _weight(n: NodeReader, i: int, name: str, dims: tuple, optional: bool = False) -> np.ndarray | None:
    array = n.const(i, name, optional)
    if array is None:
        return None
    if array.dtype.kind != "f":
        raise ModelFormatError(f"{name} must be floating point, got {array.dtype}")
    if array.shape != dims:
        raise ModelFormatError(f"{name} must be {list(dims)}, got {list(array.shape)}")
    return array


def _hidden_size(n: NodeReader, kind: str) -> int:
    declared, r = n.attr("hidden_size", "int"), n.const(2, "R")
    if r.ndim != 3 or r.shape[2] < 1:
        raise ModelFormatError(f"R must be [directions, {GATES[kind]}*hidden, hidden], got {list(r.shape)}")
    if declared is not None and declared != r.shape[2]:
        raise ModelFormatError(
            f"hidden_size is {declared}, but R is {list(r.shape)}, which makes it {r.shape[2]}"
            " (an LSTM with a projection is not one that ONNX can say)"
        )
    return r.shape[2]


def _state(ctx, value, d: int, directions: int, dims: tuple, layout: int, what: str):
    """The initial state of direction d as an abstract value [batch, H], or None if it is zero."""
    if value is None:
        return None
    batch, hidden = dims
    want = (batch, directions, hidden) if layout else (directions, batch, hidden)
    axis = 1 if layout else 0
    if len(value.dims) != 3:
        raise ModelFormatError(f"{what} must have rank 3, got {list(map(str, value.dims))}")
    constant = isinstance(value, (Const, Fill))
    if directions == 1 and not layout and not constant:
        value = _many_rows(ctx, value, batch)
    for k, (got, wanted) in enumerate(zip(value.dims, want, strict=True)):
        # A constant zero state says nothing about the batch: it only has to fit the file's own batch.
        if constant and k != axis and k != 2 and isinstance(got, int):
            if got not in (1, ctx.table.example(wanted)) and ctx.table.genuine(wanted):
                raise ModelFormatError(f"{what}: a batch of {got} against {ctx.table.example(wanted)}")
            continue
        ctx.equal(got, wanted, f"{what}, axis {k}")
    if isinstance(value, Ints):
        raise ModelFormatError(f"{what} must be floating point")
    if constant and uniform(value) == 0:
        return None
    if isinstance(value, Const):
        part = value.array.take(d, axis=axis)
        if (part == 0).all():
            return None
        if (part != part[:1]).any():
            ctx.equal(batch, len(part), f"{what} is a constant of {len(part)} different rows")
            return Const(part)
        part = part[:1]
        return ctx.one("expand", Const(part), dims=(batch, hidden)) if (batch != 1) else Const(part)
    part = ctx.slice(value, axis, d, d + 1)
    return ctx.reshape(part, (batch, hidden))


def _many_rows(ctx, value, batch):
    """Reshape a state [b, n, H] -> [1, b*n, H]. A step exported for one row passes an initial state [1, n, H] unchanged
    to a cell that runs n rows per row of the batch. Its first axis is then the file's batch, not the direction."""
    first, count = value.dims[0], ctx.table.example(value.dims[1])
    free = ctx.table.of(batch)
    one = ctx.table.dim(free[0]) if len(free) == 1 else None
    if not ctx.table.guess or first == 1 or one is None or count == 1 or batch != count * one:
        return value
    if ctx.table.example(first) != 1 or ctx.table.example(one) != 1:
        return value
    ctx.table.guessed = True
    ctx.equal(first, one, "initial_h, axis 0")
    ctx.equal(value.dims[1], count, "initial_h, axis 1")
    return ctx.reshape(value, (1, batch, value.dims[2]))


def _lengths(ctx, value, time, batch):
    """sequence_lens as int64 [batch], or None if every row has the full length."""
    if value is None:
        return None
    if len(value.dims) != 1:
        raise ModelFormatError(f"sequence_lens must have rank 1, got {list(map(str, value.dims))}")
    full = uniform(value)
    if full is None and isinstance(value, Ints):
        if all(v == time for v in value.array.flat):
            full = time
    if full is not None and (full == time or (not isinstance(full, type(time)) and full == ctx.table.example(time))):
        ctx.table.notes.setdefault(f"lengths {ctx.label}", f"{ctx.label}: sequence_lens is the full length everywhere")
        return None
    if isinstance(value, Const):
        if value.array.dtype.kind not in "iu":
            raise ModelFormatError(f"sequence_lens must be integers, got {value.array.dtype}")
        ctx.equal(batch, len(value.array), "sequence_lens is constant")
        ctx.number(time, "sequence_lens is constant")
        if (value.array < 0).any() or (value.array > time).any():
            raise ModelFormatError(f"sequence_lens {value.array.tolist()} outside [0, {time}]")
        return Const(value.array.astype(np.int64))
    live = ctx.live(value)
    if live.dtype not in ("int32", "int64"):
        raise ModelFormatError(f"sequence_lens must be integers, got {live.dtype}")
    ctx.equal(live.dims[0], batch, "sequence_lens must have an entry for each row")
    return live if live.dtype == "int64" else ctx.one("cast", live, to="int64")


def _recurrent(ctx, n: NodeReader, kind: str) -> list:
    direction, activations, keywords, layout = _specs(ctx, n, kind)
    reverses, hidden = _DIRECTIONS[direction], _hidden_size(n, kind)
    x, directions, gates = ctx.live(n.input(0)), len(reverses), GATES[kind]
    if len(x.dims) != 3 or x.dtype != "float32":
        raise ModelFormatError(f"X must be floating point of rank 3, got {x.dtype}{list(map(str, x.dims))}")
    if layout:
        x = ctx.transpose(x, (1, 0, 2))
    w = n.const(1, "W")
    if w.ndim != 3 or w.shape[2] < 1:
        raise ModelFormatError(f"W must be [directions, {gates}*hidden, input], got {list(w.shape)}")
    ctx.equal(x.dims[2], w.shape[2], "the features of X must fit the weights W")
    time, batch, size = x.dims
    rows = gates * hidden
    w = _weight(n, 1, "W", (directions, rows, size))
    r = _weight(n, 2, "R", (directions, rows, hidden))
    b = _weight(n, 3, "B", (directions, 2 * rows), optional=True)
    p = _weight(n, 7, "P", (directions, 3 * hidden), optional=True) if kind == "lstm" else None
    lengths = _lengths(ctx, n.input(4, optional=True), time, batch)
    h0 = n.input(5, optional=True)
    c0 = n.input(6, optional=True) if kind == "lstm" else None
    ctx.table.cell(ctx.label, time, batch, forward=not any(reverses))
    ctx.cells += 1
    wanted = [k < len(n.needed) and n.needed[k] for k in range(3 if kind == "lstm" else 2)]
    if not any(wanted):
        wanted[0] = True
    parts: list[list] = [[], [], []]
    for d, reverse in enumerate(reverses):
        spec = CellSpec(kind, size, hidden, activations[d], reverse=reverse, **keywords)
        inputs = [x, Const(w[d]), Const(r[d])]
        inputs += [None, None] if b is None else [Const(b[d, :rows]), Const(b[d, rows:])]
        inputs.append(None if p is None else Const(p[d]))
        inputs.append(_state(ctx, h0, d, directions, (batch, hidden), layout, "initial_h"))
        inputs.append(_state(ctx, c0, d, directions, (batch, hidden), layout, "initial_c"))
        inputs.append(lengths)
        suffix = f".{('forward', 'reverse')[reverse]}" if directions == 2 else ""
        for k, value in enumerate(ctx.emit("cell", inputs, {"spec": spec}, wanted, suffix)):
            parts[k].append(value)
    out = [_join_y(ctx, parts[0], layout) if wanted[0] else None]
    out += [_join_states(ctx, parts[k], layout) if wanted[k] else None for k in range(1, len(wanted))]
    return out


def _join_y(ctx, parts: list[Live], layout: int):
    """[time, batch, H] per direction -> Y: [time, directions, batch, H], or [batch, time, directions, H]."""
    if layout:
        parts = [ctx.transpose(p, (1, 0, 2)) for p in parts]
        return ctx.concat([ctx.reshape(p, (*p.dims[:2], 1, p.dims[2])) for p in parts], 2)
    return ctx.concat([ctx.reshape(p, (p.dims[0], 1, *p.dims[1:])) for p in parts], 1)


def _join_states(ctx, parts: list[Live], layout: int):
    """[batch, H] per direction -> [directions, batch, H], or [batch, directions, H]."""
    axis = 1 if layout else 0
    return ctx.concat([ctx.reshape(p, (*p.dims[:axis], 1, *p.dims[axis:])) for p in parts], axis)


@op("RNN", attrs=_COMMON)
def _rnn(ctx, n):
    return _recurrent(ctx, n, "rnn")


@op("LSTM", attrs=_COMMON + " input_forget")
def _lstm(ctx, n):
    return _recurrent(ctx, n, "lstm")


@op("GRU", attrs=_COMMON + " linear_before_reset")
def _gru(ctx, n):
    return _recurrent(ctx, n, "gru")


@op("DynamicQuantizeLSTM", attrs=_COMMON + " input_forget", domain="com.microsoft")
def _quantised_lstm(ctx, n):
    """An LSTM with 8-bit weights W [D, I, 4*H] and R [D, H, 4*H], with a scale and a zero point per direction (or per
    column). onnxruntime rounds x and h to 8 bits at a scale of the whole batch, which is not reproduced."""
    ctx.table.notes.setdefault(
        "quantised lstm",
        "x and h of DynamicQuantizeLSTM are rounded to 8 bits row by row where the layer holds 8-bit weights, else not "
        "at all; onnxruntime rounds them at a scale of the whole batch, and answers differ by what that loses",
    )
    weights = {}
    for i, scale_at, what in ((1, 8, "W"), (2, 10, "R")):
        array, scale = n.const(i, what), n.const(scale_at, f"the scale of {what}")
        zero = n.const(scale_at + 1, f"the zero point of {what}", optional=True)
        if array.ndim != 3 or array.dtype.name not in ("int8", "uint8"):
            raise ModelFormatError(f"{what} must be 8-bit of rank 3, got {array.dtype}{list(array.shape)}")
        parts = [np.asarray(p, np.float32) for p in (scale, np.zeros(1) if zero is None else zero)]
        shapes = ((1,), (array.shape[0],), (array.shape[0], array.shape[2]))
        if any(p.shape not in shapes for p in parts):
            raise ModelFormatError(f"scale and zero point of {what}: {[list(p.shape) for p in parts]}")
        parts = [p.reshape(p.shape[0], 1, -1) for p in parts]
        widened = (array.astype(np.float32) - parts[1]) * parts[0]
        note_steps(ctx.table.integers, widened, parts[0], 1, "int8")
        weights[i] = Const(widened.transpose(0, 2, 1))
    values = [weights.get(i, n.input(i, optional=True)) for i in range(min(len(n.values), 8))]
    inner = n.within(values)
    outputs = _recurrent(ctx, inner, "lstm")
    inner.finish()
    return outputs
