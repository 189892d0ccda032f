"""The ONNX graph as plain records, sorted and pruned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field

import onnx
from onnx import AttributeProto

from ....errors import ModelFormatError
from ....records import dataclass


@dataclass
class OnnxNode:
    """One node of the file. inputs and outputs: value names, "" if absent."""

    op: str
    domain: str
    label: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, AttributeProto] = field(default_factory=dict)
    payload: object = None  # of nodes that the importer itself creates (unroll.py)

    @property
    def kind(self) -> str:
        return f"{self.domain}.{self.op}" if self.domain else self.op


def plain_nodes(graph: onnx.GraphProto) -> list[OnnxNode]:
    """The nodes of a graph as records, in the file's order, with unique labels."""
    labels: set[str] = set()
    return [_node(proto, labels) for proto in graph.node]


def collect(graph: onnx.GraphProto, outer: Iterable[str] = ()) -> list[OnnxNode]:
    """The nodes that a graph's outputs need, each after the nodes it reads. outer: values of the enclosing graph.

    Raises ModelFormatError for a value made twice, a value that no node makes, or a cycle.
    """
    known, maker = known_names(graph) | set(outer), {}
    for node in plain_nodes(graph):
        for name in node.outputs:
            if name and (name in known or name in maker):
                raise ModelFormatError(f"node {node.label}: it makes the value {name!r}, which already exists")
            if name:
                maker[name] = node
    return sort_nodes(maker, known, [o.name for o in graph.output])


def known_names(graph: onnx.GraphProto) -> set[str]:
    """Values that no node makes: inputs and initializers."""
    known = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    return known | {t.values.name for t in graph.sparse_initializer}


def sort_nodes(maker: dict[str, OnnxNode], known: set[str], outputs: list[str]) -> list[OnnxNode]:
    """The nodes that the outputs need, each after the nodes it reads. maker: value name -> node."""
    order: list[OnnxNode] = []
    state: dict[int, int] = {}  # id of a node -> 1 while its inputs are visited, 2 once it is placed
    for name in outputs:
        if name not in known and name not in maker:
            raise ModelFormatError(f"nothing makes the output {name!r}")
        if name in maker:
            _visit(maker[name], maker, known, state, order)
    return order


def _node(proto: onnx.NodeProto, labels: set[str]) -> OnnxNode:
    outputs = list(proto.output)
    label = proto.name or f"{proto.op_type}({next((o for o in outputs if o), '')})"
    base, k = label, 2
    while label in labels:
        label, k = f"{base}#{k}", k + 1
    labels.add(label)
    attrs = {}
    names = [a.name for a in proto.attribute]
    for text in (proto.op_type, proto.domain, proto.name, *proto.input, *outputs, *names):
        if isinstance(text, bytes):  # protobuf returns strings that are not UTF-8 as bytes
            raise ModelFormatError(f"node {label}: the name {text!r} is not UTF-8")
    for attr in proto.attribute:
        if attr.name in attrs:
            raise ModelFormatError(f"node {label}: attribute {attr.name!r} is given twice")
        attrs[attr.name] = attr
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    return OnnxNode(proto.op_type, domain, label, list(proto.input), outputs, attrs)


def _visit(start: OnnxNode, maker, known, state, order) -> None:
    """Depth-first search without recursion: a file may chain a hundred thousand nodes."""
    stack = [(start, iter(reads(start)))]
    if state.get(id(start)):
        return
    state[id(start)] = 1
    while stack:
        node, names = stack[-1]
        for name in names:
            if not name or name in known:
                continue
            source = maker.get(name)
            if source is None:
                raise ModelFormatError(f"node {node.label}: nothing makes its input {name!r}")
            if state.get(id(source)) == 1:
                raise ModelFormatError(f"node {node.label}: the graph has a cycle through {name!r}")
            if not state.get(id(source)):
                state[id(source)] = 1
                stack.append((source, iter(reads(source))))
                break
        else:
            state[id(node)] = 2
            order.append(node)
            stack.pop()


def reads(node: OnnxNode) -> list[str]:
    """The inputs, and the outer values that the node's subgraphs read."""
    names = list(node.inputs)
    for attr in node.attrs.values():
        if attr.type == AttributeProto.GRAPH:
            names += captured(attr.g)
    return names


MAX_NESTING = 64


def captured(graph: onnx.GraphProto, depth: int = 0) -> list[str]:
    """Outer values that a subgraph, or one nested in it, reads."""
    if depth > MAX_NESTING:
        raise ModelFormatError(f"subgraphs nested deeper than {MAX_NESTING}")
    own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    own |= {o for n in graph.node for o in n.output}
    found = [i for n in graph.node for i in n.input] + [o.name for o in graph.output]
    for node in graph.node:
        for attr in node.attribute:
            if attr.type == AttributeProto.GRAPH:
                found += captured(attr.g, depth + 1)
    return [i for i in dict.fromkeys(found) if i and i not in own]
