"""Graph <-> .fastrnn: one safetensors file, the constants as its tensors, the graph as JSON in its metadata.

Format 1. Metadata keys: `format` ("fastrnn 1"), `graph` (the JSON below), `fingerprint` (SHA-256 over both).
JSON: {"name", "inputs": [..], "outputs": [..], "states": {..}, "notes": [..],
"requires": [[dim, int]..], "held": [[input, axis, why]..] (both absent if empty), "values": {name: [dtype, [dims..]]},
"nodes": [[op, name, [inputs..], [outputs..], {attrs}]..]}; a dim is an int or text such as "2*time+1"; a cell's spec is
an object of `CellSpec`'s fields. Nothing in a file is executed; every size is checked against the bytes that are there
(by safetensors) and the graph against the vocabulary (by `graph.validate`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict

import numpy as np

from . import dims as D
from .cells import Activation, CellSpec
from .errors import FastRNNError, ModelFormatError
from .files import replace_file
from .graph import Graph, Node, Value, validate

FORMAT = "fastrnn 1"
# Attributes that hold dims; others are plain JSON.
_DIM_ATTRS = {
    "reshape": ("dims",), "expand": ("dims",), "slice": ("start", "stop"), "pad": ("pads",), "attention": ("offset",),
    "steps": ("dims", "start"),
}  # fmt: skip
_ATTR_TYPES = {
    "activation": (str, type(None)), "alpha": (int, float), "beta": (int, float), "fn": (str,), "to": (str,),
    "perm": (tuple,), "axes": (tuple,), "axis": (int,), "step": (int,), "keepdims": (bool,), "log": (bool,),
    "epsilon": (int, float), "mode": (str,), "value": (int, float), "kernel": (tuple,),
    "strides": (tuple,), "dilations": (tuple,), "pads": (tuple,), "output_padding": (tuple,), "groups": (int,),
    "count_include_pad": (bool,), "ceil": (bool,), "last": (bool,), "largest": (bool,), "exclusive": (bool,),
    "reverse": (bool,), "scale": (int, float), "softcap": (int, float), "causal": (bool,), "window": (int,),
    "safe": (bool,), "from_zero": (bool,),
}  # fmt: skip


def _dim_to_json(dim):
    return dim if isinstance(dim, int) else str(dim)


def _attrs_to_json(node: Node) -> dict:
    out = {}
    for key, value in node.attrs.items():
        if key == "spec":
            out[key] = asdict(value)
        elif key in _DIM_ATTRS.get(node.op, ()):
            out[key] = [_dim_to_json(d) for d in value] if isinstance(value, tuple) else _dim_to_json(value)
        elif isinstance(value, float) and not math.isfinite(value):
            out[key] = repr(value)
        else:
            out[key] = value
    return out


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
    out = {}
    for key, value in data.items():
        if key == "spec":
            out[key] = _spec_from_json(value)
        elif key in _DIM_ATTRS.get(op, ()):
            out[key] = tuple(map(D.parse, value)) if isinstance(value, list) else D.parse(value)
        else:
            if isinstance(value, list):
                value = tuple(value)
                if any(type(v) is not int for v in value):
                    raise ModelFormatError(f"{op}: {key} must be ints, got {value!r:.80}")
            elif value in ("inf", "-inf") and key in ("alpha", "beta", "value"):
                value = float(value)
            huge = type(value) is int and abs(value) >= 1 << 63
            if key not in _ATTR_TYPES or type(value) not in _ATTR_TYPES[key] or huge:
                raise ModelFormatError(f"{op}: attribute {key} is {value!r:.80}")
            out[key] = value
    return out


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
    return Graph(str(data["name"]), inputs, outputs, tuple(nodes), values, constants, states, notes, requires, held)


def fingerprint(graph: Graph) -> str:
    """SHA-256 (hex) over the graph's meaning and every weight: what a snapshot of its streams is tied to."""
    digest = hashlib.sha256(graph_to_json(graph.replace(notes=(), held=(), name="")).encode())
    for name in sorted(graph.constants):
        array = np.asarray(graph.constants[name], order="C")
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def to_bytes(graph: Graph) -> bytes:
    """The bytes of a .fastrnn file."""
    from safetensors.numpy import save as serialise

    metadata = {"format": FORMAT, "graph": graph_to_json(graph), "fingerprint": fingerprint(graph)}
    tensors = {name: np.asarray(array, order="C") for name, array in graph.constants.items()}
    return serialise(tensors, metadata=metadata)


def save(graph: Graph, path) -> None:
    """Write a .fastrnn file, whole or not at all."""
    replace_file(path, to_bytes(graph))


def load(source) -> Graph:
    """Read a .fastrnn file (a path: its tensors are mapped, not read) or its bytes.

    Raises ModelFormatError for anything that is not a whole, undamaged file of a format this version knows.
    """
    where = "bytes" if isinstance(source, bytes | bytearray | memoryview) else str(source)
    try:
        metadata, constants = _read(source)
    except FastRNNError:
        raise
    except OSError:
        raise
    except Exception as error:  # safetensors raises its own types; none of them may leave here
        raise ModelFormatError(f"{where}: not a .fastrnn file, or a damaged one ({error})") from None
    if metadata.get("format") != FORMAT:
        raise ModelFormatError(f"{where}: format is {metadata.get('format')!r:.40}, expected {FORMAT!r}")
    try:
        graph = validate(_graph_from_json(metadata["graph"], constants))
    except FastRNNError as error:
        raise ModelFormatError(f"{where}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise ModelFormatError(f"{where}: its graph is malformed ({type(error).__name__}: {error})") from None
    if metadata.get("fingerprint") != fingerprint(graph):
        raise ModelFormatError(f"{where}: weights or graph differ from the file's own fingerprint: it is damaged")
    return graph


def _read(source) -> tuple[dict, dict]:
    if isinstance(source, bytes | bytearray | memoryview):
        from safetensors.numpy import load as from_bytes

        blob = bytes(source)
        tensors = from_bytes(blob)
        size = int.from_bytes(blob[:8], "little")
        return json.loads(blob[8 : 8 + size]).get("__metadata__", {}), tensors
    from safetensors import safe_open

    with safe_open(os.fspath(source), framework="numpy") as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
