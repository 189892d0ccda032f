"""What a file says of itself: names, types and shapes of its inputs and outputs, its metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FastRNNError
from ..graph import DTYPES
from ..graph import dims as D
from ..machine import forks
from ..records import dataclass
from ..runtime.arguments import solve_sizes
from .types import number_of, type_of

if TYPE_CHECKING:
    from ..model import Model, TensorInfo

_LARGE = 1024  # elements of a weight whose values no shape depends on


@dataclass(frozen=True)
class NodeArg:
    """An input or output, as onnxruntime describes it.

    shape : the file's: ints, names of free sizes, None for one without a name; fastrnn runs other sizes too, if nothing
    in the file depends on them.
    """

    name: str
    type: str
    shape: list[int | str | None]


@dataclass
class ModelMetadata:
    """What a file says of itself, as onnxruntime names it; a file that is not ONNX has the graph's name alone."""

    graph_name: str = ""
    producer_name: str = ""
    domain: str = ""
    description: str = ""
    graph_description: str = ""
    version: int = 2**63 - 1  # onnxruntime's for a file that has none
    custom_metadata_map: dict[str, str] = field(default_factory=dict)


class OnnxDescription:
    """An ONNX file's own words. elements : input or output name -> ONNX's element type."""

    def __init__(self, proto: Any):
        initial = {array.name for array in proto.graph.initializer}
        free = [info for info in proto.graph.input if info.name not in initial]
        self.inputs = [_node_arg(info) for info in free]
        self.overridable = [_node_arg(info) for info in proto.graph.input if info.name in initial]
        self.elements = {info.name: info.type.tensor_type.elem_type for info in (*free, *proto.graph.output)}
        self.output_names = [info.name for info in proto.graph.output]
        self.metadata = ModelMetadata(
            graph_name=proto.graph.name,
            producer_name=proto.producer_name,
            domain=proto.domain,
            description=proto.doc_string,
            graph_description=proto.graph.doc_string,
            version=proto.model_version if proto.HasField("model_version") else ModelMetadata.version,
            custom_metadata_map={entry.key: entry.value for entry in proto.metadata_props},
        )
        self._declared = [_node_arg(info) for info in proto.graph.output]
        self._skeleton: Any = _skeleton(proto)
        self._lock = forks.Lock()
        self._outputs: list[NodeArg] | None = None

    def outputs(self, model: Model) -> list[NodeArg]:
        """The outputs: what the file declares, made more exact by shape inference.

        If all inputs have numbers alone, so have the outputs: those of the model at these sizes.
        """
        with self._lock:
            if self._outputs is None:
                found = _inferred(self._skeleton, self._declared)
                final = _at_sizes(found, self.inputs, model)
                kept = map(_kept, self._declared, found, final)
                self._outputs = [_typed(arg, info) for arg, info in zip(kept, model.outputs, strict=True)]
                self._skeleton = None
            return self._outputs


class PlainDescription:
    """A model that is not from an ONNX file: its own inputs and outputs."""

    def __init__(self, model: Model):
        self.inputs = [_of_info(info) for info in model.inputs]
        self._outputs = [_of_info(info) for info in model.outputs]
        self.overridable: list[NodeArg] = []
        self.elements = {info.name: number_of(DTYPES[info.dtype]) for info in (*model.inputs, *model.outputs)}
        self.output_names = [info.name for info in model.outputs]
        self.metadata = ModelMetadata(model.name)

    def outputs(self, model: Model) -> list[NodeArg]:
        """The model's outputs."""
        return self._outputs


def _of_info(info: TensorInfo) -> NodeArg:
    return NodeArg(info.name, type_of(number_of(DTYPES[info.dtype])), list(info.dims))


def _typed(arg: NodeArg, info: TensorInfo) -> NodeArg:
    """The description, with the model's type if the file declares none."""
    return NodeArg(arg.name, _of_info(info).type, arg.shape) if arg.type == type_of(0) else arg


def _node_arg(info) -> NodeArg:
    kind = info.type.tensor_type
    return NodeArg(info.name, type_of(kind.elem_type), [_size(d) for d in kind.shape.dim])


def _size(dim) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None


def fix_free_sizes(proto, by_name: Mapping[str, int], by_denotation: Mapping[str, int]) -> None:
    """Give the free sizes of the inputs of a model these numbers, in place."""
    for info in proto.graph.input if by_name or by_denotation else ():
        for dim in info.type.tensor_type.shape.dim:
            number = by_denotation.get(dim.denotation, by_name.get(dim.dim_param)) if _free(dim) else None
            if number is not None:
                dim.dim_value = number


def _free(dim) -> bool:
    return not dim.HasField("dim_value")


