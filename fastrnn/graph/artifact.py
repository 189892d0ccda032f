"""Graph <-> .fastrnn: one safetensors file, the constants as its tensors, the graph as JSON in its metadata.

Format 1. Metadata keys: `format` ("fastrnn 1"), `graph` (the JSON below), `fingerprint` (SHA-256 over both).
JSON: {"name", "inputs": [..], "outputs": [..], "states": {..}, "notes": [..],
"requires": [[dim, int]..], "held": [[input, axis, why]..], "metadata": {key: text} (absent if empty),
"values": {name: [dtype, [dims..]]},
"nodes": [[op, name, [inputs..], [outputs..], {attrs}]..]}; a dim is an int or text such as "2*time+1"; a cell's spec is
an object of `CellSpec`'s fields. Nothing in a file is executed. safetensors checks every size against the bytes of the
file, and `graph.validate` checks the graph against the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from ..errors import FastRNNError, ModelFormatError
from ..machine import container, pages
from ..machine.files import replace_file
from . import dims as D
from .cells import Activation, CellSpec
from .types import Graph, Node, Value
from .validation import validate
from .vocabulary import ROWS, Attribute

FORMAT = "fastrnn 1"


def _dim_to_json(dim):
    return dim if isinstance(dim, int) else str(dim)


def _attrs_to_json(node: Node) -> dict:
    return {key: _attr_to_json(ROWS[node.op].attrs[key], value) for key, value in node.attrs.items()}


def _attr_to_json(attribute: Attribute, value):
    if isinstance(value, CellSpec):
        return asdict(value)
    if attribute.dims:
        return [_dim_to_json(d) for d in value] if isinstance(value, tuple) else _dim_to_json(value)
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def graph_to_json(graph: Graph) -> str:
    """The graph without its constants' data, as compact JSON."""
    return json.dumps(
        {
            "name": graph.name,
            "inputs": graph.inputs,
            "outputs": graph.outputs,
            "states": dict(graph.states),
            "notes": graph.notes,
            **({"requires": [[str(dim), number] for dim, number in graph.requires]} if graph.requires else {}),
            **({"held": graph.held} if graph.held else {}),
            **({"undecided": graph.undecided} if graph.undecided else {}),
            **({"metadata": dict(graph.metadata)} if graph.metadata else {}),
            "values": {v.name: [v.dtype, [_dim_to_json(d) for d in v.dims]] for v in graph.values.values()},
            "nodes": [[n.op, n.name, n.inputs, n.outputs, _attrs_to_json(n)] for n in graph.nodes],
        },
        separators=(",", ":"),
        allow_nan=False,
    )


