"""Lowering of recurrences of matrix states (passes/fuse_scans.py): one `scan` op for an update and its read-out.

In a loop whose body is one scan, the op runs all steps, and the state stays in place: in the slab row of its stream, or
in one matrix of the arena. Otherwise it runs one step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...graph import Node
from ...graph import dims as D
from ...graph.loops import Loop
from ...ops import SCAN_OPERANDS
from ...passes.fuse_scans import TERMS, Scan, View
from .. import bounds
from ..tensors import Buffer, Tensor
from .fields import at

if TYPE_CHECKING:
    from .base import Lowering

AXES = 5  # of an operand: steps, rows of the batch, matrices of a row, rows and columns of a matrix


def stays_in_place(low: Lowering, state: str, after: str, threaded: int = 0) -> bool:
    """Whether only scans of one cycle read a state and its next value, so that the next one may take its place.
    threaded: the states of the caller whose next value it is."""
    own = [scan for scan in low.scans.values() if scan.state.name == state]
    if not any(scan.root == after for scan in own) or list(low.states.values()).count(after) != threaded:
        return False
    own += [scan for scan in low.scans.values() if any(t.w.name == after for t in scan.terms)]
    if any(_reads_otherwise(scan, state, after) for scan in own):
        return False
    if len({low.region.get(scan.nodes[-1].name) for scan in own}) > 1:
        return False
    names = {name for scan in own for name in scan.names}
    readers = {n.name for value in (state, after) for n in low.consumers.get(value, ()) if n.op != "state"}
    return readers <= names and not {state, after} & set(low.output_names)


def _reads_otherwise(scan: Scan, state: str, after: str) -> bool:
    """Whether a scan reads a state, or its next value, as anything but the matrix of a term."""
    ws = [t.w for t in scan.terms]
    return any(v.name in (state, after) for v in scan.leaves if v not in ws) or any(w.name == state for w in ws)


def in_place(low: Lowering, name: str) -> bool:
    """Whether a state that a step function's caller would thread stays in its slab row."""
    value = low.graph.values[name]
    batch_first = not low.has_batch or value.dims[0] == D.BATCH
    return low.plan.steps_one and batch_first and stays_in_place(low, name, low.states[name], threaded=1)


def lower_scan(low: Lowering, scan: Scan) -> None:
    """One step, of a step function or in the body of a loop."""
    name, state = scan.nodes[-1].name, scan.state.name
    if state in low.in_slab or state in low.in_arena:
        return _emit(low, scan, name, low.in_arena.get(state), low.in_arena.get(state), 1)
    after = None
    if scan.root is not None:
        after = low.result(_maker(scan, scan.root))
        if _turned(after, scan.state).strides[-1] != 1:
            after = low.result(_maker(scan, scan.root), fresh=True)
    _emit(low, scan, name, low.tensor(state), after, 1)


def whole_scan(low: Lowering, loop: Loop) -> Scan | None:
    """The scan that is all of a loop's body."""
    names = {n.name for n in loop.nodes}
    scan = next((s for s in low.scans.values() if s.root is not None and s.names >= names), None)
    if scan is None or len(loop.states) != 1 or not names:
        return None
    readers = {n.name for n in low.consumers.get(scan.state.name, ())}
    alone = readers <= scan.names and scan.state.name not in low.output_names
    return scan if alone and loop.states[0].outputs[0] == scan.state.name else None


def all_steps(low: Lowering, scan: Scan, name: str, before: Tensor | None = None, after: Tensor | None = None) -> None:
    """All steps of a loop. before, after: [T, ..]; None: the state stays in place."""
    kept = low.in_arena.get(scan.state.name)
    _emit(low, scan, name, before or kept, after or kept, D.TIME)


def _emit(low: Lowering, scan: Scan, name: str, before: Tensor | None, after: Tensor | None, steps) -> None:
    """before, after: the state, [T, ..] or [..]; None: in the slab."""
    size, offset = _size(low, scan), low.in_slab.get(scan.state.name)
    operands: dict[str, Tensor | None] = dict.fromkeys(SCAN_OPERANDS)
    if before is not None:
        operands["before"] = _matrix(low, before, scan.state, size, name)
    if after is not None and scan.root is not None:
        operands["after"] = _matrix(low, after, scan.state, size, name)
    fields: dict = {"across": int(scan.across), "state": -1 if offset is None else offset}
    kept = {}  # operand -> where the slab keeps it
    for key, view in _views(scan).items():
        row = key[0] == "w" or key == "decay" or (key == "q" and scan.across)
        home = _kept(low, view.name) if key[0] == "w" else None
        if home is not None and home in low.in_slab:
            kept[key] = low.in_slab[home]
        else:
            t = low.in_arena[home] if home is not None else low.tensor(view.name)
            operands[key] = _operand(low, t, view, size, name, dense=row and _dims(low, view)[-1] != 1)
    for k in range(TERMS):
        minus = k < len(scan.terms) and scan.terms[k].negative
        fields |= {f"negative{k}": int(minus), f"slab{k}": kept.get(f"w{k}", -1)}
    out = y = None if scan.y is None else _result(low, scan)
    if y is not None:
        if not scan.across and y.strides[-1] != 1:
            y = low.builder.allocate("float32", out.dims)
        operands["y"] = y.expand(size)
    batch, inner = _lead(size, steps)
    fields |= {"size0": steps, "size1": _at(size, batch), "size2": _at(size, inner)}
    fields |= {"size3": size[-2], "size4": size[-1]}
    rank = len(size)
    if offset is not None:
        kept["before"] = offset
        if scan.root is not None:
            kept["after"] = offset
    dense = size[-1] if scan.state.perm[-1] == rank - 1 else 1
    for k, key in enumerate(SCAN_OPERANDS):
        t = operands[key]
        fields |= {f"in{k}_buffer": -1} if t is None else at(f"in{k}", t)
        if key in kept:
            fields |= {f"in{k}_stride2": size[-2] * size[-1], f"in{k}_stride3": dense, f"in{k}_stride4": 1}
        elif t is not None:
            for i, axis in enumerate((0 if steps is D.TIME else None, batch, inner, rank - 2, rank - 1)):
                fields[f"in{k}_stride{i}"] = 0 if axis is None else t.strides[axis]
    reads = [t for key, t in operands.items() if t is not None and key not in ("after", "y")]
    writes = [t for key, t in operands.items() if t is not None and key in ("after", "y")]
    count = D.product((steps, fields["size1"], fields["size2"], *size[-2:]))
    low.builder.emit("scan", name, reads, writes, count * _flops(scan), **fields)
    if y is not out:
        low.copy(y, out, name)