def _skeleton(proto):
    """The model without the values of its large weights, and without what it declares of its outputs."""
    from onnx import ModelProto

    bare = ModelProto(ir_version=proto.ir_version)
    bare.opset_import.extend(proto.opset_import)
    bare.functions.extend(proto.functions)
    graph = bare.graph
    graph.name = proto.graph.name or "model"
    graph.value_info.extend(proto.graph.value_info)
    graph.input.extend(proto.graph.input)
    given = {info.name for info in proto.graph.input}
    for array in proto.graph.initializer:
        if not _is_large(array):
            graph.initializer.append(array)
        elif array.name not in given:
            _add_input(graph, array.name, array)
    for node in proto.graph.node:
        constant = node.attribute[0].t if node.op_type == "Constant" and len(node.attribute) == 1 else None
        if constant is not None and _is_large(constant):
            _add_input(graph, node.output[0], constant)
        else:
            graph.node.append(node)
    for info in proto.graph.output:
        bare_info = graph.output.add(name=info.name)
        bare_info.type.tensor_type.elem_type = info.type.tensor_type.elem_type
    return bare


def _is_large(array) -> bool:
    return math.prod(array.dims) > _LARGE or array.data_location == array.EXTERNAL


def _add_input(graph, name: str, like) -> None:
    """Add an input of the type and shape of a tensor."""
    info = graph.input.add(name=name)
    info.type.tensor_type.elem_type = like.data_type
    for size in like.dims:
        info.type.tensor_type.shape.dim.add(dim_value=size)


def _inferred(skeleton, declared: list[NodeArg]) -> list[NodeArg]:
    """The outputs as declared, with the numbers that shape inference finds.

    A shape that the values of other shapes decide counts if it is all numbers: onnxruntime folds such values, and does
    not follow others.
    """
    propagated, plain = _shapes(skeleton, data_prop=True), None
    results = []
    for arg in declared:
        shape = propagated.get(arg.name)
        if shape is not None and not all(isinstance(size, int) for size in shape):
            plain = _shapes(skeleton, data_prop=False) if plain is None else plain
            shape = plain.get(arg.name)
        results.append(arg if shape is None else NodeArg(arg.name, arg.type, _merged(arg.shape, shape)))
    return results


def _at_sizes(outputs: list[NodeArg], inputs: list[NodeArg], model: Model) -> list[NodeArg]:
    """The outputs with the numbers that the model gives at the inputs' own sizes, if those are numbers."""
    numbers = {arg.name: [size for size in arg.shape if isinstance(size, int)] for arg in (*inputs, *outputs)}
    if any(len(numbers[arg.name]) < len(arg.shape) for arg in inputs):
        return outputs
    if all(len(numbers[arg.name]) == len(arg.shape) and arg.shape for arg in outputs):
        return outputs
    try:
        graph = model.graph
        like = {arg.name: np.broadcast_to(np.int8(0), numbers[arg.name]) for arg in inputs}
        values = [graph.values[name] for name in graph.inputs]
        sizes = solve_sizes(values, [like[name] for name in graph.inputs], graph.held)
        shapes = {name: [D.evaluate(d, sizes) for d in graph.values[name].dims] for name in graph.outputs}
    except (FastRNNError, KeyError):  # branches that inputs select; a size that no input has
        return outputs
    return [NodeArg(arg.name, arg.type, _merged(arg.shape, shapes[arg.name])) for arg in outputs]


def _kept(declared: NodeArg, inferred: NodeArg, final: NodeArg) -> NodeArg:
    """final, with None for each number that the file declares and inference contradicts, as onnxruntime has it."""
    if not len(declared.shape) == len(inferred.shape) == len(final.shape):
        return final
    triples = zip(declared.shape, inferred.shape, final.shape, strict=True)
    return NodeArg(final.name, final.type, [None if isinstance(d, int) and i is None else f for d, i, f in triples])


def _merged(declared: list, inferred: list) -> list[int | str | None]:
    if not declared:
        return inferred
    if len(declared) != len(inferred):
        return declared
    merged: list[int | str | None] = []
    for mine, other in zip(declared, inferred, strict=True):
        if isinstance(mine, int) and isinstance(other, int):
            merged.append(mine if mine == other else None)
        else:
            merged.append(mine if isinstance(mine, int) or not (isinstance(other, int) or mine is None) else other)
    return merged


def _shapes(skeleton, data_prop: bool) -> dict[str, list]:
    """Output name -> its inferred sizes; nothing of a model that shape inference does not take."""
    from onnx import shape_inference

    try:
        made = shape_inference.infer_shapes(skeleton, data_prop=data_prop)
    except Exception:  # a C++ error without a type of its own; what the file declares is enough
        return {}
    own = {d.dim_param for info in skeleton.graph.input for d in info.type.tensor_type.shape.dim}
    kinds = {info.name: info.type.tensor_type for info in made.graph.output}
    sizes = {name: [_size(d) for d in kind.shape.dim] for name, kind in kinds.items() if kind.HasField("shape")}
    # Names that the inference made up, such as unk__0, are not in the file.
    return {name: [s if isinstance(s, int) or s in own else None for s in shape] for name, shape in sizes.items()}


__all__ = ["ModelMetadata", "NodeArg", "OnnxDescription", "PlainDescription", "fix_free_sizes"]
