"""The ONNX graph as plain records, sorted and pruned, and `NodeReader`, which sees to it that all of a node is used."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import AttributeProto

from ...errors import ModelFormatError
from .symbols import Finding
from .values import Const, Ints

_KINDS = {
    "int": AttributeProto.INT,
    "float": AttributeProto.FLOAT,
    "string": AttributeProto.STRING,
    "ints": AttributeProto.INTS,
    "floats": AttributeProto.FLOATS,
    "strings": AttributeProto.STRINGS,
    "tensor": AttributeProto.TENSOR,
}


@dataclass
class OnnxNode:
    """One node of the file. inputs and outputs: value names, "" where absent."""

    op: str
    domain: str
    label: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, AttributeProto] = field(default_factory=dict)
    payload: object = None  # of nodes that the importer itself makes (unroll.py)

    @property
    def kind(self) -> str:
        return f"{self.domain}.{self.op}" if self.domain else self.op


def plain_nodes(graph: onnx.GraphProto) -> list[OnnxNode]:
    """The nodes of a graph as records, in the file's order, their labels made unique."""
    labels: set[str] = set()
    return [_node(proto, labels) for proto in graph.node]


def collect(graph: onnx.GraphProto, outer: Iterable[str] = ()) -> list[OnnxNode]:
    """The nodes of a graph that its outputs need, each after what it reads. outer: values of the graph around it.

    Raises ModelFormatError for a value made twice, one that nothing makes, and a cycle.
    """
    known, maker = known_names(graph) | set(outer), {}
    for node in plain_nodes(graph):
        for name in node.outputs:
            if name and (name in known or name in maker):
                raise ModelFormatError(f"node {node.label}: the value {name!r} is already made elsewhere")
            if name:
                maker[name] = node
    return sort_nodes(maker, known, [o.name for o in graph.output])


def known_names(graph: onnx.GraphProto) -> set[str]:
    """Values that no node makes: inputs and initializers."""
    known = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    return known | {t.values.name for t in graph.sparse_initializer}


def sort_nodes(maker: dict[str, OnnxNode], known: set[str], outputs: list[str]) -> list[OnnxNode]:
    """The nodes that the outputs need, each after what it reads. maker: value name -> node."""
    order: list[OnnxNode] = []
    state: dict[int, int] = {}  # id of a node -> 1 while its inputs are visited, 2 when it is placed
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
        if isinstance(text, bytes):  # how protobuf gives a string that is not UTF-8
            raise ModelFormatError(f"node {label}: the name {text!r} is not UTF-8")
    for attr in proto.attribute:
        if attr.name in attrs:
            raise ModelFormatError(f"node {label}: attribute {attr.name!r} is given twice")
        attrs[attr.name] = attr
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    return OnnxNode(proto.op_type, domain, label, list(proto.input), outputs, attrs)


def _visit(start: OnnxNode, maker, known, state, order) -> None:
    """Depth first without recursion: a file may chain a hundred thousand nodes."""
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
    """Inputs, and the values of outside that the node's subgraphs read."""
    names = list(node.inputs)
    for attr in node.attrs.values():
        if attr.type == AttributeProto.GRAPH:
            names += captured(attr.g)
    return names


MAX_NESTING = 64


def captured(graph: onnx.GraphProto, depth: int = 0) -> list[str]:
    """Values of outside that a subgraph, or one within it, reads."""
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


