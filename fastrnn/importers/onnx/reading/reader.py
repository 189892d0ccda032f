"""`NodeReader`: a node with the values of its inputs. It checks that every part of the node is used."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import AttributeProto

from ....errors import ModelFormatError
from ...shared.ledger import Finding, ReadLedger
from .nodes import OnnxNode
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


class NodeReader:
    """A node with the values of its inputs. It tracks what was read, so that anything left over is a finding.

    node : OnnxNode; values : abstract value per input, None if absent; opset : the version of the node's domain; needed
    : which outputs have readers.
    """

    def __init__(self, node: OnnxNode, values: list, opset: int, needed: list[bool] | None = None):
        self.node, self.values, self.opset = node, values, opset
        self.needed = needed if needed is not None else [True] * len(node.outputs)
        self._attrs = ReadLedger(node.attrs)
        self._inputs = ReadLedger([i for i, value in enumerate(values) if value is not None])

    # --- attributes ----------------------------------------------------------------------------------------------

    def attr(self, name: str, kind: str, default=None):
        """The attribute, of ONNX type `kind` (a key of _KINDS), or the default if it is absent."""
        self._attrs.read(name)
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
        """Mark an attribute that the caller of the handler reads."""
        self._attrs.read(name)

    def only(self, name: str, kind: str, default, allowed, why: str = "") -> object:
        """An attribute with only some supported values; any other is a Finding."""
        value = self.attr(name, kind, default)
        if value not in allowed:
            raise Finding(f"{name}={value!r}{': ' + why if why else ''}")
        return value

    # --- inputs --------------------------------------------------------------------------------------------------

    def input(self, i: int, optional: bool = False):
        """The abstract value of input i, or None if an optional one is absent."""
        self._inputs.read(i)
        value = self.values[i] if i < len(self.values) else None
        if value is None and not optional:
            raise ModelFormatError(f"input {i} is missing")
        return value

    def const(self, i: int, what: str, optional: bool = False) -> np.ndarray | None:
        """Input i as a known array; a live value is a Finding."""
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
        """The axes: an attribute before opset `since`, input i from then on; None if absent."""
        if self.opset < since:
            return self.attr(name, "ints")
        values = self.ints(i, name, optional=True)
        if values is not None and any(not isinstance(v, int) for v in values):
            raise Finding(f"its {name} depend on a size of the input")
        return values

    def within(self, values: list) -> NodeReader:
        """A reader of the same node with other inputs; attributes read through it count for both."""
        inner = NodeReader(self.node, values, self.opset, self.needed)
        inner._attrs = self._attrs
        return inner

    def finish(self) -> None:
        """Raise Finding for any part of the node that was not read."""
        left = sorted(self._attrs.left())
        if left:
            shown = ", ".join(f"{n}={show_attr(self.node.attrs[n])}" for n in left)
            raise Finding(f"attribute {shown}")
        extra = self._inputs.left()
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
    """The axis as a non-negative number; raises ModelFormatError if it is out of range."""
    if not -rank <= axis < rank:
        raise ModelFormatError(f"axis {axis} of a value of rank {rank}")
    return axis % rank


def axes_of(axes, rank: int) -> list[int]:
    """The axes as non-negative, distinct numbers."""
    found = [axis_of(a, rank) for a in axes]
    if len(set(found)) != len(found):
        raise ModelFormatError(f"axes {list(axes)} are not distinct")
    return found
