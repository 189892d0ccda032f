"""Scan and Loop: a body that runs for every step, with values carried from step to step.

The body is walked once, for one step, and lifted over all of them (lift.py); a carried value becomes a `state` node.
If the file fixes the number of steps and it is not a size of an input, the body is written out instead.
"""

from __future__ import annotations

import numpy as np

from ....errors import ModelFormatError, UnsupportedError
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading import files
from ..reading.nodes import OnnxNode
from ..reading.reader import NodeReader, axis_of
from ..reading.registry import op
from ..reading.values import Const, Fill, Ints, Live, uniform
from .body import Body, over_rows
from .loop_cells import alias, stride_of
from .steps import UNBOUND, Steps
from .trips import Affine, Condition, least, require, steps_of

# Handled by `run`, which needs the walk itself.
op(
    "Scan",
    attrs="body num_scan_inputs directions scan_input_axes scan_input_directions scan_output_axes "
    "scan_output_directions",
)(None)
op("Loop", attrs="body")(None)

KINDS = ("Scan", "Loop")
_ENDLESS = 1 << 31  # exporters of `while` write this many steps or more


def run(ctx, node: OnnxNode, values: list, opset: int, body: Body, needed: list[bool]) -> list:
    """The outputs of a Scan or Loop. values: of its inputs. needed: which outputs have readers."""
    reader = NodeReader(node, values, opset, needed)
    reader.elsewhere("body")
    made = (_scan if node.op == "Scan" else _loop)(ctx, reader, body)
    reader.finish()
    return made


# --- Scan -----------------------------------------------------------------------------------------------------------


def _scan(ctx, n: NodeReader, body: Body) -> list:
    if n.opset < 9:
        return _scan_rows(ctx, n, body)
    count = n.attr("num_scan_inputs", "int", 0)
    carried = len(n.values) - count
    collected = len(body.outputs) - carried
    if not 0 < count <= len(n.values) or len(body.inputs) != len(n.values) or collected < 0:
        raise ModelFormatError(
            f"{len(n.values)} inputs of which {count} are scanned, a body of {len(body.inputs)} inputs and "
            f"{len(body.outputs)} outputs"
        )
    axes, turned = _list(n, "scan_input_axes", count), _list(n, "scan_input_directions", count)
    out_axes, out_turned = _list(n, "scan_output_axes", collected), _list(n, "scan_output_directions", collected)
    scanned = []
    for k in range(count):
        x = ctx.live(n.input(carried + k))
        axis = axis_of(axes[k], len(x.dims))
        if scanned:
            ctx.equal(scanned[0].dims[0], x.dims[axis], "scanned inputs must have equally many steps")
        x = ctx.transpose(x, (axis, *(a for a in range(len(x.dims)) if a != axis)))
        scanned.append(ctx.slice(x, 0, x.dims[0] - 1, -1, -1) if turned[k] else x)
    loop = Steps(ctx, n, body, scanned[0].dims[0], [n.input(k) for k in range(carried)])
    loop.forward = not any(turned)
    loop.scanned = dict(zip(body.inputs[carried:], scanned, strict=True))
    loop.carry(dict(zip(body.inputs[:carried], body.outputs[:carried], strict=True)))
    finals, sequences = loop.outputs(body.outputs[carried:])
    for k, y in enumerate(sequences):
        if y is None:
            continue
        y = ctx.slice(y, 0, y.dims[0] - 1, -1, -1) if out_turned[k] else y
        axis = axis_of(out_axes[k], len(y.dims))
        sequences[k] = ctx.transpose(y, (*range(1, axis + 1), 0, *range(axis + 1, len(y.dims))))
    return [*finals, *sequences]


def _scan_rows(ctx, n: NodeReader, body: Body) -> list:
    """A Scan of opset 8: inputs [batch, steps, ..], and a body that sees one row."""
    if n.input(0, optional=True) is not None:
        raise Finding("sequence_lens: rows of several lengths")
    count, carried = n.attr("num_scan_inputs", "int", 0), len(body.inputs) - n.attr("num_scan_inputs", "int", 0)
    if not 0 < count < len(n.values) or len(n.values) != 1 + len(body.inputs) or len(body.outputs) < carried:
        raise ModelFormatError(f"{len(n.values)} inputs of which {count} are scanned, a body of {len(body.inputs)}")
    turned = _list(n, "directions", count)
    inputs = [ctx.live(n.input(1 + k)) for k in range(len(body.inputs))]
    batch = inputs[carried].dims[0]
    for x in inputs:
        ctx.equal(x.dims[0], batch, "inputs of a Scan of opset 8 must have equally many rows")
    scanned = []
    for x, turn in zip(inputs[carried:], turned, strict=True):
        if scanned:
            ctx.equal(scanned[0].dims[0], x.dims[1], "scanned inputs must have equally many steps")
        x = ctx.transpose(x, (1, 0, *range(2, len(x.dims))))
        scanned.append(ctx.slice(x, 0, x.dims[0] - 1, -1, -1) if turn else x)
    loop = Steps(ctx, n, over_rows(ctx, body, batch), scanned[0].dims[0], inputs[:carried])
    loop.forward = not any(turned)
    loop.scanned = dict(zip(body.inputs[carried:], scanned, strict=True))
    loop.carry(dict(zip(body.inputs[:carried], body.outputs[:carried], strict=True)))
    finals, sequences = loop.outputs(body.outputs[carried:])
    return [*finals, *(y and ctx.transpose(y, (1, 0, *range(2, len(y.dims)))) for y in sequences)]