class NodeReader:
    """A node with the values of its inputs; remembers what was read, so that a leftover is a finding.

    node : OnnxNode; values : abstract value an input, None where absent; opset : the version of the node's domain;
    needed : which outputs someone reads.
    """

    def __init__(self, node: OnnxNode, values: list, opset: int, needed: list[bool] | None = None):
        self.node, self.values, self.opset = node, values, opset
        self.needed = needed if needed is not None else [True] * len(node.outputs)
        self._attrs: set[str] = set()
        self._inputs: set[int] = set()

    # --- attributes ----------------------------------------------------------------------------------------------

    def attr(self, name: str, kind: str, default=None):
        """The attribute, of ONNX type `kind` (a key of _KINDS), or the default where it is absent."""
        self._attrs.add(name)
        proto = self.node.attrs.get(name)
        if proto is None:
            return default
        if proto.ref_attr_name:
            raise ModelFormatError(f"attribute {name} refers to {proto.ref_attr_name!r} outside of a function")
        if proto.type != _KINDS[kind] and not (proto.type == AttributeProto.UNDEFINED):
            raise ModelFormatError(
                f"attribute {name} must be {kind}, got {AttributeProto.AttributeType.Name(proto.type)}"
            )
        if kind == "int":
            return int(proto.i)
        if kind == "float":
            return self._finite(name, float(proto.f))
        if kind == "string":
            return self._text(name, proto.s)
        if kind == "ints":
            return [int(v) for v in proto.ints]
        if kind == "floats":
            return [self._finite(name, float(v)) for v in proto.floats]
        if kind == "strings":
            return [self._text(name, v) for v in proto.strings]
        return proto.t

    @staticmethod
    def _finite(name: str, value: float) -> float:
        if not math.isfinite(value):
            raise ModelFormatError(f"attribute {name} is {value}")
        return value

    @staticmethod
    def _text(name: str, value: bytes) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise ModelFormatError(f"attribute {name} is not text") from None

    def elsewhere(self, name: str) -> None:
        """The attribute is read by who calls the handler."""
        self._attrs.add(name)

    def only(self, name: str, kind: str, default, allowed, why: str = "") -> object:
        """An attribute of which only some values are supported; another is a Finding."""
        value = self.attr(name, kind, default)
        if value not in allowed:
            raise Finding(f"{name}={value!r}{': ' + why if why else ''}")
        return value

    # --- inputs --------------------------------------------------------------------------------------------------

    def input(self, i: int, optional: bool = False):
        """The abstract value of input i, or None where an optional one is absent."""
        self._inputs.add(i)
        value = self.values[i] if i < len(self.values) else None
        if value is None and not optional:
            raise ModelFormatError(f"input {i} is missing")
        return value

    def const(self, i: int, what: str, optional: bool = False) -> np.ndarray | None:
        """Input i as a known array; a live one is a Finding."""
        value = self.input(i, optional)
        if value is None:
            return None
        if not isinstance(value, Const):
            raise Finding(f"its {what} must be constant, not computed from the inputs")
        return value.array

    def ints(self, i: int, what: str, optional: bool = False) -> list | None:
        """Input i as a list of ints and Dims (a scalar gives a list of one)."""
        value = self.input(i, optional)
        if value is None:
            return None
        if isinstance(value, Ints):
            return list(value.array.reshape(-1))
        if not isinstance(value, Const):
            raise Finding(f"its {what} must be constant or a size, not computed from the inputs")
        if value.array.dtype.kind not in "iu":
            raise ModelFormatError(f"its {what} must be integers, got {value.array.dtype}")
        return [int(v) for v in value.array.reshape(-1)]

    def axes(self, i: int, since: int, name: str = "axes") -> list[int] | None:
        """Axes: an attribute before opset `since`, input i from it on; None where absent."""
        if self.opset < since:
            return self.attr(name, "ints")
        values = self.ints(i, name, optional=True)
        if values is not None and any(not isinstance(v, int) for v in values):
            raise Finding(f"its {name} depend on a size of the input")
        return values

    def within(self, values: list) -> NodeReader:
        """A reader of the same node with other inputs; the attributes that it reads are read for both."""
        inner = NodeReader(self.node, values, self.opset, self.needed)
        inner._attrs = self._attrs
        return inner

    def finish(self) -> None:
        """Raise Finding for whatever of the node was not read."""
        left = sorted(set(self.node.attrs) - self._attrs)
        if left:
            shown = ", ".join(f"{n}={show_attr(self.node.attrs[n])}" for n in left)
            raise Finding(f"attribute {shown}")
        extra = [i for i, v in enumerate(self.values) if v is not None and i not in self._inputs]
        if extra:
            raise Finding(f"input {extra[0]} ({self.node.inputs[extra[0]]!r})")


def show_attr(proto: AttributeProto) -> str:
    """An attribute's value as short text."""
    if proto.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        return "a graph"
    if proto.type in (AttributeProto.TENSOR, AttributeProto.TENSORS, AttributeProto.SPARSE_TENSOR):
        return "a tensor"
    try:
        return f"{onnx.helper.get_attribute_value(proto)!r:.60}"
    except ValueError:
        return "of an unknown type"


def axis_of(axis: int, rank: int) -> int:
    """A non-negative axis; ModelFormatError where it lies outside."""
    if not -rank <= axis < rank:
        raise ModelFormatError(f"axis {axis} of a value of rank {rank}")
    return axis % rank


def axes_of(axes, rank: int) -> list[int]:
    """Non-negative, distinct axes."""
    found = [axis_of(a, rank) for a in axes]
    if len(set(found)) != len(found):
        raise ModelFormatError(f"axes {list(axes)} name one twice")
    return found
