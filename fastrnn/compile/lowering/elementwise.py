"""Lowering of elementwise nodes, single or grouped in one program, and of arithmetic on run-time integers."""

from __future__ import annotations

import numpy as np

from ...errors import UnsupportedError
from ...graph import INTEGERS, Node
from ...graph import dims as D
from ...passes.fuse_elementwise import Group
from .. import bounds
from ..tensors import Tensor, collapse
from .base import Lowering, lowers
from .fields import FUNCTIONS, INTEGER_FUNCTIONS, RANK, TYPE_CODES, at, instruction, space_fields

MOST_LAID_OUT = 65536  # elements of a constant


@lowers("cast")
def _cast(low: Lowering, node: Node) -> None:
    x, to = low.tensor(node.inputs[0]), node.attrs["to"]
    source = low.graph.values[node.inputs[0]].dtype
    if to == source:
        low.tensors[node.outputs[0]] = x
    elif to == "bool" and source in INTEGERS:
        _integers(low, node, "truth")
    elif to == "bool":
        _program(low, node, [("sign", (0,)), ("abs", (1,))], [low.real(node)])
    else:
        low.copy(x, low.result(node, order=x.order), node.name)


@lowers("bitcast")
def _bitcast(low: Lowering, node: Node) -> None:
    """A copy that reads its source as the dtype of the result."""
    x = low.tensor(node.inputs[0])
    low.copy(x, low.result(node, order=x.order), node.name, as_bits=True)


@lowers("unary", "binary", "where")
def _elementwise(low: Lowering, node: Node) -> None:
    """The node, or the group of nodes that ends with it, as one program."""
    group = low.groups.get(node.name)
    if group is not None:
        return _group(low, group)
    if any(low.graph.values[i].dtype in INTEGERS for i in node.inputs):
        return _integers(low, node, _function(node))
    if _function(node) not in FUNCTIONS:
        raise UnsupportedError(f"{_function(node)} of live {low.graph.values[node.inputs[0]].dtype} values")
    registers = tuple(range(len(node.inputs)))
    _program(low, node, [_call(node, registers)], [low.real(node, i) for i in registers])


def _function(node: Node) -> str:
    return "where" if node.op == "where" else node.attrs["fn"]


def _call(node: Node, registers: tuple) -> tuple:
    """The node as an instruction: (function, registers, alpha?, beta?)."""
    return (_function(node), registers, *((node.attrs["alpha"], node.attrs["beta"]) if node.op == "unary" else ()))


def _group(low: Lowering, group: Group) -> None:
    """One program for several nodes. Its registers are the outside values, then each node's result."""
    register = {name: i for i, name in enumerate(group.inputs)}
    instructions = []
    for node in group.nodes:
        instructions.append(_call(node, tuple(register[i] for i in node.inputs)))
        register[node.outputs[0]] = len(register)
    last = group.nodes[-1]
    _program(low, last, instructions, [low.real_value(name, last) for name in group.inputs])


def _program(low: Lowering, node: Node, instructions: list[tuple], inputs: list[Tensor]) -> None:
    """A program over broadcast inputs (float32 tensors). instructions: as `_call` makes them."""
    dims = low.graph.values[node.outputs[0]].dims
    inputs = [t.expand(dims) for t in inputs]
    lead = max(inputs, key=lambda t: sum(s != 0 for s in t.strides))
    inputs = [_laid_out(low, t, lead.order) for t in inputs]
    out = low.real_result(node, lead.order)
    loops = _broadcast_loops(dims, inputs, out)
    fields = {"program": len(low.plan.programs), "n_in": len(inputs)}
    fields |= space_fields(loops, (*(f"in{j}" for j in range(len(inputs))), "out"))
    low.plan.programs.append((len(inputs), tuple(instruction(*i) for i in instructions)))
    for j, t in enumerate(inputs):
        fields |= at(f"in{j}", t)
    work = D.product(dims) * (4 * len(instructions))
    low.builder.emit("elementwise", node.name, inputs, (out,), work, **fields, **at("out", out))


def _laid_out(low: Lowering, t: Tensor, order) -> Tensor:
    """A constant of several axes in the memory order of what it is combined with, so that both are read along rows."""
    axes = [a for a in order if t.strides[a] != 0]
    steps = [t.strides[a] for a in axes]
    if t.buffer.kind != "const" or steps == sorted(steps, reverse=True) or t.buffer.size > MOST_LAID_OUT:
        return t
    known = low.plan.constants[t.buffer.index].reshape(-1)
    there = [d if s != 0 else 1 for d, s in zip(t.dims, t.strides, strict=True)]
    steps = [4 * s for s in t.strides]
    array = np.lib.stride_tricks.as_strided(known[t.offset :], there, steps).transpose(order)
    made = low.builder.constant(array, "float32").transpose([order.index(a) for a in range(len(order))])
    return made.expand(t.dims)


@bounds.touches("elementwise")
def _elementwise_touches(plan, f):
    for name in (*(f"in{j}" for j in range(f["n_in"])), "out"):
        yield from bounds.at(f, name, *bounds.space(f, name))


def _broadcast_loops(dims: tuple, inputs: list[Tensor], out: Tensor) -> list[tuple]:
    loops = collapse(dims, [*(t.strides for t in inputs), out.strides], out.order)
    if len(loops) > RANK:
        raise UnsupportedError(f"broadcasting over {len(loops)} axes that can't be merged; at most {RANK}")
    return loops


def _integers(low: Lowering, node: Node, fn: str) -> None:
    """fn of integers (bools for the condition of a `where`): exact, with integer wraparound."""
    if fn not in INTEGER_FUNCTIONS:
        raise UnsupportedError(f"{fn} of live integers ({', '.join(map(str, node.inputs))})")
    dims = low.graph.values[node.outputs[0]].dims
    inputs = [low.tensor(i) for i in node.inputs]
    bad = [t.dtype for t in inputs if t.dtype == "float64"]
    if bad:
        raise UnsupportedError(f"arithmetic on live {bad[0]} values")
    views = [t.expand(dims) for t in inputs]
    out = low.real_result(node)
    loops = _broadcast_loops(dims, views, out)
    names = (*(f"in{j}" for j in range(len(views))), "out")
    fields = space_fields(loops, names)
    for j, t in enumerate(views):
        fields |= at(f"in{j}", t) | {f"in{j}_type": TYPE_CODES[t.dtype]}
    low.builder.emit(
        "integers", node.name, inputs, (out,), D.product(dims), fn=INTEGER_FUNCTIONS[fn], n_in=len(views),
        unsigned_=int("uint64" in [t.dtype for t in inputs]), **fields, **at("out", out),
        out_type=TYPE_CODES[out.dtype],
    )  # fmt: skip


@bounds.touches("integers")
def _integers_touches(plan, f):
    for name in (*(f"in{j}" for j in range(f["n_in"])), "out"):
        yield from bounds.at(f, name, *bounds.space(f, name), item=bounds.ITEMS[f[f"{name}_type"]])
