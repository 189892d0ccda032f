"""The inputs of a file: values of the graph with a symbol per axis, or the constants that they are bound to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx

from ...errors import ModelFormatError, ShapeError
from ..shared.ledger import Finding
from .build import GraphDraft
from .reading import files
from .reading.values import UNKNOWN, Const, Live
from .sizes.blocks import cut_axis
from .sizes.given import own_name, sums_of

if TYPE_CHECKING:
    from .walk import File

__all__ = ["declare_inputs"]

_MAX_DIM = 2**40


def declare_inputs(file: File, ctx: GraphDraft, known: dict, problems: list[str]) -> list[str]:
    """Declare the graph's inputs; initializers and bound inputs are excluded."""
    names, seen = [], set()
    initial = {t.name for t in file.model.graph.initializer}
    sums = sums_of(file.model.graph)
    for info in file.model.graph.input:
        if not info.name or info.name in seen:
            raise ModelFormatError(f"input {info.name!r} is declared twice" if info.name else "an input has no name")
        seen.add(info.name)
        if info.name in initial:
            continue
        try:
            known[info.name] = _input(file, ctx, info, sums)
        except Finding as finding:
            known[info.name] = UNKNOWN
            problems.append(f"input {info.name!r}: {finding}")
        if info.name not in file.bind:
            names.append(info.name)
    return names


def _input(file: File, ctx: GraphDraft, info: onnx.ValueInfoProto, sums: dict) -> Const | Live:
    """One input: a value of the graph with a symbol per axis, or the constant that it is bound to."""
    kind = info.type.tensor_type
    if info.type.WhichOneof("value") != "tensor_type":
        raise Finding(f"of type {info.type.WhichOneof('value') or 'unknown'}")
    if kind.elem_type not in files.NUMERIC:
        raise Finding(f"of dtype {files.dtype_name(kind.elem_type)}")
    if not kind.HasField("shape"):
        raise Finding("declares no rank")
    brief = kind.elem_type == onnx.TensorProto.BFLOAT16  # computes in float32, as float16 does
    dtype = np.dtype(np.float16) if brief else files.NUMERIC[kind.elem_type]
    dims = []
    for axis, d in enumerate(kind.shape.dim):
        value = d.dim_value if d.HasField("dim_value") else None
        if value is not None and not -1 <= value < _MAX_DIM:
            raise ModelFormatError(f"input {info.name!r} has the dim {value}")
        # Some exporters write 0 or -1 for "any size"; no model computes on an axis that is always empty.
        value = value if value and value > 0 else None
        keeps = value and not ctx.table.policy.thaw
        if value is None and own_name(d) in sums:
            dims.append(ctx.table.sum_dim(info.name, axis, *sums[own_name(d)]))
        else:
            dims.append(value if keeps else ctx.table.input_dim(info.name, axis, value, own_name(d)))
    if info.name in file.bind:
        value = file.bind[info.name]
        if brief:
            dtype, value = np.dtype(np.float32), np.asarray(value, np.float32)
        return Const(_bound(ctx, info, value, dtype, dims))
    found = ctx.declare(info.name, dtype, tuple(dims))
    for axis, d in enumerate(dims):
        ctx.label = f"axis {axis} of input {info.name}"
        sym = ctx.table.single(d)
        if sym is not None and sym.name in ctx.table.multiples:
            found = cut_axis(ctx, found, axis, ctx.table.multiples[sym.name])
    return found


def _bound(ctx: GraphDraft, info: onnx.ValueInfoProto, value, dtype: np.dtype, dims: list) -> np.ndarray:
    """The array that an input is bound to, converted losslessly to its dtype and checked against the file's sizes."""
    declared = [(d.dim_value if d.dim_value > 0 else 0) or d.dim_param or "?" for d in info.type.tensor_type.shape.dim]
    shown = f"bind: {info.name!r} must be {dtype.name}[{', '.join(map(str, declared))}], got"
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise ValueError
        with np.errstate(invalid="ignore", over="ignore"):
            same = array.astype(dtype)
        whole = dtype.kind != "f" or array.dtype.kind in "iu"  # no rounding, not even to floats
        exact = same.astype(object) == array.astype(object) if whole else np.isfinite(same) | ~np.isfinite(array)
        if not np.all(exact):
            raise ValueError
    except (TypeError, ValueError):
        raise ShapeError(f"{shown} {value!r:.60}") from None
    if array.ndim == 0 and all(not isinstance(size, int) or size == 1 for size in declared):
        same = same.reshape((1,) * len(dims))
    fits = same.ndim == len(dims) and all(
        not isinstance(size, int) or size == n for size, n in zip(declared, same.shape, strict=True)
    )
    if not fits:
        raise ShapeError(f"{shown} {array.dtype.name}[{', '.join(map(str, array.shape))}]")
    for axis, (d, size) in enumerate(zip(dims, same.shape, strict=True)):
        if d != size:
            ctx.table.pin(d, size, f"bind: axis {axis} of {info.name!r}")
    return same
