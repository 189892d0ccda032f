"""A recurrence that was rolled up before the walk -> a cell of the graph."""

from __future__ import annotations

from dataclasses import replace

from ....errors import ModelFormatError
from ...shared.ledger import Finding
from ..reading.reader import NodeReader
from ..reading.registry import op
from ..reading.values import Const, Fill, Ints, uniform
from ..reroll.rolled import DOMAIN, Rolled


@op("Recurrence", domain=DOMAIN)
def _rolled(ctx, n: NodeReader):
    """Inputs: sequence [T, batch, I]; h0, c0 [batch, H] or [1, batch, H]; trip count. Outputs: y, h_n, c_n."""
    payload: Rolled = n.node.payload
    spec, cell = payload.cell.spec, payload.cell
    x = ctx.live(n.input(0))
    starts = [n.input(1, optional=True), n.input(2, optional=True)]
    trip = n.input(3, optional=True)
    if len(x.dims) != 3:
        raise ModelFormatError(f"a recurrence over a value of rank {len(x.dims)}")
    ctx.equal(x.dims[2], spec.input_size, "the features must fit the weights of the recurrence")
    x = _whole(ctx, x, payload, trip)
    time, batch = x.dims[:2]
    states, lead = [], payload.lead
    for start in starts:
        if start is None:
            states.append(None)
            continue
        lead = len(start.dims) == 3
        states.append(_start(ctx, start, batch, spec.hidden_size))
    if payload.rows not in (1, ctx.table.example(batch)):
        ctx.equal(batch, payload.rows, "a recurrence has constants for as many rows")
    ctx.table.cell(ctx.label, time, batch, forward=not payload.flip_x)
    ctx.cells += 1
    reverse = payload.flip_x and payload.flip_y
    if payload.flip_x and not reverse:
        x = ctx.slice(x, 0, time - 1, -1, -1)
    spec = replace(spec, reverse=reverse)
    wanted = [k < len(n.needed) and n.needed[k] for k in range(3 if spec.kind == "lstm" else 2)]
    biases = [None if b is None else Const(b) for b in (cell.Wb, cell.Rb)]
    inputs = [x, Const(cell.W), Const(cell.R), *biases, None, *states, None]
    y, *ends = ctx.emit("cell", inputs, {"spec": spec}, wanted)
    ctx.table.notes.setdefault(f"rolled {ctx.label}", f"{ctx.label}: rolled up into one {spec.kind} cell")
    if y is not None:
        y = ctx.slice(y, 0, time - 1, -1, -1) if payload.flip_y and not reverse else y
        if payload.stack is None and not lead:
            y = ctx.reshape(y, (time * batch, spec.hidden_size))
        elif payload.stack is not None and lead:
            raise Finding("a recurrence whose steps are stacked with an axis of one between")
        elif payload.stack == 1:
            y = ctx.transpose(y, (1, 0, 2))
    ends = [e if e is None or not lead else ctx.reshape(e, (1, *e.dims)) for e in ends]
    return [y, *ends]


def _whole(ctx, x, payload: Rolled, trip):
    """The part of the sequence that the steps cover. Normally this is all of it. If the file leaves the length open but
    has one copy of the cell per step of its example, it reads only that many steps of any sequence."""
    time = x.dims[0]
    if payload.steps is not None:
        steps = payload.steps
        sym = ctx.table.single(time)
        if sym is not None and not sym.genuine and payload.split:
            ctx.table.hint(sym, steps, f"{ctx.label} (unrolled {steps} times)")
        if sym is not None and not sym.genuine:
            ctx.table.notes.setdefault(
                f"unrolled {ctx.label}",
                f"{ctx.label}: unrolled {steps} times over a length that the file leaves open: it reads the first "
                f"{steps} steps of any sequence; export the model without dynamic axes to free its length",
            )
            for k in range(steps):
                ctx.table.ledger.single(ctx.label, 0, time, k)
            return ctx.slice(x, 0, time - steps, time) if payload.turned else ctx.slice(x, 0, 0, steps)
    else:
        steps = _count(trip)
        if steps is None:
            raise Finding("a Loop whose trip count is computed from values")
    if steps in (time, ctx.table.example(time)):
        return x
    if not isinstance(steps, int) or payload.flip_x:
        raise Finding(f"a recurrence over {steps} of {time} steps")
    if steps > ctx.table.example(time):
        raise ModelFormatError(f"a recurrence of {steps} steps over a sequence of {ctx.table.example(time)}")
    ctx.table.ledger.count(time, ctx.label, f"takes the first {steps} steps")
    return ctx.slice(x, 0, 0, steps)


def _count(trip):
    if isinstance(trip, Ints) and trip.array.size == 1:
        return trip.array.reshape(-1)[0]
    number = uniform(trip) if isinstance(trip, Const) else None
    return None if number is None else int(number)


def _start(ctx, value, batch, hidden: int):
    """An initial state [batch, H], with any number of leading axes of one, or None if it is zero."""
    dims = value.dims
    if len(dims) < 2 or any(isinstance(d, int) and d != 1 for d in dims[:-2]):
        raise ModelFormatError(f"an initial state with dims {list(map(str, dims))}")
    constant = isinstance(value, (Const, Fill))
    if constant and uniform(value) == 0 and ctx.table.example(dims[-2]) in (1, ctx.table.example(batch)):
        ctx.equal(dims[-1], hidden, "the initial state must fit the hidden size and the batch")
        return None
    for d in dims[:-2]:
        ctx.equal(d, 1, "the initial state must fit the hidden size and the batch")
    ctx.equal(dims[-1], hidden, "the initial state must fit the hidden size and the batch")
    if constant and isinstance(dims[-2], int) and dims[-2] == 1:
        return ctx.one("expand", ctx.reshape(ctx.live(value), (1, hidden)), dims=(batch, hidden))
    ctx.equal(dims[-2], batch, "the initial state must fit the hidden size and the batch")
    return ctx.reshape(ctx.live(value), (batch, hidden))
