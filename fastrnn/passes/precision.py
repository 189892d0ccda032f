"""Reduced precision: which layers hold their weights in a smaller number format, and the graph that holds them so.

It runs last: the other passes leave such a graph as it is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..errors import FastRNNWarning, ModelFormatError, UnsupportedError
from ..graph import Graph, Node, validate
from ..graph.precision import BFLOAT16_MOST, MOST_TERMS, PRECISIONS, SCALES, columns, held_by, integers_of
from ..graph.windows import CONVOLUTIONS
from ..records import dataclass
from .dead import remove_dead_nodes
from .patch import Patch

# Where an op gains by a format: (the least weights, the least columns, which share the rounding of a row). Smaller ones
# stay float32 unless the caller names them. Measured by tools/bench/precision.py on an EPYC with AVX-512 VNNI: the gain
# with one row and that with 16, as a geometric mean (docs/decisions/0028). Looking up rows of a table is not faster in
# any format; a large one is smaller.
LEAST = {
    "bfloat16": {"cell": (73_728, 1), "linear": (36_864, 1), "conv": (27_648, 1), "gather": (65_536, 1)},
    "int8": {"cell": (13_824, 1), "linear": (4_096, 16), "conv": (6_912, 48), "gather": (65_536, 1)},
    "int8-a16": {"cell": (32_768, 1), "linear": (16_384, 96), "conv": (27_648, 96), "gather": (65_536, 1)},
}
NEVER_NEGATIVE = ("relu", "sigmoid", "hard_sigmoid", "abs", "exp", "softplus", "sqrt")
MOVES = ("transpose", "reshape", "slice", "expand")
MOST_MOVES = 16  # from a rounded value to the product that it enters


def precision_of(graph: Graph) -> dict[str, str]:
    """Layer -> precision of all layers that could have one, in the graph's order."""
    return {n.name: n.attrs.get("precision", "float32") for n in graph.nodes if _may_have_one(graph, n)}


def _may_have_one(graph: Graph, node: Node) -> bool:
    """Whether the node is a layer with products, or looks up rows of numbers that were trained."""
    if node.op != "gather" or "precision" in node.attrs:
        return node.op in SCALES
    table, indices = (graph.constants.get(str(name)) for name in node.inputs[:2])
    return table is not None and indices is None and table.dtype == np.float32 and table.ndim > 1


def is_reduced(graph: Graph) -> bool:
    """Whether a layer holds its weights in another format than float32."""
    return any(p != "float32" for p in precision_of(graph).values())


def set_precision(graph: Graph, wanted: str | Mapping[str, str] | None = None) -> Graph:
    """The graph with weights in these precisions.

    wanted : one for all layers that gain by it, or layer -> precision; layers that it does not name, and all if it is
        None, stay as they are or hold the file's own integers

    Raises ModelFormatError for an unknown precision or layer, UnsupportedError for a layer that can't have it.
    """
    found = precision_of(graph)
    _check(graph, wanted, found)
    patch, notes, done = Patch(graph), [], {}
    for node in graph.nodes:
        if node.name not in found:
            continue
        named = isinstance(wanted, Mapping) and node.name in wanted
        file = _of_file(graph, node) if found[node.name] == "float32" and graph.integers else None
        precision = wanted.get(node.name) if isinstance(wanted, Mapping) else wanted
        precision = precision or (file.precision if file else found[node.name])
        if precision == found[node.name]:
            continue
        if found[node.name] != "float32" and {precision, found[node.name]} != {"int8", "int8-a16"}:
            raise UnsupportedError(
                f"layer {node.name} holds its weights in {found[node.name]}, from which {precision} can't be made: "
                "load the file that it was converted from"
            )
        why = _reason(graph, node, precision, named) if found[node.name] == "float32" else None
        if why is None and file and precision == file.precision and not (named or isinstance(wanted, str)):
            why = file.why
        if why is None:
            patch.replace(node, _changed(patch, node, precision, done, file))
            own = " of the file's own integers" if file and file.why is None and precision.startswith("int8") else ""
            notes.append(f"{node.name} holds its weights in {precision}{own}")
        elif named:
            raise UnsupportedError(f"layer {node.name} can't be {precision}: {why}; leave it float32")
        else:
            notes.append(f"{node.name} stays float32: {why}")
    if patch.instead:
        return validate(remove_dead_nodes(patch.done(*notes))).replace(integers={})
    asked = set(wanted.values()) if isinstance(wanted, Mapping) else {wanted}
    if asked - {"float32", None} and not is_reduced(graph):
        text = f"{graph.name}: precision={wanted!r} changes no layer; model.notes says why"
        warnings.warn(text, FastRNNWarning, stacklevel=2)
    return graph.replace(notes=(*graph.notes, *notes), integers={}) if notes or graph.integers else graph


