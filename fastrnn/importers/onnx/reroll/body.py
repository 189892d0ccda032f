"""The body of a Scan or Loop, as it is walked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ....records import dataclass
from ..reading.nodes import OnnxNode
from .lift import Lift, alive


@dataclass
class Body:
    """A subgraph: its nodes, the names of its inputs and outputs, its constants by name.

    walk : runs its nodes: values of the inputs -> values of everything. outer : values of the enclosing graph by name.
    ask : raises Finding for a value that a caller can fix with `bind`.
    """

    nodes: list[OnnxNode]
    constants: dict[str, np.ndarray]
    inputs: list[str]
    outputs: list[str]
    walk: Callable[[dict], dict]
    outer: dict
    ask: Callable = lambda value: None


def over_rows(ctx, body: Body, rows) -> Body:
    """A body for all rows of a batch, [rows, ..], from the body for one row."""

    def walk(given: dict) -> dict:
        live = {name: ctx.live(value) for name, value in given.items()}
        inner = {name: ctx.declare(ctx.fresh(f"{ctx.label}:row"), v.dtype, v.dims[1:]) for name, v in live.items()}
        label, mark = ctx.label, len(ctx.nodes)
        made = body.walk(inner)
        entries, ctx.nodes[mark:] = alive(ctx, ctx.nodes[mark:], [made[o] for o in body.outputs]), []
        lift = Lift(ctx, rows)
        for name, value in live.items():
            lift.give(inner[name], value)
        lift.nodes(entries)
        ctx.label = label
        return {name: lift.whole(made[name]) for name in body.outputs}

    return replace(body, walk=walk)
