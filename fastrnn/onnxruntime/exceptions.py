"""The exceptions of onnxruntime, by the same names. Each is a `FastRNNError` too.

onnxruntime answers some mistakes with plain Python exceptions (ValueError, RuntimeError, TypeError). The classes that
`__all__` leaves out are both: the named exception, and the plain one.
"""

from __future__ import annotations

from ..errors import FastRNNError, ModelFormatError, ShapeError, UnsupportedError


class Fail(FastRNNError):
    """A run ended early, for example because `RunOptions.terminate` was set."""


class InvalidArgument(ShapeError):
    """A name, dtype, rank or size that the model does not take."""


class NoSuchFile(FastRNNError, FileNotFoundError):
    """The model file does not exist."""


class NoModel(ModelFormatError):
    """Never raised; for `except` clauses."""


class EngineError(FastRNNError):
    """Never raised; for `except` clauses."""


class RuntimeException(FastRNNError):
    """Never raised; for `except` clauses."""


class InvalidProtobuf(ModelFormatError):
    """The bytes are not an ONNX model."""


class ModelLoaded(FastRNNError):
    """Never raised; for `except` clauses."""


class NotImplemented(UnsupportedError):
    """The model, or the call, needs what fastrnn does not have. The text lists everything that is missing."""


class InvalidGraph(ModelFormatError):
    """The model contradicts itself or the ONNX specification."""


class EPFail(FastRNNError):
    """Never raised: the CPU is the only execution provider."""


class ModelLoadCanceled(FastRNNError):
    """Never raised; for `except` clauses."""


class ModelRequiresCompilation(FastRNNError):
    """Never raised; for `except` clauses."""


class NotFound(FastRNNError):
    """Never raised; for `except` clauses."""


class DeviceReset(FastRNNError):
    """Never raised; for `except` clauses."""


class EmptyModel(InvalidArgument, ModelFormatError):
    """A file without a graph, which onnxruntime calls an invalid argument."""


class TypeFail(Fail, ModelFormatError):
    """An output that the file declares to be of another type than it computes, which onnxruntime calls a failure."""


class ArgumentError(InvalidArgument, RuntimeError):
    """An invalid argument, which onnxruntime answers with a RuntimeError."""


class ArgumentTypeError(InvalidArgument, TypeError):
    """An argument of the wrong type, which onnxruntime answers with a TypeError."""


class FeedTypeError(ArgumentTypeError, AttributeError):
    """A feed that is not a dict, which onnxruntime answers with an AttributeError."""


class RefusedError(NotImplemented, RuntimeError):
    """A device or a feature that this build does not have, which onnxruntime answers with a RuntimeError."""


class RefusedNameError(NotImplemented, AttributeError):
    """An attribute of a class that is refused as a whole."""


__all__ = [
    "DeviceReset",
    "EPFail",
    "EngineError",
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "ModelLoadCanceled",
    "ModelLoaded",
    "ModelRequiresCompilation",
    "NoModel",
    "NoSuchFile",
    "NotFound",
    "NotImplemented",
    "RuntimeException",
]