@bounds.touches("scan")
def _scan_touches(plan, f):
    for k in range(len(SCAN_OPERANDS)):
        levels = ((f[f"size{i}"], f.get(f"in{k}_stride{i}", 0)) for i in range(AXES))
        yield from bounds.at(f, f"in{k}", *levels)
    size = f["size2"] * f["size3"] * f["size4"]
    if not isinstance(f["in0_buffer"], Buffer):
        yield bounds.slab(plan, "state", f["size1"], f["state"], size)
    for k in range(TERMS):
        if f[f"slab{k}"] != -1:
            yield bounds.slab(plan, "term", f["size1"], f[f"slab{k}"], size)


def _flops(scan: Scan) -> int:
    """Of one element of a state at one step."""
    return 2 * len(scan.terms) + 2 * (scan.y is not None) + (scan.decay is not None)


def _views(scan: Scan) -> dict[str, View]:
    """Operand -> its value."""
    found = {"decay": scan.decay, "rate": scan.rate, "q": scan.q}
    for k, term in enumerate(scan.terms):
        found |= {f"{letter}{k}": view for letter, view in zip("uv", term.u, strict=False)} | {f"w{k}": term.w}
    return {key: view for key, view in found.items() if view is not None}


def _kept(low: Lowering, name: str) -> str | None:
    """The state that stays in place and whose next value this is."""
    found = (scan.state.name for scan in low.scans.values() if scan.root == name)
    return next((state for state in found if state in low.in_slab or state in low.in_arena), None)


def _at(size: tuple, axis: int | None):
    return 1 if axis is None else size[axis]


def _lead(size: tuple, steps) -> tuple:
    """(axis of the batch, axis of several matrices) before the last two; None if there is none."""
    lead = list(range(1 if steps is D.TIME else 0, len(size) - 2))
    batch = next((a for a in lead if size[a] == D.BATCH), None)
    inner = next((a for a in lead if a != batch and size[a] != 1), None)
    return batch, inner


def _dims(low: Lowering, view: View) -> tuple:
    dims = low.graph.values[view.name].dims
    dims = (1,) * (len(view.perm) - len(dims)) + tuple(dims)
    return tuple(dims[p] for p in view.perm)


def _size(low: Lowering, scan: Scan) -> tuple:
    return _dims(low, scan.state)


def _turned(t: Tensor, view: View) -> Tensor:
    """The tensor of a value as the scan sees it."""
    for _ in range(len(view.perm) - len(t.dims)):
        t = t.unsqueeze(0)
    return t.transpose(view.perm)


def _operand(low: Lowering, t: Tensor, view: View, size: tuple, name: str, dense: bool) -> Tensor:
    """dense: the last axis must be contiguous."""
    t = _turned(t, view)
    if dense and t.strides[-1] != 1:
        copy = low.builder.allocate("float32", t.dims)
        low.copy(t, copy, name)
        t = copy
    return t.expand(size)


def _matrix(low: Lowering, t: Tensor, view: View, size: tuple, name: str) -> Tensor:
    """The state, [T, ..] or [..] without steps, with contiguous rows."""
    t = _turned(t, view)
    if t.strides[-1] != 1:
        copy = low.builder.allocate("float32", t.dims)
        low.copy(t, copy, name)
        t = copy
    return t.expand(size)


def _result(low: Lowering, scan: Scan) -> Tensor:
    """Where y goes, as the scan sees it: an axis of size 1 takes the place of the one that is summed."""
    node = _maker(scan, scan.y.name)
    out = low.result(node)
    rank, axis = len(scan.y.perm), scan.y.perm[-1 if scan.across else -2]
    if node.op == "reduce" and not node.attrs["keepdims"]:
        out = out.unsqueeze(axis)
    for _ in range(rank - len(out.dims)):
        out = out.unsqueeze(0)
    return out.transpose(scan.y.perm)


def _maker(scan: Scan, name: str) -> Node:
    return next(n for n in scan.nodes if name in n.outputs)
