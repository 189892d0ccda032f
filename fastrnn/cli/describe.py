"""The description of a model, as a dict for programs and as text for people."""

from __future__ import annotations

import fastrnn

from .output import count, print_line, print_pairs, print_table, size

SMALL = ("binary", "where")  # kinds of layers that are summed up in one line: those not folded into a neighbour


def record(model: fastrnn.Model, path: str) -> dict:
    """Everything that `inspect` shows, as dicts, lists, strings and numbers."""
    return {"model": path, **model.describe().as_dict()}


def show(told: dict, nodes: bool = False) -> None:
    """Print the whole description. nodes: also print every node of the graph, one per line."""
    print_line(told["model"], style="bold cyan")
    print_pairs(fastrnn.Description(told).head)
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
                size(layer["saved_bytes"]) if layer["saved_bytes"] else "",
            )
            for layer in layers
        ]
        columns = ("layer", "kind", "what", "parameters", "bytes", "saved")
        told_columns = columns if any(row[5] for row in rows) else columns[:5]
        print_table(told_columns, [row[: len(told_columns)] for row in rows], numbers=columns[3:])
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
        print_pairs(fastrnn.Description(told).notes)
    print_line()
    print_pairs([("fingerprint", told["fingerprint"])])
