"""Shared by the lowering of all ops: codes of functions and dtypes, and the fields that describe loops of rows."""

from __future__ import annotations

from ...machine import _isa
from ...ops import INTEGER_FUNCTIONS as INTEGER_FUNCTIONS
from ...ops import LEVELS as LEVELS
from ...ops import RANK as RANK
from ...ops import TYPE_CODES as TYPE_CODES
from ..tensors import Tensor

FUNCTIONS = {name: code for code, name in enumerate(_isa.functions())}


def at(name: str, t: Tensor) -> dict:
    """The fields that say where a tensor starts."""
    return {f"{name}_buffer": t.buffer, f"{name}_offset": t.offset}


def level_fields(loops: list[tuple], names: tuple, levels: int = LEVELS) -> dict:
    """n0, n1, .. and one stride per operand and level, slowest first; missing outer levels have size 1."""
    loops = [(1, (0,) * len(names))] * (levels - len(loops)) + loops
    fields = {}
    for i, (size, steps) in enumerate(loops):
        fields[f"n{i}"] = size
        fields |= {f"{name}_stride{i}": step for name, step in zip(names, steps, strict=True)}
    return fields


def space_fields(loops: list[tuple], names: tuple) -> dict:
    """rank, size0.., and one stride per operand and axis, for ops that walk up to RANK axes element by element."""
    fields = {"rank": max(len(loops), 1)}
    for i in range(RANK):
        size, steps = loops[i] if i < len(loops) else (1, (0,) * len(names))
        fields[f"size{i}"] = size
        fields |= {f"{name}_stride{i}": step for name, step in zip(names, steps, strict=True)}
    return fields


def instruction(fn: str, registers: tuple, alpha: float = 0.0, beta: float = 0.0) -> tuple:
    """One instruction of an elementwise program, or an activation, in the executor's form."""
    a, b, c = (*registers, 0, 0)[:3]
    return (FUNCTIONS[fn], a, b, c, float(alpha), float(beta))


def contiguous_last(t: Tensor) -> bool:
    """Whether the last axis of t is contiguous."""
    return not t.dims or t.strides[-1] == 1 or t.dims[-1] == 1
