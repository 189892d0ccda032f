"""Description: what a model file contains, as `fastrnn inspect` and a notebook show it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from . import tables
from .errors import StreamError
from .infos import TensorInfo

if TYPE_CHECKING:
    from .graph import Graph, Node
    from .model import Model

SMALL = ("binary", "where")  # kinds of layers that are summed up in one line: those not folded into a neighbour


class Description:
    """What `Model.describe` returns: `print` shows it as text, a notebook as tables."""

    def __init__(self, record: Mapping[str, Any]):
        self._record = record

    def as_dict(self) -> dict[str, Any]:
        """The same as dicts, lists, strings and numbers: name, inputs, outputs, states, layers, nodes and more."""
        return dict(self._record)

    def to_json(self) -> str:
        """`as_dict` as JSON text."""
        return json.dumps(self.as_dict())

    @property
    def head(self) -> list[tuple[str, str]]:
        """Rows of (label, text): inputs, outputs, states, layers, size, streaming. An empty label repeats the last."""
        told = self._record
        rows = [("inputs", _text(t)) for t in told["inputs"]] + [("outputs", _text(t)) for t in told["outputs"]]
        rows += [("states", _text(t)) for t in told["states"]]
        for a, b in told["threaded_states"].items():
            how = f" (found by {told['found_by'][a]})" if a in told["found_by"] else ""
            rows.append(("fed back", f"{a} -> {b}{how}: the caller of run passes it back; a stream keeps it"))
        rows += [("layers", text) for text in _layers_read(told)]
        if less := sum(layer["saved_bytes"] for layer in told["layers"]):
            rows.append(("precision", f"{_formats(told)}; {tables.size(less)} less than in float32"))
        rows.append(("size", f"{told['parameters']:,} parameters, {tables.size(told['memory_bytes'])} in memory"))
        if told["streams"]:
            delay = told["delay"]
            rows.append(("streams", "yes" + (f", {delay} steps late" if delay else ", without delay")))
        else:
            rows.append(("streams", f"no: {told['why_not']}"))
        return _unrepeated(rows)

    @property
    def notes(self) -> list[tuple[str, str]]:
        """Such rows with the notes of import and passes."""
        return _unrepeated([("notes", line) for line in self._record["notes"]])

    @property
    def _layers(self) -> list[tuple[str, str, str, str, str, str]]:
        layers = [layer for layer in self._record["layers"] if layer["kind"] not in SMALL]
        return [
            (i["name"], i["kind"], i["text"], f"{i['parameters']:,}", tables.size(i["bytes"]), saved(i)) for i in layers
        ]

    def __str__(self) -> str:
        rows = [("model", self._record["name"]), *self.head, *self.notes]
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)

    def _repr_html_(self) -> str:
        columns = ("layer", "kind", "what", "parameters", "bytes", "saved")
        told = columns if any(row[5] for row in self._layers) else columns[:5]
        rows = [row[: len(told)] for row in self._layers]
        layers = tables.table(told, rows, numbers=columns[3:])
        rows = [*self.head, *self.notes, ("fingerprint", self._record["fingerprint"])]
        return tables.block(f"Model {self._record['name']}", tables.pairs(rows), layers)


def described(model: Model) -> Description:
    """`Model.describe`."""
    streams, why_not, delay = _streaming(model)
    graph = model.graph
    record = {
        "name": model.name,
        "inputs": [_tensor(info) for info in model.inputs],
        "outputs": [_tensor(info) for info in model.outputs],
        "states": [_tensor(info) for info in model.states],
        "threaded_states": dict(graph.states),
        "found_by": _found_by(graph),
        "layers": [asdict(info) for info in model.layers],
        "precision": model.precision,
        "parameters": model.parameters,
        "memory_bytes": model.memory_bytes,
        "streams": streams,
        "why_not": why_not,
        "delay": delay,
        "nodes": [_node(graph, node) for node in graph.nodes],
        "held": [{"input": name, "axis": axis, "why": why} for name, axis, why in graph.held],
        "notes": list(graph.notes),
        "fingerprint": model.fingerprint,
    }
    return Description(record)


def _found_by(graph: Graph) -> dict[str, str]:
    """How each state that the caller of run passes back was found: "dataflow", "name" or "order"."""
    told = {a: f"state {a} -> {b}, found by " for a, b in graph.states.items()}
    return {a: note[len(text) :] for a, text in told.items() for note in graph.notes if note.startswith(text)}


def _tensor(info: TensorInfo) -> dict[str, Any]:
    """name, dtype and dims (ints, "batch", "time", or an expression of them)."""
    return {"name": info.name, "dtype": info.dtype, "dims": list(info.dims)}


def _streaming(model: Model) -> tuple[bool, str | None, int | None]:
    """Returns (whether the model streams, the reason if not, the delay in steps if so)."""
    try:
        with model.stream() as stream:
            return True, None, stream.delay
    except StreamError as error:
        return False, str(error), None


def _layers_read(told: Mapping[str, Any]) -> list[str]:
    """The layers with parameters, by kind: "2 lstm, 1 linear"."""
    kinds: dict[str, int] = {}
    for layer in told["layers"]:
        name = {"gather": "embedding", "layer_norm": "layer norm"}.get(layer["kind"], layer["kind"])
        if name not in SMALL:
            kinds[name] = kinds.get(name, 0) + 1
    return [", ".join(f"{n} {kind}" for kind, n in kinds.items())] if kinds else []


def saved(layer: Mapping[str, Any]) -> str:
    """What the precision of a layer saves: "12.0 KiB"; nothing in float32."""
    return tables.size(layer["saved_bytes"]) if layer["saved_bytes"] else ""


def _formats(told: Mapping[str, Any]) -> str:
    """How many layers are in each format: "2 layers in int8, 1 in float32"."""
    given = told["precision"]
    if isinstance(given, str):
        return f"all layers in {given}"
    named = list(given.values())
    first, *others = [f"in {p}" for p in dict.fromkeys(named)]
    counts = [named.count(p) for p in dict.fromkeys(named)]
    layers = "layer" if counts[0] == 1 else "layers"
    return ", ".join([f"{counts[0]} {layers} {first}", *(f"{n} {p}" for n, p in zip(counts[1:], others, strict=True))])


def _unrepeated(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The rows, with repeated labels left empty."""
    return [("" if i and rows[i - 1][0] == label else label, text) for i, (label, text) in enumerate(rows)]


def _text(info: Mapping[str, Any]) -> str:
    """One tensor: "x: float32 [batch, time, 40]"."""
    return f"{info['name']}: {info['dtype']} [{', '.join(map(str, info['dims']))}]"


def _node(graph: Graph, node: Node) -> dict[str, str]:
    """One node: its name, its op, what it reads, and what it makes, with dims."""
    makes = ", ".join(str(graph.values[o]) for o in node.outputs if o is not None)
    what = node.attrs["spec"].kind if node.op == "cell" else str(node.attrs.get("fn", node.op))
    return {"name": node.name, "op": what, "reads": ", ".join(i or "_" for i in node.inputs), "makes": makes}