@dataclass(frozen=True)
class _File:
    """The 8-bit weights that the file has for a layer.

    precision : how the file rounds what they are multiplied with: to 8 bits, or not at all
    held : name of the weights -> (int8, the step of each column); empty if kernels can't hold them
    why : why the layer stays float32 unless the caller asks; None: it does not
    """

    precision: str
    held: Mapping[str, tuple[np.ndarray, np.ndarray]]
    why: str | None


def _of_file(graph: Graph, node: Node) -> _File | None:
    """The 8-bit weights of a float32 layer; None if the file has none for it."""
    names = [str(node.inputs[at]) for at in SCALES[node.op]]
    arrays = [graph.constants.get(name) for name in names]
    if any(a is None or a.dtype != np.float32 for a in arrays):
        return None
    views = [columns(node.op, a, node.attrs.get("groups", 1)) for a in arrays]
    parts = [integers_of(*view, graph.integers) for view in views]
    if any(part is None for part in parts):
        return None
    precision = max((part[2] for part in parts), key=PRECISIONS.index)
    if any(q.max(initial=0) > 127 or q.min(initial=0) < -128 for q, _, _ in parts):
        return _File(precision, {}, "its 8-bit weights less their zero point go beyond -128 to 127")
    held = {
        name: (q.astype(np.int8).reshape(a.shape), step.reshape(-1))
        for name, a, (q, step, _) in zip(names, arrays, parts, strict=True)
    }
    if precision == "int8" and node.op != "cell" and _is_never_negative(graph, str(node.inputs[0])):
        precision = "int8-a16"  # such files round to 0..255, and a sign would take half of the steps
    rounded = node.op != "cell" and _is_rounded(graph, str(node.inputs[0]))
    return _File(precision, held, "the file rounds its input at a scale of its own" if rounded else None)


def _is_rounded(graph: Graph, name: str) -> bool:
    """Whether a value is one that the file rounds to 8 or 16 bits: moved, and computed from a clipped whole number."""
    node = _maker(graph, name, (*MOVES, "binary"))
    return node is not None and node.op == "unary" and node.attrs["fn"] in ("clip", "round")


def _is_never_negative(graph: Graph, name: str) -> bool:
    """Whether a value is the result of a function without negative values, maybe moved."""
    node = _maker(graph, name, MOVES)
    if node is None or node.op not in ("unary", "linear", "conv"):
        return False
    return node.attrs.get("fn" if node.op == "unary" else "activation") in NEVER_NEGATIVE


def _maker(graph: Graph, name: str, through: tuple[str, ...]) -> Node | None:
    """The node that a value comes from, through ops of these names that have one input besides constants."""
    makers = graph.producers()
    for _ in range(MOST_MOVES):
        node = makers.get(name)
        if node is None or node.op not in through:
            return node
        live = [i for i in node.inputs if i is not None and i not in graph.constants]
        if len(live) != 1:
            return node
        name = live[0]
    return None


def _check(graph: Graph, wanted, found: Mapping[str, str]) -> None:
    known = f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
    values = wanted.values() if isinstance(wanted, Mapping) else (wanted,)
    for value in values if wanted is not None else ():
        if value == "auto":
            raise ModelFormatError(
                'precision="auto" needs data to judge by: pass the model in float32 and your data to '
                "fastrnn.choose_precision, or convert with fastrnn-convert --precision auto --data FILE"
            )
        if value not in PRECISIONS:
            raise ModelFormatError(f"precision must be {known}, or a dict of them by layer name, got {value!r:.80}")
    unknown = [str(name) for name in wanted if name not in found] if isinstance(wanted, Mapping) else []
    if unknown:
        names = ", ".join(found) or "none"
        node = next((n for n in graph.nodes if n.name == unknown[0]), None)
        if node is not None:
            text = "only cells, linear layers, convolutions and embeddings hold their weights in another format"
            raise UnsupportedError(f"layer {unknown[0]} ({node.op}) has no precision: {text}; name one of {names}")
        raise ModelFormatError(f"precision: {graph.name} has no layer {unknown[0]!r} with products; it has {names}")


