"""The invariants of every graph. `validate` checks them once, so that no later stage checks again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import ModelFormatError, ShapeError
from .caches import grows
from .dims import Dim, evaluate, of_rest, of_shortfall, symbols
from .precision import SCALES, check_held
from .shapes import check_shapes
from .types import DTYPES, Graph, Node, Value
from .vocabulary import ROWS, GraphOp


def check_required(graph: Graph, sizes: Mapping[str, int]) -> None:
    """Raise ShapeError if the sizes (symbol -> number) break a requirement of the graph."""
    for dim, number in graph.requires:
        got = evaluate(dim, sizes)
        if got != number and (bound := of_shortfall(dim)) is not None:
            at = ", ".join(f"{name} = {sizes[name]}" for name in sorted(symbols(dim)))
            raise ShapeError(f"{graph.name}: {at} is too small: the model takes inputs where {bound} is 0 or more")
        if got != number:
            given = ", ".join(f"{name} = {sizes[name]}" for name in sorted(symbols(dim)))
            if number == 0 and (multiple := of_rest(dim)) is not None:
                raise ShapeError(f"{graph.name}: {given}, but {multiple[0]} must be a multiple of {multiple[1]}")
            raise ShapeError(f"{graph.name}: {given} makes {dim} {got}; the model takes inputs where it is {number}")


def validate(graph: Graph) -> Graph:
    """Check the graph's form and return it. Raises ModelFormatError with the name of the node otherwise.

    Checks: known ops with exactly their attributes and known functions, every value declared once and made before use
    (except a state's input), outputs made, constants as declared, threaded states of the same form at both ends, and
    the dims of every node's outputs as its inputs imply.
    """
    made = set(graph.inputs) | set(graph.constants)
    _check_ends(graph)
    for name, array in graph.constants.items():
        value = _declared(graph, name, "constant")
        if array.dtype != DTYPES[value.dtype] or tuple(array.shape) != tuple(value.dims):
            raise ModelFormatError(f"constant {name}: declared {value}, holds {array.dtype}{list(array.shape)}")
    names = set()
    for node in graph.nodes:
        _check_form(graph, node)
        if node.name in names:
            raise ModelFormatError(f"two nodes are named {node.name}")
        names.add(node.name)
        _check_attributes(graph, node, ROWS[node.op])
        _check_values(graph, node, made)
    for name in graph.outputs:
        if name not in made:
            raise ModelFormatError(f"{graph.name}: nothing makes the output {name}")
    for node in graph.nodes:
        if node.op == "state" and node.inputs[0] not in made:
            raise ModelFormatError(f"node {node.name}: nothing makes its input {node.inputs[0]}")
    check_shapes(graph)
    return graph


def _check_ends(graph: Graph) -> None:
    """Inputs, outputs and threaded states are declared and named once; both ends of a state have the same form."""
    for what, ends in (("input", graph.inputs), ("output", graph.outputs)):
        if len(set(ends)) != len(ends):
            raise ModelFormatError(f"{graph.name}: an {what} is named twice")
        for name in ends:
            _declared(graph, name, what)
    for name in graph.inputs:
        if name in graph.constants:
            raise ModelFormatError(f"{graph.name}: the input {name} is a constant too")
    known = {name for value in graph.inputs for d in graph.values[value].dims for name in symbols(d)}
    for dim, number in graph.requires:
        if not isinstance(dim, Dim) or type(number) is not int or not symbols(dim) <= known:
            raise ModelFormatError(f"{graph.name}: requires {dim} = {number}, which no input's size tells")
    for start, end in graph.states.items():
        if start not in graph.inputs or end not in graph.outputs:
            raise ModelFormatError(f"{graph.name}: state {start} -> {end} does not lead from an input to an output")
        a, b = graph.values[start], graph.values[end]
        if (a.dtype, a.dims) != (b.dtype, b.dims) and grows(a, b) is None:
            raise ModelFormatError(f"{graph.name}: state {a} ends as {b}")
    for start, found in graph.undecided:
        if start not in graph.inputs or not set(found) <= set(graph.outputs):
            raise ModelFormatError(f"{graph.name}: {start} does not lead from an input to outputs")


def _check_form(graph: Graph, node: Node) -> None:
    """The op is known, and the node has a valid number of inputs and outputs and exactly the op's attributes."""
    row = ROWS.get(node.op)
    if row is None:
        raise ModelFormatError(f"node {node.name}: unknown op {node.op!r}")
    if not row.least <= len(node.inputs) <= row.most or not 1 <= len(node.outputs) <= len(row.outputs):
        raise ModelFormatError(
            f"node {node.name}: {node.op} with {len(node.inputs)} inputs, {len(node.outputs)} outputs"
        )
    if None in node.inputs[: row.least]:
        raise ModelFormatError(f"node {node.name}: a required input of {node.op} is absent")
    required = {name for name, attribute in row.attrs.items() if attribute.required}
    if not required <= node.attrs.keys() <= row.attrs.keys():
        raise ModelFormatError(
            f"node {node.name}: {node.op} has attributes {sorted(node.attrs)}, expected {sorted(required)}"
        )


def _check_values(graph: Graph, node: Node, made: set[str]) -> None:
    """Inputs are made before the node (except a state's), outputs only by it. Adds the outputs to `made`."""
    for k, name in enumerate(node.inputs):
        if name is not None:
            _declared(graph, name, f"input of node {node.name}")
            if name not in made and (node.op, k) != ("state", 0):
                raise ModelFormatError(f"node {node.name}: its input {name} is not made before it")
    for name in node.outputs:
        if name is None:
            continue
        _declared(graph, name, f"output of node {node.name}")
        if name in made:
            raise ModelFormatError(f"node {node.name}: its output {name} is made twice")
        made.add(name)


_LARGEST = float(np.finfo(np.float32).max)


def _check_attributes(graph: Graph, node: Node, row: GraphOp) -> None:
    """Functions are known, alpha and beta fit float32, and inputs that must be constant are constant."""
    for name, attribute in row.attrs.items():
        value = node.attrs.get(name, attribute.default)
        if attribute.choices is not None and value not in attribute.choices:
            what = f"{name} of {node.op} is {value!r:.80}"
            raise ModelFormatError(f"node {node.name}: {what}, which is unknown")
    for value in _parameters(node):
        if _LARGEST < abs(value) < float("inf"):
            raise ModelFormatError(f"node {node.name}: alpha or beta is {value:.6g}, which float32 can't hold")
    _check_held(graph, node)
    if row.weights:
        for name in node.inputs[1:]:
            if name is not None and name not in graph.constants:
                raise ModelFormatError(f"node {node.name}: {name} must be a constant")


def _check_held(graph: Graph, node: Node) -> None:
    """Weights in reduced precision are what the kernels take."""
    if node.attrs.get("precision", "float32") == "float32":
        return
    for at, scale_at in SCALES[node.op].items():
        name, scale = node.inputs[at], node.inputs[scale_at] if scale_at < len(node.inputs) else None
        if name not in graph.constants or (scale is not None and scale not in graph.constants):
            raise ModelFormatError(f"node {node.name}: weights in reduced precision must be constants: {name}")
        wrong = check_held(None if scale is None else graph.constants[scale])
        if wrong is not None:
            raise ModelFormatError(f"node {node.name}: {wrong}: {name}")


def _parameters(node: Node) -> list[float]:
    """alpha and beta of a node's functions. Not of clip: bounds beyond float32 act as infinite ones."""
    if "spec" in node.attrs:
        return [number for a in node.attrs["spec"].activations for number in (a.alpha, a.beta)]
    if "alpha" not in node.attrs or "clip" in (node.attrs.get("fn"), node.attrs.get("activation")):
        return []
    return [node.attrs["alpha"], node.attrs["beta"]]


def _declared(graph: Graph, name: str, what: str) -> Value:
    value = graph.values.get(name)
    if value is None:
        raise ModelFormatError(f"{graph.name}: {what} {name} is not declared")
    if value.dtype not in DTYPES:
        raise ModelFormatError(f"{graph.name}: value {name} has the unknown dtype {value.dtype!r}")
    if any(isinstance(d, int) and d < 0 for d in value.dims):
        raise ModelFormatError(f"{graph.name}: value {name} has a negative dim: {value}")
    return value