def _finite(value, name: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ModelFormatError(f"{name} must be a finite number, got {value!r:.80}")
    return float(value)


def _spec_from_json(data) -> CellSpec:
    data = dict(data)
    data["activations"] = tuple(
        Activation(str(a["name"]), _finite(a["alpha"], "alpha"), _finite(a["beta"], "beta"))
        for a in data["activations"]
    )
    for key in ("input_size", "hidden_size"):
        if type(data[key]) is not int:
            raise ModelFormatError(f"{key} must be an int, got {data[key]!r}")
    for key in ("reverse", "input_forget", "linear_before_reset"):
        if type(data[key]) is not bool:
            raise ModelFormatError(f"{key} must be true or false, got {data[key]!r}")
    if data["clip"] is not None:
        data["clip"] = _finite(data["clip"], "clip")
    return CellSpec(**data)


def _attrs_from_json(op: str, data: dict) -> dict:
    """The attributes of a node. Unknown attributes stay as they are, and `validate` rejects them."""
    known = ROWS[op].attrs if op in ROWS else {}
    return {
        key: _attr_from_json(f"{op}: attribute {key}", known[key], value) if key in known else value
        for key, value in data.items()
    }


def _attr_from_json(where: str, attribute: Attribute, value):
    if CellSpec in attribute.types:
        return _spec_from_json(value)
    if attribute.dims:
        return tuple(map(D.parse, value)) if isinstance(value, list) else D.parse(value)
    if attribute.infinite and value in ("inf", "-inf"):
        return float(value)
    found = tuple(value) if isinstance(value, list) else value
    elements = found if isinstance(found, tuple) else (found,)
    many = isinstance(found, tuple) == attribute.many
    if not many or any(type(v) not in attribute.types or (type(v) is int and abs(v) >= 1 << 63) for v in elements):
        raise ModelFormatError(f"{where} is {value!r:.80}")
    return found


def _graph_from_json(text: str, constants: dict[str, np.ndarray]) -> Graph:
    data = json.loads(text)
    values = {n: Value(n, str(dtype), tuple(map(D.parse, dims))) for n, (dtype, dims) in data["values"].items()}
    nodes = []
    for op, name, inputs, outputs, attrs in data["nodes"]:
        nodes.append(Node(str(op), str(name), tuple(inputs), tuple(outputs), _attrs_from_json(op, attrs)))
    states = {str(k): str(v) for k, v in data["states"].items()}
    notes = tuple(map(str, data["notes"]))
    inputs, outputs = tuple(data["inputs"]), tuple(data["outputs"])
    requires = tuple((D.parse(dim), number) for dim, number in data.get("requires", ()))
    held = tuple((str(name), int(axis), str(why)) for name, axis, why in data.get("held", ()))
    undecided = tuple((str(name), tuple(map(str, ends))) for name, ends in data.get("undecided", ()))
    metadata = {str(key): str(text) for key, text in data.get("metadata", {}).items()}
    about = {"notes": notes, "requires": requires, "held": held, "undecided": undecided, "metadata": metadata}
    return Graph(str(data["name"]), inputs, outputs, tuple(nodes), values, constants, states, **about)


def fingerprint(graph: Graph, seal=None) -> str:
    """SHA-256 (hex) over the graph and every weight, which detects damage. Snapshots of format 1 are tied to it.

    seal : called with each constant and the digest over it and all that comes before it, as `pages.seal`
    """
    plain = graph.replace(notes=(), held=(), undecided=(), metadata={}, name="")
    digest = hashlib.sha256(graph_to_json(plain).encode())
    for name in sorted(graph.constants):
        array = np.asarray(graph.constants[name], order="C")
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        for piece in pages.read(array):
            digest.update(piece)
        if seal is not None:
            seal(array, digest.digest())
    return digest.hexdigest()


def to_bytes(graph: Graph) -> bytes:
    """The bytes of a .fastrnn file."""
    return container.join(_chunks(graph))


def save(graph: Graph, path) -> None:
    """Write a .fastrnn file atomically."""
    replace_file(path, _chunks(graph))


def _chunks(graph: Graph) -> Iterator[bytes | memoryview]:
    metadata = {"format": FORMAT, "graph": graph_to_json(graph), "fingerprint": fingerprint(graph)}
    return container.chunks(graph.constants, metadata)


def load(source) -> Graph:
    """Read a .fastrnn file (a path: its tensors are mapped, not read) or its bytes.

    Raises ModelFormatError for anything that is not a whole, undamaged file of a format this version knows.
    """
    in_memory = isinstance(source, bytes | bytearray | memoryview)
    where = "bytes" if in_memory else str(source)
    try:
        found = container.parse(bytes(source)) if in_memory else container.map_file(source)
    except container.ContainerError as error:
        raise ModelFormatError(f"{where}: not a .fastrnn file, or a damaged one ({error})") from None
    metadata = found.metadata
    if metadata.get("format") != FORMAT:
        raise ModelFormatError(f"{where}: format is {metadata.get('format')!r:.40}, expected {FORMAT!r}")
    try:
        graph = validate(_graph_from_json(metadata["graph"], found.tensors))
    except FastRNNError as error:
        raise ModelFormatError(f"{where}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise ModelFormatError(f"{where}: its graph is malformed ({type(error).__name__}: {error})") from None
    if metadata.get("fingerprint") != fingerprint(graph, pages.seal):
        raise ModelFormatError(f"{where}: weights or graph differ from the file's own fingerprint: it is damaged")
    return graph
