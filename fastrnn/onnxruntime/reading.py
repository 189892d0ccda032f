"""A file becomes a model and its description, with the exceptions of onnxruntime."""

from __future__ import annotations

import os
import warnings
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import formats, loading
from ..errors import ModelFormatError, UnsupportedError
from . import exceptions
from .described import OnnxDescription, PlainDescription, fix_free_sizes
from .exceptions import ArgumentTypeError, EmptyModel, InvalidGraph, InvalidProtobuf, NoSuchFile

if TYPE_CHECKING:
    from ..model import Model


def read(
    source, named: dict[str, int], denoted: dict[str, int], options: dict[str, Any]
) -> tuple[Model, OnnxDescription | PlainDescription]:
    """The model of a path or bytes, and what the file says of itself.

    named, denoted : free sizes of the file -> numbers, by name and by denotation. options : those of `fastrnn.load`.

    Raises TypeError for no path and no bytes, else the exceptions of `fastrnn.load`, as those of onnxruntime too.
    """
    if not isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        raise ArgumentTypeError(f"a session takes a path or bytes, got {type(source).__name__}")
    known = set(signature(loading.load).parameters)
    for name in sorted(set(options) - known):  # onnxruntime ignores them silently
        warnings.warn(f"a session has no option {name!r}, so it has no effect", UserWarning, stacklevel=4)
    options = {name: value for name, value in options.items() if name in known}
    try:
        form = _format_of(source)
        if form.name != "onnx":
            model = loading.load(source, **options)
            return model, PlainDescription(model)
        found = _read_proto(source)
        fix_free_sizes(found.model, named, denoted)
        description = OnnxDescription(found.model)
        return loading.load_as(form, found, **options), description
    except exceptions.NotImplemented:
        raise
    except UnsupportedError as error:
        raise exceptions.NotImplemented(error.problems, error.where) from error
    except FileNotFoundError as error:
        raise NoSuchFile(str(error)) from None
    except (EmptyModel, InvalidProtobuf):
        raise
    except ModelFormatError as error:
        raise InvalidGraph(str(error)) from error


def _format_of(source) -> formats.Format:
    """The format of a source. A path whose suffix is of no format is an ONNX file, as for onnxruntime."""
    onnx = next(form for form in formats.FORMATS if form.name == "onnx")
    if isinstance(source, bytes | bytearray | memoryview):
        return formats.format_of(source) if bytes(source) else onnx
    name = Path(source).name.lower()
    if any(name.endswith(suffix) for form in formats.FORMATS for suffix in form.suffixes):
        return formats.format_of(source)
    if not Path(source).is_file():
        raise NoSuchFile(f"no model file {source}")
    return onnx


def _read_proto(source):
    from ..importers.onnx.reading.files import NoGraphError, read_model

    if _is_ort_format(source):
        raise exceptions.NotImplemented(
            "a file in onnxruntime's own .ort format; load the .onnx file that it was made from"
        )
    try:
        return read_model(source)
    except NoGraphError as error:
        raise EmptyModel(str(error)) from None
    except ModelFormatError as error:
        raise InvalidProtobuf(str(error)) from None


def _is_ort_format(source) -> bool:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source[4:8]) == b"ORTM"
    with open(source, "rb") as file:
        return file.read(8)[4:] == b"ORTM"
