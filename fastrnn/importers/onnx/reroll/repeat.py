"""Copies of one body (copies.py) in the walk: one cycle over the steps of a sequence, as for a Scan."""

from __future__ import annotations

from collections.abc import Callable
from math import isclose

from ....errors import ModelFormatError, ShapeError, UnsupportedError
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading.nodes import OnnxNode
from ..reading.reader import axis_of
from ..reading.registry import op
from ..reading.values import UNKNOWN, Const, Live
from .body import Body
from .numbering import Source
from .rolled import DOMAIN, Collected, Copies
from .steps import Steps

# Handled by `run`, which needs the walk itself.
op("Copies", domain=DOMAIN)(None)


class Refused(Exception):
    """The copies can't be one cycle; they are walked as the file has them. label: of their node."""

    def __init__(self, label: str):
        super().__init__(label)
        self.label = label


class _Needed:
    """Stands for the reader of a Scan's node: all outputs are needed, but no final state, since those are outputs."""

    def __init__(self, copies: Copies):
        self.needed = [False] * len(copies.states) + [True] * len(copies.outputs)


def run(ctx, node: OnnxNode, known: dict, refused: set[str], walk: Callable) -> list:
    """The outputs of a node of copies. known: values of the file by name. refused: labels of nodes that can't be read.
    walk: walks nodes, as walk._nodes does.

    Raises Refused if the copies stay as the file has them.
    """
    copies: Copies = node.payload
    known = {i: ctx.current(known[i]) for i in node.inputs}
    if any(known[i] is UNKNOWN for i in node.inputs) or any(part.label in refused for part in copies.body):
        raise Refused(node.label)
    wanted = {name for part in copies.body for name in part.outputs}

    def walk_body(given: dict) -> dict:
        found: list[str] = []
        inner = {**known, **given}
        ctx.in_body += 1
        try:
            walk(copies.body, inner, wanted, found, own_names=False)
        finally:
            ctx.in_body -= 1
        if found:
            raise UnsupportedError(found)
        return inner

    try:
        return _cycle(ctx, copies, known, walk_body)
    except (Finding, ModelFormatError, ShapeError, UnsupportedError, IndexError, KeyError, AttributeError, TypeError):
        raise Refused(node.label) from None


def _cycle(ctx, copies: Copies, known: dict, walk) -> list:
    label = ctx.label
    scanned: dict[str, Live] = {}
    for name, (sequence, source) in copies.steps.items():
        scanned[name] = _sequence(ctx, known[sequence], source, copies)
    first = next(iter(scanned.values())).dims[0]
    for x in scanned.values():
        ctx.equal(first, x.dims[0], "sequences that a loop takes apart must have equally many steps")
    _note_divisors(ctx, copies, known, first)
    names = list(copies.states)
    body = Body(copies.body, {}, [*names, *scanned], [end for end, _ in copies.states.values()], walk, known)
    starts = [_start(known, copies.states, name) for name in names]
    loop = Steps(ctx, _Needed(copies), body, first, starts)
    loop.forward = not copies.backwards
    loop.scanned = scanned
    loop.carry({name: end for name, (end, _) in copies.states.items()})
    _, sequences = loop.outputs([c.value for c in copies.outputs])
    ctx.label = label
    ctx.table.notes.setdefault(f"rolled {label}", f"{label}: one cycle over the steps of its input")
    return [_joined(ctx, y, c, first) for y, c in zip(sequences, copies.outputs, strict=True)]


def _note_divisors(ctx, copies: Copies, known: dict, steps) -> None:
    """A division by the number of copies, in each of them, is evidence that the number is meant: `x[:, t] / T`."""
    for part in copies.body:
        for value in (known.get(name) for name in part.inputs if part.op in ("Div", "Mul")):
            if not isinstance(value, Const) or value.array.size != 1 or not value.array.any() or copies.count < 3:
                continue
            number = abs(float(value.array.reshape(-1)[0]))
            if isclose(number if part.op == "Div" else 1 / number, copies.count, rel_tol=1e-6):
                text = f"divides by {copies.count} in each of {copies.count} steps"
                ctx.table.ledger.count(steps, part.label, text, weak=True)


def _start(known: dict, states: dict, name: str):
    return known[states[name][1]]


def _sequence(ctx, value, source: Source, copies: Copies) -> Live:
    """The steps in the order in which they are taken, [steps, ..]. The file's own sequence must have as many."""
    x = ctx.live(value)
    axis = axis_of(source.axis, len(x.dims))
    steps = x.dims[axis]
    if isinstance(steps, Dim) and not ctx.table.genuine(steps):
        ctx.table.vote(steps, "time")  # if the copies' result meets it, the file has that length alone: the example
    if not isinstance(steps, Dim) or not ctx.table.genuine(steps) or ctx.table.example(steps) != copies.count:
        raise Finding(f"{copies.count} copies over {steps} steps")
    rest = (*x.dims[:axis], *x.dims[axis + 1 :])
    x = ctx.transpose(x, (axis, *(a for a in range(len(x.dims)) if a != axis)))
    if source.keeps:
        x = ctx.reshape(x, (steps, *rest[:axis], 1, *rest[axis:]))
    return ctx.slice(x, 0, steps - 1, -1, -1) if copies.backwards else x


def _joined(ctx, y: Live, collected: Collected, steps):
    """The steps of a value [steps, ..] as the file joins them."""
    if collected.axis is None:
        return ctx.reshape(ctx.slice(y, 0, steps - 1, steps), y.dims[1:])
    if collected.flipped:
        y = ctx.slice(y, 0, steps - 1, -1, -1)
    axis = axis_of(collected.axis, len(y.dims) - 1)
    y = ctx.transpose(y, (*range(1, axis + 1), 0, *range(axis + 1, len(y.dims))))
    dims = y.dims
    return ctx.reshape(y, (*dims[:axis], dims[axis] * dims[axis + 1], *dims[axis + 2 :]))