def _list(n: NodeReader, name: str, count: int) -> list[int]:
    found = n.attr(name, "ints") or [0] * count
    if len(found) != count or ("directions" in name and not set(found) <= {0, 1}):
        raise ModelFormatError(f"{name}={found} for {count} values")
    return found


# --- Loop -----------------------------------------------------------------------------------------------------------


def _loop(ctx, n: NodeReader, body: Body) -> list:
    carried = len(n.values) - 2
    if carried < 0 or len(body.inputs) != carried + 2 or len(body.outputs) < carried + 1:
        raise ModelFormatError(
            f"{len(n.values)} inputs, a body of {len(body.inputs)} inputs and {len(body.outputs)} outputs"
        )
    starts = [n.input(2 + k) for k in range(carried)]
    limit, first = n.input(0, optional=True), n.input(1, optional=True)
    loop = Steps(ctx, n, body, None, starts)
    loop.counters = {body.inputs[0]: (0, 1)}
    loop.known = {body.inputs[1]: Const(np.array(True))}
    _constant_changes(loop, body, starts)
    loop.carry(dict(zip(body.inputs[2:], body.outputs[1 : 1 + carried], strict=True)))
    collected = body.outputs[1 + carried :]
    for value in (limit, first):
        if isinstance(value, Live):
            body.ask(value)
    _set_length(ctx, loop, body, limit, first)
    finals, sequences = loop.outputs(collected)
    return [*finals[:carried], *sequences]


def _constant_changes(loop: Steps, body: Body, starts: list) -> None:
    """Find carried values that never change, and those that change by the same number in every step."""
    maker = {o: part for part in body.nodes for o in part.outputs if o}
    read = {i for part in body.nodes for i in part.inputs} | set(body.outputs)
    outside = {i: body.outer[i] for i in read if i in body.outer and i not in maker}
    constants = {i: v.array for i, v in outside.items() if isinstance(v, Const) and v.array.size <= 1 << 16}
    constants |= body.constants | _own_constants(body.nodes)
    for k, start in enumerate(starts):
        name, out = body.inputs[2 + k], body.outputs[1 + k]
        if alias(maker, out) == name:
            loop.known[name] = loop.kept[name] = start
            if isinstance(start, Const):
                constants[name] = start.array
    for k, start in enumerate(starts):
        name, out = body.inputs[2 + k], body.outputs[1 + k]
        begin, stride = _count(start), stride_of(maker, constants, out, name)
        if name not in loop.kept and begin is not None and stride is not None and not _is_float(start):
            loop.counters[name] = (begin, stride)


def _is_float(value) -> bool:
    return isinstance(value, Const) and value.array.dtype.kind != "i"


def _set_length(ctx, loop: Steps, body: Body, limit, first) -> None:
    """Set how many steps the loop takes, and whether a condition may end it earlier."""
    most = None
    if limit is not None:
        most = _count(limit)
        if most is None:
            raise Finding("a Loop whose trip count is computed from data; " + UNBOUND)
        if not isinstance(most, Dim) and most >= _ENDLESS:
            most = None
    begin = Condition() if first is None else Affine(ctx, {}).condition(first)
    if begin.never or (isinstance(most, int) and most <= 0):
        loop.steps = 0
        return
    if isinstance(most, Dim):
        ctx.table.vote(most, "time", sure=True)  # also if the body is refused: its steps are no batch
    try:
        after = _condition(ctx, loop, body, most)
    except (Finding, UnsupportedError):
        if isinstance(most, Dim):
            raise
        after = Condition(data=[("", False)])  # a body that needs its step number as a constant
    loop.steps = least([v for v in (most, steps_of(ctx, after)) if v is not None])
    if loop.steps is None and not after.data:
        raise Finding(f"a Loop without an end; {UNBOUND}")
    require(ctx, begin, loop.steps)
    if begin.data or after.data or loop.steps is None:
        loop.stop_early(body.outputs[0], first if begin.data else None)


def _condition(ctx, loop: Steps, body: Body, most) -> Condition:
    """What must hold after a step for another one. most: the largest number of steps, if it is known."""
    with ctx.trial() as mark:
        inner = loop.one_step()
        try:
            made = body.walk(inner)
        except (Finding, UnsupportedError):
            loop.check_arrays_of_steps(inner, ctx.nodes[mark:], most)  # the cause, if there is one
            raise
        return Affine(ctx, {inner[k].name: c for k, c in loop.counters.items()}).condition(made[body.outputs[0]])


def _own_constants(nodes: list[OnnxNode]) -> dict:
    """Small tensors of Constant nodes."""
    found = {}
    for node in nodes:
        if node.op == "Constant" and "value" in node.attrs and not node.domain:
            tensor = node.attrs["value"].t
            if max(tensor.dims, default=1) <= 1 << 16:
                found[node.outputs[0]] = files.tensor(tensor, None)
    return found


def _count(value):
    """A number of steps as an int or a Dim; None if it is unknown."""
    if isinstance(value, Ints) and value.array.size == 1:
        return value.array.reshape(-1)[0]
    number = uniform(value) if isinstance(value, Const | Fill) and value.dims in ((), (1,)) else None
    return number if number is None or isinstance(number, Dim) else int(number)
