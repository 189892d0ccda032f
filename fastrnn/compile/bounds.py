"""Which memory each op of a plan touches, so that a program can check every op when it is bound to sizes.

Ops run without checks: their loops trust their integers. Those integers are dims over sizes that a caller chooses. So
each kind of op declares, beside its lowering (`@touches("kind")`), which `Access`es it makes. `Bounds` lays them out as
rows of numbers, and `Program` walks them in C (`Program._check_bounds`) at every binding. It checks that no count is
below 0, and that the first and the last element touched are inside the buffer. The part of a slab row that an op
touches is the same at all sizes and is checked once. The rows that it touches are checked at every binding.

Ops check indices that are data (of a gather, of lengths) before they use them.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import FastRNNError
from ..graph import dims as D
from ..graph.registry import Registry
from ..ops import LEVELS, RANK, TYPE_CODES
from ..records import dataclass
from .plan import Coefficients, Op, Plan, split_step
from .tensors import ITEMSIZE, Buffer

ITEMS = {code: ITEMSIZE[dtype] for dtype, code in TYPE_CODES.items()}  # bytes of an element
SLAB = -1  # in place of a buffer's size: the rows of the slab, as many as the batch has but at least one


@dataclass(frozen=True)
class Access:
    """Elements `offset + i*stride + j*stride + ..` of a buffer, for all i < count, j < count, ..

    buffer : Buffer, or None for rows of the slab. levels : (count, stride) pairs, dims or ints, in elements of `item`
        bytes.
    """

    what: str
    buffer: Buffer | None
    offset: object
    levels: tuple
    item: int = 4


touches = Registry()  # kind of op -> (plan, fields): every `Access` that it makes besides constants and its own scratch


def accesses(plan: Plan, op: Op) -> Iterator[Access]:
    """All memory that an op touches, except constants and its own scratch."""
    yield from touches[op.kind](plan, op.fields)


def at(fields: dict, name: str, *levels, item: int = 4) -> Iterator[Access]:
    """The access through `name_buffer` and `name_offset`; nothing if the op has no such operand."""
    buffer = fields.get(f"{name}_buffer", -1)
    if isinstance(buffer, Buffer):
        yield Access(name, buffer, fields.get(f"{name}_offset", 0), levels, item)


def rows(fields: dict, name: str, levels: int = LEVELS) -> list[tuple]:
    """The loops of rows around a kernel, as `level_fields` writes them."""
    return [(fields[f"n{i}"], fields[f"{name}_stride{i}"]) for i in range(levels)]


def space(fields: dict, name: str) -> list[tuple]:
    """The axes of an op that walks element by element."""
    return [(fields[f"size{i}"], fields[f"{name}_stride{i}"]) for i in range(RANK)]


def states(plan: Plan, fields: dict, names: tuple, size: int) -> Iterator[Access]:
    """States of `size` floats per row: in the slab, or in a buffer if they have no slab row."""
    rows, per_slot = fields["rows"], fields["per_slot"]
    for name in names:
        place = fields[name]
        if isinstance(place, Buffer):
            yield Access(name, place, 0, ((rows, size), (size, 1)))
        else:
            yield slab(plan, name, D.exact_div(rows, per_slot), place, per_slot * size)


def counted(plan: Plan, fields: dict) -> Iterator[Access]:
    """Where the slab counts the steps of each row."""
    if fields["position"] >= 0:
        yield slab(plan, "position", fields["rows"], fields["position"], 2)


def slab(plan: Plan, name: str, rows, place: int, floats: int) -> Access:
    """Some floats in each of that many slab rows."""
    if rows is None or not isinstance(floats, int) or place < 0 or place + floats > plan.state_size:
        raise FastRNNError(f"{name} of {floats} floats at {place} of {rows} slab rows of {plan.state_size} floats")
    return Access(name, None, 0, ((rows, 1),))


# ---- laid out for the walk in C --------------------------------------------------------------------------------------


class Bounds:
    """The accesses of all ops of a plan, as row numbers of `coefficients`. Appends each dim once.

    Attributes
    ----------
    table : ints, for each distinct access: row of the buffer's bytes or SLAB, row of the offset, bytes of an element,
        number of levels; then row of the count and row of the stride of each level
    about : (op, Access) of each, for the message of an error
    """

    def __init__(self, plan: Plan, coefficients: Coefficients):
        self._coefficients, self._rows, self._seen = coefficients, {}, set()
        self.table: list[int] = []
        self.about: list[tuple[Op, Access]] = []
        for op in plan.ops:
            self._add_op(plan, op, ())
            if op.kind == "loop":
                for inner in plan.bodies[op.fields["body"]]:
                    self._add_op(plan, inner, (op.fields["steps"],))

    def _add_op(self, plan: Plan, op: Op, steps: tuple) -> None:
        """steps: the steps of the loop whose body contains the op."""
        try:
            found = list(accesses(plan, op))
        except FastRNNError as error:
            raise FastRNNError(f"node {op.node} ({op.kind}): {error}") from None
        for access in found:
            offset, per_step = split_step(access.offset)
            levels = [level for level in access.levels if level[0] != 1]
            levels += [(count, per_step) for count in steps if per_step != 0]
            room = SLAB if access.buffer is None else self._row(_bytes(plan, access.buffer))
            pairs = sorted((self._row(count), self._row(stride)) for count, stride in levels)
            entry = (room, self._row(offset), 1 if room == SLAB else access.item, len(pairs), *sum(pairs, ()))
            if entry not in self._seen:  # leaves 149 of 516 in GTCRN
                self._seen.add(entry)
                self.table += entry
                self.about.append((op, access))

    def _row(self, dim) -> int:
        if dim not in self._rows:
            self._rows[dim] = len(self._coefficients.rows)
            self._coefficients.add(dim)
        return self._rows[dim]


def _bytes(plan: Plan, buffer: Buffer):
    """The size of a buffer. For a caller's array in a stream: up to the last step that one call may touch."""
    ends = {"input": plan.inputs, "output": plan.outputs}.get(buffer.kind, ())
    tensor = next((t for t in ends if t.buffer is buffer), None)
    if tensor is None or plan.mode == "run" or plan.paced:
        return buffer.size * ITEMSIZE[buffer.dtype]
    reach = 1
    for dim, stride in zip(tensor.dims, tensor.strides, strict=True):
        reach = (dim - 1) * stride + reach
    return reach * ITEMSIZE[buffer.dtype]
