"""A graph as a drawing: boxes are nodes with the dims of their outputs, arrows are values.

The result is text for `dot`, or a picture made by it. Arrows have no labels: `dot` treats each label as a node, and
then needs half a minute for a graph of about 200 nodes instead of two seconds.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import FastRNNError
from ...graph import Graph, Node, Value
from ...machine.files import check_place, replace_file
from .names import common_path, shortened

SUFFIXES = (".dot", ".svg")
# One colour per family of ops. Still legible in grey, since the label names the op.
FILLS = {"cell": "#cfe8ff", "state": "#cfe8ff", "linear": "#e6dcf5", "conv": "#e6dcf5", "matmul": "#e6dcf5"}
PLAIN = "#f4f5f7"


def write(graph: Graph, path) -> None:
    """Draw a graph into a .dot or .svg file, which is written atomically."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise FastRNNError(f"{path}: a graph is drawn as {' or '.join(SUFFIXES)}")
    check_place(path)
    drawn = digraph(graph)
    if suffix == ".dot":
        replace_file(path, drawn.source.encode())
        return
    import graphviz

    try:
        replace_file(path, drawn.pipe(format="svg"))
    except graphviz.ExecutableNotFound:
        raise FastRNNError(
            f"{path}: pictures need the program dot of Graphviz (Debian: apt install graphviz); a .dot file does not"
        ) from None


def digraph(graph: Graph):
    """The graph as a `graphviz.Digraph`: inputs above, outputs below, constants omitted but counted in their node."""
    try:
        import graphviz
    except ImportError:
        raise FastRNNError("drawing a graph needs the graphviz package: pip install 'fastrnn[report]'") from None
    drawn = graphviz.Digraph(graph.name or "graph")
    drawn.attr(rankdir="TB", fontname="sans-serif", nodesep="0.25", ranksep="0.35")
    drawn.attr("node", shape="box", style="filled,rounded", fontname="sans-serif", fontsize="11", color="#8a94a0")
    drawn.attr("edge", fontname="sans-serif", fontsize="9", color="#5b6570")
    made = {}
    for i, name in enumerate(graph.inputs):
        state = f"\nthe last step's {graph.states[name]}" if name in graph.states else ""
        drawn.node(f"in{i}", _text(f"{name}{state}\n{_dims(graph.values[name])}"), fillcolor="#dff3e0", shape="oval")
        made[name] = f"in{i}"
    path = common_path([node.name for node in graph.nodes])
    if path:
        drawn.attr(label=_text(f"names of nodes begin with {path}"), labelloc="t", fontsize="11")
    for i, node in enumerate(graph.nodes):
        drawn.node(f"n{i}", _text(_label(graph, node, node.name[len(path) :])), fillcolor=FILLS.get(node.op, PLAIN))
        made.update({out: f"n{i}" for out in node.outputs if out is not None})
    for i, node in enumerate(graph.nodes):
        for name in node.inputs:
            if name in made:
                dashed = {"style": "dashed", "constraint": "false"} if node.op == "state" else {}
                drawn.edge(made[name], f"n{i}", **dashed)
    for i, name in enumerate(graph.outputs):
        drawn.node(f"out{i}", _text(f"{name}\n{_dims(graph.values[name])}"), fillcolor="#ffe7cc", shape="oval")
        if name in made:
            drawn.edge(made[name], f"out{i}")
    for before, after in graph.states.items():
        drawn.edge(f"out{graph.outputs.index(after)}", made[before], style="dashed", constraint="false")
    return drawn


def _label(graph: Graph, node: Node, name: str) -> str:
    """The label of a node: its op and the main attributes, its name, its parameters, the dims of its outputs."""
    spec = node.attrs.get("spec")
    what = node.op
    if spec is not None:
        what = f"{spec.kind} {spec.input_size} → {spec.hidden_size}" + (", reverse" if spec.reverse else "")
    elif "fn" in node.attrs:
        what = f"{node.attrs['fn']}"
    elif node.attrs.get("activation"):
        what = f"{node.op} + {node.attrs['activation']}"
    count = sum(graph.constants[n].size for n in node.inputs if n in graph.constants)
    parameters = "" if not count else "\n1 parameter" if count == 1 else f"\n{count:,} parameters"
    dims = dict.fromkeys(_dims(graph.values[out]) for out in node.outputs if out is not None)
    return f"{what}\n{shortened(name, 32)}{parameters}\n{' '.join(dims)}"


def _dims(value: Value) -> str:
    return "[" + ", ".join(map(str, value.dims)) + "]"


def _text(text: str) -> str:
    """Names are arbitrary text: escape all markup."""
    import graphviz

    return graphviz.escape(text)
