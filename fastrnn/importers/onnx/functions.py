"""Operators that ONNX itself defines by other operators: their function bodies, as nodes of the importer.

An operator without a handler is read as its body, and a handler that can't write a node with ops of the graph raises
`Expand` for the same. ONNX has one body per operator and opset, or makes it from the types of the node's inputs, so a
body is known only when the walk reaches its node.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, defs, helper

from ...errors import ModelFormatError
from ...records import dataclass
from .reading.nodes import OnnxNode, plain_nodes, sort_nodes
from .reading.values import Const, Fill, Ints, Live

__all__ = ["Function", "attributes", "defined", "function_of"]

# Operators that ONNX defines by random numbers, or as sequences: their bodies can't be read.
_NEVER = frozenset({"Bernoulli", "SequenceMap"})


@dataclass
class Function:
    """The body of an operator: nodes that are needed, in order; inputs and outputs: its names of the node's values;
    opsets: domain -> version that the nodes are written in."""

    nodes: list[OnnxNode]
    inputs: list[str]
    outputs: list[str]
    opsets: dict[str, int]


def defined(node: OnnxNode, opsets: dict[str, int]) -> bool:
    """Whether ONNX defines the operator by others in this opset."""
    schema = _schema(node, opsets)
    return (
        schema is not None and node.op not in _NEVER and (schema.has_function or schema.has_context_dependent_function)
    )


def attributes(node: OnnxNode, opsets: dict[str, int]) -> frozenset | None:
    """The attributes that ONNX gives the operator; None if it has no such operator."""
    schema = _schema(node, opsets)
    return None if schema is None else frozenset(schema.attributes)


def _schema(node: OnnxNode, opsets: dict[str, int]):
    try:
        return defs.get_schema(node.op, opsets.get(node.domain, 1), node.domain)
    except defs.SchemaError:
        return None


def function_of(ctx, node: OnnxNode, values: list, opsets: dict[str, int], wanted: list[bool]) -> Function | None:
    """The body of a node for inputs of these types; None if ONNX has none. wanted: which outputs have readers."""
    schema = _schema(node, opsets)
    if schema is None or node.op in _NEVER:
        return None
    proto = _proto(ctx, schema, node, values, opsets.get(node.domain, 1))
    if proto is None:
        return None
    _check_counts(node, proto)
    defaults = {name: a.default_value for name, a in schema.attributes.items() if a.default_value.name}
    attributes = defaults | {a.name: a for a in proto.attribute_proto} | node.attrs
    graph = onnx.GraphProto()
    graph.node.extend(proto.node)
    _fill_in(graph, attributes)
    maker: dict[str, OnnxNode] = {}
    for part in plain_nodes(graph):
        maker |= {name: part for name in part.outputs if name}
    outputs = list(proto.output)
    needed = [name for name, want in zip(outputs, wanted, strict=False) if want]
    nodes = sort_nodes(maker, set(proto.input), needed)
    for part in nodes:
        part.label = f"{node.label}/{node.op}/{part.label}"
    versions = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}
    return Function(nodes, list(proto.input), outputs, {**opsets, **versions})


def _check_counts(node: OnnxNode, proto: onnx.FunctionProto) -> None:
    if len(node.inputs) > len(proto.input) or len(node.outputs) > len(proto.output):
        raise ModelFormatError(
            f"{len(node.inputs)} inputs and {len(node.outputs)} outputs; {node.op} has at most {len(proto.input)} and "
            f"{len(proto.output)}"
        )


def _proto(ctx, schema, node: OnnxNode, values: list, opset: int) -> onnx.FunctionProto | None:
    """The newest body that is not newer than the file's opset."""
    plain = [v for v in schema.function_opset_versions if v <= opset]
    made = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
    if plain:
        data = schema.get_function_with_opset_version(max(plain))
    elif made:
        data = _made(ctx, schema, node, values, max(made))
    else:
        data = b""
    if not data:
        return None
    found = onnx.FunctionProto()
    found.ParseFromString(data)
    return found


def _made(ctx, schema, node: OnnxNode, values: list, version: int) -> bytes:
    """The body that ONNX makes for the types of the inputs. Some need the dims of one input, such as the weights."""
    proto = helper.make_node(node.op, node.inputs, node.outputs, domain=node.domain)
    proto.attribute.extend(node.attrs.values())
    types = [_type_of(v, [d if isinstance(d, int) else None for d in v.dims] if v else None) for v in values]
    text = proto.SerializeToString()

    def body(types: list) -> bytes:
        return schema.get_context_dependent_function_with_opset_version(
            version, text, [t.SerializeToString() for t in types]
        )

    data = body(types)
    for i in reversed(range(len(values)) if not data else ()):
        free = [d for d in values[i].dims if not isinstance(d, int)] if values[i] else []
        if free and body(
            [*types[:i], _type_of(values[i], [ctx.table.example(d) for d in values[i].dims]), *types[i + 1 :]]
        ):
            for d in free:
                ctx.number(d, f"the definition of {node.op} depends on it")
    return data


def _type_of(value, shape: list | None) -> onnx.TypeProto:
    """The ONNX type of an abstract value. Halves compute in float32, so they count as that."""
    if isinstance(value, Live):
        dtype = np.dtype(value.dtype)
    elif isinstance(value, Const):
        dtype = value.array.dtype
    elif isinstance(value, Fill):
        dtype = np.dtype(value.dtype)
    elif isinstance(value, Ints):
        dtype = np.dtype(np.int64)
    else:
        return onnx.TypeProto()
    number = TensorProto.FLOAT if dtype == np.float16 else helper.np_dtype_to_tensor_dtype(dtype)
    return helper.make_tensor_type_proto(number, shape)


def _fill_in(graph: onnx.GraphProto, attributes: dict[str, AttributeProto]) -> None:
    """Replace references to the function's attributes by their values; those that the node lacks are dropped."""
    for node in graph.node:
        kept = []
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                given = attributes.get(attribute.ref_attr_name)
                if given is None:
                    continue
                copy = AttributeProto()
                copy.CopyFrom(given)
                copy.name = attribute.name
                attribute = copy
            elif attribute.type == AttributeProto.GRAPH:
                _fill_in(attribute.g, attributes)
            kept.append(attribute)
        if len(kept) != len(node.attribute) or any(a.ref_attr_name for a in node.attribute):
            fresh = [AttributeProto() for _ in kept]
            for new, old in zip(fresh, kept, strict=True):
                new.CopyFrom(old)
            del node.attribute[:]
            node.attribute.extend(fresh)