def _arrays(graph: Graph, node: Node) -> list[np.ndarray | None]:
    """The weights of a node's products; None for one that is not a constant."""
    return [graph.constants.get(node.inputs[at] or "") for at in SCALES[node.op]]


def _reason(graph: Graph, node: Node, precision: str, named: bool) -> str | None:
    """Why a layer can't or should not hold its weights in a precision; None: it can."""
    arrays = _arrays(graph, node)
    if _is_depthwise(graph, node):
        return "each of its sums has the taps of one channel, which a row's rounding takes longer than"
    if node.op == "gather" and node.attrs["axis"] != 0:
        return "it picks columns of its table, not rows"
    if any(a is None or a.dtype != np.float32 for a in arrays):
        return "its weights are not float32 constants"
    given = [a for a in arrays if a is not None]
    if not all(np.isfinite(a).all() for a in given):
        return "it has weights that are not finite"
    if precision == "bfloat16" and any(np.abs(a).max(initial=0) > BFLOAT16_MOST for a in given):
        return "it has a weight beyond the largest bfloat16"
    if precision.startswith("int8") and node.op != "gather" and any(_terms(node, a) > MOST_TERMS for a in given):
        return f"it sums over more than {MOST_TERMS} products, which may not fit 32 bits"
    return None if named else _no_gain(node, given, precision)


def _no_gain(node: Node, given: list[np.ndarray], precision: str) -> str | None:
    """Why a layer would be no faster, or smaller by little."""
    weights, columns_of = LEAST[precision]["conv" if node.op in CONVOLUTIONS else node.op]
    size = sum(a.size for a in given)
    if size < weights:
        return f"its {size} weights gain nothing by it"
    found = _columns(node, given[0])
    return f"its {found} columns are too few to be worth the rounding of each row" if found < columns_of else None


def _is_depthwise(graph: Graph, node: Node) -> bool:
    """Whether each output channel of a convolution sums over one input channel, and each of those has one output."""
    if node.op not in CONVOLUTIONS:
        return False
    groups, dims = node.attrs["groups"], graph.values[str(node.inputs[1])].dims
    return groups > 1 and dims[0] == groups and dims[1] == 1


def _columns(node: Node, W: np.ndarray) -> int:
    """How many columns are multiplied with each row."""
    groups = node.attrs.get("groups", 1)
    view, axes = columns(node.op, W, groups)
    found = math.prod(n for axis, n in enumerate(view.shape) if axis not in axes)
    return found if node.op == "gather" else found // groups


def _terms(node: Node, W: np.ndarray) -> int:
    """How many products a sum has."""
    view, axes = columns(node.op, W, node.attrs.get("groups", 1))
    return math.prod(view.shape[axis] for axis in axes)


def _changed(patch: Patch, node: Node, precision: str, done: dict[tuple, list[str | None]], file: _File | None) -> Node:
    """The node with its weights in this precision: those of the file if it has them.

    done: what decides how weights are held -> the constants that hold them, for nodes that share them
    """
    inputs, groups = list(node.inputs), node.attrs.get("groups", 1)
    if node.attrs.get("precision", "float32") != "float32":  # both hold the same weights
        return replace(node, attrs={**node.attrs, "precision": precision})
    for at, scale_at in SCALES[node.op].items():
        name = str(node.inputs[at])
        key = (name, precision, node.op, groups)
        if key not in done:
            own = file.held.get(name) if file and precision.startswith("int8") else None
            array, scale = own or held_by(node.op, patch.graph.constants[name], precision, groups)
            made = [patch.constant(f"{name}.{precision}", array)]
            made += [None if scale is None else patch.constant(f"{name}.scale", scale)]
            done[key] = made
        inputs[at], scale_name = done[key]
        if scale_name is not None:
            inputs += [None] * (scale_at + 1 - len(inputs))
            inputs[scale_at] = scale_name
    return replace(node, inputs=tuple(inputs), attrs={**node.attrs, "precision": precision})
