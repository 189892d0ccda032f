"""Reduced precision: which layers hold their weights in a smaller number format, and the graph that holds them so.

It runs last: the other passes leave such a graph as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..errors import FastRNNWarning, ModelFormatError, UnsupportedError
from ..graph import Graph, Node, validate
from ..graph.precision import BFLOAT16_MOST, MOST_TERMS, PRECISIONS, SCALES, held
from .dead import remove_dead_nodes
from .patch import Patch

# The least weights of an op that gains by reduced precision with one row; smaller ones stay float32 unless the caller
# names them. Time of a step in float32 / in this precision, EPYC (AVX-512 VNNI), one row: tools/bench/precision.py.
LEAST = {"bfloat16": {"cell": 1 << 18, "linear": 1 << 18}, "int8": {"cell": 1 << 13, "linear": 1 << 14}}
LEAST["int8-a16"] = LEAST["int8"]
AXIS = {"cell": 1, "linear": 0}  # of W, along which a product sums


def precision_of(graph: Graph) -> dict[str, str]:
    """Layer -> precision of all layers that could have one, in the graph's order."""
    return {n.name: n.attrs.get("precision", "float32") for n in graph.nodes if n.op in AXIS}


def is_reduced(graph: Graph) -> bool:
    """Whether a layer holds its weights in another format than float32."""
    return any(p != "float32" for p in precision_of(graph).values())


def set_precision(graph: Graph, wanted: str | Mapping[str, str]) -> Graph:
    """The graph with weights in these precisions.

    wanted : one for all layers that gain by it, or layer -> precision; layers that it does not name stay as they are

    Raises ModelFormatError for an unknown precision or layer, UnsupportedError for a layer that can't have it.
    """
    found = precision_of(graph)
    _check(graph, wanted, found)
    patch, notes, done = Patch(graph), [], {}
    for node in graph.nodes:
        if node.op not in AXIS:
            continue
        named = not isinstance(wanted, str)
        precision = wanted.get(node.name, found[node.name]) if isinstance(wanted, Mapping) else wanted
        if precision == found[node.name]:
            continue
        if found[node.name] != "float32":
            raise UnsupportedError(
                f"layer {node.name} holds its weights in {found[node.name]}, from which {precision} can't be made: "
                "load the file that it was converted from"
            )
        why = _reason(graph, node, precision, named)
        if why is None:
            patch.replace(node, _changed(patch, node, precision, done))
            notes.append(f"{node.name} holds its weights in {precision}")
        elif named:
            raise UnsupportedError(f"layer {node.name} can't be {precision}: {why}; leave it float32")
        else:
            notes.append(f"{node.name} stays float32: {why}")
    if patch.instead:
        return validate(remove_dead_nodes(patch.done(*notes)))
    if wanted != "float32" and not is_reduced(graph):
        text = f"{graph.name}: precision={wanted!r} changes no layer; model.notes says why"
        warnings.warn(text, FastRNNWarning, stacklevel=2)
    return graph.replace(notes=(*graph.notes, *notes))


def _check(graph: Graph, wanted, found: Mapping[str, str]) -> None:
    known = f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
    values = wanted.values() if isinstance(wanted, Mapping) else (wanted,)
    for value in values:
        if value not in PRECISIONS:
            raise ModelFormatError(f"precision must be {known}, or a dict of them by layer name, got {value!r:.80}")
    unknown = [str(name) for name in wanted if name not in found] if isinstance(wanted, Mapping) else []
    if unknown:
        names = ", ".join(found) or "none"
        raise ModelFormatError(f"precision: {graph.name} has no layer {unknown[0]!r} with products; it has {names}")


def _arrays(graph: Graph, node: Node) -> list[np.ndarray | None]:
    """The weights of a node's products; None for one that is not a constant."""
    return [graph.constants.get(node.inputs[at] or "") for at in SCALES[node.op]]


def _reason(graph: Graph, node: Node, precision: str, named: bool) -> str | None:
    """Why a layer can't or should not hold its weights in a precision; None: it can."""
    arrays = _arrays(graph, node)
    if any(a is None or a.dtype != np.float32 for a in arrays):
        return "its weights are not float32 constants"
    given = [a for a in arrays if a is not None]
    if not all(np.isfinite(a).all() for a in given):
        return "it has weights that are not finite"
    if precision == "bfloat16" and any(np.abs(a).max(initial=0) > BFLOAT16_MOST for a in given):
        return "it has a weight beyond the largest bfloat16"
    if precision.startswith("int8") and any(a.shape[AXIS[node.op]] > MOST_TERMS for a in given):
        return f"it sums over more than {MOST_TERMS} products, which may not fit 32 bits"
    size, least = sum(a.size for a in given), LEAST[precision][node.op]
    return f"its {size} weights gain nothing by it" if size < least and not named else None


def _changed(patch: Patch, node: Node, precision: str, done: dict[tuple, list[str | None]]) -> Node:
    """The node with its weights in this precision. done: (weights, precision, axis) -> the constants that hold them,
    for nodes that share them."""
    inputs, axis = list(node.inputs), AXIS[node.op]
    for at, scale_at in SCALES[node.op].items():
        name = str(node.inputs[at])
        if (name, precision, axis) not in done:
            array, scale = held(patch.graph.constants[name], precision, axis)
            made = [patch.constant(f"{name}.{precision}", array)]
            made += [None if scale is None else patch.constant(f"{name}.scale", scale)]
            done[name, precision, axis] = made
        inputs[at], scale_name = done[name, precision, axis]
        if scale_name is not None:
            inputs += [None] * (scale_at + 1 - len(inputs))
            inputs[scale_at] = scale_name
    return replace(node, inputs=tuple(inputs), attrs={**node.attrs, "precision": precision})
