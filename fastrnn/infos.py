"""What a model says of its inputs, outputs, states and layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .graph import Graph, Node, Value
from .graph.precision import SCALES
from .records import dataclass
from .runtime.compiled import Compiled
from .runtime.states import POSITION


@dataclass(frozen=True)
class TensorInfo:
    """An input, output or state.

    name : as in the file
    dtype : of NumPy, such as "float32"
    dims : one per axis: an int, "batch", "time", the name of another free size, or text such as "2*time+1"
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class LayerInfo:
    """A node of the graph that holds parameters.

    name : of the node
    kind : such as "lstm", "linear", "conv"
    text : its sizes in words, such as "40 -> 128 reverse", and its precision if that is not float32
    parameters : how many numbers it was trained with
    bytes : of its constants
    precision : the number format of its weights
    saved_bytes : how many more bytes its constants would have in float32
    """

    name: str
    kind: str
    text: str
    parameters: int
    bytes: int
    precision: str = "float32"
    saved_bytes: int = 0


def info_of(value: Value) -> TensorInfo:
    """The description of a value of a graph."""
    return TensorInfo(value.name, value.dtype, tuple(map(_plain, value.dims)))


def _plain(dim: Any) -> int | str:
    return dim if isinstance(dim, int) else str(dim)


def states_of(model: Compiled) -> tuple[TensorInfo, ...]:
    """What a stream of the model keeps between steps; empty if the model can't be streamed."""
    if model._problems:
        return ()
    if model._stream_sizes:  # what a stream keeps besides, such as a cell's own state, is known with the sizes
        return tuple(info_of(model.graph.values[n]) for n in model._stream_graph.states)
    found = [TensorInfo(s.name, s.dtype, tuple(map(_plain, s.dims))) for s in model._stream_layout().shown]
    if not model._timetable.plain:
        found.append(TensorInfo(POSITION, "int64", ()))
    return tuple(found)


def layers_of(graph: Graph) -> tuple[LayerInfo, ...]:
    """The nodes with parameters, in order."""
    found = []
    for node in graph.nodes:
        arrays = [graph.constants[i] for i in node.inputs if i is not None and i in graph.constants]
        count = sum(a.size for a in _trained(graph, node))
        if count:
            kind, text = _describe(node, arrays[0].shape)
            precision = node.attrs.get("precision", "float32")
            text += f" {precision}" if precision != "float32" else ""
            size = sum(a.nbytes for a in arrays)
            found.append(LayerInfo(node.name, kind, text, count, size, precision, _saved(graph, node)))
    return tuple(found)


def _saved(graph: Graph, node: Node) -> int:
    """Bytes that the weights of a node and their scales take less than float32 weights."""
    if node.attrs.get("precision", "float32") == "float32":
        return 0
    saved = 0
    for at, scale_at in SCALES[node.op].items():
        W = graph.constants[str(node.inputs[at])]
        scale = graph.constants.get(str(node.inputs[scale_at])) if scale_at < len(node.inputs) else None
        saved += 4 * W.size - W.nbytes - (0 if scale is None else scale.nbytes)
    return saved


def _trained(graph: Graph, node: Node) -> Iterator[np.ndarray]:
    """The constants of a node that hold what was trained: not indices, nor the scales of weights held as integers."""
    places: dict[int, int] = SCALES.get(node.op, {}) if node.attrs.get("precision", "float32") != "float32" else {}
    for at, name in enumerate(node.inputs):
        array = graph.constants.get(name or "")
        if array is not None and at not in places.values() and (array.dtype.kind == "f" or at in places):
            yield array


def parameters_of(graph: Graph) -> int:
    """How many numbers the graph was trained with."""
    return sum({id(a): a.size for node in graph.nodes for a in _trained(graph, node)}.values())


def _describe(node: Node, weights: tuple[int, ...]) -> tuple[str, str]:
    """The kind of a layer, and in a few words which; weights: the shape of its first constant."""
    if node.op == "cell":
        spec = node.attrs["spec"]
        return spec.kind, f"{spec.input_size} -> {spec.hidden_size}" + (" reverse" if spec.reverse else "")
    if node.op == "linear":
        act = f" {node.attrs['activation']}" if node.attrs["activation"] else ""
        return "linear", f"{weights[0]} -> {weights[1]}{act}"
    if node.op in ("conv", "conv_transpose"):
        groups = node.attrs["groups"]
        ends = (weights[1] * groups, weights[0]) if node.op == "conv" else (weights[0], weights[1] * groups)
        shown = f"{ends[0]} -> {ends[1]}, {' x '.join(map(str, weights[2:]))}"
        for name, value in (("stride", node.attrs["strides"]), ("dilation", node.attrs["dilations"])):
            shown += f" {name} {' x '.join(map(str, value))}" if any(v != 1 for v in value) else ""
        return node.op, shown + (f" in {groups} groups" if groups > 1 else "")
    if node.op == "gather":
        return node.op, " x ".join(map(str, weights))
    return node.op, str(node.attrs.get("fn", ""))
