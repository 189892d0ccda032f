"""The description of a model, as a dict for programs and as text for people."""

from __future__ import annotations

import fastrnn

from .output import count, print_line, print_pairs, print_table, size

SMALL = ("binary", "where")  # kinds of layers that are summed up in one line: those not folded into a neighbour


def record(model: fastrnn.Model, path: str) -> dict:
    """Everything that `inspect` shows, as dicts, lists, strings and numbers."""
    streams, reason, delay = streaming(model)
    return {
        "model": path,
        "name": model.name,
        "inputs": [tensor(info) for info in model.inputs],
        "outputs": [tensor(info) for info in model.outputs],
        "states": [tensor(info) for info in model.states],
        "threaded_states": dict(model.graph.states),
        "found_by": found_by(model.graph),
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "text": layer.text,
                "parameters": layer.parameters,
                "bytes": layer.bytes,
            }
            for layer in model.layers
        ],
        "parameters": model.parameters,
        "memory_bytes": model.memory_bytes,
        "streams": streams,
        "why_not": reason,
        "delay": delay,
        "nodes": [node_record(model.graph, node) for node in model.graph.nodes],
        "held": [{"input": name, "axis": axis, "why": why} for name, axis, why in model.graph.held],
        "notes": list(model.graph.notes),
        "fingerprint": model.fingerprint,
    }


def found_by(graph) -> dict[str, str]:
    """How each state that the caller of run passes back was found: "dataflow", "name" or "order"."""
    told = {a: f"state {a} -> {b}, found by " for a, b in graph.states.items()}
    return {a: note[len(text) :] for a, text in told.items() for note in graph.notes if note.startswith(text)}


def tensor(info: fastrnn.TensorInfo) -> dict:
    """name, dtype and dims (ints, "batch", "time", or an expression of them)."""
    return {"name": info.name, "dtype": info.dtype, "dims": [d if isinstance(d, int) else str(d) for d in info.dims]}


def streaming(model: fastrnn.Model) -> tuple[bool, str | None, int | None]:
    """Returns (whether the model streams, the reason if not, the delay in steps if so)."""
    try:
        return True, None, int(model.stream().delay)
    except fastrnn.StreamError as error:
        return False, str(error), None


def head(told: dict) -> list[tuple[str, str]]:
    """Rows of label and text: inputs, outputs, states, size, streaming."""
    rows = [("inputs", text(t)) for t in told["inputs"]] + [("outputs", text(t)) for t in told["outputs"]]
    rows += [("states", text(t)) for t in told["states"]]
    for a, b in told["threaded_states"].items():
        how = f" (found by {told['found_by'][a]})" if a in told["found_by"] else ""
        rows.append(("fed back", f"{a} -> {b}{how}: the caller of run passes it back; a stream keeps it"))
    rows += [("layers", text) for text in layers_read(told)]
    rows.append(("size", f"{count(told['parameters'])} parameters, {size(told['memory_bytes'])} in memory"))
    if told["streams"]:
        delay = told["delay"]
        rows.append(("streams", "yes" + (f", {delay} steps late" if delay else ", without delay")))
    else:
        rows.append(("streams", f"no: {told['why_not']}"))
    return unrepeated(rows)


def layers_read(told: dict) -> list[str]:
    """The layers with parameters, by kind: "2 lstm, 1 linear"."""
    kinds: dict[str, int] = {}
    for layer in told["layers"]:
        name = {"gather": "embedding", "layer_norm": "layer norm"}.get(layer["kind"], layer["kind"])
        if name not in SMALL:
            kinds[name] = kinds.get(name, 0) + 1
    return [", ".join(f"{n} {kind}" for kind, n in kinds.items())] if kinds else []


def notes(told: dict) -> list[tuple[str, str]]:
    """Rows with the notes of import and passes."""
    return unrepeated([("notes", line) for line in told["notes"]])


def unrepeated(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The rows, with repeated labels left empty."""
    return [("" if i and rows[i - 1][0] == label else label, text) for i, (label, text) in enumerate(rows)]


def text(info: dict) -> str:
    """One tensor: "x: float32 [batch, time, 40]"."""
    return f"{info['name']}: {info['dtype']} [{', '.join(map(str, info['dims']))}]"


def show(told: dict, nodes: bool = False) -> None:
    """Print the whole description. nodes: also print every node of the graph, one per line."""
    print_line(told["model"], style="bold cyan")
    print_pairs(head(told))
    layers = [layer for layer in told["layers"] if layer["kind"] not in SMALL]
    small = [layer for layer in told["layers"] if layer["kind"] in SMALL]
    if layers:
        print_line()
        common = fastrnn.report.common_path([layer["name"] for layer in layers])
        rows = [
            (
                layer["name"][len(common) :],
                layer["kind"],
                layer["text"],
                count(layer["parameters"]),
                size(layer["bytes"]),
            )
            for layer in layers
        ]
        print_table(("layer", "kind", "what", "parameters", "bytes"), rows, numbers=("parameters", "bytes"))
        if common:
            print_line(f"all names begin with {common}")
    if small:
        parameters = sum(layer["parameters"] for layer in small)
        numbers = "1 parameter" if parameters == 1 else f"{count(parameters)} parameters"
        print_line(f"and {numbers} in {len(small)} small ops (scales, shifts, slopes, powers, selections)")
    if nodes:
        print_line()
        common = fastrnn.report.common_path([node["name"] for node in told["nodes"]])
        listed = [(n["op"], n["makes"], n["reads"]) for n in told["nodes"]]
        if common:
            listed = [(op, makes.replace(common, ""), reads.replace(common, "")) for op, makes, reads in listed]
        print_table(("node", "outputs", "inputs"), listed)
    if told["notes"]:
        print_line()
        print_pairs(notes(told))
    print_line()
    print_pairs([("fingerprint", told["fingerprint"])])


def node_record(graph, node) -> dict:
    """One node: its name, its op, what it reads, and what it makes, with dims."""
    makes = ", ".join(str(graph.values[o]) for o in node.outputs if o is not None)
    what = node.attrs["spec"].kind if node.op == "cell" else str(node.attrs.get("fn", node.op))
    return {"name": node.name, "op": what, "reads": ", ".join(i or "_" for i in node.inputs), "makes": makes}
