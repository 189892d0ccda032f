"""What memory each op of a plan touches, so that a program checks every op when it is bound to sizes.

Ops run without checks: their loops trust the integers that they are given. Those integers are dims over sizes that a
caller chooses. So each op says here, once a kind, which `Access`es it makes, and `Bounds` lays them out as rows of
numbers that `Program` walks in C (`Program._check_bounds`) at every binding: no count is below 0, and the first and
the last element touched are inside the buffer. What an op touches of a slab row is the same at all sizes, and is
checked once; which rows it touches, at every binding.

Indices that are data (of a gather, of lengths) are checked by their ops, before they are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import FastRNNError
from ..graph import dims as D
from ..ops import LEVELS, RANK, TYPE_CODES
from .plan import Coefficients, Op, Plan, split_step
from .tensors import ITEMSIZE, Buffer

ITEMS = {code: ITEMSIZE[dtype] for dtype, code in TYPE_CODES.items()}  # bytes of an element
SLAB = -1  # in the place of a buffer's size: the rows of the slab, as many as the batch has, and one at least


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


def accesses(plan: Plan, op: Op) -> Iterator[Access]:
    """All memory that an op touches besides constants and scratch of its own."""
    yield from _KINDS[op.kind](plan, op.fields)


def _at(fields: dict, name: str, *levels, item: int = 4) -> Iterator[Access]:
    """The access through `name_buffer` and `name_offset`; nothing where the op has no such operand."""
    buffer = fields.get(f"{name}_buffer", -1)
    if isinstance(buffer, Buffer):
        yield Access(name, buffer, fields.get(f"{name}_offset", 0), levels, item)


def _rows(fields: dict, name: str, levels: int = LEVELS) -> list[tuple]:
    """The loops of rows around a kernel, as `level_fields` writes them."""
    return [(fields[f"n{i}"], fields[f"{name}_stride{i}"]) for i in range(levels)]


def _space(fields: dict, name: str) -> list[tuple]:
    """The axes of an op that walks element by element."""
    return [(fields[f"size{i}"], fields[f"{name}_stride{i}"]) for i in range(RANK)]


def _states(plan: Plan, fields: dict, names: tuple, size: int) -> Iterator[Access]:
    """States of `size` floats a row: of the slab, or of a buffer where no row of the slab is theirs."""
    rows, per_slot = fields["rows"], fields["per_slot"]
    for name in names:
        place = fields[name]
        if isinstance(place, Buffer):
            yield Access(name, place, 0, ((rows, size), (size, 1)))
        else:
            yield _slab(plan, name, D.exact_div(rows, per_slot), place, per_slot * size)


def _counted(plan: Plan, fields: dict) -> Iterator[Access]:
    """Where the slab counts the steps of each row."""
    if fields["position"] >= 0:
        yield _slab(plan, "position", fields["rows"], fields["position"], 2)


def _slab(plan: Plan, name: str, rows, place: int, floats: int) -> Access:
    """Some floats of so many rows of the slab."""
    if rows is None or not isinstance(floats, int) or place < 0 or place + floats > plan.state_size:
        raise FastRNNError(f"{name} of {floats} floats at {place} of {rows} slab rows of {plan.state_size} floats")
    return Access(name, None, 0, ((rows, 1),))


# ---- each kind of op -----------------------------------------------------------------------------------------------


def _cell(plan, f):
    spec = plan.cells[f["cell"]].spec
    time, rows = f["steps"], f["rows"]
    yield from _at(f, "x", (time, f["x_time"]), (rows, f["x_row"]), (spec.input_size, 1))
    yield from _at(f, "y", (time, f["y_time"]), (rows, f["y_row"]), (spec.hidden_size, 1))
    yield from _at(f, "lengths", (rows, f["lengths_stride"]), item=8)
    yield from _at(f, "mask", (time, f["mask_time"]), (rows, f["mask_row"]))
    names = ("h_state", "c_state") if spec.kind == "lstm" else ("h_state",)
    yield from _states(plan, f, names, spec.hidden_size)


def _linear(plan, f):
    packed = plan.linears[f["packed"]][0]
    yield from _at(f, "x", *_rows(f, "x"), (packed.K, 1))
    yield from _at(f, "y", *_rows(f, "y"), (packed.N, 1))


def _matmul(plan, f):
    m, k, n = f["m"], f["k"], f["n"]
    yield from _at(f, "a", *_rows(f, "a", 2), (m, f["a_row"]), (k, 1))
    yield from _at(f, "b", *_rows(f, "b", 2), (k, f["b_row"]), (n, f["b_column"]))
    yield from _at(f, "y", *_rows(f, "y", 2), (m, f["y_row"]), (n, 1))


def _elementwise(plan, f):
    for name in (*(f"in{j}" for j in range(f["n_in"])), "out"):
        yield from _at(f, name, *_space(f, name))


def _integers(plan, f):
    for name in (*(f"in{j}" for j in range(f["n_in"])), "out"):
        yield from _at(f, name, *_space(f, name), item=ITEMS[f[f"{name}_type"]])


def _copy(plan, f):
    for name in ("source", "target"):
        yield from _at(f, name, *_space(f, name), item=ITEMS[f[f"{name}_type"]])


def _gather(plan, f):
    inner = (f["inner"], 1)
    yield from _at(f, "table", (f["count"], f["table_row"]), inner, item=f["item"])
    yield from _at(f, "index", *_rows(f, "index"), item=ITEMS[f["index_type"]])
    yield from _at(f, "y", *_rows(f, "y"), inner, item=f["item"])


def _reduce(plan, f):
    yield from _at(f, "x", *_rows(f, "x"), (f["count"], f["step"]))
    yield from _at(f, "y", *_rows(f, "y"))


def _argmax(plan, f):
    yield from _at(f, "x", *_rows(f, "x"), (f["count"], f["step"]))
    yield from _at(f, "y", *_rows(f, "y"), item=8)


def _cumsum(plan, f):
    for name in ("x", "y"):
        yield from _at(f, name, *_rows(f, name), (f["count"], f[f"{name}_step"]), item=ITEMS[f["type"]])


def _softmax(plan, f):
    for name in ("x", "y"):
        yield from _at(f, name, *_rows(f, name), (f["n"], 1))
    for name in ("scale", "bias"):  # of layer_norm
        yield from _at(f, name, (f["n"], 1))


def _state_move(plan, f):
    yield from _at(f, "tensor", (f["rows"], f["row"]), (f["size"], 1))
    yield from _states(plan, f, ("state",), f["size"])


def _running(plan, f):
    rows, size = f["rows"], f["size"]
    yield from _at(f, "x", (f["steps"], f["x_time"]), (rows, f["x_row"]), (size, 1))
    yield from _at(f, "y", (rows, f["y_row"]), (size, 1))
    yield from _states(plan, f, ("state",), 2 * size + 2)


def _tail(plan, f):
    for start in (0, f["shift"]):
        yield Access("steps", f["buffer"], start, ((f["rows"], f["row"]), (f["size"], 1)))
    yield from _states(plan, f, ("state",), f["size"])


def _zero(plan, f):
    yield Access("zeros", f["buffer"], f["offset"], ((f["count"], 1),))


def _loop(plan, f):
    yield Access("steps", None, 0, ((f["steps"], 0),))  # a count alone


def _window(plan, f, ins, outs):
    batch = f["batch"]
    yield from _at(f, "x", (batch, f["x_batch"]), (f["in_h"], f["x_h"]), (f["in_w"], f["x_w"]), (ins, 1))
    yield from _at(f, "y", (batch, f["y_batch"]), (f["out_h"], f["y_h"]), (f["out_w"], f["y_w"]), (outs, 1))


def _conv(plan, f):
    yield from _window(plan, f, f["channels"] * f["groups"], f["outs"] * f["groups"])


def _channels(plan, f):
    yield from _window(plan, f, f["channels"], f["channels"])


def _attention(plan, f):
    batch, rows, keys, heads = f["batch"], f["rows"], f["keys"], f["heads"]
    asking = heads * f["group"]
    yield from _at(f, "q", (batch, f["q_batch"]), (asking, f["q_head"]), (rows, f["q_row"]), (f["d"], 1))
    yield from _at(f, "y", (batch, f["y_batch"]), (asking, f["y_head"]), (rows, f["y_row"]), (f["dv"], 1))
    yield from _at(f, "k", (batch, f["k_batch"]), (heads, f["k_head"]), (keys, f["k_step"]), (f["d"], 1))
    yield from _at(f, "v", (batch, f["v_batch"]), (heads, f["v_head"]), (keys, f["v_step"]), (f["dv"], 1))
    if isinstance(f["bias_buffer"], Buffer):
        inner = ((rows, f["bias_row"]), (keys, f["bias_step"]))
        yield from _at(f, "bias", (batch, f["bias_batch"]), (asking, f["bias_head"]), *inner)
    if f.get("capacity"):
        yield from _counted(plan, {"position": f["position"], "rows": D.exact_div(batch, f["per_slot"])})
        for part, size in (("k_state", f["d"]), ("v_state", f["dv"])):
            kept = {"rows": batch, "per_slot": f["per_slot"], part: f[part]}
            yield from _states(plan, kept, (part,), heads * f["capacity"] * size)


def _steps(plan, f):
    yield from _at(f, "y", (f["rows"], f["y_row"]), (f["count"], f["y_step"]), item=8)
    yield from _counted(plan, f)


def _advance(plan, f):
    yield Access("count", None, 0, ((f["count"], 0),))
    yield from _counted(plan, f)


_KINDS = {
    "cell": _cell,
    "linear": _linear,
    "matmul": _matmul,
    "elementwise": _elementwise,
    "integers": _integers,
    "copy": _copy,
    "gather": _gather,
    "reduce": _reduce,
    "argmax": _argmax,
    "cumsum": _cumsum,
    "softmax": _softmax,
    "layer_norm": _softmax,
    "state_load": _state_move,
    "state_store": _state_move,
    "running": _running,
    "tail": _tail,
    "zero": _zero,
    "loop": _loop,
    "conv": _conv,
    "depthwise": _channels,
    "pool": _channels,
    "attention": _attention,
    "steps": _steps,
    "advance": _advance,
}


# ---- laid out for the walk in C --------------------------------------------------------------------------------------


class Bounds:
    """The accesses of all ops of a plan as numbers of rows of `coefficients`, which it appends, each dim once.

    Attributes
    ----------
    table : ints, for each access that no op before it makes too: row of the buffer's bytes or SLAB, row of the offset,
        bytes of an element, how many levels; then row of the count and row of the stride of each level
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
        """steps: those of the loop that the op is in the body of."""
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
            if entry not in self._seen:  # of 516 in GTCRN 149 are left
                self._seen.add(entry)
                self.table += entry
                self.about.append((op, access))

    def _row(self, dim) -> int:
        if dim not in self._rows:
            self._rows[dim] = len(self._coefficients.rows)
            self._coefficients.add(dim)
        return self._rows[dim]


def _bytes(plan: Plan, buffer: Buffer):
    """The size of a buffer; of a caller's array in a stream up to the last step that one call may touch."""
    ends = {"input": plan.inputs, "output": plan.outputs}.get(buffer.kind, ())
    tensor = next((t for t in ends if t.buffer is buffer), None)
    if tensor is None or plan.mode == "run" or plan.paced:
        return buffer.size * ITEMSIZE[buffer.dtype]
    reach = 1
    for dim, stride in zip(tensor.dims, tensor.strides, strict=True):
        reach = (dim - 1) * stride + reach
    return reach * ITEMSIZE[buffer.dtype]
